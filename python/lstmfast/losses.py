"""Softmax cross entropy, perplexity, bits per character, and gradient clipping by global norm.

Natural logarithms throughout: losses are in nats. Refuses to average over anything except the given predictions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import _core
from lstmfast._checks import Array


def softmax_cross_entropy(logits: npt.NDArray[Any], targets: npt.NDArray[Any]) -> tuple[float, Array]:
    """Return the mean of -log softmax(logits)[target], in nats, and its derivative by the logits, a new array.

    logits [..., classes], float32 or float64; targets [...], integers from 0 to classes - 1.
    Raises ValueError naming the argument, also if there are no predictions; TypeError for other dtypes.
    """
    axes = tuple(f"axis{k}" for k in range(max(np.ndim(logits) - 1, 0)))
    logits = check.array("logits", logits, (*axes, "classes"))
    classes = logits.shape[-1]
    targets = check.ids("targets", targets, classes, logits.shape[:-1], "the shape of logits without its last axis")
    if targets.size == 0:
        raise ValueError(f"logits must hold at least one prediction, got shape {logits.shape}")
    d_logits = logits.reshape(-1, classes).copy()
    loss = mean_cross_entropy_in_place(d_logits, targets.reshape(-1), np.empty(targets.size, logits.dtype))
    return loss, d_logits.reshape(logits.shape)


def mean_cross_entropy_in_place(logits: Array, targets: Array, losses: Array) -> float:
    """As `softmax_cross_entropy`, for models: arguments checked, logits [N, classes] become their derivative."""
    _core.softmax_cross_entropy(logits, targets, losses, logits, 1.0 / len(losses))
    return float(losses.sum(dtype=np.float64)) / len(losses)


def perplexity(nats: float) -> float:
    """Return exp of a mean loss in nats: the equivalent number of equally likely choices. inf past float's range."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def bits_per_character(nats: float) -> float:
    """Return a mean loss per character in bits instead of nats."""
    return nats / math.log(2.0)


def clip_scale(norm: float, max_norm: float | None) -> float:
    """Return the factor that clips a gradient of this norm to `max_norm`: min(1, max_norm/norm).

    None or 0 turns clipping off: 1.0. Raises ValueError if norm is not finite or max_norm is negative or not finite.
    Source: Pascanu, Mikolov & Bengio 2013.
    """
    if not math.isfinite(norm):
        raise ValueError(f"norm of the gradient must be finite, got {norm}: training diverged, lower the learning rate")
    limit = check.finite("max_norm", max_norm, 0.0) if max_norm is not None else 0.0
    return limit / norm if 0.0 < limit < norm else 1.0


def clip_by_global_norm(gradients: npt.NDArray[Any], max_norm: float | None) -> float:
    """Scale a contiguous 1-D gradient buffer in place so that its norm is at most `max_norm`; return the old norm."""
    gradients = check.buffer("gradients", gradients)
    norm = _core.global_norm(gradients)
    scale = clip_scale(norm, max_norm)
    if scale != 1.0:
        gradients *= scale
    return norm
