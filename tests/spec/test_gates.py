"""The order of the gates, said once for the tests too, and the named views of a cell's weights."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lstmfast import gates

INPUT, H = 3, 2


def test_gates_lie_input_forget_cell_output():
    assert [(name, gates.columns(name, H)) for name in gates.NAMES] == [
        ("input", slice(0, 2)),
        ("forget", slice(2, 4)),
        ("cell", slice(4, 6)),
        ("output", slice(6, 8)),
    ]


def test_letters_stand_for_the_names_in_the_same_order():
    assert dict(zip(gates.LETTERS, gates.NAMES, strict=True)) == {
        "i": "input",
        "f": "forget",
        "g": "cell",
        "o": "output",
    }


def test_split_gives_the_columns_of_every_gate_as_views():
    z = np.arange(24.0).reshape(3, 8)
    parts = gates.split(z)
    expected = [z[:, gates.columns(name, H)] for name in gates.NAMES]
    assert all(np.shares_memory(part, z) for part in parts)
    assert np.array_equal(parts, expected)


@pytest.fixture
def weights():
    """A kernel and bias whose every number is different."""
    return np.arange(40.0).reshape(INPUT + H, 4 * H), np.arange(8.0)


@pytest.mark.parametrize("name", gates.NAMES)
def test_views_show_the_rows_of_x_the_rows_of_h_and_the_bias_of_their_gate(weights, name):
    kernel, bias = weights
    view, own = gates.Gates(kernel, bias)[name], gates.columns(name, H)
    assert_array_equal(
        np.vstack([view.input_kernel, view.recurrent_kernel, view.bias]),
        np.vstack([kernel[:INPUT, own], kernel[INPUT:, own], bias[own]]),
    )


@pytest.mark.parametrize("part", ["input_kernel", "recurrent_kernel", "bias"])
def test_assigning_to_a_view_writes_into_the_cell(weights, part):
    kernel, bias = weights
    setattr(gates.Gates(kernel, bias)["cell"], part, -1.0)
    assert (
        np.sum(kernel == -1) + np.sum(bias == -1)
        == {"input_kernel": INPUT * H, "recurrent_kernel": H * H, "bias": H}[part]
    )


def test_adding_in_place_reaches_the_cell_once(weights):
    kernel, bias = weights
    gates.Gates(kernel, bias)["forget"].bias += 1.0
    assert bias.tolist() == [0, 1, 3, 4, 4, 5, 6, 7]


def test_unknown_gate_error_lists_the_known_names(weights):
    with pytest.raises(KeyError, match="input, forget, cell, output, got 'update'"):
        gates.Gates(*weights)["update"]


def test_gates_are_a_mapping_of_the_four_names(weights):
    assert tuple(gates.Gates(*weights)) == gates.NAMES


def test_peepholes_are_views_of_the_gates_that_have_one(weights):
    peepholes = np.arange(6.0).reshape(3, H)
    found = gates.Gates(*weights, peepholes=peepholes)
    assert found["cell"].peephole is None
    found["output"].peephole = -1.0
    assert [found[name].peephole.tolist() for name in gates.PEEPHOLES] == [[0, 1], [2, 3], [-1, -1]]


def test_a_peephole_that_is_not_there_cannot_be_assigned_to(weights):
    with pytest.raises(AttributeError, match="no peephole"):
        gates.Gates(*weights)["input"].peephole = 1.0


def test_rows_of_a_projected_state_are_as_many_as_said(weights):
    kernel, bias = weights
    assert gates.Gates(kernel, bias, output_size=1)["input"].recurrent_kernel.shape == (1, H)
