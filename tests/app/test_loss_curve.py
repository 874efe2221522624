"""The loss curve: in the terminal, as a picture, and in TensorBoard."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from lstmfast.command.curve import draw_loss
from lstmfast.command.main import main
from lstmfast.training import checkpoint
from lstmfast.training.plot import plot_loss

TEXT = "the cat sat on the mat\n" * 60
TINY = [
    "--steps", "12", "--hidden-size", "8", "--batch-size", "4", "--unroll", "5", "--summary-every", "5",
    "--sample-length", "30", "--sample-every", "6", "--validate-every", "6",
]


def metrics(*losses: float, every: int = 100, valid: dict[int, float] | None = None) -> list[dict[str, float]]:
    """Lines of metrics with these losses."""
    lines: list[dict[str, float]] = [{"step": every * n, "loss": loss} for n, loss in enumerate(losses)]
    for number, loss in (valid or {}).items():
        lines[number]["valid_loss"] = loss
    return lines


FALLING = [4.6, 3.0, *(1.2 + 2 * math.exp(-n / 10) for n in range(48))]
MANY = [1.2 + 2 * math.exp(-n / 500) for n in range(5000)]
CURVES: dict[str, list[dict[str, float]]] = {
    "two points": metrics(3.0, 2.0),
    "a run": metrics(*FALLING, valid={0: 4.5, 20: 1.9, 49: 1.4}),
    "a long run": metrics(*MANY, valid={n: loss + 0.1 for n, loss in enumerate(MANY)}),
    "no change": metrics(2.0, 2.0, 2.0, valid={2: 2.0}),
    "gaps": metrics(3.0, math.nan, 2.0, math.inf, 1.0, 0.9, -math.inf, 0.8, valid={4: math.nan, 7: 1.0}),
    "one step": [{"step": 0, "loss": 2.0}, {"step": 0, "loss": 1.0}],
}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "no such encoding"])
@pytest.mark.parametrize("width", [48, 80, 120, 300])
@pytest.mark.parametrize("name", CURVES)
def test_a_curve_fits_the_terminal_and_its_encoding(name: str, width: int, encoding: str) -> None:
    curve = draw_loss(CURVES[name], width, encoding)
    curve.encode("ascii" if encoding.startswith("no") else encoding)
    assert (curve.count("\n"), max(map(len, curve.split("\n"))) <= min(width, 100)) == (14, True), curve


@pytest.mark.parametrize(
    ("lines", "width"),
    [
        ([], 80), (metrics(3.0), 80), (metrics(math.nan, math.nan), 80), (metrics(3.0, math.nan), 80),
        (metrics(3.0, 2.0), 47),
    ],
)
def test_there_is_no_curve_of_less_than_two_losses_or_without_room(lines: list[dict[str, float]], width: int) -> None:
    assert draw_loss(lines, width) == ""


def test_a_falling_loss_falls_from_the_top_left_to_the_bottom_right() -> None:
    rows = draw_loss(metrics(3.0, 2.0), 80, "ascii").split("\n")[1:13]
    columns = [row.index(".", 9) for row in rows]
    assert (columns == sorted(columns), rows[0][:10], rows[-1][-1]) == (True, "  3.000 |.", ".")


def test_the_loss_of_the_untrained_model_does_not_take_the_height() -> None:
    assert "  3.0" in draw_loss(CURVES["a run"], 80).split("\n")[1]


def test_validation_has_marks_of_its_own() -> None:
    assert draw_loss(CURVES["a run"], 80, "ascii").count("o", 60) == 2  # the untrained model's is above the plot


@pytest.mark.parametrize("name", [*CURVES, "one line", "no finite loss"])
def test_a_picture_is_drawn_of_any_metrics(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    lines = {**CURVES, "one line": metrics(2.0), "no finite loss": metrics(math.nan, math.inf)}[name]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


class Broken:
    """Stands for a module that fails in its own way when it is used."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"_ARRAY_API not found: {name}")


@pytest.mark.parametrize("module", [None, Broken()], ids=["missing", "broken"])
def test_without_a_matplotlib_that_works_a_run_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "text.txt").write_text(TEXT)
    assert main(["train", str(tmp_path / "text.txt"), "--out", str(tmp_path / "run"), *TINY]) == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if "loss" in path.name) == []


def test_a_picture_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics(2.0)[0]) + "\n")
    assert not plot_loss(tmp_path / "metrics.jsonl", tmp_path / "nowhere" / "loss.png")


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def train(folder: Path, *flags: str) -> int:
    (folder / "text.txt").write_text(TEXT)
    return main(["train", str(folder / "text.txt"), "--out", str(folder / "run"), *TINY, *flags])


def events(run: Path) -> list[tuple[str, int, Any]]:
    """All (tag, step, value) of a run's event files, in order; nothing purged."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader", reason="no tensorboard")
    from tensorboard.util import tensor_util

    return [
        (value.tag.removesuffix("/text_summary"), event.step, tensor_util.make_ndarray(value.tensor).item())
        for path in sorted((run / "tensorboard").iterdir())
        for event in loader.EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def scalars_of(run: Path) -> set[tuple[str, int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {(name, line["step"], line[name]) for line in lines for name in line if name != "step"}


def check_events(run: Path) -> None:
    """Each field of the metrics and each sample is there once."""
    found = events(run)
    scalars = {(tag, step): value for tag, step, value in found if tag != "samples"}
    wanted = {(tag, step): value for tag, step, value in scalars_of(run)}
    texts = (run / "samples.txt").read_text()
    assert len(scalars) + sum(tag == "samples" for tag, _, _ in found) == len(found)
    assert scalars == pytest.approx(wanted, rel=1e-6)
    assert [step for tag, step, _ in found if tag == "samples"] == [
        int(line.split()[2]) for line in texts.splitlines() if line.startswith("=== step")
    ]


def test_tensorboard_has_every_field_of_the_metrics_and_every_sample_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    assert train(tmp_path, "--tensorboard") == 0
    check_events(tmp_path / "run")


@pytest.mark.parametrize("before", [[], ["--tensorboard"]], ids=["without", "with"])
def test_a_resumed_run_has_no_step_twice_and_those_from_before(tmp_path: Path, before: list[str]) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    run = tmp_path / "run"
    assert train(tmp_path, *before, "--checkpoint-every", "4") == 0
    saved = (run / "checkpoint.safetensors").read_bytes()
    (run / "metrics.jsonl").open("a").write(json.dumps({"step": 13, "loss": 9.0}) + "\n")  # as before a kill
    assert main(["train", "--resume", str(run), "--steps", "20", "--tensorboard"]) == 0
    assert saved != (run / "checkpoint.safetensors").read_bytes()
    check_events(run)


def test_a_run_that_is_overwritten_leaves_no_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    train(tmp_path, "--tensorboard")
    train(tmp_path, "--overwrite")
    assert list((tmp_path / "run" / "tensorboard").iterdir()) == []


@pytest.mark.parametrize("module", [None, Broken()], ids=["missing", "broken"])
def test_without_tensorboardx_one_sentence_names_the_extra_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: Any
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    status, said = train(tmp_path, "--tensorboard"), capsys.readouterr().err
    assert (status, said.count("\n"), "pip install" in said, "lstmfast[tensorboard]" in said) == (2, 1, True, True)
    assert not (tmp_path / "run").exists()


def test_tensorboard_changes_no_number_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    train(tmp_path / "a")
    train(tmp_path / "b", "--tensorboard")
    a, b = (checkpoint.load(tmp_path / name / "run" / "checkpoint.safetensors").tensors for name in "ab")
    assert {name: values.tobytes() for name, values in a.items()} == {name: b[name].tobytes() for name in b}
