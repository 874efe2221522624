"""docs/sampling.md names every option of `lstmfast sample` with its default, and its code runs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from lstmfast.command.main import main
from lstmfast.command.options import MachineOptions, SampleOptions
from support import documents


def test_the_page_names_every_option_and_its_default() -> None:
    page = (documents.DOCS / "sampling.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `--([\w-]+)` \| (.*?) \|", page, re.M))
    common = {entry.name for entry in dataclasses.fields(MachineOptions)} | {"run"}
    wanted = {
        entry.name.replace("_", "-"): str(entry.default or "none") if entry.default not in (0, 0.0) else "0"
        for entry in dataclasses.fields(SampleOptions) if entry.name not in common
    }
    assert rows == wanted


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 60)
    flags = ["--steps", "2", "--hidden-size", "8", "--batch-size", "4", "--unroll", "5", "--sample-every", "0"]
    assert main(["train", "text.txt", *flags]) == 0
    names: dict[str, Any] = {}
    exec(documents.python_of("sampling.md"), names)
    assert names["best"] in names["texts"]
