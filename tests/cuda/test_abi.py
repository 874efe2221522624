"""The C ABI of the CUDA library: what it refuses before anything is launched, and with which code. Emulated."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmfast.cuda._library import Backward, Device, Forward, Plan
from support.cuda_host import emulated_library
from support.kernel_builds import compiler

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]

INVALID_SHAPE, INVALID_DTYPE, MISSING_POINTER, MISALIGNED_WORKSPACE = -1, -2, -3, -4
WORKSPACE_TOO_SMALL, INVALID_PLAN, UNSUPPORTED_DEVICE = -5, -6, -7
STEPS, BATCH, HIDDEN = 2, 3, 20


@pytest.fixture(scope="module")
def functions() -> Any:
    loaded = ctypes.CDLL(str(emulated_library()))
    loaded.lstmfast_cuda_error_string.restype = ctypes.c_char_p
    loaded.lstmfast_cuda_workspace_bytes.restype = ctypes.c_int64
    return loaded


class Call:
    """A plan and the arguments of both directions, all of them good."""

    def __init__(self, functions: Any, path: int) -> None:
        self.functions, self.plan, self.kept = functions, Plan(), []
        device = Device()
        functions.lstmfast_cuda_device_properties(0, ctypes.byref(device))
        sizes = ctypes.c_int64(HIDDEN), ctypes.c_int64(BATCH)
        plan = ctypes.byref(self.plan)
        assert functions.lstmfast_cuda_plan_path(ctypes.byref(device), *sizes, 1, 1, path, plan) == 0
        cells, state = STEPS * BATCH * HIDDEN, BATCH * HIDDEN
        self.forward = Forward(
            time_steps=STEPS, z=self.array(16 * cells), recurrent_kernel=self.array(8 * HIDDEN * HIDDEN),
            recurrent_kernel_stride=4 * HIDDEN, h=self.array(2 * cells), h_n=self.array(2 * state),
            c_n=self.array(4 * state), gates=self.array(16 * cells), cells=self.array(4 * cells),
            workspace=self.array(self.workspace_bytes(0)), workspace_bytes=self.workspace_bytes(0),
        )
        self.backward = Backward(
            time_steps=STEPS, recurrent_kernel=self.forward.recurrent_kernel, recurrent_kernel_stride=4 * HIDDEN,
            gates=self.forward.gates, cells=self.forward.cells, d_z=self.array(8 * cells), d_h0=self.array(2 * state),
            d_c0=self.array(4 * state), workspace=self.array(self.workspace_bytes(1)),
            workspace_bytes=self.workspace_bytes(1),
        )

    def workspace_bytes(self, backward: int) -> int:
        return int(
            self.functions.lstmfast_cuda_workspace_bytes(ctypes.byref(self.plan), ctypes.c_int64(STEPS), backward)
        )

    def array(self, size: int) -> int:
        """The address of zeros, at a multiple of 256."""
        self.kept.append(np.zeros(size + 256, np.uint8))
        return -(-self.kept[-1].ctypes.data // 256) * 256

    def run(self, direction: str) -> int:
        function = getattr(self.functions, f"lstmfast_cuda_{direction}")
        return int(function(ctypes.byref(self.plan), ctypes.byref(getattr(self, direction)), None))


def set_to(name: str, value: int) -> Callable[[Any], None]:
    return lambda arguments: setattr(arguments, name, value)


REFUSED = {
    "forward": [
        *((set_to(name, 0), MISSING_POINTER) for name in ("z", "recurrent_kernel", "h", "h_n", "c_n", "workspace")),
        (set_to("time_steps", 0), INVALID_SHAPE),
        (set_to("recurrent_kernel_stride", 4 * HIDDEN - 1), INVALID_SHAPE),
        (set_to("z_dtype", 2), INVALID_DTYPE),
        (set_to("workspace_bytes", 256), WORKSPACE_TOO_SMALL),
    ],
    "backward": [
        *((set_to(name, 0), MISSING_POINTER) for name in ("gates", "cells", "d_z", "d_h0", "d_c0", "workspace")),
        (set_to("time_steps", -1), INVALID_SHAPE),
        (set_to("workspace_bytes", 256), WORKSPACE_TOO_SMALL),
    ],
}


@pytest.mark.parametrize("path", [1, 2, 3], ids=["step", "sequence", "cluster"])
@pytest.mark.parametrize("direction", REFUSED)
def test_a_call_with_one_bad_argument_is_refused_with_its_code(functions: Any, direction: str, path: int) -> None:
    assert Call(functions, path).run(direction) == 0
    for spoil, code in REFUSED[direction]:
        call = Call(functions, path)
        spoil(getattr(call, direction))
        assert call.run(direction) == code


@pytest.mark.parametrize("direction", REFUSED)
def test_a_workspace_must_begin_at_a_multiple_of_256(functions: Any, direction: str) -> None:
    call = Call(functions, 2)
    getattr(call, direction).workspace += 16
    assert call.run(direction) == MISALIGNED_WORKSPACE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("path", 0), ("path", 3), ("variant", 99), ("slice_rows", 0), ("slice_rows", 64), ("groups", 0),
        ("launches", 0), ("blocks_per_group", 1), ("cluster_size", 2), ("shared_bytes", 0),
    ],
)
@pytest.mark.parametrize("direction", REFUSED)
def test_a_plan_that_was_changed_is_refused(functions: Any, direction: str, name: str, value: int) -> None:
    call = Call(functions, 2)
    if name == "blocks_per_group" and getattr(call.plan, direction).blocks_per_group == value:
        pytest.skip("the plan has that already")
    setattr(getattr(call.plan, direction), name, value)
    assert call.run(direction) == INVALID_PLAN


def test_every_error_has_words_of_its_own(functions: Any) -> None:
    words = {code: functions.lstmfast_cuda_error_string(code).decode() for code in range(UNSUPPORTED_DEVICE, 1)}
    assert len(set(words.values())) == len(words)
    assert words[0] == "no error"
    assert functions.lstmfast_cuda_error_string(-99) == b"unknown error"


def test_missing_structs_are_refused(functions: Any) -> None:
    assert functions.lstmfast_cuda_forward(None, None, None) == MISSING_POINTER
    assert functions.lstmfast_cuda_device_count(None) == MISSING_POINTER
    assert functions.lstmfast_cuda_device_properties(0, None) == MISSING_POINTER
