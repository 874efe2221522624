"""Settings: what the presets are, and that no wrong value gets past the object it belongs to. No training here."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from typing import Any

import pytest

from lstmfast import optimizers, schedules
from lstmfast.config import (
    PRESETS,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    changed_settings,
    preset,
)


def test_default_settings_are_the_stdlib_preset() -> None:
    assert preset("stdlib") == Config()


@pytest.mark.parametrize(
    ("minutes", "units"), [(0.5, 256), (2.0, 384), (10.0, 512), (60.0, 768), (600.0, 1024)]
)
def test_longer_runs_get_larger_models(minutes: float, units: int) -> None:
    assert preset("stdlib", minutes=minutes).model.hidden_size == units


@pytest.mark.parametrize(("characters", "units"), [(1000, 256), (1_115_394, 384), (4_000_000, 768), (8_800_000, 1024)])
def test_shorter_texts_get_smaller_models_however_long_they_train(characters: int, units: int) -> None:
    assert preset("stdlib", characters=characters, minutes=600.0).model.hidden_size == units


@pytest.mark.parametrize(
    ("characters", "minutes", "dropout"),
    [(8_800_000, 2.0, 0.0), (8_800_000, 5.0, 0.3), (1_100_000, 2.0, 0.5), (1_100_000, 0.3, 0.0), (10**9, 60.0, 0.0)],
)
def test_a_text_that_is_read_many_times_gets_dropout_and_decay(
    characters: int, minutes: float, dropout: float
) -> None:
    config = preset("stdlib", characters=characters, minutes=minutes)
    assert (config.model.dropout, config.optimizer.weight_decay) == (dropout, 0.1 if dropout else 0.0)


def test_a_short_text_gets_fewer_streams() -> None:
    assert [preset("stdlib", characters=count).training.batch_size for count in (10, 1000, 10_000)] == [1, 3, 32]


def test_learning_rate_falls_with_the_units_given() -> None:
    rates = [preset("stdlib", hidden_size=units).optimizer.learning_rate for units in (8, 400, 800)]
    assert rates == [0.02, 0.01, 0.005]


def test_a_huge_text_is_not_validated_on_more_than_half_a_million_characters() -> None:
    assert preset("stdlib", characters=1_000_000_000).data.valid_fraction * 1e9 == pytest.approx(500_000)


@pytest.mark.parametrize(
    ("steps", "intervals"), [(8200, (200, 2000, 2000, 1000)), (1000, (20, 200, 200, 100)), (1, (10, 100, 100, 100))]
)
def test_reports_are_spread_over_the_steps(steps: int, intervals: tuple[int, ...]) -> None:
    training = preset("stdlib", steps=steps).training
    assert (
        training.summary_every, training.validate_every, training.sample_every, training.checkpoint_every
    ) == intervals


def test_udacity_preset_is_the_classic_notebook() -> None:
    config = preset("udacity")
    asked = {
        "vocabulary": "udacity", "valid_first": 1000, "valid_fraction": 0.0,
        "hidden_size": 64, "num_layers": 1, "embedding_size": 0, "forget_bias": 0.0, "initializer": "truncated-normal",
        "optimizer": "sgd", "learning_rate": 10.0, "schedule": "exponential", "decay_rate": 0.1, "decay_steps": 5000,
        "staircase": True, "clip_norm": 1.25,
        "steps": 7001, "batch_size": 64, "unroll": 10, "summary_every": 100, "sample_every": 1000, "sample_count": 5,
        "sample_length": 80,
    }
    values = {name: value for group in dataclasses.asdict(config).values() if isinstance(group, dict)
              for name, value in group.items()}
    assert {name: values[name] for name in asked} == asked


def test_udacity_learning_rate_falls_to_a_tenth_at_step_5000() -> None:
    schedule = preset("udacity").optimizer.make_schedule(7001)
    assert [schedule(0), schedule(4999), schedule(5000)] == [10.0, 10.0, 1.0]


def test_unknown_preset_error_lists_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"preset must be one of stdlib, udacity, got 'text8'"):
        preset("text8")


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        (OptimizerConfig, "learning_rate", math.nan),
        (OptimizerConfig, "learning_rate", 0.0),
        (OptimizerConfig, "learning_rate", "fast"),
        (OptimizerConfig, "optimizer", "newton"),
        (OptimizerConfig, "schedule", "step"),
        (OptimizerConfig, "warmup_steps", -1),
        (OptimizerConfig, "final_fraction", 1.5),
        (OptimizerConfig, "decay_rate", 0.0),
        (OptimizerConfig, "decay_steps", 0),
        (OptimizerConfig, "clip_norm", math.inf),
        (OptimizerConfig, "momentum", 1.0),
        (OptimizerConfig, "weight_decay", -0.1),
        (ModelConfig, "hidden_size", 0),
        (ModelConfig, "hidden_size", 1.5),
        (ModelConfig, "num_layers", 0),
        (ModelConfig, "embedding_size", -1),
        (ModelConfig, "dropout", 1.0),
        (ModelConfig, "forget_bias", math.nan),
        (ModelConfig, "recurrent_dropout", 1.0),
        (ModelConfig, "recurrent_dropout_of", "c"),
        (ModelConfig, "weight_dropout", -0.1),
        (ModelConfig, "layer_norm_of", "all"),
        (ModelConfig, "layer_norm_epsilon", 0.0),
        (ModelConfig, "dtype", "float16"),
        (ModelConfig, "matmul_precision", "low"),
        (DataConfig, "vocabulary", "syllables"),
        (DataConfig, "vocabulary_size", 1),
        (ModelConfig, "tied", 1),
        (DataConfig, "fold", 1),
        (DataConfig, "encoding", 8),
        (DataConfig, "expected_bytes", -1),
        (DataConfig, "valid_first", -1),
        (DataConfig, "valid_fraction", 1.0),
        (TrainingConfig, "steps", -1),
        (TrainingConfig, "minutes", 0.0),
        (TrainingConfig, "steps", True),
        (TrainingConfig, "batch_size", 0),
        (TrainingConfig, "unroll", 0),
        (TrainingConfig, "seed", -1),
        (TrainingConfig, "summary_every", -1),
        (TrainingConfig, "sample_temperature", -0.5),
    ],
)
def test_wrong_value_is_refused_by_an_error_that_names_the_setting(group: type[Any], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value!r}$"):
        group(**{name: value})


@pytest.mark.parametrize("zoneout", [(1.0,), (0.1, -0.1), (0.1, 0.2, 0.3)])
def test_zoneout_is_one_rate_or_two(zoneout: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="^zoneout must be one or two numbers, at least 0 and below 1, got"):
        ModelConfig(zoneout=zoneout)
    assert ModelConfig(zoneout=(0.1,)).cell.zoneout == (0.1, 0.1)


def test_layer_norm_and_coupled_gates_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="layer_norm must be false where gates are coupled, got True"):
        ModelConfig(layer_norm=True, coupled_gates=True)


def test_validation_part_cannot_be_given_twice() -> None:
    with pytest.raises(ValueError, match="valid_fraction must be 0 where valid_first is given"):
        DataConfig(valid_first=1000, valid_fraction=0.05)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().hidden_size = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", PRESETS)
def test_settings_come_back_from_json_as_they_were(name: str) -> None:
    config = dataclasses.replace(
        preset(name), text=("a.txt", "https://example.org/b.zip"), model=ModelConfig(zoneout=(0.1, 0.2))
    )
    assert Config.from_json(config.to_json()) == config


def test_json_without_a_setting_is_refused_by_its_name() -> None:
    values = json.loads(Config().to_json())
    del values["model"]["hidden_size"]
    with pytest.raises(ValueError, match="hidden_size is missing from ModelConfig"):
        Config.from_json(json.dumps(values))


def test_json_with_an_unknown_setting_is_refused_by_its_name() -> None:
    values = json.loads(Config().to_json())
    values["model"]["hiden_size"] = 3
    with pytest.raises(ValueError, match="hiden_size is not a setting of ModelConfig"):
        Config.from_json(json.dumps(values))


def test_json_with_a_value_of_another_type_is_refused_by_its_name() -> None:
    values = json.loads(Config().to_json())
    values["training"]["steps"] = "many"
    with pytest.raises(ValueError, match="steps must be a whole number, got 'many'"):
        Config.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["[]", "3", "{", '{"model": []}'])
def test_json_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Config.from_json(text)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", optimizers.SGD),
        ("momentum", optimizers.Momentum),
        ("rmsprop", optimizers.RMSprop),
        ("adam", optimizers.Adam),
    ],
)
def test_optimizer_is_the_one_named(name: Any, kind: type[optimizers.Optimizer]) -> None:
    assert type(OptimizerConfig(optimizer=name).make_optimizer()) is kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("constant", schedules.Constant),
        ("exponential", schedules.ExponentialDecay),
        ("cosine", schedules.CosineWithWarmup),
    ],
)
def test_schedule_is_the_one_named(name: Any, kind: type[Any]) -> None:
    assert type(OptimizerConfig(schedule=name).make_schedule(1000)) is kind


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_warmup_longer_than_the_run_still_gives_a_schedule(steps: int) -> None:
    schedule = OptimizerConfig(schedule="cosine", warmup_steps=100).make_schedule(steps)
    assert all(schedule(step) > 0 for step in range(steps))


@pytest.mark.parametrize(
    "config", [*PRESETS.values(), DataConfig(), ModelConfig(), OptimizerConfig(), TrainingConfig()]
)
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_settings_can_be_copied_and_pickled(config: Any, again: Any) -> None:
    assert again(config) == config


def test_changed_settings_are_named_without_their_group() -> None:
    config = dataclasses.replace(Config(), model=ModelConfig(hidden_size=7))
    assert changed_settings(Config(), config) == {"hidden_size": (384, 7)}
