"""ONNX: export lstmfast's layers and models as graphs of `LSTM` nodes, and read LSTM nodes of any graph as an `LSTM`.

Time and batch are free axes; states are inputs and outputs. Refuses to run graphs (see ONNX Runtime) and to export what
the operator lacks: a projected state, a clipped cell, zoneout and layer normalisation. Needs the extra `[onnx]`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lstmfast import __version__
from lstmfast import _checks as check
from lstmfast._checks import Array
from lstmfast.layers import LSTM
from lstmfast.layouts import LSTMWeights, from_arrays, onnx_nodes, to_arrays
from lstmfast.layouts.onnx_graph import Graph
from lstmfast.models import CharLM, SequenceClassifier
from lstmfast.text.tokens import AnyVocabulary
from lstmfast.training.run_folder import load_model

DEFAULT_OPSET = 17  # of 2022, supported by every current runtime
OLDEST_OPSET = 13  # Squeeze and Split take axes and sizes as inputs since then

VOCABULARY = "lstmfast.vocabulary"  # the key of a run's vocabulary, JSON, in a graph's metadata


def export(
    model: LSTM | CharLM | SequenceClassifier | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    lengths: bool = False,
    opset: int = DEFAULT_OPSET,
) -> None:
    """Write a layer, a model or a trained run as an ONNX file, one `LSTM` node for each layer.

    model: an `LSTM`, `CharLM` or `SequenceClassifier`, or the path of a run folder or checkpoint. Inputs and outputs:
    `LSTM`: x [T, B, I] (batch_first: [B, T, I]), h0, c0 [layers*directions, B, H] -> h, h_n, c_n, as in a call.
    `CharLM`: ids [T, B], int64, h0, c0 -> logits [T, B, V], h_n, c_n.
    `SequenceClassifier`: x [T, B, I] -> logits [B, classes]; its states are internal, and start as in a call.
    A text whose initial states are learnt begins with h0, c0 = model.initial_state(B).
    T and B are free. lengths: adds an input, lengths [B], int32, as in a call, except that ONNX Runtime ends a row of
    length 0 with a state of zeros.
    The run-time forget_bias goes into the second of the operator's two biases, so nothing is rounded. Dropouts are left
    out. ONNX checks the model before it is written.
    Raises ValueError naming the argument at fault, also for what the operator lacks (projection_size, cell_clip,
    zoneout, layer_norm); TypeError for another model; OSError if the file cannot be written.
    """
    onnx.save(to_model_proto(model, lengths=lengths, opset=opset), os.fspath(path))


def to_model_proto(
    model: LSTM | CharLM | SequenceClassifier | str | os.PathLike[str],
    *,
    lengths: bool = False,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Return what `export` writes."""
    opset = check.whole_number("opset", opset, OLDEST_OPSET)
    if opset > onnx.defs.onnx_opset_version():
        raise ValueError(f"opset must be at most {onnx.defs.onnx_opset_version()} for this onnx, got {opset}")
    vocabulary = None
    if isinstance(model, (str, os.PathLike)):
        model, vocabulary, _ = load_model(model)
    if not isinstance(model, (LSTM, CharLM, SequenceClassifier)):
        raise TypeError(
            f"model must be an LSTM, CharLM, SequenceClassifier or the path of a run, got {type(model).__name__}"
        )
    graph = _Graph(np.dtype(model.dtype))
    if isinstance(model, LSTM):
        _add_layer(graph, model, lengths)
    elif isinstance(model, CharLM):
        _add_language_model(graph, model, lengths)
    else:
        _add_classifier(graph, model, lengths)
    return graph.finish(type(model).__name__, opset, vocabulary)


def read_weights(
    path: str | os.PathLike[str] | onnx.ModelProto, *, weights_only: bool = False
) -> dict[str, LSTMWeights]:
    """Return the weights of every LSTM in a model, by the name of its first node.

    path: a file, of any exporter, or a loaded model. Nodes are searched in the graph, in bodies of If, Loop and Scan,
    and in functions; names there are prefixed by a path, and a node without a name is named after its first output.
    Nodes form one LSTM if the graph proves that each reads the unchanged outputs of the one below, and nothing else
    reads them. Weights may be stored or computed by the graph from stored ones; 16-bit ones are widened to float32.
    weights_only: also read nodes whose initial states or lengths the graph stores or computes; the states and lengths
    are not read, and the caller gives them. `assumptions` says what to know besides the weights.
    Raises ValueError naming the node for what no LSTM here computes (weights that depend on an input; activations other
    than sigmoid, tanh, tanh; `clip`; a reverse direction alone; such states and lengths), for sizes that do not fit, if
    there is no LSTM node, and if the file is not an ONNX model; OSError if it cannot be read; TypeError for weights of
    types other than float16, bfloat16, float32 and float64.
    """
    return {name: _weights(stack, weights_only) for name, stack in _stacks(path).items()}


def load(
    path: str | os.PathLike[str] | onnx.ModelProto,
    *,
    name: str | None = None,
    weights_only: bool = False,
    **options: Any,
) -> LSTM:
    """Return the LSTM in a model as a layer. path, weights_only and errors as in `read_weights`, for this LSTM alone.

    name: of its first node, if there are several LSTMs. options: batch_first, dropout, rng of `LSTM`; batch_first
    defaults to True for nodes with layout=1. x is the first node's input, h the last one's output. A second bias that
    is one number in the forget gate and zero elsewhere, as `export` writes it, becomes forget_bias; any other is added
    to the first, and forget_bias is 0. Raises ValueError listing the names if there are several and `name` is missing.
    """
    found = _stacks(path)
    if name is None and len(found) > 1:
        raise ValueError(f"name must choose one of the LSTMs in the graph: {', '.join(found)}")
    if name is not None and name not in found:
        raise ValueError(f"name must be one of the LSTMs in the graph: {', '.join(found)}, got {name!r}")
    stack = found[next(iter(found)) if name is None else name]
    return _weights(stack, weights_only).to_layer(**{"batch_first": stack[0].batch_first, **options})


def _stacks(path: str | os.PathLike[str] | onnx.ModelProto) -> dict[str, list[onnx_nodes.LSTMNode]]:
    """The nodes of every LSTM in a model, by its first node's name. Raises ValueError if there is none."""
    model = path if isinstance(path, onnx.ModelProto) else onnx_nodes.read_model(Path(path))
    graph = Graph(model)
    nodes = onnx_nodes.lstm_nodes(graph)
    if not nodes:
        kinds = ", ".join(sorted({node.kind for node in graph.nodes})) or "none"
        raise ValueError(f"path must have an LSTM node in its graph, got nodes of the kinds {kinds}")
    return {stack[0].name: stack for stack in onnx_nodes.stacks(nodes)}


def _weights(stack: list[onnx_nodes.LSTMNode], weights_only: bool) -> LSTMWeights:
    for node in stack:
        node.refuse_what_differs(weights_only=weights_only)
    try:
        weights = from_arrays(onnx_nodes.stack_arrays(stack), "onnx")
    except (TypeError, ValueError) as error:
        raise type(error)(f"LSTM node {stack[0].name}: {error}") from error
    notes = tuple(note for node in stack for note in node.notes)
    return replace(weights, coupled_gates=stack[0].input_forget, assumptions=(*weights.assumptions, *notes))


# --- models -----------------------------------------------------------------------------------------------------------


def _add_layer(graph: _Graph, layer: LSTM, lengths: bool) -> None:
    axes = ("batch", "time_steps") if layer.batch_first else ("time_steps", "batch")
    x = graph.input("x", (*axes, layer.input_size))
    stack = _Stack(graph, layer, lengths, states=True)
    h = stack.run(graph.node("Transpose", [x], perm=[1, 0, 2]) if layer.batch_first else x)
    graph.output("h", graph.node("Transpose", [h], perm=[1, 0, 2]) if layer.batch_first else h, (*axes, stack.width))
    stack.put_out_states()


def _add_language_model(graph: _Graph, model: CharLM, lengths: bool) -> None:
    ids = graph.input("ids", ("time_steps", "batch"), np.dtype(np.int64))
    stack = _Stack(graph, model.lstm, lengths, states=True)
    table = stack.take_ids(model.vocab_size) if model.embedding_size is None else model.parameters["embedding"]
    rows = graph.constant("embedding", table)
    h = stack.run(graph.node("Gather", [rows, ids], axis=0))
    if model.tied:
        kernel = graph.node("Transpose", [rows], perm=[1, 0])
    else:
        kernel = graph.constant("projection.kernel", model.parameters["projection.kernel"])
    logits = graph.node("MatMul", [h, kernel])
    logits = graph.node("Add", [logits, graph.constant("projection.bias", model.parameters["projection.bias"])])
    graph.output("logits", logits, ("time_steps", "batch", model.vocab_size))
    stack.put_out_states()


def _add_classifier(graph: _Graph, model: SequenceClassifier, lengths: bool) -> None:
    x = graph.input("x", ("time_steps", "batch", model.input_size))
    stack = _Stack(graph, model.lstm, lengths, states=False)
    stack.run(x)
    features = stack.top_state()
    weights = [
        graph.constant(f"projection.{name}", model.parameters[f"projection.{name}"]) for name in ("kernel", "bias")
    ]
    graph.output("logits", graph.node("Gemm", [features, *weights]), ("batch", model.num_classes))


class _Stack:
    """The LSTM nodes of a stack, between its input and output nodes."""

    def __init__(self, graph: _Graph, layer: LSTM, lengths: bool, *, states: bool) -> None:
        self.graph, self.layer = graph, layer
        self.width = layer.num_directions * layer.hidden_size
        self._arrays = _operator_weights(layer)
        self._state_shape = (layer.num_layers * layer.num_directions, "batch", layer.hidden_size)
        self._initial = [self._initial_state(name) for name in ("h0", "c0")] if states else []
        self._lengths = graph.input("lengths", ("batch",), np.dtype(np.int32)) if lengths else ""
        self._final: list[list[str]] = []  # of every layer [h_n, c_n]

    def take_ids(self, vocab_size: int) -> Array:
        """Return a table whose row for a token is the first node's input, and fit that node's weights to it.

        Either one-hot rows, which the node multiplies by its kernel, or the kernel's rows, which it multiplies by the
        identity: whichever table is narrower. Products with ones and zeros round nothing.
        """
        name = self._name(0, "W")
        columns = 4 * self.layer.hidden_size
        if vocab_size <= columns:
            return np.eye(vocab_size, dtype=self.layer.dtype)
        rows: Array = self._arrays[name][0].T
        self._arrays[name] = np.eye(columns, dtype=self.layer.dtype)[None]
        return rows

    def run(self, x: str) -> str:
        """Add the nodes over a sequence [T, B, I]; return the top layer's outputs [T, B, width]."""
        graph, directions = self.graph, self.layer.num_directions
        if not self._initial and self.layer.cell.learn_initial_state:
            self._initial = self._learnt_states(x)
        for k in range(self.layer.num_layers):
            weights = [graph.constant(f"layer{k}.{letter}", self._arrays[self._name(k, letter)]) for letter in "WRB"]
            states = [parts[k] for parts in self._initial] or ["", ""]
            peepholes = self._arrays.get(self._name(k, "P"))
            last = [] if peepholes is None else [graph.constant(f"layer{k}.P", peepholes)]
            y, h_n, c_n = graph.nodes(
                "LSTM", [x, *weights, self._lengths, *states, *last], 3, name=f"layer{k}",
                hidden_size=self.layer.hidden_size, direction="bidirectional" if directions == 2 else "forward",
                input_forget=int(self.layer.coupled_gates),
            )
            self._final.append([h_n, c_n])
            if directions == 1:
                x = graph.node("Squeeze", [y, graph.constant("axis1", np.array([1]))])
            else:
                side_by_side = graph.node("Transpose", [y], perm=[0, 2, 1, 3])
                x = graph.node("Reshape", [side_by_side, graph.constant("joined", np.array([0, 0, self.width]))])
        return x

    def put_out_states(self) -> None:
        """Add the final states of all layers, h_n and c_n, to the graph's outputs."""
        for name, parts in zip(("h_n", "c_n"), zip(*self._final, strict=True), strict=True):
            joined = self.graph.node("Concat", list(parts), axis=0) if len(parts) > 1 else parts[0]
            self.graph.output(name, joined, self._state_shape)

    def top_state(self) -> str:
        """The top layer's final h, [B, width]."""
        h_n = self._final[-1][0]
        if self.layer.num_directions == 1:
            return self.graph.node("Squeeze", [h_n, self.graph.constant("axis0", np.array([0]))])
        side_by_side = self.graph.node("Transpose", [h_n], perm=[1, 0, 2])
        return self.graph.node("Reshape", [side_by_side, self.graph.constant("features", np.array([0, self.width]))])

    def _learnt_states(self, x: str) -> list[list[str]]:
        """The learnt initial h and c of all layers, repeated for every row of x [T, B, I]."""
        graph, layer, directions = self.graph, self.layer, self.layer.num_directions
        batch = graph.node("Gather", [graph.node("Shape", [x]), graph.constant("axis_of_batch", np.array([1]))], axis=0)
        sizes = [graph.constant(f"of_{size}", np.array([size])) for size in (directions, layer.hidden_size)]
        shape = graph.node("Concat", [sizes[0], batch, sizes[1]], axis=0)

        def repeated(name: str, k: int) -> str:
            cells = layer.cells[k * directions : (k + 1) * directions]
            learnt = np.stack([cell.parameters[name] for cell in cells])[:, None]
            return graph.node("Expand", [graph.constant(f"layer{k}.{name}", learnt), shape])

        return [[repeated(name, k) for k in range(layer.num_layers)] for name in ("initial_h", "initial_c")]

    def _initial_state(self, name: str) -> list[str]:
        """An input for the initial states of all layers, split by layer."""
        whole, layers = self.graph.input(name, self._state_shape), self.layer.num_layers
        if layers == 1:
            return [whole]
        sizes = self.graph.constant("directions", np.full(layers, self.layer.num_directions, np.int64))
        return self.graph.nodes("Split", [whole, sizes], layers, axis=0)

    def _name(self, layer: int, letter: str) -> str:
        """The name of an array in `layouts`: a single layer's has no scope."""
        return f"layer{layer}.{letter}" if self.layer.num_layers > 1 else letter


_LACKING = {
    "zoneout": "has no mean of a new and an earlier state, which zoneout is in inference",
    "layer_norm": "normalises nothing",
}


def _operator_weights(layer: LSTM) -> dict[str, Array]:
    """The weights of a layer in the operator's layout, by the names of `layouts`."""
    for option, sentence in _LACKING.items():
        if getattr(layer.cell, option):
            raise ValueError(f"model must have no {option}: ONNX's LSTM operator {sentence}")
    weights = LSTMWeights.from_layer(layer)
    if weights.has_initial_state:  # its states are inputs of the operator
        layers = tuple(
            tuple(replace(cell, initial_h=None, initial_c=None) for cell in cells) for cells in weights.layers
        )
        weights = replace(weights, layers=layers)
    if weights.has_projection:
        raise ValueError(
            "model must have no projection_size: ONNX's LSTM operator feeds back the state it outputs and has no "
            "projection weights"
        )
    if weights.cell_clip is not None:
        raise ValueError(
            f"model must have no cell_clip, got {weights.cell_clip:g}: `clip` of ONNX's LSTM operator bounds the "
            "inputs of the activations, not the cell state"
        )
    return dict(to_arrays(weights, "onnx"))


class _Graph:
    """A graph under construction: makes names for values, and stores each constant once."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def input(self, name: str, shape: Iterable[int | str], dtype: np.dtype[Any] | None = None) -> str:
        """Add an input; a string in its shape names a free axis."""
        self._inputs.append(_value(name, dtype or self._dtype, shape))
        return name

    def output(self, name: str, source: str, shape: Iterable[int | str]) -> None:
        """Add an output, the value `source` under this name."""
        self._nodes.append(helper.make_node("Identity", [source], [name], name=f"to_{name}"))
        self._outputs.append(_value(name, self._dtype, shape))

    def constant(self, name: str, values: Array) -> str:
        """Add an array to the file."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node and return its output."""
        return self.nodes(kind, inputs, 1, **attributes)[0]

    def nodes(self, kind: str, inputs: list[str], outputs: int, name: str = "", **attributes: Any) -> list[str]:
        """Add a node and return its outputs."""
        name = name or f"{kind}_{len(self._nodes)}"
        results = [f"{name}.{k}" for k in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, results, name=name, **attributes))
        return results

    def finish(self, name: str, opset: int, vocabulary: AnyVocabulary | None) -> onnx.ModelProto:
        """Return the checked model."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._constants.values()))
        imports = [helper.make_opsetid("", opset)]
        model = helper.make_model(
            graph, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports),
            producer_name="lstmfast", producer_version=__version__,
        )
        if vocabulary is not None:
            helper.set_model_props(model, {VOCABULARY: json.dumps(vocabulary.to_json())})
        onnx.checker.check_model(model, full_check=True)
        return model


def _value(name: str, dtype: np.dtype[Any], shape: Iterable[int | str]) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), list(shape))
