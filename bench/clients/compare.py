"""Stock and served take turns; figures are compared first, then the shortest times: a line per case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

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
        np.testing.assert_allclose(figures[True], figures[False], rtol=tolerance, atol=tolerance)
        ratio = best[False] / best[True]
        print(f"{name}, {case}: stock {best[False]:.2f} s, served {best[True]:.2f} s: {ratio:.2f}x", flush=True)
