"""Memory that calls use again: arrays that nobody holds any more, and two sequences a thread for calls with gradients.

What the C library gives for a megabyte it takes back when that is freed, and new memory costs a page fault every 4 KB:
0.5 ms for the two weight gradients of 256 units, where the training step of one row takes as long.
Nothing here is the only copy of anything: `release` drops all of it.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from typing import Any

import numpy as np

from lstmfast import _core, _memory
from lstmfast._checks import Array
from lstmfast.cells import Cell

PLAIN = Cell(forget_bias=0.0)  # torch's cell; its projection is seen from the weights
_ALIGNMENT = 64  # bytes: a cache line, and a vector of AVX-512


class ArrayCache:
    """New arrays, in memory of earlier ones that nobody holds any more."""

    SMALLEST, LARGEST = 128 << 10, 64 << 20  # bytes: below, the C library keeps it; above, the kernels take far longer
    KEPT, KEPT_BYTES = 16, 128 << 20
    FORGOTTEN_AFTER = 256  # requests: a training step of one layer makes five

    def __init__(self) -> None:
        self._requests = 0
        self._arrays: list[tuple[Array, int]] = []  # and when they were asked for, the latest first

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """As np.empty; the first element is on a cache line of its own if the array is large."""
        self._requests += 1
        size = math.prod(shape) * dtype.itemsize
        if self._arrays and self._arrays[-1][1] + self.FORGOTTEN_AFTER < self._requests:
            self._arrays.pop()
        if not self.SMALLEST <= size <= self.LARGEST:
            return np.empty(shape, dtype)
        for k, (found, _) in enumerate(self._arrays):
            # The list's pair, this name and the call: no view of it is left, and so no tensor in its memory.
            if found.nbytes == size and sys.getrefcount(found) == 3:
                del self._arrays[k]
                break
        else:
            found = _aligned_bytes(size)
        self._arrays.insert(0, (found, self._requests))
        while len(self._arrays) > self.KEPT or self.kept_bytes() > self.KEPT_BYTES:
            self._arrays.pop()
        return found.view(dtype).reshape(shape)

    def kept_bytes(self) -> int:
        """The memory of all that is kept, held by others or not."""
        return sum(array.nbytes for array, _ in self._arrays)

    def clear(self) -> None:
        """Forget what is kept; what others hold stays theirs."""
        self._arrays = []


def _aligned_bytes(size: int) -> Array:
    whole = np.empty(size + _ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % _ALIGNMENT
    # Of a memoryview: views of the result then hold the result, as `empty` needs, and not what is beneath it.
    return np.frombuffer(whole.data, np.uint8, size, start)


class _OfThread(threading.local):
    """The arrays of one thread, and its sequences, one for each direction."""

    def __init__(self) -> None:
        self.arrays = ArrayCache()
        self.sequences = _core.Sequence(False, PLAIN), _core.Sequence(True, PLAIN)
        _caches.add(self.arrays)


_caches: weakref.WeakSet[ArrayCache] = weakref.WeakSet()
of_thread = _OfThread()


@_memory.register_pool
def release() -> None:
    """Give back the arrays of all threads that nobody holds."""
    for cache in list(_caches):
        cache.clear()
