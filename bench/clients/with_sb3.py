"""sb3-contrib's RecurrentPPO on CartPole, `learn(4096)`: `python -m lstmfast.bench.clients.with_sb3`."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from importlib.metadata import version

from sb3_contrib import RecurrentPPO

from lstmfast.integrations import sb3

from .compare import compare

NAME = f"sb3-contrib {version('sb3-contrib')} RecurrentPPO"
FIGURES = ("train/loss", "train/value_loss", "train/policy_gradient_loss", "train/entropy_loss")


def work(served: bool, units: int, steps: int = 4096) -> tuple[float, Sequence[float]]:
    """The seconds of `learn`, and the losses of every update."""
    model = RecurrentPPO(
        "MlpLstmPolicy", "CartPole-v1", seed=1, device="cpu", policy_kwargs={"lstm_hidden_size": units}
    )
    if served:
        sb3.accelerate(model)
    figures: list[float] = []
    train = model.train

    def recorded() -> None:
        train()
        figures.extend(float(model.logger.name_to_value[name]) for name in FIGURES)

    model.train = recorded
    start = time.process_time()
    model.learn(steps)
    return time.process_time() - start, figures


CASES = {f"{units} units": functools.partial(work, units=units) for units in (64, 256)}

if __name__ == "__main__":
    compare(NAME, CASES)
