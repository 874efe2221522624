"""Cells with peepholes, a projection, a clip and coupled gates, on every ISA, against the reference.

What a variant means is settled in spec/test_reference.py. Plain cells are test_sequence.py's affair.
"""

from __future__ import annotations

import itertools
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
    run_core,
    run_core_forward,
    run_reference,
    sequence_of,
    strided,
    upstream_for,
)
from support.tolerances import DIFFERENCE

T, B, INPUT, H = 5, 4, 3, 9
# (T, B, I, H, P): around one and two vectors, batches around a register tile, many rows, many units, P above H, empty.
SHAPES = [
    (1, 1, 1, 1, 1), (3, 2, 4, 2, 1), (4, 3, 0, 3, 5), (5, 1, 3, 8, 7), (3, 2, 9, 16, 16), (2, 5, 6, 33, 17),
    (4, 70, 9, 20, 11), (2, 1, 5, 130, 40), (13, 60, 2, 5, 3), (0, 3, 2, 4, 2), (3, 0, 2, 4, 2),
]
HOOKS = ("peepholes", "projection", "cell_clip", "coupled_gates")
COMBINATIONS = [c for size in range(1, 5) for c in itertools.combinations(HOOKS, size)]
CLIP = 0.6  # about a third of the cells reach it


def variant_problem(rng: np.random.Generator, shape: tuple[int, ...], hooks: tuple[str, ...], **given: Any):
    """A problem with these hooks, and the options of `lstm` that belong to them."""
    *sizes, projection_size = shape
    p = problem(
        rng, *sizes, peepholes="peepholes" in hooks,
        projection_size=projection_size if "projection" in hooks else None, **given,
    )
    options = {"cell_clip": CLIP if "cell_clip" in hooks else None, "coupled_gates": "coupled_gates" in hooks}
    return p, upstream_for(rng, p), options


def all_options(rng: np.random.Generator, time_steps: int, batch: int) -> dict[str, Any]:
    """Lengths, resets, reverse and a forget bias, all at once."""
    return {
        "lengths": random_lengths(rng, time_steps, batch),
        "resets": random_resets(rng, time_steps, batch),
        "reverse": True,
        "forget_bias": 0.7,
    }


@pytest.mark.parametrize("hooks", COMBINATIONS, ids=" ".join)
def test_every_combination_of_hooks_is_the_references(isa, dtype, rng, hooks):
    p, upstream, options = variant_problem(rng, (T, B, INPUT, H, 4), hooks, dtype=dtype)
    options |= all_options(rng, T, B)
    assert_agree(run_core(p, upstream, **options), run_reference(p, upstream, **options), p)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("hooks", [HOOKS, ("projection",)], ids=["all hooks", "projection alone"])
def test_every_shape_is_the_references(isa, dtype, rng, shape, hooks):
    p, upstream, options = variant_problem(rng, shape, hooks, dtype=dtype)
    assert_agree(run_core(p, upstream, **options), run_reference(p, upstream, **options), p)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*(st.integers(*ends) for ends in ((0, 5), (0, 7), (0, 6), (1, 20), (1, 20)))),
    hooks=st.sets(st.sampled_from(HOOKS)),
    on=st.sets(st.sampled_from(["lengths", "resets", "reverse", "forget_bias"])),
    ids=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_hooks_with_any_shape_and_options_are_the_references(isa, dtype, shape, hooks, on, ids, seed):
    rng = np.random.default_rng(seed)
    p, upstream, options = variant_problem(rng, shape, tuple(hooks), dtype=dtype, ids=ids and shape[2] > 0)
    options |= {name: value for name, value in all_options(rng, *shape[:2]).items() if name in on}
    assert_agree(run_core(p, upstream, **options), run_reference(p, upstream, **options), p)


@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
def test_gradients_are_the_slopes_of_the_extensions_own_loss(isa, rng, ids):
    p, upstream, options = variant_problem(rng, (T, B, INPUT, H, 4), HOOKS, ids=ids)
    options |= all_options(rng, T, B)

    def loss(arguments: dict[str, Any]) -> float:
        out = run_core_forward(arguments, **options)
        return float(sum(np.sum(upstream[f"d_{name}"] * out[name]) for name in ("h", "h_n", "c_n")))

    gradients = run_core(p, upstream, **options)
    directions = {name: rng.standard_normal(value.shape) for name, value in p.items() if f"d_{name}" in gradients}
    along = [np.sum(gradients[f"d_{name}"] * direction) for name, direction in directions.items()]
    assert_allclose(along, slopes(loss, p, directions), **DIFFERENCE)


@pytest.mark.parametrize("shape", [(4, 48, 20, 72, 30), (3, 1, 16, 320, 200)], ids=["rows", "units"])
def test_one_two_and_three_threads_give_the_same_bits(isa, dtype, threads, shape):
    by_threads = []
    for count in (1, 2, 3):
        threads.set_num_threads(count)
        rng = np.random.default_rng(7)
        p, upstream, options = variant_problem(rng, shape, HOOKS, dtype=dtype)
        results = run_core(p, upstream, **options, resets=random_resets(rng, *shape[:2]))
        by_threads.append(np.concatenate([value.ravel() for value in results.values()]))
    assert_array_equal(by_threads[1], by_threads[0])
    assert_array_equal(by_threads[2], by_threads[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_outside_the_outputs_is_written(isa, dtype, rng, shape):
    outputs = Outputs()
    p, upstream, options = variant_problem(rng, shape, HOOKS, dtype=dtype)
    run_core(p, upstream, outputs=outputs, **options, **all_options(rng, *shape[:2]))
    assert outputs.spilled() == []


def test_misaligned_and_strided_inputs_give_the_same_bits(isa, dtype, rng):
    p, upstream, options = variant_problem(rng, (T, B, INPUT, H, 4), HOOKS, dtype=dtype)
    contiguous = ("kernel", "bias", "peepholes")
    spread = {name: value if name in contiguous else strided(value) for name, value in p.items()}
    expected = run_core(p, upstream, **options)
    for name, value in run_core(spread, {k: strided(v) for k, v in upstream.items()}, **options).items():
        assert_array_equal(value, expected[name], err_msg=name)


def test_hooks_that_do_nothing_give_the_plain_cell(isa, dtype, rng):
    p, upstream, _ = variant_problem(rng, (T, B, INPUT, H, 4), (), dtype=dtype)
    plain = run_core(p, upstream)
    idle = run_core({**p, "peepholes": np.zeros((3, H), dtype)}, upstream, cell_clip=1e6)
    del idle["d_peepholes"]
    assert_agree(idle, {name: value.astype(np.float64) for name, value in plain.items()}, p)


def test_coupled_gates_read_nothing_of_the_forget_gate(isa, dtype, rng):
    p, upstream, options = variant_problem(rng, (T, B, INPUT, H, 4), ("peepholes", "coupled_gates"), dtype=dtype)
    expected = run_core(p, upstream, **options)
    p["kernel"][:, H : 2 * H], p["bias"][H : 2 * H], p["peepholes"][1] = np.nan, np.nan, np.nan
    soiled = run_core(p, upstream, **options, forget_bias=3.0)
    for name, value in soiled.items():
        assert_array_equal(value, expected[name], err_msg=name)
    assert_array_equal(soiled["d_kernel"][:, H : 2 * H], 0)
    assert_array_equal(soiled["d_peepholes"][1], 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_special_value_gives_what_the_reference_gives(isa, dtype, rng, value):
    p, upstream, options = variant_problem(rng, (T, B, INPUT, H, 4), ("peepholes", "cell_clip"), dtype=dtype)
    p["x"][2, 1, 0] = value
    expected = run_reference(p, upstream, **options)
    forward = {name: expected[name] for name in ("h", "h_n", "c_n", "cells", "gates")}
    assert_agree(run_core_forward(p, **options), forward, p)


@pytest.mark.parametrize("cell", [{}, {"cell_clip": CLIP, "coupled_gates": True}], ids=["plain", "clip, coupled"])
def test_workspace_used_before_for_other_weights_gives_the_same_bits(isa, dtype, rng, cell):
    used = sequence_of(**cell)
    for hooks in (HOOKS, (), ("projection",)):
        earlier, upstream, _ = variant_problem(rng, (7, 9, 11, 40, 50), hooks, dtype=dtype)
        run_core(earlier, upstream, sequence=used)
    p, upstream, _ = variant_problem(rng, (T, B, INPUT, H, 4), ("peepholes",), dtype=dtype)
    expected = run_core(p, upstream, **cell)
    for name, value in run_core(p, upstream, sequence=used).items():
        assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize(
    ("cell", "error", "message"),
    [
        ({"cell_clip": 0.0}, ValueError, "cell.cell_clip must be above 0, got 0"),
        ({"peepholes": True}, TypeError, "peepholes must be a NumPy array for a cell that has them, got None"),
        ({"projection_size": 3}, TypeError, "projection must be a NumPy array for a cell that has one, got None"),
    ],
    ids=lambda value: "" if isinstance(value, type) else str(value)[:40],
)
def test_what_the_cell_lacks_is_named(rng, cell, error, message):
    p = problem(rng, T, B, INPUT, H)
    with pytest.raises(error, match=message):
        sequence_of(**cell).load(p["kernel"], p["bias"])
