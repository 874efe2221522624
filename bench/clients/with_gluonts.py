"""gluonts' DeepAR, training and sampled forecasts: `python -m lstmfast.bench.clients.with_gluonts`."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from gluonts.dataset.common import ListDataset
from gluonts.torch.model.deepar import DeepAREstimator
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback

from .compare import QUIET, compare, losses_of, serving

NAME = f"gluonts {version('gluonts')} DeepAR"
SERIES, STEPS, HORIZON = 16, 400, 24
FOLDER = tempfile.TemporaryDirectory()  # for checkpoints, the best of which it loads


def _data() -> ListDataset:
    random, season = np.random.default_rng(0), np.sin(np.arange(STEPS) * 2 * np.pi / 24)
    targets = 2 + season + random.normal(scale=0.1, size=(SERIES, STEPS))
    return ListDataset([{"start": "2020-01-01", "target": target} for target in targets], freq="h")


def _estimator(batches: int, *callbacks: Any) -> DeepAREstimator:
    seed_everything(0)
    trainer = {
        **QUIET, "max_epochs": 1, "accelerator": "cpu", "callbacks": list(callbacks),
        "enable_checkpointing": True, "default_root_dir": FOLDER.name,
    }
    return DeepAREstimator(
        freq="h", prediction_length=HORIZON, hidden_size=64, dropout_rate=0.0, num_batches_per_epoch=batches,
        trainer_kwargs=trainer,
    )


def training(served: bool) -> tuple[float, Sequence[float]]:
    """The seconds of 30 batches, and their losses."""
    record, data = losses_of(Callback), _data()
    estimator = _estimator(30, record)
    with serving(served):
        start = time.process_time()
        estimator.train(data)
        return time.process_time() - start, record.losses


@functools.cache
def _predictor() -> Any:
    return _estimator(5).train(_data())


def prediction(served: bool) -> tuple[float, Sequence[float]]:
    """The seconds of forecasts of all series, 100 samples each; means of the samples at every step."""
    predictor, data = _predictor(), _data()
    torch.manual_seed(0)
    with serving(served):
        start = time.process_time()
        forecasts = list(predictor.predict(data, num_samples=100))
        return time.process_time() - start, np.concatenate([forecast.mean for forecast in forecasts]).tolist()


CASES = {"2 x 64 units, 30 batches": training, "forecasts of 16 series, 100 samples": prediction}

if __name__ == "__main__":
    compare(NAME, CASES, turns=7)
