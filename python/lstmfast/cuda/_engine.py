"""The CUDA engine: implements the interface of layers and models with a framework's arrays on a GPU.

Results are written into the caller's arrays; a direction of a layer is one call of `_sequences`. The weights stay on
the host, for optimizers and checkpoints: `Mirror` copies the buffer to the device after a write, and gradients back in
one piece.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np

from lstmfast import _core
from lstmfast._checks import Array
from lstmfast._engine.buffers import ParameterBuffer
from lstmfast._engine.results import Output
from lstmfast.cells import Cell
from lstmfast.cuda import _sequences
from lstmfast.cuda._arrays import DeviceArray, default_device
from lstmfast.cuda._kernels import Context
from lstmfast.initializers import Shape


class CudaEngine:
    """`_engine.engine.Engine` on one device, with the arrays of one framework."""

    place = _sequences.PLACE
    features = _sequences.FEATURES
    projected_classes = math.inf  # models keep to their own array of logits

    def __init__(self, on: Context) -> None:
        self._on, self._framework = on, on.framework

    @classmethod
    def of(cls, x: DeviceArray) -> CudaEngine:
        """The engine for x's device. Raises as `_sequences.context_of`."""
        return cls(_sequences.context_of(x))

    @classmethod
    def default(cls) -> CudaEngine:
        """The first device, for callers with no array on it. Raises CudaUnavailableError without one."""
        return cls.of(default_device()[1])

    def serves(self, x: DeviceArray) -> bool:
        """Whether x is of this framework and on this device."""
        on = _sequences.context_of(x)
        return on.framework is self._framework and on.device == self._on.device

    def undisturbed(self) -> contextlib.AbstractContextManager[Any]:
        """Without autograd and autocast, on this device."""
        return self._framework.undisturbed(self._on.like)

    def check_input(self, x: DeviceArray, input_size: int) -> DeviceArray:
        """Return x if it has the axes of dense input or of ids. Raises ValueError otherwise."""
        shape = tuple(x.shape)
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != input_size):
            raise ValueError(
                f"x must have shape (time_steps, batch, {input_size}) or be ids (time_steps, batch), got {shape}"
            )
        return self._framework.plain(x)

    def empty(self, shape: Shape, dtype: Any) -> DeviceArray:
        """A new array."""
        return self._framework.empty(shape, str(dtype), self._on.like)

    def to_engine(self, values: Array) -> DeviceArray:
        """A host array, copied to the device."""
        return self._framework.from_host(values, self._on.like)

    def to_host(self, values: DeviceArray) -> Array:
        """A copy on the host. Waits for the device."""
        return np.array(self._framework.to_host(values))

    def sequence(self, reverse: bool, cell: Cell) -> DeviceSequence:
        """One direction of a layer of these cells."""
        return DeviceSequence(reverse, cell)

    def linear(self, x: DeviceArray, kernel: DeviceArray, bias: DeviceArray, out: DeviceArray) -> None:
        """out = x @ kernel + bias."""
        out[...] = self._framework.product(self._framework.contiguous(x), kernel, "float32") + bias

    def linear_backward(
        self,
        x: DeviceArray,
        kernel: DeviceArray,
        d_out: DeviceArray,
        d_x: DeviceArray,
        d_kernel: DeviceArray,
        d_bias: DeviceArray,
    ) -> None:
        """The derivatives of `linear`."""
        framework = self._framework
        d_x[...] = framework.product(d_out, kernel.T, "float32")
        d_kernel[...] = framework.product(x.T, d_out, "float32")
        d_bias[...] = framework.column_sums(d_out, "float32")

    def gather(self, table: DeviceArray, ids: DeviceArray, out: DeviceArray) -> None:
        """out = rows of table at ids."""
        out[...] = self._framework.rows_at(table, ids)

    def scatter(self, d_out: DeviceArray, ids: DeviceArray, d_table: DeviceArray, add: bool = False) -> None:
        """The derivative of `gather`."""
        rows = self._framework.add_rows(d_out, ids, d_table.shape[0])
        d_table[...] = d_table + rows if add else rows

    def multiply(self, x: DeviceArray, mask: DeviceArray, out: DeviceArray) -> None:
        """out = x * mask."""
        out[...] = x * mask

    def cross_entropy(self, logits: DeviceArray, targets: DeviceArray) -> float:
        """Mean loss of targets; logits become its derivative. Waits for the device."""
        losses, d_logits = self._framework.cross_entropy(logits, targets)
        logits[...] = d_logits * (1.0 / logits.shape[0])
        return float(self._framework.to_host(losses).mean(dtype=np.float64))

    def projected_cross_entropy(
        self,
        x: DeviceArray,
        kernel: DeviceArray,
        bias: DeviceArray,
        targets: DeviceArray,
        derivatives: tuple[DeviceArray, DeviceArray, DeviceArray] | None,
        *,
        transposed: bool,
    ) -> float:
        """As `Engine.projected_cross_entropy`, but of all logits at once."""
        logits = self.empty((x.shape[0], bias.shape[0]), "float32")
        self.linear(x, kernel.T if transposed else kernel, bias, logits)
        loss = self.cross_entropy(logits, targets)
        if derivatives is not None:
            d_x, d_kernel, d_bias = derivatives
            if transposed:
                kernel, d_kernel = kernel.T, d_kernel.T
            self.linear_backward(x, kernel, logits, d_x, d_kernel, d_bias)
        return loss


class DeviceSequence:
    """One direction of one layer: `_core.Sequence` for arrays on a device."""

    def __init__(self, reverse: bool, cell: Cell) -> None:
        self._reverse, self._cell = reverse, cell
        self._out: Output | None = None

    def load(
        self,
        kernel: DeviceArray,
        bias: DeviceArray,
        peepholes: DeviceArray | None = None,
        projection: DeviceArray | None = None,
        frozen: bool = False,
        *,
        weights: str = "float32",
        norms: tuple[DeviceArray, DeviceArray, DeviceArray] | None = None,
        initial: tuple[DeviceArray, DeviceArray] | None = None,
    ) -> None:
        """Set the weights of the following calls. There are none of other than standard cells: see `FEATURES`."""
        self._kernel, self._bias = kernel, bias

    def forward(
        self,
        x: DeviceArray,
        h: DeviceArray,
        h_n: DeviceArray,
        c_n: DeviceArray,
        h0: DeviceArray | None = None,
        c0: DeviceArray | None = None,
        lengths: Any = None,
        resets: Any = None,
        cells: DeviceArray | None = None,
        gates: DeviceArray | None = None,
        keep_for_backward: bool = False,
        matmul_precision: str = "highest",
        noise: tuple[int, int, int] | None = None,
    ) -> None:
        """Fill h, h_n and c_n."""
        out = _sequences.lstm(
            x, self._kernel, self._bias, h0, c0, lengths=lengths, resets=resets, reverse=self._reverse,
            forget_bias=self._cell.forget_bias, return_cells=cells is not None, return_gates=gates is not None,
            keep_for_backward=keep_for_backward, matmul_precision=matmul_precision,
        )
        _fill((h, out.h), (h_n, out.h_n), (c_n, out.c_n), (cells, out.cells), (gates, out.gates))
        self._out = out if keep_for_backward else None

    def backward(
        self,
        d_h: DeviceArray | None = None,
        d_h_n: DeviceArray | None = None,
        d_c_n: DeviceArray | None = None,
        d_x: DeviceArray | None = None,
        d_kernel: DeviceArray | None = None,
        d_bias: DeviceArray | None = None,
        d_h0: DeviceArray | None = None,
        d_c0: DeviceArray | None = None,
        d_peepholes: DeviceArray | None = None,
        d_projection: DeviceArray | None = None,
        d_norms: tuple[DeviceArray, DeviceArray, DeviceArray] | None = None,
        d_initial: tuple[DeviceArray, DeviceArray] | None = None,
    ) -> None:
        """Fill the given outputs, d_x and those after it."""
        assert self._out is not None and self._out._saved is not None
        d = self._out._saved.backward(d_h, d_h_n, d_c_n)
        _fill((d_x, d.x), (d_kernel, d.kernel), (d_bias, d.bias), (d_h0, d.h0), (d_c0, d.c0))


def _fill(*pairs: tuple[DeviceArray | None, DeviceArray | None]) -> None:
    """Copy each pair's second array into its first, unless that is None."""
    for into, values in pairs:
        if into is not None:
            into[...] = values


class Mirror:
    """A host parameter buffer's copy on a device: `storage` has arrays of the same names and shapes."""

    def __init__(self, engine: CudaEngine, host: ParameterBuffer) -> None:
        self._engine, self._host = engine, host
        shapes = {name: values.shape for name, values in host.parameters.items()}
        values, gradient_values = (engine.empty(host.values.shape, host.values.dtype) for _ in range(2))
        self.storage = ParameterBuffer._bind(values, gradient_values, shapes)
        self._sent: tuple[int, int] | None = None

    def send(self, *, training: bool) -> None:
        """Update the copy. Values equal to those sent last are not sent; in training they always differ."""
        fingerprint = None if training else _core.fingerprint(self._host.values)
        if fingerprint is None or self._sent != fingerprint:
            self.storage.values[...] = self._engine.to_engine(self._host.values)
        self._sent = fingerprint

    def fetch(self) -> None:
        """Fill the host's gradient buffer. Waits for the device."""
        self._host.gradient_values[...] = self._engine.to_host(self.storage.gradient_values)
