"""The nonlinearities inside the step, alone: every ISA and dtype, on dense grids and at the special values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lstmfast import _core, reference
from support.sequences import Outputs, load_and_forward, sequence_of
from support.tolerances import ACTIVATION, EXPONENTIAL, of

EXACT = {"sigmoid": reference.sigmoid, "tanh": np.tanh, "exp": np.exp}
SATURATING = ["sigmoid", "tanh"]


def activate(kind: str, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The extension's nonlinearity of a new array."""
    out = np.empty_like(x)
    _core.testing.activations(kind, x, out)
    return out


def grid(dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Both signs of every size: dense where the functions bend, in powers of two down to the smallest number."""
    smallest = np.finfo(dtype).smallest_subnormal
    powers = np.ldexp(1.0, np.arange(np.log2(np.longdouble(smallest)).astype(int), 8))
    half = np.concatenate([np.linspace(0, 20, 20_001), np.linspace(20, 800, 1_001), powers]).astype(dtype)
    return np.concatenate([-half, half])


@pytest.mark.parametrize("kind", SATURATING)
def test_activation_is_the_exact_function_to_its_bound(isa, dtype, kind):
    x = grid(dtype)
    assert_allclose(activate(kind, x), EXACT[kind](x.astype(np.longdouble)), rtol=0, atol=of(ACTIVATION, dtype))


@pytest.mark.parametrize(("kind", "low"), [("sigmoid", 0), ("tanh", -1)])
def test_activation_never_leaves_its_range(isa, dtype, kind, low):
    values = activate(kind, grid(dtype))
    assert values.min() >= low
    assert values.max() <= 1


@pytest.mark.parametrize("kept", ["i", "f", "g", "o"])
def test_gate_inside_a_step_is_the_exact_function_to_the_same_bound(isa, dtype, rng, kept):
    """The step divides after multiplying denominators of two functions: whatever the other one is."""
    hidden, gate = 48, "ifgo".index(kept)
    z = rng.choice(grid(dtype)[np.abs(grid(dtype)) < 40], (400, 1, 4 * hidden))
    kernel = np.vstack([np.eye(4 * hidden), np.zeros((hidden, 4 * hidden))]).astype(dtype)
    gates = np.empty((400, 1, 4, hidden), dtype)
    states = {name: np.empty((1, hidden), dtype) for name in ("h_n", "c_n")}
    load_and_forward(
        sequence_of(), x=z, kernel=kernel, bias=np.zeros(4 * hidden, dtype), h=np.empty((400, 1, hidden), dtype),
        **states, gates=gates,
    )
    exact = np.tanh if kept == "g" else reference.sigmoid
    expected = exact(z.reshape(gates.shape)[:, :, gate].astype(np.longdouble))
    assert_allclose(gates[:, :, gate], expected, rtol=0, atol=of(ACTIVATION, dtype))
    assert np.abs(gates[:, :, gate]).max() <= 1


def test_tanh_of_small_numbers_is_accurate_relative_to_itself(isa, dtype):
    x = grid(dtype)
    small = x[(np.abs(x) < 0.5) & (np.abs(x) >= np.finfo(dtype).tiny)]
    units = 4 * np.finfo(dtype).eps
    assert_allclose(activate("tanh", small), np.tanh(small.astype(np.longdouble)), rtol=units, atol=0)


def test_tanh_is_odd_to_the_last_bit(isa, dtype):
    x = grid(dtype)
    assert_array_equal(activate("tanh", -x), -activate("tanh", x))


def test_tanh_keeps_the_sign_of_zero(isa, dtype):
    assert np.signbit(activate("tanh", np.array([0.0, -0.0], dtype))).tolist() == [False, True]


@pytest.mark.parametrize("kind", SATURATING)
def test_activation_of_infinity_nan_and_the_largest_number_is_the_limit(isa, dtype, kind):
    largest = np.finfo(dtype).max
    x = np.array([0.0, -0.0, np.inf, -np.inf, largest, -largest, np.nan], dtype)
    assert_allclose(activate(kind, x), EXACT[kind](x), rtol=0, atol=of(ACTIVATION, dtype))


def test_exp_is_accurate_relative_to_itself_wherever_it_is_a_normal_number(isa, dtype):
    low, high = {"float32": (-87, 88), "float64": (-708, 709)}[dtype.name]
    x = np.linspace(low, high, 40_001).astype(dtype)
    assert_allclose(activate("exp", x), np.exp(x.astype(np.longdouble)), rtol=of(EXPONENTIAL, dtype), atol=0)


def test_exp_of_nan_is_nan(isa, dtype):
    assert np.isnan(activate("exp", np.full(3, np.nan, dtype))).all()


@pytest.mark.parametrize("kind", EXACT)
def test_value_does_not_depend_on_its_place_nor_on_its_neighbours(isa, dtype, rng, kind):
    x = rng.standard_normal(33).astype(dtype)
    alone = np.concatenate([activate(kind, x[i : i + 1].copy()) for i in range(x.size)])
    assert_array_equal(activate(kind, x), alone)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 8, 15, 16, 17, 33])
def test_nothing_outside_the_output_is_written(isa, dtype, rng, size):
    outputs = Outputs()
    x = rng.standard_normal(size).astype(dtype)
    _core.testing.activations("tanh", x, outputs.contiguous("out", x.shape, dtype))
    assert outputs.spilled() == []
