"""`lstmfast bench clients`: which projects run, and what is said of those that cannot. Projects are made up here."""

from __future__ import annotations

import importlib
import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command over projects with this source, called `project`: status and standard output."""
    clients = importlib.import_module("lstmfast.bench.clients.__main__")
    (tmp_path / "made_up").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(clients, "NAMES", ("project",))
    monkeypatch.setattr(clients, "__package__", "made_up")

    def run(source: str, *names: str) -> tuple[int, str]:
        (tmp_path / "made_up" / "with_project.py").write_text(textwrap.dedent(source))
        status = clients.run(names)
        return status, capsys.readouterr().out

    return run


def test_a_project_prints_its_lines(run: Run) -> None:
    assert run("print('project 1.0, 8 units: 2.00x')") == (0, "project 1.0, 8 units: 2.00x\n")


def test_a_project_with_a_package_that_is_not_installed_is_skipped(run: Run) -> None:
    assert run("import not_there.models") == (0, "project: skipped, not_there is not installed\n")


def test_a_missing_module_of_lstmfast_is_no_reason_to_skip(run: Run) -> None:
    status, out = run("import lstmfast.not_there")
    assert status == 1 and out.startswith("project: failed\n")


def test_figures_that_disagree_are_status_1(run: Run) -> None:
    pytest.importorskip("torch")
    source = """
    from lstmfast.bench.clients.compare import compare
    compare("project", {"8 units": lambda served: (1.0, [1.01 if served else 1.0])}, turns=1)
    """
    status, out = run(source, "project")
    assert status == 1 and out.startswith("project: failed\n") and "AssertionError" in out


def test_a_name_of_no_project_is_an_error(run: Run) -> None:
    with pytest.raises(ValueError, match=r"a client must be one of project, got 'projects'"):
        run("", "projects")
