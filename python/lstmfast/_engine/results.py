"""The results of `lstm` and `lstm_backward`, from any engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from lstmfast._checks import Array


class Saved(Protocol):
    """The data that a forward pass keeps, and its backward pass."""

    def backward(self, d_h: Any, d_h_n: Any, d_c_n: Any) -> Gradients:
        """As `lstm_backward`."""


@dataclass(frozen=True, eq=False)
class Output:
    """The result of `lstm`: h [T, B, H]; h_n, c_n [B, H]; on request, cells [T, B, H] and gates [T, B, 4, H].

    seed: that of the call's masks; None if it drew none.
    """

    h: Array
    h_n: Array
    c_n: Array
    cells: Array | None
    gates: Array | None
    _saved: Saved | None = field(default=None, repr=False)
    seed: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # The data for `lstm_backward` is in the extension and cannot be copied.
        return type(self), (self.h, self.h_n, self.c_n, self.cells, self.gates, None, self.seed)


@dataclass(frozen=True, eq=False)
class Gradients:
    """The result of `lstm_backward`: the derivative by each argument of `lstm`, in its shape.

    x is None for ids; weights that were not given are None.
    """

    x: Array | None
    kernel: Array
    bias: Array
    h0: Array
    c0: Array
    peepholes: Array | None = None
    projection: Array | None = None
    norm_gain: Array | None = None
    cell_gain: Array | None = None
    cell_shift: Array | None = None
    initial_h: Array | None = None
    initial_c: Array | None = None
