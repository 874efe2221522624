"""The vocabulary of one direction of one layer: its weights, the rest of a call, its results and gradients.

Refuses to compute: `kernels`, `on_cuda`, `operators` and `composite` do, each in its own way, on these.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from torch import Tensor

from lstmfast.cells import Cell


class Weights(NamedTuple):
    """The parameters of one direction of one layer, as torch names them; None where the module has none."""

    weight_ih: Tensor  # [4*hidden_size, input_size]
    weight_hh: Tensor  # [4*hidden_size, output_size]
    bias_ih: Tensor | None  # [4*hidden_size]
    bias_hh: Tensor | None
    weight_hr: Tensor | None  # [proj_size, hidden_size]


class Extras(NamedTuple):
    """The parameters that torch's LSTM lacks, of one direction of one layer; None where the module has none."""

    norm_gain: Tensor | None = None  # [2, 4*hidden_size], or [1, 4*hidden_size] to normalise gate by gate
    cell_gain: Tensor | None = None  # [hidden_size]
    cell_shift: Tensor | None = None
    initial_h: Tensor | None = None  # [output_size]
    initial_c: Tensor | None = None  # [hidden_size]


Noise: TypeAlias = tuple[int, int, int]  # seed, number of the layer and direction, time step of the first of x


class Variant(NamedTuple):
    """How one direction of one layer differs from torch's LSTM. noise: None in inference, and for cells without any."""

    cell: Cell
    extras: Extras = Extras()
    noise: Noise | None = None


class CallOptions(NamedTuple):
    """What else a call is told. Arrays as `lstmfast.lstm` takes them, checked."""

    lengths: Tensor | None = None  # [batch], int64
    resets: Tensor | None = None  # [time_steps, batch], bool
    reverse: bool = False
    matmul_precision: str = "highest"


class Result(NamedTuple):
    """What a call returns: h [T, B, P]; h_n [B, P]; c_n [B, H]; cells [T, B, H] or None.

    With `keep_layer_axis` states have torch's leading axis: [1, B, P], [1, B, H].
    """

    h: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor | None


class Wanted(NamedTuple):
    """Which gradients somebody asked for."""

    x: bool
    h0: bool
    c0: bool
    weights: bool


class Gradients(NamedTuple):
    """Gradients of x, h0, c0 and the weights, each in memory of its own; None where not wanted."""

    x: Tensor | None
    h0: Tensor | None
    c0: Tensor | None
    weights: Weights | None
    extras: Extras | None = None
