"""The order of the four gates for all Python code: input, forget, cell, output, written i | f | g | o.

`csrc/core/gates.h` is the same for C++. Layout and names only: no arithmetic, and no other library's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

NAMES = ("input", "forget", "cell", "output")
LETTERS = ("i", "f", "g", "o")
COUNT = len(NAMES)
PEEPHOLES = ("input", "forget", "output")  # gates that may read the cell state: the rows of peepholes [3, hidden_size]


def columns(name: str, hidden_size: int) -> slice:
    """Columns of gate `name` in a kernel [rows, 4*hidden_size]. Raises KeyError listing the names for any other."""
    if name not in NAMES:
        raise KeyError(f"gate must be one of {', '.join(NAMES)}, got {name!r}")
    first = NAMES.index(name) * hidden_size
    return slice(first, first + hidden_size)


def split(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Views of the gates i, f, g, o, each [..., hidden_size], of an array [..., 4*hidden_size]."""
    hidden_size = values.shape[-1] // COUNT
    i, f, g, o = (values[..., columns(name, hidden_size)] for name in NAMES)
    return i, f, g, o


class GateView:
    """The weights of one gate: views of the cell's arrays, so that assignment changes the cell.

    Shapes: input_kernel [input_size, hidden_size]; recurrent_kernel [output_size, hidden_size], where output_size is
    hidden_size, or projection_size with a projection; bias [hidden_size]; peephole [hidden_size] or None.
    Assignment writes into the view: `view.bias = ones` and `view.bias += 1` both reach the cell.
    """

    __slots__ = ("bias", "input_kernel", "peephole", "recurrent_kernel")

    input_kernel: FloatArray
    recurrent_kernel: FloatArray
    bias: FloatArray
    peephole: FloatArray | None

    def __init__(
        self,
        input_kernel: FloatArray,
        recurrent_kernel: FloatArray,
        bias: FloatArray,
        peephole: FloatArray | None = None,
    ) -> None:
        object.__setattr__(self, "input_kernel", input_kernel)
        object.__setattr__(self, "recurrent_kernel", recurrent_kernel)
        object.__setattr__(self, "bias", bias)
        object.__setattr__(self, "peephole", peephole)

    def __setattr__(self, name: str, values: npt.ArrayLike) -> None:
        view = getattr(self, name)
        if view is None:
            raise AttributeError(f"this gate has no {name}: it does not read the cell state")
        view[...] = values

    def __repr__(self) -> str:
        input_size, hidden_size = self.input_kernel.shape
        return f"GateView(input_size={input_size}, hidden_size={hidden_size})"


class Gates(Mapping[str, GateView]):
    """The four gates of a kernel [input_size + output_size, 4*hidden_size] and its bias [4*hidden_size], by name.

    output_size: size of h, hidden_size if None. peepholes [3, hidden_size], rows i, f, o, or None.
    `Gates(kernel, bias)["forget"].input_kernel` is a writable view. Raises KeyError listing the names for any other.
    """

    def __init__(
        self,
        kernel: FloatArray,
        bias: FloatArray,
        *,
        output_size: int | None = None,
        peepholes: FloatArray | None = None,
    ) -> None:
        self._kernel = kernel
        self._bias = bias
        self._input_size = kernel.shape[0] - (bias.shape[0] // COUNT if output_size is None else output_size)
        self._peepholes = peepholes

    def __getitem__(self, name: str) -> GateView:
        own = columns(name, self._bias.shape[0] // COUNT)
        gate = self._kernel[:, own]
        peephole = None
        if self._peepholes is not None and name in PEEPHOLES:
            peephole = self._peepholes[PEEPHOLES.index(name)]
        return GateView(gate[: self._input_size], gate[self._input_size :], self._bias[own], peephole)

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return COUNT

    def __repr__(self) -> str:
        return f"Gates({', '.join(NAMES)}; kernel {self._kernel.shape}, bias {self._bias.shape})"
