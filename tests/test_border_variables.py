"""A layer keeps its weights packed from call to call, and no way of writing them through NumPy escapes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import lstmfast as lf
from lstmfast.layers import LSTM

WRITES: dict[str, Callable[[LSTM], Any]] = {
    "index": lambda layer: layer.parameters["layer0.kernel"].__setitem__((1, 2), 3.0),
    "slice": lambda layer: layer.cells[0].kernel[2:4].__setitem__(slice(None), 0.5),
    "bias": lambda layer: layer.cells[0].bias.__setitem__(slice(None), 2.0),
    "gate view": lambda layer: layer.cells[0].gates["forget"].recurrent_kernel.__setitem__(..., 1.0),
    "in-place operator": lambda layer: layer.parameter_buffer.__iadd__(0.25),
    "out of a ufunc": lambda layer: np.multiply(layer.cells[0].kernel, 2.0, out=layer.cells[0].kernel),
    "ufunc.at": lambda layer: np.add.at(layer.cells[0].bias, [0, 0, 5], 1.0),
    "copyto": lambda layer: np.copyto(layer.cells[0].kernel, 0.1),
    "put": lambda layer: np.put(layer.cells[0].kernel, [0, 7], 5.0),
    "putmask": lambda layer: np.putmask(layer.cells[0].kernel, layer.cells[0].kernel > 0, 0.0),
    "fill": lambda layer: layer.cells[0].kernel.fill(0.2),
    "method put": lambda layer: layer.cells[0].bias.put([3], 4.0),
    "sort": lambda layer: layer.cells[0].kernel.sort(axis=0),
    "flat": lambda layer: layer.cells[0].kernel.flat.__setitem__(slice(0, 5), 1.0),
    "flat as a whole": lambda layer: setattr(layer.cells[0].kernel, "flat", np.linspace(0, 1, 7)),
    "transposed view": lambda layer: layer.cells[0].kernel.T[3].__setitem__(slice(None), 0.7),
    "optimizer": lambda layer: lf.optimizers.SGD().update(
        layer.parameter_buffer, np.ones_like(layer.gradient_buffer), learning_rate=0.1
    ),
    "around NumPy, and said so": lambda layer: (
        memoryview(layer.cells[0].bias).__setitem__(0, 9.0),
        layer.weights_changed(),
    ),
}


@pytest.fixture
def layer(rng):
    return lf.LSTM(3, 5, rng=rng)


@pytest.fixture
def x(rng):
    return rng.standard_normal((4, 2, 3), dtype=np.float32)


def fresh_output(layer: LSTM, x: Any) -> Any:
    """The output by a layer that has never seen other weights."""
    other = lf.LSTM(layer.input_size, layer.hidden_size)
    other.parameter_buffer[...] = np.asarray(layer.parameter_buffer)
    return other(x)[0]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("training", [False, True])
def test_layer_sees_every_write_to_its_weights(layer, x, write, training):
    before = layer(x, training=training)[0]
    write(layer)
    after = layer(x)[0]
    assert_array_equal(after, fresh_output(layer, x))
    assert not np.array_equal(before, after)


def test_reading_weights_is_no_write(layer):
    kernel, writes = layer.cells[0].kernel, layer.cells[0].kernel.writes.count
    _ = kernel[1], kernel + 1, kernel @ kernel.T, kernel.sum(), np.asarray(kernel), kernel.copy(), kernel.tobytes()
    assert kernel.writes.count == writes


def test_weights_are_packed_once_for_many_calls(layer, x):
    expected = layer(x)[0]
    np.asarray(layer.cells[0].kernel)[...] = 0  # around NumPy and not said: what was packed is used
    assert_array_equal(layer(x)[0], expected)


def test_arithmetic_with_weights_gives_ordinary_arrays(layer):
    kernel = layer.cells[0].kernel
    assert [type(value) for value in (kernel + 1, kernel @ kernel.T, kernel > 0, np.exp(kernel))] == [np.ndarray] * 4


def test_another_shape_or_precision_of_the_input_in_between_changes_nothing(layer, x):
    expected = layer(x)[0]
    layer(x[:, :1])
    layer(np.zeros((1, 40, 3), np.float32), training=True)
    assert_array_equal(layer(x)[0], expected)


def test_ids_and_dense_input_by_turns(rng):
    layer, ids = lf.LSTM(4, 5, rng=rng), rng.integers(0, 4, (3, 2)).astype(np.int32)
    one_hot = np.eye(4, dtype=np.float32)[ids]
    for _ in range(2):
        np.testing.assert_allclose(layer(ids)[0], layer(one_hot)[0], atol=1e-6)


def test_forget_bias_set_anew_is_seen(layer, x):
    before = layer(x)[0]
    layer.forget_bias = 3.0
    assert not np.array_equal(layer(x)[0], before)


def test_copied_model_has_weights_of_its_own(rng):
    model = lf.CharLM(5, 4, rng=rng)
    ids = rng.integers(0, 5, (3, 2)).astype(np.int32)
    expected = model(ids)[0].copy()
    copy.deepcopy(model.parameter_buffer)[...] = 0
    assert_array_equal(model(ids)[0], expected)
