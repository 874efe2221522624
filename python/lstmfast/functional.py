"""The LSTM as functions: NumPy arrays in, NumPy arrays out. One layer, one direction, weights as arguments.

Checks and allocates; the extension computes. Arrays that lie on a GPU go to `cuda`. Refuses to hold weights (see
`layers`) and batch-major arrays (see `LSTM(batch_first=True)`). The equations are in `reference`, the order of the
gates in `gates`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import _core, runtime
from lstmfast._checks import Array


@dataclass(frozen=True, eq=False)
class Output:
    """What `lstm` returns: h [T, B, H]; h_n, c_n [B, H]; where asked for, cells [T, B, H] and gates [T, B, 4, H]."""

    h: Array
    h_n: Array
    c_n: Array
    cells: Array | None
    gates: Array | None
    _kept: _Kept | _KeptOnDevice | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # What `lstm_backward` needs lies in memory of the extension, and stays with the original.
        return type(self), (self.h, self.h_n, self.c_n, self.cells, self.gates)


@dataclass(frozen=True, eq=False)
class Gradients:
    """What `lstm_backward` returns: the derivative by each argument of `lstm`, shaped as it is.

    x is None for ids, peepholes and projection where there were none.
    """

    x: Array | None
    kernel: Array
    bias: Array
    h0: Array
    c0: Array
    peepholes: Array | None = None
    projection: Array | None = None


@dataclass(frozen=True, eq=False)
class _Kept:
    sequence: _core.Sequence
    x_shape: tuple[int, ...] | None  # None for token ids
    kernel_shape: tuple[int, int]
    variant: Variant


@dataclass(frozen=True, eq=False)
class Variant:
    """In what a cell departs from the plain one, checked: the arguments of `lstm` of these names."""

    peepholes: Array | None = None
    projection: Array | None = None
    cell_clip: float | None = None
    coupled_gates: bool = False

    @classmethod
    def check(
        cls,
        peepholes: Any,
        projection: Any,
        cell_clip: Any,
        coupled_gates: Any,
        *,
        hidden_size: int,
        dtype: np.dtype[Any],
    ) -> Variant:
        """Return these, in the form the extension takes. Raises ValueError and TypeError naming the one at fault."""
        if peepholes is None and projection is None and cell_clip is None and not coupled_gates:
            return PLAIN
        if peepholes is not None:
            peepholes = np.ascontiguousarray(
                check.array(
                    "peepholes", peepholes, (3, hidden_size), "(i f o, hidden_size)", dtype=dtype, like="kernel"
                )
            )
        if projection is not None:
            wanted = (hidden_size, "projection_size")
            projection = check.array("projection", projection, wanted, dtype=dtype, like="kernel")
            check.whole_number("projection_size", projection.shape[1])
        return cls(peepholes, projection, check.cell_clip(cell_clip), bool(coupled_gates))

    def __bool__(self) -> bool:
        return self is not PLAIN

    @property
    def arguments(self) -> tuple[Array | None, Array | None, float | None, bool]:
        """The arguments of `_core.Sequence.forward` that say so."""
        return self.peepholes, self.projection, self.cell_clip, self.coupled_gates


PLAIN = Variant()


class _KeptOnDevice(Protocol):
    """What a call on a GPU has kept: it brings its own backward."""

    def backward(self, d_h: Any, d_h_n: Any, d_c_n: Any) -> Gradients: ...


class _StepWorkspace(threading.local):
    """The workspace of `lstm_step`, kept from call to call, one in each thread."""

    def __init__(self) -> None:
        self.sequence = _core.Sequence()


_step_workspace = _StepWorkspace()


def lstm_step(
    x: npt.NDArray[Any],
    h: npt.NDArray[Any],
    c: npt.NDArray[Any],
    kernel: npt.NDArray[Any],
    bias: npt.NDArray[Any],
    *,
    forget_bias: float = 0.0,
    peepholes: npt.NDArray[Any] | None = None,
    projection: npt.NDArray[Any] | None = None,
    cell_clip: float | None = None,
    coupled_gates: bool = False,
) -> tuple[Array, Array]:
    """Advance an LSTM by one time step.

    Shapes: x [batch, input_size], or integer ids [batch] (see `lstm`); h, c [batch, hidden_size];
    kernel [input_size + hidden_size, 4*hidden_size]; bias [4*hidden_size]. Columns lie i, f, g, o (see `gates`).
    peepholes, projection, cell_clip, coupled_gates: see `lstm`.
    Returns (h_next, c_next), both new, [batch, hidden_size]. Many steps with the same weights are faster through
    `LSTM.stream`, which packs them once. Arrays on a CUDA device are taken as in `lstm`.
    Raises ValueError naming the argument whose shape or ids are wrong; TypeError if float32 and float64 are mixed.
    Source: Gers, Schmidhuber & Cummins 2000, eqs. 1-5; `reference.lstm_step` is the same in NumPy.
    """
    if not isinstance(x, np.ndarray) and check.is_on_device(x):
        out = lstm(
            x[None], kernel, bias, h, c, forget_bias=forget_bias, peepholes=peepholes, projection=projection,
            cell_clip=cell_clip, coupled_gates=coupled_gates,
        )  # fmt: skip
        return out.h_n, out.c_n
    kernel, bias, hidden_size, output_size = _weights(kernel, bias, x, h, projection, axes=1)
    variant = Variant.check(
        peepholes, projection, cell_clip, coupled_gates, hidden_size=hidden_size, dtype=kernel.dtype
    )
    x = _input(x, kernel, output_size, ("batch",))
    batch = len(x)
    h, c = _states(("h", h, output_size), ("c", c, hidden_size), batch=batch, dtype=kernel.dtype)
    h_next, output = np.empty((2, batch, output_size), kernel.dtype)
    c_next = np.empty((batch, hidden_size), kernel.dtype)
    # By position, as in `LSTM.forward_into`.
    _step_workspace.sequence.forward(
        x[None], kernel, bias, output[None], h_next, c_next, h, c, None, None, False,
        check.finite("forget_bias", forget_bias), None, None, False, "highest", False, *variant.arguments, True,
    )  # fmt: skip
    return h_next, c_next


def lstm(
    x: npt.NDArray[Any],
    kernel: npt.NDArray[Any],
    bias: npt.NDArray[Any],
    h0: npt.NDArray[Any] | None = None,
    c0: npt.NDArray[Any] | None = None,
    *,
    lengths: npt.ArrayLike | None = None,
    resets: npt.ArrayLike | None = None,
    reverse: bool = False,
    forget_bias: float = 0.0,
    return_cells: bool = False,
    return_gates: bool = False,
    keep_for_backward: bool = False,
    matmul_precision: str | None = None,
    peepholes: npt.NDArray[Any] | None = None,
    projection: npt.NDArray[Any] | None = None,
    cell_clip: float | None = None,
    coupled_gates: bool = False,
) -> Output:
    """Run an LSTM over whole sequences.

    Shapes: x [T, B, I], or integer ids [T, B], which stand for one-hot rows: kernel then has V + H rows and ids lie in
    0..V-1; kernel [I + H, 4*H]; bias [4*H], columns i, f, g, o; h0, c0 [B, H], zero if None. Time comes first.
    lengths [B], in any order and from 0 to T: row b ends after lengths[b] steps, its outputs past that are zero and its
    final state is that of its own last step. resets [T, B], bool: the state is zeroed before that step.
    reverse: each row is read from its own last step to its first; outputs stay at the step they belong to.
    Returns Output: h [T, B, H]; h_n, c_n [B, H]; with return_cells, cells [T, B, H]; with return_gates, the activated
    gates [T, B, 4, H] in order i, f, g, o. keep_for_backward keeps what `lstm_backward` needs, references to x, kernel
    and the output among it: do not write to them in between. matmul_precision: see `set_matmul_precision`.
    Variants of the cell, which go together in any combination:
    peepholes [3, H], rows i, f, o: the gates i and f also see the cell state before the step, o the one after it.
    projection [H, P]: h is (o * tanh(c)) @ projection. h0, h and h_n then end in P, and kernel is [I + P, 4*H].
    cell_clip: c is clipped to [-cell_clip, cell_clip] before anything sees it; no gradient passes where it was clipped.
    coupled_gates: f = 1 - i. The forget gate's columns, its bias and forget_bias are not read, their gradients are 0.
    Where x lies on a CUDA device (an array of torch or cupy), so must all float arrays, and so do the results: float32
    or bfloat16, with c, cells and gates in float32. Nobody waits for the device, and autograd sees nothing of it.
    Raises ValueError naming the argument whose shape or values are wrong; TypeError for other or mixed dtypes.
    Source: `reference.lstm` is the same in NumPy.
    """
    precision = runtime.resolve_matmul_precision(matmul_precision)
    if not isinstance(x, np.ndarray) and check.is_on_device(x):
        from lstmfast.cuda import _sequences

        if peepholes is not None or projection is not None or cell_clip is not None or coupled_gates:
            raise ValueError(
                "peepholes, projection, cell_clip and coupled_gates work on the CPU alone, got x on a device"
            )
        return _sequences.lstm(
            x, kernel, bias, h0, c0, lengths=lengths, resets=resets, reverse=reverse,
            forget_bias=check.finite("forget_bias", forget_bias), return_cells=return_cells, return_gates=return_gates,
            keep_for_backward=keep_for_backward, matmul_precision=precision,
        )  # fmt: skip
    kernel, bias, hidden_size, output_size = _weights(kernel, bias, x, h0, projection, axes=2)
    variant = Variant.check(
        peepholes, projection, cell_clip, coupled_gates, hidden_size=hidden_size, dtype=kernel.dtype
    )
    x = _input(x, kernel, output_size, ("time_steps", "batch"))
    time_steps, batch = x.shape[:2]
    h0, c0 = _states(("h0", h0, output_size), ("c0", c0, hidden_size), batch=batch, dtype=kernel.dtype)
    h = np.empty((time_steps, batch, output_size), kernel.dtype)
    h_n = np.empty((batch, output_size), kernel.dtype)
    c_n = np.empty((batch, hidden_size), kernel.dtype)
    cells = np.empty((time_steps, batch, hidden_size), kernel.dtype) if return_cells else None
    gates = np.empty((time_steps, batch, 4, hidden_size), kernel.dtype) if return_gates else None
    sequence = _core.Sequence()
    sequence.forward(
        x, kernel, bias, h0=h0, c0=c0,
        lengths=check.lengths(lengths, time_steps, batch),
        resets=check.resets(resets, (time_steps, batch), "(time_steps, batch)"),
        reverse=bool(reverse), forget_bias=check.finite("forget_bias", forget_bias),
        h=h, h_n=h_n, c_n=c_n, cells=cells, gates=gates, keep_for_backward=bool(keep_for_backward),
        matmul_precision=precision, peepholes=variant.peepholes, projection=variant.projection,
        cell_clip=variant.cell_clip, coupled_gates=variant.coupled_gates, weights_once=True,
    )  # fmt: skip
    x_shape = None if check.is_ids(x) else x.shape
    kept = _Kept(sequence, x_shape, kernel.shape, variant) if keep_for_backward else None
    return Output(h, h_n, c_n, cells, gates, kept)


def lstm_backward(
    out: Output,
    d_h: npt.NDArray[Any] | None = None,
    d_h_n: npt.NDArray[Any] | None = None,
    d_c_n: npt.NDArray[Any] | None = None,
) -> Gradients:
    """Carry the derivatives of a loss by the outputs of `lstm` back to its arguments.

    out: returned by lstm(..., keep_for_backward=True). d_h [T, B, H], d_h_n, d_c_n [B, H]; None stands for zeros.
    Returns Gradients: x [T, B, I] (None for ids), kernel, bias, h0, c0, and peepholes and projection where there were,
    each of its argument's shape. May be called again with other derivatives.
    Raises ValueError naming the argument at fault, TypeError for another dtype.
    Source: backpropagation through time, Werbos 1990; `reference.lstm_backward` is the same in NumPy.
    """
    if not isinstance(out, Output):
        raise TypeError(f"out must be what lstm returned, got {type(out).__name__}")
    if out._kept is None:
        raise ValueError("out must come from lstm(..., keep_for_backward=True), got one that kept nothing")
    if not isinstance(out._kept, _Kept):
        return out._kept.backward(d_h, d_h_n, d_c_n)
    kept, dtype = out._kept, out.h.dtype
    if d_h is not None:
        d_h = check.array("d_h", d_h, out.h.shape, "(time_steps, batch, hidden_size)", dtype=dtype, like="h")
    (batch, output_size), hidden_size = out.h_n.shape, out.c_n.shape[1]
    d_h_n, d_c_n = _states(
        ("d_h_n", d_h_n, output_size), ("d_c_n", d_c_n, hidden_size), batch=batch, dtype=dtype, like="h"
    )
    peepholes, projection = kept.variant.peepholes, kept.variant.projection
    gradients = Gradients(
        x=None if kept.x_shape is None else np.empty(kept.x_shape, dtype),
        kernel=np.empty(kept.kernel_shape, dtype),
        bias=np.empty(kept.kernel_shape[1], dtype),
        h0=np.empty_like(out.h_n, order="C"),
        c0=np.empty_like(out.c_n, order="C"),
        peepholes=None if peepholes is None else np.empty_like(peepholes, order="C"),
        projection=None if projection is None else np.empty_like(projection, order="C"),
    )
    kept.sequence.backward(
        d_h=d_h, d_h_n=d_h_n, d_c_n=d_c_n,
        d_x=gradients.x, d_kernel=gradients.kernel, d_bias=gradients.bias, d_h0=gradients.h0, d_c0=gradients.c0,
        d_peepholes=gradients.peepholes, d_projection=gradients.projection,
    )  # fmt: skip
    return gradients


def _weights(kernel: Any, bias: Any, x: Any, h: Any, projection: Any, *, axes: int) -> tuple[Array, Array, int, int]:
    """Return kernel and bias, C-contiguous, and the sizes of c and of h that they speak of.

    A kernel that fits x is believed and the others are judged by it; one that does not is at fault itself, and the
    error then tells its shape from the hidden size of the state or the bias. A projection is believed before all else.
    """
    check.ndarray("x", x, "float32 or float64, or of integer ids")
    first = "vocabulary_size" if check.is_ids(x) else "input_size"
    second = "hidden_size" if projection is None else "projection_size"
    kernel = check.array("kernel", kernel, (f"{first} + {second}", "4*hidden_size"))
    rows, columns = kernel.shape
    hidden_size = output_size = columns // 4
    if projection is not None:
        check.array("projection", projection, ("hidden_size", "projection_size"), dtype=kernel.dtype, like="kernel")
        hidden_size, output_size = projection.shape
    dense = not check.is_ids(x) and x.ndim == axes + 1
    input_size = x.shape[-1] if dense else max(rows - output_size, 0)
    if columns == 0 or columns != 4 * hidden_size or rows != input_size + output_size:
        if projection is None:
            if np.ndim(h) == 2 and np.shape(h)[1] > 0:
                hidden_size = np.shape(h)[1]
            elif np.ndim(bias) == 1 and np.size(bias) >= 4:
                hidden_size = np.size(bias) // 4
            hidden_size = output_size = max(hidden_size, 1)
        check.has_shape(
            "kernel", kernel, (input_size + output_size, 4 * hidden_size), f"({first} + {second}, 4*hidden_size)"
        )
    bias = check.array("bias", bias, (4 * hidden_size,), "(4*hidden_size,)", dtype=kernel.dtype, like="kernel")
    return np.ascontiguousarray(kernel), bias, hidden_size, output_size


def _input(x: Any, kernel: Array, output_size: int, axes: tuple[str, ...]) -> Array:
    """Return x as int32 ids [*axes] or as floats [*axes, input_size]."""
    input_size = len(kernel) - output_size
    if check.is_ids(x):
        return check.ids("x", x, input_size, axes)
    return check.array(
        "x", x, (*axes, input_size), f"({', '.join(axes)}, input_size)", dtype=kernel.dtype, like="kernel"
    )


def _states(*named: tuple[str, Any, int], batch: int, dtype: np.dtype[Any], like: str = "kernel") -> list[Any]:
    """Return the state arrays [batch, size], None where None came."""
    return [
        None
        if value is None
        else check.array(name, value, (batch, size), "(batch, hidden_size)", dtype=dtype, like=like)
        for name, value, size in named
    ]
