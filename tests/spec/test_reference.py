"""What the reference claims to be: an LSTM, its gradient, and the rest of a character model, told as properties.

The reference is what all other code is compared with; here it is compared with mathematics. No extension is needed.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lstmfast import gates, reference
from support.oracles import problem, random_lengths, random_resets, slopes
from support.tolerances import DIFFERENCE, SAME

T, B, INPUT, H, V = 5, 4, 3, 2, 7
LENGTHS = np.array([3, 0, 5, 1])
PAST_THE_END = (np.arange(T)[:, None] >= LENGTHS)[:, :, None]


# --- the cell ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
def test_sigmoid_keeps_the_dtype_and_meets_its_limits(dtype):
    values = reference.sigmoid(np.array([-np.inf, -1e6, 0, 1e6, np.inf], dtype))
    assert values.dtype == dtype
    assert values.tolist() == [0, 0, 0.5, 1, 1]


def test_sigmoid_of_nan_is_nan():
    assert np.isnan(reference.sigmoid(np.array([np.nan]))).all()


def test_step_follows_the_equations_of_the_paper(rng):
    p = problem(rng, 1, B, INPUT, H)
    h, c = reference.lstm_step(p["x"][0], p["h0"], p["c0"], p["kernel"], p["bias"], forget_bias=0.5)
    z = np.concatenate([p["x"][0], p["h0"]], axis=1) @ p["kernel"] + p["bias"]
    i, f, g, o = z[:, :H], z[:, H : 2 * H], z[:, 2 * H : 3 * H], z[:, 3 * H :]
    expected_c = p["c0"] / (1 + np.exp(-f - 0.5)) + np.tanh(g) / (1 + np.exp(-i))
    expected_h = np.tanh(expected_c) / (1 + np.exp(-o))
    assert_allclose([h, c], [expected_h, expected_c], **SAME)


def test_open_forget_gate_and_closed_input_gate_keep_the_cell_state(rng):
    p = problem(rng, T, B, INPUT, H)
    cell = gates.Gates(p["kernel"], p["bias"])
    cell["forget"].bias = np.inf
    cell["input"].bias = -np.inf
    out = run(p)
    assert_array_equal(out.cells, np.broadcast_to(p["c0"], out.cells.shape))


def test_closed_output_gate_hides_the_cell_state(rng):
    p = problem(rng, T, B, INPUT, H)
    gates.Gates(p["kernel"], p["bias"])["output"].bias = -np.inf
    assert_array_equal(run(p).h, np.zeros((T, B, H)))


def test_forget_bias_is_the_same_as_a_larger_bias_of_the_forget_gate(rng):
    p = problem(rng, T, B, INPUT, H)
    with_argument = run(p, forget_bias=0.75)
    gates.Gates(p["kernel"], p["bias"])["forget"].bias += 0.75
    assert_allclose(with_argument.h, run(p).h, **SAME)


@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
def test_every_result_keeps_the_dtype_of_the_kernel(rng, dtype):
    out = run(problem(rng, T, B, INPUT, H, dtype=dtype), lengths=LENGTHS, forget_bias=1.0)
    gradients = reference.lstm_backward(out, d_h=np.ones_like(out.h))
    results = [out.h, out.h_n, out.c_n, out.cells, out.gates, *vars(gradients).values()]
    assert {result.dtype for result in results if result is not None} == {np.dtype(dtype)}


# --- the sequence -----------------------------------------------------------------------------------------------------


def test_sequence_is_the_step_repeated(rng):
    p = problem(rng, T, B, INPUT, H)
    h, c, expected = p["h0"], p["c0"], []
    for x in p["x"]:
        h, c = reference.lstm_step(x, h, c, p["kernel"], p["bias"])
        expected.append(h)
    assert_allclose(run(p).h, expected, **SAME)


def test_absent_initial_state_is_zero(rng):
    p = problem(rng, T, B, INPUT, H)
    absent = reference.lstm(p["x"], p["kernel"], p["bias"])
    assert_array_equal(absent.h, run({**p, "h0": np.zeros((B, H)), "c0": np.zeros((B, H))}).h)


@pytest.mark.parametrize("cut", range(T + 1))
def test_sequence_split_in_two_equals_the_whole_when_state_is_carried(rng, cut):
    p = problem(rng, T, B, INPUT, H)
    first = run({**p, "x": p["x"][:cut]})
    second = run({**p, "x": p["x"][cut:], "h0": first.h_n, "c0": first.c_n})
    assert_allclose(np.concatenate([first.h, second.h]), run(p).h, **SAME)


def test_token_ids_equal_one_hot_rows(rng):
    p = problem(rng, T, B, V, H, ids=True)
    assert_allclose(run(p).h, run({**p, "x": np.eye(V)[p["x"]]}).h, **SAME)


def test_h_is_the_output_gate_times_tanh_of_the_cell(rng):
    out = run(problem(rng, T, B, INPUT, H))
    assert_allclose(out.h, out.gates[:, :, gates.NAMES.index("output")] * np.tanh(out.cells), **SAME)


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_equal_running_each_row_alone(rng, reverse):
    p = problem(rng, T, B, INPUT, H)
    together = run(p, lengths=LENGTHS, reverse=reverse)
    alone = [run(row(p, b, length), reverse=reverse) for b, length in enumerate(LENGTHS)]
    padded = [np.pad(out.h, ((0, T - length), (0, 0), (0, 0))) for out, length in zip(alone, LENGTHS, strict=True)]
    final = [np.concatenate([getattr(out, name) for out in alone]) for name in ("h_n", "c_n")]
    assert_allclose(
        np.concatenate([together.h.ravel(), together.h_n.ravel(), together.c_n.ravel()]),
        np.concatenate([np.concatenate(padded, axis=1).ravel(), final[0].ravel(), final[1].ravel()]),
        **SAME,
    )


@pytest.mark.parametrize("name", ["h", "cells", "gates"])
def test_outputs_past_the_end_are_zero(rng, name):
    out = getattr(run(problem(rng, T, B, INPUT, H), lengths=LENGTHS), name)
    assert not any(out[length:, b].any() for b, length in enumerate(LENGTHS))


def test_row_of_length_zero_keeps_its_initial_state(rng):
    p = problem(rng, T, B, INPUT, H)
    out = run(p, lengths=np.zeros(B, np.int64), resets=np.ones((T, B), np.bool_))
    assert_array_equal([out.h_n, out.c_n], [p["h0"], p["c0"]])


def test_what_stands_past_the_end_of_a_row_does_not_matter(rng):
    p = problem(rng, T, B, INPUT, H)
    soiled = {**p, "x": np.where(PAST_THE_END, np.nan, p["x"])}
    assert_array_equal(everything(soiled, lengths=LENGTHS), everything(p, lengths=LENGTHS))


def test_gradient_that_arrives_past_the_end_of_a_row_does_not_matter(rng):
    out = run(problem(rng, T, B, INPUT, H), lengths=LENGTHS)
    soiled = reference.lstm_backward(out, d_h=np.where(PAST_THE_END, np.nan, 1.0))
    assert_array_equal(soiled.kernel, reference.lstm_backward(out, d_h=np.ones_like(out.h)).kernel)


@pytest.mark.parametrize("at", range(T))
def test_reset_equals_starting_anew(rng, at):
    p = problem(rng, T, B, INPUT, H)
    resets = np.zeros((T, B), np.bool_)
    resets[at] = True
    anew = reference.lstm(p["x"][at:], p["kernel"], p["bias"])
    assert_allclose(run(p, resets=resets).h[at:], anew.h, **SAME)


def test_reset_in_reverse_comes_before_the_step_as_it_is_processed(rng):
    p = problem(rng, T, B, INPUT, H)
    resets = np.zeros((T, B), np.bool_)
    resets[2] = True
    anew = reference.lstm(p["x"][:3], p["kernel"], p["bias"], reverse=True)
    assert_allclose(run(p, resets=resets, reverse=True).h[:3], anew.h, **SAME)


def test_reset_drops_even_a_state_that_is_not_finite(rng):
    p = problem(rng, T, B, INPUT, H)
    spoilt = {**p, "h0": np.full((B, H), np.nan), "c0": np.full((B, H), np.inf)}
    first = np.arange(T)[:, None] == np.zeros(B)
    assert_array_equal(run(spoilt, resets=first).h, run(p, resets=first).h)


def test_reset_lets_no_gradient_through(rng):
    p = problem(rng, T, B, INPUT, H)
    resets = np.zeros((T, B), np.bool_)
    resets[3] = True
    out = run(p, resets=resets)
    d_h = np.zeros_like(out.h)
    d_h[3:] = rng.standard_normal(d_h[3:].shape)
    gradients = reference.lstm_backward(out, d_h)
    assert not any(d.any() for d in (gradients.x[:3], gradients.h0, gradients.c0))


def test_reverse_equals_flipping_time_before_and_after(rng):
    p = problem(rng, T, B, INPUT, H)
    assert_allclose(run(p, reverse=True).h, run({**p, "x": p["x"][::-1]}).h[::-1], **SAME)


# --- its gradient -----------------------------------------------------------------------------------------------------

OPTIONS = ("lengths", "resets", "reverse", "ids", "forget_bias", "final")


@pytest.mark.parametrize(
    "on",
    [frozenset(on) for size in range(len(OPTIONS) + 1) for on in itertools.combinations(OPTIONS, size)],
    ids=lambda on: "+".join(name for name in OPTIONS if name in on) or "plain",
)
def test_gradient_is_the_slope_of_the_loss(rng, on):
    p = problem(rng, T, B, INPUT, H, ids="ids" in on)
    options = {
        "lengths": random_lengths(rng, T, B) if "lengths" in on else None,
        "resets": random_resets(rng, T, B) if "resets" in on else None,
        "reverse": "reverse" in on,
        "forget_bias": 0.7 if "forget_bias" in on else 0.0,
    }
    d_h, *d_final = (rng.standard_normal(shape) for shape in ((T, B, H), (B, H), (B, H)))
    if "final" not in on:
        d_final = [np.zeros((B, H)), np.zeros((B, H))]

    def loss(arguments: dict[str, npt.NDArray[Any]]) -> float:
        out = run(arguments, **options)
        return float(np.sum(d_h * out.h) + np.sum(d_final[0] * out.h_n) + np.sum(d_final[1] * out.c_n))

    gradients = vars(reference.lstm_backward(run(p, **options), d_h, *d_final))
    directions = {name: rng.standard_normal(value.shape) for name, value in p.items() if gradients[name] is not None}
    along = [np.sum(gradients[name] * direction) for name, direction in directions.items()]
    assert_allclose(along, slopes(loss, p, directions), **DIFFERENCE)


def test_gradient_of_token_ids_is_none(rng):
    out = run(problem(rng, T, B, V, H, ids=True))
    assert reference.lstm_backward(out, d_h=np.ones_like(out.h)).x is None


def test_gradients_of_the_whole_equal_those_of_two_halves_with_the_state_gradient_carried(rng):
    p = problem(rng, T, B, INPUT, H)
    d_h = rng.standard_normal((T, B, H))
    first = run({**p, "x": p["x"][:2]})
    second = run({**p, "x": p["x"][2:], "h0": first.h_n, "c0": first.c_n})
    later = reference.lstm_backward(second, d_h[2:])
    earlier = reference.lstm_backward(first, d_h[:2], later.h0, later.c0)
    assert_allclose(earlier.kernel + later.kernel, reference.lstm_backward(run(p), d_h).kernel, **SAME)


@pytest.mark.parametrize("shape", [(0, B, INPUT, H), (T, 0, INPUT, H), (T, B, 0, H)], ids=["T=0", "B=0", "I=0"])
def test_nothing_in_gives_nothing_out(rng, shape):
    p = problem(rng, *shape)
    out = run(p)
    gradients = reference.lstm_backward(out, d_h=np.ones_like(out.h))
    shapes = [out.h.shape[:2], *(vars(gradients)[name].shape for name in p)]
    assert shapes == [shape[:2], *(value.shape for value in p.values())]


# --- projection, loss, embedding --------------------------------------------------------------------------------------


def test_gradient_of_linear_is_its_slope(rng):
    p = {"x": rng.standard_normal((4, 3)), "kernel": rng.standard_normal((3, 5)), "bias": rng.standard_normal(5)}
    d_out = rng.standard_normal((4, 5))
    directions = {name: rng.standard_normal(value.shape) for name, value in p.items()}
    gradients = reference.linear_backward(p["x"], p["kernel"], d_out)
    along = [np.sum(d * direction) for d, direction in zip(gradients, directions.values(), strict=True)]
    assert_allclose(along, slopes(lambda a: float(np.sum(d_out * reference.linear(**a))), p, directions), **DIFFERENCE)


def test_cross_entropy_of_equal_logits_is_the_logarithm_of_the_vocabulary():
    losses, _ = reference.softmax_cross_entropy(np.zeros((3, V)), np.array([0, 3, 6]))
    assert_allclose(losses, np.log(V), **SAME)


def test_cross_entropy_does_not_overflow():
    losses, _ = reference.softmax_cross_entropy(np.array([[1e300, -1e300]]), np.array([0]))
    assert losses.tolist() == [0]


def test_gradient_of_cross_entropy_is_its_slope(rng):
    p = {"logits": rng.standard_normal((4, V))}
    targets = rng.integers(0, V, 4)
    directions = {"logits": rng.standard_normal((4, V))}
    _, d_logits = reference.softmax_cross_entropy(p["logits"], targets, scale=0.3)
    expected = slopes(
        lambda a: 0.3 * float(reference.softmax_cross_entropy(a["logits"], targets)[0].sum()), p, directions
    )
    assert_allclose([np.sum(d_logits * directions["logits"])], expected, **DIFFERENCE)


def test_embedding_scatter_is_the_transpose_of_gather(rng):
    table, d_out, ids = rng.standard_normal((V, 3)), rng.standard_normal((9, 3)), rng.integers(0, V, 9)
    gathered = np.sum(d_out * reference.embedding_gather(table, ids))
    assert_allclose(np.sum(reference.embedding_scatter(d_out, ids, V) * table), gathered, **SAME)


# --- clipping and updates ---------------------------------------------------------------------------------------------


def test_global_norm_of_float32_does_not_overflow():
    assert_allclose(reference.global_norm(np.full(4, 1e30, np.float32)), 2e30, rtol=1e-7)


@pytest.mark.parametrize(("norm", "max_norm", "scale"), [(5, 1, 0.2), (0.5, 1, 1), (0, 1, 1), (5, None, 1), (5, 0, 1)])
def test_clip_scale_shrinks_only_what_is_too_long(norm, max_norm, scale):
    assert reference.clip_scale(norm, max_norm) == scale


def test_clip_scale_refuses_a_norm_that_is_not_finite():
    with pytest.raises(ValueError, match="norm must be finite, got nan"):
        reference.clip_scale(float("nan"), 1.0)


P, G = np.array([1.0, -2.0]), np.array([0.5, 0.25])


def test_sgd_goes_down_the_scaled_gradient():
    assert_allclose(reference.sgd(P, G, learning_rate=0.1, gradient_scale=2.0), [0.9, -2.05], **SAME)


def test_momentum_without_momentum_is_sgd():
    updated, _ = reference.momentum(P, G, np.ones(2), learning_rate=0.1, momentum=0.0)
    assert_allclose(updated, reference.sgd(P, G, learning_rate=0.1), **SAME)


def test_nesterov_looks_one_step_of_momentum_ahead():
    updated, velocity = reference.momentum(P, G, np.ones(2), learning_rate=0.1, momentum=0.5, nesterov=True)
    assert_allclose([updated, velocity], [[0.9, -2.0625], [1.0, 0.75]], **SAME)


def test_rmsprop_divides_by_the_root_of_the_mean_square():
    updated, mean_square = reference.rmsprop(P, G, np.zeros(2), learning_rate=0.1, decay=0.75, epsilon=0.0)
    assert_allclose([updated, mean_square], [[0.8, -2.2], 0.25 * G * G], **SAME)


def test_first_step_of_adam_moves_by_the_learning_rate_whatever_the_gradient():
    updated, *_ = reference.adam(
        P, G, np.zeros(2), np.zeros(2), step=1, learning_rate=0.1, beta1=0.9, beta2=0.999, epsilon=0.0
    )
    assert_allclose(updated, P - 0.1, **SAME)


def test_weight_decay_of_adam_does_not_pass_through_the_moments():
    updated, first, second = reference.adam(
        P,
        np.zeros(2),
        np.zeros(2),
        np.zeros(2),
        step=1,
        learning_rate=0.1,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        weight_decay=0.5,
    )
    assert_allclose([updated, first, second], [0.95 * P, np.zeros(2), np.zeros(2)], **SAME)


# --- variants of the cell ---------------------------------------------------------------------------------------------

VARIANTS = {
    "peepholes": ({"peepholes": True}, {}),
    "projection": ({"projection_size": 2}, {}),
    "wide projection": ({"projection_size": 5}, {}),
    "cell_clip": ({}, {"cell_clip": 0.4}),
    "coupled_gates": ({}, {"coupled_gates": True}),
    "all": ({"peepholes": True, "projection_size": 2}, {"cell_clip": 0.4, "coupled_gates": True}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_a_variant_are_slopes_of_its_loss(rng, variant):
    given, options = VARIANTS[variant]
    p = problem(rng, T, B, INPUT, 3, **given)
    options = {**options, "lengths": LENGTHS, "resets": random_resets(rng, T, B), "reverse": True, "forget_bias": 0.5}
    out = reference.lstm(**p, **options)
    upstream = [rng.standard_normal(value.shape) for value in (out.h, out.h_n, out.c_n)]
    gradients = vars(reference.lstm_backward(out, *upstream))

    def loss(arguments: dict[str, Any]) -> float:
        out = reference.lstm(**arguments, **options)
        return float(sum(np.sum(d * value) for d, value in zip(upstream, (out.h, out.h_n, out.c_n), strict=True)))

    directions = {name: rng.standard_normal(value.shape) for name, value in p.items()}
    along = [np.sum(gradients[name] * direction) for name, direction in directions.items()]
    assert_allclose(along, slopes(loss, p, directions), **DIFFERENCE)


def test_step_with_every_variant_follows_its_equations(rng):
    p = problem(rng, 1, B, INPUT, 3, peepholes=True, projection_size=2)
    h, c = reference.lstm_step(
        p["x"][0], p["h0"], p["c0"], p["kernel"], p["bias"],
        peepholes=p["peepholes"], projection=p["projection"], cell_clip=0.3,
    )
    z_i, z_f, z_g, z_o = np.split(np.concatenate([p["x"][0], p["h0"]], axis=1) @ p["kernel"] + p["bias"], 4, axis=1)
    see_i, see_f, see_o = p["peepholes"]
    i, f = (1 / (1 + np.exp(-(z + see * p["c0"]))) for z, see in ((z_i, see_i), (z_f, see_f)))
    expected_c = np.clip(f * p["c0"] + i * np.tanh(z_g), -0.3, 0.3)
    o = 1 / (1 + np.exp(-(z_o + see_o * expected_c)))
    assert_allclose(c, expected_c, **SAME)
    assert_allclose(h, (o * np.tanh(expected_c)) @ p["projection"], **SAME)


def test_coupled_gates_forget_what_they_take_in(rng):
    p = problem(rng, 1, B, INPUT, H)
    out = run(p, coupled_gates=True)
    i, f = out.gates[0, :, 0], out.gates[0, :, 1]
    assert_allclose(f, 1 - i, **SAME)


def test_coupled_gates_read_nothing_of_the_forget_gate(rng):
    p = problem(rng, T, B, INPUT, H, peepholes=True)
    out = reference.lstm(**p, coupled_gates=True)
    gates.Gates(p["kernel"], p["bias"])["forget"].input_kernel = np.nan
    gates.Gates(p["kernel"], p["bias"])["forget"].bias = np.nan
    p["peepholes"][1] = np.nan
    soiled = reference.lstm(**p, coupled_gates=True, forget_bias=9.0)
    assert_array_equal(soiled.h, out.h)
    d = reference.lstm_backward(soiled, np.ones_like(soiled.h))
    assert_array_equal(gates.Gates(d.kernel, d.bias)["forget"].bias, 0)
    assert_array_equal(d.peepholes[1], 0)


def test_no_gradient_passes_a_clipped_cell_and_all_of_it_one_on_the_bound():
    # One unit whose gates are all one half: c = c0 / 2 exactly. 0.75 is clipped, 0.5 is the bound itself.
    p = {"x": np.zeros((1, 2, 1)), "kernel": np.zeros((2, 4)), "bias": np.zeros(4), "h0": np.zeros((2, 1))}
    out = reference.lstm(**p, c0=np.array([[1.5], [1.0]]), cell_clip=0.5)
    d = reference.lstm_backward(out, d_c_n=np.ones((2, 1)))
    assert_array_equal(d.c0, [[0.0], [0.5]])


# --- the next token ---------------------------------------------------------------------------------------------------

LOGITS = np.log([[0.1, 0.4, 0.1, 0.4]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.1, 0.4]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 0, "top_k": 3, "top_p": 0.9}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, [1 / 34, 16 / 34, 1 / 34, 16 / 34]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 3}, [1 / 9, 4 / 9, 0, 4 / 9]),
        ({"top_k": 99}, [0.1, 0.4, 0.1, 0.4]),
        ({"top_p": 0.3}, [0, 1, 0, 0]),
        ({"top_p": 0.5}, [0, 0.5, 0, 0.5]),
        ({"top_p": 0.85}, [1 / 9, 4 / 9, 0, 4 / 9]),
        ({"top_k": 2, "top_p": 0.49}, [0, 1, 0, 0]),
        ({"top_k": 3, "top_p": 0.85}, [0, 0.5, 0, 0.5]),
    ],
    ids=str,
)
def test_next_token_distribution(options, expected):
    assert_allclose(reference.next_token_distribution(LOGITS, **options), [expected], **SAME)


def test_a_temperature_close_to_zero_is_nearly_greedy():
    p = reference.next_token_distribution(np.array([[-1e6, 2.0, 1.0, 2.0]]), temperature=1e-300)
    assert p.tolist() == [[0, 0.5, 0, 0.5]]


def test_of_equal_tokens_the_lower_ids_stay():
    p = reference.next_token_distribution(np.zeros((1, 64)), top_k=16, top_p=0.25)
    assert p.tolist() == [[0.25] * 4 + [0] * 60]


def test_tokens_are_chosen_as_often_as_their_probability_says():
    uniform = (np.arange(1000) + 0.5) / 1000
    chosen = reference.choose_token(np.repeat([[0.1, 0.4, 0.0, 0.5]], 1000, axis=0), uniform)
    assert np.bincount(chosen, minlength=4).tolist() == [100, 400, 0, 500]


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.25, 3), (1 - 2**-53, 3)])
def test_token_without_probability_is_never_chosen(uniform, token):
    assert reference.choose_token(np.array([[0.0, 0.25, 0.0, 0.75 - 1e-15, 0.0]]), np.array([uniform])) == [token]


# --- helpers ----------------------------------------------------------------------------------------------------------


def run(p: dict[str, npt.NDArray[Any]], **options: Any) -> reference.Output:
    """The reference's forward pass over a problem."""
    return reference.lstm(p["x"], p["kernel"], p["bias"], p["h0"], p["c0"], **options)


def row(p: dict[str, npt.NDArray[Any]], b: int, length: int) -> dict[str, npt.NDArray[Any]]:
    """The first `length` steps of one row of a problem, as a problem."""
    return {**p, "x": p["x"][:length, b : b + 1], "h0": p["h0"][b : b + 1], "c0": p["c0"][b : b + 1]}


def everything(p: dict[str, npt.NDArray[Any]], **options: Any) -> npt.NDArray[Any]:
    """All outputs and all gradients of a problem in one long array."""
    out = run(p, **options)
    gradients = reference.lstm_backward(out, np.ones_like(out.h), np.ones_like(out.h_n), np.ones_like(out.c_n))
    results = [out.h, out.h_n, out.c_n, out.cells, out.gates, *vars(gradients).values()]
    return np.concatenate([result.ravel() for result in results if result is not None])
