"""Stock and served take turns; figures are compared first, then the shortest times: a line per case."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

import lstmfast.torch

Work = Callable[[bool], tuple[float, Sequence[float]]]
TURNS = 3


def compare(name: str, cases: Mapping[str, Work], tolerance: float = 1e-4, turns: int = TURNS) -> None:
    """Print how many times faster the work is when lstmfast serves it. Raises AssertionError if figures disagree."""
    torch.set_num_threads(1)
    for case, work in cases.items():
        best = {False: float("inf"), True: float("inf")}
        figures: dict[bool, Sequence[float]] = {}
        for _ in range(turns):
            for served in best:
                seconds, figures[served] = work(served)
                best[served] = min(best[served], seconds)
        stock = np.asarray(figures[False])
        np.testing.assert_allclose(figures[True], stock, rtol=tolerance, atol=tolerance)
        differ = np.max(np.abs(figures[True] - stock) / np.maximum(np.abs(stock), 1))
        print(
            f"{name}, {case}: stock {best[False]:.3f} s, served {best[True]:.3f} s: {best[False] / best[True]:.2f}x, "
            f"{stock.size} figures differ by {differ:.0e} at most",
            flush=True,
        )


def serving(served: bool) -> contextlib.AbstractContextManager[None]:
    """A block in which lstmfast serves every nn.LSTM, or PyTorch does."""
    return lstmfast.torch.patched() if served else contextlib.nullcontext()


def losses_of(callback: type) -> Any:
    """A callback for Lightning's trainer, given its class `Callback`, that keeps each step's loss in `losses`."""

    class Losses(callback):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            self.losses.append(float(outputs["loss"]))

    return Losses()


QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
