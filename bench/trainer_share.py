"""The share of a trainer's step spent outside the extension: in Python, NumPy and their checks.

The `udacity` preset on text drawn at random: 27 symbols, 64 units, batch 64, 10 unrollings, one thread. Calls of the
extension are timed by a wrapper, whose own time counts as outside; prints the median of some thousand steps.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any, cast

import numpy as np

import lstmfast as lf
from lstmfast import config, losses, optimizers, trainer
from lstmfast._engine.cpu import CPU
from lstmfast.data import Corpus, Vocabulary
from lstmfast.training import trainer as loop

STEPS = 4000


class Timed:
    """Forwards calls to `inner` and adds up their seconds."""

    seconds = 0.0

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._calls: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in self._calls:
            self._calls[name] = self._timed(getattr(self._inner, name))
        return self._calls[name]

    @staticmethod
    def _timed(call: Any) -> Any:
        def timed(*args: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            result = call(*args, **keywords)
            Timed.seconds += time.perf_counter() - started
            return result

        return timed


class Steps(trainer.Callback):
    """Records when each step ended, and the time spent in the extension until then."""

    def __init__(self) -> None:
        self.done: list[tuple[float, float]] = []

    def on_step(self, trainer: trainer.Trainer, step: int, loss: float) -> None:
        self.done.append((time.perf_counter(), Timed.seconds))


def main() -> None:
    lf.set_num_threads(1)
    preset = config.PRESETS["udacity"]
    training = dataclasses.replace(preset.training, steps=STEPS, sample_every=0, validate_every=0, summary_every=0)
    ids = np.random.default_rng(0).integers(0, 27, 500_000).astype(np.uint8)
    steps = Steps()
    corpus = Corpus(ids, Vocabulary.udacity(), description="random", fingerprint="", sources=())
    run = trainer.make_trainer(dataclasses.replace(preset, training=training), corpus, callbacks=[steps])
    timed = Timed(lf._core)
    for module in (losses, optimizers):
        module._core = timed  # type: ignore[attr-defined]
    for operation in ("linear", "linear_backward"):
        setattr(CPU, operation, getattr(timed, operation))
    loop.global_norm = timed.global_norm  # type: ignore[attr-defined]
    lstm = cast(lf.CharLM, run.model).lstm
    lstm._sequences = [Timed(sequence) for sequence in lstm._sequences]
    run.run()
    times = np.diff(np.array(steps.done), axis=0)
    whole, inside = (statistics.median(column) * 1e6 for column in times.T)
    outside = statistics.median(times[:, 0] - times[:, 1]) * 1e6
    print(f"a step takes {whole:.0f} us, {inside:.0f} of them in the extension")
    print(f"outside: {outside:.0f} us, {outside / whole:.1%}")


if __name__ == "__main__":
    main()
