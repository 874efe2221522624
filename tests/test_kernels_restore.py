"""What a forward pass leaves in memory of its caller is all that a backward pass needs: another sequence takes over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmfast import _core
from oracles import problem
from sequences import upstream_for

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
    return {f"d_{k}": tuple(map(np.empty_like, v)) if isinstance(v, tuple) else np.empty_like(v) for k, v in like.items()}


@pytest.mark.parametrize("variant", ["plain", "transposed", "ragged", "hooks", "projection"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_restored_sequence_has_the_gradients_of_the_one_that_ran_to_the_bit(isa, dtype, rng, shape, variant):
    p, given = arguments(rng, shape, dtype, variant)
    time_steps, batch, _, hidden_size = shape
    upstream = upstream_for(rng, {**p, "h0": given["h0"]})
    h, h_n, c_n = np.empty((time_steps, *given["h0"].shape), dtype), np.empty_like(given["h0"]), np.empty_like(p["c0"])
    updates = int(np.sum(given.get("lengths", time_steps * batch)))
    saved = np.empty(_core.saved_size(updates, hidden_size, variant == "projection", dtype == np.float64), dtype)

    ran = _core.Sequence()
    ran.forward(bias=p["bias"], h=h, h_n=h_n, c_n=c_n, keep_for_backward=True, saved=saved, **given)
    wanted = empty_gradients(given)
    ran.backward(**upstream, **wanted)

    another = _core.Sequence()
    none: Any = None
    another.forward(
        bias=none, h=h.copy(), h_n=none, c_n=none, keep_for_backward=True, saved=saved.copy(), is_restored=True, **given
    )
    found = empty_gradients(given)
    another.backward(**upstream, **found)

    for name, gradient in wanted.items():
        pairs = zip(found[name], gradient, strict=True) if isinstance(gradient, tuple) else [(found[name], gradient)]
        for one, other in pairs:
            np.testing.assert_array_equal(one, other, err_msg=name)


def test_memory_for_what_is_saved_must_fit(rng):
    p = problem(rng, 2, 3, 4, 5, dtype=np.float32)
    h, h_n, c_n = np.empty((2, 3, 5), np.float32), np.empty((3, 5), np.float32), np.empty((3, 5), np.float32)
    size = _core.saved_size(6, 5, False, False)
    with pytest.raises(ValueError, match=rf"saved must have shape \({size},\), got \({size - 1},\)"):
        _core.Sequence().forward(
            p["x"], p["kernel"], p["bias"], h, h_n, c_n, keep_for_backward=True, saved=np.empty(size - 1, np.float32)
        )


def test_to_restore_needs_what_was_saved(rng):
    p = problem(rng, 2, 3, 4, 5, dtype=np.float32)
    h, none = np.empty((2, 3, 5), np.float32), None
    with pytest.raises(TypeError, match="saved must be a NumPy array, got None"):
        _core.Sequence().forward(p["x"], p["kernel"], none, h, none, none, keep_for_backward=True, is_restored=True)
