"""Every nn.LSTM and nn.LSTMCell of the process served, without a mark on each: `patch`, `unpatch`, `patched`.

It is one switch, which the `forward` of torch's classes looks at (see `convert`). Classes, modules, pickles and
state_dicts stay torch's. A subclass that computes by itself keeps its own `forward`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lstmfast.torch import recording, tracing
from lstmfast.torch.convert import record_calls, stop_recording_calls, teach_torch
from lstmfast.torch.serving import EVERYWHERE


def patch(*, report: bool = False) -> None:
    """Have lstmfast serve every nn.LSTM and nn.LSTMCell of this process, those to come included, until `unpatch`.

    report: record calls for `lstmfast.torch.report`.
    Raises RuntimeError, and changes nothing, if that is so already, or if a graph of torch.compile holds an LSTM.
    """
    if EVERYWHERE:
        raise RuntimeError("patch: this process is patched already; unpatch first to change how")
    if tracing.some_graph_holds_an_lstm():
        raise RuntimeError(
            "patch: a graph of torch.compile holds an LSTM; patch before compiling, or call torch.compiler.reset()"
        )
    teach_torch()
    EVERYWHERE.append(True)
    if report:
        recording.start()
        record_calls()


def unpatch() -> None:
    """Have torch serve all modules that `convert` has not marked. Raises RuntimeError if nothing was patched."""
    if not EVERYWHERE:
        raise RuntimeError("unpatch: this process is not patched; lstmfast.torch.revert undoes convert")
    EVERYWHERE.clear()
    recording.stop()
    stop_recording_calls()


@contextlib.contextmanager
def patched(*, report: bool = False) -> Iterator[None]:
    """`patch` for the length of a `with` block. Errors as of `patch`."""
    patch(report=report)
    try:
        yield
    finally:
        if EVERYWHERE:  # else somebody has unpatched in between
            unpatch()
