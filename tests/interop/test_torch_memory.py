"""New arrays of the drop-in lie in memory of earlier ones, but only where nobody can see them any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

import lstmfast.torch as ours  # noqa: E402
from lstmfast.torch.memory import ArrayCache  # noqa: E402

FLOAT = np.dtype(np.float32)
SHAPE = (256, 1024)  # 1 MB


def test_what_nobody_holds_is_used_again() -> None:
    cache = ArrayCache()
    first = cache.empty(SHAPE, FLOAT)
    address = first.ctypes.data
    del first
    assert cache.empty(SHAPE, FLOAT).ctypes.data == address
    assert cache.empty((512, 256), np.dtype(np.float64)).ctypes.data == address  # as many bytes


@pytest.mark.parametrize(
    "hold",
    [
        lambda a: a,
        lambda a: a[3:5],
        lambda a: torch.from_numpy(a),
        lambda a: torch.from_numpy(a)[0],
        lambda a: torch.from_numpy(a).t().detach().numpy(),
        lambda a: memoryview(a),
        lambda a: np.from_dlpack(torch.from_numpy(a)),
        lambda a: torch.nn.Parameter(torch.from_numpy(a)),
    ],
    ids=["array", "slice", "tensor", "row", "array of a tensor", "memoryview", "DLPack", "parameter"],
)
def test_what_somebody_holds_is_not(hold: Callable[[Any], Any]) -> None:
    cache = ArrayCache()
    held = hold(cache.empty(SHAPE, FLOAT))
    other = cache.empty(SHAPE, FLOAT)
    assert not np.shares_memory(np.asarray(held.detach() if isinstance(held, torch.Tensor) else held), other)
    del held, other
    a, b, c = (cache.empty(SHAPE, FLOAT) for _ in range(3))
    assert not np.shares_memory(a, b)
    assert not np.shares_memory(b, c)
    assert not np.shares_memory(a, c)


def test_it_keeps_no_more_than_it_may_and_nothing_small_or_large() -> None:
    cache = ArrayCache()
    arrays = [cache.empty(SHAPE, FLOAT) for _ in range(cache.KEPT + 5)]
    assert len({array.ctypes.data for array in arrays}) == len(arrays)
    kept = cache.kept_bytes()
    assert kept == cache.KEPT * arrays[0].nbytes
    cache.empty((2,), FLOAT)
    cache.empty((3 * cache.LARGEST // 4,), FLOAT)
    assert cache.kept_bytes() == kept
    for size in (cache.LARGEST // 4, cache.LARGEST // 8):
        cache.empty((size - 100,), FLOAT)
        cache.empty((size,), FLOAT)
    assert cache.kept_bytes() <= cache.KEPT_BYTES


def test_what_is_not_asked_for_again_is_given_back() -> None:
    cache = ArrayCache()
    cache.empty(SHAPE, FLOAT)
    for _ in range(cache.FORGOTTEN_AFTER + 1):
        cache.empty((2,), FLOAT)
    assert cache.kept_bytes() == 0


def test_large_arrays_begin_on_a_cache_line() -> None:
    cache = ArrayCache()
    assert [cache.empty((size,), FLOAT).ctypes.data % 64 for size in (40_000, 40_001, 50_002)] == [0, 0, 0]


def test_threads_share_none() -> None:
    cache, found = ArrayCache(), []
    here = cache.empty(SHAPE, FLOAT).ctypes.data
    thread = threading.Thread(target=lambda: found.append(cache.empty(SHAPE, FLOAT).copy() is not None))
    thread.start()
    thread.join()
    assert found == [True]
    assert cache.empty(SHAPE, FLOAT).ctypes.data == here


def test_outputs_and_gradients_that_are_kept_stay_what_they_are() -> None:
    torch.manual_seed(0)
    mine, theirs = ours.LSTM(256, 256), torch.nn.LSTM(256, 256)
    theirs.load_state_dict(mine.state_dict())
    kept = []
    for _ in range(4):  # gradients of earlier steps are held, and added to
        x = torch.randn(3, 50, 256)
        mine(x)[0].square().sum().backward()
        theirs(x)[0].square().sum().backward()
        kept.append((mine(x)[0], [p.grad.clone() for p in theirs.parameters()], [p.grad for p in mine.parameters()]))
        with torch.no_grad():
            wanted = theirs(x)[0]
        torch.testing.assert_close(kept[-1][0], wanted, rtol=1e-4, atol=1e-5)
        kept[-1] = (kept[-1][0], wanted, *kept[-1][1:])
    for h, wanted, *_ in kept:
        torch.testing.assert_close(h, wanted, rtol=1e-4, atol=1e-5)
    for a, b in zip(kept[-1][3], kept[-1][2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_weights_that_a_call_computed_are_let_go_of_with_its_graph() -> None:
    cell = torch.nn.utils.parametrizations.weight_norm(torch.nn.LSTMCell(3, 4), "weight_hh")
    ours.convert(cell)
    output = cell(torch.randn(2, 3, requires_grad=True))[0]  # its graph is not run, and dies with it
    del output
    for parameter in cell.parameters():  # torch counts what refers to it
        torch.utils.swap_tensors(parameter, torch.nn.Parameter(torch.randn_like(parameter)))
