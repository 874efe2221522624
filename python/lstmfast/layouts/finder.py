"""Which arrays of a file belong to which LSTM: by their names, and by shapes where names leave a doubt.

Layers that feed each other come out as one stack. Whatever is not recognised stays what it was: an array with a name.
Refuses to guess a layout from numbers; where names say too little, the caller names the layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from lstmfast._checks import Array
from lstmfast.layouts.converters import LayoutArrays, from_arrays
from lstmfast.layouts.table import Place, Stack, layout
from lstmfast.layouts.weights import LSTMWeights

Names: TypeAlias = dict[str, str]  # a name in its layout: the name in the file


@dataclass(frozen=True, eq=False)
class FoundLSTM:
    """A stack of LSTMs in a file.

    name: the scope of its variables there. arrays: by the names of their layout, `arrays.layout`. names: what each of
    them is called in the file. notes: what the file says that a weight does not, in sentences. differs: what makes its
    outputs others than those of any LSTM here.
    """

    name: str
    arrays: LayoutArrays
    names: Names
    notes: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    coupled_gates: bool = False

    def weights(self, *, forget_bias: float | None = None) -> LSTMWeights:
        """The weights in the hub's order. forget_bias as in `convert`.

        Raises ValueError for an LSTM that computes something else, and as `from_arrays` does.
        """
        if self.differs:
            raise ValueError(self.differs[0])
        weights = from_arrays(self.arrays, self.arrays.layout, forget_bias=forget_bias)
        return replace(weights, coupled_gates=True) if self.coupled_gates else weights


@dataclass
class _Candidate:
    """Arrays that may be an LSTM, while they are collected."""

    layout: str
    name: str
    names: Names = field(default_factory=dict)
    forget_bias: float | None = None
    notes: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)


def find(
    arrays: Mapping[str, Array],
    *,
    layout_name: str | None = None,
    forget_bias: float | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[FoundLSTM]:
    """Every LSTM among named arrays. layout_name: take those names, and no others. The rest as in `files.File`."""
    if layout_name is not None:
        chosen = layout(layout_name)
        names = {name: name for name in arrays if chosen.read(name)}
        if not names:
            raise ValueError(f"there is no variable of {layout_name} among {', '.join(arrays) or 'no arrays'}")
        candidates = [_Candidate(layout_name, "", names, forget_bias)]
    else:
        candidates = [
            *_pytorch(arrays), *_ours(arrays, forget_bias), *_keras(arrays, settings or {}), *_tensorflow(arrays),
            *_udacity(arrays), *_onnx(arrays), *_char_rnn(arrays),
        ]  # fmt: skip
    return [_found(candidate, arrays) for candidate in candidates]


def _found(candidate: _Candidate, arrays: Mapping[str, Array]) -> FoundLSTM:
    by_layout, notes = {}, list(candidate.notes)
    for name, given in candidate.names.items():
        values = np.asarray(arrays[given])
        if values.dtype == np.float16:
            notes.append(f"{given} is float16 in the file and was widened to float32, which is exact.")
            values = values.astype(np.float32)
        by_layout[name] = values
    found = LayoutArrays(by_layout, candidate.layout, forget_bias=candidate.forget_bias)
    return FoundLSTM(candidate.name, found, candidate.names, tuple(notes), tuple(candidate.differs))


def _by_scope(arrays: Mapping[str, Array], pattern: str) -> dict[str, Names]:
    """Arrays whose names match, by the group `scope`: their `name`, and what they are called."""
    scopes: dict[str, Names] = {}
    compiled = re.compile(pattern)
    for name in arrays:
        if match := compiled.fullmatch(name):
            scopes.setdefault(match["scope"] or "", {})[match["name"]] = name
    return scopes


# --- one family after another -----------------------------------------------------------------------------------------


def _pytorch(arrays: Mapping[str, Array]) -> Iterator[_Candidate]:
    """nn.LSTM and nn.LSTMCell. nn.GRU and nn.RNN have the same names: three and one gates tell them apart."""
    pattern = r"(?P<scope>(?:.*\.)?)(?P<name>(?:weight|bias)_(?:ih|hh|hr)(?:_l\d+(?:_reverse)?)?)"
    for scope, names in _by_scope(arrays, pattern).items():
        recurrent = next((given for name, given in names.items() if name.startswith("weight_hh")), None)
        projected = any(name.startswith("weight_hr") for name in names)
        if recurrent is not None and not projected and _is_gru_or_rnn(arrays[recurrent].T):
            continue
        yield _Candidate("pytorch", scope.removesuffix("."), names)


def _is_gru_or_rnn(recurrent_kernel: Array) -> bool:
    """Whether a recurrent kernel, gates along its columns, has the three gates of a GRU or the one of a simple RNN."""
    rows, columns = (recurrent_kernel.shape + (0, 0))[:2]
    return columns in (rows, 3 * rows)


def _ours(arrays: Mapping[str, Array], forget_bias: float | None) -> Iterator[_Candidate]:
    pattern = r"(?P<scope>(?:.*\.)?)(?P<name>layer\d+(?:_reverse)?\.(?:kernel|bias|peepholes|projection))"
    for scope, names in _by_scope(arrays, pattern).items():
        yield _Candidate("lstmfast", scope.removesuffix("."), names, forget_bias)


def _udacity(arrays: Mapping[str, Array]) -> Iterator[_Candidate]:
    for scope, names in _by_scope(arrays, r"(?P<scope>(?:.*[./])?)(?P<name>[ifco][xmb])").items():
        if len(names) == 12:
            yield _Candidate("udacity", scope.rstrip("./"), names)


def _onnx(arrays: Mapping[str, Array]) -> Iterator[_Candidate]:
    for scope, names in _by_scope(arrays, r"(?P<scope>(?:.*?[./])??)(?P<name>(?:layer\d+\.)?[WRBP])").items():
        recurrent = [given for name, given in names.items() if name.endswith("R")]
        if recurrent and arrays[recurrent[0]].ndim == 3:
            yield _Candidate("onnx", scope.rstrip("./"), names)


def _char_rnn(arrays: Mapping[str, Array]) -> Iterator[_Candidate]:
    pattern = r"(?P<scope>(?:.*[./])?)(?P<name>(?:i2h|h2h)_\d+(?:_reverse)?\.(?:weight|bias))"
    for scope, names in _by_scope(arrays, pattern).items():
        yield _Candidate("char-rnn", scope.rstrip("./"), names)


# --- TensorFlow 1 -----------------------------------------------------------------------------------------------------

_TF1_VARIABLE = re.compile(
    r"(?P<scope>.*?)/?(?P<cell>[^/]*lstm[^/]*)/(?P<variable>projection/kernel|kernel|bias|w_[ifo]_diag"
    r"|projection/weights|weights|biases|linear/matrix|linear/bias)(?::0)?",
    re.IGNORECASE,
)
_OLD_VARIABLES = {"linear/matrix": "weights", "linear/bias": "biases"}
_STRUCTURE = re.compile(r"(?:stack_)?bidirectional_rnn|multi_?rnn_?cell|birnn|cell_?\d+|fw|bw", re.IGNORECASE)


def _tensorflow(arrays: Mapping[str, Array]) -> Iterator[_Candidate]:
    """Cells whose scope says lstm, by what remains of the scope without layers and directions."""
    keras_scopes = {name.rpartition("/")[0] for name in arrays if name.removesuffix(":0").endswith("/recurrent_kernel")}
    candidates: dict[tuple[str, str], _Candidate] = {}
    taken: set[tuple[str, ...]] = set()
    for name in arrays:
        match = _TF1_VARIABLE.fullmatch(name)
        if match is None or name.rpartition("/")[0] in keras_scopes:
            continue
        parts = match["scope"].split("/") if match["scope"] else []
        variable = _OLD_VARIABLES.get(match["variable"].lower(), match["variable"])
        legacy = variable in ("weights", "biases", "projection/weights")
        # A direction outside of the layers is a stack of its own, which never sees the other direction's outputs.
        places = [part.lower() for part in parts if _STRUCTURE.fullmatch(part)]
        directions = [place for place in places if place in ("fw", "bw")]
        layers = [place for place in places if re.fullmatch(r"cell_?\d+", place)]
        alone = bool(directions and layers and places.index(directions[0]) < places.index(layers[0]))
        base = "/".join(part for part in parts if not _STRUCTURE.fullmatch(part))
        key = "/".join(filter(None, [base, directions[0] if alone else ""]))
        if (key, *places, variable) in taken:  # several cells in one scope: lstm_cell, lstm_cell_1
            key = f"{key}/{match['cell']}".removeprefix("/")
        taken.add((key, *places, variable))
        candidate = candidates.setdefault((key, "tf1-legacy" if legacy else "tf1"), _Candidate("tf1", key))
        candidate.layout = "tf1-legacy" if legacy else "tf1"
        if "cudnn" in match["cell"].lower():
            candidate.forget_bias = 0.0
        scope = [part for part in parts if not (alone and part.lower() in ("fw", "bw"))]
        candidate.names["/".join([*scope, match["cell"], variable])] = name
        if alone and directions[0] == "bw" and not candidate.notes:
            candidate.notes.append("This stack reads the sequence from its end.")
    for candidate in candidates.values():
        if any(name.rpartition("/")[2] in ("kernel", "weights") for name in candidate.names):
            yield candidate


# --- Keras ------------------------------------------------------------------------------------------------------------


@dataclass
class _KerasLayer:
    name: str
    number: int
    cells: dict[bool, Names] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The name without its number."""
        return re.sub(r"_\d+$", "", self.name)


def _keras(arrays: Mapping[str, Array], settings: Mapping[str, Mapping[str, Any]]) -> Iterator[_Candidate]:
    """Cells with a recurrent kernel of four gates; layers named alike whose sizes fit are taken as a stack."""
    layers: dict[str, _KerasLayer] = {}
    own_cells = re.compile(r"(?:lstm_)?cell(?:_(?P<number>\d+))?")
    pattern = r"(?P<scope>(?:.*/)?)(?P<name>kernel|recurrent_kernel|bias)(?::0)?"
    for scope, names in _by_scope(arrays, pattern).items():
        if "recurrent_kernel" not in names or _is_gru_or_rnn(arrays[names["recurrent_kernel"]]):
            continue
        parts = [part for part in scope.split("/") if part]
        reverse = any(part.startswith("backward_") for part in parts)
        cells = [match["number"] for match in map(own_cells.fullmatch, parts) if match]
        parts = [part for part in parts if not own_cells.fullmatch(part)]
        parts = [part for part in parts if not re.match("(?:forward|backward)_", part)] or parts[:1]
        again = len(parts) - 1 - parts[::-1].index(parts[0]) if parts else 0
        name = "/".join(parts[again:])  # an .h5 file names a layer twice: lstm/lstm/..., lstm/sequential/lstm/...
        if "cells" in name and cells and cells[-1]:  # StackedRNNCells: layers of their own
            name = f"{name}_{cells[-1]}"
        number = re.search(r"_(\d+)$", name)
        layer = layers.setdefault(name, _KerasLayer(name, int(number[1]) if number else 0))
        layer.cells[reverse] = names
    for layer in layers.values():
        if False not in layer.cells:  # a layer that someone named backward_...
            layer.cells[False] = layer.cells.pop(True)
    stacks: list[list[_KerasLayer]] = []
    for layer in sorted(layers.values(), key=lambda each: (each.base, each.number)):
        if stacks and _reads(layer, stacks[-1][-1], arrays) and _is_fed_by(layer, stacks[-1][-1], settings):
            stacks[-1].append(layer)
        else:
            stacks.append([layer])
    for stack in stacks:
        yield _keras_candidate(stack, settings)


def _reads(layer: _KerasLayer, below: _KerasLayer, arrays: Mapping[str, Array]) -> bool:
    """Whether a layer can be the next of a stack: named alike, and it reads what the one below gives."""
    if layer.base != below.base or layer.number != below.number + 1 or layer.cells.keys() != below.cells.keys():
        return False
    if any(set(names) != set(below.cells[reverse]) for reverse, names in layer.cells.items()):
        return False
    own, other = (arrays[each.cells[False]["recurrent_kernel"]].shape for each in (layer, below))
    return bool(own == other and arrays[layer.cells[False]["kernel"]].shape[:1] == (len(below.cells) * other[0],))


def _is_fed_by(layer: _KerasLayer, below: _KerasLayer, settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a graph, if the file has one, leads from one layer to the other with nothing but dropout between."""
    sources = {name: each["source"] for name, each in settings.items() if each.get("source")}
    names = {each.get("path", name): name for name, each in settings.items()}
    source = sources.get(names.get(layer.name, ""))
    while source is not None and "Dropout" in settings.get(source, {}).get("class_name", ""):
        source = sources.get(source)
    return source is None or source == names.get(below.name)


def _keras_candidate(stack: list[_KerasLayer], settings: Mapping[str, Mapping[str, Any]]) -> _Candidate:
    bidirectional = True in stack[0].cells
    candidate = _Candidate("keras", ", ".join(layer.name for layer in stack))
    shape = Stack(len(stack), bidirectional, True)
    write = layout("keras").write
    for k, layer in enumerate(stack):
        for reverse, names in layer.cells.items():
            candidate.names |= {write(name, Place(k, reverse), shape): given for name, given in names.items()}
        candidate.differs += _keras_differences(settings, layer.name)
    if len(stack) > 1:
        candidate.notes.append(f"{candidate.name} are taken as one stack: each reads what the one before gives.")
    return candidate


def _keras_differences(settings: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """What a layer is set to that an LSTM of ours is not."""
    wanted = {"activation": "tanh", "recurrent_activation": "sigmoid", "go_backwards": False, "merge_mode": "concat"}
    own = [each for given, each in settings.items() if each.get("path", given) in (name, *name.split("/"))]
    pending, words = list(own), []
    while pending:
        found = pending.pop()
        for setting, value in wanted.items():
            if setting in found and found[setting] != value:
                words.append(f"{name} has {setting}={found[setting]!r}; an LSTM here has {value!r}")
        for inner in (found.get("layer"), found.get("cell"), *(found.get("cells") or ())):
            if isinstance(inner, Mapping):
                pending.append(inner.get("config") or {})
    return words
