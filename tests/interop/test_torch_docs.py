"""The code of docs/torch.md runs as it stands."""

from __future__ import annotations

import pytest

from support import documents

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")


def test_the_code_in_its_document_runs():
    exec(documents.python_of("torch.md"), {})
