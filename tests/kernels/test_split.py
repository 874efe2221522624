"""Float32 products out of bfloat16 parts: as accurate as promised, in every form, and refused where that is unsafe.

They run on every ISA that has them: on AMX itself, and on generic512, where plain C++ stands in for the tile
instructions and everything around them is the same code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from lstmfast import _core
from support.sequences import MARGIN, SENTINEL, Outputs, strided

Array = npt.NDArray[Any]

testing = _core.testing

MEDIUM, HIGH, HIGHEST = 1, 2, 3
PARTS = [MEDIUM, HIGH, HIGHEST]


def error_of(parts: int, depth: int) -> float:
    """What a whole result may be off by, as a part of its norm.

    Measured: 2.4e-3 and 4.5e-6 at any depth. Three parts leave out products of 2**-24 of the result, and then the sum's
    own rounding is larger: it grows like the root of the depth.
    """
    return {MEDIUM: 1e-2, HIGH: 1e-5, HIGHEST: 2.0**-22 * max(1.0, np.sqrt(depth) / 16)}[parts]


# The same for single numbers at their worst, as a part of the sizes added up. A bfloat16 is off by 2**-8 of itself at
# most: with one part both factors are, two parts leave out 2**-16 and lower bits as large again.
LARGEST_ERROR = {MEDIUM: 2.0**-7 * 1.01, HIGH: 2.0**-15, HIGHEST: 2.0**-22}

# (rows, depth, columns): below, at and above 16, 32 and 64, and zero; more depth than is multiplied at once; more rows
# of such depth than are packed at once.
SHAPES = [
    (1, 1, 1),
    (3, 5, 7),
    (15, 31, 16),
    (16, 32, 17),
    (17, 33, 15),
    (31, 64, 33),
    (32, 65, 48),
    (33, 100, 64),
    (40, 20, 65),
    (70, 300, 260),
    (70, 2000, 40),
    (0, 3, 2),
    (3, 0, 2),
    (3, 2, 0),
]
# (rows, depth, hidden)
GATE_SHAPES = [
    (1, 1, 1),
    (3, 5, 15),
    (16, 32, 16),
    (17, 33, 17),
    (33, 70, 40),
    (40, 600, 33),
    (70, 2000, 5),
    (0, 3, 2),
    (3, 0, 5),
]


HAVE_BF16X = ["amx", "avx512_bf16", "generic512"]


def where_available(name: str) -> Any:
    """The parameter of an ISA, skipped where it cannot run."""
    if name not in _core.built_isas():
        return pytest.param(name, marks=pytest.mark.skip(reason=f"this build lacks {name}"))
    lacking = name not in _core.available_isas()
    return pytest.param(name, marks=pytest.mark.skip(reason=f"this CPU lacks {name}")) if lacking else name


@pytest.fixture(autouse=True, params=[where_available(name) for name in HAVE_BF16X])
def bf16x_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run every test of this file on every ISA that has bf16x products."""
    before = _core.current_isa()
    testing.set_isa(request.param)
    if request.node.callspec.params.get("parts", HIGHEST) > testing.bf16x_most_parts():
        testing.set_isa(before)
        pytest.skip(f"{request.param} multiplies {testing.bf16x_most_parts()} part alone")
    yield request.param
    testing.set_isa(before)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Random float32, in rows with gaps between them."""
    return strided(rng.standard_normal(shape).astype(np.float32))


def product(a: Array, b: Array, parts: int, out: Array | None = None, **options: Any) -> Array:
    """The bf16x product, which must not be refused."""
    columns = b.shape[0 if options.get("transposed") else 1]
    out = np.full((a.shape[0], columns), np.nan, np.float32) if out is None else out
    assert testing.bf16x_product(a, b, out, parts, **options)
    return out


def exact(a: Array, b: Array) -> Array:
    return a.astype(np.float64) @ b.astype(np.float64)


def relative_error(actual: Array, expected: Array) -> float:
    norm = np.linalg.norm(expected)
    return float(np.linalg.norm(actual - expected) / norm) if norm > 0 else float(np.abs(actual).sum())


def sizes_of(a: Array, b: Array) -> Array:
    """The sizes that a product adds up."""
    return exact(np.abs(a), np.abs(b))


def assert_error(actual: Array, expected: Array, sizes: Array, parts: int, depth: int) -> None:
    """Hold a result to `error_of`. That is a bound of averages: few numbers are each held to `LARGEST_ERROR`."""
    if expected.size >= 64:
        assert relative_error(actual, expected) <= error_of(parts, depth)
    else:
        assert (np.abs(actual - expected) <= LARGEST_ERROR[parts] * sizes).all()


def to_panels(rows: Array) -> Array:
    """[rows, 4*hidden] as gate panels [blocks, rows, 64], zero past the last unit."""
    count, hidden = rows.shape[0], rows.shape[1] // 4
    blocks = -(-hidden // 16)
    padded = np.zeros((count, 4, blocks * 16), rows.dtype)
    padded[:, :, :hidden] = rows.reshape(count, 4, hidden)
    return padded.reshape(count, 4, blocks, 16).transpose(2, 0, 1, 3).reshape(blocks, count, 64).copy()


def from_panels(panels: Array, hidden: int) -> Array:
    """Back to [rows, 4*hidden]."""
    blocks, rows, _ = panels.shape
    padded = panels.reshape(blocks, rows, 4, 16).transpose(1, 2, 0, 3).reshape(rows, 4, blocks * 16)
    return padded[:, :, :hidden].reshape(rows, 4 * hidden)


# --- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_of_a_product_is_what_its_parts_promise(rng, shape, parts):
    rows, depth, columns = shape
    a, b = normal(rng, rows, depth), normal(rng, depth, columns)
    assert_error(product(a, b, parts), exact(a, b), sizes_of(a, b), parts, depth)


@pytest.mark.parametrize("depth", [8, 16, 33, 64, 100, 300, 1000])
def test_three_parts_are_more_accurate_than_numpys_float32_product(rng, depth):
    a, b = normal(rng, 70, depth), normal(rng, depth, 64)
    assert relative_error(product(a, b, HIGHEST), exact(a, b)) < relative_error(a @ b, exact(a, b))


@pytest.mark.parametrize(("depth", "share"), [(8, 0.6), (33, 0.7), (100, 0.6), (300, 0.6), (2000, 0.6), (5000, 0.6)])
def test_three_parts_lose_half_of_what_a_float32_sum_in_order_loses(rng, depth, share):
    # One rounding per partial product and 32 of depth or a part of it, 6 in place of 32: the root of that is 0.43; at a
    # depth of 33 it is 12 in place of 33, 0.60.
    a, b = normal(rng, 70, depth), normal(rng, depth, 64)
    in_order = np.zeros((70, 64), np.float32)
    for k in range(depth):
        in_order += a[:, k : k + 1] * b[k]
    assert relative_error(product(a, b, HIGHEST), exact(a, b)) < share * relative_error(in_order, exact(a, b))


@pytest.mark.parametrize("parts", PARTS)
def test_products_of_small_integers_are_exact(rng, parts):
    a, b = (rng.integers(-16, 17, size).astype(np.float32) for size in [(37, 90), (90, 50)])
    assert_array_equal(product(a, b, parts), a @ b)


@pytest.mark.parametrize("transposed", [False, True])
def test_three_parts_are_the_whole_float(rng, transposed):
    a, one = normal(rng, 40, 70) * np.float32(1e5), np.eye(70, dtype=np.float32)
    assert_array_equal(product(a, one, HIGHEST, transposed=transposed), a)


@pytest.mark.parametrize(("parts", "bits"), [(MEDIUM, 8), (HIGH, 16)])
def test_parts_round_to_nearest(rng, parts, bits):
    a, one = rng.uniform(1, 2, (40, 70)).astype(np.float32), np.eye(70, dtype=np.float32)
    assert np.abs(product(a, one, parts) - a).max() <= 2.0**-bits


def test_ties_round_to_even():
    a = np.array([[1 + 2**-8, 1 + 3 * 2**-8]], np.float32)
    assert_array_equal(product(a, np.eye(2, dtype=np.float32), MEDIUM), np.float32([[1, 1 + 4 * 2**-8]]))


@pytest.mark.parametrize("parts", PARTS)
def test_numbers_too_small_for_parts_are_off_by_less_than_the_smallest_normal_one(rng, parts):
    a, one = (rng.standard_normal((20, 40)) * 1e-38).astype(np.float32), np.eye(40, dtype=np.float32)
    tiny = float(np.finfo(np.float32).tiny)
    assert np.abs(product(a, one, parts).astype(float) - a).max() <= tiny + error_of(parts, 1) * np.abs(a).max()


@pytest.mark.parametrize("parts", PARTS)
def test_denormals_count_as_zero_on_either_side(parts):
    small, large = np.full((1, 1), 1e-40, np.float32), np.full((1, 1), 2.0**48, np.float32)
    assert (product(small, large, parts), product(large, small, parts)) == (0, 0)


# --- forms of input and output ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_transposed_right_factor_gives_the_same_bits(rng, shape, parts):
    rows, depth, columns = shape
    a, b = normal(rng, rows, depth), normal(rng, depth, columns)
    transposed = product(a, strided(b.T), parts, transposed=True)
    assert_array_equal(transposed, product(a, b, parts))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_by_pointer_and_rows_of_a_matrix_are_the_same(rng, shape):
    rows, depth, columns = shape
    a, b = normal(rng, rows, depth), normal(rng, depth, columns)
    assert_array_equal(product(a, b, HIGH, by_pointer=False), product(a, b, HIGH))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_starts_from_its_bias(rng, shape):
    rows, depth, columns = shape
    a, b, bias = normal(rng, rows, depth), normal(rng, depth, columns), rng.standard_normal(columns).astype(np.float32)
    sizes = sizes_of(a, b) + np.abs(bias)
    assert_error(product(a, b, HIGHEST, bias=bias), exact(a, b) + bias, sizes, HIGHEST, depth)


@pytest.mark.parametrize("by_pointer", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_may_be_added_to_what_is_there(rng, shape, by_pointer):
    rows, depth, columns = shape
    a, b, out = normal(rng, rows, depth), normal(rng, depth, columns), normal(rng, rows, columns)
    expected, sizes = out + exact(a, b), np.abs(out) + sizes_of(a, b)
    product(a, b, HIGHEST, out, add=True, by_pointer=by_pointer)
    assert_error(out, expected, sizes, HIGHEST, depth)


@pytest.mark.parametrize("with_init", [True, False], ids=["init", "in place"])
@pytest.mark.parametrize("shape", GATE_SHAPES, ids=str)
def test_a_gate_product_is_added_to_its_starting_values(rng, shape, with_init):
    rows, depth, hidden = shape
    a, kernel, start = normal(rng, rows, depth), normal(rng, depth, 4 * hidden), normal(rng, rows, 4 * hidden)
    init = to_panels(start)
    panels = np.full_like(init, np.nan) if with_init else init.copy()
    assert testing.bf16x_gates(a, kernel, panels, HIGHEST, init=init if with_init else None)
    sizes = np.abs(start) + sizes_of(a, kernel)
    assert_error(from_panels(panels, hidden), start + exact(a, kernel), sizes, HIGHEST, depth)


@pytest.mark.parametrize("shape", GATE_SHAPES, ids=str)
def test_units_past_the_last_stay_what_they_start_from(rng, shape):
    rows, depth, hidden = shape
    blocks = -(-hidden // 16)
    panels = np.ones((blocks, rows, 64), np.float32)
    assert testing.bf16x_gates(normal(rng, rows, depth), normal(rng, depth, 4 * hidden), panels, HIGHEST)
    padding = from_panels(panels, blocks * 16).reshape(rows, 4, blocks * 16)[:, :, hidden:]
    assert_array_equal(padding, 1)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", GATE_SHAPES, ids=str)
def test_gradients_of_gates_go_back_through_the_kernel(rng, shape, parts):
    rows, columns, hidden = shape
    d_gates, kernel = rng.standard_normal((rows, 4 * hidden)).astype(np.float32), normal(rng, columns, 4 * hidden)
    out = np.full((rows, columns), np.nan, np.float32)
    assert testing.bf16x_gates_back(to_panels(d_gates), kernel, out, parts)
    assert_error(out, exact(d_gates, kernel.T), sizes_of(d_gates, kernel.T), parts, 4 * hidden)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", GATE_SHAPES, ids=str)
def test_the_transposed_product_with_gate_panels_is_the_kernels_gradient(rng, shape, parts):
    m, rows, hidden = shape
    a, d_gates = normal(rng, rows, m), rng.standard_normal((rows, 4 * hidden)).astype(np.float32)
    out = np.full((m, 4 * hidden), np.nan, np.float32)
    assert testing.bf16x_transposed_product(a, to_panels(d_gates), out, parts, hidden=hidden)
    assert_error(out, exact(a.T, d_gates), sizes_of(a.T, d_gates), parts, rows)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", [*SHAPES, (33, 5000, 20)], ids=str)
def test_the_transposed_product_of_plain_matrices_is_right(rng, shape, parts):
    m, rows, columns = shape
    a, b = normal(rng, rows, m), normal(rng, rows, columns)
    out = np.full((m, columns), np.nan, np.float32)
    assert testing.bf16x_transposed_product(a, b, out, parts)
    assert_error(out, exact(a.T, b), sizes_of(a.T, b), parts, rows)


# --- nothing but the output is written --------------------------------------------------------------------------------


def guarded_panels(blocks: int, rows: int) -> tuple[Array, Array]:
    """Gate panels between sentinels: blocks before and after, and in each block rows before and after."""
    whole = np.full((blocks + 2, rows + 2 * MARGIN, 64), SENTINEL, np.float32)
    return whole, whole[1:-1, MARGIN : MARGIN + rows]


@pytest.mark.parametrize("by_pointer", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_writes_nothing_outside_its_output(rng, shape, by_pointer):
    rows, depth, columns = shape
    outputs = Outputs()
    out = outputs.strided("out", (rows, columns), np.float32)
    product(normal(rng, rows, depth), normal(rng, depth, columns), HIGHEST, out, by_pointer=by_pointer)
    assert outputs.spilled() == []


@pytest.mark.parametrize("shape", GATE_SHAPES, ids=str)
def test_a_gate_product_writes_nothing_outside_its_panels(rng, shape):
    rows, depth, hidden = shape
    whole, panels = guarded_panels(-(-hidden // 16), rows)
    panels[...] = 0
    assert testing.bf16x_gates(normal(rng, rows, depth), normal(rng, depth, 4 * hidden), panels, HIGHEST)
    panels[...] = SENTINEL
    assert np.ptp(whole) == 0


@pytest.mark.parametrize("shape", GATE_SHAPES, ids=str)
def test_gradients_write_nothing_outside_their_outputs(rng, shape):
    rows, columns, hidden = shape
    outputs = Outputs()
    panels = to_panels(rng.standard_normal((rows, 4 * hidden)).astype(np.float32))
    d_x = outputs.strided("d_x", (rows, columns), np.float32)
    d_kernel = outputs.strided("d_kernel", (columns, 4 * hidden), np.float32)
    assert testing.bf16x_gates_back(panels, normal(rng, columns, 4 * hidden), d_x, HIGHEST)
    assert testing.bf16x_transposed_product(normal(rng, rows, columns), panels, d_kernel, HIGHEST, hidden=hidden)
    assert outputs.spilled() == []


# --- the same bits for every division of the work ---------------------------------------------------------------------


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("at", [1, 15, 16, 17, 40])
def test_rows_do_not_depend_on_which_others_are_computed_with_them(rng, parts, at):
    a, b = normal(rng, 41, 600), normal(rng, 600, 40)
    assert_array_equal(np.vstack([product(a[:at], b, parts), product(a[at:], b, parts)]), product(a, b, parts))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_columns_do_not_depend_on_which_others_are_computed_with_them(rng, parts, at):
    a, b = normal(rng, 20, 600), normal(rng, 600, 60)
    out = np.full((20, 60), np.nan, np.float32)
    product(a, b, parts, out, tile_end=at)
    product(a, b, parts, out, tile_begin=at)
    assert_array_equal(out, product(a, b, parts))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("at", [32, 96, 512, 544])
def test_depth_may_be_divided_at_multiples_of_32(rng, parts, at):
    a, b = normal(rng, 20, 600), normal(rng, 600, 60)
    first = product(a[:, :at], b[:at], parts)
    assert_array_equal(product(a[:, at:], b[at:], parts, first, add=True), product(a, b, parts))


@pytest.mark.parametrize("at", [1, 2])
def test_gate_blocks_do_not_depend_on_which_others_are_computed_with_them(rng, at):
    a, kernel = normal(rng, 20, 600), normal(rng, 600, 4 * 45)
    whole, parted = np.zeros((3, 20, 64), np.float32), np.zeros((3, 20, 64), np.float32)
    assert testing.bf16x_gates(a, kernel, whole, HIGHEST)
    assert testing.bf16x_gates(a, kernel, parted, HIGHEST, block_end=at)
    assert testing.bf16x_gates(a, kernel, parted, HIGHEST, block_begin=at)
    assert_array_equal(parted, whole)


@pytest.mark.parametrize("m_at", [1, 16, 37])
@pytest.mark.parametrize("block_at", [1, 2])
def test_a_weight_gradient_does_not_depend_on_how_it_is_divided(rng, m_at, block_at):
    a, panels = normal(rng, 2100, 40), to_panels(rng.standard_normal((2100, 4 * 45)).astype(np.float32))
    whole, parted = (np.full((40, 4 * 45), np.nan, np.float32) for _ in range(2))
    assert testing.bf16x_transposed_product(a, panels, whole, HIGHEST, hidden=45)
    for m in [{"m_end": m_at}, {"m_begin": m_at}]:
        for blocks in [{"block_end": block_at}, {"block_begin": block_at}]:
            assert testing.bf16x_transposed_product(a, panels, parted, HIGHEST, hidden=45, **m, **blocks)
    assert_array_equal(parted, whole)


# --- special values ---------------------------------------------------------------------------------------------------

REFUSED = [np.nan, np.inf, -np.inf, np.finfo(np.float32).max, -(2.0**49)]
PLACES = [(0, 0), (20, 39), (7, 16), (16, 33)]  # in 21 x 40: corners, a pair's second member, a second tile


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("value", REFUSED, ids=str)
def test_a_factor_with_a_value_that_cannot_be_split_is_refused(rng, value, place, parts):
    good, bad = (normal(rng, 21, 40) for _ in range(2))
    bad[place] = value
    out = np.empty((21, 21), np.float32)
    wide = np.empty((40, 40), np.float32)
    panels, bad_panels = np.zeros((1, 21, 64), np.float32), to_panels(bad)
    answers = {
        "left": testing.bf16x_product(bad, strided(good.T), out, parts),
        "left transposed": testing.bf16x_transposed_product(bad, good, wide, parts),
        "right": testing.bf16x_product(good, strided(bad.T), out, parts),
        "right transposed": testing.bf16x_product(good, bad, out, parts, transposed=True),
        "gates": testing.bf16x_gates(normal(rng, 21, 21), bad, panels, parts),
        "gates transposed": testing.bf16x_gates_back(panels, bad, out, parts),
        "panels, left": testing.bf16x_gates_back(bad_panels, good, out, parts),
        "panels, right": testing.bf16x_transposed_product(good, bad_panels, wide, parts, hidden=10),
    }
    assert not any(answers.values()), answers


@pytest.mark.parametrize("parts", PARTS)
def test_the_largest_values_that_are_not_refused_cannot_overflow(parts):
    a, b = np.full((3, 5000), 2.0**48, np.float32), np.full((5000, 2), -(2.0**48), np.float32)
    assert_array_equal(product(a, b, parts), np.float32(-5000 * 2.0**96))


def test_special_starting_values_pass_through(rng):
    out = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    product(normal(rng, 1, 40), normal(rng, 40, 3), HIGHEST, out, add=True)
    assert_array_equal(out, np.float32([[np.nan, np.inf, -np.inf]]))


# --- any shape --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 70),
    depth=st.integers(0, 100),
    columns=st.integers(0, 70),
    parts=st.sampled_from(PARTS),
    transposed=st.booleans(),
    scale=st.integers(-40, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_product_is_right_and_stays_in_its_output(rows, depth, columns, parts, transposed, scale, seed):
    rng = np.random.default_rng(seed)
    a, b = normal(rng, rows, depth) * np.float32(2.0**scale), normal(rng, depth, columns)
    outputs = Outputs()
    out = outputs.strided("out", (rows, columns), np.float32)
    product(a, strided(b.T) if transposed else b, parts, out, transposed=transposed)
    sizes = exact(np.abs(a), np.abs(b))  # numbers may cancel: what is lost is a part of what was added up
    assert (np.abs(out - exact(a, b)) <= LARGEST_ERROR[parts] * sizes).all()
    assert outputs.spilled() == []


# --- which ISAs have them ---------------------------------------------------------------------------------------------


def test_only_amx_and_its_stand_in_have_split_products():
    having = []
    for name in _core.available_isas():
        testing.set_isa(name)
        having += [name] if testing.bf16x_most_parts() else []
    assert set(having) == set(HAVE_BF16X) & set(_core.available_isas())


def test_without_split_products_the_doors_say_so():
    testing.set_isa("generic")
    with pytest.raises(ValueError, match="ISA 'generic' has no bf16x products"):
        testing.bf16x_product(*np.zeros((3, 2, 2), np.float32), 1)
