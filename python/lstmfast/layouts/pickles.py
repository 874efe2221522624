"""Files of torch.save, read by PyTorch's weights-only loader, with stand-ins for harmless values beside the weights.

Checkpoints keep hyperparameters next to their tensors: NumPy scalars and arrays, an argparse.Namespace, paths, dates.
The loader refuses these names. Here each becomes an inert object that keeps nothing, except NumPy arrays, whose bytes
are read as numbers. Refuses every other name, and never imports or calls what a pickle names.
"""

from __future__ import annotations

import math
import re
import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lstmfast._checks import Array


class Opaque:
    """A value that is not a weight; its contents are dropped."""

    def __new__(cls, *args: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Dict(Opaque):
    """A plain dict in place of a dict subclass."""

    def __new__(cls, *args: Any) -> Any:
        return {}


class _List(Opaque):
    """A plain list in place of a list subclass."""

    def __new__(cls, *args: Any) -> Any:
        return []


class DType(Opaque):
    """A NumPy dtype, as the text in its pickle."""

    code, order = "", "="

    def __init__(self, *args: Any) -> None:
        self.code = args[0] if args and isinstance(args[0], str) else ""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]


class PickledArray(Opaque):
    """A NumPy array: `values` holds its numbers, None if it is not numeric."""

    values: Array | None = None

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            return
        _, shape, dtype, fortran, data = state
        if not (isinstance(dtype, DType) and re.fullmatch(r"[fiu][1248]|b1", dtype.code) and isinstance(data, bytes)):
            return
        kind = np.dtype(dtype.order + dtype.code)
        whole = isinstance(shape, tuple) and all(isinstance(each, int) and each >= 0 for each in shape)
        if whole and math.prod(shape) * kind.itemsize == len(data):
            values = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")
            self.values = values.astype(kind.newbyteorder("="))


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_HARMLESS = {
    Opaque: (
        *(f"{module}.scalar" for module in _NUMPY), "numpy.ndarray", "argparse.Namespace", "types.SimpleNamespace",
        *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in (
            "Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")),
        *(f"datetime.{name}" for name in ("date", "time", "datetime", "timedelta", "timezone")),
        *(f"builtins.{name}" for name in (
            "bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "range", "slice", "str", "tuple")),
        "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "typing.Any", "torch.torch_version.TorchVersion",
        "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode",
    ),
    _Dict: (
        "collections.defaultdict", "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
    ),
    _List: ("collections.deque",),
    DType: ("numpy.dtype",),
    PickledArray: tuple(f"{module}._reconstruct" for module in _NUMPY),
}


def _stand_in(kind: type, name: str) -> type:
    """A class that the loader accepts under this name: it looks only at `__module__` and `__qualname__`."""
    module, _, own = name.rpartition(".")
    return type(own, (kind,), {"__module__": module, "__qualname__": own})


_STAND_INS = [_stand_in(kind, name) for kind, names in _HARMLESS.items() for name in names]
_ONE_AT_A_TIME = threading.Lock()  # the loader's list of allowed names is global to the process


def load(path: Path, torch: ModuleType) -> Any:
    """The contents of a torch.save file. Raises the loader's error for anything but weights and harmless values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its errors say more than its warnings
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            known = getattr(torch.serialization, "safe_globals", None)  # since PyTorch 2.5
            if known is None or refused_name(str(error)) not in _NAMES:
                raise
        with _ONE_AT_A_TIME, known(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)


_NAMES = {name for names in _HARMLESS.values() for name in names} | {
    name.removeprefix("builtins.") for name in _HARMLESS[Opaque]  # the loader's error leaves this word out
}


def refused_name(said: str) -> str:
    """The unknown name in the loader's error, "" if it is another error."""
    found = re.search(r"GLOBAL (\S+)|Unsupported (?:class|global):? ?(?:GLOBAL )?(\S+)", said)
    return (found[1] or found[2]).rstrip(".,") if found else ""
