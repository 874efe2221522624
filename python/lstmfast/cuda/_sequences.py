"""`lstm` and `lstm_backward` for arrays on a GPU: checks, the large products in the caller's framework, the kernels.

Called by `functional` when x is on a device; results are arrays of the same framework and device, and only the first
use of a kernel waits for the device (see `_health`). dtypes float32 and bfloat16; c, cells and gates are always
float32. `reference` defines an LSTM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import gates as gate_order
from lstmfast._engine.devices import is_on_device
from lstmfast._engine.results import Gradients, Output
from lstmfast.cuda import _health, _kernels, _library
from lstmfast.cuda._arrays import DeviceArray, Framework, JaxBridge, framework_of
from lstmfast.cuda._kernels import GATES, Context, Recurrence, States

_DTYPES = ("float32", "bfloat16")
FEATURES: frozenset[str] = frozenset()
"""Features of a cell that the kernels have: see `cells.check_features`."""
PLACE = "on a CUDA device"

_IDS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def lstm(
    x: DeviceArray,
    kernel: DeviceArray,
    bias: DeviceArray,
    h0: DeviceArray | None,
    c0: DeviceArray | None,
    *,
    lengths: Any,
    resets: Any,
    reverse: bool,
    forget_bias: float,
    return_cells: bool,
    return_gates: bool,
    keep_for_backward: bool,
    matmul_precision: str,
) -> Output:
    """As `functional.lstm`, which documents the arguments.

    lengths and resets may be on the host, where they are checked, or on the device, where their values are not; nor are
    those of token ids. matmul_precision "medium" runs the recurrence of float32 arrays in bfloat16, with float32
    sums; "high" is "highest"; the products around it are as exact as the framework is set to make them.
    """
    if JaxBridge.serves(x):
        bridge = JaxBridge(x)
        taken = map(bridge.take, (x, kernel, bias, h0, c0))
        out = lstm(
            *taken, lengths=bridge.take(lengths), resets=bridge.take(resets), reverse=reverse, forget_bias=forget_bias,
            return_cells=return_cells, return_gates=return_gates, keep_for_backward=keep_for_backward,
            matmul_precision=matmul_precision,
        )
        h, h_n, c_n, cells, gates = map(bridge.give_back, (out.h, out.h_n, out.c_n, out.cells, out.gates))
        saved = None if out._saved is None else _SavedAcross(bridge, out)
        return Output(h, h_n, c_n, cells, gates, saved)
    on, training = context_of(x), bool(keep_for_backward)
    framework = on.framework
    plan: _library.Plan | None = None
    with framework.undisturbed(on.like):
        given = _checked(on, x, kernel, h0, c0, lengths, resets, reverse, matmul_precision)
        bias = _float("bias", bias, on, (given.kernel.shape[1],), given.dtype)
        time_steps, batch = given.x.shape[:2]
        if time_steps == 0 or batch == 0:
            states = _nothing(given)
        else:
            plan = _health.trusted_plan(on, given.hidden_size, batch, given.recurrence.dtype, training=training)
            states = _kernels.forward(
                on, plan, _input_product(given, bias, forget_bias), given.recurrence,
                keep_cells=bool(return_cells) or training, keep_gates=bool(return_gates) or training,
            )
        h, h_n = (_as(framework, array, given.dtype) for array in (states.h, states.h_n))
    return Output(
        h,
        h_n,
        states.c_n,
        states.cells if return_cells else None,
        states.gates if return_gates else None,
        _Saved(given, plan, states) if training else None,
    )


def saved_from(
    x: DeviceArray,
    kernel: DeviceArray,
    h0: DeviceArray | None,
    c0: DeviceArray | None,
    h: DeviceArray,
    cells: DeviceArray,
    gates: DeviceArray,
    *,
    lengths: Any,
    resets: Any,
    reverse: bool,
    matmul_precision: str,
) -> Output:
    """An output that `lstm_backward` takes, from the arrays of an earlier call with return_cells and return_gates.

    For callers that can keep only arrays between the two: custom operators of a framework.
    """
    on = context_of(x)
    plan: _library.Plan | None = None
    with on.framework.undisturbed(on.like):
        given = _checked(on, x, kernel, h0, c0, lengths, resets, reverse, matmul_precision)
        time_steps, batch = given.x.shape[:2]
        if time_steps and batch:
            plan = _health.trusted_plan(on, given.hidden_size, batch, given.recurrence.dtype, training=True)
        dtype, shape = given.recurrence.dtype, (time_steps, batch, given.hidden_size)
        states = States(
            h=_as(on.framework, _float("h", h, on, shape), dtype),
            h_n=on.framework.empty(shape[1:], dtype, on.like),
            c_n=on.framework.empty(shape[1:], "float32", on.like),
            cells=_as(on.framework, _float("cells", cells, on, shape), "float32"),
            gates=_as(on.framework, _float("gates", gates, on, (*shape[:2], GATES, shape[2])), "float32"),
        )
    return Output(states.h, states.h_n, states.c_n, states.cells, states.gates, _Saved(given, plan, states))


@dataclass(frozen=True, eq=False)
class _Given:
    """The checked arguments of a call; the recurrence in its compute dtype, the others in their own."""

    on: Context
    x: DeviceArray
    kernel: DeviceArray
    token_input: bool
    dtype: str
    recurrence: Recurrence

    @property
    def hidden_size(self) -> int:
        return int(self.kernel.shape[1]) // GATES

    @property
    def input_size(self) -> int:
        return int(self.kernel.shape[0]) - self.hidden_size

    def useful(self) -> DeviceArray | None:
        """Mask [T, B, 1]: the step is within the row's length. None if all are."""
        lengths = self.recurrence.lengths
        return None if lengths is None else (self.steps() < lengths[None, :])[:, :, None]

    def steps(self) -> DeviceArray:
        """The numbers of the time steps, [T, 1]."""
        return self.on.framework.numbers_to(self.x.shape[0], self.on.like)[:, None]

    def ids(self) -> DeviceArray:
        """Token ids [T*B]; 0 past a row's end, where any value is allowed."""
        ids, useful = self.x.reshape(-1), self.useful()
        return ids if useful is None else self.on.framework.choose(useful.reshape(-1), ids)


@dataclass(frozen=True, eq=False)
class _Saved:
    """What a call saves for backward, and the backward pass."""

    given: _Given
    plan: _library.Plan | None  # None if there was nothing to run
    states: States

    def backward(self, d_h: Any, d_h_n: Any, d_c_n: Any) -> Gradients:
        """As `functional.lstm_backward`."""
        on, states, recurrence = self.given.on, self.states, self.given.recurrence
        framework = on.framework
        shape, state_shape = tuple(states.h.shape), tuple(states.h_n.shape)

        def derivative(name: str, value: Any, wanted: tuple[int, ...], dtype: str) -> DeviceArray | None:
            return None if value is None else _as(framework, _float(name, value, on, wanted), dtype)

        with framework.undisturbed(on.like):
            d_h = derivative("d_h", d_h, shape, recurrence.dtype)
            d_h_n = derivative("d_h_n", d_h_n, state_shape, recurrence.dtype)
            d_c_n = derivative("d_c_n", d_c_n, state_shape, "float32")
            if self.plan is None:
                d_z = framework.zeros((*shape[:2], GATES * shape[2]), recurrence.dtype, on.like)
                d_h0 = framework.zeros(state_shape, recurrence.dtype, on.like) if d_h_n is None else d_h_n
                d_c0 = framework.zeros(state_shape, "float32", on.like) if d_c_n is None else d_c_n
            else:
                d_z, d_h0, d_c0 = _kernels.backward(on, self.plan, recurrence, states, d_h, d_h_n, d_c_n)
            return self._gradients(d_z, _as(framework, d_h0, self.given.dtype), d_c0)

    def _gradients(self, d_z: DeviceArray, d_h0: DeviceArray, d_c0: DeviceArray) -> Gradients:
        given, framework = self.given, self.given.on.framework
        count = d_z.shape[0] * d_z.shape[1]
        d_rows = d_z.reshape(count, d_z.shape[2])
        useful = given.useful()
        d_x = None
        if given.token_input:
            d_input_kernel = framework.add_rows(_as(framework, d_rows, given.dtype), given.ids(), given.input_size)
        else:
            x = given.x if useful is None else framework.choose(useful, given.x)  # avoids 0 * nan
            d_input_kernel = framework.product(x.reshape(count, given.input_size).T, d_rows, given.dtype)
            d_x = framework.product(d_rows, given.kernel[: given.input_size].T, given.dtype).reshape(given.x.shape)
        h_prev = self._h_prev(useful).reshape(count, given.hidden_size)
        d_recurrent_kernel = framework.product(h_prev.T, d_rows, given.dtype)
        return Gradients(
            x=d_x,
            kernel=framework.join([d_input_kernel, d_recurrent_kernel]),
            bias=framework.column_sums(d_rows, given.dtype),
            h0=d_h0,
            c0=d_c0,
        )

    def _h_prev(self, useful: DeviceArray | None) -> DeviceArray:
        """h [T, B, H] before each step, after resets; zero past a row's end."""
        given, h = self.given, self.states.h
        framework, recurrence = given.on.framework, given.recurrence
        if not h.shape[0]:
            return h
        h0 = framework.zeros(h.shape[1:], recurrence.dtype, given.on.like) if recurrence.h0 is None else recurrence.h0
        if not recurrence.reverse:
            h_prev = framework.join([h0[None], h[:-1]])
        elif recurrence.lengths is None:
            h_prev = framework.join([h[1:], h0[None]])
        else:  # a row starts at its own last step
            begins = (given.steps() == recurrence.lengths[None, :] - 1)[:, :, None]
            h_next = framework.join([h[1:], h[:1]])
            h_prev = framework.choose(~begins, h_next) + framework.choose(begins, h0[None] + h * 0)
        if useful is not None:
            h_prev = framework.choose(useful, h_prev)
        if recurrence.resets is not None:
            h_prev = framework.choose((recurrence.resets == 0)[:, :, None], h_prev)
        return h_prev


@dataclass(frozen=True, eq=False)
class _SavedAcross:
    """What a call with JAX arrays saves for backward."""

    bridge: JaxBridge
    out: Output

    def backward(self, d_h: Any, d_h_n: Any, d_c_n: Any) -> Gradients:
        """As `functional.lstm_backward`."""
        assert self.out._saved is not None
        d = self.out._saved.backward(*map(self.bridge.take, (d_h, d_h_n, d_c_n)))
        return Gradients(*map(self.bridge.give_back, (d.x, d.kernel, d.bias, d.h0, d.c0)))


def context_of(x: DeviceArray) -> Context:
    """The context of x's device. Raises TypeError for an unknown framework, CudaUnavailableError without kernels."""
    framework = framework_of("x", x)
    x = framework.plain(x)
    library = _library.require()
    return Context(library, framework, x, framework.device_number(x))


def _input_product(given: _Given, bias: DeviceArray, forget_bias: float) -> DeviceArray:
    """z [T, B, 4H] = x·kernel + bias, forget_bias on the forget gate's columns, float32."""
    framework, (time_steps, batch) = given.on.framework, given.x.shape[:2]
    input_kernel = given.kernel[: given.input_size]
    bias = framework.cast(bias, "float32")
    if forget_bias:
        bias = bias * 1
        bias[gate_order.columns("forget", given.hidden_size)] += forget_bias
    if given.token_input:
        product = framework.cast(framework.rows_at(input_kernel, given.ids()), "float32")
    else:
        product = framework.product(given.x.reshape(time_steps * batch, given.input_size), input_kernel, "float32")
    return framework.contiguous((product + bias).reshape(time_steps, batch, GATES * given.hidden_size))


def _nothing(given: _Given) -> States:
    """The states of no steps, or of no rows."""
    framework, like, recurrence = given.on.framework, given.on.like, given.recurrence
    time_steps, batch = given.x.shape[:2]
    shape, dtype = (time_steps, batch, given.hidden_size), recurrence.dtype
    return States(
        h=framework.zeros(shape, dtype, like),
        h_n=framework.zeros(shape[1:], dtype, like) if recurrence.h0 is None else recurrence.h0 * 1,
        c_n=framework.zeros(shape[1:], "float32", like) if recurrence.c0 is None else recurrence.c0 * 1,
        cells=framework.zeros(shape, "float32", like),
        gates=framework.zeros((time_steps, batch, GATES, given.hidden_size), "float32", like),
    )


# --- checks -----------------------------------------------------------------------------------------------------------


def _checked(
    on: Context,
    x: Any,
    kernel: Any,
    h0: Any,
    c0: Any,
    lengths: Any,
    resets: Any,
    reverse: bool,
    matmul_precision: str,
) -> _Given:
    framework = on.framework
    token_input = framework.dtype_of(x) in _IDS
    kernel = _float("kernel", kernel, on, ("rows", "columns"))
    rows, columns = kernel.shape
    dtype = framework.dtype_of(kernel)
    if len(x.shape) != (2 if token_input else 3):
        raise ValueError(
            f"x must have shape (time_steps, batch, input_size) or be ids (time_steps, batch), got {tuple(x.shape)}"
        )
    time_steps, batch = x.shape[:2]
    hidden_size = columns // GATES
    input_size = rows - hidden_size
    if columns % GATES or columns == 0 or input_size < 0 or (not token_input and x.shape[2] != input_size):
        wanted = "(vocabulary_size + hidden_size, 4*hidden_size)"
        if not token_input:
            wanted = f"(input_size + hidden_size, 4*hidden_size) with input_size {x.shape[2]}"
        raise ValueError(f"kernel must have shape {wanted}, got {(rows, columns)}")
    if hidden_size > _library.MAX_HIDDEN_SIZE:
        raise ValueError(
            f"kernel must have hidden_size of at most {_library.MAX_HIDDEN_SIZE} on a CUDA device, got {hidden_size}"
        )
    x = framework.plain(x) if token_input else _float("x", x, on, (time_steps, batch, input_size), dtype)
    h0 = None if h0 is None else _float("h0", h0, on, (batch, hidden_size), dtype)
    c0 = None if c0 is None else _float("c0", c0, on, (batch, hidden_size))
    narrow = matmul_precision == "medium" and framework.has_bfloat16
    compute = "bfloat16" if narrow else dtype
    recurrence = Recurrence(
        recurrent_kernel=_as(framework, kernel[input_size:], compute),
        h0=None if h0 is None else _as(framework, h0, compute),
        c0=None if c0 is None else _as(framework, c0, "float32"),
        lengths=_lengths(on, lengths, time_steps, batch),
        resets=_resets(on, resets, (time_steps, batch)),
        reverse=bool(reverse),
        dtype=compute,
    )
    return _Given(on, x, kernel, token_input, dtype, recurrence)


def _float(name: str, value: Any, on: Context, shape: tuple[check.Size, ...], dtype: str | None = None) -> DeviceArray:
    """A float array of x's framework on x's device, of this shape and, if given, this dtype."""
    _same_place(name, value, on)
    given = on.framework.dtype_of(value)
    if given not in _DTYPES:
        raise TypeError(f"{name} must be float32 or bfloat16 on a CUDA device, got {given}")
    if dtype is not None and given != dtype:
        raise TypeError(f"{name} must be {dtype} like kernel, got {given}; nothing is converted silently")
    _has_shape(name, value, shape)
    return on.framework.plain(value)


def _same_place(name: str, value: Any, on: Context) -> None:
    if not on.framework.owns(value):
        if is_on_device(value):
            raise TypeError(f"{name} must be an array of {on.framework.name} like x, got {type(value).__name__}")
        raise TypeError(f"{name} must be on the CUDA device like x, got {type(value).__name__} on the host")
    if (number := on.framework.device_number(value)) != on.device:
        raise ValueError(f"{name} must be on device {on.device} like x, got device {number}")


def _has_shape(name: str, value: Any, shape: tuple[check.Size, ...]) -> None:
    given = tuple(value.shape)
    if len(given) != len(shape) or any(
        not isinstance(wanted, str) and size != wanted for size, wanted in zip(given, shape, strict=True)
    ):
        raise ValueError(f"{name} must have shape ({', '.join(map(str, shape))}), got {given}")


def _as(framework: Framework, array: DeviceArray, dtype: str) -> DeviceArray:
    return framework.contiguous(array if framework.dtype_of(array) == dtype else framework.cast(array, dtype))


def _lengths(on: Context, value: Any, time_steps: int, batch: int) -> DeviceArray | None:
    if value is None:
        return None
    if is_on_device(value):
        _same_place("lengths", value, on)
        if on.framework.dtype_of(value) not in _IDS:
            raise TypeError(f"lengths must be integers, got {on.framework.dtype_of(value)}")
        _has_shape("lengths", value, (batch,))
        return _as(on.framework, on.framework.plain(value), "int32")
    numbers = check.lengths(value, time_steps, batch)
    assert numbers is not None
    return on.framework.from_host(numbers.astype(np.int32), on.like)


def _resets(on: Context, value: Any, shape: tuple[int, int]) -> DeviceArray | None:
    if value is None:
        return None
    if is_on_device(value):
        _same_place("resets", value, on)
        if on.framework.dtype_of(value) != "bool":
            raise TypeError(f"resets must be a bool array, got {on.framework.dtype_of(value)}")
        _has_shape("resets", value, shape)
        return _as(on.framework, on.framework.plain(value), "uint8")
    flags: npt.NDArray[Any] | None = check.resets(value, shape, "(time_steps, batch)")
    assert flags is not None
    return on.framework.from_host(flags.astype(np.uint8), on.like)
