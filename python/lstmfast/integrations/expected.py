"""What an adapter asks of the package that it adapts, before it changes anything."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Sequence


def check_method(caller: str, owner: type, name: str, parameters: Sequence[str], package: str) -> None:
    """Raise RuntimeError unless a class has a method of this name whose parameters are these, in their order."""
    method = getattr(owner, name, None)
    if method is None:
        raise RuntimeError(
            f"{caller}: {owner.__name__} of {_version(package)} has no method {name}; nothing was changed"
        )
    found = [parameter for parameter in inspect.signature(method).parameters if parameter != "self"]
    if found != list(parameters):
        raise RuntimeError(
            f"{caller}: {owner.__name__}.{name} of {_version(package)} takes {', '.join(found)}, not "
            f"{', '.join(parameters)}; nothing was changed"
        )


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package
