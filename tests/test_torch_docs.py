"""The code of docs/torch.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

PAGE = Path(__file__).parents[1] / "docs" / "torch.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["convert", "beyond"])
def test_the_code_in_its_document_runs(example):
    exec(compile(example, str(PAGE), "exec"), {})
