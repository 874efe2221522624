"""Cells with dropout, zoneout, layer normalisation and learnt initial states, on every ISA, against the reference.

What they mean is settled in spec/test_regularised.py. The cases cover every pair of options, sizes and ways to call.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lstmfast as lf
from lstmfast import _core, reference
from support.regularised import (
    CALLS,
    HOOKS,
    REGULARISERS,
    cell_of,
    name_of,
    pairwise,
    problem_of,
    run_core,
    run_package,
)
from support.sequences import Outputs, assert_agree, run_reference
from support.tolerances import states

SIZES = {"hidden": (1, 5, 17, 33), "batch": (1, 3, 7), "time_steps": (1, 5), "inputs": (1, 6)}
CASES = pairwise(REGULARISERS | HOOKS | CALLS | SIZES | {"training": (True,)})
ALL_ON = {
    "dropout": "h, per step", "zoneout": "both", "weight_dropout": True, "layer_norm": "products", "carry": True,
    "learnt_state": True, "peepholes": True, "projection": True, "cell_clip": True, "lengths": True, "resets": True,
}
# Two cells that have all there is between them: g in place of h, gates in place of products.
OTHERS_ON = ALL_ON | {"dropout": "g", "layer_norm": "gates", "carry": False, "reverse": True, "given": ("c0",)}
cases = pytest.mark.parametrize("case", CASES, ids=name_of)
both_cells = pytest.mark.parametrize("case", [ALL_ON, OTHERS_ON], ids=["products", "gates"])


def sized(case: dict[str, Any], dtype: Any = np.float64) -> Any:
    """A case's problem, of its own sizes."""
    return problem_of(case, (case["time_steps"], case["batch"], case["inputs"], case["hidden"]), dtype)


@functools.cache
def expected_of(index: int, dtype: Any, training: bool) -> dict[str, Any]:
    """What the reference makes of CASES[index], the same for every ISA."""
    p, upstream, options = sized(CASES[index] | {"training": training}, dtype)
    return run_reference(p, upstream, **options)


@cases
def test_any_two_options_are_the_references(isa, dtype, case):
    p, upstream, options = sized(case, dtype)
    assert_agree(run_package(p, upstream, **options), expected_of(CASES.index(case), dtype, True), p)


@pytest.mark.parametrize("on", range(2**5))
def test_every_combination_of_options_is_the_references(isa, on):
    ways = {
        "dropout": "h", "zoneout": "both", "weight_dropout": True, "layer_norm": "products", "learnt_state": True,
    }
    regularised = {name: way for k, (name, way) in enumerate(ways.items()) if on >> k & 1}
    for hooks in itertools.product((False, True), repeat=3):
        case = regularised | dict(zip(("peepholes", "projection", "cell_clip"), hooks, strict=True))
        p, upstream, options = problem_of(case | {"resets": True}, (2, 2, 1, 3))
        assert_agree(run_package(p, upstream, **options), run_reference(p, upstream, **options), p)


@cases
def test_inference_is_the_references_expectation(isa, dtype, case):
    p, _, options = sized(case | {"training": False}, dtype)
    out, expected = lf.lstm(**p, **options), expected_of(CASES.index(case), dtype, False)
    for name in ("h", "h_n", "c_n"):
        assert_allclose(getattr(out, name), expected[name], **states(dtype, len(p["kernel"])), err_msg=name)


@both_cells
def test_a_step_is_the_references(isa, dtype, case):
    p, _, options = problem_of(case | {"given": ("h0", "c0")}, (1, 3, 4, 9), dtype)
    names = ("forget_bias", "cell_clip", "zoneout", "layer_norm_epsilon", "layer_norm_carry")
    arrays = ("kernel", "bias", "peepholes", "projection", "norm_gain", "cell_gain", "cell_shift")
    arguments = {name: options[name] for name in names} | {name: p[name] for name in arrays}
    found = lf.lstm_step(p["x"][0], p["h0"], p["c0"], **arguments)
    for value, expected in zip(found, reference.lstm_step(p["x"][0], p["h0"], p["c0"], **arguments), strict=True):
        assert_allclose(value, expected, **states(dtype, len(p["kernel"])))


@pytest.mark.parametrize("sizes", [(0, 3, 2, 5), (3, 0, 2, 5), (3, 2, 0, 5)], ids=["steps", "rows", "inputs"])
@both_cells
def test_no_steps_rows_or_inputs_are_the_references(isa, dtype, sizes, case):
    p, upstream, options = problem_of(case, sizes, dtype)
    assert_agree(run_package(p, upstream, **options), run_reference(p, upstream, **options), p)


@both_cells
def test_small_deviation_is_the_references(isa, case):
    p, upstream, options = problem_of(case, (3, 4, 2, 6))
    p["kernel"] /= 100
    options["layer_norm_epsilon"] = 1e-5
    assert_agree(run_package(p, upstream, **options), run_reference(p, upstream, **options), p)


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("purpose", range(4))
def test_masks_are_the_references_on_every_isa(isa, dtype, purpose, rate):
    noise = reference.Noise(seed=2**63 + 12345, layer=5)
    for units in (1, 2, 15, 16, 17, 31, 32, 33, 100):
        found = np.empty((3, units), dtype)
        _core.testing.mask(found, noise.seed, noise.layer, purpose, 2**32 - 1, rate)
        chosen = reference.masks(noise, purpose, 2**32 - 1, rate, found.shape)
        keeps_state = purpose in (reference.ZONEOUT_H, reference.ZONEOUT_C)
        expected = chosen.astype(dtype) if keeps_state else np.where(chosen, 0, 1 / (1 - rate)).astype(dtype)
        assert_array_equal(found, expected)


@both_cells
@pytest.mark.parametrize("cut", [1, 4])
def test_sequence_split_in_two_equals_the_whole_when_the_first_step_is_told(isa, dtype, case, cut):
    p, _, options = problem_of(case | {"given": ("h0", "c0"), "lengths": False, "reverse": False}, (6, 3, 4, 9), dtype)
    whole = lf.lstm(**p, **options)
    parts = []
    state = {"h0": p["h0"], "c0": p["c0"]}
    for steps in (slice(0, cut), slice(cut, 6)):
        own = options | {"resets": options["resets"][steps], "first_step": options["first_step"] + steps.start}
        part = lf.lstm(**(p | state | {"x": p["x"][steps]}), **own)
        state = {"h0": part.h_n, "c0": part.c_n}
        parts.append(part.h)
    assert_allclose(np.concatenate(parts), whole.h, **states(dtype, len(p["kernel"])))


def test_a_seed_that_is_drawn_is_told_and_gives_the_same_again():
    p, _, options = problem_of(ALL_ON, (5, 3, 4, 9))
    del options["seed"]
    drawn = lf.lstm(**p, **options, keep_for_backward=True)
    assert_array_equal(lf.lstm(**p, **options, seed=drawn.seed).h, drawn.h)


# --- the same bits ----------------------------------------------------------------------------------------------------


@both_cells
@pytest.mark.parametrize("sizes", [(3, 40, 20, 72), (2, 1, 16, 320)], ids=["rows", "units"])
def test_one_two_and_three_threads_give_the_same_bits(isa, threads, case, sizes):
    p, upstream, options = problem_of(case, sizes, np.float32)
    by_threads = []
    for count in (1, 2, 3):
        threads.set_num_threads(count)
        by_threads.append(run_package(p, upstream, **options))
    for name, value in by_threads[0].items():
        assert_array_equal(by_threads[1][name], value, err_msg=name)
        assert_array_equal(by_threads[2][name], value, err_msg=name)


@both_cells
@pytest.mark.parametrize("sizes", [(5, 3, 4, 7), (1, 1, 3, 5), (4, 17, 5, 40)], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_restored_sequence_has_the_gradients_of_the_one_that_ran_to_the_bit(isa, dtype, case, sizes, transposed):
    p, upstream, options = problem_of(case, sizes, dtype)
    ran = run_core(p, upstream, **options, transposed=transposed)
    for name, value in run_core(p, upstream, **options, transposed=transposed, restored=True).items():
        assert_array_equal(value, ran[name], err_msg=name)


@pytest.mark.parametrize("case", [case for case in CASES if not case["ids"]][::2], ids=name_of)
def test_transposed_weights_are_the_references(isa, dtype, case):
    p, upstream, options = sized(case, dtype)
    assert_agree(run_core(p, upstream, **options, transposed=True), expected_of(CASES.index(case), dtype, True), p)


@both_cells
@pytest.mark.parametrize("sizes", [(3, 2, 4, 5), (2, 7, 3, 33)], ids=str)
def test_nothing_outside_the_outputs_is_written(isa, dtype, case, sizes):
    outputs = Outputs()
    p, upstream, options = problem_of(case, sizes, dtype)
    run_core(p, upstream, **options, outputs=outputs)
    assert outputs.spilled() == []


@both_cells
def test_workspace_used_before_for_other_sizes_gives_the_same_bits(isa, dtype, case):
    small, large = ((problem_of(case, sizes, dtype)) for sizes in ((4, 3, 2, 5), (7, 9, 11, 40)))
    expected = run_core(small[0], small[1], **small[2])
    used = None
    for p, upstream, options in (large, small):
        used = used or _core.Sequence(options["reverse"], cell_of(p, options))
        found = run_core(p, upstream, **options, sequence=used)
    for name, value in found.items():
        assert_array_equal(value, expected[name], err_msg=name)


def test_weights_that_were_dropped_in_training_are_whole_again_in_inference(isa, dtype):
    p, _, options = problem_of({"weight_dropout": True}, (5, 8, 4, 9), dtype)
    h, h_n, c_n = np.empty((5, 8, 9), dtype), np.empty((8, 9), dtype), np.empty((8, 9), dtype)
    sequence = _core.Sequence(False, cell_of(p, options))
    sequence.load(p["kernel"], p["bias"], frozen=True)
    sequence.forward(p["x"], h, h_n, c_n)
    expected = h.copy()
    sequence.forward(p["x"], h, h_n, c_n, noise=(1, 0, 0))
    assert not np.array_equal(h, expected)
    sequence.forward(p["x"], h, h_n, c_n)
    assert_array_equal(h, expected)


@both_cells
def test_training_forward_that_keeps_nothing_gives_the_same_bits(isa, dtype, case):
    p, _, options = problem_of(case, (4, 3, 2, 5), dtype)
    assert_array_equal(lf.lstm(**p, **options).h, lf.lstm(**p, **options, keep_for_backward=True).h)


@both_cells
def test_rows_do_not_know_each_other_nor_what_is_past_their_end(isa, dtype, case):
    p, upstream, options = problem_of(case, (5, 4, 3, 9), dtype)
    options["lengths"] = np.array([3, 0, 5, 4])
    expected = run_package(p, upstream, **options)
    past = (np.arange(5)[:, None] >= options["lengths"])[:, :, None]
    soiled = {**p, "x": np.where(past, np.nan, p["x"]).astype(dtype)}
    for name, value in run_package(soiled, upstream, **options).items():
        assert_array_equal(value, expected[name], err_msg=name)
    soiled["x"][1, 2] = np.nan
    found = run_package(soiled, upstream, **options)
    assert_array_equal(np.delete(found["h"], 2, 1), np.delete(expected["h"], 2, 1))
    assert_array_equal(np.delete(found["d_x"], 2, 1), np.delete(expected["d_x"], 2, 1))


@both_cells
def test_gradients_asked_for_again_are_the_same(isa, case):
    p, upstream, options = problem_of(case, (4, 3, 2, 5))
    out = lf.lstm(**p, **options, keep_for_backward=True)
    first, again = (vars(lf.lstm_backward(out, **upstream)) for _ in range(2))
    for name, value in first.items():
        assert_array_equal(again[name], value, err_msg=name)
