"""The AMX kernels as the compiler made them, on a CPU without AMX: `emulated_tiles.cc` stands in for the hardware."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lstmfast import _core
from support.kernel_builds import CSRC, compile_kernels, compiler


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="needs Linux on x86-64")
@pytest.mark.skipif("avx512" not in _core.available_isas(), reason="this CPU lacks AVX-512, which AMX kernels use too")
@pytest.mark.parametrize("optimized", [True, False], ids=["as-built", "unoptimized"])
def test_emulated_tile_instructions_give_the_bits_of_their_stand_in(optimized: bool, tmp_path: Path) -> None:
    kernels, program = tmp_path / "amx.o", tmp_path / "emulated_tiles"
    compile_kernels("amx", kernels, optimized=optimized)
    source = Path(__file__).resolve().parents[1] / "support" / "emulated_tiles.cc"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wno-psabi", "-I", CSRC]
    subprocess.run([str(compiler()), *flags, source, kernels, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
