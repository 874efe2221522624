"""The package as others meet it: light to import, typed, its stub true, its sources clean and tied to no machine.

Only what can be said of the package as a whole; what its functions do is said elsewhere. Tools that are not installed
skip their test with a reason.
"""

from __future__ import annotations

import ast
import importlib.resources
import importlib.util
import operator
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lstmfast import _core

ROOT = Path(__file__).resolve().parents[2]
SOURCE_SUFFIXES = {".cc", ".h", ".ipynb", ".md", ".py", ".pyi", ".toml", ".txt"}
USER_PROGRAM = ROOT / "tests" / "support" / "typing_user_program.py"
SOURCE_FOLDERS = ("bench", "csrc", "docs", "examples", "python", "tests")

# What `import lstmfast` must not pull in: frameworks, and what only the command line and the checkpoints use.
HEAVY = ["jax", "keras", "matplotlib", "onnxruntime", "rich", "safetensors", "tensorflow", "torch", "tyro"]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run this Python with a command line, from the root of the sources."""
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


def need(tool: str) -> None:
    """Skip the test where a tool is not installed."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed: pip install '.[dev]'")


def source_files() -> list[Path]:
    """Every text file of the project."""
    files = [path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("*"))
    return sorted(path for path in files if path.suffix in SOURCE_SUFFIXES and path.is_file())


def test_import_loads_no_framework_and_nothing_of_the_command_line() -> None:
    result = run("-c", f"import sys, lstmfast; print([name for name in {HEAVY} if name in sys.modules])")
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


@pytest.mark.parametrize("name", ["py.typed", "_core.pyi"])
def test_the_installed_package_carries_its_types(name: str) -> None:
    assert importlib.resources.files("lstmfast").joinpath(name).is_file()


def test_the_stub_names_what_the_extension_has(tmp_path: Path) -> None:
    need("mypy")
    allowed = tmp_path / "allowed.txt"
    classes = "PackedLinear|Sequence|Stream"  # pybind11's metaclass has no name in a stub
    allowed.write_text(rf"lstmfast\._core\.({classes})" "\n")
    result = run("-m", "mypy.stubtest", "lstmfast._core", "--allowlist", allowed)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_stub_gives_every_function_the_parameters_it_has() -> None:
    stub = ast.parse(importlib.resources.files("lstmfast").joinpath("_core.pyi").read_text())
    scopes = [("", stub), *((f"{node.name}.", node) for node in stub.body if isinstance(node, ast.ClassDef))]
    stubbed = {
        prefix + function.name: [name.arg for name in (*function.args.args, *function.args.kwonlyargs)]
        for prefix, scope in scopes
        for function in scope.body
        if isinstance(function, ast.FunctionDef) and not function.decorator_list
    }
    assert stubbed == {name: parameters_of(name) for name in stubbed}


def parameters_of(name: str) -> list[str]:
    """Parameters of a function of the extension: the first line of its docstring is pybind11's signature."""
    signature = operator.attrgetter(name)(_core).__doc__.splitlines()[0].split(" -> ")[0]
    return re.findall(r"(\w+)(?=: )", signature)


def test_a_typed_user_program_passes_mypy_strict(tmp_path: Path) -> None:
    need("mypy")
    result = run("-m", "mypy", "--strict", "--cache-dir", tmp_path, USER_PROGRAM)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_typed_user_program_runs() -> None:
    result = run(USER_PROGRAM)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_library_and_its_bench_pass_mypy_strict(tmp_path: Path) -> None:
    need("mypy")
    result = run("-m", "mypy", "--strict", "--cache-dir", tmp_path, "python/lstmfast", "bench")
    assert result.returncode == 0, result.stdout + result.stderr


def test_sources_pass_ruff() -> None:
    need("ruff")
    result = run("-m", "ruff", "check", "--no-cache", ".")
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_assert_carries_a_check() -> None:
    """`python -O` takes them out, so all that they may do is tell a type checker what is so already."""

    def narrows(test: ast.expr) -> bool:
        if isinstance(test, ast.BoolOp):
            return all(map(narrows, test.values))
        is_not_none = isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot)
        return is_not_none or isinstance(test, ast.Call) and ast.unparse(test.func) == "isinstance"

    found = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "python").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) and not narrows(node.test)
    }
    assert found == set()


def test_no_file_depends_on_the_folders_of_one_machine() -> None:
    homes = re.compile(r"(?<![\w.:/~$}@-])/(?:home|root|Users|work|mnt|srv)/\w+")
    found = {
        path.relative_to(ROOT).as_posix(): homes.findall(path.read_text(encoding="utf-8")) for path in source_files()
    }
    assert {path: places for path, places in found.items() if places} == {}
