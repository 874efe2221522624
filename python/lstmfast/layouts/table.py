"""Every weight layout, defined once: the order of its gates, the names of its arrays, the meaning of its biases.

A `Layout` is data. `converters` encodes and decodes any of them from these descriptions, and no other file knows
the order of another library's gates. Refuses to hold numbers and to read files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from lstmfast import gates

OURS = "".join(gates.LETTERS)
PEEPHOLES = "".join(gates.LETTERS[gates.NAMES.index(name)] for name in gates.PEEPHOLES)  # rows of our [3, H]


@dataclass(frozen=True)
class LayoutArray:
    """One array of one cell.

    name: without the cell's scope. role: which of our arrays it holds (`kernel` is `input` stacked on `recurrent`;
    `biases` is `bias` followed by `recurrent_bias`). gates: the gates in it, in its own order; "" if it has none.
    transposed: gates are along the rows. rows: a vector stored as a matrix, one row per gate. blocks_transposed: gates
    are along the columns, but each gate's block of memory holds the transposed matrix.
    """

    name: str
    role: str
    gates: str
    transposed: bool = False
    rows: bool = False
    blocks_transposed: bool = False


class Place(NamedTuple):
    """A cell's place in the stack: its layer, and whether it runs in reverse."""

    layer: int
    reverse: bool = False


class Stack(NamedTuple):
    """What the names of a stack's variables depend on."""

    num_layers: int
    bidirectional: bool
    plain: bool  # neither peepholes nor projection: TensorFlow 1 has a class of its own for these cells


NameOf: TypeAlias = Callable[[str, Place, Stack], str]
ParseName: TypeAlias = Callable[[str], "tuple[str, Place] | None"]


@dataclass(frozen=True)
class Layout:
    """How one library stores the weights of LSTMs.

    gate_order: letters of the gates in memory order. forget_bias: default of the bias added at run time, which no array
    contains; None if the library adds none. directions_stacked: the first axis of every array is the direction.
    write, read: make and parse a variable's name in a stack (layer numbers need not begin at 0).
    """

    name: str
    title: str
    gate_order: str
    variables: tuple[LayoutArray, ...]
    write: NameOf
    read: ParseName
    forget_bias: float | None = None
    directions_stacked: bool = False
    cell_clip: bool = False
    coupled_gates: bool = False
    counts_from_zero: bool = True  # Keras numbers layers across the whole program

    @property
    def biases(self) -> int:
        """How many biases a cell has."""
        roles = {variable.role for variable in self.variables}
        return 2 if roles & {"recurrent_bias", "biases"} else 1

    def has(self, role: str) -> bool:
        """Whether a cell has an array with this role."""
        return any(variable.role == role for variable in self.variables)


# --- names ------------------------------------------------------------------------------------------------------------


def _reader(pattern: str, first_layer: int = 0) -> ParseName:
    """A parser of names from a pattern with the group `variable` and optionally `layer` and `reverse`."""
    compiled = re.compile(pattern)

    def read(name: str) -> tuple[str, Place] | None:
        match = compiled.fullmatch(name)
        if match is None:
            return None
        found = match.groupdict()
        return found["variable"], Place(int(found.get("layer") or first_layer), bool(found.get("reverse")))

    return read


def _dotted(name: str, place: Place, stack: Stack) -> str:
    return f"layer{place.layer}{'_reverse' if place.reverse else ''}.{name}"


def _dotted_if_many(name: str, place: Place, stack: Stack) -> str:
    """A lone cell's variables have no scope."""
    return _dotted(name, place, stack) if stack.num_layers > 1 or stack.bidirectional else name


def _dotted_layer_if_many(name: str, place: Place, stack: Stack) -> str:
    return f"layer{place.layer}.{name}" if stack.num_layers > 1 else name


_read_dotted = _reader(r"(?:layer(?P<layer>\d+)(?P<reverse>_reverse)?\.)?(?P<variable>\w+)")


def _torch_name(name: str, place: Place, stack: Stack) -> str:
    return f"{name}_l{place.layer}{'_reverse' if place.reverse else ''}"


def _char_rnn_name(name: str, place: Place, stack: Stack) -> str:
    """Layers count from 1. char-rnn has no reverse direction; the suffix for it is ours."""
    module, variable = name.split(".")
    return f"{module}_{place.layer + 1}{'_reverse' if place.reverse else ''}.{variable}"


def _read_char_rnn(name: str) -> tuple[str, Place] | None:
    match = re.fullmatch(r"(i2h|h2h)_(\d+)(_reverse)?\.(weight|bias)", name)
    return match and (f"{match[1]}.{match[4]}", Place(int(match[2]) - 1, bool(match[3])))


def _keras_name(name: str, place: Place, stack: Stack) -> str:
    number = f"_{place.layer}" if place.layer else ""
    if not stack.bidirectional:
        return f"lstm{number}/lstm_cell/{name}"
    return f"bidirectional{number}/{'backward' if place.reverse else 'forward'}_lstm{number}/lstm_cell/{name}"


_read_keras = _reader(
    r"(?:[^/]+/)*?(?:[a-z_]*?(?:lstm|rnn|bidirectional))(?:_(?P<layer>\d+))?"
    r"(?:/(?:forward|(?P<reverse>backward))_[^/]+)?(?:/(?:lstm_cell|lstm_cell_\d+|cell))?"
    r"/(?P<variable>kernel|recurrent_kernel|bias)(?::0)?"
)


def _keras_cudnn_name(name: str, place: Place, stack: Stack) -> str:
    number = f"_{place.layer}" if place.layer else ""
    if not stack.bidirectional:
        return f"cu_dnnlstm{number}/{name}"
    return f"bidirectional{number}/{'backward' if place.reverse else 'forward'}_cu_dnnlstm{number}/{name}"


def _keras1_name(name: str, place: Place, stack: Stack) -> str:
    """A group named after the layer, whose name the variables repeat; layers count from 1."""
    number = place.layer + 1
    if not stack.bidirectional:
        return f"lstm_{number}/lstm_{number}_{name}"
    return f"bidirectional_{number}/{'backward' if place.reverse else 'forward'}_lstm_{number}_{name}"


_read_keras1 = _reader(
    r"(?:[^/]+/)*(?:forward_|(?P<reverse>backward_))?[^/]*?(?:_(?P<layer>\d+))?_(?P<variable>[WUb]_[ifco])(?::0)?"
)


def _tf1_name(name: str, place: Place, stack: Stack) -> str:
    """The names of dynamic_rnn over a cell or a MultiRNNCell, and of (stack_)bidirectional_dynamic_rnn."""
    cell = f"{'basic_lstm_cell' if stack.plain else 'lstm_cell'}/{name}"
    if stack.bidirectional:
        outer = f"stack_bidirectional_rnn/cell_{place.layer}/" if stack.num_layers > 1 else ""
        return f"{outer}bidirectional_rnn/{'bw' if place.reverse else 'fw'}/{cell}"
    return f"rnn/multi_rnn_cell/cell_{place.layer}/{cell}" if stack.num_layers > 1 else f"rnn/{cell}"


def _tf1_reader(variables: str) -> ParseName:
    """Any scopes: `cell_K` counts layers, `fw` and `bw` are directions (once CellK, FW and BW)."""
    pattern = re.compile(rf"(?P<scope>.*?/)?(?P<variable>{variables})(?::0)?")

    def read(name: str) -> tuple[str, Place] | None:
        match = pattern.fullmatch(name)
        if match is None:
            return None
        scope = (match["scope"] or "").lower()
        number = re.search(r"(?:^|/)cell_?(\d+)/", scope)
        return match["variable"], Place(int(number[1]) if number else 0, re.search(r"(?:^|/)bw/", scope) is not None)

    return read


# --- the layouts ------------------------------------------------------------------------------------------------------


def _fused(
    order: str, kernel: str, bias: str, peepholes: tuple[str, str, str] | None = None, projection: str = ""
) -> tuple[LayoutArray, ...]:
    """One kernel of input and recurrent rows, gates along its columns; one bias; separate peepholes of i, f and o."""
    found = [LayoutArray(kernel, "kernel", order), LayoutArray(bias, "bias", order)]
    for name, gate in zip(peepholes or (), PEEPHOLES, strict=False):
        found.append(LayoutArray(name, "peepholes", gate))
    return (*found, LayoutArray(projection, "projection", "")) if projection else tuple(found)


def _split(order: str) -> tuple[LayoutArray, ...]:
    """Two kernels, gates along the columns, one bias."""
    roles = {"kernel": "input", "recurrent_kernel": "recurrent", "bias": "bias"}
    return tuple(LayoutArray(name, role, order) for name, role in roles.items())


_DIAGONALS = ("w_i_diag", "w_f_diag", "w_o_diag")

_lstmfast = Layout(
    "lstmfast", "lstmfast", OURS,
    (
        LayoutArray("kernel", "kernel", OURS), LayoutArray("bias", "bias", OURS),
        LayoutArray("peepholes", "peepholes", PEEPHOLES, rows=True), LayoutArray("projection", "projection", ""),
        LayoutArray("norm_gain", "norm_gain", OURS),
        *(LayoutArray(name, name, "") for name in ("cell_gain", "cell_shift", "initial_h", "initial_c")),
    ),
    _dotted, _reader(r"layer(?P<layer>\d+)(?P<reverse>_reverse)?\.(?P<variable>\w+)"),
    forget_bias=1.0, cell_clip=True, coupled_gates=True,
)

_tf1 = Layout(
    "tf1", "TensorFlow 1: BasicLSTMCell, LSTMCell, LSTMBlockCell", "igfo",
    _fused("igfo", "kernel", "bias", _DIAGONALS, "projection/kernel"),
    _tf1_name, _tf1_reader(r"projection/kernel|kernel|bias|w_[ifo]_diag"), forget_bias=1.0, cell_clip=True,
)

_tf1_legacy = replace(
    _tf1, name="tf1-legacy", title="TensorFlow before 1.2 (weights, biases)",
    variables=_fused("igfo", "weights", "biases", _DIAGONALS, "projection/weights"),
    read=_tf1_reader(r"projection/weights|weights|biases|w_[ifo]_diag"),
)

_udacity = Layout(
    "udacity", "Udacity's 6_lstm notebook: twelve separate arrays", "ifgo",
    tuple(
        LayoutArray(f"{letter}{part}", role, gate, rows=role == "bias")
        for letter, gate in zip("ifco", "ifgo", strict=True)
        for part, role in (("x", "input"), ("m", "recurrent"), ("b", "bias"))
    ),
    _dotted_if_many, _read_dotted,
)

_torch = Layout(
    "pytorch", "PyTorch: nn.LSTM, nn.LSTMCell", "ifgo",
    (
        LayoutArray("weight_ih", "input", "ifgo", transposed=True),
        LayoutArray("weight_hh", "recurrent", "ifgo", transposed=True),
        LayoutArray("bias_ih", "bias", "ifgo"),
        LayoutArray("bias_hh", "recurrent_bias", "ifgo"),
        LayoutArray("weight_hr", "projection", "", transposed=True),
    ),
    _torch_name, _reader(r"(?P<variable>(?:weight|bias)_(?:ih|hh|hr))(?:_l(?P<layer>\d+)(?P<reverse>_reverse)?)?"),
)

_onnx = Layout(
    "onnx", "ONNX: the LSTM operator", "iofg",
    (
        LayoutArray("W", "input", "iofg", transposed=True),
        LayoutArray("R", "recurrent", "iofg", transposed=True),
        LayoutArray("B", "biases", "iofg"),
        LayoutArray("P", "peepholes", "iof"),
    ),
    _dotted_layer_if_many, _reader(r"(?:layer(?P<layer>\d+)\.)?(?P<variable>[WRBP])"),
    directions_stacked=True, coupled_gates=True,
)

_cudnn = Layout(
    "cudnn", "cuDNN: the matrices and biases that its RNN calls number", "ifgo",
    (
        *(
            LayoutArray(f"{name}_{gate}", role, gate, transposed=role in ("input", "recurrent"))
            for name, role in (("W", "input"), ("R", "recurrent"), ("bW", "bias"), ("bR", "recurrent_bias"))
            for gate in "ifgo"
        ),
        LayoutArray("P", "projection", "", transposed=True),
    ),
    _dotted, _reader(r"layer(?P<layer>\d+)(?P<reverse>_reverse)?\.(?P<variable>\w+)"),
)

_char_rnn = Layout(
    "char-rnn", "char-rnn: the linear modules i2h and h2h", "ifog",
    (
        LayoutArray("i2h.weight", "input", "ifog", transposed=True),
        LayoutArray("h2h.weight", "recurrent", "ifog", transposed=True),
        LayoutArray("i2h.bias", "bias", "ifog"),
        LayoutArray("h2h.bias", "recurrent_bias", "ifog"),
    ),
    _char_rnn_name, _read_char_rnn,
)

LAYOUTS = {
    layout.name: layout
    for layout in (
        _lstmfast,
        _tf1,
        _tf1_legacy,
        _udacity,
        Layout(
            "keras", "Keras: LSTM, Bidirectional", "ifgo", _split("ifgo"), _keras_name, _read_keras,
            counts_from_zero=False,
        ),
        Layout(
            "keras-cudnn", "Keras 2: CuDNNLSTM", "ifgo",
            (
                LayoutArray("kernel", "input", "ifgo", blocks_transposed=True),
                LayoutArray("recurrent_kernel", "recurrent", "ifgo", blocks_transposed=True),
                LayoutArray("bias", "biases", "ifgo"),
            ),
            _keras_cudnn_name, _read_keras, counts_from_zero=False,
        ),
        Layout(
            "keras-1", "Keras 1: twelve separate arrays", "igfo",
            tuple(
                LayoutArray(f"{part}_{letter}", role, gate)
                for letter, gate in zip("icfo", "igfo", strict=True)
                for part, role in (("W", "input"), ("U", "recurrent"), ("b", "bias"))
            ),
            _keras1_name, _read_keras1, counts_from_zero=False,
        ),
        _torch,
        _onnx,
        _cudnn,
        Layout("haste", "haste: LSTM", "igfo", _split("igfo"), _dotted_if_many, _read_dotted),
        _char_rnn,
        Layout(
            "torch-rnn", "torch-rnn: LSTM", "ifog", _fused("ifog", "weight", "bias"), _dotted_if_many, _read_dotted
        ),
        Layout(
            "block-lstm-v2", "TensorFlow: BlockLSTMV2", "ifgo", _fused("ifgo", "w", "b", ("wci", "wcf", "wco")),
            _dotted_if_many, _read_dotted,
        ),
    )
}


def layout(name: str) -> Layout:
    """The layout of this name. Raises ValueError listing the known names."""
    if name not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {name!r}")
    return LAYOUTS[name]


def gate_order(name: str) -> str:
    """The gate order of a layout, or the given order if it is one: the letters i, f, g and o, each once.

    Raises ValueError listing the layouts for anything else.
    """
    if name in LAYOUTS:
        return LAYOUTS[name].gate_order
    if sorted(name) != sorted(OURS):
        raise ValueError(
            f"gate order must be the letters {', '.join(OURS)}, each once, or a layout's name "
            f"({', '.join(LAYOUTS)}), got {name!r}"
        )
    return name
