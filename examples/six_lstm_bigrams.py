"""The 6_lstm model over pairs of letters: an embedding of the 729 bigrams, and dropout.

The second exercise of assignment 6 of Udacity's deep learning course (2016). Each step reads two characters and
predicts the next two. Bigrams are looked up in an embedding, because a one-hot row of 729 would be mostly zeros;
dropout applies to the LSTM's inputs and outputs, never between time steps (Zaremba, Sutskever & Vinyals 2014).

The same model is also trained without dropout, to show what dropout costs or gains on this text. Perplexities are
per character, the square root of that per bigram, for comparison with six_lstm.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from _shared import Options, Results, print_table, read_text

import lstmfast as lf
from lstmfast.config import TrainingConfig
from lstmfast.data import Batches, Vocabulary, split
from lstmfast.trainer import Callback, Summary, Trainer

BATCH, UNROLL = 64, 10
FORGET = 0.02  # probability of resetting a stream; at 0, one seed of three failed at text starts (perplexity 156)

Array = npt.NDArray[Any]


def bigrams(ids: Array, symbols: int) -> Array:
    """A text as non-overlapping pairs, each an id from 0 to symbols**2 - 1."""
    even = ids[: len(ids) // 2 * 2].astype(np.int32)
    return even[0::2] * symbols + even[1::2]


def write(model: lf.CharLM, vocabulary: Vocabulary, pairs: int, rng: np.random.Generator) -> str:
    """Continue after two spaces: the text that the model draws, two characters per pair."""
    drawn = model.stream().generate(np.zeros(1, np.int32), rng.random((pairs, 1)))
    return vocabulary.decode(np.stack(np.divmod(drawn.ravel(), vocabulary.size), axis=1))


class Report(Callback):
    """Prints each line of metrics, per character, and keeps the last."""

    valid_perplexity = float("nan")

    def on_summary(self, trainer: Trainer, summary: Summary) -> None:
        self.perplexity = lf.losses.perplexity(summary.loss / 2)
        if summary.valid_loss is not None:
            self.valid_perplexity = lf.losses.perplexity(summary.valid_loss / 2)
        print(f"{summary.step:7,}  {self.perplexity:10.2f}  {self.valid_perplexity:.2f}")


def train(options: Any, ids: Array, valid_ids: Array, vocab_size: int, dropout: float) -> tuple[lf.CharLM, Report]:
    """Train one model and return it with its metrics."""
    weights_rng, *rngs = (np.random.default_rng([options.seed, number]) for number in range(4))
    model = lf.CharLM(
        vocab_size, options.hidden_size, embedding_size=options.embedding_size, dropout=dropout, rng=weights_rng
    )
    every = max(options.steps // 5, 1)
    settings = TrainingConfig(
        steps=options.steps, batch_size=BATCH, unroll=UNROLL, reset_rate=FORGET, summary_every=every,
        validate_every=every, sample_every=0, checkpoint_every=0,
    )
    report = Report()
    print(f"With dropout {dropout:g}\n   step  perplexity  on the first 1,000 characters, which are not trained on")
    Trainer(
        model, lf.optimizers.Adam(), lf.schedules.CosineWithWarmup(4e-3, options.steps, options.steps // 20, 0.02),
        Batches(ids, BATCH, UNROLL), settings, dropout_rng=rngs[0], reset_rng=rngs[1], sample_rng=rngs[2],
        clip_norm=1.25, valid_ids=valid_ids, callbacks=[report],
    ).run()
    return model, report


def example(options: Any) -> Results:
    corpus = read_text(options.text, fold=True)
    symbols = corpus.vocabulary.size
    train_ids, valid_ids = split(corpus.ids, valid_first=1000)
    pairs, valid_pairs = bigrams(train_ids, symbols), bigrams(valid_ids, symbols)

    rates = dict.fromkeys([0.0, options.dropout])
    trained = {rate: train(options, pairs, valid_pairs, symbols**2, rate) for rate in rates}
    model, report = trained[options.dropout]
    print(f"\n{write(model, corpus.vocabulary, 120, np.random.default_rng(options.seed))}")
    print_table("The model", [
        *((name, str(value.shape)) for name, value in model.parameters.items()),
        ("variables", f"{model.parameter_buffer.size:,}"),
        *((f"validation perplexity per character, dropout {rate:g}", f"{other.valid_perplexity:.2f}")
          for rate, (_, other) in trained.items()),
    ])
    return {
        "perplexity": report.perplexity,
        "valid_perplexity": report.valid_perplexity,
        "valid_perplexity_without_dropout": trained[0.0][1].valid_perplexity,
    }


def main(arguments: Sequence[str] | None = None) -> Results:
    options = Options(__doc__, steps=5000)
    options.add_number("--hidden-size", 128, "units of the LSTM")
    options.add_number("--embedding-size", 64, "length of the vector of a bigram")
    options.add_fraction("--dropout", 0.1, "part of the values dropped")
    return options.run(example, arguments)


if __name__ == "__main__":
    main()
