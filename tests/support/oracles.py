"""Random problems and answers that do not use the code under test. The reference itself is `lstmfast.reference`.

Test helpers in plain NumPy; randomness is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from support.tolerances import DIFFERENCE_STEP

Array = npt.NDArray[Any]


def problem(
    rng: np.random.Generator,
    time_steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    *,
    dtype: npt.DTypeLike = np.float64,
    ids: bool = False,
    peepholes: bool = False,
    projection_size: int | None = None,
) -> dict[str, Array]:
    """Random arguments of `lstm`, of a size at which gates are neither saturated nor linear.

    x, kernel, bias, h0, c0; optionally peepholes and projection.
    """
    output_size = projection_size or hidden_size
    rows = input_size + output_size
    values = {
        "x": rng.standard_normal((time_steps, batch, input_size)),
        "kernel": rng.standard_normal((rows, 4 * hidden_size)) / np.sqrt(max(rows, 1)),
        "bias": rng.standard_normal(4 * hidden_size) / 2,
        "h0": rng.uniform(-1, 1, (batch, output_size)),
        "c0": rng.standard_normal((batch, hidden_size)),
    }
    if peepholes:
        values["peepholes"] = rng.standard_normal((3, hidden_size)) / 2
    if projection_size:
        values["projection"] = rng.standard_normal((hidden_size, output_size)) / np.sqrt(hidden_size)
    arrays = {name: array.astype(dtype) for name, array in values.items()}
    if ids:
        arrays["x"] = rng.integers(0, input_size, (time_steps, batch)).astype(np.int32)
    return arrays


def random_lengths(rng: np.random.Generator, time_steps: int, batch: int) -> npt.NDArray[np.int64]:
    """A length from 0 to time_steps for every row, unsorted."""
    return rng.integers(0, time_steps, batch, endpoint=True)


def random_resets(rng: np.random.Generator, time_steps: int, batch: int) -> npt.NDArray[np.bool_]:
    """Resets [T, B], at about one step in three."""
    return rng.random((time_steps, batch)) < 1 / 3


def slopes(
    function: Callable[[dict[str, Array]], float], arguments: dict[str, Array], directions: dict[str, Array]
) -> list[float]:
    """The derivative of the function along each argument's direction, by central differences."""

    def after(step: float, name: str) -> float:
        return function({**arguments, name: arguments[name] + step * directions[name]})

    step = DIFFERENCE_STEP
    return [(after(step, name) - after(-step, name)) / (2 * step) for name in directions]
