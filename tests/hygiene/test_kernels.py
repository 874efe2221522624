"""One binary that is safe on every CPU: what the sources in csrc/ may include, and what their objects may export.

The rules and the trap behind them are told in csrc/README.md. They are checked on the sources and on objects compiled
here with the flags of CMakeLists.txt; nothing is run, so that kernels for other CPUs are checked as well.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.kernel_builds import CSRC, KERNEL_FLAGS, compile_kernels, compiler

SUFFIXES = {".cc", ".cpp", ".cu", ".cuh", ".h"}
SOURCES = sorted(path.relative_to(CSRC).as_posix() for path in CSRC.rglob("*") if path.suffix in SUFFIXES)
KERNEL_SOURCES = [source for source in SOURCES if source.startswith("cpu/kernels/")]
# Folder -> what its files may include. Headers of the language and of the standard library are everybody's but the
# kernels'; the vendor's intrinsics define only always-inline functions.
KERNELS_MAY_INCLUDE = (
    r"cpu/kernels/.*|cpu/(kernel_table|bf16x_kernels|dot_kernels)\.h|core/(gates|inline|views)\.h|immintrin\.h|arm_neon\.h"
)
FOLDERS_MAY_INCLUDE = {
    "core": r"core/.*",
    "cpu": r"(core|cpu)/[^/]*",
    "cpu/kernels": KERNELS_MAY_INCLUDE,
    "lstm": r"(core|cpu|lstm)/[^/]*",
    "nn": r"(core|cpu|nn)/[^/]*",
    "models": r"(core|cpu|lstm|nn|models)/[^/]*",
    "cuda": r"(core|cuda)/[^/]*",
    "bindings": r"(core|cpu|lstm|nn|models|bindings)/[^/]*",
}

OPTIMIZED = [pytest.param(True, marks=pytest.mark.sweep), False]  # optimized kernels take most of a minute to compile


def includes(source: str) -> list[str]:
    """The headers a source names, project and system."""
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', (CSRC / source).read_text(), re.MULTILINE)


def project_includes(source: str) -> list[str]:
    """Those of them that lie in csrc/."""
    return [header for header in includes(source) if (CSRC / header).exists()]


def code(source: str) -> str:
    """A source without its comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", (CSRC / source).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("optimized", OPTIMIZED, ids=["as-built", "unoptimized"])
@pytest.mark.parametrize("name", KERNEL_FLAGS)
def test_a_kernel_object_exports_its_table_accessor_and_nothing_else(
    name: str, optimized: bool, tmp_path: Path
) -> None:
    if compiler() is None or shutil.which("nm") is None:
        pytest.skip("needs a C++ compiler and nm")
    target = tmp_path / "kernels.o"
    compile_kernels(name, target, optimized=optimized)
    symbols = subprocess.run(["nm", "--defined-only", target], check=True, capture_output=True, text=True).stdout
    # An upper-case letter is a global symbol; weak ones, which a linker may take from any object, are v, w, V, W, u.
    exported = [line.split()[-1] for line in symbols.splitlines() if re.match(r"\S+ ([A-Z]|[vwu]) ", line)]
    assert exported == [f"lstmfast_kernels_{name}"]


@pytest.mark.parametrize("name", KERNEL_FLAGS)
def test_kernels_are_compiled_without_exceptions_and_run_time_types(name: str) -> None:
    assert {"-fno-exceptions", "-fno-rtti"} <= set(KERNEL_FLAGS[name])


@pytest.mark.parametrize(
    ("file", "line"), [("CMakeLists.txt", "lstmfast_add_kernels"), ("csrc/cpu/isa.cc", "LSTMFAST_ISA")]
)
def test_every_kernel_file_has_its_line_in_cmake_and_its_row_among_the_isas(file: str, line: str) -> None:
    named = re.findall(rf"^\s*{line}\((\w+)", (CSRC.parent / file).read_text(), re.MULTILINE)
    assert set(named) == {Path(source).stem for source in KERNEL_SOURCES if source.endswith(".cc")}


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_includes_only_what_its_folder_may_see(source: str) -> None:
    headers = includes(source) if source in KERNEL_SOURCES else project_includes(source)
    allowed = FOLDERS_MAY_INCLUDE[str(Path(source).parent)]
    assert [header for header in headers if not re.fullmatch(allowed, header)] == []


@pytest.mark.parametrize("source", KERNEL_SOURCES)
def test_kernels_never_name_the_standard_library(source: str) -> None:
    assert "std::" not in code(source)


def test_only_the_bindings_know_pybind11_and_python() -> None:
    knowing = {source for source in SOURCES if re.search(r"pybind11|Python\.h|\bPy_?[A-Z]\w+\(", code(source))}
    assert {source.split("/")[0] for source in knowing} == {"bindings"}


def test_only_isa_cc_asks_the_cpu_what_it_can_do() -> None:
    asking = r"cpuid|xgetbv|__builtin_cpu_|getauxval"
    assert [source for source in SOURCES if re.search(asking, code(source))] == ["cpu/isa.cc"]


def test_only_isa_cc_and_the_kernels_themselves_name_the_table_accessors() -> None:
    naming = {source for source in SOURCES if "lstmfast_kernels_" in code(source)}
    assert {source for source in naming if source not in KERNEL_SOURCES} == {"cpu/isa.cc"}
