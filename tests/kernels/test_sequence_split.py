"""Whole sequences on bf16x products: every policy against the reference, and the way back to multiply-adds.

Runs where an ISA has bf16x products: `amx`, `avx512_bf16` (at "medium" alone), and `generic512` with a stand-in for the
tile instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_array_equal

from lstmfast import _core
from support.oracles import problem, random_lengths, random_resets
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

POLICIES = ["highest", "high", "medium"]

EVERY_PRODUCT = True
# What a policy may lose of the largest value of a result, through a few steps that amplify it.
LOSS = {"high": 5e-5, "medium": 5e-2}
# (T, B, I, H): batches around a tile of 16 rows, units around a tile of 16 columns and a gate block, inputs of 0 to 70.
SHAPES = [(3, 16, 5, 128), (2, 17, 40, 130), (3, 33, 0, 129), (2, 40, 70, 144)]


PARTS = {"highest": 3, "high": 2, "medium": 1}


@pytest.fixture
def split(isa, request):
    """Skip where the ISA makes no bf16x products, or none of the policy."""
    policy = request.node.callspec.params.get("policy", "highest")
    if _core.testing.bf16x_most_parts() < PARTS[policy]:
        pytest.skip(f"{isa} has no bf16x products at {policy}")


def options_for(rng: np.random.Generator, time_steps: int, batch: int) -> dict[str, Any]:
    """Lengths, resets, reverse and a forget bias, all at once."""
    lengths = random_lengths(rng, time_steps, batch)
    return {"lengths": lengths, "resets": random_resets(rng, time_steps, batch), "reverse": True, "forget_bias": 0.7}


def assert_close(actual: dict[str, Any], expected: dict[str, Any], p: dict[str, Any], policy: str) -> None:
    """Assert that results are the reference's, as exactly as the policy promises."""
    if policy == "highest":
        return assert_agree(actual, expected, p)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        largest = np.abs(expected[name]).max(initial=1e-30)
        assert np.abs(value - expected[name]).max(initial=0) <= LOSS[policy] * largest, name


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
@pytest.mark.parametrize("with_options", [False, True], ids=["plain", "every option"])
def test_split_sequence_and_its_gradients_are_the_references(isa, split, rng, shape, policy, ids, with_options):
    if ids and shape[2] == 0:
        pytest.skip("no ids without a vocabulary")
    p = problem(rng, *shape, dtype=np.float32, ids=ids)
    upstream, options = upstream_for(rng, p), options_for(rng, *shape[:2]) if with_options else {}
    expected = run_reference(p, upstream, **options)
    sequence = sequence_of(reverse=options.pop("reverse", False), forget_bias=options.pop("forget_bias", 0.0))
    actual = run_core(p, upstream, sequence=sequence, matmul_precision=policy, **options)
    assert sequence.used_bf16x_products
    assert_close(actual, expected, p, policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_split_sequence_without_anything_kept_is_the_same(isa, split, rng, policy):
    p = problem(rng, 9, 70, 33, 130, dtype=np.float32)  # more rows than wait for their gates at once
    bare = {name: np.empty_like(value) for name, value in run_core_forward(p).items() if name in ("h", "h_n", "c_n")}
    load_and_forward(sequence_of(), **p, **bare, matmul_precision=policy)
    kept = run_core_forward(p, keep_for_backward=True, matmul_precision=policy)
    for name, value in bare.items():
        assert_array_equal(value, kept[name])


@pytest.mark.parametrize("threads_wanted", [2, 3])
def test_split_sequence_has_the_same_bits_for_any_number_of_threads(isa, split, threads, rng, threads_wanted):
    p = problem(rng, 4, 70, 40, 130, dtype=np.float32)
    upstream = upstream_for(rng, p)
    threads.set_num_threads(1)
    alone = run_core(p, upstream)
    threads.set_num_threads(threads_wanted)
    together = run_core(p, upstream)
    for name, value in alone.items():
        assert_array_equal(together[name], value, err_msg=name)


def test_split_sequence_writes_nothing_outside_its_outputs(isa, split, rng):
    p, outputs = problem(rng, 2, 17, 40, 130, dtype=np.float32), Outputs()
    run_core(p, upstream_for(rng, p), outputs=outputs, **options_for(rng, 2, 17))
    assert outputs.spilled() == []


def test_split_sequence_takes_strided_inputs(isa, split, rng):
    p = problem(rng, 2, 17, 40, 130, dtype=np.float32)
    upstream = upstream_for(rng, p)
    spread = {name: value if name in ("kernel", "bias") else strided(value) for name, value in p.items()}
    apart = run_core(spread, {name: strided(value) for name, value in upstream.items()})
    for name, value in run_core(p, upstream).items():
        assert_array_equal(apart[name], value, err_msg=name)


def without_split(p: dict[str, Any], upstream: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Results by multiply-adds: row by row, for batches below a tile are not split."""
    rows = [
        run_core(
            {name: value if name in ("kernel", "bias") else value[..., b : b + 1, :] for name, value in p.items()},
            {name: value[..., b : b + 1, :] for name, value in upstream.items()},
        )
        for b in range(p["x"].shape[1])
    ]
    return {name: np.concatenate([row[name] for row in rows], axis=-2) for name in ("h_n", "c_n", "h", "d_x")}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30], ids=str)
@pytest.mark.parametrize("where", ["x", "h0", "kernel", "d_h"])
def test_special_values_go_back_to_multiply_adds(isa, split, rng, value, where):
    p = problem(rng, 3, 16, 5, 128, dtype=np.float32)
    upstream, sequence = upstream_for(rng, p), sequence_of()
    (upstream if where == "d_h" else p)[where].flat[7] = value
    with np.errstate(all="ignore"):
        actual = run_core(p, upstream, sequence=sequence)
        expected = without_split(p, upstream)
    assert not sequence.used_bf16x_products
    for name, wanted in expected.items():
        assert_array_equal(np.isfinite(actual[name]), np.isfinite(wanted), err_msg=name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30], ids=str)
@pytest.mark.parametrize("where", ["x", "h0", "kernel", "d_h"])
@pytest.mark.parametrize("policy", POLICIES[1:])
def test_special_values_reach_the_same_results_at_every_policy(isa, rng, value, where, policy):
    p = problem(rng, 3, 16, 5, 128, dtype=np.float32)
    upstream = upstream_for(rng, p)
    (upstream if where == "d_h" else p)[where].flat[7] = value
    with np.errstate(all="ignore"):
        actual, expected = run_core(p, upstream, matmul_precision=policy), run_core(p, upstream)
    for name, wanted in expected.items():
        assert_array_equal(np.isfinite(actual[name]), np.isfinite(wanted), err_msg=name)


def test_weights_packed_for_another_policy_are_not_used(isa, split, rng):
    p, sequence = problem(rng, 2, 16, 5, 128, dtype=np.float32), sequence_of()
    for policy in ["high", "medium", "highest", "medium", "high"]:
        fresh = run_core_forward(p, matmul_precision=policy)
        for name, value in run_core_forward(
            p, sequence=sequence, matmul_precision=policy, frozen=policy != "high"
        ).items():
            assert_array_equal(value, fresh[name], err_msg=f"{policy}: {name}")


def test_small_batches_and_layers_are_not_split(isa, split, rng):
    for shape in [(2, 15, 5, 128), (2, 16, 5, 127), (2, 16, 5, 20)]:
        p, sequence = problem(rng, *shape, dtype=np.float32), sequence_of()
        run_core_forward(p, sequence=sequence)
        assert not sequence.used_bf16x_products


def test_float64_is_never_split(isa, rng):
    p, sequence = problem(rng, 2, 16, 5, 128), sequence_of()
    run_core_forward(p, sequence=sequence, matmul_precision="medium")
    assert not sequence.used_bf16x_products


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_every_policy_is_highest_where_a_call_is_too_small(isa, rng, policy):
    p = problem(rng, 3, 1, 5, 33, dtype=np.float32)
    upstream = upstream_for(rng, p)
    highest = run_core(p, upstream)
    for name, value in run_core(p, upstream, matmul_precision=policy).items():
        assert_array_equal(value, highest[name], err_msg=name)


def test_unknown_policy_is_an_error(isa, rng):
    p = problem(rng, 1, 1, 1, 1, dtype=np.float32)
    with pytest.raises(ValueError, match="matmul_precision"):
        run_core_forward(p, matmul_precision="best")
