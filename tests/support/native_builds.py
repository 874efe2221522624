"""Builds tests/support/native_check.cc with the core's sources, for this machine or another system; no Python in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.kernel_builds import CSRC, KERNEL_FLAGS, compile_kernels

_CHECK = Path(__file__).with_name("native_check.cc")
_FOLDERS = ("core", "cpu", "lstm")


def build_native_check(command: Sequence[str], folder: Path, *, optimized: bool) -> Path:
    """The program, built in `folder` by this compiler; its kernels are optimized as in the package or not at all."""
    isas = f'-DLSTMFAST_BUILT_ISAS="{" ".join(KERNEL_FLAGS)}"'
    sources = [path for name in _FOLDERS for path in sorted((CSRC / name).glob("*.cc"))]

    def compile_source(source: Path) -> Path:
        target = folder / f"{source.parent.name}-{source.stem}.o"
        flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", isas, "-I", str(CSRC), "-c", str(source), "-o", str(target)]
        subprocess.run([*command, *flags], check=True)
        return target

    def compile_isa(name: str) -> Path:
        target = folder / f"kernels-{name}.o"
        compile_kernels(name, target, optimized=optimized, command=command)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [*pool.map(compile_isa, KERNEL_FLAGS), *pool.map(compile_source, [_CHECK, *sources])]
    program = folder / "native_check.exe"
    subprocess.run([*command, *map(str, objects), "-pthread", "-o", str(program)], check=True)
    return program
