"""Builds the model and the trainer that a `Config` describes, and turns minutes into steps.

Refuses to read files and to run anything to its end: `trainer` is the loop, `run_folder` the files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import initializers
from lstmfast.distributed import Group, Lone, broadcast
from lstmfast.initializers import Initializer
from lstmfast.models import BatchLoss, CharLM
from lstmfast.text.batches import Batches, train_valid_split
from lstmfast.text.corpus import Corpus
from lstmfast.training.config import Config
from lstmfast.training.sampler import Sampler
from lstmfast.training.trainer import Callback, Trainer

_MEASURED_SECONDS = 2.0
_TIME_IN_STEPS = 0.97  # samples and checkpoints take the rest


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
        vocab_size, shape.hidden_size, num_layers=shape.num_layers, embedding_size=config.embedding_size or None,
        tied=config.tied, dropout=shape.dropout, cell=shape.cell, dtype=shape.dtype, rng=rng,
        initializer=_initializer(config, vocab_size),
        device=device, loss=loss,
    )


def _initializer(config: Config, vocab_size: int) -> Initializer | None:
    kind = config.model.initializer
    if kind == "truncated-normal":
        return _truncated_normal

    def one_hot(name: str, size: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.floating[Any]]:
        values = initializers.default(name, size, rng)
        if name == "lstm.layer0.kernel":
            values[:vocab_size] = initializers.uniform((vocab_size, size[1]), rng, low=-1 / 3, high=1 / 3)
        return values

    return None if kind == "default" or config.embedding_size else one_hot


def _truncated_normal(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.floating[Any]]:
    """The initial weights of the Udacity 6_lstm notebook; what it does not have begins as by default."""
    if name.endswith("bias"):
        return initializers.zeros(shape)
    if name.endswith(("_gain", "_shift", "initial_h", "initial_c")):
        return initializers.default(name, shape, rng)
    return initializers.truncated_normal(shape, rng, mean=-0.1, std=0.1)


def make_trainer(
    config: Config,
    corpus: Corpus,
    callbacks: Iterable[Callback] = (),
    *,
    device: str = "cpu",
    loss: BatchLoss | None = None,
    group: Group | None = None,
) -> Trainer:
    """A trainer at step 0, all its randomness from the configured seed. device and loss: see `CharLM`.

    group: processes that share the work, each with a trainer of its own; only that of rank 0 validates and samples.
    A summary's perplexity and bits per character are meaningful only for cross entropy. Raises ValueError if the
    number of steps is not known yet: see `timed`.
    """
    data, training = config.data, config.training
    if not training.steps:
        raise ValueError("training.steps must be 1 or more, got 0: set it, or let recipe.timed take it from minutes")
    seeds = np.random.SeedSequence(training.seed).spawn(4)
    weights_rng, dropout_rng, reset_rng, sample_rng = (np.random.default_rng(seed) for seed in seeds)
    train_ids, valid_ids = train_valid_split(
        corpus.ids, valid_first=data.valid_first, valid_fraction=data.valid_fraction
    )

    def draw_samples(model: CharLM, rng: np.random.Generator) -> list[str]:
        sampler = Sampler(model, corpus.vocabulary, temperature=training.sample_temperature)
        return sampler.generate(training.sample_length, rng=rng, streams=training.sample_count)

    first = group is None or group.rank == 0
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
        valid_ids=valid_ids if first and len(valid_ids) > 1 else None,
        draw_samples=draw_samples if first else None,
        counts=corpus.count(train_ids),
        valid_counts=corpus.count(valid_ids[1:]),
        callbacks=callbacks,
        group=group,
    )


def timed(
    config: Config,
    corpus: Corpus,
    *,
    device: str = "cpu",
    loss: BatchLoss | None = None,
    group: Group | None = None,
) -> Config:
    """The settings with as many steps as fit in their minutes at the speed that this machine, or group, has now.

    It trains for two seconds, or a twentieth of the time if that is less, and forgets what was learnt: the run does
    not depend on how its number of steps was found.
    """
    training = config.training
    seconds = 60 * training.minutes
    trial = dataclasses.replace(config, training=dataclasses.replace(training, steps=1_000_000))
    trainer = make_trainer(trial, corpus, device=device, loss=loss, group=group)
    step_seconds = trainer.seconds_per_step(min(_MEASURED_SECONDS, seconds / 20))
    validation_seconds = trainer.seconds_per_validation()
    per_step = step_seconds + (validation_seconds / training.validate_every if training.validate_every else 0.0)
    steps = int((_TIME_IN_STEPS * seconds - 2 * validation_seconds) / per_step)  # 2: of the first and last step
    steps = broadcast(group or Lone(), max(steps, 1))  # what rank 0 has measured
    return dataclasses.replace(config, training=dataclasses.replace(training, steps=steps))
