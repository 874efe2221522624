"""The works in ncnn: one LSTM layer, one stream. Imports ncnn and NumPy only; see worker.py.

ncnn orders its gates i, f, o, g, knows no batch and does not train. Storing bfloat16 was tried and changed nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ncnn
import numpy as np
import numpy.typing as npt

Problem = Mapping[str, npt.NDArray[Any]]

_GATES_IN_ITS_ORDER = (0, 1, 3, 2)  # of i, f, g, o
_MAGIC = 7767517  # first line of ncnn's text format
_threads = 1


def version(threads: int) -> str:
    """Set up the library; return its version."""
    global _threads
    _threads = threads
    return str(ncnn.__version__)


class Sequence:
    """One layer over one whole sequence."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        if settings["training"]:
            raise NotImplementedError("it does not train")
        if problem["x"].shape[1] != 1:
            raise NotImplementedError("it has no batch")
        if "lengths" in problem:
            raise NotImplementedError("it has no lengths")
        self._net = _net(problem)
        self._input = problem["x"][:, 0].copy()  # the matrix below is a view of it
        self._x = ncnn.Mat(self._input)

    def step(self) -> Any:
        """Run the layer."""
        extractor = self._net.create_extractor()
        extractor.input("x", self._x)
        return extractor.extract("h")

    def values(self) -> dict[str, Any]:
        """Outputs [T, 1, H]."""
        return {"h": np.array(self.step()[1])[:, None]}


def _net(problem: Problem) -> Any:
    """A net of one layer, read from files, as ncnn has it: each array behind a word of zeros, which says float32."""
    hidden_size = problem["kernel"].shape[1] // 4
    input_size = len(problem["kernel"]) - hidden_size
    kernel, bias = _reordered(problem["kernel"]), _reordered(problem["bias"])
    arrays = (kernel[:input_size].T, bias, kernel[input_size:].T)
    layer = f"LSTM lstm 1 1 x h 0={hidden_size} 1={4 * hidden_size * input_size} 2=0"
    net = ncnn.Net()
    net.opt.num_threads = _threads
    with tempfile.TemporaryDirectory() as folder:
        text, binary = Path(folder, "lstm.param"), Path(folder, "lstm.bin")
        text.write_text(f"{_MAGIC}\n2 2\nInput x 0 1 x\n{layer}\n")
        binary.write_bytes(b"".join(bytes(4) + array.tobytes() for array in arrays))
        if net.load_param(str(text)) or net.load_model(str(binary)):
            raise RuntimeError("ncnn did not read the model that was written for it")
    return net


def _reordered(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Columns of gates i, f, g, o in the order of ncnn."""
    gates = np.split(values.astype(np.float32), 4, axis=-1)
    return np.concatenate([gates[gate] for gate in _GATES_IN_ITS_ORDER], axis=-1)


WORKS: dict[str, Any] = {"sequence": Sequence}
