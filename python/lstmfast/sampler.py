"""Sampling under its public name; it is written in `training.sampler`."""

from lstmfast.training.sampler import Sampler

__all__ = ["Sampler"]
