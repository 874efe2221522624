"""Who served the calls of every LSTM and LSTMCell, and for how long: what `report` prints.

Nothing is recorded until `start`. Refuses to look into graphs of torch.compile, which call no module.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

SAMPLED_CALL = 3  # of every module: earlier ones pack weights and fill caches
LONGEST_SAMPLE_NS = 500_000_000
SAMPLE_TURNS, ENOUGH_NS = 9, 50_000_000  # both take turns; the shortest time counts
_SERVED = "kernels", "CPU tensors of a dtype that the kernels have"


class Record:
    """The calls of one module; times in nanoseconds."""

    def __init__(self, module: nn.Module, name: str | None) -> None:
        self.module, self.name, self.sizes = weakref.ref(module), name, sizes_of(module)
        self.layers = module.num_layers * (1 + module.bidirectional) if isinstance(module, nn.LSTM) else 1
        self.calls = self.forward_ns = self.backward_layers = self.backward_ns = 0
        self.paths: dict[tuple[str, str], int] = {}  # name and reason, see `paths`
        self.sample: tuple[int, int] | None = None  # ours and torch's, of one forward without gradients

    def backward_calls(self) -> int:
        """How many backward passes of the whole module there were: some may have left out layers."""
        return -(-self.backward_layers // self.layers)


class _OfThread(threading.local):
    record: Record | None = None  # of the call that runs
    path: tuple[str, str] | None = None  # that it took, where that is not the usual one


_of_thread = _OfThread()
_by_id: dict[int, Record] = {}
_all: list[Record] = []
_started_ns = _sampled_ns = 0
is_on = False


def start() -> None:
    """Forget earlier calls and record those from now on."""
    global is_on, _started_ns, _sampled_ns
    _by_id.clear()
    _all.clear()
    is_on, _started_ns, _sampled_ns = True, time.perf_counter_ns(), 0


def stop() -> None:
    """Record no more; what was recorded stays."""
    global is_on
    is_on = False


def records() -> list[Record]:
    """Those of every module that was called, in the order of their first calls."""
    return list(_all)


def elapsed_ns() -> int:
    """The time since `start`, less what samples took."""
    return time.perf_counter_ns() - _started_ns - _sampled_ns


def was_started() -> bool:
    """Whether anything was ever recorded in this process."""
    return _started_ns > 0


# --- from inside a call -----------------------------------------------------------------------------------------------


def note(name: str, why: str) -> None:
    """Say which path the call of this thread takes; without it, the usual one."""
    _of_thread.path = name, why


def current() -> Record | None:
    """The record of the call that this thread is in."""
    return _of_thread.record if is_on else None


def timed(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Have a backward of one layer in one direction add to the record that `ctx.record` is, if any."""

    @functools.wraps(backward)
    def recorded(ctx: Any, *upstream: Any) -> Any:
        if ctx.record is None:
            return backward(ctx, *upstream)
        start_ns = time.perf_counter_ns()
        found = backward(ctx, *upstream)
        ctx.record.backward_layers += 1
        ctx.record.backward_ns += time.perf_counter_ns() - start_ns
        return found

    return recorded


def call(
    module: nn.Module,
    forward: Callable[..., Any],
    original: Callable[..., Any],
    is_transformed: Callable[[], bool],
    input: Any,
    hx: Any,
    extras: dict[str, Any],
) -> Any:
    """Call a module's `forward` and record it. original: torch's own, to compare with where nothing is transformed."""
    record = _by_id.get(id(module))
    if record is None or record.module() is not module:
        record = _by_id[id(module)] = Record(module, name_of(module, sys._getframe(2)))
        _all.append(record)
    state = _of_thread
    outer, state.record, state.path = state.record, record, None
    start_ns = time.perf_counter_ns()
    try:
        result = forward(module, input, hx, **extras)
    finally:
        elapsed = time.perf_counter_ns() - start_ns
        path, state.record, state.path = state.path or _SERVED, outer, None
        record.calls += 1
        record.forward_ns += elapsed
        record.paths[path] = record.paths.get(path, 0) + 1
    # torch's own forward would compute another cell than one with options.
    is_torchs = getattr(module, "_cell", None) is None
    is_usual = path[0] == "kernels" and elapsed < LONGEST_SAMPLE_NS and not extras and is_torchs
    if record.calls == SAMPLED_CALL and is_usual and not is_transformed():
        _take_sample(record, lambda: forward(module, input, hx), lambda: original(module, input, hx))
    return result


def _take_sample(record: Record, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    """Time the same forward by both, without gradients; nothing of it is left, random numbers included."""
    global _sampled_ns
    before_ns, random = time.perf_counter_ns(), torch.get_rng_state()
    try:
        best = [2**62, 2**62]
        with torch.no_grad():
            for turn in range(SAMPLE_TURNS):
                best = [min(old, _time(function)) for old, function in zip(best, (ours, theirs), strict=True)]
                if turn and time.perf_counter_ns() - before_ns > ENOUGH_NS:
                    break
        record.sample = best[0], best[1]
    finally:
        torch.set_rng_state(random)
        _sampled_ns += time.perf_counter_ns() - before_ns


def _time(function: Callable[[], Any]) -> int:
    start_ns = time.perf_counter_ns()
    function()
    return time.perf_counter_ns() - start_ns


# --- names ------------------------------------------------------------------------------------------------------------


def name_of(module: nn.Module, frame: Any) -> str | None:
    """The module's name in the outermost module whose method is among the callers; None if there is none."""
    name = None
    for owner in _owners(frame):
        if owner is module:
            continue
        found = next((name for name, part in owner.named_modules() if part is module), None)
        if found:
            name = f"{type(owner).__name__}.{found}"
    return name


def _owners(frame: Any) -> Iterator[nn.Module]:
    while frame is not None:
        names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        owner = frame.f_locals.get(names[0]) if names else None
        if isinstance(owner, nn.Module):
            yield owner
        frame = frame.f_back


def sizes_of(module: nn.Module) -> str:
    """Its class and sizes, as torch prints them, with the names of what is not the default."""
    return f"{type(module).__name__}({module.extra_repr()})"
