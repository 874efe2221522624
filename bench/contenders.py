"""The contenders: the same work written once for each library, as a user of that library would write it.

A contender is made from a problem (first weights in lstmfast's names and layout, and what the work reads) and does one
piece of the work each time `step` is called; what it returns is compared between contenders before anyone is timed.
As a program this file is one worker: `contenders.py WORK NAME PROBLEM.npz`, driven by harness.py over pipes, so that no
library shares a process with another. Imports a library only in that library's contender; never compares or judges.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Problem = Mapping[str, npt.NDArray[Any]]

# The classic 6_lstm: SGD at its first learning rate, gradients clipped to this global norm.
LEARNING_RATE = 10.0
CLIP_NORM = 1.25


class LstmfastTraining:
    """One update of a character model: forward, loss, backward, clip, SGD. State carried from batch to batch."""

    def __init__(self, problem: Problem) -> None:
        import lstmfast as lf

        self.version = f"{lf.__version__} ({lf._core.current_isa()})"
        self._lf, self._model = lf, lstmfast_model(problem)
        self._optimizer = lf.optimizers.SGD()
        self._optimizer.init(self._model.parameter_buffer)
        self._batches = itertools.cycle(zip(problem["inputs"], problem["targets"], strict=True))
        self._state: Any = None

    def step(self) -> float:
        """Return the loss before the update, in nats per character."""
        model = self._model
        loss, self._state = model.loss_and_gradients(*next(self._batches), self._state)
        self._lf.losses.clip_by_global_norm(model.gradient_buffer, CLIP_NORM)
        self._optimizer.update(model.parameter_buffer, model.gradient_buffer, learning_rate=LEARNING_RATE)
        return loss


class TorchTraining:
    """The same in PyTorch: nn.LSTM with one-hot rows looked up in an identity matrix, tensors made before the timing.

    nn.LSTM has two biases where the model has one: the second is zero and fixed, or it would learn twice as fast. Fused
    and foreach updates, one_hot() and embedding() were tried in place of what is here; none was faster.
    """

    def __init__(self, problem: Problem) -> None:
        import torch

        torch.set_num_threads(1)
        self.version = f"{torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"
        self._torch = torch
        self._lstm, self._projection = torch_layers(torch.nn.LSTM, problem)
        self._one_hot = torch.eye(self._projection.out_features, dtype=self._projection.weight.dtype)
        layers = (self._lstm, self._projection)
        self._trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(self._trained, lr=LEARNING_RATE)
        windows = (torch.from_numpy(problem[name].astype(np.int64)) for name in ("inputs", "targets"))
        self._batches = itertools.cycle(zip(*windows, strict=True))
        self._state: Any = None

    def step(self) -> float:
        """Return the loss before the update, in nats per character."""
        torch = self._torch
        inputs, targets = next(self._batches)
        h, state = self._lstm(self._one_hot[inputs], self._state)
        self._state = tuple(part.detach() for part in state)
        loss = torch.nn.functional.cross_entropy(self._projection(h).flatten(0, 1), targets.flatten())
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, CLIP_NORM)
        self._optimizer.step()
        return float(loss.detach())


class LstmfastSampling:
    """Characters drawn one after the other from one stream, in pieces."""

    def __init__(self, problem: Problem) -> None:
        import lstmfast as lf

        self.version = f"{lf.__version__} ({lf._core.current_isa()})"
        self._stream = lstmfast_model(problem).stream()
        self._token = np.zeros(1, np.int32)
        self._pieces = itertools.cycle(problem["uniforms"])

    def step(self) -> list[int]:
        """Return the ids of one piece."""
        ids: list[int] = self._stream.generate(self._token, next(self._pieces)[:, None]).ravel().tolist()
        return ids


class TorchSampling:
    """The same in PyTorch: nn.LSTMCell, which is faster here than nn.LSTM, and a search in the summed probabilities."""

    def __init__(self, problem: Problem) -> None:
        import torch

        torch.set_num_threads(1)
        self.version = f"{torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"
        self._torch = torch
        self._cell, self._projection = torch_layers(torch.nn.LSTMCell, problem)
        self._one_hot = torch.eye(self._projection.out_features, dtype=self._projection.weight.dtype)
        self._state = None
        self._token = 0
        self._pieces = itertools.cycle(problem["uniforms"].tolist())

    def step(self) -> list[int]:
        """Return the ids of one piece."""
        ids, torch = [], self._torch
        with torch.inference_mode():
            for uniform in next(self._pieces):
                self._state = self._cell(self._one_hot[self._token : self._token + 1], self._state)
                probabilities = self._projection(self._state[0])[0].softmax(0)
                found = torch.searchsorted(probabilities.double().cumsum(0), uniform, right=True)
                self._token = min(int(found), self._projection.out_features - 1)
                ids.append(self._token)
        return ids


CONTENDERS: dict[str, dict[str, type[Any]]] = {
    "training": {"lstmfast": LstmfastTraining, "torch": TorchTraining},
    "sampling": {"lstmfast": LstmfastSampling, "torch": TorchSampling},
}


def lstmfast_model(problem: Problem) -> Any:
    """A one-layer character model without forget bias that has the problem's weights."""
    import lstmfast as lf

    hidden_size, vocab_size = problem["projection.kernel"].shape
    return lf.CharLM(vocab_size, hidden_size, forget_bias=0.0, initializer=lambda name, *_: problem[name])


def torch_layers(kind: Any, problem: Problem) -> tuple[Any, Any]:
    """An nn.LSTM or nn.LSTMCell and an nn.Linear with the problem's weights. Both libraries order gates i, f, g, o."""
    import torch

    hidden_size, vocab_size = problem["projection.kernel"].shape
    dtype = getattr(torch, problem["projection.kernel"].dtype.name)
    lstm = kind(vocab_size, hidden_size, dtype=dtype)
    projection = torch.nn.Linear(hidden_size, vocab_size, dtype=dtype)
    input_weight, recurrent_weight, bias, other_bias = lstm.parameters()
    values = {
        input_weight: problem["lstm.layer0.kernel"][:vocab_size].T,
        recurrent_weight: problem["lstm.layer0.kernel"][vocab_size:].T,
        bias: problem["lstm.layer0.bias"],
        projection.weight: problem["projection.kernel"].T,
        projection.bias: problem["projection.bias"],
    }
    with torch.no_grad():
        for parameter, value in values.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        other_bias.zero_()
    other_bias.requires_grad_(False)
    return lstm, projection


def main() -> None:
    """Be one worker: answer every number N on standard input with the values and milliseconds of N steps."""
    work, name, path = sys.argv[1:]
    try:
        contender = CONTENDERS[work][name](dict(np.load(path)))
    except ImportError as error:
        print(json.dumps({"absent": str(error)}), flush=True)
        return
    print(json.dumps({"version": contender.version}), flush=True)
    for line in sys.stdin:
        values, milliseconds = [], []
        for _ in range(int(line)):
            begin = time.perf_counter()
            values.append(contender.step())
            milliseconds.append(1e3 * (time.perf_counter() - begin))
        print(json.dumps({"values": values, "milliseconds": milliseconds}), flush=True)


if __name__ == "__main__":
    main()
