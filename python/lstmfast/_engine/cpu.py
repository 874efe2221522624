"""The CPU engine: `CPU` for layers and models, and one layer in one direction as functions of its weights.

The functions check and allocate, and the extension computes. `functional` calls them and documents their arguments; so
do comparisons of another engine with this one. Refuses to hold weights and to choose an engine.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lstmfast import _checks as check
from lstmfast import _core, cells, gates, losses
from lstmfast._checks import Array
from lstmfast._engine.results import Gradients, Output
from lstmfast.cells import NORMALIZED, Cell
from lstmfast.initializers import Shape


class _CpuEngine:
    """`engine.Engine` for NumPy arrays: the extension computes."""

    place = "on the CPU"
    features = frozenset(cells.OPTIONS)
    projected_classes: float = 2048  # with fewer, the logits of a step fit in a cache
    sequence = _core.Sequence
    linear = staticmethod(_core.linear)
    linear_backward = staticmethod(_core.linear_backward)
    gather = staticmethod(_core.embedding_gather)
    scatter = staticmethod(_core.embedding_scatter)

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """A new array."""
        return np.empty(shape, dtype)

    def to_engine(self, values: Array) -> Array:
        """The array itself."""
        return values

    to_host = to_engine

    def multiply(self, x: Array, mask: Array, out: Array) -> None:
        """out = x * mask."""
        np.multiply(x, mask, out=out)

    def cross_entropy(self, logits: Array, targets: Array) -> float:
        """As `losses.softmax_cross_entropy`; logits become the derivative."""
        return losses.mean_cross_entropy_in_place(logits, targets, np.empty(len(targets), logits.dtype))

    def projected_cross_entropy(
        self,
        x: Array,
        kernel: Array,
        bias: Array,
        targets: Array,
        derivatives: tuple[Array, Array, Array] | None,
        *,
        transposed: bool,
    ) -> float:
        """As `Engine.projected_cross_entropy`."""
        losses_of_rows = np.empty(len(targets), x.dtype)
        d_x, d_kernel, d_bias = derivatives or (None, None, None)
        _core.projected_cross_entropy(
            x, kernel, bias, targets, losses_of_rows, d_x, d_kernel, d_bias, transposed, 1.0 / len(targets)
        )
        return float(losses_of_rows.sum(dtype=np.float64)) / len(targets)


CPU = _CpuEngine()


class Weights(NamedTuple):
    """The weights of one layer in one direction, checked, and their sizes."""

    kernel: Array
    bias: Array
    peepholes: Array | None
    projection: Array | None
    hidden_size: int
    output_size: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.kernel.dtype


class _StepWorkspace(threading.local):
    """The workspace of `lstm_step`, kept for calls with the same cell, one per thread."""

    _cell: Cell | None = None

    def sequence(self, cell: Cell) -> _core.Sequence:
        if self._cell is not cell:
            self._sequence, self._cell = _core.Sequence(False, cell), cell
        return self._sequence


_step_workspace = _StepWorkspace()


def lstm_step(
    x: Any,
    h: Any,
    c: Any,
    kernel: Any,
    bias: Any,
    *,
    cell: Cell,
    peepholes: Any,
    projection: Any,
    norms: tuple[Any, Any, Any] | None = None,
) -> tuple[Array, Array]:
    """As `functional.lstm_step`."""
    weights = check_weights(kernel, bias, peepholes, projection, x, h, axes=1)
    x = _input(x, weights, ("batch",))
    kernel, bias, peepholes, projection, hidden_size, output_size = weights
    batch, dtype = len(x), kernel.dtype
    h, c = _states(("h", h, output_size), ("c", c, hidden_size), batch=batch, dtype=dtype)
    h_next, output = np.empty((2, batch, output_size), dtype)
    c_next = np.empty((batch, hidden_size), dtype)
    # By position, as in `LSTM.forward_into`.
    sequence = _step_workspace.sequence(cell)
    if cell.layer_norm is None:
        sequence.load(kernel, bias, peepholes, projection, False, True)
    else:
        norms = _norms(norms, cell, weights)
        sequence.load(kernel, bias, peepholes, projection, serves_one_call=True, norms=norms)
    sequence.forward(x[None], output[None], h_next, c_next, h, c)
    return h_next, c_next


def lstm(
    x: Any,
    kernel: Any,
    bias: Any,
    h0: Any = None,
    c0: Any = None,
    *,
    cell: Cell,
    peepholes: Any = None,
    projection: Any = None,
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
    return_cells: bool = False,
    return_gates: bool = False,
    keep_for_backward: bool = False,
    matmul_precision: str = "highest",
    norms: tuple[Any, Any, Any] | None = None,
    initial: tuple[Any, Any] | None = None,
    noise: tuple[int, int, int] | None = None,
) -> Output:
    """As `functional.lstm`. norms: norm_gain, cell_gain, cell_shift; initial: initial_h, initial_c.

    noise: seed, number of the layer and number of the first time step, None for inference.
    """
    weights = check_weights(kernel, bias, peepholes, projection, x, h0, axes=2)
    x = _input(x, weights, ("time_steps", "batch"))
    (time_steps, batch), dtype = x.shape[:2], weights.dtype
    hidden_size, output_size = weights.hidden_size, weights.output_size
    h0, c0 = _states(("h0", h0, output_size), ("c0", c0, hidden_size), batch=batch, dtype=dtype)
    h = np.empty((time_steps, batch, output_size), dtype)
    h_n = np.empty((batch, output_size), dtype)
    c_n = np.empty((batch, hidden_size), dtype)
    cells = np.empty((time_steps, batch, hidden_size), dtype) if return_cells else None
    activations = np.empty((time_steps, batch, gates.COUNT, hidden_size), dtype) if return_gates else None
    sequence = _core.Sequence(bool(reverse), cell)
    norms, initial = _norms(norms, cell, weights), _initial(initial, weights)
    sequence.load(
        weights.kernel, weights.bias, weights.peepholes, weights.projection, serves_one_call=True, norms=norms,
        initial=initial,
    )
    sequence.forward(
        x, h, h_n, c_n, h0, c0, check.lengths(lengths, time_steps, batch),
        check.resets(resets, (time_steps, batch), "(time_steps, batch)"),
        cells, activations, bool(keep_for_backward), matmul_precision, noise,
    )
    saved = None
    if keep_for_backward:
        saved = _SavedSequence(sequence, None if check.is_ids(x) else x.shape, h.shape, weights, norms, initial)
    return Output(h, h_n, c_n, cells, activations, saved, noise[0] if noise else None)


@dataclass(frozen=True, eq=False)
class _SavedSequence:
    """A sequence after its forward pass, with the data of its backward pass."""

    sequence: _core.Sequence
    x_shape: tuple[int, ...] | None  # None for token ids
    h_shape: tuple[int, ...]
    weights: Weights
    norms: tuple[Array, Array, Array] | None
    initial: tuple[Array, Array] | None

    def backward(self, d_h: Any, d_h_n: Any, d_c_n: Any) -> Gradients:
        """As `functional.lstm_backward`."""
        weights, dtype, batch = self.weights, self.weights.dtype, self.h_shape[1]
        if d_h is not None:
            meaning = "(time_steps, batch, hidden_size)"
            d_h = check.array("d_h", d_h, self.h_shape, meaning, dtype=dtype, like="h")
        d_h_n, d_c_n = _states(
            ("d_h_n", d_h_n, weights.output_size), ("d_c_n", d_c_n, weights.hidden_size),
            batch=batch, dtype=dtype, like="h",
        )
        d_norms = d_initial = None
        if self.norms is not None:
            gain, cell_gain, cell_shift = self.norms
            d_norms = np.empty_like(gain), np.empty_like(cell_gain), np.empty_like(cell_shift)
        if self.initial is not None:
            d_initial = np.empty_like(self.initial[0]), np.empty_like(self.initial[1])
        gradients = Gradients(
            x=None if self.x_shape is None else np.empty(self.x_shape, dtype),
            kernel=np.empty(weights.kernel.shape, dtype),
            bias=np.empty(weights.bias.shape, dtype),
            h0=np.empty((batch, weights.output_size), dtype),
            c0=np.empty((batch, weights.hidden_size), dtype),
            peepholes=None if weights.peepholes is None else np.empty(weights.peepholes.shape, dtype),
            projection=None if weights.projection is None else np.empty(weights.projection.shape, dtype),
            **dict(zip(("norm_gain", "cell_gain", "cell_shift"), d_norms or (), strict=False)),
            **dict(zip(("initial_h", "initial_c"), d_initial or (), strict=False)),
        )
        self.sequence.backward(
            d_h=d_h, d_h_n=d_h_n, d_c_n=d_c_n,
            d_x=gradients.x, d_kernel=gradients.kernel, d_bias=gradients.bias, d_h0=gradients.h0, d_c0=gradients.c0,
            d_peepholes=gradients.peepholes, d_projection=gradients.projection, d_norms=d_norms, d_initial=d_initial,
        )
        return gradients


def check_weights(kernel: Any, bias: Any, peepholes: Any, projection: Any, x: Any, h: Any, *, axes: int) -> Weights:
    """Check the weights of a call with this x and h. Dense x has `axes` axes before its features.

    If the kernel fits x, other arguments are checked against it; otherwise the error names the kernel, and the wanted
    shape follows from the hidden size of the state or the bias. A projection gives both sizes.
    """
    check.ndarray("x", x, "float32 or float64, or of integer ids")
    first = "vocabulary_size" if check.is_ids(x) else "input_size"
    second = "hidden_size" if projection is None else "projection_size"
    kernel = check.array("kernel", kernel, (f"{first} + {second}", "4*hidden_size"))
    dtype = kernel.dtype
    rows, columns = kernel.shape
    hidden_size = output_size = columns // gates.COUNT
    if projection is not None:
        wanted = ("hidden_size", "projection_size")
        projection = check.array("projection", projection, wanted, dtype=dtype, like="kernel")
        hidden_size, output_size = projection.shape
    dense = not check.is_ids(x) and x.ndim == axes + 1
    input_size = x.shape[-1] if dense else max(rows - output_size, 0)
    if columns == 0 or columns != gates.COUNT * hidden_size or rows != input_size + output_size:
        if projection is None:
            if np.ndim(h) == 2 and np.shape(h)[1] > 0:
                hidden_size = np.shape(h)[1]
            elif np.ndim(bias) == 1 and np.size(bias) >= gates.COUNT:
                hidden_size = np.size(bias) // gates.COUNT
            hidden_size = output_size = max(hidden_size, 1)
        check.has_shape(
            "kernel", kernel, (input_size + output_size, gates.COUNT * hidden_size),
            f"({first} + {second}, 4*hidden_size)",
        )
    bias = check.array("bias", bias, (columns,), "(4*hidden_size,)", dtype=dtype, like="kernel")
    if peepholes is not None:
        wanted_peepholes = (3, hidden_size)
        peepholes = np.ascontiguousarray(
            check.array("peepholes", peepholes, wanted_peepholes, "(i f o, hidden_size)", dtype=dtype, like="kernel")
        )
    return Weights(np.ascontiguousarray(kernel), bias, peepholes, projection, hidden_size, output_size)


def _norms(norms: Any, cell: Cell, weights: Weights) -> tuple[Array, Array, Array] | None:
    """Return the arrays of a layer normalisation, checked; None stays None."""
    if norms is None or cell.layer_norm is None:
        return None
    products, hidden_size = NORMALIZED[cell.layer_norm], weights.hidden_size
    shapes = (products, gates.COUNT * hidden_size), (hidden_size,), (hidden_size,)
    meanings = f"({products}, 4*hidden_size)", "(hidden_size,)", "(hidden_size,)"
    names = "norm_gain", "cell_gain", "cell_shift"
    gain, cell_gain, cell_shift = (
        np.ascontiguousarray(check.array(name, value, shape, meaning, dtype=weights.dtype, like="kernel"))
        for name, value, shape, meaning in zip(names, norms, shapes, meanings, strict=True)
    )
    return gain, cell_gain, cell_shift


def _initial(initial: Any, weights: Weights) -> tuple[Array, Array] | None:
    """Return the arrays of a learnt initial state, checked; None stays None."""
    if initial is None:
        return None
    h, c = initial
    h = check.array("initial_h", h, (weights.output_size,), "(hidden_size,)", dtype=weights.dtype, like="kernel")
    c = check.array("initial_c", c, (weights.hidden_size,), "(hidden_size,)", dtype=weights.dtype, like="kernel")
    return h, c


def _input(x: Any, weights: Weights, axes: tuple[str, ...]) -> Array:
    """Return x as int32 ids [*axes] or as floats [*axes, input_size]."""
    input_size = len(weights.kernel) - weights.output_size
    if check.is_ids(x):
        return check.ids("x", x, input_size, axes)
    return check.array(
        "x", x, (*axes, input_size), f"({', '.join(axes)}, input_size)", dtype=weights.dtype, like="kernel"
    )


def _states(*named: tuple[str, Any, int], batch: int, dtype: np.dtype[Any], like: str = "kernel") -> list[Any]:
    """Return the state arrays [batch, size], checked; None stays None."""
    return [
        None
        if value is None
        else check.array(name, value, (batch, size), "(batch, hidden_size)", dtype=dtype, like=like)
        for name, value, size in named
    ]
