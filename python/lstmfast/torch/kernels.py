"""One direction of one LSTM layer on CPU tensors, through the extension: forward, backward, an autograd function.

Tensors are shared with the extension, never copied but where their last axis has gaps. torch's weights, [4H, I] and
[4H, H], are to the extension transposed ones, which it takes as they are; torch's gates lie i, f, g, o as ours.
Refuses to check shapes (see `modules`) and to be traced (see `operators`).
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lstmfast import _core, runtime
from lstmfast._checks import Array
from lstmfast.torch import composite


class Weights(NamedTuple):
    """The parameters of one direction of one layer, as torch names them; None where the module has none."""

    weight_ih: Tensor  # [4*hidden_size, input_size]
    weight_hh: Tensor  # [4*hidden_size, output_size]
    bias_ih: Tensor | None  # [4*hidden_size]
    bias_hh: Tensor | None
    weight_hr: Tensor | None  # [proj_size, hidden_size]


class Arrays(NamedTuple):
    """The same memory as the extension takes it: transposed kernels, and what the bias is the sum of."""

    kernel: tuple[Array, Array]
    bias: Array | tuple[Array, Array]
    projection: Array | None


class How(NamedTuple):
    """The rest of what one direction of one layer is told. Arrays as `lstmfast.lstm` takes them, checked."""

    lengths: Tensor | None = None  # [batch], int64
    resets: Tensor | None = None  # [time_steps, batch], bool
    reverse: bool = False
    matmul_precision: str = "highest"


class Result(NamedTuple):
    """What one direction of one layer gives: h [T, B, P]; h_n [B, P]; c_n [B, H]; cells [T, B, H] or None.

    States of a layer that is a whole module by itself have torch's leading axis: [1, B, P], [1, B, H].
    """

    h: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor | None


def arrays(weights: Weights) -> Arrays:
    """The memory of the weights; copies of those whose last axis has gaps."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    kernel = array(w_ih), array(w_hh)
    if b_ih is None or b_hh is None:
        bias: Array | tuple[Array, Array] = np.zeros(len(kernel[1]), kernel[1].dtype)
    else:
        bias = array(b_ih), array(b_hh)
    return Arrays(kernel, bias, None if w_hr is None else array(w_hr))


def forward(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Arrays,
    how: How,
    sequence: _core.Sequence,
    *,
    keep_cells: bool = False,
    keep_for_backward: bool = False,
    same_weights: bool = False,
    alone: bool = False,
) -> Result:
    """Run one direction of one layer over x [T, B, I]. Tensors of the weights' dtype, on the CPU. alone: see Result."""
    values = array(x)
    time_steps, batch = values.shape[:2]
    hidden_size = len(weights.kernel[1]) // 4
    output_size = hidden_size if weights.projection is None else len(weights.projection)
    dtype = values.dtype
    h = _memory.empty((time_steps, batch, output_size), dtype)
    h_n, c_n = np.empty((1, batch, output_size), dtype), np.empty((1, batch, hidden_size), dtype)
    cells = _memory.empty((time_steps, batch, hidden_size), dtype) if keep_cells else None
    # By position: pybind11 takes 100 ns to look up a name, and a step of a small layer takes 2 microseconds.
    sequence.forward(
        values, weights.kernel, weights.bias, h, h_n[0], c_n[0],
        None if h0 is None else array(h0), None if c0 is None else array(c0),
        None if how.lengths is None else how.lengths.numpy(), None if how.resets is None else how.resets.numpy(),
        how.reverse, 0.0, cells, None, keep_for_backward, how.matmul_precision, same_weights, None, weights.projection,
    )  # fmt: skip
    if not alone:
        h_n, c_n = h_n[0], c_n[0]
    return Result(torch.from_numpy(h), torch.from_numpy(h_n), torch.from_numpy(c_n), _shared(cells))


class Wanted(NamedTuple):
    """Which gradients somebody asked for."""

    x: bool
    h0: bool
    c0: bool
    weights: bool


class Gradients(NamedTuple):
    """Gradients of the arguments of `forward`, weights as torch has them; None where not wanted."""

    x: Tensor | None
    h0: Tensor | None
    c0: Tensor | None
    weights: Weights | None


def backward(
    sequence: _core.Sequence,
    x: Tensor,
    weights: Weights,
    d_h: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    wanted: Wanted,
) -> Gradients:
    """Gradients of the forward pass that this sequence did last, with keep_for_backward."""
    values = array(x)
    (columns, output_size), dtype, batch = weights.weight_hh.shape, values.dtype, values.shape[1]
    hidden_size = columns // 4
    d_x = _memory.empty(values.shape, dtype) if wanted.x else None
    d_h0 = np.empty((batch, output_size), dtype) if wanted.h0 else None
    d_c0 = np.empty((batch, hidden_size), dtype) if wanted.c0 else None
    d_kernel = d_bias = d_projection = None
    if wanted.weights:
        d_kernel = _memory.empty((columns, values.shape[2]), dtype), _memory.empty((columns, output_size), dtype)
        d_bias = None if weights.bias_ih is None else np.empty(columns, dtype)
        d_projection = None if weights.weight_hr is None else np.empty((output_size, hidden_size), dtype)
    sequence.backward(
        None if d_h is None else array(d_h), None if d_h_n is None else array(d_h_n),
        None if d_c_n is None else array(d_c_n), d_x, d_kernel, d_bias, d_h0, d_c0, None, d_projection,
    )  # fmt: skip
    found = None
    if d_kernel is not None:
        d_ih, d_hh = map(torch.from_numpy, d_kernel)
        d_b = _shared(d_bias)
        found = Weights(d_ih, d_hh, d_b, d_b, _shared(d_projection))
    return Gradients(_shared(d_x), _shared(d_h0), _shared(d_c0), found)


_NO_WEIGHTS = (None,) * 5


def _shared(values: Array | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values)


class _Memory(threading.local):
    """New arrays, in memory of earlier ones that nobody holds any more.

    What the C library gives for a megabyte it takes back when that is freed, and memory that is new costs a page fault
    every 4 KB: 0.5 ms for the two weight gradients of 256 units, where the training step of one row takes as long.
    """

    SMALLEST, LARGEST = 128 << 10, 8 << 20  # bytes: below, it is not given back; above, the kernels take far longer
    KEPT = 16  # arrays of a thread

    def __init__(self) -> None:
        self._arrays: list[Array] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """As np.empty."""
        size = math.prod(shape) * dtype.itemsize
        if not self.SMALLEST <= size <= self.LARGEST:
            return np.empty(shape, dtype)
        for found in self._arrays:
            # The list, this name and the call: no view of it is left, and so no tensor that lies in it.
            if found.nbytes == size and sys.getrefcount(found) == 3:
                return found.view(dtype).reshape(shape)
        self._arrays = [*self._arrays[-self.KEPT + 1 :], np.empty(size, np.uint8)]
        return self._arrays[-1].view(dtype).reshape(shape)


_memory = _Memory()


def array(tensor: Tensor) -> Array:
    """The tensor's memory as an array whose last axis has no gaps; a copy where it had."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    values: Array = tensor.numpy()
    if values.ndim and values.shape[-1] > 1 and values.strides[-1] != values.itemsize:
        return np.ascontiguousarray(values)
    return values


class Pool:
    """Sequences for calls that backward may follow: lent for as long as somebody may still ask for gradients."""

    LIMIT = 16  # idle ones, each with the memory of its last call

    def __init__(self) -> None:
        self._idle: list[_core.Sequence] = []

    def lend(self) -> Loan:
        """A sequence, given back when the loan is dropped."""
        try:
            return Loan(self, self._idle.pop())
        except IndexError:
            return Loan(self, _core.Sequence())

    def take_back(self, sequence: _core.Sequence) -> None:
        """Keep it for the next, without the arrays of others that it holds."""
        sequence.release()
        if len(self._idle) < self.LIMIT:
            self._idle.append(sequence)


class Loan:
    """A sequence that goes back to its pool with the last reference to this."""

    __slots__ = ("_pool", "sequence")

    def __init__(self, pool: Pool, sequence: _core.Sequence) -> None:
        self._pool, self.sequence = pool, sequence

    def __del__(self) -> None:
        self._pool.take_back(self.sequence)


pool = Pool()


class LayerFunction(torch.autograd.Function):
    """`forward` for autograd: (x, h0, c0, *Weights, How, alone) -> (h, h_n, c_n)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        weight_hr: Tensor | None,
        how: How,
        alone: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
        loan = pool.lend()
        h, h_n, c_n, _ = forward(x, h0, c0, arrays(weights), how, loan.sequence, keep_for_backward=True, alone=alone)
        ctx.loan, ctx.how, ctx.alone = loan, how, alone
        # h is saved too: the kernels read it again, and autograd then notices when somebody has written into it.
        ctx.save_for_backward(x, h0, c0, *weights, h)
        ctx.set_materialize_grads(False)
        return h, h_n, c_n

    @staticmethod
    def backward(ctx: Any, d_h: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None) -> Any:
        x, h0, c0, *saved, _ = ctx.saved_tensors
        weights = Weights(*saved)
        if ctx.alone:
            d_h_n, d_c_n = None if d_h_n is None else d_h_n[0], None if d_c_n is None else d_c_n[0]
        if torch.is_grad_enabled():  # create_graph: somebody will differentiate this
            found = composite.gradients(x, h0, c0, weights, ctx.how, d_h, d_h_n, d_c_n, ctx.needs_input_grad)
            return (*found, None, None)
        need = ctx.needs_input_grad
        wanted = Wanted(need[0], need[1], need[2], any(need[3:8]))
        d = backward(ctx.loan.sequence, x, weights, d_h, d_h_n, d_c_n, wanted)
        return (d.x, d.h0, d.c0, *(d.weights or _NO_WEIGHTS), None, None)


class _Threads(threading.local):
    seen: int | None = None


_threads = _Threads()


def follow_torchs_threads() -> None:
    """Use as many threads as torch, from the first call on and whenever its number has changed."""
    threads = torch.get_num_threads()
    if threads != _threads.seen:
        _threads.seen = threads
        runtime.set_num_threads(threads)
