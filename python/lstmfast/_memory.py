"""Pools of arrays that Python keeps from call to call. Each registers a function that empties it.

`runtime.release_memory` calls these functions, between any two calls of a layer. They must keep what a backward pass
still needs. Refuses to know what is in a pool.
"""

from __future__ import annotations

from collections.abc import Callable

_pools: list[Callable[[], object]] = []


def register_pool(release: Callable[[], object]) -> Callable[[], object]:
    """Register a function for `release_pools` to call, for the life of the process. A decorator."""
    _pools.append(release)
    return release


def release_pools() -> None:
    """Empty every pool."""
    for release in _pools:
        release()
