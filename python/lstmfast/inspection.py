"""`inspect` lists the shapes, counts and gates of LSTM weights, and explains the shapes.

Takes cells, layers, models, dicts of arrays, run folders and files of other frameworks. `layouts` gives the position of
each gate, in the order of the framework that wrote the weights. Refuses to change weights and to run anything.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lstmfast import _checks as check
from lstmfast import gates
from lstmfast._checks import Array
from lstmfast.cells import Cell
from lstmfast.layers import LSTM, Embedding, Linear, LSTMCell
from lstmfast.layouts import converters, finder, readers
from lstmfast.layouts.converters import LayoutArrays, Sizes, shape_of, to_arrays
from lstmfast.layouts.finder import FoundLSTM
from lstmfast.layouts.table import Layout, LayoutArray
from lstmfast.layouts.table import layout as layout_of
from lstmfast.layouts.weights import LSTMWeights
from lstmfast.models import CharLM, SequenceClassifier

_OURS = (LSTM, CharLM, SequenceClassifier, Embedding, Linear)


@dataclass(frozen=True)
class GatePart:
    """The position of one gate in a variable.

    axis: "columns" (the last axis) or "rows" (the one before). first, end: the range of indices, without end. norm:
    Euclidean. part: "first bias" or "second bias" if a variable holds both, otherwise "".
    """

    name: str
    letter: str
    axis: str
    first: int
    end: int
    count: int
    norm: float
    part: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a dict; "columns" or "rows" is [first, end]."""
        words = {
            "name": self.name, "letter": self.letter, self.axis: [self.first, self.end], "count": self.count,
            "norm": self.norm if math.isfinite(self.norm) else None,
        }
        return {**words, "part": self.part} if self.part else words


@dataclass(frozen=True)
class VariableInfo:
    """One variable. because: its shape in terms of its cell's sizes. Outside an LSTM it is "", and gates is ()."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    because: str = ""
    gates: tuple[GatePart, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a dict."""
        return {
            "name": self.name, "shape": list(self.shape), "dtype": self.dtype, "count": self.count,
            "because": self.because, "gates": [gate.to_json() for gate in self.gates],
        }


@dataclass(frozen=True)
class LSTMInfo:
    """One stack of LSTMs: its name in the source, and its sizes. output_size: size of one direction's h."""

    name: str
    layout: str
    input_size: int
    hidden_size: int
    output_size: int
    num_layers: int
    bidirectional: bool
    forget_bias: float | None


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`. `print` shows it as a table, `to_json` is for programs.

    kind: what was inspected, in words. total: numbers in all variables. formula: lines that explain the shapes.
    notes: further facts and problems.
    """

    kind: str
    variables: tuple[VariableInfo, ...]
    lstms: tuple[LSTMInfo, ...]
    formula: tuple[str, ...]
    notes: tuple[str, ...] = ()
    total: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", sum(variable.count for variable in self.variables))

    def to_json(self) -> dict[str, Any]:
        """Return a dict of lists, numbers and strings."""
        return {
            "kind": self.kind,
            "variables": [variable.to_json() for variable in self.variables],
            "total": self.total,
            "lstms": [vars(lstm) for lstm in self.lstms],
            "formula": list(self.formula),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        rows = [(each.name, " x ".join(map(str, each.shape)) or "1", f"{each.count:,}") for each in self.variables]
        rows.append(("total", "", f"{self.total:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self.kind, ""]
        for (name, shape, count), variable in zip(rows, [*self.variables, None], strict=True):
            because = f"  {variable.because}" if variable and variable.because else ""
            lines.append(f"{name:{widths[0]}}  {shape:>{widths[1]}}  {count:>{widths[2]}}{because}")
            for gate in variable.gates if variable else ():
                where = f"{gate.axis} {gate.first} to {gate.end - 1}"
                if gate.end == gate.first + 1:
                    where = f"{gate.axis.removesuffix('s')} {gate.first}"
                words = f"{gate.letter}  {gate.name + ' gate':11}  {where:20}  norm {gate.norm:.4g}  {gate.part}"
                lines.append(f"{'':{widths[0]}}  {'':{widths[1]}}  {gate.count:{widths[2]},}  {words}".rstrip())
        for paragraph in (self.formula, self.notes):
            if paragraph:
                lines += ["", *paragraph]
        return "\n".join(lines)


def inspect(
    x: LSTMCell
    | LSTM
    | CharLM
    | SequenceClassifier
    | Embedding
    | Linear
    | LSTMWeights
    | Mapping[str, Array]
    | str
    | os.PathLike[str],
    *,
    layout: str | None = None,
) -> Inspection:
    """Describe every variable: its shape, its count, the position of its gates, and the reason for its shape.

    x: a cell, a layer, a model, weights, a dict of arrays by name (such as a state_dict), or the path of a run folder
    or of a file that `layouts.read` reads. layout: one of `layouts.LAYOUTS`, if the names of x do not determine it.
    Raises TypeError for anything else; ValueError, OSError and ImportError as `layouts.read` does.
    """
    if isinstance(x, (str, os.PathLike)):
        contents = readers.read(x, layout=layout)
        kind = f"{contents.kind}: {Path(x)}"
        return _inspection(kind, contents.arrays, contents.lstms, contents.notes)
    if isinstance(x, LSTMWeights):
        x = to_arrays(x, "lstmfast")
    if isinstance(x, Mapping):
        for key, values in x.items():
            check.unmasked(str(key), values)
        arrays = {str(name): np.asarray(values) for name, values in x.items()}
        bias = x.forget_bias if isinstance(x, LayoutArrays) else None
        name = x.layout if isinstance(x, LayoutArrays) else layout
        return _inspection("Arrays", arrays, finder.find(arrays, layout_name=name, forget_bias=bias))
    if layout is not None:
        raise ValueError(f"layout must be None for a {type(x).__name__}, which has its own, got {layout!r}")
    if isinstance(x, LSTMCell):
        names = {f"layer0.{name}": name for name in x.parameters}
        arrays = {name: np.asarray(values) for name, values in x.parameters.items()}
        own = LayoutArrays(
            {name: arrays[given] for name, given in names.items()}, "lstmfast", forget_bias=x.forget_bias
        )
        return _inspection("LSTMCell", arrays, [FoundLSTM("", own, names)], _settings(x))
    if isinstance(x, _OURS):
        arrays = {name: np.asarray(values) for name, values in x.parameters.items()}
        forget_bias = getattr(x, "forget_bias", None)
        found = finder.find(arrays, forget_bias=forget_bias)
        return _inspection(type(x).__name__, arrays, found, _settings(getattr(x, "lstm", x)))
    raise TypeError(
        f"x must be a cell, layer, model, LSTMWeights, dict of arrays or the path of a file, got {type(x).__name__}"
    )


def _settings(x: Any) -> Iterator[str]:
    """Sentences on the options of a cell or layer that no variable shows."""
    if getattr(x, "cell_clip", None) is not None:
        yield f"The cell state is clipped to between -{x.cell_clip:g} and {x.cell_clip:g} after every update."
    if getattr(x, "coupled_gates", False):
        yield "The gates are coupled: f = 1 - i, and the forget gate's columns are not read."
    options = getattr(x, "options", None) or vars(getattr(x, "cell", None) or Cell())
    if zoneout := options.get("zoneout"):
        yield "Zoneout: at every step {:g} of h and {:g} of c stay those of the step before.".format(*zoneout)
    for name, what in (("recurrent_dropout", "the recurrent input"), ("weight_dropout", "the recurrent weights")):
        if rate := options.get(name):
            yield f"Training drops {rate:g} of {what}."


def _inspection(
    kind: str, arrays: Mapping[str, Array], lstms: Iterable[FoundLSTM], notes: Iterable[str] = ()
) -> Inspection:
    said, general, counts = list(notes), [], []
    roles: dict[str, tuple[LayoutArray, Sizes]] = {}
    infos: list[LSTMInfo] = []
    for lstm in lstms:
        said += [*lstm.notes, *_settings(lstm), *lstm.differs]
        layout = layout_of(lstm.arrays.layout)
        try:
            parts = list(converters.variables_of(lstm.arrays, layout.name))
            weights = converters.from_arrays(lstm.arrays, layout.name)
        except (TypeError, ValueError) as error:
            said.append(f"{lstm.name or 'An LSTM'} cannot be used: {error}")
            continue
        said += weights.assumptions
        if lstm.arrays.forget_bias:
            said.append(f"Forget bias {lstm.arrays.forget_bias:g} is added at run time and is not a variable.")
        named = [part for part in parts if part[0] in lstm.names]  # a missing bias may be represented by zeros
        roles |= {lstm.names[name]: (variable, sizes) for name, variable, sizes in named}
        infos.append(_info(lstm, weights))
        present = tuple(dict.fromkeys(variable for _, variable, _ in parts))
        general += [line for line in _in_words(layout, present) if line not in general]
        counts += _in_numbers(lstm, weights, _count_of_biases(present), _source(kind, arrays))
    ours = any(info.layout == "lstmfast" for info in infos)
    if ours:
        counts = [*_embedding(arrays), *counts, *_projection(arrays)]
    names = sorted(arrays, key=_reading_order) if ours else list(arrays)
    variables = tuple(_described(name, np.asarray(arrays[name]), roles.get(name)) for name in names)
    return Inspection(kind, variables, tuple(infos), (*general, *counts), tuple(dict.fromkeys(said)))


def _info(lstm: FoundLSTM, weights: LSTMWeights) -> LSTMInfo:
    return LSTMInfo(
        lstm.name, lstm.arrays.layout, weights.input_size, weights.hidden_size, weights.output_size,
        weights.num_layers, weights.bidirectional, lstm.arrays.forget_bias,
    )


def _reading_order(name: str) -> tuple[Any, ...]:
    """A sort key: from input to output, layer by layer, kernel before bias."""
    scope, _, variable = name.rpartition(".")
    group = next((number for number, word in enumerate(_GROUPS) if name.startswith(word)), len(_GROUPS))
    rank = _VARIABLES.index(variable) if variable in _VARIABLES else len(_VARIABLES)
    return group, [int(number) for number in re.findall(r"\d+", scope)], scope, rank, variable


_GROUPS = ("embedding", "lstm", "layer", "kernel", "bias")
_VARIABLES = (
    "kernel", "bias", "peepholes", "projection", "norm_gain", "cell_gain", "cell_shift", "initial_h", "initial_c",
)


# --- one variable -----------------------------------------------------------------------------------------------------


def _described(name: str, values: Array, role: tuple[LayoutArray, Sizes] | None) -> VariableInfo:
    count = int(values.size)
    if role is None:
        return VariableInfo(name, values.shape, str(values.dtype), count)
    variable, sizes = role
    parts = tuple(_gate_parts(variable, values))
    because = _because(variable, sizes)
    if values.ndim > len(shape_of(variable, sizes)[0]):
        because = f"{len(values)} x {because}"  # directions
    return VariableInfo(name, values.shape, str(values.dtype), count, because, parts)


def _gate_parts(variable: LayoutArray, values: Array) -> Iterator[GatePart]:
    """The position of each gate: in columns, or in rows if the variable is transposed or has a row for each gate."""
    if not variable.gates:
        return
    axis = -2 if (variable.transposed or variable.rows) and values.ndim > 1 else -1
    halves = ("first bias", "second bias") if variable.role == "biases" else ("",)
    letters = variable.gates * len(halves)
    if variable.rows and len(letters) == 1:
        axis = -1  # one gate's bias as a matrix of one row
    for number, (letter, block) in enumerate(zip(letters, np.split(values, len(letters), axis), strict=True)):
        size = block.shape[axis]
        name = gates.NAMES[gates.LETTERS.index(letter)]
        with np.errstate(invalid="ignore", over="ignore"):  # norms that are not finite are shown
            norm = float(np.sqrt(np.square(block, dtype=np.float64).sum()))
        yield GatePart(
            name, letter, "rows" if axis == -2 else "columns", number * size, (number + 1) * size, int(block.size),
            norm, halves[number // len(variable.gates)],
        )


def _because(variable: LayoutArray, sizes: Sizes) -> str:
    """A shape in the sizes of its cell, such as (12 + 64) x 4*64."""
    words = shape_of(variable, sizes)[1].partition(":")[0].strip("(),").split(", ")
    return " x ".join(f"({_numbers(word, sizes)})" if "+" in word else _numbers(word, sizes) for word in words)


def _numbers(words: str, sizes: Sizes) -> str:
    for name in ("input_size", "hidden_size", "output_size"):
        words = words.replace(name, str(getattr(sizes, name)))
    return words


# --- the formula ------------------------------------------------------------------------------------------------------


def _in_words(layout: Layout, present: tuple[LayoutArray, ...]) -> list[str]:
    """Explain the shapes of a layout's variables in words."""
    by_role = {variable.role: variable for variable in reversed(present)}
    h = "P" if "projection" in by_role else "H"
    order = ", ".join(f"{gates.NAMES[gates.LETTERS.index(letter)]} ({letter})" for letter in layout.gate_order)
    biases = _count_of_biases(present)
    each = "a bias" if biases == 1 else "two biases, which are added," if biases else "no bias"
    read = f"A layer reads an input x of I numbers and its own last output h of {h} numbers."
    if "kernel" in by_role:
        name, bias = by_role["kernel"].name, f" and the {by_role['bias'].name} 4H" if biases else ""
        lines = [
            f"{read} It joins them and multiplies",
            f"once, with one kernel of I + {h} rows, for all four gates side by side: {order}.",
            f"Each gate has H columns, so the {name} is (I + {h}) x 4H{bias}: "
            f"together {_product(biases, h)} variables.",
            f"The first I rows of the {name} are the input kernel, the {h} rows below it the recurrent kernel.",
        ]
    elif len(by_role["input"].gates) == 1:
        turned = by_role["input"].transposed
        across, back = ("H x I", f"H x {h}") if turned else ("I x H", f"{h} x H")
        lines = [
            f"{read} Each of the four gates",
            f"has arrays of its own: {order}.",
            f"They are {across} for x, {back} for h, with {each} of H: together {_product(biases, h)} variables.",
        ]
    else:
        names = by_role["input"].name, by_role["recurrent"].name
        if by_role["input"].transposed:
            shapes, arrangement = (f"{names[0]} is 4H x I", f"{names[1]} 4H x {h}"), "one above the other, H rows each"
        else:
            shapes, arrangement = (f"{names[0]} is I x 4H", f"{names[1]} {h} x 4H"), "side by side, H columns each"
        lines = [
            f"{read} It multiplies both",
            f"for all four gates at once, which are {arrangement}: {order}.",
            f"So {shapes[0]}, {shapes[1]}, with {each} of 4H: together {_product(biases, h)} variables.",
        ]
    if "peepholes" in by_role:
        lines.append(
            "Through peepholes the gates i, f and o see the cell state c: a vector of H for each, 3H variables."
        )
    if "projection" in by_role:
        lines.append("The projection maps the H numbers of every step to the P numbers of h: H x P variables.")
    if "norm_gain" in by_role:
        lines.append(
            "Layer normalisation has a gain for each column of both products, or of their sum, and a gain and a shift "
            "for each cell state: 8H or 4H, and 2H variables."
        )
    if "initial_h" in by_role:
        lines.append(f"The initial state is learnt: {h} and H variables.")
    return lines


def _product(biases: int, h: str) -> str:
    return f"4H (I + {h}{f' + {biases}' if biases else ''})"


def _count_of_biases(present: tuple[LayoutArray, ...]) -> int:
    roles = {variable.role for variable in present}
    return 2 if "biases" in roles else len(roles & {"bias", "recurrent_bias"})


def _in_numbers(lstm: FoundLSTM, weights: LSTMWeights, biases: int, source: str) -> list[str]:
    """The counts of each layer, in numbers."""
    lines = []
    scope = f"{lstm.name}." if lstm.arrays.layout == "lstmfast" and lstm.name else f"{lstm.name} " if lstm.name else ""
    if "," in scope:  # several layers of Keras
        scope = ""
    for k, layer in enumerate(weights.layers):
        cell = layer[0]
        i, h, p = cell.input_size, cell.hidden_size, cell.output_size
        product = f"4 x {h} x ({i} + {p}{f' + {biases}' if biases else ''})"
        count = 4 * h * (i + p + biases)
        if cell.peepholes is not None:
            product, count = f"{product} + 3 x {h}", count + 3 * h
        if cell.projection is not None:
            product, count = f"{product} + {h} x {p}", count + h * p
        if cell.norm_gain is not None:
            rows = 4 * len(cell.norm_gain) + 2
            product, count = f"{product} + {rows} x {h}", count + rows * h
        if cell.initial_h is not None:
            product, count = f"{product} + {p} + {h}", count + p + h
        below = "the layer below" if k else source
        both = ""
        if len(layer) == 2:
            product, count, both = f"2 x ({product})", 2 * count, ", forward and reverse"
            below = "both directions of the layer below" if k else source
        sizes = f"I = {i} ({below}), H = {h}" + (f", P = {p}" if cell.projection is not None else "")
        lines.append(f"{scope}layer{k}{both}: {sizes}: {product} = {count:,}.")
    return lines


def _source(kind: str, arrays: Mapping[str, Array]) -> str:
    if "embedding" in arrays:
        return "the embedding"
    return "one row for each symbol" if kind.startswith(("CharLM", "lstmfast checkpoint")) else "the input"


def _embedding(arrays: Mapping[str, Array]) -> list[str]:
    if getattr(arrays.get("embedding"), "ndim", 0) != 2:
        return []
    symbols, size = arrays["embedding"].shape
    return [f"embedding: {size} numbers for each symbol: {symbols} x {size} = {symbols * size:,}."]


def _projection(arrays: Mapping[str, Array]) -> list[str]:
    if "projection.bias" in arrays and "projection.kernel" not in arrays and "embedding" in arrays:
        outputs = arrays["projection.bias"].size
        return [f"projection: the embedding transposed (tied weights), and one bias for each answer: {outputs:,}."]
    if getattr(arrays.get("projection.kernel"), "ndim", 0) != 2:
        return []
    features, outputs = arrays["projection.kernel"].shape
    total = (features + 1) * outputs
    return [
        f"projection: from {features} features to one logit for each answer: ({features} + 1) x {outputs} = {total:,}."
    ]
