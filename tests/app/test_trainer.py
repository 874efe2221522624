"""The event loop: what it tells, when, and that listening and sampling change nothing of the training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmfast import CharLM
from lstmfast.config import TrainingConfig
from lstmfast.data import Batches
from lstmfast.optimizers import SGD, Adam
from lstmfast.schedules import Constant, ExponentialDecay
from lstmfast.trainer import Callback, Summary, Trainer, evaluate

VOCAB_SIZE = 5
SETTINGS = TrainingConfig(
    steps=10, batch_size=3, unroll=4, summary_every=4, validate_every=0, sample_every=5, checkpoint_every=3
)
IDS = np.tile(np.arange(VOCAB_SIZE, dtype=np.uint8), 40)


class Listener(Callback):
    """Writes down all it is told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.summaries: list[Summary] = []
        self.sampled: list[int] = []
        self.checkpoints: list[int] = []
        self.steps: list[int] = []
        self.ends = 0

    def on_step(self, trainer: Trainer, step: int, loss: float) -> None:
        self.steps.append(step)
        self.losses.append(loss)

    def on_summary(self, trainer: Trainer, summary: Summary) -> None:
        self.summaries.append(summary)

    def on_samples(self, trainer: Trainer, step: int, texts: list[str]) -> None:
        self.sampled.append(step)

    def on_checkpoint(self, trainer: Trainer) -> None:
        self.checkpoints.append(trainer.step)

    def on_end(self, trainer: Trainer) -> None:
        self.ends += 1


class StopAfter(Callback):
    """Asks the trainer to stop in the middle of a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, trainer: Trainer, step: int, loss: float) -> None:
        if step == self._step:
            trainer.stop()


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def make_trainer(listener: Listener) -> Callable[..., Trainer]:
    """Trainers that start alike; settings as keywords, what else there is in `options`."""

    def make(options: dict[str, Any] | None = None, **settings: Any) -> Trainer:
        model = CharLM(VOCAB_SIZE, 6, dropout=0.2, rng=np.random.default_rng(1))
        changed = dataclasses.replace(SETTINGS, **settings)
        given: dict[str, Any] = {"optimizer": Adam(), "schedule": Constant(0.05), "callbacks": [listener]}
        given |= {f"{use}_rng": np.random.default_rng(2 + k) for k, use in enumerate(("dropout", "reset", "sample"))}
        given |= options or {}
        return Trainer(model, batches=Batches(IDS, changed.batch_size, changed.unroll), settings=changed, **given)

    return make


Make = Callable[..., Trainer]


def carried_states(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray[Any, Any]]:
    """The h with which each step of the trainer begins, kept while it runs."""
    seen: list[np.ndarray[Any, Any]] = []
    compute = trainer.model.loss_and_gradients

    def watch(inputs: Any, targets: Any, state: Any, **options: Any) -> Any:
        seen.append(state[0].copy())
        return compute(inputs, targets, state, **options)

    monkeypatch.setattr(trainer.model, "loss_and_gradients", watch)
    trainer.run()
    return seen


def test_without_resets_every_place_goes_on_from_its_state(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    states = carried_states(make_trainer(reset_rate=0.0), monkeypatch)
    assert all(state.any(axis=(0, 2)).all() for state in states[1:])


def test_the_reset_rate_is_the_share_of_places_that_begin_with_zeros(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = carried_states(make_trainer(reset_rate=0.25, steps=400, sample_every=0), monkeypatch)
    begun_anew = np.mean([~state.any(axis=(0, 2)) for state in states[1:]])
    assert 0.2 < begun_anew < 0.3


def test_a_text_that_repeats_is_learnt(make_trainer: Make, listener: Listener) -> None:
    make_trainer(steps=150).run()
    assert np.mean(listener.losses[-10:]) < 0.3 * listener.losses[0]


def test_every_step_is_told_once_and_in_order(make_trainer: Make, listener: Listener) -> None:
    make_trainer().run()
    assert listener.steps == list(range(10))


def test_summaries_come_every_so_often_and_at_the_last_step(make_trainer: Make, listener: Listener) -> None:
    make_trainer().run()
    assert [summary.step for summary in listener.summaries] == [0, 4, 8, 9]


def test_summary_loss_is_the_mean_since_the_summary_before(make_trainer: Make, listener: Listener) -> None:
    make_trainer().run()
    means = [np.mean(listener.losses[first:end]) for first, end in ((0, 1), (1, 5), (5, 9), (9, 10))]
    assert [summary.loss for summary in listener.summaries] == pytest.approx(means, rel=1e-12)


def test_without_an_interval_there_is_one_summary_at_the_end(make_trainer: Make, listener: Listener) -> None:
    make_trainer(summary_every=0).run()
    assert [summary.step for summary in listener.summaries] == [9]


def test_summary_tells_the_learning_rate_of_its_step(make_trainer: Make, listener: Listener) -> None:
    make_trainer({"schedule": ExponentialDecay(0.1, 0.5, 1)}).run()
    assert [summary.learning_rate for summary in listener.summaries] == [0.1 * 0.5**step for step in (0, 4, 8, 9)]


def test_a_line_of_metrics_has_exactly_these_fields() -> None:
    line = Summary(7, math.log(8), 0.1, 1000, valid_loss=math.log(4)).to_json()
    assert line == pytest.approx(
        {
            "step": 7, "loss": math.log(8), "perplexity": 8.0, "bits_per_char": 3.0, "learning_rate": 0.1,
            "chars_per_second": 1000, "valid_loss": math.log(4), "valid_perplexity": 4.0,
        }
    )


def test_a_line_without_validation_says_nothing_of_it() -> None:
    assert not {"valid_loss", "valid_perplexity"} & Summary(7, 1.0, 0.1, 1000).to_json().keys()


def test_validation_comes_every_so_often_and_at_the_last_step(make_trainer: Make, listener: Listener) -> None:
    make_trainer({"valid_ids": IDS[:50]}, validate_every=3).run()
    assert [summary.step for summary in listener.summaries if summary.valid_loss is not None] == [0, 3, 6, 9]


def test_samples_come_every_so_often_and_at_the_last_step(make_trainer: Make, listener: Listener) -> None:
    make_trainer({"draw_samples": lambda model, rng: ["text"]}).run()
    assert listener.sampled == [0, 5, 9]


def test_checkpoints_come_every_so_often_and_at_the_end(make_trainer: Make, listener: Listener) -> None:
    make_trainer().run()
    assert listener.checkpoints == [3, 6, 9, 10]


def test_a_checkpoint_that_is_due_at_the_end_comes_once(make_trainer: Make, listener: Listener) -> None:
    make_trainer(steps=9).run()
    assert listener.checkpoints == [3, 6, 9]


def test_the_end_is_told_once(make_trainer: Make, listener: Listener) -> None:
    make_trainer().run()
    assert listener.ends == 1


def test_nothing_is_printed(make_trainer: Make, capfd: pytest.CaptureFixture[str]) -> None:
    make_trainer({"valid_ids": IDS[:50], "draw_samples": lambda model, rng: ["text"]}).run()
    assert capfd.readouterr() == ("", "")


def test_a_stopped_trainer_finishes_its_step_and_keeps_it(make_trainer: Make, listener: Listener) -> None:
    trainer = make_trainer({"callbacks": [listener, StopAfter(4)]})
    assert (trainer.run(), trainer.step, listener.checkpoints, listener.ends) == (False, 5, [3, 5], 1)


def test_a_stopped_trainer_that_runs_again_ends_as_one_never_stopped(make_trainer: Make, listener: Listener) -> None:
    straight, stopped = make_trainer(), make_trainer({"callbacks": [StopAfter(4)]})
    straight.run()
    stopped.run()
    stopped.run()
    assert stopped.model.parameter_buffer.tobytes() == straight.model.parameter_buffer.tobytes()


def test_a_trainer_told_to_stop_before_it_runs_makes_no_step(make_trainer: Make) -> None:
    trainer = make_trainer()
    trainer.stop()
    assert (trainer.run(), trainer.step) == (False, 0)


def test_samples_and_validation_do_not_change_the_training(make_trainer: Make) -> None:
    def draw(model: CharLM, rng: np.random.Generator) -> list[str]:
        model.stream(2).step(rng.integers(0, VOCAB_SIZE, 2).astype(np.int32))
        return []

    plain, busy = make_trainer(), make_trainer({"draw_samples": draw, "valid_ids": IDS}, validate_every=1)
    plain.run()
    busy.run()
    assert busy.model.parameter_buffer.tobytes() == plain.model.parameter_buffer.tobytes()


def test_allreduce_changes_the_gradients_that_are_applied(make_trainer: Make) -> None:
    def to_zero(gradients: Any) -> None:
        gradients[:] = 0

    trainer = make_trainer({"optimizer": SGD(), "allreduce": to_zero})
    before = trainer.model.parameter_buffer.copy()
    trainer.run()
    assert trainer.model.parameter_buffer.tobytes() == before.tobytes()


def test_two_workers_that_share_gradients_stay_alike(make_trainer: Make) -> None:
    """One worker's gradients are kept and given to the other: both must then make the same updates."""
    kept: list[Any] = []

    def give(gradients: Any) -> None:
        gradients[:] = kept.pop(0)

    first = make_trainer({"optimizer": SGD(), "allreduce": lambda gradients: kept.append(gradients.copy())})
    second = make_trainer({"optimizer": SGD(), "allreduce": give, "dropout_rng": np.random.default_rng(99)})
    first.run()
    second.run()
    assert second.model.parameter_buffer.tobytes() == first.model.parameter_buffer.tobytes()


def test_clipped_update_is_as_long_as_learning_rate_times_clip_norm(make_trainer: Make) -> None:
    trainer = make_trainer({"optimizer": SGD(), "schedule": Constant(0.5), "clip_norm": 1e-3}, steps=1)
    before = trainer.model.parameter_buffer.astype(np.float64)
    trainer.run()
    assert np.linalg.norm(trainer.model.parameter_buffer - before) == pytest.approx(0.5e-3, rel=1e-3)


def test_gradients_that_are_no_numbers_end_the_training_with_advice(make_trainer: Make) -> None:
    def spoil(gradients: Any) -> None:
        gradients[0] = np.nan

    with pytest.raises(ValueError, match="lower the learning rate"):
        make_trainer({"allreduce": spoil}).run()


@pytest.mark.parametrize("step", [1, 4, 5, 9])
def test_a_trainer_restored_from_a_snapshot_ends_as_the_one_it_was_taken_of(make_trainer: Make, step: int) -> None:
    draw = {"draw_samples": lambda model, rng: [str(rng.random())]}
    straight, stopped, restored = (
        make_trainer(draw),
        make_trainer(draw | {"callbacks": [StopAfter(step - 1)]}),
        make_trainer(draw),
    )
    straight.run()
    stopped.run()
    restored.restore(stopped.snapshot())
    restored.run()
    ended, wanted = restored.snapshot(), straight.snapshot()
    assert {name: values.tobytes() for name, values in ended.tensors.items()} == {
        name: values.tobytes() for name, values in wanted.tensors.items()
    }
    assert ended.progress == wanted.progress


def test_a_snapshot_is_a_copy(make_trainer: Make) -> None:
    trainer = make_trainer()
    snapshot = trainer.snapshot()
    before = {name: values.copy() for name, values in snapshot.tensors.items()}
    trainer.run()
    assert all((snapshot.tensors[name] == before[name]).all() for name in before)


def test_a_snapshot_of_another_optimizer_is_refused_by_the_tensor_it_lacks(make_trainer: Make) -> None:
    snapshot = make_trainer({"optimizer": SGD()}).snapshot()
    with pytest.raises(ValueError, match=r"it has no optimizer\.first_moment, which this model or optimizer needs"):
        make_trainer().restore(snapshot)


def test_a_snapshot_of_another_shape_is_refused_with_both_shapes(make_trainer: Make) -> None:
    trainer = make_trainer()
    snapshot = trainer.snapshot()
    snapshot.tensors["projection.bias"] = np.zeros(4, np.float32)
    with pytest.raises(
        ValueError, match=r"its projection.bias is float32 \[4\], but the settings ask for float32 \[5\]"
    ):
        trainer.restore(snapshot)


def test_evaluation_of_a_short_text_is_the_models_own_loss(rng: np.random.Generator) -> None:
    model = CharLM(VOCAB_SIZE, 6, rng=rng)
    ids = rng.integers(0, VOCAB_SIZE, 1000).astype(np.uint8)
    column = ids.astype(np.int32)[:, None]
    assert evaluate(model, ids) == pytest.approx(model.loss(column[:-1], column[1:])[0], rel=1e-6)


def test_evaluation_of_a_long_text_counts_every_character_once(rng: np.random.Generator) -> None:
    """With the recurrence cut a prediction depends on one character alone, so that streams cannot matter."""
    model = CharLM(VOCAB_SIZE, 6, rng=rng, forget_bias=-100.0)
    model.parameters["lstm.layer0.kernel"][VOCAB_SIZE:] = 0
    ids = rng.integers(0, VOCAB_SIZE, 5 * 4096 + 3).astype(np.uint8)
    column = ids.astype(np.int32)[:, None]
    assert evaluate(model, ids) == pytest.approx(model.loss(column[:-1], column[1:])[0], rel=1e-6)


def test_evaluation_of_one_character_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="at least 2 characters, got 1"):
        evaluate(CharLM(VOCAB_SIZE, 6, rng=rng), IDS[:1])
