"""Training and validation ids, and the batches of the classic generator.

Refuses to be a data loader: nothing is shuffled, nothing is padded, and no thread reads ahead.
"""

from __future__ import annotations

import mmap
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast.text.vocabulary import Ids

_AHEAD_BYTES = 1 << 20  # of text copied ahead of the batches, all streams together
_STREAMS_PER_RELEASE = 8


def train_valid_split(ids: Ids, *, valid_first: int = 0, valid_fraction: float = 0.0) -> tuple[Ids, Ids]:
    """Training and validation ids, both views: validate on the first `valid_first` or on the last `valid_fraction`.

    Raises ValueError if both are given or nothing is left to train on.
    """
    check.unmasked("ids", ids)
    if valid_first and valid_fraction:
        raise ValueError(f"valid_first ({valid_first}) and valid_fraction ({valid_fraction}) exclude each other")
    if not 0.0 <= valid_fraction < 1.0:
        raise ValueError(f"valid_fraction must be at least 0 and below 1, got {valid_fraction}")
    if not 0 <= valid_first <= max(len(ids) - 1, 0):
        raise ValueError(f"valid_first must be at least 0 and below the text length {len(ids)}, got {valid_first}")
    if valid_first:
        return ids[valid_first:], ids[:valid_first]
    boundary = len(ids) - int(len(ids) * valid_fraction)
    return ids[:boundary], ids[boundary:]


class Batches:
    """Time-major batches of contiguous streams: the BatchGenerator of the Udacity 6_lstm notebook.

    Stream b starts at b * (len(ids) // batch_size), every batch advances all streams by `unroll`, and the text
    wraps around at its end. `position` counts the characters each stream has advanced; set it to resume. Raises
    ValueError if ids are fewer than batch_size * unroll + 1.
    """

    def __init__(self, ids: Ids, batch_size: int, unroll: int) -> None:
        batch_size, unroll = operator.index(batch_size), operator.index(unroll)
        check.ndarray("ids", ids, "integers")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"ids must be a one-dimensional integer array, got {ids.dtype} of shape {ids.shape}")
        if batch_size < 1 or unroll < 1:
            raise ValueError(f"batch_size and unroll must be at least 1, got {batch_size} and {unroll}")
        if len(ids) < batch_size * unroll + 1:
            raise ValueError(
                f"the text has {len(ids)} characters, but batch_size {batch_size} and unroll {unroll} need at least "
                f"{batch_size * unroll + 1}; give a longer text, or lower batch_size or unroll"
            )
        self.position = 0
        self._ids = np.asarray(ids)
        self._unroll = unroll
        self._starts = range(0, len(ids) // batch_size * batch_size, len(ids) // batch_size)
        steps = min(len(ids), _AHEAD_BYTES // (batch_size * ids.itemsize))
        self._ahead: Ids = np.empty((max(steps, unroll + 1), batch_size), ids.dtype)
        self._mapping = _mapping_under(ids)
        self._copy_ahead()

    def next(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The next inputs and targets, both int32 [unroll, batch_size] and contiguous; targets are one step ahead.

        Fresh memory on every call; the two are overlapping views of one window [unroll + 1, batch_size].
        """
        length = self._unroll + 1
        if not 0 <= self.position - self._ahead_position <= len(self._ahead) - length:
            self._copy_ahead()
        first = self.position - self._ahead_position
        window = self._ahead[first : first + length].astype(np.int32)
        self.position += self._unroll
        return window[:-1], window[1:]

    def _copy_ahead(self) -> None:
        """Copy the text that follows `position`, so that few pages of a mapped corpus are resident at any time.

        Linux maps a whole large folio at a fault, regardless of advice: on 6.18, 64 streams read in place held 80 MB of
        a 96 MB corpus at once, 1 MB each. Here at most `_STREAMS_PER_RELEASE` of them are mapped, none afterwards.
        """
        steps = self.position % len(self._ids) + np.arange(len(self._ahead))
        for stream, start in enumerate(self._starts):
            self._ahead[:, stream] = self._ids.take(start + steps, mode="wrap")
            if self._mapping and (stream % _STREAMS_PER_RELEASE == 0 or start == self._starts[-1]):
                self._mapping.madvise(mmap.MADV_DONTNEED)  # the file is read-only: this drops the mapping, not the data
        self._ahead_position = self.position


def _mapping_under(ids: Ids) -> mmap.mmap | None:
    """The file mapping that an array views, if its pages can be released; otherwise None."""
    owner: Any = ids
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") else None
