"""LSTM nodes of an ONNX model: their weights, their attributes, and which of them form a stack.

Nodes are searched in the graph, in bodies of If, Loop and Scan, and in functions. Two are joined only if the graph
proves that the upper one reads the unchanged outputs of the lower one, and that nothing else reads them. Refuses, by
name, nodes that compute what no LSTM here does. Values are evaluated in `onnx_graph`. The package `onnx`, an extra, is
imported when a function is called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from lstmfast._checks import Array
from lstmfast.layouts.onnx_graph import LSTM_KINDS, QUANTIZED_LSTM, Graph, Node, Shape, Shapes, Value

_WEIGHTS = {"W": 1, "R": 2, "B": 3, "P": 7}  # the operator's input indices
_LENGTHS, _STATES = 4, {"initial_h": 5, "initial_c": 6}
_QUANTIZATION = {"W": (8, 9), "R": (10, 11)}  # input indices of scale and zero point, in QUANTIZED_LSTM
_AXES = {"W": 3, "R": 3, "B": 2, "P": 2}
_DEFAULT_ACTIVATIONS = ("sigmoid", "tanh", "tanh")  # ONNX ignores their case
# Types of the attributes, as `onnx.AttributeProto` numbers them: float, integer, strings.
_TYPES = {"clip": 1, "hidden_size": 2, "input_forget": 2, "layout": 2, "direction": 3, "activations": 8}
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
_WORDS = {"states": "initial states", "lengths": "lengths of its rows"}
_NOT_GIVEN = {"held": "the file contains", "computed": "the graph computes or rearranges"}
_ROWS = 3  # of a state whose batch size is unknown
_EXACT = 2**24  # integers below are exact in float32
_NO_CLIP = float(np.finfo(np.float32).max)
_TO_THE_END = 2**31 - 1  # as the end of a slice, exporters use this or more for "to the end"
_NARROW = ("float16", "bfloat16")
_PRIMES = (23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)

# Origin of a node's states or lengths. "none": zero states, or full length. "given": unchanged inputs of the graph.
# "held": stored in the file. "computed": anything else in the graph.
Origin: TypeAlias = Literal["none", "given", "held", "computed"]


@dataclass(frozen=True, eq=False)
class LSTMNode:
    """One node: arrays W, R and, where given, B and P; attributes with the operator's defaults filled in.

    name: unique. values: the graph's names of the arrays. trouble: a sentence on why it cannot be used at all; arrays
    may then be missing. below: the node whose unchanged outputs are read by this one and no other; None if there is
    none. states, lengths: their origins.
    """

    name: str
    arrays: dict[str, Array]
    values: dict[str, str]
    direction: str
    activations: tuple[str, ...]
    clip: float | None
    input_forget: bool
    batch_first: bool
    trouble: str
    states: Origin
    lengths: Origin
    below: LSTMNode | None
    graph: Graph
    node: Node

    def refuse_what_differs(self, *, weights_only: bool = False) -> None:
        """Raise ValueError naming the node and the first property that no LSTM here has.

        weights_only: accept states and lengths that the caller does not give.
        """
        if self.trouble:
            raise ValueError(self.trouble)
        if self.activations != _DEFAULT_ACTIVATIONS * self.directions:
            raise ValueError(
                f"LSTM node {self.name} has activations {', '.join(self.activations)}; "
                f"an LSTM here has {', '.join(_DEFAULT_ACTIVATIONS)}"
            )
        if self.clip is not None:
            raise ValueError(
                f"LSTM node {self.name} clips the inputs of its activations to {self.clip:g}, which no LSTM here does"
            )
        if self.direction == "reverse":
            raise ValueError(f"LSTM node {self.name} has no forward direction, which every LSTM here has")
        if not weights_only:
            for what, origin, instead in (
                ("states", self.states, "starts from zeros unless a call gives `state`"),
                ("lengths", self.lengths, "runs all rows to their end unless a call gives `lengths`"),
            ):
                if origin in _NOT_GIVEN:
                    raise ValueError(
                        f"LSTM node {self.name} has {_WORDS[what]} that {_NOT_GIVEN[origin]}, but an LSTM here "
                        f"{instead}: lstmfast.onnx.load(..., weights_only=True) reads it without them"
                    )

    @property
    def directions(self) -> int:
        """1 or 2."""
        return _DIRECTIONS.get(self.direction, 1)

    @property
    def hidden_size(self) -> int:
        """Units in one direction."""
        return int(self.arrays["R"].shape[2])

    @property
    def width(self) -> int:
        """Features of its output at each step, all directions together."""
        return self.directions * self.hidden_size

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what to know about it besides its weights."""
        words = [
            f"{self.values[letter]} is {array.dtype} in the file and was widened to float32, which is exact."
            for letter, array in self.arrays.items() if array.dtype.name in _NARROW
        ]
        if self.node.kind == QUANTIZED_LSTM:
            words.append(
                f"W and R of LSTM node {self.name} are 8-bit integers in the file and were dequantized to float32; the "
                "operator also rounds its inputs and states to 8 bits, which an LSTM here does not."
            )
        if self.batch_first:
            words.append(f"LSTM node {self.name} has layout=1: a layer of it needs batch_first=True.")
        for what, origin in (("states", self.states), ("lengths", self.lengths)):
            if origin in _NOT_GIVEN:
                words.append(
                    f"LSTM node {self.name} has {_WORDS[what]} that {_NOT_GIVEN[origin]}, which are not weights."
                )
        return tuple(words)

    def can_go_on(self, stack: Sequence[LSTMNode]) -> bool:
        """Whether this node can be the next layer of a stack whose last node it reads."""
        lower = stack[-1]
        return (
            self.below is lower
            and all(node._is_plain() for node in (self, lower))
            and self.arrays["R"].shape == lower.arrays["R"].shape
            and self.arrays["R"].dtype == lower.arrays["R"].dtype
            and self.arrays.keys() ^ lower.arrays.keys() <= {"B"}
            and (self.direction, self.input_forget) == (lower.direction, lower.input_forget)
            and (self.states, self.lengths) == (lower.states, lower.lengths)
            and (self.lengths == "none" or self.node.input(_LENGTHS) is lower.node.input(_LENGTHS))
            and (self.states in ("none", "held") or self.states == "given" and _are_given([*stack, self]))
        )

    def _is_plain(self) -> bool:
        try:
            self.refuse_what_differs(weights_only=True)
        except ValueError:
            return False
        return True


def read_model(path: Path) -> Any:
    """The `onnx.ModelProto` in a file. Raises ValueError if it is not one, OSError if it cannot be read."""
    import onnx

    try:
        model = onnx.load(path)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a usable ONNX model: {' '.join(str(error).split())[:160]}") from error
    if not model.graph.node:
        raise ValueError(f"{path} is not a usable ONNX model: it has no nodes")
    return model


def lstm_nodes(graph: Graph) -> list[LSTMNode]:
    """The LSTM nodes of a model, wherever they are, in the order of execution.

    Includes unusable ones: see `LSTMNode.trouble` and `LSTMNode.refuse_what_differs`.
    """
    nodes = [node for node in graph.nodes if node.kind in LSTM_KINDS]
    by_output: dict[Value, LSTMNode] = {}
    found = []
    for name, node in zip(_unique([node.name for node in nodes]), nodes, strict=True):
        read = _read(graph, node, name)
        x = node.input(0)
        lower = by_output.get(next(iter(x.sources))) if x is not None and len(x.sources) == 1 else None
        if lower is not None and not read.trouble and not lower.trouble and _reads_as_it_is(read, lower):
            read = replace(read, below=lower)
        found.append(read)
        if node.outputs and node.outputs[0] is not None:
            by_output[node.outputs[0]] = read
    return found


def stacks(nodes: list[LSTMNode]) -> list[list[LSTMNode]]:
    """Nodes grouped into stacks, each from the lowest layer up."""
    above = {id(node.below): node for node in nodes if node.below is not None}
    found, taken = [], set[int]()
    for node in nodes:  # a lower one comes before an upper one
        if id(node) not in taken:
            stack = [node]
            while (upper := above.get(id(stack[-1]))) is not None and upper.can_go_on(stack):
                stack.append(upper)
                taken.add(id(upper))
            found.append(stack)
    return found


def stack_arrays(stack: list[LSTMNode]) -> dict[str, Array]:
    """The arrays of a stack by the names of the layout `onnx`, 16-bit ones widened to float32.

    If only some nodes have a bias, the others get zeros.
    """
    some_bias = any("B" in node.arrays for node in stack)
    arrays: dict[str, Array] = {}
    for k, node in enumerate(stack):
        scope = f"layer{k}." if len(stack) > 1 else ""
        arrays |= {f"{scope}{letter}": _widened(values) for letter, values in node.arrays.items()}
        if some_bias and "B" not in node.arrays:
            r = arrays[f"{scope}R"]
            arrays[f"{scope}B"] = np.zeros((r.shape[0], 2 * r.shape[1]), r.dtype)
    return arrays


def _widened(values: Array) -> Array:
    return values.astype(np.float32) if values.dtype.name in _NARROW else values


# --- one node ---------------------------------------------------------------------------------------------------------


def _unique(names: Sequence[str]) -> Iterator[str]:
    """The names, with a number appended to repeated ones."""
    used: set[str] = set()
    for name in names:
        given, number = name, 2
        while given in used or number > 2 and given in names:
            given, number = f"{name}_{number}", number + 1
        used.add(given)
        yield given


def _read(graph: Graph, node: Node, name: str) -> LSTMNode:
    settings = {key: _setting(each) for key, each in node.attributes.items() if _TYPES.get(key) == each.type}
    direction, clip = settings.get("direction", "forward"), settings.get("clip")
    values = {letter: value for letter, place in _WEIGHTS.items() if (value := node.input(place)) is not None}
    arrays, trouble = {}, ""
    for key, each in node.attributes.items():
        if key in _TYPES and each.type != _TYPES[key]:
            trouble = f"{key} of LSTM node {name} must be of the attribute type {_TYPES[key]}, got {each.type}"
    for letter, value in values.items():
        try:
            arrays[letter] = graph.constant(value, f"{letter} of LSTM node {name}")
            if node.kind == QUANTIZED_LSTM and letter in _QUANTIZATION:
                arrays[letter] = _dequantized(graph, node, name, letter, arrays[letter])
        except ValueError as error:
            trouble = trouble or str(error)
    trouble = trouble or _misfit(name, arrays, direction, settings.get("hidden_size"))
    found = LSTMNode(
        name, arrays, {letter: value.name for letter, value in values.items()}, direction,
        tuple(each.lower() for each in settings.get("activations", ())), clip,
        bool(settings.get("input_forget", 0)), bool(settings.get("layout", 0)), trouble, "none", "none", None, graph,
        node,
    )
    if trouble:
        return found
    return replace(
        found, activations=found.activations or _DEFAULT_ACTIVATIONS * found.directions,
        clip=None if clip is None or clip >= _NO_CLIP else clip, states=_states(found), lengths=_lengths(found),
    )


def _dequantized(graph: Graph, node: Node, name: str, letter: str, stored: Array) -> Array:
    """W or R of a quantized node [directions, inputs, 4*hidden] as float32, with the axes of the operator LSTM.

    Scale and zero point: [directions], or [directions, 4*hidden] where every column has its own. Raises ValueError.
    """
    if stored.dtype not in (np.int8, np.uint8) or stored.ndim != _AXES[letter]:
        raise ValueError(
            f"{letter} of LSTM node {name} must be int8 or uint8 with {_AXES[letter]} axes, got {stored.dtype} of "
            f"shape {stored.shape}"
        )
    directions, _, columns = stored.shape
    found = []
    for what, place in zip(("scale", "zero_point"), _QUANTIZATION[letter], strict=True):
        value = node.input(place)
        if value is None:
            raise ValueError(f"LSTM node {name} must have {letter}_{what}, got none")
        array = graph.constant(value, f"{letter}_{what} of LSTM node {name}")
        if array.shape not in ((directions,), (directions, columns)):
            raise ValueError(
                f"{letter}_{what} of LSTM node {name} must have shape ({directions},) or ({directions}, {columns}), "
                f"got {array.shape}"
            )
        found.append(array.reshape(directions, 1, -1).astype(np.float32))
    scale, zero_point = found
    return np.ascontiguousarray((scale * (stored.astype(np.float32) - zero_point)).swapaxes(1, 2))


def _setting(proto: Any) -> Any:
    """The value of an attribute, with bytes decoded to str."""
    import onnx

    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if proto.type == onnx.AttributeProto.STRINGS:
        return [each.decode(errors="replace") for each in value]
    return value


def _misfit(name: str, arrays: dict[str, Array], direction: str, hidden_size: int | None) -> str:
    """A sentence on the first inconsistency of a node; empty if there is none."""
    if direction not in _DIRECTIONS:
        return f"direction of LSTM node {name} must be one of {', '.join(_DIRECTIONS)}, got {direction!r}"
    for letter in "WR":
        if letter not in arrays:
            return f"LSTM node {name} must have {letter}, got none"
    for letter, array in arrays.items():
        if array.ndim != _AXES[letter]:
            return f"{letter} of LSTM node {name} must have {_AXES[letter]} axes, got shape {array.shape}"
        if len(array) != _DIRECTIONS[direction]:
            return (
                f"{letter} of LSTM node {name}, which is {direction}, must have {_DIRECTIONS[direction]} along its "
                f"first axis, got shape {array.shape}"
            )
    rows = arrays["R"].shape[1]
    if hidden_size is not None and rows != 4 * hidden_size:
        return f"R of LSTM node {name} must have 4 * {hidden_size} rows to match hidden_size, got {rows}"
    if len({array.dtype for array in arrays.values()}) > 1:
        types = ", ".join(f"{letter} {array.dtype}" for letter, array in arrays.items())
        return f"The weights of LSTM node {name} must be of one type, got {types}"
    return ""


# --- states and lengths -----------------------------------------------------------------------------------------------


def _states(node: LSTMNode) -> Origin:
    values = list(_initial_states(node).values())
    if all(value.origin in ("constant", "shape") for value in values):
        return "held" if values else "none"
    return "given" if _are_given([node]) else "computed"


def _initial_states(node: LSTMNode) -> dict[str, Value]:
    """The initial states that are not proved to be zeros, by the operator's names."""
    values = {name: node.node.input(place) for name, place in _STATES.items()}
    return {name: value for name, value in values.items() if value is not None and not node.graph.is_zero(value)}


def _are_given(stack: Sequence[LSTMNode]) -> bool:
    """Whether the concatenated initial states of a stack are unchanged inputs of the graph."""
    lowest, states = stack[0], [_initial_states(node) for node in stack]
    shape = (lowest.directions, _ROWS, lowest.hidden_size)
    if lowest.batch_first:
        shape = (_ROWS, lowest.directions, lowest.hidden_size)
    return all(each.keys() == states[0].keys() for each in states) and all(
        _are_inputs(lowest.graph, [each[name] for each in states], shape, lowest.batch_first) for name in states[0]
    )


def _lengths(node: LSTMNode) -> Origin:
    lengths, x = node.node.input(_LENGTHS), node.node.input(0)
    if lengths is None:
        return "none"
    if lengths.origin == "moved":
        return "given" if _are_inputs(node.graph, [lengths], (_ROWS,)) else "computed"
    if lengths.origin == "computed":
        return "computed"
    whole = []
    for shapes in map(node.graph.shapes, node.graph.choices):
        try:
            axes = None if x is None else node.graph.shape_of(x, shapes)
            if axes is not None:
                whole.append((node.graph.evaluate(lengths, shapes=shapes) == axes[1 if node.batch_first else 0]).all())
        except Exception:  # not evaluable, so not proved
            return "held"
    return "none" if whole and all(whole) else "held"


def _are_inputs(graph: Graph, values: Sequence[Value], shape: Shape, batch_first: bool = False) -> bool:
    """Whether values, concatenated, are inputs of the graph in unchanged order.

    The states that a caller would feed the graph are then in our order; an input with the shape of all states together
    must be equal to them. shape: for a value that is itself an input of unknown shape.
    """
    sources = sorted(frozenset().union(*(value.sources for value in values)), key=lambda source: source.name)
    if any(value.origin != "moved" for value in values) or any(source.input_of is None for source in sources):
        return False
    for k in range(2):
        known = graph.shapes(k)
        numbers: dict[Value, Array] = {}
        count = 1
        for source in sources:
            axes = graph.shape_of(source, known) or (shape if source in values else None)
            if axes is None:
                return False
            numbers[source] = count + np.arange(math.prod(axes), dtype=_number_type(source)).reshape(axes)
            count += numbers[source].size
        try:
            parts = [graph.evaluate(value, numbers, known) for value in values]
        except Exception:  # not evaluable, so not proved
            return False
        if any(part.ndim != len(shape) for part in parts) or count > _EXACT:
            return False
        if batch_first:
            parts = [part.swapaxes(0, 1) for part in parts]
        flat = np.concatenate([part.ravel() for part in parts])
        whole = (sum(len(part) for part in parts), *parts[0].shape[1:])
        for array in numbers.values():
            taken = flat[(flat >= array.min(initial=count)) & (flat <= array.max(initial=0))]
            if (np.diff(taken) <= 0).any() or array.shape == whole and not np.array_equal(flat, array.ravel()):
                return False
    return True


def _number_type(source: Value) -> Any:
    """A type in which to number the elements of an input: its own if that is an integer type."""
    import onnx

    kinds = {onnx.TensorProto.INT32: np.int32, onnx.TensorProto.INT64: np.int64}
    return kinds.get(source.type.tensor_type.elem_type, np.float32)


# --- joints -----------------------------------------------------------------------------------------------------------


def _reads_as_it_is(upper: LSTMNode, lower: LSTMNode) -> bool:
    """Whether the graph proves that a node reads the unchanged outputs of another, and that nothing else reads them.

    Random numbers in place of the outputs must arrive at the layer above with all directions concatenated, for every
    size in which the graph runs: its inputs' sizes, with several values for free axes, and some of our own.
    """
    graph, x, y = upper.graph, upper.node.input(0), lower.node.outputs[0]
    if x is None or y is None or x.sources != {y} or upper.node.frame is not lower.node.frame:
        return False
    if upper.batch_first != lower.batch_first or upper.arrays["W"].shape[2] != lower.width:
        return False
    if not _is_read_alone(upper.node, y):
        return False
    carriers = graph.carriers(x)
    inferred = [(graph.shape_of(y, known), known) for known in map(graph.shapes, graph.choices)]
    own = [(shape, known) for shape, known in inferred if shape is not None and 0 not in shape]
    runs: list[tuple[Shape, Shapes]] = [
        (_output_shape(lower, *sizes), {}) for sizes in _sizes({size for shape, _ in own for size in shape})
    ]
    rng = np.random.default_rng(0)
    fitting, cut = set[tuple[int, ...]](), dict[tuple[Node, int], set[int]]()
    own_fitting = 0
    for k, (shape, known) in enumerate(own + runs):
        outputs = rng.standard_normal(shape).astype(lower.arrays["R"].dtype)
        wanted = _side_by_side(outputs, lower.batch_first)
        shapes = dict(known)
        if (below := lower.node.input(0)) is not None:
            shapes[below] = (*wanted.shape[:2], lower.arrays["W"].shape[2])
        try:
            got = graph.evaluate(x, {y: outputs}, shapes)
            for node, axis in _fixed_cuts(graph, carriers):
                data = node.inputs[0]
                size = graph.evaluate(data, {y: outputs}, shapes).shape[axis] if data is not None else 0
                cut.setdefault((node, axis), set()).add(size)
        except Exception:  # the graph does not run in this size or is not evaluable: nothing is proved
            continue
        if got.ndim != wanted.ndim or got.shape[-1] != wanted.shape[-1]:
            continue  # nor does the upper node run
        if got.dtype == outputs.dtype and np.array_equal(got, wanted):
            fitting.add(wanted.shape[:2])
            own_fitting = len(fitting) if k < len(own) else own_fitting
        elif k < len(own) or own_fitting < 2:  # what fits in all of the graph's sizes need not fit in ours
            return False
    if cut and not all(len({sizes[axis] for sizes in fitting}) > 1 for axis in (0, 1)):
        return False
    one_size = len(own) == len(graph.choices) and len({shape for shape, _ in own}) == 1
    return all(len(sizes) == 1 for sizes in cut.values()) and len(fitting) >= (1 if one_size else 2)


def _sizes(known: set[int]) -> list[tuple[int, int]]:
    """Time steps and rows to try: primes, in which code written for the known sizes does not run by chance."""
    a, b, c, *_ = [prime for prime in _PRIMES if all(size % prime for size in known)] + 3 * [1]
    return [(a, b), (b, c), (a, 1), (1, b)]


def _output_shape(node: LSTMNode, time_steps: int, batch: int) -> Shape:
    if node.batch_first:
        return batch, time_steps, node.directions, node.hidden_size
    return time_steps, node.directions, batch, node.hidden_size


def _side_by_side(outputs: Array, batch_first: bool) -> Array:
    """The outputs of a node as input of the layer above: all directions concatenated, forward first."""
    if not batch_first:
        outputs = outputs.transpose(0, 2, 1, 3)
    return outputs.reshape(*outputs.shape[:2], -1)


def _is_read_alone(upper: Node, y: Value) -> bool:
    """Whether outputs, moved or not, reach only one node's input, and otherwise only Shape or Size nodes."""
    seen: set[Value] = set()
    waiting = [y]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        for reader in value.readers:
            if reader is None:
                return False
            if reader.kind in ("Shape", "Size") or reader is upper and value not in upper.inputs[1:]:
                continue
            moved = [each for each in reader.outputs if each is not None and y in each.sources]
            if not moved:
                return False
            waiting += moved
    return True


def _fixed_cuts(graph: Graph, carriers: Sequence[Node]) -> Iterator[tuple[Node, int]]:
    """Slices that begin or end at a fixed index, and their axes: they might cut off more steps than were tried."""
    for node in carriers:
        if node.kind == "Slice":
            axes = _slice_setting(graph, node, 3, "axes")
            for setting, place in (("starts", 1), ("ends", 2)):
                for k, number in enumerate(_slice_setting(graph, node, place, setting) or ()):  # None: from shapes
                    if abs(number) < _TO_THE_END and not (setting == "starts" and number == 0):
                        yield node, k if axes is None else axes[k]


def _slice_setting(graph: Graph, node: Node, place: int, name: str) -> list[int] | None:
    """The starts, ends or axes of a Slice, where they are constants."""
    if name in node.attributes:
        return list(node.attributes[name].ints)
    value = node.input(place)
    return None if value is None or value.origin != "constant" else [int(each) for each in graph.evaluate(value)]
