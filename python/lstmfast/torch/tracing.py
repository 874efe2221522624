"""One switch of torch.compile, set when it is first imported; and whether it has compiled an LSTM.

TorchDynamo refuses every instance of nn.LSTM, ours among them, before it looks at `forward`, unless its setting
`allow_rnn` is on. Importing it to set that takes a second, which programs that compile nothing should not pay: hence a
hook. Other LSTMs of the process are then traced too, where Dynamo can. Nothing else of torch is changed.
What Dynamo has compiled is read in its guards, which name our mark wherever it has traced the `forward` that asks for
it.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from torch import nn

_SETTINGS = "torch._dynamo.config"


def allow_rnn() -> None:
    """Let TorchDynamo trace subclasses of nn.LSTM, now or as soon as somebody imports it."""
    if _SETTINGS in sys.modules:
        _switch(sys.modules[_SETTINGS])
    elif not any(isinstance(finder, _Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hook())


def _switch(settings: ModuleType) -> None:
    if hasattr(settings, "allow_rnn"):  # since torch 2.6; before it there was no such refusal
        setattr(settings, "allow_rnn", True)  # noqa: B010  (a plain module has no such attribute, says mypy)


class _Hook(importlib.abc.MetaPathFinder):
    """Finds nothing itself; has what others find load the settings, and then switches."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _SETTINGS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _switch(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


# --- what is compiled -------------------------------------------------------------------------------------------------


def some_graph_holds_an_lstm() -> bool:
    """Whether TorchDynamo has compiled a call of an LSTM or LSTMCell that is in use still."""
    compiler = sys.modules.get("torch._dynamo.convert_frame")
    if compiler is None:
        return False
    entries_of = getattr(sys.modules.get("torch._C._dynamo.eval_frame"), "_debug_get_cache_entry_list", None)
    codes = getattr(getattr(compiler, "input_codes", None), "seen", ())
    if entries_of is None:
        return False
    found = (code() for code in codes)
    return any(_MARKED in str(entry.guard_manager) for code in found if code is not None for entry in entries_of(code))


_MARKED = "'_lstmfast'"


def compiled_around(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody has compiled, with torch.compile or `compile`, a module that holds one of these."""
    if not some_graph_holds_an_lstm():
        return False
    wanted = set(map(id, modules))
    return any(id(part) in wanted for owner in gc.get_objects() if _is_compiled(owner) for part in owner.modules())


def _is_compiled(thing: Any) -> bool:
    if not issubclass(type(thing), nn.Module):  # isinstance would ask proxies for their __class__
        return False
    return type(thing).__name__ == "OptimizedModule" or thing.__dict__.get("_compiled_call_impl") is not None
