"""Builds programs from CUDA sources and the emulator of `cuda_emu/`: with g++, cached by their source text.

For tests that run kernels on the CPU, plain or under a sanitizer. Contains no tests.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from support.kernel_builds import CSRC, compiler

EMULATOR = Path(__file__).resolve().parent / "cuda_emu"
SANITIZERS = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
    "thread": ["-fsanitize=thread"],
}
# Exit status of a program when a sanitizer has found something.
SANITIZER_STATUS = 77
_WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]


def build_program(
    sources: Sequence[Path], *, sanitizer: str = "plain", flags: Iterable[str] = (), watched: Iterable[Path] = ()
) -> Path:
    """Build a program from these sources and the emulator. watched: headers outside csrc/cuda that they include."""
    return _build(sources, [*SANITIZERS[sanitizer], *flags], watched, [])


def build_library(sources: Sequence[Path], *, flags: Iterable[str] = ()) -> Path:
    """Build a shared library from these sources and the emulator; host pointers act as device pointers."""
    return _build(sources, ["-fPIC", "-fvisibility=hidden", *flags], (), ["-shared"])


def run_program(program: Path, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a program as its sanitizer requires. TSan maps its shadow at fixed addresses, hence setarch."""
    environment = {
        **os.environ,
        "ASAN_OPTIONS": f"detect_leaks=0:exitcode={SANITIZER_STATUS}",
        "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:exitcode={SANITIZER_STATUS}",
        "TSAN_OPTIONS": f"halt_on_error=1:exitcode={SANITIZER_STATUS}",
    }
    command = [str(program), *arguments]
    if setarch := shutil.which("setarch"):
        command = [setarch, "-R", *command]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def _build(sources: Sequence[Path], flags: Sequence[str], watched: Iterable[Path], link: Sequence[str]) -> Path:
    position_independent = ["-fPIC"] if "-fPIC" in flags else []
    base = [str(compiler()), "-std=c++17", *_WARNINGS, "-I", str(EMULATOR), "-I", str(CSRC)]
    headers = [EMULATOR / "cuda_emu.h", *sorted((CSRC / "cuda").glob("*.cuh")), *sorted((CSRC / "cuda").glob("*.h"))]
    headers += [CSRC / "core" / "gates.h", *watched]
    # The runtime is never instrumented: its bookkeeping must be invisible to sanitizers.
    runtime = _object(EMULATOR / "cuda_emu.cc", [*base, "-O2", *position_independent], headers)
    objects = [_object(source, [*base, "-O1", "-g", *flags], headers) for source in sources]
    digest = hashlib.sha256(" ".join(map(str, [*flags, *link, runtime, *objects])).encode()).hexdigest()[:20]
    target = _folder() / (f"lib{digest}.so" if link else digest)
    if not target.exists():
        _run([*base, *flags, *link, *map(str, objects), str(runtime)], target)
    return target


def _object(source: Path, command: Sequence[str], headers: Iterable[Path]) -> Path:
    """The source compiled by this command; recompiled only if a source text or the command has changed."""
    texts = [" ".join(command).encode(), *(path.read_bytes() for path in [source, *headers] if path.exists())]
    target = _folder() / f"{source.stem}-{hashlib.sha256(b'|'.join(texts)).hexdigest()[:20]}.o"
    if not target.exists():
        _run([*command, "-x", "c++", "-c", str(source)], target)
    return target


def _run(command: Sequence[str], target: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix="being-made-", delete=False) as file:
        being_made = Path(file.name)
    try:
        subprocess.run([*command, "-o", str(being_made)], check=True, capture_output=True, text=True)
        being_made.replace(target)  # atomic, for tests running at the same time
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{' '.join(error.cmd)}\n{error.stderr}") from None
    finally:
        being_made.unlink(missing_ok=True)


def _folder() -> Path:
    folder = Path(tempfile.gettempdir(), f"lstmfast-cuda-tests-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
