"""A small program as a user would write it, with types: mypy --strict must accept it, and it must run.

Not a test by itself (hygiene/test_package.py checks it) and not an example to learn from (see README.md for those).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import lstmfast as lf
from lstmfast.optimizers import SGD
from lstmfast.schedules import ExponentialDecay

Array = npt.NDArray[Any]


def run_functions(rng: np.random.Generator) -> Array:
    """Call the functions."""
    x, h, c = rng.normal(size=(5, 2, 3)), np.zeros((2, 4)), np.zeros((2, 4))
    kernel, bias = rng.normal(size=(7, 16)), np.zeros(16)
    h, c = lf.lstm_step(x[0], h, c, kernel, bias, forget_bias=1.0)
    out: lf.Output = lf.lstm(x, kernel, bias, h, c, lengths=[5, 3], return_gates=True, keep_for_backward=True)
    gradients: lf.Gradients = lf.lstm_backward(out, d_h=np.ones_like(out.h))
    if gradients.x is None or out.gates is None:
        raise AssertionError("dense input has a derivative, and the gates were asked for")
    return gradients.x


def run_layers(rng: np.random.Generator) -> Array:
    """Build layers, look at a gate, carry a state."""
    cell = lf.LSTMCell(3, 4, rng=rng)
    cell.gates["forget"].bias[:] = 1.0
    layer = lf.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True, dtype=np.float64, rng=rng)
    h, state = layer(rng.normal(size=(2, 5, 3)), training=True)
    d_x, (d_h0, _) = layer.backward(np.ones_like(h), state)
    names: list[str] = list(layer.parameters)
    return d_h0 if d_x is None or not names else d_x


def train(rng: np.random.Generator, steps: int) -> float:
    """Train a character model for some steps and draw from it."""
    model = lf.CharLM(27, 8, rng=rng)
    optimizer, schedule = SGD(), ExponentialDecay(1.0, decay_rate=0.5, decay_steps=10, staircase=True)
    optimizer.init(model.parameter_buffer)
    inputs, targets = rng.integers(0, 27, (2, 10, 4), dtype=np.int32)
    loss, state = 0.0, model.zero_state(4)
    for step in range(steps):
        loss, state = model.loss_and_gradients(inputs, targets, state)
        optimizer.update(model.parameter_buffer, model.gradient_buffer, learning_rate=schedule(step))
    token = np.zeros(1, np.int32)
    drawn: npt.NDArray[np.int32] = model.stream().generate(token, rng.random((20, 1)), temperature=0.7)
    return loss + float(drawn.sum())


def main() -> None:
    """Run all of it once."""
    rng = np.random.default_rng(0)
    isas: list[str] = lf.available_isas()
    print(isas, run_functions(rng).shape, run_layers(rng).shape, train(rng, steps=3))


if __name__ == "__main__":
    main()
