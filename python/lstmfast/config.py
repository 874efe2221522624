"""The settings of a run, under their public name; they are written in `training.config`."""

from lstmfast.training.config import (
    PRESETS,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    changed_settings,
    preset,
)

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
