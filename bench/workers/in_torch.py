"""The works in PyTorch, as a user who knows it well would write them. Imports torch and NumPy only; see worker.py.

PyTorch orders its gates as lstmfast does (i, f, g, o) and has two biases: the second is zero and fixed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Problem = Mapping[str, npt.NDArray[Any]]


def version(threads: int) -> str:
    """Set up the library; return its version and ISA."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    return f"{torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"


class Step:
    """One step: nn.LSTMCell, which is faster here than nn.LSTM with T = 1."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        self._cell = _lstm(torch.nn.LSTMCell, problem)
        self._steps = torch.from_numpy(problem["x"])
        self._x = self._steps[0].clone()
        self._state: Any = None

    context = torch.inference_mode

    def step(self) -> None:
        """Advance by one step."""
        self._state = self._cell(self._x, self._state)

    def values(self) -> dict[str, Any]:
        """Outputs of a few steps from a state of zeros."""
        state, outputs = None, []
        for x in self._steps:
            state = self._cell(x, state)
            outputs.append(state[0])
        self._state = state
        return {"h": torch.stack(outputs).numpy()}


class Sequence:
    """nn.LSTM: inference mode, or forward and backward. Rows of different lengths are packed before the timing."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        dtype = getattr(torch, settings.get("dtype", "float32"))
        self._casting: Callable[[], Any] = contextlib.nullcontext
        if settings.get("precision") == "autocast":
            self._casting = lambda: torch.autocast("cpu", torch.bfloat16)
        if settings.get("precision") == "fp32_precision":
            if not hasattr(torch.backends.mkldnn, "rnn"):
                raise NotImplementedError("torch.backends.mkldnn.rnn.fp32_precision came with PyTorch 2.9")
            torch.backends.mkldnn.rnn.fp32_precision = "bf16"
        self._lstm = _lstm(torch.nn.LSTM, problem, dtype)
        if settings.get("weights") == "int8":
            inside = torch.nn.Sequential(self._lstm)  # its children are what quantize_dynamic replaces
            self._lstm = torch.ao.quantization.quantize_dynamic(inside, {torch.nn.LSTM})[0]
        self._x, self._d_h = (torch.from_numpy(problem[name]).to(dtype) for name in ("x", "d_h"))
        self._time_steps = len(self._x)
        self._packed = "lengths" in problem
        if self._packed:
            lengths = torch.from_numpy(problem["lengths"])
            self._x, self._d_h = (
                torch.nn.utils.rnn.pack_padded_sequence(data, lengths, enforce_sorted=False)
                for data in (self._x, self._d_h)
            )
        if settings["training"]:
            data = self._x.data if self._packed else self._x
            parameters = [parameter for parameter in self._lstm.parameters() if parameter.requires_grad]
            self._wanted = [data.requires_grad_(), *parameters]
        self.step = self._train if settings["training"] else self._infer
        self.context = contextlib.nullcontext if settings["training"] else torch.inference_mode

    def _infer(self) -> Any:
        with self._casting():
            return self._lstm(self._x)[0], ()

    def _train(self) -> Any:
        with self._casting():
            h, _ = self._lstm(self._x)
        out, d_out = (h.data, self._d_h.data) if self._packed else (h, self._d_h)
        return h, torch.autograd.grad(out, self._wanted, d_out.to(out.dtype))

    def values(self) -> dict[str, Any]:
        """Outputs, and gradients if there are any, in lstmfast's layout."""
        h, gradients = self.step()
        values = {"h": self._padded(h)}
        if gradients:
            d_x, d_input, d_recurrent, d_bias = gradients
            values["d_x"] = self._padded(self._x._replace(data=d_x) if self._packed else d_x)
            values["d_kernel"] = torch.cat([d_input.T, d_recurrent.T])
            values["d_bias"] = d_bias
        kept = torch.float64 if h.data.dtype == torch.float64 else torch.float32
        return {name: value.detach().to(kept).numpy() for name, value in values.items()}

    def _padded(self, sequence: Any) -> Any:
        if not self._packed:
            return sequence
        return torch.nn.utils.rnn.pad_packed_sequence(sequence, total_length=self._time_steps)[0]


class Training:
    """One update of a character model: one-hot rows looked up in an identity matrix, tensors made before the timing.

    Embedding lookups, one_hot() and foreach updates were tried instead; none was faster. The forget
    bias is part of the bias; the optimizers treat both alike.
    """

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        self._lstm, self._projection = _layers(torch.nn.LSTM, problem, settings["forget_bias"])
        self._one_hot = torch.eye(self._projection.out_features, dtype=self._projection.weight.dtype)
        layers = (self._lstm, self._projection)
        self._trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
        self._clip_norm = settings["clip_norm"]
        if settings["optimizer"] == "adam":
            self._optimizer: Any = torch.optim.Adam(self._trained, lr=settings["learning_rate"], fused=True)
        else:
            self._optimizer = torch.optim.SGD(self._trained, lr=settings["learning_rate"])
        windows = (torch.from_numpy(problem[name].astype(np.int64)) for name in ("inputs", "targets"))
        self._batches = itertools.cycle(zip(*windows, strict=True))
        self._agreement_steps = settings["agreement_steps"]
        self._state: Any = None

    def step(self) -> float:
        """Return the loss before the update, in nats per character."""
        inputs, targets = next(self._batches)
        h, state = self._lstm(self._one_hot[inputs], self._state)
        self._state = tuple(part.detach() for part in state)
        loss = torch.nn.functional.cross_entropy(self._projection(h).flatten(0, 1), targets.flatten())
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, self._clip_norm)
        self._optimizer.step()
        return float(loss.detach())

    def values(self) -> dict[str, Any]:
        """The losses of the first updates."""
        return {"losses": np.array([self.step() for _ in range(self._agreement_steps)])}


class Sampling:
    """Characters drawn one by one: nn.LSTMCell, and a search in the summed probabilities."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        self._cell, self._projection = _layers(torch.nn.LSTMCell, problem, settings["forget_bias"])
        self._one_hot = torch.eye(self._projection.out_features, dtype=self._projection.weight.dtype)
        self._state: Any = None
        self._token = 0
        self._pieces = itertools.cycle(problem["uniforms"].tolist())

    context = torch.inference_mode

    def step(self) -> list[int]:
        """Return the ids of one piece."""
        ids = []
        for uniform in next(self._pieces):
            self._state = self._cell(self._one_hot[self._token : self._token + 1], self._state)
            probabilities = self._projection(self._state[0])[0].softmax(0)
            found = torch.searchsorted(probabilities.double().cumsum(0), uniform, right=True)
            self._token = min(int(found), self._projection.out_features - 1)
            ids.append(self._token)
        return ids

    def values(self) -> dict[str, Any]:
        """The first characters."""
        return {"ids": np.array(self.step())}


def _lstm(kind: Any, problem: Problem, dtype: torch.dtype = torch.float32) -> Any:
    """An nn.LSTM or nn.LSTMCell with the problem's kernel and bias."""
    rows, columns = problem["kernel"].shape
    input_size = rows - columns // 4
    lstm = kind(input_size, columns // 4, dtype=dtype)
    input_weight, recurrent_weight, bias, other_bias = lstm.parameters()
    with torch.no_grad():
        input_weight.copy_(torch.from_numpy(problem["kernel"][:input_size].T.copy()))
        recurrent_weight.copy_(torch.from_numpy(problem["kernel"][input_size:].T.copy()))
        bias.copy_(torch.from_numpy(problem["bias"]))
        other_bias.zero_()
    other_bias.requires_grad_(False)
    return lstm


def _layers(kind: Any, problem: Problem, forget_bias: float) -> tuple[Any, Any]:
    """The LSTM and the nn.Linear of a character model."""
    hidden_size, vocab_size = problem["projection.kernel"].shape
    bias = problem["lstm.layer0.bias"].copy()
    bias[hidden_size : 2 * hidden_size] += forget_bias
    dtype = getattr(torch, bias.dtype.name)
    lstm = _lstm(kind, {"kernel": problem["lstm.layer0.kernel"], "bias": bias}, dtype)
    projection = torch.nn.Linear(hidden_size, vocab_size, dtype=dtype)
    with torch.no_grad():
        projection.weight.copy_(torch.from_numpy(problem["projection.kernel"].T.copy()))
        projection.bias.copy_(torch.from_numpy(problem["projection.bias"]))
    return lstm, projection


WORKS: dict[str, Any] = {"step": Step, "sequence": Sequence, "training": Training, "sampling": Sampling}
