"""pytorch-forecasting's RecurrentNetwork, whose LSTM is a subclass: training and forecasts.

`python -m lstmfast.bench.clients.with_pytorch_forecasting`
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from pytorch_forecasting import RecurrentNetwork, TimeSeriesDataSet

from .compare import QUIET, compare, losses_of, serving

NAME = f"pytorch-forecasting {version('pytorch-forecasting')} RecurrentNetwork"
SERIES, STEPS, UPDATES = 16, 200, 30


def _data() -> TimeSeriesDataSet:
    random, season = np.random.default_rng(0), np.sin(np.arange(STEPS) * 2 * np.pi / 24)
    table = pd.DataFrame(
        {
            "series": np.repeat(np.arange(SERIES), STEPS).astype(str),
            "step": np.tile(np.arange(STEPS), SERIES),
            "value": (season + random.normal(scale=0.1, size=(SERIES, STEPS))).ravel(),
        }
    )
    return TimeSeriesDataSet(
        table, time_idx="step", target="value", group_ids=["series"], time_varying_unknown_reals=["value"],
        min_encoder_length=24, max_encoder_length=72, max_prediction_length=12, randomize_length=None,
    )


def work(served: bool) -> tuple[float, Sequence[float]]:
    """The seconds of some updates and of a batch of forecasts; losses and forecasts."""
    seed_everything(0)
    record, data = losses_of(Callback), _data()
    model = RecurrentNetwork.from_dataset(data, cell_type="LSTM", hidden_size=64, rnn_layers=2, dropout=0.0)
    trainer = Trainer(max_steps=UPDATES, accelerator="cpu", callbacks=[record], **QUIET)
    x, _ = next(iter(data.to_dataloader(train=False, batch_size=64)))
    with serving(served):
        start = time.process_time()
        trainer.fit(model, data.to_dataloader(batch_size=64))
        with torch.no_grad():
            forecast = model.eval()(x).prediction
        seconds = time.process_time() - start
    return seconds, [*record.losses, *forecast.ravel().tolist()]


CASES = {f"2 x 64 units, {UPDATES} updates, forecasts": work}

if __name__ == "__main__":
    compare(NAME, CASES)
