"""Products of rounded factors: exact sums of integers, the same bits on every ISA; and special values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lstmfast import _core
from support.oracles import problem as problem_of_sequence
from support.rounded_factors import FORMATS, meant, product
from support.sequences import run_core, upstream_for
from support.tolerances import sums

Array = npt.NDArray[Any]

EVERY_PRODUCT = True

# Around the words, groups of words, pieces, tiles of rows and blocks of units that any ISA has. AMX multiplies 6 rows
# and more in tiles of 16 rows, two at once from 22 rows on, and fewer in vectors.
DEPTHS = (0, 1, 2, 3, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 255, 256, 257, 511, 512, 513, 700, 1030)
ROWS = (0, 1, 2, 3, 4, 5, 6, 8, 9, 15, 16, 17, 21, 22, 31, 32, 33, 37, 38, 40, 95, 96, 97, 101, 102, 200)


def multiplied(x: Array, kernel: Array, bias: Array, name: str) -> Array:
    """bias + x @ kernel on the ISA in use."""
    z = np.full((len(x), kernel.shape[1]), np.nan, np.float32)
    _core.testing.rounded_product(x, kernel, bias, z, name)
    return z


def problem(rng: np.random.Generator, rows: int, depth: int, hidden: int) -> tuple[Array, Array, Array]:
    """Factors whose rows and columns differ in size, and a bias."""
    x = rng.standard_normal((rows, depth)) * 10.0 ** rng.integers(-3, 4, (rows, 1))
    kernel = rng.standard_normal((depth, 4 * hidden)) * 10.0 ** rng.integers(-3, 4, 4 * hidden)
    return x.astype(np.float32), kernel.astype(np.float32), rng.standard_normal(4 * hidden).astype(np.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [5, 7, 23])
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_gives_the_bits_of_the_model(isa, rng, depth, rows, name):
    x, kernel, bias = problem(rng, rows, depth, 17)
    assert_array_equal(multiplied(x, kernel, bias, name), product(x, kernel, bias, name))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("hidden", [1, 3, 4, 9, 16, 33])
def test_every_shape_of_tile_gives_the_bits_of_the_model(isa, rng, rows, hidden, name):
    x, kernel, bias = problem(rng, rows, 300, hidden)
    assert_array_equal(multiplied(x, kernel, bias, name), product(x, kernel, bias, name))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("depth", [256, 512, 2048])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("rows", [3, 23])
def test_largest_factors_do_not_overflow(isa, depth, rows, sign, name):
    x, kernel, bias = np.full((rows, depth), sign, np.float32), np.ones((depth, 4), np.float32), np.zeros(4, np.float32)
    z = multiplied(x, kernel, bias, name)
    assert_array_equal(z, product(x, kernel, bias, name))
    assert_allclose(z, sign * depth, **sums(np.float32, depth))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-31, 1e-20, 1e8])
def test_rows_and_columns_of_any_size(isa, rng, size, name):
    x, kernel, bias = problem(rng, 9, 40, 5)
    x[1], kernel[:, 2] = x[1] * np.float32(size), kernel[:, 2] * np.float32(size)
    assert_array_equal(multiplied(x, kernel, bias, name), product(x, kernel, bias, name))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_a_row_that_cannot_be_rounded_is_multiplied_in_float32_and_alone(isa, rng, value, name):
    x, kernel, bias = problem(rng, 9, 70, 5)
    expected = product(x, kernel, bias, name)
    x[4, 33] = value
    with np.errstate(invalid="ignore", over="ignore"):
        expected[4] = x[4].astype(float) @ meant(kernel, name) + bias
    z = multiplied(x, kernel, bias, name)
    assert_array_equal(np.delete(z, 4, 0), np.delete(expected, 4, 0))
    size = np.abs(expected[4][np.isfinite(expected[4])]).max(initial=1.0)
    assert_allclose(z[4], expected[4], **sums(np.float32, 70, size))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_kernel_that_cannot_be_rounded_is_refused(isa, rng, value, name):
    x, kernel, bias = problem(rng, 3, 40, 5)
    kernel[39, 19] = value
    with pytest.raises(ValueError, match="kernel cannot be rounded"):
        multiplied(x, kernel, bias, name)


def test_isas_that_add_products_share_the_float_kernels(isa, rng):
    base = isa.partition("_")[0]
    if base == isa:
        pytest.skip(f"{isa} adds no products")
    p = problem_of_sequence(rng, 5, 9, 33, 70, dtype=np.float32)
    upstream = upstream_for(rng, p)
    own = run_core(p, upstream)
    _core.testing.set_isa(base)
    for name, value in run_core(p, upstream).items():
        assert_array_equal(own[name], value, err_msg=name)
