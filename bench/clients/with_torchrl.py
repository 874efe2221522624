"""torchrl's LSTMModule in training, with resets: `python -m lstmfast.bench.clients.with_torchrl`.

Beside it the faster of its back ends for CPUs, "pad" or "scan"; "scan" needs hoptorch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from importlib.metadata import version

import torch
from tensordict import TensorDict
from torchrl.modules import LSTMModule

from lstmfast.integrations import torchrl

from .compare import compare

NAME = f"torchrl {version('torchrl')} LSTMModule"
STEPS, ROWS, UNITS, BEGINS, UPDATES = 128, 32, 128, 0.02, 5


def work(served: bool, backend: str) -> tuple[float, Sequence[float]]:
    """The seconds of one update, the fastest of a few, and its loss and gradients' norms."""
    torch.manual_seed(0)
    module = LSTMModule(
        input_size=UNITS, hidden_size=UNITS, in_key="x", out_key="y", default_recurrent_mode=True,
        recurrent_backend=backend,
    )
    if served:
        torchrl.accelerate(module)
    states = torch.zeros(ROWS, STEPS, 1, UNITS)
    data = TensorDict(
        {
            "x": torch.randn(ROWS, STEPS, UNITS), "is_init": torch.rand(ROWS, STEPS, 1) < BEGINS,
            "recurrent_state_h": states, "recurrent_state_c": states,
        },
        batch_size=[ROWS, STEPS],
    )
    best, figures = float("inf"), []
    for _ in range(UPDATES):
        module.zero_grad()
        start = time.process_time()
        loss = module(data.clone(False))["y"].square().mean()
        loss.backward()
        best = min(best, time.process_time() - start)
        figures = [loss.item(), *(float(weight.grad.norm()) for weight in module.parameters())]
    return best, figures


CASES = {f"{backend} back end": functools.partial(work, backend=backend) for backend in ("pad", "scan")}

if __name__ == "__main__":
    compare(NAME, CASES)
