"""One sequence, forward and backward, through the extension and through the reference, with the same interface.

Arguments are the dict of `oracles.problem`, an `upstream` dict of d_h, d_h_n, d_c_n, and the options of `lstm`. Results
are dicts with the same names. The extension writes into outputs inside larger arrays, to detect writes out of bounds.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.testing import assert_allclose

from lstmfast import _core, reference
from lstmfast.cells import Cell
from support.tolerances import gradients, states

Array = npt.NDArray[Any]

SENTINEL = -777.25
MARGIN = 3  # odd, so data after it is not aligned to a vector


class Outputs:
    """Arrays to write into, each inside a larger one full of sentinels."""

    def __init__(self) -> None:
        self._whole: dict[str, tuple[Array, Array]] = {}

    def contiguous(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """A C-contiguous output with sentinels before and after it."""
        size = int(np.prod(shape))
        whole = np.full(size + 2 * MARGIN, SENTINEL).astype(dtype)
        view = whole[MARGIN : MARGIN + size].reshape(shape)
        self._whole[name] = whole, view
        return view

    def strided(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An output with sentinels around it on every axis, between its rows too."""
        whole = np.full([size + 2 * MARGIN for size in shape], SENTINEL).astype(dtype)
        view = whole[inner(shape)]
        self._whole[name] = whole, view
        return view

    def spilled(self) -> list[str]:
        """Names of the outputs with writes out of bounds. Fills the outputs with sentinels."""
        for _, view in self._whole.values():
            view[...] = np.asarray(SENTINEL).astype(view.dtype)
        return [name for name, (whole, view) in self._whole.items() if np.ptp(whole) != 0]


def inner(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Slices that cut MARGIN off both ends of every axis."""
    return tuple(slice(MARGIN, MARGIN + size) for size in shape)


def strided(array: Array) -> Array:
    """The same values, misaligned and with gaps between the rows."""
    whole = np.zeros([size + 2 * MARGIN for size in array.shape], array.dtype)
    whole[inner(array.shape)] = array
    return whole[inner(array.shape)]


def upstream_for(rng: np.random.Generator, p: dict[str, Array]) -> dict[str, Array]:
    """Random gradients of the outputs of a problem."""
    state, dtype = p["h0"].shape, p["kernel"].dtype
    shapes = {"d_h": (p["x"].shape[0], *state), "d_h_n": state, "d_c_n": p["c0"].shape}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def run_reference(p: dict[str, Array], upstream: dict[str, Array], **options: Any) -> dict[str, Array]:
    """All outputs and gradients by the reference in float64."""
    wide = {name: value.astype(np.float64) if name != "x" or p["x"].ndim == 3 else value for name, value in p.items()}
    wide_upstream = {name: value.astype(np.float64) for name, value in upstream.items()}
    with np.errstate(invalid="ignore"):  # some tests put infinities in
        out = reference.lstm(**wide, **options)
        d = reference.lstm_backward(out, **wide_upstream)
    results = {name: getattr(out, name) for name in ("h", "h_n", "c_n", "cells", "gates")}
    return results | {f"d_{name}": value for name, value in vars(d).items() if value is not None}


CELL = vars(Cell(forget_bias=0.0))
LOADED = ("kernel", "bias", "peepholes", "projection", "frozen", "serves_one_call")


def sequence_of(*, reverse: bool = False, **cell: Any) -> _core.Sequence:
    """A sequence of the plain cell, except for the given options."""
    return _core.Sequence(reverse, SimpleNamespace(**(CELL | cell)))


def load_and_forward(sequence: _core.Sequence, **arguments: Any) -> None:
    """Pass each of the two calls its own arguments."""
    sequence.load(**{name: value for name, value in arguments.items() if name in LOADED})
    sequence.forward(**{name: value for name, value in arguments.items() if name not in LOADED})


def run_core(
    p: dict[str, Array],
    upstream: dict[str, Array],
    *,
    sequence: _core.Sequence | None = None,
    outputs: Outputs | None = None,
    **options: Any,
) -> dict[str, Array]:
    """All outputs and gradients by the extension; options of the cell for a new sequence only."""
    sequence, options = _sequence_and_call(sequence, options)
    outputs = outputs or Outputs()
    results = run_core_forward(p, sequence=sequence, outputs=outputs, keep_for_backward=True, **options)
    d = {f"d_{name}": outputs.contiguous(f"d_{name}", p[name].shape, p["kernel"].dtype) for name in ("kernel", "bias")}
    d |= {
        f"d_{name}": outputs.strided(f"d_{name}", p[name].shape, p["kernel"].dtype)
        for name in ("x", "h0", "c0", "projection")
        if name in p and p[name].dtype != np.int32
    }
    if "peepholes" in p:
        d["d_peepholes"] = outputs.contiguous("d_peepholes", p["peepholes"].shape, p["kernel"].dtype)
    sequence.backward(**upstream, **d)
    return results | d


def run_core_forward(
    p: dict[str, Array],
    *,
    sequence: _core.Sequence | None = None,
    outputs: Outputs | None = None,
    keep_for_backward: bool = False,
    **options: Any,
) -> dict[str, Array]:
    """All outputs by the extension; options as of `run_core`."""
    sequence, options = _sequence_and_call(sequence, options)
    outputs = outputs or Outputs()
    (time_steps, batch), output_size, hidden_size = p["x"].shape[:2], p["h0"].shape[1], p["c0"].shape[1]
    dtype = p["kernel"].dtype
    results = {
        "h": outputs.strided("h", (time_steps, batch, output_size), dtype),
        "h_n": outputs.strided("h_n", (batch, output_size), dtype),
        "c_n": outputs.strided("c_n", (batch, hidden_size), dtype),
        "cells": outputs.strided("cells", (time_steps, batch, hidden_size), dtype),
        "gates": outputs.contiguous("gates", (time_steps, batch, 4, hidden_size), dtype),
    }
    load_and_forward(sequence, **p, **results, keep_for_backward=keep_for_backward, **options)
    return results


def _sequence_and_call(
    sequence: _core.Sequence | None, options: dict[str, Any]
) -> tuple[_core.Sequence, dict[str, Any]]:
    of_sequence = {name: value for name, value in options.items() if name in CELL or name == "reverse"}
    assert sequence is None or not of_sequence, "a sequence has its cell and direction already"
    return sequence or sequence_of(**of_sequence), {k: v for k, v in options.items() if k not in of_sequence}


def assert_agree(actual: dict[str, Array], expected: dict[str, Array], p: dict[str, Array]) -> None:
    """Assert that all results of a problem agree within the rounding of their sums."""
    assert actual.keys() == expected.keys()
    dtype, rows = p["kernel"].dtype, p["kernel"].shape[0]
    added_up = p["x"].shape[0] * p["x"].shape[1]
    for name, value in actual.items():
        tolerance = gradients(dtype, added_up + rows) if name.startswith("d_") else states(dtype, rows)
        assert_allclose(value, expected[name], **tolerance, err_msg=name)
