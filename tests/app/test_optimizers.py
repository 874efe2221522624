"""Losses, clipping and optimizers: the reference's arithmetic on one buffer, and settings that are refused by name."""

from __future__ import annotations

import math
import re
from typing import get_args

import numpy as np
import pytest

from lstmfast import losses, optimizers, reference
from support.tolerances import sums
from support.updates import updated_by_reference

COUNT = 37
ALL = [
    optimizers.SGD(),
    optimizers.Momentum(momentum=0.8),
    optimizers.Momentum(momentum=0.8, nesterov=True),
    optimizers.RMSprop(decay=0.9),
    optimizers.Adam(weight_decay=0.1),
]
every_optimizer = pytest.mark.parametrize("optimizer", ALL, ids=repr)


@every_optimizer
def test_three_updates_are_the_references_three_updates(rng, dtype, optimizer):
    parameters, *gradients = rng.standard_normal((4, COUNT)).astype(dtype)
    optimizer.init(parameters)
    expected, *slots = parameters, *optimizer.slots.values()
    how = {"learning_rate": 0.1, "gradient_scale": 0.5}
    for g in gradients:
        expected, *slots = updated_by_reference(optimizer, expected, g, slots, **how)
        optimizer.update(parameters, g, **how)
    np.testing.assert_allclose(parameters, expected, **sums(dtype, 3))


def test_every_optimizer_class_has_a_name_and_every_name_a_function_of_the_reference():
    names = tuple(optimizers.OPTIMIZERS)
    assert names == get_args(optimizers.OptimizerName)
    assert set(optimizers.OPTIMIZERS.values()) == set(optimizers.Optimizer.__subclasses__())
    assert {type(optimizer) for optimizer in ALL} == set(optimizers.OPTIMIZERS.values())
    assert all(hasattr(reference, name) for name in names)


@every_optimizer
def test_updates_go_on_from_slots_and_step_count_alone(rng, optimizer):
    parameters, first, second = rng.standard_normal((3, COUNT))
    optimizer.init(parameters)
    optimizer.update(parameters, first, learning_rate=0.1)
    resumed, other = type(optimizer)(**{n: getattr(optimizer, n) for n in _settings(optimizer)}), parameters.copy()
    resumed.init(other)
    for name, slot in optimizer.slots.items():
        resumed.slots[name][:] = slot
    resumed.step_count = optimizer.step_count
    optimizer.update(parameters, second, learning_rate=0.1)
    resumed.update(other, second, learning_rate=0.1)
    np.testing.assert_array_equal(other, parameters)


def _settings(optimizer):
    return [name for name in vars(optimizer) if name not in ("slots", "step_count")]


@every_optimizer
@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
def test_impossible_learning_rate_is_refused_by_name(optimizer, bad):
    parameters = np.zeros(COUNT)
    optimizer.init(parameters)
    with pytest.raises(ValueError, match="learning_rate must be"):
        optimizer.update(parameters, parameters.copy(), learning_rate=bad)


def test_step_count_below_zero_is_refused_by_name():
    optimizer, parameters = optimizers.Adam(), np.zeros(COUNT)
    optimizer.init(parameters)
    optimizer.step_count = -1
    with pytest.raises(ValueError, match="step_count must be at least 0, got -1"):
        optimizer.update(parameters, parameters.copy(), learning_rate=0.1)


def test_refused_update_changes_nothing(rng):
    parameters = rng.standard_normal(COUNT)
    optimizer, before = optimizers.SGD(), parameters.copy()
    optimizer.init(parameters)
    with pytest.raises(ValueError, match="gradient_scale"):
        optimizer.update(parameters, parameters.copy(), learning_rate=0.1, gradient_scale=math.nan)
    np.testing.assert_array_equal(parameters, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.Momentum(momentum=1.0), "momentum must lie in [0, 1), got 1"),
        (lambda: optimizers.RMSprop(decay=-0.1), "decay must lie in [0, 1), got -0.1"),
        (lambda: optimizers.RMSprop(epsilon=-1.0), "epsilon must be at least 0, got -1"),
        (lambda: optimizers.Adam(beta1=2.0), "beta1 must lie in [0, 1), got 2"),
        (lambda: optimizers.Adam(beta2=math.nan), "beta2 must be finite, got nan"),
        (lambda: optimizers.Adam(weight_decay=-1.0), "weight_decay must be at least 0, got -1"),
    ],
)
def test_impossible_setting_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("parameters", "gradients", "error", "message"),
    [
        (np.zeros(COUNT), np.zeros(COUNT + 1), ValueError, "gradients must have shape (37,) = (count,), got (38,)"),
        (np.zeros(COUNT), np.zeros(COUNT, "f4"), TypeError, "gradients must be float64 like parameters, got float32"),
        (np.zeros(2 * COUNT)[::2], np.zeros(COUNT), ValueError, "parameters must be a writable contiguous 1-D array"),
        (np.zeros(COUNT + 1), np.zeros(COUNT + 1), ValueError, "slot velocity must have shape (38,), got (37,)"),
    ],
)
def test_update_error_names_the_buffer_at_fault(parameters, gradients, error, message):
    optimizer = optimizers.Momentum()
    optimizer.init(np.zeros(COUNT))
    with pytest.raises(error, match=re.escape(message)):
        optimizer.update(parameters, gradients, learning_rate=0.1)


def test_update_before_init_says_to_call_it():
    with pytest.raises(ValueError, match=re.escape("call init(parameters)")):
        optimizers.Adam().update(np.zeros(3), np.zeros(3), learning_rate=0.1)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_cross_entropy_is_the_references_mean(rng, dtype):
    logits, targets = 3 * rng.standard_normal((2, 5, 11)).astype(dtype), rng.integers(0, 11, (2, 5))
    expected, _ = reference.softmax_cross_entropy(logits.reshape(10, 11), targets.ravel())
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, targets)[0], expected.mean(), **sums(dtype, 11))


def test_cross_entropy_gradient_is_the_references(rng, dtype):
    logits, targets = 3 * rng.standard_normal((2, 5, 11)).astype(dtype), rng.integers(0, 11, (2, 5))
    _, expected = reference.softmax_cross_entropy(logits.reshape(10, 11), targets.ravel(), scale=0.1)
    actual = losses.softmax_cross_entropy(logits, targets)[1]
    np.testing.assert_allclose(actual, expected.reshape(logits.shape), **sums(dtype, 11))


def test_cross_entropy_leaves_its_logits_alone(rng):
    logits = rng.standard_normal((4, 3))
    before = logits.copy()
    losses.softmax_cross_entropy(logits, np.zeros(4, int))
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    ("logits", "targets", "error", "message"),
    [
        (np.zeros((4, 3)), np.full(4, 3), ValueError, "targets must hold ids from 0 to 2 (a vocabulary of 3), got 3"),
        (np.zeros((4, 3)), np.zeros(5, int), ValueError, "targets must have shape (4,)"),
        (np.zeros((4, 3)), np.zeros(4), TypeError, "targets must hold integer ids, got float64"),
        (np.zeros((0, 3)), np.zeros(0, int), ValueError, "logits must hold at least one prediction, got shape (0, 3)"),
        (np.zeros((4, 3), int), np.zeros(4, int), TypeError, "logits must be a float32 or float64 array, got int64"),
    ],
)
def test_cross_entropy_error_names_the_argument(logits, targets, error, message):
    with pytest.raises(error, match=re.escape(message)):
        losses.softmax_cross_entropy(logits, targets)


def test_perplexity_of_even_odds_is_the_number_of_choices():
    assert losses.perplexity(math.log(27)) == pytest.approx(27)


def test_perplexity_past_the_range_of_floats_is_infinite():
    assert losses.perplexity(1e6) == math.inf


def test_one_bit_per_character_is_the_natural_logarithm_of_two():
    assert losses.bits_per_character(math.log(2)) == 1.0


@pytest.mark.parametrize(
    ("norm", "max_norm", "scale"),
    [(5.0, 1.25, 0.25), (1.0, 1.25, 1.0), (0.0, 1.0, 1.0), (5.0, None, 1.0), (5.0, 0, 1.0)],
)
def test_clip_scale_brings_larger_norms_down_and_leaves_others(norm, max_norm, scale):
    assert losses.clip_scale(norm, max_norm) == scale


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_norm_that_is_not_finite_is_refused(norm):
    with pytest.raises(ValueError, match="norm of the gradient must be finite"):
        losses.clip_scale(norm, None)


def test_clip_by_global_norm_scales_in_place(rng, dtype):
    gradients = rng.standard_normal(COUNT).astype(dtype)
    losses.clip_by_global_norm(gradients, 0.5)
    np.testing.assert_allclose(np.linalg.norm(gradients), 0.5, **sums(dtype, COUNT))
