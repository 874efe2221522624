"""Which arrays of a file belong to which LSTM: by their names, and by shapes where names are ambiguous.

Layers that feed each other form one stack. An unknown array in a cell's scope (a norm's gamma, say) changes the
equations, so the LSTM is refused and the array named. Other arrays are ignored.
Refuses to guess a layout from numbers; where names are not enough, the caller names the layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from lstmfast._checks import Array
from lstmfast.layouts import layer_norm
from lstmfast.layouts.converters import LayoutArrays, from_arrays
from lstmfast.layouts.table import Place, Stack, layout
from lstmfast.layouts.weights import LSTMWeights

Names: TypeAlias = dict[str, str]  # a name in its layout: the name in the file


@dataclass(frozen=True, eq=False)
class FoundLSTM:
    """A stack of LSTMs in a file.

    name: the scope of its variables there. arrays: by the names of their layout, `arrays.layout`. names: the names of
    these arrays in the file. notes: sentences on what was assumed and what the file says beyond its weights.
    differs: sentences on why no LSTM here computes the same.
    """

    name: str
    arrays: LayoutArrays
    names: Names
    notes: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    cell_clip: float | None = None
    coupled_gates: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)  # other fields of `LSTMWeights`

    def weights(self, *, forget_bias: float | None = None) -> LSTMWeights:
        """The weights as `LSTMWeights`; `notes` are among their assumptions. forget_bias as in `convert`.

        Raises ValueError for an LSTM that computes something else, and as `from_arrays` does.
        """
        if self.differs:
            raise ValueError(self.differs[0])
        try:
            weights = from_arrays(self.arrays, self.arrays.layout, forget_bias=forget_bias)
        except (TypeError, ValueError) as error:
            raise type(error)(self._in_names_of_file(str(error))) from error
        assumptions = tuple(dict.fromkeys((*self.notes, *weights.assumptions)))
        return replace(
            weights, assumptions=assumptions, cell_clip=self.cell_clip, coupled_gates=self.coupled_gates, **self.options
        )

    def _in_names_of_file(self, words: str) -> str:
        """Replace the layout's variable names in a sentence by the file's, including those of missing variables."""
        scopes = {_scope(name): _scope(given) for name, given in self.names.items()}
        read = layout(self.arrays.layout).read

        def renamed(match: re.Match[str]) -> str:
            name = match[0]
            if name in self.names:
                return self.names[name]
            scope = _scope(name)
            known = "_" in name and read(name) is not None  # not an ordinary word
            return f"{scopes[scope]}{name.removeprefix(scope)}" if known and scope in scopes else name

        return re.sub(r"[\w/.]*\w", renamed, words)


def _scope(name: str) -> str:
    """The part of a full name before the variable's own name, including the separator."""
    return name[: max(name.rfind("/"), name.rfind(".")) + 1]


@dataclass
class _Candidate:
    """Arrays that may be an LSTM, while they are collected.

    computed: values that the file stores only in parts, by names in the layout; parts: the file's names of the parts.
    scopes: prefixes of the names of all arrays in its cells. shared: a scope that may also hold other arrays, and the
    number of units that identifies the cell's.
    """

    layout: str
    name: str
    names: Names = field(default_factory=dict)
    forget_bias: float | None = None
    notes: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    computed: dict[str, Array] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)
    scopes: set[str] = field(default_factory=set)
    shared: tuple[str, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def find(
    arrays: Mapping[str, Array],
    *,
    layout_name: str | None = None,
    forget_bias: float | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    unsaid: str = "",
) -> list[FoundLSTM]:
    """Every LSTM among named arrays. layout_name: read only names of this layout. The others as in `files.File`."""
    normalized = list(_normalized(arrays)) if layout_name is None else []
    known = {name for each in normalized for name in each.parts}
    rest = {name: values for name, values in arrays.items() if name not in known} if known else arrays
    candidates = [
        *normalized, *_pytorch(rest), *_ours(rest, forget_bias), *_keras(rest, settings or {}, unsaid),
        *_tensorflow(rest), *_udacity(rest), *_onnx(rest), *_char_rnn(rest),
    ]
    if layout_name is not None:
        candidates = [_named(arrays, layout_name, forget_bias, candidates)]
    taken = {name for each in candidates for name in (*each.names.values(), *each.parts)}
    for candidate in candidates:
        _mind_strangers(candidate, arrays, taken)
    return [_found(candidate, arrays) for candidate in candidates]


def _named(
    arrays: Mapping[str, Array], layout_name: str, forget_bias: float | None, known: list[_Candidate]
) -> _Candidate:
    """The variables of one layout; a note lists the other arrays. Notes on the same arrays among `known` are kept."""
    chosen = layout(layout_name)
    names = {name: name for name in arrays if chosen.read(name)}
    if not names:
        raise ValueError(f"no variable of {layout_name} was found among {', '.join(arrays) or 'no arrays'}")
    candidate = _Candidate(layout_name, "", names, forget_bias)
    for each in known:
        if each.layout == layout_name and {*each.names.values(), *each.parts} & set(names):
            candidate.notes += each.notes
            candidate.differs += each.differs
            if not each.name and each.computed:  # PyTorch, whose weights may be stored in parts
                candidate.names |= each.names
                candidate.computed, candidate.parts = each.computed, each.parts
    candidate.scopes = {_scope(name) for name in names} - {""}
    left = [name for name in arrays if name not in candidate.names.values() and name not in candidate.parts]
    if left:
        candidate.notes.append(f"Not read, because only names of {layout_name} were requested: {_listed(left)}.")
    return candidate


def _found(candidate: _Candidate, arrays: Mapping[str, Array]) -> FoundLSTM:
    by_layout, notes = {}, list(candidate.notes)
    for name, given in candidate.names.items():
        values = np.asarray(candidate.computed.get(name, arrays[given]))
        if values.dtype == np.float16:
            notes.append(f"{given} is float16 in the file and was widened to float32, which is exact.")
            values = values.astype(np.float32)
        by_layout[name] = values
    found = LayoutArrays(by_layout, candidate.layout, forget_bias=candidate.forget_bias)
    return FoundLSTM(
        candidate.name, found, candidate.names, tuple(notes), tuple(candidate.differs), options=candidate.options
    )


# --- what else is there -----------------------------------------------------------------------------------------------

# Names of TensorFlow's optimizer slots of a variable; slots matching the second pattern have the variable's shape.
_SLOT = re.compile(r"/(?:(?:Adam|Ada|Momentum|RMSProp|Ftrl|LAMB|LARS|ExponentialMovingAverage)\w*|v[rc])(?::0)?")
_SLOT_ALIKE = re.compile(r"/(?:[A-Z]\w*|(?:adam_)?[mv](?:hat)?|momentum|accumulator|rms)(?::0)?")


def _mind_strangers(candidate: _Candidate, arrays: Mapping[str, Array], taken: set[str]) -> None:
    """Refuse a candidate with unknown arrays in its cells' scopes; note those that are not weights."""
    harmless: list[str] = []
    others: list[str] = []
    for name in arrays:
        if name in taken or not _belongs(name, candidate, np.shape(arrays[name])):
            continue
        own = (*candidate.names.values(), *candidate.parts)
        (harmless if _is_no_weight(name, arrays, own) else others).append(name)
    if harmless:
        candidate.notes.append(f"Not read, because these are not weights: {_listed(harmless)}.")
    if others:
        candidate.differs.insert(
            0,
            f"{candidate.name or 'the LSTM'} has variables that no cell of {candidate.layout} has: {_listed(others)}; "
            "with them it is not an LSTM as defined here (if they are not part of it, pass the arrays without "
            "them to layouts.from_arrays)",
        )


def _belongs(name: str, candidate: _Candidate, shape: tuple[int, ...]) -> bool:
    """Whether an array is part of a candidate's cells: by name, or in a shared scope by shape."""
    if name.startswith(tuple(candidate.scopes)):
        return True
    if candidate.shared is None:
        return False
    scope, units = candidate.shared
    rest = name.removeprefix(scope)
    return name.startswith(scope) and re.fullmatch(r"\w\w+", rest) is not None and _has_units(shape, units)


def _has_units(shape: tuple[int, ...], units: int) -> bool:
    """Whether a shape is built from a cell's units alone: (units,), (1, 4*units) or (3, units)."""
    return bool(shape) and shape[-1] in (units, 3 * units, 4 * units) and set(shape[:-1]) <= {1, 2, 3, 4, units}


def _is_no_weight(name: str, arrays: Mapping[str, Array], own: Iterable[str]) -> bool:
    """Whether an array beside a cell's variables is a counter, a generator's state, or an optimizer's slot."""
    values = np.asarray(arrays[name])
    if "seed_generator" in name or "/.OPTIMIZER_SLOT/" in name or (values.ndim == 0 and values.dtype.kind in "iu"):
        return True
    for variable in own:
        rest = name.removeprefix(variable.removesuffix(":0"))
        alike = values.shape == np.shape(arrays[variable])
        if rest != name and (_SLOT.fullmatch(rest) or (alike and _SLOT_ALIKE.fullmatch(rest))):
            return True
    return False


def _listed(names: list[str], most: int = 8) -> str:
    words = ", ".join(names[:most])
    return f"{words} and {len(names) - most} more" if len(names) > most else words


def _by_scope(arrays: Mapping[str, Array], pattern: str) -> dict[str, Names]:
    """Arrays whose names match, by the groups `scope` and `name`: the full name."""
    scopes: dict[str, Names] = {}
    compiled = re.compile(pattern)
    for name in arrays:
        if match := compiled.fullmatch(name):
            scopes.setdefault(match["scope"] or "", {})[match["name"]] = name
    return scopes


# --- one family after another -----------------------------------------------------------------------------------------


_TORCH_NAME = re.compile(
    r"(?P<scope>(?:.*\.)?)(?P<name>(?:weight|bias)_(?:ih|hh|hr)(?:_l\d+(?:_reverse)?)?)"
    r"(?P<part>_raw|_g|_v|_u|_orig|_mask|\.(?:original\d*|\d+\..+))?"
)


def _pytorch(arrays: Mapping[str, Array]) -> Iterator[_Candidate]:
    """nn.LSTM and nn.LSTMCell. nn.GRU and nn.RNN use the same names but have three gates and one."""
    scopes: dict[str, dict[str, Names]] = {}
    for given in arrays:
        match = _TORCH_NAME.fullmatch(given)
        if match is None:
            continue
        scope, part = match["scope"], match["part"] or ""
        if part.startswith("."):
            if not scope.endswith("parametrizations."):
                continue  # a module named like a weight
            scope = scope.removesuffix("parametrizations.")
        scopes.setdefault(scope, {}).setdefault(match["name"], {})[part] = given
    _move_raw_weights(scopes)
    for scope, variables in scopes.items():
        candidate = _Candidate("pytorch", scope.removesuffix("."), scopes={scope})
        for name, parts in variables.items():
            _put_together(candidate, name, parts, arrays)
        recurrent = next((given for name, given in candidate.names.items() if name.startswith("weight_hh")), None)
        projected = any(name.startswith("weight_hr") for name in candidate.names)
        if recurrent is not None and not projected and _is_gru_or_rnn(arrays[recurrent].T):
            continue
        yield candidate


def _move_raw_weights(scopes: dict[str, dict[str, Names]]) -> None:
    """Move fastai's weights before weight drop into the scope of their dropped copies, one level below."""
    for scope, variables in list(scopes.items()):
        if any("" in parts for parts in variables.values()):
            continue
        inner = [each for each in scopes if re.fullmatch(rf"{re.escape(scope)}[^.]+\.", each)]
        for name, parts in variables.items():
            for each in inner:
                above = parts if len(inner) == 1 else {f"{part} above several": given for part, given in parts.items()}
                scopes[each].setdefault(name, {}).update(above)
        if inner:
            del scopes[scope]


def _put_together(candidate: _Candidate, name: str, parts: Names, arrays: Mapping[str, Array]) -> None:
    """Add one PyTorch variable, as stored or computed from the parts that a reparametrization stores."""
    kinds = frozenset(parts) - {""}
    if not kinds:
        candidate.names[name] = parts[""]
        return
    candidate.parts |= set(parts.values())
    for known, (main, words, compute) in _REPARAMETRIZED.items():
        if kinds != set(known):
            continue
        values = compute(*(np.asarray(arrays[parts[part]]).astype(np.float64) for part in known))
        if values is not None:
            candidate.names[name] = parts[main]
            dtype = np.asarray(arrays[parts[main]]).dtype
            candidate.computed[name] = values.astype(np.float32 if dtype == np.float16 else dtype)
            words = words.format(*(parts[part] for part in known))
            left = f" Its copy {parts['']} was left out." if "" in parts else ""
            candidate.notes.append(f"{name} was taken {words}.{left}")
            return
    shown = [part for part in ("", ".original", ".original1", "_orig", "_v", "_raw") if part in parts]
    candidate.names[name] = parts[shown[0] if shown else min(kinds)]
    candidate.differs.append(
        f"{candidate.name or 'the LSTM'} computes {name} from {_listed(sorted(parts.values()))}, but the file does not "
        "say how: remove the parametrization (torch.nn.utils.parametrize.remove_parametrizations) and save again"
    )


def _weight_norm(size: Array, direction: Array) -> Array | None:
    """size * direction / |direction|, with norms over the axes where size has length 1."""
    shape = size.shape or (1,) * direction.ndim
    if len(shape) != direction.ndim or any(a not in (1, b) for a, b in zip(shape, direction.shape, strict=True)):
        return None
    axes = tuple(axis for axis, count in enumerate(shape) if count == 1)
    if not axes:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):  # a zero direction gives NaN in PyTorch too
        return np.asarray(size * direction / np.sqrt(np.square(direction).sum(axis=axes, keepdims=True)))


def _spectral_norm(weight: Array, left: Array, right: Array) -> Array | None:
    """weight over its largest singular value, estimated from the stored singular vectors."""
    matrix = weight if left.shape == weight.shape[:1] else weight.T
    if weight.ndim != 2 or (left.shape, right.shape) != (matrix.shape[:1], matrix.shape[1:]):
        return None
    return np.asarray(weight / (left @ matrix @ right))


def _pruned(weight: Array, mask: Array) -> Array | None:
    return weight * mask if weight.shape == mask.shape else None


_WEIGHT_NORM = "as {0} * {1} / |{1}|, which is weight_norm"
_SPECTRAL_NORM = "as {0} over its largest singular value after {1} and {2}, which is spectral_norm in evaluation"
# Parts stored in place of a weight: the part with its shape, a description for notes, and the computation.
_REPARAMETRIZED: dict[tuple[str, ...], tuple[str, str, Callable[..., Array | None]]] = {
    ("_raw",): ("_raw", "from {0}, the weight before weight drop", lambda raw: raw),
    ("_g", "_v"): ("_v", _WEIGHT_NORM, _weight_norm),
    (".original0", ".original1"): (".original1", _WEIGHT_NORM, _weight_norm),
    ("_orig", "_mask"): ("_orig", "as {0} * {1}, which is pruning", _pruned),
    ("_orig", "_u", "_v"): ("_orig", _SPECTRAL_NORM, _spectral_norm),
    (".original", ".0._u", ".0._v"): (".original", _SPECTRAL_NORM, _spectral_norm),
}


def _is_gru_or_rnn(recurrent_kernel: Array) -> bool:
    """Whether a recurrent kernel, gates along its columns, has a GRU's three gates or a simple RNN's one."""
    rows, columns = (recurrent_kernel.shape + (0, 0))[:2]
    return columns in (rows, 3 * rows)


def _ours(arrays: Mapping[str, Array], forget_bias: float | None) -> Iterator[_Candidate]:
    pattern = rf"(?P<scope>(?:.*\.)?)(?P<name>layer\d+(?:_reverse)?\.(?:{'|'.join(_OWN)}))"
    for scope, names in _by_scope(arrays, pattern).items():
        cells = {given.rpartition(".")[0] + "." for given in names.values()}
        yield _Candidate("lstmfast", scope.removesuffix("."), names, forget_bias, scopes=cells | {scope} - {""})


_OWN = tuple(variable.name for variable in layout("lstmfast").variables)


def _normalized(arrays: Mapping[str, Array]) -> Iterator[_Candidate]:
    """Cells with layer normalisation of other libraries, as arrays of ours."""
    for stack in layer_norm.find(arrays):
        yield _Candidate(
            "lstmfast", stack.name, stack.names, 1.0 if stack.forget_bias is None else stack.forget_bias, stack.notes,
            computed=stack.arrays, parts=stack.parts, scopes=stack.scopes - {""}, options=stack.options,
        )


def _udacity(arrays: Mapping[str, Array]) -> Iterator[_Candidate]:
    for scope, names in _by_scope(arrays, r"(?P<scope>(?:.*[./])?)(?P<name>[ifco][xmb])").items():
        if len(names) == 12:
            units = arrays[names["ib"]].size
            yield _Candidate("udacity", scope.rstrip("./"), names, shared=(scope, units))


def _onnx(arrays: Mapping[str, Array]) -> Iterator[_Candidate]:
    for scope, names in _by_scope(arrays, r"(?P<scope>(?:.*?[./])??)(?P<name>(?:layer\d+\.)?[WRBP])").items():
        recurrent = [given for name, given in names.items() if name.endswith("R")]
        if recurrent and arrays[recurrent[0]].ndim == 3:
            yield _Candidate("onnx", scope.rstrip("./"), names, shared=(scope, arrays[recurrent[0]].shape[2]))


def _char_rnn(arrays: Mapping[str, Array]) -> Iterator[_Candidate]:
    pattern = r"(?P<scope>(?:.*[./])?)(?P<name>(?:i2h|h2h)_\d+(?:_reverse)?\.(?:weight|bias))"
    for scope, names in _by_scope(arrays, pattern).items():
        modules = {given.rpartition(".")[0] + "." for given in names.values()}
        yield _Candidate("char-rnn", scope.rstrip("./"), names, scopes=modules)


# --- TensorFlow 1 -----------------------------------------------------------------------------------------------------

_TF1_VARIABLE = re.compile(
    r"(?P<scope>.*?)/?(?P<cell>[^/]*lstm[^/]*)/(?P<variable>projection/kernel|kernel|bias|w_[ifo]_diag"
    r"|projection/weights|weights|biases|linear/matrix|linear/bias)(?::0)?",
    re.IGNORECASE,
)
_OLD_VARIABLES = {"linear/matrix": "weights", "linear/bias": "biases"}
_STRUCTURE = re.compile(r"(?:stack_)?bidirectional_rnn|multi_?rnn_?cell|birnn|cell_?\d+|fw|bw", re.IGNORECASE)
_LAYERS = re.compile(r"multi_?rnn_?cell|stack_bidirectional_rnn", re.IGNORECASE)
_RUN = re.compile(rf"{_STRUCTURE.pattern}|rnn", re.IGNORECASE)  # scopes in which cells run
# Default names of TensorFlow's cells with the equations here, and of its other cells. A program may choose any name.
_PLAIN_CELL = re.compile(
    r"(?:(?:basic_?|layer_?norm_?basic_?)?lstm_?cell|lstm_?block_?(?:cell|wrapper)|(?:lstm_?block_?|lstm_?)fused_?cell"
    r"|cudnn_?compatible_?lstm_?cell)(?:_?\d+)?",
    re.IGNORECASE,
)
_OTHER_CELL = re.compile(
    r"(?:(?:coupled_?input_?forget_?gate|phased|(?:bidirectional_?)?grid|time_?freq|conv(?:_?\dd?)?|weight_?norm"
    r"|layer_?norm)_?lstm_?cell|glstm_?cell)(?:_?\d+)?",
    re.IGNORECASE,
)
_OF_DENSE = {
    "dense", "fc", "mlp", "linear", "logits", "softmax", "out", "output", "outputs", "proj", "projection", "after",
    "post", "attention", "embedding", "head", "hidden",
}


def _tensorflow(arrays: Mapping[str, Array]) -> Iterator[_Candidate]:
    """Cells whose scope says lstm, grouped by the scope without layers and directions."""
    candidates: dict[tuple[str, str], _Candidate] = {}
    taken: set[tuple[str, ...]] = set()
    for name, parts, cell, variable in _tf1_variables(arrays):
        places = [part.lower() for part in parts if _STRUCTURE.fullmatch(part)]
        direction = _outer_direction(places)
        base = "/".join(part for part in parts if not _STRUCTURE.fullmatch(part))
        key = "/".join(filter(None, [base, direction]))
        if (key, *places, variable) in taken:  # several cells in one scope: lstm_cell, lstm_cell_1
            key = f"{key}/{cell}".removeprefix("/")
        taken.add((key, *places, variable))
        of_layout = "tf1-legacy" if variable in ("weights", "biases", "projection/weights") else "tf1"
        candidate = candidates.setdefault((key, of_layout), _Candidate(of_layout, key))
        if "cudnn" in cell.lower():
            candidate.forget_bias = 0.0
        scope = [part for part in parts if not (direction and part.lower() in ("fw", "bw"))]
        candidate.names["/".join([*scope, cell, variable])] = name
        candidate.scopes.add(_scope_of_cell(parts, cell))
        if direction == "bw" and not candidate.notes:
            candidate.notes.append("This stack reads the sequence from its end.")
        _say_what_cell(candidate, "/".join([*parts, cell]), cell)
    for candidate in candidates.values():
        if any(name.rpartition("/")[2] in ("kernel", "weights") for name in candidate.names):
            _mind_norms_without_variables(candidate)
            yield candidate


def _tf1_variables(arrays: Mapping[str, Array]) -> Iterator[tuple[str, list[str], str, str]]:
    """Variables of cells: the full name, its scopes, its cell, and the variable's own name."""
    keras_scopes = {name.rpartition("/")[0] for name in arrays if name.removesuffix(":0").endswith("/recurrent_kernel")}
    for name in arrays:
        match = _TF1_VARIABLE.fullmatch(name)
        if match is not None and name.rpartition("/")[0] not in keras_scopes:
            parts = match["scope"].split("/") if match["scope"] else []
            if _is_cell(match["cell"], parts, arrays):
                yield name, parts, match["cell"], _OLD_VARIABLES.get(match["variable"].lower(), match["variable"])


def _outer_direction(places: list[str]) -> str:
    """The direction outside of the layers, if any: a stack of its own, which never sees the other direction."""
    directions = [place for place in places if place in ("fw", "bw")]
    layers = [place for place in places if re.fullmatch(r"cell_?\d+", place)]
    return directions[0] if directions and layers and places.index(directions[0]) < places.index(layers[0]) else ""


def _mind_norms_without_variables(candidate: _Candidate) -> None:
    """LayerNormBasicLSTMCell has a bias only if it has no norms."""
    for name in candidate.names.values():
        scope, _, variable = name.removesuffix(":0").rpartition("/")
        normed = re.search(r"layer_?norm_?basic", scope.rpartition("/")[2], re.IGNORECASE)
        biased = {f"{scope}/bias", f"{scope}/bias:0"} & set(candidate.names.values())
        if variable == "kernel" and normed and not biased:
            candidate.differs.append(f"{scope} is by its name a cell whose equations differ from an LSTM here")


def _is_cell(cell: str, parts: list[str], arrays: Mapping[str, Array]) -> bool:
    """Whether a scope named after an LSTM is a cell's and not, say, a following dense layer's."""
    if _PLAIN_CELL.fullmatch(cell) or _OTHER_CELL.fullmatch(cell):
        return True
    words = re.sub(r"_?\d+$", "", cell.lower())
    runs = bool(parts) and _RUN.fullmatch(parts[-1]) is not None
    if _OF_DENSE & set(words.split("_")) or not (runs or (words.endswith(("lstm", "cell")) and cell not in parts)):
        return False
    scope = "/".join([*parts, cell])
    for each in (f"{scope}/kernel", f"{scope}/kernel:0", f"{scope}/weights", f"{scope}/weights:0"):
        if each in arrays:
            rows, columns = (arrays[each].shape + (0, 0))[:2]
            return bool(arrays[each].ndim == 2 and columns % 4 == 0 and rows > columns // 4)
    return False


def _scope_of_cell(parts: list[str], cell: str) -> str:
    """The scope in which everything belongs to a cell: in a stack the layer's (with wrappers), else the cell's own."""
    for at in range(len(parts) - 1, 0, -1):
        if re.fullmatch(r"cell_?\d+", parts[at], re.IGNORECASE) and _LAYERS.fullmatch(parts[at - 1]):
            return "/".join(parts[: at + 1]) + "/"
    return "/".join([*parts, cell]) + "/"


def _say_what_cell(candidate: _Candidate, scope: str, cell: str) -> None:
    if _OTHER_CELL.fullmatch(cell):
        words = f"{scope} is by its name a cell whose equations differ from an LSTM here"
        candidate.differs += [words] if words not in candidate.differs else []
    elif not _PLAIN_CELL.fullmatch(cell):
        words = f"{scope} is assumed to be a TensorFlow 1 cell from its name and shapes."
        candidate.notes += [words] if words not in candidate.notes else []


# --- Keras ------------------------------------------------------------------------------------------------------------


@dataclass
class _KerasLayer:
    """Cells of one layer, by whether they run in reverse; scopes as in `_Candidate`."""

    name: str
    layout: str
    cells: dict[bool, Names] = field(default_factory=dict)
    scopes: set[str] = field(default_factory=set)

    @property
    def number(self) -> int:
        """The number at the end of its name."""
        found = re.search(r"_(\d+)$", self.name)
        return int(found[1]) if found else 0

    @property
    def base(self) -> str:
        """The name without its number."""
        return re.sub(r"_\d+$", "", self.name)


_OWN_CELL = re.compile(r"(?:lstm_)?cell(?:_(?P<number>\d+))?")
_NORMALIZING = re.compile(r"(?:weight|spectral)_?norm", re.IGNORECASE)
_LAYER_OF_CELL = re.compile(r"(?:\w+_)?(?:lstm|rnn)(?:_\d+)?|(?:forward|backward)_\w+", re.IGNORECASE)
_END = r"(?::0|/\.ATTRIBUTES/VARIABLE_VALUE)?"


def _keras(arrays: Mapping[str, Array], settings: Mapping[str, Mapping[str, Any]], unsaid: str) -> Iterator[_Candidate]:
    """Layers of Keras; those with matching names and sizes are treated as one stack."""
    layers = _keras2_layers(arrays)
    for layer in _keras1_layers(arrays):
        layers[layer.name if layer.name not in layers else min(layer.scopes).rstrip("_")] = layer
    stacks: list[list[_KerasLayer]] = []
    for layer in sorted(layers.values(), key=lambda each: (each.base, each.number)):
        if False not in layer.cells:  # a layer that someone named backward_...
            layer.cells[False] = layer.cells.pop(True)
        if stacks and _reads(layer, stacks[-1][-1], arrays) and _is_fed_by(layer, stacks[-1][-1], settings):
            stacks[-1].append(layer)
        else:
            stacks.append([layer])
    for stack in stacks:
        yield _keras_candidate(stack, settings, unsaid)


def _keras2_layers(arrays: Mapping[str, Array]) -> dict[str, _KerasLayer]:
    """Layers of Keras 2 and 3 by name: cells with a recurrent kernel of four gates."""
    layers: dict[str, _KerasLayer] = {}
    for place, names in _by_scope(arrays, rf"(?P<scope>(?:.*/)?)(?P<name>kernel|recurrent_kernel|bias){_END}").items():
        if "recurrent_kernel" not in names or not _has_four_gates(arrays[names["recurrent_kernel"]]):
            continue
        name, reverse = _keras_layer_name(place)
        units = arrays[names["recurrent_kernel"]].shape[0]
        cudnn = "bias" in names and arrays[names["bias"]].shape == (8 * units,)
        if name in layers and reverse in layers[name].cells:
            name = place.rstrip("/")
        layer = layers.setdefault(name, _KerasLayer(name, "keras-cudnn" if cudnn else "keras"))
        layer.cells[reverse] = names
        layer.scopes.add(place)
        outer, _, last = place.rstrip("/").rpartition("/")
        if _OWN_CELL.fullmatch(last) and _LAYER_OF_CELL.fullmatch(outer.rpartition("/")[2]):
            layer.scopes.add(f"{outer}/")
    return layers


def _has_four_gates(recurrent_kernel: Array) -> bool:
    return recurrent_kernel.ndim == 2 and recurrent_kernel.shape[1] == 4 * recurrent_kernel.shape[0]


def _keras_layer_name(place: str) -> tuple[str, bool]:
    """The name of a cell's layer, from the scope of its variables, and whether the cell runs in reverse."""
    parts = [part for part in place.split("/") if part]
    reverse = any(part.startswith("backward_") for part in parts)
    cells = [match["number"] for match in map(_OWN_CELL.fullmatch, parts) if match]
    if parts[-3:-1] == ["cell", "cells"] and parts[-1].isdigit():  # StackedRNNCells in a checkpoint of objects
        parts, cells = parts[:-1], [parts[-1] if parts[-1] != "0" else None]
    parts = [part for part in parts if not _OWN_CELL.fullmatch(part)]
    parts = [part for part in parts if not re.match("(?:forward|backward)_", part)] or parts[:1]
    again = len(parts) - 1 - parts[::-1].index(parts[0]) if parts else 0
    name = "/".join(parts[again:])  # an .h5 file names a layer twice: lstm/lstm/..., lstm/sequential/lstm/...
    if "cells" in name and cells and cells[-1]:  # StackedRNNCells: layers of their own
        name = f"{name}_{cells[-1]}"
    return name or place.rstrip("/"), reverse


def _keras1_layers(arrays: Mapping[str, Array]) -> Iterator[_KerasLayer]:
    """Layers of Keras 1: twelve arrays each, or, with consume_less="gpu", three that are laid out as in Keras 2."""
    pattern = r"(?P<scope>(?:.*/)?[^/]+)_(?P<name>[WUb](?:_[ifco])?)(?::0)?"
    layers: dict[str, _KerasLayer] = {}
    for place, names in _by_scope(arrays, pattern).items():
        group, _, own = place.rpartition("/")
        recurrent = arrays[names.get("U_i", names.get("U", next(iter(names.values()))))]
        if set(names) == _TWELVE:
            kind, square = "keras-1", recurrent.ndim == 2 and recurrent.shape[0] == recurrent.shape[1]
        else:
            kind, square = "keras", set(names) == {"W", "U", "b"} and _has_four_gates(recurrent)
            names = {_KERAS_NAMES.get(name, name): given for name, given in names.items()}
        if not square:
            continue
        direction = re.match("(forward|backward)_", own)
        name = group.rpartition("/")[2] or own.removeprefix(direction[0]) if direction else own
        reverse = bool(direction and direction[1] == "backward")
        if name in layers and (reverse in layers[name].cells or layers[name].layout != kind):
            name = place
        layer = layers.setdefault(name, _KerasLayer(name, kind))
        layer.cells[reverse] = names
        layer.scopes.add(f"{place}_")
    yield from layers.values()


_TWELVE = {variable.name for variable in layout("keras-1").variables}
_KERAS_NAMES = {"W": "kernel", "U": "recurrent_kernel", "b": "bias"}


def _reads(layer: _KerasLayer, below: _KerasLayer, arrays: Mapping[str, Array]) -> bool:
    """Whether names and shapes allow a layer to read the outputs of the one below."""
    if (layer.base, layer.number, layer.layout) != (below.base, below.number + 1, below.layout):
        return False
    if layer.cells.keys() != below.cells.keys():
        return False
    if any(set(names) != set(below.cells[reverse]) for reverse, names in layer.cells.items()):
        return False
    kernel, recurrent = ("W_i", "U_i") if layer.layout == "keras-1" else ("kernel", "recurrent_kernel")
    if kernel not in layer.cells[False]:
        return False
    own, other = (arrays[each.cells[False][recurrent]].shape for each in (layer, below))
    return bool(own == other and arrays[layer.cells[False][kernel]].shape[:1] == (len(below.cells) * other[0],))


def _is_fed_by(layer: _KerasLayer, below: _KerasLayer, settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the file's graph, if it has one, connects the two layers with nothing but dropout between."""
    sources = {name: each["source"] for name, each in settings.items() if each.get("source")}
    names = {each["path"]: name for name, each in settings.items() if "path" in each}
    names = names or {name: name for name in settings}
    source = sources.get(names.get(layer.name, ""))
    while source is not None and "Dropout" in (settings.get(source, {}).get("class_name") or ""):
        source = sources.get(source)
    return source is None or source == names.get(below.name)


def _keras_candidate(stack: list[_KerasLayer], settings: Mapping[str, Mapping[str, Any]], unsaid: str) -> _Candidate:
    bidirectional = True in stack[0].cells
    candidate = _Candidate(stack[0].layout, ", ".join(layer.name for layer in stack))
    shape = Stack(len(stack), bidirectional, True)
    write = layout(candidate.layout).write
    silent = []
    for k, layer in enumerate(stack):
        for reverse, names in layer.cells.items():
            candidate.names |= {write(name, Place(k, reverse), shape): given for name, given in names.items()}
        candidate.scopes |= layer.scopes
        for part in layer.name.split("/"):
            if _NORMALIZING.search(part):
                candidate.differs.append(
                    f"{layer.name} is inside {part}, by its name a wrapper that changes its kernels"
                )
        if not _mind_settings(candidate, layer.name, settings):
            silent.append(layer.name)
    if silent and candidate.layout != "keras-cudnn":  # cuDNN's activations are fixed
        words = unsaid
        if candidate.layout == "keras-1":
            words = _UNSAID_BY_KERAS_1
        elif any("order_alone" not in each for each in settings.values()):
            words = unsaid or "The file's settings do not mention {}: assuming tanh and sigmoid."
        candidate.notes += [words.format(", ".join(silent))] if words else []
    if candidate.name == "" and candidate.layout == "keras":
        candidate.notes.append("Keras and haste share these names: assuming Keras' gate order.")
    if len(stack) > 1:
        candidate.notes.append(f"{candidate.name} are treated as one stack: each reads the output of the previous one.")
    return candidate


_WANTED = {
    "activation": "tanh", "recurrent_activation": "sigmoid", "inner_activation": "sigmoid", "go_backwards": False,
    "merge_mode": "concat",
}
_CLASSES = {"LSTM", "CuDNNLSTM", "LSTMCell", "RNN", "StackedRNNCells", "Bidirectional", "TimeDistributed"}
_UNSAID_BY_KERAS_1 = (
    "The file does not give the inner_activation of {}: assuming sigmoid; the default of Keras 1 was hard_sigmoid."
)


def _mind_settings(candidate: _Candidate, name: str, settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Refuse settings of a layer that no LSTM here has. Returns whether the file has settings of the layer."""
    if any("path" in each for each in settings.values()):
        own = [each for each in settings.values() if f"{name}/".startswith(f"{each.get('path', '?')}/")]
    else:
        own = [each for each in settings.values() if each["name"] in (name, *name.split("/"))]
    own = [each for each in own if "layers" not in each and "order_alone" not in each]  # no models containing it
    pending = list(own)
    while pending:
        found = pending.pop()
        kind = found.get("class_name")
        if isinstance(kind, str) and kind not in _CLASSES and kind != "None":
            candidate.notes.append(
                f"{name} is a {kind}, a custom class, or is inside one: assuming it computes what Keras' LSTM does."
            )
        for setting, value in {**_WANTED, **found.get("wanted", {})}.items():
            if setting in found and found[setting] != value:
                candidate.differs.append(f"{name} has {setting}={found[setting]!r}; an LSTM here has {value!r}")
        for inner in (found.get("layer"), found.get("backward_layer"), found.get("cell"), *(found.get("cells") or ())):
            if isinstance(inner, Mapping):
                wanted = {"go_backwards": True} if inner is found.get("backward_layer") else {}
                pending.append({**(inner.get("config") or {}), "class_name": inner.get("class_name"), "wanted": wanted})
    return bool(own)
