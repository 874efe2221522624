"""nn.LSTM and nn.LSTMCell from their equations: torch operations in float64, step by step, on copies.

They decide for the fuzzer which side is right when torch and lstmfast differ. Slow, differentiable to any order, and
sharing no memory with arguments or weights, so later writes cannot change gradients. Checks no arguments.
Within `disturbed` all numbers are off by the rounding of a dtype, to measure how far rounding grows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

_disturbance: tuple[float, np.random.Generator] | None = None  # for all threads: programs call from several


@contextlib.contextmanager
def disturbed(unit: float, seed: int) -> Iterator[None]:
    """Inside, inputs, weights, and all values of a step are off by one unit, up or down at random."""
    global _disturbance
    _disturbance = unit, np.random.default_rng(seed)  # torch's generator is the program's
    try:
        yield
    finally:
        _disturbance = None


def rounded(tensor: Tensor) -> Tensor:
    """The tensor, or within `disturbed` the tensor with random rounding; its gradients get the same factor."""
    return tensor if _disturbance is None else tensor * (1 + _units(tensor))


def _units(tensor: Tensor) -> Tensor:
    """Plus or minus one unit for each number of a tensor."""
    assert _disturbance is not None
    unit, rng = _disturbance
    return torch.from_numpy(rng.choice([-unit, unit], tuple(tensor.shape)))


def sigmoid(z: Tensor) -> Tensor:
    """The logistic function; within `disturbed` y(z) rounded, with the slope y * (1 - y) of the rounded y."""
    y = z.sigmoid()
    return y if _disturbance is None else y + _error(z, y, 1 - 2 * y)


def tanh(z: Tensor) -> Tensor:
    """Likewise, with the slope 1 - y * y: near 1 a unit of y is a large part of it."""
    y = z.tanh()
    return y if _disturbance is None else y + _error(z, y, -2 * y)


def _error(z: Tensor, y: Tensor, growth: Tensor) -> Tensor:
    """The rounding error of y(z). Its derivative follows from the differential equation of y."""
    return _units(y) * y.detach() * (growth.detach() * (z - z.detach())).exp()


def exact(tensor: Tensor) -> Tensor:
    """A float64 copy that passes gradients to the original."""
    return rounded(tensor.to(torch.float64, copy=True))


def step(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """One step of x [batch, input_size]; weights: w_ih, w_hh, b_ih, b_hh, w_hr, the last three may be None."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    gates = rounded(nn.functional.linear(x, w_ih, b_ih) + nn.functional.linear(h, w_hh, b_hh))
    i, f, g, o = gates.chunk(4, -1)
    c = rounded(sigmoid(f) * c + sigmoid(i) * tanh(g))
    h = sigmoid(o) * tanh(c)
    return rounded(h if w_hr is None else h @ w_hr.t()), c


class PlainLSTM(nn.LSTM):
    """torch.nn.LSTM, whose forward reads `_flat_weights` as torch's does."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """See torch.nn.LSTM."""
        self._update_flat_weights()
        packed, batched = isinstance(input, PackedSequence), True
        order = back = None
        if packed:
            data, batch_sizes, order, back = input
            sizes = batch_sizes.tolist()
        else:
            batched, x = input.dim() == 3, input
            x = x if batched else x.unsqueeze(0 if self.batch_first else 1)
            x = x.transpose(0, 1) if self.batch_first else x
            sizes = [x.shape[1]] * x.shape[0]
            data = x.flatten(0, 1)
        if hx is None:
            shape = self.num_layers * (2 if self.bidirectional else 1), sizes[0]
            hx = data.new_zeros(*shape, self.proj_size or self.hidden_size), data.new_zeros(*shape, self.hidden_size)
        elif not batched:
            hx = hx[0].unsqueeze(1), hx[1].unsqueeze(1)
        elif order is not None:
            hx = hx[0].index_select(1, order), hx[1].index_select(1, order)
        output, h_n, c_n = self._stack(data, sizes, exact(hx[0]), exact(hx[1]))
        if packed:
            if back is not None:
                h_n, c_n = h_n.index_select(1, back), c_n.index_select(1, back)
            return PackedSequence(output, batch_sizes, order, back), (h_n, c_n)
        output = output.unflatten(0, (len(sizes), sizes[0]))
        output = output.transpose(0, 1) if self.batch_first else output
        if batched:
            return output, (h_n, c_n)
        return output.squeeze(0 if self.batch_first else 1), (h_n.squeeze(1), c_n.squeeze(1))

    def _stack(self, data: Tensor, sizes: list[int], h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All layers over data [sum(sizes), features], `sizes` rows a step and never more than the step before."""
        dtype, each = data.dtype, 2 + 2 * self.bias + bool(self.proj_size)
        h_n, c_n = [], []
        for layer in range(self.num_layers):
            if layer:
                data = dropout(data, self.dropout, self.training)
            outputs = []
            for backward in range(2 if self.bidirectional else 1):
                cell = len(h_n)
                flat: list[Any] = [exact(w) for w in self._flat_weights[cell * each : (cell + 1) * each]]
                bias = flat[2:4] if self.bias else [None, None]
                weights = [*flat[:2], *bias, flat[-1] if self.proj_size else None]
                steps = list(exact(data).split(sizes))
                h, c = h0[cell], c0[cell]
                for t in range(len(sizes))[:: -1 if backward else 1]:
                    rows = sizes[t]
                    new_h, new_c = step(steps[t], h[:rows], c[:rows], weights)
                    h, c, steps[t] = torch.cat([new_h, h[rows:]]), torch.cat([new_c, c[rows:]]), new_h
                outputs.append(torch.cat(steps))
                h_n.append(h)
                c_n.append(c)
            data = torch.cat(outputs, -1).to(dtype)
        return data, torch.stack(h_n).to(dtype), torch.stack(c_n).to(dtype)


class PlainLSTMCell(nn.LSTMCell):
    """torch.nn.LSTMCell."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Tensor]:
        """See torch.nn.LSTMCell."""
        if hx is None:
            hx = (input.new_zeros(*input.shape[:-1], self.hidden_size),) * 2
        bias = (exact(self.bias_ih), exact(self.bias_hh)) if self.bias else (None, None)
        weights = [exact(self.weight_ih), exact(self.weight_hh), *bias, None]
        h, c = step(exact(input), exact(hx[0]), exact(hx[1]), weights)
        return h.to(input.dtype), c.to(input.dtype)
