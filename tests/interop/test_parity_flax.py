"""The same numbers as JAX: Flax's `OptimizedLSTMCell` under `lax.scan`, forward and backward, in one program of XLA.

Flax keeps a kernel for each gate and for x and h apart (`ii`, `if`, `ig`, `io`; `hi`, `hf`, `hg`, `ho`), with the bias
beside those of h.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lstmfast as lf
from support import parity, tolerances

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install jax flax")
nn = pytest.importorskip("flax.linen", reason="Flax is not installed: pip install flax")

Array = npt.NDArray[Any]

LETTERS = lf.gates.LETTERS  # Flax's names for the gates end in the same ones


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """JAX has float64 only on demand."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def flax_parameters(kernel: Array, bias: Array) -> dict[str, dict[str, Array]]:
    """Our kernel [I + H, 4H] and bias [4H] as Flax's parameters, gate by gate."""
    input_kernel, recurrent_kernel = np.split(kernel, [kernel.shape[0] - bias.size // 4])
    parameters = {}
    for letter, of_x, of_h, b in zip(
        LETTERS, *(np.split(values, 4, axis=-1) for values in (input_kernel, recurrent_kernel, bias)), strict=True
    ):
        parameters[f"i{letter}"] = {"kernel": of_x}
        parameters[f"h{letter}"] = {"kernel": of_h, "bias": b}
    return parameters


def ours_of(parameters: Mapping[str, Mapping[str, Any]]) -> tuple[Array, Array]:
    """Flax's parameters, or derivatives by them, as our kernel and bias."""
    rows = [[np.asarray(parameters[f"{part}{letter}"]["kernel"]) for letter in LETTERS] for part in "ih"]
    return np.block(rows), np.concatenate([np.asarray(parameters[f"h{letter}"]["bias"]) for letter in LETTERS])


@pytest.mark.parametrize("cell_kind", ["OptimizedLSTMCell", "LSTMCell"])
@pytest.mark.parametrize(("dtype", "time_steps"), parity.CASES)
def test_outputs_and_derivatives_are_those_of_flax_within_the_promise(
    dtype: str, time_steps: int, cell_kind: str, rng: np.random.Generator
) -> None:
    p = parity.problem(rng, dtype, time_steps)
    cell = getattr(nn, cell_kind)(parity.HIDDEN_SIZE, dtype=dtype, param_dtype=dtype)

    def run(parameters: Any, x: Any, h0: Any, c0: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            return cell.apply({"params": parameters}, state, x)

        (c_n, h_n), h = jax.lax.scan(step, (c0, h0), x)
        return h, h_n, c_n

    outputs, pull_back = jax.vjp(
        jax.jit(run), flax_parameters(p["kernel"], p["bias"]), *(p[name] for name in ("x", "h0", "c0"))
    )
    d_parameters, d_x, d_h0, d_c0 = pull_back(tuple(p[name] for name in ("d_h", "d_h_n", "d_c_n")))
    d_kernel, d_bias = ours_of(d_parameters)
    theirs = dict(zip(parity.OUTPUTS, outputs, strict=True))
    theirs |= {"d_x": d_x, "d_kernel": d_kernel, "d_bias": d_bias, "d_h0": d_h0, "d_c0": d_c0}
    parity.assert_same(parity.ours(p), theirs, tolerances.PARITY[dtype, time_steps])
