"""A layer keeps its weights packed from call to call, and no write to them escapes it, whoever makes it and how."""

from __future__ import annotations

import ctypes
import io
import multiprocessing
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import lstmfast as lf
from lstmfast.layers import LSTM


def by_nditer(layer: LSTM) -> None:
    for cell in np.nditer(layer.parameter_buffer, op_flags=["readwrite"]):  # type: ignore[call-overload]
        cell[...] = 0.5 * cell


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
    "sort": lambda layer: layer.cells[0].kernel.sort(axis=0),
    "flat": lambda layer: layer.cells[0].kernel.flat.__setitem__(slice(0, 5), 1.0),
    "transposed view": lambda layer: layer.cells[0].kernel.T[3].__setitem__(slice(None), 0.7),
    "optimizer": lambda layer: lf.optimizers.SGD().update(
        layer.parameter_buffer, np.ones_like(layer.gradient_buffer), learning_rate=0.1
    ),
    "random generator's out": lambda layer: np.random.default_rng(1).standard_normal(
        out=layer.parameter_buffer, dtype=np.float32
    ),
    "shuffle": lambda layer: np.random.default_rng(1).shuffle(layer.cells[0].kernel),
    "nditer": by_nditer,
    "readinto": lambda layer: io.BytesIO(bytes(80)).readinto(layer.parameter_buffer[:20]),
    "memoryview": lambda layer: memoryview(layer.cells[0].bias).__setitem__(0, 9.0),
    "asarray": lambda layer: np.asarray(layer.cells[0].kernel).__setitem__((8 - 1, 3), 9.0),
    "frombuffer": lambda layer: np.frombuffer(layer.parameter_buffer.data, np.uint8).__setitem__(3, 0),
    "ctypes": lambda layer: ctypes.memset(layer.cells[0].kernel.ctypes.data, 0, 40),
    "einsum's out": lambda layer: np.einsum(
        "ij->ij", layer.cells[0].kernel + 1, out=layer.cells[0].kernel, optimize=False
    ),
    "strides": lambda layer: np.lib.stride_tricks.as_strided(layer.cells[0].kernel, (4,), (4,)).__setitem__(..., 1.0),
}


@pytest.fixture
def layer(rng):
    return lf.LSTM(3, 5, rng=rng)


@pytest.fixture(params=[(4, 2), (1, 1), (1, 2), (1, 4)], ids=str)
def x(rng, request):
    return rng.standard_normal((*request.param, 3), dtype=np.float32)


def fresh_output(layer: LSTM, x: Any) -> Any:
    """The output by a layer that has never seen other weights."""
    other = lf.LSTM(layer.input_size, layer.hidden_size)
    other.parameter_buffer[...] = layer.parameter_buffer
    return other(x)[0]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("training", [False, True])
def test_layer_sees_every_write_to_its_weights(layer, x, write, training):
    state = tuple(np.full((1, x.shape[1], 5), 0.3, np.float32) for _ in range(2))
    before = layer(x, state, training=training)[0]
    write(layer)
    after = layer(x, state)[0]
    other = lf.LSTM(3, 5)
    other.parameter_buffer[...] = layer.parameter_buffer
    assert_array_equal(after, other(x, state)[0])
    assert not np.array_equal(before, after)


def write_from_another_process(name: str, count: int) -> None:
    """Halve the floats in a block of shared memory."""
    shared = shared_memory.SharedMemory(name)
    values: Any = np.ndarray((count,), np.float32, shared.buf)
    values *= 0.5
    del values
    shared.close()


def test_layer_sees_what_another_process_writes(x):
    shapes = LSTM.shapes(3, 5)
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    shared = shared_memory.SharedMemory(create=True, size=4 * count)
    try:
        values: Any = np.ndarray((count,), np.float32, shared.buf)
        values[...] = np.linspace(-1, 1, count)
        storage = lf.ParameterBuffer._bind(values, np.zeros_like(values), shapes)
        layer = lf.LSTM(3, 5, storage=storage)
        before = layer(x)[0]
        process = multiprocessing.get_context("spawn").Process(
            target=write_from_another_process, args=(shared.name, count)
        )
        process.start()
        process.join()
        after = layer(x)[0]
        assert_array_equal(after, fresh_output(layer, x))
        assert not np.array_equal(before, after)
        del layer, storage, values
    finally:
        shared.close()
        shared.unlink()


def test_model_and_its_layers_see_writes(rng):
    model, ids = lf.CharLM(5, 4, rng=rng), np.arange(5, dtype=np.int32)[:, None]
    before = model(ids)[0]
    np.random.default_rng(3).standard_normal(out=model.parameter_buffer, dtype=np.float32)
    other = lf.CharLM(5, 4)
    other.parameter_buffer[...] = model.parameter_buffer
    assert_array_equal(model(ids)[0], other(ids)[0])
    assert not np.array_equal(before, model(ids)[0])


def test_parameters_are_ordinary_arrays(layer):
    cell = layer.cells[0]
    arrays = [layer.parameter_buffer, *layer.parameters.values(), cell.kernel, cell.gates["cell"].bias, cell.kernel + 1]
    assert {type(array) for array in arrays} == {np.ndarray}


def test_weights_changed_is_not_needed_and_says_so(layer, x):
    expected = layer(x)[0]
    with pytest.warns(DeprecationWarning, match="every call sees the weights as they are"):
        layer.weights_changed()
    assert_array_equal(layer(x)[0], expected)


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
    state = tuple(np.full((1, x.shape[1], 5), 0.3, np.float32) for _ in range(2))
    before = layer(x, state)[0]
    layer.forget_bias = 3.0
    assert not np.array_equal(layer(x, state)[0], before)


def test_copied_buffer_has_weights_of_its_own(rng):
    model = lf.CharLM(5, 4, rng=rng)
    ids = rng.integers(0, 5, (3, 2)).astype(np.int32)
    expected = model(ids)[0].copy()
    model.parameter_buffer.copy()[...] = 0
    assert_array_equal(model(ids)[0], expected)


# ---- inference: the look is left out by the user's own choice

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "variant": {"projection_size": 3, "peepholes": True, "cell_clip": 0.5, "coupled_gates": True},
    "float64": {"dtype": "float64", "forget_bias": 0.25},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_frozen_copy_answers_as_the_layer_did(rng, x, options):
    layer = lf.LSTM(3, 5, rng=rng, **options)
    x = x.astype(layer.dtype)
    h, state = layer(x)
    expected = layer(x, state)
    frozen = layer.inference()
    layer.parameter_buffer[...] = 0
    for _ in range(2):
        again, (h_n, c_n) = frozen(x, state)
        np.testing.assert_allclose(again, expected[0], atol=1e-6)
        np.testing.assert_allclose(h_n, expected[1][0], atol=1e-6)
        np.testing.assert_allclose(c_n, expected[1][1], atol=1e-6)


def test_frozen_copy_takes_lengths_and_resets(layer, rng):
    x, resets = rng.standard_normal((4, 3, 3), dtype=np.float32), rng.random((4, 3)) < 0.5
    frozen = layer.inference()
    assert_array_equal(frozen(x, lengths=[4, 0, 2], resets=resets)[0], layer(x, lengths=[4, 0, 2], resets=resets)[0])


def test_weights_of_a_frozen_copy_cannot_be_written(layer):
    with pytest.raises(ValueError, match="read-only"):
        layer.inference().parameters["layer0.kernel"][0] = 1
