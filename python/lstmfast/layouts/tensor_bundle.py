"""TensorFlow checkpoints of version 2 (an `.index` and its `.data-?????-of-?????` files), read without TensorFlow.

The index is a sorted table of LevelDB blocks; it maps a tensor's name to a small protocol buffer with the location
of its bytes. TensorFlow writes the blocks uncompressed; others are refused. Checksums of the index are checked; those
of the data are not, because plain Python would take minutes, but sizes are checked against the files.
TensorFlow 2 saves objects: an object graph, stored as a string, has each variable's name in its program.
Leaves out partitioned variables and strings, and refuses the one-file checkpoints of version 1.
Source: the comments of tensorflow/core/util/tensor_bundle and of LevelDB's table_format.md;
tensorflow/core/protobuf/trackable_object_graph.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lstmfast._checks import Array

_MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER_BYTES, _TRAILER_BYTES = 48, 5  # a block's trailer: one byte of compression, four of checksum
# The types of tensorflow/core/framework/types.proto that NumPy has; bfloat16 is widened, which is exact.
_DTYPES = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "<u1", 5: "<i2", 6: "<i1", 9: "<i8", 10: "?", 17: "<u2", 19: "<f2", 22: "<u4",
    23: "<u8",
}
_BFLOAT16, _STRING = 14, 7
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass
class _Entry:
    """Location, type and shape of a tensor."""

    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0
    slices: bool = False


def is_index(path: Path) -> bool:
    """Whether a file ends like an index."""
    with path.open("rb") as file:
        file.seek(0, 2)
        if file.tell() < _FOOTER_BYTES:
            return False
        file.seek(-len(_MAGIC), 2)
        return file.read() == _MAGIC


def read(index: Path) -> tuple[dict[str, Array], list[str]]:
    """The tensors of a checkpoint by name, and sentences about those left out (strings are left out silently).

    Raises ValueError naming the file at fault and the reason; OSError if a file is missing.
    """
    described, files = _described(index)
    tensors, left_out = {}, []
    for name, entry in described.items():
        if entry.slices:
            left_out.append(f"{name} is partitioned, which is not supported, and was left out.")
        elif entry.dtype in _DTYPES or entry.dtype == _BFLOAT16:
            tensors[name] = _tensor(name, entry, files)
        elif entry.dtype != _STRING:
            left_out.append(f"{name} has TensorFlow's type {entry.dtype}, which is not supported, and was left out.")
    return tensors, left_out


def full_names(index: Path) -> dict[str, str] | None:
    """The program's name for each variable of an object checkpoint, by key; None for a TensorFlow 1 checkpoint.

    Raises as `read`.
    """
    described, files = _described(index)
    if _OBJECT_GRAPH not in described:
        return None
    try:
        graph = _string(described[_OBJECT_GRAPH], files)
        names = {}
        for node in _messages(graph, 1):  # TrackableObjectGraph.nodes
            for attribute in _messages(node, 2):  # TrackableObject.attributes
                fields = dict(_fields(attribute))
                names[_text(fields.get(3, b""))] = _text(fields.get(2, b""))  # checkpoint_key, full_name
        return names
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} has an unusable object graph: {error}") from error


def keras_metadata(folder: Path) -> list[str]:
    """The JSON of a SavedModel's Keras layers: from keras_metadata.pb (TensorFlow 2.5 on), else saved_model.pb."""
    try:
        if (folder / "keras_metadata.pb").exists():
            objects = _messages((folder / "keras_metadata.pb").read_bytes(), 1)  # SavedMetadata.nodes
            return [_text(words) for each in objects for words in _messages(each, 5)]  # .metadata
        found = []
        for graph in _messages((folder / "saved_model.pb").read_bytes(), 2):  # SavedModel.meta_graphs
            for each in (node for objects in _messages(graph, 7) for node in _messages(objects, 1)):
                found += [_text(words) for user in _messages(each, 4) for words in _messages(user, 3)]
        return [words for words in found if words]
    except (IndexError, ValueError, OSError):
        return []


def widened_bfloat16(bits: Array) -> Array:
    """bfloat16 bits as float32, of which they are the upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _described(index: Path) -> tuple[dict[str, _Entry], list[Path]]:
    """The entry of every tensor by name, and the data files."""
    prefix = index.with_name(index.name.removesuffix(".index"))
    try:
        entries = dict(_entries(index.read_bytes()))
        shards = _shards(entries.pop(b"", b""))
        # The parts of partitioned variables have names that begin with a zero byte.
        described = {_text(name): _entry(value) for name, value in entries.items() if name[0]}
    except (IndexError, ValueError) as error:
        raise ValueError(f"{index} is not a usable TensorFlow checkpoint index: {error}") from error
    return described, [prefix.with_name(f"{prefix.name}.data-{number:05}-of-{shards:05}") for number in range(shards)]


# --- the table --------------------------------------------------------------------------------------------------------


def _entries(contents: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value of a table, in order."""
    if len(contents) < _FOOTER_BYTES or not contents.endswith(_MAGIC):
        raise ValueError("it is truncated or not an index")
    footer = contents[-_FOOTER_BYTES:]
    _, at = _varint(footer, 0)  # the metadata block, which is empty in these tables
    _, at = _varint(footer, at)
    for _, handle in _block(contents, footer, at):
        yield from _block(contents, handle, 0)


def _block(contents: bytes, handle: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block. A key shares a prefix with the one before; restart offsets are at the end."""
    offset, at = _varint(handle, at)
    size, _ = _varint(handle, at)
    block = contents[offset : offset + size]
    trailer = contents[offset + size : offset + size + _TRAILER_BYTES]
    if len(block) != size or len(trailer) != _TRAILER_BYTES or size < 4:
        raise ValueError("a block extends beyond the file: it is truncated or damaged")
    if _masked_crc(block + trailer[:1]) != int.from_bytes(trailer[1:], "little"):
        raise ValueError("a block's checksum is wrong: it is damaged")
    if trailer[0]:
        raise ValueError(f"its blocks are compressed (kind {trailer[0]}), which is not supported")
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    key, at = b"", 0
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A varint, seven bits per byte, lowest first, and the offset after it."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
        if shift > 63:
            raise ValueError("a number has no end: it is damaged")


def _crc_table() -> list[int]:
    """CRC-32C (Castagnoli), bits reversed, a byte at a time."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def _masked_crc(data: bytes) -> int:
    """LevelDB's masked checksum: rotated by 15 bits plus a constant, because checksums of checksums are weak."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF


# --- the protocol buffers ---------------------------------------------------------------------------------------------


def _fields(message: bytes) -> list[tuple[int, Any]]:
    """The fields of a message: number, and value as int or bytes."""
    fields, at = [], 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        value: Any
        if kind == 0:
            value, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = message[at : at + size], at + size
        elif kind == 2:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError("an entry is damaged")
        fields.append((number, value))
    return fields


def _messages(message: bytes, number: int) -> list[bytes]:
    """The messages or strings in a field of a message."""
    return [value for found, value in _fields(message) if found == number and isinstance(value, bytes)]


def _shards(header: bytes) -> int:
    """The number of data files. Fields of BundleHeaderProto: 1 num_shards, 2 endianness (1: big)."""
    fields = dict(_fields(header))
    shards = fields.get(1)
    if not isinstance(shards, int):
        raise ValueError("it is a checkpoint of version 1, which only TensorFlow itself reads")
    if fields.get(2):
        raise ValueError("its numbers are big-endian, which is not supported")
    if not 1 <= shards <= 100_000:
        raise ValueError(f"it claims {shards} data files")
    return shards


def _entry(message: bytes) -> _Entry:
    """Fields of BundleEntryProto: 1 dtype, 2 shape, 3 shard, 4 offset, 5 size, 6 checksum, 7 slices."""
    entry = _Entry()
    for number, value in _fields(message):
        if number == 2:
            for dimension_number, dimension in _fields(value):
                if dimension_number == 2:
                    entry.shape.append(_whole(dict(_fields(dimension)).get(1, 0)))
        elif number == 7:
            entry.slices = True
        elif number in (1, 3, 4, 5):
            setattr(entry, {1: "dtype", 3: "shard", 4: "offset", 5: "size"}[number], _whole(value))
    return entry


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError("an entry is damaged")
    return value


def _text(name: bytes) -> str:
    return name.decode("utf-8", errors="backslashreplace")


def _data(name: str, entry: _Entry, files: list[Path]) -> bytes:
    """The bytes of a tensor."""
    if entry.shard >= len(files):
        raise ValueError(f"{name} is in data file {entry.shard} of {len(files)}")
    path = files[entry.shard]
    with path.open("rb") as file:
        file.seek(entry.offset)
        data = file.read(entry.size)
    if len(data) != entry.size:
        raise ValueError(f"{path} ends before {name} does: it is truncated or belongs to another index")
    return data


def _string(entry: _Entry, files: list[Path]) -> bytes:
    """A scalar string, stored as its length, the length's checksum, and its bytes."""
    data = _data(_OBJECT_GRAPH, entry, files)
    length, at = _varint(data, 0)
    if entry.dtype != _STRING or len(data) != at + 4 + length:
        raise ValueError("it is not a single string")
    return data[at + 4 :]


def _tensor(name: str, entry: _Entry, files: list[Path]) -> Array:
    dtype = np.dtype("<u2" if entry.dtype == _BFLOAT16 else _DTYPES[entry.dtype])
    if math.prod(entry.shape) * dtype.itemsize != entry.size:
        raise ValueError(f"{name} of shape {entry.shape} does not match the {entry.size} bytes given by its index")
    values = np.frombuffer(_data(name, entry, files), dtype).reshape(entry.shape)
    if entry.dtype == _BFLOAT16:
        return widened_bfloat16(values)
    return values.astype(dtype.newbyteorder("="))
