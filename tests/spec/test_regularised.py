"""What dropout, zoneout, layer normalisation and learnt initial states mean in the reference.

Their gradients are compared with central differences, and with autograd of a loop that is written here for torch, row
by row. The kernels are compared with the reference in kernels/test_regularised.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lstmfast import reference
from support.oracles import slopes
from support.regularised import CALLS, HOOKS, REGULARISERS, name_of, pairwise, problem_of
from support.sequences import run_reference
from support.tolerances import DIFFERENCE, SAME

SIZES = T, B, INPUT, H = 4, 3, 2, 5
CASES = pairwise(REGULARISERS | HOOKS | CALLS)
ALL_ON = {
    "dropout": "h, per step", "zoneout": "both", "weight_dropout": True, "layer_norm": "products", "carry": True,
    "learnt_state": True, "peepholes": True, "projection": True, "cell_clip": True,
}
cases = pytest.mark.parametrize("case", CASES, ids=name_of)


# --- the random numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, (2**32 - 1,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, words):
    assert_array_equal(reference.philox(np.array([counter], np.uint32), key), [words])


def test_mask_reads_the_words_that_its_layout_names():
    noise = reference.Noise(seed=(7 << 32) + 9, layer=2)
    mask = reference.masks(noise, reference.ZONEOUT_C, 2**32 + 4, 0.5, (3, 100))
    for row, unit in [(0, 0), (0, 1), (1, 2), (1, 15), (2, 16), (2, 33), (0, 46), (2, 99)]:
        counter = [8 * (unit // 32) + unit % 16 // 2, row, 4, 4 * 2 + 2]
        word = reference.philox(np.array([counter], np.uint32), (9, 7))[0, 2 * (unit % 32 // 16) + unit % 2]
        assert mask[row, unit] == (word < 2**31)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 0.9])
def test_share_of_dropped_values_is_the_rate(rate):
    dropped = reference.masks(reference.Noise(11), reference.WEIGHT_DROPOUT, 0, rate, (200, 500))
    assert abs(dropped.mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / dropped.size)


@pytest.mark.parametrize(
    "other",
    [
        (reference.Noise(6, 1), 1, 7), (reference.Noise(5 + 2**32, 1), 1, 7), (reference.Noise(5, 2), 1, 7),
        (reference.Noise(5, 1), 2, 7), (reference.Noise(5, 1), 1, 8),
    ],
    ids=["seed", "high half of the seed", "layer", "purpose", "step"],
)
def test_masks_of_another_seed_layer_purpose_or_step_are_independent(other):
    one = reference.masks(reference.Noise(5, 1), 1, 7, 0.5, (100, 1000))
    assert abs(np.mean(one == reference.masks(*other, 0.5, (100, 1000))) - 0.5) < 5 * 0.5 / np.sqrt(one.size)


def test_mask_of_a_smaller_array_is_a_part_of_that_of_a_larger_one():
    small, large = (reference.masks(reference.Noise(5), 0, 3, 0.5, shape) for shape in ((3, 17), (7, 90)))
    assert_array_equal(small, large[:3, :17])


# --- what the options do ----------------------------------------------------------------------------------------------


def outputs(case: dict[str, Any], **changes: Any) -> reference.Output:
    """The reference's outputs for a case, some of its arguments changed."""
    p, _, options = problem_of(case, SIZES)
    return reference.lstm(**(p | options | changes))


def test_dropout_of_h_scales_what_the_product_reads_and_not_what_is_returned():
    case = {"dropout": "h"}
    p, _, options = problem_of(case, SIZES)
    noise = reference.Noise(options["seed"], options["layer"])
    factors = np.where(reference.masks(noise, reference.RECURRENT_DROPOUT, 0, 0.4, (B, H)), 0, 1 / 0.6)
    h, c = p["h0"], p["c0"]
    expected = []
    for x in p["x"]:
        h, c = reference.lstm_step(x, h * factors, c, p["kernel"], p["bias"], forget_bias=options["forget_bias"])
        expected.append(h)
    assert_allclose(outputs(case).h, expected, **SAME)


def test_dropout_of_the_candidate_leaves_the_kept_gates_as_they_are():
    plain, dropped = outputs({}), outputs({}, **{"recurrent_dropout": 0.5, "recurrent_dropout_of": "g"})
    assert_array_equal(dropped.gates[0], plain.gates[0])
    i, f, g, _ = (dropped.gates[0, :, gate] for gate in range(4))
    entered = dropped.cells[0] - f * problem_of({}, SIZES)[0]["c0"]
    assert_allclose(entered, i * g * np.where(np.abs(entered) < 1e-12, 0, 2), **SAME)


def test_weight_dropout_is_a_kernel_with_zeros():
    case = {"weight_dropout": True}
    p, _, options = problem_of(case, SIZES)
    noise = reference.Noise(options["seed"], options["layer"])
    kernel = p["kernel"].copy()
    kernel[INPUT:] *= np.where(reference.masks(noise, reference.WEIGHT_DROPOUT, 0, 0.35, (H, 4 * H)), 0, 1 / 0.65)
    plain = reference.lstm(**{**p, "kernel": kernel}, forget_bias=options["forget_bias"])
    assert_allclose(outputs(case).h, plain.h, **SAME)


def test_zoned_values_are_those_of_the_step_before():
    case = {"zoneout": "both"}
    p, _, options = problem_of(case, SIZES)
    out, noise = outputs(case), reference.Noise(options["seed"], options["layer"])
    for t in range(1, T):
        step = options["first_step"] + t
        stays = reference.masks(noise, reference.ZONEOUT_H, step, 0.3, (B, H))
        assert_array_equal(out.h[t] == out.h[t - 1], stays)
        stays = reference.masks(noise, reference.ZONEOUT_C, step, 0.4, (B, H))
        assert_array_equal(out.cells[t] == out.cells[t - 1], stays)


def test_inference_is_the_step_repeated():
    case = {**ALL_ON, "training": False}
    p, _, options = problem_of(case, SIZES)
    of_step = ("forget_bias", "cell_clip", "zoneout", "layer_norm_epsilon", "layer_norm_carry")
    weights = {name: p[name] for name in ("kernel", "bias", "peepholes", "projection", "norm_gain", "cell_gain")}
    h, c, expected = p["h0"], p["c0"], []
    for x in p["x"]:
        h, c = reference.lstm_step(
            x, h, c, **weights, cell_shift=p["cell_shift"], **{name: options[name] for name in of_step}
        )
        expected.append(h)
    assert_allclose(reference.lstm(**p, **options).h, expected, **SAME)


@pytest.mark.parametrize("kind", ["products", "gates"])
def test_layer_normalisation_forgets_the_scale_of_what_it_normalises(kind):
    case = {"layer_norm": kind, "training": False}
    kernel = problem_of(case, SIZES)[0]["kernel"]
    options = {"layer_norm_epsilon": 1e-30}
    assert_allclose(outputs(case, kernel=100 * kernel, **options).h, outputs(case, **options).h, **SAME)


def test_learnt_states_equal_given_ones():
    p, _, options = problem_of({"learnt_state": True, "given": ()}, SIZES)
    given = {f"{name}0": np.tile(p[f"initial_{name}"], (B, 1)) for name in "hc"}
    assert_array_equal(reference.lstm(**p, **options).h, reference.lstm(**(p | given), **options).h)


def test_reset_returns_to_the_learnt_state():
    p, _, options = problem_of({"learnt_state": True}, SIZES)
    resets = np.arange(T)[:, None] == np.full(B, 2)
    begun = reference.lstm(**{**p, "x": p["x"][2:], "h0": None, "c0": None}, **options)
    assert_allclose(reference.lstm(**p, **(options | {"resets": resets})).h[2:], begun.h, **SAME)


def test_final_state_of_a_row_of_length_zero_is_the_learnt_one():
    p, _, options = problem_of({"learnt_state": True, "given": ()}, SIZES)
    out = reference.lstm(**p, **(options | {"lengths": np.array([0, T, 0])}))
    assert_array_equal(out.h_n[[0, 2]], np.tile(p["initial_h"], (2, 1)))


@pytest.mark.parametrize("dropout", ["h", "h, per step", "g, per step"])
@pytest.mark.parametrize("cut", [1, 3])
def test_sequence_split_in_two_equals_the_whole_when_the_first_step_is_told(dropout, cut):
    p, _, options = problem_of({**ALL_ON, "dropout": dropout}, SIZES)
    first = reference.lstm(**{**p, "x": p["x"][:cut]}, **options)
    options |= {"first_step": options["first_step"] + cut}
    second = reference.lstm(**{**p, "x": p["x"][cut:], "h0": first.h_n, "c0": first.c_n}, **options)
    whole = outputs({**ALL_ON, "dropout": dropout})
    assert_allclose(np.concatenate([first.h, second.h]), whole.h, **SAME)


def test_what_stands_past_the_end_of_a_row_does_not_matter():
    p, upstream, options = problem_of(ALL_ON, SIZES)
    options |= {"lengths": np.array([2, 0, T])}
    past = (np.arange(T)[:, None] >= options["lengths"])[:, :, None]
    expected = run_reference(p, upstream, **options)
    soiled = {**p, "x": np.where(past, np.nan, p["x"])}
    for name, value in run_reference(soiled, upstream, **options).items():
        assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "longdouble"])
def test_every_result_keeps_the_dtype_of_the_kernel(dtype):
    p, upstream, options = problem_of(ALL_ON, SIZES, dtype)
    out = reference.lstm(**p, **options)
    results = [*vars(reference.lstm_backward(out, **upstream)).values(), out.h, out.h_n, out.c_n, out.cells, out.gates]
    assert {result.dtype for result in results} == {np.dtype(dtype)}


# --- its gradient -----------------------------------------------------------------------------------------------------


@cases
def test_gradients_are_the_slopes_of_the_loss(rng, case):
    p, upstream, options = problem_of(case, SIZES)

    def loss(arguments: dict[str, Any]) -> float:
        out = reference.lstm(**arguments, **options)
        return float(sum(np.sum(upstream[f"d_{name}"] * getattr(out, name)) for name in ("h", "h_n", "c_n")))

    gradients = vars(reference.lstm_backward(reference.lstm(**p, **options), **upstream))
    directions = {name: rng.standard_normal(value.shape) for name, value in p.items() if gradients[name] is not None}
    along = [np.sum(gradients[name] * direction) for name, direction in directions.items()]
    assert_allclose(along, slopes(loss, p, directions), **DIFFERENCE)


@cases
def test_outputs_and_gradients_are_those_of_a_loop_in_torch(case):
    torch = pytest.importorskip("torch")
    p, upstream, options = problem_of(case, SIZES)
    arguments = {
        name: torch.from_numpy(value).requires_grad_(value.dtype == np.float64) for name, value in p.items()
    }
    h, h_n, c_n = row_by_row(torch, arguments, options)
    loss = sum(torch.sum(torch.from_numpy(upstream[f"d_{n}"]) * v) for n, v in (("h", h), ("h_n", h_n), ("c_n", c_n)))
    named = {name: value for name, value in arguments.items() if value.requires_grad}
    gradients = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)

    expected = run_reference(p, upstream, **options)
    found = {"h": h, "h_n": h_n, "c_n": c_n} | {f"d_{name}": d for name, d in zip(named, gradients, strict=True)}
    for name, value in found.items():
        assert_allclose(expected[name], value.detach().numpy(), **SAME, err_msg=name)


# --- helpers ----------------------------------------------------------------------------------------------------------


def row_by_row(torch: Any, p: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """h [T, B, P], h_n and c_n by the equations, one row and one step at a time, with torch's operations."""
    hidden, output = p["bias"].shape[0] // 4, p["kernel"].shape[0] - INPUT
    draw = draws(torch, options)
    lengths = [T] * B if options["lengths"] is None else options["lengths"].tolist()
    recurrent = p["kernel"][INPUT:] * draw(reference.WEIGHT_DROPOUT, 0, options["weight_dropout"], (output, 4 * hidden))
    start = p.get("initial_h", torch.zeros(output).double()), p.get("initial_c", torch.zeros(hidden).double())
    rows = []
    for b in range(B):
        h = p["h0"][b] if "h0" in p else start[0]
        c = p["c0"][b] if "c0" in p else start[1]
        outputs = [torch.zeros(output).double()] * T
        steps = range(lengths[b])
        for t in reversed(steps) if options["reverse"] else steps:
            if options["resets"] is not None and options["resets"][t, b]:
                h, c = start
            x = torch.eye(INPUT).double()[p["x"][t, b]] if p["x"].ndim == 2 else p["x"][t, b]
            h, c = one_step(torch, x, h, c, recurrent, p, options, lambda *drawn, b=b: draw(*drawn)[b], t)
            outputs[t] = h
        rows.append((torch.stack(outputs), h, c))
    h, h_n, c_n = zip(*rows, strict=True)
    return torch.stack(h, dim=1), torch.stack(h_n), torch.stack(c_n)


def draws(torch: Any, options: dict[str, Any]) -> Callable[..., Any]:
    """A function of purpose, step, rate and shape: factors of dropout, or shares that stay; expected in inference."""

    def draw(purpose: int, step: int, rate: float, shape: tuple[int, int]) -> Any:
        is_zoneout = purpose in (reference.ZONEOUT_H, reference.ZONEOUT_C)
        if "seed" not in options:
            return torch.full(shape, rate if is_zoneout else 1.0, dtype=torch.float64)
        chosen = reference.masks(reference.Noise(options["seed"], options["layer"]), purpose, step, rate, shape)
        return torch.from_numpy(np.where(chosen, 1.0, 0.0) if is_zoneout else np.where(chosen, 0.0, 1 / (1 - rate)))

    return draw


def one_step(
    torch: Any, x: Any, h: Any, c: Any, recurrent: Any, p: dict[str, Any], options: dict[str, Any],
    draw: Callable[..., Any], t: int,
) -> tuple[Any, Any]:
    """The next h and c of one row."""
    step, epsilon = options.get("first_step", 0) + t, options["layer_norm_epsilon"]

    def norm(values: Any) -> Any:
        return torch.nn.functional.layer_norm(values, values.shape[-1:], eps=epsilon)

    rate, of_h = options.get("recurrent_dropout", 0.0), options.get("recurrent_dropout_of", "h") == "h"
    of_step = step if options.get("recurrent_dropout_per_step") else 0
    kept = draw(reference.RECURRENT_DROPOUT, of_step, rate, (B, len(h if of_h else c)))
    from_x, from_h = x @ p["kernel"][:INPUT], (h * kept if of_h else h) @ recurrent
    gain = p.get("norm_gain")
    if gain is None:
        z = from_x + from_h
    elif len(gain) == 2:
        z = gain[0] * norm(from_x) + gain[1] * norm(from_h)
    else:
        z = gain[0] * norm((from_x + from_h).reshape(4, -1)).reshape(-1)
    i, f, g, o = (z + p["bias"]).chunk(4)
    see_i, see_f, see_o = p["peepholes"] if "peepholes" in p else torch.zeros(3, 1).double()
    i = torch.sigmoid(i + see_i * c)
    f = 1 - i if options["coupled_gates"] else torch.sigmoid(f + see_f * c + options["forget_bias"])
    entering = torch.tanh(g) if of_h else torch.tanh(g) * kept
    c_fresh = f * c + i * entering
    if options["cell_clip"] is not None:
        c_fresh = torch.clamp(c_fresh, -options["cell_clip"], options["cell_clip"])
    o = torch.sigmoid(o + see_o * c_fresh)
    read = c_fresh if gain is None else p["cell_gain"] * norm(c_fresh) + p["cell_shift"]
    h_new = o * torch.tanh(read)
    if "projection" in p:
        h_new = h_new @ p["projection"]
    c_new = read if options["layer_norm_carry"] else c_fresh
    rate_h, rate_c = options.get("zoneout", (0.0, 0.0))
    stays_h = draw(reference.ZONEOUT_H, step, rate_h, (B, len(h)))
    stays_c = draw(reference.ZONEOUT_C, step, rate_c, (B, len(c)))
    return stays_h * h + (1 - stays_h) * h_new, stays_c * c + (1 - stays_c) * c_new
