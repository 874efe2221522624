"""The 6_lstm model written out by hand: a character in, the next one out.

All settings are those of assignment 6 of Udacity's deep learning course (2016): 27 symbols (space and a to z), 64
units, 64 text streams in parallel, 10 steps unrolled, gradients clipped to a norm of 1.25, plain gradient descent
with a learning rate of 10 that falls to a tenth every 5,000 steps, weights around -0.1, no forget bias. The state is
carried from batch to batch, the gradient is not: truncated backpropagation through time.

`lstmfast train --preset udacity` trains the same model through the library's own trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from _shared import Options, Results, print_table, read_text

import lstmfast as lf
from lstmfast.data import Batches, split

SYMBOLS, UNITS, BATCH, UNROLL = 27, 64, 64, 10
MAX_NORM = 1.25
LEARNING_RATE = lf.schedules.ExponentialDecay(10.0, decay_rate=0.1, decay_steps=5000, staircase=True)

Array = npt.NDArray[Any]
State = tuple[Array, Array]


def first_weights(rng: np.random.Generator) -> lf.ParameterBuffer:
    """All variables in one array, so that clipping and the update are one line each."""

    def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        if name.endswith("bias"):
            return np.zeros(shape)
        return lf.initializers.truncated_normal(shape, rng, mean=-0.1, std=0.1)

    shapes = {
        "kernel": (SYMBOLS + UNITS, 4 * UNITS), "bias": (4 * UNITS,),
        "projection.kernel": (UNITS, SYMBOLS), "projection.bias": (SYMBOLS,),
    }
    weights = lf.ParameterBuffer.allocate(shapes, "float32")
    weights.fill(draw, rng)
    return weights


def zero_state(batch: int) -> State:
    """The state before a text begins: h and c."""
    return np.zeros((batch, UNITS), "float32"), np.zeros((batch, UNITS), "float32")


def project(weights: lf.ParameterBuffer, h: Array) -> Array:
    """One logit per symbol, from the outputs of the LSTM."""
    return h @ weights.parameters["projection.kernel"] + weights.parameters["projection.bias"]


def train_step(
    weights: lf.ParameterBuffer, inputs: Array, targets: Array, state: State, learning_rate: float
) -> tuple[float, State]:
    """Train on a batch of ids [UNROLL, BATCH]: return its loss before the update, and its final state."""
    w, g = weights.parameters, weights.gradients

    out = lf.lstm(inputs, w["kernel"], w["bias"], *state, keep_for_backward=True)  # ids look up rows of the kernel
    loss, d_logits = lf.losses.softmax_cross_entropy(project(weights, out.h), targets)

    rows, d_rows = out.h.reshape(-1, UNITS), d_logits.reshape(-1, SYMBOLS)
    g["projection.kernel"][...] = rows.T @ d_rows
    g["projection.bias"][...] = d_rows.sum(axis=0)
    through_time = lf.lstm_backward(out, d_logits @ w["projection.kernel"].T)
    g["kernel"][...] = through_time.kernel
    g["bias"][...] = through_time.bias

    lf.losses.clip_by_global_norm(weights.gradient_values, MAX_NORM)
    weights.values[...] -= learning_rate * weights.gradient_values
    return loss, (out.h_n, out.c_n)


def evaluate(weights: lf.ParameterBuffer, ids: Array) -> float:
    """Mean loss in nats per character of a text, given all characters before it."""
    column = ids[:, None]
    out = lf.lstm(column[:-1], weights.parameters["kernel"], weights.parameters["bias"])
    return lf.losses.softmax_cross_entropy(project(weights, out.h), column[1:])[0]


def write(weights: lf.ParameterBuffer, length: int, rng: np.random.Generator) -> Array:
    """Continue from a random character: the ids that the model draws, one step at a time."""
    written = [int(rng.integers(SYMBOLS))]
    h, c = zero_state(1)
    for _ in range(length):
        h, c = lf.lstm_step(np.array(written[-1:]), h, c, weights.parameters["kernel"], weights.parameters["bias"])
        odds = np.exp(project(weights, h)[0].astype(float))
        written.append(int(rng.choice(SYMBOLS, p=odds / odds.sum())))
    return np.array(written[1:])


def example(options: Any) -> Results:
    corpus = read_text(options.text, fold=True)
    train_ids, valid_ids = split(corpus.ids, valid_first=1000)
    batches = Batches(train_ids, BATCH, UNROLL)
    rng = np.random.default_rng(options.seed)
    weights, state, recent = first_weights(rng), zero_state(BATCH), []
    loss = valid = float("nan")

    print("   step  learning rate  perplexity  on the first 1,000 characters, which are not trained on")
    for step in range(options.steps):
        inputs, targets = batches.next()
        step_loss, state = train_step(weights, inputs, targets, state, LEARNING_RATE(step))
        recent.append(step_loss)
        if step % 1000 == 0 or step == options.steps - 1:
            loss, valid, recent = float(np.mean(recent)), evaluate(weights, valid_ids), []
            seen, unseen = lf.losses.perplexity(loss), lf.losses.perplexity(valid)
            print(f"{step:7,}  {LEARNING_RATE(step):13g}  {seen:10.2f}  {unseen:.2f}")
            print(f"         {corpus.vocabulary.decode(write(weights, 80, rng))}")

    print_table(
        "The model",
        [
            ("kernel", f"{weights.parameters['kernel'].shape} = (27 symbols + 64 units, 4 gates of 64 units)"),
            ("variables", f"{weights.values.size:,}"),
            ("training perplexity", f"{lf.losses.perplexity(loss):.2f}"),
            ("validation perplexity", f"{lf.losses.perplexity(valid):.2f}"),
        ],
    )
    return {"perplexity": lf.losses.perplexity(loss), "valid_perplexity": lf.losses.perplexity(valid)}


def main(arguments: Sequence[str] | None = None) -> Results:
    return Options(__doc__, steps=7001).run(example, arguments)


if __name__ == "__main__":
    main()
