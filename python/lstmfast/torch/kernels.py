"""One direction of one LSTM layer on CPU tensors, through the extension: forward, backward, an autograd function.

Tensors are shared with the extension, never copied but where their last axis has gaps; weights lie as torch's do, and
are brought into the kernels' order here: [4H, I] and [4H, H] become [I + H, 4H]. torch's gates lie i, f, g, o as ours.
Refuses to check shapes (see `modules`) and to be traced (see `operators`).
"""

from __future__ import annotations

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


class Prepared(NamedTuple):
    """The same in the kernels' order."""

    kernel: Array  # [input_size + output_size, 4*hidden_size]
    bias: Array  # [4*hidden_size]
    projection: Array | None  # [hidden_size, proj_size]


class How(NamedTuple):
    """The rest of what one direction of one layer is told. Arrays as `lstmfast.lstm` takes them, checked."""

    lengths: Tensor | None = None  # [batch], int64
    resets: Tensor | None = None  # [time_steps, batch], bool
    reverse: bool = False
    matmul_precision: str = "highest"


class Result(NamedTuple):
    """What one direction of one layer gives: h [T, B, P]; h_n [B, P]; c_n [B, H]; cells [T, B, H] or None."""

    h: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor | None


def prepare(weights: Weights, workspace: Workspace | None = None) -> Prepared:
    """Copy the weights into the kernels' order: into new memory, or into a workspace's for as long as it is on loan."""
    w_ih, w_hh = array(weights.weight_ih), array(weights.weight_hh)
    input_size = w_ih.shape[1]
    shape = (input_size + w_hh.shape[1], len(w_ih))
    kernel = np.empty(shape, w_ih.dtype) if workspace is None else workspace.array("kernel", shape, w_ih.dtype)
    _core.transpose(w_ih, kernel[:input_size])
    _core.transpose(w_hh, kernel[input_size:])
    if weights.bias_ih is None or weights.bias_hh is None:
        bias = np.zeros(len(w_ih), w_ih.dtype)
    else:
        bias = array(weights.bias_ih) + array(weights.bias_hh)
    projection = None
    if weights.weight_hr is not None:
        w_hr = array(weights.weight_hr)
        projection = np.empty(w_hr.shape[::-1], w_hr.dtype)
        _core.transpose(w_hr, projection)
    return Prepared(kernel, bias, projection)


def forward(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Prepared,
    how: How,
    sequence: _core.Sequence,
    *,
    keep_cells: bool = False,
    keep_for_backward: bool = False,
    same_weights: bool = False,
) -> Result:
    """Run one direction of one layer over x [T, B, I]. Tensors of the weights' dtype, on the CPU."""
    time_steps, batch = x.shape[:2]
    hidden_size = len(weights.bias) // 4
    output_size = hidden_size if weights.projection is None else weights.projection.shape[1]
    dtype = x.dtype
    h = torch.empty((time_steps, batch, output_size), dtype=dtype)
    h_n, c_n = torch.empty((batch, output_size), dtype=dtype), torch.empty((batch, hidden_size), dtype=dtype)
    cells = torch.empty((time_steps, batch, hidden_size), dtype=dtype) if keep_cells else None
    # By position: pybind11 takes 100 ns to look up a name, and a step of a small layer takes 2 microseconds.
    sequence.forward(
        array(x), weights.kernel, weights.bias, h.numpy(), h_n.numpy(), c_n.numpy(),
        None if h0 is None else array(h0), None if c0 is None else array(c0),
        None if how.lengths is None else how.lengths.numpy(), None if how.resets is None else how.resets.numpy(),
        how.reverse, 0.0, None if cells is None else cells.numpy(), None, keep_for_backward, how.matmul_precision,
        same_weights, None, weights.projection,
    )  # fmt: skip
    return Result(h, h_n, c_n, cells)


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
    workspace: Workspace,
    x: Tensor,
    weights: Weights,
    d_h: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    wanted: Wanted,
) -> Gradients:
    """Gradients of the forward pass that this workspace did last, with keep_for_backward."""
    batch, input_size = x.shape[1:]
    (columns, output_size), hidden_size = weights.weight_hh.shape, weights.weight_hh.shape[0] // 4
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format) if wanted.x else None
    d_h0 = x.new_empty((batch, output_size)) if wanted.h0 else None
    d_c0 = x.new_empty((batch, hidden_size)) if wanted.c0 else None
    d_kernel = d_projection = d_bias = None
    if wanted.weights:
        dtype = array(x).dtype
        d_kernel = workspace.array("d_kernel", (input_size + output_size, columns), dtype)
        d_bias = None if weights.bias_ih is None else x.new_empty(columns)
        d_projection = None if weights.weight_hr is None else np.empty((hidden_size, output_size), dtype)
    workspace.sequence.backward(
        None if d_h is None else array(d_h), None if d_h_n is None else array(d_h_n),
        None if d_c_n is None else array(d_c_n), None if d_x is None else d_x.numpy(), d_kernel,
        None if d_bias is None else d_bias.numpy(), None if d_h0 is None else d_h0.numpy(),
        None if d_c0 is None else d_c0.numpy(), None, d_projection,
    )  # fmt: skip
    if d_kernel is None:
        return Gradients(d_x, d_h0, d_c0, None)
    d_ih, d_hh = _turned(d_kernel[:input_size]), _turned(d_kernel[input_size:])
    d_hr = None if d_projection is None else _turned(d_projection)
    return Gradients(d_x, d_h0, d_c0, Weights(d_ih, d_hh, d_bias, d_bias, d_hr))


def _turned(values: Array) -> Tensor:
    """A new tensor that is the transposed."""
    turned = torch.from_numpy(np.empty(values.shape[::-1], values.dtype))
    _core.transpose(values, turned.numpy())
    return turned


def array(tensor: Tensor) -> Array:
    """The tensor's memory as an array whose last axis has no gaps; a copy where it had."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    values: Array = tensor.numpy()
    if values.ndim and values.shape[-1] > 1 and values.strides[-1] != values.itemsize:
        return np.ascontiguousarray(values)
    return values


class Workspace:
    """What one forward pass and its backward work in."""

    def __init__(self) -> None:
        self.sequence = _core.Sequence()
        self._arrays: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Memory of this shape, the same as the last time where that fits: fresh memory costs as much as a product."""
        found = self._arrays.get(name)
        if found is None or found.shape != shape or found.dtype != dtype:
            found = self._arrays[name] = np.empty(shape, dtype)
        return found


class Pool:
    """Workspaces for calls that backward may follow: taken for as long as somebody may still ask for gradients."""

    LIMIT = 16  # idle ones, each with the memory of its last call

    def __init__(self) -> None:
        self._idle: list[Workspace] = []

    def take(self) -> Loan:
        """A workspace, given back when the loan is dropped."""
        try:
            return Loan(self, self._idle.pop())
        except IndexError:
            return Loan(self, Workspace())

    def give_back(self, workspace: Workspace) -> None:
        """Take it back, without the arrays of others that it holds."""
        workspace.sequence.release()
        if len(self._idle) < self.LIMIT:
            self._idle.append(workspace)


class Loan:
    """A workspace that goes back to its pool with the last reference to this."""

    __slots__ = ("_pool", "workspace")

    def __init__(self, pool: Pool, workspace: Workspace) -> None:
        self._pool, self.workspace = pool, workspace

    def __del__(self) -> None:
        self._pool.give_back(self.workspace)


pool = Pool()


class LayerFunction(torch.autograd.Function):
    """`forward` for autograd: (x, h0, c0, *Weights, How) -> (h, h_n, c_n)."""

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
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
        loan = pool.take()
        prepared = prepare(weights, loan.workspace)
        h, h_n, c_n, _ = forward(x, h0, c0, prepared, how, loan.workspace.sequence, keep_for_backward=True)
        ctx.loan, ctx.how = loan, how
        # h is saved too: the kernels read it again, and autograd then notices when somebody has written into it.
        ctx.save_for_backward(x, h0, c0, *weights, h)
        ctx.set_materialize_grads(False)
        return h, h_n, c_n

    @staticmethod
    def backward(ctx: Any, d_h: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None) -> Any:
        x, h0, c0, *saved, _ = ctx.saved_tensors
        weights = Weights(*saved)
        if torch.is_grad_enabled():  # create_graph: somebody will differentiate this
            return (*composite.gradients(x, h0, c0, weights, ctx.how, d_h, d_h_n, d_c_n, ctx.needs_input_grad), None)
        need = ctx.needs_input_grad
        wanted = Wanted(need[0], need[1], need[2], any(need[3:8]))
        d = backward(ctx.loan.workspace, x, weights, d_h, d_h_n, d_c_n, wanted)
        return (d.x, d.h0, d.c0, *(d.weights or Weights(*[None] * 5)), None)


class _Threads(threading.local):
    seen: int | None = None


_threads = _Threads()


def follow_torchs_threads() -> None:
    """Use as many threads as torch, from the first call on and whenever its number has changed."""
    threads = torch.get_num_threads()
    if threads != _threads.seen:
        _threads.seen = threads
        runtime.set_num_threads(threads)
