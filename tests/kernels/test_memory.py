"""Workspaces: calls of one size allocate nothing, and what one large call needed is given back."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import lstmfast as lf
from lstmfast import _core
from support.sequences import load_and_forward, sequence_of

INPUT, HIDDEN = 8, 64


def arrays(steps: int, batch: int, hidden: int = HIDDEN) -> dict[str, Any]:
    """Arguments of a forward pass, outputs included."""
    rng = np.random.default_rng(steps * batch)

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32) / 4

    return {
        "x": draw(steps, batch, INPUT), "kernel": draw(INPUT + hidden, 4 * hidden), "bias": draw(4 * hidden),
        "h": draw(steps, batch, hidden), "h_n": draw(batch, hidden), "c_n": draw(batch, hidden),
    }


def train(sequence: _core.Sequence, steps: int, batch: int) -> Any:
    """One forward and backward pass; returns the gradient of the kernel."""
    p = arrays(steps, batch)
    load_and_forward(sequence, **p, keep_for_backward=True)
    d_kernel = np.empty_like(p["kernel"])
    sequence.backward(d_h=np.ones_like(p["h"]), d_kernel=d_kernel)
    return d_kernel


@pytest.mark.parametrize("training", [False, True])
def test_what_a_large_call_needed_is_given_back_within_fifteen_small_ones(training):
    sequence, small = sequence_of(), sequence_of()

    def call(sequence: _core.Sequence, steps: int) -> None:
        if training:
            train(sequence, steps, 16)
        else:
            load_and_forward(sequence, **arrays(steps, 16))

    call(small, 4)
    call(sequence, 2000)
    large = sequence.workspace_bytes
    for _ in range(15):
        call(sequence, 4)
    assert sequence.workspace_bytes <= max(small.workspace_bytes, 1 << 20) * 2
    if training:
        assert large > 10 * sequence.workspace_bytes


@pytest.mark.parametrize("period", [2, 5, 8])
def test_large_and_small_calls_by_turns_keep_what_the_large_ones_need(period):
    sequence = sequence_of()
    large = 200  # steps, which need 5.6 MB; 2,000 took over nine minutes under a sanitizer
    train(sequence, large, 16)
    train(sequence, 4, 16)
    kept = sequence.workspace_bytes
    for call in range(1, 60):
        train(sequence, 4 if call % period else large, 16)
        assert sequence.workspace_bytes == kept


def test_gradients_are_the_same_after_memory_was_given_back():
    sequence = sequence_of()
    expected = train(sequence_of(), 5, 3)
    train(sequence, 3000, 16)
    for _ in range(20):
        assert_array_equal(train(sequence, 5, 3), expected)


@pytest.mark.parametrize("kind", ["plain", "transposed", "projected", "ids", "few rows"])
def test_a_backward_that_waits_survives_a_release(kind, isa, rng):
    p = arrays(1 if kind == "few rows" else 7, 2)
    if kind == "transposed":
        p["kernel"] = p["kernel"][:INPUT].T.copy(), p["kernel"][INPUT:].T.copy()
    elif kind == "ids":
        p["x"] = rng.integers(0, INPUT, p["x"].shape[:2]).astype(np.int32)
    elif kind == "projected":
        p |= {"projection": p["kernel"][:HIDDEN, :6].copy(), "kernel": p["kernel"][: INPUT + 6].copy()}
        p |= {"h": p["h"][..., :6].copy(), "h_n": p["h_n"][..., :6].copy()}
    gradients = []
    for release in (False, True):
        sequence = sequence_of()
        load_and_forward(sequence, **p, keep_for_backward=True)
        if release:
            _core.release_memory()
        shapes = p["kernel"] if isinstance(p["kernel"], tuple) else (p["kernel"],)
        d_kernel = tuple(np.empty_like(part) for part in shapes)
        sequence.backward(d_h=np.ones_like(p["h"]), d_kernel=d_kernel if kind == "transposed" else d_kernel[0])
        gradients.append(d_kernel)
    for before, after in zip(*gradients, strict=True):
        assert_array_equal(after, before)


def test_more_threads_for_backward_than_there_were_for_forward(threads):
    p = arrays(100, 64)
    d_kernels = [np.empty_like(p["kernel"]) for _ in range(2)]
    for d_kernel, wanted in zip(d_kernels, (1, 8), strict=True):
        sequence = sequence_of()
        threads.set_num_threads(1)
        load_and_forward(sequence, **p, keep_for_backward=True)
        threads.set_num_threads(wanted)
        sequence.backward(d_h=np.ones_like(p["h"]), d_kernel=d_kernel)
    assert_array_equal(*d_kernels)


def test_release_keeps_only_what_is_packed(isa):
    sequence, p = sequence_of(), arrays(300, 16)
    load_and_forward(sequence, **p, frozen=True)
    expected, before = p["h"].copy(), sequence.workspace_bytes
    lf.release_memory()
    assert sequence.workspace_bytes < before
    assert sequence.workspace_bytes >= p["kernel"].nbytes
    sequence.forward(*(p[name] for name in ("x", "h", "h_n", "c_n")))
    assert_array_equal(p["h"], expected)


def test_release_frees_what_backward_no_longer_needs():
    sequence = sequence_of()
    train(sequence, 500, 16)
    lf.release_memory()
    kept = sequence.workspace_bytes  # backward may be called again
    sequence.release()
    lf.release_memory()
    assert kept > 500 * 16 * 5 * HIDDEN * 4 > sequence.workspace_bytes


def test_memory_may_be_released_while_other_threads_compute():
    rng = np.random.default_rng(0)
    layers = [lf.LSTM(8, 16, num_layers=2, rng=rng) for _ in range(3)]
    x = rng.standard_normal((20, 8, 8), dtype=np.float32)
    expected = [layer(x)[0] for layer in layers]

    def compute(layer: lf.LSTM) -> list[Any]:
        return [layer(x)[0] for _ in range(200)]

    with ThreadPoolExecutor(len(layers)) as pool:
        running = [pool.submit(compute, layer) for layer in layers]
        while not all(each.done() for each in running):
            lf.release_memory()
    for each, h in zip(running, expected, strict=True):
        for again in each.result():
            assert_array_equal(again, h)


def test_pools_of_python_are_emptied_too():
    from lstmfast import _memory

    emptied: list[int] = []
    _memory.register_pool(lambda: emptied.append(1))
    try:
        lf.release_memory()
    finally:
        _memory._pools.pop()
    assert emptied == [1]


def test_the_system_has_the_memory_again():
    code = """
import numpy as np, lstmfast as lf
lf.set_num_threads(1)
def rss(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024
def train(layer, steps):
    h, _ = layer(np.zeros((steps, 16, 64), np.float32), training=True)
    layer.backward(h)
layers = [lf.LSTM(64, 64, num_layers=2) for _ in range(2)]
for layer in layers: train(layer, 4)
start = rss()
for layer in layers: train(layer, 5000)
large = rss()
for _ in range(20): train(layers[0], 4)
by_itself = rss()
layers[1](np.zeros((1, 1, 64), np.float32))
lf.release_memory()
print(large - start, by_itself - start, rss() - start)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc/self/status")
    if "san.so" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("a sanitizer keeps freed memory for a while")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    large, by_itself, released = map(int, run.stdout.split())
    assert large > 300
    assert by_itself < 0.6 * large
    assert released < 0.1 * large
