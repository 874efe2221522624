"""The works in Keras on TensorFlow: layers called inside tf.function, compiled by XLA or not, whichever is faster.

Imports keras, tensorflow and NumPy only; see worker.py. Keras orders its gates as lstmfast does and has one bias; its
layers take the batch first, so inputs are transposed before the timing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

Problem = Mapping[str, npt.NDArray[Any]]


def version(threads: int) -> str:
    """Set up the library; return its version."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if keras.backend.backend() != "tensorflow":
        raise SystemExit("Keras must run on TensorFlow here")
    return f"{keras.__version__} (TensorFlow {tf.__version__})"


class Step:
    """One step: an LSTMCell that takes and returns the state."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        hidden_size = problem["kernel"].shape[1] // 4
        cell = keras.layers.LSTMCell(hidden_size)
        cell.build((None, problem["x"].shape[-1]))
        _set_weights(cell, problem)
        self._steps = [tf.constant(x) for x in problem["x"]]
        self._zeros = tf.zeros((problem["x"].shape[1], hidden_size))
        self._advance = _quicker(lambda x, h, c: cell(x, [h, c])[1], self._steps[0], self._zeros, self._zeros)
        self._state = [self._zeros, self._zeros]

    def step(self) -> None:
        """Advance by one step."""
        self._state = self._advance(self._steps[0], *self._state)

    def values(self) -> dict[str, Any]:
        """Outputs of a few steps from a state of zeros."""
        state, outputs = [self._zeros, self._zeros], []
        for x in self._steps:
            state = self._advance(x, *state)
            outputs.append(state[0].numpy())
        return {"h": np.stack(outputs)}


class Sequence:
    """One layer over whole sequences: inference, or forward and backward."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        if "lengths" in problem:
            raise NotImplementedError("this bench has no rows of different lengths for it")
        self._layer = keras.layers.LSTM(problem["kernel"].shape[1] // 4, return_sequences=True)
        x, d_h = (tf.constant(problem[name].swapaxes(0, 1)) for name in ("x", "d_h"))
        self._layer.build(x.shape)
        _set_weights(self._layer.cell, problem)
        self._arguments = (x, d_h) if settings["training"] else (x,)
        self._run = _quicker(self._train if settings["training"] else self._layer, *self._arguments)

    def _train(self, x: Any, d_h: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            h = self._layer(x, training=True)
        return h, tape.gradient(h, [x, *self._layer.trainable_weights], output_gradients=d_h)

    def step(self) -> Any:
        """Run it."""
        return self._run(*self._arguments)

    def values(self) -> dict[str, Any]:
        """Outputs, and gradients if there are any, with time first."""
        result = self.step()
        if len(self._arguments) == 1:
            return {"h": result.numpy().swapaxes(0, 1)}
        h, (d_x, d_input, d_recurrent, d_bias) = result
        return {
            "h": h.numpy().swapaxes(0, 1),
            "d_x": d_x.numpy().swapaxes(0, 1),
            "d_kernel": np.concatenate([d_input.numpy(), d_recurrent.numpy()]),
            "d_bias": d_bias.numpy(),
        }


def _set_weights(cell: Any, problem: Problem) -> None:
    input_size = len(problem["kernel"]) - problem["kernel"].shape[1] // 4
    cell.set_weights([problem["kernel"][:input_size], problem["kernel"][input_size:], problem["bias"]])


def _quicker(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The function as a graph, compiled by XLA or not, whichever is faster on its second call."""
    seconds = {}
    for compiled in (tf.function(function), tf.function(function, jit_compile=True)):
        compiled(*arguments)
        begin = time.perf_counter()
        compiled(*arguments)
        seconds[compiled] = time.perf_counter() - begin
    return min(seconds, key=lambda compiled: seconds[compiled])


WORKS: dict[str, Any] = {"step": Step, "sequence": Sequence}
