"""Seconds per epoch of a text classifier in Keras with recurrent dropout: `python -m lstmfast.bench.keras_classifier`.

The model of Keras' IMDB example: an embedding, an LSTM with dropout and recurrent_dropout 0.2, one sigmoid. Once with
keras.layers.LSTM and once with lstmfast.keras.LSTM, on whatever backend Keras has, one thread. The texts are made here:
random words of which a few tell the class, as long and as many as `--texts` and `--words` say. Both train on the same
texts for the same epochs; printed are the seconds of every epoch after the first, which compiles, and the accuracy on
texts that were held out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import keras
import numpy as np
from lstmfast.bench import machine

import lstmfast as lf
import lstmfast.keras

VOCABULARY, UNITS, BATCH, TELLING_WORDS = 20_000, 128, 32, 40


def main() -> None:
    parser = argparse.ArgumentParser(description="A text classifier in Keras with recurrent dropout.")
    parser.add_argument("--texts", type=int, default=4_000)
    parser.add_argument("--words", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    use_one_thread()
    print(
        f"{machine.describe()['cpu']}, Keras {keras.__version__} on {keras.backend.backend()}, 1 thread; "
        f"{options.texts} texts of {options.words} words"
    )
    data = texts(np.random.default_rng(0), options.texts, options.words)
    medians = []
    for name, layer in (("keras", keras.layers.LSTM), ("lstmfast", lstmfast.keras.LSTM)):
        seconds, accuracy = train(layer, data, options.epochs)
        medians.append(statistics.median(seconds[1:]))
        print(f"{name:10}{'  '.join(f'{s:.2f}' for s in seconds[1:])} s per epoch, accuracy {accuracy:.3f}", flush=True)
    print(f"{medians[0] / medians[1]:.2f} times as fast")


def use_one_thread() -> None:
    """Keep the library and the backend to one thread."""
    lf.set_num_threads(1)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    elif keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)


def texts(rng: np.random.Generator, count: int, words: int) -> tuple[Any, Any]:
    """Ids [count, words] and classes [count]: three words of a text are of the list that belongs to its class."""
    ids = rng.integers(2 * TELLING_WORDS, VOCABULARY, (count, words)).astype(np.int32)
    classes = rng.integers(0, 2, count).astype(np.int32)
    for text, of_class in zip(ids, classes, strict=True):
        text[rng.integers(0, words, 3)] = rng.integers(0, TELLING_WORDS, 3) + of_class * TELLING_WORDS
    return ids, classes


class EpochTimes(keras.callbacks.Callback):  # type: ignore[misc]
    """The seconds of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def train(layer: Any, data: tuple[Any, Any], epochs: int) -> tuple[list[float], float]:
    """Train a model with this layer on nine tenths of the texts; return its epochs and its accuracy on the others."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([
        keras.layers.Embedding(VOCABULARY, UNITS),
        layer(UNITS, dropout=0.2, recurrent_dropout=0.2),
        keras.layers.Dense(1, activation="sigmoid"),
    ])
    model.compile(loss="binary_crossentropy", optimizer="adam", metrics=["accuracy"])
    ids, classes = data
    held_out, times = len(ids) // 10, EpochTimes()
    model.fit(
        ids[held_out:], classes[held_out:], batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[times]
    )
    return times.seconds, float(model.evaluate(ids[:held_out], classes[:held_out], verbose=0)[1])


if __name__ == "__main__":
    main()
