"""Models around LSTMs that several tests of the drop-in convert, patch and compile. No claims here."""

from __future__ import annotations

from typing import Any

from torch import nn

INPUT, H = 3, 6


class Tagger(nn.Module):
    """A model with an LSTM two levels down, and a cell beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(INPUT, INPUT), nn.LSTM(INPUT, H, num_layers=2, bidirectional=True))
        self.cell = nn.LSTMCell(2 * H, H)

    def forward(self, x: Any) -> Any:
        """The cell's h after the last step of x [T, B, INPUT]."""
        h, _ = self.body(x)
        return self.cell(h[-1])[0]


class Around(nn.Module):
    """Something to compile around another module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    # Without annotations, which torch.jit.script reads, as it reads comments of this line.
    def forward(self, x):
        """The outputs of the module."""
        return self.module(x)[0]
