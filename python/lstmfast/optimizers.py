"""Optimizers: one update of one contiguous parameter buffer from one contiguous gradient buffer.

Settings are checked when an optimizer is made, the learning rate at every update. Refuses to choose the learning rate
(see `schedules`) and to clip: it takes the factor of `losses.clip_scale`, which saves a pass over the gradients.
All a resumed run needs is `slots` and `step_count`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import _core
from lstmfast._checks import Array


@dataclass
class Optimizer(ABC):
    """What all optimizers share: slots (name -> 1-D array as long as the parameters) and the number of updates done."""

    slot_names: ClassVar[tuple[str, ...]] = ()

    slots: dict[str, Array] = field(default_factory=dict, init=False, repr=False, compare=False)
    step_count: int = field(default=0, init=False, repr=False, compare=False)

    def init(self, parameters: npt.NDArray[Any]) -> None:
        """Allocate the slots for a parameter buffer [count], zero, and begin at step 0."""
        parameters = check.buffer("parameters", parameters)
        self.slots = {name: np.zeros_like(parameters) for name in self.slot_names}
        self.step_count = 0

    def update(
        self,
        parameters: npt.NDArray[Any],
        gradients: npt.NDArray[Any],
        *,
        learning_rate: float,
        gradient_scale: float = 1.0,
    ) -> None:
        """Change the parameters [count] in place by one step along gradient_scale * gradients [count].

        Raises ValueError naming the argument: a learning rate or scale that is NaN, infinite or negative, buffers of
        different length, an optimizer whose `init` was for another length; TypeError for mixed dtypes.
        """
        learning_rate = check.finite("learning_rate", learning_rate, 0.0)
        gradient_scale = check.finite("gradient_scale", gradient_scale, 0.0)
        parameters = check.buffer("parameters", parameters)
        count, dtype = parameters.size, parameters.dtype
        gradients = check.array("gradients", gradients, (count,), "(count,)", dtype=dtype, like="parameters")
        for name in self.slot_names:
            if name not in self.slots:
                raise ValueError(f"optimizer must be given its parameters first: call init(parameters) to make {name}")
            check.buffer(f"slot {name}", self.slots[name], count, dtype, "parameters")
        self._apply(parameters, gradients, learning_rate, gradient_scale)
        self.step_count += 1

    @abstractmethod
    def _apply(self, parameters: Array, gradients: Array, learning_rate: float, gradient_scale: float) -> None:
        """Make the update; `step_count` is the number of those before."""


@dataclass
class SGD(Optimizer):
    """Plain gradient descent: p -= learning_rate * g."""

    def _apply(self, parameters: Array, gradients: Array, learning_rate: float, gradient_scale: float) -> None:
        _core.sgd_update(parameters, gradients, learning_rate, gradient_scale)


@dataclass
class Momentum(Optimizer):
    """Gradient descent with momentum: v = momentum*v + g; p -= learning_rate * v, or Nesterov's g + momentum*v.

    Source: Sutskever, Martens, Dahl & Hinton 2013, in the form where the learning rate stays outside of v.
    """

    slot_names = ("velocity",)

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        check.fraction("momentum", self.momentum)

    def _apply(self, parameters: Array, gradients: Array, learning_rate: float, gradient_scale: float) -> None:
        _core.momentum_update(
            parameters, gradients, self.slots["velocity"], learning_rate, self.momentum, self.nesterov, gradient_scale
        )


@dataclass
class RMSprop(Optimizer):
    """Steps divided by a running root mean square of the gradient.

    s = decay*s + (1-decay)*g*g; p -= learning_rate * g / (sqrt(s) + epsilon). Source: Tieleman & Hinton 2012.
    """

    slot_names = ("mean_square",)

    decay: float = 0.95
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check.fraction("decay", self.decay)
        check.finite("epsilon", self.epsilon, 0.0)

    def _apply(self, parameters: Array, gradients: Array, learning_rate: float, gradient_scale: float) -> None:
        _core.rmsprop_update(
            parameters, gradients, self.slots["mean_square"], learning_rate, self.decay, self.epsilon, gradient_scale
        )


@dataclass
class Adam(Optimizer):
    """Adam, with decoupled weight decay (AdamW): p -= learning_rate * (m' / (sqrt(v') + epsilon) + weight_decay*p).

    m' and v' are the bias-corrected running means of g and g*g. Sources: Kingma & Ba 2015; Loshchilov & Hutter 2019.
    """

    slot_names = ("first_moment", "second_moment")

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check.fraction("beta1", self.beta1)
        check.fraction("beta2", self.beta2)
        check.finite("epsilon", self.epsilon, 0.0)
        check.finite("weight_decay", self.weight_decay, 0.0)

    def _apply(self, parameters: Array, gradients: Array, learning_rate: float, gradient_scale: float) -> None:
        _core.adam_update(
            parameters, gradients, self.slots["first_moment"], self.slots["second_moment"], self.step_count + 1,
            learning_rate, self.beta1, self.beta2, self.epsilon, self.weight_decay, gradient_scale,
        )  # fmt: skip
