"""Calls that take turns in one process, so that all meet the same disturbances. Prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

ROUNDS = 9


def rounds_of(calls: Sequence[Callable[[], Any]], seconds_a_turn: float) -> list[list[float]]:
    """Seconds per call, for each call those of its rounds: in a round every call has a turn of about that long."""
    repeats = []
    for call in calls:
        call()
        started = time.perf_counter()
        call()
        repeats.append(max(1, int(seconds_a_turn / (time.perf_counter() - started))))
    rounds: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, count, times in zip(calls, repeats, rounds, strict=True):
            started = time.perf_counter()
            for _ in range(count):
                call()
            times.append((time.perf_counter() - started) / count)
    return rounds
