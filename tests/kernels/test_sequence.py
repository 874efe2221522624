"""Whole sequences on every ISA, forward and backward, against the reference: all sizes around a vector, all options.

What a sequence means is settled in spec/test_reference.py; here every number must be the reference's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from support.oracles import problem, random_lengths, random_resets, slopes
from support.sequences import (
    Outputs,
    assert_agree,
    load_and_forward,
    run_core,
    run_core_forward,
    run_reference,
    sequence_of,
    strided,
    upstream_for,
)
from support.tolerances import DIFFERENCE

# (T, B, I, H): hidden sizes around one and two vectors of every ISA (2 to 16 elements), batches around a register tile,
# then a layer with more rows than a tile and one with more units than a panel.
SHAPES = [
    *[(1, 1, 1, 1), (3, 2, 4, 2), (4, 3, 0, 3), (2, 4, 2, 4), (5, 5, 3, 5), (2, 6, 7, 7), (3, 7, 1, 8), (4, 1, 16, 9)],
    *[(2, 3, 5, 15), (3, 2, 9, 16), (1, 7, 2, 17), (5, 1, 3, 31), (2, 5, 6, 32), (3, 4, 8, 33)],
    *[(2, 70, 9, 20), (2, 1, 5, 130), (1, 2, 130, 17)],
    (30, 70, 3, 5),  # of so many rows that they go back in four groups
]
EMPTY = [(0, 3, 2, 4), (3, 0, 2, 4), (0, 0, 0, 1), (2, 3, 0, 5)]
T, B, INPUT, H = 5, 4, 3, 9


def all_options(rng: np.random.Generator, time_steps: int, batch: int) -> dict[str, Any]:
    """Lengths, resets, reverse and a forget bias, all at once."""
    return {
        "lengths": random_lengths(rng, time_steps, batch),
        "resets": random_resets(rng, time_steps, batch),
        "reverse": True,
        "forget_bias": 0.7,
    }


@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_plain_sequence_and_its_gradients_are_the_references(isa, dtype, rng, shape):
    p = problem(rng, *shape, dtype=dtype)
    upstream = upstream_for(rng, p)
    assert_agree(run_core(p, upstream), run_reference(p, upstream), p)


@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_sequence_with_every_option_and_its_gradients_are_the_references(isa, dtype, rng, shape):
    p = problem(rng, *shape, dtype=dtype)
    upstream, options = upstream_for(rng, p), all_options(rng, *shape[:2])
    assert_agree(run_core(p, upstream, **options), run_reference(p, upstream, **options), p)


@pytest.mark.parametrize("option", ["lengths", "resets", "reverse", "forget_bias"])
def test_each_option_alone_is_the_references(isa, dtype, rng, option):
    p = problem(rng, T, B, INPUT, H, dtype=dtype)
    upstream, options = upstream_for(rng, p), {option: all_options(rng, T, B)[option]}
    assert_agree(run_core(p, upstream, **options), run_reference(p, upstream, **options), p)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 27, 8), (4, 7, 5, 17), (2, 70, 9, 20), (0, 3, 2, 4)], ids=str)
@pytest.mark.parametrize("options", ["plain", "every option"])
def test_token_ids_and_their_gradients_are_the_references(isa, dtype, rng, shape, options):
    p = problem(rng, *shape, dtype=dtype, ids=True)
    upstream, chosen = upstream_for(rng, p), all_options(rng, *shape[:2]) if options == "every option" else {}
    assert_agree(run_core(p, upstream, **chosen), run_reference(p, upstream, **chosen), p)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 6), st.integers(1, 20)),
    on=st.sets(st.sampled_from(["lengths", "resets", "reverse", "forget_bias"])),
    ids=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_with_any_options_is_the_references(isa, dtype, shape, on, ids, seed):
    rng = np.random.default_rng(seed)
    p = problem(rng, *shape, dtype=dtype, ids=ids and shape[2] > 0)
    upstream = upstream_for(rng, p)
    options = {name: value for name, value in all_options(rng, *shape[:2]).items() if name in on}
    assert_agree(run_core(p, upstream, **options), run_reference(p, upstream, **options), p)


@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
def test_gradients_are_the_slopes_of_the_extensions_own_loss(isa, rng, ids):
    p = problem(rng, T, B, INPUT, H, ids=ids)
    upstream, options = upstream_for(rng, p), all_options(rng, T, B)

    def loss(arguments: dict[str, Any]) -> float:
        out = run_core_forward(arguments, **options)
        return float(sum(np.sum(upstream[f"d_{name}"] * out[name]) for name in ("h", "h_n", "c_n")))

    gradients = run_core(p, upstream, **options)
    directions = {name: rng.standard_normal(value.shape) for name, value in p.items() if f"d_{name}" in gradients}
    along = [np.sum(gradients[f"d_{name}"] * direction) for name, direction in directions.items()]
    assert_allclose(along, slopes(loss, p, directions), **DIFFERENCE)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_nothing_outside_the_outputs_is_written(isa, dtype, rng, shape):
    p, outputs = problem(rng, *shape, dtype=dtype), Outputs()
    run_core(p, upstream_for(rng, p), outputs=outputs, **all_options(rng, *shape[:2]))
    assert outputs.spilled() == []


@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
def test_misaligned_and_strided_inputs_give_the_same_bits(isa, dtype, rng, ids):
    p = problem(rng, T, B, INPUT, H, dtype=dtype, ids=ids)
    upstream, options = upstream_for(rng, p), all_options(rng, T, B)
    spread = {name: value if name in ("kernel", "bias") else strided(value) for name, value in p.items()}
    spread_upstream = {name: strided(value) for name, value in upstream.items()}
    assert_same_bits(run_core(spread, spread_upstream, **options), run_core(p, upstream, **options))


def test_workspace_used_before_for_other_shapes_gives_the_same_bits(isa, dtype, rng):
    of_sequence = {"reverse": True, "forget_bias": 0.7}
    used = sequence_of(**of_sequence)
    for shape in [(7, 9, 11, 40), (1, 1, 1, 1), (0, 3, 2, 4)]:
        earlier = problem(rng, *shape, dtype=dtype)
        options = {name: value for name, value in all_options(rng, *shape[:2]).items() if name not in of_sequence}
        run_core(earlier, upstream_for(rng, earlier), sequence=used, **options)
    p = problem(rng, T, B, INPUT, H, dtype=dtype)
    upstream = upstream_for(rng, p)
    assert_same_bits(run_core(p, upstream, sequence=used), run_core(p, upstream, **of_sequence))


def test_what_is_kept_does_not_change_what_is_computed(isa, dtype, rng):
    p = problem(rng, T, B, INPUT, H, dtype=dtype)
    bare = {name: np.empty_like(value) for name, value in run_core_forward(p).items() if name in ("h", "h_n", "c_n")}
    load_and_forward(sequence_of(), **p, **bare)
    kept = run_core_forward(p, keep_for_backward=True)
    assert_same_bits(bare, {name: kept[name] for name in bare})


@pytest.mark.parametrize("ids", [False, True], ids=["values", "ids"])
@pytest.mark.parametrize("shape", [(1, 1, 5, 3), (1, 1, 64, 64), (2, 2, 20, 50), (1, 4, 3, 17), (1, 5, 3, 17)], ids=str)
def test_weights_for_one_call_give_the_same_bits(isa, dtype, rng, shape, ids):
    p, sequence = problem(rng, *shape, dtype=dtype, ids=ids), sequence_of()
    expected = run_core_forward(p)
    assert_same_bits(run_core_forward(p, sequence=sequence, serves_one_call=True), expected)
    assert_same_bits(run_core_forward(p, sequence=sequence, frozen=True), expected)


@pytest.mark.parametrize("wanted", ["d_x", "d_kernel", "d_bias", "d_h0", "d_c0"])
def test_gradient_wanted_alone_has_the_same_bits(isa, dtype, rng, wanted):
    p = problem(rng, T, B, INPUT, H, dtype=dtype)
    upstream, sequence = upstream_for(rng, p), sequence_of()
    together = run_core(p, upstream, sequence=sequence)
    alone = np.empty(p[wanted.removeprefix("d_")].shape, dtype)
    sequence.backward(**upstream, **{wanted: alone})
    assert_array_equal(alone, together[wanted])


@pytest.mark.parametrize("absent", ["d_h", "d_h_n", "d_c_n"])
def test_absent_upstream_gradient_is_zero(isa, dtype, rng, absent):
    p = problem(rng, T, B, INPUT, H, dtype=dtype)
    upstream = upstream_for(rng, p)
    without = {**upstream, absent: None}
    assert_same_bits(run_core(p, without), run_core(p, {**upstream, absent: np.zeros_like(upstream[absent])}))


def test_absent_initial_state_is_zero(isa, dtype, rng):
    p = problem(rng, T, B, INPUT, H, dtype=dtype)
    zero = {**p, "h0": np.zeros((B, H), dtype), "c0": np.zeros((B, H), dtype)}
    absent = {name: np.empty_like(value) for name, value in run_core_forward(zero).items()}
    load_and_forward(sequence_of(), x=p["x"], kernel=p["kernel"], bias=p["bias"], **absent)
    assert_same_bits(absent, run_core_forward(zero))


def test_backward_without_a_forward_that_kept_for_it_is_an_error(isa, dtype, rng):
    p, sequence = problem(rng, T, B, INPUT, H, dtype=dtype), sequence_of()
    run_core_forward(p, sequence=sequence)
    with pytest.raises(RuntimeError, match="keep_for_backward"):
        sequence.backward(d_kernel=np.empty_like(p["kernel"]))


def test_gradient_of_token_ids_is_an_error(isa, dtype, rng):
    p, sequence = problem(rng, T, B, INPUT, H, dtype=dtype, ids=True), sequence_of()
    run_core_forward(p, sequence=sequence, keep_for_backward=True)
    with pytest.raises(ValueError, match="d_x"):
        sequence.backward(d_x=np.empty((T, B, INPUT), dtype))


# --- special values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30], ids=str)
def test_special_value_changes_only_its_own_row_and_from_its_own_step_on(isa, dtype, rng, value):
    p = problem(rng, T, B, INPUT, H, dtype=dtype)
    before = run_core_forward(p)
    p["x"][2, 1, 0] = value
    after = run_core_forward(p)
    others = np.arange(B) != 1
    untouched = {name: np.concatenate([after[name][:2].ravel(), after[name][2:, others].ravel()]) for name in AT_STEPS}
    expected = {name: np.concatenate([before[name][:2].ravel(), before[name][2:, others].ravel()]) for name in AT_STEPS}
    assert_same_bits(untouched, expected)


AT_STEPS = ("h", "cells", "gates")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30], ids=str)
def test_special_value_gives_what_the_reference_gives(isa, dtype, rng, value):
    p = problem(rng, T, B, INPUT, H, dtype=dtype)
    upstream = upstream_for(rng, p)
    p["x"][2, 1, 0] = value
    expected = run_reference(p, upstream)
    forward = {name: expected[name] for name in ("h", "h_n", "c_n", "cells", "gates")}
    assert_agree(run_core_forward(p), forward, p)


def test_what_stands_past_the_end_of_a_row_does_not_matter(isa, dtype, rng):
    p = problem(rng, T, B, INPUT, H, dtype=dtype)
    upstream, lengths = upstream_for(rng, p), np.array([3, 0, 5, 1], np.int64)
    past = (np.arange(T)[:, None] >= lengths)[:, :, None]
    soiled = {**p, "x": np.where(past, np.nan, p["x"]).astype(dtype)}
    soiled_upstream = {**upstream, "d_h": np.where(past, np.nan, upstream["d_h"]).astype(dtype)}
    assert_same_bits(run_core(soiled, soiled_upstream, lengths=lengths), run_core(p, upstream, lengths=lengths))


def test_reset_drops_even_a_state_that_is_not_finite(isa, dtype, rng):
    p = problem(rng, T, B, INPUT, H, dtype=dtype)
    upstream, first = upstream_for(rng, p), np.zeros((T, B), np.bool_)
    first[0] = True
    spoilt = {**p, "h0": np.full((B, H), np.nan, dtype), "c0": np.full((B, H), np.inf, dtype)}
    assert_same_bits(run_core(spoilt, upstream, resets=first), run_core(p, upstream, resets=first))


@pytest.mark.parametrize("count", [1, 2])
def test_gradients_that_fade_below_the_smallest_normal_number_become_zero(isa, dtype, rng, threads, count):
    # Or a CPU takes 100 cycles for every operation on what a gradient becomes that fades over many steps.
    p = problem(rng, 9, 70, 3, 17, dtype=dtype)
    p["kernel"][...], p["bias"][...] = 0, -1  # f = 0.27: a factor of 7e-6 over the nine steps
    smallest_normal = np.full(1, np.finfo(dtype).tiny, dtype)
    upstream = {name: np.zeros_like(gradient) for name, gradient in upstream_for(rng, p).items()}
    upstream["d_c_n"][...] = 100 * smallest_normal
    threads.set_num_threads(count)
    assert_array_equal(run_core(p, upstream)["d_c0"], 0)
    assert smallest_normal / 2 > 0  # the caller's own arithmetic is as it was


def assert_same_bits(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Assert that two dicts of results are equal to the last bit (nan equals nan)."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert_array_equal(value, expected[name], err_msg=name)
