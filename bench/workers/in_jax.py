"""The works in JAX: a scan over time under jit, after one input product for all steps.

Imports jax and NumPy only; see worker.py. JAX takes its number of threads from the cores available to the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

Problem = Mapping[str, npt.NDArray[Any]]


def version(threads: int) -> str:
    """Set up the library; return its version."""
    # Work on the calling thread: one step of 64 units then takes 14 us instead of 22; long calls are as fast.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return str(jax.__version__)


def _cell(state: Any, z: Any) -> tuple[Any, Any]:
    """The gates and the new state from pre-activations in order i, f, g, o."""
    i, f, g, o = jnp.split(z, 4, axis=-1)
    c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def _lstm(x: Any, input_kernel: Any, recurrent_kernel: Any, bias: Any) -> Any:
    zeros = jnp.zeros((x.shape[1], recurrent_kernel.shape[0]), x.dtype)
    return jax.lax.scan(
        lambda state, z: _cell(state, z + state[0] @ recurrent_kernel), (zeros, zeros), x @ input_kernel + bias
    )[1]


def _lstm_and_gradients(d_h: Any, *arguments: Any) -> Any:
    h, pull_back = jax.vjp(_lstm, *arguments)
    return h, pull_back(d_h)


class Step:
    """One step under jit. (In `Sequence`, unrolling the scan 4 or 10 times was tried and gained nothing.)"""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        _, input_kernel, recurrent_kernel, bias = _arguments(problem)
        self._advance = jax.jit(lambda x, state: _cell(state, x @ input_kernel + state[0] @ recurrent_kernel + bias)[0])
        self._steps = [jnp.asarray(x) for x in problem["x"]]
        self._zeros = jnp.zeros((problem["x"].shape[1], recurrent_kernel.shape[0]), jnp.float32)
        self._state: Any = (self._zeros, self._zeros)

    def step(self) -> None:
        """Advance by one step."""
        self._state = self._advance(self._steps[0], self._state)
        self._state[0].block_until_ready()

    def values(self) -> dict[str, Any]:
        """Outputs of a few steps from a state of zeros."""
        state, outputs = (self._zeros, self._zeros), []
        for x in self._steps:
            state = self._advance(x, state)
            outputs.append(np.asarray(state[0]))
        return {"h": np.stack(outputs)}


class Sequence:
    """One layer over whole sequences: inference, or forward and backward."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        if "lengths" in problem:
            raise NotImplementedError("this bench has no rows of different lengths for it")
        self._training = settings["training"]
        self._arguments = _arguments(problem)
        if self._training:
            self._arguments = (jnp.asarray(problem["d_h"]), *self._arguments)
        self._run = jax.jit(_lstm_and_gradients if self._training else _lstm)

    def step(self) -> Any:
        """Run it and wait for the result."""
        return jax.block_until_ready(self._run(*self._arguments))

    def values(self) -> dict[str, Any]:
        """Outputs, and gradients if there are any."""
        result = self.step()
        if not self._training:
            return {"h": np.asarray(result)}
        h, (d_x, d_input, d_recurrent, d_bias) = result
        values = {"h": h, "d_x": d_x, "d_kernel": jnp.concatenate([d_input, d_recurrent]), "d_bias": d_bias}
        return {name: np.asarray(value) for name, value in values.items()}


def _arguments(problem: Problem) -> tuple[Any, ...]:
    """x, input kernel, recurrent kernel and bias, on JAX's device."""
    input_size = problem["x"].shape[-1]
    kernel = problem["kernel"]
    return tuple(map(jnp.asarray, (problem["x"], kernel[:input_size], kernel[input_size:], problem["bias"])))


WORKS: dict[str, Any] = {"step": Step, "sequence": Sequence}
