"""`lstmfast.onnx`: which graphs it writes, what it reads from graphs of any exporter, and what it refuses by name.

The numbers that such graphs give are `test_parity_onnxruntime`'s affair; here only `onnx` is needed.
"""

from __future__ import annotations

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

INPUT_SIZE, HIDDEN_SIZE = 3, 4


@pytest.fixture
def layer(rng: np.random.Generator) -> lf.LSTM:
    """Two layers, both directions, all weights random."""
    made = lf.LSTM(INPUT_SIZE, HIDDEN_SIZE, num_layers=2, bidirectional=True, rng=rng)
    made.parameter_buffer[:] = rng.normal(size=made.parameter_buffer.size)
    return made


def kinds(model: Any) -> list[str]:
    """The kinds of a graph's nodes."""
    return [node.op_type for node in model.graph.node]


def axes(values: Any) -> dict[str, list[int | str]]:
    """Shapes of inputs or outputs, free axes by their names."""
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values
    }


def graph_of(*nodes: Any, stored: dict[str, Array] | None = None, inputs: tuple[str, ...] = ("x",)) -> Any:
    """A model of these nodes."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    outputs = [helper.make_empty_tensor_value_info(name) for name in nodes[-1].output if name]
    arrays = [numpy_helper.from_array(array, name) for name, array in (stored or {}).items()]
    return helper.make_model(helper.make_graph(nodes, "graph", values, outputs, arrays))


def lstm_node(name: str = "lstm", x: str = "x", weights: str = "", **attributes: Any) -> Any:
    """An LSTM node that reads W, R and B, each with a suffix."""
    inputs = [x, *(f"{letter}{weights}" for letter in "WRB")]
    return helper.make_node("LSTM", inputs, [f"{name}_y"], name=name, hidden_size=HIDDEN_SIZE, **attributes)


def weights(rng: np.random.Generator, input_size: int = INPUT_SIZE, directions: int = 1) -> dict[str, Array]:
    """Random W, R and B."""
    h = HIDDEN_SIZE
    shapes = {"W": (directions, 4 * h, input_size), "R": (directions, 4 * h, h), "B": (directions, 8 * h)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


# --- export -----------------------------------------------------------------------------------------------------------


def test_every_layer_is_one_node_and_time_and_batch_are_free(layer: lf.LSTM) -> None:
    graph = lstmfast.onnx.to_model_proto(layer, lengths=True).graph
    nodes = [node for node in graph.node if node.op_type == "LSTM"]
    assert [node.name for node in nodes] == ["layer0", "layer1"]
    state = [4, "batch", HIDDEN_SIZE]
    assert axes(graph.input) == {
        "x": ["time_steps", "batch", INPUT_SIZE], "h0": state, "c0": state, "lengths": ["batch"],
    }
    assert axes(graph.output) == {"h": ["time_steps", "batch", 2 * HIDDEN_SIZE], "h_n": state, "c_n": state}


def test_a_batch_first_layer_is_transposed_around_its_nodes() -> None:
    model = lstmfast.onnx.to_model_proto(lf.LSTM(INPUT_SIZE, HIDDEN_SIZE, batch_first=True))
    assert [kind for kind in kinds(model) if kind != "Identity"] == ["Transpose", "LSTM", "Squeeze", "Transpose"]
    assert axes(model.graph.input)["x"] == ["batch", "time_steps", INPUT_SIZE]


def test_ids_look_rows_up_and_are_never_one_hot_matrices_in_the_graph() -> None:
    model = lstmfast.onnx.to_model_proto(lf.CharLM(11, HIDDEN_SIZE))
    assert [kind for kind in kinds(model) if kind != "Identity"] == ["Gather", "LSTM", "Squeeze", "MatMul", "Add"]
    (ids, *_) = model.graph.input
    assert (ids.name, ids.type.tensor_type.elem_type) == ("ids", TensorProto.INT64)


def test_the_forget_bias_stands_alone_in_the_second_bias_so_that_nothing_is_rounded(rng: np.random.Generator) -> None:
    layer = lf.LSTM(INPUT_SIZE, HIDDEN_SIZE, forget_bias=0.1, rng=rng)
    layer.parameters["layer0.bias"][:] = rng.normal(size=4 * HIDDEN_SIZE)
    graph = lstmfast.onnx.to_model_proto(layer).graph
    (bias,) = next(numpy_helper.to_array(each) for each in graph.initializer if each.name == "layer0.B")
    first, second = np.split(bias.reshape(8, HIDDEN_SIZE), 2)
    ours = layer.parameters["layer0.bias"].reshape(4, HIDDEN_SIZE)
    np.testing.assert_array_equal(first, ours[[0, 3, 1, 2]])  # i o f g of i f g o
    np.testing.assert_array_equal(second, np.float32(0.1) * np.array([[0], [0], [1], [0]]) * np.ones(HIDDEN_SIZE))


def test_a_layer_with_learnt_states_takes_its_states_as_inputs(rng: np.random.Generator) -> None:
    graph = lstmfast.onnx.to_model_proto(lf.LSTM(3, 4, learn_initial_state=True, rng=rng)).graph
    assert [value.name for value in graph.input] == ["x", "h0", "c0"]


def test_float64_is_written_as_double() -> None:
    graph = lstmfast.onnx.to_model_proto(lf.LSTM(INPUT_SIZE, HIDDEN_SIZE, dtype="float64")).graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {TensorProto.DOUBLE}


@pytest.mark.parametrize("opset", [12, 10_000])
def test_operator_sets_that_cannot_be_written_are_refused(opset: int, layer: lf.LSTM) -> None:
    with pytest.raises(ValueError, match="opset must be at (least 13|most .*), got"):
        lstmfast.onnx.to_model_proto(layer, opset=opset)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="model must be an LSTM, CharLM, SequenceClassifier or the path of a run, got"):
        lstmfast.onnx.export(lf.LSTMCell(2, 3), "never.onnx")  # type: ignore[arg-type]


# --- import -----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_again_bit_for_bit(layer: lf.LSTM, tmp_path: Path) -> None:
    lstmfast.onnx.export(layer, tmp_path / "layer.onnx")
    again = lstmfast.onnx.load(tmp_path / "layer.onnx")
    assert (again.num_layers, again.bidirectional, again.forget_bias) == (2, True, layer.forget_bias)
    for name, values in layer.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], values)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("folded", [True, False], ids=["folded", "as-traced"])
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_models_that_torch_exported_are_read(
    exporter: str, folded: bool, bidirectional: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")
    if exporter == "dynamo":
        pytest.importorskip("onnxscript", reason="this exporter of PyTorch needs onnxscript")
    lstm = torch.nn.LSTM(INPUT_SIZE, HIDDEN_SIZE, num_layers=2, bidirectional=bidirectional)
    how = {"dynamo": True, "optimize": folded} if exporter == "dynamo" else {"do_constant_folding": folded}
    x = torch.from_numpy(rng.standard_normal((5, 2, INPUT_SIZE)).astype(np.float32))
    torch.onnx.export(lstm, (x,), tmp_path / "torch.onnx", **{"dynamo": False, "verbose": False, **how})
    layer = lstmfast.onnx.load(tmp_path / "torch.onnx")
    expected = lstm(x)[0].detach().numpy()
    np.testing.assert_allclose(layer(x.numpy())[0], expected, **tolerances.states("float32", 3 * HIDDEN_SIZE))


def test_weights_that_the_graph_makes_of_stored_ones_are_worked_out(rng: np.random.Generator) -> None:
    stored = weights(rng)
    turned = {"W_turned": stored.pop("W").transpose(0, 2, 1).copy()}
    nodes = helper.make_node("Transpose", ["W_turned"], ["W"], perm=[0, 2, 1]), lstm_node()
    read = lstmfast.onnx.read_weights(graph_of(*nodes, stored={**stored, **turned}))["lstm"]
    expected = lstmfast.onnx.read_weights(
        graph_of(lstm_node(), stored={**stored, "W": turned["W_turned"].swapaxes(1, 2)})
    )
    np.testing.assert_array_equal(read.cells[0].kernel, expected["lstm"].cells[0].kernel)


def test_a_node_without_a_bias_has_zeros(rng: np.random.Generator) -> None:
    stored = {name: values for name, values in weights(rng).items() if name != "B"}
    node = helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=HIDDEN_SIZE)
    assert not lstmfast.onnx.load(graph_of(node, stored=stored)).parameters["layer0.bias"].any()


def test_lstms_that_do_not_stand_upon_each_other_are_told_apart_by_name(rng: np.random.Generator) -> None:
    nodes = lstm_node("encoder"), lstm_node("decoder", x="other")
    model = graph_of(*nodes, stored=weights(rng), inputs=("x", "other"))
    assert list(lstmfast.onnx.read_weights(model)) == ["encoder", "decoder"]
    assert lstmfast.onnx.load(model, name="decoder").num_layers == 1
    with pytest.raises(ValueError, match="name must choose one of the LSTMs in the graph: encoder, decoder"):
        lstmfast.onnx.load(model)
    with pytest.raises(ValueError, match="name must be one of the LSTMs in the graph: encoder, decoder, got 'third'"):
        lstmfast.onnx.load(model, name="third")


def test_a_layer_that_two_others_read_ends_its_stack(rng: np.random.Generator) -> None:
    stored = weights(rng) | {f"{name}2": values for name, values in weights(rng, HIDDEN_SIZE).items()}
    squeeze = helper.make_node("Squeeze", ["low_y", "one"], ["low_h"])
    above = [lstm_node(name, x="low_h", weights="2") for name in ("left", "right")]
    model = graph_of(lstm_node("low"), squeeze, *above, stored=stored | {"one": np.array([1])})
    assert list(lstmfast.onnx.read_weights(model)) == ["low", "left", "right"]
    model = graph_of(lstm_node("low"), squeeze, above[0], stored=stored | {"one": np.array([1])})
    assert lstmfast.onnx.load(model).num_layers == 2


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"activations": ["HardSigmoid", "Tanh", "Tanh"]},
            "LSTM node lstm has activations hardsigmoid, tanh, tanh; an LSTM here has sigmoid",
        ),
        ({"clip": 3.0}, "LSTM node lstm clips the inputs of its activations to 3"),
        ({"direction": "reverse"}, "LSTM node lstm has no forward direction"),
    ],
)
def test_settings_that_no_lstm_of_ours_has_are_refused(
    attributes: dict[str, Any], message: str, rng: np.random.Generator
) -> None:
    with pytest.raises(ValueError, match=message):
        lstmfast.onnx.load(graph_of(lstm_node(**attributes), stored=weights(rng)))


def test_weights_that_depend_on_an_input_are_refused(rng: np.random.Generator) -> None:
    stored = weights(rng)
    stored["W_stored"] = stored.pop("W")
    nodes = helper.make_node("Mul", ["scale", "W_stored"], ["W"]), lstm_node()
    model = graph_of(*nodes, stored=stored, inputs=("x", "scale"))
    with pytest.raises(ValueError, match="W of LSTM node lstm depends on the graph's input scale"):
        lstmfast.onnx.load(model)


def test_shapes_that_do_not_fit_are_refused_with_the_node_named(rng: np.random.Generator) -> None:
    stored = weights(rng)
    with pytest.raises(ValueError, match=r"LSTM node lstm: R must have shape \(16, 4\)"):
        lstmfast.onnx.load(graph_of(lstm_node(), stored={**stored, "R": stored["R"][:, :, :3]}))
    with pytest.raises(ValueError, match=r"W of LSTM node lstm must have 3 axes, got shape \(16, 3\)"):
        lstmfast.onnx.load(graph_of(lstm_node(), stored={**stored, "W": stored["W"][0]}))


def test_other_graphs_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path must have an LSTM node in its graph, got nodes of the kinds Relu"):
        lstmfast.onnx.load(graph_of(helper.make_node("Relu", ["x"], ["y"])))
    (tmp_path / "text.onnx").write_text("not a model at all")
    with pytest.raises(ValueError, match="text.onnx is not a usable ONNX model"):
        lstmfast.onnx.load(tmp_path / "text.onnx")
    with pytest.raises(FileNotFoundError):
        lstmfast.onnx.load(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"projection_size": 2}, "no projection_size"),
        ({"cell_clip": 3.0}, "no cell_clip, got 3"),
        ({"zoneout": 0.1}, "no zoneout: ONNX's LSTM operator has no mean"),
        ({"layer_norm": True}, "no layer_norm: ONNX's LSTM operator normalises nothing"),
    ],
)
def test_what_the_operator_cannot_say_is_refused_with_its_reason(variant: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lstmfast.onnx.to_model_proto(lf.LSTM(INPUT_SIZE, HIDDEN_SIZE, **variant))
