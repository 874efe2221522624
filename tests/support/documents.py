"""The Python in the documents of the project, to be run. A helper of the tests, not a test."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def python_of(name: str) -> str:
    """All blocks of Python in a document, one after the other, as they stand there."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text(encoding="utf-8"), re.M | re.S))
