"""Learning rate schedules: frozen dataclasses, called with the step number, counted from 0.

A schedule is a pure function of the step, so that resuming a run needs only the step. It never sees a loss or a model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step."""

    learning_rate: float

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate, self.learning_rate >= 0, "a finite number, 0 or more")

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        return self.learning_rate


@dataclass(frozen=True)
class ExponentialDecay:
    """learning_rate * decay_rate ** (step / decay_steps); with `staircase` the exponent is rounded down."""

    learning_rate: float
    decay_rate: float
    decay_steps: int
    staircase: bool = False

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate, self.learning_rate >= 0, "a finite number, 0 or more")
        _check("decay_rate", self.decay_rate, self.decay_rate > 0, "a finite number above 0")
        _check("decay_steps", self.decay_steps, self.decay_steps >= 1, "1 or more")

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        exponent = step // self.decay_steps if self.staircase else step / self.decay_steps
        return float(self.learning_rate * self.decay_rate**exponent)


@dataclass(frozen=True)
class _WithWarmup(ABC):
    """Linear warmup over warmup_steps, then down to final_fraction of the peak, reached at total_steps.

    Step warmup_steps is the first with the full learning_rate.
    """

    learning_rate: float
    total_steps: int
    warmup_steps: int = 0
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate, self.learning_rate >= 0, "a finite number, 0 or more")
        _check("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "0 or more")
        more_than_warmup = f"more than warmup_steps ({self.warmup_steps})"
        _check("total_steps", self.total_steps, self.total_steps > self.warmup_steps, more_than_warmup)
        _check("final_fraction", self.final_fraction, 0 <= self.final_fraction <= 1, "between 0 and 1")

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * self._height(done))

    @abstractmethod
    def _height(self, done: float) -> float:
        """The height between 1 and 0 at the fraction `done` of the way down."""


@dataclass(frozen=True)
class CosineWithWarmup(_WithWarmup):
    """Warmup, then half a cosine down. Source: Loshchilov & Hutter 2017, one period."""

    def _height(self, done: float) -> float:
        return (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class LinearWithWarmup(_WithWarmup):
    """Warmup, then a straight line down."""

    def _height(self, done: float) -> float:
        return 1 - done


def _check(name: str, value: float, holds: bool, wanted: str) -> None:
    if not (math.isfinite(value) and holds):
        raise ValueError(f"{name} must be {wanted}, got {value}")
