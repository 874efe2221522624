"""From torch's modules to ours and back, in place: the object stays, its class changes.

Parameters, hooks, buffers and training mode are untouched, and so is whoever holds a reference to the module.
"""

from __future__ import annotations

from torch import nn

from lstmfast.torch.modules import LSTM, LSTMCell

_OURS: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: LSTM, nn.LSTMCell: LSTMCell}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}


def convert(model: nn.Module, *, strict: bool = False) -> int:
    """Make every torch.nn.LSTM and LSTMCell of a model ours, in place; return how many there were.

    strict: calls that torch's own forward would have to serve become errors. Subclasses that people wrote are left
    alone: what their `forward` means is theirs. Raises TypeError for what is no module.
    """
    return _exchange(model, _OURS, strict)


def revert(model: nn.Module) -> int:
    """Make every LSTM and LSTMCell of ours torch's again, in place; return how many there were."""
    return _exchange(model, _TORCHS, False)


def _exchange(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]], strict: bool) -> int:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    count = 0
    for module in model.modules():
        other = _other_class(type(module), classes)
        if other is None:
            continue
        module.__class__ = other
        module.__dict__.pop("strict", None)
        if strict:
            module.strict = True
        count += 1
    return count


def _other_class(cls: type[nn.Module], classes: dict[type[nn.Module], type[nn.Module]]) -> type[nn.Module] | None:
    if cls in classes:
        return classes[cls]
    # torch.nn.utils.parametrize gives a module a class of its own, derived from its class, with properties in it.
    base = cls.__bases__[0]
    if cls.__name__ == f"Parametrized{base.__name__}" and base in classes:
        members = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        return type(f"Parametrized{classes[base].__name__}", (classes[base],), members)
    return None
