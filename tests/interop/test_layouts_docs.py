"""docs/gates.md: every call that stands there is made, and gives what stands there."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

from lstmfast.command.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gates.md"


def as_doctest(text: str) -> str:
    """A page of Markdown as doctest reads it: no fences, and empty lines of what is printed marked as such."""
    parts = text.split("```")
    for number in range(1, len(parts), 2):
        language, _, code = parts[number].partition("\n")
        parts[number] = (
            re.sub(r"\n(?=\n(?!>>>))", "\n<BLANKLINE>", code.rstrip("\n")) + "\n\n" if language == "python" else ""
        )
    return "".join(parts)


def test_the_calls_of_the_docs_give_what_stands_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    lines = text.splitlines()
    examples = doctest.DocTestParser().get_doctest(as_doctest(text), {}, "gates.md", "gates.md", 0)
    said: list[str] = []
    assert len(examples.examples) > 30
    failed = doctest.DocTestRunner().run(examples, out=said.append).failed
    assert failed == 0, "".join(said)
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("lstmfast ")]
    assert [main(command) for command in commands] == [0, 0]
    assert "weight_hh_l1_reverse" in capsys.readouterr().out
