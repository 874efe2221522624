"""A stack of layers on a GPU: the same weights, sent there when they have changed, and the same order of work.

The weights' home stays the host, where optimizers and checkpoints find them: a device gets a copy of the buffer after a
write, and gradients come back in one piece. Dropout draws on the host, so that a seed means the same numbers on either.
Refuses to check what `layers` has checked, and variants of the cell that the kernels do not have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _core
from lstmfast._engine.results import Output
from lstmfast.cuda import _sequences
from lstmfast.cuda._arrays import DeviceArray, Framework

State = tuple[DeviceArray, DeviceArray]


class Mirror:
    """A buffer of parameters on a device: `parameters`, views of one device array by name, as they are on the host."""

    def __init__(self, framework: Framework, like: DeviceArray, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.framework, self.like = framework, like
        self._shapes = shapes
        self._sent: tuple[int, int] | None = None
        self.parameters: dict[str, DeviceArray] = {}

    def send(self, values: npt.NDArray[Any], *, training: bool) -> None:
        """Bring the copy up to date. Values that are those sent last are not sent; while training they never are."""
        fingerprint = None if training else _core.fingerprint(values)
        if fingerprint is not None and self._sent == fingerprint:
            return
        buffer, start = self.framework.from_host(values, self.like), 0
        for name, shape in self._shapes.items():
            self.parameters[name] = buffer[start : start + math.prod(shape)].reshape(shape)
            start += math.prod(shape)
        self._sent = fingerprint

    def fetch(self, gradients: Mapping[str, DeviceArray], into: npt.NDArray[Any]) -> None:
        """Fill the host's gradient buffer from gradients by name. Waits for the device."""
        into[...] = self.framework.to_host(self.framework.join([gradients[name].reshape(-1) for name in self._shapes]))


class Dropout:
    """`layers.Dropout` with the values on a device: the mask is drawn on the host, from the same generator."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._mask: DeviceArray | None = None

    def __call__(self, x: DeviceArray, framework: Framework, rng: np.random.Generator | None) -> DeviceArray:
        """x with some values dropped; with rng None x."""
        if rng is None or self._rate == 0.0:
            self._mask = None
            return x
        mask = (rng.random(tuple(x.shape), dtype=np.float32) >= self._rate).astype(np.float32)
        self._mask = framework.from_host(mask * np.float32(1.0 / (1.0 - self._rate)), x)
        return x * self._mask

    def backward(self, gradient: DeviceArray) -> DeviceArray:
        """The derivative by the last call's x."""
        return gradient if self._mask is None else gradient * self._mask


class Stack:
    """Layers over whole sequences on a device. Time-major; cells as in `LSTM.cells`, names as in `LSTM.parameters`."""

    def __init__(
        self, framework: Framework, *, num_layers: int, bidirectional: bool, dropout: float, forget_bias: float
    ) -> None:
        self._framework = framework
        self._num_layers, self._num_directions = num_layers, 2 if bidirectional else 1
        self._forget_bias = forget_bias
        self._dropouts = [Dropout(dropout) for _ in range(num_layers - 1)]
        self._outs: list[Output] = []

    def forward(
        self,
        x: DeviceArray,
        parameters: Mapping[str, DeviceArray],
        state: State | tuple[None, None],
        *,
        lengths: Any,
        resets: Any,
        training: bool,
        rng: np.random.Generator | None,
        matmul_precision: str,
    ) -> tuple[DeviceArray, State]:
        """Return h of the top layer, and the final state."""
        framework = self._framework
        self._outs = []
        finals = []
        for layer in range(self._num_layers):
            halves = []
            for direction in range(self._num_directions):
                k = layer * self._num_directions + direction
                name = self._name(k)
                h0, c0 = (None if part is None else part[k] for part in state)
                out = _sequences.lstm(
                    x, parameters[f"{name}.kernel"], parameters[f"{name}.bias"], h0, c0, lengths=lengths,
                    resets=resets, reverse=direction == 1, forget_bias=self._forget_bias, return_cells=False,
                    return_gates=False, keep_for_backward=training, matmul_precision=matmul_precision,
                )  # fmt: skip
                halves.append(out.h)
                finals.append((out.h_n, out.c_n))
                if training:
                    self._outs.append(out)
            x = halves[0] if len(halves) == 1 else framework.join(halves, 2)
            if layer < self._num_layers - 1:
                x = self._dropouts[layer](x, framework, rng)
        h_n, c_n = (framework.join([part[None] for part in parts]) for parts in zip(*finals, strict=True))
        return x, (h_n, c_n)

    def backward(
        self, d_h: DeviceArray | None, d_state: State | tuple[None, None]
    ) -> tuple[DeviceArray | None, State, dict[str, DeviceArray]]:
        """Return the derivatives by x (None for ids), by the initial state, and by every parameter."""
        framework = self._framework
        gradients: dict[str, DeviceArray] = {}
        initial: list[Any] = [None] * len(self._outs)
        for layer in reversed(range(self._num_layers)):
            below: DeviceArray | None = None
            for direction in range(self._num_directions):
                k = layer * self._num_directions + direction
                out = self._outs[k]
                hidden_size = out.h.shape[2]
                columns = slice(direction * hidden_size, (direction + 1) * hidden_size)
                d_h_n, d_c_n = (None if part is None else part[k] for part in d_state)
                assert out._saved is not None
                d = out._saved.backward(None if d_h is None else d_h[:, :, columns], d_h_n, d_c_n)
                gradients |= {f"{self._name(k)}.kernel": d.kernel, f"{self._name(k)}.bias": d.bias}
                initial[k] = (d.h0, d.c0)
                below = d.x if below is None else below + d.x
            if layer and below is not None:
                below = self._dropouts[layer - 1].backward(below)
            d_h = below
        d_h0, d_c0 = (framework.join([part[None] for part in parts]) for parts in zip(*initial, strict=True))
        return d_h, (d_h0, d_c0), gradients

    def _name(self, k: int) -> str:
        layer, direction = divmod(k, self._num_directions)
        return f"layer{layer}{'_reverse' if direction else ''}"


def shapes_of(parameters: Mapping[str, npt.NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the variables, in the order of the buffer."""
    return {name: values.shape for name, values in parameters.items()}


def refuse_variants(layer: object) -> None:
    """Raise ValueError for a layer whose cell is another than the kernels', by what it was made with."""
    given = [name for name in ("projection_size", "peepholes", "cell_clip", "coupled_gates") if getattr(layer, name)]
    if given:
        raise ValueError(f"{given[0]} must not be given for a layer that runs on a CUDA device: no kernel there has it")
