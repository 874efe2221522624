"""docs/checkpoint.md names every key of a checkpoint, with its shape, and no other."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import pytest

from lstmfast import config
from lstmfast.data import load_corpus
from lstmfast.run_folder import RunFolder
from lstmfast.trainer import Summary, make_trainer
from lstmfast.training import checkpoint
from lstmfast.training.checkpoint import Header
from support import documents

TEXT = "the cat sat on the mat\n" * 20
V, E, H, L, B = 11, 5, 8, 2, 4

Rule = Literal["sgd", "momentum", "rmsprop", "adam"]


def table(title: str) -> dict[str, list[str]]:
    """The rows of the page's table whose first heading this is: the name in the first column -> the other columns."""
    text = (documents.DOCS / "checkpoint.md").read_text(encoding="utf-8")
    (rows,) = re.findall(rf"^\| {re.escape(title)} \|.*\n\|---.*\n((?:\|.*\n)+)", text, re.M)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.splitlines()]
    return {name.strip("`"): others for name, *others in cells}


@pytest.fixture
def header(tmp_path: Path, request: pytest.FixtureRequest) -> Header:
    """The checkpoint of a run of two updates: (optimizer, embedding size)."""
    optimizer, embedding_size = request.param
    (tmp_path / "text.txt").write_text(TEXT)
    settings = config.Config(
        model=config.ModelConfig(hidden_size=H, num_layers=L, embedding_size=embedding_size),
        optimizer=config.OptimizerConfig(optimizer=optimizer),
        training=config.TrainingConfig(steps=2, batch_size=B, unroll=5, sample_length=5),
    )
    corpus = load_corpus([str(tmp_path / "text.txt")], cache_folder=None)
    trainer, run = make_trainer(settings, corpus), RunFolder(tmp_path / "runs" / "stdlib-1")
    run.claim()
    run.begin(settings, corpus, trainer)
    trainer.run()
    return checkpoint.read_header(run.path / RunFolder.CHECKPOINT)


def shapes_on_the_page(optimizer: Rule, embedding_size: int) -> dict[str, tuple[int, ...]]:
    """What the page says of a run with these settings: every tensor and its shape."""
    conditions = {"always", f"optimizer `{optimizer}`"} | ({"with `embedding_size`"} if embedding_size else set())
    shapes = {}
    for pattern, (shape, _, present) in table("tensor").items():
        if present not in conditions:
            continue
        for k in range(L) if "{k}" in pattern else [0]:
            sizes = {"V": V, "E": E, "H": H, "L": L, "B": B, "I": H if k else embedding_size or V, "N": 0}
            shapes[pattern.replace("{k}", str(k))] = tuple(eval(shape.strip("`"), sizes))
    parameters = [shape for name, shape in shapes.items() if not name.startswith(("optimizer.", "state."))]
    count = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in parameters)
    return {name: (count,) if name.startswith("optimizer.") else shape for name, shape in shapes.items()}


RULES: list[tuple[Rule, int]] = [("sgd", 0), ("momentum", E), ("rmsprop", 0), ("adam", E)]


@pytest.mark.parametrize(("header", "settings"), [(rule, rule) for rule in RULES], indirect=["header"])
def test_the_page_names_every_tensor_and_its_shape(header: Header, settings: tuple[Rule, int]) -> None:
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == shapes_on_the_page(*settings)


@pytest.mark.parametrize("header", [("adam", 0)], indirect=True)
def test_the_page_names_every_key_of_the_metadata(header: Header) -> None:
    assert {"format", "format_version", *header.metadata} == set(table("key"))
    assert set(header.metadata["progress"]) == set(table("key of `progress`"))


def test_the_page_names_the_current_format() -> None:
    keys = table("key")
    assert keys["format"] == [f"`{checkpoint.FORMAT}`"]
    assert keys["format_version"] == [f"`{checkpoint.FORMAT_VERSION}`"]


@pytest.mark.parametrize("header", [("adam", 0)], indirect=True)
@pytest.mark.parametrize("key", ["config", "vocabulary", "file_bytes", "rngs"])
def test_the_page_names_the_parts_of_an_object(header: Header, key: str) -> None:
    values: dict[str, Any] = {**header.metadata, **header.metadata["progress"]}
    words = {**table("key"), **table("key of `progress`")}[key][0]
    assert set(values[key]) <= set(re.findall(r"`([\w.]+)`", words))


def test_the_page_names_every_file_and_every_field_of_a_line_of_metrics() -> None:
    files = table("file")
    names = {RunFolder.CONFIG, RunFolder.METRICS, RunFolder.SAMPLES, RunFolder.CHECKPOINT, RunFolder.PICTURE}
    assert names == set(files)
    line = dataclasses.replace(Summary(0, 1.0, 0.1, 5), valid_loss=1.0).to_json()
    assert set(line) == set(re.findall(r"`(\w+)`", files[RunFolder.METRICS][0]))


@pytest.mark.parametrize("header", [("adam", 0)], indirect=True)
def test_the_code_of_the_page_runs(header: Header, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(header.path.parents[2])
    names: dict[str, Any] = {}
    exec(documents.python_of("checkpoint.md"), names)
    assert (names["header"].tensors, names["header"].metadata) == (header.tensors, header.metadata)
