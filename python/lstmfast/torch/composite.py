"""One direction of one LSTM layer in plain torch operations: slow, and differentiable as often as torch is.

Serves double backward, forward-mode derivatives and gradients through the cell states, on every device and dtype that
torch has. `lstmfast.reference` defines the computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lstmfast.torch.calls import CallOptions, Weights


def forward(
    x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Weights, options: CallOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run one direction of one layer over x [T, B, I]: h [T, B, P], h_n [B, P], c_n [B, H], cells [T, B, H]."""
    time_steps, batch = x.shape[:2]
    hidden_size, output_size = weights.weight_hh.shape[0] // 4, weights.weight_hh.shape[1]
    h = x.new_zeros((batch, output_size)) if h0 is None else h0
    c = x.new_zeros((batch, hidden_size)) if c0 is None else c0
    z_x = x @ weights.weight_ih.t()
    if weights.bias_ih is not None and weights.bias_hh is not None:
        z_x = z_x + weights.bias_ih + weights.bias_hh
    if time_steps == 0:
        return x.new_zeros((0, batch, output_size)), h, c, x.new_zeros((0, batch, hidden_size))
    hs: list[Tensor] = [h] * time_steps
    cs: list[Tensor] = [c] * time_steps
    for t in reversed(range(time_steps)) if options.reverse else range(time_steps):
        h_prev, c_prev = h, c
        if options.resets is not None:
            keep = ~options.resets[t].unsqueeze(1)
            h_prev, c_prev = h_prev.where(keep, h_prev.new_zeros(())), c_prev.where(keep, c_prev.new_zeros(()))
        i, f, g, o = (z_x[t] + h_prev @ weights.weight_hh.t()).chunk(4, 1)
        c_next = f.sigmoid() * c_prev + i.sigmoid() * g.tanh()
        h_next = o.sigmoid() * c_next.tanh()
        if weights.weight_hr is not None:
            h_next = h_next @ weights.weight_hr.t()
        if options.lengths is None:
            h, c = h_next, c_next
            hs[t], cs[t] = h, c
        else:
            useful = (options.lengths > t).unsqueeze(1)
            h, c = h_next.where(useful, h), c_next.where(useful, c)
            hs[t], cs[t] = h_next.where(useful, h.new_zeros(())), c_next.where(useful, c.new_zeros(()))
    return torch.stack(hs), h, c, torch.stack(cs)


def gradients(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Weights,
    options: CallOptions,
    d_h: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    needed: Sequence[bool],
    *,
    create_graph: bool = True,
) -> list[Tensor | None]:
    """Gradients of (x, h0, c0, *weights) where needed; differentiable with create_graph."""
    with torch.enable_grad():
        # Views: the arguments' hooks run only in the outer backward pass, and a tensor given twice counts as two.
        arguments: list[Any] = [None if a is None else a.view_as(a) for a in (x, h0, c0, *weights)]
        x, h0, c0, *own = arguments
        h, h_n, c_n, _ = forward(x, h0, c0, Weights(*own), options)
    outputs, upstream = [], []
    for output, d in ((h, d_h), (h_n, d_h_n), (c_n, d_c_n)):
        if d is not None:
            outputs.append(output)
            upstream.append(d)
    wanted = [k for k, (a, need) in enumerate(zip(arguments, needed, strict=False)) if need and a is not None]
    found: list[Tensor | None] = [None] * len(arguments)
    if outputs and wanted:
        given = torch.autograd.grad(
            outputs, [arguments[k] for k in wanted], upstream, create_graph=create_graph, allow_unused=True
        )
        for k, d in zip(wanted, given, strict=True):
            found[k] = None if d is None else d.contiguous()
    return found
