"""Sequences step by step, for cells that change the state between steps and so cannot be one kernel call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lstmfast._checks import Array
from lstmfast.compat.tf1 import tape
from lstmfast.compat.tf1.base import How, Pair, Run


def by_steps(step: Callable[[Array, list[Pair], How], Run], x: Array, pairs: list[Pair], how: How) -> Run:
    """Run `step` over each step of x [time, batch, input_size]; arguments are checked.

    At each step, lengths are 1 for rows that continue and 0 for rows that have ended, which keep their state.
    """
    if how.reverse:
        return _reversed(step, x, pairs, how)
    if not len(x):
        return _no_steps(step, x, pairs, how)
    runs = []
    for t in range(len(x)):
        lengths = None if how.lengths is None else (how.lengths > t).astype(np.int64)
        run = step(x[t : t + 1], pairs, replace(how, lengths=lengths))
        runs.append(run)
        pairs = run.pairs
    outputs = np.concatenate([run.outputs for run in runs])

    def backward(d_outputs: Array | None, d_pairs: list[Pair], add: tape.Add) -> tuple[Array, list[Pair]]:
        d_x = np.empty_like(x)
        for t in reversed(range(len(runs))):
            run = runs[t]
            assert run.backward is not None
            d_x[t : t + 1], d_pairs = run.backward(None if d_outputs is None else d_outputs[t : t + 1], d_pairs, add)
        return d_x, d_pairs

    return Run(outputs, pairs, backward if how.keep else None)


def _no_steps(step: Callable[[Array, list[Pair], How], Run], x: Array, pairs: list[Pair], how: How) -> Run:
    """A run of no steps: one step that no row takes, without its output."""
    nobody = np.zeros(x.shape[1], np.int64)
    run = step(np.zeros((1, *x.shape[1:]), x.dtype), pairs, replace(how, lengths=nobody))

    def backward(d_outputs: Array | None, d_pairs: list[Pair], add: tape.Add) -> tuple[Array, list[Pair]]:
        assert run.backward is not None
        d_x, d_initial = run.backward(None, d_pairs, add)
        return d_x[:0], d_initial

    return Run(run.outputs[:0], run.pairs, backward if how.keep else None)


def _reversed(step: Callable[[Array, list[Pair], How], Run], x: Array, pairs: list[Pair], how: How) -> Run:
    """Each row from its own last step to its first: reversed, run forward, and reversed back."""
    turn = _turn(len(x), x.shape[1], how.lengths)
    run = by_steps(step, turn(x), pairs, replace(how, reverse=False))

    def backward(d_outputs: Array | None, d_pairs: list[Pair], add: tape.Add) -> tuple[Array, list[Pair]]:
        assert run.backward is not None
        d_x, d_initial = run.backward(None if d_outputs is None else turn(d_outputs), d_pairs, add)
        return turn(d_x), d_initial

    return Run(turn(run.outputs), run.pairs, backward if how.keep else None)


def _turn(time_steps: int, batch: int, lengths: npt.NDArray[np.int64] | None) -> Callable[[Array], Array]:
    """A function that reverses the first lengths[b] steps of each row b; applied twice it does nothing."""
    steps = np.arange(time_steps)[:, None]
    ends = np.full(batch, time_steps) if lengths is None else lengths
    sources = np.where(steps < ends, ends - 1 - steps, steps)
    return lambda array: array[sources, np.arange(batch)]
