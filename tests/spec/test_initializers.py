"""First values of weights: their distributions, and that all randomness comes from the generator passed in."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lstmfast import initializers
from support.tolerances import SAME

MANY = (100, 100)


def test_truncated_normal_never_lies_beyond_two_standard_deviations(rng):
    values = initializers.truncated_normal(MANY, rng, mean=-0.1, std=0.1)
    assert values.min() >= -0.3
    assert values.max() <= 0.1


def test_truncated_normal_draws_again_and_does_not_clip(rng):
    values = initializers.truncated_normal(MANY, rng)
    assert np.unique(values).size == values.size


def test_truncated_normal_has_the_mean_and_spread_of_a_normal_cut_at_two(rng):
    values = initializers.truncated_normal(MANY, rng, mean=1.0, std=0.5)
    five_sigma_of_the_mean = 5 * 0.44 / 100
    assert_allclose([values.mean(), values.std()], [1.0, 0.5 * 0.8796], atol=five_sigma_of_the_mean)


def test_uniform_fills_its_interval(rng):
    values = initializers.uniform(MANY, rng, low=2.0, high=3.0)
    assert 2 <= values.min() < 2.01
    assert 2.99 < values.max() < 3


@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7)], ids=str)
def test_orthogonal_has_an_orthonormal_shorter_side(rng, shape):
    values = initializers.orthogonal(shape, rng, gain=2.0)
    short = values if shape[0] <= shape[1] else values.T
    assert_allclose(short @ short.T, 4 * np.eye(min(shape)), **SAME)


def test_default_bias_is_zero(rng):
    assert not initializers.default("lstm.layer0.bias", (8,), rng).any()


@pytest.mark.parametrize("name", ["lstm.layer0.kernel", "projection.kernel", "embedding"])
def test_default_weights_lie_within_one_over_the_root_of_their_rows(rng, name):
    values = initializers.default(name, (400, 100), rng)
    assert 0.049 < np.abs(values).max() <= 0.05


INITIALIZERS = [initializers.truncated_normal, initializers.uniform, initializers.orthogonal]


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_same_generator_state_gives_the_same_weights(initializer):
    first, second = (initializer((4, 3), np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_float32_weights_are_the_float64_weights_rounded(initializer):
    narrow, wide = (initializer((4, 3), np.random.default_rng(5), dtype=dtype) for dtype in ("float32", "float64"))
    assert narrow.dtype == np.float32
    assert np.array_equal(narrow, wide.astype(np.float32))
