"""An embedding, two LSTM layers, dropout, and a state carried from batch to batch: the language model of R2RT.

Follows "Recurrent Neural Networks in Tensorflow" I and II (R2RT, 2016): characters, looked up in an embedding
rather than one-hot, a stack of layers, Adam. The text is read as BATCH streams; each batch continues where the one
before ended, with its final state. The gain is measured at the end: the same text is read with the state carried
and with the state set to zero before each window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from _shared import Options, Results, is_due, print_table, read_text

import lstmfast as lf
from lstmfast.data import Batches, split
from lstmfast.sampler import Sampler

BATCH = 32
FORGET = 0.02  # probability that a stream's state is reset: a model must also learn how a text begins

Array = npt.NDArray[Any]


def evaluate(model: lf.CharLM, ids: Array, unroll: int, *, carry_state: bool) -> float:
    """Mean loss in nats of a text read in windows of `unroll` characters, BATCH streams side by side."""
    batches = Batches(ids, BATCH, unroll)
    state, losses = model.zero_state(BATCH), []
    for _ in range(len(ids) // (BATCH * unroll)):
        inputs, targets = batches.next()
        loss, end = model.loss(inputs, targets, state)
        losses.append(loss)
        state = end if carry_state else state
    return float(np.mean(losses))


def example(options: Any) -> Results:
    corpus = read_text(options.text)
    train_ids, valid_ids = split(corpus.ids, valid_fraction=0.02)
    batches = Batches(train_ids, BATCH, options.unroll)
    rng = np.random.default_rng(options.seed)
    model = lf.CharLM(
        corpus.vocabulary.size, options.hidden_size, num_layers=options.layers, embedding_size=options.embedding_size,
        dropout=options.dropout, rng=rng,
    )
    optimizer = lf.optimizers.Adam()
    optimizer.init(model.parameter_buffer)
    learning_rate = lf.schedules.CosineWithWarmup(4e-3, options.steps, options.steps // 20, 0.02)
    sampler = Sampler(model, corpus.vocabulary, temperature=0.7)
    state, recent = model.zero_state(BATCH), []

    print("   step  nats per character  perplexity")
    for step in range(options.steps):
        inputs, targets = batches.next()
        h, c = state
        restarted = rng.random(BATCH) < FORGET
        h[:, restarted] = c[:, restarted] = 0
        loss, state = model.loss_and_gradients(inputs, targets, state, rng=rng)  # rng draws the dropout
        lf.losses.clip_by_global_norm(model.gradient_buffer, 1.0)
        optimizer.update(model.parameter_buffer, model.gradient_buffer, learning_rate=learning_rate(step))
        recent.append(loss)
        if is_due(step, options.steps):
            loss, recent = float(np.mean(recent)), []
            print(f"{step:7,}  {loss:18.3f}  {lf.losses.perplexity(loss):10.2f}")

    [text] = sampler.generate(300, rng=rng)
    print(f"\n{text}")
    carried, fresh = (evaluate(model, valid_ids, options.unroll, carry_state=carry) for carry in (True, False))
    print_table("The model, on the last 2 % of the text, which it did not learn from", [
        *((name, str(value.shape)) for name, value in model.parameters.items()),
        ("perplexity, state carried on", f"{lf.losses.perplexity(carried):.2f} ({carried:.3f} nats per character)"),
        ("perplexity, each window from zero", f"{lf.losses.perplexity(fresh):.2f} ({fresh:.3f} nats per character)"),
    ])
    return {"loss": loss, "valid_loss": carried, "valid_loss_without_carried_state": fresh}


def main(arguments: Sequence[str] | None = None) -> Results:
    options = Options(__doc__, steps=3500)
    options.add_number("--layers", 2, "layers, one above the other")
    options.add_number("--hidden-size", 128, "units of each layer")
    options.add_number("--embedding-size", 32, "length of the vector of a character")
    options.add_number("--unroll", 40, "characters that a gradient goes back")
    options.add_fraction("--dropout", 0.1, "part of the values dropped between the layers, before and after them")
    return options.run(example, arguments)


if __name__ == "__main__":
    main()
