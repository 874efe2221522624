"""`inspect`: every variable, its gates in their own order, and why the shapes are what they are.

What the command prints for a trained run is test_app_cli's affair as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmfast as lf
from lstmfast.command.main import main
from lstmfast.layouts import LAYOUTS, LSTMWeights, gate_order, to_arrays


def shapes(found: lf.Inspection) -> dict[str, tuple[int, ...]]:
    return {variable.name: variable.shape for variable in found.variables}


def counts_in_words(found: lf.Inspection) -> list[int]:
    """The numbers behind the equals signs of the formula."""
    lines = [line for line in found.formula if " = " in line]
    return [int(line.rstrip(".").rpartition(" = ")[2].replace(",", "")) for line in lines]


# --- what is published ------------------------------------------------------------------------------------------------


def test_tied_weights_are_named_in_the_formula() -> None:
    model = lf.CharLM(11, 4, embedding_size=4, tied=True)
    text = str(lf.inspect(model))
    assert "projection: the embedding transposed (tied weights), and one bias for each answer: 11." in text


def test_the_published_table_of_a_cell_from_12_to_64_comes_out_and_is_explained() -> None:
    found = lf.inspect(lf.LSTMCell(12, 64))
    kernel, bias = found.variables
    assert (kernel.name, kernel.shape, kernel.count, kernel.because) == (
        "kernel",
        (76, 256),
        19_456,
        "(12 + 64) x 4*64",
    )
    assert (bias.name, bias.shape, bias.count, bias.because) == ("bias", (256,), 256, "4*64")
    assert found.total == 19_712
    assert found.formula[-1] == "layer0: I = 12 (the input), H = 64: 4 x 64 x (12 + 64 + 1) = 19,712."


def test_the_published_pair_of_kernels_in_both_directions_comes_out_and_is_explained() -> None:
    found = lf.inspect(lf.LSTM(16, 256, bidirectional=True))
    kernels = [variable for variable in found.variables if variable.name.endswith("kernel")]
    assert [(each.name, each.shape, each.because) for each in kernels] == [
        ("layer0.kernel", (272, 1024), "(16 + 256) x 4*256"),
        ("layer0_reverse.kernel", (272, 1024), "(16 + 256) x 4*256"),
    ]
    words = "layer0, forward and reverse: I = 16 (the input), H = 256: 2 x (4 x 256 x (16 + 256 + 1)) = 559,104."
    assert found.formula[-1] == words


# --- anything with weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "thing",
    [
        lf.LSTMCell(3, 2),
        lf.LSTM(3, 2, num_layers=3),
        lf.LSTM(3, 2, num_layers=2, bidirectional=True),
        lf.LSTMCell(3, 4, peepholes=True, projection_size=2),
        lf.LSTM(3, 4, num_layers=2, bidirectional=True, peepholes=True, projection_size=2),
        lf.LSTM(3, 4, bidirectional=True, projection_size=2, layer_norm=True, learn_initial_state=True),
        lf.LSTMCell(3, 4, layer_norm="gates"),
        lf.CharLM(7, 3),
        lf.CharLM(7, 3, embedding_size=2, num_layers=2),
        lf.SequenceClassifier(5, 3, 4, bidirectional=True),
    ],
)
def test_counts_of_the_formula_add_up_to_all_variables(thing: Any) -> None:
    found = lf.inspect(thing)
    assert sum(counts_in_words(found)) == found.total == sum(values.size for values in thing.parameters.values())
    assert shapes(found) == {name: values.shape for name, values in thing.parameters.items()}


def test_variables_stand_in_the_order_of_the_model() -> None:
    model = lf.CharLM(7, 3, embedding_size=2, num_layers=11)
    assert list(shapes(lf.inspect(model))) == list(model.parameters)


def test_a_dense_layer_and_an_embedding_are_listed_without_gates() -> None:
    assert shapes(lf.inspect(lf.Linear(3, 2))) == {"kernel": (3, 2), "bias": (2,)}
    assert shapes(lf.inspect(lf.Embedding(5, 2))) == {"table": (5, 2)}
    assert not any(variable.gates for variable in lf.inspect(lf.Linear(4, 16)).variables)


def test_the_run_time_forget_bias_is_said_to_be_no_variable() -> None:
    assert lf.inspect(lf.LSTM(3, 2, forget_bias=0.7)).notes == (
        "Forget bias 0.7 is added at run time and is not a variable.",
    )


def test_settings_that_no_variable_shows_are_said() -> None:
    assert lf.inspect(lf.LSTM(3, 2, forget_bias=0.0, cell_clip=1.5, coupled_gates=True)).notes == (
        "The cell state is clipped to between -1.5 and 1.5 after every update.",
        "The gates are coupled: f = 1 - i, and the forget gate's columns are not read.",
    )


def test_peepholes_have_a_row_for_each_gate_that_sees_the_cell() -> None:
    found = lf.inspect(lf.LSTMCell(3, 2, peepholes=True))
    parts = [(gate.letter, gate.axis, gate.first, gate.count) for gate in found.variables[2].gates]
    assert parts == [("i", "rows", 0, 2), ("f", "rows", 1, 2), ("o", "rows", 2, 2)]
    assert "row 2 " in str(found)


def test_weights_and_dicts_of_arrays_are_looked_at_too() -> None:
    weights = LSTMWeights.from_layer(lf.LSTM(3, 2))
    assert shapes(lf.inspect(weights)) == {"layer0.kernel": (5, 8), "layer0.bias": (8,)}
    arrays = dict(to_arrays(weights, "pytorch"), epoch=np.array(3))
    assert shapes(lf.inspect(arrays))["epoch"] == ()


@pytest.mark.parametrize("name", LAYOUTS)
def test_gates_of_any_layout_are_found_where_that_library_has_them(name: str) -> None:
    """One gate after the other is filled with ones: the norms show that it is this one."""
    for gate in lf.gates.NAMES:
        layer = lf.LSTM(3, 2, forget_bias=0.0)
        layer.parameter_buffer[...] = 0.0
        view = layer.cells[0].gates[gate]
        view.input_kernel = view.recurrent_kernel = view.bias = 1.0
        found = lf.inspect(to_arrays(LSTMWeights.from_layer(layer), name))
        lit = {(part.name, part.count) for each in found.variables for part in each.gates if part.norm}
        assert {name for name, _ in lit} == {gate}
        assert sum(each.count for each in found.variables) == found.total == sum(counts_in_words(found))


@pytest.mark.parametrize("name", LAYOUTS)
def test_gates_stand_in_the_order_of_the_layout(name: str) -> None:
    found = lf.inspect(to_arrays(LSTMWeights.from_layer(lf.LSTM(3, 2, bidirectional=True)), name))
    for variable in found.variables:
        if len(variable.gates) == 4:
            assert "".join(part.letter for part in variable.gates) == gate_order(name)
            assert [(part.first, part.end) for part in variable.gates] == [(0, 2), (2, 4), (4, 6), (6, 8)]
            axis = -1 if variable.gates[0].axis == "columns" else -2
            assert variable.shape[axis] == 8


def test_norms_are_those_of_the_gates() -> None:
    cell = lf.LSTMCell(3, 2)
    cell.gates["cell"].input_kernel = 3.0  # 3 x 2 of them
    cell.gates["cell"].recurrent_kernel = 0.0
    [kernel, _] = lf.inspect(cell).variables
    assert kernel.gates[2].norm == pytest.approx(np.sqrt(6 * 9))


def test_an_lstm_that_cannot_be_used_is_listed_with_the_reason() -> None:
    found = lf.inspect({"a.weight_ih_l0": np.ones((9, 3)), "a.weight_hh_l0": np.ones((9, 2))})
    assert shapes(found) == {"a.weight_ih_l0": (9, 3), "a.weight_hh_l0": (9, 2)}
    assert found.notes[0].startswith("a cannot be used: weight_ih_l0 must have 4*hidden_size rows, got 9")


def test_json_holds_what_is_printed() -> None:
    found = lf.inspect(lf.LSTM(3, 2))
    words = json.loads(json.dumps(found.to_json()))
    kernel = words["variables"][0]
    assert (words["kind"], words["total"], kernel["shape"], kernel["dtype"]) == ("LSTM", 48, [5, 8], "float32")
    assert [gate["columns"] for gate in kernel["gates"]] == [[0, 2], [2, 4], [4, 6], [6, 8]]
    assert words["lstms"] == [
        {
            "name": "", "layout": "lstmfast", "input_size": 3, "hidden_size": 2, "output_size": 2, "num_layers": 1,
            "bidirectional": False, "forget_bias": 1.0,
        }
    ]


def test_numbers_that_are_not_finite_are_valid_json() -> None:
    cell = lf.LSTMCell(3, 2)
    cell.bias[0] = np.nan
    gate = lf.inspect(cell).to_json()["variables"][1]["gates"][0]
    assert gate["norm"] is None


@pytest.mark.parametrize("thing", [3, None, [np.ones(3)], np.ones(3)])
def test_what_has_no_weights_is_refused_by_type(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"x must be a cell, layer, model, .* path of a file, got \w+"):
        lf.inspect(thing)


# --- gates are views --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "thing",
    [
        lf.LSTM(3, 2, num_layers=2, bidirectional=True),
        lf.LSTM(3, 2, num_layers=2, bidirectional=True, cell_clip=3.0, coupled_gates=True),
        lf.CharLM(3, 2, num_layers=2),
        lf.SequenceClassifier(3, 2, 4, bidirectional=True),
    ],
)
def test_what_is_written_to_a_gate_reaches_the_next_call_of_a_layer_or_model(thing: Any, rng: Any) -> None:
    lstm = getattr(thing, "lstm", thing)
    x = rng.standard_normal((4, 5, 3)).astype(np.float32)
    before, after = lstm(x)[0], []
    for cell in lstm.cells:
        cell.gates["output"].bias = -90.0  # closed: h is zero, on some ISAs a denormal number
        cell.gates["output"].input_kernel = cell.gates["output"].recurrent_kernel = 0.0
        after.append(np.abs(lstm(x)[0]).max())
    assert np.abs(before).max() > 1e-3 and after[-1] < 1e-37
    assert np.count_nonzero(thing.parameter_buffer == -90.0) == 2 * len(lstm.cells)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_names_a_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = to_arrays(LSTMWeights.from_layer(lf.LSTM(3, 2, num_layers=2)), "haste")
    np.savez(tmp_path / "w.npz", **arrays)
    assert main(["inspect", str(tmp_path / "w.npz"), "--layout", "haste", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    letters = [gate["letter"] for gate in found["variables"][0]["gates"]]
    assert (found["lstms"][0]["num_layers"], letters) == (2, list("igfo"))


def test_escape_sequences_in_the_names_of_a_file_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "w.npz", **{"a\x1b[2J": np.ones(3)})
    assert main(["inspect", str(tmp_path / "w.npz")]) == 0
    assert "\x1b" not in capsys.readouterr().out
