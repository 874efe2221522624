"""Layers with weights: names, buffers, directions, depth, dropout and streams. The rest: `test_functional`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import lstmfast as lf
from lstmfast import reference
from support.oracles import random_lengths, random_resets, slopes
from support.tolerances import DIFFERENCE, SAME, states

T, B, I, H = 4, 3, 5, 6  # noqa: E741  (the papers' letters)
STACKS = [(1, False), (2, False), (1, True), (3, True)]
stacks = pytest.mark.parametrize(
    ("num_layers", "bidirectional"), STACKS, ids=[f"{n} layers{' both ways' * b}" for n, b in STACKS]
)


def _layer(rng, num_layers=1, bidirectional=False, dtype="float64", **options) -> lf.LSTM:
    return lf.LSTM(I, H, num_layers=num_layers, bidirectional=bidirectional, dtype=dtype, rng=rng, **options)


def _state(rng, layer, dtype="float64"):
    cells = layer.num_layers * layer.num_directions
    h, c = rng.uniform(-1, 1, (cells, B, layer.output_size)), rng.standard_normal((cells, B, H))
    return h.astype(dtype), c.astype(dtype)


def _by_reference(layer, x, state, **how):
    """The stack, layer by layer and direction by direction, in NumPy: h, h_n, c_n."""
    h_n, c_n = [], []
    for depth in range(layer.num_layers):
        halves = []
        for direction in range(layer.num_directions):
            k = depth * layer.num_directions + direction
            cell = layer.cells[k]
            out = reference.lstm(
                x, cell.kernel, cell.bias, state[0][k], state[1][k], reverse=direction == 1, forget_bias=1.0,
                peepholes=cell.peepholes, projection=cell.projection, cell_clip=cell.cell_clip,
                coupled_gates=cell.coupled_gates, **how,
            )
            halves.append(out.h)
            h_n.append(out.h_n)
            c_n.append(out.c_n)
        x = np.concatenate(halves, axis=-1)
    return x, np.stack(h_n), np.stack(c_n)


# --- buffers and names ------------------------------------------------------------------------------------------------


def test_variables_are_named_by_layer_and_direction(rng):
    names = [f"layer{n}{d}.{v}" for n in range(2) for d in ("", "_reverse") for v in ("kernel", "bias")]
    assert list(_layer(rng, 2, True).parameters) == names


@pytest.mark.parametrize(("views", "buffer"), [("parameters", "parameter_buffer"), ("gradients", "gradient_buffer")])
def test_variables_fill_one_contiguous_buffer_in_order(rng, views, buffer):
    layer = _layer(rng, 2, True)
    getattr(layer, buffer)[:] = np.arange(getattr(layer, buffer).size)
    flat = np.concatenate([view.ravel() for view in getattr(layer, views).values()])
    np.testing.assert_array_equal(flat, np.arange(getattr(layer, buffer).size))


def test_cells_are_views_of_the_layers_variables(rng):
    layer = _layer(rng, 2, True)
    layer.cells[1].kernel[:] = 7.0
    assert (layer.parameters["layer0_reverse.kernel"] == 7.0).all()


@pytest.mark.parametrize(("gate", "number"), [("input", 0), ("forget", 1), ("cell", 2), ("output", 3)])
def test_gate_views_write_to_the_cells_columns(rng, gate, number):
    cell = lf.LSTMCell(I, H, rng=rng)
    cell.bias[:] = 0.0
    cell.gates[gate].bias = 1.0
    np.testing.assert_array_equal(cell.bias, np.repeat(np.arange(4) == number, H))


def test_part_of_a_buffer_is_a_view_of_it():
    whole = lf.ParameterBuffer.allocate({"a": (2,), "b.kernel": (2, 2), "b.bias": (3,), "c": (1,)}, "float32")
    whole.part("b.").values[:] = 1.0
    np.testing.assert_array_equal(whole.values, [0, 0, 1, 1, 1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("prefix", ["nothing", "b."])
def test_part_that_is_absent_or_scattered_is_refused(prefix):
    whole = lf.ParameterBuffer.allocate({"b.kernel": (2,), "a": (2,), "b.bias": (3,)}, "float32")
    with pytest.raises(ValueError, match="prefix must name adjacent variables"):
        whole.part(prefix)


def test_same_generator_gives_the_same_weights():
    a, b = (_layer(np.random.default_rng(5), 2) for _ in range(2))
    np.testing.assert_array_equal(a.parameter_buffer, b.parameter_buffer)


# --- forward ----------------------------------------------------------------------------------------------------------


def test_cell_call_is_one_step_with_its_own_weights(rng, dtype):
    cell = lf.LSTMCell(I, H, dtype=dtype, rng=rng)
    x, h, c = (rng.standard_normal(s).astype(dtype) for s in [(B, I), (B, H), (B, H)])
    np.testing.assert_array_equal(cell(x, (h, c)), lf.lstm_step(x, h, c, cell.kernel, cell.bias, forget_bias=1.0))


@stacks
@pytest.mark.parametrize("output", [0, 1, 2], ids=["h", "h_n", "c_n"])
def test_stack_is_its_layers_and_directions_one_after_another(rng, dtype, num_layers, bidirectional, output):
    layer = _layer(rng, num_layers, bidirectional, dtype)
    x, state = rng.standard_normal((T, B, I)).astype(dtype), _state(rng, layer, dtype)
    how: dict[str, Any] = {"lengths": random_lengths(rng, T, B), "resets": random_resets(rng, T, B)}
    h, (h_n, c_n) = layer(x, state, **how)
    expected = _by_reference(layer, x, state, **how)[output]
    np.testing.assert_allclose((h, h_n, c_n)[output], expected, **states(dtype, I + 2 * H))


def test_ids_are_their_one_hot_rows(rng):
    layer, ids = _layer(rng, 2), rng.integers(0, I, (T, B))
    np.testing.assert_allclose(layer(ids)[0], layer(np.eye(I)[ids])[0], **SAME)


@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
def test_batch_first_swaps_time_and_batch_of_everything_but_states(rng, ids):
    time_major, batch_major = (_layer(np.random.default_rng(3), 2, True, batch_first=f) for f in (False, True))
    x = rng.integers(0, I, (T, B)) if ids else rng.standard_normal((T, B, I))
    resets = random_resets(rng, T, B)
    h, _ = batch_major(x.swapaxes(0, 1), resets=resets.T)
    np.testing.assert_array_equal(h.swapaxes(0, 1), time_major(x, resets=resets)[0])


def test_sequence_split_in_two_equals_the_whole_when_state_is_carried(rng):
    layer, x = _layer(rng, 2), rng.standard_normal((T, B, I))
    first, state = layer(x[:1])
    second, _ = layer(x[1:], state)
    np.testing.assert_allclose(np.concatenate([first, second]), layer(x)[0], **SAME)


def test_what_a_call_returned_survives_the_next_call(rng):
    layer, x = _layer(rng, 2), rng.standard_normal((T, B, I))
    h, _ = layer(x)
    kept = h.copy()
    layer(2 * x)
    np.testing.assert_array_equal(h, kept)


def test_zero_state_is_no_state(rng):
    layer, x = _layer(rng, 2, True), rng.standard_normal((T, B, I))
    np.testing.assert_array_equal(layer(x, layer.zero_state(B))[0], layer(x)[0])


# --- backward ---------------------------------------------------------------------------------------------------------


@stacks
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_gradients_are_the_slopes_of_the_loss(rng, num_layers, bidirectional, batch_first):
    layer = _layer(rng, num_layers, bidirectional, batch_first=batch_first)
    lengths, state = random_lengths(rng, T, B), _state(rng, layer)
    values = {
        "x": rng.standard_normal((T, B, I)),
        "h": state[0],
        "c": state[1],
        "buffer": layer.parameter_buffer.copy(),
    }
    if batch_first:
        values["x"] = values["x"].swapaxes(0, 1)
    d_h = rng.standard_normal((*values["x"].shape[:2], layer.num_directions * H))
    d_h_n, d_c_n = _state(rng, layer)

    def loss(v):
        layer.parameter_buffer[:] = v["buffer"]
        h, (h_n, c_n) = layer(v["x"], (v["h"], v["c"]), lengths=lengths, training=True)
        return float((h * d_h).sum() + (h_n * d_h_n).sum() + (c_n * d_c_n).sum())

    directions = {name: rng.standard_normal(value.shape) for name, value in values.items()}
    expected = slopes(loss, values, directions)
    loss(values)
    d_x, (d_h0, d_c0) = layer.backward(d_h, (d_h_n, d_c_n))
    found = {"x": d_x, "h": d_h0, "c": d_c0, "buffer": layer.gradient_buffer}
    np.testing.assert_allclose([(found[n] * d).sum() for n, d in directions.items()], expected, **DIFFERENCE)


@pytest.mark.parametrize("training", [None, False], ids=["no call", "a call for evaluation"])
def test_backward_needs_a_call_for_training(rng, training):
    layer = _layer(rng)
    if training is not None:
        layer(np.zeros((T, B, I)), training=True)
        layer(np.zeros((T, B, I)), training=training)
    with pytest.raises(RuntimeError, match="backward needs the last call of this layer to have had training=True"):
        layer.backward(np.zeros((T, B, H)))


def test_ids_have_no_gradient(rng):
    layer = _layer(rng)
    h, _ = layer(rng.integers(0, I, (T, B)), training=True)
    assert layer.backward(h)[0] is None


# --- dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_is_the_same_for_the_same_generator(rng):
    x = rng.standard_normal((T, B, I))
    a, b = (_layer(np.random.default_rng(1), 2, dropout=0.5)(x, training=True)[0] for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_dropout_is_off_in_evaluation(rng):
    x = rng.standard_normal((T, B, I))
    with_dropout, without = (_layer(np.random.default_rng(1), 2, dropout=p)(x)[0] for p in (0.5, 0.0))
    np.testing.assert_array_equal(with_dropout, without)


def test_dropout_falls_between_layers_only(rng):
    x = rng.standard_normal((T, B, I))
    layer = _layer(rng, 1, dropout=0.9)
    np.testing.assert_array_equal(layer(x, training=True)[0], layer(x)[0])


def test_gradients_pass_where_dropout_let_values_pass(rng):
    x, direction = rng.standard_normal((2, T, B, I))

    def run(x):
        layer = _layer(np.random.default_rng(2), 3, dropout=0.4)
        h, _ = layer(x, training=True)
        return layer, float(h.sum())

    expected = slopes(lambda v: run(v["x"])[1], {"x": x}, {"x": direction})
    layer, _ = run(x)
    d_x, _ = layer.backward(np.ones((T, B, H)))
    np.testing.assert_allclose([(d_x * direction).sum()], expected, **DIFFERENCE)


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token_input", [False, True], ids=["dense", "ids"])
def test_stream_steps_are_the_steps_of_a_call(rng, dtype, token_input):
    layer = _layer(rng, 2, dtype=dtype)
    ids = rng.integers(0, I, (T, B)).astype(np.int32)
    x = ids if token_input else np.eye(I, dtype=dtype)[ids]
    stream = layer.stream(B, token_input=token_input)
    steps = [stream.step(x_t).copy() for x_t in x]
    np.testing.assert_allclose(steps, layer(x)[0], **states(dtype, I + H))


@pytest.mark.parametrize(("weights", "bound"), [("bfloat16", 2**-8), ("int8", 2**-6)])
def test_stream_of_fewer_bits_is_near_the_call(rng, weights, bound):
    layer = lf.LSTM(I, H, num_layers=2, rng=rng)
    x = rng.standard_normal((T, B, I)).astype("f4")
    stream = layer.stream(B, weights=weights)
    steps = [stream.step(x_t).copy() for x_t in x]
    difference = np.abs(steps - layer(x)[0]).max()
    assert 0 < difference < bound


@pytest.mark.parametrize(
    ("dtype", "weights", "message"),
    [
        ("float32", "int4", "weights must be one of float32, bfloat16, int8, got 'int4'"),
        ("float32", None, "weights must be one of float32, bfloat16, int8, got None"),
        ("float64", "int8", "weights must be float32, which leaves them as they are, for a float64 layer, got 'int8'"),
    ],
)
def test_stream_error_names_the_weights_that_can_be(rng, dtype, weights, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lf.LSTM(I, H, dtype=dtype, rng=rng).stream(weights=weights)


def test_stream_begins_anew_after_reset(rng):
    stream, x = _layer(rng, 2).stream(B), rng.standard_normal((B, I))
    first = stream.step(x).copy()
    stream.reset()
    np.testing.assert_array_equal(stream.step(x), first)


def test_stream_goes_on_from_a_state_it_is_given(rng):
    layer, x = _layer(rng, 2), rng.standard_normal((T, B, I))
    stream = layer.stream(B)
    _, stream.state = layer(x[:-1])
    np.testing.assert_allclose(stream.step(x[-1]), layer(x)[0][-1], **SAME)


def test_stream_keeps_the_weights_it_was_made_with(rng):
    layer, x = _layer(rng), rng.standard_normal((B, I))
    stream, expected = layer.stream(B), layer(x[None])[0][0]
    layer.parameter_buffer[:] = 0.0
    np.testing.assert_allclose(stream.step(x), expected, **SAME)


def test_stream_of_a_bidirectional_layer_is_refused(rng):
    with pytest.raises(ValueError, match="stream needs bidirectional=False"):
        _layer(rng, 1, True).stream()


# --- errors -----------------------------------------------------------------------------------------------------------


BUILD_ERRORS = [
    ({"input_size": 0}, ValueError, "input_size must be at least 1, got 0"),
    ({"hidden_size": 2.5}, TypeError, "hidden_size must be a whole number, got 2.5"),
    ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
    ({"dropout": 1.0}, ValueError, "dropout must lie in [0, 1), got 1"),
    ({"dropout": float("nan")}, ValueError, "dropout must be finite, got nan"),
    ({"forget_bias": None}, TypeError, "forget_bias must be a number, got None"),
    ({"dtype": "float16"}, TypeError, "dtype must be float32 or float64, got 'float16'"),
    ({"dtype": None}, TypeError, "dtype must be float32 or float64, got None"),
    ({"rng": 0}, TypeError, "rng must be a numpy.random.Generator, such as numpy.random.default_rng(0), got int"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BUILD_ERRORS, ids=[m for _, _, m in BUILD_ERRORS])
def test_building_error_names_the_setting(changed, error, message):
    with pytest.raises(error, match=re.escape(message)):
        lf.LSTM(**{"input_size": I, "hidden_size": H, **changed})


CALL_ERRORS = [
    ({"x": np.zeros((T, B, I + 1))}, ValueError, "= (time_steps, batch, input_size), got (4, 3, 6)"),
    ({"x": np.zeros((T, B, I), np.float32)}, TypeError, "x must be float64 like this layer, got float32"),
    ({"x": np.full((T, B), I)}, ValueError, "x must hold ids from 0 to 4 (a vocabulary of 5), got 5"),
    ({"state": np.zeros((2, 2, B, H))}, TypeError, "state must be a pair of arrays (h, c), got ndarray"),
    ({"state": (np.zeros((2, B, H)), np.zeros((B, H)))}, ValueError, "state[1] must have shape (2, 3, 6) = "),
    ({"state": (np.zeros((2, B, H), np.float32),) * 2}, TypeError, "state[0] must be float64 like this layer"),
    ({"lengths": [0, 0, T + 1]}, ValueError, "lengths must lie between 0 and 4 = time_steps, got 5 at position [2]"),
    ({"resets": np.zeros((B, T), bool)}, ValueError, "resets must have shape (4, 3) = (time_steps, batch), got (3, 4)"),
]


@pytest.mark.parametrize(("changed", "error", "message"), CALL_ERRORS, ids=[m for _, _, m in CALL_ERRORS])
def test_call_error_names_the_argument_what_was_wanted_and_what_came(rng, changed, error, message):
    layer = _layer(rng, 2)
    with pytest.raises(error, match=re.escape(message)):
        layer(**{"x": np.zeros((T, B, I)), **changed})


@pytest.mark.parametrize(
    ("d_h", "d_state", "error", "message"),
    [
        (np.zeros((T, B, H + 1)), None, ValueError, "d_h must have shape (4, 3, 6) = the shape of h, got (4, 3, 7)"),
        (np.zeros((T, B, H), "f4"), None, TypeError, "d_h must be float64 like this layer, got float32"),
        (None, (np.zeros((1, B, H)), np.zeros((2, B, H))), ValueError, "d_state[1] must have shape (1, 3, 6)"),
    ],
)
def test_backward_error_names_the_argument_what_was_wanted_and_what_came(rng, d_h, d_state, error, message):
    layer = _layer(rng)
    layer(np.zeros((T, B, I)), training=True)
    with pytest.raises(error, match=re.escape(message)):
        layer.backward(d_h, d_state)
