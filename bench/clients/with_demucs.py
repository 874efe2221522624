"""demucs' bidirectional LSTM over overlapping frames, in training: `python -m lstmfast.bench.clients.with_demucs`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version

import torch
from demucs.demucs import BLSTM

from .compare import compare, serving

NAME = f"demucs {version('demucs')} BLSTM"
ROWS, CHANNELS, STEPS, UPDATES = 2, 96, 600, 20


def work(served: bool) -> tuple[float, Sequence[float]]:
    """The seconds of some updates; their losses, and what the trained module adds to its input."""
    torch.manual_seed(0)
    model = BLSTM(CHANNELS, layers=2, max_steps=200, skip=True)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
    x, target = torch.randn(ROWS, CHANNELS, STEPS), torch.randn(ROWS, CHANNELS, STEPS)
    with serving(served):
        start = time.process_time()
        for _ in range(UPDATES):
            optimizer.zero_grad()
            loss = (model(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        seconds = time.process_time() - start
        added = (model(x) - x).detach()
    return seconds, [*losses, *added.ravel().tolist()]


CASES = {f"2 x {CHANNELS} units, both directions, {UPDATES} updates": work}

if __name__ == "__main__":
    compare(NAME, CASES)
