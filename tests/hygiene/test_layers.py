"""Who may import whom in the Python package: floors, no circles, no lazy imports; and the names that are public.

`csrc/` has the same test in test_kernels.py. A module may import from the floors below its own and, within its
own room, whatever leads to no circle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lstmfast

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "lstmfast"

# From the ground up. A room is a module or a package with everything in it; rooms of one floor know nothing of each
# other. `lstmfast` is the package's own __init__.
FLOORS = [
    {"_core", "gates", "schedules", "_memory", "_streams"},
    {"_checks"},
    {"gate_statistics", "initializers", "losses", "optimizers", "compat.tf1.absent"},
    {"cells", "reference"},
    {"_engine", "runtime"},
    {"cuda"},
    {"functional"},
    {"layers"},
    {"models"},
    {"text", "distributed"},
    {"training"},
    {"layouts"},
    {"inspection", "viz"},
    {"report"},
    {"config", "trainer", "sampler", "run_folder", "data"},
    {"lstmfast"},
    {"torch", "keras", "onnx", "compat", "cuda.selftest"},
    {"integrations"},
    {"command"},
    {"__main__"},
]
# Rooms that may look into others without importing them when they are imported themselves: each with its reason.
LAZY: dict[str, str] = {}


def room_of(module: str) -> str:
    """The room of a module, by its longest name in FLOORS."""
    parts = module.split(".")[1:] or ["lstmfast"]
    names = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    known = set().union(*FLOORS)
    return next((name for name in names if name in known), names[-1])


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name, parsed. `bench` is mapped in from its own folder and tested there."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if "bench" not in parts:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text("utf-8"))
    return found


def imports(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """The modules of the package that a tree imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lstmfast":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


MODULES = modules()
KNOWN = {*MODULES, "lstmfast._core"}
EDGES = {name: sorted(set(imports(tree, KNOWN)) - {name}) for name, tree in MODULES.items()}


def floor_of(module: str) -> int:
    """The number of a module's floor, from the ground."""
    return next(number for number, rooms in enumerate(FLOORS) if room_of(module) in rooms)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_floor(module: str) -> None:
    assert any(room_of(module) in rooms for rooms in FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_floors_below_or_its_own_room(module: str) -> None:
    wrong = [
        other for other in EDGES[module] if room_of(other) != room_of(module) and floor_of(other) >= floor_of(module)
    ]
    assert wrong == []


def test_there_is_no_circle() -> None:
    path: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in path, f"circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in done or module not in EDGES:
            return
        path.append(module)
        for other in EDGES[module]:
            visit(other)
        path.pop()
        done.add(module)

    for module in MODULES:
        visit(module)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_of_the_package_is_imported_late(module: str) -> None:
    inner = [node for node in ast.walk(MODULES[module]) if isinstance(node, (ast.FunctionDef, ast.If, ast.Try))]
    late = sorted({name for node in inner for name in imports(node, KNOWN)})
    assert late == [] or module in LAZY


def test_the_public_names_are_these() -> None:
    assert set(lstmfast.__all__) == PUBLIC


PUBLIC = {
    "LSTM", "Cell", "CharLM", "CharStream", "Embedding", "Gradients", "Inspection", "LSTMCell", "Linear", "Output",
    "ParameterBuffer", "SequenceClassifier", "__version__", "available_isas", "build_info", "explain", "gates",
    "get_matmul_precision", "get_num_threads", "initializers", "inspect", "layouts", "losses", "lstm", "lstm_backward",
    "lstm_step", "optimizers", "reference", "release_memory", "schedules", "set_matmul_precision", "set_num_threads",
    "viz",
}
