"""LSTMs that ONNX Runtime quantized dynamically are read as LSTMs of float32 weights.

ONNX Runtime also rounds inputs and states to 8 bits at run time, so outputs agree to the error of 8-bit numbers.
Weights are compared exactly: scale * (q - zero point).
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
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402
from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: E402

import lstmfast.onnx  # noqa: E402  it imports onnx
from interop.test_layouts_onnx_graphs import model_of, run  # noqa: E402

Array = npt.NDArray[Any]

# Without VNNI, x86-64 adds products of int8 numbers in pairs that saturate at 16 bits, unless weights have only 7.
SATURATES = not any("vnni" in isa for isa in lf.available_isas())

TIME_STEPS, BATCH, INPUT_SIZE, HIDDEN_SIZE = 8, 3, 24, 32
DIRECTIONS = {"forward": 1, "bidirectional": 2}


def float_model(
    rng: np.random.Generator, direction: str = "forward", *, peepholes: bool = False, layers: int = 1,
    **attributes: Any,
) -> Any:
    """LSTM nodes with random weights, joined by Transpose and Reshape."""
    d, h = DIRECTIONS[direction], HIDDEN_SIZE
    stored: dict[str, Any] = {"merged": np.array([0, 0, -1])}
    nodes, x = [], "x"
    for k in range(layers):
        shapes = {
            "W": (d, 4 * h, d * h if k else INPUT_SIZE), "R": (d, 4 * h, h), "B": (d, 8 * h), "P": (d, 3 * h),
        }
        for name, shape in shapes.items():
            stored[f"{name}{k}"] = rng.standard_normal(shape, dtype=np.float32) / h**0.5
        inputs = [x, f"W{k}", f"R{k}", f"B{k}", *(["", "", "", f"P{k}"] if peepholes else [])]
        nodes += [
            helper.make_node(
                "LSTM", inputs, [f"y{k}"], name=f"lstm{k}", hidden_size=h, direction=direction, **attributes
            ),
            helper.make_node("Transpose", [f"y{k}"], [f"swapped{k}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"swapped{k}", "merged"], [f"z{k}"]),
        ]
        x = f"z{k}"
    return model_of(nodes, stored, [x], ("time", "batch", INPUT_SIZE))


def quantized(model: Any, folder: Path, *, per_channel: bool, reduce_range: bool = False) -> Any:
    """The model as quantize_dynamic writes it."""
    onnx.save(model, folder / "float.onnx")
    quantize_dynamic(
        folder / "float.onnx", folder / "quantized.onnx", op_types_to_quantize=["LSTM"], per_channel=per_channel,
        reduce_range=reduce_range, weight_type=QuantType.QInt8,
    )
    found = onnx.load(folder / "quantized.onnx")
    assert "DynamicQuantizeLSTM" in {node.op_type for node in found.graph.node}
    return found


def as_uint8(model: Any) -> Any:
    """The same weights in uint8: numbers and zero points 128 higher."""
    found = type(model)()
    found.CopyFrom(model)
    for each in found.graph.initializer:
        if each.data_type == onnx.TensorProto.INT8:
            higher = (numpy_helper.to_array(each).astype(np.int16) + 128).astype(np.uint8)
            each.CopyFrom(numpy_helper.from_array(higher, each.name))
    return found


def sequence(rng: np.random.Generator) -> Array:
    return rng.standard_normal((TIME_STEPS, BATCH, INPUT_SIZE), dtype=np.float32)


def share(actual: Array, expected: Array) -> float:
    """The norm of the difference as a share of that of what is expected."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("peepholes", [False, True])
def test_a_quantized_node_is_a_layer_within_the_error_of_8_bits(
    direction: str, per_channel: bool, unsigned: bool, peepholes: bool, rng: np.random.Generator, tmp_path: Path
) -> None:
    model = float_model(rng, direction, peepholes=peepholes)
    model = quantized(model, tmp_path, per_channel=per_channel, reduce_range=SATURATES)
    model = as_uint8(model) if unsigned else model
    x = sequence(rng)
    [theirs] = run(model, {"x": x})
    assert share(lstmfast.onnx.load(model)(x)[0], theirs) < tolerances.QUANTIZED_LAYER


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_quantized_nodes_upon_each_other_are_one_stack(
    direction: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    model = quantized(float_model(rng, direction, layers=2), tmp_path, per_channel=True, reduce_range=SATURATES)
    x = sequence(rng)
    layer = lstmfast.onnx.load(model)
    assert layer.num_layers == 2
    assert share(layer(x)[0], run(model, {"x": x})[0]) < 2 * tolerances.QUANTIZED_LAYER


@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_are_off_by_at_most_half_a_unit_of_their_scale(
    per_channel: bool, rng: np.random.Generator, tmp_path: Path
) -> None:
    model = float_model(rng)
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    [weights] = lstmfast.onnx.read_weights(quantized(model, tmp_path, per_channel=per_channel)).values()
    read = lf.layouts.to_arrays(weights, "onnx")
    for letter in "WR":
        original = stored[f"{letter}0"]
        largest = np.abs(original).max(axis=2 if per_channel else None, keepdims=True)
        assert (np.abs(read[letter] - original) <= largest / 127 * 0.5001).all()


@pytest.mark.parametrize("shape", ["tensor", "channel"])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_weights_are_scale_times_number_less_zero_point(shape: str, kind: Any, rng: np.random.Generator) -> None:
    limits, h, axes = np.iinfo(kind), 4, (2,) if shape == "tensor" else (2, 16)
    stored: dict[str, Any] = {}
    for letter, rows in (("W", 3), ("R", h)):
        stored[letter] = rng.integers(limits.min, limits.max, (2, rows, 4 * h), kind, endpoint=True)
        stored[f"{letter}s"] = rng.uniform(0.01, 0.02, axes).astype(np.float32)
        stored[f"{letter}z"] = rng.integers(limits.min, limits.max, axes, kind, endpoint=True)
    inputs = ["x", "W", "R", "", "", "", "", "", "Ws", "Wz", "Rs", "Rz"]
    node = helper.make_node(
        "DynamicQuantizeLSTM", inputs, ["y"], domain="com.microsoft", hidden_size=h, direction="bidirectional"
    )
    [weights] = lstmfast.onnx.read_weights(model_of([node], stored, ["y"])).values()
    read = lf.layouts.to_arrays(weights, "onnx")
    for letter in "WR":
        scale, zero = (stored[f"{letter}{end}"].reshape(2, 1, -1).astype(np.float32) for end in "sz")
        np.testing.assert_array_equal(read[letter], (scale * (stored[letter] - zero)).transpose(0, 2, 1))


def test_it_is_said_that_weights_were_dequantized(rng: np.random.Generator, tmp_path: Path) -> None:
    quantized(float_model(rng), tmp_path, per_channel=False)
    assert "dequantized to float32" in " ".join(lf.layouts.load(tmp_path / "quantized.onnx").assumptions)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Ws": np.ones(3, np.float32)}, r"W_scale of LSTM node y must have shape \(1,\) or \(1, 16\), got \(3,\)"),
        ({"Rz": None}, "LSTM node y must have R_zero_point, got none"),
        ({"R": np.ones((1, 4, 16), np.float32)}, "R of LSTM node y must be int8 or uint8 with 3 axes, got float32"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], said: str) -> None:
    stored = {
        "W": np.ones((1, 3, 16), np.int8), "R": np.ones((1, 4, 16), np.int8),
        "Ws": np.ones(1, np.float32), "Wz": np.zeros(1, np.int8), "Rs": np.ones(1, np.float32),
        "Rz": np.zeros(1, np.int8), **change,
    }
    inputs = ["x", "W", "R", *[""] * 5, "Ws", "Wz", "Rs", "Rz" if stored["Rz"] is not None else ""]
    node = helper.make_node("DynamicQuantizeLSTM", inputs, ["y"], domain="com.microsoft", hidden_size=4)
    with pytest.raises(ValueError, match=said):
        lstmfast.onnx.read_weights(model_of([node], stored, ["y"]))
