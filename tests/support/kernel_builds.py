"""How the kernels of one ISA are compiled: the flags of CMakeLists.txt, for tests that build their own objects."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_BLOCKS = re.compile(
    r'if\(CMAKE_SYSTEM_PROCESSOR MATCHES "([^"]+)"\)|(endif)\(\)|^\s*lstmfast_add_kernels\((\w+)([^)]*)\)', re.MULTILINE
)
CSRC = Path(__file__).resolve().parents[2] / "csrc"


def kernel_flags() -> dict[str, list[str]]:
    """Every kernel file that this compiler can build -> its flags in CMakeLists.txt."""
    text = (CSRC.parent / "CMakeLists.txt").read_text()
    (common,) = re.findall(r"set\(LSTMFAST_KERNEL_FLAGS ([^)]*)\)", text)
    flags, processors = {}, ""  # processors that the lines between if and endif apply to
    for given, end, name, own in _BLOCKS.findall(text):
        if given or end:
            processors = given
        elif re.search(processors, platform.machine()):
            flags[name] = [*common.split(), *own.split()]
    return flags


KERNEL_FLAGS = kernel_flags()


def compiler() -> str | None:
    """The C++ compiler, if this machine has one."""
    return shutil.which(os.environ.get("CXX", "c++"))


def gcc() -> list[str] | None:
    """The command of GCC, if this machine has it, with what CMakeLists.txt gives GCC alone."""
    return ["g++", "-fno-ipa-ra"] if shutil.which("g++") else None


def clang() -> list[str] | None:
    """The command of Clang, of the system or in the package `ziglang`, if this machine has one."""
    if importlib.util.find_spec("ziglang"):
        # Unoptimized, it would otherwise check for undefined behaviour, with a library of its own.
        return [sys.executable, "-m", "ziglang", "c++", "-g0", "-fno-sanitize=undefined"]
    return ["clang++"] if shutil.which("clang++") else None


def compile_kernels(
    name: str, target: Path, *, optimized: bool = True, command: Sequence[str] | None = None
) -> None:
    """Compile the kernels of one ISA as in the build, or without optimization. command: another compiler."""
    source = CSRC / "cpu" / "kernels" / f"{name}.cc"
    flags = ["-std=c++17", "-fPIC", "-O3", *KERNEL_FLAGS[name], *([] if optimized else ["-O0"])]
    subprocess.run([*(command or [str(compiler())]), *flags, "-I", CSRC, "-c", source, "-o", target], check=True)
