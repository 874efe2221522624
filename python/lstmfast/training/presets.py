"""The presets: `stdlib` derives every setting from the size of the text and the time given, `udacity` is fixed.

docs/training.md has the experiments behind the numbers. Refuses to measure the speed of a machine (see `recipe.timed`):
the same text, minutes and flags give the same settings everywhere, except for the number of steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from lstmfast.training.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainingConfig

STDLIB_CHARACTERS = 8_800_000  # of Python 3.11; other versions differ by a few percent
_VALIDATED_CHARACTERS = 500_000  # more would take a noticeable part of a short run

# Minutes up to which this many units are best; see docs/training.md.
_UNITS_BY_MINUTES = ((1.0, 256), (5.0, 384), (20.0, 512), (60.0, 768))
_UNITS_OF_LONG_RUNS = 1024
_MOST_WEIGHTS_A_CHARACTER = 0.64  # in the recurrent kernel; more learn a short text by heart

_CHARACTERS_A_MINUTE = 8_000_000  # that two cores of a current CPU train on, with 384 units
# Passes over the text from which this much dropout is best.
_DROPOUT_BY_PASSES = ((10.0, 0.5), (3.0, 0.3))
_DECAY_BESIDE_DROPOUT = 0.1


PRESETS: Mapping[str, Config] = {
    "stdlib": Config(),
    "udacity": Config(
        preset="udacity",
        data=DataConfig(vocabulary="udacity", valid_first=1000, valid_fraction=0.0),
        model=ModelConfig(
            hidden_size=64, forget_bias=0.0, initializer="truncated-normal", matmul_precision="highest"
        ),
        optimizer=OptimizerConfig(
            optimizer="sgd", learning_rate=10.0, schedule="exponential", decay_rate=0.1, decay_steps=5000,
            staircase=True, clip_norm=1.25,
        ),
        training=TrainingConfig(
            steps=7001, batch_size=64, unroll=10, reset_rate=0.0, summary_every=100, validate_every=100,
            sample_every=1000, sample_count=5, sample_length=80, sample_temperature=1.0, checkpoint_every=1000,
        ),
    ),
}
"""`stdlib`: learns Python's standard library in two minutes; `udacity`: the classic 6_lstm notebook."""


def preset(
    name: str, *, characters: int = STDLIB_CHARACTERS, minutes: float = 2.0, hidden_size: int = 0, steps: int = 0
) -> Config:
    """The preset of this name. `stdlib` is derived from the other arguments, `udacity` does not depend on them.

    characters: length of the text. minutes: those of training, or 2 if only the steps are known. hidden_size: units
    if they are not to be chosen. steps: updates in all, if known, for the intervals of reports; 0 leaves them as in
    `Config()`. Raises ValueError listing the names if there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    if name != "stdlib":
        return PRESETS[name]
    hidden_size = hidden_size or _units(characters, minutes)
    training = TrainingConfig(minutes=minutes, steps=steps, batch_size=_streams(characters))
    if steps:
        training = dataclasses.replace(
            training,
            summary_every=_interval(steps // 40, 10, 1000),
            validate_every=_interval(steps // 4, 100, 10_000),
            sample_every=_interval(steps // 4, 100, 10_000),
            checkpoint_every=_interval(steps // 8, 100, 1000),
        )
    dropout = _dropout(characters, minutes)
    return Config(
        data=DataConfig(valid_fraction=min(0.05, _VALIDATED_CHARACTERS / max(characters, 1))),
        model=ModelConfig(hidden_size=hidden_size, dropout=dropout),
        optimizer=OptimizerConfig(
            learning_rate=round(4 / max(hidden_size, 200), 4), weight_decay=_DECAY_BESIDE_DROPOUT if dropout else 0.0
        ),
        training=training,
    )


def _units(characters: int, minutes: float) -> int:
    """As many as the minutes pay for and the text can teach."""
    sizes = [units for _, units in _UNITS_BY_MINUTES] + [_UNITS_OF_LONG_RUNS]
    learnable = max(math.sqrt(_MOST_WEIGHTS_A_CHARACTER * characters / 4), sizes[0])
    affordable = next((units for most, units in _UNITS_BY_MINUTES if minutes <= most), _UNITS_OF_LONG_RUNS)
    return max(units for units in sizes if units <= min(affordable, learnable))


def _dropout(characters: int, minutes: float) -> float:
    passes = minutes * _CHARACTERS_A_MINUTE / max(characters, 1)
    return next((rate for least, rate in _DROPOUT_BY_PASSES if passes >= least), 0.0)


def _streams(characters: int) -> int:
    """32 parallel streams, or fewer for a text so short that they would be shorter than four steps."""
    return min(max(characters // (4 * 64), 1), 32)


def _interval(wanted: int, least: int, most: int) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, ... up to `wanted`, but between `least` and `most`."""
    wanted = min(max(wanted, least), most)
    power: int = 10 ** (len(str(wanted)) - 1)
    return next(factor for factor in (5, 2, 1) if factor * power <= wanted) * power
