"""The AMX kernels as the compiler made them, on a CPU without AMX: `emulated_tiles.cc` stands in for the hardware."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lstmfast import _core
from support.kernel_builds import CSRC, clang, compile_kernels, compiler, gcc

KERNELS = ("amx", "amx_int8", "avx512_vnni")  # the last for comparison


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="needs Linux on x86-64")
@pytest.mark.skipif("avx512_vnni" not in _core.available_isas(), reason="this CPU lacks VNNI, which int8 uses too")
@pytest.mark.parametrize("optimized", [True, False], ids=["as-built", "unoptimized"])
@pytest.mark.parametrize("command", [gcc(), clang()], ids=["gcc", "clang"])
def test_emulated_tile_instructions_give_the_bits_of_other_kernels(
    command: list[str] | None, optimized: bool, tmp_path: Path
) -> None:
    if command is None or compiler() is None:
        pytest.skip("needs this compiler")
    kernels, program = [tmp_path / f"{name}.o" for name in KERNELS], tmp_path / "emulated_tiles"
    for name, target in zip(KERNELS, kernels, strict=True):
        compile_kernels(name, target, optimized=optimized, command=command)
    source = Path(__file__).resolve().parents[1] / "support" / "emulated_tiles.cc"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wno-psabi", "-I", CSRC]
    subprocess.run([str(compiler()), *flags, source, *kernels, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
