"""Unrolling over time, under TensorFlow 1's names: a cell over whole sequences, in one direction or both.

Static and dynamic differ only in shape here, a list of steps or one array: either is one kernel call per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast._checks import Array
from lstmfast.compat.tf1 import tape
from lstmfast.compat.tf1.base import How, Nested, Pair, RNNCell, Run, check_cell, check_state, record
from lstmfast.compat.tf1.graph import VariableScope, variable_scope

Scope = str | VariableScope | None


def dynamic_rnn(
    cell: RNNCell,
    inputs: npt.NDArray[Any],
    sequence_length: npt.ArrayLike | None = None,
    initial_state: Nested = None,
    dtype: npt.DTypeLike | None = None,
    parallel_iterations: int | None = None,
    swap_memory: bool = False,
    time_major: bool = False,
    scope: Scope = None,
) -> tuple[Array, Nested]:
    """Run a cell over sequences in one array: return (outputs, final state).

    inputs [batch, time, input_size], or with time_major [time, batch, input_size]; outputs have output_size last.
    sequence_length [batch], from 0 to time: outputs past a row's end are zero, its final state is that of its own last
    step. initial_state: in the structure of cell.state_size; None: zeros. dtype: None or the inputs' dtype.
    scope: of the variables, by default "rnn". parallel_iterations and swap_memory are ignored.
    Raises ValueError naming the argument whose shape or values are wrong; TypeError for other types.
    """
    cell = check_cell("cell", cell)
    x = _in_time("inputs", inputs, time_major, dtype)
    with variable_scope(scope or "rnn"):
        return _dynamic(cell, inputs, x, initial_state, sequence_length, time_major)


def bidirectional_dynamic_rnn(
    cell_fw: RNNCell,
    cell_bw: RNNCell,
    inputs: npt.NDArray[Any],
    sequence_length: npt.ArrayLike | None = None,
    initial_state_fw: Nested = None,
    initial_state_bw: Nested = None,
    dtype: npt.DTypeLike | None = None,
    parallel_iterations: int | None = None,
    swap_memory: bool = False,
    time_major: bool = False,
    scope: Scope = None,
) -> tuple[tuple[Array, Array], tuple[Nested, Nested]]:
    """Run two cells over sequences, one of them from each row's own last step to its first.

    Returns ((outputs_fw, outputs_bw), (state_fw, state_bw)); outputs stay at the step they belong to. Arguments as in
    `dynamic_rnn`; the default scope is "bidirectional_rnn", with fw and bw in it.
    """
    _check_two(cell_fw, cell_bw)
    x = _in_time("inputs", inputs, time_major, dtype)
    with variable_scope(scope or "bidirectional_rnn"):
        with variable_scope("fw"):
            outputs_fw, state_fw = _dynamic(
                cell_fw, inputs, x, initial_state_fw, sequence_length, time_major, "initial_state_fw"
            )
        with variable_scope("bw"):
            outputs_bw, state_bw = _dynamic(
                cell_bw, inputs, x, initial_state_bw, sequence_length, time_major, "initial_state_bw", reverse=True
            )
    return (outputs_fw, outputs_bw), (state_fw, state_bw)


def static_rnn(
    cell: RNNCell,
    inputs: Sequence[npt.NDArray[Any]],
    initial_state: Nested = None,
    dtype: npt.DTypeLike | None = None,
    sequence_length: npt.ArrayLike | None = None,
    scope: Scope = None,
) -> tuple[list[Array], Nested]:
    """Run a cell over a list of steps, each [batch, input_size]: return (list of outputs, final state).

    Otherwise as `dynamic_rnn`.
    """
    cell = check_cell("cell", cell)
    x = _stacked(inputs, dtype)
    with variable_scope(scope or "rnn"):
        run, state = _run(cell, x, initial_state, sequence_length, "initial_state", reverse=False)
    outputs = list(run.outputs)
    _record_static(cell, run, inputs, initial_state, outputs, state)
    return outputs, state


def static_bidirectional_rnn(
    cell_fw: RNNCell,
    cell_bw: RNNCell,
    inputs: Sequence[npt.NDArray[Any]],
    initial_state_fw: Nested = None,
    initial_state_bw: Nested = None,
    dtype: npt.DTypeLike | None = None,
    sequence_length: npt.ArrayLike | None = None,
    scope: Scope = None,
) -> tuple[list[Array], Nested, Nested]:
    """Run two cells over a list of steps, one of them from each row's own last step to its first.

    Returns (list of outputs [batch, output_size_fw + output_size_bw], state_fw, state_bw). Otherwise as
    `bidirectional_dynamic_rnn`.
    """
    _check_two(cell_fw, cell_bw)
    x = _stacked(inputs, dtype)
    with variable_scope(scope or "bidirectional_rnn"):
        with variable_scope("fw"):
            fw, state_fw = _run(cell_fw, x, initial_state_fw, sequence_length, "initial_state_fw", reverse=False)
        with variable_scope("bw"):
            bw, state_bw = _run(cell_bw, x, initial_state_bw, sequence_length, "initial_state_bw", reverse=True)
    outputs = list(np.concatenate([fw.outputs, bw.outputs], axis=2))
    _record_static(cell_fw, fw, inputs, initial_state_fw, outputs, state_fw, slice(None, cell_fw.output_size))
    _record_static(cell_bw, bw, inputs, initial_state_bw, outputs, state_bw, slice(cell_fw.output_size, None))
    return outputs, state_fw, state_bw


def _dynamic(
    cell: RNNCell,
    inputs: Array,
    x: Array,
    initial_state: Nested,
    sequence_length: npt.ArrayLike | None,
    time_major: bool,
    name: str = "initial_state",
    *,
    reverse: bool = False,
) -> tuple[Array, Nested]:
    """One direction over one array: `inputs` as the user gave it, x the same with time first."""

    def turned(array: Array) -> Array:
        return array if time_major else array.swapaxes(0, 1)

    run, state = _run(cell, x, initial_state, sequence_length, name, reverse=reverse)
    outputs = turned(run.outputs)
    if run.backward is not None:
        record(
            cell, run, [inputs], initial_state, [outputs], state,
            join_outputs=lambda d: None if d[0] is None else turned(d[0]),
            add_inputs=lambda d_x, add: add(inputs, turned(d_x)),
        )
    return outputs, state


def _record_static(
    cell: RNNCell,
    run: Run,
    inputs: Sequence[Array],
    initial_state: Nested,
    outputs: list[Array],
    state: Nested,
    columns: slice = slice(None),
) -> None:
    """Record one direction over a list of steps on the tapes; `columns` is its part of the outputs."""

    def join(gradients: list[Array | None]) -> Array | None:
        if all(gradient is None for gradient in gradients):
            return None
        d = np.zeros_like(run.outputs)
        for t, gradient in enumerate(gradients):
            if gradient is not None:
                d[t] = gradient[:, columns]
        return d

    def add_inputs(d_x: Array, add: tape.Add) -> None:
        for array, gradient in zip(inputs, d_x, strict=True):
            add(array, gradient)

    if run.backward is not None:
        record(cell, run, list(inputs), initial_state, outputs, state, join_outputs=join, add_inputs=add_inputs)


def _run(
    cell: RNNCell,
    x: Array,
    initial_state: Nested,
    sequence_length: npt.ArrayLike | None,
    name: str,
    *,
    reverse: bool,
) -> tuple[Run, Nested]:
    """Run a cell over x [time, batch, input_size] in the open scope; return the run and the final state."""
    time_steps, batch, input_size = x.shape
    how = How(_lengths(sequence_length, time_steps, batch), reverse, tape.recording())
    cell.build_in_scope(input_size, x.dtype, None)
    pairs: list[Pair] = [(None, None)] * len(cell.leaves)
    if initial_state is not None:
        pairs = cell.split(iter(check_state(name, initial_state, cell.state_size, batch, x.dtype)))
    cell.draw_masks()
    run = cell.run(x, pairs, how)
    return run, cell.pack(run.pairs)


def _lengths(value: npt.ArrayLike | None, time_steps: int, batch: int) -> npt.NDArray[np.int64] | None:
    try:
        return check.lengths(value, time_steps, batch)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("lengths", "sequence_length", 1)) from None


def _in_time(name: str, inputs: Any, time_major: bool, dtype: npt.DTypeLike | None) -> Array:
    """Return inputs, checked, with time first."""
    axes = ("time", "batch") if time_major else ("batch", "time")
    x = check.array(name, inputs, (*axes, "input_size"), f"({', '.join(axes)}, input_size)")
    _check_dtype(x, dtype)
    return x if time_major else x.swapaxes(0, 1)


def _stacked(inputs: Any, dtype: npt.DTypeLike | None) -> Array:
    """Return a list of steps as one array [time, batch, input_size]."""
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(
            "inputs must be a list of arrays [batch, input_size], one for each step, "
            f"got {type(inputs).__name__}; dynamic_rnn takes one array of all steps"
        )
    if not inputs:
        raise ValueError("inputs must hold at least one step, got none")
    first = check.array("inputs[0]", inputs[0], ("batch", "input_size"))
    _check_dtype(first, dtype)
    for t, step in enumerate(inputs[1:], 1):
        check.array(f"inputs[{t}]", step, first.shape, "the shape of inputs[0]", dtype=first.dtype, like="inputs[0]")
    return np.stack(inputs)


def _check_dtype(x: Array, dtype: npt.DTypeLike | None) -> None:
    if dtype is not None and check.float_dtype(dtype) != x.dtype:
        raise TypeError(f"dtype must be {x.dtype} like inputs, got {np.dtype(dtype)}; nothing is converted silently")


def _check_two(cell_fw: Any, cell_bw: Any) -> None:
    """Raise unless these are two cells that share no weights."""
    check_cell("cell_fw", cell_fw)
    check_cell("cell_bw", cell_bw)
    if any(leaf is other for leaf in cell_fw.leaves for other in cell_bw.leaves):
        raise ValueError(
            "cell_fw and cell_bw must be different objects, got the same: each direction needs weights of its own "
            "(TensorFlow said 'Attempt to reuse RNNCell', or silently shared the weights); make two cells"
        )
