"""The Python code in the project's documents, to be run. A test helper."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def python_of(name: str) -> str:
    """All Python blocks of a document, concatenated."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text(encoding="utf-8"), re.M | re.S))
