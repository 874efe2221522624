"""From any layout to `LSTMWeights` and back: `convert`, `from_arrays`, `to_arrays`, `reorder`.

Columns and rows are moved, never computed with, so a round trip returns the same bits. Only biases can need arithmetic:
if the target stores fewer of them than the source, they are summed. `assumptions` says so, and the returned arrays
remember the original biases, so converting them back restores these.
Refuses to drop what a layout cannot store (peepholes, projections), and to convert dtypes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lstmfast import _checks as check
from lstmfast import gates
from lstmfast._checks import Array
from lstmfast.layouts.table import OURS, PEEPHOLES, Layout, LayoutArray, Place, Stack, gate_order
from lstmfast.layouts.table import layout as layout_of
from lstmfast.layouts.weights import (
    OF_OPTIONS,
    SETTINGS,
    CellWeights,
    LSTMWeights,
    common_forget_bias,
    in_layers,
    same_bits,
)


class LayoutArrays(dict[str, Array]):
    """Arrays by the names of a layout, with its run-time settings.

    layout: its name. forget_bias: the value to add at run time, None if the layout adds none.
    assumptions: sentences that state what was assumed and what was changed.
    """

    def __init__(
        self,
        arrays: Mapping[str, Array],
        layout: str,
        *,
        forget_bias: float | None = None,
        assumptions: Iterable[str] = (),
        sums: Iterable[_Sum | None] = (),
    ) -> None:
        super().__init__(arrays)
        self.layout, self.forget_bias, self.assumptions = layout, forget_bias, tuple(assumptions)
        self._sums = tuple(sums)

    def taken_apart(self, cells: list[CellWeights]) -> list[CellWeights]:
        """The cells with every bias that is unchanged since it was summed replaced by its original biases."""
        if len(cells) != len(self._sums):
            return cells
        return [
            cell if made is None or not same_bits(made.total, cell.bias) else made.before(cell)
            for cell, made in zip(cells, self._sums, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class _Sum:
    """A bias formed by summing others, and the cell that held them."""

    total: Array
    addends: CellWeights

    def before(self, cell: CellWeights) -> CellWeights:
        """The cell with its original biases."""
        was = self.addends
        return replace(cell, bias=was.bias, recurrent_bias=was.recurrent_bias, forget_bias=was.forget_bias)


# --- what is called ---------------------------------------------------------------------------------------------------


def convert(
    weights: Mapping[str, Array], *, source: str, target: str, forget_bias: float | None = None
) -> LayoutArrays:
    """Convert arrays from one layout to another: names, shapes, gate order and the meaning of the biases.

    forget_bias: the value added at run time (by TensorFlow 1 and lstmfast; the same on both sides, if both add one).
    None: for a source, the value that came with the arrays, or its default, 1.0; for a target, the value that needs no
    arithmetic. The result's `.assumptions` lists what was assumed, `.forget_bias` is what the target must add.
    Raises ValueError naming missing, extra and misshapen variables, an unknown layout, what the target cannot store,
    or a forget_bias if neither side adds one; TypeError for dtypes that are mixed, or neither float32 nor float64.
    """
    first, second = layout_of(source), layout_of(target)
    if forget_bias is not None and first.forget_bias is None and second.forget_bias is None:
        raise ValueError(
            f"forget_bias must be None from {source} to {target}, since neither adds one at run time: "
            f"it is part of the bias; got {forget_bias!r}"
        )
    read = from_arrays(weights, source, forget_bias=None if first.forget_bias is None else forget_bias)
    return to_arrays(read, target, forget_bias=None if second.forget_bias is None else forget_bias)


def from_arrays(weights: Mapping[str, Array], source: str, *, forget_bias: float | None = None) -> LSTMWeights:
    """`LSTMWeights` from arrays in the layout `source`, copied. Arguments and errors as in `convert`."""
    layout = layout_of(source)
    _check_forget_bias(layout, forget_bias)
    for name, array in weights.items():
        check.unmasked(name, array)
    assumptions: list[str] = []
    at_run_time = 0.0
    if layout.forget_bias is not None:
        known = forget_bias if forget_bias is not None else getattr(weights, "forget_bias", None)
        at_run_time = layout.forget_bias if known is None else check.finite("forget_bias", known)
        if known is None:
            assumptions.append(
                f"{layout.name} adds a forget bias at run time that its arrays do not contain: assuming its default, "
                f"{at_run_time:g}."
            )
    groups, directions = _cells_of(weights, layout)
    cells = [_decoded(group, layout, at_run_time) for group in groups]
    if isinstance(weights, LayoutArrays):
        cells = weights.taken_apart(cells)
    if not any(
        variable.role in _BIASES and variable.name in group for variable in layout.variables for group in groups
    ):
        assumptions.append(f"The arrays of {layout.name} contain no bias: assuming zeros.")
    return LSTMWeights(in_layers(cells, directions), assumptions=tuple(assumptions))


def to_arrays(weights: LSTMWeights, target: str, *, forget_bias: float | None = None) -> LayoutArrays:
    """`LSTMWeights` as arrays in the layout `target`, copied. Arguments and errors as in `convert`."""
    layout = layout_of(target)
    if not isinstance(weights, LSTMWeights):
        raise TypeError(f"weights must be an LSTMWeights, got {type(weights).__name__}")
    _check_forget_bias(layout, forget_bias)
    assumptions = [*weights.assumptions, *_settings(weights, layout)]
    if layout.biases == 2:
        cells, sums, at_run_time = *_fit_two_biases(weights.cells, layout, assumptions), None
    else:
        at_run_time = _run_time_forget_bias(weights.cells, layout, forget_bias)
        cells, sums = _fit_one_bias(weights.cells, layout, at_run_time, assumptions)
    stack = Stack(weights.num_layers, weights.bidirectional, not (weights.has_peepholes or weights.has_projection))
    arrays: dict[str, Array] = {}
    for k, layer in enumerate(in_layers(cells, 2 if weights.bidirectional else 1)):
        encoded = [_encoded(cell, layout) for cell in layer]
        if layout.directions_stacked:
            encoded = [{name: np.stack([each[name] for each in encoded]) for name in encoded[0]}]
        for reverse, variables in zip((False, True), encoded, strict=False):
            arrays |= {layout.write(name, Place(k, reverse), stack): values for name, values in variables.items()}
    return LayoutArrays(
        arrays, target, forget_bias=None if layout.forget_bias is None else at_run_time,
        assumptions=assumptions, sums=sums,
    )


def variables_of(weights: Mapping[str, Array], source: str) -> Iterator[tuple[str, LayoutArray, Sizes]]:
    """Every array in the layout `source`: name, description, and sizes of its cell. Raises as `from_arrays` does.

    An array whose first axis is the direction comes once per direction.
    """
    layout = layout_of(source)
    for group in _cells_of(weights, layout)[0]:
        sizes = _sizes_of(group, layout)
        yield from ((group[each.name][0], each, sizes) for each in layout.variables if each.name in group)


def reorder(values: Array, *, source: str, target: str, axis: int = -1) -> Array:
    """A copy of the array with its four blocks along `axis` in another order.

    source, target: orders such as "igfo", or names of layouts. Raises ValueError for an unknown order, or if the axis
    is not divisible by 4.
    """
    first, second = gate_order(source), gate_order(target)
    values = np.asarray(values)
    size = values.shape[axis]
    if size % gates.COUNT:
        raise ValueError(f"values must have 4*hidden_size along axis {axis}, got {size}, which 4 does not divide")
    blocks = np.split(values, gates.COUNT, axis)
    return np.concatenate([blocks[first.index(letter)] for letter in second], axis)


def _check_forget_bias(layout: Layout, forget_bias: float | None) -> None:
    if forget_bias is None:
        return
    if layout.forget_bias is None:
        raise ValueError(
            f"forget_bias must be None for {layout.name}, which adds none at run time, got {forget_bias!r}"
        )
    check.finite("forget_bias", forget_bias)


# --- biases -----------------------------------------------------------------------------------------------------------

_BIASES = ("bias", "recurrent_bias", "biases")


def _run_time_forget_bias(cells: Sequence[CellWeights], layout: Layout, wanted: float | None) -> float:
    """The bias to add at run time: as requested, or else what needs no arithmetic, if all cells agree on it."""
    if layout.forget_bias is None:
        return 0.0
    if wanted is not None:
        return float(wanted)
    return common_forget_bias(cells)


def _fit_one_bias(
    cells: Sequence[CellWeights], layout: Layout, at_run_time: float, assumptions: list[str]
) -> tuple[list[CellWeights], list[_Sum | None]]:
    """The cells with one bias each and `at_run_time` added separately; biases are summed only if they must be."""
    fitted, sums = [], []
    for cell in cells:
        one = cell.with_one_bias(at_run_time)
        fitted.append(one)
        sums.append(None if one.bias is cell.bias else _Sum(one.bias.copy(), cell))
    moved = sorted({cell.forget_bias - at_run_time for cell, made in zip(cells, sums, strict=True) if made} - {0.0})
    two = any(made and cell.recurrent_bias is not None for cell, made in zip(cells, sums, strict=True))
    if two:
        assumptions.append(f"The two biases of every cell were added, because {layout.name} has one.")
    if moved:
        why = "adds none at run time" if layout.forget_bias is None else f"adds {at_run_time:g} at run time"
        assumptions.append(
            f"Forget bias {', '.join(f'{value:g}' for value in moved)} was added into the bias, because "
            f"{layout.name} {why}."
        )
    if two or moved:
        assumptions.append(
            f"Sums are rounded to {cells[0].dtype}. The returned arrays remember their addends and convert back bit "
            "for bit, but not after they are stored and read again."
        )
    if layout.forget_bias is not None and at_run_time != layout.forget_bias:
        assumptions.append(
            f"The LSTM must be built with forget_bias={at_run_time:g}; the default of {layout.name} is "
            f"{layout.forget_bias:g}."
        )
    return fitted, sums


def _fit_two_biases(
    cells: Sequence[CellWeights], layout: Layout, assumptions: list[str]
) -> tuple[list[CellWeights], list[_Sum | None]]:
    """The cells with two biases and nothing added at run time: a separate forget bias becomes the second bias."""
    fitted = []
    for cell in cells:
        second = cell.forget_bias_alone(cell.forget_bias)
        if cell.recurrent_bias is not None:
            second = cell.recurrent_bias + second if cell.forget_bias else cell.recurrent_bias
        fitted.append(replace(cell, recurrent_bias=second, forget_bias=0.0))
    if moved := sorted({cell.forget_bias for cell in cells} - {0.0}):
        assumptions.append(
            f"The run-time forget bias {', '.join(f'{value:g}' for value in moved)} was stored in the forget gate's "
            f"part of the second bias, because {layout.name} adds none at run time; the first bias is unchanged."
        )
    return fitted, [None] * len(fitted)


# --- what a layout has a place for ------------------------------------------------------------------------------------


def _settings(weights: LSTMWeights, layout: Layout) -> list[str]:
    """Sentences about settings that no array stores. Raises ValueError for what the target cannot have."""
    there_are = {
        "peepholes": weights.has_peepholes, "projection": weights.has_projection,
        "norm_gain": weights.layer_norm is not None, "initial_h": weights.has_initial_state,
    }
    for role, there in there_are.items():
        if there and not layout.has(role):
            raise ValueError(f"{layout.name} cannot store {role}, which every cell of these weights has")
    words = []
    for name, value, there in (
        ("cell_clip", weights.cell_clip, layout.cell_clip),
        ("coupled_gates", weights.coupled_gates, layout.coupled_gates),
    ):
        if not value:
            continue
        if not there:
            raise ValueError(f"{layout.name} has no {name}, but these weights belong to an LSTM with {name}={value}")
        words.append(f"The LSTM must be built with {name}={value}, which no array stores.")
    for name in SETTINGS:
        if (option := getattr(weights, name)) != getattr(LSTMWeights, name):
            words.append(f"The LSTM must be built with {name}={option}, which no array stores.")
    return words


# --- one cell ---------------------------------------------------------------------------------------------------------


def _encoded(cell: CellWeights, layout: Layout) -> dict[str, Array]:
    """The arrays of one cell, by their names within it."""
    ours = {
        "kernel": cell.kernel, "input": cell.kernel[: cell.input_size], "recurrent": cell.kernel[cell.input_size :],
        "bias": cell.bias, "recurrent_bias": cell.recurrent_bias, "projection": cell.projection,
        "peepholes": None if cell.peepholes is None else cell.peepholes.reshape(-1),
        **{name: getattr(cell, name) for name in OF_OPTIONS},
    }
    variables = {}
    for variable in layout.variables:
        parts = [ours[role] for role in (_BIASES[:2] if variable.role == "biases" else (variable.role,))]
        values = [_gates_out_of(part, variable) for part in parts if part is not None]
        if values:
            variables[variable.name] = np.array(_turned(np.concatenate(values, axis=-1), variable), order="C")
    return variables


def _gates_out_of(values: Array, variable: LayoutArray) -> Array:
    """The columns of our array that belong to a variable's gates, in the variable's order."""
    if not variable.gates:
        return values
    order = PEEPHOLES if variable.role == "peepholes" else OURS
    blocks = np.split(values, len(order), axis=-1)
    chosen = [blocks[order.index(letter)] for letter in variable.gates]
    if variable.blocks_transposed:
        chosen = [block.T.reshape(block.shape) for block in chosen]
    return np.concatenate(chosen, axis=-1)


def _turned(values: Array, variable: LayoutArray) -> Array:
    """Convert between our columns and a variable's shape; the same operation both ways, except for `rows`."""
    if variable.rows:
        return values.reshape(len(variable.gates), -1)
    return values.T if variable.transposed else values


@dataclass(frozen=True)
class Sizes:
    """Sizes of a cell: features of x, units, features of h."""

    input_size: int
    hidden_size: int
    output_size: int


_Group = dict[str, tuple[str, Array]]  # name within the cell: full name and values


def _decoded(group: _Group, layout: Layout, at_run_time: float) -> CellWeights:
    """One cell from its arrays. Raises ValueError naming the one whose shape is wrong."""
    sizes = _sizes_of(group, layout)
    ours: dict[str, Array] = {}
    for variable in layout.variables:
        if variable.name in group:
            name, values = group[variable.name]
            check.has_shape(name, values, *shape_of(variable, sizes))
            _gates_into(ours, values.reshape(-1) if variable.rows else _turned(values, variable), variable, sizes)
    kernel = ours["kernel"] if "kernel" in ours else np.concatenate([ours["input"], ours["recurrent"]])
    hidden_size = sizes.hidden_size
    return CellWeights(
        kernel,
        ours.get("bias", np.zeros(gates.COUNT * hidden_size, kernel.dtype)),
        forget_bias=at_run_time,
        peepholes=ours["peepholes"].reshape(-1, hidden_size) if "peepholes" in ours else None,
        projection=ours.get("projection"),
        recurrent_bias=ours.get("recurrent_bias"),
        **{name: ours.get(name) for name in OF_OPTIONS},
    )


def _gates_into(ours: dict[str, Array], values: Array, variable: LayoutArray, sizes: Sizes) -> None:
    """Copy the gates of a variable to their places in our arrays."""
    if not variable.gates:
        ours[variable.role] = np.array(values, order="C")
        return
    roles = _BIASES[:2] if variable.role == "biases" else (variable.role,)
    order = PEEPHOLES if variable.role == "peepholes" else OURS
    for role, part in zip(roles, np.split(values, len(roles), axis=-1), strict=True):
        if role not in ours:
            ours[role] = np.empty((*part.shape[:-1], len(order) * sizes.hidden_size), part.dtype)
        places = np.split(ours[role], len(order), axis=-1)
        for letter, block in zip(variable.gates, np.split(part, len(variable.gates), axis=-1), strict=True):
            if variable.blocks_transposed:
                block = block.reshape(block.shape[::-1]).T
            places[order.index(letter)][...] = block


def _sizes_of(group: _Group, layout: Layout) -> Sizes:
    """Sizes of a cell, from its arrays' shapes. Raises ValueError naming the array that does not divide into gates."""
    found: dict[str, tuple[int, int]] = {}
    for variable in layout.variables:
        if variable.role in ("kernel", "input", "recurrent", "projection") and variable.name in group:
            name, values = group[variable.name]
            check.has_shape(name, values, ("rows", "columns"))
            rows, columns = values.T.shape if variable.transposed else values.shape
            count = max(len(variable.gates), 1)
            if columns == 0 or columns % count:
                axis = "rows" if variable.transposed else "columns"
                raise ValueError(
                    f"{name} must have {count}*hidden_size {axis}, got {columns}, which {count} does not divide"
                )
            found.setdefault(variable.role, (rows, columns // count))
    rows, hidden_size = found.get("kernel") or found["recurrent"]
    output_size = found["projection"][1] if "projection" in found else hidden_size
    input_size = found["input"][0] if "input" in found else rows - output_size
    if input_size < 1:
        name = next(group[v.name][0] for v in layout.variables if v.role in ("kernel", "input"))
        raise ValueError(f"{name} must have at least one input row in addition to {output_size} for h, got {rows}")
    return Sizes(input_size, hidden_size, output_size)


def shape_of(variable: LayoutArray, sizes: Sizes) -> tuple[tuple[int | str, ...], str]:
    """The shape that a variable must have, as a tuple and in words."""
    count, hidden_size = len(variable.gates), sizes.hidden_size
    columns, words = count * hidden_size, f"{count}*hidden_size" if count > 1 else "hidden_size"
    if variable.role == "biases":
        return (2 * columns,), "(8*hidden_size,): both biases"
    if variable.role in ("bias", "recurrent_bias", "peepholes"):
        return ((count, hidden_size), f"({count}, hidden_size)") if variable.rows else ((columns,), f"({words},)")
    if variable.role == "norm_gain":
        return ("1 or 2", columns), f"(1 or 2, {words})"
    if variable.role in OF_OPTIONS:
        of_h = variable.role == "initial_h"
        return (sizes.output_size if of_h else hidden_size,), f"({'output_size' if of_h else 'hidden_size'},)"
    if variable.role == "projection":
        shape, names = (hidden_size, sizes.output_size), ("hidden_size", "output_size")
    else:
        rows = {
            "kernel": sizes.input_size + sizes.output_size,
            "input": sizes.input_size,
            "recurrent": sizes.output_size,
        }
        row_words = {"kernel": "input_size + output_size", "input": "input_size", "recurrent": "output_size"}
        shape, names = (rows[variable.role], columns), (row_words[variable.role], words)
    if variable.transposed:
        shape, names = shape[::-1], names[::-1]
    return shape, f"({', '.join(names)})"


# --- which array is whose ---------------------------------------------------------------------------------------------


def _cells_of(weights: Mapping[str, Array], layout: Layout) -> tuple[list[_Group], int]:
    """The variables of every cell in the order of an LSTM's cells, and the number of directions."""
    _check_arrays(weights)
    places: dict[Place, _Group] = {}
    extra = []
    known = {variable.name for variable in layout.variables}
    for name, values in weights.items():
        variable, place = layout.read(name) or ("", Place(0))
        if variable not in known:
            extra.append(name)
            continue
        group = places.setdefault(place, {})
        if variable in group:
            raise ValueError(f"{name} and {group[variable][0]} are both {variable} of the same cell of {layout.name}")
        group[variable] = name, values
    if extra:
        raise ValueError(
            f"weights contain arrays that are not variables of {layout.name}: {', '.join(extra)}; "
            f"its cells have {', '.join(variable.name for variable in layout.variables)}"
        )
    if not places:
        raise ValueError(f"weights must hold at least one cell of {layout.name}, got no arrays")
    if layout.directions_stacked:
        places = _directions_apart(places)
    _check_complete(places, layout)
    numbers = sorted({place.layer for place in places})
    if layout.counts_from_zero and numbers != list(range(len(numbers))):
        raise ValueError(f"layers of {layout.name} must be numbered from 0 without gaps, got {numbers}")
    directions = 2 if any(place.reverse for place in places) else 1
    wanted = [Place(number, reverse) for number in numbers for reverse in (False, True)[:directions]]
    for place in wanted:
        if place not in places:
            direction = "reverse" if place.reverse else "forward"
            raise ValueError(
                f"layer {place.layer} of {layout.name} has no {direction} direction, but the stack is bidirectional"
            )
    return [places[place] for place in wanted], directions


def _check_arrays(weights: Mapping[str, Array]) -> None:
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights must be a dict of arrays by name, got {type(weights).__name__}")
    by_dtype: dict[Any, str] = {}
    for name, values in weights.items():
        check.ndarray(name, values, "float32 or float64")
        if values.dtype not in (check.FLOAT32, check.FLOAT64):
            raise TypeError(f"{name} must be a float32 or float64 array, got {values.dtype}; use .astype")
        by_dtype.setdefault(values.dtype, name)
    if len(by_dtype) > 1:
        words = " and ".join(f"{name} of {dtype}" for dtype, name in by_dtype.items())
        raise TypeError(f"weights must be all float32 or all float64, got {words}")


def _directions_apart(places: Mapping[Place, _Group]) -> dict[Place, _Group]:
    """Split arrays whose first axis is the direction into one cell per direction."""
    apart: dict[Place, _Group] = {}
    for place, group in places.items():
        directions = {len(values) if values.ndim else 0 for _, values in group.values()}
        if directions not in ({1}, {2}):
            name, values = next(iter(group.values()))
            raise ValueError(
                f"{name} must have 1 or 2 directions along its first axis, like the others of its cell, "
                f"got {values.shape}"
            )
        for reverse in (False, True)[: directions.pop()]:
            apart[Place(place.layer, reverse)] = {
                variable: (name, values[int(reverse)]) for variable, (name, values) in group.items()
            }
    return apart


def _check_complete(places: Mapping[Place, _Group], layout: Layout) -> None:
    """Raise ValueError naming what is missing: kernels are required; other arrays belong to all cells or to none."""
    anywhere = {layout_role for group in places.values() for layout_role in _roles_of(group, layout)}
    missing = []
    for group in places.values():
        model_variable, (model_name, _) = next(iter(group.items()))
        for variable in layout.variables:
            must = variable.role in ("kernel", "input", "recurrent") or variable.role in anywhere
            if must and variable.name not in group:
                missing.append(_renamed(model_name, model_variable, variable.name))
    if missing:
        raise ValueError(f"weights lack variables of {layout.name}: {', '.join(missing)}")


def _roles_of(group: _Group, layout: Layout) -> set[str]:
    """The roles of a cell's variables; either bias implies both."""
    roles = {variable.role for variable in layout.variables if variable.name in group}
    return roles | set(_BIASES) if roles & set(_BIASES) else roles


def _renamed(name: str, variable: str, other: str) -> str:
    """The name of another variable of the same cell."""
    if "." in variable:  # char-rnn: i2h_1.weight
        (module, part), (other_module, other_part) = variable.split("."), other.split(".")
        return f"{other_module}{name.removeprefix(module).removesuffix(part)}{other_part}"
    head, _, tail = name.rpartition(variable)
    return f"{head}{other}{tail}"
