"""The functions at the border: what they accept, what they compute, how they say no. Kernels have their own tests."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import lstmfast as lf
from lstmfast import layouts, losses, optimizers, reference
from lstmfast.data import Batches, Vocabulary, split
from lstmfast.trainer import evaluate
from support.oracles import problem, random_lengths, random_resets
from support.tolerances import gradients, states

T, B, I, H = 5, 3, 4, 7  # noqa: E741  (the papers' letters)


def test_step_is_the_references_step(rng, dtype):
    p = problem(rng, 1, B, I, H, dtype=dtype)
    actual = lf.lstm_step(p["x"][0], p["h0"], p["c0"], p["kernel"], p["bias"], forget_bias=1.0)
    expected = reference.lstm_step(p["x"][0], p["h0"], p["c0"], p["kernel"], p["bias"], forget_bias=1.0)
    np.testing.assert_allclose(actual, expected, **states(dtype, I + H))


def test_step_of_ids_is_the_step_of_their_one_hot_rows(rng, dtype):
    p = problem(rng, 1, B, I, H, dtype=dtype, ids=True)
    ids, rest = p["x"][0], (p["h0"], p["c0"], p["kernel"], p["bias"])
    expected = lf.lstm_step(np.eye(I, dtype=dtype)[ids], *rest)
    np.testing.assert_allclose(lf.lstm_step(ids, *rest), expected, **states(dtype, I + H))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
@pytest.mark.parametrize("output", ["h", "h_n", "c_n", "cells", "gates"])
def test_sequence_is_the_references_sequence(rng, dtype, reverse, ids, output):
    p = problem(rng, T, B, I, H, dtype=dtype, ids=ids)
    how = {"lengths": random_lengths(rng, T, B), "resets": random_resets(rng, T, B), "reverse": reverse}
    out = lf.lstm(**p, **how, forget_bias=1.0, return_cells=True, return_gates=True)
    expected = reference.lstm(**p, **how, forget_bias=1.0)
    np.testing.assert_allclose(getattr(out, output), getattr(expected, output), **states(dtype, I + H))


@pytest.mark.parametrize("name", ["x", "kernel", "bias", "h0", "c0"])
def test_backward_is_the_references_backward(rng, dtype, name):
    p = problem(rng, T, B, I, H, dtype=dtype)
    how = {"lengths": random_lengths(rng, T, B), "resets": random_resets(rng, T, B)}
    d_h, d_h_n, d_c_n = (rng.standard_normal(s).astype(dtype) for s in [(T, B, H), (B, H), (B, H)])
    actual = lf.lstm_backward(lf.lstm(**p, **how, keep_for_backward=True), d_h, d_h_n, d_c_n)
    expected = reference.lstm_backward(reference.lstm(**p, **how), d_h, d_h_n, d_c_n)
    np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), **gradients(dtype, T * B + 4 * H))


def test_ids_have_no_gradient(rng):
    out = lf.lstm(**problem(rng, T, B, I, H, ids=True), keep_for_backward=True)
    assert lf.lstm_backward(out, out.h).x is None


def test_backward_may_be_asked_twice(rng):
    out = lf.lstm(**problem(rng, T, B, I, H), keep_for_backward=True)
    first, second = lf.lstm_backward(out, out.h), lf.lstm_backward(out, out.h)
    assert all(np.array_equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))


def test_backward_from_nothing_is_zero(rng):
    out = lf.lstm(**problem(rng, T, B, I, H), keep_for_backward=True)
    assert not lf.lstm_backward(out).kernel.any()


def test_cells_and_gates_are_absent_unless_asked_for(rng):
    out = lf.lstm(**problem(rng, T, B, I, H))
    assert (out.cells, out.gates) == (None, None)


def test_absent_states_are_zeros(rng):
    p = problem(rng, T, B, I, H)
    absent = lf.lstm(p["x"], p["kernel"], p["bias"]).h
    np.testing.assert_array_equal(absent, lf.lstm(**{**p, "h0": 0 * p["h0"], "c0": 0 * p["c0"]}).h)


def _every_second(array):
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def _misaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    raw[:] = np.frombuffer(array.tobytes(), np.uint8)
    return raw.view(array.dtype).reshape(array.shape)


LAYOUTS = {
    "every second element": _every_second,
    "Fortran order": np.asfortranarray,
    "reversed rows": lambda array: array[::-1].copy()[::-1],
    "misaligned": _misaligned,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("name", ["x", "kernel", "bias", "h0", "c0"])
def test_arguments_of_any_memory_layout_give_the_same_bits(rng, dtype, layout, name):
    p = problem(rng, T, B, I, H, dtype=dtype)
    actual = lf.lstm(**{**p, name: layout(p[name])}).h
    np.testing.assert_array_equal(actual, lf.lstm(**p).h)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_ids_of_any_integer_type_are_the_same_ids(rng, kind):
    p = problem(rng, T, B, I, H, ids=True)
    np.testing.assert_array_equal(lf.lstm(**{**p, "x": p["x"].astype(kind)}).h, lf.lstm(**p).h)


@pytest.mark.parametrize("empty", [(0, B, I), (T, 0, I), (T, B, 0)], ids=["no steps", "no rows", "no inputs"])
def test_sizes_of_zero_are_answered_with_arrays_of_their_shape(rng, empty):
    p = problem(rng, *empty, H)
    assert lf.lstm(**p).h.shape == (*empty[:2], H)


def test_no_steps_leave_the_state_as_it_was(rng):
    p = problem(rng, 0, B, I, H)
    np.testing.assert_array_equal(lf.lstm(**p).c_n, p["c0"])


f4, f8 = np.float32, np.float64
KERNEL = "(input_size + hidden_size, 4*hidden_size)"
SEQUENCE_ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": np.zeros((T, B), f8)}, ValueError, "x must have shape (time_steps, batch, 4)"),
    ({"x": np.zeros((T, B, 9))}, ValueError, f"kernel must have shape (16, 28) = {KERNEL}, got (11, 28)"),
    ({"x": [[[0.0]]]}, TypeError, "x must be a NumPy array of float32 or float64, or of integer ids, got list"),
    ({"x": np.zeros((T, B, I), f4)}, TypeError, "x must be float64 like kernel, got float32"),
    ({"x": np.zeros((T, B, I), complex)}, TypeError, "x must be a float32 or float64 array, got complex128"),
    ({"x": np.zeros((T, B, I), ">f8")}, TypeError, "x must be a float32 or float64 array, got >f8"),
    ({"x": np.zeros((T, B, I), int)}, ValueError, "x must have shape (time_steps, batch), got (5, 3, 4)"),
    ({"kernel": np.zeros((I + H, 30))}, ValueError, "kernel must have shape (11, 28)"),
    ({"kernel": np.zeros(5)}, ValueError, f"kernel must have shape {KERNEL}, got (5,)"),
    ({"bias": np.zeros(4 * H + 1)}, ValueError, "bias must have shape (28,) = (4*hidden_size,), got (29,)"),
    ({"bias": np.zeros(4 * H, f4)}, TypeError, "bias must be float64 like kernel, got float32"),
    ({"h0": np.zeros((B + 1, H))}, ValueError, "h0 must have shape (3, 7) = (batch, hidden_size), got (4, 7)"),
    ({"c0": np.zeros((B, H), f4)}, TypeError, "c0 must be float64 like kernel, got float32"),
    ({"lengths": [1, -1, 2]}, ValueError, "lengths must lie between 0 and 5 = time_steps, got -1 at position [1]"),
    ({"lengths": [1, 2, 6]}, ValueError, "lengths must lie between 0 and 5 = time_steps, got 6 at position [2]"),
    ({"lengths": [1, 2]}, ValueError, "lengths must have shape (3,) = (batch,), got (2,)"),
    ({"lengths": [1.0, 2.0, 3.0]}, TypeError, "lengths must be integers, got float64"),
    ({"resets": np.zeros((T, B), np.int64)}, TypeError, "resets must be a bool array, got int64"),
    ({"resets": np.zeros((B, T), bool)}, ValueError, "resets must have shape (5, 3) = (time_steps, batch), got (3, 5)"),
    ({"forget_bias": float("nan")}, ValueError, "forget_bias must be finite, got nan"),
    ({"forget_bias": "1"}, TypeError, "forget_bias must be a number, got '1'"),
    ({"matmul_precision": "low"}, ValueError, "matmul_precision must be one of highest, high, medium, got 'low'"),
]


@pytest.mark.parametrize(("changed", "error", "message"), SEQUENCE_ERRORS, ids=[m for _, _, m in SEQUENCE_ERRORS])
def test_sequence_error_names_the_argument_what_was_wanted_and_what_came(rng, changed, error, message):
    p = problem(rng, T, B, I, H)
    with pytest.raises(error, match=re.escape(message)):
        lf.lstm(**{**p, **changed})


@pytest.mark.parametrize("bad", [I, -1])
@pytest.mark.parametrize("kind", ["int8", "int32", "int64"])
def test_error_names_the_first_id_outside_the_vocabulary_and_its_position(rng, bad, kind):
    p = problem(rng, T, B, I, H, ids=True)
    p["x"] = p["x"].astype(kind)
    p["x"][3, 1] = p["x"][4, 0] = bad
    message = f"x must hold ids from 0 to 3 (a vocabulary of 4), got {bad} at position [3, 1]"
    with pytest.raises(ValueError, match=re.escape(message)):
        lf.lstm(**p)


def masked(array):
    return np.ma.masked_array(array, mask=np.arange(array.size).reshape(array.shape) % 3 == 1)


IDS = np.array([[0, 1, 2]] * T)
MASKED: dict[str, tuple[str, Any]] = {
    "ids": ("x", lambda p: lf.lstm(masked(IDS), p["kernel"], p["bias"])),
    "lengths": ("lengths", lambda p: lf.lstm(**p, lengths=masked(np.array([1, 2, 3])))),
    "resets": ("resets", lambda p: lf.lstm(**p, resets=masked(np.zeros((T, B), bool)))),
    "peepholes": ("peepholes", lambda p: lf.lstm(**p, peepholes=masked(np.ones((3, H))))),
    "projection": (
        "projection", lambda p: lf.lstm(p["x"], np.ones((I + 2, 4 * H)), p["bias"], projection=masked(np.ones((H, 2))))
    ),
    "step": ("h", lambda p: lf.lstm_step(p["x"][0], masked(p["h0"]), p["c0"], p["kernel"], p["bias"])),
    "backward": ("d_h", lambda p: lf.lstm_backward(lf.lstm(**p, keep_for_backward=True), masked(np.ones((T, B, H))))),
    "layer": ("x", lambda p: lf.LSTM(I, H, dtype="float64")(masked(p["x"]))),
    "layer's state": (
        r"state\[1\]", lambda p: lf.LSTM(I, H, dtype="float64")(p["x"], (p["h0"][None], masked(p["c0"][None])))
    ),
    "layer's lengths": ("lengths", lambda p: lf.LSTM(I, H, dtype="float64")(p["x"], lengths=masked(np.arange(B)))),
    "stream": ("x", lambda p: lf.LSTM(I, H, dtype="float64").stream(batch_size=B).step(masked(p["x"][0]))),
    "layout": ("kernel", lambda p: layouts.from_arrays({"kernel": masked(p["kernel"])}, "lstmfast")),
    "inspection": ("kernel", lambda p: lf.inspect({"kernel": masked(p["kernel"])})),
    "linear": ("x", lambda p: lf.Linear(I, 2, dtype="float64")(masked(p["x"]))),
    "embedding": ("ids", lambda p: lf.Embedding(3, 2)(masked(IDS))),
    "model": ("inputs", lambda p: lf.CharLM(3, H).loss(masked(IDS), IDS)),
    "targets": ("targets", lambda p: lf.CharLM(3, H).loss(IDS, masked(IDS))),
    "classes": (
        "targets|labels", lambda p: lf.SequenceClassifier(I, H, 2, dtype="float64").loss(p["x"], masked(IDS[0]))
    ),
    "cross entropy": ("logits", lambda p: losses.softmax_cross_entropy(masked(p["x"]), IDS)),
    "clipping": ("gradients", lambda p: losses.clip_by_global_norm(masked(np.ones(9)), 1.0)),
    "optimizer": ("parameters", lambda p: optimizers.Adam().init(masked(np.ones(9)))),
    "text": ("ids", lambda p: Batches(masked(np.arange(99)), 2, 3)),
    "decoding": ("ids", lambda p: Vocabulary.udacity().decode(masked(np.arange(9)))),
    "splitting": ("ids", lambda p: split(masked(np.arange(99)), valid_first=9)),
    "evaluating": ("ids", lambda p: evaluate(lf.CharLM(3, H), masked(IDS[0]))),
    "a size": ("hidden_size", lambda p: lf.LSTM(I, np.ma.masked_array(3, mask=True))),
}
MASKED |= {
    name: (name, lambda p, name=name: lf.lstm(**{**p, name: masked(p[name])})) for name in ("x", "kernel", "bias")
}
MASKED |= {name: (name, lambda p, name=name: lf.lstm(**{**p, name: masked(p[name])})) for name in ("h0", "c0")}


@pytest.mark.parametrize(("name", "call"), MASKED.values(), ids=MASKED.keys())
def test_a_masked_array_is_refused_by_name_with_what_to_do(rng, name, call):
    words = r"must be an array without a mask, got a masked array( with \d+ of \d+ values masked)?; fill it, e.g. with"
    with pytest.raises(TypeError, match=f"^({name}) {words}"):
        call(problem(rng, T, B, I, H))


def test_a_masked_array_without_a_masked_value_is_refused_too(rng):
    p = problem(rng, T, B, I, H)
    with pytest.raises(TypeError, match="x must be an array without a mask, got a masked array with 0 of 60 values"):
        lf.lstm(**{**p, "x": np.ma.masked_array(p["x"])})


@pytest.mark.parametrize("name", ["x", "h", "c", "kernel"])
def test_a_numpy_matrix_is_the_array_that_it_is(rng, name):
    p = problem(rng, 1, B, I, H)
    arguments = {"x": p["x"][0], "h": p["h0"], "c": p["c0"], "kernel": p["kernel"], "bias": p["bias"]}
    actual = lf.lstm_step(**{**arguments, name: arguments[name].view(np.matrix)})
    np.testing.assert_array_equal(actual, lf.lstm_step(**arguments))
    assert type(actual[0]) is np.ndarray


class Frame:
    """What is no array and has one, as pandas, polars and PyTorch do."""

    def to_numpy(self):
        return np.zeros((T, B, I))


OTHERS = {
    "object": lambda a: a.astype(object),
    "complex": lambda a: a.astype(complex),
    "half": lambda a: a.astype(np.float16),
    "text": lambda a: a.astype(str),
    "dates": lambda a: np.zeros(a.shape, "M8[s]"),
    "structured": lambda a: np.zeros(a.shape, [("a", f8)]),
    "no axes": lambda a: np.array(1.0),
    "number": lambda a: 1.0,
    "frame": lambda a: Frame(),
}
if np.dtype(np.longdouble) != f8:  # as it is on Windows and on Apple's own CPUs
    OTHERS["long double"] = lambda a: a.astype(np.longdouble)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("name", ["x", "kernel", "bias", "h0", "c0"])
def test_what_is_no_array_of_floats_is_refused_by_name(rng, name, other):
    p = problem(rng, T, B, I, H)
    with pytest.raises((TypeError, ValueError), match=f"^{name} must (be a|have)"):
        lf.lstm(**{**p, name: other(p[name])})


def test_what_can_be_made_an_array_is_told_how(rng):
    p = problem(rng, T, B, I, H)
    with pytest.raises(TypeError, match=r"x must be a NumPy array of .*, got Frame; use .to_numpy\(\)"):
        lf.lstm(**{**p, "x": Frame()})


STEP_ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": np.zeros((B, 9))}, ValueError, "kernel must have shape (16, 28)"),
    ({"x": np.zeros((1, B, I))}, ValueError, "x must have shape (batch, 4) = (batch, input_size), got (1, 3, 4)"),
    ({"kernel": np.zeros((I + H, 14))}, ValueError, f"kernel must have shape (11, 28) = {KERNEL}, got (11, 14)"),
    ({"h": np.zeros((B, 9))}, ValueError, "h must have shape (3, 7) = (batch, hidden_size), got (3, 9)"),
    ({"c": np.zeros((B, H), f4)}, TypeError, "c must be float64 like kernel, got float32"),
]


@pytest.mark.parametrize(("changed", "error", "message"), STEP_ERRORS, ids=[m for _, _, m in STEP_ERRORS])
def test_step_error_names_the_argument_what_was_wanted_and_what_came(rng, changed, error, message):
    p = problem(rng, 1, B, I, H)
    arguments = {"x": p["x"][0], "h": p["h0"], "c": p["c0"], "kernel": p["kernel"], "bias": p["bias"]}
    with pytest.raises(error, match=re.escape(message)):
        lf.lstm_step(**{**arguments, **changed})


BACKWARD_ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"d_h": np.zeros((T, B, H + 1))}, ValueError, "d_h must have shape (5, 3, 7) = (time_steps, batch, hidden_size)"),
    ({"d_h": np.zeros((T, B, H), f4)}, TypeError, "d_h must be float64 like h, got float32"),
    ({"d_h_n": np.zeros((H, B))}, ValueError, "d_h_n must have shape (3, 7) = (batch, hidden_size), got (7, 3)"),
    ({"d_c_n": np.zeros((B, H), f4)}, TypeError, "d_c_n must be float64 like h, got float32"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BACKWARD_ERRORS, ids=[m for _, _, m in BACKWARD_ERRORS])
def test_backward_error_names_the_argument_what_was_wanted_and_what_came(rng, arguments, error, message):
    out = lf.lstm(**problem(rng, T, B, I, H), keep_for_backward=True)
    with pytest.raises(error, match=re.escape(message)):
        lf.lstm_backward(out, **arguments)


def test_backward_of_a_call_that_kept_nothing_says_what_to_ask_for(rng):
    out = lf.lstm(**problem(rng, T, B, I, H))
    with pytest.raises(ValueError, match=re.escape("out must come from lstm(..., keep_for_backward=True)")):
        lf.lstm_backward(out, out.h)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_every_precision_is_at_least_as_exact_as_asked_for(rng, dtype, precision):
    p = problem(rng, T, B, I, H, dtype=dtype)
    actual = lf.lstm(**p, matmul_precision=precision).h
    np.testing.assert_allclose(actual, reference.lstm(**p).h, **states(dtype, I + H))


def test_matmul_precision_set_is_the_one_told():
    lf.set_matmul_precision("high")
    told = lf.get_matmul_precision()
    lf.set_matmul_precision("highest")
    assert told == "high"


def test_unknown_matmul_precision_is_refused_when_set():
    with pytest.raises(ValueError, match="one of highest, high, medium, got 'float16'"):
        lf.set_matmul_precision("float16")


def test_number_of_threads_set_is_the_one_told(threads):
    lf.set_num_threads(3)
    assert lf.get_num_threads() == 3


@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_impossible_number_of_threads_is_refused_by_name(number, error):
    with pytest.raises(error, match="num_threads must be"):
        lf.set_num_threads(number)


@pytest.mark.parametrize("word", ["float32", "forced|widest", "looked up", "threads", 'precision "medium"'])
def test_explain_tells_dtype_reason_input_threads_and_precision(word):
    assert re.search(word, lf.explain(64, 10, 27, 64, token_input=True, matmul_precision="medium"))


def test_explain_tells_whether_the_input_has_a_product_of_its_own():
    assert "[x, h]" in lf.explain(64, 10, 8, 16)
    assert "many steps at once" in lf.explain(32, 100, 256, 256)
    assert "[x, h]" in lf.explain(32, 1, 256, 256)


def test_explain_tells_where_weights_are_not_packed():
    assert "in place" in lf.explain(2, 2, 8, 16)
    assert "in place" not in lf.explain(5, 1, 8, 16)
    assert "in place" not in lf.explain(1, 1, 8, 16, peepholes=True)


def test_explain_names_the_size_at_fault():
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        lf.explain(64, 10, 27, 0)
