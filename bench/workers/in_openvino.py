"""The works in OpenVINO: one LSTMSequence whose weights are constants. Imports openvino and NumPy only; see worker.py.

OpenVINO orders its gates f, i, g, o, wants the batch first and does not train. Its own choice of precision would be
bfloat16 where the CPU has it, so it is always told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
from openvino import opset13 as ops

Problem = Mapping[str, npt.NDArray[Any]]

_GATES_IN_ITS_ORDER = (1, 0, 2, 3)  # of i, f, g, o
_threads = 1


def version(threads: int) -> str:
    """Set up the library; return its version."""
    global _threads
    _threads = threads
    return str(openvino.__version__).partition("-")[0]


class Sequence:
    """One layer over whole sequences. A request that is kept and its infer() are faster than calling the model."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        if settings["training"]:
            raise NotImplementedError("it does not train")
        if "lengths" in problem:
            raise NotImplementedError("this bench has no rows of different lengths for it")
        x = np.ascontiguousarray(problem["x"].swapaxes(0, 1))
        how = {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": _threads,
            "INFERENCE_PRECISION_HINT": settings.get("precision", "f32"),
        }
        self._request = openvino.Core().compile_model(_model(problem, x.shape), "CPU", how).create_infer_request()
        self._request.set_input_tensor(openvino.Tensor(x))
        self.step = self._request.infer

    def values(self) -> dict[str, Any]:
        """Outputs [T, B, H]; OpenVINO's are [B, directions, T, H]."""
        self.step()
        return {"h": self._request.get_output_tensor().data[:, 0].swapaxes(0, 1).astype(np.float32)}


def _model(problem: Problem, x_shape: tuple[int, ...]) -> Any:
    """A model of one LSTMSequence: x [B, T, I] to h [B, 1, T, H], state of zeros."""
    batch, time_steps, input_size = x_shape
    hidden_size = problem["kernel"].shape[1] // 4
    x = ops.parameter(x_shape, np.float32, name="x")
    zeros = ops.constant(np.zeros((batch, 1, hidden_size), np.float32))
    lstm = ops.lstm_sequence(
        x, zeros, zeros, ops.constant(np.full(batch, time_steps, np.int32)),
        ops.constant(_reordered(problem["kernel"][:input_size]).T[None].copy()),
        ops.constant(_reordered(problem["kernel"][input_size:]).T[None].copy()),
        ops.constant(_reordered(problem["bias"])[None]), hidden_size, "forward",
    )
    return openvino.Model([lstm.output(0)], [x], "lstm")


def _reordered(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Columns of gates i, f, g, o in the order of OpenVINO."""
    gates = np.split(values.astype(np.float32), 4, axis=-1)
    return np.concatenate([gates[gate] for gate in _GATES_IN_ITS_ORDER], axis=-1)


WORKS: dict[str, Any] = {"sequence": Sequence}
