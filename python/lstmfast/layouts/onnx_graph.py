"""A flattened ONNX model: the nodes of its graph, of bodies of If, Loop and Scan, and of its functions in one list.

A value is one object here, whatever name a function gives it. Each is classified: stored in the file, determined by
shapes, the moved elements of other values, or computed. Stored values are evaluated by ONNX's reference evaluator, node
by node. Refuses to run a model, and to know what an LSTM is (see `onnx_nodes`). The package `onnx`, an extra, is
imported when a model is flattened.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from lstmfast._checks import Array

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = "dict[Value, Shape | None]"
Names: TypeAlias = "ChainMap[str, Value]"

# Operators that move elements, and the inputs that these come from (None: all). All others compute.
_MOVERS: dict[str, tuple[int, ...] | None] = {
    "Cast": (0,), "CastLike": (0,), "Concat": None, "Dropout": (0,), "Expand": (0,), "Flatten": (0,), "Gather": (0,),
    "Identity": (0,), "Reshape": (0,), "Slice": (0,), "Split": (0,), "Squeeze": (0,), "Tile": (0,), "Transpose": (0,),
    "Unsqueeze": (0,),
}
# Operators with which exporters compute shapes. Comparisons, minima, maxima and divisions are left out: their results
# at a few sizes say nothing about other sizes.
_OF_SHAPES = {
    "Add", "Cast", "CastLike", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Mul",
    "Neg", "Range", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Split", "Squeeze", "Sub", "Tile", "Transpose",
    "Unsqueeze",
}
# Operators that are LSTMs, and the axis of their R that counts hidden units. ONNX Runtime's has R transposed.
QUANTIZED_LSTM = "com.microsoft.DynamicQuantizeLSTM"
LSTM_KINDS = {"LSTM": 2, QUANTIZED_LSTM: 1}
_CHANCE = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
# The first version of these operators that the reference evaluator has; earlier versions mean the same.
_FIRST = {"DequantizeLinear": 19}
_BROADCASTING = {"Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "PRelu", "Sub", "Xor"}
_LARGE = 1024  # a stored array of this many elements is not a shape
# Sizes for the free axes of a graph's inputs, in order: all different and not 1; small, but large enough for strides
# and windows.
_SIZES = ((3, 2, 5, 7, 4, 6), (2, 5, 3, 4, 7, 9), (32, 6, 48, 16, 24, 40), (48, 4, 32, 64, 80, 16))


class NotKnown(ValueError):
    """A value depends on something unknown; the message says what."""


@dataclass(eq=False)
class Value:
    """One value of a model.

    name: as in its graph, prefixed by the path of its body or function. input_of: whose input it is, in words.
    type: declared type of an input. readers: the nodes that take it, None for an output of a graph. origin: "constant"
    if stored in the file, "shape" if determined by shapes, "moved" if it has only elements of `sources`, else
    "computed".
    """

    name: str
    maker: Node | None = None
    stored: Any = None
    input_of: str | None = None
    type: Any = None
    readers: list[Node | None] = field(default_factory=list)
    origin: Literal["constant", "shape", "moved", "computed"] = "computed"
    sources: frozenset[Value] = frozenset()


@dataclass(eq=False)
class Node:
    """One node. kind: its operator, with the domain if that is not ONNX's own. place: index in order of execution.

    name: its own or, if it has none, its first output's, prefixed by its path. frame: the graph or body it runs in.
    captured: values its bodies use from outside. attributes: by name, as set by function calls.
    """

    kind: str
    name: str
    place: int
    frame: object
    opsets: Mapping[str, int]
    inputs: tuple[Value | None, ...]
    captured: Mapping[str, Value]
    attributes: Mapping[str, Any]
    proto: Any
    outputs: tuple[Value | None, ...] = ()

    def input(self, place: int) -> Value | None:
        """The input at an index, None if it is left out."""
        return self.inputs[place] if place < len(self.inputs) else None

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return self.opsets.get("", 1)

    @property
    def taken(self) -> list[Value]:
        """All values it reads, itself or in its bodies."""
        return [value for value in (*self.inputs, *self.captured.values()) if value is not None]


@dataclass(frozen=True, eq=False)
class _Scope:
    """The scope being flattened: values by name, and for a function its attributes and the calls that led to it."""

    names: Names
    path: str
    frame: object
    opsets: Mapping[str, int]
    attributes: Mapping[str, Any]
    calls: tuple[Any, ...]

    def value(self, name: str) -> Value:
        """The value of a name; if no node makes it or a call leaves it out, a new one of unknown origin."""
        if name not in self.names:
            self.names[name] = Value(self.joined(name))
        return self.names[name]

    def joined(self, name: str) -> str:
        """A name prefixed by the path."""
        return f"{self.path}/{name.lstrip('/')}" if self.path else name


class Graph:
    """A flattened model. model: an `onnx.ModelProto`. Raises ValueError for functions that call themselves."""

    choices = range(len(_SIZES))  # of sizes for the free axes of the inputs, see `shapes`

    def __init__(self, model: Any) -> None:
        self.nodes: list[Node] = []
        self._model = model
        self._functions = {_key(each.domain, each.name, each): each for each in model.functions}
        self._inputs: list[Value] = []  # of the graph and of bodies
        self._stored: list[Value] = []
        self._known: dict[Value, Array] = {}
        self._shapes: dict[int, Shapes] = {}
        self._main = _Scope(ChainMap({}), "", object(), _opsets(model.opset_import), {}, ())
        self._add_graph(model.graph, self._main, "the graph")

    # --- what is known of a value -------------------------------------------------------------------------------------

    def constant(self, value: Value, meaning: str) -> Array:
        """A value stored in the file or computed from stored ones. Raises ValueError naming its purpose otherwise."""
        try:
            if value.origin == "constant":
                return self.evaluate(value)
            if value.origin == "shape":
                found, other = (self.evaluate(value, shapes=self.shapes(k)) for k in range(2))
                if np.array_equal(found, other):
                    return found
                raise NotKnown("the shapes of the graph's inputs")
            raise NotKnown(self._cause(value))
        except NotKnown as error:
            raise ValueError(f"{meaning} depends on {error}, so the file does not contain it") from error
        except Exception as error:
            words = " ".join(str(error).split())[:160] or type(error).__name__
            raise ValueError(f"{meaning} is computed by the graph and cannot be evaluated: {words}") from error

    def is_zero(self, value: Value) -> bool:
        """Whether a value is proved to be all zeros, whatever its shape."""
        maker = value.maker
        if value.origin == "constant":
            try:
                return not np.asarray(self.evaluate(value)).any()
            except Exception:  # not evaluable, so not proved
                return False
        if maker is None:
            return False
        if maker.kind == "ConstantOfShape":
            filled = maker.attributes.get("value")
            return filled is None or not array_of(filled.t).any()
        moved = _elements(maker)
        return bool(moved) and _moves_to(maker, value) and self._passes(maker) and all(map(self.is_zero, moved))

    def shapes(self, k: int) -> Shapes:
        """Shapes as far as they can be inferred, for the k-th choice of sizes.

        Each of `choices` gives the free axes of the graph's inputs different sizes.
        """
        if k not in self._shapes:
            self._shapes[k] = self._inferred(_SIZES[k], 100 + k)
        return self._shapes[k]

    def shape_of(self, value: Value, shapes: Shapes) -> Shape | None:
        """The shape of a value given the known `shapes`, None if unknown; it is added to them."""
        if value not in shapes:
            shapes[value] = None  # while it is being computed
            try:
                shapes[value] = self._shape_of(value, shapes)
            except Exception:  # not evaluable, so unknown
                shapes[value] = None
        return shapes[value]

    def _shape_of(self, value: Value, shapes: Shapes) -> Shape | None:
        maker = value.maker
        if value.origin in ("constant", "shape"):
            return self.evaluate(value, shapes=shapes).shape
        if maker is not None and maker.kind in LSTM_KINDS:
            x, r = (None if each is None else self.shape_of(each, shapes) for each in (maker.input(0), maker.input(2)))
            if x is None or r is None:
                return None
            batch_first = "layout" in maker.attributes and maker.attributes["layout"].i == 1
            directions, batch, hidden_size = r[0], x[0 if batch_first else 1], r[LSTM_KINDS[maker.kind]]
            if value is not maker.outputs[0]:
                return (batch, directions, hidden_size) if batch_first else (directions, batch, hidden_size)
            return (*x[:2], directions, hidden_size) if batch_first else (x[0], directions, batch, hidden_size)
        given = {source: self.shape_of(source, shapes) for source in value.sources - {value}}
        if not given or None in given.values():
            return None
        return self.evaluate(value, {source: _of_shape(shape or ()) for source, shape in given.items()}, shapes).shape

    def evaluate(self, value: Value, given: Mapping[Value, Array] | None = None, shapes: Shapes | None = None) -> Array:
        """A value that depends only on constants, given values, and shapes.

        shapes: known shapes of other values; those derived from them are added. Raises NotKnown if the value depends on
        anything else, and whatever the reference evaluator raises.
        """
        results, shapes = dict(given or {}), {} if shapes is None else shapes
        for node in self._needed(value, results, shapes):
            for output, array in zip(node.outputs, self._run(node, results, shapes), strict=True):
                if output is not None:
                    (self._known if output.origin == "constant" else results)[output] = array
        return results[value] if value in results else self._held(value)

    def carriers(self, value: Value) -> list[Node]:
        """The nodes that move elements from the value's sources to it."""
        found: dict[Node, None] = {}
        seen: set[Value] = set(value.sources)
        waiting = [value]
        while waiting:
            current = waiting.pop()
            if current not in seen and current.maker is not None:
                seen.add(current)
                found[current.maker] = None
                waiting += [each for each in current.maker.taken if each.sources]
        return list(found)

    # --- laying flat --------------------------------------------------------------------------------------------------

    def _add_graph(self, proto: Any, scope: _Scope, words: str) -> None:
        own = scope.names.maps[0]
        for each in (*proto.initializer, *proto.sparse_initializer):
            name = each.name if hasattr(each, "data_type") else each.values.name
            own[name] = Value(scope.joined(name), stored=each, origin="constant")
            self._stored.append(own[name])
        for each in proto.input:
            if each.name not in own:  # else the stored array is the input's default
                value = own[each.name] = Value(scope.joined(each.name), None, None, words, each.type, origin="moved")
                value.sources = frozenset({value})
                self._inputs.append(value)
        self._add_nodes(proto.node, scope)
        for each in proto.output:
            scope.value(each.name).readers.append(None)

    def _add_nodes(self, protos: Sequence[Any], scope: _Scope) -> None:
        for number, proto in _in_order(protos):
            called = proto.name or f"{proto.op_type}_{number}"
            if (key := _key(proto.domain, proto.op_type, proto)) in self._functions:
                self._add_call(proto, key, scope, scope.joined(called))
                continue
            settings = _settings(proto.attribute, scope.attributes)
            bodies = dict(_bodies(settings))
            name = proto.name or next((name for name in proto.output if name), called)
            node = Node(
                _operator(proto), scope.joined(name), len(self.nodes), scope.frame, scope.opsets,
                tuple(scope.value(name) if name else None for name in proto.input),
                {name: scope.value(name) for body in bodies.values() for name in _free(body) if name in scope.names},
                settings, proto,
            )
            self.nodes.append(node)
            node.outputs = tuple(Value(scope.joined(name), node) if name else None for name in proto.output)
            for value in node.inputs:
                if value is not None:
                    value.readers.append(node)
            self._set_origins(node)
            scope.names.update({name: value for name, value in zip(proto.output, node.outputs, strict=True) if value})
            for name, body in bodies.items():
                path = scope.joined(f"{called}/{name}")
                inside = _Scope(scope.names.new_child(), path, object(), scope.opsets, scope.attributes, scope.calls)
                self._add_graph(body, inside, path)

    def _add_call(self, proto: Any, key: Any, scope: _Scope, path: str) -> None:
        """Inline a function call: its inputs and outputs are the caller's values."""
        if key in scope.calls:
            raise ValueError(f"model must have no function that calls itself, got {proto.op_type}")
        function = self._functions[key]
        defaults = {each.name: each for each in function.attribute_proto}
        inside = _Scope(
            ChainMap({}), path, scope.frame, _opsets(function.opset_import),
            defaults | _settings(proto.attribute, scope.attributes), (*scope.calls, key),
        )
        given = {formal: name for formal, name in zip(function.input, proto.input, strict=False) if name}
        inside.names.update({formal: scope.value(name) for formal, name in given.items()})
        self._add_nodes(_without(function.node, set(function.input) - given.keys()), inside)
        for formal, name in zip(function.output, proto.output, strict=False):
            if name:
                scope.names[name] = inside.value(formal)

    def _set_origins(self, node: Node) -> None:
        """Set the origins of a node's outputs from those of its inputs."""
        origins = {value.origin for value in node.taken}
        moved = _elements(node)
        for value in filter(None, node.outputs):
            if node.kind in LSTM_KINDS:
                value.origin, value.sources = "moved", frozenset({value})
            elif not self._passes(node):
                value.origin = "computed"
            elif origins <= {"constant"}:
                value.origin = "constant"
            elif node.kind in ("Shape", "Size") or node.kind in _OF_SHAPES and origins <= {"constant", "shape"}:
                value.origin = "shape"
            elif _moves_to(node, value) and moved and all(each.origin == "moved" for each in moved):
                others = {each.origin for each in node.taken if each not in moved}
                if others <= {"constant", "shape"}:
                    value.origin, value.sources = "moved", frozenset().union(*(each.sources for each in moved))

    def _passes(self, node: Node) -> bool:
        """Whether a node is deterministic: no random numbers, and no active dropout."""
        if node.kind != "Dropout":
            return not _draws(node.kind, dict(_bodies(node.attributes)).values())
        if node.opset < 7:
            return "is_test" in node.attributes and node.attributes["is_test"].i == 1
        training = node.input(2)
        try:
            return training is None or training.origin == "constant" and not self.evaluate(training).any()
        except Exception:  # not evaluable, so unknown
            return False

    def _cause(self, value: Value) -> str:
        """What a value depends on that is not constant, in words: an input, or random numbers."""
        seen: set[Value] = set()
        waiting = [value]
        while waiting:
            current = waiting.pop()
            if current in seen or current.origin == "constant":
                continue
            seen.add(current)
            if current.input_of is not None:
                name = current.name.removeprefix(f"{current.input_of}/")
                return f"{current.input_of}'s input {name}"
            if current.maker is None:
                return f"{current.name}, which no node produces"
            if not self._passes(current.maker):
                return f"chance ({current.maker.kind})"
            waiting += reversed(current.maker.taken)
        return "values that the graph computes"

    # --- evaluating ---------------------------------------------------------------------------------------------------

    def _needed(self, value: Value, given: Mapping[Value, Array], shapes: Shapes) -> list[Node]:
        """The nodes that compute a value from constants and given values, in order."""
        found: set[Node] = set()
        seen: set[Value] = set()
        waiting = [value]
        while waiting:
            current = waiting.pop()
            if current in seen or current in given or current in self._known or current.stored is not None:
                continue
            seen.add(current)
            maker = current.maker
            if maker is None or maker.kind in LSTM_KINDS or not self._passes(maker):
                raise NotKnown(self._cause(current) if maker is None else f"the output of {maker.kind} {maker.name}")
            found.add(maker)
            if not _shape_alone(maker, given):
                waiting += maker.taken
            elif self.shape_of(maker.taken[0], shapes) is None:
                raise NotKnown(f"the shape of {maker.taken[0].name}")
        return sorted(found, key=lambda node: node.place)

    def _held(self, value: Value) -> Array:
        if value not in self._known:
            self._known[value] = array_of(value.stored)
        return self._known[value]

    def _run(self, node: Node, results: Mapping[Value, Array], shapes: Shapes) -> list[Array]:
        """The outputs of one node, by the reference evaluator."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        if node.kind in _BROADCASTING and node.opset < 7 and "axis" in node.attributes:
            raise ValueError(f"{node.kind} broadcasts differently before version 7 of ONNX's operators")
        if node.kind == "Constant" and "sparse_value" in node.attributes:
            return [array_of(node.attributes["sparse_value"].sparse_tensor)]

        def array(value: Value) -> Array:
            if value in results:
                return results[value]
            if value in self._known or value.stored is not None:
                return self._held(value)
            return _of_shape(self.shape_of(value, shapes) or ())  # nothing but its shape is used

        proto = onnx.NodeProto()
        proto.op_type, proto.domain = node.proto.op_type, _domain(node.proto.domain)
        proto.input.extend("" if value is None else f"{k}->" for k, value in enumerate(node.inputs))
        proto.output.extend("" if value is None else f"->{k}" for k, value in enumerate(node.outputs))
        proto.attribute.extend(node.attributes.values())
        feeds = {f"{k}->": array(value) for k, value in enumerate(node.inputs) if value is not None}
        feeds |= {name: array(value) for name, value in node.captured.items()}
        graph = onnx.helper.make_graph(
            [proto], "node", [_described(name, values) for name, values in feeds.items()],
            [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output if name],
        )
        calls = self._calls(dict(_bodies(node.attributes)).values())
        model = onnx.helper.make_model(
            graph, functions=list(self._model.functions) if calls else [],
            opset_imports=[
                onnx.helper.make_opsetid(domain, version if domain else max(version, _FIRST.get(node.kind, 1)))
                for domain, version in node.opsets.items()
            ],
        )
        found = iter(ReferenceEvaluator(model).run(None, feeds))
        return [np.asarray(next(found)) if name else np.empty(0) for name in proto.output]

    def _calls(self, bodies: Iterable[Any]) -> bool:
        """Whether a node in these bodies calls a function of the model."""
        return any(
            _key(node.domain, node.op_type, node) in self._functions
            or self._calls(dict(_bodies({each.name: each for each in node.attribute})).values())
            for body in bodies for node in body.node
        )

    # --- shapes -------------------------------------------------------------------------------------------------------

    def _inferred(self, sizes: Sequence[int], others: int) -> Shapes:
        """Shapes as ONNX infers them. sizes: of free axes in order; others: the first of the sizes for further axes.

        Inference runs on an outline of the model: all nodes in one graph, without those that have bodies, and only the
        shapes of large arrays.
        """
        import onnx

        values: list[Value] = []
        names: dict[Value, str] = {}

        def named(value: Value) -> str:
            if value not in names:
                names[value] = f"v{len(values)}"
                values.append(value)
            return names[value]

        graph = onnx.GraphProto(name="outline")
        for value in self._stored:
            if isinstance(value.stored, onnx.TensorProto) and _is_small(value.stored):
                graph.initializer.add().CopyFrom(value.stored)
                graph.initializer[-1].name = named(value)
            else:
                kind, axes = _kind_and_shape(value.stored)
                graph.input.append(onnx.helper.make_tensor_value_info(named(value), kind, axes))
        for value in self._inputs:
            graph.input.append(onnx.ValueInfoProto(name=named(value), type=value.type))
        remaining, chosen = iter([*sizes, *range(others, others + 10_000, 7)]), dict[object, int]()
        for each in graph.input:
            for axis in each.type.tensor_type.shape.dim:
                if not axis.HasField("dim_value"):
                    symbol = axis.dim_param or object()
                    chosen[symbol] = axis.dim_value = chosen.get(symbol) or next(remaining)
        for node in self.nodes:
            if dict(_bodies(node.attributes)):
                continue
            stored = node.attributes["value"].t if node.kind == "Constant" and "value" in node.attributes else None
            if stored is not None and not _is_small(stored):
                name = named(next(filter(None, node.outputs)))
                graph.input.append(onnx.helper.make_tensor_value_info(name, *_kind_and_shape(stored)))
                continue
            copy = graph.node.add(op_type=node.proto.op_type, domain=_domain(node.proto.domain))
            copy.input.extend("" if value is None else named(value) for value in node.inputs)
            copy.output.extend("" if value is None else named(value) for value in node.outputs)
            copy.attribute.extend(node.attributes.values())
        for each in self._model.graph.value_info:  # the exporter's shapes, if given in terms of the inputs' axes
            axes = each.type.tensor_type.shape.dim
            if axes and all(axis.HasField("dim_value") or axis.dim_param in chosen for axis in axes):
                shape = [axis.dim_value if axis.HasField("dim_value") else chosen[axis.dim_param] for axis in axes]
                name = named(self._main.value(each.name))
                graph.value_info.append(
                    onnx.helper.make_tensor_value_info(name, each.type.tensor_type.elem_type, shape)
                )
        imports = [onnx.helper.make_opsetid(*each) for each in self._main.opsets.items()]
        try:
            model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=self._model.ir_version)
            graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except Exception:  # not inferable, so unknown
            return {}
        found: Shapes = {}
        for each in (*graph.input, *graph.value_info):
            axes = each.type.tensor_type.shape.dim
            if each.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
                found[values[int(each.name[1:])]] = tuple(axis.dim_value for axis in axes)
        return found


# --- arrays -----------------------------------------------------------------------------------------------------------


def array_of(stored: Any) -> Array:
    """The array in a TensorProto or SparseTensorProto. Raises ValueError for external data that was not loaded."""
    import onnx

    if not hasattr(stored, "data_type"):
        return _dense(stored)
    if stored.data_location == onnx.TensorProto.EXTERNAL:
        place = next((each.value for each in stored.external_data if each.key == "location"), "")
        raise ValueError(f"its data are in the file {place}, which was not loaded with the model: pass the path")
    return np.array(onnx.numpy_helper.to_array(stored))


def _is_small(stored: Any) -> bool:
    """Whether an array may hold a shape."""
    return math.prod(stored.dims) < _LARGE and not stored.external_data


def _kind_and_shape(stored: Any) -> tuple[int, list[int]]:
    """The type and shape of an array, dense or sparse."""
    return getattr(stored, "values", stored).data_type, list(stored.dims)


def _dense(stored: Any) -> Array:
    values, indices, shape = array_of(stored.values), array_of(stored.indices), tuple(stored.dims)
    dense = np.zeros(shape, values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def _of_shape(shape: Shape) -> Array:
    """Zeros of a shape, without allocating them."""
    return np.broadcast_to(np.float32(0), shape)


def _described(name: str, values: Array) -> Any:
    """An input of this array's type and shape, or with the name alone if ONNX lacks the type."""
    import onnx

    try:
        kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    except (KeyError, ValueError):
        return onnx.helper.make_empty_tensor_value_info(name)
    return onnx.helper.make_tensor_value_info(name, kind, values.shape)


# --- protos -----------------------------------------------------------------------------------------------------------


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _operator(proto: Any) -> str:
    return f"{proto.domain}.{proto.op_type}" if _domain(proto.domain) else str(proto.op_type)


def _key(domain: str, name: str, proto: Any) -> tuple[str, str, str]:
    """The key that matches calls to functions. Overloads came with IR version 10."""
    return _domain(domain), name, getattr(proto, "overload", "")


def _opsets(imports: Any) -> dict[str, int]:
    return {_domain(each.domain): each.version for each in imports}


def _bodies(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The graphs among attributes, by name."""
    for name, setting in settings.items():
        if setting.HasField("g"):
            yield name, setting.g
        for k, body in enumerate(setting.graphs):
            yield f"{name}_{k}", body


def _free(body: Any) -> set[str]:
    """The names that a body uses from outside."""
    own = {each.name for each in (*body.input, *body.initializer)}
    own |= {each.values.name for each in body.sparse_initializer}
    own |= {name for node in body.node for name in node.output}
    used = {name for node in body.node for name in (*node.input, *_free_of_bodies(node))}
    return (used | {each.name for each in body.output}) - own - {""}


def _free_of_bodies(node: Any) -> set[str]:
    return set().union(*(_free(body) for _, body in _bodies({each.name: each for each in node.attribute})))


def _in_order(protos: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Nodes in topological order, with their numbers in the file."""
    made = {name for proto in protos for name in proto.output if name}
    waiting, done = list(enumerate(protos)), set[str]()
    while waiting:
        later = []
        for number, proto in waiting:
            if ({*proto.input} | _free_of_bodies(proto)) & made <= done:
                done.update(proto.output)
                yield number, proto
            else:
                later.append((number, proto))
        if len(later) == len(waiting):
            yield from later  # in a cycle: its values are unknown
            return
        waiting = later


def _settings(attributes: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a node, with references resolved to the function call's attributes."""
    if not given:
        return {each.name: each for each in attributes if not each.ref_attr_name}
    found = {}
    for each in attributes:
        if each.ref_attr_name and each.ref_attr_name not in given:
            continue
        setting = type(each)()
        setting.CopyFrom(given[each.ref_attr_name] if each.ref_attr_name else each)
        setting.name = each.name
        for body in (*([setting.g] if setting.HasField("g") else ()), *setting.graphs):
            _set_in_body(body, given)
        found[each.name] = setting
    return found


def _set_in_body(body: Any, given: Mapping[str, Any]) -> None:
    if given:
        for node in body.node:
            settings = _settings(node.attribute, given)
            del node.attribute[:]
            node.attribute.extend(settings.values())


def _without(protos: Sequence[Any], left_out: set[str]) -> list[Any]:
    """The nodes of a function without the inputs that its call leaves out."""
    if not left_out:
        return list(protos)
    copies = [type(proto)() for proto in protos]
    for copy, proto in zip(copies, protos, strict=True):
        copy.CopyFrom(proto)
        for k, name in enumerate(proto.input):
            copy.input[k] = "" if name in left_out else name
    return copies


def _draws(kind: str, bodies: Iterable[Any]) -> bool:
    """Whether an operator, or one in its bodies, draws random numbers."""
    return kind in _CHANCE or any(
        _draws(node.op_type, dict(_bodies({each.name: each for each in node.attribute})).values())
        for body in bodies for node in body.node
    )


def _elements(node: Node) -> list[Value]:
    """The inputs whose elements a node moves; empty if it computes."""
    places = _MOVERS.get(node.kind, ())
    return [value for k, value in enumerate(node.inputs) if value is not None and (places is None or k in places)]


def _moves_to(node: Node, value: Value) -> bool:
    """Whether an output has moved elements: the first of a moving node, and every one of Split."""
    return node.kind in _MOVERS and (value is node.outputs[0] or node.kind == "Split")


def _shape_alone(node: Node, given: Mapping[Value, Array]) -> bool:
    """Whether a node needs only the shape of a value that cannot be evaluated."""
    if node.kind not in ("Shape", "Size") or node.inputs[0] is None:
        return False
    asked = node.inputs[0]
    return not (
        asked in given or asked.origin in ("constant", "shape") or asked.sources and asked.sources <= given.keys()
    )
