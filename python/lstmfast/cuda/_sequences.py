"""`lstm` and `lstm_backward` for arrays on a GPU: checks, the large products in the caller's framework, the kernels.

Called by `functional` when x lies on a device; results are arrays of the same framework and device, and nothing waits
for it, but for the first use of a kernel (see `_health`). dtypes float32 and bfloat16; c, cells and gates are float32
in either. What an LSTM computes is said in `reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import functional
from lstmfast.cuda import _health, _kernels, _library
from lstmfast.cuda._arrays import DeviceArray, Framework, framework_of, is_device_array, place_of
from lstmfast.cuda._kernels import GATES, Context, Recurrence, States

_DTYPES = ("float32", "bfloat16")
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
) -> functional.Output:
    """As `functional.lstm`, which says what the arguments are.

    lengths and resets may lie on the host, where they are checked, or on the device, where nobody looks at their
    values; nor at token ids. matmul_precision "medium" runs the recurrence of float32 arrays in bfloat16, with float32
    sums; "high" is "highest"; the products around it are as exact as the framework is set to make them.
    """
    on, inputs = context_of(x), _Inputs()
    framework = on.framework
    inputs.token_input = framework.dtype_of(x) in _IDS
    inputs.x = framework.plain(x)
    inputs.kernel = _float("kernel", kernel, on, ("rows", "columns"))
    rows, columns = inputs.kernel.shape
    dtype = framework.dtype_of(inputs.kernel)
    axes = 2 if inputs.token_input else 3
    if len(x.shape) != axes:
        raise ValueError(
            f"x must have shape (time_steps, batch, input_size) or be ids (time_steps, batch), got {tuple(x.shape)}"
        )
    time_steps, batch = x.shape[:2]
    hidden_size = columns // GATES
    input_size = rows - hidden_size
    if columns % GATES or columns == 0 or input_size < 0 or (not inputs.token_input and x.shape[2] != input_size):
        wanted = (
            "(vocabulary_size + hidden_size, 4*hidden_size)"
            if inputs.token_input
            else (f"(input_size + hidden_size, 4*hidden_size) with input_size {x.shape[-1]}")
        )
        raise ValueError(f"kernel must have shape {wanted}, got {(rows, columns)}")
    if hidden_size > _library.MAX_HIDDEN_SIZE:
        raise ValueError(
            f"kernel must have hidden_size of at most {_library.MAX_HIDDEN_SIZE} on a CUDA device, got {hidden_size}"
        )
    if not inputs.token_input:
        inputs.x = _float("x", inputs.x, on, (time_steps, batch, input_size), dtype)
    bias = _float("bias", bias, on, (columns,), dtype)
    state_shape = (batch, hidden_size)
    h0 = None if h0 is None else _float("h0", h0, on, state_shape, dtype)
    c0 = None if c0 is None else _float("c0", c0, on, state_shape)
    compute = "bfloat16" if dtype == "float32" and matmul_precision == "medium" and framework.name == "torch" else dtype
    inputs.recurrence = Recurrence(
        recurrent_kernel=_as(framework, inputs.kernel[input_size:], compute),
        h0=None if h0 is None else _as(framework, h0, compute),
        c0=None if c0 is None else _as(framework, c0, "float32"),
        lengths=_lengths(on, lengths, time_steps, batch),
        resets=_resets(on, resets, (time_steps, batch)),
        reverse=bool(reverse),
        dtype=compute,
    )

    training = bool(keep_for_backward)
    keep_cells, keep_gates = bool(return_cells) or training, bool(return_gates) or training
    if time_steps == 0 or batch == 0:
        plan, states = None, _nothing(on, inputs.recurrence, time_steps, batch, hidden_size)
    else:
        plan = _health.trusted_plan(on, hidden_size, batch, compute, training=training)
        z = _input_product(on, inputs, bias, forget_bias)
        states = _kernels.forward(on, plan, z, inputs.recurrence, keep_cells=keep_cells, keep_gates=keep_gates)
    kept = _Kept(on, plan, inputs, states, dtype) if training else None
    return functional.Output(
        _as(framework, states.h, dtype),
        _as(framework, states.h_n, dtype),
        states.c_n,
        states.cells if return_cells else None,
        states.gates if return_gates else None,
        kept,
    )


class _Inputs:
    """The arguments of a call, checked."""

    x: DeviceArray
    kernel: DeviceArray
    token_input: bool
    recurrence: Recurrence


@dataclass(frozen=True, eq=False)
class _Kept:
    """What a call leaves for its backward, which it brings itself."""

    on: Context
    plan: _library.Plan | None  # None where there was nothing to run
    inputs: _Inputs
    states: States
    dtype: str

    def backward(self, d_h: Any, d_h_n: Any, d_c_n: Any) -> functional.Gradients:
        """As `functional.lstm_backward`; derivatives come in the dtype of what they are derivatives by."""
        on, states, recurrence = self.on, self.states, self.inputs.recurrence
        framework = on.framework
        shape, state_shape = tuple(states.h.shape), tuple(states.h_n.shape)

        def derivative(name: str, value: Any, wanted: tuple[int, ...], dtype: str) -> DeviceArray | None:
            return None if value is None else _as(framework, _float(name, value, on, wanted), dtype)

        d_h = derivative("d_h", d_h, shape, recurrence.dtype)
        d_h_n = derivative("d_h_n", d_h_n, state_shape, recurrence.dtype)
        d_c_n = derivative("d_c_n", d_c_n, state_shape, "float32")
        if self.plan is None:
            zeros = framework.zeros((*shape[:2], GATES * shape[2]), recurrence.dtype, on.like)
            d_z = zeros
            d_h0 = framework.zeros(state_shape, recurrence.dtype, on.like) if d_h_n is None else d_h_n
            d_c0 = framework.zeros(state_shape, "float32", on.like) if d_c_n is None else d_c_n
        else:
            d_z, d_h0, d_c0 = _kernels.backward(on, self.plan, recurrence, states, d_h, d_h_n, d_c_n)
        return self._gradients(d_z, _as(framework, d_h0, self.dtype), d_c0)

    def _gradients(self, d_z: DeviceArray, d_h0: DeviceArray, d_c0: DeviceArray) -> functional.Gradients:
        framework, inputs = self.on.framework, self.inputs
        time_steps, batch, hidden_size = self.states.h.shape
        d_rows = d_z.reshape(time_steps * batch, GATES * hidden_size)
        input_size = inputs.kernel.shape[0] - hidden_size
        useful = self._useful()
        h_prev = self._h_prev(useful).reshape(time_steps * batch, hidden_size)
        if inputs.token_input:
            ids = inputs.x.reshape(time_steps * batch)
            if useful is not None:  # an id past a row's end may be anything
                ids = framework.choose(useful.reshape(time_steps * batch), ids)
            d_x = None
            d_input_kernel = framework.add_rows(_as(framework, d_rows, self.dtype), ids, input_size)
        else:
            x = inputs.x if useful is None else framework.choose(useful, inputs.x)
            rows = x.reshape(time_steps * batch, input_size)
            d_input_kernel = framework.product(rows.T, d_rows, self.dtype)
            d_x = framework.product(d_rows, inputs.kernel[:input_size].T, self.dtype).reshape(inputs.x.shape)
        return functional.Gradients(
            x=d_x,
            kernel=framework.join([d_input_kernel, framework.product(h_prev.T, d_rows, self.dtype)]),
            bias=framework.column_sums(d_rows, self.dtype),
            h0=d_h0,
            c0=d_c0,
        )

    def _steps(self) -> DeviceArray:
        """The numbers of the time steps, [T, 1]."""
        return self.on.framework.from_host(np.arange(self.states.h.shape[0], dtype=np.int32)[:, None], self.on.like)

    def _useful(self) -> DeviceArray | None:
        """Mask [T, B, 1]: the step is one of the row's own. None where all are."""
        lengths = self.inputs.recurrence.lengths
        return None if lengths is None else (self._steps() < lengths[None, :])[:, :, None]

    def _h_prev(self, useful: DeviceArray | None) -> DeviceArray:
        """h [T, B, H] before each step: the state that it really started from, zero past a row's end."""
        framework, recurrence, h = self.on.framework, self.inputs.recurrence, self.states.h
        h0 = framework.zeros(h.shape[1:], recurrence.dtype, self.on.like) if recurrence.h0 is None else recurrence.h0
        if not recurrence.reverse:
            h_prev = framework.join([h0[None], h[:-1]]) if h.shape[0] else h
        else:
            h_prev = framework.join([h[1:], h0[None]]) if h.shape[0] else h
            if useful is not None:  # a row begins at its own last step
                begins = (self._steps() == recurrence.lengths[None, :] - 1)[:, :, None]  # type: ignore[index]
                h_prev = framework.choose(~begins, h_prev) + framework.choose(begins, h0[None] + h * 0)
        if useful is not None:
            h_prev = framework.choose(useful, h_prev)
        if recurrence.resets is not None:
            h_prev = framework.choose((recurrence.resets == 0)[:, :, None], h_prev)
        return h_prev


def context_of(x: DeviceArray) -> Context:
    """Where x lies. Raises TypeError for a framework that cannot be used, CudaUnavailableError without kernels."""
    framework = framework_of("x", x)
    x = framework.plain(x)
    library = _library.require()
    return Context(library, framework, x, max(place_of(x).device, 0))


def _input_product(on: Context, inputs: _Inputs, bias: DeviceArray, forget_bias: float) -> DeviceArray:
    """z [T, B, 4H] = x·kernel + bias, forget_bias on the forget gate's columns, float32."""
    framework, kernel = on.framework, inputs.kernel
    columns = kernel.shape[1]
    hidden_size = columns // GATES
    input_size = kernel.shape[0] - hidden_size
    time_steps, batch = inputs.x.shape[:2]
    offset = np.zeros(columns, np.float32)
    offset[hidden_size : 2 * hidden_size] = forget_bias
    bias = framework.cast(bias, "float32")
    if forget_bias:
        bias = bias + framework.from_host(offset, on.like)
    if inputs.token_input:
        ids = inputs.x.reshape(time_steps * batch)
        if (lengths := inputs.recurrence.lengths) is not None:  # an id past a row's end may be anything
            steps = framework.from_host(np.arange(time_steps, dtype=np.int32)[:, None], on.like)
            ids = framework.choose((steps < lengths[None, :]).reshape(time_steps * batch), ids)
        product = framework.cast(framework.rows_at(kernel[:input_size], ids), "float32")
    else:
        rows = inputs.x.reshape(time_steps * batch, input_size)
        product = framework.product(rows, kernel[:input_size], "float32")
    return framework.contiguous((product + bias).reshape(time_steps, batch, columns))


def _nothing(on: Context, recurrence: Recurrence, time_steps: int, batch: int, hidden_size: int) -> States:
    """The states of no steps, or of no rows."""

    def zeros(*shape: int, dtype: str = "float32") -> DeviceArray:
        return on.framework.zeros(shape, dtype, on.like)

    return States(
        h=zeros(time_steps, batch, hidden_size, dtype=recurrence.dtype),
        h_n=zeros(batch, hidden_size, dtype=recurrence.dtype) if recurrence.h0 is None else recurrence.h0 * 1,
        c_n=zeros(batch, hidden_size) if recurrence.c0 is None else recurrence.c0 * 1,
        cells=zeros(time_steps, batch, hidden_size),
        gates=zeros(time_steps, batch, GATES, hidden_size),
    )


# --- checks -----------------------------------------------------------------------------------------------------------


def _float(name: str, value: Any, on: Context, shape: tuple[check.Size, ...], dtype: str | None = None) -> DeviceArray:
    """A float array of x's framework on x's device, of this shape and, if it is given, this dtype."""
    _same_place(name, value, on)
    given = on.framework.dtype_of(value)
    if given not in _DTYPES:
        raise TypeError(f"{name} must be float32 or bfloat16 on a CUDA device, got {given}")
    if dtype is not None and given != dtype:
        raise TypeError(f"{name} must be {dtype} like kernel, got {given}; nothing is converted silently")
    _has_shape(name, value, shape)
    return on.framework.plain(value)


def _same_place(name: str, value: Any, on: Context) -> None:
    if not is_device_array(value):
        raise TypeError(f"{name} must lie on the CUDA device like x, got {type(value).__name__} on the host")
    if framework_of(name, value) is not on.framework:
        raise TypeError(f"{name} must be an array of {on.framework.name} like x, got {type(value).__name__}")
    if (number := max(place_of(on.framework.plain(value)).device, 0)) != on.device:
        raise ValueError(f"{name} must lie on device {on.device} like x, got device {number}")


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
    if is_device_array(value):
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
    if is_device_array(value):
        _same_place("resets", value, on)
        if on.framework.dtype_of(value) != "bool":
            raise TypeError(f"resets must be a bool array, got {on.framework.dtype_of(value)}")
        _has_shape("resets", value, shape)
        return _as(on.framework, on.framework.plain(value), "uint8")
    flags: npt.NDArray[Any] | None = check.resets(value, shape, "(time_steps, batch)")
    assert flags is not None
    return on.framework.from_host(flags.astype(np.uint8), on.like)
