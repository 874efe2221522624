"""`CharLM` with its loss and gradients on a GPU: what `lstmfast train --device cuda` trains.

Everything between parameters and gradients is done there: token rows, layers, projection, loss. Parameters, optimizer,
states between calls and checkpoints stay where they are on the CPU, so that a run looks the same whatever made it; each
step sends the parameters and fetches the gradients, two copies of one buffer. Sampling goes through `CharLM.stream`,
on the CPU: a step of few rows is a matter of latency.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import runtime
from lstmfast._checks import Array, State
from lstmfast.cuda import _stacks
from lstmfast.cuda._arrays import DeviceArray, default_device
from lstmfast.models import CharLM


class CudaCharLM(CharLM):
    """A `CharLM` whose `loss` and `loss_and_gradients` run on the CUDA device. Arguments and results as there, NumPy.

    Raises CudaUnavailableError with the reason where there is no device, no library or no framework; TypeError for
    float64. Numbers agree with the CPU's to float32 rounding, not to the bit.
    """

    _scratch_names = ("_framework", "_mirror", "_stack", "_input_drop", "_output_drop")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.dtype != np.float32:
            raise TypeError(f"dtype must be float32 on a CUDA device, got {self.dtype}")
        _stacks.refuse_variants(self.lstm)
        self._begin()

    def _begin(self) -> None:
        self._framework, like = default_device()
        self._mirror = _stacks.Mirror(self._framework, like, _stacks.shapes_of(self.parameters))
        self._stack = _stacks.Stack(
            self._framework, num_layers=self.num_layers, bidirectional=False,
            dropout=self.dropout, forget_bias=self.forget_bias,
        )  # fmt: skip
        self._input_drop, self._output_drop = _stacks.Dropout(self.dropout), _stacks.Dropout(self.dropout)

    def loss(
        self, inputs: npt.NDArray[Any], targets: npt.NDArray[Any], state: State | None = None
    ) -> tuple[float, State]:
        """As `CharLM.loss`."""
        inputs, targets = self._pair(inputs, targets)
        _, features, final = self._run_on_device(inputs, state, training=False, rng=None)
        losses, _ = self._losses(features, targets)
        return self._mean(losses), final

    def loss_and_gradients(
        self,
        inputs: npt.NDArray[Any],
        targets: npt.NDArray[Any],
        state: State | None = None,
        *,
        rng: np.random.Generator | None = None,
    ) -> tuple[float, State]:
        """As `CharLM.loss_and_gradients`."""
        framework = self._framework
        inputs, targets = self._pair(inputs, targets)
        rng = self._dropout_rng(rng)
        ids, features, final = self._run_on_device(inputs, state, training=True, rng=rng)
        features = self._output_drop(features, framework, rng)
        losses, d_logits = self._losses(features, targets)
        d_logits = d_logits * (1.0 / targets.size)
        kernel = self._mirror.parameters["projection.kernel"]
        d_features = self._output_drop.backward(framework.product(d_logits, kernel.T, "float32"))
        d_x, _, gradients = self._stack.backward(d_features.reshape(*inputs.shape, self.hidden_size), (None, None))
        gradients = {f"lstm.{name}": gradient for name, gradient in gradients.items()}
        gradients["projection.kernel"] = framework.product(features.T, d_logits, "float32")
        gradients["projection.bias"] = framework.column_sums(d_logits, "float32")
        if d_x is not None:
            d_rows = self._input_drop.backward(d_x).reshape(inputs.size, -1)
            gradients["embedding"] = framework.add_rows(d_rows, ids.reshape(-1), self.vocab_size)
        self._mirror.fetch(gradients, self.gradient_buffer)
        return self._mean(losses), final

    def _run_on_device(
        self, inputs: Array, state: State | None, *, training: bool, rng: np.random.Generator | None
    ) -> tuple[DeviceArray, DeviceArray, State]:
        """The ids there, the top layer's outputs [T*B, H] there, and the final state, here."""
        framework, like = self._framework, self._mirror.like
        initial = self.lstm.check_state("state", state, inputs.shape[1])
        self._mirror.send(self.parameter_buffer, training=training)
        ids = framework.from_host(inputs, like)
        x = ids
        if self.embedding_size is not None:
            rows = framework.rows_at(self._mirror.parameters["embedding"], ids.reshape(-1))
            x = self._input_drop(rows.reshape(*inputs.shape, self.embedding_size), framework, rng)
        of_the_stack = {
            name.removeprefix("lstm."): values
            for name, values in self._mirror.parameters.items()
            if name.startswith("lstm.")
        }
        h0, c0 = initial
        sent = (
            (None, None) if h0 is None else (framework.from_host(h0, like), framework.from_host(np.asarray(c0), like))
        )
        h, (h_n, c_n) = self._stack.forward(
            x, of_the_stack, sent, lengths=None, resets=None, training=training, rng=rng,
            matmul_precision=runtime.get_matmul_precision(),
        )  # fmt: skip
        features = framework.contiguous(h.reshape(inputs.size, self.hidden_size))
        return ids, features, (framework.to_host(h_n).copy(), framework.to_host(c_n).copy())

    def _losses(self, features: DeviceArray, targets: Array) -> tuple[DeviceArray, DeviceArray]:
        framework, parameters = self._framework, self._mirror.parameters
        logits = framework.product(features, parameters["projection.kernel"], "float32") + parameters["projection.bias"]
        return framework.cross_entropy(logits, framework.from_host(targets.reshape(-1), self._mirror.like))

    def _mean(self, losses: DeviceArray) -> float:
        return float(self._framework.to_host(losses).mean(dtype=np.float64))
