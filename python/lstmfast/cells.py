"""`Cell`: the options of an LSTM cell. The equations of every option are in `reference`.

Refuses to hold arrays and to compute: an engine takes a cell and declares the features it supports.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from lstmfast import _checks as check
from lstmfast import gates
from lstmfast.initializers import Shape


@dataclass(frozen=True)
class Cell:
    """How a cell differs from the standard one; without arguments it is the standard LSTM. Frozen and hashable.

    forget_bias: added to the forget gate's pre-activation at run time, not part of the bias. projection_size: h is
    (o * tanh(c)) @ projection, with that many numbers. peepholes: the gates i and f read the cell state before the
    step, o that after it. cell_clip: c is clipped to [-cell_clip, cell_clip]. coupled_gates: f = 1 - i.

    Regularised cells. Masks are drawn in training only, from the seed of the call.
    recurrent_dropout: share dropped of h before the recurrent product (Gal & Ghahramani 2016), or with
    recurrent_dropout_of "g" of the candidate (Semeniuta et al. 2016); one mask for all steps of a row, or with
    recurrent_dropout_per_step one for each. zoneout: share of h and c that keeps its earlier value, one number or a
    pair (h, c); inference uses the expectation (Krueger et al. 2017). weight_dropout: share dropped of the recurrent
    kernel, one mask a call (Merity et al. 2018). layer_norm "products" or True: x·kernel, h·kernel and c are normalised
    (Ba et al. 2016); "gates": each gate of the sum of the two products, and c, as in TensorFlow's contrib.
    layer_norm_carry: the next step reads the normalised c. learn_initial_state: the state that a row begins with, also
    after a reset, is a variable.
    Raises ValueError or TypeError naming the option.
    """

    forget_bias: float = 1.0
    projection_size: int | None = None
    peepholes: bool = False
    cell_clip: float | None = None
    coupled_gates: bool = False
    recurrent_dropout: float = 0.0
    recurrent_dropout_of: Literal["h", "g"] = "h"
    recurrent_dropout_per_step: bool = False
    zoneout: tuple[float, float] | None = None
    weight_dropout: float = 0.0
    layer_norm: Literal["products", "gates"] | None = None
    layer_norm_epsilon: float = 1e-5
    layer_norm_carry: bool = False
    learn_initial_state: bool = False

    def __post_init__(self) -> None:
        size = self.projection_size
        checked = {
            "forget_bias": check.finite("forget_bias", self.forget_bias),
            "projection_size": None if size is None else check.whole_number("projection_size", size),
            "peepholes": bool(self.peepholes),
            "cell_clip": check.cell_clip(self.cell_clip),
            "coupled_gates": bool(self.coupled_gates),
            "recurrent_dropout": check.fraction("recurrent_dropout", self.recurrent_dropout),
            "recurrent_dropout_of": check.one_of("recurrent_dropout_of", self.recurrent_dropout_of, ("h", "g")),
            "recurrent_dropout_per_step": bool(self.recurrent_dropout_per_step),
            "zoneout": zoneout_rates(self.zoneout),
            "weight_dropout": check.fraction("weight_dropout", self.weight_dropout),
            "layer_norm": _layer_norm(self.layer_norm),
            "layer_norm_epsilon": check.positive("layer_norm_epsilon", self.layer_norm_epsilon),
            "layer_norm_carry": bool(self.layer_norm_carry),
            "learn_initial_state": bool(self.learn_initial_state),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.layer_norm and self.coupled_gates:
            raise ValueError("layer_norm cannot be combined with coupled_gates: their forget gate has no product")

    @classmethod
    def of(cls, cell: Cell | None, **options: Any) -> Cell:
        """Return `cell`, or if None a cell with these options. Raises ValueError if both are given."""
        if cell is None:
            return cls(**options)
        if not isinstance(cell, Cell):
            raise TypeError(f"cell must be a lstmfast.Cell, got {type(cell).__name__}")
        standard, given = cls(), cls(**options)  # whose values are checked, so that False is no layer_norm
        for name in options:
            if getattr(given, name) != getattr(standard, name):
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
        if self.layer_norm:
            shapes["norm_gain"] = (NORMALIZED[self.layer_norm], columns)
            shapes["cell_gain"] = shapes["cell_shift"] = (hidden_size,)
        if self.learn_initial_state:
            shapes["initial_h"] = (self.output_size(hidden_size),)
            shapes["initial_c"] = (hidden_size,)
        return shapes

    @property
    def is_random(self) -> bool:
        """Whether training draws masks, and so needs a seed."""
        return any(getattr(self, name) for name in RANDOM)


RANDOM = ("recurrent_dropout", "zoneout", "weight_dropout")
"""Options for which training draws masks."""
NORMALIZED = {"products": 2, "gates": 1}
"""How many products each kind of layer normalisation normalises: the rows of norm_gain."""

_MODIFIERS = {
    "forget_bias", "recurrent_dropout_of", "recurrent_dropout_per_step", "layer_norm_epsilon", "layer_norm_carry",
}
OPTIONS = tuple(field.name for field in fields(Cell) if field.name not in _MODIFIERS)
"""Options that make a cell differ from the standard one; the others say how."""


def zoneout_rates(value: Any) -> tuple[float, float] | None:
    """Return the rates of h and c, or None if both are 0."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if value is None:
        return None
    if len(pair) != 2:
        raise ValueError(f"zoneout must be a number or a pair (h, c), got {len(pair)} values")
    rates = check.fraction("zoneout", pair[0]), check.fraction("zoneout", pair[1])
    return rates if any(rates) else None


def _layer_norm(value: Any) -> str | None:
    """Return the kind of layer normalisation, None for none."""
    if value is True:
        return "products"
    if value is None or value is False:
        return None
    return str(check.one_of("layer_norm", value, tuple(NORMALIZED)))


def check_features(wanted: Iterable[str], known: frozenset[str], place: str) -> None:
    """Raise ValueError naming the first feature of a cell that an engine lacks. place: where it would run."""
    if missing := sorted(set(wanted) - known):
        raise ValueError(f"{missing[0]} is not supported {place}")
