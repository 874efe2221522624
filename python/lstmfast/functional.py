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


@dataclass(frozen=True, eq=False)
class Gradients:
    """What `lstm_backward` returns: the derivative by each argument of `lstm`, shaped as it is. x is None for ids."""

    x: Array | None
    kernel: Array
    bias: Array
    h0: Array
    c0: Array


@dataclass(frozen=True, eq=False)
class _Kept:
    sequence: _core.Sequence
    x_shape: tuple[int, ...] | None  # None for token ids
    kernel_shape: tuple[int, int]


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
) -> tuple[Array, Array]:
    """Advance an LSTM by one time step.

    Shapes: x [batch, input_size], or integer ids [batch] (see `lstm`); h, c [batch, hidden_size];
    kernel [input_size + hidden_size, 4*hidden_size]; bias [4*hidden_size]. Columns lie i, f, g, o (see `gates`).
    Returns (h_next, c_next), both new, [batch, hidden_size]. Many steps with the same weights are faster through
    `LSTM.stream`, which packs them once. Arrays on a CUDA device are taken as in `lstm`.
    Raises ValueError naming the argument whose shape or ids are wrong; TypeError if float32 and float64 are mixed.
    Source: Gers, Schmidhuber & Cummins 2000, eqs. 1-5; `reference.lstm_step` is the same in NumPy.
    """
    if not isinstance(x, np.ndarray) and check.is_on_device(x):
        out = lstm(x[None], kernel, bias, h, c, forget_bias=forget_bias)
        return out.h_n, out.c_n
    kernel, bias, hidden_size = _weights(kernel, bias, x, h, axes=1)
    x = _input(x, kernel, hidden_size, ("batch",))
    batch = len(x)
    h, c = _states(("h", h), ("c", c), shape=(batch, hidden_size), dtype=kernel.dtype)
    h_next, c_next, output = np.empty((3, batch, hidden_size), kernel.dtype)
    # By position, as in `LSTM.forward_into`.
    _step_workspace.sequence.forward(
        x[None], kernel, bias, output[None], h_next, c_next, h, c, None, None, False,
        check.finite("forget_bias", forget_bias),
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
    Where x lies on a CUDA device (an array of torch or cupy), so must all float arrays, and so do the results: float32
    or bfloat16, with c, cells and gates in float32. Nobody waits for the device, and autograd sees nothing of it.
    Raises ValueError naming the argument whose shape or values are wrong; TypeError for other or mixed dtypes.
    Source: `reference.lstm` is the same in NumPy.
    """
    precision = runtime.resolve_matmul_precision(matmul_precision)
    if not isinstance(x, np.ndarray) and check.is_on_device(x):
        from lstmfast.cuda import _sequences

        return _sequences.lstm(
            x, kernel, bias, h0, c0, lengths=lengths, resets=resets, reverse=reverse,
            forget_bias=check.finite("forget_bias", forget_bias), return_cells=return_cells, return_gates=return_gates,
            keep_for_backward=keep_for_backward, matmul_precision=precision,
        )  # fmt: skip
    kernel, bias, hidden_size = _weights(kernel, bias, x, h0, axes=2)
    x = _input(x, kernel, hidden_size, ("time_steps", "batch"))
    time_steps, batch = x.shape[:2]
    h0, c0 = _states(("h0", h0), ("c0", c0), shape=(batch, hidden_size), dtype=kernel.dtype)
    h = np.empty((time_steps, batch, hidden_size), kernel.dtype)
    h_n, c_n = np.empty((2, batch, hidden_size), kernel.dtype)
    cells = np.empty_like(h) if return_cells else None
    gates = np.empty((time_steps, batch, 4, hidden_size), kernel.dtype) if return_gates else None
    sequence = _core.Sequence()
    sequence.forward(
        x, kernel, bias, h0=h0, c0=c0,
        lengths=check.lengths(lengths, time_steps, batch),
        resets=check.resets(resets, (time_steps, batch), "(time_steps, batch)"),
        reverse=bool(reverse), forget_bias=check.finite("forget_bias", forget_bias),
        h=h, h_n=h_n, c_n=c_n, cells=cells, gates=gates, keep_for_backward=bool(keep_for_backward),
        matmul_precision=precision,
    )  # fmt: skip
    x_shape = None if check.is_ids(x) else x.shape
    kept = _Kept(sequence, x_shape, kernel.shape) if keep_for_backward else None
    return Output(h, h_n, c_n, cells, gates, kept)


def lstm_backward(
    out: Output,
    d_h: npt.NDArray[Any] | None = None,
    d_h_n: npt.NDArray[Any] | None = None,
    d_c_n: npt.NDArray[Any] | None = None,
) -> Gradients:
    """Carry the derivatives of a loss by the outputs of `lstm` back to its arguments.

    out: returned by lstm(..., keep_for_backward=True). d_h [T, B, H], d_h_n, d_c_n [B, H]; None stands for zeros.
    Returns Gradients: x [T, B, I] (None for ids), kernel, bias, h0 and c0, each of its argument's shape. May be called
    again with other derivatives. Raises ValueError naming the argument at fault, TypeError for another dtype.
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
    d_h_n, d_c_n = _states(("d_h_n", d_h_n), ("d_c_n", d_c_n), shape=out.h_n.shape, dtype=dtype, like="h")
    gradients = Gradients(
        x=None if kept.x_shape is None else np.empty(kept.x_shape, dtype),
        kernel=np.empty(kept.kernel_shape, dtype),
        bias=np.empty(kept.kernel_shape[1], dtype),
        h0=np.empty_like(out.h_n, order="C"),
        c0=np.empty_like(out.c_n, order="C"),
    )
    kept.sequence.backward(
        d_h=d_h, d_h_n=d_h_n, d_c_n=d_c_n,
        d_x=gradients.x, d_kernel=gradients.kernel, d_bias=gradients.bias, d_h0=gradients.h0, d_c0=gradients.c0,
    )  # fmt: skip
    return gradients


def _weights(kernel: Any, bias: Any, x: Any, h: Any, *, axes: int) -> tuple[Array, Array, int]:
    """Return kernel and bias, C-contiguous, and the hidden size they speak of.

    A kernel that fits x is believed and the others are judged by it; one that does not is at fault itself, and the
    error then tells its shape from the hidden size of the state or the bias.
    """
    check.ndarray("x", x, "float32 or float64, or of integer ids")
    first = "vocabulary_size" if check.is_ids(x) else "input_size"
    kernel = check.array("kernel", kernel, (f"{first} + hidden_size", "4*hidden_size"))
    rows, columns = kernel.shape
    input_size = x.shape[-1] if not check.is_ids(x) and x.ndim == axes + 1 else max(rows - columns // 4, 0)
    hidden_size = columns // 4
    if columns == 0 or columns % 4 or rows != input_size + hidden_size:
        if np.ndim(h) == 2 and np.shape(h)[1] > 0:
            hidden_size = np.shape(h)[1]
        elif np.ndim(bias) == 1 and np.size(bias) >= 4:
            hidden_size = np.size(bias) // 4
        hidden_size = max(hidden_size, 1)
        check.has_shape(
            "kernel", kernel, (input_size + hidden_size, 4 * hidden_size), f"({first} + hidden_size, 4*hidden_size)"
        )
    bias = check.array("bias", bias, (4 * hidden_size,), "(4*hidden_size,)", dtype=kernel.dtype, like="kernel")
    return np.ascontiguousarray(kernel), bias, hidden_size


def _input(x: Any, kernel: Array, hidden_size: int, axes: tuple[str, ...]) -> Array:
    """Return x as int32 ids [*axes] or as floats [*axes, input_size]."""
    input_size = len(kernel) - hidden_size
    if check.is_ids(x):
        return check.ids("x", x, input_size, axes)
    return check.array(
        "x", x, (*axes, input_size), f"({', '.join(axes)}, input_size)", dtype=kernel.dtype, like="kernel"
    )


def _states(*named: tuple[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], like: str = "kernel") -> list[Any]:
    """Return the state arrays [batch, hidden_size], None where None came."""
    return [
        None if value is None else check.array(name, value, shape, "(batch, hidden_size)", dtype=dtype, like=like)
        for name, value in named
    ]
