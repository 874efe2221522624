"""Pools of arrays that Python keeps from call to call: each says once how it is emptied, for `runtime.release_memory`.

Refuses to know what is in them. A pool must be ready to be emptied between any two calls, and keep what a backward pass
still needs.
"""

from __future__ import annotations

from collections.abc import Callable

_pools: list[Callable[[], object]] = []


def register_pool(release: Callable[[], object]) -> Callable[[], object]:
    """Have `release_pools` call this function, for as long as the process lives; return it, to serve as a decorator."""
    _pools.append(release)
    return release


def release_pools() -> None:
    """Empty every pool."""
    for release in _pools:
        release()
