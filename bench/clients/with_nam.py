"""neural-amp-modeler's LSTM, a subclass with learnt states, in training with truncated backpropagation.

`python -m lstmfast.bench.clients.with_nam`
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from importlib.metadata import version

import torch
from nam.models.recurrent import LSTM

from .compare import compare, serving

NAME = f"neural-amp-modeler {version('neural-amp-modeler')} LSTM"
ROWS, SAMPLES, UPDATES = 32, 4096, 20


def work(served: bool, units: int) -> tuple[float, Sequence[float]]:
    """The seconds of some updates, and their losses."""
    torch.manual_seed(0)
    model = LSTM(hidden_size=units, train_burn_in=1024, train_truncate=512)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    sound = torch.randn(ROWS, SAMPLES).cumsum(1) * 0.02
    target, losses = torch.tanh(3 * sound), []
    with serving(served):
        start = time.process_time()
        for _ in range(UPDATES):
            optimizer.zero_grad()
            loss = (model(sound) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return time.process_time() - start, losses


CASES = {
    f"{units} units, {UPDATES} updates of {ROWS} x {SAMPLES} samples": functools.partial(work, units=units)
    for units in (8, 24)
}

if __name__ == "__main__":
    compare(NAME, CASES)
