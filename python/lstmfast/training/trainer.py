"""Training: one event loop that turns batches into updates and notifies its callbacks.

It prints nothing and opens no file: the command's display and `run_folder` are callbacks. Refuses to build its own
parts (see `recipe`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import losses
from lstmfast._checks import State
from lstmfast._core import global_norm
from lstmfast.distributed import FailedTogether, Group, Lone, TreeSum, broadcast, gather_arrays
from lstmfast.optimizers import Optimizer
from lstmfast.schedules import Schedule
from lstmfast.text.batches import Batches
from lstmfast.text.tokens import Counts
from lstmfast.training import checkpoint
from lstmfast.training.checkpoint import Tensor
from lstmfast.training.config import TrainingConfig

Ids = npt.NDArray[Any]
DrawSamples = Callable[[Any, np.random.Generator], list[str]]
AllReduce = Callable[[Tensor], None]

_MEASURED_STEPS = 4  # at least, however slow they are


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """One line of metrics. loss: mean nats per character since the previous line; chars_per_second: training only.

    counts and valid_counts: the amount of text that is trained and validated on, where losses are in nats per token.
    """

    step: int
    loss: float
    learning_rate: float
    chars_per_second: float
    valid_loss: float | None = None
    counts: Counts | None = None
    valid_counts: Counts | None = None

    def to_json(self) -> dict[str, float]:
        """The fields of a line of metrics.jsonl."""
        line = {
            "step": self.step,
            "loss": self.loss,
            "perplexity": losses.perplexity(self.loss),
            "bits_per_char": losses.bits_per_character(self.loss),
            "learning_rate": self.learning_rate,
            "chars_per_second": self.chars_per_second,
        }
        if self.valid_loss is not None:
            line |= {"valid_loss": self.valid_loss, "valid_perplexity": losses.perplexity(self.valid_loss)}
        for prefix, loss, counts in (("", self.loss, self.counts), ("valid_", self.valid_loss, self.valid_counts)):
            if loss is not None and counts is not None:
                line[f"{prefix}bits_per_char"] = counts.bits_per_character(loss)
                line[f"{prefix}word_perplexity"] = counts.word_perplexity(loss)
        return line


class Callback:
    """Callbacks, in the order they fire within a step; the defaults do nothing. Steps are numbered from 0."""

    def on_step(self, trainer: Trainer, step: int, loss: float) -> None:
        """An update was made; loss is that of the batch before it, in nats per character."""

    def on_summary(self, trainer: Trainer, summary: Summary) -> None:
        """A line of metrics is due."""

    def on_samples(self, trainer: Trainer, step: int, texts: list[str]) -> None:
        """Samples of the model were drawn."""

    def on_checkpoint(self, trainer: Trainer) -> None:
        """Save `trainer.snapshot()` now: a checkpoint is due, or the loop is done or stopped."""

    def on_end(self, trainer: Trainer) -> None:
        """The loop has ended, done or stopped."""


@dataclass(frozen=True)
class Snapshot:
    """Everything the next step depends on: arrays by name, and JSON values."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


# --- the loop ---------------------------------------------------------------------------------------------------------


class Predictor(Protocol):
    """The model interface that `evaluate` needs. States (h, c) have the batch on their second axis."""

    def loss(self, inputs: Ids, targets: Ids, state: State | None = None) -> tuple[float, State]:
        """Mean loss of targets [T, B] after inputs [T, B], and the final state."""


class Model(Predictor, Protocol):
    """The model interface that a `Trainer` needs; `CharLM` has it."""

    parameters: dict[str, Tensor]
    parameter_buffer: Tensor
    gradient_buffer: Tensor

    def zero_state(self, batch_size: int) -> State:
        """The state at the beginning of a text."""

    def loss_and_gradients(
        self, inputs: Ids, targets: Ids, state: State | None = None, *, rng: np.random.Generator | None = None
    ) -> tuple[float, State]:
        """As `loss`, and fill `gradient_buffer`; rng draws the masks.

        A model whose `cell` learns its initial state takes `resets` [T, B] too.
        """


class Trainer:
    """Truncated backpropagation through time with carried state, over contiguous streams of text.

    settings: how many steps and what is due when. clip_norm: see `losses.clip_scale`. valid_ids: text to validate on.
    draw_samples: (model, rng) -> texts. allreduce: changes the gradient buffer in place before clipping.
    counts, valid_counts: the amounts of text of the ids, where these are tokens.
    Dropout, resets and samples have separate generators, so that sampling does not change the training.
    group: processes that share the work. Each has a trainer made alike, with its own callbacks, and computes the rows
    of its shards; parameters are the same bits in all of them, for any number of processes. A snapshot holds the
    carried state of every row only within `on_checkpoint`.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        schedule: Schedule,
        batches: Batches,
        settings: TrainingConfig,
        *,
        dropout_rng: np.random.Generator,
        reset_rng: np.random.Generator,
        sample_rng: np.random.Generator,
        clip_norm: float = 0.0,
        valid_ids: Ids | None = None,
        draw_samples: DrawSamples | None = None,
        callbacks: Iterable[Callback] = (),
        allreduce: AllReduce | None = None,
        counts: Counts | None = None,
        valid_counts: Counts | None = None,
        group: Group | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.settings = settings
        self.callbacks = list(callbacks)
        self.step = 0
        """Updates made so far."""
        self.counts, self._valid_counts = counts, valid_counts
        self._schedule = schedule
        self._batches = batches
        self._clip_norm = clip_norm
        self._valid_ids = valid_ids
        self._draw_samples = draw_samples
        self._allreduce = allreduce
        self._rngs = {"dropout": dropout_rng, "reset": reset_rng, "sample": sample_rng}
        self._group: Group = group or Lone()
        shards = settings.shards or self._group.size
        self._gradient_sum, self._loss_sums = TreeSum(self._group, shards), TreeSum(self._group, shards)
        self._rows = [self._gradient_sum.rows(shard, settings.batch_size) for shard in self._gradient_sum.mine]
        self._state = model.zero_state(settings.batch_size)
        # Rows then begin by a reset of the model, through which a gradient reaches the learnt states.
        self._learns_initial_state = bool(getattr(getattr(model, "cell", None), "learn_initial_state", False))
        self._loss_sum, self._loss_count = 0.0, 0  # since the last summary
        self._seconds, self._characters = 0.0, 0  # likewise, but not in the snapshot: a resumed run has its own speed
        self._stopping = self._all_stop = False  # this process was asked to stop; all know that one was
        self._kept_step = -1
        optimizer.init(model.parameter_buffer)

    @property
    def done(self) -> bool:
        """Whether all steps are complete."""
        return self.step >= self.settings.steps

    @property
    def characters_per_id(self) -> float:
        """The mean length of a token of the training text; 1 where ids are characters."""
        return self.counts.characters / self.counts.tokens if self.counts else 1.0

    def stop(self) -> None:
        """Leave the loop after the current step, or before the first. Safe in a signal handler.

        With processes one of them is enough, and the loop may make one more step.
        """
        self._stopping = True

    def run(self) -> bool:
        """Train until all steps are complete or `stop` is called; whether they are. A stopped loop can be run again."""
        if self._group.size > 1:
            self._all_stop = bool(gather_arrays(self._group, np.array([self._stopping])).any())
        while not (self.done or (self._stopping if self._group.size == 1 else self._all_stop)):
            self._make_step()
        self._stopping = self._all_stop = False
        self._keep()
        for callback in self.callbacks:
            callback.on_end(self)
        return self.done

    def seconds_per_step(self, seconds: float) -> float:
        """Seconds that a step takes, measured by training for about `seconds` and going back to where it was."""
        before = self.snapshot()
        durations: list[float] = []
        started = time.perf_counter()
        while broadcast(self._group, len(durations) < _MEASURED_STEPS or time.perf_counter() - started < seconds):
            begun = time.perf_counter()
            self._update(self.step)
            durations.append(time.perf_counter() - begun)
        self.restore(before)
        self._seconds, self._characters = 0.0, 0
        return statistics.median(durations[1:])  # the first step allocates

    def seconds_per_validation(self) -> float:
        """Seconds that a validation takes, measured by one; 0 without text to validate on."""
        started = time.perf_counter()
        if self._valid_ids is not None:
            evaluate(self.model, self._valid_ids)
        return time.perf_counter() - started

    def _make_step(self) -> None:
        step, every = self.step, self.settings
        loss, learning_rate = self._update(step)
        self.step = step + 1
        for callback in self.callbacks:
            callback.on_step(self, step, loss)
        validating = self._valid_ids is not None and (_is_due(step, every.validate_every) or self.done)
        if validating or _is_due(step, every.summary_every) or self.done:
            self._summarize(step, learning_rate, validating)
        if self._draw_samples and every.sample_every and (_is_due(step, every.sample_every) or self.done):
            texts = self._draw_samples(self.model, self._rngs["sample"])
            for callback in self.callbacks:
                callback.on_samples(self, step, texts)
        if _is_due(self.step, every.checkpoint_every):
            self._keep()

    def _update(self, step: int) -> tuple[float, float]:
        """One batch, or `accumulate` of them, and one update: its loss and learning rate."""
        started = time.perf_counter()
        loss = self._compute_gradients()
        gradients = self.model.gradient_buffer
        if self._allreduce:
            self._allreduce(gradients)
        mean = 1.0 / (self._gradient_sum.shards * self.settings.accumulate)  # of the sum that the buffer holds
        try:
            scale = losses.clip_scale(global_norm(gradients) * mean, self._clip_norm) * mean
        except ValueError as error:  # not finite, then in every process
            raise error if self._group.size == 1 else FailedTogether(str(error)) from error
        learning_rate = self._schedule(step)
        self.optimizer.update(self.model.parameter_buffer, gradients, learning_rate=learning_rate, gradient_scale=scale)
        self._loss_sum += loss
        self._loss_count += 1
        self._characters += self.settings.characters_per_step
        self._seconds += time.perf_counter() - started
        return loss, learning_rate

    def _compute_gradients(self) -> float:
        """Fill the gradient buffer with the sum over all shards and batches of a step; return the mean loss.

        Batches, resets and dropout are drawn for the whole batch in every process, so that no number depends on which
        of them computes it.
        """
        shards, accumulate = self._gradient_sum.shards, self.settings.accumulate
        if shards == accumulate == 1:
            inputs, targets = self._batches.next()
            loss, self._state = self._gradients_from(
                self._state, self._draw_resets(), inputs, targets, self._rngs["dropout"]
            )
            return loss
        batches = [
            (*self._batches.next(), self._draw_resets(number), self._draw_key()) for number in range(accumulate)
        ]
        sums = np.zeros(2)
        for shard, rows in zip(self._gradient_sum.mine, self._rows, strict=True):
            loss = self._shard_gradients(shard, rows, batches)
            self._gradient_sum.add(self.model.gradient_buffer)
            sums = np.array([loss, self._stopping])
            self._loss_sums.add(sums)
        self._all_stop = bool(sums[1] > 0)
        return float(sums[0]) / (shards * accumulate)

    def _shard_gradients(self, shard: int, rows: slice, batches: list[tuple[Any, ...]]) -> float:
        """Fill the gradient buffer with a shard's sum over the batches, advance its state; return its sum of losses."""
        gradients, total = self.model.gradient_buffer, 0.0
        state: Any = tuple(np.ascontiguousarray(values[:, rows]) for values in self._state)
        for number, (inputs, targets, begun, key) in enumerate(batches):
            if number:
                before = gradients.copy()
            loss, state = self._gradients_from(
                state, None if begun is None else begun[rows],
                np.ascontiguousarray(inputs[:, rows]), np.ascontiguousarray(targets[:, rows]),
                np.random.default_rng([key, shard]),
            )
            total += loss
            if number:
                gradients += before
        for values, mine in zip(self._state, state, strict=True):
            values[:, rows] = mine
        return total

    def _gradients_from(
        self, state: Any, begun: npt.NDArray[np.bool_] | None, inputs: Ids, targets: Ids, rng: np.random.Generator
    ) -> tuple[float, State]:
        """The model's `loss_and_gradients` from the carried state, of which rows may begin again."""
        if self._learns_initial_state:
            resets = np.zeros(inputs.shape, bool)
            resets[0] = False if begun is None else begun
            model: Any = self.model
            result: tuple[float, State] = model.loss_and_gradients(inputs, targets, state, rng=rng, resets=resets)
            return result
        if begun is not None:
            for values in state:
                values[:, begun] = 0
        return self.model.loss_and_gradients(inputs, targets, state, rng=rng)

    def _draw_resets(self, number: int = 0) -> npt.NDArray[np.bool_] | None:
        """The rows of a step's batch of this number that begin without the carried state."""
        rate, size = self.settings.reset_rate, self.settings.batch_size
        begun = self._rngs["reset"].random(size) < rate if rate else None
        first = self._learns_initial_state and self.step == number == 0
        return np.ones(size, bool) if first else begun

    def _draw_key(self) -> int:
        """What the dropout of a batch follows from, together with the shard."""
        return int(self._rngs["dropout"].integers(1 << 63))

    def _summarize(self, step: int, learning_rate: float, validating: bool) -> None:
        valid_loss = evaluate(self.model, self._valid_ids) if validating and self._valid_ids is not None else None
        speed = round(self._characters * self.characters_per_id / self._seconds) if self._seconds else 0
        loss = self._loss_sum / self._loss_count
        summary = Summary(step, loss, learning_rate, speed, valid_loss, self.counts, self._valid_counts)
        self._loss_sum, self._loss_count = 0.0, 0
        self._seconds, self._characters = 0.0, 0
        for callback in self.callbacks:
            callback.on_summary(self, summary)

    def _keep(self) -> None:
        """Request a checkpoint unless this step already has one."""
        if self._kept_step != self.step:
            self._gather_state()
            for callback in self.callbacks:
                callback.on_checkpoint(self)
            self._kept_step = self.step

    def _gather_state(self) -> None:
        """Complete the carried state with the rows of the other processes."""
        if self._group.size > 1:
            mine = slice(self._rows[0].start, self._rows[-1].stop)
            for values in self._state:
                parts = gather_arrays(self._group, np.ascontiguousarray(values[:, mine]))
                values[...] = np.concatenate(list(parts), axis=1)

    def snapshot(self) -> Snapshot:
        """Copies of everything the next step depends on."""
        h, c = self._state
        tensors = {name: values.copy() for name, values in self.model.parameters.items()}
        tensors |= {checkpoint.OPTIMIZER + name: slot.copy() for name, slot in self.optimizer.slots.items()}
        tensors |= {checkpoint.STATE + "h": h.copy(), checkpoint.STATE + "c": c.copy()}
        progress = {
            "step": self.step,
            "optimizer_steps": self.optimizer.step_count,
            "position": self._batches.position,
            "loss_sum": self._loss_sum,
            "loss_count": self._loss_count,
            "rngs": {name: rng.bit_generator.state for name, rng in self._rngs.items()},
        }
        return Snapshot(tensors, progress)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot. Raises ValueError naming a tensor that does not fit this model or optimizer."""
        h, c = (values.copy() for values in self._state)
        slots = {checkpoint.OPTIMIZER + name: slot for name, slot in self.optimizer.slots.items()}
        mine = {**self.model.parameters, **slots, checkpoint.STATE + "h": h, checkpoint.STATE + "c": c}
        checkpoint.copy_tensors(snapshot.tensors, mine)
        progress = snapshot.progress
        self._state = (h, c)
        self.step = progress["step"]
        self.optimizer.step_count = progress["optimizer_steps"]
        self._batches.position = progress["position"]
        self._loss_sum, self._loss_count = progress["loss_sum"], progress["loss_count"]
        for name, rng in self._rngs.items():
            rng.bit_generator.state = progress["rngs"][name]


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def evaluate(model: Predictor, ids: Ids) -> float:
    """Mean loss in nats of every character of `ids` except the first, each given all previous ones.

    A long text is cut into up to 64 streams of at least 4,096 characters read in parallel, so a stream's first
    characters have less context. Raises ValueError if there are fewer than 2 characters.
    """
    check.unmasked("ids", ids)
    if len(ids) < 2:
        raise ValueError(f"a text to validate on must have at least 2 characters, got {len(ids)}")
    streams = min(max((len(ids) - 1) // 4096, 1), 64)
    length = (len(ids) - 1) // streams
    starts = np.arange(streams) * length
    total, state = 0.0, None
    for first in range(0, length, 256):
        count = min(256, length - first)
        window = np.asarray(ids[(starts + np.arange(first, first + count + 1)[:, None])], np.int32)
        loss, state = model.loss(window[:-1], window[1:], state)
        total += loss * count * streams
    rest = np.asarray(ids[streams * length :], np.int32)[:, None]
    if len(rest) > 1 and state is not None:  # the remainder, continuing the last stream
        h, c = (np.ascontiguousarray(values[:, -1:]) for values in state)
        total += model.loss(rest[:-1], rest[1:], (h, c))[0] * (len(rest) - 1)
    return total / (len(ids) - 1)
