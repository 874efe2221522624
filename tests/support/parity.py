"""Shared by the comparisons with other frameworks: one problem, our answer to it, and the tolerance.

Test helpers. Each framework's own test file transfers the weights to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import lstmfast as lf
from support import oracles, sequences, tolerances

Array = npt.NDArray[Any]

BATCH, INPUT_SIZE, HIDDEN_SIZE = 3, 12, 64  # the cell of the published table: a kernel of (76, 256)
CASES = sorted(tolerances.PARITY)  # (dtype, time_steps)
OUTPUTS = ("h", "h_n", "c_n")


def problem(rng: np.random.Generator, dtype: str, time_steps: int) -> dict[str, Array]:
    """Arguments of `lf.lstm`, and d_h, d_h_n, d_c_n: derivatives of a loss by the results."""
    p = oracles.problem(rng, time_steps, BATCH, INPUT_SIZE, HIDDEN_SIZE, dtype=dtype)
    return p | sequences.upstream_for(rng, p)


def ours(p: Mapping[str, Array], **options: Any) -> dict[str, Array]:
    """lstmfast's outputs, and derivatives by all arguments as d_x, d_kernel, ..."""
    arguments = {name: values for name, values in p.items() if not name.startswith("d_")}
    out = lf.lstm(**arguments, **options, keep_for_backward=True)
    d = lf.lstm_backward(out, **{name: values for name, values in p.items() if name.startswith("d_")})
    gradients = {f"d_{name}": getattr(d, name) for name in arguments}
    return {name: getattr(out, name) for name in OUTPUTS} | gradients


def distance(actual: Array, expected: Array) -> float:
    """The largest difference, as a share of the largest value."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    largest = float(np.abs(expected).max(initial=0.0))
    return float(np.abs(actual - expected).max(initial=0.0)) / (largest or 1.0)


def assert_same(actual: Mapping[str, Array], expected: Mapping[str, Array], bound: float) -> None:
    """Every array is there and within `bound` of the expected one."""
    assert actual.keys() == expected.keys()
    distances = {name: distance(np.asarray(actual[name]), np.asarray(expected[name])) for name in expected}
    assert {name: d for name, d in distances.items() if not d <= bound} == {}
