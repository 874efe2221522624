"""Run folders under their public name: `load_model` takes the model out of one. Written in `training.run_folder`."""

from lstmfast.training.run_folder import RunFolder, load_model

__all__ = ["RunFolder", "load_model"]
