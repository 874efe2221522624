"""What an LSTM returns, whichever engine computed it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from lstmfast._checks import Array


class Saved(Protocol):
    """What a forward pass leaves for its backward pass, and that pass itself."""

    def backward(self, d_h: Any, d_h_n: Any, d_c_n: Any) -> Gradients:
        """As `lstm_backward`, which says what the arguments are."""


@dataclass(frozen=True, eq=False)
class Output:
    """What `lstm` returns: h [T, B, H]; h_n, c_n [B, H]; where asked for, cells [T, B, H] and gates [T, B, 4, H]."""

    h: Array
    h_n: Array
    c_n: Array
    cells: Array | None
    gates: Array | None
    _saved: Saved | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # What `lstm_backward` needs lies in memory of the extension, and stays with the original.
        return type(self), (self.h, self.h_n, self.c_n, self.cells, self.gates)


@dataclass(frozen=True, eq=False)
class Gradients:
    """What `lstm_backward` returns: the derivative by each argument of `lstm`, in its shape.

    x is None for ids; peepholes and projection are None where there were none.
    """

    x: Array | None
    kernel: Array
    bias: Array
    h0: Array
    c0: Array
    peepholes: Array | None = None
    projection: Array | None = None
