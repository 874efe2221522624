"""TensorFlow 1's `DropoutWrapper`: dropout around a cell, on its inputs, its outputs and its state.

With dropout of inputs and outputs a sequence is still one kernel call per layer. Dropout of the state changes what the
next step reads, so steps run one by one, which is slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast._checks import Array
from lstmfast.compat.tf1 import graph, tape
from lstmfast.compat.tf1.base import How, Nested, Pair, RNNCell, Run, check_cell
from lstmfast.compat.tf1.graph import Variable
from lstmfast.compat.tf1.steps import by_steps


class DropoutWrapper(RNNCell):
    """Dropout around a cell: each value is kept with a probability, and divided by it.

    input_keep_prob, output_keep_prob, state_keep_prob: in (0, 1]; also attributes, because there are no placeholders to
    feed: set them to 1.0 to evaluate. Only the h of a state is dropped, never c, unless they are one array.
    variational_recurrent: one mask [1, size] for all rows and steps of a call of `dynamic_rnn` and the like; a cell
    called step by step keeps its masks until `draw_masks`. seed: a number or a numpy.random.Generator; None draws from
    the graph's generator. input_size and dtype are ignored. Variables keep the wrapped cell's names.
    """

    def __init__(
        self,
        cell: RNNCell,
        input_keep_prob: float = 1.0,
        output_keep_prob: float = 1.0,
        state_keep_prob: float = 1.0,
        variational_recurrent: bool = False,
        input_size: Any = None,
        dtype: npt.DTypeLike | None = None,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(dtype=dtype)
        self.cell = check_cell("cell", cell)
        self.input_keep_prob = input_keep_prob
        self.output_keep_prob = output_keep_prob
        self.state_keep_prob = state_keep_prob
        self.variational_recurrent = bool(variational_recurrent)
        self._rng = None if seed is None else np.random.default_rng(seed)
        self._masks: dict[str, Array] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name.endswith("_keep_prob"):
            value = check.finite(name, value)
            if not 0.0 < value <= 1.0:
                raise ValueError(f"{name} must be in (0, 1], got {value:g}")
        super().__setattr__(name, value)

    @property
    def wrapped_cell(self) -> RNNCell:
        """The wrapped cell."""
        return self.cell

    @property
    def state_size(self) -> Any:
        """The wrapped cell's."""
        return self.cell.state_size

    @property
    def output_size(self) -> int:
        """The wrapped cell's."""
        return self.cell.output_size

    @property
    def trainable_variables(self) -> list[Variable]:
        """The wrapped cell's."""
        return self.cell.trainable_variables

    @property
    def leaves(self) -> list[RNNCell]:
        """The wrapped cell's."""
        return self.cell.leaves

    def draw_masks(self) -> None:
        """Make the next step draw new variational masks, in the wrapped cell too."""
        self._masks = {}
        self.cell.draw_masks()

    def made_for(self, input_size: int, dtype: np.dtype[Any]) -> bool:
        """As the wrapped cell."""
        return self.cell.made_for(input_size, dtype)

    def build_in_scope(self, input_size: int, dtype: np.dtype[Any], scope: Any) -> None:
        """As the wrapped cell: a wrapper has no scope of its own."""
        self.cell.build_in_scope(input_size, dtype, scope)

    def build_inside(self, input_size: int, dtype: np.dtype[Any]) -> None:
        """As the wrapped cell."""
        self.cell.build_inside(input_size, dtype)

    def split(self, arrays: Iterator[Array | None]) -> list[Pair]:
        """As the wrapped cell."""
        return self.cell.split(arrays)

    def pack(self, pairs: list[Pair]) -> Nested:
        """As the wrapped cell."""
        return self.cell.pack(pairs)

    def run(self, x: Array, pairs: list[Pair], how: How) -> Run:
        """Run the wrapped cell between two masks; step by step if its state is dropped."""
        mask_x = self._mask("input", self.input_keep_prob, x.shape, x.dtype)
        masked_x = x if mask_x is None else x * mask_x
        if self.state_keep_prob < 1.0:
            run = by_steps(self._step, masked_x, pairs, how)
        else:
            run = self.cell.run(masked_x, pairs, how)
        mask_h = self._mask("output", self.output_keep_prob, run.outputs.shape, x.dtype)
        outputs = run.outputs if mask_h is None else run.outputs * mask_h

        def backward(d_outputs: Array | None, d_pairs: list[Pair], add: tape.Add) -> tuple[Array, list[Pair]]:
            d = d_outputs if d_outputs is None or mask_h is None else d_outputs * mask_h
            assert run.backward is not None
            d_x, d_initial = run.backward(d, d_pairs, add)
            return d_x if mask_x is None else d_x * mask_x, d_initial

        return Run(outputs, run.pairs, backward if how.keep else None)

    def _step(self, x: Array, pairs: list[Pair], how: How) -> Run:
        """One step, then dropout of its state; rows that have ended keep theirs."""
        run = self.cell.run(x, pairs, how)
        masks = [
            (self._state_mask(f"c{k}", c, how) if drops_c else None, self._state_mask(f"h{k}", h, how))
            for k, ((c, h), drops_c) in enumerate(zip(run.pairs, self._drops_c(), strict=True))
        ]

        def backward(d_outputs: Array | None, d_pairs: list[Pair], add: tape.Add) -> tuple[Array, list[Pair]]:
            assert run.backward is not None
            return run.backward(d_outputs, _masked(d_pairs, masks), add)

        return replace(run, pairs=_masked(run.pairs, masks), backward=backward if how.keep else None)

    def _drops_c(self) -> list[bool]:
        """For each leaf, whether its c is dropped with its h, because they are one array."""
        return [not isinstance(leaf.state_size, tuple) for leaf in self.leaves]

    def _state_mask(self, name: str, array: Array | None, how: How) -> Array | None:
        assert array is not None
        mask = self._mask(name, self.state_keep_prob, array.shape, array.dtype)
        if mask is None or how.lengths is None:
            return mask
        return np.where(how.lengths[:, None] > 0, mask, mask.dtype.type(1))

    def _mask(self, name: str, keep_prob: float, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array | None:
        """Return factors 0 or 1 / keep_prob; None if everything is kept."""
        if keep_prob == 1.0:
            return None
        if not self.variational_recurrent:
            return self._draw(keep_prob, shape, dtype)
        if name not in self._masks:
            self._masks[name] = self._draw(keep_prob, (1, shape[-1]), dtype)
        return self._masks[name]

    def _draw(self, keep_prob: float, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        rng = self._rng or graph.get_default_graph().rng
        mask: Array = (rng.random(shape) < keep_prob).astype(dtype)
        mask /= dtype.type(keep_prob)
        return mask


def _masked(pairs: list[Pair], masks: list[Pair]) -> list[Pair]:
    """Multiply values by their masks; a None of either changes nothing."""

    def times(array: Array | None, mask: Array | None) -> Array | None:
        return array if array is None or mask is None else array * mask

    return [(times(pair[0], mask[0]), times(pair[1], mask[1])) for pair, mask in zip(pairs, masks, strict=True)]
