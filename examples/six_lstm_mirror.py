"""Mirror the letters of each word: "the quick brown fox" becomes "eht kciuq nworb xof".

The third exercise of assignment 6 of Udacity's deep learning course (2016), with the sequence-to-sequence model of
Sutskever, Vinyals & Le (2014). One LSTM reads a word letter by letter; its final state, all it passes on about the
word, is the initial state of a second LSTM that writes. The writer's input is the letter before: the right one during
training, its own afterwards. A batch holds words of any length; `lengths` stops each at its own end.

One in ten of the text's distinct words is held out: the model never trains on these and is tested on them. A word is
right if all of its letters are, and its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from _shared import Options, Results, is_due, print_table, read_words

import lstmfast as lf

LONGEST, BATCH = 10, 128
MARK = 26  # the symbol after a to z: begins and ends the written word
SYMBOLS = 27

Array = npt.NDArray[Any]


def spell(words: Sequence[str]) -> tuple[Array, Array]:
    """Ids [LONGEST, batch] of the letters, MARK after the last, and lengths [batch]."""
    ids = np.full((LONGEST, len(words)), MARK, np.int32)
    for column, word in enumerate(words):
        ids[: len(word), column] = np.frombuffer(word.encode(), np.uint8) - ord("a")
    return ids, np.array([len(word) for word in words])


class Mirror:
    """A reader, a writer, and a projection to one logit per symbol; all variables in one buffer."""

    def __init__(self, hidden_size: int, rng: np.random.Generator) -> None:
        lstm, linear = lf.LSTM.shapes(SYMBOLS, hidden_size), lf.Linear.shapes(hidden_size, SYMBOLS)
        self.storage = lf.ParameterBuffer.allocate({"reader": lstm, "writer": lstm, "projection": linear}, "float32")
        self.storage.fill(None, rng)
        self.reader = lf.LSTM(SYMBOLS, hidden_size, storage=self.storage.part("reader."))
        self.writer = lf.LSTM(SYMBOLS, hidden_size, storage=self.storage.part("writer."))
        self.projection = lf.Linear(hidden_size, SYMBOLS, storage=self.storage.part("projection."))

    def loss_and_gradients(self, words: Sequence[str]) -> float:
        """Mean loss in nats per symbol to write, including the end; gradients of all variables."""
        ids, lengths = spell(words)
        mirrored, _ = spell([word[::-1] for word in words])
        end = np.full((1, len(words)), MARK, np.int32)
        written, wanted = np.vstack([end, mirrored]), np.vstack([mirrored, end])
        counted = np.arange(LONGEST + 1)[:, None] <= lengths  # up to and including the end

        _, state = self.reader(ids, lengths=lengths, training=True)
        h, _ = self.writer(written, state, lengths=lengths + 1, training=True)
        logits = self.projection(h[counted], training=True)
        loss, d_logits = lf.losses.softmax_cross_entropy(logits, wanted[counted])

        d_h = np.zeros_like(h)
        d_h[counted] = self.projection.backward(d_logits)
        _, d_state = self.writer.backward(d_h)
        self.reader.backward(None, d_state)  # the reader's gradient comes through the state alone
        return loss

    def __call__(self, words: Sequence[str]) -> list[str]:
        """The model's output for each word, always the likeliest symbol, up to its end."""
        ids, lengths = spell(words)
        _, state = self.reader(ids, lengths=lengths)
        last = np.full((1, len(words)), MARK, np.int32)
        written = []
        for _ in range(LONGEST + 1):
            h, state = self.writer(last, state)
            last = self.projection(h).argmax(axis=-1).astype(np.int32)
            written.append(last[0])
        letters = np.where(np.array(written) == MARK, 0, np.array(written) + ord("a")).astype(np.uint8)
        return [column.tobytes().split(b"\0")[0].decode() for column in letters.T]


def share_right(model: Mirror, words: Sequence[str]) -> float:
    return float(np.mean([said == word[::-1] for word, said in zip(words, model(words), strict=True)]))


def example(options: Any) -> Results:
    rng = np.random.default_rng(options.seed)
    words = sorted(read_words(options.text, shortest=2, longest=LONGEST))
    if len(words) < 100:
        raise ValueError(f"the text must have at least 100 different words to learn from, got {len(words)}")
    rng.shuffle(words)
    held_out, known = words[: len(words) // 10], words[len(words) // 10 :]
    model, optimizer = Mirror(options.hidden_size, rng), lf.optimizers.Adam()
    optimizer.init(model.storage.values)
    learning_rate = lf.schedules.CosineWithWarmup(5e-3, options.steps, options.steps // 20, 0.02)
    print(f"{len(words):,} words of 2 to {LONGEST} letters, {len(held_out):,} of them held out\n")

    print("   step  loss    held-out words right")
    for step in range(options.steps):
        loss = model.loss_and_gradients([known[k] for k in rng.integers(0, len(known), BATCH)])
        lf.losses.clip_by_global_norm(model.storage.gradient_values, 1.0)
        optimizer.update(model.storage.values, model.storage.gradient_values, learning_rate=learning_rate(step))
        if is_due(step, options.steps):
            print(f"{step:7,}  {loss:.4f}  {share_right(model, held_out[:1000]):.1%}")

    sentence = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    print(f"\n{' '.join(sentence)}\n{' '.join(model(sentence))}")
    seen, unseen = share_right(model, known[:2000]), share_right(model, held_out)
    rows = [("variables", f"{model.storage.values.size:,}"), ("known words right", f"{seen:.1%}")]
    print_table("The model", [*rows, (f"held-out words right, of {len(held_out):,}", f"{unseen:.1%}")])
    return {"loss": loss, "known_right": seen, "held_out_right": unseen}


def main(arguments: Sequence[str] | None = None) -> Results:
    options = Options(__doc__, steps=2500)
    options.add_number("--hidden-size", 128, "units of the reader and of the writer")
    return options.run(example, arguments)


if __name__ == "__main__":
    main()
