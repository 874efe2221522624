"""Arguments of regularised cells that are wrong, or right in another form. `test_regularised` has those of layers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import lstmfast as lf
from support.oracles import problem

T, B, I, H = 2, 2, 3, 4  # noqa: E741  (the papers' letters)
NORMS = {"norm_gain": np.ones((2, 4 * H)), "cell_gain": np.ones(H), "cell_shift": np.zeros(H)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recurrent_dropout": [0.1]}, TypeError, "recurrent_dropout must be a number, got [0.1]"),
        ({"zoneout": np.array([0.1, 0.2])}, TypeError, "zoneout must be a number, got array"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 2**64, "zoneout": 0.1}, ValueError, "seed must be below 2**64, got 18446744073709551616"),
        ({"seed": 0, "layer": 2**30, "zoneout": 0.1}, ValueError, "layer must be below 2**30, got 1073741824"),
        ({"seed": 0, "first_step": -1, "zoneout": 0.1}, ValueError, "first_step must be at least 0, got -1"),
        ({"cell_gain": np.ones(H)}, ValueError, "norm_gain and cell_gain must be given together"),
        ({**NORMS, "cell_shift": None}, ValueError, "norm_gain and cell_shift must be given together"),
        ({**NORMS, "norm_gain": np.ones((3, 4 * H))}, ValueError, "norm_gain must have 2 rows, for both products, or"),
        ({**NORMS, "coupled_gates": True}, ValueError, "layer_norm cannot be combined with coupled_gates"),
        ({**NORMS, "layer_norm_epsilon": 0}, ValueError, "layer_norm_epsilon must be above 0, got 0"),
        ({"initial_h": np.zeros(H)}, ValueError, "initial_h and initial_c must be given together, got one of them"),
        ({"initial_h": np.zeros(3), "initial_c": np.zeros(H)}, ValueError, "initial_h must have shape (4,)"),
    ],
)
def test_error_names_the_argument_what_was_wanted_and_what_came(
    rng: np.random.Generator, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        lf.lstm(**problem(rng, T, B, I, H), **options)


def test_step_refuses_a_gain_without_the_others(rng: np.random.Generator) -> None:
    p = problem(rng, T, B, I, H)
    with pytest.raises(ValueError, match="norm_gain and cell_gain must be given together"):
        lf.lstm_step(p["x"][0], p["h0"], p["c0"], p["kernel"], p["bias"], cell_gain=np.ones(H))


def test_a_list_of_rates_is_a_pair(rng: np.random.Generator) -> None:
    p = problem(rng, T, B, I, H)
    found, wanted = lf.lstm(**p, zoneout=[0.1, 0.2], seed=1), lf.lstm(**p, zoneout=(0.1, 0.2), seed=1)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.h, wanted.h)


@pytest.mark.parametrize("off", [{"zoneout": 0}, {"zoneout": (0, 0)}, {"layer_norm": False}])
def test_an_option_that_is_off_may_stand_beside_a_cell(off: dict[str, Any]) -> None:
    assert lf.LSTM(I, H, cell=lf.Cell(zoneout=0.1), **off).cell == lf.Cell(zoneout=0.1)
