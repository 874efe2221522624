"""Checkpoints: one safetensors file each, with JSON in its metadata, written completely or not at all.

Writing goes to a temporary file beside the old checkpoint, which stays until the new one is on the disk. Reading checks
the header against the size of the file before allocating anything. Tensors of the optimizer and the carried state have
a name prefix; all others are the model's variables. No pickle.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FORMAT = "lstmfast"
FORMAT_VERSION = 1

OPTIMIZER, STATE = "optimizer.", "state."  # name prefixes of tensors that are not the model's variables

Tensor = npt.NDArray[Any]

_HEADER_LIMIT_BYTES = 100_000_000  # that of the safetensors library
_LENGTH_BYTES = 8  # the file starts with the header's length, little-endian
_ITEM_BYTES = {"F32": 4, "F64": 8}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's description in the header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A checkpoint without its tensors' values: descriptions by name, and the metadata decoded from JSON."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: where it came from, its tensors by name, and the metadata, decoded from JSON."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint that replaces `path` atomically once it is on the disk.

    metadata: anything JSON can hold. Raises OSError naming the file; an earlier checkpoint is then kept.
    """
    from safetensors.numpy import save as to_bytes

    words = {"format": FORMAT, "format_version": str(FORMAT_VERSION)}
    words |= {name: json.dumps(value) for name, value in metadata.items()}
    contents = to_bytes({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, words)
    try:
        replace_file(path, contents)
    except OSError as error:
        raise OSError(f"checkpoint {path} was not written: {error.strerror}; what was there before is kept") from error


def replace_file(path: str | os.PathLike[str], contents: bytes) -> None:
    """Replace the contents of `path` atomically: after a crash it has all the old ones or all the new ones."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Flush the new directory entry to the disk, where the system opens folders: Windows does not."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Check the header and read a checkpoint. Raises ValueError or OSError in one sentence naming the file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    header = read_header(path)
    try:
        return Checkpoint(header.path, load_file(header.path), header.metadata)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a usable checkpoint: {error}") from error


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check a checkpoint's header, allocating only the header's size.

    Raises ValueError naming the file if it is truncated, not a checkpoint or of another version, or if its numbers
    contradict each other or the size of the file; FileNotFoundError if there is none.
    """
    path = Path(path)
    try:
        described, data_bytes = _read_json(path)
        words, tensors = _check_header(described, data_bytes)
        return Header(path, tensors, _decode_metadata(words))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"checkpoint {path} does not exist") from error
    except OSError as error:
        raise OSError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a usable checkpoint: {error}") from error


def _read_json(path: Path) -> tuple[Any, int]:
    """The parsed header, and the number of bytes after it."""
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        if file_bytes < _LENGTH_BYTES:
            raise ValueError(f"it has {file_bytes} bytes, too few for a header")
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        data_bytes = file_bytes - _LENGTH_BYTES - header_bytes
        if header_bytes > _HEADER_LIMIT_BYTES or data_bytes < 0:
            raise ValueError(
                f"it asks for a header of {header_bytes} bytes, but the whole file has {file_bytes}: "
                "it is truncated or not a checkpoint"
            )
        try:
            return json.loads(file.read(header_bytes)), data_bytes
        except ValueError as error:
            raise ValueError("its header is not JSON: it is damaged or not a checkpoint") from error


def _check_header(described: Any, data_bytes: int) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    if not isinstance(described, dict):
        raise ValueError("its header is not a JSON object: it is not a checkpoint")
    words = described.pop("__metadata__", {})
    if not isinstance(words, dict) or words.get("format") != FORMAT:
        raise ValueError(f"its metadata does not say that {FORMAT} wrote it")
    if words.get("format_version") != str(FORMAT_VERSION):
        raise ValueError(
            f"its format version is {words.get('format_version')!r}, and this {FORMAT} reads version {FORMAT_VERSION}"
        )
    end = 0
    tensors = {}
    for name, entry in sorted(described.items(), key=lambda item: _offsets(*item)):
        tensors[name] = _check_tensor(name, entry)
        first, last = _offsets(name, entry)
        if first != end or last - first != tensors[name].count * _ITEM_BYTES[tensors[name].dtype]:
            raise ValueError(
                f"tensor {name} of shape {list(tensors[name].shape)} cannot occupy bytes {first} to {last}: "
                f"the previous tensor ends at {end}"
            )
        end = last
    if end != data_bytes:
        raise ValueError(f"its tensors take {end} bytes, but {data_bytes} follow its header: truncated or damaged")
    return words, tensors


def _check_tensor(name: str, entry: dict[str, Any]) -> TensorInfo:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not (isinstance(dtype, str) and dtype in _ITEM_BYTES):
        raise ValueError(f"tensor {name} must be of type {' or '.join(_ITEM_BYTES)}, got {dtype!r:.40}")
    if not (isinstance(shape, list) and all(_is_count(size) for size in shape)):
        raise ValueError(f"tensor {name} must have a shape of whole numbers, got {shape!r:.40}")
    return TensorInfo(dtype, tuple(shape))


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(_is_count(offset) for offset in offsets)):
        raise ValueError(f"tensor {name} must have two data_offsets, got {entry!r:.60}")
    return offsets[0], offsets[1]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _decode_metadata(words: Mapping[str, str]) -> dict[str, Any]:
    try:
        return {name: json.loads(word) for name, word in words.items() if name not in ("format", "format_version")}
    except (TypeError, ValueError) as error:
        raise ValueError(f"its metadata is damaged: {error}") from error


def is_parameter(name: str) -> bool:
    """Whether a tensor of a snapshot is a variable of the model, not of the trainer."""
    return not name.startswith((OPTIMIZER, STATE))


def copy_tensors(tensors: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copy tensors by name into arrays of the same shape and type. Raises ValueError naming the first that differs."""
    for name, values in into.items():
        stored = tensors.get(name)
        if stored is None:
            raise ValueError(f"it has no {name}, which this model or optimizer needs")
        if stored.shape != values.shape or stored.dtype != values.dtype:
            raise ValueError(
                f"its {name} is {stored.dtype} {list(stored.shape)}, "
                f"but the settings ask for {values.dtype} {list(values.shape)}"
            )
    if strangers := sorted(tensors.keys() - into.keys()):
        raise ValueError(f"it has {strangers[0]}, which this model or optimizer does not know")
    for name, values in into.items():
        values[...] = tensors[name]
