"""Optimizers: one update of one contiguous parameter buffer from one contiguous gradient buffer.

Settings are checked when an optimizer is created, the learning rate at every update. Refuses to choose the learning
rate (see `schedules`) and to clip: it takes the factor of `losses.clip_scale`, which saves a pass over the gradients.
To resume a run, restore `slots` and `step_count`. `OPTIMIZERS` lists the classes by name. The formulas are in the
extension: a class names one and computes its constants.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import _core
from lstmfast._checks import Array


@dataclass
class Optimizer(ABC):
    """Base of all optimizers: slots (name -> 1-D array as long as the parameters) and the number of updates done."""

    slot_names: ClassVar[tuple[str, ...]] = ()

    slots: dict[str, Array] = field(default_factory=dict, init=False, repr=False, compare=False)
    step_count: int = field(default=0, init=False, repr=False, compare=False)

    def init(self, parameters: npt.NDArray[Any]) -> None:
        """Allocate zeroed slots for a parameter buffer [count], and start at step 0."""
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
        different length, an optimizer initialized for another length; TypeError for mixed dtypes.
        """
        learning_rate = check.finite("learning_rate", learning_rate, 0.0)
        gradient_scale = check.finite("gradient_scale", gradient_scale, 0.0)
        parameters = check.buffer("parameters", parameters)
        count, dtype = parameters.size, parameters.dtype
        gradients = check.array("gradients", gradients, (count,), "(count,)", dtype=dtype, like="parameters")
        for name in self.slot_names:
            if name not in self.slots:
                raise ValueError(f"optimizer has no {name}: call init(parameters) first")
            check.buffer(f"slot {name}", self.slots[name], count, dtype, "parameters")
        step = check.whole_number("step_count", self.step_count, 0) + 1
        formula, constants = self._formula(learning_rate, step)
        slots = [self.slots[name] for name in self.slot_names]
        _core.optimizer_update(formula, parameters, gradients, slots, constants, gradient_scale)
        self.step_count = step

    @abstractmethod
    def _formula(self, learning_rate: float, step: int) -> tuple[str, tuple[float, ...]]:
        """Return the formula's name in the extension and its constants for update `step`, counted from 1."""


@dataclass
class SGD(Optimizer):
    """Plain gradient descent: p -= learning_rate * g."""

    def _formula(self, learning_rate: float, step: int) -> tuple[str, tuple[float, ...]]:
        return "sgd", (learning_rate,)


@dataclass
class Momentum(Optimizer):
    """Gradient descent with momentum: v = momentum*v + g; p -= learning_rate * v, or Nesterov's g + momentum*v.

    Source: Sutskever, Martens, Dahl & Hinton 2013, with the learning rate outside of v.
    """

    slot_names = ("velocity",)

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        check.fraction("momentum", self.momentum)

    def _formula(self, learning_rate: float, step: int) -> tuple[str, tuple[float, ...]]:
        return "nesterov" if self.nesterov else "momentum", (learning_rate, self.momentum)


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

    def _formula(self, learning_rate: float, step: int) -> tuple[str, tuple[float, ...]]:
        return "rmsprop", (learning_rate, self.decay, 1 - float(self.decay), self.epsilon)


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

    def _formula(self, learning_rate: float, step: int) -> tuple[str, tuple[float, ...]]:
        beta1, beta2 = float(self.beta1), float(self.beta2)  # with NumPy's float32 the powers would be float32
        step_size, second_scale = learning_rate / (1 - beta1**step), 1 / (1 - beta2**step)
        means = beta1, 1 - beta1, beta2, 1 - beta2
        return "adam", (learning_rate, step_size, second_scale, *means, self.epsilon, self.weight_decay)


OptimizerName: TypeAlias = Literal["sgd", "momentum", "rmsprop", "adam"]
OPTIMIZERS: dict[OptimizerName, type[Optimizer]] = {"sgd": SGD, "momentum": Momentum, "rmsprop": RMSprop, "adam": Adam}
"""The optimizers by name; the command line and the functions of `reference` use the same names."""
