"""Memory of layers and models: parameters in one buffer, and arrays that are kept from call to call.

Refuses to know what is in them. The buffers of another engine than the CPU's are that engine's arrays, which slice and
reshape like NumPy's.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import _memory, initializers
from lstmfast._checks import Array
from lstmfast._engine.cpu import CPU
from lstmfast._engine.engine import Engine
from lstmfast.initializers import Initializer, Shape

L = TypeVar("L", bound="OfParameters")


@dataclass(frozen=True, eq=False)
class ParameterBuffer:
    """Parameters and their gradients: two contiguous 1-D arrays, and views of them by name.

    `values`, `gradient_values` [count]; `parameters`, `gradients`: dicts name -> array of that variable's shape.
    Layers that share a buffer still share one after being copied or pickled together.
    """

    values: Array
    gradient_values: Array
    parameters: dict[str, Array]
    gradients: dict[str, Array]
    # If this is a part: the whole buffer, and the offset in it.
    _whole: ParameterBuffer | None = field(default=None, repr=False)
    _start: int = field(default=0, repr=False)

    @classmethod
    def allocate(cls, shapes: Mapping[str, Shape | Mapping[str, Shape]], dtype: npt.DTypeLike) -> ParameterBuffer:
        """Return a buffer of zeros that holds variables of these shapes, in this order.

        Where a shape is itself a mapping, as the layers' `shapes` return it, its variables are named "outer.inner" and
        `part("outer.")` is the storage of that layer.
        """
        flat: dict[str, Shape] = {}
        for name, shape in shapes.items():
            flat |= (
                {f"{name}.{inner}": s for inner, s in shape.items()} if isinstance(shape, Mapping) else {name: shape}
            )
        count = sum(math.prod(shape) for shape in flat.values())
        return cls._bind(np.zeros(count, dtype), np.zeros(count, dtype), flat)

    def part(self, prefix: str) -> ParameterBuffer:
        """Return the variables whose names begin with `prefix`, without it, as contiguous views of this buffer.

        Raises ValueError if there are none or if others are between them.
        """
        names = list(self.parameters)
        chosen = [name for name in names if name.startswith(prefix)]
        first = names.index(chosen[0]) if chosen else 0
        if not chosen or names[first : first + len(chosen)] != chosen:
            raise ValueError(f"prefix must name adjacent variables, got {prefix!r} for {', '.join(names)}")
        start = sum(math.prod(self.parameters[name].shape) for name in names[:first])
        shapes = {name.removeprefix(prefix): self.parameters[name].shape for name in chosen}
        return self._part_at(start, shapes)

    def one(self, name: str, *, under: str) -> ParameterBuffer:
        """Return a single variable, named `under`."""
        names = list(self.parameters)
        start = sum(math.prod(self.parameters[each].shape) for each in names[: names.index(name)])
        return self._part_at(start, {under: self.parameters[name].shape})

    def _part_at(self, start: int, shapes: Mapping[str, Shape]) -> ParameterBuffer:
        whole = self if self._whole is None else self._whole
        values, gradient_values, start = whole.values, whole.gradient_values, start + self._start
        return self._bind(values[start:], gradient_values[start:], shapes, whole, start)

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied views would not share memory, so the whole buffer is copied and parts are views of the copy.
        shapes = {name: view.shape for name, view in self.parameters.items()}
        if self._whole is None:
            return type(self)._bind, (np.asarray(self.values), np.asarray(self.gradient_values), shapes)
        return type(self)._part_at, (self._whole, self._start, shapes)

    def fill(self, initializer: Initializer | None, rng: np.random.Generator | None) -> None:
        """Set every variable to `initializer(name, shape, rng)`, `initializers.default` if None.

        rng None takes a seed from the operating system. Raises ValueError naming the variable if a shape is wrong.
        """
        rng = np.random.default_rng() if rng is None else check.generator("rng", rng)
        for name, view in self.parameters.items():
            values = np.asarray((initializer or initializers.default)(name, view.shape, rng))
            check.has_shape(f"initializer's value for {name}", values, view.shape)
            view[...] = values

    @classmethod
    def _bind(
        cls,
        values: Array,
        gradient_values: Array,
        shapes: Mapping[str, Shape],
        whole: ParameterBuffer | None = None,
        offset: int = 0,
    ) -> ParameterBuffer:
        parameters, gradients, start = {}, {}, 0
        for name, shape in shapes.items():
            end = start + math.prod(shape)
            parameters[name] = values[start:end].reshape(shape)
            gradients[name] = gradient_values[start:end].reshape(shape)
            start = end
        return cls(values[:start], gradient_values[:start], parameters, gradients, whole, offset)


class OfParameters:
    """The base of layers and models: parameters and gradients in a `ParameterBuffer`, and an engine.

    Copies and pickles hold the buffer and bind views of it again; attributes in `_scratch_names` are left out.
    """

    parameters: dict[str, Array]
    gradients: dict[str, Array]
    parameter_buffer: Array
    gradient_buffer: Array
    _engine: Engine = CPU
    _view_names: ClassVar[tuple[str, ...]] = ("parameters", "gradients", "parameter_buffer", "gradient_buffer")
    _scratch_names: ClassVar[tuple[str, ...]] = ()

    def _bind(self, storage: ParameterBuffer) -> None:
        """Set the attributes that are views of the buffer."""
        self._storage = storage
        self.parameters, self.gradients = storage.parameters, storage.gradients
        self.parameter_buffer, self.gradient_buffer = storage.values, storage.gradient_values

    def _begin(self) -> None:
        """Create the attributes that calls keep for later calls, empty."""

    def _on(self: L, engine: Engine, storage: ParameterBuffer) -> L:
        """Return a twin on another engine, with the arrays of `storage`."""
        twin = copy.copy(self)
        twin._engine = engine
        twin._bind(storage)
        twin._begin()
        return twin

    def __getstate__(self) -> dict[str, Any]:
        left_out = {*self._view_names, *self._scratch_names}
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind(self._storage)
        self._begin()


class Scratch:
    """Arrays kept from call to call: the same name and shape returns the same array, with its old contents."""

    _all: ClassVar[weakref.WeakSet[Scratch]] = weakref.WeakSet()

    def __init__(self, dtype: np.dtype[Any], engine: Engine = CPU) -> None:
        self._dtype, self._engine = dtype, engine
        self._arrays: dict[str, Array] = {}
        self._all.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._dtype, self._engine)

    def __call__(self, name: str, shape: Shape) -> Array:
        array = self._arrays.get(name)
        if array is None or tuple(array.shape) != shape:
            array = self._arrays[name] = self._engine.empty(shape, self._dtype)
        return array


@_memory.register_pool
def _empty_scratches() -> None:
    """Drop all arrays; a backward pass holds those that it will read."""
    for scratch in list(Scratch._all):
        scratch._arrays = {}
