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

import numpy as np
import torch
from torch import Tensor, nn

from lstmfast import _checks as check
from lstmfast import _core
from lstmfast.torch import kernels
from lstmfast.torch.calls import Weights
from lstmfast.torch.kernels import Arrays
from lstmfast.torch.memory import PLAIN

_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def flat(module: nn.Module) -> Sequence[Any]:
    """The weights of an LSTM as torch has them in `_flat_weights`, or of an LSTMCell in the same order."""
    own = module._parameters
    if isinstance(module, nn.LSTMCell):
        names = _CELL if module.bias else _CELL[:2]
        found = [own.get(name) for name in names]
        if any(weight is None for weight in found):  # computed: parametrized or pruned
            return [getattr(module, name) for name in names]
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
    """The weights of every layer and direction, in torch's order; none where somebody set a list that does not fit."""
    found = list(flat(module))
    if isinstance(module, nn.LSTMCell):
        return [_of_one(found, bool(module.bias))]
    count = 2 + 2 * bool(module.bias) + bool(module.proj_size)
    if len(found) % count:
        return []
    return [_of_one(found[k : k + count], bool(module.bias)) for k in range(0, len(found), count)]


def _of_one(part: list[Tensor], has_bias: bool) -> Weights:
    w_ih, w_hh, *rest = part
    b_ih, b_hh = rest[:2] if has_bias else (None, None)
    return Weights(w_ih, w_hh, b_ih, b_hh, rest[-1] if len(rest) % 2 else None)


# --- their format in calls without gradients --------------------------------------------------------------------------

FORMATS = ("float32", "int8")
_FORMAT = "_lstmfast_weights"  # in the __dict__ of a module, so that copies and pickles have it


def format_of(module: nn.Module) -> str:
    """The format in which calls without gradients keep float32 weights, one of FORMATS."""
    return module.__dict__.get(_FORMAT, "float32")  # type: ignore[no-any-return]


def set_format(module: nn.Module, word: str) -> bool:
    """Keep weights in this format; return whether it is another than before."""
    before = module.__dict__.pop(_FORMAT, "float32")
    if word != "float32":
        module.__dict__[_FORMAT] = word
    return bool(before != word)


def check_int8(module: nn.Module, prefix: str) -> None:
    """Raise ValueError, naming the parameter, if a float32 weight in memory cannot be rounded to int8."""
    for k, layer in enumerate(by_layer(module)):
        end = suffix(module, k)
        for name, weight in zip(Weights._fields[:2], layer[:2], strict=True):
            if type(weight) in (Tensor, nn.Parameter) and weight.is_cpu and weight.dtype is torch.float32:
                check.int8_kernel(f"{prefix}{name}{end}", kernels.array(weight))


def suffix(module: nn.Module, k: int) -> str:
    """What torch appends to the names of the parameters of layer and direction k."""
    if not isinstance(module, nn.LSTM):
        return ""
    layer, reverse = divmod(k, 2) if module.bidirectional else (k, 0)
    return f"_l{layer}{'_reverse' if reverse else ''}"


# --- without gradients: packed weights and frozen ones ----------------------------------------------------------------


class View:
    """The memory of one layer's weights as arrays, made again when a weight is another tensor or has other memory."""

    __slots__ = ("_marks", "arrays")

    def __init__(self) -> None:
        self.arrays: Arrays | None = None
        self._marks: list[tuple[Tensor, int, tuple[int, ...], torch.Size]] = []

    def of(self, weights: Weights) -> Arrays:
        """The arrays of these weights."""
        given = [w for w in weights if w is not None]
        if len(given) != len(self._marks) or not all(map(_is_marked, given, self._marks)):
            self.arrays = kernels.arrays(weights)
            self._marks = [(w, w.data_ptr(), w.stride(), w.shape) for w in given]
            if not all(w.is_contiguous() for w in given):  # others may have been copied
                self._marks = []
        assert self.arrays is not None
        return self.arrays

    def tensors(self) -> list[Tensor]:
        """The weights that the arrays are the memory of."""
        return [mark[0] for mark in self._marks]

    def of_module(self, module: nn.Module, names: Sequence[str], first: int = 0) -> Arrays | None:
        """The arrays, if they are those of one layer of a module, whose parameters have these names; else None.

        first: the place of its first weight among all of the module.
        What `flat` and `of` find, in a third of their 3 us, because the parameters and the list are both looked at.
        """
        marks, own = self._marks, module._parameters
        if len(marks) != len(names):
            return None
        read: Any = map(own.get, names)
        if isinstance(module, nn.LSTM):
            read = module._flat_weights[first : first + len(names)] if first else module._flat_weights
        for name, weight, mark in zip(names, read, marks, strict=False):
            if own.get(name) is not weight or not _is_marked(weight, mark):
                return None
        return self.arrays


def _is_marked(weight: Any, mark: tuple[Tensor, int, tuple[int, ...], torch.Size]) -> bool:
    tensor, address, stride, shape = mark
    return (
        weight is tensor and weight.data_ptr() == address and weight.stride() == stride and weight.shape == shape
    )


class Workspace:
    """What calls without gradients keep of one layer and direction: packed weights, in a sequence of their own."""

    def __init__(self, *, reverse: bool) -> None:
        self.reverse = reverse
        self._sequence = _core.Sequence(reverse, PLAIN)
        self._loaded: tuple[Arrays | None, bool, str] = None, False, ""
        self.view = View()
        self.has_frozen_weights, self.format = False, "float32"  # in the current call

    def sequence(self, arrays: Arrays, *, frozen: bool = False, format: str = "float32") -> _core.Sequence:
        """The sequence with these weights loaded. frozen: the promise that nobody writes to them."""
        loaded, as_frozen, loaded_format = self._loaded
        if loaded is not arrays or as_frozen is not frozen or loaded_format is not format:
            wanted = format if arrays.kernel[0].dtype == np.float32 else "float32"
            self._sequence.load(arrays.kernel, arrays.bias, None, arrays.projection, frozen, False, wanted)
            self._loaded = arrays, frozen, format
        return self._sequence


class _Workspaces(threading.local):
    """Those of every module, of one thread: a sequence serves one call at a time. No part of a module's state."""

    def __init__(self) -> None:
        self.of_module: weakref.WeakKeyDictionary[nn.Module, list[Workspace]] = weakref.WeakKeyDictionary()


_workspaces = _Workspaces()


def workspaces(module: nn.Module, count: int, *, bidirectional: bool = False) -> list[Workspace]:
    """The workspaces of this thread for a module with `count` layers and directions, in the order of the states."""
    found = _workspaces.of_module.get(module)
    if found is None or len(found) != count or found[-1].reverse is not bidirectional:
        found = [Workspace(reverse=bidirectional and k % 2 == 1) for k in range(count)]
        _workspaces.of_module[module] = found
    return found


_frozen: weakref.WeakKeyDictionary[nn.Module, list[Weights]] = weakref.WeakKeyDictionary()


_some_are_frozen = False


def frozen(module: nn.Module) -> list[Weights] | None:
    """The weights that calls without gradients use in place of the module's own; None if it is not frozen."""
    return _frozen.get(module) if _some_are_frozen else None  # asked in every call; asking the dictionary takes 0.5 us


def keep_frozen(module: nn.Module) -> None:
    """Take a copy of the weights as they are now for all calls without gradients."""
    global _some_are_frozen
    _some_are_frozen = True
    _frozen[module] = [
        Weights(*(None if w is None else w.detach().clone() for w in layer)) for layer in by_layer(module)
    ]


def forget_frozen(module: nn.Module) -> bool:
    """Use the module's own weights again; whether it was frozen."""
    return _frozen.pop(module, None) is not None
