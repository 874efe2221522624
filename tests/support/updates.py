"""The expected result of an optimizer's next update, by its function in the reference."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from lstmfast import reference
from lstmfast.optimizers import OPTIMIZERS, Optimizer


def updated_by_reference(
    optimizer: Optimizer, parameters: Any, gradients: Any, slots: Sequence[Any], **how: float
) -> list[Any]:
    """The parameters and slots after update number step_count + 1, in NumPy."""
    (name,) = (name for name, kind in OPTIMIZERS.items() if kind is type(optimizer))
    function = getattr(reference, name)
    settings: dict[str, Any] = {f.name: getattr(optimizer, f.name) for f in dataclasses.fields(optimizer) if f.init}
    if "step" in inspect.signature(function).parameters:
        settings["step"] = optimizer.step_count + 1
    after = function(parameters, gradients, *slots, **settings, **how)
    return [after] if isinstance(after, np.ndarray) else list(after)
