"""Peepholes, projection, clip and coupled gates at the Python border: functions, layers, names, errors.

The numbers of every combination are checked in kernels/test_variants.py.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lstmfast as lf
from lstmfast import reference
from support.oracles import problem, random_lengths, slopes
from support.tolerances import DIFFERENCE, SAME, gradients, states

T, B, I, H, P = 4, 3, 5, 6, 2  # noqa: E741  (the papers' letters)
OPTIONS = {"cell_clip": 0.7, "coupled_gates": True}
ALL = {"projection_size": P, "peepholes": True, **OPTIONS}


def _problem(rng, dtype="float64"):
    return problem(rng, T, B, I, H, dtype=dtype, peepholes=True, projection_size=P)


# --- functions --------------------------------------------------------------------------------------------------------


def test_sequence_and_its_gradients_are_the_references(rng, dtype):
    p = _problem(rng, dtype)
    out = lf.lstm(**p, **OPTIONS, keep_for_backward=True, return_cells=True, return_gates=True)
    expected = reference.lstm(**p, **OPTIONS)
    d = [rng.standard_normal(value.shape).astype(dtype) for value in (out.h, out.h_n, out.c_n)]
    for name in ("h", "h_n", "c_n", "cells", "gates"):
        assert_allclose(getattr(out, name), getattr(expected, name), **states(dtype, I + P), err_msg=name)
    found, wanted = lf.lstm_backward(out, *d), reference.lstm_backward(expected, *d)
    of_weights_given = {name: value for name, value in vars(found).items() if value is not None}
    for name, value in of_weights_given.items():
        assert_allclose(value, getattr(wanted, name), **gradients(dtype, T * B + I + P), err_msg=name)


def test_step_is_a_sequence_of_one(rng, dtype):
    p = _problem(rng, dtype)
    h, c = lf.lstm_step(
        p["x"][0], p["h0"], p["c0"], p["kernel"], p["bias"],
        peepholes=p["peepholes"], projection=p["projection"], **OPTIONS,
    )
    out = lf.lstm(**{**p, "x": p["x"][:1]}, **OPTIONS)
    assert_array_equal(h, out.h_n)
    assert_array_equal(c, out.c_n)


def test_gradients_of_what_was_not_given_are_none(rng):
    p = problem(rng, T, B, I, H)
    d = lf.lstm_backward(lf.lstm(**p, keep_for_backward=True))
    assert d.peepholes is None
    assert d.projection is None


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"peepholes": np.zeros((4, H))}, ValueError, "peepholes must have shape (3, 6) = (i f o, hidden_size), got"),
        ({"peepholes": np.zeros((3, H), "f4")}, TypeError, "peepholes must be float64 like kernel, got float32"),
        ({"projection": np.zeros(H)}, ValueError, "projection must have shape (hidden_size, projection_size), got"),
        (
            {"projection": np.zeros((H, P + 1))},
            ValueError,
            "kernel must have shape (8, 24) = (input_size + projection_size, 4*hidden_size), got (7, 24)",
        ),
        (
            {"projection": np.zeros((H - 1, P))},
            ValueError,
            "kernel must have shape (7, 20) = (input_size + projection_size, 4*hidden_size), got (7, 24)",
        ),
        ({"projection": np.zeros((H, 0)), "kernel": np.zeros((I, 4 * H))}, ValueError, "projection_size must be at"),
        ({"h0": np.zeros((B, H))}, ValueError, "h0 must have shape (3, 2)"),
        ({"c0": np.zeros((B, P))}, ValueError, "c0 must have shape (3, 6)"),
        ({"cell_clip": 0}, ValueError, "cell_clip must be above 0, got 0"),
        ({"cell_clip": np.inf}, ValueError, "cell_clip must be finite, got inf"),
        ({"cell_clip": "1"}, TypeError, "cell_clip must be a number, got '1'"),
    ],
)
def test_error_names_the_argument_what_was_wanted_and_what_came(rng, changed, error, message):
    with pytest.raises(error, match=re.escape(message)):
        lf.lstm(**{**_problem(rng), **changed})


def test_explain_names_the_hooks_and_why_nothing_is_less_exact():
    told = lf.explain(64, 10, 27, 64, matmul_precision="high", projection_size=16, peepholes=True)
    assert "peepholes and a projection" in told
    assert 'matmul_precision "high" is multiplied in float32: only cells without a projection have' in told
    assert "(64 x 43)" in told


# --- layers -----------------------------------------------------------------------------------------------------------


def test_variables_of_a_layer_are_named_and_shaped(rng):
    layer = lf.LSTM(I, H, num_layers=2, bidirectional=True, rng=rng, **ALL)
    shapes = {name: value.shape for name, value in layer.parameters.items() if name.startswith("layer1_reverse")}
    assert shapes == {
        "layer1_reverse.kernel": (2 * P + P, 4 * H),
        "layer1_reverse.bias": (4 * H,),
        "layer1_reverse.peepholes": (3, H),
        "layer1_reverse.projection": (H, P),
    }


def test_peepholes_begin_at_zero(rng):
    assert not lf.LSTM(I, H, peepholes=True, rng=rng).cells[0].peepholes.any()


def test_gates_of_a_layer_show_peepholes_and_the_rows_of_the_projected_state(rng):
    cell = lf.LSTM(I, H, rng=rng, **ALL).cells[0]
    cell.gates["forget"].peephole = 2.0
    assert cell.peepholes[1].tolist() == [2.0] * H
    assert cell.gates["forget"].recurrent_kernel.shape == (P, H)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_gradients_of_a_layer_are_the_slopes_of_its_loss(rng, bidirectional):
    layer = lf.LSTM(I, H, num_layers=2, bidirectional=bidirectional, dtype="float64", rng=rng, **ALL)
    layer.parameter_buffer += rng.standard_normal(layer.parameter_buffer.size) / 8
    cells, lengths = 2 * layer.num_directions, random_lengths(rng, T, B)
    values = {
        "x": rng.standard_normal((T, B, I)), "h": rng.uniform(-1, 1, (cells, B, P)),
        "c": rng.standard_normal((cells, B, H)), "buffer": np.array(layer.parameter_buffer),
    }
    d = {name: rng.standard_normal(value.shape) for name, value in values.items()}
    d_out = rng.standard_normal((T, B, P * layer.num_directions))

    def loss(v):
        layer.parameter_buffer[:] = v["buffer"]
        h, (h_n, c_n) = layer(v["x"], (v["h"], v["c"]), lengths=lengths, training=True)
        return float(np.sum(d_out * h) + np.sum(d["h"] * h_n) + np.sum(d["c"] * c_n))

    loss(values)
    d_x, (d_h0, d_c0) = layer.backward(d_out, (d["h"], d["c"]))
    found = {"x": d_x, "h": d_h0, "c": d_c0, "buffer": layer.gradient_buffer}
    along = [np.sum(found[name] * d[name]) for name in values]
    assert_allclose(along, slopes(loss, values, d), **DIFFERENCE)


def test_cell_advances_as_its_layer_does(rng):
    layer = lf.LSTM(I, H, dtype="float64", rng=rng, **ALL)
    x, state = rng.standard_normal((T, B, I)), (np.zeros((B, P)), np.zeros((B, H)))
    for t in range(T):
        state = layer.cells[0](x[t], state)
    assert_allclose(state[0], layer(x)[1][0][0], **SAME)


def test_state_of_a_layer_has_two_shapes(rng):
    layer = lf.LSTM(I, H, projection_size=P, rng=rng)
    assert [part.shape for part in layer.zero_state(B)] == [(1, B, P), (1, B, H)]
    x = np.zeros((T, B, I), np.float32)
    with pytest.raises(ValueError, match=re.escape("state[0] must have shape (1, 3, 2) = (num_layers*num_directions")):
        layer(x, (np.zeros((1, B, H), np.float32), np.zeros((1, B, H), np.float32)))


@pytest.mark.parametrize("variant", ALL)
def test_stream_of_a_layer_that_is_not_plain_is_refused(rng, variant):
    with pytest.raises(ValueError, match=f"^{variant} is not supported by stream; call the layer"):
        lf.LSTM(I, H, rng=rng, **{variant: ALL[variant]}).stream()


@pytest.mark.parametrize(
    ("options", "message"), [({"projection_size": 0}, "projection_size"), ({"cell_clip": -1}, "cell_clip")]
)
def test_bad_sizes_of_a_layer_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=f"{message} must be"):
        lf.LSTM(I, H, **options)
