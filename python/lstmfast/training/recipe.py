"""Builds the model and the trainer that a `Config` describes.

Refuses to read files and to run anything: `trainer` is the loop, `run_folder` the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import initializers
from lstmfast.models import BatchLoss, CharLM
from lstmfast.text.batches import Batches, train_valid_split
from lstmfast.text.corpus import Corpus
from lstmfast.training.config import Config
from lstmfast.training.sampler import Sampler
from lstmfast.training.trainer import Callback, Trainer


def make_model(
    config: Config,
    vocab_size: int,
    rng: np.random.Generator,
    device: str = "cpu",
    *,
    loss: BatchLoss | None = None,
) -> CharLM:
    """A model of the configured shape with initial weights. device and loss: see `CharLM`."""
    shape = config.model
    return CharLM(
        vocab_size, shape.hidden_size, num_layers=shape.num_layers, embedding_size=shape.embedding_size or None,
        dropout=shape.dropout, cell=shape.cell, dtype=shape.dtype, rng=rng,
        initializer=_truncated_normal if shape.initializer == "truncated-normal" else None,
        device=device, loss=loss,
    )


def _truncated_normal(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.floating[Any]]:
    """The initial weights of the Udacity 6_lstm notebook."""
    if name.endswith("bias"):
        return initializers.zeros(shape)
    return initializers.truncated_normal(shape, rng, mean=-0.1, std=0.1)


def make_trainer(
    config: Config,
    corpus: Corpus,
    callbacks: Iterable[Callback] = (),
    *,
    device: str = "cpu",
    loss: BatchLoss | None = None,
) -> Trainer:
    """A trainer at step 0, all its randomness from the configured seed. device and loss: see `CharLM`.

    A summary's perplexity and bits per character are meaningful only for cross entropy.
    """
    data, training = config.data, config.training
    seeds = np.random.SeedSequence(training.seed).spawn(4)
    weights_rng, dropout_rng, reset_rng, sample_rng = (np.random.default_rng(seed) for seed in seeds)
    train_ids, valid_ids = train_valid_split(
        corpus.ids, valid_first=data.valid_first, valid_fraction=data.valid_fraction
    )

    def draw_samples(model: CharLM, rng: np.random.Generator) -> list[str]:
        sampler = Sampler(model, corpus.vocabulary, temperature=training.sample_temperature)
        return sampler.generate(training.sample_length, rng=rng, streams=training.sample_count)

    return Trainer(
        make_model(config, corpus.vocabulary.size, weights_rng, device, loss=loss),
        config.optimizer.make_optimizer(),
        config.optimizer.make_schedule(training.steps),
        Batches(train_ids, training.batch_size, training.unroll),
        training,
        dropout_rng=dropout_rng,
        reset_rng=reset_rng,
        sample_rng=sample_rng,
        clip_norm=config.optimizer.clip_norm,
        valid_ids=valid_ids if len(valid_ids) > 1 else None,
        draw_samples=draw_samples,
        callbacks=callbacks,
    )
