"""`gate_statistics` and `viz`: numbers as plain loops give them, figures that show them, errors of one sentence.

Figures are looked into, not compared as pictures: their axes, labels and data.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmfast as lf
from lstmfast.gate_statistics import SIGMOID_GATES, forget_half_life, gate_saturation
from support import documents

T, B, INPUTS, H = 7, 3, 2, 5
LENGTHS = [7, 0, 4]


def output(rng: np.random.Generator, **options: Any) -> lf.Output:
    """An LSTM whose gates are often nearly closed or open."""
    x, kernel = rng.standard_normal((T, B, INPUTS)), 3 * rng.standard_normal((INPUTS + H, 4 * H))
    return lf.lstm(x, kernel, np.zeros(4 * H), **{"return_gates": True, "return_cells": True} | options)


def within(lengths: list[int] | None) -> list[tuple[int, int]]:
    """The steps and rows that count."""
    return [(t, b) for t in range(T) for b in range(B) if lengths is None or t < lengths[b]]


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_saturation_is_counted_step_by_step(rng: np.random.Generator, lengths: list[int] | None) -> None:
    gates = output(rng, lengths=lengths).gates
    shares = gate_saturation(gates, lengths=lengths, low=0.2, high=0.7)
    for row, gate in enumerate((0, 1, 3)):
        for unit in range(H):
            seen = [gates[t, b, gate, unit] for t, b in within(lengths)]
            assert shares.closed[row, unit] == pytest.approx(sum(value < 0.2 for value in seen) / len(seen))
            assert shares.open[row, unit] == pytest.approx(sum(value > 0.7 for value in seen) / len(seen))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_half_life_is_that_of_the_mean_logarithm(rng: np.random.Generator, lengths: list[int] | None) -> None:
    forget = output(rng, lengths=lengths).gates[:, :, 1]
    found = forget_half_life(forget, lengths=lengths)
    for unit in range(H):
        logs = [math.log(forget[t, b, unit]) for t, b in within(lengths)]
        assert found[unit] == pytest.approx(math.log(0.5) / (sum(logs) / len(logs)))


def test_half_of_a_cell_without_input_is_left_after_its_half_life() -> None:
    f = np.full((1, 1), 0.5 ** (1 / 12))
    assert forget_half_life(np.repeat(f, 30, axis=0))[0] == pytest.approx(12)


def test_half_life_is_infinite_for_an_open_gate_and_zero_after_a_closed_step() -> None:
    f = np.array([[1, 1], [1, 0], [1, 1]], "float32")
    assert forget_half_life(f).tolist() == [math.inf, 0]


def test_half_life_of_float32_gates_is_computed_in_float64() -> None:
    f = np.full((100_000, 1), 0.9999, "float32")
    assert forget_half_life(f)[0] == pytest.approx(math.log(0.5) / math.log(np.float32(0.9999)), rel=1e-9)


def test_one_sequence_needs_no_batch(rng: np.random.Generator) -> None:
    gates = output(rng).gates
    whole, alone = gate_saturation(gates[:, :1]), gate_saturation(gates[:, 0])
    np.testing.assert_array_equal(whole, alone)
    np.testing.assert_array_equal(forget_half_life(gates[:, :1, 1]), forget_half_life(gates[:, 0, 1]))


def test_the_statistics_leave_their_arguments_as_they_are(rng: np.random.Generator) -> None:
    gates = output(rng).gates
    before = gates.copy()
    gate_saturation(gates)
    forget_half_life(gates[:, :, 1])
    np.testing.assert_array_equal(gates, before)


@pytest.mark.parametrize(
    ("gates", "options", "sentence"),
    [
        (np.zeros((T, B, H)), {}, "gates must have shape (time_steps, batch, 4, hidden_size), or (time_steps, 4, hidde"
         "n_size) for one sequence, got (7, 3, 5)"),
        (np.zeros((T, B, 4, H), int), {}, "gates must be a float32 or float64 array, got int64"),
        ([[[0.5]]], {}, "gates must be a NumPy array of float32 or float64, got list"),
        (np.full((T, B, 4, H), -2.5), {}, "gates must be activated sigmoids, from 0 to 1, got -2.5"),
        (np.full((T, B, 4, H), np.nan), {}, "gates must be activated sigmoids, from 0 to 1, got nan"),
        (np.zeros((0, B, 4, H)), {}, "gates must have at least one step within lengths, got 0 steps of 3 sequences"),
        (np.zeros((T, B, 4, H)), {"lengths": [0, 0, 0]}, "gates must have at least one step within lengths"),
        (np.zeros((T, B, 4, H)), {"lengths": [8, 1, 1]}, "lengths must lie between 0 and 7 = time_steps, got 8"),
        (np.zeros((T, B, 4, H)), {"low": 0.9, "high": 0.1}, "low and high must be in order and at most 1"),
    ],
)
def test_wrong_gates_are_refused_in_one_sentence(gates: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        gate_saturation(gates, **options)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def test_a_candidate_below_zero_is_no_error() -> None:
    gates = np.full((T, 4, H), 0.5)
    gates[:, 2] = -0.9
    assert gate_saturation(gates).closed.sum() == 0


@pytest.mark.parametrize("shape", [(H,), (T, B, 4, H)])
def test_wrong_forget_gates_are_refused_in_one_sentence(shape: tuple[int, ...]) -> None:
    wanted = r"f must have shape \(time_steps, batch, hidden_size\), or \(time_steps, hidden_size\) for one sequence"
    with pytest.raises(ValueError, match=wanted):
        forget_half_life(np.full(shape, 0.5))


# --- figures ----------------------------------------------------------------------------------------------------------


draws = pytest.mark.usefixtures("drawn")


@pytest.fixture
def drawn() -> None:
    """For tests that draw: skip them where matplotlib is not installed."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[plot]'")


def saved(figure: Any, folder: Path) -> int:
    """The size of a figure as a PNG: everything in it was drawn."""
    figure.savefig(folder / "figure.png")
    return (folder / "figure.png").stat().st_size


def panels(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


@draws
def test_gates_over_time_shows_the_steps_of_the_units(rng: np.random.Generator, tmp_path: Path) -> None:
    out = output(rng)
    figure = lf.viz.gates_over_time(out, [4, 0], row=2)
    wanted = [*(out.gates[:, 2, gate] for gate in range(4)), out.cells[:, 2], out.h[:, 2]]
    for axes, values in zip(panels(figure), wanted, strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), values[:, 4])
        np.testing.assert_array_equal(axes.lines[1].get_ydata(), values[:, 0])
    assert saved(figure, tmp_path)


@draws
def test_gates_over_time_names_gates_states_units_and_steps(rng: np.random.Generator) -> None:
    axes = panels(lf.viz.gates_over_time(output(rng), [4, 0]))
    names = ["input gate", "forget gate", "candidate", "output gate", "cell state", "output"]
    assert [part.get_title(loc="left").split("  ") for part in axes] == [
        [f"${letter}$", name] for letter, name in zip("ifgoch", names, strict=True)
    ]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["unit 4", "unit 0"]
    assert axes[-1].get_xlabel() == "time step"


@draws
def test_gates_over_time_ends_with_its_row_and_takes_a_label_per_step(rng: np.random.Generator) -> None:
    axes = panels(lf.viz.gates_over_time(output(rng, lengths=LENGTHS), [1], row=2, lengths=LENGTHS, labels="a bc"))
    assert {len(part.lines[0].get_ydata()) for part in axes} == {4}
    assert [label.get_text() for label in axes[-1].get_xticklabels()] == ["a", " ", "b", "c"]


@draws
def test_arrays_are_drawn_as_an_output_is(rng: np.random.Generator) -> None:
    out = output(rng)
    alone = lf.viz.gates_over_time(out.gates[:, 1], [2], cells=out.cells[:, 1], h=out.h[:, 1])
    for one, other in zip(panels(alone), panels(lf.viz.gates_over_time(out, [2], row=1)), strict=True):
        np.testing.assert_array_equal(one.lines[0].get_ydata(), other.lines[0].get_ydata())


@draws
def test_states_that_are_not_there_have_no_panel(rng: np.random.Generator) -> None:
    assert len(panels(lf.viz.gates_over_time(output(rng, return_cells=False), [0]))) == 5
    assert len(panels(lf.viz.gates_over_time(output(rng).gates, [0]))) == 4


@draws
def test_an_output_after_a_projection_is_left_out(rng: np.random.Generator) -> None:
    kernel = rng.standard_normal((INPUTS + 2, 4 * H))
    out = lf.lstm(
        rng.standard_normal((T, B, INPUTS)), kernel, np.zeros(4 * H), projection=np.ones((H, 2)), return_gates=True,
        return_cells=True,
    )
    assert len(panels(lf.viz.gates_over_time(out, [0]))) == 5


@draws
def test_saturation_has_a_point_for_each_unit(rng: np.random.Generator, tmp_path: Path) -> None:
    out = output(rng)
    figure = lf.viz.saturation(out, low=0.2, high=0.8)
    shares = gate_saturation(out.gates, low=0.2, high=0.8)
    for number, axes in enumerate(panels(figure)):
        points = np.stack([shares.closed[number], shares.open[number]], axis=1)
        np.testing.assert_array_equal(axes.collections[0].get_offsets(), points)
        assert axes.get_title() == f"{SIGMOID_GATES[number]} gate"
        assert axes.get_xlabel() == "share of steps below 0.2"
    assert panels(figure)[0].get_ylabel() == "share of steps above 0.8"
    assert saved(figure, tmp_path)


@draws
def test_histogram_holds_every_unit_and_says_its_median(rng: np.random.Generator, tmp_path: Path) -> None:
    out = output(rng)
    figure = lf.viz.forget_half_lives(out, bins=6)
    (axes,) = figure.axes
    half_lives = forget_half_life(out.gates[:, :, 1])
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in axes.patches]
    for low, high, count in bars[:-1]:
        assert count == np.sum((half_lives >= low) & (half_lives < high))
    assert len(bars) == 6 and sum(count for *_, count in bars) == H
    assert axes.get_legend().get_texts()[0].get_text() == f"median {np.median(half_lives):.3g}"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("half-life of the cell state in steps", "units")
    assert saved(figure, tmp_path)


@draws
@pytest.mark.parametrize(
    ("forget", "notes"),
    [
        ([1, 1, 1], ["3 units at infinity (f was always 1)"]),
        ([0, 0.5, 1], ["median 1", "1 unit at 0 (f was 0)", "1 unit at infinity (f was always 1)"]),
        ([0.5, 0.5, 0.5], ["median 1"]),
        ([0, 0, 0], ["3 units at 0 (f was 0)"]),
        ([1e-30, 0.5, 1 - 1e-12], ["median 1"]),
    ],
)
def test_half_lives_without_a_place_on_the_axis_are_counted(
    forget: list[float], notes: list[str], tmp_path: Path
) -> None:
    figure = lf.viz.forget_half_lives(np.full((T, 4, 3), forget, float))
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == notes
    assert saved(figure, tmp_path)


@draws
def test_the_four_images_are_the_columns_of_the_kernel(rng: np.random.Generator, tmp_path: Path) -> None:
    cell = lf.LSTMCell(3, H, rng=rng)
    figure = lf.viz.weights_by_gate(cell, input_names="abc", limit=0.25)
    upper, lower = panels(figure)[:4], panels(figure)[4:]
    for number, (inputs, outputs) in enumerate(zip(upper, lower, strict=True)):
        gate = list(cell.gates.values())[number]
        np.testing.assert_array_equal(inputs.images[0].get_array(), gate.input_kernel)
        np.testing.assert_array_equal(outputs.images[0].get_array(), gate.recurrent_kernel)
        assert inputs.images[0].get_clim() == outputs.images[0].get_clim() == (-0.25, 0.25)
        assert outputs.get_xlabel() == "unit"
    titles = ["$i$  input gate", "$f$  forget gate", "$g$  candidate", "$o$  output gate"]
    assert [axes.get_title() for axes in upper] == titles
    assert [upper[0].get_ylabel(), lower[0].get_ylabel()] == ["rows of x", "rows of h"]
    assert [label.get_text() for label in upper[0].get_yticklabels()] == list("abc")
    assert saved(figure, tmp_path)


@draws
def test_every_row_of_an_alphabet_has_its_name() -> None:
    letters = " abcdefghijklmnopqrstuvwxyz"
    axes = lf.viz.weights_by_gate(np.ones((27 + 64, 256)), input_names=letters).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(letters)


@draws
def test_rows_of_the_input_end_where_those_of_the_projection_begin(rng: np.random.Generator) -> None:
    cell = lf.LSTMCell(3, H, projection_size=2, rng=rng)
    for figure in (lf.viz.weights_by_gate(cell), lf.viz.weights_by_gate(cell.kernel, output_size=2)):
        assert [axes.images[0].get_array().shape for axes in panels(figure)] == 4 * [(3, H)] + 4 * [(2, H)]


@draws
def test_colours_end_at_a_high_percentile_of_the_weights() -> None:
    kernel = np.linspace(-1, 0.5, 8 * 16).reshape(8, 16)
    kernel[0, 0] = 100
    figure = lf.viz.weights_by_gate(kernel)
    assert figure.axes[0].images[0].get_clim()[1] == pytest.approx(np.percentile(np.abs(kernel), 99.5))


@draws
def test_weights_of_zero_are_drawn(tmp_path: Path) -> None:
    assert saved(lf.viz.weights_by_gate(np.zeros((3, 8))), tmp_path)


@draws
def test_figures_are_drawn_where_the_caller_says(rng: np.random.Generator, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure, out = Figure((16, 12), layout="constrained"), output(rng)
    parts = figure.subfigures(2, 2).ravel()
    assert lf.viz.gates_over_time(out, [0], figure=parts[0]) is parts[0]
    assert lf.viz.saturation(out, figure=parts[1]) is parts[1]
    assert lf.viz.weights_by_gate(lf.LSTMCell(2, 3), figure=parts[2]) is parts[2]
    axes = parts[3].subplots()
    assert lf.viz.forget_half_lives(out, ax=axes) is axes.figure
    assert saved(figure, tmp_path)


@draws
@pytest.mark.parametrize(
    ("arguments", "options", "error", "sentence"),
    [
        ([[5]], {}, ValueError, "units must be below 5, got 5"),
        ([[]], {}, ValueError, "units must be 1 to 8 units, got 0: more cannot be told apart"),
        ([9 * [0]], {}, ValueError, "units must be 1 to 8 units, got 9: more cannot be told apart"),
        ([3], {}, TypeError, "units must be a sequence of whole numbers, such as [0, 5], got 3"),
        ([[0.5]], {}, TypeError, "units must be a whole number, got 0.5"),
        ([[0]], {"row": 3}, ValueError, "row must be below 3, got 3"),
        ([[0]], {"labels": "abc"}, ValueError, "labels must be one for each of the 7 steps shown, got 3"),
        ([[0]], {"row": 1, "lengths": LENGTHS}, ValueError, "gates must have at least one step to draw, got none in r"
         "ow 1"),
        ([[0]], {"cells": np.zeros((T, B, 4))}, ValueError, "cells must have shape (time_steps, batch, 5), or (time_"
         "steps, 5) for one sequence, got (7, 3, 4)"),
        ([[0]], {"h": np.zeros((T, H))}, ValueError, "h must have shape (7, 3, 5) = (time_steps, batch, hidden_size) of"
         " gates, got (7, 1, 5)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    arguments: list[Any], options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as raised:
        lf.viz.gates_over_time(np.full((T, B, 4, H), 0.5), *arguments, **options)
    assert str(raised.value) == sentence


@pytest.mark.parametrize("name", ["gates_over_time", "saturation", "forget_half_lives"])
def test_an_output_without_gates_says_how_to_get_them(rng: np.random.Generator, name: str) -> None:
    arguments = [[0]] if name == "gates_over_time" else []
    with pytest.raises(ValueError, match=r"gates must be the output of lstm\(..., return_gates=True\), got "):
        getattr(lf.viz, name)(output(rng, return_gates=False), *arguments)


def test_states_beside_an_output_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="cells and h must be None beside the output of lstm, which has its own"):
        lf.viz.gates_over_time(output(rng), [0], h=np.zeros((T, B, H)))


@pytest.mark.parametrize(
    ("kernel", "options", "sentence"),
    [
        (np.zeros((7, 10)), {}, "kernel must have shape (input_size + 2, 4*hidden_size) with input_size at least 1, got"
         " (7, 10)"),
        (np.zeros((2, 8)), {}, "kernel must have shape (input_size + 2, 4*hidden_size) with input_size at least 1, got "
         "(2, 8)"),
        (np.zeros(8), {}, "kernel must have shape (input_size + output_size, 4*hidden_size), got (8,)"),
        (np.full((3, 8), np.nan), {}, "kernel must be finite, got NaN or infinity"),
        (np.zeros((3, 8)), {"input_names": "ab"}, "input_names must be one for each of the 1 rows of x, got 2"),
        (np.zeros((3, 8)), {"limit": 0.0}, "limit must be above 0, got 0"),
        (lf.LSTMCell(2, 3), {"output_size": 3}, "output_size must be None for a cell, which has its own, got 3"),
    ],
)
def test_wrong_kernels_are_refused_in_one_sentence(kernel: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        lf.viz.weights_by_gate(kernel, **options)
    assert str(raised.value) == sentence


def test_a_missing_matplotlib_is_one_sentence(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"^lstmfast\.viz needs matplotlib: pip install 'lstmfast\[plot\]' \(.*\)$"):
        lf.viz.saturation(output(rng))


@draws
def test_drawing_leaves_pyplot_alone() -> None:
    code = "import sys, numpy as np, lstmfast as lf; lf.viz.weights_by_gate(np.ones((3, 8))); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "matplotlib.figure" in loaded and "matplotlib.pyplot" not in loaded


# --- the page ---------------------------------------------------------------------------------------------------------


@draws
def test_the_code_of_the_page_runs_and_draws_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = documents.python_of("viz.md")
    assert code.count("2000") == 2
    exec(code.replace("2000", "300"), {})
    assert float(capsys.readouterr().out.split()[-1]) < 0.1
    shown = {path.name for path in (documents.DOCS / "viz").glob("*.png")}
    assert {path.name for path in tmp_path.glob("*.png")} == shown == {"gates.png", "statistics.png", "weights.png"}


def test_the_pictures_of_the_page_are_small() -> None:
    sizes = [path.stat().st_size for path in (documents.DOCS / "viz").glob("*.png")]
    assert sizes and max(sizes) < 150_000
