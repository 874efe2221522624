"""The recurrent part of a sequence on a GPU: from z = x·kernel + bias to h, and from d_h to d_z, by a given plan.

Allocates through the caller's framework, fills in the C structs, launches on the framework's stream and returns without
waiting. Refuses to choose a plan (see `_health`), to check arguments and to compute the products around
it (see `_sequences`).
"""

from __future__ import annotations

from dataclasses import dataclass

from lstmfast.cuda import _library
from lstmfast.cuda._arrays import DeviceArray, Framework
from lstmfast.cuda._library import DTYPES, WORKSPACE_ALIGNMENT, Library, Plan

GATES = 4
_STATUS_BYTES = 4  # at the workspace's start; nonzero: a LstmfastCudaStatus


@dataclass(frozen=True, eq=False)
class Context:
    """Where a call runs: the library, the framework, and an array on the device that all others must share."""

    library: Library
    framework: Framework
    like: DeviceArray
    device: int


@dataclass(frozen=True, eq=False)
class Recurrence:
    """Shared arguments of both passes. recurrent_kernel [H, 4H] and h0 [B, H] in the plan's dtype; c0 float32 [B, H];
    lengths int32 [B], resets uint8 [T, B]; None as in `lstm`. All arrays, here and below, are contiguous."""

    recurrent_kernel: DeviceArray
    h0: DeviceArray | None
    c0: DeviceArray | None
    lengths: DeviceArray | None
    resets: DeviceArray | None
    reverse: bool
    dtype: str


@dataclass(frozen=True, eq=False)
class States:
    """Results of the forward pass: h [T, B, H], h_n [B, H] in the plan's dtype; float32 c_n, cells, gates or None."""

    h: DeviceArray
    h_n: DeviceArray
    c_n: DeviceArray
    cells: DeviceArray | None
    gates: DeviceArray | None


def forward(
    on: Context,
    plan: Plan,
    z: DeviceArray,
    recurrence: Recurrence,
    *,
    keep_cells: bool,
    keep_gates: bool,
    check_status: bool = False,
) -> States:
    """Run z [T, B, 4H], float32 or the plan's dtype, through the recurrence. With `check_status`, wait for the device
    and raise RuntimeError if a block gave up waiting for another."""
    framework = on.framework
    time_steps, batch = z.shape[:2]
    hidden_size = z.shape[2] // GATES

    def empty(*shape: int, dtype: str = "float32") -> DeviceArray:
        return framework.empty(shape, dtype, on.like)

    states = States(
        h=empty(time_steps, batch, hidden_size, dtype=recurrence.dtype),
        h_n=empty(batch, hidden_size, dtype=recurrence.dtype),
        c_n=empty(batch, hidden_size),
        cells=empty(time_steps, batch, hidden_size) if keep_cells else None,
        gates=empty(time_steps, batch, GATES, hidden_size) if keep_gates else None,
    )
    workspace, workspace_address, workspace_bytes = _workspace(on, plan, time_steps, backward=False)

    def at(array: DeviceArray | None) -> int | None:
        return None if array is None else framework.address(array)

    arguments = _library.Forward(
        time_steps=time_steps, z=at(z),
        recurrent_kernel=at(recurrence.recurrent_kernel), recurrent_kernel_stride=GATES * hidden_size,
        h0=at(recurrence.h0), c0=at(recurrence.c0), lengths=at(recurrence.lengths), resets=at(recurrence.resets),
        h=at(states.h), h_n=at(states.h_n), c_n=at(states.c_n), gates=at(states.gates), cells=at(states.cells),
        workspace=workspace_address, workspace_bytes=workspace_bytes,
        z_dtype=DTYPES[framework.dtype_of(z)], reverse=int(recurrence.reverse),
    )
    with framework.on_device_of(on.like):
        on.library.forward(on.device, plan, arguments, framework.stream(on.like))
    if check_status:
        _check_status(on, workspace, workspace_address)
    del workspace  # the framework reuses it in stream order
    return states


def backward(
    on: Context,
    plan: Plan,
    recurrence: Recurrence,
    states: States,
    d_h: DeviceArray | None,
    d_h_n: DeviceArray | None,
    d_c_n: DeviceArray | None,
    *,
    check_status: bool = False,
) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """Backpropagate d_h [T, B, H], d_h_n in the plan's dtype and float32 d_c_n: returns d_z [T, B, 4H], d_h0 and d_c0.

    `check_status` as in `forward`.
    """
    framework = on.framework
    time_steps, batch, hidden_size = states.h.shape
    d_z = framework.empty((time_steps, batch, GATES * hidden_size), recurrence.dtype, on.like)
    d_h0 = framework.empty((batch, hidden_size), recurrence.dtype, on.like)
    d_c0 = framework.empty((batch, hidden_size), "float32", on.like)
    workspace, workspace_address, workspace_bytes = _workspace(on, plan, time_steps, backward=True)

    def at(array: DeviceArray | None) -> int | None:
        return None if array is None else framework.address(array)

    arguments = _library.Backward(
        time_steps=time_steps,
        recurrent_kernel=at(recurrence.recurrent_kernel), recurrent_kernel_stride=GATES * hidden_size,
        c0=at(recurrence.c0), gates=at(states.gates), cells=at(states.cells),
        lengths=at(recurrence.lengths), resets=at(recurrence.resets),
        d_h=at(d_h), d_h_n=at(d_h_n), d_c_n=at(d_c_n), d_z=at(d_z), d_h0=at(d_h0), d_c0=at(d_c0),
        workspace=workspace_address, workspace_bytes=workspace_bytes,
        reverse=int(recurrence.reverse),
    )
    with framework.on_device_of(on.like):
        on.library.backward(on.device, plan, arguments, framework.stream(on.like))
    if check_status:
        _check_status(on, workspace, workspace_address)
    del workspace
    return d_z, d_h0, d_c0


def _workspace(on: Context, plan: Plan, time_steps: int, *, backward: bool) -> tuple[DeviceArray, int, int]:
    """Memory for a launch, the aligned address in it, and the number of usable bytes from there."""
    size_bytes = on.library.workspace_bytes(plan, time_steps, backward=backward)
    memory = on.framework.empty((size_bytes + WORKSPACE_ALIGNMENT,), "uint8", on.like)
    address = on.framework.address(memory)
    return memory, -(-address // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT, size_bytes


def _check_status(on: Context, workspace: DeviceArray, address: int) -> None:
    first = address - on.framework.address(workspace)
    if on.framework.to_host(workspace[first : first + _STATUS_BYTES]).any():
        raise RuntimeError("a block gave up waiting for a row of another block, so that results are NaN")
