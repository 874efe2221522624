"""Which kernels may be trusted: the first use of a kernel on a device tests it against the CPU's kernels.

A kernel that fails is reported by a warning and not used again in this process; the step kernel replaces it, and if
that fails too, calls raise. The test is a few steps of the caller's hidden size, with rows of different lengths and a
reset; nothing else here waits for the device.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast._engine import cpu
from lstmfast.cells import Cell
from lstmfast.cuda import _kernels
from lstmfast.cuda._kernels import Context, Recurrence
from lstmfast.cuda._library import PATHS, Plan

_NO_PATH, _STEP = 0, 1
_TEST_STEPS, _TEST_INPUTS, _TEST_ROWS = 4, 3, 64

# Largest difference from the CPU, relative to its largest value. float32: both sum H products in some order, 8 units of
# 2**-23 per sqrt(H), and ten times that for a gradient (see tests/support/tolerances.py). bfloat16: each of four
# steps rounds h by 2**-9 of its value, in sums over H terms of either sign.
_FLOAT32_UNIT, _BFLOAT16 = 8 * 2.0**-23, 2.0**-6


class KernelMismatchWarning(RuntimeWarning):
    """A CUDA kernel's results differ from the CPU's, so it is not used."""


@dataclass(frozen=True)
class Agreement:
    """A test's outcome: the largest error of each result as a fraction of its bound. At most 1 is good."""

    errors: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest error; NaN counts as infinite."""
        return max(float("inf") if np.isnan(error) else error for error in self.errors.values())

    @property
    def is_good(self) -> bool:
        """Whether all errors are within their bounds."""
        return self.worst <= 1.0


_lock = threading.RLock()
_verdicts: dict[tuple[Any, ...], bool] = {}


def trusted_plan(on: Context, hidden_size: int, batch: int, dtype: str, *, training: bool) -> Plan:
    """The plan for a shape, of kernels that have passed their test on this device.

    Raises ValueError if no kernel takes the shape, RuntimeError if all that do failed their test.
    """
    plan = on.library.plan(on.device, hidden_size, batch, dtype, training)
    if _is_trusted(on, plan, dtype):
        return plan
    if not {plan.forward.path, plan.backward.path} <= {_NO_PATH, _STEP}:  # forward and backward may differ
        plan = on.library.plan(on.device, hidden_size, batch, dtype, training, _STEP)
        if _is_trusted(on, plan, dtype):
            return plan
    raise RuntimeError(
        f"no CUDA kernel for hidden_size {hidden_size} and {dtype} gave the CPU's numbers on this device; "
        "python -m lstmfast.cuda.selftest shows which differ"
    )


def _is_trusted(on: Context, plan: Plan, dtype: str) -> bool:
    key = (on.library.path, on.device, plan.hidden_size, dtype, *_kernel_key(plan))
    with _lock:
        if key not in _verdicts:
            if on.framework.is_capturing():  # waiting is forbidden during graph capture; the next call tests
                return True
            _verdicts[key] = _passes(on, plan, dtype)
        return _verdicts[key]


@contextlib.contextmanager
def _forgetting() -> Iterator[None]:
    """Forget all verdicts within the context. For tests."""
    before = dict(_verdicts)
    _verdicts.clear()
    try:
        yield
    finally:
        _verdicts.clear()
        _verdicts.update(before)


def _kernel_key(plan: Plan) -> tuple[int, ...]:
    forward, backward = plan.forward, plan.backward
    return forward.path, forward.variant, backward.path, backward.variant


def _passes(on: Context, plan: Plan, dtype: str) -> bool:
    try:
        agreement = compare(on, _of_few_rows(on, plan, dtype), dtype, seed=0)
        words = f"its {_worst_name(agreement)} differs {agreement.worst:.3g} times as much as it may"
        good = agreement.is_good
    except RuntimeError as error:
        good, words = False, str(error)
    if not good:
        name = on.library.device(on.device).name.decode()
        warnings.warn(
            f"the CUDA kernel '{PATHS[plan.forward.path]}' for hidden_size {plan.hidden_size} and {dtype} is not used "
            f"on {name}: {words}. Please report this with the output of python -m lstmfast.cuda.selftest",
            KernelMismatchWarning,
            stacklevel=6,
        )
    return good


def _of_few_rows(on: Context, plan: Plan, dtype: str) -> Plan:
    """The plan for a test's number of rows, each direction by its own path if that takes so few."""
    rows = min(int(plan.batch), _TEST_ROWS)
    if rows == plan.batch:
        return plan

    def by(path: int) -> Plan:
        shape = (on.device, plan.hidden_size, rows, dtype, bool(plan.training))
        try:
            return on.library.plan(*shape, path)
        except ValueError:
            return on.library.plan(*shape)

    few = Plan.from_buffer_copy(by(plan.forward.path))
    few.backward = by(plan.backward.path).backward
    return few


def _worst_name(agreement: Agreement) -> str:
    return max(agreement.errors, key=lambda name: np.nan_to_num(agreement.errors[name], nan=np.inf))


# --- the test ---------------------------------------------------------------------------------------------------------


def compare(
    on: Context,
    plan: Plan,
    dtype: str,
    *,
    seed: int,
    time_steps: int = _TEST_STEPS,
    reverse: bool = False,
    ragged: bool = True,
) -> Agreement:
    """Run a plan and the CPU's kernels on the same random sequence and compare the results.

    With `ragged`, rows have lengths and some resets. Waits for the device. Raises RuntimeError if a launch fails or
    gives up.
    """
    framework = on.framework
    batch, hidden_size = int(plan.batch), int(plan.hidden_size)
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        return values

    def rounded(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The values as rounded on the device."""
        return framework.to_host(framework.cast(framework.from_host(values, on.like), dtype))

    def sent(values: npt.NDArray[Any], to: str) -> Any:
        return framework.contiguous(framework.cast(framework.from_host(values, on.like), to))

    x, bias = draw(time_steps, batch, _TEST_INPUTS), draw(4 * hidden_size)
    input_kernel = draw(_TEST_INPUTS, 4 * hidden_size)
    recurrent_kernel = rounded(draw(hidden_size, 4 * hidden_size, scale=hidden_size**-0.5))
    h0, c0 = rounded(draw(batch, hidden_size)), draw(batch, hidden_size)
    d_h, d_h_n, d_c_n = (
        rounded(draw(time_steps, batch, hidden_size)),
        rounded(draw(batch, hidden_size)),
        draw(*c0.shape),
    )
    lengths = time_steps - np.arange(batch) % (time_steps + 1) if ragged else None  # the first row has all steps
    resets = rng.random((time_steps, batch)) < 0.2 if ragged else None
    if resets is not None:
        resets[time_steps // 2, :1] = True

    wanted = cpu.lstm(
        x, np.concatenate([input_kernel, recurrent_kernel]), bias, h0, c0, cell=Cell(forget_bias=0.0),
        lengths=lengths, resets=resets, reverse=reverse, return_cells=True, return_gates=True, keep_for_backward=True,
    )
    assert wanted._saved is not None
    wanted_gradients = wanted._saved.backward(d_h, d_h_n, d_c_n)

    z = x @ input_kernel + bias
    recurrence = Recurrence(
        recurrent_kernel=sent(recurrent_kernel, dtype), h0=sent(h0, dtype), c0=sent(c0, "float32"),
        lengths=None if lengths is None else sent(lengths.astype(np.int32), "int32"),
        resets=None if resets is None else sent(resets.astype(np.uint8), "uint8"), reverse=reverse, dtype=dtype,
    )
    states = _kernels.forward(
        on, plan, sent(z, "float32"), recurrence, keep_cells=True, keep_gates=True, check_status=True
    )
    pairs = {
        "h": (states.h, wanted.h), "h_n": (states.h_n, wanted.h_n), "c_n": (states.c_n, wanted.c_n),
        "cells": (states.cells, wanted.cells), "gates": (states.gates, wanted.gates),
    }
    errors = {name: _error(framework.to_host(got), want, dtype, hidden_size) for name, (got, want) in pairs.items()}
    if plan.training:
        d_z, d_h0, d_c0 = _kernels.backward(
            on, plan, recurrence, states, sent(d_h, dtype), sent(d_h_n, dtype), sent(d_c_n, "float32"),
            check_status=True,
        )
        d_z_rows = framework.to_host(d_z).reshape(-1, 4 * hidden_size)
        for name, got, want in (
            ("d_x", (d_z_rows @ input_kernel.T).reshape(x.shape), wanted_gradients.x),
            ("d_bias", d_z_rows.sum(axis=0), wanted_gradients.bias),
            ("d_h0", framework.to_host(d_h0), wanted_gradients.h0),
            ("d_c0", framework.to_host(d_c0), wanted_gradients.c0),
        ):
            errors[name] = _error(got, want, dtype, hidden_size) / 10
    return Agreement(errors)


def _error(got: npt.NDArray[Any], want: npt.NDArray[Any] | None, dtype: str, hidden_size: int) -> float:
    assert want is not None
    if got.size == 0:
        return 0.0
    allowed = _BFLOAT16 if dtype == "bfloat16" else _FLOAT32_UNIT * max(hidden_size + _TEST_INPUTS, 1) ** 0.5
    scale = max(float(np.abs(want).max()), 1.0)
    return float(np.abs(got.astype(np.float64) - want).max()) / scale / allowed
