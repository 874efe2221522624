"""The device of an array of any library. Imports no framework and calls no driver."""

from __future__ import annotations

from typing import Any

import numpy as np

_CPU, _CUDA, _CUDA_MANAGED = 1, 2, 13  # DLDeviceType


class _Emulation:
    """Whether the loaded CUDA library runs on the CPU: host arrays of other frameworks then count as device arrays."""

    is_on = False


def set_emulation(is_on: bool) -> None:
    """Set whether the loaded CUDA library runs on the CPU. For `cuda._library`, which loads it."""
    _Emulation.is_on = is_on


def host_plays_device() -> bool:
    """Whether arrays on the host count as device arrays."""
    return _Emulation.is_on


def is_on_device(value: Any) -> bool:
    """Whether `value` is an array on a GPU."""
    if isinstance(value, np.ndarray):
        return False
    where = getattr(value, "__dlpack_device__", None)
    if where is None:
        return hasattr(value, "__cuda_array_interface__")
    kind = int(where()[0])
    return kind in (_CUDA, _CUDA_MANAGED) or (kind == _CPU and _Emulation.is_on)
