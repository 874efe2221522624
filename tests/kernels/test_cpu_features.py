"""Which features of the CPU are found, beside what Linux, the compiler and emulated CPUs say."""

from __future__ import annotations

import ast
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lstmfast import _core, build_info

CPUINFO = Path("/proc/cpuinfo")
BASIC, NEON = ["generic"], ["generic", "neon"]
EMULATED_BY = {
    "qemu-x86_64": {
        "Nehalem": BASIC,
        "SandyBridge": BASIC,
        "Haswell": [*BASIC, "avx2"],
        "Haswell,-fma": BASIC,
        "Haswell,-avx2": BASIC,
    },
    "qemu-aarch64": {"cortex-a53": NEON, "cortex-a57": NEON, "cortex-a76": [*NEON, "neon_dotprod"]},
}
MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
EMULATOR = f"qemu-{MACHINE}"
EMULATED = EMULATED_BY.get(EMULATOR, {})

pytestmark = pytest.mark.skipif(not EMULATED, reason="no features to find")


def in_child(expression: str, *under: str) -> Any:
    """What a new process says an expression of `_core` is, under an emulator or natively."""
    program = f"from lstmfast import _core; print({expression})"
    # OpenBLAS kernels that the environment names are for this CPU.
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    command = [*under, sys.executable, "-c", program]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return ast.literal_eval(said.stdout)


@pytest.mark.skipif(not CPUINFO.exists(), reason="this system has no /proc/cpuinfo")
def test_they_are_those_that_linux_found() -> None:
    lines = [line.partition(":") for line in CPUINFO.read_text().splitlines()]
    [flags, *_] = [words.split() for name, _, words in lines if name.strip() in ("flags", "Features")]
    found = in_child("_core.testing.cpu_features()")  # natively, also when this process runs in an emulator
    assert found == {name: name in flags for name in found}


def test_they_are_those_that_the_compiler_finds() -> None:
    by_compiler = _core.testing.cpu_features_by_compiler()
    if not by_compiler:
        pytest.skip("no __builtin_cpu_supports of GCC in this build")
    found = _core.testing.cpu_features()
    assert {name: found[name] for name in by_compiler} == by_compiler


@pytest.mark.sweep
@pytest.mark.skipif(not shutil.which(EMULATOR), reason=f"{EMULATOR} is not installed")
@pytest.mark.skipif(bool(build_info()["sanitizer"]), reason="a sanitizer's memory has no place in the emulator")
@pytest.mark.parametrize("cpu", EMULATED)
def test_an_emulated_cpu_has_the_isas_of_its_features(cpu: str) -> None:
    isas = in_child("_core.available_isas()", EMULATOR, "-cpu", cpu)
    assert [isa for isa in isas if isa != "generic512"] == EMULATED[cpu]


def test_a_build_has_the_kernels_for_every_cpu_of_its_architecture() -> None:
    assert _core.unbuilt_isas() == []
