"""A character model as plain arrays: its states along a text, and the 8-bit weights that a page holds.

Every product is a call of `functional.lstm` at full precision. Refuses to hold a vocabulary and to judge what it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import functional, reference
from lstmfast._checks import Array
from lstmfast.cells import Cell, check_features
from lstmfast.functional import Output
from lstmfast.models import CharLM

Integers = npt.NDArray[np.int8]

FEATURES = frozenset(
    {"projection_size", "peepholes", "cell_clip", "coupled_gates", "learn_initial_state"}
    | {"recurrent_dropout", "weight_dropout"}  # which are for training alone
)
"""Features of a cell that a page supports: see `cells.check_features`."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One LSTM: input_kernel [I, 4*H], recurrent_kernel [P, 4*H], bias [4*H]; peepholes [3, H], projection [H, P].

    initial_h [P] and initial_c [H]: where the initial state is learnt.
    """

    input_kernel: Array
    recurrent_kernel: Array
    bias: Array
    peepholes: Array | None = None
    projection: Array | None = None
    initial_h: Array | None = None
    initial_c: Array | None = None

    @property
    def hidden_size(self) -> int:
        """Number of cells H."""
        return len(self.bias) // 4

    def run(self, x: Array, h0: Array | None = None, c0: Array | None = None, *, cell: Cell, **options: Any) -> Output:
        """`functional.lstm` with these weights: x [T, B, I] or ids [T, B]; options are those of that function."""
        kernel = np.concatenate([self.input_kernel, self.recurrent_kernel])
        return functional.lstm(
            x, kernel, self.bias, h0, c0, forget_bias=cell.forget_bias, cell_clip=cell.cell_clip,
            coupled_gates=cell.coupled_gates, peepholes=self.peepholes, projection=self.projection,
            initial_h=self.initial_h, initial_c=self.initial_c, matmul_precision="highest", **options,
        )


@dataclass(frozen=True, eq=False)
class Network:
    """A character model: table [V, E] or None for one-hot symbols; layers; output_kernel [P, V], output_bias [V]."""

    table: Array | None
    layers: tuple[Layer, ...]
    output_kernel: Array
    output_bias: Array
    cell: Cell

    @classmethod
    def of(cls, model: CharLM) -> Network:
        """The weights of a model, as views. Raises ValueError for a cell that pages do not compute."""
        check_features(model.cell.features, FEATURES, "by a report, whose page computes the cell itself")
        layers = tuple(
            Layer(cell.kernel[: cell.input_size], cell.kernel[cell.input_size :], cell.bias, cell.peepholes,
                  cell.projection, cell.initial_h, cell.initial_c)
            for cell in model.lstm.cells
        )
        table = None if model.embedding is None else model.embedding.table
        return cls(table, layers, model.projection.kernel, model.projection.bias, model.cell)

    def read(self, ids: npt.NDArray[Any]) -> Trace:
        """Read ids [T] from the initial state."""
        x: Array = ids[:, None].astype(np.int32) if self.table is None else self.table[ids][:, None]
        steps = []
        for layer in self.layers:
            out = layer.run(x, cell=self.cell, return_cells=True, return_gates=True)
            x = out.h
            steps.append(out)
        return Trace(
            self.logits(x[:, 0]), tuple(out.h[:, 0] for out in steps), tuple(_given(out.cells)[:, 0] for out in steps),
            tuple(_given(out.gates)[:, 0] for out in steps),
        )

    def logits(self, h: Array) -> Array:
        """Logits [..., V] from outputs of the top layer [..., P]."""
        return np.asarray(h @ self.output_kernel + self.output_bias)

    def without(self, layer: int, cell: int) -> Network:
        """This network with a cell held at zero: whatever reads its output has a weight of zero for it."""
        layers = list(self.layers)
        own = layers[layer]
        if own.projection is not None:
            layers[layer] = replace(own, projection=_without_row(own.projection, cell))
            return replace(self, layers=tuple(layers))
        layers[layer] = replace(own, recurrent_kernel=_without_row(own.recurrent_kernel, cell))
        if layer + 1 == len(layers):
            return replace(self, layers=tuple(layers), output_kernel=_without_row(self.output_kernel, cell))
        above = layers[layer + 1]
        layers[layer + 1] = replace(above, input_kernel=_without_row(above.input_kernel, cell))
        return replace(self, layers=tuple(layers))

    def map(self, change: Callable[[str, Array], Array]) -> Network:
        """This network with every kernel, table and projection replaced by change(name, values)."""

        def changed(layer: Layer) -> Layer:
            projection = layer.projection
            return replace(
                layer,
                input_kernel=change("input_kernel", layer.input_kernel),
                recurrent_kernel=change("recurrent_kernel", layer.recurrent_kernel),
                projection=None if projection is None else change("projection", projection),
            )

        table = None if self.table is None else change("table", self.table)
        return replace(
            self, table=table, layers=tuple(map(changed, self.layers)),
            output_kernel=change("output_kernel", self.output_kernel),
        )


@dataclass(frozen=True, eq=False)
class Trace:
    """What a network did at each of T steps: logits [T, V]; for each layer h [T, P], c [T, H] and gates [T, 4, H]."""

    logits: Array
    h: tuple[Array, ...]
    c: tuple[Array, ...]
    gates: tuple[Array, ...]

    def surprise(self, ids: npt.NDArray[Any]) -> Array:
        """Bits [T-1] of each of ids [T] but the first, given those before it."""
        losses, _ = reference.softmax_cross_entropy(self.logits[:-1].astype(np.float64), ids[1:])
        return np.asarray(losses / np.log(2))


def quantized(values: Array, axis: int = 0) -> tuple[Integers, Array]:
    """8-bit integers and the scales that bring them back: values ~ integers * scales, with one scale for each column
    (axis 0) or row (axis 1), its largest magnitude / 127."""
    scales = np.abs(values).max(axis=axis, keepdims=True, initial=0.0).astype(np.float32) / np.float32(127)
    integers = np.rint(values / np.where(scales == 0, 1, scales)).astype(np.int8)
    return integers, scales


def rounded(network: Network) -> Network:
    """The network with the 8-bit weights of its page, as floats of its own type. Biases and peepholes stay."""

    def change(name: str, values: Array) -> Array:
        integers, scales = quantized(values, axis_of_scales(name))
        return np.asarray(integers * scales, values.dtype)

    return network.map(change)


def axis_of_scales(name: str) -> int:
    """A symbol's vector has a scale of its own: in the table, and in the output kernel, which may be its transpose."""
    return 1 if name == "table" else 0


def _without_row(values: Array, row: int) -> Array:
    changed = values.copy()
    changed[row] = 0
    return np.asarray(changed)


def _given(values: Array | None) -> Array:
    if values is None:
        raise RuntimeError("the engine returned no cells or gates")
    return values
