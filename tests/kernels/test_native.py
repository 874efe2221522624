"""The core without Python, on this system and on Windows: what tests/support/native_check.cc says about itself.

Windows is Wine, and its compiler Clang of the package `ziglang`.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lstmfast import build_info
from support.kernel_builds import compiler
from support.native_builds import build_native_check

pytestmark = pytest.mark.skipif(bool(build_info()["sanitizer"]), reason="compilers do not run under a sanitizer")
# Optimized kernels take most of a minute to compile.
OPTIMIZED = [pytest.param(True, marks=pytest.mark.sweep, id="as-built"), pytest.param(False, id="unoptimized")]


def failed_checks(command: list[str], environment: dict[str, str] | None = None) -> list[str]:
    """What the program found wrong; it must have found something right, and ended well."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    lines = [line.strip() for line in done.stdout.splitlines()]
    failed = [line for line in lines if not line.startswith("passed ")]
    return failed if lines and done.returncode == len(failed) else [*failed, f"status {done.returncode}: {done.stderr}"]


@pytest.mark.parametrize("optimized", OPTIMIZED)
def test_kernels_pool_and_memory_do_without_python_what_plain_loops_do(optimized: bool, tmp_path: Path) -> None:
    if compiler() is None:
        pytest.skip("needs a C++ compiler")
    program = build_native_check([str(compiler())], tmp_path, optimized=optimized)
    assert failed_checks([str(program)]) == []


@pytest.mark.parametrize("optimized", OPTIMIZED)
def test_they_do_so_on_windows(optimized: bool, tmp_path: Path) -> None:
    wine = shutil.which("wine64") or shutil.which("wine")
    if wine is None or importlib.util.find_spec("ziglang") is None or platform.machine() != "x86_64":
        pytest.skip("needs wine and the package ziglang, on x86-64")
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", "x86_64-windows-gnu", "-g0"]
    program = build_native_check(zig, tmp_path, optimized=optimized)
    environment = {**os.environ, "WINEPREFIX": str(tmp_path / "wine"), "WINEDEBUG": "-all"}
    assert failed_checks([wine, str(program)], environment) == []
