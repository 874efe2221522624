"""What the gates of an LSTM did over time, in numbers: how often they were closed or open, how long cells remember.

NumPy arrays in, NumPy arrays out; `viz` draws them. The gates are those that `lstm(..., return_gates=True)` returns,
or any other library's, activated. Refuses to run an LSTM and to draw.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import gates as order
from lstmfast._checks import Array

FloatArray = npt.NDArray[np.float64]

SIGMOID_GATES = ("input", "forget", "output")  # between 0 and 1; the candidate g is a tanh and is never closed or open
_SIGMOIDS = [order.NAMES.index(name) for name in SIGMOID_GATES]
_ROUNDING = 1e-3  # by which an approximated sigmoid, e.g. of int8 weights in another library, may leave 0 to 1


class Saturation(NamedTuple):
    """Shares of all steps, from 0 to 1, at which a gate is nearly closed and nearly open.

    Both [3, hidden_size]; rows as in SIGMOID_GATES: input, forget, output.
    """

    closed: FloatArray
    open: FloatArray


def gate_saturation(
    gates: npt.NDArray[np.floating[Any]], *, lengths: npt.ArrayLike | None = None, low: float = 0.1, high: float = 0.9
) -> Saturation:
    """For each gate of each unit: the share of steps at which it is below `low`, and that at which it is above `high`.

    Shapes: gates [T, B, 4, H], activated, in order i, f, g, o, or [T, 4, H] of one sequence; lengths [B]: steps from
    lengths[b] on are not counted. The candidate g is a tanh and is left out.
    Raises TypeError unless gates are a float32 or float64 array; ValueError for another shape, gates outside 0 to 1, no
    steps, or unless 0 <= low <= high <= 1.
    Source: Karpathy, Johnson & Li 2015, "Visualizing and Understanding Recurrent Networks".

    >>> gates = np.zeros((10, 4, 1)); gates[:8, 1] = 0.95  # the forget gate is open at 8 of 10 steps
    >>> gate_saturation(gates).open.tolist()
    [[0.0], [0.8], [0.0]]
    """
    low, high = check.finite("low", low, 0.0), check.finite("high", high)
    if not low <= high <= 1:
        raise ValueError(f"low and high must be in order and at most 1, got {low:g} and {high:g}")
    seen = _steps("gates", check.sequence("gates", gates, (order.COUNT, "hidden_size"))[:, :, _SIGMOIDS], lengths)
    return Saturation(np.mean(seen < low, axis=0), np.mean(seen > high, axis=0))


def forget_half_life(f: npt.NDArray[np.floating[Any]], *, lengths: npt.ArrayLike | None = None) -> FloatArray:
    """The half-life of each unit's cell state, in steps: ln 0.5 / (the mean of ln f over all steps and sequences).

    Every step multiplies what the cell holds by f, so after that many steps at the geometric mean of f half of it is
    left. inf if f is 1 at every step; 0 if it is 0 at any.
    Shapes: f [T, B, H], the activated forget gate, e.g. gates[:, :, 1], or [T, H] of one sequence; lengths [B]: steps
    from lengths[b] on are not counted. Returns [H].
    Raises TypeError unless f is a float32 or float64 array; ValueError for another shape, f outside 0 to 1, no steps.

    >>> forget_half_life(np.full((10, 1), 0.5)).tolist()
    [1.0]
    """
    seen = _steps("f", check.sequence("f", f, ("hidden_size",)), lengths)
    with np.errstate(divide="ignore"):
        rate = np.mean(np.log(np.clip(seen, 0, 1), dtype=np.float64), axis=0)
        return np.asarray(math.log(0.5) / np.minimum(rate, -0.0))


def _steps(name: str, gates: Array, lengths: npt.ArrayLike | None) -> Array:
    """Steps within the lengths: [T, B, ...] as [steps, ...]. Raises ValueError for no step and for no sigmoids."""
    time_steps, batch = gates.shape[:2]
    ends = check.lengths(lengths, time_steps, batch)
    within = np.ones((time_steps, batch), bool) if ends is None else np.arange(time_steps)[:, None] < ends
    seen: Array = gates[within]
    if not len(seen):
        raise ValueError(
            f"{name} must have at least one step within lengths, got {time_steps} steps of {batch} sequences"
        )
    wrong = ~((seen >= -_ROUNDING) & (seen <= 1 + _ROUNDING))  # NaN too
    if wrong.any():
        raise ValueError(f"{name} must be activated sigmoids, from 0 to 1, got {float(seen[wrong][0]):g}")
    return seen
