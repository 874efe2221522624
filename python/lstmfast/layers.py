"""Layers: weights in one buffer, and what a call keeps for its backward pass.

`LSTMCell` holds the weights of one LSTM, `LSTM` stacks cells over time, depth and direction, `Embedding` comes before
and `Linear` after it. Layers declare the shapes they need and bind to views, so that a model can keep all of its layers
in one `ParameterBuffer`. All but `LSTMCell` have `forward_into` and `backward_into` for models: arguments already
checked, results written into the caller's arrays, on the layer's engine.
Refuses to update weights (see `optimizers`) and to compute losses (see `losses`). Use an object from one thread at a
time: between a call and its `backward` it holds the call's data.

Layers can be copied and pickled. The parameters of a copy are views of one buffer, too; `copy.copy` shares that buffer
with the original. What a call with training=True keeps for `backward` is not copied.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from typing import Any, Literal, cast, overload

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import _core, functional, runtime
from lstmfast._checks import Array, State
from lstmfast._engine import cpu
from lstmfast._engine.buffers import OfParameters, ParameterBuffer, Scratch
from lstmfast._engine.cpu import CPU
from lstmfast._engine.devices import is_on_device
from lstmfast._engine.engine import Engine
from lstmfast.cells import Cell, check_features
from lstmfast.cuda._engine import CudaEngine, Mirror
from lstmfast.gates import Gates
from lstmfast.initializers import Shape

STREAM_FEATURES = frozenset({"recurrent_dropout", "weight_dropout"})
"""Features of a cell that packed streams support: those without effect in inference."""

__all__ = ["LSTM", "Embedding", "FrozenLSTM", "LSTMCell", "Linear", "ParameterBuffer"]


class _OfCell:
    """The options of `cell`. All except forget_bias are read-only, because weights depend on them."""

    cell: Cell

    @property
    def forget_bias(self) -> float:
        """Added to the forget gate at run time. Setting it affects later calls."""
        return self.cell.forget_bias

    @forget_bias.setter
    def forget_bias(self, value: float) -> None:
        self._set_cell(replace(self.cell, forget_bias=value))

    def _set_cell(self, cell: Cell) -> None:
        self.cell = cell

    @property
    def projection_size(self) -> int | None:
        """Size of a projected h, None without a projection."""
        return self.cell.projection_size

    @property
    def cell_clip(self) -> float | None:
        """Bound of the cell state, None without clipping."""
        return self.cell.cell_clip

    @property
    def coupled_gates(self) -> bool:
        """Whether f = 1 - i."""
        return self.cell.coupled_gates


class LSTMCell(OfParameters, _OfCell):
    """The weights of one LSTM; a call advances it by one step.

    kernel [input_size + hidden_size, 4*hidden_size], bias [4*hidden_size]; gates["input" | "forget" | "cell" |
    "output"] has writable views input_kernel, recurrent_kernel and bias. forget_bias is added at run time and is not
    part of bias. storage: a ParameterBuffer of these `shapes`, with initial values; None allocates one and draws from
    rng. The options of `Cell`, or a `cell`, select variants. With projection_size there is `projection`
    [hidden_size, projection_size]; h has that size (`output_size`) and kernel that many recurrent rows. With peepholes
    there are `peepholes` [3, hidden_size], and gates have a view peephole. With layer_norm there are `norm_gain`
    [2, 4*hidden_size] ("gates": [1, 4*hidden_size]), `cell_gain` and `cell_shift` [hidden_size]; with
    learn_initial_state `initial_h` [output_size] and `initial_c` [hidden_size].
    """

    _view_names = (*OfParameters._view_names, "gates")

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
        recurrent_dropout: float = 0.0,
        recurrent_dropout_of: Literal["h", "g"] = "h",
        recurrent_dropout_per_step: bool = False,
        zoneout: float | tuple[float, float] | None = None,
        weight_dropout: float = 0.0,
        layer_norm: Literal["products", "gates"] | bool | None = None,
        layer_norm_epsilon: float = 1e-5,
        layer_norm_carry: bool = False,
        learn_initial_state: bool = False,
        cell: Cell | None = None,
        dtype: npt.DTypeLike = "float32",
        rng: np.random.Generator | None = None,
        storage: ParameterBuffer | None = None,
    ) -> None:
        self.input_size = check.whole_number("input_size", input_size)
        self.hidden_size = check.whole_number("hidden_size", hidden_size)
        self.cell = Cell.of(
            cell, forget_bias=forget_bias, projection_size=projection_size, peepholes=peepholes, cell_clip=cell_clip,
            coupled_gates=coupled_gates, recurrent_dropout=recurrent_dropout,
            recurrent_dropout_of=recurrent_dropout_of, recurrent_dropout_per_step=recurrent_dropout_per_step,
            zoneout=zoneout, weight_dropout=weight_dropout, layer_norm=layer_norm,
            layer_norm_epsilon=layer_norm_epsilon, layer_norm_carry=layer_norm_carry,
            learn_initial_state=learn_initial_state,
        )
        self.output_size = self.cell.output_size(self.hidden_size)
        self.dtype = check.float_dtype(dtype)
        self._bind(_storage(storage, self.cell.shapes(self.input_size, self.hidden_size), self.dtype, rng))

    def _bind(self, storage: ParameterBuffer) -> None:
        super()._bind(storage)
        self.gates = Gates(self.kernel, self.bias, output_size=self.output_size, peepholes=self.peepholes)

    # No setters: the buffer would not contain an array assigned here.
    @property
    def kernel(self) -> Array:
        """Kernel [input_size + output_size, 4*hidden_size]."""
        return self.parameters["kernel"]

    @property
    def bias(self) -> Array:
        """Bias [4*hidden_size]."""
        return self.parameters["bias"]

    @property
    def peepholes(self) -> Array | None:
        """Peepholes [3, hidden_size], or None."""
        return self.parameters.get("peepholes")

    @property
    def projection(self) -> Array | None:
        """Projection [hidden_size, projection_size], or None."""
        return self.parameters.get("projection")

    @property
    def norm_gain(self) -> Array | None:
        """Gains of the normalised products [2, 4*hidden_size] or of the gates [1, 4*hidden_size], or None."""
        return self.parameters.get("norm_gain")

    @property
    def cell_gain(self) -> Array | None:
        """Gain of the normalised cell state [hidden_size], or None."""
        return self.parameters.get("cell_gain")

    @property
    def cell_shift(self) -> Array | None:
        """Shift of the normalised cell state [hidden_size], or None."""
        return self.parameters.get("cell_shift")

    @property
    def initial_h(self) -> Array | None:
        """Learnt initial h [output_size], or None."""
        return self.parameters.get("initial_h")

    @property
    def initial_c(self) -> Array | None:
        """Learnt initial c [hidden_size], or None."""
        return self.parameters.get("initial_c")

    def _norms(self, arrays: dict[str, Array]) -> tuple[Array, Array, Array] | None:
        """The three arrays of a layer normalisation among `parameters` or `gradients`, None without one."""
        return (arrays["norm_gain"], arrays["cell_gain"], arrays["cell_shift"]) if self.cell.layer_norm else None

    def _initial(self, arrays: dict[str, Array]) -> State | None:
        """The learnt initial state among `parameters` or `gradients`, None without one."""
        return (arrays["initial_h"], arrays["initial_c"]) if self.cell.learn_initial_state else None

    @staticmethod
    def shapes(
        input_size: int,
        hidden_size: int,
        *,
        projection_size: int | None = None,
        peepholes: bool = False,
        layer_norm: Literal["products", "gates"] | bool | None = None,
        learn_initial_state: bool = False,
    ) -> dict[str, Shape]:
        """Return the variables of a cell and their shapes. `Cell.shapes` is the same for a `Cell`."""
        return _with_variables(projection_size, peepholes, layer_norm, learn_initial_state).shapes(
            input_size, hidden_size
        )

    def initial_state(self, batch_size: int) -> State:
        """Return (h, c) to begin with, [batch_size, output_size] and [batch_size, hidden_size]: learnt, or zeros."""
        rows = check.whole_number("batch_size", batch_size, 0)
        h, c = np.zeros((rows, self.output_size), self.dtype), np.zeros((rows, self.hidden_size), self.dtype)
        if (learnt := self._initial(self.parameters)) is not None:
            h[...], c[...] = learnt
        return h, c

    def __call__(self, x: npt.NDArray[Any], state: State) -> State:
        """Advance by one step, as in inference, and return the new state (h, c).

        Shapes: x [batch, input_size] or ids [batch]; h [batch, output_size], c [batch, hidden_size]. Raises as
        `lstm_step` does.
        """
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"state must be a pair of arrays (h, c), got {type(state).__name__}")
        cell, weights = self.cell, self.parameters
        if cell.learn_initial_state:  # a step always has a state
            cell = _without_initial_state(cell)
        if isinstance(x, np.ndarray):  # `functional.lstm_step` would build the cell from its options again
            return cpu.lstm_step(
                x, *state, weights["kernel"], weights["bias"], cell=cell, peepholes=weights.get("peepholes"),
                projection=weights.get("projection"), norms=self._norms(weights),
            )
        return functional.lstm_step(
            x, *state, self.kernel, self.bias, forget_bias=cell.forget_bias, peepholes=self.peepholes,
            projection=self.projection, cell_clip=cell.cell_clip, coupled_gates=cell.coupled_gates,
            zoneout=cell.zoneout, norm_gain=self.norm_gain, cell_gain=self.cell_gain, cell_shift=self.cell_shift,
            layer_norm_epsilon=cell.layer_norm_epsilon, layer_norm_carry=cell.layer_norm_carry,
        )


class Dropout:
    """Inverted dropout: each value survives with probability 1 - rate and is divided by it. Srivastava et al. 2014.

    Masks are drawn on the host, so that a seed gives the same numbers on every engine.
    """

    def __init__(self, rate: float, dtype: np.dtype[Any], engine: Engine = CPU) -> None:
        self._rate, self._dtype, self._engine = rate, dtype, engine
        self._host, self._scratch = Scratch(dtype), Scratch(dtype, engine)
        self._mask: Array | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._rate, self._dtype, self._engine)

    def forward_into(self, x: Array, rng: np.random.Generator | None) -> Array:
        """Return x with some values dropped, in an array that the next call overwrites; with rng None return x."""
        if rng is None or self._rate == 0.0:
            self._mask = None
            return x
        shape = tuple(x.shape)
        mask = self._host("mask", shape)
        rng.random(dtype=cast(Any, self._dtype.type), out=mask)
        np.greater_equal(mask, self._rate, out=mask)
        mask *= 1.0 / (1.0 - self._rate)
        self._mask = self._engine.to_engine(mask)
        out = self._scratch("dropped", shape)
        self._engine.multiply(x, self._mask, out)
        return out

    def backward_into(self, gradient: Array) -> None:
        """Turn the derivative by the last call's result into that by its x, in place."""
        if self._mask is not None:
            gradient *= self._mask


class LSTM(OfParameters, _OfCell):
    """A stack of LSTM layers over whole sequences, in one direction or both.

    dropout: share of the values dropped between layers in training, drawn from rng. forget_bias is added at run time.
    Variables are named layer0.kernel, layer0.bias, layer0_reverse.kernel, ...; layer k > 0 reads the hidden_size
    (bidirectional: 2*hidden_size, forward first) outputs of the layer below. The options of `Cell`, or a `cell`, apply
    to all cells and add variables layer0.peepholes, layer0.projection, layer0.norm_gain, layer0.initial_h, ...; with
    projection_size, replace hidden_size by output_size = projection_size in every shape of h.
    last_seed: the seed of the masks of the last call; None if it drew none. The same seed draws the same masks again.
    `cells` has one LSTMCell for each layer and direction, in the order of the states: layer 0 forward, layer 0 reverse,
    layer 1 forward, ... as in PyTorch.
    storage: a ParameterBuffer of these `shapes`, with initial values; None allocates one and draws from rng.
    """

    last_seed: int | None = None

    _view_names = (*OfParameters._view_names, "cells")
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
        recurrent_dropout: float = 0.0,
        recurrent_dropout_of: Literal["h", "g"] = "h",
        recurrent_dropout_per_step: bool = False,
        zoneout: float | tuple[float, float] | None = None,
        weight_dropout: float = 0.0,
        layer_norm: Literal["products", "gates"] | bool | None = None,
        layer_norm_epsilon: float = 1e-5,
        layer_norm_carry: bool = False,
        learn_initial_state: bool = False,
        cell: Cell | None = None,
        dtype: npt.DTypeLike = "float32",
        rng: np.random.Generator | None = None,
        storage: ParameterBuffer | None = None,
    ) -> None:
        self.input_size = check.whole_number("input_size", input_size)
        self.hidden_size = check.whole_number("hidden_size", hidden_size)
        self.cell = Cell.of(
            cell, forget_bias=forget_bias, projection_size=projection_size, peepholes=peepholes, cell_clip=cell_clip,
            coupled_gates=coupled_gates, recurrent_dropout=recurrent_dropout,
            recurrent_dropout_of=recurrent_dropout_of, recurrent_dropout_per_step=recurrent_dropout_per_step,
            zoneout=zoneout, weight_dropout=weight_dropout, layer_norm=layer_norm,
            layer_norm_epsilon=layer_norm_epsilon, layer_norm_carry=layer_norm_carry,
            learn_initial_state=learn_initial_state,
        )
        self.output_size = self.cell.output_size(self.hidden_size)
        self.num_layers = check.whole_number("num_layers", num_layers)
        self.num_directions = 2 if bidirectional else 1
        self.bidirectional, self.batch_first = bool(bidirectional), bool(batch_first)
        self._axes = ("batch", "time_steps") if self.batch_first else ("time_steps", "batch")
        self._x_shape = (*self._axes, self.input_size)
        self._x_meaning = f"({', '.join(self._axes)}, input_size)"
        self.dropout = check.fraction("dropout", dropout)
        self.dtype = check.float_dtype(dtype)
        self._rng = np.random.default_rng() if rng is None else check.generator("rng", rng)
        # The weight format of a copy for inference. None: weights may change between calls.
        self._frozen_weights: str | None = None
        shapes = _stack_shapes(self.cell, self.input_size, self.hidden_size, self.num_layers, self.bidirectional)
        self._bind(_storage(storage, shapes, self.dtype, self._rng))
        self._begin()

    def _bind(self, storage: ParameterBuffer) -> None:
        super()._bind(storage)
        self.cells = tuple(
            LSTMCell(
                self._input_size_of(layer), self.hidden_size, cell=self.cell, dtype=self.dtype,
                storage=storage.part(f"{name}."),
            )
            for layer, name in _directions(self.num_layers, self.bidirectional)
        )

    def _set_cell(self, cell: Cell) -> None:
        self.cell = cell
        self._bind(self._storage)
        self._begin()

    def _begin(self) -> None:
        engine = self._engine
        self._sequences = [
            engine.sequence(direction == 1, self.cell)
            for _, direction in product(range(self.num_layers), range(self.num_directions))
        ]
        for sequence, cell in zip(self._sequences, self.cells, strict=True):
            sequence.load(
                cell.kernel, cell.bias, cell.peepholes, cell.projection, frozen=self._frozen_weights is not None,
                weights=self._frozen_weights or "float32", norms=cell._norms(cell.parameters),
                initial=cell._initial(cell.parameters),
            )
        self._dropouts = [Dropout(self.dropout, self.dtype, engine) for _ in range(self.num_layers - 1)]
        self._scratch = Scratch(self.dtype, engine)
        # Of the call that `backward` belongs to: time_steps, batch, whether x is ids.
        self._trained: tuple[int, int, bool] | None = None
        # This layer on a device, created by the first call there, and whether the last call was for training there.
        self._device: _DeviceTwin | None = None
        self._trained_on_device = False

    @property
    def peepholes(self) -> bool:
        """Whether the gates read the cell state."""
        return self.cell.peepholes

    @staticmethod
    def shapes(
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        projection_size: int | None = None,
        peepholes: bool = False,
        layer_norm: Literal["products", "gates"] | bool | None = None,
        learn_initial_state: bool = False,
        cell: Cell | None = None,
    ) -> dict[str, Shape]:
        """Return the variables of a stack and their shapes."""
        if cell is None:
            cell = _with_variables(projection_size, peepholes, layer_norm, learn_initial_state)
        return _stack_shapes(cell, input_size, hidden_size, num_layers, bidirectional)

    def weights_changed(self) -> None:
        """Do nothing: every call uses the current weights. Deprecated.

        `inference` avoids the comparison of weights in every call.
        """
        warnings.warn(
            "weights_changed does nothing and will be removed: every call sees the weights as they are",
            DeprecationWarning,
            stacklevel=2,
        )

    def inference(self, *, weights: str = "float32") -> FrozenLSTM:
        """Return a frozen copy of the stack as it is now: called like the layer, without training.

        A layer compares its weights with those it has packed, in every call that may use packed ones; the copy does
        not. Later writes to the layer's weights do not affect it, and its own are read-only.
        weights: the format of the kernels. "float32": unchanged. "bfloat16": rounded to 8 bits of precision; if the CPU
        multiplies bfloat16 (AMX, AVX512_BF16) and there are 16 rows or more, x and h are rounded too. "int8": rounded
        to a quarter of the bytes, with one scale for each gate of each unit (max |w| / 127, separate for input and
        recurrent weights: per channel); rows of x and h are rounded too, each with its own scale, and products are sums
        of integers. No calibration; expect an error of 1e-2 of h, and two to four times the speed on a CPU with VNNI.
        Gates, sums and states are float32. Raises ValueError for other values, for a float64 layer unless weights is
        "float32", and for int8 if a weight is not finite.
        """
        return FrozenLSTM(self, weights=weights)

    def _freeze(self, weights: str) -> None:
        """Convert the weights to this format of `inference`. They must not change from now on."""
        self._frozen_weights = check.kept_weights(weights, self.dtype)
        if weights == "int8":
            check.int8_weights(self.parameters)
        for name, values in self.parameters.items():
            if weights == "bfloat16" and name.endswith("kernel"):
                values[...] = _nearest_bfloat16(values)
        self._begin()

    def zero_state(self, batch_size: int) -> State:
        """Return (h, c) of zeros, each [num_layers*num_directions, batch_size, hidden_size]."""
        h_shape, c_shape = self._state_shapes(check.whole_number("batch_size", batch_size, 0))
        return np.zeros(h_shape, self.dtype), np.zeros(c_shape, self.dtype)

    def initial_state(self, batch_size: int) -> State:
        """Return the (h, c) that a call without a state begins with: learnt initial states, or zeros."""
        h, c = self.zero_state(batch_size)
        for k, cell in enumerate(self.cells if self.cell.learn_initial_state else ()):
            h[k], c[k] = cell.initial_state(batch_size)
        return h, c

    def __call__(
        self,
        x: npt.NDArray[Any],
        state: State | None = None,
        *,
        lengths: npt.ArrayLike | None = None,
        resets: npt.ArrayLike | None = None,
        training: bool = False,
        seed: int | None = None,
        first_step: int = 0,
    ) -> tuple[Array, State]:
        """Run the stack: return h [T, B, num_directions*hidden_size] of the top layer and the final state (h, c).

        x [T, B, input_size], or integer ids [T, B], each standing for a one-hot row of input_size; state as in
        `zero_state`, `initial_state` if None; lengths [B] and resets [T, B] as in `lstm`. With batch_first, x, resets
        and the returned h begin [B, T]; states do not. training keeps what `backward` needs and applies dropout; do not
        modify x and the returned h until `backward` is done. Returned arrays are new in every call.
        seed, below 2**64: of the masks of recurrent dropout, zoneout and weight dropout; drawn from rng if None, and
        only for cells that have one of them. They apply with training or a seed. first_step: the number of x[0] in
        masks that change from step to step, for a sequence given in several calls with one seed. See `lstm`.
        If x is on a CUDA device (a float32 array of torch or cupy), the state must be there, and the results are;
        changed weights are copied to the device, and `backward` copies their gradients back.
        Raises ValueError naming the argument whose shape or values are wrong; TypeError for a dtype not the layer's.
        """
        if not isinstance(x, np.ndarray) and is_on_device(x):
            return self._call_on_device(x, state, lengths, resets, bool(training))
        seed = None if seed is None else check.seed(seed)
        first_step = check.whole_number("first_step", first_step, 0)
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
            keep_for_backward=bool(training), rng=self._rng if training else None, seed=seed, first_step=first_step,
        )
        return h, (h_n, c_n)

    def backward(self, d_h: npt.NDArray[Any] | None, d_state: State | None = None) -> tuple[Array | None, State]:
        """Backpropagate a loss through the last call, which must have had training=True.

        d_h, d_state: derivatives by the returned h and state, of their shapes; None stands for zeros. Returns d_x, of
        the shape of x (None for ids), and the derivative by the initial state, all new; overwrites `gradients`.
        Raises RuntimeError without such a call; ValueError and TypeError naming the argument at fault.
        """
        if self._trained_on_device and self._device is not None:
            return self._device.backward(d_h, d_state)
        if self._trained is None:
            raise RuntimeError("backward needs the last call of this layer to have had training=True")
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
        """Return a packed copy of the stack for one step at a time: stream.step(x) -> h, with its state inside.

        step takes x [batch_size, input_size], or with token_input int32 ids [batch_size], and returns the top layer's h
        [batch_size, hidden_size], the same array each time; reset() zeroes the state; `state` reads and sets it.
        Later changes of the weights do not affect it. weights: their format, "float32" unchanged; "bfloat16" rounded to
        half the bytes, or "int8" to a quarter, with one scale for each gate of each unit (max |w| / 127, separate for
        input and recurrent weights: per-channel quantization). With few rows a step is bound by reading weights, so
        large layers gain most: csrc/README.md gives the speed and the effect on the loss. Biases and the rows that ids
        select are not rounded, sums and states are float32.
        Raises ValueError for a bidirectional layer, which needs the whole sequence, for cells that are not standard in
        inference, where recurrent_dropout and weight_dropout have no effect, for other values, for a float64 layer
        unless weights is "float32", and for int8 if a weight is not finite.
        """
        if self.bidirectional:
            raise ValueError("stream needs bidirectional=False: the reverse direction begins at the end of a sequence")
        check_features(self.cell.features, STREAM_FEATURES, "by stream; call the layer on one step at a time instead")
        return _core.Stream(
            [cell.kernel for cell in self.cells], [cell.bias for cell in self.cells],
            batch_size=check.whole_number("batch_size", batch_size),
            token_input=bool(token_input), forget_bias=self.forget_bias,
            weights=check.kept_weights(weights, self.dtype),
        )

    def check_input(self, x: Any) -> Array:
        """Return x, checked, with its first two axes in the given order: ids as int32, floats with unit stride."""
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
        seed: int | None = None,
        first_step: int = 0,
    ) -> State:
        """As a call, for models: time-major, arguments already checked, the top layer's output written to `h`.

        Dropout draws from rng, and random cells a seed if none is given; None turns both off. The returned state is
        new.
        """
        self.last_seed = None
        if self.cell.is_random:
            self.last_seed = functional.draw_seed(rng) if seed is None and rng is not None else seed
        time_steps, batch = x.shape[:2]
        token_input = x.ndim == 2
        precision = runtime.get_matmul_precision()
        h0, c0 = state
        h_shape, c_shape = self._state_shapes(batch)
        empty = self._engine.empty
        h_n, c_n = empty(h_shape, self.dtype), empty(c_shape, self.dtype)
        self._trained, self._trained_on_device = None, False
        for layer in range(self.num_layers):
            top = layer == self.num_layers - 1
            output = h if top else self._scratch(f"h{layer}", tuple(h.shape))
            for direction in range(self.num_directions):
                k = layer * self.num_directions + direction
                noise = None if self.last_seed is None else (self.last_seed, k, first_step % 2**32)
                # By position: keyword arguments would take longer than a small layer's step.
                self._sequences[k].forward(
                    x, self._half(output, direction), h_n[k], c_n[k],
                    None if h0 is None else h0[k], None if c0 is None else c0[k],
                    lengths, resets, None, None, keep_for_backward, precision, noise,
                )
            if not top:
                x = self._dropouts[layer].forward_into(output, rng)
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
        assert self._trained is not None
        for layer in reversed(range(self.num_layers)):
            below = d_x
            if layer:
                below_shape = (*self._trained[:2], self.num_directions * self.output_size)
                below = self._scratch(f"d_h{layer - 1}", below_shape)
            for direction in range(self.num_directions):
                k = layer * self.num_directions + direction
                cell, gradients = self.cells[k], self.cells[k].gradients
                into = below if direction == 0 or below is None else self._scratch("d_x_reverse", tuple(below.shape))
                self._sequences[k].backward(
                    None if d_h is None else self._half(d_h, direction),
                    None if d_h_n is None else d_h_n[k], None if d_c_n is None else d_c_n[k],
                    into, gradients["kernel"], gradients["bias"],
                    None if d_h0 is None else d_h0[k], None if d_c0 is None else d_c0[k],
                    gradients.get("peepholes"), gradients.get("projection"),
                    cell._norms(gradients), cell._initial(gradients),
                )
                if into is not None and into is not below:
                    below += into
            if layer and below is not None:
                self._dropouts[layer - 1].backward_into(below)
            d_h = below

    def _call_on_device(self, x: Any, state: Any, lengths: Any, resets: Any, training: bool) -> tuple[Any, Any]:
        self._trained, self._trained_on_device = None, False
        if self._device is None or not self._device.serves(x):
            self._device = _DeviceTwin(self, x)
        result = self._device(x, state, lengths=lengths, resets=resets, training=training)
        self._trained_on_device = training
        return result

    @overload
    def _time_major(self, a: Array) -> Array: ...
    @overload
    def _time_major(self, a: None) -> None: ...
    def _time_major(self, a: Array | None) -> Array | None:
        """Return the array time-major: with batch_first a view with the first two axes swapped."""
        return a.swapaxes(0, 1) if self.batch_first and a is not None else a

    def _half(self, h: Array, direction: int) -> Array:
        """The columns of one direction, a strided view: both directions write into h without a copy."""
        return h[..., direction * self.output_size : (direction + 1) * self.output_size] if self.bidirectional else h

    def _input_size_of(self, layer: int) -> int:
        return self.num_directions * self.output_size if layer else self.input_size

    def _state_shapes(self, batch: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Return the shapes of h and c."""
        cells = self.num_layers * self.num_directions
        return (cells, batch, self.output_size), (cells, batch, self.hidden_size)


def _nearest_bfloat16(values: Array) -> Array:
    """Return float32 values rounded to their upper 16 bits, ties to even."""
    bits = values.view(np.uint32)
    upper = bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000
    return np.asarray(np.where(np.isfinite(values), upper.view(np.float32), values))


def read_only(values: Array) -> Array:
    """A view that cannot be written."""
    view: Array = values.view()
    view.flags.writeable = False
    return view


class _DeviceTwin:
    """A layer on one device, with a copy of its weights there."""

    def __init__(self, layer: LSTM, x: Any) -> None:
        if layer.dtype != np.float32:
            raise TypeError(f"a layer must be float32 to run on a CUDA device, this one is {layer.dtype}")
        if layer._frozen_weights not in (None, "float32"):
            raise ValueError(f"{layer._frozen_weights} weights are for the CPU; call inference() for a copy in float32")
        self._engine = CudaEngine.of(x)
        check_features(layer.cell.features, self._engine.features, self._engine.place)
        self._mirror = Mirror(self._engine, layer._storage)
        self._layer = layer._on(self._engine, self._mirror.storage)

    def serves(self, x: Any) -> bool:
        """Whether x has the framework and the device of this twin."""
        return self._engine.serves(x)

    def __call__(self, x: Any, state: Any, *, lengths: Any, resets: Any, training: bool) -> tuple[Any, Any]:
        """As `LSTM.__call__`."""
        layer, engine = self._layer, self._engine
        self._mirror.send(training=training)
        x = layer._time_major(engine.check_input(x, layer.input_size))
        h = engine.empty((*x.shape[:2], layer.num_directions * layer.output_size), layer.dtype)
        with engine.undisturbed():
            final = layer.forward_into(
                h, x, _pair("state", state), lengths=lengths, resets=layer._time_major(resets),
                keep_for_backward=training, rng=layer._rng if training else None,
            )
        return layer._time_major(h), final

    def backward(self, d_h: Any, d_state: Any) -> tuple[Any, Any]:
        """As `LSTM.backward`. Waits for the device, because gradients are kept on the host."""
        layer, engine = self._layer, self._engine
        assert layer._trained is not None
        time_steps, batch, token_input = layer._trained
        d_x = None if token_input else engine.empty((time_steps, batch, layer.input_size), layer.dtype)
        d_h0, d_c0 = (engine.empty(shape, layer.dtype) for shape in layer._state_shapes(batch))
        with engine.undisturbed():
            d_h_n, d_c_n = _pair("d_state", d_state)
            layer.backward_into(d_x, layer._time_major(d_h), d_h_n, d_c_n, d_h0, d_c0)
        self._mirror.fetch()
        return layer._time_major(d_x), (d_h0, d_c0)


def _pair(name: str, value: Any) -> Any:
    if value is None:
        return None, None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair of arrays (h, c), got {type(value).__name__}")
    return value


class FrozenLSTM:
    """A copy of a stack, made by `LSTM.inference`. Weights are packed once and never compared again.

    `weights`: their format, "float32", "bfloat16" or "int8".
    """

    def __init__(self, layer: LSTM, *, weights: str = "float32") -> None:
        self.weights = weights
        values = layer.parameter_buffer.copy()
        shapes = {name: view.shape for name, view in layer.parameters.items()}
        self._layer = LSTM(
            layer.input_size, layer.hidden_size,
            num_layers=layer.num_layers, bidirectional=layer.bidirectional, batch_first=layer.batch_first,
            cell=layer.cell, dtype=layer.dtype, storage=ParameterBuffer._bind(values, np.zeros_like(values), shapes),
        )
        self._layer._freeze(weights)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), weights=self.weights), (self._layer,)

    @property
    def parameters(self) -> dict[str, Array]:
        """The weights, read-only, by their names in the layer; with "bfloat16", kernels are rounded."""
        return {name: read_only(values) for name, values in self._layer.parameters.items()}

    def zero_state(self, batch_size: int) -> State:
        """Return (h, c) of zeros, as `LSTM.zero_state`."""
        return self._layer.zero_state(batch_size)

    def initial_state(self, batch_size: int) -> State:
        """Return the (h, c) that a call without a state begins with, as `LSTM.initial_state`."""
        return self._layer.initial_state(batch_size)

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
    """A dense layer: x @ kernel + bias.

    kernel [input_size, output_size], bias [output_size]. storage: as in `LSTMCell`.
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

        training keeps x for `backward`: do not modify it before.
        Raises ValueError naming x if its last axis is not input_size; TypeError for a dtype not the layer's.
        """
        axes = tuple(f"axis{k}" for k in range(max(np.ndim(x) - 1, 0)))
        x = check.array("x", x, (*axes, self.input_size), "(..., input_size)", dtype=self.dtype, like="this layer")
        out = np.empty((*x.shape[:-1], self.output_size), self.dtype)
        self.forward_into(out.reshape(-1, self.output_size), x.reshape(-1, self.input_size))
        self._trained_on = x if training else None
        return out

    def forward_into(self, out: Array, x: Array) -> None:
        """As a call, for models: fill out [N, output_size] from x [N, input_size], already checked."""
        self._engine.linear(x, self.kernel, self.bias, out)

    def backward(self, d_out: npt.NDArray[Any]) -> Array:
        """Return the derivative by x of the last call, which must have had training=True; overwrite `gradients`.

        d_out [..., output_size]: the derivative by that call's result. The returned array is new.
        Raises RuntimeError without such a call; ValueError and TypeError naming d_out.
        """
        x = _kept(self._trained_on)
        shape = (*x.shape[:-1], self.output_size)
        d_out = check.array("d_out", d_out, shape, "the shape of the output", dtype=self.dtype, like="this layer")
        d_x = np.empty(x.shape, self.dtype)
        rows, d_rows = x.reshape(-1, self.input_size), d_out.reshape(-1, self.output_size)
        self.backward_into(d_x.reshape(-1, self.input_size), rows, d_rows)
        return d_x

    def backward_into(self, d_x: Array, x: Array, d_out: Array) -> None:
        """As `backward`, for models: x is that of the call; fills d_x."""
        gradients = self.gradients
        self._engine.linear_backward(x, self.kernel, d_out, d_x, gradients["kernel"], gradients["bias"])

    def cross_entropy(self, x: Array, targets: Array, d_x: Array | None) -> float:
        """Mean cross entropy in nats of the layer's outputs; with d_x, as `backward_into`. See `Engine`."""
        gradients = self.gradients["kernel"], self.gradients["bias"]
        return self._engine.projected_cross_entropy(
            x, self.kernel, self.bias, targets, None if d_x is None else (d_x, *gradients), transposed=False
        )


class Embedding(OfParameters):
    """A learned vector for each token: row ids[...] of a table [vocab_size, embedding_size].

    storage: as in `LSTMCell`.
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

        Raises ValueError for an id outside of the table, TypeError unless ids is an array of integers; both name ids.
        """
        axes = tuple(f"axis{k}" for k in range(max(np.ndim(ids), 1)))
        checked = check.ids("ids", ids, self.vocab_size, axes)
        out = np.empty((*checked.shape, self.embedding_size), self.dtype)
        self.forward_into(out.reshape(-1, self.embedding_size), checked.reshape(-1))
        if training and checked is ids:
            checked = checked.copy()  # callers often reuse one array of ids
        self._trained_on = checked if training else None
        return out

    def forward_into(self, out: Array, ids: Array) -> None:
        """As a call, for models: fill out [N, embedding_size] from ids [N], already checked."""
        self._engine.gather(self.table, ids, out)

    def backward_into(self, d_out: Array, ids: Array, *, add: bool = False) -> None:
        """As `backward`, for models: ids are those of the call; with `add`, add to `gradients`."""
        self._engine.scatter(d_out, ids, self.gradients["table"], add)

    def backward(self, d_out: npt.NDArray[Any]) -> None:
        """Overwrite `gradients` with those of the last call, which must have had training=True.

        d_out [..., embedding_size]: the derivative by that call's result; rows of the same id are added up.
        Raises RuntimeError without such a call; ValueError and TypeError naming d_out.
        """
        ids = _kept(self._trained_on)
        shape = (*ids.shape, self.embedding_size)
        d_out = check.array("d_out", d_out, shape, "the shape of the output", dtype=self.dtype, like="this layer")
        self.backward_into(d_out.reshape(-1, self.embedding_size), ids.reshape(-1))


class TiedProjection(OfParameters):
    """A dense layer whose kernel is an embedding's table transposed: x @ table.T + bias. Press & Wolf 2017.

    bias [vocab_size] is its only variable. The kernel's gradient is the table's: `backward_into` overwrites it, and
    `Embedding.backward_into` must then add its own.
    """

    _view_names = (*OfParameters._view_names, "bias")
    _scratch_names = ("_scratch",)

    def __init__(self, embedding: Embedding, *, storage: ParameterBuffer | None = None) -> None:
        self._embedding = embedding
        self.input_size, self.output_size = embedding.embedding_size, embedding.vocab_size
        self.dtype = embedding.dtype
        self._bind(_storage(storage, self.shapes(self.output_size), self.dtype, None))
        self._begin()

    def _bind(self, storage: ParameterBuffer) -> None:
        super()._bind(storage)
        self.bias = self.parameters["bias"]

    def _begin(self) -> None:
        self._scratch = Scratch(self.dtype, self._engine)

    def on_twin(self, engine: Engine, storage: ParameterBuffer, embedding: Embedding) -> TiedProjection:
        """Return a twin on another engine, tied to the embedding's twin there."""
        twin = self._on(engine, storage)
        twin._embedding = embedding
        return twin

    @staticmethod
    def shapes(output_size: int) -> dict[str, Shape]:
        """Return the variables and their shapes."""
        return {"bias": (output_size,)}

    @property
    def kernel(self) -> Array:
        """Kernel [input_size, output_size]: a view of the table."""
        kernel: Array = self._embedding.table.T
        return kernel

    def forward_into(self, out: Array, x: Array) -> None:
        """Fill out [N, output_size] from x [N, input_size], already checked."""
        self._engine.linear(x, self._kernel(), self.bias, out)

    def backward_into(self, d_x: Array, x: Array, d_out: Array) -> None:
        """Fill d_x and the gradients of the bias and of the table: x is that of the call."""
        d_kernel = self._scratch("d_kernel", (self.input_size, self.output_size))
        self._engine.linear_backward(x, self._kernel(), d_out, d_x, d_kernel, self.gradients["bias"])
        self._embedding.gradients["table"][...] = d_kernel.T

    def cross_entropy(self, x: Array, targets: Array, d_x: Array | None) -> float:
        """Mean cross entropy in nats; with d_x, its derivatives as in `backward_into`. See `Engine`."""
        gradients = self._embedding.gradients["table"], self.gradients["bias"]
        return self._engine.projected_cross_entropy(
            x, self._embedding.table, self.bias, targets, None if d_x is None else (d_x, *gradients), transposed=True
        )

    def _kernel(self) -> Array:
        """A contiguous copy of the kernel."""
        kernel = self._scratch("kernel", (self.input_size, self.output_size))
        kernel[...] = self.kernel
        return kernel


def _with_variables(
    projection_size: int | None, peepholes: bool, layer_norm: Any, learn_initial_state: bool
) -> Cell:
    """A cell with these variables."""
    return Cell(
        projection_size=projection_size, peepholes=peepholes, layer_norm=layer_norm,
        learn_initial_state=learn_initial_state,
    )


@lru_cache(maxsize=256)
def _without_initial_state(cell: Cell) -> Cell:
    """The cell that is given every state; the same object each time, for which `lstm_step` keeps its workspace."""
    return replace(cell, learn_initial_state=False)


def _stack_shapes(
    cell: Cell, input_size: int, hidden_size: int, num_layers: int, bidirectional: bool
) -> dict[str, Shape]:
    """Return the variables of a stack and their shapes."""
    above = cell.output_size(hidden_size) * (2 if bidirectional else 1)
    shapes: dict[str, Shape] = {}
    for layer, name in _directions(num_layers, bidirectional):
        variables = cell.shapes(above if layer else input_size, hidden_size)
        shapes |= {f"{name}.{variable}": shape for variable, shape in variables.items()}
    return shapes


def _storage(
    storage: ParameterBuffer | None, shapes: dict[str, Shape], dtype: np.dtype[Any], rng: np.random.Generator | None
) -> ParameterBuffer:
    """Return the given storage, or a new one of these shapes with initial values."""
    if storage is None:
        storage = ParameterBuffer.allocate(shapes, dtype)
        storage.fill(None, rng)
    return storage


def _kept(trained_on: Array | None) -> Array:
    """Return the input that a call with training=True has kept."""
    if trained_on is None:
        raise RuntimeError("backward needs the last call of this layer to have had training=True")
    return trained_on


def _directions(num_layers: int, bidirectional: bool) -> list[tuple[int, str]]:
    """Return (layer, name) of every layer and direction, in the order of states and variables."""
    suffixes = ("", "_reverse") if bidirectional else ("",)
    return [(layer, f"layer{layer}{suffix}") for layer, suffix in product(range(num_layers), suffixes)]
