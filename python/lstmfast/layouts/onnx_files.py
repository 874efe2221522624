"""LSTM nodes of ONNX files: their initializers as arrays, stacked where one node feeds the next.

Reads weights and what the nodes say of them. Refuses to run a graph and to write one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lstmfast._checks import Array
from lstmfast.layouts.converters import LayoutArrays
from lstmfast.layouts.files import File, need
from lstmfast.layouts.finder import FoundLSTM

# What may stand between two layers without changing a number: shapes are moved, and dropout is off.
_PASSES_ON = {"Squeeze", "Unsqueeze", "Transpose", "Reshape", "Identity", "Dropout", "Cast"}
_DEFAULT_ACTIVATIONS = ("Sigmoid", "Tanh", "Tanh")


def read_onnx(path: Path) -> tuple[File, list[FoundLSTM]]:
    """The initializers of a model, and its LSTMs. Raises ValueError if it is no ONNX model."""
    onnx: Any = need("onnx", "onnx", f"reading {path}")
    try:
        graph = onnx.load(path).graph
        arrays = {each.name: np.asarray(onnx.numpy_helper.to_array(each)) for each in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                value = next((each.t for each in node.attribute if each.name == "value"), None)
                if value is not None:
                    arrays[node.output[0]] = np.asarray(onnx.numpy_helper.to_array(value))
    except Exception as error:
        raise ValueError(f"{path} is no ONNX model that can be used: {' '.join(str(error).split())[:160]}") from error
    makers = {output: node for node in graph.node for output in node.output if output}
    nodes = [node for node in graph.node if node.op_type == "LSTM"]
    below = {id(node): _lstm_before(node, makers) for node in nodes}
    fed = {id(node) for node in below.values() if node is not None}
    by_below = {id(lower): node for node in nodes if (lower := below[id(node)]) is not None}
    found = []
    for node in nodes:
        lower = below[id(node)]
        if lower is not None and _alike(lower, node, arrays) and by_below.get(id(lower)) is node:
            continue
        stack = [node]
        while id(stack[-1]) in fed and _alike(stack[-1], by_below[id(stack[-1])], arrays):
            stack.append(by_below[id(stack[-1])])
        found.append(_found(stack, arrays, onnx))
    return File(path, "ONNX model", arrays), found


def _lstm_before(node: Any, makers: dict[str, Any]) -> Any:
    """The LSTM whose sequence of outputs a node reads, through nothing but moves; None if there is none."""
    name = node.input[0]
    while (maker := makers.get(name)) is not None:
        if maker.op_type == "LSTM":
            return maker if name == maker.output[0] else None
        if maker.op_type not in _PASSES_ON:
            return None
        name = maker.input[0]
    return None


def _alike(lower: Any, upper: Any, arrays: dict[str, Array]) -> bool:
    """Whether two nodes can be layers of one stack."""
    shapes = [arrays[node.input[2]].shape if node.input[2] in arrays else () for node in (lower, upper)]
    inputs = [len(node.input) > 3 and bool(node.input[3]) for node in (lower, upper)]
    peepholes = [len(node.input) > 7 and bool(node.input[7]) for node in (lower, upper)]
    return shapes[0] == shapes[1] and inputs[0] == inputs[1] and peepholes[0] == peepholes[1]


def _found(stack: list[Any], arrays: dict[str, Array], onnx: Any) -> FoundLSTM:
    names: dict[str, str] = {}
    notes = []
    for k, node in enumerate(stack):
        scope = f"layer{k}." if len(stack) > 1 else ""
        for position, variable in ((1, "W"), (2, "R"), (3, "B"), (7, "P")):
            given = node.input[position] if len(node.input) > position else ""
            if not given:
                continue
            if given not in arrays:
                raise ValueError(f"LSTM node {_name(node)} has a {variable} that is computed by the graph, not stored")
            names[f"{scope}{variable}"] = given
        notes += _notes(node, {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute})
    found = LayoutArrays({name: np.asarray(arrays[given]) for name, given in names.items()}, "onnx")
    return FoundLSTM(", ".join(map(_name, stack)), found, names, tuple(notes))


def _name(node: Any) -> str:
    return str(node.name or node.output[0])


def _notes(node: Any, attributes: dict[str, Any]) -> list[str]:
    """What a node is set to that its weights do not show."""
    notes = []
    activations = tuple(each.decode() if isinstance(each, bytes) else each for each in attributes.get("activations", ()))
    if activations[:3] not in ((), _DEFAULT_ACTIVATIONS) or activations[3:] not in ((), _DEFAULT_ACTIVATIONS):
        notes.append(f"{_name(node)} has activations {', '.join(activations)}; with ours its outputs are others.")
    if attributes.get("direction") == b"reverse":
        notes.append(f"{_name(node)} reads the sequence from its end.")
    if attributes.get("input_forget"):
        notes.append(f"{_name(node)} couples its input and forget gates: coupled_gates=True.")
    if attributes.get("clip"):
        notes.append(f"{_name(node)} clips what goes into its activations to {attributes['clip']:g}, which LSTM does not.")
    return notes
