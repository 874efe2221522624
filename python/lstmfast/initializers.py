"""Initial values of weights. Randomness comes only from the `numpy.random.Generator` passed in.

Values are drawn in float64 and rounded to `dtype`, so that one seed gives the same weights in every precision.
Returns arrays only: the model chooses the initializer of each variable, `default` unless it is given one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
Shape = tuple[int, ...]
Initializer = Callable[[str, Shape, np.random.Generator], FloatArray]
"""The type of a model's `initializer`: returns the initial values of the variable of this name and shape."""


def zeros(shape: Shape, *, dtype: npt.DTypeLike = np.float64) -> FloatArray:
    """An array of zeros."""
    return np.zeros(shape, dtype)


def uniform(
    shape: Shape, rng: np.random.Generator, *, low: float = -1.0, high: float = 1.0, dtype: npt.DTypeLike = np.float64
) -> FloatArray:
    """Uniform numbers in [low, high)."""
    return rng.uniform(low, high, shape).astype(dtype)


def truncated_normal(
    shape: Shape, rng: np.random.Generator, *, mean: float = 0.0, std: float = 1.0, dtype: npt.DTypeLike = np.float64
) -> FloatArray:
    """Normal numbers, redrawn if more than two `std` from `mean`, as in `tf.truncated_normal`.

    `std` is that of the normal distribution before truncation; the standard deviation of the result is 0.88 of it.
    """
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return (mean + std * values).astype(dtype)


def orthogonal(
    shape: tuple[int, int], rng: np.random.Generator, *, gain: float = 1.0, dtype: npt.DTypeLike = np.float64
) -> FloatArray:
    """A matrix [rows, columns], its shorter side orthonormal, times gain. Source: Saxe, McClelland & Ganguli 2014."""
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)  # QR leaves the signs open; with these q is uniformly distributed
    return (gain * (q if rows >= columns else q.T)).astype(dtype)


def default(name: str, shape: Shape, rng: np.random.Generator) -> FloatArray:
    """Biases, peepholes, shifts and initial states 0, gains 1, others uniform within ±1/sqrt(rows).

    So sums do not grow with the rows.
    """
    if name.endswith(("bias", "peepholes", "cell_shift", "initial_h", "initial_c")):
        return zeros(shape)
    if name.endswith("_gain"):
        return np.ones(shape)
    bound = 1 / math.sqrt(max(shape[0], 1))
    return uniform(shape, rng, low=-bound, high=bound)
