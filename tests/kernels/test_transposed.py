"""Transposed weights, [4H, I] and [4H, P] as PyTorch has them, against the same weights as they usually lie.

What the kernels make of weights is the affair of test_sequence.py and test_variants.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from support.oracles import problem, random_lengths, random_resets
from support.sequences import (
    CELL,
    Outputs,
    assert_agree,
    load_and_forward,
    run_core,
    run_reference,
    sequence_of,
    strided,
    upstream_for,
)
from support.tolerances import states

Arrays = dict[str, Any]
# (T, B, I, H, P): P 0 is no projection. The first have one to four rows in all, which are multiplied unpacked.
FEW_ROWS = [
    (1, 1, 1, 1, 0), (1, 1, 5, 3, 0), (2, 1, 64, 64, 0), (1, 2, 7, 33, 0), (1, 1, 0, 17, 0), (1, 2, 130, 40, 0),
    (3, 1, 4, 9, 0), (2, 2, 20, 50, 0),
]
MORE_ROWS = [(5, 1, 4, 9, 0), (5, 7, 27, 18, 0), (2, 70, 9, 33, 0), (4, 3, 0, 5, 0), (1, 1, 6, 20, 7), (3, 4, 6, 9, 12)]
NO_ROWS = [(0, 3, 2, 4, 0), (3, 0, 2, 4, 3)]


def transposed_problem(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> tuple[Arrays, Arrays]:
    *sizes, projection_size = shape
    p = problem(rng, *sizes, dtype=dtype, projection_size=projection_size or None)
    return p, upstream_for(rng, p)


def run_transposed(p: Arrays, upstream: Arrays, outputs: Outputs | None = None, **options: Any) -> Arrays:
    """As `run_core`, with all weights transposed on the way in and their gradients on the way out."""
    outputs = outputs or Outputs()
    sequence = sequence_of(**{name: options.pop(name) for name in (*CELL, "reverse") if name in options})
    dtype, (time_steps, batch, input_size) = p["kernel"].dtype, p["x"].shape
    output_size, hidden_size = p["h0"].shape[1], p["c0"].shape[1]
    given: Arrays = {name: p[name] for name in ("x", "h0", "c0")}
    given["kernel"] = strided(p["kernel"][:input_size].T), strided(p["kernel"][input_size:].T)
    given["bias"] = p["bias"], np.zeros_like(p["bias"])
    results = {
        "h": outputs.strided("h", (time_steps, batch, output_size), dtype),
        "h_n": outputs.strided("h_n", (batch, output_size), dtype),
        "c_n": outputs.strided("c_n", (batch, hidden_size), dtype),
        "cells": outputs.strided("cells", (time_steps, batch, hidden_size), dtype),
        "gates": outputs.contiguous("gates", (time_steps, batch, 4, hidden_size), dtype),
    }
    d: Arrays = {f"d_{name}": outputs.strided(f"d_{name}", p[name].shape, dtype) for name in ("x", "h0", "c0")}
    d["d_bias"] = outputs.contiguous("d_bias", p["bias"].shape, dtype)
    d["d_kernel"] = tuple(
        outputs.strided(f"d_kernel[{k}]", kernel.shape, dtype) for k, kernel in enumerate(given["kernel"])
    )
    if "projection" in p:
        given["projection"] = strided(p["projection"].T)
        d["d_projection"] = outputs.strided("d_projection", given["projection"].shape, dtype)
    load_and_forward(sequence, **given, **results, keep_for_backward=True, **options)
    sequence.backward(**upstream, **d)
    d["d_kernel"] = np.concatenate([part.T for part in d["d_kernel"]])
    if "projection" in p:
        d["d_projection"] = d["d_projection"].T
    return results | d


def all_options(rng: np.random.Generator, shape: tuple[int, ...]) -> Arrays:
    return {"lengths": random_lengths(rng, *shape[:2]), "resets": random_resets(rng, *shape[:2]), "reverse": True}


@pytest.mark.parametrize("with_options", [False, True], ids=["plain", "lengths, resets, reverse"])
@pytest.mark.parametrize("shape", FEW_ROWS + MORE_ROWS + NO_ROWS, ids=str)
def test_they_give_what_the_reference_gives(isa, dtype, rng, shape, with_options):
    p, upstream = transposed_problem(rng, shape, dtype)
    options = all_options(rng, shape) if with_options else {}
    assert_agree(run_transposed(p, upstream, **options), run_reference(p, upstream, **options), p)


@pytest.mark.parametrize("shape", MORE_ROWS + NO_ROWS, ids=str)
def test_from_five_rows_on_they_give_the_same_bits(isa, dtype, rng, shape):
    p, upstream = transposed_problem(rng, shape, dtype)
    expected = run_core(p, upstream)
    for name, value in run_transposed(p, upstream).items():
        assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("shape", FEW_ROWS + MORE_ROWS, ids=str)
def test_nothing_outside_the_outputs_is_written(isa, dtype, rng, shape):
    outputs = Outputs()
    p, upstream = transposed_problem(rng, shape, dtype)
    run_transposed(p, upstream, outputs, **all_options(rng, shape))
    assert outputs.spilled() == []


def test_few_rows_give_the_same_bits_with_two_threads(isa, dtype, rng, threads):
    p, upstream = transposed_problem(rng, (1, 4, 300, 400, 0), dtype)
    threads.set_num_threads(1)
    expected = run_transposed(p, upstream)
    threads.set_num_threads(2)
    for name, value in run_transposed(p, upstream).items():
        assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("coupled_gates", [False, True])
def test_variants_of_the_cell_take_them_too(isa, dtype, rng, coupled_gates):
    p, upstream = transposed_problem(rng, (4, 3, 6, 9, 5), dtype)
    options = {"cell_clip": 0.6, "coupled_gates": coupled_gates}
    expected = run_core(p, upstream, **options)
    for name, value in run_transposed(p, upstream, **options).items():
        assert_array_equal(value, expected[name], err_msg=name)


def forward(sequence: Any, p: Arrays, kernel: Any, **options: Any) -> Any:
    """h of a call in inference."""
    batch, hidden_size = p["c0"].shape
    h, h_n = np.empty((len(p["x"]), batch, hidden_size), p["x"].dtype), np.empty_like(p["h0"])
    load_and_forward(
        sequence, x=p["x"], kernel=kernel, bias=p["bias"], h=h, h_n=h_n, c_n=np.empty_like(p["c0"]), **options
    )
    return h


@pytest.mark.parametrize("training_first", [False, True])
def test_weights_once_packed_are_not_read_again_where_that_is_promised(isa, dtype, rng, training_first):
    """training_first: one row, which leaves weights unpacked; the next call must not take its word for it."""
    p, _ = transposed_problem(rng, (1, 1, 6, 9, 0), dtype)
    kernel = p["kernel"][:6].T.copy(), p["kernel"][6:].T.copy()
    sequence = sequence_of()
    if training_first:
        forward(sequence, p, kernel, keep_for_backward=True)
    first = forward(sequence, p, kernel, frozen=True)
    assert_allclose(first, forward(sequence_of(), p, p["kernel"]), **states(dtype, 15))
    for part in kernel:
        part[...] = np.nan
    again = np.empty_like(first)
    sequence.forward(p["x"], again, np.empty_like(p["h0"]), np.empty_like(p["c0"]))
    assert_array_equal(again, first)
    assert np.isnan(forward(sequence, p, kernel)).all()


def test_two_biases_are_added(rng):
    p, _ = transposed_problem(rng, (3, 2, 6, 9, 0), np.float32)
    halves = p["bias"] / 2, p["bias"] / 2
    assert_array_equal(
        forward(sequence_of(), p | {"bias": halves}, p["kernel"]), forward(sequence_of(), p, p["kernel"])
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel": (np.zeros((8, 3)),)}, ValueError, "kernel must be an array or a pair, got a tuple of 1"),
        ({"kernel": (np.zeros((8, 3)), None)}, TypeError, "kernel must be a NumPy array, got NoneType"),
        ({"kernel": (None, np.zeros((8, 2)))}, TypeError, "kernel[0] must be a NumPy array, got None"),
        ({"kernel": (np.zeros((8, 3)), np.zeros((8, 3)))}, ValueError, "kernel[1] must have shape (8, 2), got (8, 3)"),
        ({"kernel": (np.zeros((9, 3)), np.zeros((8, 2)))}, ValueError, "kernel[0] must have shape (8, 3), got (9, 3)"),
        ({"kernel": (np.zeros((8, 3)), np.zeros((7, 2)))}, ValueError, "kernel must have 4*hidden_size rows, got 7"),
        ({"bias": (np.zeros(8), np.zeros(7))}, ValueError, "bias[1] must have shape (8,), got (7,)"),
        ({"bias": (None, np.zeros(8))}, TypeError, "bias[0] must be a NumPy array, got None"),
        ({"x": np.zeros((1, 1), "i4")}, ValueError, "x must be values, not token ids, if the kernel is transposed"),
        ({"projection": np.zeros((2, 3))}, ValueError, "projection must have shape (2, 2), got (2, 3)"),
    ],
    ids=lambda value: "" if isinstance(value, dict | type) else str(value)[:40],
)
def test_what_does_not_fit_is_named(change, error, message):
    given: Arrays = {"x": np.zeros((1, 1, 3)), "kernel": (np.zeros((8, 3)), np.zeros((8, 2))), "bias": np.zeros(8)}
    given |= {"h": np.zeros((1, 1, 2)), "h_n": np.zeros((1, 2)), "c_n": np.zeros((1, 2))}
    with pytest.raises(error) as raised:
        load_and_forward(sequence_of(), **(given | change))
    assert str(raised.value) == message


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_a_kernel_are_arrays_like_it(rng, transposed):
    p, upstream = transposed_problem(rng, (3, 2, 6, 9, 0), np.float32)
    two = np.empty((36, 6), np.float32), np.empty((36, 9), np.float32)
    kernel = (p["kernel"][:6].T.copy(), p["kernel"][6:].T.copy()) if transposed else p["kernel"]
    sequence = sequence_of()
    forward(sequence, p, kernel, keep_for_backward=True)
    with pytest.raises(TypeError, match="a pair like kernel" if transposed else "one array like kernel"):
        sequence.backward(**upstream, d_kernel=np.empty_like(p["kernel"]) if transposed else two)
