"""What every test may ask for: an ISA, a dtype, a generator of random numbers. No claims here, and no helpers.

Only a test that asks for `isa` imports the extension, and then only when it is collected.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

# These have the float kernels of the ISA that their name begins with (tests/kernels/test_dot_products.py), and products
# of their own: modules that concern products less exact than float32 set EVERY_PRODUCT.
ADD_PRODUCTS = ("neon_dotprod", "avx2_vnni", "avx512_vnni", "avx512_bf16")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `isa` on every ISA of this build; those this CPU lacks are skipped by name."""
    if "isa" in metafunc.fixturenames:
        core = _core()
        left_out = () if getattr(metafunc.module, "EVERY_PRODUCT", False) else ADD_PRODUCTS
        available = [name for name in core.available_isas() if name not in left_out]
        lacking = [
            pytest.param(name, marks=pytest.mark.skip(reason=f"this CPU lacks {name}"))
            for name in core.built_isas()
            if name not in available and name not in left_out
        ]
        metafunc.parametrize("isa", [*available, *lacking], indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the ISA that the extension uses during this test."""
    core = _core()
    before = core.current_isa()
    core.testing.set_isa(request.param)
    yield request.param
    core.testing.set_isa(before)


@pytest.fixture(autouse=True)
def _precision_is_put_back() -> Iterator[None]:
    """A command sets the precision of its run for the whole process, which here goes on."""
    yield
    if runtime := sys.modules.get("lstmfast.runtime"):
        runtime.set_matmul_precision("highest")


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    """float32, then float64."""
    return np.dtype(request.param)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers of this test's own: seeded by its file's and its own name, the same on every run, in any order."""
    return np.random.default_rng(zlib.crc32(f"{request.path.name}::{request.node.name}".encode()))


@pytest.fixture
def threads() -> Iterator[ModuleType]:
    """The extension, whose number of threads the test may set; it is put back afterwards."""
    core = _core()
    before = core.get_num_threads()
    yield core
    core.set_num_threads(before)


def _core() -> ModuleType:
    from lstmfast import _core

    return _core
