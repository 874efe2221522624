"""The works in ONNX Runtime: one LSTM node whose weights are constants. Imports onnxruntime, onnx and NumPy only.

ONNX orders its gates i, o, f, g. The CPU LSTM of ONNX Runtime has float32 or int8 weights and cannot train. See
worker.py.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Problem = Mapping[str, npt.NDArray[Any]]

_GATES_IN_ONNX_ORDER = (0, 3, 1, 2)  # of i, f, g, o
_threads = 1


def version(threads: int) -> str:
    """Set up the library; return its version."""
    global _threads
    _threads = threads
    return str(onnxruntime.__version__)


class Step:
    """One step: a graph that takes and returns the state."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        hidden_size = problem["kernel"].shape[1] // 4
        self._session = _session(problem, settings, state=True)
        self._x = problem["x"]
        self._zeros = np.zeros((1, self._x.shape[1], hidden_size), np.float32)
        self._feed = {"x": self._x[:1], "h0": self._zeros, "c0": self._zeros}

    def step(self) -> None:
        """Advance by one step."""
        feed = self._feed
        feed["h0"], feed["c0"] = self._session.run(["h_n", "c_n"], feed)

    def values(self) -> dict[str, Any]:
        """Outputs of a few steps from a state of zeros."""
        h = c = self._zeros
        outputs = []
        for n in range(len(self._x)):
            h, c = self._session.run(["h_n", "c_n"], {"x": self._x[n : n + 1], "h0": h, "c0": c})
            outputs.append(h[0])
        return {"h": np.stack(outputs)}


class Sequence:
    """One layer over whole sequences."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        if settings["training"]:
            raise NotImplementedError("its LSTM does not train")
        self._session = _session(problem, settings, lengths="lengths" in problem)
        self._feed = {"x": problem["x"]}
        if "lengths" in problem:
            self._feed["lengths"] = problem["lengths"].astype(np.int32)

    def step(self) -> Any:
        """Run the graph."""
        return self._session.run(["h"], self._feed)

    def values(self) -> dict[str, Any]:
        """Outputs [T, B, H]; ONNX has the directions on its second axis."""
        return {"h": self.step()[0][:, 0]}


def _session(
    problem: Problem, settings: Mapping[str, Any], *, state: bool = False, lengths: bool = False
) -> Any:
    """A session for a graph of one LSTM node: x [T, B, I], and lengths [B] or h0, c0 [1, B, H] if asked for."""
    hidden_size = problem["kernel"].shape[1] // 4
    input_size = len(problem["kernel"]) - hidden_size
    constants = {
        "W": _reordered(problem["kernel"][:input_size]).T[None],
        "R": _reordered(problem["kernel"][input_size:]).T[None],
        "B": np.concatenate([_reordered(problem["bias"]), np.zeros(4 * hidden_size, np.float32)])[None],
    }
    inputs = {"x": ["T", "batch", input_size]}
    if lengths:
        inputs["lengths"] = ["batch"]
    if state:
        inputs |= dict.fromkeys(("h0", "c0"), [1, "batch", hidden_size])
    outputs = {"h": ["T", 1, "batch", hidden_size]} | dict.fromkeys(("h_n", "c_n"), [1, "batch", hidden_size])
    order = ["x", "W", "R", "B", "lengths" if lengths else "", "h0" if state else "", "c0" if state else ""]
    graph = helper.make_graph(
        [helper.make_node("LSTM", order, list(outputs), hidden_size=hidden_size)],
        "lstm",
        [_declared(name, shape) for name, shape in inputs.items()],
        [_declared(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    # Versions that runtimes of recent years read; onnx writes newer ones by default.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized = model.SerializeToString()
    if settings.get("weights") == "int8":
        serialized = _quantized(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = _threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    return onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def _quantized(model: Any) -> bytes:
    """The model with int8 weights, one scale for each column; x and h are rounded as they come.

    Without VNNI, x86-64 adds products of 8-bit numbers in pairs that saturate at 16 bits: outputs of the shape "tiny"
    were off by 0.88. ONNX Runtime's answer is weights of 7 bits.
    """
    from onnxruntime.quantization import quantize_dynamic  # has needs of its own, which float32 should not wait for

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "int8.onnx")
        quantize_dynamic(model, path, op_types_to_quantize=["LSTM"], per_channel=True, reduce_range=_saturates())
        return path.read_bytes()


def _saturates() -> bool:
    information = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and information.exists() and "vnni" not in information.read_text()


def _reordered(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Columns of gates i, f, g, o in the order of ONNX."""
    gates = np.split(values.astype(np.float32), 4, axis=-1)
    return np.concatenate([gates[gate] for gate in _GATES_IN_ONNX_ORDER], axis=-1)


def _declared(name: str, shape: list[Any]) -> Any:
    kind = TensorProto.INT32 if name == "lengths" else TensorProto.FLOAT
    return helper.make_tensor_value_info(name, kind, shape)


WORKS: dict[str, Any] = {"step": Step, "sequence": Sequence}
