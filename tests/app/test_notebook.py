"""docs/notebooks/6_lstm.ipynb: it is stored with its outputs, without errors, and small; and it runs, with fewer steps.

What is stored is read as JSON, so that these claims need no Jupyter. To store it again after a change:
`python tests/support/notebooks.py docs/notebooks/6_lstm.ipynb`.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from support import notebooks
from support.documents import DOCS

NOTEBOOK = DOCS / "notebooks" / "6_lstm.ipynb"
STEPS = "STEPS = 7001\n"


@pytest.fixture(scope="module")
def stored() -> list[dict[str, Any]]:
    """The cells of code, as they are stored."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def pictures(cells: list[Any]) -> list[bytes]:
    """All PNG in the outputs."""
    data = [output.get("data", {}).get("image/png") for cell in cells for output in cell["outputs"]]
    return [base64.b64decode(each) for each in data if each]


def text_of(cell: Any) -> str:
    """What a cell has printed."""
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def test_every_cell_of_code_is_stored_with_an_output_and_without_an_error(stored: list[dict[str, Any]]) -> None:
    kinds = [{output["output_type"] for output in cell["outputs"]} for cell in stored]
    assert all(kinds) and "error" not in set.union(*kinds)
    names = {output.get("name") for cell in stored for output in cell["outputs"]}
    assert "stderr" not in names


def test_it_was_run_once_from_top_to_bottom(stored: list[dict[str, Any]]) -> None:
    assert [cell["execution_count"] for cell in stored] == list(range(1, len(stored) + 1))


def test_it_was_stored_after_training_to_the_end(stored: list[dict[str, Any]]) -> None:
    assert STEPS in "".join(stored[0]["source"])
    last = next(text_of(cell) for cell in stored if "learning rate" in text_of(cell)).splitlines()[-2].split()
    assert last[0] == "7,000" and float(last[2]) < 4.5 and float(last[3]) < 6.5  # perplexity: training, validation


def test_it_shows_five_pictures_and_is_small(stored: list[dict[str, Any]]) -> None:
    assert len(pictures(stored)) == 5
    assert NOTEBOOK.stat().st_size < 600_000


def test_it_names_no_machine(stored: list[dict[str, Any]]) -> None:
    metadata = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["metadata"]
    assert metadata["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert not any(cell["metadata"] for cell in stored)


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "is not installed: pip install '.[examples]'"
    for package in ("ipykernel", "matplotlib", "nbclient"):
        pytest.importorskip(package, reason=f"{package} {reason}")
    import nbformat

    for folder in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(folder, str(tmp_path / folder))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (first, *_) = [cell for cell in notebook.cells if STEPS in cell.source]
    first.source = first.source.replace(STEPS, "STEPS = 250\n")
    notebooks.run(notebook, tmp_path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(pictures(cells)) == 5
    table = next(text_of(cell) for cell in cells if "learning rate" in text_of(cell))
    assert float(table.splitlines()[-2].split()[3]) < 12
