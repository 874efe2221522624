"""The LSTM as functions: arrays in, arrays out. One layer, one direction, weights as arguments.

The engine depends on the device of x: `_engine.cpu` for NumPy arrays, `cuda` for arrays on a GPU. Refuses to hold
weights (see `layers`) and batch-major arrays (see `LSTM(batch_first=True)`). The equations are in `reference`, the
order of the gates in `gates`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import runtime
from lstmfast._checks import Array
from lstmfast._engine import cpu
from lstmfast._engine.devices import is_on_device
from lstmfast._engine.results import Gradients, Output
from lstmfast.cells import Cell, check_features
from lstmfast.cuda import _sequences as on_cuda

__all__ = ["Gradients", "Output", "lstm", "lstm_backward", "lstm_step"]


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
    kernel [input_size + hidden_size, 4*hidden_size]; bias [4*hidden_size]. Column order: i, f, g, o (see `gates`).
    peepholes, projection, cell_clip, coupled_gates: see `lstm`.
    Returns (h_next, c_next), both new, [batch, hidden_size]. Many steps with the same weights are faster with
    `LSTM.stream`, which packs them once. Arrays may be on a CUDA device, as in `lstm`.
    Raises ValueError naming the argument whose shape or ids are wrong; TypeError if float32 and float64 are mixed.
    Source: Gers, Schmidhuber & Cummins 2000, eqs. 1-5; `reference.lstm_step` is the same in NumPy.
    """
    if not isinstance(x, np.ndarray) and is_on_device(x):
        out = lstm(
            x[None], kernel, bias, h, c, forget_bias=forget_bias, peepholes=peepholes, projection=projection,
            cell_clip=cell_clip, coupled_gates=coupled_gates,
        )
        return out.h_n, out.c_n
    cell = _cell_of(forget_bias, peepholes, projection, cell_clip, coupled_gates)
    return cpu.lstm_step(x, h, c, kernel, bias, cell=cell, peepholes=peepholes, projection=projection)


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

    Shapes: x [T, B, I], or integer ids [T, B], which stand for one-hot rows: kernel then has V + H rows and ids are in
    0..V-1; kernel [I + H, 4*H]; bias [4*H], columns i, f, g, o; h0, c0 [B, H], zero if None. Time comes first.
    lengths [B], in any order and from 0 to T: row b ends after lengths[b] steps, its later outputs are zero and its
    final state is that of its own last step. resets [T, B], bool: the state is zeroed before that step.
    reverse: each row is read from its own last step to its first; outputs keep their time steps.
    Returns Output: h [T, B, H]; h_n, c_n [B, H]; with return_cells, cells [T, B, H]; with return_gates, the activated
    gates [T, B, 4, H] in order i, f, g, o. keep_for_backward keeps what `lstm_backward` needs, including references to
    x, kernel and the output: do not modify them before that call. matmul_precision: see `set_matmul_precision`.
    Variants of the cell, which can be combined:
    peepholes [3, H], rows i, f, o: the gates i and f also read the cell state before the step, o that after it.
    projection [H, P]: h is (o * tanh(c)) @ projection. h0, h and h_n then end in P, and kernel is [I + P, 4*H].
    cell_clip: c is clipped to [-cell_clip, cell_clip] before any use; no gradient passes where it was clipped.
    coupled_gates: f = 1 - i. The forget gate's columns, its bias and forget_bias are not read, their gradients are 0.
    If x is on a CUDA device (an array of torch or cupy), all float arrays must be there, and the results are: float32
    or bfloat16, with c, cells and gates in float32. The call is asynchronous, and autograd does not record it.
    Raises ValueError naming the argument whose shape or values are wrong; TypeError for other or mixed dtypes.
    Source: `reference.lstm` is the same in NumPy.
    """
    precision = runtime.resolve_matmul_precision(matmul_precision)
    options: dict[str, Any] = {
        "lengths": lengths, "resets": resets, "reverse": bool(reverse), "return_cells": bool(return_cells),
        "return_gates": bool(return_gates), "keep_for_backward": bool(keep_for_backward),
        "matmul_precision": precision,
    }
    if not isinstance(x, np.ndarray) and is_on_device(x):
        given = {
            "peepholes": peepholes is not None, "projection": projection is not None,
            "cell_clip": cell_clip is not None, "coupled_gates": coupled_gates,
        }
        check_features([name for name in given if given[name]], on_cuda.FEATURES, on_cuda.PLACE)
        return on_cuda.lstm(x, kernel, bias, h0, c0, forget_bias=check.finite("forget_bias", forget_bias), **options)
    cell = _cell_of(forget_bias, peepholes, projection, cell_clip, coupled_gates)
    return cpu.lstm(x, kernel, bias, h0, c0, cell=cell, peepholes=peepholes, projection=projection, **options)


def lstm_backward(
    out: Output,
    d_h: npt.NDArray[Any] | None = None,
    d_h_n: npt.NDArray[Any] | None = None,
    d_c_n: npt.NDArray[Any] | None = None,
) -> Gradients:
    """Compute the gradients of a loss by the arguments of `lstm`, from those by its outputs.

    out: returned by lstm(..., keep_for_backward=True). d_h [T, B, H], d_h_n, d_c_n [B, H]; None stands for zeros.
    Returns Gradients: x [T, B, I] (None for ids), kernel, bias, h0, c0, and peepholes and projection if given, each of
    its argument's shape. May be called again with other derivatives.
    Raises ValueError naming the argument at fault, TypeError for another dtype.
    Source: backpropagation through time, Werbos 1990; `reference.lstm_backward` is the same in NumPy.
    """
    if not isinstance(out, Output):
        raise TypeError(f"out must be the Output of lstm, got {type(out).__name__}")
    if out._saved is None:
        raise ValueError("out must come from lstm(..., keep_for_backward=True), got one that kept nothing")
    return out._saved.backward(d_h, d_h_n, d_c_n)


def _cell_of(forget_bias: Any, peepholes: Any, projection: Any, cell_clip: Any, coupled_gates: Any) -> Cell:
    """Return the cell with these options of `lstm`."""
    if projection is None and peepholes is None and cell_clip is None and not coupled_gates:
        return _cell(check.finite("forget_bias", forget_bias))
    size = None
    if projection is not None:
        size = check.array("projection", projection, ("hidden_size", "projection_size")).shape[1]
    return _cell(
        check.finite("forget_bias", forget_bias), size, peepholes is not None, check.cell_clip(cell_clip),
        bool(coupled_gates),
    )


_cell = functools.lru_cache(maxsize=256)(Cell)  # creating one in every call would slow down single steps
