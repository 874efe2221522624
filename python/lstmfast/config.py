"""The settings of a run, under their public name; they are written in `training.config` and `training.presets`."""

from lstmfast.training.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    changed_settings,
)
from lstmfast.training.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "Config",
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainingConfig",
    "changed_settings",
    "preset",
]
