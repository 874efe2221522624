"""One switch of torch.compile, set when it is first imported.

TorchDynamo refuses every instance of nn.LSTM, ours among them, before it looks at `forward`, unless its setting
`allow_rnn` is on. Importing it to set that takes a second, which programs that compile nothing should not pay: hence a
hook. Other LSTMs of the process are then traced too, where Dynamo can. Nothing else of torch is changed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

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
