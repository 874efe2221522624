"""Training under its public name: the loop is in `training.trainer`, what builds it in `training.recipe`."""

from lstmfast.training.recipe import make_model, make_trainer
from lstmfast.training.trainer import Callback, Snapshot, Summary, Trainer, evaluate

__all__ = ["Callback", "Snapshot", "Summary", "Trainer", "evaluate", "make_model", "make_trainer"]
