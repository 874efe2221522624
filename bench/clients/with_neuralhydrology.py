"""neuralhydrology's CudaLSTM on the CPU, a year of days to the runoff of the last:
`python -m lstmfast.bench.clients.with_neuralhydrology`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version

import torch
from neuralhydrology.modelzoo import get_model
from neuralhydrology.utils.config import Config

from .compare import compare, serving

NAME = f"neuralhydrology {version('neuralhydrology')} CudaLSTM"
ROWS, DAYS, UNITS, UPDATES = 64, 365, 64, 20
INPUTS = ("rain", "snow", "warmth", "sun", "wind")
SETTINGS = {
    "model": "cudalstm", "head": "regression", "output_activation": "linear", "hidden_size": UNITS,
    "initial_forget_bias": 3, "output_dropout": 0.0, "dynamic_inputs": list(INPUTS), "target_variables": ["runoff"],
    "static_attributes": [], "use_basin_id_encoding": False, "loss": "MSE", "predict_last_n": 1, "seq_length": DAYS,
}


def work(served: bool) -> tuple[float, Sequence[float]]:
    """The seconds of some updates, and their losses."""
    torch.manual_seed(0)
    model = get_model(Config(dict(SETTINGS)))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
    data = {"x_d": {name: torch.randn(ROWS, DAYS, 1) for name in INPUTS}}
    target = data["x_d"]["rain"].tanh()[:, -30:].mean(1)
    with serving(served):
        start = time.process_time()
        for _ in range(UPDATES):
            optimizer.zero_grad()
            loss = (model(data)["y_hat"][:, -1] - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return time.process_time() - start, losses


CASES = {f"{UNITS} units, {UPDATES} updates of {ROWS} x {DAYS} days": work}

if __name__ == "__main__":
    compare(NAME, CASES)
