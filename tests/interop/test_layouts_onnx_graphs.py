"""LSTM nodes in the graph around them: what is joined, what stays apart, what is worked out, what is refused by name.

Numbers are held against ONNX Runtime; it refuses layout=1, which is held against the same node with the axes swapped.
What else is read and written is `test_onnx`'s affair.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lstmfast as lf
from support import tolerances

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import lstmfast.onnx  # noqa: E402  it imports onnx

Array = npt.NDArray[Any]

TIME_STEPS, BATCH, INPUT_SIZE, HIDDEN_SIZE = 6, 2, 3, 4
CLOSE = tolerances.states("float32", 4 * HIDDEN_SIZE)


def weights(
    rng: np.random.Generator, suffix: str = "", input_size: int = INPUT_SIZE, directions: int = 1
) -> dict[str, Array]:
    """Random W, R and B, each with a suffix."""
    h = HIDDEN_SIZE
    shapes = {"W": (directions, 4 * h, input_size), "R": (directions, 4 * h, h), "B": (directions, 8 * h)}
    return {f"{name}{suffix}": rng.standard_normal(shape).astype(np.float32) / 2 for name, shape in shapes.items()}


def lstm(stem: str, x: str = "x", suffix: str = "", *others: str, y: str | None = None, **attributes: Any) -> Any:
    """An LSTM node that reads W, R and B with a suffix and puts out {stem}_y, {stem}_h, {stem}_c."""
    outputs = [f"{stem}_y" if y is None else y, f"{stem}_h", f"{stem}_c"]
    inputs = [x, f"W{suffix}", f"R{suffix}", f"B{suffix}", *others]
    return helper.make_node("LSTM", inputs, outputs, **{"name": stem, "hidden_size": HIDDEN_SIZE, **attributes})


def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
    """A node with one output."""
    return helper.make_node(kind, inputs, [output], **attributes)


def model_of(
    nodes: Sequence[Any],
    stored: dict[str, Any],
    outputs: Sequence[str],
    x: Sequence[int | str] | None = ("time", "batch", INPUT_SIZE),
    *,
    opset: int = 17,
    inputs: dict[str, tuple[Any, Sequence[int | str]]] | None = None,
    functions: Sequence[Any] = (),
) -> Any:
    """A model. inputs: besides x, by name, type and axes."""
    given = {"x": (TensorProto.FLOAT, x), **(inputs or {})}
    graph = helper.make_graph(
        list(nodes), "graph", [helper.make_tensor_value_info(name, *each) for name, each in given.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items() if value is not None],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


def run(model: Any, feeds: dict[str, Array]) -> list[Array]:
    """A model's outputs, by ONNX Runtime."""
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def sequence(rng: np.random.Generator, *shape: int) -> Array:
    """A random x."""
    return rng.standard_normal(shape or (TIME_STEPS, BATCH, INPUT_SIZE)).astype(np.float32)


AXES = {"one": np.array([1]), "zero": np.array([0])}


def two_nodes(
    rng: np.random.Generator,
    between: Sequence[Any],
    stored: dict[str, Any] | None = None,
    *,
    directions: int = 1,
    width: int | None = None,
    outputs: Sequence[str] = (),
    **settings: Any,
) -> Any:
    """Two LSTM nodes, `low` and `high`, and nodes from low_y to `between` in the middle."""
    kind = {"direction": "bidirectional"} if directions == 2 else {}
    width = directions * HIDDEN_SIZE if width is None else width
    held = weights(rng, "", INPUT_SIZE, directions) | weights(rng, "2", width, directions) | AXES | (stored or {})
    nodes = [lstm("low", **kind), *between, lstm("high", "between", "2", **kind)]
    return model_of(nodes, held, ["high_y", *outputs], **settings)


# --- axes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_node_with_layout_1_is_a_layer_with_the_batch_first(direction: str, rng: np.random.Generator) -> None:
    directions = 2 if direction == "bidirectional" else 1
    stored = weights(rng, directions=directions)
    layer = lstmfast.onnx.load(model_of([lstm("lstm", layout=1, direction=direction)], stored, ["lstm_y"]))
    x = sequence(rng, BATCH, TIME_STEPS, INPUT_SIZE)
    [y] = run(model_of([lstm("lstm", direction=direction)], stored, ["lstm_y"]), {"x": x.swapaxes(0, 1)})
    assert layer.batch_first
    np.testing.assert_allclose(layer(x)[0], y.transpose(2, 0, 1, 3).reshape(BATCH, TIME_STEPS, -1), **CLOSE)


def test_the_axes_of_a_layer_may_still_be_chosen_and_its_weights_say_what_they_are(rng: np.random.Generator) -> None:
    model = model_of([lstm("lstm", layout=1)], weights(rng), ["lstm_y"])
    assert not lstmfast.onnx.load(model, batch_first=False).batch_first
    assert "LSTM node lstm has layout=1: a layer of it needs batch_first=True." in (
        lstmfast.onnx.read_weights(model)["lstm"].assumptions
    )


@pytest.mark.parametrize("sizes", [("time", "batch"), (3, 3), (1, 1)], ids=["free", "square", "one"])
def test_lstms_over_different_axes_are_two(sizes: tuple[int | str, int | str], rng: np.random.Generator) -> None:
    between = [node("Squeeze", ["low_y", "one"], "s"), node("Transpose", ["s"], "between", perm=[1, 0, 2])]
    model = two_nodes(rng, between, x=(*sizes, INPUT_SIZE), outputs=["between"])
    x = sequence(rng, *(each if isinstance(each, int) else 3 for each in sizes), INPUT_SIZE)
    high, middle = run(model, {"x": x})
    assert list(lstmfast.onnx.read_weights(model)) == ["low", "high"]
    np.testing.assert_allclose(lstmfast.onnx.load(model, name="low")(x)[0], middle.swapaxes(0, 1), **CLOSE)
    np.testing.assert_allclose(lstmfast.onnx.load(model, name="high")(middle)[0], high[:, 0], **CLOSE)


def test_a_pyramid_is_as_many_lstms_as_it_has_steps(rng: np.random.Generator) -> None:
    between = [
        node("Transpose", ["low_y"], "t", perm=[2, 0, 1, 3]), node("Reshape", ["t", "pairs"], "r"),
        node("Transpose", ["r"], "between", perm=[1, 0, 2]),
    ]
    pairs = np.array([0, -1, 4 * HIDDEN_SIZE])
    model = two_nodes(rng, between, {"pairs": pairs}, directions=2, width=4 * HIDDEN_SIZE)
    found = lstmfast.onnx.read_weights(model)
    assert {name: each.input_size for name, each in found.items()} == {"low": INPUT_SIZE, "high": 4 * HIDDEN_SIZE}


# --- names ------------------------------------------------------------------------------------------------------------


def test_nodes_without_names_are_called_as_their_first_output(rng: np.random.Generator, tmp_path: Path) -> None:
    nodes = [lstm("first", y="", name=""), lstm("second", suffix="2", y="", name="")]
    model = model_of(nodes, weights(rng) | weights(rng, "2"), ["first_h", "second_h"])
    onnx.save(model, tmp_path / "w.onnx")
    x = sequence(rng)
    for name, wanted in zip(["first_h", "second_h"], run(model, {"x": x}), strict=True):
        np.testing.assert_allclose(lstmfast.onnx.load(model, name=name)(x)[1][0], wanted, **CLOSE)
        np.testing.assert_array_equal(
            lf.layouts.load(tmp_path / "w.onnx", name=name).cells[0].kernel,
            lstmfast.onnx.read_weights(model)[name].cells[0].kernel,
        )
    with pytest.raises(ValueError, match="name must choose one of the LSTMs in the graph: first_h, second_h"):
        lstmfast.onnx.load(model)


def test_nodes_of_one_name_are_numbered(rng: np.random.Generator) -> None:
    nodes = [lstm(name, name=given) for name, given in (("a", "lstm"), ("b", "lstm_2"), ("c", "lstm"), ("d", "lstm"))]
    model = model_of(nodes, weights(rng), ["a_y", "b_y", "c_y", "d_y"])
    assert list(lstmfast.onnx.read_weights(model)) == ["lstm", "lstm_2", "lstm_3", "lstm_4"]


# --- joined, or not ---------------------------------------------------------------------------------------------------

JOINED_RIGHTLY: dict[str, tuple[int, list[Any], dict[str, Any]]] = {
    "squeeze": (1, [node("Squeeze", ["low_y", "one"], "between")], {}),
    "nothing but what changes nothing": (
        1,
        [
            node("Squeeze", ["low_y", "one"], "a"), node("Identity", ["a"], "b"), node("Dropout", ["b"], "c"),
            node("Cast", ["c"], "d", to=TensorProto.FLOAT), node("Transpose", ["d"], "e", perm=[1, 0, 2]),
            node("Transpose", ["e"], "f", perm=[1, 0, 2]), node("Cast", ["f"], "g", to=TensorProto.DOUBLE),
            node("Cast", ["g"], "between", to=TensorProto.FLOAT),
        ],
        {},
    ),
    "dropout that is off": (
        1,
        [node("Squeeze", ["low_y", "one"], "a"), node("Dropout", ["a", "rate", "off"], "between")],
        {"rate": np.float32(0.5), "off": np.array(False)},
    ),
    "transpose and reshape": (
        2,
        [node("Transpose", ["low_y"], "t", perm=[0, 2, 1, 3]), node("Reshape", ["t", "shape"], "between")],
        {"shape": np.array([0, 0, -1])},
    ),
    "a shape of what comes in": (
        2,
        [
            node("Transpose", ["low_y"], "t", perm=[0, 2, 1, 3]), node("Shape", ["x"], "all"),
            node("Slice", ["all", "zero", "two"], "first"), node("Concat", ["first", "rest"], "shape", axis=0),
            node("Reshape", ["t", "shape"], "between"),
        ],
        {"two": np.array([2]), "rest": np.array([-1])},
    ),
    "direction by direction": (
        2,
        [
            helper.make_node("Split", ["low_y"], ["f", "b"], axis=1), node("Squeeze", ["f", "one"], "f3"),
            node("Squeeze", ["b", "one"], "b3"), node("Concat", ["f3", "b3"], "between", axis=2),
        ],
        {},
    ),
    "a slice to the end": (
        1,
        [
            node("Squeeze", ["low_y", "one"], "a"), node("Slice", ["a", "zero", "end", "zero"], "between"),
        ],
        {"end": np.array([2**63 - 1])},
    ),
}


@pytest.mark.parametrize("static", [False, True], ids=["free", "fixed"])
@pytest.mark.parametrize("way", JOINED_RIGHTLY)
def test_nodes_of_which_one_reads_the_other_as_it_is_are_a_stack(
    way: str, static: bool, rng: np.random.Generator
) -> None:
    directions, between, stored = JOINED_RIGHTLY[way]
    shape = (TIME_STEPS, BATCH, INPUT_SIZE) if static else ("time", "batch", INPUT_SIZE)
    model = two_nodes(rng, between, stored, directions=directions, x=shape)
    layer, x = lstmfast.onnx.load(model), sequence(rng)
    [y] = run(model, {"x": x})
    assert layer.num_layers == 2
    np.testing.assert_allclose(layer(x)[0], y.swapaxes(1, 2).reshape(TIME_STEPS, BATCH, -1), **CLOSE)


def test_a_shape_that_was_fixed_by_the_exporter_joins_what_the_graph_itself_fixes(rng: np.random.Generator) -> None:
    between = [node("Reshape", ["low_y", "shape"], "between")]
    stored = {"shape": np.array([TIME_STEPS, 1, HIDDEN_SIZE])}
    assert lstmfast.onnx.load(two_nodes(rng, between, stored, x=(TIME_STEPS, 1, INPUT_SIZE))).num_layers == 2
    free = two_nodes(rng, between, stored, x=("time", 1, INPUT_SIZE))
    assert list(lstmfast.onnx.read_weights(free)) == ["low", "high"]
    rows = {"shape": np.array([-1, 1, HIDDEN_SIZE])}
    assert lstmfast.onnx.load(two_nodes(rng, between, rows, x=("time", 1, INPUT_SIZE))).num_layers == 2
    assert len(lstmfast.onnx.read_weights(two_nodes(rng, between, rows))) == 2


def after_squeeze(*nodes: Any) -> list[Any]:
    """Nodes that read the outputs of `low` as the layer above would."""
    return [node("Squeeze", ["low_y", "one"], "a"), *nodes]


APART: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "relu": (after_squeeze(node("Relu", ["a"], "between")), {}),
    "rounding": (
        after_squeeze(node("Cast", ["a"], "h", to=TensorProto.FLOAT16), node("Cast", ["h"], "between", to=1)), {},
    ),
    "a residual": (after_squeeze(node("Sigmoid", ["a"], "s"), node("Add", ["a", "s"], "between")), {}),
    "a cut of long sequences": (
        after_squeeze(node("Slice", ["a", "zero", "end", "zero"], "between")), {"end": np.array([1000])},
    ),
    "time turned round": (
        after_squeeze(node("Slice", ["a", "last", "before", "zero", "step"], "between")),
        {"last": np.array([-1]), "before": np.array([-(2**31)]), "step": np.array([-1])},
    ),
    "rows of all times in one": (
        after_squeeze(node("Reshape", ["a", "shape"], "between")), {"shape": np.array([-1, 1, HIDDEN_SIZE])},
    ),
    "an order of rows": (
        after_squeeze(node("Gather", ["a", "order"], "between", axis=1)), {"order": np.array([1, 0])},
    ),
    "final states": ([node("Identity", ["low_h"], "between")], {}),
}


@pytest.mark.parametrize("way", APART)
def test_nodes_with_anything_between_them_are_two(way: str, rng: np.random.Generator) -> None:
    between, stored = APART[way]
    assert list(lstmfast.onnx.read_weights(two_nodes(rng, between, stored))) == ["low", "high"]


@pytest.mark.parametrize("perm", [[0, 2, 3, 1], None], ids=["interleaved", "the other first"])
def test_directions_in_another_order_are_no_stack(perm: list[int] | None, rng: np.random.Generator) -> None:
    turn = [node("Transpose", ["low_y"], "t", perm=perm)] if perm else [
        node("Gather", ["low_y", "order"], "g", axis=1), node("Transpose", ["g"], "t", perm=[0, 2, 1, 3]),
    ]
    stored = {"order": np.array([1, 0]), "shape": np.array([0, 0, -1])}
    model = two_nodes(rng, [*turn, node("Reshape", ["t", "shape"], "between")], stored, directions=2)
    assert list(lstmfast.onnx.read_weights(model)) == ["low", "high"]


@pytest.mark.parametrize("read", ["low_y", "between"])
@pytest.mark.parametrize("by", ["the graph", "a node", "a body"])
def test_outputs_that_are_read_elsewhere_end_a_stack(read: str, by: str, rng: np.random.Generator) -> None:
    between, outputs = [node("Squeeze", ["low_y", "one"], "between")], [read]
    if by == "a node":
        between, outputs = [*between, node("Exp", [read], "other")], ["other"]
    if by == "a body":
        body = helper.make_graph(
            [node("Exp", [read], "inner")], "body", [], [helper.make_tensor_value_info("inner", 1, None)]
        )
        between.append(node("If", ["yes"], "other", then_branch=body, else_branch=body))
        outputs = ["other"]
    model = two_nodes(rng, between, {"yes": np.array(True)} if by == "a body" else {}, outputs=outputs)
    assert list(lstmfast.onnx.read_weights(model)) == ["low", "high"]


def test_final_states_and_shapes_may_be_read_elsewhere(rng: np.random.Generator) -> None:
    between = [
        node("Squeeze", ["low_y", "one"], "between"),
        node("Transpose", ["between"], "turned", perm=[1, 0, 2]),
        node("Shape", ["turned"], "s"),
        node("Cast", ["s"], "sizes", to=TensorProto.FLOAT),
    ]
    model = two_nodes(rng, between, outputs=["low_h", "low_c", "sizes"])
    assert lstmfast.onnx.load(model).num_layers == 2


@pytest.mark.parametrize(
    "upper", [{"input_forget": 1}, {"clip": 1.0}, {"direction": "reverse"}, {"activations": ["Relu"] * 3}], ids=str
)
def test_nodes_that_are_not_alike_are_two_and_the_plain_one_is_read(
    upper: dict[str, Any], rng: np.random.Generator
) -> None:
    nodes = [lstm("low"), node("Squeeze", ["low_y", "one"], "between"), lstm("high", "between", "2", **upper)]
    model = model_of(nodes, weights(rng) | weights(rng, "2", HIDDEN_SIZE) | AXES, ["high_y"])
    assert lstmfast.onnx.load(model, name="low").num_layers == 1


# --- states and lengths -----------------------------------------------------------------------------------------------

STATE = (1, BATCH, HIDDEN_SIZE)


def with_states(rng: np.random.Generator, before: Sequence[Any], stored: dict[str, Any], **settings: Any) -> Any:
    """One node that starts from `h` and `c`."""
    nodes = [*before, lstm("lstm", "x", "", "", "h", "c")]
    return model_of(nodes, weights(rng) | stored, ["lstm_y"], **settings)


def test_states_of_zeros_are_no_states(rng: np.random.Generator) -> None:
    before = [
        node("Shape", ["x"], "all"), node("Gather", ["all", "one"], "rows"),
        node("Concat", ["one", "rows", "units"], "shape", axis=0), node("ConstantOfShape", ["shape"], "h"),
        node("Expand", ["nothing", "shape"], "c"),
    ]
    model = with_states(rng, before, AXES | {"units": np.array([HIDDEN_SIZE]), "nothing": np.float32(0)})
    x = sequence(rng)
    np.testing.assert_allclose(lstmfast.onnx.load(model)(x)[0], run(model, {"x": x})[0][:, 0], **CLOSE)


def test_states_that_are_inputs_of_the_graph_are_the_callers(rng: np.random.Generator) -> None:
    inputs = {name: (TensorProto.FLOAT, [1, "batch", HIDDEN_SIZE]) for name in "hc"}
    model, x = with_states(rng, [], {}, inputs=inputs), sequence(rng)
    h, c = sequence(rng, *STATE), sequence(rng, *STATE)
    np.testing.assert_allclose(
        lstmfast.onnx.load(model)(x, (h, c))[0], run(model, {"x": x, "h": h, "c": c})[0][:, 0], **CLOSE
    )


@pytest.mark.parametrize("learnt", ["stored", "spread over the batch", "made of an input"])
def test_other_states_are_refused_and_left_out_where_that_is_asked_for(learnt: str, rng: np.random.Generator) -> None:
    h, c = sequence(rng, *STATE), sequence(rng, *STATE)
    before: list[Any] = []
    stored: dict[str, Any] = {"c": c, "h": h}
    if learnt == "spread over the batch":
        before = [node("Expand", ["h1", "shape"], "h")]
        stored = {"c": c, "h1": h[:, :1], "shape": np.array(STATE)}
        h = np.repeat(h[:, :1], BATCH, 1)
    inputs = {}
    if learnt == "made of an input":
        before, stored = [node("Tanh", ["given"], "h")], {"c": c}
        inputs = {"given": (TensorProto.FLOAT, STATE)}
    model, x = with_states(rng, before, stored, inputs=inputs), sequence(rng)
    feeds = {"x": x} | ({"given": np.arctanh(np.tanh(h))} if inputs else {})
    h = np.tanh(h) if inputs else h
    with pytest.raises(ValueError, match=r"LSTM node lstm has initial states that the (file contains|graph computes)"):
        lstmfast.onnx.load(model)
    layer = lstmfast.onnx.load(model, weights_only=True)
    np.testing.assert_allclose(layer(x, (h, c))[0], run(model, feeds)[0][:, 0], **CLOSE)
    [words] = lstmfast.onnx.read_weights(model, weights_only=True)["lstm"].assumptions
    assert words.startswith("LSTM node lstm has initial states that the")


@pytest.mark.parametrize(("order", "joined"), [((0, 1), True), ((1, 0), False)], ids=["in order", "turned round"])
def test_states_of_a_stack_are_parts_of_an_input_in_the_order_of_its_layers(
    order: tuple[int, int], joined: bool, rng: np.random.Generator
) -> None:
    nodes = [
        helper.make_node("Split", ["states"], ["s0", "s1"], axis=0), lstm("low", "x", "", "", f"s{order[0]}"),
        node("Squeeze", ["low_y", "one"], "between"), lstm("high", "between", "2", "", f"s{order[1]}"),
    ]
    states = {"states": (TensorProto.FLOAT, [2, "batch", HIDDEN_SIZE])}
    held = weights(rng) | weights(rng, "2", HIDDEN_SIZE) | AXES
    model = model_of(nodes, held, ["high_y"], inputs=states)
    assert list(lstmfast.onnx.read_weights(model)) == (["low"] if joined else ["low", "high"])
    if joined:
        x, h = sequence(rng), sequence(rng, 2, BATCH, HIDDEN_SIZE)
        layer = lstmfast.onnx.load(model)
        np.testing.assert_allclose(
            layer(x, (h, np.zeros_like(h)))[0], run(model, {"x": x, "states": h})[0][:, 0], **CLOSE
        )


def test_states_with_other_axes_than_ours_are_refused(rng: np.random.Generator) -> None:
    states = {"h": (TensorProto.FLOAT, ["batch", 2, HIDDEN_SIZE])}
    nodes = [lstm("lstm", "x", "", "", "h", direction="bidirectional", layout=1)]
    model = model_of(nodes, weights(rng, directions=2), ["lstm_y"], inputs=states)
    with pytest.raises(ValueError, match="LSTM node lstm has initial states that the graph computes or rearranges"):
        lstmfast.onnx.load(model)


@pytest.mark.parametrize("cast", [False, True], ids=["int32", "int64"])
def test_lengths_that_are_an_input_of_the_graph_are_the_callers(cast: bool, rng: np.random.Generator) -> None:
    given = {"given": (TensorProto.INT64 if cast else TensorProto.INT32, ["batch"])}
    nodes = [node("Cast", ["given"], "n", to=TensorProto.INT32), lstm("lstm", "x", "", "n")]
    model = model_of(nodes if cast else [lstm("lstm", "x", "", "given")], weights(rng), ["lstm_y"], inputs=given)
    x, lengths = sequence(rng), np.array([TIME_STEPS, 2], np.int64 if cast else np.int32)
    np.testing.assert_allclose(
        lstmfast.onnx.load(model)(x, lengths=lengths)[0], run(model, {"x": x, "given": lengths})[0][:, 0], **CLOSE
    )


def test_lengths_in_the_file_are_refused_unless_they_are_those_of_whole_sequences(rng: np.random.Generator) -> None:
    def model(*lengths: int) -> Any:
        stored = weights(rng) | {"n": np.array(lengths, np.int32)}
        return model_of([lstm("lstm", "x", "", "n")], stored, ["lstm_y"], (TIME_STEPS, BATCH, INPUT_SIZE))

    assert lstmfast.onnx.load(model(TIME_STEPS, TIME_STEPS)).num_layers == 1
    with pytest.raises(ValueError, match="LSTM node lstm has lengths of its rows that the file contains"):
        lstmfast.onnx.load(model(TIME_STEPS, 2))
    assert lstmfast.onnx.load(model(TIME_STEPS, 2), weights_only=True).num_layers == 1


# --- bodies and functions ---------------------------------------------------------------------------------------------


def body_of(nodes: Sequence[Any], output: str, inputs: Sequence[Any] = (), more: Sequence[Any] = ()) -> Any:
    """A body with one output of floats, behind `more`."""
    return helper.make_graph(
        list(nodes), "body", list(inputs), [*more, helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    )


def test_both_branches_of_an_if_are_looked_through(rng: np.random.Generator) -> None:
    branches = {
        f"{side}_branch": body_of([lstm(side, suffix=suffix, name=name)], f"{side}_h")
        for side, suffix, name in (("then", "", "/net/lstm"), ("else", "2", ""))
    }
    nodes = [node("If", ["is16k"], "out", name="rate", **branches)]
    inputs = {"is16k": (TensorProto.BOOL, [])}
    model, x = model_of(nodes, weights(rng) | weights(rng, "2"), ["out"], inputs=inputs), sequence(rng)
    assert set(lstmfast.onnx.read_weights(model)) == {"rate/then_branch/net/lstm", "rate/else_branch/else_y"}
    for name, choice in (("rate/then_branch/net/lstm", True), ("rate/else_branch/else_y", False)):
        [h] = run(model, {"x": x, "is16k": np.array(choice)})
        np.testing.assert_allclose(lstmfast.onnx.load(model, name=name)(x)[1][0], h, **CLOSE)


def test_a_stack_in_the_body_of_a_loop_is_read_with_weights_from_outside(rng: np.random.Generator) -> None:
    values = helper.make_tensor_value_info
    inside = [
        lstm("low", "x", "", "", "state"), node("Squeeze", ["low_y", "one"], "between"),
        lstm("high", "between", "2"), node("Identity", ["go"], "on"), node("Identity", ["low_h"], "next"),
    ]
    carried = values("state", TensorProto.FLOAT, None)
    inputs = [values("step", TensorProto.INT64, []), values("go", TensorProto.BOOL, []), carried]
    body = body_of(inside, "high_y", inputs, [values("on", TensorProto.BOOL, []), values("next", 1, None)])
    loop = helper.make_node("Loop", ["once", "", "begin"], ["end", "out"], body=body)
    stored = weights(rng) | weights(rng, "2", HIDDEN_SIZE) | AXES | {"once": np.array(1)}
    begin = {"begin": (TensorProto.FLOAT, [1, "batch", HIDDEN_SIZE])}
    model = model_of([loop], stored, ["out"], inputs=begin)
    x, h = sequence(rng), sequence(rng, *STATE)
    [y] = run(model, {"x": x, "begin": h})
    assert list(lstmfast.onnx.read_weights(model)) == ["Loop_0/body/low", "Loop_0/body/high"]  # one starts from zeros
    low = lstmfast.onnx.load(model, name="Loop_0/body/low")
    high = lstmfast.onnx.load(model, name="Loop_0/body/high")
    np.testing.assert_allclose(high(low(x, (h, np.zeros_like(h)))[0])[0], y[0, :, 0], **CLOSE)


def test_nodes_in_functions_are_found_where_they_are_called_and_joined_across_them(rng: np.random.Generator) -> None:
    inside = [lstm("lstm", "X"), node("Squeeze", ["lstm_y", "one"], "Y")]
    for attribute in inside[0].attribute:
        if attribute.name == "hidden_size":
            attribute.ClearField("i")
            attribute.ref_attr_name = "units"
    function = helper.make_function(
        "local", "Layer", ["X", "W", "R", "B", "one"], ["Y"], inside, [helper.make_opsetid("", 17)], ["units"]
    )
    calls = [
        helper.make_node("Layer", [x, *(f"{letter}{suffix}" for letter in "WRB"), "one"], [y], domain="local",
                         name=name, units=HIDDEN_SIZE)
        for x, suffix, y, name in (("x", "", "middle", "first"), ("middle", "2", "out", ""))
    ]
    model = model_of(calls, weights(rng) | weights(rng, "2", HIDDEN_SIZE) | AXES, ["out"], functions=[function])
    [(name, found)] = lstmfast.onnx.read_weights(model).items()
    x = sequence(rng)
    assert (name, found.num_layers) == ("first/lstm", 2)
    np.testing.assert_allclose(lstmfast.onnx.load(model)(x)[0], run(model, {"x": x})[0], **CLOSE)
    outputs = model.graph.output
    outputs.append(helper.make_tensor_value_info("middle", TensorProto.FLOAT, None))
    assert list(lstmfast.onnx.read_weights(model)) == ["first/lstm", "Layer_1/lstm"]


# --- weights ----------------------------------------------------------------------------------------------------------


def read_with(
    rng: np.random.Generator, nodes: Sequence[Any], stored: dict[str, Any], opset: int = 17, **settings: Any
) -> tuple[lf.LSTM, Any]:
    """One node whose W is made by nodes, as a layer and as a model; both give the same."""
    held = {name: values for name, values in weights(rng).items() if name != "W"}
    model = model_of([*nodes, lstm("lstm")], held | stored, ["lstm_y"], opset=opset, **settings)
    layer, x = lstmfast.onnx.load(model), sequence(rng)
    np.testing.assert_allclose(layer(x)[0], run(model, {"x": x})[0][:, 0], **CLOSE)
    return layer, model


W_SHAPE = (1, 4 * HIDDEN_SIZE, INPUT_SIZE)


@pytest.mark.parametrize("opset", [10, 13, 19, 21])
def test_quantized_weights_of_any_operator_set_are_worked_out(opset: int, rng: np.random.Generator) -> None:
    whole = rng.integers(-128, 128, W_SHAPE).astype(np.int8)
    scale = np.float32(0.01) if opset < 13 else rng.random(W_SHAPE[1]).astype(np.float32) / 50
    zero = np.int8(3) if opset < 13 else rng.integers(-9, 9, W_SHAPE[1]).astype(np.int8)
    axis = {} if opset < 13 else {"axis": 1}
    make = node("DequantizeLinear", ["q", "scale", "zero"], "W", **axis)
    read_with(rng, [make], {"q": whole, "scale": scale, "zero": zero}, opset)


def values_node(**attributes: Any) -> Any:
    """A Constant of floats in one of its forms."""
    return node("Constant", [], "flat", **attributes)


@pytest.mark.parametrize("form", ["value", "value_floats", "sparse_value"])
def test_constants_of_any_form_are_worked_out(form: str, rng: np.random.Generator) -> None:
    flat = rng.standard_normal(np.prod(W_SHAPE)).astype(np.float32)
    value: Any = flat.tolist() if form == "value_floats" else numpy_helper.from_array(flat)
    if form == "sparse_value":
        value = helper.make_sparse_tensor(
            numpy_helper.from_array(flat), numpy_helper.from_array(np.arange(flat.size)), [flat.size]
        )
    nodes = [values_node(**{form: value}), node("Reshape", ["flat", "shape"], "W")]
    layer, _ = read_with(rng, nodes, {"shape": np.array(W_SHAPE)})
    assert layer.input_size == INPUT_SIZE


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE], ids=str)
def test_weights_of_other_types_are_cast_as_the_graph_says(kind: int, rng: np.random.Generator) -> None:
    values = rng.standard_normal(W_SHAPE)
    made = node("Constant", [], "w", value=helper.make_tensor("w", kind, W_SHAPE, values.ravel()))
    read_with(rng, [made, node("Cast", ["w"], "W", to=TensorProto.FLOAT)], {})


def test_a_branch_that_a_constant_takes_is_worked_out(rng: np.random.Generator) -> None:
    branches = {
        f"{side}_branch": body_of([node("Mul", ["w", factor], side)], side)
        for side, factor in (("then", "two"), ("else", "half"))
    }
    stored = {"w": sequence(rng, *W_SHAPE), "two": np.float32(2), "half": np.float32(0.5), "yes": np.array(False)}
    read_with(rng, [node("If", ["yes"], "W", **branches)], stored)


def test_weights_cut_where_a_shape_says_are_worked_out(rng: np.random.Generator) -> None:
    nodes = [
        node("Shape", ["x"], "all"), node("Gather", ["all", "two"], "end"),
        node("Slice", ["wide", "zero", "end", "two"], "W"),
    ]
    stored = AXES | {"two": np.array([2]), "wide": sequence(rng, 1, 4 * HIDDEN_SIZE, 9)}
    assert read_with(rng, nodes, stored)[0].input_size == INPUT_SIZE


def test_a_node_of_16_bits_is_widened_and_says_so(rng: np.random.Generator) -> None:
    stored = {name: values.astype(np.float16) for name, values in weights(rng).items()}
    model = model_of([lstm("lstm")], stored, ["lstm_y"])
    read = lstmfast.onnx.read_weights(model)["lstm"]
    np.testing.assert_array_equal(read.cells[0].kernel[:INPUT_SIZE, :HIDDEN_SIZE], stored["W"][0, :HIDDEN_SIZE].T)
    assert "W is float16 in the file and was widened to float32, which is exact." in read.assumptions


REFUSED_WEIGHTS: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "an input": ([node("Mul", ["w", "x"], "W")], {"w": np.ones(1, np.float32)}, "the graph's input x"),
    "chance": ([node("RandomNormal", [], "W", shape=W_SHAPE)], {}, r"chance \(RandomNormal\)"),
    "a shape that is free": (
        [node("Shape", ["x"], "s"), node("Cast", ["s"], "f", to=1), node("ReduceProd", ["f"], "n"),
         node("Expand", ["n", "shape"], "W")],
        {"shape": np.array(W_SHAPE)}, "the shapes of the graph's inputs",
    ),
}


@pytest.mark.parametrize("case", REFUSED_WEIGHTS)
def test_weights_that_the_file_does_not_hold_are_refused_by_name(case: str, rng: np.random.Generator) -> None:
    nodes, stored, cause = REFUSED_WEIGHTS[case]
    held = {name: values for name, values in weights(rng).items() if name != "W"}
    model = model_of([*nodes, lstm("lstm")], held | stored, ["lstm_y"])
    with pytest.raises(ValueError, match=f"W of LSTM node lstm depends on {cause}, so the file does not contain it"):
        lstmfast.onnx.load(model)


def test_data_in_a_file_of_their_own_are_read_with_the_path_only(tmp_path: Path, rng: np.random.Generator) -> None:
    model = model_of([lstm("lstm")], weights(rng), ["lstm_y"])
    kernel = lstmfast.onnx.read_weights(model)["lstm"].cells[0].kernel
    onnx.save(model, tmp_path / "w.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    np.testing.assert_array_equal(lstmfast.onnx.read_weights(tmp_path / "w.onnx")["lstm"].cells[0].kernel, kernel)
    with pytest.raises(ValueError, match=r"W of LSTM node lstm .* in the file w\.bin, which was not loaded"):
        lstmfast.onnx.load(onnx.load(tmp_path / "w.onnx", load_external_data=False))


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 5}, "R of LSTM node lstm must have 4 \\* 5 rows to match hidden_size, got 16"),
        ({"direction": "both"}, "direction of LSTM node lstm must be one of forward, reverse, bidirectional, got"),
        ({"direction": "bidirectional"}, "W of LSTM node lstm, which is bidirectional, must have 2 along its first"),
        ({"clip": "none"}, "clip of LSTM node lstm must be of the attribute type 1, got 3"),
        ({"clip": 0.0}, "LSTM node lstm clips the inputs of its activations to 0"),
        ({"activations": ["Sigmoid", "Tanh"]}, "LSTM node lstm has activations sigmoid, tanh; an LSTM here has"),
        ({"activations": ["Affine", "Tanh", "Tanh"], "activation_alpha": [1.0]}, "has activations affine, tanh, tanh"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_node_named(
    settings: dict[str, Any], message: str, rng: np.random.Generator
) -> None:
    model = model_of([lstm("lstm", **settings)], weights(rng), ["lstm_y"])
    with pytest.raises(ValueError, match=message):
        lstmfast.onnx.load(model)


@pytest.mark.parametrize(
    "settings",
    [
        {"clip": float(np.finfo(np.float32).max)}, {"activations": ["sigmoid", "TANH", "Tanh"]},
        {"activation_alpha": [2.0, 3.0, 4.0]}, {"input_forget": 1},
    ],
    ids=str,
)
def test_settings_that_change_nothing_or_that_we_have_are_read(
    settings: dict[str, Any], rng: np.random.Generator
) -> None:
    model, x = model_of([lstm("lstm", **settings)], weights(rng), ["lstm_y"]), sequence(rng)
    np.testing.assert_allclose(lstmfast.onnx.load(model)(x)[0], run(model, {"x": x})[0][:, 0], **CLOSE)


def test_a_refusal_of_one_lstm_does_not_keep_from_reading_another(rng: np.random.Generator, tmp_path: Path) -> None:
    nodes = [lstm("good"), lstm("clipped", clip=1.0), node("Tanh", ["x"], "W3"), lstm("moving", "x", "3")]
    stored = {name: values for name, values in (weights(rng) | weights(rng, "3")).items() if name != "W3"}
    model = model_of(nodes, stored, ["good_y", "clipped_y", "moving_y"])
    onnx.save(model, tmp_path / "w.onnx")
    assert lstmfast.onnx.load(model, name="good").num_layers == 1
    assert lf.layouts.load(tmp_path / "w.onnx", name="good").num_layers == 1
    assert [each.name for each in lf.layouts.read(tmp_path / "w.onnx").lstms] == ["good", "clipped", "moving"]
    for name in ("clipped", "moving"):
        with pytest.raises(ValueError, match=f"LSTM node {name} "):
            lf.layouts.load(tmp_path / "w.onnx", name=name)
    with pytest.raises(ValueError, match="LSTM node clipped clips"):
        lstmfast.onnx.read_weights(model)


def test_a_stack_of_which_one_node_has_no_bias_is_inspected(rng: np.random.Generator, tmp_path: Path) -> None:
    nodes = [lstm("low"), node("Squeeze", ["low_y", "one"], "b"), lstm("high", "b", "2")]
    nodes[2].input[3] = ""
    onnx.save(model_of(nodes, weights(rng) | weights(rng, "2", HIDDEN_SIZE) | AXES, ["high_y"]), tmp_path / "w.onnx")
    [found] = lf.inspect(tmp_path / "w.onnx").lstms
    assert found.num_layers == 2


# --- exporters --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folded", [True, False], ids=["folded", "as-traced"])
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_model_of_torch_with_free_axes_is_read(exporter: str, folded: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")
    if exporter == "dynamo":
        pytest.importorskip("onnxscript", reason="this exporter of PyTorch needs onnxscript")

    class Model(torch.nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.low = torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
            self.dropout, self.high = torch.nn.Dropout(0.5), torch.nn.LSTM(8, 4, bidirectional=True, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.high(self.dropout(self.low(x)[0]))[0]

    model, x = Model().eval(), torch.randn(2, 5, 3)
    axes = {0: "batch", 1: "time"}
    how: dict[str, Any] = {"dynamo": False, "do_constant_folding": folded, "dynamic_axes": {"x": axes}}
    if exporter == "dynamo":
        free = {axis: torch.export.Dim(name) for axis, name in axes.items()}
        how = {"dynamo": True, "optimize": folded, "dynamic_shapes": (free,)}
    torch.onnx.export(model, (x,), tmp_path / "m.onnx", input_names=["x"], verbose=False, **how)
    layer = lstmfast.onnx.load(tmp_path / "m.onnx")
    longer = torch.randn(3, 7, 3)
    assert layer.num_layers == 3
    with torch.no_grad():
        expected = model(longer).numpy().swapaxes(0, 1)
    np.testing.assert_allclose(layer(longer.numpy().swapaxes(0, 1).copy())[0], expected, **CLOSE)


# --- any graph --------------------------------------------------------------------------------------------------------


@pytest.mark.sweep
def test_random_graphs_are_read_rightly_or_refused() -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")
    from support import fuzz_onnx

    seed = int(os.environ.get("LSTMFAST_FUZZ_SEED") or 31)  # the script is for other ones
    print(f"seed {seed}")
    counts = fuzz_onnx.fuzz(seed, graphs=2000, seconds=20)
    assert counts["read"] > counts["graphs"] / 10
