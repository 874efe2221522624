"""The works in lstmfast, as a user would write them. Imports lstmfast and NumPy only; see worker.py."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import lstmfast as lf
from lstmfast import _core

Problem = Mapping[str, npt.NDArray[Any]]


def version(threads: int) -> str:
    """Set up the library; return its version and ISA."""
    lf.set_num_threads(threads)
    return f"{lf.__version__} ({_core.current_isa()})"


def peaks(read_sizes: Mapping[str, int]) -> dict[str, Any]:
    """The peaks of one core, measured now; machine.py explains the sizes.

    {"flops": {kind of arithmetic: operations per second}, "reads": [{"from", "bytes", "bytes_per_second"}, ...]}.
    Kinds that this CPU or build lacks are omitted.
    """
    flops = {dtype: _core.probe_flops(dtype) for dtype in ("float32", "float64")}
    reads = [
        {"from": place, "bytes": size, "bytes_per_second": _core.probe_read_bandwidth(size)}
        for place, size in read_sizes.items()
    ]
    return {"flops": flops, "reads": reads}


class Step:
    """One step of one layer, state and packed weights inside a stream."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        layer = _layer(problem, settings)
        self._stream = layer.stream(problem["x"].shape[1], weights=settings.get("weights", "float32"))
        self._steps = problem["x"].astype(layer.dtype)
        self._x = self._steps[0].copy()

    def step(self) -> None:
        """Advance by one step."""
        self._stream.step(self._x)

    def values(self) -> dict[str, Any]:
        """Outputs of a few steps from a state of zeros."""
        self._stream.reset()
        return {"h": np.stack([self._stream.step(x).copy() for x in self._steps])}


class Sequence:
    """One layer over whole sequences: inference, or forward and backward with the gradients of x, kernel and bias.

    Where the settings say how weights are kept, a frozen copy of the layer runs.
    """

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        self._layer: Any = _layer(problem, settings)
        dtype = self._layer.dtype
        if "weights" in settings:
            self._layer = self._layer.inference(weights=settings["weights"])
        self._x, self._d_h = problem["x"].astype(dtype), problem["d_h"].astype(dtype)
        self._lengths = problem.get("lengths")
        self.step = self._train if settings["training"] else self._infer

    def _infer(self) -> dict[str, Any]:
        return {"h": self._layer(self._x, lengths=self._lengths)[0]}

    def _train(self) -> dict[str, Any]:
        h, _ = self._layer(self._x, lengths=self._lengths, training=True)
        d_x, _ = self._layer.backward(self._d_h)
        gradients = self._layer.gradients
        return {"h": h, "d_x": d_x, "d_kernel": gradients["layer0.kernel"], "d_bias": gradients["layer0.bias"]}

    def values(self) -> dict[str, Any]:
        """Outputs, and gradients if there are any."""
        return self.step()


class Training:
    """One update of a character model: forward, loss, backward, clipping, optimizer. State carried on."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        self._model = _model(problem, settings)
        self._optimizer = {"sgd": lf.optimizers.SGD, "adam": lf.optimizers.Adam}[settings["optimizer"]]()
        self._optimizer.init(self._model.parameter_buffer)
        self._learning_rate, self._clip_norm = settings["learning_rate"], settings["clip_norm"]
        self._batches = itertools.cycle(zip(problem["inputs"], problem["targets"], strict=True))
        self._agreement_steps = settings["agreement_steps"]
        self._state: Any = None

    def step(self) -> float:
        """Return the loss before the update, in nats per character."""
        model = self._model
        loss, self._state = model.loss_and_gradients(*next(self._batches), self._state)
        scale = lf.losses.clip_scale(_core.global_norm(model.gradient_buffer), self._clip_norm)
        self._optimizer.update(
            model.parameter_buffer, model.gradient_buffer, learning_rate=self._learning_rate, gradient_scale=scale
        )
        return loss

    def values(self) -> dict[str, Any]:
        """The losses of the first updates."""
        return {"losses": np.array([self.step() for _ in range(self._agreement_steps)])}


class Sampling:
    """Characters drawn one by one from one stream, in pieces."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        self._stream = _model(problem, settings).stream()
        self._token = np.zeros(1, np.int32)
        self._pieces = itertools.cycle(problem["uniforms"])

    def step(self) -> npt.NDArray[Any]:
        """Return the ids of one piece."""
        return self._stream.generate(self._token, next(self._pieces)[:, None])

    def values(self) -> dict[str, Any]:
        """The first characters."""
        return {"ids": self.step().ravel()}


def _layer(problem: Problem, settings: Mapping[str, Any]) -> lf.LSTM:
    """A layer with the problem's weights, with the dtype and precision of the settings."""
    lf.set_matmul_precision(settings.get("precision", "highest"))
    rows, columns = problem["kernel"].shape
    hidden_size = columns // 4
    layer = lf.LSTM(rows - hidden_size, hidden_size, forget_bias=0.0, dtype=settings.get("dtype", "float32"))
    layer.cells[0].kernel[...] = problem["kernel"]
    layer.cells[0].bias[...] = problem["bias"]
    return layer


def _model(problem: Problem, settings: Mapping[str, Any]) -> lf.CharLM:
    """A one-layer character model with the problem's weights."""
    lf.set_matmul_precision(settings.get("precision", "highest"))
    hidden_size, vocab_size = problem["projection.kernel"].shape
    return lf.CharLM(
        vocab_size, hidden_size, forget_bias=settings["forget_bias"], initializer=lambda name, *_: problem[name]
    )


WORKS: dict[str, Any] = {
    "step": Step,
    "sequence": Sequence,
    "training": Training,
    "sampling": Sampling,
}
