"""Read a misspelt word: 256 units forwards, 256 backwards, and a softmax over 5,068 words.

The sizes are those of a much-read question about bidirectional LSTMs in TensorFlow: characters of 16 values, 256
units per direction, hence two kernels of (16 + 256, 4*256) = (272, 1024), and 5,068 words to choose from: the most
frequent ones of the text. Each is misspelt by one slip: two letters swapped, or one left out, added or replaced;
one word in five stays correct. The forward direction ends at the last letter, the backward one at the first; each has
read the whole word, and both final states together classify it. Every batch and the test draw new slips.

No reader can always be right: one slip turns "from" into "form".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from _shared import Options, Results, is_due, print_table, read_words

import lstmfast as lf

LETTERS, EMBEDDING, UNITS, WORDS = 26, 16, 256, 5068
SLIPS = ("none", "swap", "drop", "insert", "replace")

Array = npt.NDArray[Any]


def misspell(word: str, slip: str, rng: np.random.Generator) -> str:
    """The word with one slip of this kind at a random place."""
    at = int(rng.integers(len(word) - (slip == "swap")))
    letter = chr(ord("a") + int(rng.integers(LETTERS)))
    if slip == "swap":
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if slip == "drop":
        return word[:at] + word[at + 1 :]
    if slip == "insert":
        return word[:at] + letter + word[at:]
    return word[:at] + letter + word[at + 1 :] if slip == "replace" else word


def spell(words: Sequence[str]) -> tuple[Array, Array]:
    """Ids [longest, batch] of the letters, and lengths [batch]; padding after the last letter is not read."""
    lengths = np.array([len(word) for word in words])
    ids = np.zeros((lengths.max(), len(words)), np.int32)
    for column, word in enumerate(words):
        ids[: len(word), column] = np.frombuffer(word.encode(), np.uint8) - ord("a")
    return ids, lengths


class Reader:
    """Embedding, an LSTM in both directions, a projection of both final states; all variables in one buffer."""

    def __init__(self, words: int, rng: np.random.Generator) -> None:
        shapes = {
            "embedding": lf.Embedding.shapes(LETTERS, EMBEDDING),
            "lstm": lf.LSTM.shapes(EMBEDDING, UNITS, bidirectional=True),
            "projection": lf.Linear.shapes(2 * UNITS, words),
        }
        self.storage = lf.ParameterBuffer.allocate(shapes, "float32")
        self.storage.fill(None, rng)
        self.embedding = lf.Embedding(LETTERS, EMBEDDING, storage=self.storage.part("embedding."))
        self.lstm = lf.LSTM(EMBEDDING, UNITS, bidirectional=True, storage=self.storage.part("lstm."))
        self.projection = lf.Linear(2 * UNITS, words, storage=self.storage.part("projection."))

    def __call__(self, spellings: Sequence[str], *, training: bool = False) -> Array:
        """Logits [batch, words] of all words."""
        ids, lengths = spell(spellings)
        _, (h_n, _) = self.lstm(self.embedding(ids, training=training), lengths=lengths, training=training)
        return self.projection(np.hstack([h_n[0], h_n[1]]), training=training)  # where each direction ended

    def backward(self, d_logits: Array) -> None:
        """Fill the gradients of all variables."""
        forward, backward = np.split(self.projection.backward(d_logits), 2, axis=1)
        d_h_n = np.stack([forward, backward])
        d_embedded, _ = self.lstm.backward(None, (d_h_n, np.zeros_like(d_h_n)))
        assert d_embedded is not None  # None only if the stack reads ids
        self.embedding.backward(d_embedded)


def draw(words: Sequence[str], labels: Array, rng: np.random.Generator) -> tuple[list[str], Array]:
    """A spelling of each labelled word, and which slip was made."""
    slips = rng.integers(0, len(SLIPS), len(labels))
    return [misspell(words[k], SLIPS[slip], rng) for k, slip in zip(labels, slips, strict=True)], slips


def example(options: Any) -> Results:
    rng = np.random.default_rng(options.seed)
    counted = read_words(options.text, shortest=3, longest=16).most_common(options.words)
    words = [word for word, _ in counted]
    if len(words) < options.words:
        raise ValueError(f"--words must be at most {len(words):,}, what the text has, got {options.words:,}")
    model, optimizer, recent = Reader(len(words), rng), lf.optimizers.Adam(), []
    optimizer.init(model.storage.values)
    learning_rate = lf.schedules.CosineWithWarmup(3e-3, options.steps, options.steps // 20, 0.02)

    print("   step  loss")
    for step in range(options.steps):
        labels = rng.integers(0, len(words), options.batch_size)
        loss, d_logits = lf.losses.softmax_cross_entropy(model(draw(words, labels, rng)[0], training=True), labels)
        model.backward(d_logits)
        lf.losses.clip_by_global_norm(model.storage.gradient_values, 1.0)
        optimizer.update(model.storage.values, model.storage.gradient_values, learning_rate=learning_rate(step))
        recent.append(loss)
        if is_due(step, options.steps, lines=10):
            loss, recent = float(np.mean(recent)), []
            print(f"{step:7,}  {loss:.3f}")

    labels = np.tile(np.arange(len(words)), 10_000 // len(words) + 1)
    spellings, slips = draw(words, labels, rng)
    parts = np.array_split(np.arange(len(labels)), len(labels) // 500 + 1)
    said = np.concatenate([model([spellings[k] for k in part]).argmax(axis=1) for part in parts])
    right = said == labels
    print()
    for k in rng.choice(np.flatnonzero(slips > 0), 8, replace=False):
        print(f"{spellings[k]:>18} -> {words[said[k]]:<18} {'' if right[k] else 'was ' + words[labels[k]]}")

    kernels = [cell.kernel.shape for cell in model.lstm.cells]
    print_table(f"The model, on {len(labels):,} new spellings of its {len(words):,} words", [
        ("kernels, forwards and backwards", f"{kernels[0]} and {kernels[1]}"),
        ("variables", f"{model.storage.values.size:,}"),
        *((f"right, slip: {slip}", f"{right[slips == k].mean():.1%}") for k, slip in enumerate(SLIPS)),
        ("right, misspelt", f"{right[slips > 0].mean():.1%}"),
    ])
    return {"loss": loss, "right": float(right.mean()), "misspelt_right": float(right[slips > 0].mean())}


def main(arguments: Sequence[str] | None = None) -> Results:
    options = Options(__doc__, steps=1500)
    options.add_number("--words", WORDS, "words to tell apart, the most frequent ones of the text", at_least=2)
    options.add_number("--batch-size", 128, "words of a batch")
    return options.run(example, arguments)


if __name__ == "__main__":
    main()
