"""One direction of one LSTM layer as operators of torch.library, for torch.compile, torch.export and torch.func.

    lstmfast::layer            (x, h0, c0, weights, options) -> (h, h_n, c_n)
    lstmfast::layer_backward   its gradients

Operators are stateless: the backward operator reruns the forward pass, a third more work than in eager mode, where
`kernels.LayerFunction` saves it. Each has a fake kernel, autograd and a vmap rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lstmfast.torch import composite, kernels, on_cuda
from lstmfast.torch.calls import CallOptions, Wanted, Weights

_ARGUMENTS = (
    "Tensor x, Tensor h0, Tensor c0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
    "Tensor? weight_hr, Tensor? lengths, Tensor? resets, bool reverse, str matmul_precision"
)
_TENSORS = 8  # leading arguments that can have gradients


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, h0, c0, *rest = arguments
    weights, options = Weights(*rest[:5]), CallOptions(*rest[5:])
    options = options._replace(matmul_precision=options.matmul_precision or torch.get_float32_matmul_precision())
    if on_cuda.serves(x, weights):
        return on_cuda.forward(x, h0, c0, weights, options)[:3]
    if not _runs_here(x):
        return composite.forward(x, h0, c0, weights, options)[:3]
    kernels.follow_torchs_threads()
    arrays = kernels.arrays(weights)
    return kernels.forward(x, h0, c0, arrays, options, kernels.sequence_for_one_call(arrays, options))[:3]


def _backward(*arguments: Any) -> list[Tensor]:
    x, h0, c0, *rest = arguments[:-3]
    weights, options = Weights(*rest[:5]), CallOptions(*rest[5:])
    d_h, d_h_n, d_c_n = arguments[-3:]
    options = options._replace(matmul_precision=options.matmul_precision or torch.get_float32_matmul_precision())
    given = [x, h0, c0, *weights]
    if on_cuda.serves(x, weights):
        h, *_, cells, gates = on_cuda.forward(x, h0, c0, weights, options, keep_cells=True, keep_gates=True)
        found = on_cuda.backward(x, h0, c0, weights, options, (h, cells, gates), (d_h, d_h_n, d_c_n))
        return [d.contiguous() for d in found if d is not None]
    if not _runs_here(x):
        with torch.enable_grad():
            leaves = [None if a is None else a.detach().requires_grad_() for a in given]
            slopes = _composite_gradients(leaves, options, [d_h, d_h_n, d_c_n])
        present = (a for a in given if a is not None)
        return [torch.zeros_like(a) if d is None else d.detach() for d, a in zip(slopes, present, strict=True)]
    kernels.follow_torchs_threads()
    saved = torch.empty(kernels.saved_size(x, weights, options), dtype=x.dtype)
    arrays = kernels.arrays(weights)
    sequence = kernels.sequence_for_one_call(arrays, options)
    h = kernels.forward(x, h0, c0, arrays, options, sequence, saved=saved.numpy()).h
    d = kernels.backward(
        x, h0, c0, weights, options, h, saved, (d_h, d_h_n, d_c_n), Wanted(True, True, True, True)
    )
    return [a for a in (d.x, d.h0, d.c0, *(d.weights or ())) if a is not None]


def _runs_here(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


layer: Any = torch.library.custom_op(
    "lstmfast::layer", _forward, mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
)
layer_backward: Any = torch.library.custom_op(
    "lstmfast::layer_backward",
    _backward,
    mutates_args=(),
    schema=f"({_ARGUMENTS}, Tensor? d_h, Tensor? d_h_n, Tensor? d_c_n) -> Tensor[]",
)


def _fake(x: Tensor, h0: Tensor, c0: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty((*x.shape[:2], h0.shape[1])), x.new_empty(h0.shape), x.new_empty(c0.shape)


def _fake_backward(*arguments: Any) -> list[Tensor]:
    return [a.new_empty(a.shape) for a in arguments[:_TENSORS] if a is not None]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors = [*inputs[:_TENSORS], *inputs[_TENSORS : _TENSORS + 2]]  # lengths and resets too
    ctx.save_for_backward(*tensors)
    ctx.rest = inputs[_TENSORS + 2 :]
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, d_h: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, call: Any = None
) -> tuple[Any, ...]:
    given = ctx.saved_tensors
    if d_h is None and d_h_n is None and d_c_n is None:
        return (None,) * 12
    found = iter((call or layer_backward)(*given, *ctx.rest, d_h, d_h_n, d_c_n))
    return (*(None if a is None else next(found) for a in given[:_TENSORS]), None, None, None, None)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[: _TENSORS + 2], *inputs[-3:])
    ctx.rest = inputs[_TENSORS + 2 : -3]


def _second_gradients(ctx: Any, d_found: list[Tensor | None]) -> tuple[Any, ...]:
    """Second-order gradients, by differentiating the composite path's."""
    saved = ctx.saved_tensors
    given, options, upstream = saved[:_TENSORS], CallOptions(*saved[_TENSORS : _TENSORS + 2], *ctx.rest), saved[-3:]
    with torch.enable_grad():
        leaves = [None if a is None else a.detach().requires_grad_() for a in (*given, *upstream)]
        first = _composite_gradients(leaves[:_TENSORS], options, leaves[_TENSORS:])
        pairs = [(d, dd) for d, dd in zip(first, d_found, strict=True) if d is not None and dd is not None]
        asked = [a for a in leaves if a is not None]
        found = iter(
            torch.autograd.grad([d for d, _ in pairs], asked, [dd for _, dd in pairs], allow_unused=True)
            if pairs
            else [None] * len(asked)
        )
    seconds = [None if a is None else next(found) for a in leaves]
    return (*seconds[:_TENSORS], None, None, *([None] * len(ctx.rest)), *seconds[_TENSORS:])


def _composite_gradients(given: Any, options: CallOptions, upstream: Any) -> list[Tensor | None]:
    """Gradients of the arguments that are not None, by torch operations."""
    needed = [a is not None for a in given]
    x, h0, c0, *weights = given
    d_h, d_h_n, d_c_n = upstream
    found = composite.gradients(x, h0, c0, Weights(*weights), options, d_h, d_h_n, d_c_n, needed)
    return [d for d, there in zip(found, needed, strict=True) if there]


# --- vmap and torch.func ----------------------------------------------------------------------------------------------


def _mapped(call: Any, info: Any, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    """Mapped inputs become rows of one larger batch; mapped weights take one call each."""
    if any(d is not None for d in in_dims[3:_TENSORS]):
        calls = [call(*_select(arguments, in_dims, k)) for k in range(info.batch_size)]
        h, h_n, c_n = (torch.stack(parts) for parts in zip(*calls, strict=True))
        return (h, h_n, c_n), (0, 0, 0)
    size = info.batch_size

    def rows(k: int, axis: int) -> Tensor | None:
        """Argument k with the mapped axis folded into its batch axis, `axis`."""
        tensor, dim = arguments[k], in_dims[k]
        if tensor is None:
            return None
        if dim is None:
            mapped = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], size, *tensor.shape[axis:])
        else:
            mapped = tensor.movedim(dim, axis)
        return mapped.flatten(axis, axis + 1)

    x, h0, c0, lengths, resets = rows(0, 1), rows(1, 0), rows(2, 0), rows(8, 0), rows(9, 1)
    h, h_n, c_n = call(x, h0, c0, *arguments[3:_TENSORS], lengths, resets, *arguments[10:])
    return (h.unflatten(1, (size, -1)), h_n.unflatten(0, (size, -1)), c_n.unflatten(0, (size, -1))), (1, 0, 0)


def _mapped_backward(call: Any, info: Any, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    """One call per sample, since each has its own weight gradients."""
    if info.batch_size == 0:
        given = [(a, d) for a, d in zip(arguments[:_TENSORS], in_dims, strict=False) if a is not None]
        none = [a.unsqueeze(0)[:0] if d is None else a.movedim(d, 0) for a, d in given]
        return none, [0] * len(none)
    calls = [call(*_select(arguments, in_dims, k)) for k in range(info.batch_size)]
    stacked = [torch.stack(parts) for parts in zip(*calls, strict=True)]
    return stacked, [0] * len(stacked)


def _select(arguments: tuple[Any, ...], in_dims: tuple[Any, ...], k: int) -> list[Any]:
    return [a if d is None or a is None else a.select(d, k) for a, d in zip(arguments, in_dims, strict=True)]


def _vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    return _mapped(layer, info, in_dims, arguments)


def _vmap_backward(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    return _mapped_backward(layer_backward, info, in_dims, arguments)


class TransformedLayer(torch.autograd.Function):
    """The operator as an autograd function of the form that torch.func requires."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return layer(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _setup(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, d_h: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None) -> tuple[Any, ...]:
        return _gradients(ctx, d_h, d_h_n, d_c_n, lambda *arguments: TransformedBackward.apply(*arguments))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        return _mapped(TransformedLayer.apply, info, in_dims, arguments)


class TransformedBackward(torch.autograd.Function):
    """The backward operator, likewise."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(layer_backward(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _setup_backward(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *d_found: Tensor | None) -> tuple[Any, ...]:
        return _second_gradients(ctx, list(d_found))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        stacked, dims = _mapped_backward(TransformedBackward.apply, info, in_dims, arguments)
        return tuple(stacked), tuple(dims)


layer.register_fake(_fake)
layer.register_autograd(_gradients, setup_context=_setup)
layer.register_vmap(_vmap)
layer_backward.register_fake(_fake_backward)
layer_backward.register_autograd(_second_gradients, setup_context=_setup_backward)
layer_backward.register_vmap(_vmap_backward)
