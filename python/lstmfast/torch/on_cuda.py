"""One direction of one LSTM layer on CUDA tensors, through `lstmfast.cuda`: forward, backward, an autograd function.

Does for CUDA what `kernels` does for CPU tensors, with two differences: between forward and backward only tensors held
by autograd are kept, and except at the first use of a kernel nothing waits for the device or reads a value on it. So
calls may be captured in a CUDA graph. Refuses to choose which calls come here (see `paths`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstmfast import cuda, functional
from lstmfast.cuda import _library, _sequences
from lstmfast.torch import composite
from lstmfast.torch.calls import CallOptions, Weights

_COMPUTED = (torch.float32, torch.bfloat16)


def lies_on_device(tensor: Tensor) -> bool:
    """Whether a tensor is on a CUDA device."""
    return bool(tensor.is_cuda)


def _is_available() -> bool:
    return cuda.is_available()


# In the form that torch.compile may call.
_is_there: Callable[[], bool] = torch.compiler.assume_constant_result(_is_available)


def refusal(tensors: Sequence[Tensor], hidden_size: int, proj_size: int, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot serve a layer of these tensors, computed in `dtype`; None if they can."""
    places = sorted({str(tensor.device) for tensor in tensors})
    if len(places) > 1:
        return f"its tensors lie on {', '.join(places)}"
    if dtype not in _COMPUTED:
        return f"the CUDA kernels compute in float32 and bfloat16, not in {str(dtype).removeprefix('torch.')}"
    if proj_size:
        return "the CUDA kernels have no projection"
    if hidden_size > _library.MAX_HIDDEN_SIZE:
        return f"the CUDA kernels have at most {_library.MAX_HIDDEN_SIZE} units, not {hidden_size}"
    if not _is_there():
        return f"it lies on {places[0]}, and lstmfast has no CUDA kernels here (lstmfast info says why)"
    return None


def serves(x: Tensor, weights: Weights) -> bool:
    """Whether these kernels serve a layer with these tensors, all on x's device."""
    output_size = weights.weight_hh.shape[1]
    return (
        lies_on_device(x)
        and refusal([x], output_size, 0 if weights.weight_hr is None else output_size, x.dtype) is None
    )


class Result(NamedTuple):
    """A call's results: h [T, B, H], h_n, c_n [B, H] in x's dtype; float32 cells, gates [T, B, 4, H] or None."""

    h: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor | None
    gates: Tensor | None


def forward(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Weights,
    options: CallOptions,
    *,
    keep_cells: bool = False,
    keep_gates: bool = False,
) -> Result:
    """Run one direction of one layer over x [T, B, I]. All tensors have x's dtype."""
    out: Any = _sequences.lstm(
        x, _kernel(weights), _bias(weights), h0, c0, lengths=options.lengths, resets=options.resets,
        reverse=options.reverse, forget_bias=0.0, return_cells=keep_cells, return_gates=keep_gates,
        keep_for_backward=False, matmul_precision=options.matmul_precision,
    )
    return Result(out.h, out.h_n, out.c_n.to(x.dtype), out.cells, out.gates)


def backward(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Weights,
    options: CallOptions,
    kept: Sequence[Tensor],
    upstream: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Gradients of (x, h0, c0, *weights). kept: (h, cells, gates) of `forward`; upstream: d_h, d_h_n, d_c_n."""
    h, cells, gates = kept
    out = _sequences.saved_from(
        x, _kernel(weights), h0, c0, h, cells, gates, lengths=options.lengths, resets=options.resets,
        reverse=options.reverse, matmul_precision=options.matmul_precision,
    )
    d: Any = functional.lstm_backward(out, *upstream)
    input_size, has_bias = x.shape[2], weights.bias_ih is not None
    d_input, d_recurrent = d.kernel[:input_size].t(), d.kernel[input_size:].t()
    d_bias = d.bias if has_bias else None
    d_h0, d_c0 = None if h0 is None else d.h0, None if c0 is None else d.c0.to(c0.dtype)
    return d.x, d_h0, d_c0, d_input, d_recurrent, d_bias, None if d_bias is None else d_bias.clone(), None


def _kernel(weights: Weights) -> Tensor:
    """Weights in the library's layout, [I + H, 4H]."""
    return torch.cat([weights.weight_ih.t(), weights.weight_hh.t()])


def _bias(weights: Weights) -> Tensor:
    if weights.bias_ih is None or weights.bias_hh is None:
        return weights.weight_hh.new_zeros(weights.weight_hh.shape[0])
    return weights.bias_ih + weights.bias_hh


class LayerFunction(torch.autograd.Function):
    """`forward` for autograd: (x, h0, c0, *Weights, CallOptions) -> (h, h_n, c_n)."""

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
        options: CallOptions,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh, None)
        h, h_n, c_n, cells, gates = forward(x, h0, c0, weights, options, keep_cells=True, keep_gates=True)
        ctx.save_for_backward(x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, h, cells, gates)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return h, h_n, c_n

    @staticmethod
    def backward(ctx: Any, d_h: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None) -> Any:
        x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, h, cells, gates = ctx.saved_tensors
        weights, upstream = Weights(weight_ih, weight_hh, bias_ih, bias_hh, None), (d_h, d_h_n, d_c_n)
        if torch.is_grad_enabled():  # create_graph: the result may be differentiated
            needed = [*ctx.needs_input_grad[:7], False]
            found: Sequence[Any] = composite.gradients(x, h0, c0, weights, ctx.options, *upstream, needed)
        else:
            found = backward(x, h0, c0, weights, ctx.options, (h, cells, gates), upstream)
        return (*found[:7], None)
