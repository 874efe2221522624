"""`Cell`: the options of an LSTM cell. The equations of every option are in `reference`.

Refuses to hold arrays and to compute: an engine takes a cell and declares the features it supports.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from lstmfast import _checks as check
from lstmfast import gates
from lstmfast.initializers import Shape


@dataclass(frozen=True)
class Cell:
    """How a cell differs from the standard one; without arguments it is the standard LSTM. Frozen and hashable.

    forget_bias: added to the forget gate's pre-activation at run time, not part of the bias. projection_size: h is
    (o * tanh(c)) @ projection, with that many numbers. peepholes: the gates i and f read the cell state before the
    step, o that after it. cell_clip: c is clipped to [-cell_clip, cell_clip]. coupled_gates: f = 1 - i.
    Raises ValueError or TypeError naming the option.
    """

    forget_bias: float = 1.0
    projection_size: int | None = None
    peepholes: bool = False
    cell_clip: float | None = None
    coupled_gates: bool = False

    def __post_init__(self) -> None:
        size = self.projection_size
        checked = {
            "forget_bias": check.finite("forget_bias", self.forget_bias),
            "projection_size": None if size is None else check.whole_number("projection_size", size),
            "peepholes": bool(self.peepholes),
            "cell_clip": check.cell_clip(self.cell_clip),
            "coupled_gates": bool(self.coupled_gates),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, cell: Cell | None, **options: Any) -> Cell:
        """Return `cell`, or if None a cell with these options. Raises ValueError if both are given."""
        if cell is None:
            return cls(**options)
        if not isinstance(cell, Cell):
            raise TypeError(f"cell must be a lstmfast.Cell, got {type(cell).__name__}")
        standard = cls()
        for name, value in options.items():
            if value != getattr(standard, name):
                raise ValueError(f"{name} must be set in cell if a cell is given, got both")
        return cell

    @property
    def features(self) -> frozenset[str]:
        """Names of the options that differ from the standard cell, without forget_bias."""
        return frozenset(name for name in OPTIONS if getattr(self, name) not in (None, False))

    def output_size(self, hidden_size: int) -> int:
        """Size of h."""
        return hidden_size if self.projection_size is None else self.projection_size

    def shapes(self, input_size: int, hidden_size: int) -> dict[str, Shape]:
        """The variables of a cell and their shapes, in the order of the buffer."""
        columns = gates.COUNT * hidden_size
        shapes: dict[str, Shape] = {
            "kernel": (input_size + self.output_size(hidden_size), columns),
            "bias": (columns,),
        }
        if self.peepholes:
            shapes["peepholes"] = (3, hidden_size)
        if self.projection_size is not None:
            shapes["projection"] = (hidden_size, self.projection_size)
        return shapes


OPTIONS = tuple(field.name for field in fields(Cell) if field.name != "forget_bias")


def check_features(wanted: Iterable[str], known: frozenset[str], place: str) -> None:
    """Raise ValueError naming the first feature of a cell that an engine lacks. place: where it would run."""
    if missing := sorted(set(wanted) - known):
        raise ValueError(f"{missing[0]} is not supported {place}")
