"""One binary that is safe on every CPU: what the sources in csrc/ may include, and what their objects may export.

The rules and the trap behind them are told in csrc/README.md. They are checked on the sources and on objects compiled
here with the flags of CMakeLists.txt; nothing is run, so that kernels for other CPUs are checked as well.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kernel_builds import ARM_KERNEL_FLAGS, CSRC, KERNEL_FLAGS, clang, compile_kernels, compiler, gcc

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

# Kernels -> multiply-adds of their largest tile of vectors: 6 rows of 4; more than 5 rows are for tile registers.
PRODUCTS = {"avx512": 24, "avx512_vnni": 24, "avx512_bf16": 24, "amx_int8": 16}

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


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "largest"), [(name, n) for name, n in PRODUCTS.items() if name in KERNEL_FLAGS])
@pytest.mark.parametrize("command", [gcc(), clang()], ids=["gcc", "clang"])
def test_products_keep_their_sums_in_registers(
    command: list[str] | None, name: str, largest: int, tmp_path: Path
) -> None:
    if shutil.which("objdump") is None or command is None:
        pytest.skip("needs this compiler and objdump")
    target = tmp_path / "kernels.o"
    compile_kernels(name, target, command=command)
    products = [loop for loop in innermost_loops(target) if is_product(loop)]
    stored = [sum(bool(STORED_SUM.match(line)) for line in loop) for loop in products]
    assert (max(map(multiply_adds, products)), max(stored)) == (largest, 0)


@pytest.mark.sweep
def test_dot_products_of_arm_keep_their_sums_in_registers(tmp_path: Path) -> None:
    cross = "aarch64-linux-gnu-"
    if shutil.which(f"{cross}g++") is None or shutil.which(f"{cross}objdump") is None:
        pytest.skip(f"needs {cross}g++ and {cross}objdump")
    target = tmp_path / "kernels.o"
    command = [f"{cross}g++", "-fno-ipa-ra"]
    compile_kernels("neon_dotprod", target, command=command, flags_of=ARM_KERNEL_FLAGS)
    loops = list(innermost_loops(target, f"{cross}objdump"))
    [products, *_] = [loop for loop in loops if sum(line.startswith("sdot") for line in loop) == 24]
    assert (len(products) < 1.75 * 24, [line for line in products if line.startswith("st")]) == (True, [])


STORED_SUM = re.compile(r"vmov\w+ +%[xyz]mm\d+,-?(0x[0-9a-f]+)?\(%r[sb]p")


def multiply_adds(loop: list[str]) -> int:
    """How many instructions of a loop multiply and add."""
    return sum(bool(re.match(r"v(fmadd|pdpwssd|pdpbusd|dpbf16ps)", line)) for line in loop)


def is_product(loop: list[str]) -> bool:
    """Whether a loop does hardly anything but multiply and add: up to 6 rows of 4 vectors, or one row of 8."""
    return 8 <= multiply_adds(loop) <= 24 and len(loop) <= 4 * multiply_adds(loop)


JUMP = re.compile(r"(?:j\w+|b\.\w+|cbn?z\s+\w+,)\s+([0-9a-f]+)")


def innermost_loops(target: Path, objdump: str = "objdump") -> Iterator[list[str]]:
    """The instructions of every loop of an object that has no loop inside."""
    shown = subprocess.run([objdump, "-d", "--no-show-raw-insn", target], check=True, capture_output=True, text=True)
    for function in shown.stdout.split("\n\n"):
        lines = re.findall(r"^ *([0-9a-f]+):\s+(.*)$", function, re.MULTILINE)
        places = {address: place for place, (address, _) in enumerate(lines)}
        jumps = [(JUMP.match(line), place) for place, (_, line) in enumerate(lines)]
        loops = [(places[to[1]], place) for to, place in jumps if to and places.get(to[1], place + 1) <= place]
        for begin, end in loops:
            if not any(begin <= first and last <= end for first, last in loops if (first, last) != (begin, end)):
                yield [line for _, line in lines[begin : end + 1]]


@pytest.mark.parametrize("name", KERNEL_FLAGS)
def test_kernels_are_compiled_without_exceptions_and_run_time_types(name: str) -> None:
    assert {"-fno-exceptions", "-fno-rtti"} <= set(KERNEL_FLAGS[name])


@pytest.mark.parametrize(
    ("file", "line", "but"),
    [
        ("CMakeLists.txt", "lstmfast_add_kernels", set()),
        ("csrc/cpu/isa.cc", "LSTMFAST_ISA", {"amx_int8"}),  # its products are in the row `amx`
    ],
)
def test_every_kernel_file_has_its_line_in_cmake_and_its_row_among_the_isas(
    file: str, line: str, but: set[str]
) -> None:
    named = re.findall(rf"^\s*{line}\((\w+)", (CSRC.parent / file).read_text(), re.MULTILINE)
    assert set(named) == {Path(source).stem for source in KERNEL_SOURCES if source.endswith(".cc")} - but


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


def test_only_one_file_asks_the_cpu_what_it_can_do() -> None:
    asking = r"cpuid|xgetbv|__builtin_cpu_"
    assert [source for source in SOURCES if re.search(asking, code(source))] == ["cpu/cpu_features.cc"]


def test_only_one_file_asks_the_operating_system() -> None:
    """csrc/cuda is for Linux alone."""
    headers = r"windows\.h|unistd\.h|pthread\.h|sched\.h|malloc\.h|dlfcn\.h|(sys|linux|mach|asm)/.*"
    systems = r"\b(__linux__|__gnu_linux__|__unix__|_WIN32|_WIN64|__APPLE__|__MACH__|__GLIBC__|__MINGW32__|_MSC_VER)\b"
    asking = {
        source
        for source in SOURCES
        if re.search(systems, code(source)) or any(re.fullmatch(headers, header) for header in includes(source))
    }
    assert {source for source in asking if not source.startswith("cuda/")} == {"core/system.cc"}


def test_only_isa_cc_and_the_kernels_themselves_name_the_table_accessors() -> None:
    naming = {source for source in SOURCES if "lstmfast_kernels_" in code(source)}
    assert {source for source in naming if source not in KERNEL_SOURCES} == {"cpu/isa.cc"}
