"""Checkpoint files: whole or not there, and nothing read is believed before it is checked."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lstmfast.training import checkpoint

METADATA: dict[str, Any] = {"step": 3, "rng": {"state": 2**127 + 1}, "loss": 0.1 + 0.2, "words": ["é", None]}


@pytest.fixture
def tensors(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "kernel": rng.standard_normal((5, 8)).astype(np.float32),
        "bias": rng.standard_normal(8),
        "empty": np.zeros((0, 4), np.float32),
    }


@pytest.fixture
def path(tmp_path: Path, tensors: dict[str, Any]) -> Path:
    checkpoint.save(tmp_path / "checkpoint.safetensors", tensors, METADATA)
    return tmp_path / "checkpoint.safetensors"


def write_file(path: Path, header: Any, data: bytes = b"") -> Path:
    """A file in the format, with a header of the test's choice."""
    described = json.dumps(header).encode()
    path.write_bytes(len(described).to_bytes(8, "little") + described + data)
    return path


def with_metadata(**tensors: Any) -> dict[str, Any]:
    return {"__metadata__": {"format": "lstmfast", "format_version": "1"}, **tensors}


def test_tensors_come_back_bit_for_bit(path: Path, tensors: dict[str, Any]) -> None:
    loaded = checkpoint.load(path).tensors
    assert {name: (values.dtype, values.shape, values.tobytes()) for name, values in loaded.items()} == {
        name: (values.dtype, values.shape, values.tobytes()) for name, values in tensors.items()
    }


def test_metadata_comes_back_as_it_was(path: Path) -> None:
    assert checkpoint.load(path).metadata == METADATA


def test_the_safetensors_library_reads_the_same_numbers(path: Path, tensors: dict[str, Any]) -> None:
    assert load_file(path)["kernel"].tobytes() == tensors["kernel"].tobytes()


def test_header_tells_types_and_shapes_without_the_numbers(path: Path) -> None:
    assert checkpoint.read_header(path).tensors == {
        "kernel": checkpoint.TensorInfo("F32", (5, 8)),
        "bias": checkpoint.TensorInfo("F64", (8,)),
        "empty": checkpoint.TensorInfo("F32", (0, 4)),
    }


def test_a_file_cut_short_anywhere_is_refused_by_name(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"^{path} is not a usable checkpoint: "):
            checkpoint.load(path)


def test_a_file_with_something_behind_it_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="truncated or damaged"):
        checkpoint.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*none\.safetensors does not exist"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=rf"checkpoint {tmp_path} cannot be read: Is a directory"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("contents", [b"x" * 7, b"PK\x03\x04" + b"z" * 96, b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "foreign").write_bytes(contents)
    with pytest.raises(ValueError, match="is not a usable checkpoint"):
        checkpoint.load(tmp_path / "foreign")


def test_safetensors_of_another_program_are_refused(tmp_path: Path) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "theirs.safetensors")
    with pytest.raises(ValueError, match="its metadata does not say that lstmfast wrote it"):
        checkpoint.load(tmp_path / "theirs.safetensors")


def test_another_format_version_is_refused_with_both_numbers(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "lstmfast", "format_version": "2"}}
    with pytest.raises(ValueError, match="its format version is '2', and this lstmfast reads version 1"):
        checkpoint.load(write_file(tmp_path / "newer", header))


def tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "header",
    [
        with_metadata(a=tensor(shape=(3,))),
        with_metadata(a=tensor(shape=(2**62,))),
        with_metadata(a=tensor(shape=(2**40, 2**40))),
        with_metadata(a=tensor(shape=(-2,))),
        with_metadata(a=tensor(shape=(2.0,))),
        with_metadata(a=tensor(shape="2")),
        with_metadata(a=tensor(dtype="F64")),
        with_metadata(a=tensor(dtype="I64")),
        with_metadata(a=tensor(dtype=["F32"])),
        with_metadata(a=tensor(offsets=(0, 2**63 - 1))),
        with_metadata(a=tensor(offsets=(8, 0))),
        with_metadata(a=tensor(offsets=(4, 12))),
        with_metadata(a=tensor(offsets=(0,))),
        with_metadata(a=tensor(), b=tensor()),
        with_metadata(a=tensor(), b=tensor(offsets=(16, 24))),
        with_metadata(a={"dtype": "F32"}),
        with_metadata(a=3),
        with_metadata(),
        {"__metadata__": "lstmfast"},
        {"__metadata__": {"format": "lstmfast", "format_version": "1", "step": "{"}, "a": tensor()},
        {"__metadata__": {"format": "lstmfast", "format_version": "1", "step": 3}, "a": tensor()},
        [],
        None,
    ],
)
def test_a_header_that_contradicts_itself_or_the_file_is_refused(tmp_path: Path, header: Any) -> None:
    with pytest.raises(ValueError, match=r"^.*odd is not a usable checkpoint: "):
        checkpoint.load(write_file(tmp_path / "odd", header, bytes(8)))


@pytest.mark.parametrize("header_bytes", [2**64 - 1, 2**63, 10**12, 100_000_001, 500])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, header_bytes: int) -> None:
    (tmp_path / "absurd").write_bytes(header_bytes.to_bytes(8, "little") + b"{}" + bytes(100))
    with pytest.raises(ValueError, match=f"it asks for a header of {header_bytes} bytes, but the whole file has 110"):
        checkpoint.load(tmp_path / "absurd")


def test_a_header_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep").write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    with pytest.raises(ValueError, match="is not a usable checkpoint"):
        checkpoint.load(tmp_path / "deep")


def test_absurd_sizes_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    header = with_metadata(a=tensor(shape=(2**31,), offsets=(0, 2**33)))
    path = write_file(tmp_path / "absurd", header, bytes(8))
    tracemalloc.start()
    with pytest.raises(ValueError, match="its tensors take 8589934592 bytes, but 8 follow its header"):
        checkpoint.load(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


@pytest.fixture(params=["fsync", "replace"])
def full_disk(request: pytest.FixtureRequest, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is found full when the file is flushed or renamed, the checkpoint at `path` already written."""

    def fail(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, request.param, fail)


@pytest.mark.usefixtures("full_disk")
def test_full_disk_is_said_in_one_sentence_naming_the_file(path: Path, tensors: dict[str, Any]) -> None:
    with pytest.raises(OSError, match=rf"^checkpoint {path} was not written: No space left on device; .* is kept$"):
        checkpoint.save(path, tensors, METADATA)


@pytest.mark.usefixtures("full_disk")
def test_full_disk_leaves_the_old_checkpoint_and_nothing_else(path: Path, tensors: dict[str, Any]) -> None:
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"kernel": tensors["kernel"] + 1}, METADATA)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {path.name: before}


def test_a_file_size_limit_in_the_middle_of_the_write_leaves_the_old_checkpoint(path: Path) -> None:
    before = path.read_bytes()
    program = (
        "import resource, signal, sys, numpy as np; from lstmfast.training import checkpoint;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000));"
        "checkpoint.save(sys.argv[1], {'large': np.zeros(100_000)}, {})"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60)
    assert "File too large" in done.stderr
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {path.name: before}
