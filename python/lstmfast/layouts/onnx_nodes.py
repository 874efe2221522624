"""LSTM nodes of an ONNX graph: the weights they were given, what they are set to, and which one feeds which.

Weights may be stored or be made by the graph of what is stored, as exporters do it (slices, concatenations,
transposes); those are worked out. Refuses to run anything that depends on an input. The package `onnx`, an extra, is
imported when a function is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lstmfast._checks import Array

# What may stand between two layers without changing a number: shapes are moved, and dropout is off.
_MOVES = {"Squeeze", "Unsqueeze", "Transpose", "Reshape", "Flatten", "Identity", "Dropout"}
_WEIGHTS = {"W": 1, "R": 2, "B": 3, "P": 7}  # where the operator takes them
_CHANCE = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
_DEFAULT_ACTIVATIONS = ("sigmoid", "tanh", "tanh")  # ONNX does not mind their case
_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, eq=False)
class LSTMNode:
    """One node: arrays W, R and, where given, B and P; attributes with the operator's defaults filled in.

    values: what the graph calls each of the arrays. below: the node whose outputs this one reads through nothing but
    moves, None if there is none.
    """

    name: str
    arrays: dict[str, Array]
    values: dict[str, str]
    direction: str
    activations: tuple[str, ...]
    clip: float | None
    input_forget: bool
    below: LSTMNode | None

    def refuse_what_differs(self) -> None:
        """Raise ValueError naming the node and the first setting that no LSTM of ours has."""
        if self.activations != _DEFAULT_ACTIVATIONS * self.directions:
            raise ValueError(
                f"LSTM node {self.name} has activations {', '.join(self.activations)}; only "
                f"{', '.join(_DEFAULT_ACTIVATIONS)} are an LSTM here"
            )
        if self.clip:
            raise ValueError(
                f"LSTM node {self.name} clips what enters its gates' functions to {self.clip:g}, and no LSTM here does"
            )
        if self.direction == "reverse":
            raise ValueError(f"LSTM node {self.name} has no forward direction, which every LSTM here has")

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.direction == "bidirectional" else 1

    def goes_on(self, lower: LSTMNode) -> bool:
        """Whether this node can be the layer above another one in one stack."""
        return (
            self.below is lower
            and self.arrays["R"].shape == lower.arrays["R"].shape
            and self.arrays.keys() ^ lower.arrays.keys() <= {"B"}
            and (self.direction, self.input_forget) == (lower.direction, lower.input_forget)
        )


def read_model(path: Path) -> Any:
    """The `onnx.ModelProto` in a file. Raises ValueError if it is none, OSError if it cannot be read."""
    import onnx

    try:
        model = onnx.load(path)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is no ONNX model that can be used: {' '.join(str(error).split())[:160]}") from error
    if not model.graph.node:
        raise ValueError(f"{path} is no ONNX model that can be used: it has no nodes")
    return model


def lstm_nodes(model: Any) -> list[LSTMNode]:
    """The LSTM nodes of a model's main graph, in its order. model: an `onnx.ModelProto`.

    Raises ValueError naming a node whose weights depend on an input of the graph, or cannot be worked out.
    """
    from onnx import inliner

    if model.functions:
        model = inliner.inline_local_functions(model)
    constants = _Constants(model)
    makers = {output: node for node in model.graph.node for output in node.output if output}
    found: list[LSTMNode] = []
    by_outputs: dict[str, LSTMNode] = {}
    for node in model.graph.node:
        if node.op_type == "LSTM" and node.domain in _DOMAINS:
            found.append(_read(node, constants, by_outputs.get(_source(node.input[0], makers))))
            if node.output[0]:
                by_outputs[node.output[0]] = found[-1]
    return found


def stacks(nodes: list[LSTMNode]) -> list[list[LSTMNode]]:
    """Nodes that stand upon each other, from the lowest on. A node that feeds two others ends its stack."""
    above: dict[int, list[LSTMNode]] = {}
    for node in nodes:
        if node.below is not None:
            above.setdefault(id(node.below), []).append(node)

    def next_of(node: LSTMNode) -> LSTMNode | None:
        others = above.get(id(node), [])
        return others[0] if len(others) == 1 and others[0].goes_on(node) else None

    continued = {id(upper) for node in nodes if (upper := next_of(node)) is not None}
    found = []
    for node in nodes:
        if id(node) not in continued:
            stack = [node]
            while (upper := next_of(stack[-1])) is not None:
                stack.append(upper)
            found.append(stack)
    return found


def stack_arrays(stack: list[LSTMNode]) -> dict[str, Array]:
    """The arrays of a stack by the names of the layout `onnx`. Where only some nodes have a bias, others get zeros."""
    some_bias = any("B" in node.arrays for node in stack)
    arrays: dict[str, Array] = {}
    for k, node in enumerate(stack):
        scope = f"layer{k}." if len(stack) > 1 else ""
        arrays |= {f"{scope}{letter}": values for letter, values in node.arrays.items()}
        if some_bias and "B" not in node.arrays:
            r = node.arrays["R"]
            arrays[f"{scope}B"] = np.zeros((r.shape[0], 2 * r.shape[1]), r.dtype)
    return arrays


def _source(name: str, makers: dict[str, Any]) -> str:
    """Where a value comes from, before all moves."""
    while (maker := makers.get(name)) is not None and maker.op_type in _MOVES:
        name = maker.input[0]
    return name


def _read(node: Any, constants: _Constants, below: LSTMNode | None) -> LSTMNode:
    import onnx

    set_to = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    name = node.name or node.output[0]
    direction = set_to.get("direction", b"forward").decode()
    activations = tuple(each.decode().lower() for each in set_to.get("activations", ()))
    values = {
        letter: node.input[place] for letter, place in _WEIGHTS.items() if place < len(node.input) and node.input[place]
    }
    arrays = {letter: constants.value(value, f"{letter} of LSTM node {name}") for letter, value in values.items()}
    for letter, array in arrays.items():
        wanted = 3 if letter in "WR" else 2
        if array.ndim != wanted:
            raise ValueError(f"{letter} of LSTM node {name} must have {wanted} axes, got shape {array.shape}")
    return LSTMNode(
        name, arrays, values, direction,
        activations or _DEFAULT_ACTIVATIONS * (2 if direction == "bidirectional" else 1),
        set_to.get("clip"), bool(set_to.get("input_forget", 0)), below,
    )  # fmt: skip


class _Constants:
    """Values that a graph holds, or makes of what it holds."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._stored = {each.name: each for each in model.graph.initializer}
        self._makers = {output: node for node in model.graph.node for output in node.output if output}

    def value(self, name: str, meaning: str) -> Array:
        """A value as an array. Raises ValueError saying what it was for if it depends on an input."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        if name in self._stored:
            return np.array(onnx.numpy_helper.to_array(self._stored[name]))
        needed, stored = self._ancestors(name, meaning)
        graph = onnx.helper.make_graph(
            [node for node in self._model.graph.node if id(node) in needed], "constants", [],
            [onnx.helper.make_empty_tensor_value_info(name)], [self._stored[each] for each in stored],
        )  # fmt: skip
        part = onnx.helper.make_model(graph, opset_imports=self._model.opset_import)
        try:
            return np.array(ReferenceEvaluator(part).run(None, {})[0])
        except Exception as error:
            words = " ".join(str(error).split())[:160]
            raise ValueError(f"{meaning} is made by the graph in a way that cannot be worked out: {words}") from error

    def _ancestors(self, name: str, meaning: str) -> tuple[set[int], list[str]]:
        """Which nodes a value needs, and which stored ones."""
        needed: set[int] = set()
        stored: list[str] = []
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if not current or current in seen:
                continue
            seen.add(current)
            if current in self._stored:
                stored.append(current)
                continue
            maker = self._makers.get(current)
            if maker is None or maker.op_type in _CHANCE:
                source = f"the graph's input {current}" if maker is None else f"chance ({maker.op_type})"
                raise ValueError(f"{meaning} depends on {source}, so that the file does not hold it")
            needed.add(id(maker))
            waiting.extend(maker.input)
        return needed, stored
