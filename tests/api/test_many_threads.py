"""Many Python threads at once, each with layers of its own: they share nothing that mixes, with the GIL or without."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import lstmfast as lf
from lstmfast import _core

THREADS, UPDATES = 12, 15


def trained(number: int) -> np.ndarray:
    """A layer of a size of its own: updates by Adam, a frozen copy, a stream; all that they gave, in one array."""
    rng = np.random.default_rng(number)
    layer = lf.LSTM(5 + number, 16 + 3 * number, num_layers=1 + number % 2, rng=rng)
    optimizer = lf.optimizers.Adam()
    optimizer.init(layer.parameter_buffer)
    x = rng.standard_normal((7, 4 + number, 5 + number), dtype=np.float32)
    given = []
    for _ in range(UPDATES):
        h, _ = layer(x, training=True)
        d_x, _ = layer.backward(h)
        optimizer.update(layer.parameter_buffer, layer.gradient_buffer, learning_rate=0.01)
        stream = layer.stream(len(x[0]))
        given += [h, d_x, layer.inference(weights="int8")(x)[0], stream.step(x[0]).copy()]
        lf.explain(4, 7, 5, 16)
    return np.concatenate([values.ravel() for values in given])


def test_what_they_compute_does_not_depend_on_one_another() -> None:
    alone = [trained(number) for number in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(trained, range(THREADS)))
    for one, other in zip(alone, together, strict=True):
        assert_array_equal(one, other)


def test_one_layer_in_two_threads_is_refused_or_right() -> None:
    layer = lf.LSTM(8, 32, rng=np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((40, 16, 8), dtype=np.float32)
    expected = layer(x)[0]

    def run(_: int) -> bool:
        try:
            assert_array_equal(layer(x)[0], expected)
        except RuntimeError as error:
            return "already running in another thread; give each thread its own" in str(error)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(400)))


@pytest.mark.skipif(not hasattr(sys, "_is_gil_enabled") or sys._is_gil_enabled(), reason="this Python has the GIL")
def test_the_extension_does_not_bring_the_gil_back() -> None:
    assert _core.available_isas() and not sys._is_gil_enabled()  # type: ignore[attr-defined]
