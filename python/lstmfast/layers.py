"""Layers: weights that live in one buffer, and the state that one call leaves for the next.

`ParameterBuffer` owns the arrays, `LSTMCell` names them, `LSTM` stacks cells over time, depth and direction,
`Embedding` and `Linear` stand before and after it. Layers declare the shapes they need and bind to views, so that a
model can keep all of its layers in one buffer.
Refuses to update weights (see `optimizers`) and to know of losses (see `losses`). One object serves one thread at a
time: between a call and its `backward` it remembers the call.

Layers can be copied and pickled. Of a copy the parameters are again views of one buffer; `copy.copy` shares that buffer
with the original. What a call with training=True has left for `backward` stays with the original.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar, cast, overload

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import _core, _memory, functional, initializers, runtime
from lstmfast._checks import Array, State
from lstmfast._engine.devices import is_on_device
from lstmfast.cells import Cell
from lstmfast.cuda._layers import LayerOnDevice
from lstmfast.gates import Gates
from lstmfast.initializers import Initializer, Shape


@dataclass(frozen=True, eq=False)
class ParameterBuffer:
    """Parameters and their gradients: two contiguous 1-D arrays, and views of them by name.

    `values`, `gradient_values` [count]; `parameters`, `gradients`: dicts name -> array of that variable's shape.
    Layers that share a buffer still share one after they have been copied or pickled together.
    """

    values: Array
    gradient_values: Array
    parameters: dict[str, Array]
    gradients: dict[str, Array]
    # Of a part: the buffer it is a part of, and where in it.
    _whole: ParameterBuffer | None = field(default=None, repr=False)
    _start: int = field(default=0, repr=False)

    @classmethod
    def allocate(cls, shapes: Mapping[str, Shape | Mapping[str, Shape]], dtype: npt.DTypeLike) -> ParameterBuffer:
        """Return a buffer of zeros that holds variables of these shapes, in this order.

        Where a shape is itself a mapping, as the layers' `shapes` return it, its variables are named "outer.inner" and
        `part("outer.")` is the storage of that layer.
        """
        flat: dict[str, Shape] = {}
        for name, shape in shapes.items():
            flat |= (
                {f"{name}.{inner}": s for inner, s in shape.items()} if isinstance(shape, Mapping) else {name: shape}
            )
        count = sum(math.prod(shape) for shape in flat.values())
        return cls._bind(np.zeros(count, dtype), np.zeros(count, dtype), flat)

    def part(self, prefix: str) -> ParameterBuffer:
        """Return the variables whose names begin with `prefix`, without it: views of this buffer, contiguous too.

        Raises ValueError if there are none or if others lie between them.
        """
        names = list(self.parameters)
        chosen = [name for name in names if name.startswith(prefix)]
        first = names.index(chosen[0]) if chosen else 0
        if not chosen or names[first : first + len(chosen)] != chosen:
            raise ValueError(f"prefix must name variables that lie side by side, got {prefix!r} for {', '.join(names)}")
        start = sum(self.parameters[name].size for name in names[:first])
        shapes = {name.removeprefix(prefix): self.parameters[name].shape for name in chosen}
        return self._part_at(start, shapes)

    def _part_at(self, start: int, shapes: Mapping[str, Shape]) -> ParameterBuffer:
        whole = self if self._whole is None else self._whole
        values, gradient_values, start = whole.values, whole.gradient_values, start + self._start
        return self._bind(values[start:], gradient_values[start:], shapes, whole, start)

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied views know nothing of each other: what is copied is the whole buffer, and parts are taken of that.
        shapes = {name: view.shape for name, view in self.parameters.items()}
        if self._whole is None:
            return type(self)._bind, (np.asarray(self.values), np.asarray(self.gradient_values), shapes)
        return type(self)._part_at, (self._whole, self._start, shapes)

    def fill(self, initializer: Initializer | None, rng: np.random.Generator | None) -> None:
        """Give every variable its first value: `initializer(name, shape, rng)`, `initializers.default` if None.

        rng None draws a seed from the operating system. Raises ValueError naming a variable whose shape came out wrong.
        """
        rng = np.random.default_rng() if rng is None else check.generator("rng", rng)
        for name, view in self.parameters.items():
            values = np.asarray((initializer or initializers.default)(name, view.shape, rng))
            check.has_shape(f"initializer's value for {name}", values, view.shape)
            view[...] = values

    @classmethod
    def _bind(
        cls,
        values: Array,
        gradient_values: Array,
        shapes: Mapping[str, Shape],
        whole: ParameterBuffer | None = None,
        offset: int = 0,
    ) -> ParameterBuffer:
        parameters, gradients, start = {}, {}, 0
        for name, shape in shapes.items():
            end = start + math.prod(shape)
            parameters[name] = values[start:end].reshape(shape)
            gradients[name] = gradient_values[start:end].reshape(shape)
            start = end
        return cls(values[:start], gradient_values[:start], parameters, gradients, whole, offset)


class OfParameters:
    """What layers and models have in common: parameters and gradients in a `ParameterBuffer`.

    Copies and pickles hold the buffer, and bind the views of it again; `_scratch_names` are left out.
    """

    parameters: dict[str, Array]
    gradients: dict[str, Array]
    parameter_buffer: Array
    gradient_buffer: Array
    _view_names: ClassVar[tuple[str, ...]] = ("parameters", "gradients", "parameter_buffer", "gradient_buffer")
    _scratch_names: ClassVar[tuple[str, ...]] = ()

    def _bind(self, storage: ParameterBuffer) -> None:
        """Name the views of the buffer."""
        self._storage = storage
        self.parameters, self.gradients = storage.parameters, storage.gradients
        self.parameter_buffer, self.gradient_buffer = storage.values, storage.gradient_values

    def _begin(self) -> None:
        """Make what calls leave for the next ones, empty."""

    def __getstate__(self) -> dict[str, Any]:
        left_out = {*self._view_names, *self._scratch_names}
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind(self._storage)
        self._begin()


class LSTMCell(OfParameters):
    """The weights of one LSTM, and one step of it.

    kernel [input_size + hidden_size, 4*hidden_size], bias [4*hidden_size]; gates["input" | "forget" | "cell" |
    "output"] has writable views input_kernel, recurrent_kernel and bias. forget_bias is added at run time and is no
    part of bias. storage: a ParameterBuffer of these `shapes`, first values included; None allocates one, drawn by rng.
    Variants, as in `lstm`: with projection_size, `projection` [hidden_size, projection_size], h has that many numbers
    (`output_size`) and kernel that many recurrent rows; with peepholes, `peepholes` [3, hidden_size], and gates have a
    view peephole; cell_clip and coupled_gates have no variables.
    """

    _view_names = (*OfParameters._view_names, "kernel", "bias", "peepholes", "projection", "gates")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        forget_bias: float = 1.0,
        projection_size: int | None = None,
        peepholes: bool = False,
        cell_clip: float | None = None,
        coupled_gates: bool = False,
        dtype: npt.DTypeLike = "float32",
        rng: np.random.Generator | None = None,
        storage: ParameterBuffer | None = None,
    ) -> None:
        self.input_size = check.whole_number("input_size", input_size)
        self.hidden_size = check.whole_number("hidden_size", hidden_size)
        self.output_size = _output_size(self.hidden_size, projection_size)
        self.forget_bias = check.finite("forget_bias", forget_bias)
        self.cell_clip, self.coupled_gates = check.cell_clip(cell_clip), bool(coupled_gates)
        self.dtype = check.float_dtype(dtype)
        shapes = self.shapes(self.input_size, self.hidden_size, projection_size=projection_size, peepholes=peepholes)
        self._bind(_storage(storage, shapes, self.dtype, rng))

    def _bind(self, storage: ParameterBuffer) -> None:
        super()._bind(storage)
        self.kernel, self.bias = self.parameters["kernel"], self.parameters["bias"]
        self.peepholes, self.projection = self.parameters.get("peepholes"), self.parameters.get("projection")
        self.gates = Gates(self.kernel, self.bias, output_size=self.output_size, peepholes=self.peepholes)

    @staticmethod
    def shapes(
        input_size: int, hidden_size: int, *, projection_size: int | None = None, peepholes: bool = False
    ) -> dict[str, Shape]:
        """Return the variables of a cell and their shapes."""
        rows = input_size + _output_size(hidden_size, projection_size)
        shapes: dict[str, Shape] = {"kernel": (rows, 4 * hidden_size), "bias": (4 * hidden_size,)}
        if peepholes:
            shapes["peepholes"] = (3, hidden_size)
        if projection_size is not None:
            shapes["projection"] = (hidden_size, projection_size)
        return shapes

    @property
    def is_plain(self) -> bool:
        """Whether this is the plain cell: no peepholes, projection, clip or coupled gates."""
        return (
            self.peepholes is None and self.projection is None and self.cell_clip is None and not self.coupled_gates
        )

    def _sequence(self, *, reverse: bool, frozen: bool) -> _core.Sequence:
        """A sequence with these weights, which looks at them in every call, or if `frozen` once."""
        projection_size = None if self.projection is None else self.output_size
        has_peepholes = self.peepholes is not None
        cell = Cell(self.forget_bias, projection_size, has_peepholes, self.cell_clip, self.coupled_gates)
        sequence = _core.Sequence(reverse, cell)
        sequence.load(self.kernel, self.bias, self.peepholes, self.projection, frozen)
        return sequence

    def __call__(self, x: npt.NDArray[Any], state: State) -> State:
        """Advance by one step and return the new state (h, c).

        Shapes: x [batch, input_size] or ids [batch]; h [batch, output_size], c [batch, hidden_size]. Raises as
        `lstm_step` does.
        """
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"state must be a pair of arrays (h, c), got {type(state).__name__}")
        return functional.lstm_step(
            x, *state, self.kernel, self.bias, forget_bias=self.forget_bias, peepholes=self.peepholes,
            projection=self.projection, cell_clip=self.cell_clip, coupled_gates=self.coupled_gates,
        )  # fmt: skip


class Scratch:
    """Arrays kept from call to call: the same name and shape is the same array, whatever it holds by now."""

    _all: ClassVar[weakref.WeakSet[Scratch]] = weakref.WeakSet()

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._arrays: dict[str, Array] = {}
        self._all.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._dtype,)

    def __call__(self, name: str, shape: Shape) -> Array:
        array = self._arrays.get(name)
        if array is None or array.shape != shape:
            array = self._arrays[name] = np.empty(shape, self._dtype)
        return array


@_memory.register_pool
def _empty_scratches() -> None:
    """Forget all arrays; those that a backward will read are held by who reads them."""
    for scratch in list(Scratch._all):
        scratch._arrays = {}


class Dropout:
    """Inverted dropout: each value survives with probability 1 - rate and is divided by it. Srivastava et al. 2014."""

    def __init__(self, rate: float, dtype: np.dtype[Any]) -> None:
        self._rate = rate
        self._dtype: Any = dtype.type
        self._scratch = Scratch(dtype)
        self._mask: Array | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._rate, np.dtype(self._dtype))

    def __call__(self, x: Array, rng: np.random.Generator | None) -> Array:
        """Return x with some values dropped, in an array that the next call overwrites; with rng None return x."""
        if rng is None or self._rate == 0.0:
            self._mask = None
            return x
        mask = self._mask = self._scratch("mask", x.shape)
        rng.random(dtype=self._dtype, out=mask)
        np.greater_equal(mask, self._rate, out=mask)
        mask *= 1.0 / (1.0 - self._rate)
        return np.multiply(x, mask, out=self._scratch("dropped", x.shape))

    def backward(self, gradient: Array) -> None:
        """Turn, in place, the derivative by the last call's result into that by its x."""
        if self._mask is not None:
            gradient *= self._mask


class LSTM(OfParameters):
    """A stack of LSTM layers over whole sequences, in one direction or both.

    dropout: share of the values dropped between layers while training, drawn from rng. forget_bias is added at run
    time. Variables are named layer0.kernel, layer0.bias, layer0_reverse.kernel, ...; layer k > 0 reads the hidden_size
    (bidirectional: 2*hidden_size, forward first) outputs of the layer below. projection_size, peepholes, cell_clip and
    coupled_gates make all cells variants (see `LSTMCell`); h then has output_size = projection_size numbers a direction
    wherever hidden_size is said of it, and there are variables layer0.peepholes, layer0.projection, ...
    `cells` has one LSTMCell for each layer and direction, in the order of the states: layer 0 forward, layer 0 reverse,
    layer 1 forward, ... as in PyTorch.
    storage: a ParameterBuffer of these `shapes`, first values included; None allocates one and draws with rng.
    """

    _scratch_names = ("_sequences", "_dropouts", "_scratch", "_trained", "_device")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = False,
        dropout: float = 0.0,
        forget_bias: float = 1.0,
        projection_size: int | None = None,
        peepholes: bool = False,
        cell_clip: float | None = None,
        coupled_gates: bool = False,
        dtype: npt.DTypeLike = "float32",
        rng: np.random.Generator | None = None,
        storage: ParameterBuffer | None = None,
    ) -> None:
        self.input_size = check.whole_number("input_size", input_size)
        self.hidden_size = check.whole_number("hidden_size", hidden_size)
        self.projection_size, self.peepholes = projection_size, bool(peepholes)
        self.output_size = _output_size(self.hidden_size, projection_size)
        self.num_layers = check.whole_number("num_layers", num_layers)
        self.num_directions = 2 if bidirectional else 1
        self.bidirectional, self.batch_first = bool(bidirectional), bool(batch_first)
        self._axes = ("batch", "time_steps") if self.batch_first else ("time_steps", "batch")
        self._x_shape = (*self._axes, self.input_size)
        self._x_meaning = f"({', '.join(self._axes)}, input_size)"
        self.dropout = check.fraction("dropout", dropout)
        self.forget_bias = check.finite("forget_bias", forget_bias)
        self.cell_clip, self.coupled_gates = check.cell_clip(cell_clip), bool(coupled_gates)
        self.dtype = check.float_dtype(dtype)
        self._rng = np.random.default_rng() if rng is None else check.generator("rng", rng)
        shapes = self.shapes(
            self.input_size, self.hidden_size, num_layers=self.num_layers, bidirectional=self.bidirectional,
            projection_size=projection_size, peepholes=peepholes,
        )  # fmt: skip
        storage = _storage(storage, shapes, self.dtype, self._rng)
        self._bind(storage)
        self.cells = tuple(
            LSTMCell(
                self._input_size_of(layer), self.hidden_size,
                forget_bias=forget_bias, projection_size=projection_size, peepholes=peepholes,
                cell_clip=cell_clip, coupled_gates=coupled_gates, dtype=self.dtype, storage=storage.part(f"{name}."),
            )
            for layer, name in _directions(self.num_layers, self.bidirectional)
        )  # fmt: skip
        self._is_frozen = False  # whether calls may take it for granted that nobody writes to the weights
        self._begin()

    def _begin(self) -> None:
        self._sequences = [
            cell._sequence(reverse=k % self.num_directions == 1, frozen=self._is_frozen)
            for k, cell in enumerate(self.cells)
        ]
        self._dropouts = [Dropout(self.dropout, self.dtype) for _ in range(self.num_layers - 1)]
        self._scratch = Scratch(self.dtype)
        # The call that `backward` belongs to: its time_steps, batch, ids, or the device it was made on.
        self._trained: tuple[int, int, bool] | LayerOnDevice | None = None
        self._device: LayerOnDevice | None = None

    @staticmethod
    def shapes(
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        projection_size: int | None = None,
        peepholes: bool = False,
    ) -> dict[str, Shape]:
        """Return the variables of a stack and their shapes."""
        above = _output_size(hidden_size, projection_size) * (2 if bidirectional else 1)
        cells = {
            name: LSTMCell.shapes(
                above if layer else input_size, hidden_size, projection_size=projection_size, peepholes=peepholes
            )
            for layer, name in _directions(num_layers, bidirectional)
        }
        return {f"{name}.{variable}": shape for name, cell in cells.items() for variable, shape in cell.items()}

    def weights_changed(self) -> None:
        """Do nothing: every call sees the weights as they are, whoever wrote them. Deprecated.

        Calls that are to be spared the look go through `inference`.
        """
        warnings.warn(
            "weights_changed does nothing and will be removed: every call sees the weights as they are",
            DeprecationWarning,
            stacklevel=2,
        )

    def inference(self, *, weights: str = "float32") -> FrozenLSTM:
        """Return a frozen copy of the stack as it is now: called like the layer, without training.

        A call of the layer looks at all of its weights, to see whether what it has packed of them is still right; the
        copy does not. Later writes to the layer's weights do not reach it, and its own are read-only.
        weights: "float32". Raises ValueError for others: bfloat16 and int8 exist for single steps, in `stream`.
        """
        return FrozenLSTM(self, weights=weights)

    def zero_state(self, batch_size: int) -> State:
        """Return (h, c) of zeros, each [num_layers*num_directions, batch_size, hidden_size]."""
        h_shape, c_shape = self._state_shapes(check.whole_number("batch_size", batch_size, 0))
        return np.zeros(h_shape, self.dtype), np.zeros(c_shape, self.dtype)

    def __call__(
        self,
        x: npt.NDArray[Any],
        state: State | None = None,
        *,
        lengths: npt.ArrayLike | None = None,
        resets: npt.ArrayLike | None = None,
        training: bool = False,
    ) -> tuple[Array, State]:
        """Run the stack: return h [T, B, num_directions*hidden_size] of the top layer and the final state (h, c).

        x [T, B, input_size], or integer ids [T, B], each standing for a one-hot row of input_size; state as in
        `zero_state`, which None stands for; lengths [B] and resets [T, B] as in `lstm`. With batch_first, x, resets and
        the returned h begin [B, T]; states do not. training keeps what `backward` needs and applies dropout; x and
        the returned h must then stay as they are until `backward` is done. What is returned is new in every call.
        Where x lies on a CUDA device (a float32 array of torch or cupy), so must the state, and so do the results;
        weights are sent there when they have changed, and `backward` brings their gradients back.
        Raises ValueError naming the argument whose shape or values are wrong; TypeError for a dtype not the layer's.
        """
        if not isinstance(x, np.ndarray) and is_on_device(x):
            return self._call_on_device(x, state, lengths, resets, bool(training))
        x = self.check_input(x)
        axes = x.shape[:2]
        if resets is not None:
            flags = check.resets(resets, axes, f"({', '.join(self._axes)})")
            resets = np.ascontiguousarray(self._time_major(flags))
        h = np.empty((*axes, self.num_directions * self.output_size), self.dtype)
        x_in_time = self._time_major(x)
        if x.ndim == 2:
            x_in_time = np.ascontiguousarray(x_in_time)
        time_steps, batch = x_in_time.shape[:2]
        h_n, c_n = self.forward_into(
            self._time_major(h), x_in_time,
            (None, None) if state is None else self.check_state("state", state, batch),
            lengths=check.lengths(lengths, time_steps, batch), resets=resets,
            keep_for_backward=bool(training), rng=self._rng if training else None,
        )  # fmt: skip
        return h, (h_n, c_n)

    def backward(self, d_h: npt.NDArray[Any] | None, d_state: State | None = None) -> tuple[Array | None, State]:
        """Carry the derivatives of a loss back through the last call, which must have had training=True.

        d_h: by the returned h, of its shape; d_state: by the returned state; None stands for zeros. Returns d_x, of the
        shape of x (None for ids), and the derivative by the initial state, all new; overwrites `gradients`.
        Raises RuntimeError without such a call; ValueError and TypeError naming the argument at fault.
        """
        if self._trained is None:
            raise RuntimeError("backward needs the last call of this layer to have had training=True")
        if not isinstance(self._trained, tuple):
            return self._trained.backward(d_h, d_state)
        time_steps, batch, token_input = self._trained
        axes = (batch, time_steps) if self.batch_first else (time_steps, batch)
        if d_h is not None:
            shape = (*axes, self.num_directions * self.output_size)
            d_h = check.array("d_h", d_h, shape, "the shape of h", dtype=self.dtype, like="this layer")
        d_h_n, d_c_n = (None, None) if d_state is None else self.check_state("d_state", d_state, batch)
        d_x = None if token_input else np.empty((*axes, self.input_size), self.dtype)
        h_shape, c_shape = self._state_shapes(batch)
        d_h0, d_c0 = np.empty(h_shape, self.dtype), np.empty(c_shape, self.dtype)
        self.backward_into(self._time_major(d_x), self._time_major(d_h), d_h_n, d_c_n, d_h0, d_c0)
        return d_x, (d_h0, d_c0)

    def stream(self, batch_size: int = 1, *, token_input: bool = False, weights: str = "float32") -> _core.Stream:
        """Return the stack as it is now, packed for one step at a time: stream.step(x) -> h, and a state inside.

        step takes x [batch_size, input_size], or with token_input int32 ids [batch_size], and returns the top layer's h
        [batch_size, hidden_size], the same array each time; reset() zeroes the state; `state` reads and sets it.
        Later changes of the weights do not reach it. weights: how they are kept, "float32" as they are; "bfloat16"
        rounded to half the bytes, or "int8", a quarter, with one scale for each gate of each unit (max |w| / 127, for
        the input's and the recurrent weights apart, as per-channel quantization has it). A step of few rows waits for
        its weights, so large layers gain: see csrc/README.md for how much, and for what it does to the loss. Biases and
        the rows that ids select stay as they are, sums and states are float32.
        Raises ValueError for a bidirectional layer, which needs the whole sequence, for cells that are not plain, for
        other words, for a float64 layer that is not to stay as it is, and for int8 where a weight is not finite.
        """
        if self.bidirectional:
            raise ValueError("stream needs bidirectional=False: the reverse direction begins at the end of a sequence")
        if not self.cells[0].is_plain:
            raise ValueError(
                "stream needs a plain LSTM, without projection_size, peepholes, cell_clip and coupled_gates: "
                "call the layer on one step at a time instead"
            )
        return _core.Stream(
            [cell.kernel for cell in self.cells], [cell.bias for cell in self.cells],
            batch_size=check.whole_number("batch_size", batch_size),
            token_input=bool(token_input), forget_bias=self.forget_bias,
            weights=check.stream_weights(weights, self.dtype),
        )  # fmt: skip

    def check_input(self, x: Any) -> Array:
        """Return x, checked, with its first two axes as they came: ids as int32, floats with unit stride."""
        if check.is_ready(x, 3, self.input_size, self.dtype):
            return cast(Array, x)
        if check.is_ids(x):
            return check.ids("x", x, self.input_size, self._axes)
        return check.array("x", x, self._x_shape, self._x_meaning, dtype=self.dtype, like="this layer")

    def check_state(self, name: str, state: Any, batch: int) -> tuple[Array | None, Array | None]:
        """Return the two arrays of a state for this batch, checked, or (None, None) for None."""
        return check.state(name, state, self._state_shapes(batch), self.dtype, "this layer")

    def forward_into(
        self,
        h: Array,
        x: Array,
        state: tuple[Array | None, Array | None],
        *,
        lengths: Array | None = None,
        resets: Array | None = None,
        keep_for_backward: bool = False,
        rng: np.random.Generator | None = None,
    ) -> State:
        """As a call, for models: time-major, arguments already checked, the top layer's output written to `h`.

        rng draws the dropout; None drops nothing. The returned state is new.
        """
        time_steps, batch = x.shape[:2]
        token_input = x.ndim == 2
        precision = runtime.get_matmul_precision()
        h0, c0 = state
        h_shape, c_shape = self._state_shapes(batch)
        h_n, c_n = np.empty(h_shape, self.dtype), np.empty(c_shape, self.dtype)
        self._trained = None
        for layer in range(self.num_layers):
            top = layer == self.num_layers - 1
            output = h if top else self._scratch(f"h{layer}", h.shape)
            for direction in range(self.num_directions):
                k = layer * self.num_directions + direction
                # By position: names would take longer than a small layer's step.
                self._sequences[k].forward(
                    x, self._half(output, direction), h_n[k], c_n[k],
                    None if h0 is None else h0[k], None if c0 is None else c0[k],
                    lengths, resets, None, None, keep_for_backward, precision,
                )  # fmt: skip
            if not top:
                x = self._dropouts[layer](output, rng)
        if keep_for_backward:
            self._trained = time_steps, batch, token_input
        return h_n, c_n

    def backward_into(
        self,
        d_x: Array | None,
        d_h: Array | None,
        d_h_n: Array | None = None,
        d_c_n: Array | None = None,
        d_h0: Array | None = None,
        d_c0: Array | None = None,
    ) -> None:
        """As `backward`, for models: time-major, arguments already checked; d_x, d_h0, d_c0 are written if given."""
        assert isinstance(self._trained, tuple)
        for layer in reversed(range(self.num_layers)):
            below = d_x
            if layer:
                below_shape = (*self._trained[:2], self.num_directions * self.output_size)
                below = self._scratch(f"d_h{layer - 1}", below_shape)
            for direction in range(self.num_directions):
                k = layer * self.num_directions + direction
                gradients = self.cells[k].gradients
                into = below if direction == 0 or below is None else self._scratch("d_x_reverse", below.shape)
                self._sequences[k].backward(
                    None if d_h is None else self._half(d_h, direction),
                    None if d_h_n is None else d_h_n[k], None if d_c_n is None else d_c_n[k],
                    into, gradients["kernel"], gradients["bias"],
                    None if d_h0 is None else d_h0[k], None if d_c0 is None else d_c0[k],
                    gradients.get("peepholes"), gradients.get("projection"),
                )  # fmt: skip
                if into is not None and into is not below:
                    below += into
            if layer and below is not None:
                self._dropouts[layer - 1].backward(below)
            d_h = below

    def _call_on_device(self, x: Any, state: Any, lengths: Any, resets: Any, training: bool) -> tuple[Any, Any]:
        self._trained = None
        if self._device is None or not self._device.serves(x):
            self._device = LayerOnDevice(self, x)
        h, final = self._device(
            x, state, lengths=lengths, resets=resets, training=training,
            rng=self._rng if training else None,
        )  # fmt: skip
        self._trained = self._device if training else None
        return h, final

    @overload
    def _time_major(self, a: Array) -> Array: ...
    @overload
    def _time_major(self, a: None) -> None: ...
    def _time_major(self, a: Array | None) -> Array | None:
        """The array as the extension sees it: with batch_first a view whose first two axes are swapped."""
        return a.swapaxes(0, 1) if self.batch_first and a is not None else a

    def _half(self, h: Array, direction: int) -> Array:
        """The columns of one direction: a strided view, so that both are written side by side without a copy."""
        return h[..., direction * self.output_size : (direction + 1) * self.output_size] if self.bidirectional else h

    def _input_size_of(self, layer: int) -> int:
        return self.num_directions * self.output_size if layer else self.input_size

    def _state_shapes(self, batch: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Those of h and c."""
        cells = self.num_layers * self.num_directions
        return (cells, batch, self.output_size), (cells, batch, self.hidden_size)


class FrozenLSTM:
    """What `LSTM.inference` returns: the stack as it was then. Weights are packed once and not looked at again."""

    def __init__(self, layer: LSTM, *, weights: str = "float32") -> None:
        if weights != "float32":
            raise ValueError(
                f"weights must be 'float32', got {weights!r}: whole sequences are multiplied in float32 alone; "
                f"LSTM.stream keeps weights as 'bfloat16' or 'int8', for one step at a time"
            )
        values = layer.parameter_buffer.copy()
        values.flags.writeable = False  # and so are its views
        shapes = {name: view.shape for name, view in layer.parameters.items()}
        self._layer = LSTM(
            layer.input_size, layer.hidden_size,
            num_layers=layer.num_layers, bidirectional=layer.bidirectional, batch_first=layer.batch_first,
            forget_bias=layer.forget_bias, projection_size=layer.projection_size, peepholes=layer.peepholes,
            cell_clip=layer.cell_clip, coupled_gates=layer.coupled_gates, dtype=layer.dtype,
            storage=ParameterBuffer._bind(values, np.zeros_like(values), shapes),
        )  # fmt: skip
        self._layer._is_frozen = True
        self._layer._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._layer,)

    @property
    def parameters(self) -> dict[str, Array]:
        """The weights, read-only, by the names that they have in the layer."""
        return self._layer.parameters

    def zero_state(self, batch_size: int) -> State:
        """Return (h, c) of zeros, as `LSTM.zero_state`."""
        return self._layer.zero_state(batch_size)

    def __call__(
        self,
        x: npt.NDArray[Any],
        state: State | None = None,
        *,
        lengths: npt.ArrayLike | None = None,
        resets: npt.ArrayLike | None = None,
    ) -> tuple[Array, State]:
        """Run the stack: arguments, results and errors as of `LSTM.__call__` with training=False."""
        return self._layer(x, state, lengths=lengths, resets=resets)


class Linear(OfParameters):
    """A dense layer: x @ kernel + bias, for what stands after an LSTM.

    kernel [input_size, output_size], bias [output_size]. storage: as of `LSTMCell`.
    """

    _view_names = (*OfParameters._view_names, "kernel", "bias")
    _scratch_names = ("_trained_on",)

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        dtype: npt.DTypeLike = "float32",
        rng: np.random.Generator | None = None,
        storage: ParameterBuffer | None = None,
    ) -> None:
        self.input_size = check.whole_number("input_size", input_size)
        self.output_size = check.whole_number("output_size", output_size)
        self.dtype = check.float_dtype(dtype)
        self._bind(_storage(storage, self.shapes(self.input_size, self.output_size), self.dtype, rng))
        self._begin()

    def _bind(self, storage: ParameterBuffer) -> None:
        super()._bind(storage)
        self.kernel, self.bias = self.parameters["kernel"], self.parameters["bias"]

    def _begin(self) -> None:
        self._trained_on: Array | None = None

    @staticmethod
    def shapes(input_size: int, output_size: int) -> dict[str, Shape]:
        """Return the variables of a dense layer and their shapes."""
        return {"kernel": (input_size, output_size), "bias": (output_size,)}

    def __call__(self, x: npt.NDArray[Any], *, training: bool = False) -> Array:
        """Return x @ kernel + bias [..., output_size] of x [..., input_size], new.

        training keeps x for `backward`: it must stay as it is until that is done.
        Raises ValueError naming x if its last axis is not input_size; TypeError for a dtype not the layer's.
        """
        axes = tuple(f"axis{k}" for k in range(max(np.ndim(x) - 1, 0)))
        x = check.array("x", x, (*axes, self.input_size), "(..., input_size)", dtype=self.dtype, like="this layer")
        rows = x.reshape(-1, self.input_size)
        out = np.empty((len(rows), self.output_size), self.dtype)
        _core.linear(rows, self.kernel, self.bias, out)
        self._trained_on = x if training else None
        return out.reshape(*x.shape[:-1], self.output_size)

    def backward(self, d_out: npt.NDArray[Any]) -> Array:
        """Return the derivative by x of the last call, which must have had training=True; overwrite `gradients`.

        d_out [..., output_size]: the derivative by what that call returned. What is returned is new.
        Raises RuntimeError without such a call; ValueError and TypeError naming d_out.
        """
        x = _kept(self._trained_on)
        shape = (*x.shape[:-1], self.output_size)
        d_out = check.array("d_out", d_out, shape, "the shape of the output", dtype=self.dtype, like="this layer")
        d_x = np.empty(x.shape, self.dtype)
        _core.linear_backward(
            x.reshape(-1, self.input_size), self.kernel, d_out.reshape(-1, self.output_size),
            d_x=d_x.reshape(-1, self.input_size), d_kernel=self.gradients["kernel"], d_bias=self.gradients["bias"],
        )  # fmt: skip
        return d_x


class Embedding(OfParameters):
    """A learnt vector for each token: row ids[...] of a table [vocab_size, embedding_size].

    storage: as of `LSTMCell`.
    """

    _view_names = (*OfParameters._view_names, "table")
    _scratch_names = ("_trained_on",)

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        *,
        dtype: npt.DTypeLike = "float32",
        rng: np.random.Generator | None = None,
        storage: ParameterBuffer | None = None,
    ) -> None:
        self.vocab_size = check.whole_number("vocab_size", vocab_size)
        self.embedding_size = check.whole_number("embedding_size", embedding_size)
        self.dtype = check.float_dtype(dtype)
        self._bind(_storage(storage, self.shapes(self.vocab_size, self.embedding_size), self.dtype, rng))
        self._begin()

    def _bind(self, storage: ParameterBuffer) -> None:
        super()._bind(storage)
        self.table = self.parameters["table"]

    def _begin(self) -> None:
        self._trained_on: Array | None = None

    @staticmethod
    def shapes(vocab_size: int, embedding_size: int) -> dict[str, Shape]:
        """Return the variables of an embedding and their shapes."""
        return {"table": (vocab_size, embedding_size)}

    def __call__(self, ids: npt.NDArray[Any], *, training: bool = False) -> Array:
        """Return the rows [..., embedding_size] of integer ids [...], new. training keeps the ids for `backward`.

        Raises ValueError for an id outside of the table, TypeError for what is no array of integers; both name ids.
        """
        axes = tuple(f"axis{k}" for k in range(max(np.ndim(ids), 1)))
        checked = check.ids("ids", ids, self.vocab_size, axes)
        out = np.empty((*checked.shape, self.embedding_size), self.dtype)
        _core.embedding_gather(self.table, checked.reshape(-1), out.reshape(-1, self.embedding_size))
        if training and checked is ids:
            checked = checked.copy()  # callers often fill one array of ids again and again
        self._trained_on = checked if training else None
        return out

    def backward(self, d_out: npt.NDArray[Any]) -> None:
        """Overwrite `gradients` with those of the last call, which must have had training=True.

        d_out [..., embedding_size]: the derivative by what that call returned; rows of the same id are added up.
        Raises RuntimeError without such a call; ValueError and TypeError naming d_out.
        """
        ids = _kept(self._trained_on)
        shape = (*ids.shape, self.embedding_size)
        d_out = check.array("d_out", d_out, shape, "the shape of the output", dtype=self.dtype, like="this layer")
        _core.embedding_scatter(d_out.reshape(-1, self.embedding_size), ids.reshape(-1), self.gradients["table"])


def _output_size(hidden_size: int, projection_size: int | None) -> int:
    """Numbers in h: projection_size, checked, or hidden_size where there is no projection."""
    return hidden_size if projection_size is None else check.whole_number("projection_size", projection_size)


def _storage(
    storage: ParameterBuffer | None, shapes: dict[str, Shape], dtype: np.dtype[Any], rng: np.random.Generator | None
) -> ParameterBuffer:
    """Return the storage given, or one of these shapes with its first values drawn."""
    if storage is None:
        storage = ParameterBuffer.allocate(shapes, dtype)
        storage.fill(None, rng)
    return storage


def _kept(trained_on: Array | None) -> Array:
    """Return what a call with training=True has kept."""
    if trained_on is None:
        raise RuntimeError("backward needs the last call of this layer to have had training=True")
    return trained_on


def _directions(num_layers: int, bidirectional: bool) -> list[tuple[int, str]]:
    """Every layer and direction, in the order of states and variables: (layer, name)."""
    suffixes = ("", "_reverse") if bidirectional else ("",)
    return [(layer, f"layer{layer}{suffix}") for layer, suffix in product(range(num_layers), suffixes)]
