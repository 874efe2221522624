"""TensorFlow 1's cells: names and layout of an LSTM's variables, and how layers stack.

A cell makes its variables at its first input, in the scope that is then open. They have TensorFlow's shapes and gate
order, i j f o (j is our g), so checkpoints fit; they are converted to the kernels' layout once after each write.
Unrolling over time is in `rnn`. Refuses to compute, which is left to `lstmfast.lstm`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import _core, functional
from lstmfast._checks import Array
from lstmfast.compat.tf1 import tape
from lstmfast.compat.tf1.base import How, LSTMStateTuple, Nested, Pair, RNNCell, Run, check_cell
from lstmfast.compat.tf1.graph import Reuse, Variable, get_variable, variable_scope
from lstmfast.compat.tf1.initializers import Initializer, zeros_initializer
from lstmfast.compat.tf1.steps import by_steps
from lstmfast.initializers import Shape
from lstmfast.layouts import reorder

_PEEPHOLES = ("w_i_diag", "w_f_diag", "w_o_diag")  # the rows of our peepholes [3, H]; TensorFlow makes f's first


class _LSTM(RNNCell):
    """The common base of BasicLSTMCell and LSTMCell."""

    def __init__(
        self,
        num_units: int,
        *,
        forget_bias: float,
        state_is_tuple: bool,
        activation: Any,
        reuse: Reuse,
        name: str | None,
        dtype: npt.DTypeLike | None,
        use_peepholes: bool = False,
        cell_clip: float | None = None,
        num_proj: int | None = None,
        proj_clip: float | None = None,
        initializer: Initializer | None = None,
    ) -> None:
        super().__init__(name=name, reuse=reuse, dtype=dtype)
        _only_tanh(activation)
        self.num_units = check.whole_number("num_units", num_units)
        self.forget_bias = check.finite("forget_bias", forget_bias)
        self.state_is_tuple = bool(state_is_tuple)
        self.use_peepholes = bool(use_peepholes)
        self.cell_clip = _positive("cell_clip", cell_clip)
        self.num_proj = None if num_proj is None else check.whole_number("num_proj", num_proj)
        self.proj_clip = _positive("proj_clip", proj_clip) if self.num_proj else None  # else ignored, as in TF
        self._initializer = initializer
        self._made: dict[str, Variable] = {}
        self._ours: dict[str, Array] = {}  # the variables as arguments of `lstmfast.lstm`
        self._ours_of: list[tuple[int, int]] = []  # fingerprints of the variables when they were converted

    @property
    def state_size(self) -> Any:
        """LSTMStateTuple(c, h) of sizes, or their sum if the state is one array."""
        sizes = LSTMStateTuple(self.num_units, self.output_size)
        return sizes if self.state_is_tuple else sum(sizes)

    @property
    def output_size(self) -> int:
        """num_proj, or num_units without a projection."""
        return self.num_proj or self.num_units

    @property
    def trainable_variables(self) -> list[Variable]:
        """All variables in order of creation; empty before the first input."""
        return list(self._made.values())

    @property
    def leaves(self) -> list[RNNCell]:
        """The cell itself."""
        return [self]

    @property
    def kernel(self) -> Variable:
        """[input_size + output_size, 4*num_units], columns i, j, f, o. Raises RuntimeError before the first input."""
        return self._variable("kernel")

    @property
    def bias(self) -> Variable:
        """[4*num_units], columns i, j, f, o, without the forget bias. Raises RuntimeError before the first input."""
        return self._variable("bias")

    def made_for(self, input_size: int, dtype: np.dtype[Any]) -> bool:
        """Tell whether the variables are there. Raises ValueError or TypeError if they are for other inputs."""
        if not self._made:
            return False
        kernel = self.kernel
        if kernel.shape[0] != input_size + self.output_size:
            raise ValueError(
                f"inputs must have input_size {kernel.shape[0] - self.output_size}, for which {kernel.name} "
                f"{kernel.shape} was made, got {input_size}; a cell has one input size: use another cell"
            )
        if kernel.dtype != dtype:
            raise TypeError(f"inputs must be {kernel.dtype} like {kernel.name}, got {dtype}; use .astype")
        return True

    def build_inside(self, input_size: int, dtype: np.dtype[Any]) -> None:
        """Make the variables in the scope that is open."""
        self._made = {
            name: get_variable(name, shape, dtype, zeros_initializer() if name == "bias" else self._initializer)
            for name, shape in self._shapes(input_size).items()
        }

    def run(self, x: Array, pairs: list[Pair], how: How) -> Run:
        """One call of `lstmfast.lstm`, or one per step with proj_clip, which no kernel has."""
        if self.proj_clip is None:
            return self._run(x, pairs, how)
        return by_steps(self._clipped_step, x, pairs, how)

    def split(self, arrays: Iterator[Array | None]) -> list[Pair]:
        """Take c and h, or one array of both, from the iterator."""
        first = next(arrays)
        if self.state_is_tuple:
            return [(first, next(arrays))]
        return [(None, None) if first is None else (first[:, : self.num_units], first[:, self.num_units :])]

    def pack(self, pairs: list[Pair]) -> Nested:
        """Return LSTMStateTuple(c, h), or one array of both."""
        ((c, h),) = pairs
        if self.state_is_tuple:
            return LSTMStateTuple(c, h)
        assert c is not None and h is not None
        return np.concatenate([c, h], axis=1)

    def draw_masks(self) -> None:
        """Do nothing: a cell has no dropout."""

    def _run(self, x: Array, pairs: list[Pair], how: How) -> Run:
        ((c0, h0),) = pairs
        out = functional.lstm(
            x, h0=h0, c0=c0, lengths=how.lengths, reverse=how.reverse, forget_bias=self.forget_bias,
            keep_for_backward=how.keep, **self._our_arguments(),
        )

        def backward(d_outputs: Array | None, d_pairs: list[Pair], add: tape.Add) -> tuple[Array, list[Pair]]:
            ((d_c_n, d_h_n),) = d_pairs
            d = functional.lstm_backward(out, d_outputs, d_h_n, d_c_n)
            for name in ("kernel", "bias"):
                add(self._made[name], reorder(getattr(d, name), source="lstmfast", target="tf1"))
            if d.peepholes is not None:
                for name, gradient in zip(_PEEPHOLES, d.peepholes, strict=True):
                    add(self._made[name], gradient)
            if d.projection is not None:
                add(self._made["projection/kernel"], d.projection)
            assert d.x is not None
            return d.x, [(d.c0, d.h0)]

        return Run(out.h, [(out.c_n, out.h_n)], backward if how.keep else None)

    def _clipped_step(self, x: Array, pairs: list[Pair], how: How) -> Run:
        """One step, with h clipped; rows that have ended keep their state."""
        run = self._run(x, pairs, how)
        ((c, h),) = run.pairs
        limit = self.proj_clip
        assert h is not None and limit is not None
        goes_on = np.ones((len(h), 1), np.bool_) if how.lengths is None else how.lengths[:, None] > 0
        within = ~goes_on | (np.abs(h) <= limit)

        def backward(d_outputs: Array | None, d_pairs: list[Pair], add: tape.Add) -> tuple[Array, list[Pair]]:
            ((d_c, d_h),) = d_pairs
            d = None if d_outputs is None else d_outputs * within
            assert run.backward is not None
            return run.backward(d, [(d_c, None if d_h is None else d_h * within)], add)

        clipped = np.where(goes_on, np.clip(h, -limit, limit), h)
        return replace(
            run,
            outputs=np.clip(run.outputs, -limit, limit),
            pairs=[(c, clipped)],
            backward=backward if how.keep else None,
        )

    def _shapes(self, input_size: int) -> dict[str, Shape]:
        """Shapes of the variables, in TensorFlow's order."""
        shapes: dict[str, Shape] = {
            "kernel": (input_size + self.output_size, 4 * self.num_units),
            "bias": (4 * self.num_units,),
        }
        if self.use_peepholes:
            shapes |= dict.fromkeys(("w_f_diag", "w_i_diag", "w_o_diag"), (self.num_units,))
        if self.num_proj:
            shapes["projection/kernel"] = (self.num_units, self.num_proj)
        return shapes

    def _variable(self, name: str) -> Variable:
        if name not in self._made:
            raise RuntimeError(f"{self.name} has no {name} before its first input: call it, or build(input_size)")
        return self._made[name]

    def _our_arguments(self) -> dict[str, Any]:
        """The arguments of `lstmfast.lstm`: new arrays after a write, because tapes may still hold the old ones."""
        plain = {name: variable.view(np.ndarray) for name, variable in self._made.items()}
        fingerprints = [_core.fingerprint(values) for values in plain.values()]
        if fingerprints != self._ours_of:
            self._ours = {name: reorder(plain[name], source="tf1", target="lstmfast") for name in ("kernel", "bias")}
            if self.use_peepholes:
                self._ours["peepholes"] = np.stack([plain[name] for name in _PEEPHOLES])
            if self.num_proj:
                self._ours["projection"] = plain["projection/kernel"].copy()
            self._ours_of = fingerprints
        return self._ours if self.cell_clip is None else {**self._ours, "cell_clip": self.cell_clip}


class BasicLSTMCell(_LSTM):
    """TensorFlow 1's basic LSTM cell.

    num_units: size of c and h. forget_bias is added to the forget gate at run time and is not part of the variable
    `bias`; weights trained by cuDNN need 0.0. state_is_tuple False: the state is one array [batch, 2*num_units], c
    first. activation: tanh or None, which is the same. reuse, name, dtype: as in TensorFlow; dtype None takes the
    first input's. Variables: kernel [input_size + num_units, 4*num_units], Glorot uniform or by the scope's
    initializer; bias [4*num_units], zeros.
    """

    def __init__(
        self,
        num_units: int,
        forget_bias: float = 1.0,
        state_is_tuple: bool = True,
        activation: Any = None,
        reuse: Reuse = None,
        name: str | None = None,
        dtype: npt.DTypeLike | None = None,
    ) -> None:
        super().__init__(
            num_units, forget_bias=forget_bias, state_is_tuple=state_is_tuple, activation=activation, reuse=reuse,
            name=name, dtype=dtype,
        )


class LSTMCell(_LSTM):
    """TensorFlow 1's LSTM cell, with optional peepholes, projection and clipping.

    use_peepholes: i and f see c before the step, o sees it after. cell_clip: c is clipped to ±cell_clip at every step.
    num_proj: h is projected to this size. proj_clip: the projected h is clipped, which no kernel does, so steps run one
    by one. initializer: for all variables but bias. num_unit_shards, num_proj_shards: refused. Other arguments as in
    `BasicLSTMCell`.
    Variables: kernel [input_size + output_size, 4*num_units]; bias [4*num_units]; w_f_diag, w_i_diag, w_o_diag
    [num_units]; projection/kernel [num_units, num_proj].
    """

    def __init__(
        self,
        num_units: int,
        use_peepholes: bool = False,
        cell_clip: float | None = None,
        initializer: Initializer | None = None,
        num_proj: int | None = None,
        proj_clip: float | None = None,
        num_unit_shards: int | None = None,
        num_proj_shards: int | None = None,
        forget_bias: float = 1.0,
        state_is_tuple: bool = True,
        activation: Any = None,
        reuse: Reuse = None,
        name: str | None = None,
        dtype: npt.DTypeLike | None = None,
    ) -> None:
        if num_unit_shards is not None or num_proj_shards is not None:
            raise ValueError("num_unit_shards and num_proj_shards must be None: variables are not split here")
        super().__init__(
            num_units, forget_bias=forget_bias, state_is_tuple=state_is_tuple, activation=activation, reuse=reuse,
            name=name, dtype=dtype, use_peepholes=use_peepholes, cell_clip=cell_clip, num_proj=num_proj,
            proj_clip=proj_clip, initializer=initializer,
        )


class MultiRNNCell(RNNCell):
    """A stack of cells: each reads the outputs of the one below. Sizes may differ between layers.

    cells: distinct objects, because each layer has its own weights. state_is_tuple True: the state is a tuple of the
    cells' states. Raises ValueError if a cell occurs twice or there are none.
    """

    def __init__(self, cells: Any, state_is_tuple: bool = True) -> None:
        super().__init__()
        if not isinstance(cells, (list, tuple)):
            raise TypeError(f"cells must be a list or tuple of cells, got {type(cells).__name__}")
        if not cells:
            raise ValueError("cells must hold at least one cell, got none")
        self.cells = [check_cell(f"cells[{k}]", cell) for k, cell in enumerate(cells)]
        _refuse_shared(self.cells)
        self.state_is_tuple = bool(state_is_tuple)
        if not self.state_is_tuple and any(isinstance(cell.state_size, tuple) for cell in self.cells):
            raise ValueError("cells must have state_is_tuple=False where MultiRNNCell has it, got one with a tuple")

    @property
    def state_size(self) -> Any:
        """A tuple of the cells' state sizes, or their sum if the state is one array."""
        sizes = tuple(cell.state_size for cell in self.cells)
        return sizes if self.state_is_tuple else sum(sizes)

    @property
    def output_size(self) -> int:
        """The last cell's output size."""
        return self.cells[-1].output_size

    @property
    def trainable_variables(self) -> list[Variable]:
        """The variables of all cells; empty before the first input."""
        return [variable for cell in self.cells for variable in cell.trainable_variables]

    @property
    def leaves(self) -> list[RNNCell]:
        """The LSTMs of all cells."""
        return [leaf for cell in self.cells for leaf in cell.leaves]

    def draw_masks(self) -> None:
        """Make all cells draw new masks."""
        for cell in self.cells:
            cell.draw_masks()

    def made_for(self, input_size: int, dtype: np.dtype[Any]) -> bool:
        """Tell whether all cells have their variables. Raises ValueError or TypeError if they are for other inputs."""
        sizes = [input_size, *(cell.output_size for cell in self.cells)]
        return all(cell.made_for(size, dtype) for cell, size in zip(self.cells, sizes, strict=False))

    def build_inside(self, input_size: int, dtype: np.dtype[Any]) -> None:
        """Build every cell in a scope cell_0, cell_1, ..."""
        for k, cell in enumerate(self.cells):
            with variable_scope(f"cell_{k}"):
                cell.build_in_scope(input_size, dtype, None)
            input_size = cell.output_size

    def run(self, x: Array, pairs: list[Pair], how: How) -> Run:
        """Run cell after cell over the whole sequence."""
        runs: list[Run] = []
        final, rest = [], pairs
        for cell in self.cells:
            own, rest = rest[: len(cell.leaves)], rest[len(cell.leaves) :]
            run = cell.run(runs[-1].outputs if runs else x, own, how)
            runs.append(run)
            final += run.pairs

        def backward(d_outputs: Array | None, d_pairs: list[Pair], add: tape.Add) -> tuple[Array, list[Pair]]:
            d_initial: list[Pair] = []
            d, rest = d_outputs, d_pairs
            for run in reversed(runs):
                own, rest = rest[-len(run.pairs) :], rest[: -len(run.pairs)]
                assert run.backward is not None
                d, before = run.backward(d, own, add)
                d_initial = before + d_initial
            assert d is not None
            return d, d_initial

        return Run(runs[-1].outputs, final, backward if how.keep else None)

    def pack(self, pairs: list[Pair]) -> Nested:
        """Return a tuple of the cells' states, or one array of all."""
        states, rest = [], pairs
        for cell in self.cells:
            own, rest = rest[: len(cell.leaves)], rest[len(cell.leaves) :]
            states.append(cell.pack(own))
        return tuple(states) if self.state_is_tuple else np.concatenate(states, axis=1)

    def split(self, arrays: Iterator[Array | None]) -> list[Pair]:
        """Take each cell's arrays, or one array of all, from the iterator."""
        if not self.state_is_tuple:
            whole = next(arrays)
            ends = np.cumsum([cell.state_size for cell in self.cells])[:-1]
            arrays = iter([None] * len(self.cells) if whole is None else np.split(whole, ends, axis=1))
        return [pair for cell in self.cells for pair in cell.split(arrays)]


def _refuse_shared(cells: list[RNNCell]) -> None:
    """Raise ValueError if two of a stack's cells are the same object, or wrap the same."""
    leaves = [(k, leaf) for k, cell in enumerate(cells) for leaf in cell.leaves]
    for _, leaf in leaves:
        places = [k for k, other in leaves if other is leaf]
        if len(places) > 1:
            what = type(leaf).__name__
            raise ValueError(
                f"cells must be different objects, got the same {what} at {', '.join(map(str, places))}: every layer "
                f"needs weights of its own. TensorFlow said 'Attempt to reuse RNNCell with a different variable scope "
                f"than its first use' or 'Dimensions must be equal', or silently shared the weights between layers. "
                f"Instead of MultiRNNCell([cell] * {len(cells)}) write "
                f"MultiRNNCell([{what}(num_units) for _ in range({len(cells)})])"
            )


def _only_tanh(activation: Any) -> None:
    name = activation if isinstance(activation, str) else getattr(activation, "__name__", repr(activation))
    if activation is not None and name != "tanh":
        raise ValueError(f"activation must be tanh, the only one the kernels support, got {name}")


def _positive(name: str, value: Any) -> float | None:
    if value is None:
        return None
    number = check.finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive or None, got {number:g}")
    return number
