"""Causes: what a prediction loses without a cell, and which earlier symbols it hangs on.

Refuses to choose the cells and positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import functional, reference
from lstmfast._checks import Array
from lstmfast.report.network import Network, Trace

Place = tuple[int, int]
"""A layer and a cell in it."""


def knock_out(network: Network, ids: npt.NDArray[Any], cells: Iterable[Place]) -> dict[Place, float]:
    """Mean bits per symbol of ids [T] after the first with each (layer, cell) held at zero, one at a time."""
    return {
        (layer, cell): float(network.without(layer, cell).read(ids).surprise(ids).mean()) for layer, cell in cells
    }


def connectivity(network: Network, trace: Trace, ids: npt.NDArray[Any], position: int, window: int = 100) -> Array:
    """How much the prediction of ids[position] hangs on each symbol before it: [min(window, position)], oldest first.

    The norm of the gradient of its log-probability in nats by the vector that stands for the earlier symbol: one-hot,
    or its row of the embedding. The state before the window is a constant. trace: `network.read(ids)`.
    Source: Madsen 2019, "Visualizing memorization in RNNs".
    """
    first = position - min(window, position)
    read = ids[first:position]
    table = np.eye(len(network.output_bias), dtype=trace.logits.dtype) if network.table is None else network.table
    x, steps = table[read], []
    values = np.ascontiguousarray(x[:, None])
    for number, layer in enumerate(network.layers):
        h0, c0 = (np.ascontiguousarray(states[number][first - 1][None]) if first else None
                  for states in (trace.h, trace.c))
        out = layer.run(values, h0, c0, cell=network.cell, return_cells=True, return_gates=True, keep_for_backward=True)
        steps.append(out)
        values = out.h
    _, d_logits = reference.softmax_cross_entropy(trace.logits[position - 1][None], ids[position : position + 1])
    d_h = np.zeros_like(values)
    d_h[-1] = d_logits @ network.output_kernel.T
    for out in reversed(steps):
        d_h = _given(functional.lstm_backward(out, d_h).x)
    return np.asarray(np.linalg.norm(d_h[:, 0], axis=-1))


def reach(strengths: Array) -> float:
    """The mean distance of what a prediction hangs on, in symbols, each weighted by its strength; 0 for none."""
    total = float(strengths.sum())
    return float(strengths @ np.arange(len(strengths), 0, -1)) / total if total > 0 else 0.0


def _given(gradient: Array | None) -> Array:
    if gradient is None:
        raise RuntimeError("the layer returned no gradient by its input")
    return gradient
