"""The measured limits of a core: plausible on every ISA, and clear about what they cannot measure. No exact figures."""

from __future__ import annotations

import pytest

from lstmfast import _core


@pytest.mark.parametrize("size_bytes", [4096, 1 << 22])
def test_reads_are_seen_at_a_plausible_rate(isa: str, size_bytes: int) -> None:
    assert 1e6 < _core.probe_read_bandwidth(size_bytes) < 1e15


def test_operations_are_seen_at_a_plausible_rate(isa: str, dtype: object) -> None:
    assert 1e6 < _core.probe_flops(str(dtype)) < 1e15


def test_a_dtype_without_a_probe_is_named() -> None:
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got float16"):
        _core.probe_flops("float16")


def test_a_size_too_small_to_measure_is_named() -> None:
    with pytest.raises(ValueError, match="size_bytes must be at least 4096, got 8"):
        _core.probe_read_bandwidth(8)
