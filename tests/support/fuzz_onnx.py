"""Random ONNX graphs around LSTM nodes, read by `lstmfast.onnx` and compared with ONNX Runtime.

Every LSTM that is read is run on the input tensor of its first node and must give the output tensor of its last one;
anything else must be refused by name. Graphs with layout=1, which ONNX Runtime refuses, are run by the reference
evaluator. As a script: `python tests/support/fuzz_onnx.py --graphs 2000 --seed 1`; it prints the seed, counts of nodes
read, joined and refused, and the first graph that fails. Requires nodes to be joined only in graphs with nothing odd.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

sys.path.append(str(Path(__file__).parent.parent))  # where `support` is, for the script

import lstmfast.onnx  # noqa: E402
from lstmfast.layouts import onnx_nodes  # noqa: E402
from lstmfast.layouts.onnx_graph import Graph  # noqa: E402
from support import tolerances  # noqa: E402

Array = npt.NDArray[Any]

INT_MAX = 2**31 - 1
STATES = ("initial_h", "initial_c")


class Failure(AssertionError):
    """A graph was read wrongly."""


class NotRunnable(Exception):
    """The graph does not run: one of its nodes needs other sizes."""


@dataclass
class Layer:
    """The specification of one node: its tensors by name, its sizes, and whether it has anything odd.

    user: of initial_h, initial_c and lengths, the graph's input that a caller would take it from; None if it is none.
    must_join: it reads the node before it as it is, and both are plain. read_elsewhere: its outputs are.
    """

    x: str
    y: str
    states: tuple[str, str]
    lengths: str
    directions: int
    hidden_size: int
    layout: int
    odd: str = ""
    user: dict[str, str | None] = field(default_factory=dict)
    must_join: bool = False
    read_elsewhere: bool = False


class Builder:
    """A flat graph under construction; every choice comes from `rng` and is noted in `words`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.words = rng, list[str]()
        self.nodes: list[Any] = []
        self.stored: dict[str, Any] = {}
        self.feeds: dict[str, Array] = {}
        self.axes: dict[str, Sequence[str | int] | None] = {}
        self.outputs: list[str] = []
        self.layers: list[Layer] = []
        self.opset = self.pick([11, 13, 14, 17, 18, 20, 21, 22])
        self.reference = self.opset >= 14 and self.chance(0.15)  # of ONNX, for layout=1
        self.time_steps, self.batch = int(rng.integers(1, 7)), int(rng.integers(1, 5))
        self.known = self.pick(["symbols", "symbols", "static", "unnamed", "rank"])
        self.options: dict[str, Any] = {}
        self._count = 0

    def chance(self, share: float) -> bool:
        """True in this share of calls."""
        return bool(self.rng.random() < share)

    def pick(self, choices: Sequence[Any]) -> Any:
        """One of these."""
        return choices[int(self.rng.integers(len(choices)))]

    def random(self, *shape: int) -> Array:
        """Random weights or inputs."""
        return (self.rng.standard_normal(shape) / 2).astype(np.float32)

    def name(self, kind: str) -> str:
        """A name that is not yet there."""
        self._count += 1
        return f"{kind}{self._count}"

    def constant(self, values: Any, dtype: Any = None) -> str:
        """A stored array."""
        name = self.name("k")
        self.stored[name] = numpy_helper.from_array(np.asarray(values, dtype), name)
        return name

    def ints(self, *values: int) -> str:
        """A stored list of whole numbers."""
        return self.constant(np.array(values, np.int64))

    def input(self, name: str, values: Array, axes: Sequence[str | int]) -> str:
        """An input of the graph: its value, and its axes, some of which may be declared free."""
        self.feeds[name] = values
        self.axes[name] = {
            "symbols": list(axes), "static": list(values.shape), "rank": None,
            "unnamed": [axis if isinstance(axis, int) else None for axis in axes],
        }[self.known]
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """A node without a name; its output, or a list of them."""
        names = [self.name(kind.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    # Operators whose axes became inputs with version 13.

    def squeeze(self, x: str, axis: int, kind: str = "Squeeze") -> str:
        """Take an axis of one out, or put it in."""
        if self.opset < 13:
            return str(self.node(kind, x, axes=[axis]))
        return str(self.node(kind, x, self.ints(axis)))

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Parts of these sizes."""
        if self.opset < 13:
            found = self.node("Split", x, outputs=len(sizes), axis=axis, split=list(sizes))
        else:
            found = self.node("Split", x, self.ints(*sizes), outputs=len(sizes), axis=axis)
        return [found] if isinstance(found, str) else list(found)

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        """A part along one axis."""
        return str(self.node("Slice", x, self.ints(start), self.ints(end), self.ints(axis), self.ints(step)))

    def shape_of(self, x: str, axis: int) -> str:
        """The size of one axis, as a list of one."""
        return str(self.node("Gather", self.node("Shape", x), self.ints(axis), axis=0))


# --- weights ----------------------------------------------------------------------------------------------------------


def make_weight(b: Builder, values: Array, odd: list[str]) -> str:
    """Make a weight in one of many ways and return its name. Weights not held by the file are noted in odd."""
    if b.chance(0.5):
        return b.constant(values)
    maker = b.pick(WEIGHTS)
    b.words.append(f"weight:{maker.__name__}")
    return str(maker(b, values, odd))


def constant_node(b: Builder, v: Array, odd: list[str]) -> str:
    return str(b.node("Constant", value=numpy_helper.from_array(v)))


def constant_floats(b: Builder, v: Array, odd: list[str]) -> str:
    if b.opset < 12:
        return constant_node(b, v, odd)
    return str(b.node("Reshape", b.node("Constant", value_floats=v.ravel().tolist()), b.ints(*v.shape)))


def turned(b: Builder, v: Array, odd: list[str]) -> str:
    order = list(range(v.ndim))[::-1]
    return str(b.node("Transpose", b.constant(v.transpose(order).copy()), perm=order))


def reshaped(b: Builder, v: Array, odd: list[str]) -> str:
    return str(b.node("Reshape", b.constant(v.ravel()), b.ints(len(v), -1, *v.shape[2:])))


def gates_in_other_order(b: Builder, v: Array, odd: list[str]) -> str:
    if v.shape[1] % 4:
        return turned(b, v, odd)
    parts = np.split(v, 4, 1)
    sizes = [v.shape[1] // 4] * 4
    given = b.split(b.constant(np.concatenate([parts[k] for k in (0, 2, 3, 1)], 1)), sizes, 1)
    return str(b.node("Concat", given[0], given[3], given[1], given[2], axis=1))


def gates_by_slices(b: Builder, v: Array, odd: list[str]) -> str:
    if v.shape[1] % 4:
        return turned(b, v, odd)
    parts, size = np.split(v, 4, 1), v.shape[1] // 4
    x = b.constant(np.concatenate([parts[k] for k in (0, 2, 3, 1)], 1))
    places = [(0, size), (3 * size, INT_MAX), (size, 2 * size), (-2 * size, -size)]
    return str(b.node("Concat", *(b.slice(x, start, end, 1) for start, end in places), axis=1))


def directions_side_by_side(b: Builder, v: Array, odd: list[str]) -> str:
    parts = [b.squeeze(b.constant(part), 0, "Unsqueeze") for part in v]
    return str(b.node("Concat", *parts, axis=0))


def gathered(b: Builder, v: Array, odd: list[str]) -> str:
    order = b.rng.permutation(v.shape[1])
    return str(b.node("Gather", b.constant(v[:, order]), b.ints(*np.argsort(order)), axis=1))


def half(b: Builder, v: Array, odd: list[str]) -> str:
    return str(b.node("Cast", b.constant(v.astype(np.float16)), to=TensorProto.FLOAT))


def brain_float(b: Builder, v: Array, odd: list[str]) -> str:
    if b.opset < 13:
        return half(b, v, odd)
    name = b.name("k")
    b.stored[name] = helper.make_tensor(name, TensorProto.BFLOAT16, v.shape, v.ravel())
    return str(b.node("Cast", name, to=TensorProto.FLOAT))


def double(b: Builder, v: Array, odd: list[str]) -> str:
    return str(b.node("Cast", b.constant(v.astype(np.float64)), to=TensorProto.FLOAT))


def dequantized(b: Builder, v: Array, odd: list[str]) -> str:
    if b.reference and b.opset < 19:  # the evaluator has no older one
        return scaled(b, v, odd)
    kind = b.pick([np.int8, np.uint8])
    whole = b.rng.integers(*((-128, 128) if kind is np.int8 else (0, 256)), v.shape).astype(kind)
    if b.opset >= 13 and b.chance(0.5):
        scale = b.constant(np.abs(b.random(v.shape[1])) / 100 + np.float32(0.001))
        zero = b.constant(b.rng.integers(0, 20, v.shape[1]).astype(kind))
        return str(b.node("DequantizeLinear", b.constant(whole), scale, zero, axis=1))
    zeros = [b.constant(np.array(b.rng.integers(0, 20), kind))] if b.chance(0.5) else []
    return str(b.node("DequantizeLinear", b.constant(whole), b.constant(np.float32(0.004)), *zeros))


def scaled(b: Builder, v: Array, odd: list[str]) -> str:
    return str(b.node("Mul", b.constant(v * 2), b.constant(np.float32(0.5))))


def summed(b: Builder, v: Array, odd: list[str]) -> str:
    return str(b.node("Add", b.constant(v), b.constant(b.random(*v.shape))))


def filled(b: Builder, v: Array, odd: list[str]) -> str:
    value = numpy_helper.from_array(np.array([0.1], np.float32))
    return str(b.node("ConstantOfShape", b.ints(*v.shape), value=value))


def expanded(b: Builder, v: Array, odd: list[str]) -> str:
    return str(b.node("Expand", b.constant(v[:, :, :1] if v.ndim == 3 else v[:1]), b.ints(*v.shape)))


def padded(b: Builder, v: Array, odd: list[str]) -> str:
    return str(b.node("Pad", b.constant(v[:, 1:]), b.ints(*([0, 1] + [0] * (2 * v.ndim - 2)))))


def chosen(b: Builder, v: Array, odd: list[str]) -> str:
    condition = b.constant(b.rng.random(v.shape) < 0.5)
    return str(b.node("Where", condition, b.constant(v), b.constant(b.random(*v.shape))))


def sparse(b: Builder, v: Array, odd: list[str]) -> str:
    if b.reference:  # it does not take them
        return scaled(b, v, odd)
    name, places = b.name("k"), np.flatnonzero(b.rng.random(v.size) < 0.6)
    values = numpy_helper.from_array(v.ravel()[places], name)
    b.stored[name] = helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64)), v.shape)
    return name


def of_a_branch(b: Builder, v: Array, odd: list[str]) -> str:
    name = b.name("inner")
    value, other, kept = numpy_helper.from_array(v), numpy_helper.from_array(v * 2), b.constant(v * 3)
    bodies = []
    for tensor in (value, other):
        nodes = [
            helper.make_node("Constant", [], [f"{name}c"], value=tensor),
            helper.make_node("Add", [f"{name}c", kept], [name]),
        ]
        bodies.append(helper.make_graph(nodes, "body", [], [helper.make_tensor_value_info(name, 1, v.shape)]))
    condition = b.constant(np.array(b.chance(0.5)))
    return str(b.node("If", condition, then_branch=bodies[0], else_branch=bodies[1]))


def by_a_shape(b: Builder, v: Array, odd: list[str]) -> str:
    """As in PyTorch's exporter: sliced by the shape of a zero state."""
    size = v.shape[-1]
    rows = b.shape_of(b.layers[-1].x if b.layers else "x", 1)
    zeros = b.node("Expand", b.constant(np.float32(0)), b.node("Concat", rows, b.ints(size), axis=0))
    end = b.shape_of(zeros, 1)
    if b.known == "rank" or any(word.startswith("wrong") for word in b.words):
        odd.append("weights by a shape that ONNX may not infer")
    wide = np.concatenate([v, b.random(*v.shape[:-1], 2)], -1)
    return str(b.node("Slice", b.constant(wide), b.ints(0), end, b.ints(v.ndim - 1)))


def of_an_input(b: Builder, v: Array, odd: list[str]) -> str:
    if not b.chance(0.3):
        return b.constant(v)
    odd.append("weights of an input")
    name = b.name("scale")
    return str(b.node("Mul", b.input(name, np.array([1.5], np.float32), [1]), b.constant(v)))


WEIGHTS: list[Callable[[Builder, Array, list[str]], str]] = [
    constant_node, constant_floats, turned, reshaped, gates_in_other_order, gates_by_slices, directions_side_by_side,
    gathered, half, brain_float, double, dequantized, scaled, summed, filled, expanded, padded, chosen, sparse,
    of_a_branch, by_a_shape, of_an_input,
]


# --- between two nodes ------------------------------------------------------------------------------------------------


def joined_rightly(b: Builder, layer: Layer) -> str:
    """The outputs of a node as the layer above takes them, in one of many ways."""
    y, d, layout = layer.y, layer.directions, layer.layout
    ways = ["reshape", "computed", "parts"]
    ways += ["squeeze", "gather", "slice", "backwards"] if d == 1 else []
    way = b.pick(ways)
    b.words.append(f"right:{way}")
    axis = 2 if layout else 1
    if way in ("squeeze", "backwards"):
        x = b.squeeze(y, axis if way == "squeeze" else axis - 4)
    elif way == "gather":
        x = b.node("Gather", y, b.constant(np.array(0)), axis=axis)
    elif way == "slice":
        x = b.squeeze(b.slice(y, 0, 1, axis), axis)
    elif way == "parts":
        parts = [b.squeeze(part, axis) for part in b.split(y, [1] * d, axis)]
        x = b.node("Concat", *parts, axis=-1) if d > 1 else parts[0]
    else:
        turned = y if layout else b.node("Transpose", y, perm=[0, 2, 1, 3])
        shape = b.ints(0, 0, d * layer.hidden_size if b.chance(0.5) else -1)
        if way == "computed":
            of = layer.x if b.chance(0.5) else turned
            shape = b.node("Concat", b.shape_of(of, 0), b.shape_of(of, 1), b.ints(-1), axis=0)
        x = b.node("Reshape", turned, shape)
    for _ in range(int(b.rng.integers(0, 3))):
        x = passed_on(b, x)
    return str(x)


def passed_on(b: Builder, x: str) -> str:
    """The value, passed through a node or two that change nothing."""
    way = b.pick(["identity", "dropout", "cast", "there and back", "axis", "open slice", "whole slice", "wide", "ones"])
    b.words.append(way)
    if way == "dropout":
        rate = [b.constant(np.float32(0.4))] if b.opset >= 12 else []
        off = [b.constant(np.array(False))] if rate and b.chance(0.5) else []
        return str(b.node("Dropout", x, *rate, *off))
    if way == "cast":
        return str(b.node("Cast", x, to=TensorProto.FLOAT))
    if way == "there and back":
        return str(b.node("Transpose", b.node("Transpose", x, perm=[1, 0, 2]), perm=[1, 0, 2]))
    if way == "axis":
        axis = int(b.rng.integers(0, 4))
        return b.squeeze(b.squeeze(x, axis, "Unsqueeze"), axis)
    if way == "open slice":
        return b.slice(x, 0, INT_MAX, int(b.rng.integers(0, 3)))
    if way == "whole slice":
        return str(b.node("Slice", x, b.ints(0), b.shape_of(x, 0), b.ints(0)))
    if way == "wide":
        return str(b.node("Cast", b.node("Cast", x, to=TensorProto.DOUBLE), to=TensorProto.FLOAT))
    if way == "ones":
        return str(b.node("Expand", x, b.ints(1, 1, 1)))
    return str(b.node("Identity", x))


def joined_wrongly(b: Builder, layer: Layer) -> str:
    """The outputs of a node with something done to them; where nothing changes for these sizes, that is chance."""
    d, h, layout, y = layer.directions, layer.hidden_size, layer.layout, layer.y
    width, t, batch = d * h, b.time_steps, b.batch
    ways = [
        "swap", "flatten", "fold", "relu", "half", "double", "add", "dense", "reverse", "cut", "first", "shuffled",
        "wider", "tanh", "floor", "read twice", "an output", "side way", "rows", "states", "residual",
    ]
    ways += ["other direction first", "interleaved", "sum", "one direction"] if d == 2 else []
    ways += ["pyramid"] * 3 if t % 2 == 0 else []
    way = b.pick(ways)
    b.words.append(f"wrong:{way}")
    axis = 2 if layout else 1
    if way == "states":
        final = f"{y}_h"
        return str(b.node("Transpose", final, perm=[1, 0, 2]) if layout and b.chance(0.5) else final)
    if way in ("other direction first", "sum", "one direction"):
        first, second = (b.squeeze(part, axis) for part in b.split(y, [1, 1], axis))
        if way == "other direction first":
            return str(b.node("Concat", second, first, axis=-1))
        return str(b.node("Add", first, second) if way == "sum" else second)
    if way == "interleaved":
        turned = b.node("Transpose", y, perm=[0, 1, 3, 2] if layout else [0, 2, 3, 1])
        return str(b.node("Reshape", turned, b.ints(0, 0, -1)))
    if way == "pyramid" and not layout:
        turned = b.node("Transpose", y, perm=[2, 0, 1, 3])
        pairs = b.node("Reshape", turned, b.ints(0, -1, 2 * width))
        return str(b.node("Transpose", pairs, perm=[1, 0, 2]))
    x = joined_rightly(b, layer)
    if way in ("pyramid", "fold", "flatten"):
        return str(
            b.node(
                "Reshape",
                x,
                b.ints(
                    *{"flatten": (-1, 1, width), "fold": (1, -1, width)}.get(
                        way, (0, -1, 2 * width) if layout else (-1, batch, 2 * width)
                    )
                ),
            )
        )
    if way == "swap":
        return str(b.node("Transpose", x, perm=[1, 0, 2]))
    if way == "half":
        return str(b.node("Cast", b.node("Cast", x, to=TensorProto.FLOAT16), to=TensorProto.FLOAT))
    if way in ("relu", "tanh", "floor"):
        return str(b.node(way.capitalize(), x))
    if way in ("double", "add"):
        return str(b.node("Mul" if way == "double" else "Add", x, b.constant(np.float32(2))))
    if way == "dense":
        return str(b.node("MatMul", x, b.constant(b.random(width, int(b.rng.integers(1, 5))))))
    if way == "reverse":
        return b.slice(x, -1, -INT_MAX, int(b.rng.integers(0, 2)), -1)
    if way == "cut":
        return b.slice(x, 0, int(b.rng.integers(1, 9)), int(b.rng.integers(0, 2)))
    if way == "first":
        return b.slice(x, 1, INT_MAX, 0) if (batch if layout else t) > 1 else str(b.node("Neg", x))
    if way in ("shuffled", "rows"):
        axis = 1 if (way == "rows") != bool(layout) else 0
        order = b.rng.permutation(batch if way == "rows" else t)
        return str(b.node("Gather", x, b.ints(*order), axis=axis))
    if way == "wider":
        return str(b.node("Concat", x, x if b.chance(0.5) else b.node("Neg", x), axis=-1))
    if way == "residual":
        return str(b.node("Add", x, b.node("Sigmoid", x)))
    layer.read_elsewhere = True
    if way == "an output":
        b.outputs.append(b.pick([x, y]))
    elif way == "read twice":
        add_layer(b, x, width, Layer("", "", ("", ""), "", d, h, layout))
    else:
        b.outputs.append(str(b.node("Exp", b.pick([x, y]))))
    return x


# --- nodes ------------------------------------------------------------------------------------------------------------


def add_layer(b: Builder, x: str, input_size: int, like: Layer, **given: Any) -> Layer:
    """A node that reads x. like: of which sizes. given: initial states and lengths as (tensor, the caller's input)."""
    d, h = like.directions, like.hidden_size
    shapes = {"W": (d, 4 * h, input_size), "R": (d, 4 * h, h), "B": (d, 8 * h)}
    odd: list[str] = []
    weights = [make_weight(b, b.random(*shape), odd) for shape in shapes.values()]
    if b.chance(0.15):
        weights[2] = ""
    settings: dict[str, Any] = {"hidden_size": h, "direction": "bidirectional" if d == 2 else "forward"}
    peepholes = ""
    if b.options["peepholes"]:
        peepholes = make_weight(b, b.random(d, 3 * h), odd) if b.chance(0.5) else b.constant(b.random(d, 3 * h))
    if not b.reference:
        settings["input_forget"] = b.options["coupled"]
        if b.chance(0.05):
            settings["clip"] = b.pick([0.05, 3.0])
            odd.append("clip")
        if b.chance(0.05):
            settings["activations"] = b.pick([["Sigmoid", "Relu", "Tanh"], ["HardSigmoid", "Tanh", "Tanh"]]) * d
            odd.append("activations")
        elif b.chance(0.1):
            settings["activations"] = [b.pick([str.upper, str.lower])(each) for each in ("sigmoid", "tanh", "tanh")] * d
    if d == 1 and b.chance(0.06):
        settings["direction"] = "reverse"
        odd.append("reverse")
    if like.layout:
        settings["layout"] = 1
    states = [given.get(name, ("", None)) for name in STATES]
    lengths, of_lengths = given.get("lengths", ("", None))
    y, name = b.name("y"), b.pick(["", f"lstm{len(b.layers)}", "lstm" if b.reference else ""])
    inputs = [x, *weights, lengths, states[0][0], states[1][0], peepholes]
    while not inputs[-1]:
        inputs.pop()
    b.nodes.append(helper.make_node("LSTM", inputs, [y, f"{y}_h", f"{y}_c"], name=name, **settings))
    user = {"lengths": of_lengths, **{key: of for key, (_, of) in zip(STATES, states, strict=True)}}
    layer = Layer(
        x, y, (states[0][0], states[1][0]), lengths, d, h, like.layout, ", ".join(odd), user
    )
    b.layers.append(layer)
    return layer


def states_for(b: Builder, count: int, like: Layer) -> list[dict[str, tuple[str, str | None]]]:
    """Initial states and lengths of the nodes of a planned stack: tensors, and the caller's inputs for them."""
    d, h, batch = like.directions, like.hidden_size, b.batch
    found: list[dict[str, tuple[str, str | None]]] = [{} for _ in range(count)]
    mode = b.options["states"]
    shape = (batch, d, h) if like.layout else (d, batch, h)
    axes: list[str | int] = ["batch", d, h] if like.layout else [d, "batch", h]
    axis = 1 if like.layout else 0

    def rows() -> str:
        return b.shape_of("x", 0 if b.options["batch first"] else 1)

    for name in STATES[: 1 if b.chance(0.1) else 2] if mode != "none" else ():
        short = f"{name[-1]}0"
        if mode in ("whole", "turned round", "doubled"):
            whole = (batch, count * d, h) if like.layout else (count * d, batch, h)
            of = b.input(short, b.random(*whole), ["batch", count * d, h] if like.layout else [count * d, "batch", h])
            x = b.node("Mul", of, b.constant(np.float32(2))) if mode == "doubled" else of
            parts = (
                b.split(x, [d] * count, axis)
                if b.chance(0.5)
                else [b.slice(x, k * d, (k + 1) * d, axis) for k in range(count)]
            )
            for k, part in enumerate(parts[::-1] if mode == "turned round" else parts):
                found[k][name] = part, None if mode == "doubled" else of
            continue
        for k in range(count):
            if mode == "zeros":
                value = b.constant(np.zeros(shape, np.float32))
            elif mode == "made zeros":
                sizes = [rows(), b.ints(d)] if like.layout else [b.ints(d), rows()]
                sizes = b.node("Concat", *sizes, b.ints(h), axis=0)
                value = b.node("ConstantOfShape", sizes)
                if b.chance(0.5):
                    value = b.node("Expand", b.constant(np.float32(0)), sizes)
            elif mode == "each":
                of = b.input(f"{short}_{k}", b.random(*shape), axes)
                found[k][name] = of, of
                continue
            elif mode == "other axes":
                of = b.input(f"{short}_{k}", b.random(*(shape[j] for j in (1, 0, 2))), [axes[j] for j in (1, 0, 2)])
                found[k][name] = b.node("Transpose", of, perm=[1, 0, 2]), of
                continue
            elif mode == "held":
                value = b.constant(b.random(*shape))
                if b.chance(0.5):
                    sizes = b.node("Concat", b.ints(d), rows(), b.ints(h), axis=0)
                    value = value if like.layout else b.node("Expand", b.constant(b.random(d, 1, h)), sizes)
            else:
                value = f"{b.layers[-1].y}_h" if k == 0 and b.layers else b.constant(b.random(*shape))
            found[k][name] = value, None
    lengths = b.options["lengths"]
    if lengths != "none":
        numbers = b.rng.integers(1, b.time_steps + 1, batch)
        of = None
        if lengths == "input":
            value = of = b.input("lengths", numbers.astype(np.int32), ["batch"])
        elif lengths == "cast":
            of = b.input("lengths", numbers.astype(np.int64), ["batch"])
            value = b.node("Cast", of, to=TensorProto.INT32)
        elif lengths == "held":
            value = b.constant(numbers.astype(np.int32))
        else:
            steps = b.node("Cast", b.shape_of("x", 1 if b.options["batch first"] else 0), to=TensorProto.INT32)
            value = b.node("Expand", steps, rows())
        for each in found:
            each["lengths"] = value, of
    return found


STATE_MODES = [
    "none", "none", "none", "zeros", "made zeros", "each", "whole", "turned round", "doubled", "other axes", "held",
    "computed",
]


def build(rng: np.random.Generator) -> Builder:
    """A random flat graph."""
    b = Builder(rng)
    b.options = {
        "states": b.pick(STATE_MODES), "peepholes": b.chance(0.15), "coupled": int(b.chance(0.12)),
        "lengths": "none" if b.reference else b.pick(["none"] * 6 + ["input", "cast", "held", "full"]),
        "batch first": b.chance(0.3),
    }
    size, d, h = int(rng.integers(1, 6)), int(rng.integers(1, 3)), int(rng.integers(1, 6))
    layout = int(b.reference and b.chance(0.8))
    like = Layer("", "", ("", ""), "", d, h, layout)
    t, n = b.time_steps, b.batch
    first = b.options["batch first"]
    axes = ["batch", "time"] if first else ["time", "batch"]
    x = b.input("x", b.random(*((n, t) if first else (t, n)), size), [*axes, size])
    if first != bool(layout):
        x = str(b.node("Transpose", x, perm=[1, 0, 2]))
    if b.chance(0.2):
        x, size = str(b.node("MatMul", x, b.constant(b.random(size, 3)))), 3
    count = int(rng.integers(1, 5))
    given = states_for(b, count, like)
    b.words += [f"{t}x{n} {size}->{h}", b.known, f"opset {b.opset}"]
    b.words += [f"{key}:{value}" for key, value in b.options.items()]
    lower = like
    for k in range(count):
        right = False
        if k:
            right = b.chance(0.65)
            if not right and b.chance(0.2):
                like = Layer("", "", ("", ""), "", d, h + int(b.chance(0.5)), layout)
            x = (joined_rightly if right else joined_wrongly)(b, lower)
            size = run(flat_model(b, [x]), b)[x].shape[-1]
        same = (like.directions, like.hidden_size) == (d, h)
        upper = add_layer(b, x, size, like, **(given[k] if same else {}))
        plain = b.options["states"] in ("none", "zeros", "made zeros", *(() if layout else ("each", "whole"))) and same
        upper.must_join = bool(
            k and right and plain and not upper.odd and not lower.odd and b.known != "rank"
            and b.options["lengths"] in ("none", "input") and (b.words.count("right:slice") == 0 or b.known != "static")
        )
        lower = upper
    b.outputs.append(joined_rightly(b, lower) if b.chance(0.6) else f"{lower.y}_h")
    b.outputs = list(dict.fromkeys(b.outputs))
    return b


# --- models -----------------------------------------------------------------------------------------------------------


def graph_of(b: Builder, nodes: Sequence[Any], outputs: Sequence[str], stored: Sequence[Any], name: str = "g") -> Any:
    """A graph with the inputs of `b`."""
    inputs = [
        helper.make_tensor_value_info(each, helper.np_dtype_to_tensor_dtype(values.dtype), b.axes[each])
        for each, values in b.feeds.items()
    ]
    graph = helper.make_graph(
        list(nodes), name, inputs, [helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in outputs]
    )
    add_stored(graph, stored)
    return graph


def add_stored(graph: Any, stored: Sequence[Any]) -> None:
    """Put arrays into a graph."""
    for each in stored:
        (graph.sparse_initializer if isinstance(each, onnx.SparseTensorProto) else graph.initializer).append(each)


def model_of(b: Builder, graph: Any, functions: Sequence[Any] = ()) -> Any:
    """A model of a graph."""
    imports = [helper.make_opsetid("", b.opset), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


def flat_model(b: Builder, outputs: Sequence[str]) -> Any:
    """The graph as it was made, with these outputs; lengths are no floats."""
    graph = graph_of(b, b.nodes, [], list(b.stored.values()))
    whole = {layer.lengths for layer in b.layers}
    for name in outputs:
        kind = TensorProto.INT32 if name in whole else TensorProto.FLOAT
        graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return model_of(b, graph)


def run(model: Any, b: Builder, feeds: dict[str, Array] | None = None) -> dict[str, Array]:
    """The outputs of a model, by ONNX Runtime or by the reference evaluator."""
    names = [each.name for each in model.graph.output]
    feeds = b.feeds if feeds is None else feeds
    try:
        if b.reference:
            return dict(zip(names, ReferenceEvaluator(model).run(None, feeds), strict=True))
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(names, session.run(None, feeds), strict=True))
    except Exception as error:
        raise NotRunnable(" ".join(str(error).split())[:200]) from error


@dataclass
class Wrapped:
    """An equivalent model with its nodes elsewhere: in bodies, in functions."""

    model: Any
    feeds: dict[str, Array]
    stacked: int = 0  # axes that loops put before the outputs


def wrapped(b: Builder) -> Wrapped:
    """The graph of `b` as it is, or in a body or a function."""
    way = b.pick(["flat"] * 5 + ["if", "if if", "loop", "scan", "function", "function in if", "function twice"])
    b.words.append(f"wrapped:{way}")
    nodes, outputs, stored, feeds = list(b.nodes), list(b.outputs), list(b.stored.values()), dict(b.feeds)
    if outputs == [f"{b.layers[-1].y}_h"] and b.chance(0.5):
        for node in nodes:  # what no one reads need not be put out
            if node.op_type == "LSTM" and node.output[0] == b.layers[-1].y:
                node = nodes[nodes.index(node)]
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                copy.output[0] = ""
                nodes[nodes.index(node)] = copy
    functions: list[Any] = []
    stacked = 0
    for part in way.split(" "):
        if part == "function" or part == "twice":
            nodes, outputs = in_function(b, nodes, outputs, stored, functions)
        elif part == "if":
            nodes, outputs, stored = in_if(b, nodes, outputs, stored, feeds)
        elif part in ("loop", "scan"):
            nodes, outputs, stored = in_loop(b, nodes, outputs, stored, part)
            stacked += 1
    before = dict(b.feeds), dict(b.axes)
    b.feeds, b.axes = feeds, {**b.axes, **{name: [] for name in feeds if name not in b.axes}}
    model = model_of(b, graph_of(b, nodes, outputs, stored), functions)
    b.feeds, b.axes = before
    return Wrapped(model, feeds, stacked)


def in_function(
    b: Builder, nodes: list[Any], outputs: list[str], stored: Sequence[Any], functions: list[Any]
) -> tuple[list[Any], list[str]]:
    """All nodes as a function that is called once. One size may be an attribute of the call."""
    made = {name for node in nodes for name in node.output}
    used = list(dict.fromkeys(name for node in nodes for name in names_in(node) if name and name not in made))
    units, copies = b.layers[0].hidden_size, []
    referred = b.chance(0.5) and not functions
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for each in copy.attribute:
            if referred and each.name == "hidden_size" and each.i == units:
                each.ClearField("i")
                each.ref_attr_name = "units"
        copies.append(copy)
    name = f"Model{len(functions)}"
    imports = [helper.make_opsetid("", b.opset), helper.make_opsetid("local", 1)]
    functions.append(helper.make_function("local", name, used, outputs, copies, imports, ["units"] if referred else []))
    called = [b.name("called") for _ in outputs]
    settings = {"units": units} if referred else {}
    call = helper.make_node(name, used, called, domain="local", name=b.pick(["", "net"]), **settings)
    return [call], called


def names_in(node: Any) -> list[str]:
    """The names that a node reads, itself or in its bodies."""
    found = list(node.input)
    for each in node.attribute:
        if each.HasField("g"):
            own = {name for inner in each.g.node for name in inner.output} | {value.name for value in each.g.input}
            found += [name for inner in each.g.node for name in names_in(inner) if name not in own]
    return found


def in_if(
    b: Builder, nodes: list[Any], outputs: list[str], stored: list[Any], feeds: dict[str, Array]
) -> tuple[list[Any], list[str], list[Any]]:
    """All nodes in a branch that is taken; the other one gives zeros."""
    inside = [each for each in stored if b.chance(0.5)]
    outside = [each for each in stored if not any(each is other for other in inside)]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    body = helper.make_graph(nodes, "taken", [], results)
    add_stored(body, inside)
    others = [b.name("zero") for _ in outputs]
    zero = numpy_helper.from_array(np.zeros(3, np.float32))
    zeros = [helper.make_node("Constant", [], [name], value=zero) for name in others]
    other = helper.make_graph(
        zeros, "other", [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in others]
    )
    condition = b.name("condition")
    if b.chance(0.5):
        feeds[condition] = np.array(True)
    else:
        outside.append(numpy_helper.from_array(np.array(True), condition))
    found = [b.name("of_if") for _ in outputs]
    node = helper.make_node("If", [condition], found, then_branch=body, else_branch=other, name=b.pick(["", "branch"]))
    return [node], found, outside


def in_loop(
    b: Builder, nodes: list[Any], outputs: list[str], stored: list[Any], kind: str
) -> tuple[list[Any], list[str], list[Any]]:
    """All nodes in the body of a Loop or Scan that runs once."""
    found = [b.name(f"of_{kind}") for _ in outputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    step, go_on, gone_on = b.name("step"), b.name("go_on"), b.name("gone_on")
    if kind == "scan":
        inputs = [helper.make_tensor_value_info(step, TensorProto.FLOAT, [])]
        body = helper.make_graph(nodes, "body", inputs, results)
        once = numpy_helper.from_array(np.zeros(1, np.float32), b.name("once"))
        node = helper.make_node("Scan", [once.name], found, body=body, num_scan_inputs=1, name=b.pick(["", "scan"]))
        return [node], found, [*stored, once]
    inputs = [
        helper.make_tensor_value_info(step, TensorProto.INT64, []),
        helper.make_tensor_value_info(go_on, TensorProto.BOOL, []),
    ]
    results = [helper.make_tensor_value_info(gone_on, TensorProto.BOOL, []), *results]
    body = helper.make_graph([*nodes, helper.make_node("Identity", [go_on], [gone_on])], "body", inputs, results)
    once = numpy_helper.from_array(np.array(1), b.name("once"))
    node = helper.make_node("Loop", [once.name, ""], found, body=body, name=b.pick(["", "loop"]))
    return [node], found, [*stored, once]


# --- checking ---------------------------------------------------------------------------------------------------------


def check(b: Builder, counts: Counter[str]) -> None:
    """Read a graph's LSTMs and compare them with the graph's outputs. Raises Failure."""
    truth_names = dict.fromkeys(
        name for layer in b.layers for name in (layer.x, layer.y, layer.lengths, *layer.states) if name
    )
    fed = {name for name in truth_names if name in b.feeds or name in b.stored}
    results = run(flat_model(b, [name for name in (*truth_names, *b.outputs) if name not in fed]), b)
    stored = {name: numpy_helper.to_array(b.stored[name]) for name in fed if name in b.stored}
    truth = {**results, **b.feeds, **stored}
    made = wrapped(b)
    if made.model.graph.node[0].op_type in ("If", "Loop", "Scan") or made.model.functions:
        whole = list(run(made.model, b, made.feeds).values())
        for name, values in zip(b.outputs, whole, strict=True):
            close(values[(0,) * made.stacked], truth[name], f"the wrapped graph gives another {name}")
    by_output = {layer.y: layer for layer in b.layers}
    nodes = onnx_nodes.lstm_nodes(Graph(made.model))
    if len(nodes) != len(b.layers):
        raise Failure(f"{len(nodes)} of {len(b.layers)} nodes were found")
    stacks = onnx_nodes.stacks(nodes)
    names = [stack[0].name for stack in stacks]
    if "" in names or len(set(names)) < len(names):
        raise Failure(f"names must be there and differ: {names}")
    for stack in stacks:
        outputs = [node.node.proto.output for node in stack]
        layers = [by_output[each[0] or each[1].removesuffix("_h")] for each in outputs]
        counts["joined"] += len(layers) - 1
        if any(layer.read_elsewhere for layer in layers[:-1]):
            raise Failure(f"{stack[0].name} was joined, though the outputs of a layer are read elsewhere")
        hold(b, made.model, stack[0].name, layers, truth, counts)
        if layers[0].must_join and "scan" not in b.words[-1] and "loop" not in b.words[-1]:
            raise Failure(f"{stack[0].name} stands alone, though it goes on a stack")


def hold(b: Builder, model: Any, name: str, layers: list[Layer], truth: dict[str, Array], counts: Counter[str]) -> None:
    """Compare one LSTM with the graph, given the caller's states, and also when read without its states."""
    first, directions = layers[0], layers[0].directions
    own = {}
    for k, key in enumerate(STATES):
        batch = truth[first.x].shape[0 if first.layout else 1]
        zeros = np.zeros((directions, batch, first.hidden_size), np.float32)
        given = [truth[layer.states[k]] if layer.states[k] else None for layer in layers]
        parts = [zeros if each is None else each.swapaxes(0, 1) if first.layout else each for each in given]
        if any(part.shape != zeros.shape for part in parts):
            raise NotRunnable("the reference evaluator takes states of another batch")
        own[key] = np.concatenate(parts)
    lengths = truth[first.lengths] if first.lengths else None
    steps = truth[first.x].shape[1 if first.layout else 0]
    try:
        layer = lstmfast.onnx.load(model, name=name)
    except ValueError as error:
        said(error, name, counts)
        odd = [layer.odd for layer in layers if layer.odd]
        if first.layout and b.options["states"] in ("each", "whole"):
            odd.append("a caller's states have other axes")
        if (
            not odd
            and b.options["states"] in ("none", "zeros", "made zeros", "each", "whole")
            and (b.options["lengths"] in ("none", "input"))
            and (b.options["states"] != "whole" or b.known != "rank")
            and "loop" not in b.words[-1]
        ):
            raise Failure(f"{name} was refused though nothing is odd: {error}") from error
    else:
        counts["read"] += 1
        state = None
        if any(values.any() for values in own.values()):
            state = tuple(callers(b, layers, key, own[key]) for key in STATES)
        rows = None
        if lengths is not None and (lengths < steps).any():
            if first.user["lengths"] is None:
                raise Failure(f"{name} was read though its lengths are not the caller's")
            rows = b.feeds[first.user["lengths"]]
        compare(layer, layers, truth, state, rows, f"{name} gives other numbers")
    try:
        layer = lstmfast.onnx.load(model, name=name, weights_only=True)
    except ValueError as error:
        said(error, name, counts)
    else:
        compare(layer, layers, truth, tuple(own.values()), lengths, f"{name} without its states gives other numbers")


def callers(b: Builder, layers: list[Layer], key: str, own: Array) -> Array:
    """What a caller gives for a state: the graph's input if it has the shape, else what he puts together."""
    if not own.any():
        return own
    inputs = [layer.user[key] for layer in layers]
    if None in inputs:
        raise Failure(f"an LSTM was read though its {key} is not the caller's")
    for name in inputs:
        if b.feeds[name].shape == own.shape:
            return b.feeds[name]
    return own


def said(error: ValueError, name: str, counts: Counter[str]) -> None:
    """A refusal: one sentence that names the node."""
    counts["refused"] += 1
    if "\n" in str(error) or len(str(error)) > 400 or "LSTM node" not in str(error):
        raise Failure(f"the refusal of {name} is no sentence that names it: {error}") from error


def compare(
    layer: Any, layers: list[Layer], truth: dict[str, Array], state: Any, lengths: Array | None, words: str
) -> None:
    """Run a layer on the input of its first node and compare with the output of its last one."""
    layout, x, y = layers[0].layout, truth[layers[0].x], truth[layers[-1].y]
    if layer.batch_first != bool(layout):
        raise Failure(f"{words}: its axes are swapped")
    h, _ = layer(np.ascontiguousarray(x), state, lengths=lengths)
    wanted = y if layout else y.transpose(0, 2, 1, 3)
    close(h, wanted.reshape(*wanted.shape[:2], -1), words)


def close(values: Array, wanted: Array, words: str) -> None:
    """Raise Failure if values differ from the expected ones."""
    if values.shape != wanted.shape:
        raise Failure(f"{words}: shape {values.shape} for {wanted.shape}")
    if not np.allclose(values, wanted, **tolerances.states("float32", 64)):
        raise Failure(f"{words}: they differ by {np.abs(values - wanted).max():g}")


def try_one(seed: int, number: int, counts: Counter[str]) -> None:
    """Make and check the graph of a number. Raises Failure with its nodes and how to make it again."""
    b = None
    try:
        b = build(np.random.default_rng([seed, number]))
        check(b, counts)
    except NotRunnable as error:
        counts["not runnable"] += 1
        counts[f"  {error}"] += 1
    except Exception as error:
        words = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        raise Failure(
            f"{words}\nagain: python tests/support/fuzz_onnx.py --seed {seed} --first {number} --graphs 1\n"
            f"graph: {'; '.join(b.words) if b else ''}\n{text_of(b) if b else ''}"
        ) from error


def text_of(b: Builder) -> str:
    """The nodes of a graph, a line each, weights left out."""
    lines = [f"  {', '.join(node.output)} = {node.op_type}({', '.join(node.input)})" for node in b.nodes]
    return "\n".join([*lines, f"  outputs {', '.join(b.outputs)}"])


def fuzz(seed: int, graphs: int, first: int = 0, seconds: float | None = None) -> Counter[str]:
    """Try graphs up to a time limit. Returns counts; raises Failure at the first that is read wrongly."""
    counts: Counter[str] = Counter()
    end = None if seconds is None else time.monotonic() + seconds
    for number in range(first, first + graphs):
        if end is not None and time.monotonic() > end:
            break
        try_one(seed, number, counts)
        counts["graphs"] += 1
    return counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Random ONNX graphs around LSTM nodes, held against ONNX Runtime.")
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--first", type=int, default=0, help="number of the first graph")
    settings = parser.parse_args()
    print(f"seed {settings.seed}", flush=True)
    try:
        counts = fuzz(settings.seed, settings.graphs, settings.first)
    except Failure as error:
        sys.exit(str(error))
    print(", ".join(f"{count} {what}" for what, count in counts.items() if not what.startswith(" ")))
    for what, count in counts.items():
        if what.startswith(" "):
            print(count, what)


if __name__ == "__main__":
    main()
