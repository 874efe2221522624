"""What a forward pass leaves in memory of its caller is all that a backward pass needs: another sequence takes over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmfast import _core
from support.oracles import problem
from support.sequences import CELL, LOADED, load_and_forward, sequence_of, upstream_for

SHAPES = [(5, 3, 4, 7), (1, 1, 3, 5), (2, 2, 6, 33), (9, 17, 5, 40), (4, 2, 0, 8)]  # T, B, I, H


def arguments(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, variant: str) -> tuple[Any, dict[str, Any]]:
    """A problem and what forward and the restoring call are both given of it, by name."""
    time_steps, batch, input_size, hidden_size = shape
    p = problem(rng, time_steps, batch, input_size, hidden_size, dtype=dtype)
    given: dict[str, Any] = {"x": p["x"], "kernel": p["kernel"], "h0": p["h0"], "c0": p["c0"]}
    if variant == "transposed":
        kernel = p["kernel"]
        given["kernel"] = np.ascontiguousarray(kernel[:input_size].T), np.ascontiguousarray(kernel[input_size:].T)
    if variant == "ragged":
        given["lengths"] = rng.integers(0, time_steps + 1, batch)
        given["resets"] = rng.random((time_steps, batch)) < 0.3
        given["reverse"] = True
    if variant == "hooks":
        given["peepholes"] = rng.standard_normal((3, hidden_size)).astype(dtype)
        given |= {"cell_clip": 0.8, "coupled_gates": True}
    if variant == "projection":
        output_size = (hidden_size + 1) // 2
        given["projection"] = rng.standard_normal((hidden_size, output_size)).astype(dtype)
        given["kernel"] = np.ascontiguousarray(given["kernel"][: input_size + output_size])
        given["h0"] = np.ascontiguousarray(given["h0"][:, :output_size])
    return p, given


def empty_gradients(given: dict[str, Any]) -> dict[str, Any]:
    names = ("x", "kernel", "h0", "c0", "peepholes", "projection")
    like = {name: given[name] for name in names if name in given}
    empty = np.empty_like
    return {f"d_{k}": tuple(map(empty, v)) if isinstance(v, tuple) else empty(v) for k, v in like.items()}


@pytest.mark.parametrize("variant", ["plain", "transposed", "ragged", "hooks", "projection"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_restored_sequence_has_the_gradients_of_the_one_that_ran_to_the_bit(isa, dtype, rng, shape, variant):
    p, given = arguments(rng, shape, dtype, variant)
    time_steps, batch, _, hidden_size = shape
    upstream = upstream_for(rng, {**p, "h0": given["h0"]})
    h, h_n, c_n = np.empty((time_steps, *given["h0"].shape), dtype), np.empty_like(given["h0"]), np.empty_like(p["c0"])
    updates = int(np.sum(given.get("lengths", time_steps * batch)))
    saved = np.empty(_core.saved_size(updates, hidden_size, variant == "projection", dtype == np.float64), dtype)

    cell = {name: given.pop(name) for name in (*CELL, "reverse") if name in given and name != "peepholes"}
    ran = sequence_of(**cell)
    load_and_forward(ran, bias=p["bias"], h=h, h_n=h_n, c_n=c_n, keep_for_backward=saved, **given)
    wanted = empty_gradients(given)
    ran.backward(**upstream, **wanted)

    another = sequence_of(**cell)
    another.load(bias=None, **{name: given.pop(name) for name in LOADED if name in given})
    another.restore(h=h.copy(), saved=saved.copy(), **given)
    found = {
        name: tuple(map(np.empty_like, v)) if isinstance(v, tuple) else np.empty_like(v) for name, v in wanted.items()
    }
    another.backward(**upstream, **found)

    for name, gradient in wanted.items():
        pairs = zip(found[name], gradient, strict=True) if isinstance(gradient, tuple) else [(found[name], gradient)]
        for one, other in pairs:
            np.testing.assert_array_equal(one, other, err_msg=name)


def test_memory_for_what_is_saved_must_fit(rng):
    p = problem(rng, 2, 3, 4, 5, dtype=np.float32)
    h, h_n, c_n = np.empty((2, 3, 5), np.float32), np.empty((3, 5), np.float32), np.empty((3, 5), np.float32)
    size = _core.saved_size(6, 5, False, False)
    sequence = sequence_of()
    sequence.load(p["kernel"], p["bias"])
    with pytest.raises(ValueError, match=rf"keep_for_backward must have shape \({size},\), got \({size - 1},\)"):
        sequence.forward(p["x"], h, h_n, c_n, keep_for_backward=np.empty(size - 1, np.float32))
    with pytest.raises(ValueError, match=rf"saved must have shape \({size},\), got \({size - 1},\)"):
        sequence.restore(p["x"], h, np.empty(size - 1, np.float32))


def test_to_restore_needs_what_was_saved(rng):
    p, sequence, none = problem(rng, 2, 3, 4, 5, dtype=np.float32), sequence_of(), None
    sequence.load(p["kernel"], None)
    with pytest.raises(TypeError, match="saved must be a NumPy array, got None"):
        sequence.restore(p["x"], np.empty((2, 3, 5), np.float32), none)


def test_to_run_needs_a_bias(rng):
    p, sequence = problem(rng, 2, 3, 4, 5, dtype=np.float32), sequence_of()
    sequence.load(p["kernel"], None)
    with pytest.raises(TypeError, match="bias must be a NumPy array for forward, got None in load"):
        sequence.forward(p["x"], np.empty((2, 3, 5), "f"), np.empty((3, 5), "f"), np.empty((3, 5), "f"))
