"""The page about a run: what is said of a text, of cells and of causes, and what the command does with mistakes.

What a browser does with the page is not claimed here.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import lstmfast as lf
from lstmfast import reference
from lstmfast.command.main import main
from lstmfast.data import Vocabulary
from lstmfast.gate_statistics import forget_half_life
from lstmfast.report import causes, cells, page
from lstmfast.report.network import Network, axis_of_scales, quantized, rounded
from lstmfast.report.passage import Passage, characters_of_bytes, own_passage, passage_of, spelling
from lstmfast.report.tracks import ABOUT, tracks
from lstmfast.run_folder import RunFolder, load_model
from lstmfast.training import checkpoint
from lstmfast.training.config import Config, DataConfig
from support import tolerances

TEXT = "the cat sat on the mat\n" * 60
TINY = [
    "--steps", "12", "--hidden-size", "8", "--batch-size", "4", "--unroll", "5", "--summary-every", "5",
    "--sample-length", "30", "--seed", "1", "--valid-fraction", "0.2",
]
ABC = Vocabulary.characters("\n abc")

Run = Callable[..., tuple[int, str, str]]


# --- tracks -----------------------------------------------------------------------------------------------------------


def line_of(before: str) -> str:
    return before.rpartition("\n")[2]


def run_at_end(before: str, belongs: Callable[[str], bool]) -> int:
    return sum(1 for _ in itertools.takewhile(belongs, reversed(before)))


def since_empty_line(before: str) -> int:
    """Characters after the last line break that ends a line of no characters."""
    ends = [end.end() for end in re.finditer(r"(?:^|(?<=\n))\n", before)]
    return len(before) - (ends[-1] if ends else 0)


PLAIN: dict[str, Callable[[str], float]] = {  # of all that was read, up to the character in question
    "position in the line": lambda before: len(line_of(before)),
    "indentation": lambda before: len(line_of(before)) - len(line_of(before).lstrip(" \t")),
    "inside the indentation": lambda before: line_of(before) != "" and line_of(before).strip(" \t") == "",
    "start of a word": lambda before: run_at_end(before, str.isalpha) == 1,
    "length of the word": lambda before: run_at_end(before, str.isalpha),
    "capital letter": lambda before: before[-1].isupper(),
    "line of capitals": lambda before: line_of(before).isupper(),
    "digit": lambda before: before[-1].isdigit(),
    "white space": lambda before: before[-1].isspace(),
    "punctuation": lambda before: not (before[-1].isalpha() or before[-1].isdigit() or before[-1].isspace()),
    "characters since an empty line": since_empty_line,
}


@pytest.mark.parametrize("name", PLAIN)
@given(text=st.text(" \t\n\n\nabXYZéß19²½_.#'\"(", max_size=60))
def test_a_track_is_its_plain_statement_at_every_character(name: str, text: str) -> None:
    expected = [PLAIN[name](text[: end + 1]) for end in range(len(text))]
    assert tracks(text)[name].tolist() == expected


MARKED = {  # under each text: where the track is 1
    "inside quotes": [
        ('a "b c" d',
         "  ||||   "),
        ("a 'b' c",
         "  ||   "),
        ("“b” «c»",
         "||  || "),
        ('""a',
         "|  "),
        ('x = """b "c"\n\nd""" e',
         "    |||||||||||     "),
        ("'''b''' c",
         "||||     "),
        ('"a\\"b" c',
         "|||||   "),
        ('"a\\\\" c',
         "||||   "),
        ("don't 'say' it",
         "      ||||    "),
        ("'I don't' a",
         "||||||||   "),
        ("f'{x}' b'\\x00' Rb'\\d' y",
         " ||||   |||||    |||   "),
        ("d'accord, l'eau.",
         "                "),
        ('"a\nb"\nc',
         "|| ".ljust(4) + "|  "),
        ("“a\nb” c",
         "||||   "),
        ('"it\'s" a',
         "|||||   "),
    ],
    "inside brackets": [
        ("a (b [c] {d}) e",
         "  ||||||||||   "),
        ("a) (b",
         "   ||"),
        ('(")" c) d',
         "||||||   "),
        ("# (\na",
         "     "),
        ("(a\nb) c",
         "||||   "),
        ("(a\n\nb",
         "|||  "),
        ("(a # b\n\nc",
         "|||||||  "),
        ("(a\n\n\nb",
         "|||   "),
    ],
    "inside a comment": [
        ("a # b\nc",
         "  |||  "),
        ('"#" # "\nc',
         "    |||  "),
        ("# it's\n#\n",
         "|||||| | "),
        ("'''\n# a\n''' # b",
         "            |||"),
    ],
}


@pytest.mark.parametrize(("name", "text", "marks"), [(name, *case) for name in MARKED for case in MARKED[name]])
def test_marks_open_and_close_where_they_stand(name: str, text: str, marks: str) -> None:
    found = "".join("|" if value else " " for value in tracks(text)[name])
    assert found == marks


@given(text=st.text())
@example(text="")
@example(text="\\")
@example(text="'\"\"\"")
@example(text="\ud800")
def test_any_text_has_finite_values_of_its_length_for_every_track(text: str) -> None:
    found = tracks(text)
    assert list(found) == list(ABOUT)
    assert all(values.shape == (len(text),) and np.isfinite(values).all() for values in found.values())


# --- cells ------------------------------------------------------------------------------------------------------------


def counter(rng: np.random.Generator, hidden_size: int = 6) -> lf.CharLM:
    """A model of "\n", "a", "b" with random cells, but cell 2 adds 0.02 at each character and forgets at "\n"."""
    model = lf.CharLM(3, hidden_size, forget_bias=0.0, rng=rng)
    kernel = model.parameters["lstm.layer0.kernel"].reshape(-1, 4, hidden_size)
    kernel *= 3
    kernel[:, :, 2] = 0
    model.parameters["lstm.layer0.bias"].reshape(4, hidden_size)[:, 2] = [30, 30, math.atanh(0.02), 0]
    kernel[0, :2, 2] = -60  # at "\n" nothing comes in and nothing stays
    return model


def test_a_cell_that_counts_columns_is_found_first_for_the_position_in_the_line(rng: np.random.Generator) -> None:
    lengths = rng.integers(5, 60, 40)
    text = "".join("".join(rng.choice(["a", "b"], length)) + "\n" for length in lengths)
    ids = Vocabulary.characters("\nab").encode(text)
    found = cells.find(Network.of(counter(rng)).read(ids).c, tracks(text), rng=rng)
    first = next(finding for finding in found if finding.track == "position in the line")
    assert (first.layer, first.cell, first.r > 0.9, first.chance < 0.5) == (0, 2, True, True)


def test_findings_are_the_strongest_of_all_layers_in_order(rng: np.random.Generator) -> None:
    c = [rng.standard_normal((200, 5)), rng.standard_normal((200, 3))]
    track = rng.standard_normal(200)
    found = cells.find(c, {"track": track}, rng=rng, best=8)
    strongest = {
        (layer, cell): max(abs(np.corrcoef(state[:, cell], track)[0, 1]) for state in (own, np.tanh(own)))
        for layer, own in enumerate(c)
        for cell in range(own.shape[1])
    }
    assert [(one.layer, one.cell) for one in found] == sorted(strongest, key=lambda place: -strongest[place])
    assert [abs(one.r) for one in found] == pytest.approx([strongest[one.layer, one.cell] for one in found])


@pytest.mark.parametrize("bounded", [False, True])
def test_a_finding_says_whether_it_is_of_c_or_of_its_tanh(rng: np.random.Generator, bounded: bool) -> None:
    c = rng.standard_normal((300, 1)) * 3
    track = np.tanh(c[:, 0]) if bounded else c[:, 0]
    [found] = cells.find([c], {"track": track}, rng=rng)
    assert (found.bounded, found.r) == (bounded, pytest.approx(1.0))


@pytest.mark.filterwarnings("error")
def test_constant_tracks_and_cells_give_no_finding(rng: np.random.Generator) -> None:
    moving, still = rng.standard_normal((50, 3)), np.full((50, 3), 0.3)
    assert cells.find([moving], {"constant": np.ones(50)}, rng=rng) == []
    assert cells.find([still], {"moving": rng.standard_normal(50)}, rng=rng) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_texts_of_a_few_symbols_give_findings_without_a_warning(rng: np.random.Generator, steps: int) -> None:
    found = cells.find([rng.standard_normal((steps, 3))], {"track": np.arange(steps)}, rng=rng)
    assert (len(found), all(np.isfinite([one.r, one.chance]).all() for one in found)) == (3 if steps > 1 else 0, True)


def test_correlations_are_pearsons(rng: np.random.Generator) -> None:
    c, known = rng.standard_normal((100, 4)).astype(np.float32), rng.standard_normal((3, 100)) + 5
    expected = np.corrcoef(known, c.T.astype(np.float64))[:3, 3:]
    np.testing.assert_allclose(cells.correlations(c, known), expected, **tolerances.sums("float64", 100))


@pytest.mark.parametrize(("steps", "low", "high"), [(20_000, 0.0, 0.1), (10, 0.6, 1.0)])
def test_chance_is_small_for_long_texts_of_noise_and_large_for_short_ones(
    rng: np.random.Generator, steps: int, low: float, high: float
) -> None:
    found = cells.find([rng.standard_normal((steps, 30))], {"noise": rng.standard_normal(steps)}, rng=rng)
    assert low < found[0].chance < high


def test_saturation_is_counted_step_by_step(rng: np.random.Generator) -> None:
    gates = rng.random((40, 4, 3))
    gates[:, 2] = 2 * gates[:, 2] - 1  # the candidate is a tanh
    expected = np.zeros((4, 3, 2))
    for step, gate, cell in np.ndindex(gates.shape):
        value = gates[step, gate, cell]
        expected[gate, cell] += [value < (-0.9 if gate == 2 else 0.1), value > 0.9]
    np.testing.assert_allclose(cells.saturation(gates), expected / 40, **tolerances.SAME)


def steps_to_half(forget: np.ndarray) -> float:
    """The mean, over all moments, of the steps until half is left or the text ends."""
    steps = []
    for start in range(len(forget)):
        left = np.cumprod(forget[start:])
        steps.append(int(np.argmax(left <= 0.5)) + 1 if left[-1] <= 0.5 else len(left))
    return float(np.mean(steps))


def test_half_lives_are_the_mean_steps_until_half_is_left(rng: np.random.Generator) -> None:
    forget = rng.random((300, 4)) ** np.array([2.0, 0.5, 0.05, 0.005])
    assert cells.half_lives(forget).tolist() == pytest.approx([steps_to_half(column) for column in forget.T])


@pytest.mark.parametrize("forget", [0.1, 0.6, 0.9, 0.99, 0.999])
def test_the_half_life_of_a_constant_gate_is_that_of_its_power(forget: float) -> None:
    [found] = cells.half_lives(np.full((100_000, 1), forget, np.float32))
    assert found == pytest.approx(math.ceil(math.log(0.5) / math.log(forget)), rel=0.01)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("forget", "expected"), [(0.0, 1.0), (1.0, 50.5)], ids=["shut", "open"])
def test_a_shut_gate_leaves_nothing_and_an_open_one_is_bounded_by_the_text(forget: float, expected: float) -> None:
    assert cells.half_lives(np.full((100, 2), forget, np.float32)).tolist() == [expected, expected]


def test_a_cell_that_forgets_at_line_ends_remembers_for_half_a_line() -> None:
    """The mean of ln f, which `forget_half_life` goes by, is that of its line ends alone."""
    forget = np.ones((4000, 1))
    forget[::40] = 0
    assert (cells.half_lives(forget)[0], forget_half_life(forget)[0]) == (pytest.approx(20.5, abs=0.5), 0)


# --- the network and causes -------------------------------------------------------------------------------------------

V, H = 7, 5
VARIANTS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "embedding": {"embedding_size": 3, "num_layers": 2},
    "projection": {"cell": lf.Cell(projection_size=3), "num_layers": 2},
    "peepholes": {"cell": lf.Cell(peepholes=True), "num_layers": 2},
    "clip": {"cell": lf.Cell(cell_clip=0.4), "num_layers": 2},
    "coupled": {"cell": lf.Cell(coupled_gates=True), "num_layers": 2},
    "tied": {"embedding_size": H, "tied": True},
    "all": {
        "cell": lf.Cell(0.5, projection_size=4, peepholes=True, cell_clip=0.8, coupled_gates=True),
        "num_layers": 2, "embedding_size": 4, "tied": True,
    },
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def model_of(variant: str, rng: np.random.Generator, dtype: Any = "float64") -> lf.CharLM:
    """A model whose gates are neither linear nor saturated."""
    model = lf.CharLM(V, H, dtype=dtype, rng=rng, **VARIANTS[variant])
    model.parameter_buffer *= 2
    return model


def table_of(model: lf.CharLM) -> np.ndarray:
    """The vector that stands for each symbol."""
    return model.parameters["embedding"] if model.embedding else np.eye(V, dtype=model.dtype)


def top_kernel_of(model: lf.CharLM) -> np.ndarray:
    return model.parameters["embedding"].T if model.tied else model.parameters["projection.kernel"]


def by_reference(model: lf.CharLM, x: np.ndarray) -> tuple[np.ndarray, list[reference.Output]]:
    """Logits [T, V] after vectors x [T, I], and each layer's output."""
    outputs, cell = [], model.cell
    values = x[:, None]
    for layer in model.lstm.cells:
        out = reference.lstm(
            values, layer.kernel, layer.bias, forget_bias=cell.forget_bias, peepholes=layer.peepholes,
            projection=layer.projection, cell_clip=cell.cell_clip, coupled_gates=cell.coupled_gates,
        )
        outputs.append(out)
        values = out.h
    return values[:, 0] @ top_kernel_of(model) + model.parameters["projection.bias"], outputs


@variants
def test_reading_is_what_the_model_and_the_reference_compute(
    variant: str, dtype: np.dtype[Any], rng: np.random.Generator
) -> None:
    model = model_of(variant, rng, dtype)
    ids = rng.integers(0, V, 30)
    trace = Network.of(model).read(ids)
    logits, outputs = by_reference(model, table_of(model)[ids])
    near = tolerances.states(dtype, V + H)
    np.testing.assert_allclose(trace.logits, model(ids[:, None].astype(np.int32))[0][:, 0], **near)
    np.testing.assert_allclose(trace.logits, logits, **near)
    for layer, out in enumerate(outputs):
        for found, expected in ((trace.h, out.h), (trace.c, out.cells), (trace.gates, out.gates)):
            assert found[layer].dtype == dtype
            np.testing.assert_allclose(found[layer], expected[:, 0], **near)


def test_surprise_is_the_loss_in_bits(rng: np.random.Generator) -> None:
    model = model_of("two layers", rng, "float32")
    ids = rng.integers(0, V, 30).astype(np.int32)
    loss, _ = model.loss(ids[:-1, None], ids[1:, None])
    bits = Network.of(model).read(ids).surprise(ids)
    assert (bits.shape, bits.mean()) == ((29,), pytest.approx(loss / math.log(2), rel=1e-6))


def logits_without(model: lf.CharLM, ids: np.ndarray, layer: int, cell: int) -> np.ndarray:
    """Logits [T, V] where o * tanh(c) of one cell is zero at every step."""
    kind = model.cell
    state = [(np.zeros((1, kind.output_size(H))), np.zeros((1, H))) for _ in model.lstm.cells]
    logits = []
    for x in table_of(model)[ids]:
        values = x[None]
        for number, own in enumerate(model.lstm.cells):
            m, c = reference.lstm_step(
                values, *state[number], own.kernel, own.bias, forget_bias=kind.forget_bias, peepholes=own.peepholes,
                cell_clip=kind.cell_clip, coupled_gates=kind.coupled_gates,
            )
            if number == layer:
                m[:, cell] = 0
            values = m if own.projection is None else m @ own.projection
            state[number] = values, c
        logits.append(values[0] @ top_kernel_of(model) + model.parameters["projection.bias"])
    return np.array(logits)


@variants
@pytest.mark.parametrize("layer", [0, 1])
def test_a_network_without_a_cell_is_the_loop_that_holds_it_at_zero(
    variant: str, layer: int, rng: np.random.Generator
) -> None:
    model = model_of(variant, rng)
    layer = min(layer, model.num_layers - 1)
    ids, before = rng.integers(0, V, 20), model.parameter_buffer.copy()
    found = Network.of(model).without(layer, 3).read(ids).logits
    np.testing.assert_allclose(found, logits_without(model, ids, layer, 3), **tolerances.states("float64", V + H))
    np.testing.assert_array_equal(model.parameter_buffer, before)


def test_knocking_out_gives_the_bits_of_each_network_without_the_cell(rng: np.random.Generator) -> None:
    model, places = model_of("two layers", rng), [(0, 1), (1, 4)]
    ids = rng.integers(0, V, 20)
    found = causes.knock_out(Network.of(model), ids, places)
    expected = {
        place: bits_of(logits_without(model, ids, *place), ids) for place in places
    }
    assert found == pytest.approx(expected)


def bits_of(logits: np.ndarray, ids: np.ndarray) -> float:
    """Mean bits of each of ids but the first."""
    p = reference.softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]]
    return float(-np.log2(p).mean())


@variants
def test_weights_of_the_page_are_within_half_a_step_of_the_models(
    variant: str, dtype: np.dtype[Any], rng: np.random.Generator
) -> None:
    exact = Network.of(model_of(variant, rng, dtype))
    seen = []

    def check(name: str, values: np.ndarray) -> np.ndarray:
        integers, scales = quantized(values, axis_of_scales(name))
        seen.append(name)
        assert integers.dtype == np.int8 and (np.abs(integers) <= 127).all() and scales.dtype == np.float32
        assert (np.abs(integers * scales - values) <= scales * (0.5 + 1e-4)).all()
        return np.asarray(integers * scales, dtype)

    by_hand, found = exact.map(check), rounded(exact)
    ids = np.arange(V)
    np.testing.assert_array_equal(found.read(ids).logits, by_hand.read(ids).logits)
    assert (found.output_bias is exact.output_bias, found.output_kernel.dtype, len(seen) >= 3) == (True, dtype, True)


@pytest.mark.parametrize("variant", ["tied", "all"])
def test_tied_weights_stay_tied_when_rounded(variant: str, rng: np.random.Generator) -> None:
    network = rounded(Network.of(model_of(variant, rng)))
    assert network.table is not None
    np.testing.assert_array_equal(network.table.T, network.output_kernel)


def test_columns_of_zeros_are_rounded_to_zeros() -> None:
    integers, scales = quantized(np.zeros((3, 2), np.float32))
    assert (integers.tolist(), scales.tolist()) == ([[0, 0]] * 3, [[0.0, 0.0]])


@variants
@pytest.mark.parametrize(("position", "window"), [(6, 100), (6, 3), (1, 100)])
def test_connectivity_is_the_norm_of_central_differences(
    variant: str, position: int, window: int, rng: np.random.Generator
) -> None:
    model = model_of(variant, rng)
    ids = rng.integers(0, V, 9)
    x = table_of(model)[ids[:position]]
    step = tolerances.DIFFERENCE_STEP

    def log_p(where: tuple[int, ...], change: float) -> float:
        moved = x.copy()
        moved[where] += change
        return float(np.log(reference.softmax(by_reference(model, moved)[0][-1])[ids[position]]))

    slopes = np.zeros(x.shape)
    for where in np.ndindex(x.shape):
        slopes[where] = (log_p(where, step) - log_p(where, -step)) / (2 * step)
    network = Network.of(model)
    found = causes.connectivity(network, network.read(ids), ids, position, window)
    np.testing.assert_allclose(found, np.linalg.norm(slopes, axis=1)[-window:], **tolerances.DIFFERENCE)


@pytest.mark.parametrize(("strengths", "expected"), [([0, 0, 2.0], 1), ([1.0, 0, 1], 2), ([0.0, 0], 0), ([3.0], 1)])
def test_reach_is_the_mean_distance_weighted_by_strength(strengths: list[float], expected: float) -> None:
    assert causes.reach(np.array(strengths)) == expected


# --- the passage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(contents: str | bytes, vocabulary: Vocabulary, length: int = 100, **options: Any) -> Passage:
    """The passage of a file with these contents."""
    Path("t.txt").write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    return passage_of(["t.txt"], vocabulary, length, **{"fold": False, "encoding": "utf-8", **options})


def test_a_known_text_is_read_whole(in_folder: Path) -> None:
    passage = read("cab\nab", ABC)
    assert (passage.text, ABC.decode(passage.ids), passage.notes) == (
        "cab\nab", "cab\nab", ("The text is t.txt: 6 characters, 4 symbols.",)
    )


def test_unknown_characters_are_left_out_and_named(in_folder: Path) -> None:
    passage = read("aXbXc\N{EURO SIGN}", ABC)
    assert (passage.text, ABC.decode(passage.ids), passage.notes[1:]) == (
        "abc", "abc",
        ("3 characters were left out, because the run does not know them: 'X' (2), '€' (1).",)
    )


def test_one_unknown_character_is_one(in_folder: Path) -> None:
    assert read("aXb", ABC).notes[1].startswith("1 character was left out")


def test_of_many_unknown_characters_the_most_frequent_are_named(in_folder: Path) -> None:
    note = read("a" + "ABCDEFG" + "XX", ABC).notes[1]
    assert re.fullmatch(r"9 characters were left out.*: 'X' \(2\),( '[A-G]' \(1\),?){4} and 3 others\.", note)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("", "the text is empty: .*t.txt holds no characters"),
        ("XYZ", r"the run knows none of the first 3 characters of the text, such as 'X'; it knows '\\n abc'"),
        ("X" * 200 + "abc", "the run knows none of the first 100 characters"),
    ],
    ids=["empty", "unknown", "known only beyond the length"],
)
def test_a_text_of_which_nothing_can_be_shown_is_refused(in_folder: Path, contents: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(contents, ABC)


def test_of_a_longer_text_the_beginning_is_read_and_said_so(in_folder: Path) -> None:
    passage = read("abc" * 1000, ABC, 1100)
    assert (passage.text, passage.notes) == (
        ("abc" * 1000)[:1100],
        ("The text is t.txt: 3,000 characters, 3 symbols. This is its beginning: 1,100 characters.",),
    )


@pytest.mark.parametrize(
    ("symbols", "expected"), [("\n ab", "a\nb\na"), ("\n\r ab", "a\r\nb\ra")], ids=["no CR", "CR"]
)
def test_line_ends_are_those_that_the_run_knows(in_folder: Path, symbols: str, expected: str) -> None:
    assert read("a\r\nb\ra", Vocabulary.characters(symbols)).text == expected


def test_a_text_is_folded_to_the_27_symbols_on_request(in_folder: Path) -> None:
    assert read("The Cat, 2", Vocabulary.udacity(), fold=True).text == "the cat "


def test_a_text_is_read_in_its_encoding(in_folder: Path) -> None:
    assert read("é".encode("latin-1"), Vocabulary.characters("é"), encoding="latin-1").text == "é"


def test_of_a_character_of_several_bytes_the_last_byte_has_it(in_folder: Path) -> None:
    passage = read("aé€", Vocabulary.bytes_())
    assert (passage.characters, passage.ids.tolist()) == (["a", "", "é", "", "", "€"], list("aé€".encode()))


def test_a_character_split_by_the_length_is_shown_as_replaced(in_folder: Path) -> None:
    passage = read("aé€", Vocabulary.bytes_(), 5)
    assert (passage.characters, len(passage.ids)) == (["a", "", "é", "\ufffd", "\ufffd"], 5)
    assert "6 bytes" in passage.notes[0] and "its beginning: 5 bytes" in passage.notes[0]


@given(st.binary(max_size=50))
@example("a\ufffdé".encode())
def test_bytes_have_one_entry_each_and_spell_what_python_decodes(data: bytes) -> None:
    found = characters_of_bytes(np.frombuffer(data, np.uint8))
    shown = data.decode("utf-8", "surrogateescape")
    assert (len(found), "".join(found)) == (len(data), re.sub("[\udc80-\udcff]", "\ufffd", shown))


def test_a_bytes_run_cannot_be_folded(in_folder: Path) -> None:
    with pytest.raises(ValueError, match="fold makes a text of 27 symbols"):
        read("abc", Vocabulary.bytes_(), fold=True)


def own(contents: str, vocabulary: Vocabulary, length: int = 1000, **data: Any) -> Passage:
    """The own passage of a run that has learnt a file with these contents."""
    Path("t.txt").write_text(contents)
    kind = "bytes" if vocabulary.symbols is None else "characters"
    config = Config(text=(str(Path("t.txt").absolute()),), data=DataConfig(vocabulary=kind, **data))
    return own_passage(vocabulary, config, length, Path("cache"))


LEARNT, HELD_BACK = "abc\n" * 20, "cba\n" * 5


@pytest.mark.parametrize("vocabulary", [ABC, Vocabulary.bytes_()], ids=["characters", "bytes"])
def test_the_own_passage_is_the_end_that_was_held_back(in_folder: Path, vocabulary: Vocabulary) -> None:
    passage = own(LEARNT + HELD_BACK, vocabulary, valid_fraction=0.2)
    unit = "bytes" if vocabulary.symbols is None else "characters"
    assert (passage.text, vocabulary.decode(passage.ids)) == (HELD_BACK, HELD_BACK)
    assert passage.notes[0].startswith(
        f"This is the beginning of its validation text, which it did not learn from: 20 {unit} of t.txt: 100 {unit}, "
    )


def test_the_own_passage_begins_with_a_line_where_enough_is_left(in_folder: Path) -> None:
    held_back = (LEARNT + HELD_BACK)[-22:]  # it begins within a line, of which 2 characters are left
    texts = [own(LEARNT + HELD_BACK, ABC, length, valid_fraction=0.22).text for length in (10, 20, 21)]
    assert texts == [HELD_BACK[:10], HELD_BACK, held_back[:21]]


def test_the_own_passage_is_the_beginning_where_that_was_held_back(in_folder: Path) -> None:
    assert own(HELD_BACK + LEARNT, ABC, valid_first=20, valid_fraction=0.0).text == HELD_BACK


def test_without_validation_the_own_passage_is_what_was_learnt(in_folder: Path) -> None:
    passage = own(LEARNT, ABC, 8, valid_fraction=0.0)
    assert (passage.text, "the text that it learnt from: 8 characters of" in passage.notes[0]) == (LEARNT[:8], True)


def test_a_cache_that_cannot_be_written_is_done_without(in_folder: Path) -> None:
    Path("cache").write_text("a file")
    assert own(LEARNT + HELD_BACK, ABC, valid_fraction=0.2).text == HELD_BACK


def test_a_text_that_is_not_there_any_more_is_asked_for(in_folder: Path) -> None:
    config = Config(text=("gone.txt",))
    with pytest.raises(ValueError, match=r"the text of the run cannot be read: .*gone.txt does not exist; name a TEXT"):
        own_passage(ABC, config, 10, Path("cache"))


def test_a_text_with_other_characters_than_the_run_knows_is_asked_for(in_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"the text of the run cannot be read: .*'X'.*; name a TEXT to read instead"):
        own("abcX" * 20, ABC)


def test_vocabularies_of_more_symbols_than_the_page_can_number_are_refused() -> None:
    with pytest.raises(ValueError, match="up to 65,535 symbols, got 65,536"):
        spelling(Vocabulary.characters(map(chr, range(0x10000, 0x20000))))


# --- the page ---------------------------------------------------------------------------------------------------------


def passage_like(text: str, vocabulary: Vocabulary) -> Passage:
    ids = vocabulary.encode(text)
    return Passage(ids, characters_of_bytes(ids) if vocabulary.symbols is None else list(text), ("A note.",))


def contents_of(
    rng: np.random.Generator, text: str = "abc cab\nbca", *, name: str = "run", hidden_size: int = 5,
    vocabulary: Vocabulary | None = None, run: page.Run | None = None, **options: Any,
) -> dict[str, Any]:
    """The contents of a page about a random model."""
    vocabulary = vocabulary or Vocabulary.characters(text)
    model = lf.CharLM(vocabulary.size, hidden_size, rng=rng, **options)
    return page.contents(model, vocabulary, passage_like(text, vocabulary), 0, run or page.Run(name, Config()))


def numbers(packed: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), kind)


def data_in(html: bytes) -> Any:
    """The JSON in a page, as a browser reads it."""
    text = html.decode()
    return json.JSONDecoder(parse_constant=lambda word: pytest.fail(f"{word} is no JSON")).raw_decode(
        text, text.index('{"name":')
    )[0]


def test_the_page_holds_its_contents_as_json(rng: np.random.Generator) -> None:
    contents = contents_of(rng, num_layers=2, embedding_size=3)
    assert data_in(page.to_html(contents)) == json.loads(json.dumps(contents))


@pytest.mark.parametrize("text", ["a", "ab", "\n\n\n", "aaaa", "</script><!--<script>", "“é”\u2028\x00\x1b"])
def test_any_text_gives_a_page(rng: np.random.Generator, text: str) -> None:
    data = data_in(page.to_html(contents_of(rng, text)))
    assert ("".join(data["characters"]), numbers(data["ids"], "<u2").tolist()) == (
        text, Vocabulary.characters(text).encode(text).tolist()
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [*VARIANTS.values()], ids=[*VARIANTS])
def test_any_kind_of_model_gives_a_page(rng: np.random.Generator, options: dict[str, Any]) -> None:
    data = data_in(page.to_html(contents_of(rng, **options)))
    assert len(data["network"]["layers"]) == options.get("num_layers", 1)


@pytest.mark.parametrize("harm", ["</script>", "<!--", "</SCRIPT >", "<script>", "</title>", "&lt;", "{{data}}"])
def test_texts_and_names_cannot_break_out_of_the_page(rng: np.random.Generator, harm: str) -> None:
    """Another text and name open and close no other elements."""
    state = rng.bit_generator.state

    def tags(name: str, text: str) -> list[bytes]:
        rng.bit_generator.state = state
        run = page.Run(name, Config(preset=name, text=(name,)), samples=f"=== step 1 ===\n{name}\n\n")
        html = page.to_html(contents_of(rng, text, name=name, run=run))
        return re.findall(rb"<[/!a-zA-Z]+", html)

    assert tags(harm, harm + "a") == tags("run", "abc")


def test_the_title_is_the_name_of_the_run_before_the_data(rng: np.random.Generator) -> None:
    html = page.to_html(contents_of(rng, name="my <run> & more")).decode()
    assert 0 <= html.index("my &lt;run> &amp; more") < html.index('{"name":')


@pytest.mark.parametrize("name", [os.fsdecode(b"\xff run"), "größe 🎈"], ids=["not UTF-8", "Unicode"])
def test_runs_of_any_name_give_a_page_of_utf8(rng: np.random.Generator, name: str) -> None:
    html = page.to_html(contents_of(rng, name=name))
    assert data_in(html)["name"] == name


def test_arrays_have_a_number_for_each_symbol_and_cell(rng: np.random.Generator) -> None:
    data = contents_of(rng, "abc cab\nbca", hidden_size=6, num_layers=2)
    guesses, layers = data["guesses"], range(2)
    assert [len(numbers(data[name], kind)) for name, kind in (("ids", "<u2"), ("bits", "<f4"))] == [11, 11]
    assert [len(numbers(guesses[name], kind)) for name, kind in (("ids", "<u2"), ("p", "<f4"))] == [55, 55]
    assert [len(numbers(guesses[name], kind)) for name, kind in (("rank", "<u2"), ("true", "<f4"))] == [11, 11]
    assert {len(numbers(track["values"], "<f4")) for track in data["tracks"]} == {11}
    assert [len(numbers(data["saturation"][layer], "<f4")) for layer in layers] == [4 * 6 * 2] * 2
    assert [len(numbers(data["half_lives"][layer], "<f4")) for layer in layers] == [6] * 2


def test_numbers_of_the_page_are_those_of_the_rounded_model(rng: np.random.Generator) -> None:
    vocabulary = Vocabulary.characters("abc")
    model = lf.CharLM(3, 5, rng=rng)
    model.parameter_buffer *= 4
    data = page.contents(model, vocabulary, passage_like("cabbac", vocabulary), 1, page.Run("run", Config()))
    ids = np.array([1, *vocabulary.encode("cabbac")])
    p = reference.softmax(rounded(Network.of(model)).read(ids).logits[:-1].astype(np.float64))
    true = p[np.arange(6), ids[1:]]
    guesses = data["guesses"]
    np.testing.assert_allclose(numbers(data["bits"], "<f4"), -np.log2(true), rtol=1e-6)
    np.testing.assert_allclose(numbers(guesses["true"], "<f4"), true, rtol=1e-6)
    np.testing.assert_array_equal(numbers(guesses["rank"], "<u2"), 1 + (p > true[:, None]).sum(axis=1))
    np.testing.assert_array_equal(numbers(guesses["ids"], "<u2").reshape(6, 3), np.argsort(-p, axis=1))
    np.testing.assert_allclose(numbers(guesses["p"], "<f4").reshape(6, 3), -np.sort(-p, axis=1), rtol=1e-6)


def test_cells_and_gates_of_the_page_are_those_after_each_symbol_of_the_passage(rng: np.random.Generator) -> None:
    """The counter's c is 0.02 times the position, at every symbol."""
    vocabulary, model = Vocabulary.characters("\nab"), counter(rng)
    text = "\n".join("ab" * int(length) for length in rng.integers(1, 12, 12))
    data = page.contents(model, vocabulary, passage_like(text, vocabulary), 0, page.Run("run", Config()))
    first = next(finding for finding in data["found"] if finding["track"] == "position in the line")
    gates = rounded(Network.of(model)).read(np.array([0, *vocabulary.encode(text)])).gates[0][1:]
    assert (first["cell"], round(first["r"], 6)) == (2, 1.0)
    np.testing.assert_array_equal(numbers(data["saturation"][0], "<f4"), cells.saturation(gates).ravel().astype("<f4"))
    np.testing.assert_array_equal(numbers(data["half_lives"][0], "<f4"), cells.half_lives(gates[:, 1]).astype("<f4"))


def test_weights_of_the_page_are_those_of_the_rounded_model(rng: np.random.Generator) -> None:
    vocabulary = Vocabulary.characters("abc")
    model = lf.CharLM(3, 5, num_layers=2, embedding_size=4, cell=lf.Cell(projection_size=2, peepholes=True), rng=rng)
    data = page.contents(model, vocabulary, passage_like("cab", vocabulary), 1, page.Run("run", Config()))["network"]
    network = rounded(Network.of(model))

    def kernel(entry: dict[str, Any]) -> np.ndarray:
        rows, columns = entry["shape"]
        scales = numbers(entry["scales"], "<f4").reshape((rows, 1) if entry["axis"] == 1 else (1, columns))
        return numbers(entry["values"], np.int8).reshape(rows, columns) * scales

    np.testing.assert_array_equal(kernel(data["table"]), network.table)
    np.testing.assert_array_equal(kernel(data["output_kernel"]), network.output_kernel)
    for entry, layer in zip(data["layers"], network.layers, strict=True):
        for name in ("input_kernel", "recurrent_kernel", "projection"):
            np.testing.assert_array_equal(kernel(entry[name]), getattr(layer, name))
        assert layer.peepholes is not None
        np.testing.assert_array_equal(numbers(entry["peepholes"], "<f4"), layer.peepholes.ravel())
        np.testing.assert_array_equal(numbers(entry["bias"], "<f4"), layer.bias)


def test_a_report_begins_with_the_learnt_states_and_drops_nothing(rng: np.random.Generator) -> None:
    vocabulary = Vocabulary.characters("abc")
    cell = lf.Cell(recurrent_dropout=0.5, weight_dropout=0.5, learn_initial_state=True)
    model = lf.CharLM(3, 5, cell=cell, dtype="float64", rng=rng)
    model.parameter_buffer[...] = rng.standard_normal(model.parameter_buffer.size)
    ids = np.array([0, 2, 1])
    np.testing.assert_allclose(Network.of(model).read(ids).logits, model(ids[:, None])[0][:, 0], rtol=1e-12)
    data = page.contents(model, vocabulary, passage_like("cab", vocabulary), 1, page.Run("run", Config()))["network"]
    initial = numbers(data["layers"][0]["initial_h"], "<f4")
    np.testing.assert_array_equal(initial, model.parameters["lstm.layer0.initial_h"].astype("<f4"))


def test_cells_that_a_page_does_not_compute_are_refused() -> None:
    with pytest.raises(ValueError, match="layer_norm is not supported by a report, whose page computes the cell itsel"):
        Network.of(lf.CharLM(3, 5, cell=lf.Cell(layer_norm="gates")))


def test_bytes_of_a_character_have_the_tracks_of_the_last_character_read(rng: np.random.Generator) -> None:
    data = contents_of(rng, "éa1", vocabulary=Vocabulary.bytes_())
    values = {track["name"]: numbers(track["values"], "<f4").tolist() for track in data["tracks"]}
    assert (values["position in the line"], values["digit"]) == ([0, 1, 2, 3], [0, 0, 0, 1])


def test_a_page_grows_by_four_thirds_of_a_byte_for_each_weight(rng: np.random.Generator) -> None:
    sizes, counts = [], []
    for hidden_size in (64, 192):
        data = contents_of(rng, hidden_size=hidden_size)
        sizes.append(len(page.to_html(data)))
        counts.append(data["run"]["parameters"])
    assert (sizes[1] - sizes[0]) / (counts[1] - counts[0]) == pytest.approx(4 / 3, rel=0.1)


def test_cells_that_follow_a_track_are_knocked_out_and_others_to_compare_with(rng: np.random.Generator) -> None:
    data = contents_of(rng, "abc cab\nbca" * 5, hidden_size=30)
    found = list(dict.fromkeys((one["layer"], one["cell"]) for one in data["found"]))
    kept, others = (
        [(one["layer"], one["cell"]) for one in data["knock_out"] if one["found"] == is_found]
        for is_found in (True, False)
    )
    assert (kept, len(set(others)), set(kept) & set(others)) == (found[:16], 8, set())


def test_metrics_that_are_not_finite_are_left_out(rng: np.random.Generator) -> None:
    metrics = [{"step": 0, "loss": math.nan, "perplexity": math.inf}, {"step": 1, "loss": 2.0}]
    data = data_in(page.to_html(contents_of(rng, run=page.Run("run", Config(), metrics))))
    assert data["run"]["metrics"] == [{"step": 0}, {"step": 1, "loss": 2.0}]


def test_samples_are_those_of_their_file(rng: np.random.Generator) -> None:
    samples = "=== step 5 ===\nab\n\ncd\n\n=== step 10 ===\nef\ngh\n\n"
    data = contents_of(rng, run=page.Run("run", Config(), samples=samples))
    assert data["run"]["samples"] == [{"step": 5, "text": "ab\n\ncd"}, {"step": 10, "text": "ef\ngh"}]


def test_a_run_is_told_with_its_settings_and_variables(rng: np.random.Generator) -> None:
    model = lf.CharLM(3, 5, rng=rng)
    run = page.Run("run", Config(preset="udacity"), variables=lf.inspect(model))
    vocabulary = Vocabulary.characters("abc")
    told = page.contents(model, vocabulary, passage_like("cab", vocabulary), 0, run)["run"]
    assert (told["preset"], told["settings"]["model"]["hidden_size"], told["parameters"]) == (
        "udacity", 384, model.parameter_buffer.size
    )
    assert sum(variable["count"] for variable in told["variables"]) == model.parameter_buffer.size


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name", ["embedding", "lstm.layer0.kernel", "lstm.layer0.bias", "lstm.layer0.peepholes", "projection.bias"]
)
def test_weights_that_are_not_finite_are_refused(rng: np.random.Generator, name: str, value: float) -> None:
    model = lf.CharLM(3, 5, embedding_size=2, cell=lf.Cell(peepholes=True), rng=rng)
    model.parameters[name].flat[1] = value
    vocabulary = Vocabulary.characters("abc")
    with pytest.raises(ValueError, match="weights that are not finite: its training failed"):
        page.contents(model, vocabulary, passage_like("cab", vocabulary), 0, page.Run("run", Config()))


# --- the command ------------------------------------------------------------------------------------------------------


def train(folder: Path, *flags: str) -> Path:
    """The folder of a small finished run, beside its text."""
    (folder / "text.txt").write_text(TEXT)
    assert main(["train", str(folder / "text.txt"), "--out", str(folder / "run"), *TINY, *flags]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of characters. Tests must not change it."""
    return train(tmp_path_factory.mktemp("report"), "--num-layers", "2", "--embedding-size", "3")


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of bytes in float64. Tests must not change it."""
    return train(tmp_path_factory.mktemp("bytes"), "--vocabulary", "bytes", "--dtype", "float64")


@pytest.fixture
def lstmfast(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a folder of its own that holds text.txt: status, standard output, standard error."""
    Path("text.txt").write_text("the mat sat\n" * 5)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


def files() -> set[str]:
    """Whatever lies in the current folder."""
    return {path.as_posix() for path in Path().rglob("*")}


def test_report_prints_the_path_of_the_page_and_nothing_else(trained: Path, lstmfast: Run) -> None:
    status, out, err = lstmfast("report", trained, "text.txt", "-o", "page.html")
    assert (status, out, files()) == (0, "page.html\n", {"text.txt", "page.html"})
    assert re.fullmatch(r"The text is text.txt: 60 characters, 8 symbols\.\n0\.\d MB; open it in a browser\n", err), err


def test_report_without_a_text_shows_what_the_run_was_validated_on(trained: Path, lstmfast: Run) -> None:
    status, out, _ = lstmfast("report", trained)
    data = data_in(Path("report.html").read_bytes())
    assert (status, out, "".join(data["characters"]) in TEXT, len(data["characters"]) > 200) == (
        0, "report.html\n", True, True
    )
    assert data["notes"][0].startswith("This is the beginning of its validation text, which it did not learn from: ")


def test_a_page_tells_name_metrics_samples_and_variables_of_its_run(trained: Path, lstmfast: Run) -> None:
    lstmfast("report", trained, "text.txt")
    data = data_in(Path("report.html").read_bytes())
    told = data["run"]
    assert (data["name"], told["metrics"], told["settings"]["model"]["hidden_size"]) == (
        "run", RunFolder(trained).read_metrics(), 8
    )
    assert [variable["name"] for variable in told["variables"]] == list(load_model(trained)[0].parameters)


@pytest.mark.parametrize("text", [(), ("text.txt",)], ids=["own text", "TEXT"])
def test_runs_of_bytes_give_a_page_too(of_bytes: Path, lstmfast: Run, text: tuple[str, ...]) -> None:
    Path("text.txt").write_text("é€ the mat\n")
    status, _, err = lstmfast("report", of_bytes, *text, "--length", "4")
    data = data_in(Path("report.html").read_bytes())
    assert (status, len(data["characters"]), "4 bytes" in err) == (0, 4, True)
    assert not text or data["characters"] == ["", "é", "\ufffd", "\ufffd"]


def test_a_checkpoint_alone_gives_a_page_without_metrics_and_samples(trained: Path, lstmfast: Run) -> None:
    shutil.copy(trained / "checkpoint.safetensors", "alone.safetensors")
    status, _, _ = lstmfast("report", "alone.safetensors", "text.txt")
    told = data_in(Path("report.html").read_bytes())["run"]
    assert (status, told["metrics"], told["samples"], len(told["variables"]) > 0) == (0, [], [], True)


def test_a_run_folder_with_a_checkpoint_only_gives_a_page(trained: Path, lstmfast: Run) -> None:
    Path("run").mkdir()
    shutil.copy(trained / "checkpoint.safetensors", "run")
    assert lstmfast("report", "run", "text.txt")[0] == 0


def test_a_published_run_without_its_text_needs_a_text(trained: Path, lstmfast: Run) -> None:
    saved = checkpoint.load(trained / "checkpoint.safetensors")
    config = {**saved.metadata["config"], "text": ["gone.txt"]}
    checkpoint.save("published.safetensors", saved.tensors, {**saved.metadata, "config": config})
    status, out, err = lstmfast("report", "published.safetensors")
    assert (status, out, err.count("\n"), Path("report.html").exists()) == (2, "", 1, False)
    assert re.search("the text of the run cannot be read: .*gone.txt does not exist; name a TEXT", err)
    assert lstmfast("report", "published.safetensors", "text.txt")[0] == 0


def test_a_text_that_has_changed_since_is_not_said_to_be_unseen(lstmfast: Run, in_folder: Path) -> None:
    run = train(in_folder)
    Path("text.txt").write_text(TEXT[:-100] + "the mat sat on the cat\n" * 20)
    status, _, err = lstmfast("report", run)
    assert (status, "did not learn from" in err, "has changed since" in err) == (0, False, True)


def test_a_page_is_the_same_every_time(trained: Path, lstmfast: Run) -> None:
    lstmfast("report", trained, "text.txt", "-o", "a.html")
    lstmfast("report", trained, "text.txt", "-o", "b.html", "--threads", "2")
    assert Path("a.html").read_bytes() == Path("b.html").read_bytes()


def test_overwrite_replaces_the_page(trained: Path, lstmfast: Run) -> None:
    Path("report.html").write_text("mine")
    status, _, _ = lstmfast("report", trained, "text.txt", "--overwrite")
    assert (status, data_in(Path("report.html").read_bytes())["name"]) == (0, "run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("RUN text.txt -o full", "full is a folder: name a file with --out"),
        ("RUN text.txt -o missing/page.html", "missing/page.html cannot be written: No such file or directory"),
        ("RUN text.txt -o text.txt/page.html", "text.txt/page.html cannot be written: Not a directory"),
        ("RUN text.txt -o mine.html", "mine.html exists: give --overwrite to replace it, or another --out"),
        ("RUN text.txt --length 0", "length must be 1 or more, got 0"),
        ("RUN text.txt --length -5", "length must be 1 or more, got -5"),
        ("RUN text.txt --threads -1", "threads must be 0 or more, got -1"),
        ("RUN text.txt --encoding klingon", "encoding must name a text encoding that Python knows, got 'klingon'"),
        ("RUN --fold", "--fold and --encoding say how to read a TEXT"),
        ("RUN --encoding latin-1", "--fold and --encoding say how to read a TEXT"),
        ("RUN missing.txt", "missing.txt does not exist"),
        ("RUN empty.txt", "the text is empty"),
        ("RUN unknown.txt", "the run knows none of the first 5 characters of the text, such as 'Z'"),
        ("RUN latin.txt", "byte 0xe9 at offset 2 is not valid utf-8"),
        ("", "RUN"),
        ("nowhere text.txt", "checkpoint nowhere does not exist"),
        ("full text.txt", "full is no run folder that can be used: it holds no checkpoint.safetensors"),
        ("text.txt", "text.txt is not a usable checkpoint"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    trained: Path, lstmfast: Run, arguments: str, words: str
) -> None:
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    Path("mine.html").write_text("mine")
    Path("empty.txt").touch()
    Path("unknown.txt").write_text("ZÄZÄZ", encoding="utf-8")  # none is in TEXT
    Path("latin.txt").write_bytes(b"af\xe9")
    before = files()
    status, out, err = lstmfast("report", *(trained if word == "RUN" else word for word in arguments.split()))
    assert (status, out, err.count("\n"), err[:17], files()) == (2, "", 1, "lstmfast: error: ", before), err
    assert words in err and Path("mine.html").read_text() == "mine"


def test_a_mistake_with_the_text_keeps_the_page_that_would_be_replaced(trained: Path, lstmfast: Run) -> None:
    Path("report.html").write_text("mine")
    status, _, _ = lstmfast("report", trained, "missing.txt", "--overwrite")
    assert (status, Path("report.html").read_text(), files()) == (2, "mine", {"report.html", "text.txt"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(trained: Path, lstmfast: Run) -> None:
    Path("locked").mkdir(mode=0o500)
    _, _, err = lstmfast("report", trained, "text.txt", "-o", "locked/page.html")
    assert err == "lstmfast: error: locked/page.html cannot be written: Permission denied\n"


def test_a_disk_that_is_full_leaves_nothing_half_written(
    trained: Path, lstmfast: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, out, err = lstmfast("report", trained, "text.txt")
    assert (status, out, files(), err.splitlines()[-1]) == (
        2, "", {"text.txt"}, "lstmfast: error: report.html cannot be written: No space left on device"
    )


def test_a_run_that_failed_is_refused(trained: Path, lstmfast: Run) -> None:
    saved = checkpoint.load(trained / "checkpoint.safetensors")
    tensors = {name: np.full_like(values, np.nan) for name, values in saved.tensors.items()}
    checkpoint.save("failed.safetensors", tensors, saved.metadata)
    status, out, err = lstmfast("report", "failed.safetensors", "text.txt")
    assert (status, out, "weights that are not finite" in err, files()) == (
        2, "", True, {"text.txt", "failed.safetensors"}
    )


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_runs_of_tokens_are_refused_in_one_sentence(trained: Path, lstmfast: Run, kind: str) -> None:
    saved = checkpoint.load(trained / "checkpoint.safetensors")
    tokenizer = json.dumps({"model": {"vocab": {f"token {number}": number for number in range(11)}}})
    metadata = {**saved.metadata, "vocabulary": {"kind": kind, "tokenizer": tokenizer}}
    checkpoint.save("tokens.safetensors", saved.tensors, metadata)
    status, out, err = lstmfast("report", "tokens.safetensors", "text.txt")
    assert (status, out, files()) == (2, "", {"text.txt", "tokens.safetensors"})
    assert re.fullmatch(
        f"lstmfast: error: a report reads runs of characters and bytes, but this one has learnt {kind}: .*\n", err
    )


# --- the package ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report.html", "report.css", *page.SCRIPTS])
def test_the_installed_package_carries_the_parts_of_the_page(name: str) -> None:
    assert Path(page.__file__).with_name(name).is_file()
