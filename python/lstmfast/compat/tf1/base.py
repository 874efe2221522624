"""The common base of TensorFlow 1's cells: structured states, variables created at the first input, single steps.

A cell is one or several LSTMs (`leaves`), each with a state (c, h); the structure that a user sees, tuples or
concatenated arrays, is split at entry and rebuilt at exit. Refuses to know any particular cell.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast._checks import Array
from lstmfast.compat.tf1 import tape
from lstmfast.compat.tf1.graph import Reuse, Variable, VariableScope, variable_scope

Nested: TypeAlias = Any
"""A state as TensorFlow has it: an LSTMStateTuple, one array for c and h, or a tuple of those for a stack."""

Pair: TypeAlias = "tuple[Array | None, Array | None]"
"""(c, h) of one LSTM, or derivatives by them. None stands for zeros."""


class LSTMStateTuple(NamedTuple):
    """The state of an LSTM: c [batch, num_units], and h [batch, output_size], which is its last output."""

    c: Any
    h: Any


@dataclass(frozen=True)
class How:
    """How a sequence is read: lengths [batch] or None, backwards, and whether derivatives will be needed."""

    lengths: npt.NDArray[np.int64] | None = None
    reverse: bool = False
    keep: bool = False


@dataclass(eq=False)
class Run:
    """Results of a sequence: outputs [time, batch, output_size], the final (c, h) of each LSTM, and the backward pass.

    backward(d_outputs or None, d_pairs, add) returns (d_inputs, d_pairs of the initial state) and adds the variables'.
    """

    outputs: Array
    pairs: list[Pair]
    backward: Callable[[Array | None, list[Pair], tape.Add], tuple[Array, list[Pair]]] | None = None


class RNNCell(ABC):
    """The base class of all cells: their own scope, sizes, and single steps."""

    def __init__(self, *, name: str | None = None, reuse: Reuse = None, dtype: npt.DTypeLike | None = None) -> None:
        self.name = name or re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__).lower()
        self.dtype = None if dtype is None else check.float_dtype(dtype)
        self._reuse = reuse

    @property
    @abstractmethod
    def state_size(self) -> Any:
        """Sizes of the state's arrays, in its structure."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """Size of one output."""

    @property
    @abstractmethod
    def trainable_variables(self) -> list[Variable]:
        """The cell's variables, none before its first input."""

    @property
    def trainable_weights(self) -> list[Variable]:
        """The same as trainable_variables."""
        return self.trainable_variables

    @property
    def variables(self) -> list[Variable]:
        """The same as trainable_variables."""
        return self.trainable_variables

    @property
    @abstractmethod
    def leaves(self) -> list[RNNCell]:
        """The LSTMs that this cell is made of, in the order of their states."""

    def zero_state(self, batch_size: int, dtype: npt.DTypeLike = np.float32) -> Nested:
        """Return a state of zeros in the structure of `state_size`, each [batch_size, size]."""
        batch, float_dtype = check.whole_number("batch_size", batch_size, 0), check.float_dtype(dtype)
        return map_sizes(lambda size: np.zeros((batch, size), float_dtype), self.state_size)

    def build(self, input_size: int, dtype: npt.DTypeLike = np.float32) -> None:
        """Make the variables for inputs of this size, as the first call would in the scope that is open."""
        self.build_in_scope(check.whole_number("input_size", input_size), check.float_dtype(dtype), None)

    def __call__(
        self, inputs: npt.NDArray[Any], state: Nested, scope: str | VariableScope | None = None
    ) -> tuple[Array, Nested]:
        """Advance by one step: return (output [batch, output_size], new state).

        inputs [batch, input_size]; state as `zero_state` returns it. Raises ValueError naming the array whose shape is
        wrong; TypeError for another dtype.
        """
        inputs = check.array("inputs", inputs, ("batch", "input_size"))
        self.build_in_scope(inputs.shape[1], inputs.dtype, scope)
        pairs = self.split(iter(check_state("state", state, self.state_size, len(inputs), inputs.dtype)))
        run = self.run(inputs[None], pairs, How(keep=tape.recording()))
        output, new_state = run.outputs[0], self.pack(run.pairs)
        if run.backward is not None:
            record(
                self, run, [inputs], state, [output], new_state,
                join_outputs=lambda d: None if d[0] is None else d[0][None],
                add_inputs=lambda d_x, add: add(inputs, d_x[0]),
            )
        return output, new_state

    @abstractmethod
    def run(self, x: Array, pairs: list[Pair], how: How) -> Run:
        """Run over x [time, batch, input_size], time first, from the states of the `leaves`; all arguments checked."""

    @abstractmethod
    def made_for(self, input_size: int, dtype: np.dtype[Any]) -> bool:
        """Tell whether the variables are there. Raises ValueError or TypeError if they are for other inputs."""

    @abstractmethod
    def build_inside(self, input_size: int, dtype: np.dtype[Any]) -> None:
        """Make the variables in the scope that is open."""

    def build_in_scope(self, input_size: int, dtype: np.dtype[Any], scope: str | VariableScope | None) -> None:
        """Make the variables, once, in the cell's own scope, named `scope` or after the cell."""
        if self.dtype is not None and dtype != self.dtype:
            raise TypeError(f"inputs must be {self.dtype} like {self.name}, got {dtype}")
        if not self.made_for(input_size, dtype):
            name = scope or (self.name if self._reuse else None)
            with variable_scope(name, self.name, reuse=self._reuse):
                self.build_inside(input_size, dtype)

    @abstractmethod
    def draw_masks(self) -> None:
        """Draw new masks for dropout that is the same at every step, if there is any."""

    @abstractmethod
    def split(self, arrays: Iterator[Array | None]) -> list[Pair]:
        """Return the (c, h) of the leaves, taking the arrays of a state (or derivatives by them) from an iterator."""

    @abstractmethod
    def pack(self, pairs: list[Pair]) -> Nested:
        """Return a state in this cell's structure from the (c, h) of the leaves."""


def check_cell(name: str, value: Any) -> RNNCell:
    """Return `value` if it is a cell of this module."""
    if not isinstance(value, RNNCell):
        raise TypeError(f"{name} must be a cell of lstmfast.compat.tf1, such as BasicLSTMCell, got {value!r}")
    return value


def record(
    cell: RNNCell,
    run: Run,
    inputs: list[Array],
    state: Nested,
    outputs: list[Array],
    new_state: Nested,
    *,
    join_outputs: Callable[[list[Array | None]], Array | None],
    add_inputs: Callable[[Array, tape.Add], None],
) -> None:
    """Put one run on the tapes.

    inputs, state, outputs, new_state: the caller's arguments and results. join_outputs turns derivatives by `outputs`
    into that by run.outputs; add_inputs adds the derivative by the run's x to that by `inputs`.
    """
    state_arrays, new_arrays = flat(state), flat(new_state)

    def backward(gradients: list[Array | None], add: tape.Add) -> None:
        d_outputs, d_new = gradients[: len(outputs)], gradients[len(outputs) :]
        assert run.backward is not None
        d_x, d_pairs = run.backward(join_outputs(d_outputs), cell.split(iter(d_new)), add)
        add_inputs(d_x, add)
        if state is not None:
            for array, gradient in zip(state_arrays, flat(cell.pack(d_pairs)), strict=True):
                add(array, gradient)

    tape.record(tape.Call([*inputs, *state_arrays], [*outputs, *new_arrays], cell.trainable_variables, backward))


def flat(state: Nested) -> list[Array]:
    """Return the arrays of a state, an empty list for None."""
    if state is None:
        return []
    return [array for part in state for array in flat(part)] if isinstance(state, (tuple, list)) else [state]


def check_state(name: str, state: Nested, sizes: Any, batch: int, dtype: np.dtype[Any]) -> list[Array]:
    """Return the arrays of a state for a cell of this `state_size`, checked."""
    if not isinstance(sizes, tuple):
        return [check.array(name, state, (batch, sizes), "(batch, state_size)", dtype=dtype, like="inputs")]
    if not isinstance(state, (tuple, list)) or len(state) != len(sizes):
        one_lstm = isinstance(sizes, LSTMStateTuple)
        wanted = "an LSTMStateTuple(c, h)" if one_lstm else f"a tuple of {len(sizes)} states, one for each cell"
        given = f"{len(state)} parts" if isinstance(state, (tuple, list)) else type(state).__name__
        raise TypeError(f"{name} must be {wanted}, got {given}")
    names = (".c", ".h") if isinstance(sizes, LSTMStateTuple) else [f"[{k}]" for k in range(len(sizes))]
    return [
        array
        for part, value, size in zip(names, state, sizes, strict=True)
        for array in check_state(name + part, value, size, batch, dtype)
    ]


def map_sizes(function: Callable[[int], Any], sizes: Any) -> Any:
    """Return a structure like `sizes` with function(size) in place of every size."""
    if isinstance(sizes, LSTMStateTuple):
        return LSTMStateTuple(*map(function, sizes))
    return tuple(map_sizes(function, size) for size in sizes) if isinstance(sizes, tuple) else function(sizes)
