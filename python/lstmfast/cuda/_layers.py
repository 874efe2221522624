"""`LSTM` for arrays on a GPU: what a layer's call and its backward become when x lies there."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from lstmfast import runtime
from lstmfast._checks import Array
from lstmfast.cuda import _sequences, _stacks
from lstmfast.cuda._arrays import DeviceArray

State = _stacks.State


class Layer(Protocol):
    """What is asked of a `layers.LSTM`."""

    num_layers: int
    bidirectional: bool
    batch_first: bool
    dropout: float
    forget_bias: float
    dtype: np.dtype[Any]
    parameters: dict[str, Array]
    parameter_buffer: Array
    gradient_buffer: Array


class LayerOnDevice:
    """One layer's weights and last call on one device. Made by the first call there, and kept by the layer."""

    def __init__(self, layer: Layer, x: DeviceArray) -> None:
        if layer.dtype != np.float32:
            raise TypeError(f"a layer must be float32 to run on a CUDA device, this one is {layer.dtype}")
        _stacks.refuse_variants(layer)
        on = _sequences.context_of(x)
        self._layer, self._on = layer, on
        self._mirror = _stacks.Mirror(on.framework, on.like, _stacks.shapes_of(layer.parameters))
        self._stack = _stacks.Stack(
            on.framework, num_layers=layer.num_layers, bidirectional=layer.bidirectional,
            dropout=layer.dropout, forget_bias=layer.forget_bias,
        )  # fmt: skip

    def serves(self, x: DeviceArray) -> bool:
        """Tell whether x is of the framework and the device that this is for."""
        on = _sequences.context_of(x)
        return on.framework is self._on.framework and on.device == self._on.device

    def __call__(
        self,
        x: DeviceArray,
        state: State | None,
        *,
        lengths: Any,
        resets: Any,
        training: bool,
        rng: np.random.Generator | None,
    ) -> tuple[DeviceArray, State]:
        """As `LSTM.__call__`."""
        self._mirror.send(self._layer.parameter_buffer, training=training)
        h, final = self._stack.forward(
            self._time_major(x), self._mirror.parameters, _pair("state", state),
            lengths=lengths, resets=self._time_major(resets), training=training, rng=rng,
            matmul_precision=runtime.get_matmul_precision(),
        )  # fmt: skip
        return self._time_major(h), final

    def backward(self, d_h: DeviceArray | None, d_state: State | None) -> tuple[DeviceArray | None, State]:
        """As `LSTM.backward`. Waits for the device, because gradients are kept on the host."""
        d_x, d_initial, gradients = self._stack.backward(self._time_major(d_h), _pair("d_state", d_state))
        self._mirror.fetch(gradients, self._layer.gradient_buffer)
        return self._time_major(d_x), d_initial

    def _time_major(self, array: Any) -> Any:
        return array.swapaxes(0, 1) if self._layer.batch_first and array is not None else array


def _pair(name: str, value: Any) -> Any:
    if value is None:
        return None, None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair of arrays (h, c), got {type(value).__name__}")
    return value
