"""The weights that a module computes with: those that torch's own `forward` would read, or a frozen copy of them.

torch's LSTM reads the list `_flat_weights`, which it makes again from its parameters when they are other objects than
before; so whoever sets that list, ties its entries or parametrizes the module is served here as there.
Nothing is assumed of weights that were there in the last call: the extension compares what it has packed with what is
in memory, whoever wrote it. `freeze` is the promise that nobody writes.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lstmfast import _core
from lstmfast.torch import kernels
from lstmfast.torch.calls import Weights
from lstmfast.torch.kernels import Arrays

_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def flat(module: nn.Module) -> Sequence[Any]:
    """The weights of an LSTM as torch has them in `_flat_weights`, or of an LSTMCell; None for those it lacks."""
    own = module._parameters
    if isinstance(module, nn.LSTMCell):
        found = [own.get(name) for name in _CELL]
        if found[0] is None or found[1] is None or (module.bias and (found[2] is None or found[3] is None)):
            return [getattr(module, name) for name in _CELL]  # computed ones: parametrized, pruned
        return found
    if torch.compiler.is_compiling():
        return [getattr(module, name) for name in module._flat_weights_names]
    for name, reference in zip(module._flat_weights_names, module._flat_weight_refs, strict=False):
        weight = own.get(name)
        if weight is None or reference is None or reference() is not weight:
            module._update_flat_weights()
            break
    return module._flat_weights  # type: ignore[no-any-return]


def by_layer(module: nn.Module) -> list[Weights]:
    """The weights of every layer and direction, in torch's order."""
    found = list(flat(module))
    if isinstance(module, nn.LSTMCell):
        w_ih, w_hh, b_ih, b_hh = found
        return [Weights(w_ih, w_hh, b_ih, b_hh, None)]
    count = 2 + 2 * bool(module.bias) + bool(module.proj_size)
    return [_of_one(found[k : k + count], bool(module.bias)) for k in range(0, len(found), count)]


def _of_one(part: list[Tensor], has_bias: bool) -> Weights:
    w_ih, w_hh, *rest = part
    b_ih, b_hh = rest[:2] if has_bias else (None, None)
    return Weights(w_ih, w_hh, b_ih, b_hh, rest[-1] if len(rest) % 2 else None)


# --- without gradients: packed weights and frozen ones ----------------------------------------------------------------


class View:
    """The memory of one layer's weights as arrays, made once and again when a tensor has other memory."""

    __slots__ = ("_marks", "arrays")

    def __init__(self) -> None:
        self.arrays: Arrays | None = None
        self._marks: list[Any] = []

    def of(self, weights: Sequence[Any]) -> Arrays:
        """The arrays; weights as `flat` has those of one layer without projection, or a `Weights`."""
        marks = self._marks
        if self.arrays is not None and len(marks) == len(weights):
            for weight, mark in zip(weights, marks, strict=True):
                if weight is None:
                    if mark is not None:
                        break
                elif mark is None or (weight.data_ptr(), weight.stride(), weight.shape, weight.dtype) != mark:
                    break
            else:
                return self.arrays
        self.arrays = None
        found = kernels.arrays(weights if isinstance(weights, Weights) else _of_one(list(weights), len(weights) > 2))
        if all(w is None or w.is_contiguous() for w in weights):  # others were copied
            self._marks = [None if w is None else (w.data_ptr(), w.stride(), w.shape, w.dtype) for w in weights]
            self.arrays = found
        return found


class Workspace:
    """What calls without gradients keep of one layer and direction: packed weights, in a sequence of their own."""

    def __init__(self) -> None:
        self.sequence = _core.Sequence()
        self.view = View()
        self.has_frozen_weights = False


class _Workspaces(threading.local):
    """Those of every module, of one thread: a sequence serves one call at a time. No part of a module's state."""

    def __init__(self) -> None:
        self.of_module: weakref.WeakKeyDictionary[nn.Module, list[Workspace]] = weakref.WeakKeyDictionary()


_workspaces = _Workspaces()


def workspaces(module: nn.Module, count: int) -> list[Workspace]:
    """The workspaces of this thread for a module with `count` layers and directions."""
    found = _workspaces.of_module.get(module)
    if found is None or len(found) != count:
        found = _workspaces.of_module[module] = [Workspace() for _ in range(count)]
    return found


_frozen: weakref.WeakKeyDictionary[nn.Module, list[Weights]] = weakref.WeakKeyDictionary()


def frozen(module: nn.Module) -> list[Weights] | None:
    """The weights that calls without gradients use in place of the module's own; None if it is not frozen."""
    return _frozen.get(module) if _frozen else None


def keep_frozen(module: nn.Module) -> None:
    """Take a copy of the weights as they are now for all calls without gradients."""
    _frozen[module] = [
        Weights(*(None if w is None else w.detach().clone() for w in layer)) for layer in by_layer(module)
    ]


def forget_frozen(module: nn.Module) -> bool:
    """Use the module's own weights again; whether it was frozen."""
    return _frozen.pop(module, None) is not None
