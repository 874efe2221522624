"""From torch's modules to ours and back, in place: a mark on the module, which torch's own `forward` looks for.

A converted module keeps its class, so whoever looks at classes, module paths or pickles sees what was there before: fx,
exporters, quantization, privacy tools, processes without lstmfast. nn.LSTM.forward and nn.LSTMCell.forward are wrapped
once, when lstmfast.torch is imported; modules without the mark run torch's code, 0.15 us later than before, unless the
whole process is patched (see `patching`).
"""

from __future__ import annotations

import contextlib
import functools
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lstmfast.layouts.quantized import is_quantized_lstm
from lstmfast.torch import paths, recording, regularised, serving, tracing
from lstmfast.torch import weights as kept
from lstmfast.torch.modules import LSTM, LSTMCell
from lstmfast.torch.serving import EVERYWHERE, MARK, originals

_SERVE: dict[type[nn.Module], Callable[..., Any]] = {nn.LSTM: serving.lstm, nn.LSTMCell: serving.cell}
_COMPUTE_WEIGHTS = (WeightNorm, SpectralNorm, BasePruningMethod)
_OURS: dict[type[nn.Module], type[nn.Module]] = {LSTM: nn.LSTM, LSTMCell: nn.LSTMCell}


def teach_torch() -> None:
    """Make the `forward` of torch's classes ask for the mark, unless it does already."""
    for base, serve in _SERVE.items():
        if not _asks_for_mark(base.forward):
            originals[base] = base.forward
            base.forward = _asking(base.forward, serve)


def _asking(original: Callable[..., Any], serve: Callable[..., Any]) -> Callable[..., Any]:
    mark, everywhere, is_compiling = MARK, EVERYWHERE, torch.compiler.is_compiling

    def forward(self, input, hx=None, **extras):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN202
        # Dynamo guards on what hasattr says, and not on what is in __dict__.
        if (hasattr(self, mark) if is_compiling() else mark in self.__dict__) or everywhere:
            return serve(self, input, hx, **extras)
        return original(self, input, hx, **extras)

    return _disguised(forward, original)


def _disguised(forward: Any, original: Any) -> Callable[..., Any]:
    """The function in torch's module and with its source, which torch.jit.script reads and looks names up in."""
    wrapper = types.FunctionType(
        forward.__code__, original.__globals__, original.__name__, original.__defaults__, forward.__closure__
    )
    functools.update_wrapper(wrapper, original)
    setattr(wrapper, MARK, True)
    return wrapper


# --- recording --------------------------------------------------------------------------------------------------------

_recording: dict[type[nn.Module], tuple[Callable[..., Any], Callable[..., Any]]] = {}  # what was there, and what is


def record_calls() -> None:
    """Have every call of an LSTM or LSTMCell recorded, of torch's classes and of ours."""
    for cls in (*_SERVE, *_OURS):
        before = cls.forward
        cls.forward = _recorded(before, originals[_OURS.get(cls, cls)])
        _recording[cls] = before, cls.forward


def stop_recording_calls() -> None:
    """Undo `record_calls`, unless somebody has put something in its place."""
    for cls, (before, recorded) in _recording.items():
        if cls.forward is recorded:
            cls.forward = before
    _recording.clear()


def _recorded(forward: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    is_compiling, kept, is_transformed = torch.compiler.is_compiling, recording, paths.is_transformed

    def recorded(self, input, hx=None, **extras):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN202
        if is_compiling() or not kept.is_on:
            return forward(self, input, hx, **extras)
        return kept.call(self, forward, original, is_transformed, input, hx, extras)

    return _disguised(recorded, forward)


def _asks_for_mark(function: Any) -> bool:
    return MARK in getattr(function, "__dict__", {})


# --- convert and revert -----------------------------------------------------------------------------------------------


def convert(model: nn.Module, *, strict: bool = False, weights: str = "float32") -> int:
    """Have lstmfast serve every torch.nn.LSTM and LSTMCell of a model; return how many it changed.

    Modules stay what they are and where they are, class included. Subclasses are converted where their `forward` is
    torch's or calls it; others are left alone, as is a module whose own `forward` was replaced by one that does not.
    strict: calls that torch's own forward would have to serve become errors.
    weights: the format in which calls without gradients keep float32 weights, "float32" or "int8", also of modules that
    lstmfast serves already; of several calls the last decides. Parameters stay as they are, every call sees their
    current values, and those with a weight that is not finite run in float32.
    Raises TypeError for what is no module, ValueError for other words; for int8 also, before anything is changed, if a
    float32 weight is not finite or above 2.8e14. Raises RuntimeError, before anything is changed, if a graph of
    torch.compile holds one of the modules.
    """
    teach_torch()
    if weights not in kept.FORMATS:
        raise ValueError(f"weights must be one of {', '.join(kept.FORMATS)}, got {weights!r}")
    found = [
        (name, module) for name, module in _named_parts(model)
        if MARK in module.__dict__ or serving.is_ours(module) or _why_not(module) is None
    ]
    if tracing.compiled_around(module for _, module in found):
        raise RuntimeError(
            "convert: a graph of torch.compile holds an LSTM of this model; convert before compiling, or call "
            "torch.compiler.reset()"
        )
    for name, module in found if weights == "int8" else ():
        if regularised.cell_of(module) is not None:
            continue
        kept.check_int8(module, f"{name}." if name else "")
    count = 0
    for _, module in found:
        is_new = MARK not in module.__dict__ and not serving.is_ours(module)
        if is_new:
            module.__dict__[MARK] = True
            if strict:
                module.strict = True
        count += (regularised.cell_of(module) is None and kept.set_format(module, weights)) or is_new
    return count


def revert(model: nn.Module) -> int:
    """Have torch serve every LSTM and LSTMCell of a model again, in place; return how many lstmfast served.

    Modules made by lstmfast.torch.LSTM or LSTMCell become torch.nn's. Raises RuntimeError, before anything is changed,
    for one with options that torch.nn.LSTM has not.
    """
    for name, module in _named_parts(model):
        cell = regularised.cell_of(module)
        if cell is not None:
            raise RuntimeError(
                f"revert: {name or 'this module'} has {', '.join(sorted(cell.features))}, which torch.nn.LSTM has not"
            )
    count = 0
    for module in _parts(model):
        kept.forget_frozen(module)
        kept.set_format(module, "float32")
        marked, other = module.__dict__.pop(MARK, False), _OURS.get(type(module))
        if not marked and other is None:
            continue
        if other is not None:
            module.__class__ = other
        module.__dict__.pop("strict", None)
        count += 1
    return count


def freeze(model: nn.Module) -> int:
    """Promise that the weights of a model's LSTMs and LSTMCells stay as they are; return how many are frozen.

    Calls without gradients then use a copy made now and packed once, and do not look at the weights again: what is
    written later is not seen until `unfreeze`. Calls with gradients use the module's own weights as ever. Copies and
    pickles of the model are not frozen, nor are LSTMs with options that torch.nn.LSTM has not.
    """
    served = [
        module for module in _parts(model) if serving.is_served(module) and regularised.cell_of(module) is None
    ]
    for module in served:
        with _weights_of_next_call(module):
            kept.keep_frozen(module)
    return len(served)


@contextlib.contextmanager
def _weights_of_next_call(module: nn.Module) -> Iterator[None]:
    """Within it a module has the weights that its next call would compute; afterwards again those of the last one.

    The graph of computed weights, which nobody will go back through, would keep the parameters from being swapped.
    """
    before, flat = dict(module.__dict__), list(module.__dict__.get("_flat_weights", ()))
    try:
        with torch.no_grad():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, _COMPUTE_WEIGHTS):
                    hook(module, None)
            yield
    finally:
        module.__dict__.update(before)
        if flat:
            module._flat_weights[:] = flat


def unfreeze(model: nn.Module) -> int:
    """Use the weights of a model as they are at each call; return how many modules were frozen."""
    return sum(kept.forget_frozen(module) for module in _parts(model))


def weights_changed(module: nn.Module) -> None:
    """Do nothing: every call sees the weights as they are. Deprecated, will be removed in 0.3."""
    warnings.warn(
        "lstmfast.torch.weights_changed is not needed any more: every call sees the weights as they are",
        DeprecationWarning,
        stacklevel=2,
    )


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    return (module for _, module in _named_parts(model))


def _named_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return ((name, module) for name, module in model.named_modules() if isinstance(module, tuple(_SERVE)))


# --- what happens in a call -------------------------------------------------------------------------------------------


def explain(module: nn.Module, input: Any, hx: Any = None, *, return_cells: bool = False) -> str:
    """Say in a sentence what serves a call of this LSTM or LSTMCell with these arguments, and why.

    Raises TypeError for other modules.
    """
    if is_quantized_lstm(module):
        return (
            f"torch's own forward: this is torch.ao's quantized {type(module).__name__}, which convert leaves as it is "
            "because its weights are packed integers; lstmfast.layouts.from_quantized reads them as float32"
        )
    if not isinstance(module, tuple(_SERVE)):
        raise TypeError(f"module must be an LSTM or LSTMCell, got {type(module).__name__}")
    if regularised.cell_of(module) is not None:
        return regularised.explain(module, input, hx, return_cells=return_cells)
    ours = serving.is_ours(module)
    reason = None if ours else _why_not(module)
    if reason is not None:
        return reason
    if not serving.is_served(module):
        return f"torch's own forward: this is torch's {type(module).__name__}; see lstmfast.torch.convert"
    before = _runs_before(module)
    said = serving.explain(module, input, hx, return_cells=return_cells)
    return f"{before}, which calls {said}" if before else said


def _base(module: nn.Module) -> Any:
    return nn.LSTM if isinstance(module, nn.LSTM) else nn.LSTMCell


def _why_not(module: nn.Module) -> str | None:
    """Why torch's `forward`, which asks for the mark, does not run when this module is called; None if it does."""
    base, own = _base(module), module.__dict__.get("forward")
    if own is not None and not _reaches(own, base):
        return (
            "this module's own `forward`, which was set on it and does not call "
            f"{base.__name__}.forward as far as can be seen"
        )
    if not _asks_for_mark(base.forward):
        return f"the function that somebody put for {base.__name__}.forward"
    cls = computes_by_itself(type(module))
    return None if cls is None else f"{cls.__name__}.forward, which does not call {base.__name__}.forward"


def computes_by_itself(cls: type[nn.Module]) -> type[nn.Module] | None:
    """Which class a subclass of torch's has its `forward` from, if that does not call torch's."""
    for owner in cls.__mro__:
        if owner in _SERVE:
            return None
        function = vars(owner).get("forward")
        if function is not None and not _calls_up(function, nn.LSTM if issubclass(cls, nn.LSTM) else nn.LSTMCell):
            return owner
    return None


def _runs_before(module: nn.Module) -> str | None:
    if "forward" in module.__dict__:
        return "this module's own `forward`, which was set on it"
    for cls in type(module).__mro__:
        if cls is _base(module) or cls in _OURS:
            return None
        if "forward" in vars(cls):
            return f"{cls.__name__}.forward"
    return None


def _reaches(function: Any, base: type[nn.Module], depth: int = 0) -> bool:
    """Whether what was set as a module's `forward` holds that of `base`: bound, in a partial, a closure, a global."""
    if depth > 8:
        return False
    if isinstance(function, types.MethodType):
        if isinstance(function.__self__, base) and function.__name__ == "forward":
            return _asks_for_mark(function.__func__) or _calls_up(function.__func__, base)
        held: list[Any] = [function.__func__, *getattr(function.__self__, "__dict__", {}).values()]
    elif isinstance(function, functools.partial):
        held = [function.func, *function.args, *function.keywords.values()]
        held += [value for module in held if isinstance(module, base) for value in module.__dict__.values()]
    elif isinstance(function, types.FunctionType):
        if _asks_for_mark(function) or _calls_up(function, base):
            return True
        used = (function.__globals__.get(name) for name in _names(function.__code__))
        held = [getattr(function, "__wrapped__", None), *(cell.cell_contents for cell in _filled_cells(function))]
        held += [*(function.__defaults__ or ()), *(value for value in used if isinstance(value, types.MethodType))]
    else:
        held = list(getattr(function, "__dict__", {}).values())
    return any(
        callable(value) and not isinstance(value, (type, nn.Module)) and _reaches(value, base, depth + 1)
        for value in held
    )


def _filled_cells(function: types.FunctionType) -> Iterator[types.CellType]:
    """What a closure refers to, less what is not defined yet."""
    for cell in function.__closure__ or ():
        try:
            cell.cell_contents  # noqa: B018  (raises where it is empty)
        except ValueError:
            continue
        yield cell


def _calls_up(function: Any, base: type[nn.Module]) -> bool:
    """Whether the code of a method names the `forward` of its super class."""
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    names = set() if code is None else _names(code)
    return "forward" in names and bool(names & {"super", base.__name__, "RNNBase"})


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
