"""One direction of one LSTM layer in plain torch operations: slow, and differentiable as often as torch is.

Serves double backward, forward-mode derivatives and gradients through the cell states, on every device and dtype that
torch has, and with the options that `Variant` has. `lstmfast.reference` defines the computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lstmfast import _core
from lstmfast.torch.calls import CallOptions, Extras, Variant, Weights
from lstmfast.torch.memory import PLAIN

_PLAIN = Variant(PLAIN)


def forward(
    x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Weights, options: CallOptions, variant: Variant = _PLAIN
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run one direction of one layer over x [T, B, I]: h [T, B, P], h_n [B, P], c_n [B, H], cells [T, B, H]."""
    time_steps, batch = x.shape[:2]
    hidden_size, output_size = weights.weight_hh.shape[0] // 4, weights.weight_hh.shape[1]
    cell, extras = variant.cell, variant.extras
    first_h = x.new_zeros(()) if extras.initial_h is None else extras.initial_h
    first_c = x.new_zeros(()) if extras.initial_c is None else extras.initial_c
    h = x.new_zeros((batch, output_size)) + first_h if h0 is None else h0
    c = x.new_zeros((batch, hidden_size)) + first_c if c0 is None else c0
    masks = _Masks(variant, x, hidden_size, output_size)
    w_hh = weights.weight_hh if masks.weights is None else weights.weight_hh * masks.weights
    z_x = x @ weights.weight_ih.t()
    if cell.layer_norm == "products":
        assert extras.norm_gain is not None
        z_x = extras.norm_gain[0] * _normalized(z_x, cell.layer_norm_epsilon)
    bias: Tensor | None = None
    if weights.bias_ih is not None and weights.bias_hh is not None:
        bias = weights.bias_ih + weights.bias_hh
        if cell.layer_norm is None:  # torch's order of additions
            z_x, bias = z_x + weights.bias_ih + weights.bias_hh, None
    if time_steps == 0:
        return x.new_zeros((0, batch, output_size)), h, c, x.new_zeros((0, batch, hidden_size))
    hs: list[Tensor] = [h] * time_steps
    cs: list[Tensor] = [c] * time_steps
    for t in reversed(range(time_steps)) if options.reverse else range(time_steps):
        h_prev, c_prev = h, c
        if options.resets is not None:
            keep = ~options.resets[t].unsqueeze(1)
            h_prev, c_prev = h_prev.where(keep, first_h), c_prev.where(keep, first_c)
        z_h = (h_prev if masks.h is None else h_prev * _at(masks.h, t)) @ w_hh.t()
        z = _pre_activations(z_x[t], z_h, bias, variant)
        i, f, g, o = z.chunk(4, 1)
        g = g.tanh() if masks.g is None else g.tanh() * _at(masks.g, t)
        c_next = f.sigmoid() * c_prev + i.sigmoid() * g
        seen = c_next
        if cell.layer_norm is not None:
            assert extras.cell_gain is not None and extras.cell_shift is not None
            seen = extras.cell_gain * _normalized(c_next, cell.layer_norm_epsilon) + extras.cell_shift
            c_next = seen if cell.layer_norm_carry else c_next
        h_next = o.sigmoid() * seen.tanh()
        if weights.weight_hr is not None:
            h_next = h_next @ weights.weight_hr.t()
        if masks.zones is not None:
            zoned_h, zoned_c = (zone if isinstance(zone, float) else _at(zone, t) for zone in masks.zones)
            h_next = zoned_h * h_prev + (1 - zoned_h) * h_next
            c_next = zoned_c * c_prev + (1 - zoned_c) * c_next
        if options.lengths is None:
            h, c = h_next, c_next
            hs[t], cs[t] = h, c
        else:
            useful = (options.lengths > t).unsqueeze(1)
            h, c = h_next.where(useful, h), c_next.where(useful, c)
            hs[t], cs[t] = h_next.where(useful, h.new_zeros(())), c_next.where(useful, c.new_zeros(()))
    return torch.stack(hs), h, c, torch.stack(cs)


def _pre_activations(z_x: Tensor, z_h: Tensor, bias: Tensor | None, variant: Variant) -> Tensor:
    """The gates' pre-activations [B, 4H] of a step; z_x and bias as `forward` has prepared them."""
    kind, gain = variant.cell.layer_norm, variant.extras.norm_gain
    if kind is None or gain is None:
        return z_x + z_h
    epsilon = variant.cell.layer_norm_epsilon
    if kind == "products":
        z = z_x + gain[1] * _normalized(z_h, epsilon)
    else:
        z = gain[0] * _normalized((z_x + z_h).unflatten(-1, (4, -1)), epsilon).flatten(-2)
    return z if bias is None else z + bias


def _normalized(values: Tensor, epsilon: float) -> Tensor:
    """(values - mean) / sqrt(variance + epsilon), over the last axis."""
    centred = values - values.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()


_OF_H, _ZONEOUT_H, _ZONEOUT_C, _OF_WEIGHTS = range(4)  # what a mask is for, as it is numbered for the generator


class _Masks:
    """The random masks of a call, the same as the kernels': of h and g [T or 1, B, .], of weight_hh; None without.

    zones: of h and c, 1 where the earlier value is kept; the rates in inference.
    """

    def __init__(self, variant: Variant, x: Tensor, hidden_size: int, output_size: int) -> None:
        cell = variant.cell
        self.h = self.g = self.weights = None
        self.zones: tuple[Tensor | float, Tensor | float] | None = cell.zoneout
        if variant.noise is None:
            return
        self._noise, self._like = variant.noise, x
        time_steps, batch = x.shape[:2]
        if cell.recurrent_dropout:
            drops_h = cell.recurrent_dropout_of == "h"
            steps = time_steps if cell.recurrent_dropout_per_step else None
            units = output_size if drops_h else hidden_size
            mask = self._drawn(_OF_H, steps, batch, units, cell.recurrent_dropout)
            self.h, self.g = (mask, None) if drops_h else (None, mask)
        if cell.zoneout is not None:
            purposes = zip((_ZONEOUT_H, _ZONEOUT_C), (output_size, hidden_size), cell.zoneout, strict=True)
            of_h, of_c = (self._drawn(purpose, time_steps, batch, units, rate) for purpose, units, rate in purposes)
            self.zones = of_h, of_c
        if cell.weight_dropout:
            drawn = self._drawn(_OF_WEIGHTS, None, output_size, 4 * hidden_size, cell.weight_dropout)
            self.weights = drawn[0].t()

    def _drawn(self, purpose: int, time_steps: int | None, rows: int, units: int, rate: float) -> Tensor:
        """Masks [time_steps or 1, rows, units], one for all steps without time_steps.

        They hold 0 and 1 / (1 - rate), for zoneout 1 where the earlier value is kept and 0 elsewhere.
        """
        seed, layer, first_step = self._noise
        steps = [0] if time_steps is None else [(first_step + t) % 2**32 for t in range(time_steps)]
        found = np.empty((len(steps), rows, units), np.float64 if self._like.dtype is torch.float64 else np.float32)
        for values, step in zip(found, steps, strict=True):
            _core.testing.mask(values, seed, layer, purpose, step, rate)
        return torch.from_numpy(found).to(device=self._like.device, dtype=self._like.dtype)


def _at(mask: Tensor, t: int) -> Tensor:
    return mask[t if len(mask) > 1 else 0]


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
    variant: Variant = _PLAIN,
    create_graph: bool = True,
) -> list[Tensor | None]:
    """Gradients of (x, h0, c0, *weights), and of variant.extras if it is given, where needed.

    Differentiable with create_graph.
    """
    with torch.enable_grad():
        # Views: the arguments' hooks run only in the outer backward pass, and a tensor given twice counts as two.
        every = x, h0, c0, *weights, *(() if variant is _PLAIN else variant.extras)
        arguments: list[Any] = [None if a is None else a.view_as(a) for a in every]
        x, h0, c0, *own = arguments
        count = len(weights)
        variant = variant._replace(extras=Extras(*own[count:]))
        h, h_n, c_n, _ = forward(x, h0, c0, Weights(*own[:count]), options, variant)
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
