"""What the contenders work on: the classic 6_lstm character model, its first weights, its batches, its draws.

The text is the running Python's own documentation, so that nothing has to be fetched; how long a step takes does not
depend on it. Everything else follows from the seed.
"""

from __future__ import annotations

import re
from pydoc_data import topics

import numpy as np

from contenders import Problem
from lstmfast.data import Batches, Vocabulary, fold_to_udacity
from lstmfast.initializers import truncated_normal

VOCABULARY = Vocabulary.udacity()
HIDDEN_SIZE = 64
BATCH_SIZE = 64
UNROLL = 10


def text() -> str:
    """Three hundred thousand characters of English, reduced to the 27 symbols: the prose of what `help()` knows.

    Code and grammar are left out, because a learning rate of 10 makes training chaotic and repetitive text more so: on
    source code PyTorch in float32 and in float64 drift apart by 0.1 nats within 200 steps.
    """
    prose = re.compile(r"^ {0,3}[A-Za-z(][^=\n]*$", re.MULTILINE)
    return fold_to_udacity("\n".join(prose.findall("\n".join(topics.topics.values()))))


def weights(rng: np.random.Generator) -> Problem:
    """First weights as the notebook has them: normal about -0.1 with deviation 0.1, cut at two; no biases."""
    size = VOCABULARY.size
    shapes = {"lstm.layer0.kernel": (size + HIDDEN_SIZE, 4 * HIDDEN_SIZE), "projection.kernel": (HIDDEN_SIZE, size)}
    kernels = {
        name: truncated_normal(shape, rng, mean=-0.1, std=0.1, dtype=np.float32) for name, shape in shapes.items()
    }
    biases = {"lstm.layer0.bias": np.zeros(4 * HIDDEN_SIZE, np.float32), "projection.bias": np.zeros(size, np.float32)}
    return {**kernels, **biases}


def training(batch_count: int, *, seed: int = 0) -> Problem:
    """Weights, and inputs and targets [batch_count, unroll, batch_size] in the order of the classic batch generator."""
    batches = Batches(VOCABULARY.encode(text()), BATCH_SIZE, UNROLL)
    inputs, targets = zip(*(batches.next() for _ in range(batch_count)), strict=True)
    return {**weights(np.random.default_rng(seed)), "inputs": np.stack(inputs), "targets": np.stack(targets)}


def sampling(piece_count: int, piece_length: int, *, seed: int = 0) -> Problem:
    """Weights, and the uniform draws [piece_count, piece_length] that choose the characters."""
    rng = np.random.default_rng(seed)
    return {**weights(rng), "uniforms": rng.random((piece_count, piece_length))}
