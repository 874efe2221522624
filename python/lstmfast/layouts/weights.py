"""The weights of a stack of LSTMs as one object, through which every conversion between layouts passes.

Gates are in our order (see `gates`); a kernel has the input's rows above the state's. Biases stay as the source had
them, one or two, with the forget bias added at run time kept separate: nothing is rounded on the way through.
Refuses to compute an LSTM (see `layers`) and to know another library's names and orders (see `table`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lstmfast import _checks as check
from lstmfast import gates
from lstmfast._checks import Array
from lstmfast.cells import Cell
from lstmfast.layers import LSTM

_FORGET = gates.NAMES.index("forget")
OF_OPTIONS = ("norm_gain", "cell_gain", "cell_shift", "initial_h", "initial_c")  # arrays that options of a cell add
SETTINGS = (  # options that no array shows
    "recurrent_dropout", "recurrent_dropout_of", "recurrent_dropout_per_step", "zoneout", "weight_dropout",
    "layer_norm_epsilon", "layer_norm_carry",
)


@dataclass(frozen=True, eq=False)
class CellWeights:
    """The weights of one layer in one direction.

    Shapes: kernel [input_size + output_size, 4*hidden_size]; bias and recurrent_bias [4*hidden_size]; peepholes
    [3, hidden_size], rows i, f, o; projection [hidden_size, output_size], without which output_size is hidden_size.
    norm_gain [2, 4*hidden_size] (of the products of x and of h) or [1, 4*hidden_size] (gate by gate), cell_gain,
    cell_shift [hidden_size]; initial_h [output_size], initial_c [hidden_size].
    The forget gate's pre-activation gets bias + recurrent_bias + forget_bias, the others' bias + recurrent_bias.
    Raises ValueError naming the array whose shape is wrong, TypeError for dtypes that differ.
    """

    kernel: Array
    bias: Array
    forget_bias: float = 0.0
    peepholes: Array | None = None
    projection: Array | None = None
    recurrent_bias: Array | None = None
    norm_gain: Array | None = None
    cell_gain: Array | None = None
    cell_shift: Array | None = None
    initial_h: Array | None = None
    initial_c: Array | None = None

    def __post_init__(self) -> None:
        check.array("kernel", self.kernel, ("input_size + output_size", "4*hidden_size"))
        rows, columns = self.kernel.shape
        if columns == 0 or columns % gates.COUNT:
            raise ValueError(f"kernel must have 4*hidden_size columns, got {columns}, which 4 does not divide")
        hidden_size = columns // gates.COUNT
        wanted: dict[str, tuple[int | str, ...]] = {
            "bias": (columns,), "recurrent_bias": (columns,), "peepholes": (3, hidden_size),
            "projection": (hidden_size, "output_size"), "norm_gain": ("1 or 2", columns),
            "cell_gain": (hidden_size,), "cell_shift": (hidden_size,), "initial_h": (self.output_size,),
            "initial_c": (hidden_size,),
        }
        for name, shape in wanted.items():
            values = getattr(self, name)
            if values is not None or name == "bias":
                check.array(name, values, shape, dtype=self.kernel.dtype, like="kernel")
        for together in (OF_OPTIONS[:3], OF_OPTIONS[3:]):
            if len({getattr(self, name) is None for name in together}) > 1:
                raise ValueError(f"{', '.join(together)} must be given together, or none of them")
        if self.norm_gain is not None and len(self.norm_gain) not in (1, 2):
            raise ValueError(f"norm_gain must have 1 or 2 rows, got {len(self.norm_gain)}")
        if rows <= self.output_size:
            raise ValueError(
                f"kernel must have input_size + {self.output_size} rows with input_size at least 1, got {rows}"
            )
        object.__setattr__(self, "forget_bias", check.finite("forget_bias", self.forget_bias))

    @property
    def hidden_size(self) -> int:
        """Units: a quarter of the kernel's columns."""
        return int(self.kernel.shape[1]) // gates.COUNT

    @property
    def output_size(self) -> int:
        """Numbers in h: the projection's columns, or hidden_size without one."""
        return self.hidden_size if self.projection is None else int(self.projection.shape[1])

    @property
    def input_size(self) -> int:
        """Numbers in x: the kernel's rows less those of h."""
        return int(self.kernel.shape[0]) - self.output_size

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.kernel.dtype

    def separable_forget_bias(self) -> float | None:
        """The forget bias that is kept separate from `bias`; None if the second bias holds anything else."""
        second = self.recurrent_bias
        if second is None:
            return self.forget_bias
        value = float(gates.split(second)[_FORGET][0])
        alone = self.forget_bias == 0.0 and math.isfinite(value) and same_bits(second, self.forget_bias_alone(value))
        return value if alone else None

    def forget_bias_alone(self, value: float) -> Array:
        """A bias that is `value` at the forget gate and zero elsewhere."""
        bias = np.zeros_like(self.bias)
        gates.split(bias)[_FORGET][...] = value
        return bias

    def with_one_bias(self, forget_bias: float) -> CellWeights:
        """The cell with one bias, and `forget_bias` added at run time.

        If the cell already keeps this forget bias separate, `bias` stays the same array; otherwise it is a rounded sum.
        """
        separable, kind = self.separable_forget_bias(), self.dtype.type
        bias = self.bias
        if separable is None or kind(separable) != kind(forget_bias):
            bias = bias.copy() if self.recurrent_bias is None else bias + self.recurrent_bias
            gates.split(bias)[_FORGET][...] += kind(self.forget_bias - forget_bias)
        return replace(self, bias=bias, recurrent_bias=None, forget_bias=forget_bias)


@dataclass(frozen=True, eq=False)
class LSTMWeights:
    """All weights of a stack: `layers[k]` is (forward,) or (forward, reverse), each a `CellWeights`.

    Layer k > 0 reads the outputs of the one below, forward first. All cells have the same hidden_size, output_size and
    dtype, and all or none have peepholes and a projection. cell_clip and coupled_gates as in `LSTM`. assumptions:
    sentences stating what was assumed when these were read. The other options are those of `Cell` that no array shows.
    Raises ValueError naming the layer that does not fit.
    """

    layers: tuple[tuple[CellWeights, ...], ...]
    cell_clip: float | None = None
    coupled_gates: bool = False
    assumptions: tuple[str, ...] = ()
    recurrent_dropout: float = 0.0
    recurrent_dropout_of: Literal["h", "g"] = "h"
    recurrent_dropout_per_step: bool = False
    zoneout: tuple[float, float] | None = None
    weight_dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    layer_norm_carry: bool = False

    def __post_init__(self) -> None:
        layers = tuple(tuple(layer) for layer in self.layers)
        object.__setattr__(self, "layers", layers)
        if not layers or len(layers[0]) not in (1, 2):
            raise ValueError(f"layers must hold at least one layer of one or two directions, got {layers!r:.60}")
        first = layers[0][0]
        for k, layer in enumerate(layers):
            if len(layer) != len(layers[0]):
                raise ValueError(f"layer {k} must have {len(layers[0])} directions like layer 0, got {len(layer)}")
            for cell in layer:
                self._check_cell(k, cell, first)

    def _check_cell(self, k: int, cell: CellWeights, first: CellWeights) -> None:
        input_size = len(self.layers[0]) * first.output_size if k else first.input_size
        wanted = {
            "hidden_size": first.hidden_size, "output_size": first.output_size, "input_size": input_size,
            "dtype": first.dtype,
        }
        for name, value in wanted.items():
            if (given := getattr(cell, name)) != value:
                raise ValueError(f"layer {k} must have {name} {value} to fit this stack, got {given}")
        for name in ("peepholes", "projection", "norm_gain", "initial_h"):
            if (getattr(cell, name) is None) != (getattr(first, name) is None):
                raise ValueError(f"layer {k} must have {name} if and only if the other cells of its stack do")
        if cell.norm_gain is not None and first.norm_gain is not None and len(cell.norm_gain) != len(first.norm_gain):
            raise ValueError(
                f"layer {k} must have norm_gain of {len(first.norm_gain)} rows like the other cells of its stack, got "
                f"{len(cell.norm_gain)}"
            )

    @property
    def cells(self) -> tuple[CellWeights, ...]:
        """Every cell, in the order of an LSTM's cells and states: layer 0 forward, layer 0 reverse, layer 1 ..."""
        return tuple(cell for layer in self.layers for cell in layer)

    @property
    def num_layers(self) -> int:
        """Layers of the stack."""
        return len(self.layers)

    @property
    def bidirectional(self) -> bool:
        """Whether every layer has a reverse direction."""
        return len(self.layers[0]) == 2

    @property
    def input_size(self) -> int:
        """Numbers in x."""
        return self.layers[0][0].input_size

    @property
    def hidden_size(self) -> int:
        """Units of every cell."""
        return self.layers[0][0].hidden_size

    @property
    def output_size(self) -> int:
        """Numbers in one direction's h."""
        return self.layers[0][0].output_size

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.layers[0][0].dtype

    @property
    def has_peepholes(self) -> bool:
        """Whether the gates see the cell state."""
        return self.layers[0][0].peepholes is not None

    @property
    def has_projection(self) -> bool:
        """Whether h is projected."""
        return self.layers[0][0].projection is not None

    @property
    def layer_norm(self) -> Literal["products", "gates"] | None:
        """What is normalised, as in `Cell`: "products", "gates", or None."""
        gain = self.layers[0][0].norm_gain
        return None if gain is None else "products" if len(gain) == 2 else "gates"

    @property
    def has_initial_state(self) -> bool:
        """Whether the initial states are learnt."""
        return self.layers[0][0].initial_h is not None

    @classmethod
    def from_layer(cls, layer: LSTM) -> LSTMWeights:
        """The weights of a layer as they are now, copied."""
        if not isinstance(layer, LSTM):
            raise TypeError(f"layer must be an lstmfast.LSTM, got {type(layer).__name__}")
        cells = [
            CellWeights(
                forget_bias=layer.forget_bias,
                **{name: np.array(values) for name, values in cell.parameters.items()},
            )
            for cell in layer.cells
        ]
        return cls(
            in_layers(cells, layer.num_directions),
            cell_clip=layer.cell_clip,
            coupled_gates=layer.coupled_gates,
            **{name: getattr(layer.cell, name) for name in SETTINGS},
        )

    def to_layer(self, **options: Any) -> LSTM:
        """A layer with these weights, copied. options: batch_first, dropout, rng of `LSTM`.

        A layer has one bias per cell and one forget_bias for all. Weights with more are summed, which rounds;
        `layouts.to_arrays(weights, "lstmfast").assumptions` lists what would be summed.
        """
        forget_bias = common_forget_bias(self.cells)
        cell = Cell(
            forget_bias, self.output_size if self.has_projection else None, self.has_peepholes, self.cell_clip,
            self.coupled_gates, layer_norm=self.layer_norm, learn_initial_state=self.has_initial_state,
            **{name: getattr(self, name) for name in SETTINGS},
        )
        layer = LSTM(
            self.input_size, self.hidden_size, num_layers=self.num_layers, bidirectional=self.bidirectional,
            cell=cell, dtype=self.dtype, **options,
        )
        for weights, its in zip(self.cells, layer.cells, strict=True):
            one = weights.with_one_bias(forget_bias)
            for name, values in its.parameters.items():
                values[...] = getattr(one, name)
        return layer


def common_forget_bias(cells: Sequence[CellWeights]) -> float:
    """The forget bias that all of these cells keep separate from their biases, 0.0 if they do not agree on one."""
    separable = {cell.separable_forget_bias() for cell in cells}
    alone = separable.pop()
    return 0.0 if separable or alone is None else alone


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays agree in dtype, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def in_layers(cells: Sequence[CellWeights], directions: int) -> tuple[tuple[CellWeights, ...], ...]:
    """Group cells in the order of `LSTMWeights.cells` into its `layers`."""
    return tuple(tuple(cells[first : first + directions]) for first in range(0, len(cells), directions))
