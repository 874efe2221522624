"""Threads change nothing but the time: the same bits for any number, safe from many callers, alive after fork."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lstmfast import _core, optimizers
from support.oracles import problem, random_lengths, random_resets
from support.sequences import run_core, upstream_for

# (T, B, I, H): enough rows to deal to threads; one row of so many units that the units are dealt instead; so few rows
# that they find their weights unpacked, where only the gradients of those are dealt.
LAYERS = {"rows": (4, 48, 20, 72), "ids": (4, 48, 20, 72), "units": (5, 1, 16, 460), "few rows": (1, 4, 300, 400)}


def results(name, rng, dtype):
    """What one part of the extension computes from random arguments, as one array."""
    if name in LAYERS:
        p = problem(rng, *LAYERS[name], dtype=dtype, ids=name == "ids")
        time_steps, batch = p["x"].shape[:2]
        options = {"resets": random_resets(rng, time_steps, batch)}
        if batch > 1:
            options["lengths"] = random_lengths(rng, time_steps, batch)
        return np.concatenate([v.ravel() for v in run_core(p, upstream_for(rng, p), **options).values()])
    if name == "linear":
        x, kernel, d_out = (rng.standard_normal(s).astype(dtype) for s in [(200, 65), (65, 130), (200, 130)])
        out, *d = np.empty_like(d_out), np.empty_like(x), np.empty_like(kernel), np.empty(130, dtype)
        _core.linear(x, kernel, None, out)
        _core.linear_backward(x, kernel, d_out, *d)
        return np.concatenate([v.ravel() for v in (out, *d)])
    if name == "loss":
        logits, targets = rng.standard_normal((900, 65)).astype(dtype), rng.integers(0, 65, 900).astype(np.int32)
        losses, d_logits = np.empty(900, dtype), np.empty_like(logits)
        _core.softmax_cross_entropy(logits, targets, losses, d_logits)
        return np.concatenate([losses, d_logits.ravel()])
    if name == "embedding":
        d_out, ids = rng.standard_normal((900, 65)).astype(dtype), rng.integers(0, 30, 900).astype(np.int32)
        d_table = np.empty((30, 65), dtype)
        _core.embedding_scatter(d_out, ids, d_table)
        return d_table
    values = rng.standard_normal((2, 150_001)).astype(dtype)
    if name == "norm":
        return np.array([_core.global_norm(values[0])])
    optimizer = optimizers.Adam(weight_decay=0.01)
    optimizer.init(values[0])
    optimizer.update(values[0], values[1], learning_rate=0.1, gradient_scale=0.5)
    return np.concatenate([values[0], *optimizer.slots.values()])


PARTS = [*LAYERS, "linear", "loss", "embedding", "norm", "update"]


@pytest.mark.parametrize("part", PARTS)
def test_one_two_and_three_threads_give_the_same_bits(isa, dtype, threads, part):
    by_threads = []
    for count in (1, 2, 3):
        threads.set_num_threads(count)
        by_threads.append(results(part, np.random.default_rng(5), dtype))
    assert_array_equal(by_threads[1:], [by_threads[0]] * 2)


@pytest.mark.parametrize("part", PARTS)
def test_repeated_runs_give_the_same_bits(isa, dtype, threads, part):
    threads.set_num_threads(2)
    first, *others = (results(part, np.random.default_rng(5), dtype) for _ in range(4))
    assert_array_equal(others, [first] * 3)


@pytest.mark.parametrize("part", ["rows", "units", "linear"])
def test_calls_from_several_python_threads_give_the_same_bits(isa, dtype, threads, part):
    threads.set_num_threads(2)
    expected = results(part, np.random.default_rng(5), dtype)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: results(part, np.random.default_rng(5), dtype), range(8)))
    assert_array_equal(found, [expected] * 8)


def test_number_of_threads_is_what_was_set(threads):
    threads.set_num_threads(3)
    assert threads.get_num_threads() == 3


@pytest.mark.parametrize("count", [0, -1])
def test_number_of_threads_below_one_is_an_error(threads, count):
    with pytest.raises(ValueError, match=str(count)):
        threads.set_num_threads(count)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_of_a_fork_computes_the_same_and_does_not_hang(isa, dtype, threads):
    threads.set_num_threads(2)
    expected = results("rows", np.random.default_rng(5), dtype)
    child = os.fork()
    if child == 0:
        same = np.array_equal(results("rows", np.random.default_rng(5), dtype), expected)
        os._exit(0 if same else 1)
    assert exit_status(child, timeout_s=60) == 0


def exit_status(child: int, *, timeout_s: float) -> int | str:
    """How a child process ended; one that has not by then is killed."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "it hung"
