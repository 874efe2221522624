"""Groups of threads that stand for processes, so that tests of many ranks need no transport and take milliseconds."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from lstmfast.distributed import Group

_SECONDS = 60


class ThreadGroup:
    """One rank of a group of threads: `mail[sender, receiver]` holds copies of what was sent."""

    def __init__(self, rank: int, size: int, mail: dict[tuple[int, int], queue.Queue[Any]]) -> None:
        self.rank, self.size = rank, size
        self.sent_bytes = 0
        self._mail = mail

    def exchange(self, send: np.ndarray[Any, Any], receive: np.ndarray[Any, Any], partner: int) -> None:
        """See `lstmfast.distributed.Group`."""
        self.sent_bytes += send.nbytes
        self._mail[self.rank, partner].put(send.copy())
        received = self._mail[partner, self.rank].get(timeout=_SECONDS)
        assert (received.shape, received.dtype) == (receive.shape, receive.dtype)
        receive[...] = received


def in_threads(size: int, act: Callable[[Group], Any]) -> list[Any]:
    """What `act` returns on each of `size` ranks, or the error that it raises there."""
    mail: dict[tuple[int, int], queue.Queue[Any]] = {
        (sender, receiver): queue.Queue() for sender in range(size) for receiver in range(size)
    }
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = act(ThreadGroup(rank, size, mail))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
