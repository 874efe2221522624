"""Derivatives of eager calls: TensorFlow 1's `tf.gradients`, for calls made while a tape was recording.

A tape knows the arrays that cells and unrolling functions read and returned, and passes derivatives between them. It
identifies arrays as objects: a slice or a copy is another array, and NumPy's arithmetic is not recorded. So users
differentiate their own part of a model, above all its loss, and pass the result as `grad_ys`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast._checks import Array
from lstmfast.compat.tf1.graph import Variable

Add = Callable[[Array, Array], None]
"""add(array, gradient): one contribution to the derivative by an array."""


@dataclass(frozen=True, eq=False)
class Call:
    """One recorded call. backward(gradients of outputs or None for zeros, add) adds the gradients of its inputs."""

    inputs: list[Array]
    outputs: list[Array]
    variables: list[Variable]
    backward: Callable[[list[Array | None], Add], None]


class GradientTape:
    """Records calls of cells and unrolling functions within its `with` block, for `gradients`.

    The tape refers to the calls' arrays: do not write to inputs and outputs before `gradients`; variables may change.
    """

    def __init__(self) -> None:
        self._calls: list[Call] = []

    def __enter__(self) -> GradientTape:
        _running.tapes.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _running.tapes.remove(self)

    def gradients(self, ys: Any, xs: Any, grad_ys: Any = None) -> list[Array | None]:
        """Return the derivative of sum(grad_ys * ys) by each of xs, new arrays; None where ys do not depend on it.

        ys: arrays that recorded calls returned, in lists and tuples of any depth: outputs, states, or both. grad_ys:
        the derivatives of the loss by them, in the same structure, None for zeros; None alone means ones, as in
        TensorFlow. xs: variables, and arrays that recorded calls read or returned. May be called more than once.
        Raises ValueError naming the y or x that no recorded call knows, and the grad_y whose shape differs from its
        y's; TypeError for another dtype.
        """
        outputs = list(_flatten("ys", ys))
        given = _grad_ys(outputs, ys, grad_ys)
        sums: dict[int, Array] = {}
        returned = {id(array) for call in self._calls for array in call.outputs}

        def add(array: Array, gradient: Array) -> None:
            sums[id(array)] = sums[id(array)] + gradient if id(array) in sums else gradient

        for (name, y), gradient in zip(outputs, given, strict=True):
            if id(y) not in returned:
                raise ValueError(
                    f"{name} is not an array that a call within this tape returned; a slice or copy is a "
                    "different array: pass the whole array, with zeros in grad_ys where there is no gradient"
                )
            if gradient is not None:
                add(y, gradient)
        for call in reversed(self._calls):
            gradients = [sums.get(id(array)) for array in call.outputs]
            if any(gradient is not None for gradient in gradients):
                call.backward(gradients, add)
        known = returned | {id(array) for call in self._calls for array in call.inputs}
        results = []
        for name, x in _flatten("xs", xs):
            if id(x) not in known and not isinstance(x, Variable):
                raise ValueError(
                    f"{name} is neither a variable nor an array that a call within this tape read or returned; a slice "
                    "or copy is a different array"
                )
            found = sums.get(id(x))
            results.append(found.copy() if any(found is own for own in given) and found is not None else found)
        return results


class _Running(threading.local):
    """The tapes recording in this thread."""

    def __init__(self) -> None:
        self.tapes: list[GradientTape] = []


_running = _Running()


def recording() -> bool:
    """Whether any tape is recording, so that values for the backward pass must be kept."""
    return bool(_running.tapes)


def record(call: Call) -> None:
    """Record a call on every active tape."""
    for tape in _running.tapes:
        tape._calls.append(call)


def clip_by_global_norm(
    t_list: Sequence[npt.NDArray[Any] | None], clip_norm: float
) -> tuple[list[Array | None], float]:
    """Return the arrays scaled to a global norm of at most clip_norm, and their norm before.

    None stays None. Raises ValueError unless clip_norm is positive.
    """
    if not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive, got {clip_norm}")
    for k, t in enumerate(t_list):
        check.unmasked(f"t_list[{k}]", t)
    norm = math.sqrt(sum(float(np.vdot(t, t)) for t in t_list if t is not None))
    scale = clip_norm / max(norm, clip_norm)
    return [None if t is None else t * t.dtype.type(scale) for t in t_list], norm


def _grad_ys(outputs: list[tuple[str, Array]], ys: Any, grad_ys: Any) -> list[Array | None]:
    """Return one gradient for each output, checked; None for zeros."""
    if grad_ys is None:
        return [np.ones_like(y) for _, y in outputs]
    given = list(_align("grad_ys", ys, grad_ys))
    for (_, y), (name, gradient) in zip(outputs, given, strict=True):
        if gradient is not None:
            check.array(name, gradient, y.shape, "the shape of its y", dtype=y.dtype, like="its y")
    return [gradient for _, gradient in given]


def _flatten(name: str, structure: Any) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of a structure with their names."""
    if isinstance(structure, (list, tuple)):
        for k, part in enumerate(structure):
            yield from _flatten(f"{name}[{k}]", part)
    elif isinstance(structure, np.ndarray):
        yield name, structure
    else:
        raise TypeError(f"{name} must be an array, or a list or tuple of arrays, got {type(structure).__name__}")


def _align(name: str, structure: Any, values: Any) -> Iterator[tuple[str, Any]]:
    """Yield one of `values` for every array of the structure; a None applies to everything below it."""
    if isinstance(structure, (list, tuple)):
        if values is not None and (not isinstance(values, (list, tuple)) or len(values) != len(structure)):
            given = f"{len(values)}" if isinstance(values, (list, tuple)) else type(values).__name__
            raise ValueError(f"{name} must have the structure of ys, {len(structure)} parts here, got {given}")
        for k, part in enumerate(structure):
            yield from _align(f"{name}[{k}]", part, None if values is None else values[k])
    else:
        yield name, values
