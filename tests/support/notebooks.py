"""Runs a notebook, for tests; as a script, runs those given and stores them with their outputs: PATH [PATH ...].

What is stored names neither times nor this machine.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any


def run(notebook: Any, folder: Path, timeout_s: int = 600) -> None:
    """Run a notebook in this folder, and put the outputs into it. Raises CellExecutionError if a cell raises."""
    from nbclient import NotebookClient

    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=timeout_s, record_timing=False, resources=resources).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


if __name__ == "__main__":
    import nbformat

    for path in sys.argv[1:]:
        read = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as empty:
            run(read, Path(empty))
        nbformat.write(read, path)
