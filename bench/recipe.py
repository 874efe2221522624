"""The recipe of `lstmfast train` in PyTorch, for the same time on the same text: `python -m lstmfast.bench.recipe`.

nn.LSTM with the same first weights, batches, resets, AdamW, schedule and clipping, in float32 and, where it is faster,
under autocast in bfloat16. Each measures its own speed first and fits its schedule to the minutes. Prints steps and the
validation loss in nats per character: what the speed of a library is worth after the same minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lstmfast.bench import machine

import lstmfast as lf
from lstmfast.config import Config, preset
from lstmfast.data import Batches, Corpus, load_corpus, split
from lstmfast.trainer import evaluate
from lstmfast.training.recipe import make_model, make_trainer, timed

_MEASURED_SECONDS = 2.0
_TIME_IN_STEPS = 0.97  # as in training.recipe


def main() -> None:
    parser = argparse.ArgumentParser(description="The same recipe in lstmfast and in PyTorch, for the same minutes.")
    parser.add_argument("text", nargs="*", help="texts; none: Python's standard library")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=lf.get_num_threads())
    parser.add_argument("--valid-fraction", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    corpus = load_corpus(options.text, vocabulary="characters", cache_folder=None)
    config = preset("stdlib", characters=len(corpus.ids), minutes=options.minutes)
    training = dataclasses.replace(config.training, seed=options.seed, validate_every=0, sample_every=0)
    data = dataclasses.replace(config.data, valid_fraction=options.valid_fraction)
    config = dataclasses.replace(config, data=data, training=training)
    lf.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    print(f"{machine.describe()['cpu']}, {options.threads} threads, torch {torch.__version__}; {corpus.description}")
    lf.set_matmul_precision(config.model.matmul_precision)
    show("lstmfast", *train_in_lstmfast(config, corpus))
    for name, dtype in (("torch, float32", None), ("torch, autocast bfloat16", torch.bfloat16)):
        show(name, *TorchRun(config, corpus, dtype).train())


def show(name: str, steps: int, seconds: float, loss: float) -> None:
    """One line."""
    print(f"{name:26}{steps:8,} steps in {seconds:4.0f} s   validation {loss:.4f} nats per character", flush=True)


def train_in_lstmfast(config: Config, corpus: Corpus) -> tuple[int, float, float]:
    """Steps, seconds and validation loss."""
    config = timed(config, corpus)
    trainer = make_trainer(config, corpus)
    started = time.perf_counter()
    trainer.run()
    return trainer.step, time.perf_counter() - started, evaluate(trainer.model, _texts(config, corpus)[1])


class TorchRun:
    """The same in PyTorch, as its user would write it."""

    def __init__(self, config: Config, corpus: Corpus, dtype: torch.dtype | None) -> None:
        self.config, self.corpus, self.size = config, corpus, corpus.vocabulary.size
        self.casting: Any = torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()
        units = config.model.hidden_size
        self.lstm, self.projection = torch.nn.LSTM(self.size, units), torch.nn.Linear(units, self.size)
        self.dropout = torch.nn.Dropout(config.model.dropout)
        variables = make_model(config, self.size, np.random.default_rng(config.training.seed)).parameters
        arrays = {name: torch.from_numpy(values.T.copy()) for name, values in variables.items()}
        kernel = arrays["lstm.layer0.kernel"]
        with torch.no_grad():
            self.lstm.weight_ih_l0.copy_(kernel[:, : self.size])
            self.lstm.weight_hh_l0.copy_(kernel[:, self.size :])
            self.lstm.bias_ih_l0.zero_()  # the forget bias of the recipe is 0
            self.lstm.bias_hh_l0.zero_().requires_grad_(False)
            self.projection.weight.copy_(arrays["projection.kernel"])
            self.projection.bias.zero_()
        self.parameters = [p for p in (*self.lstm.parameters(), *self.projection.parameters()) if p.requires_grad]
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(self.parameters, settings.learning_rate, weight_decay=settings.weight_decay)
        self.rng = np.random.default_rng(config.training.seed)

    def train(self) -> tuple[int, float, float]:
        """Steps, seconds and validation loss."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        started = time.perf_counter()
        count = sum(1 for _ in self._steps(1_000_000, _MEASURED_SECONDS))
        per_step = (time.perf_counter() - started) / count
        with torch.no_grad():
            for parameter, values in zip(self.parameters, before, strict=True):
                parameter.copy_(values)
        self.optimizer.state.clear()
        steps = int(_TIME_IN_STEPS * 60 * self.config.training.minutes / per_step)
        started = time.perf_counter()
        for _ in self._steps(steps, math.inf):
            pass
        return steps, time.perf_counter() - started, evaluate(self, _texts(self.config, self.corpus)[1])

    def _steps(self, steps: int, seconds: float) -> Iterator[float]:
        """Make the steps, at most for `seconds`, yielding the loss of each."""
        training = self.config.training
        schedule = self.config.optimizer.make_schedule(steps)
        batches = Batches(_texts(self.config, self.corpus)[0], training.batch_size, training.unroll)
        state = tuple(torch.zeros(1, training.batch_size, self.config.model.hidden_size) for _ in range(2))
        started = time.perf_counter()
        for step in range(steps):
            inputs, targets = batches.next()
            kept = torch.from_numpy(self.rng.random(training.batch_size) >= training.reset_rate)[:, None]
            state = tuple(values.detach() * kept for values in state)
            loss, state = self._loss(inputs, targets, state)
            self.optimizer.zero_grad()
            loss.backward()
            if clip := self.config.optimizer.clip_norm:
                torch.nn.utils.clip_grad_norm_(self.parameters, clip)
            self.optimizer.param_groups[0]["lr"] = schedule(step)
            self.optimizer.step()
            yield loss.item()
            if time.perf_counter() - started > seconds:
                return

    def _loss(self, inputs: Any, targets: Any, state: Any) -> tuple[Any, Any]:
        x = torch.nn.functional.one_hot(torch.from_numpy(inputs).long(), self.size).float()
        with self.casting:
            h, state = self.lstm(x, state)
            logits = self.projection(self.dropout(h))
        wanted = torch.from_numpy(targets).long().flatten()
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted), state

    def loss(self, inputs: Any, targets: Any, state: Any = None) -> tuple[float, Any]:
        """As `CharLM.loss`, for `evaluate`."""
        if state is not None:
            state = tuple(torch.from_numpy(np.asarray(values)) for values in state)
        self.dropout.eval()
        with torch.inference_mode():
            loss, state = self._loss(inputs, targets, state)
        self.dropout.train()
        return float(loss), tuple(values.float().numpy() for values in state)


def _texts(config: Config, corpus: Corpus) -> Any:
    return split(corpus.ids, valid_fraction=config.data.valid_fraction)


if __name__ == "__main__":
    main()
