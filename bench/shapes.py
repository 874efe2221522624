"""The named shapes of benches: batch B, time steps T, input size I, hidden size H. Numbers only; no arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Shape(NamedTuple):
    """One layer's work."""

    batch: int
    time_steps: int
    input_size: int
    hidden_size: int

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @property
    def forward_flops(self) -> int:
        """Operations of a forward pass's matrix products, 2 per weight, row and step. Backward has twice as many."""
        return 2 * self.batch * self.time_steps * (self.input_size + self.hidden_size) * 4 * self.hidden_size

    @property
    def weights(self) -> int:
        """The number of elements of the kernel."""
        return (self.input_size + self.hidden_size) * 4 * self.hidden_size


SHAPES = {
    "tiny": Shape(3, 5, 6, 7),
    "udacity": Shape(64, 10, 27, 64),
    "small": Shape(64, 50, 128, 128),
    "step64": Shape(1, 1, 64, 64),
    "step256": Shape(1, 1, 256, 256),
    "step1024": Shape(1, 1, 1024, 1024),
    "stream64": Shape(1, 100, 64, 64),
    "stream256": Shape(1, 100, 256, 256),
    "stream1024": Shape(1, 100, 1024, 1024),
    "passage1024": Shape(1, 50, 1024, 1024),
    "medium": Shape(32, 100, 256, 256),
    "large": Shape(64, 64, 256, 512),
    "wide": Shape(32, 50, 1024, 1024),
    "huge": Shape(128, 50, 1024, 1024),
    "long": Shape(32, 820, 12, 64),
}
"""`udacity` is the classic 6_lstm model; `long` reads long sensor recordings; `tiny` is for trying things out."""


def chosen(names: Sequence[str]) -> dict[str, Shape]:
    """Shapes by their names, or as numbers: 32x100x256x256 is B, T, I, H. Raises ValueError listing the names."""
    found = {}
    for name in names:
        if re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", name):
            found[name] = Shape(*map(int, name.split("x")))
        elif name in SHAPES:
            found[name] = SHAPES[name]
        else:
            raise ValueError(f"a shape must be one of {', '.join(SHAPES)} or numbers BxTxIxH, got {name!r}")
    return found
