"""neuralforecast's LSTM in training: `python -m lstmfast.bench.clients.with_neuralforecast`."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.models import LSTM

from .compare import QUIET, compare, serving

NAME = f"neuralforecast {version('neuralforecast')} LSTM"
SERIES, STEPS, HORIZON, UPDATES = 32, 400, 12, 30


def _table() -> pd.DataFrame:
    random, season = np.random.default_rng(0), np.sin(np.arange(STEPS) * 2 * np.pi / 24)
    return pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(SERIES), STEPS),
            "ds": np.tile(pd.date_range("2020-01-01", periods=STEPS, freq="h"), SERIES),
            "y": (season + random.normal(scale=0.1, size=(SERIES, STEPS))).ravel(),
        }
    )


def work(served: bool, recurrent: bool) -> tuple[float, Sequence[float]]:
    """The seconds of some updates and the forecasts of all series; losses and forecasts."""
    table = _table()
    model = LSTM(
        h=HORIZON, input_size=96, encoder_hidden_size=128, encoder_n_layers=2, recurrent=recurrent, random_seed=1,
        max_steps=UPDATES, accelerator="cpu", **QUIET,
    )
    whole = NeuralForecast([model], freq="h")
    with serving(served):
        start = time.process_time()
        whole.fit(table)
        forecast = whole.predict()
        seconds = time.process_time() - start
    losses = [loss for _, loss in whole.models[0].train_trajectories]
    return seconds, [*losses, *forecast["LSTM"]]


CASES = {
    f"2 x 128 units, {UPDATES} updates, {kind} forecasts": functools.partial(work, recurrent=recurrent)
    for kind, recurrent in (("direct", False), ("recurrent", True))
}

if __name__ == "__main__":
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    compare(NAME, CASES)
