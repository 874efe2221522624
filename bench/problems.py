"""What the contenders work on: weights, inputs, lengths, texts and draws, in lstmfast's names and layouts.

Everything follows from the seed. The text is the running Python's own documentation, so nothing has to be downloaded;
the time of a step does not depend on it.
"""

from __future__ import annotations

import re
from pydoc_data import topics
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmfast.config import Config
from lstmfast.data import Batches, Vocabulary, fold_to_udacity
from lstmfast.training.recipe import make_model

from .shapes import Shape

Problem: TypeAlias = dict[str, npt.NDArray[Any]]

_STEPS_TO_COMPARE = 8


def layer(shape: Shape, *, ragged: bool = False, seed: int = 0) -> Problem:
    """One layer: kernel, bias, x [T, B, I] and d_h [T, B, H], float32; with `ragged` also lengths from T/2 to T.

    Weights are uniform within 1/sqrt(H), as in frameworks; with much larger ones an LSTM becomes chaotic and libraries
    soon disagree.
    """
    rng = np.random.default_rng(seed)
    batch, time_steps, input_size, hidden_size = shape
    limit = hidden_size**-0.5
    arrays = {
        "kernel": rng.uniform(-limit, limit, (input_size + hidden_size, 4 * hidden_size)),
        "bias": rng.uniform(-limit, limit, 4 * hidden_size),
        "x": rng.standard_normal((time_steps, batch, input_size)),
        "d_h": rng.standard_normal((time_steps, batch, hidden_size)),
    }
    problem: Problem = {name: values.astype(np.float32) for name, values in arrays.items()}
    if ragged:
        lengths = rng.integers(max(time_steps // 2, 1), time_steps, batch, endpoint=True)
        problem["lengths"] = lengths
        problem["d_h"] *= (np.arange(time_steps)[:, None] < lengths)[..., None]
    return problem


def steps(shape: Shape) -> Problem:
    """One layer, and x [steps, 1, I] of a few single steps."""
    return layer(Shape(1, _STEPS_TO_COMPARE, shape.input_size, shape.hidden_size))


def training(config: Config, batch_count: int, *, seed: int = 0) -> Problem:
    """First weights of a preset's model, and inputs and targets [batch_count, unroll, batch_size] in its order."""
    batches = Batches(vocabulary(config).encode(text(config)), config.training.batch_size, config.training.unroll)
    inputs, targets = zip(*(batches.next() for _ in range(batch_count)), strict=True)
    return {**_weights(config, seed), "inputs": np.stack(inputs), "targets": np.stack(targets)}


def sampling(config: Config, piece_count: int, piece_length: int, *, seed: int = 0) -> Problem:
    """First weights of a preset's model, and the uniform draws [piece_count, piece_length] that choose characters."""
    draws = np.random.default_rng(seed).random((piece_count, piece_length))
    return {**_weights(config, seed), "uniforms": draws}


def vocabulary(config: Config) -> Vocabulary:
    """The symbols of a preset's text."""
    return Vocabulary.udacity() if config.data.vocabulary == "udacity" else Vocabulary.characters(text(config))


def text(config: Config) -> str:
    """What `help()` knows, half a million characters, reduced to ASCII; for 27 symbols only its prose.

    Code and grammar are left out for 27 symbols, because a learning rate of 10 makes training chaotic, and repetitive
    text more so: on source code PyTorch in float32 and float64 differ by 0.1 nats within 200 steps.
    """
    everything = "\n".join(topics.topics.values())
    if config.data.vocabulary != "udacity":
        return everything.encode("ascii", "ignore").decode()
    prose = re.compile(r"^ {0,3}[A-Za-z(][^=\n]*$", re.MULTILINE)
    return fold_to_udacity("\n".join(prose.findall(everything)))


def _weights(config: Config, seed: int) -> Problem:
    """As the trainer draws them."""
    model = make_model(config, vocabulary(config).size, np.random.default_rng(seed))
    return {name: values.copy() for name, values in model.parameters.items()}
