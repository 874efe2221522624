"""The recurrent part of a sequence on a GPU: from z = x·kernel + bias to h, and from d_h to d_z, by a given plan.

Allocates through the caller's framework, fills in the C structs, launches on the framework's stream and returns without
waiting. Refuses to choose a plan (see `_health`), to check arguments and to make the products around it
(see `_sequences`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lstmfast.cuda import _library
from lstmfast.cuda._arrays import DeviceArray, Framework, Place, place_of
from lstmfast.cuda._library import DTYPES, WORKSPACE_ALIGNMENT, Library, Plan

GATES = 4


@dataclass(frozen=True, eq=False)
class Context:
    """Where things happen: the library, the framework, and an array of the device that all others are to lie on."""

    library: Library
    framework: Framework
    like: DeviceArray
    device: int


@dataclass(frozen=True, eq=False)
class Recurrence:
    """What forward and backward share. recurrent_kernel [H, 4H] and h0 [B, H] in the plan's dtype; c0 float32 [B, H];
    lengths int32 [B], resets uint8 [T, B]; None as in `lstm`."""

    recurrent_kernel: DeviceArray
    h0: DeviceArray | None
    c0: DeviceArray | None
    lengths: DeviceArray | None
    resets: DeviceArray | None
    reverse: bool
    dtype: str


@dataclass(frozen=True, eq=False)
class States:
    """What the forward pass leaves: h [T, B, H], h_n [B, H] in the plan's dtype; float32 c_n, cells, gates or None."""

    h: DeviceArray
    h_n: DeviceArray
    c_n: DeviceArray
    cells: DeviceArray | None
    gates: DeviceArray | None


def forward(
    on: Context, plan: Plan, z: DeviceArray, recurrence: Recurrence, *, keep_cells: bool, keep_gates: bool
) -> States:
    """Run z [T, B, 4H], float32 or the plan's dtype, through the recurrence."""
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
    places = _Places()
    workspace_bytes = on.library.workspace_bytes(plan, time_steps, backward=False)
    recurrent_kernel = places.of(recurrence.recurrent_kernel)
    arguments = _library.Forward(
        time_steps=time_steps, z=places(z), recurrent_kernel=recurrent_kernel.address,
        recurrent_kernel_stride=recurrent_kernel.strides[0],
        h0=places(recurrence.h0), c0=places(recurrence.c0),
        lengths=places(recurrence.lengths), resets=places(recurrence.resets),
        h=places(states.h), h_n=places(states.h_n), c_n=places(states.c_n),
        gates=places(states.gates), cells=places(states.cells),
        workspace=places.workspace(on, workspace_bytes), workspace_bytes=workspace_bytes,
        z_dtype=DTYPES[framework.dtype_of(z)], reverse=int(recurrence.reverse),
    )  # fmt: skip
    with framework.on_device_of(on.like):
        on.library.forward(on.device, plan, arguments, framework.stream(on.like))
    return states


def backward(
    on: Context,
    plan: Plan,
    recurrence: Recurrence,
    states: States,
    d_h: DeviceArray | None,
    d_h_n: DeviceArray | None,
    d_c_n: DeviceArray | None,
) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """Carry d_h [T, B, H], d_h_n in the plan's dtype and float32 d_c_n back: returns d_z [T, B, 4H], d_h0 and d_c0."""
    framework = on.framework
    time_steps, batch, hidden_size = states.h.shape
    d_z = framework.empty((time_steps, batch, GATES * hidden_size), recurrence.dtype, on.like)
    d_h0 = framework.empty((batch, hidden_size), recurrence.dtype, on.like)
    d_c0 = framework.empty((batch, hidden_size), "float32", on.like)
    places = _Places()
    workspace_bytes = on.library.workspace_bytes(plan, time_steps, backward=True)
    recurrent_kernel = places.of(recurrence.recurrent_kernel)
    arguments = _library.Backward(
        time_steps=time_steps, recurrent_kernel=recurrent_kernel.address,
        recurrent_kernel_stride=recurrent_kernel.strides[0], c0=places(recurrence.c0),
        gates=places(states.gates), cells=places(states.cells),
        lengths=places(recurrence.lengths), resets=places(recurrence.resets),
        d_h=places(d_h), d_h_n=places(d_h_n), d_c_n=places(d_c_n),
        d_z=places(d_z), d_h0=places(d_h0), d_c0=places(d_c0),
        workspace=places.workspace(on, workspace_bytes), workspace_bytes=workspace_bytes,
        reverse=int(recurrence.reverse),
    )  # fmt: skip
    with framework.on_device_of(on.like):
        on.library.backward(on.device, plan, arguments, framework.stream(on.like))
    return d_z, d_h0, d_c0


class _Places:
    """The addresses of a call's arrays, which it keeps alive until the launch is made."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def __call__(self, array: DeviceArray | None) -> int | None:
        if array is None:
            return None
        place = self.of(array)
        assert place.is_contiguous, "arrays come here contiguous"
        return place.address

    def of(self, array: DeviceArray) -> Place:
        place = place_of(array)
        self._kept.append(place)
        return place

    def workspace(self, on: Context, size_bytes: int) -> int:
        array = on.framework.empty((size_bytes + WORKSPACE_ALIGNMENT,), "uint8", on.like)
        address = self.of(array).address
        return -(-address // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT
