"""Memory reused between calls: arrays no longer referenced, and two sequences per thread for calls with gradients.

The C library returns freed blocks of a megabyte to the system, and new memory costs a page fault every 4 KB: 0.5 ms for
the two weight gradients of 256 units, as long as the training step of one row. `release` may drop everything here.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np

from lstmfast import _core, _memory
from lstmfast._checks import Array
from lstmfast.cells import Cell

PLAIN = Cell(forget_bias=0.0)  # torch's cell; the weights show its projection
_ALIGNMENT = 64  # bytes: a cache line, and a vector of AVX-512


class ArrayCache:
    """New arrays in the memory of earlier ones that are no longer referenced."""

    SMALLEST, LARGEST = 128 << 10, 64 << 20  # bytes: below, the C library keeps it; above, page faults hardly matter
    KEPT, KEPT_BYTES = 16, 128 << 20
    FORGOTTEN_AFTER = 256  # requests: a training step of one layer makes five

    def __init__(self) -> None:
        self._requests = 0
        self._arrays: list[tuple[Array, int]] = []  # with the request number, latest first

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """As np.empty; large arrays start on a cache line."""
        self._requests += 1
        size = math.prod(shape) * dtype.itemsize
        if self._arrays and self._arrays[-1][1] + self.FORGOTTEN_AFTER < self._requests:
            self._arrays.pop()
        if not self.SMALLEST <= size <= self.LARGEST:
            return np.empty(shape, dtype)
        for k, (found, _) in enumerate(self._arrays):
            # 3: the list's pair, this name and the call. So no view is left, and no tensor uses its memory.
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
        """Bytes of all cached arrays, referenced elsewhere or not."""
        return sum(array.nbytes for array, _ in self._arrays)

    def clear(self) -> None:
        """Drop the cache's references; arrays referenced elsewhere survive."""
        self._arrays = []


def _aligned_bytes(size: int) -> Array:
    whole = np.empty(size + _ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % _ALIGNMENT
    # From a memoryview, so that views of the result reference the result, as `empty` needs, and not `whole`.
    return np.frombuffer(whole.data, np.uint8, size, start)


class _OfThread(threading.local):
    """The arrays and sequences of one thread, one sequence per direction and kind of cell."""

    KINDS = 8

    def __init__(self) -> None:
        self.arrays = ArrayCache()
        self.sequences = _core.Sequence(False, PLAIN), _core.Sequence(True, PLAIN)
        self._of_cells: OrderedDict[tuple[Cell, bool], _core.Sequence] = OrderedDict()
        _caches.add(self.arrays)

    def sequence_of(self, cell: Cell, *, reverse: bool) -> _core.Sequence:
        """The sequence of cells like this one in a direction; only those of the last few kinds are kept."""
        if cell is PLAIN:
            return self.sequences[reverse]
        found = self._of_cells.pop((cell, reverse), None) or _core.Sequence(reverse, cell)
        self._of_cells[cell, reverse] = found
        if len(self._of_cells) > self.KINDS:
            self._of_cells.popitem(last=False)
        return found


_caches: weakref.WeakSet[ArrayCache] = weakref.WeakSet()
of_thread = _OfThread()


@_memory.register_pool
def release() -> None:
    """Free the unreferenced arrays of all threads."""
    for cache in list(_caches):
        cache.clear()
