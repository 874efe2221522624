"""Learning rates over time, and the errors of schedules that make no sense."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest

from lstmfast.schedules import Constant, CosineWithWarmup, ExponentialDecay, LinearWithWarmup


def test_constant_is_the_same_at_every_step():
    assert {Constant(0.1)(step) for step in (0, 1, 10**9)} == {0.1}


def test_exponential_decay_falls_by_its_rate_every_decay_steps():
    schedule = ExponentialDecay(8.0, decay_rate=0.25, decay_steps=100)
    assert [schedule(step) for step in (0, 50, 100, 150)] == [8.0, 4.0, 2.0, 1.0]


def test_staircase_falls_only_at_multiples_of_decay_steps():
    schedule = ExponentialDecay(10.0, decay_rate=0.1, decay_steps=5000, staircase=True)
    assert [schedule(step) for step in (0, 4999, 5000, 9999)] == [10.0, 10.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", [CosineWithWarmup, LinearWithWarmup])
def test_warmup_rises_in_a_line_to_the_full_rate(kind):
    schedule = kind(4.0, total_steps=10, warmup_steps=3)
    assert [schedule(step) for step in range(4)] == [1.0, 2.0, 3.0, 4.0]


def test_cosine_passes_its_middle_halfway_and_ends_at_its_final_fraction():
    schedule = CosineWithWarmup(4.0, total_steps=30, warmup_steps=10, final_fraction=0.5)
    assert [schedule(step) for step in (10, 20, 30, 1000)] == pytest.approx([4.0, 3.0, 2.0, 2.0])


def test_a_line_falls_by_the_same_every_step_to_its_final_fraction():
    schedule = LinearWithWarmup(4.0, total_steps=30, warmup_steps=10, final_fraction=0.5)
    assert [schedule(step) for step in (10, 15, 20, 30, 1000)] == pytest.approx([4.0, 3.5, 3.0, 2.0, 2.0])


def test_schedules_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Constant(0.1).learning_rate = 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(math.nan), "learning_rate must be a finite number, 0 or more, got nan"),
        (lambda: Constant(-1.0), "learning_rate must be a finite number, 0 or more, got -1.0"),
        (lambda: ExponentialDecay(math.inf, 0.1, 10), "learning_rate must be a finite number, 0 or more, got inf"),
        (lambda: ExponentialDecay(1.0, 0.0, 10), "decay_rate must be a finite number above 0, got 0.0"),
        (lambda: ExponentialDecay(1.0, 0.1, 0), "decay_steps must be 1 or more, got 0"),
        (lambda: LinearWithWarmup(1.0, 5, 5), r"total_steps must be more than warmup_steps \(5\), got 5"),
        (lambda: CosineWithWarmup(1.0, 5, 5), r"total_steps must be more than warmup_steps \(5\), got 5"),
        (lambda: CosineWithWarmup(1.0, 5, -1), "warmup_steps must be 0 or more, got -1"),
        (lambda: CosineWithWarmup(1.0, 5, 0, 1.5), "final_fraction must be between 0 and 1, got 1.5"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
