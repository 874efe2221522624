"""A GPU for tests, on the CPU: the CUDA library built with the emulator, and arrays that act as device arrays.

PyTorch's host tensors count as device arrays while the emulated library is loaded. `HostCupy` implements over NumPy
the part of CuPy that the binding uses; its arrays are recognized by `__cuda_array_interface__` alone.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from lstmfast.cuda import _arrays, _health, _library
from support.cuda_builds import build_library
from support.kernel_builds import CSRC


def emulated_library() -> Path:
    """The CUDA library whose kernels run on the CPU."""
    return build_library([CSRC / "cuda" / "lstmfast_cuda.cu", CSRC / "cuda" / "plan.cc"], flags=["-O2"])


@contextlib.contextmanager
def emulated_device() -> Iterator[_library.Library]:
    """A device of the emulated library, with no kernel tested yet."""
    _library._use(emulated_library())
    try:
        with _health._forgetting():
            yield _library.require()
    finally:
        _library._use(None)


class _Device(contextlib.nullcontext[None]):
    id = 0


class HostArray:
    """A device array of `HostCupy`."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.values.__array_interface__, "version": 3, "stream": None}

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a device array does not turn into a NumPy array by itself")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # no DLPack, for one
            raise AttributeError(name)
        found = getattr(self.values, name)
        if not callable(found) or isinstance(found, np.dtype):
            return _wrap(found)
        return lambda *given, **options: _wrap(found(*map(_plain, given), **options))

    def __getitem__(self, key: Any) -> HostArray:
        return HostArray(self.values[tuple(map(_plain, key)) if isinstance(key, tuple) else _plain(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.values[tuple(map(_plain, key)) if isinstance(key, tuple) else _plain(key)] = _plain(value)

    def __len__(self) -> int:
        return len(self.values)

    def __invert__(self) -> HostArray:
        return HostArray(~self.values)

    def __neg__(self) -> HostArray:
        return HostArray(-self.values)

    @property
    def device(self) -> Any:
        return _Device()


def _binary(name: str) -> Any:
    function = getattr(operator, name)
    return lambda self, other: HostArray(function(self.values, _plain(other)))


for _name in ("add", "sub", "mul", "matmul", "lt", "le", "eq", "ne", "ge", "gt"):
    setattr(HostArray, f"__{_name}__", _binary(_name))
for _name in ("iadd", "isub", "imul"):  # in place, as CuPy's are
    setattr(HostArray, f"__{_name}__", _binary(_name))


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, HostArray) else value


def _wrap(value: Any) -> Any:
    return HostArray(value) if isinstance(value, (np.ndarray, np.floating)) else value


def _of(function: Any) -> Any:
    def call(*given: Any, **options: Any) -> HostArray:
        lists = (list(map(_plain, value)) if isinstance(value, list) else _plain(value) for value in given)
        return HostArray(function(*lists, **options))

    return call


def host_cupy() -> Any:
    """A module with CuPy's names."""
    names = ("empty", "zeros", "asarray", "concatenate", "where", "arange", "log", "exp", "ascontiguousarray")
    stream = SimpleNamespace(ptr=0, is_capturing=lambda: False)
    return SimpleNamespace(
        **{name: _of(getattr(np, name)) for name in names},
        asnumpy=lambda array: array.values.copy(),
        cuda=SimpleNamespace(get_current_stream=lambda: stream),
    )


@contextlib.contextmanager
def host_cupy_arrays() -> Iterator[Any]:
    """Make HostArrays count as arrays of CuPy."""
    with _arrays._registered(HostArray.__module__.split(".")[0], _arrays.Cupy(host_cupy())):
        yield HostArray
