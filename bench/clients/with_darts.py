"""darts' RNNModel on a noisy season of a day: `python -m lstmfast.bench.clients.with_darts`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from darts import TimeSeries
from darts.models import RNNModel
from pytorch_lightning.callbacks import Callback

from .compare import QUIET, compare, losses_of, serving

NAME = f"darts {version('darts')} RNNModel"
STEPS, HORIZON = 4000, 24


def _series() -> TimeSeries:
    noise = np.random.default_rng(0).normal(scale=0.1, size=STEPS)
    return TimeSeries.from_values((np.sin(np.arange(STEPS) * 2 * np.pi / 24) + noise).astype(np.float32))


def work(served: bool) -> tuple[float, Sequence[float]]:
    """The seconds of an epoch and a forecast; losses and forecast."""
    record = losses_of(Callback)
    model = RNNModel(
        input_chunk_length=48, training_length=72, model="LSTM", hidden_dim=64, n_epochs=1, random_state=0,
        pl_trainer_kwargs={**QUIET, "accelerator": "cpu", "callbacks": [record]},
    )
    series = _series()
    with serving(served):
        start = time.process_time()
        model.fit(series)
        forecast = model.predict(HORIZON, series, verbose=False)
        seconds = time.process_time() - start
    return seconds, [*record.losses, *forecast.values().ravel()]


CASES = {"64 units, an epoch and a forecast": work}

if __name__ == "__main__":
    compare(NAME, CASES)
