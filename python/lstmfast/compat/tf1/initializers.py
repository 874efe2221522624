"""TensorFlow 1's initializers: functions that return `initializer(shape, rng) -> values`.

Any function with these two arguments works as well, and so does a number or an array of the right shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import initializers
from lstmfast.initializers import Shape

Draw: TypeAlias = Callable[[Shape, np.random.Generator], npt.ArrayLike]
Initializer: TypeAlias = Draw | npt.ArrayLike


def draw(initializer: Initializer | None, name: str, shape: Shape, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Return the first value of a variable; None means `glorot_uniform_initializer()`, as in TensorFlow."""
    if initializer is None:
        initializer = glorot_uniform_initializer()
    given = initializer(shape, rng) if callable(initializer) else initializer
    check.unmasked(f"initializer's value for {name}", given)
    values = np.asarray(given)
    if values.ndim:
        check.has_shape(f"initializer's value for {name}", values, shape)
    return values


def glorot_uniform_initializer(*, seed: int | np.random.Generator | None = None) -> Draw:
    """Uniform within ±sqrt(6 / (rows + columns)); a vector of n counts as n of both. Source: Glorot & Bengio 2010."""

    def uniform(shape: Shape, rng: np.random.Generator) -> npt.NDArray[Any]:
        fan_in, fan_out = (shape[-2], shape[-1]) if len(shape) > 1 else (math.prod(shape), math.prod(shape))
        bound = math.sqrt(6 / max(fan_in + fan_out, 1))
        return initializers.uniform(shape, own(rng), low=-bound, high=bound)

    own = _generator(seed)
    return uniform


def random_uniform_initializer(
    minval: float = 0.0, maxval: float = 1.0, *, seed: int | np.random.Generator | None = None
) -> Draw:
    """Uniform in [minval, maxval)."""
    own = _generator(seed)
    return lambda shape, rng: initializers.uniform(shape, own(rng), low=minval, high=maxval)


def random_normal_initializer(
    mean: float = 0.0, stddev: float = 1.0, *, seed: int | np.random.Generator | None = None
) -> Draw:
    """Normal."""
    own = _generator(seed)
    return lambda shape, rng: own(rng).normal(mean, stddev, shape)


def truncated_normal_initializer(
    mean: float = 0.0, stddev: float = 1.0, *, seed: int | np.random.Generator | None = None
) -> Draw:
    """Normal, redrawn where more than two `stddev` from `mean`."""
    own = _generator(seed)
    return lambda shape, rng: initializers.truncated_normal(shape, own(rng), mean=mean, std=stddev)


def orthogonal_initializer(gain: float = 1.0, *, seed: int | np.random.Generator | None = None) -> Draw:
    """A matrix whose shorter side is orthonormal, times gain."""
    own = _generator(seed)

    def orthogonal(shape: Shape, rng: np.random.Generator) -> npt.NDArray[Any]:
        if len(shape) != 2:
            raise ValueError(f"orthogonal_initializer is for matrices, got a variable of shape {shape}")
        return initializers.orthogonal((shape[0], shape[1]), own(rng), gain=gain)

    return orthogonal


def constant_initializer(value: npt.ArrayLike = 0.0) -> Draw:
    """One number everywhere, or an array of the variable's shape."""
    check.unmasked("value", value)
    return lambda shape, rng: np.broadcast_to(np.asarray(value), shape) if np.ndim(value) == 0 else value


def zeros_initializer() -> Draw:
    """Zeros."""
    return constant_initializer(0.0)


def ones_initializer() -> Draw:
    """Ones."""
    return constant_initializer(1.0)


def _generator(seed: int | np.random.Generator | None) -> Callable[[np.random.Generator], np.random.Generator]:
    """Choose between an initializer's own generator and the graph's."""
    if seed is None:
        return lambda rng: rng
    own = np.random.default_rng(seed)
    return lambda rng: own
