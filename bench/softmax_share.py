"""The share of a training step that many tokens cost: the projection to one logit for each, the loss, and the update.

Random ids, 32 x 32 tokens a step, as frequent as words. Models take turns, the fastest step of each is printed, so that
what else the machine does falls on all alike. The rest of a step is measured with a vocabulary of 64.
"""

from __future__ import annotations

import time

import numpy as np

import lstmfast as lf
from lstmfast.optimizers import Adam

STEPS, TIME_STEPS, BATCH = 5, 32, 32
SIZES = (10_000, 50_000)
SHAPES = (
    (256, 0, True), (512, 0, True), (512, 256, True), (512, 128, True), (1024, 256, True),
    (256, 0, False), (512, 0, False),
)
"""Units, length of the LSTM's projection (0: none), tied."""


class Timed:
    """A model and its optimizer, with the seconds of their fastest step."""

    def __init__(self, tokens: int, units: int, projection: int, tied: bool) -> None:
        rng = np.random.default_rng(0)
        self.model = lf.CharLM(
            tokens, units, embedding_size=projection or units, tied=tied,
            cell=lf.Cell(projection_size=projection or None), rng=rng,
        )
        self.optimizer = Adam()
        self.optimizer.init(self.model.parameter_buffer)
        # As frequent as words are: the k-th one like 1/k.
        frequencies = 1 / np.arange(1, tokens + 1)
        ids = rng.choice(tokens, (TIME_STEPS + 1, BATCH), p=frequencies / frequencies.sum())
        self.ids = ids.astype(np.int32)
        self.gradients = self.update = float("inf")

    def step(self) -> None:
        started = time.perf_counter()
        self.model.loss_and_gradients(self.ids[:-1], self.ids[1:])
        done = time.perf_counter()
        self.optimizer.update(self.model.parameter_buffer, self.model.gradient_buffer, learning_rate=1e-6)
        self.gradients = min(self.gradients, done - started)
        self.update = min(self.update, time.perf_counter() - done)


def main() -> None:
    print("tokens  units  outputs  tied  step ms  of these softmax  update  tokens/s  softmax GFLOP/s")
    for tokens in SIZES:
        models = [(Timed(tokens, *shape), Timed(64, *shape)) for shape in SHAPES]
        for _ in range(STEPS):
            for pair in models:
                for model in pair:
                    model.step()
        for (units, projection, tied), (many, few) in zip(SHAPES, models, strict=True):
            step, softmax = many.gradients + many.update, many.gradients - few.gradients
            flops = 3 * 2 * TIME_STEPS * BATCH * tokens * (projection or units)
            print(
                f"{tokens:6}  {units:5}  {projection or units:7}  {'yes' if tied else 'no':4}  "
                f"{step * 1e3:7.0f}  {softmax / step:16.0%}  {many.update / step:6.0%}  "
                f"{TIME_STEPS * BATCH / step:8,.0f}  {flops / softmax / 1e9:15.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
