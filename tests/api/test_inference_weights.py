"""Inference with int8 weights, and at "medium": how far it is from float32, in every kind of call."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lstmfast as lf
from lstmfast import _core
from support.tolerances import BFLOAT16_LAYER, INT8_LAYER, MEDIUM_LAYER

Array = npt.NDArray[Any]

EVERY_PRODUCT = True

T, B, INPUT, H = 12, 7, 37, 70

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stack of both directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True},
    "projection": {"projection_size": 20},
    "peepholes and clip": {"peepholes": True, "cell_clip": 0.7},
    "coupled gates": {"coupled_gates": True},
}


@pytest.fixture
def x(rng: np.random.Generator) -> Array:
    """Input of T steps and B rows."""
    return rng.standard_normal((T, B, INPUT), dtype=np.float32)


def relative_error(values: Array, exact: Array) -> float:
    """Of all values together."""
    return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))


def int8_of(layer: lf.LSTM, x: Array, *args: Any, **options: Any) -> Array:
    """h of the copy with int8 weights."""
    return layer.inference(weights="int8")(x, *args, **options)[0]


def medium_of(layer: lf.LSTM, x: Array, *args: Any, **options: Any) -> Array:
    """h of a copy at "medium"."""
    before = lf.get_matmul_precision()
    lf.set_matmul_precision("medium")
    try:
        return layer.inference()(x, *args, **options)[0]
    finally:
        lf.set_matmul_precision(before)


def bfloat16_of(layer: lf.LSTM, x: Array, *args: Any, **options: Any) -> Array:
    """h of the copy with bfloat16 weights."""
    return layer.inference(weights="bfloat16")(x, *args, **options)[0]


WAYS = {"int8": (int8_of, INT8_LAYER), "bfloat16": (bfloat16_of, BFLOAT16_LAYER), "medium": (medium_of, MEDIUM_LAYER)}
ways = pytest.mark.parametrize(("run", "bound"), WAYS.values(), ids=WAYS)


@ways
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_cell_and_direction_is_close_to_float32(isa, rng, x, run, bound, options):
    layer = lf.LSTM(INPUT, H, rng=rng, **options)
    x = x.swapaxes(0, 1) if layer.batch_first else x
    assert relative_error(run(layer, x), layer(x)[0]) <= bound


@ways
@pytest.mark.parametrize("batch", [1, 2, 3, 64, 100])
@pytest.mark.parametrize("hidden", [1, 15, 128, 300])
def test_every_size_is_close_to_float32(isa, rng, run, bound, hidden, batch):
    layer, x = lf.LSTM(INPUT, hidden, rng=rng), rng.standard_normal((3, batch, INPUT), dtype=np.float32)
    assert_allclose(run(layer, x), layer(x)[0], rtol=0, atol=4 * bound)


@ways
def test_lengths_resets_and_states_are_close_to_float32(isa, rng, x, run, bound):
    layer = lf.LSTM(INPUT, H, num_layers=2, rng=rng)
    state = rng.standard_normal((2, 2, B, H), dtype=np.float32) * 3  # h above 1, which only a caller can give
    call = {"lengths": rng.integers(0, T + 1, B), "resets": rng.random((T, B)) < 0.3}
    assert relative_error(run(layer, x, tuple(state), **call), layer(x, tuple(state), **call)[0]) <= bound


@ways
def test_ids_are_close_to_float32(isa, rng, run, bound):
    layer, ids = lf.LSTM(INPUT, H, rng=rng), rng.integers(0, INPUT, (T, B)).astype(np.int32)
    assert relative_error(run(layer, ids), layer(ids)[0]) <= bound


@ways
def test_bits_are_the_same_for_any_number_of_threads(isa, rng, threads, run, bound):
    layer, x = lf.LSTM(100, 530, rng=rng), rng.standard_normal((3, 40, 100), dtype=np.float32)
    threads.set_num_threads(4)
    parallel = run(layer, x)
    threads.set_num_threads(1)
    assert_array_equal(parallel, run(layer, x))


# From 16 rows on the other two run in float32 if any value is special.
@pytest.mark.parametrize(("run", "batch"), [(int8_of, B), (int8_of, 50), (bfloat16_of, B), (medium_of, B)])
def test_rows_do_not_know_each_other(isa, rng, run, batch):
    layer, x = lf.LSTM(INPUT, H, rng=rng), rng.standard_normal((T, batch, INPUT), dtype=np.float32)
    together = run(layer, x)
    x[3, 2, 5], x[4, 3, 0] = np.nan, np.inf
    with_special = run(layer, x)
    assert_array_equal(np.delete(with_special, [2, 3], 1), np.delete(together, [2, 3], 1))
    assert np.isnan(with_special[3:, 2]).any() and np.isfinite(with_special[:3]).all()


def test_int8_weights_are_those_of_the_copy(rng, x):
    layer = lf.LSTM(INPUT, H, rng=rng)
    frozen = layer.inference(weights="int8")
    expected = frozen(x)[0]
    layer.parameter_buffer[...] = 0
    assert_array_equal(frozen(x)[0], expected)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda frozen: pickle.loads(pickle.dumps(frozen))])
def test_copies_of_the_copy_keep_its_weights_as_it_does(rng, x, how, weights):
    frozen = lf.LSTM(INPUT, H, rng=rng).inference(weights=weights)
    again = how(frozen)
    assert again.weights == weights
    assert_array_equal(again(x)[0], frozen(x)[0])


@pytest.mark.parametrize("weights", ["int4", "float16", None])
def test_error_for_another_word_lists_the_known_ones(rng, weights):
    with pytest.raises(ValueError, match=f"weights must be one of float32, bfloat16, int8, got {weights!r}"):
        lf.LSTM(3, 4, rng=rng).inference(weights=weights)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_fewer_bits_for_a_float64_layer_are_an_error(rng, weights):
    with pytest.raises(ValueError, match=f"weights must be float32.*for a float64 layer, got '{weights}'"):
        lf.LSTM(3, 4, rng=rng, dtype="float64").inference(weights=weights)


def test_bfloat16_weights_are_rounded_to_the_nearest(rng):
    layer = lf.LSTM(3, 4, rng=rng)
    layer.parameters["layer0.kernel"][0, :6] = [np.nan, np.inf, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-20, 1e-45]
    frozen = layer.inference(weights="bfloat16").parameters
    assert_array_equal(frozen["layer0.kernel"][0, :6], [np.nan, np.inf, 1, 1 + 2**-6, -1 - 2**-7, 0])
    assert_array_equal(frozen["layer0.bias"], layer.parameters["layer0.bias"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_int8_of_a_weight_that_is_not_finite_is_an_error(rng, value):
    layer = lf.LSTM(3, 4, rng=rng)
    layer.parameters["layer0.kernel"][0, 0] = value
    with pytest.raises(ValueError, match="layer0.kernel must be finite, and at most 2.8e\\+14, to be kept as int8"):
        layer.inference(weights="int8")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_medium_with_a_weight_that_is_not_finite_is_float32(isa, rng, x, value):
    layer = lf.LSTM(INPUT, H, rng=rng)
    layer.parameters["layer0.kernel"][0, 0] = value
    assert_array_equal(medium_of(layer, x), layer.inference()(x)[0])


def test_medium_of_an_unfrozen_layer_sees_weights_that_changed(isa, rng, x):
    layer = lf.LSTM(INPUT, H, rng=rng)
    lf.set_matmul_precision("medium")
    try:
        layer(x)
        layer.parameter_buffer *= 0.5
        assert_array_equal(layer(x)[0], layer.inference()(x)[0])
    finally:
        lf.set_matmul_precision("highest")


@pytest.mark.parametrize("cell", [lf.Cell(), lf.Cell(projection_size=9, peepholes=True)], ids=["plain", "variant"])
def test_a_model_for_inference_has_the_loss_of_the_model(isa, rng, cell):
    model = lf.CharLM(27, 64, num_layers=2, embedding_size=12, dropout=0.2, cell=cell, rng=rng)
    inputs, targets = rng.integers(0, 27, (2, 20, 5)).astype(np.int32)
    frozen = model.inference(weights="int8")
    loss, state = model.loss(inputs, targets)
    again, again_state = frozen.loss(inputs, targets)
    assert abs(again - loss) < 0.01
    assert relative_error(again_state[0], state[0]) <= 2 * INT8_LAYER
    assert relative_error(frozen(inputs)[0], model(inputs)[0]) <= 2 * INT8_LAYER


def test_a_model_for_inference_is_the_model_as_it_was(rng):
    model = lf.CharLM(27, 16, rng=rng)
    ids, frozen = rng.integers(0, 27, (5, 2)).astype(np.int32), model.inference()
    expected = model(ids)[0]
    model.parameter_buffer[...] = 0
    assert_array_equal(frozen(ids)[0], expected)
    with pytest.raises(ValueError, match="read-only"):
        frozen.parameters["projection.bias"][0] = 1


def test_explain_names_the_products(isa):
    said = lf.explain(32, 10, 64, 128, weights="int8")
    assert "x, h and weights are rounded to 8 bits" in said
    has_dots = isa.endswith(("_vnni", "_bf16")) or isa == "amx"
    has_tiles = isa in ("amx", "generic512")
    assert ("tiles of AMX" in said, "dot products of VNNI" in said) == (has_tiles, has_dots or has_tiles)
    medium = lf.explain(32, 10, 64, 128, matmul_precision="medium")
    if has_dots and isa != "amx":
        assert "x and h are rounded to 12 bits and weights to 13, multiplied by dot products of VNNI" in medium
    assert _core.current_isa() in medium
