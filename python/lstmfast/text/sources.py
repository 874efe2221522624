"""Where a text comes from: files, folders, zip archives, standard input, downloads, Python's standard library.

Yields bytes. Refuses to decode them (see `decoding`) and to encode them (see `corpus`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sysconfig
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lstmfast import _streams as streams
from lstmfast.text import files
from lstmfast.text.download import download
from lstmfast.text.files import Progress

# Tests, tables and generated files would teach the model little Python; without them the text has about 8.8 million
# characters on Python 3.11. Third-party code and files that depend on this machine are left out too.
_NOT_LIBRARY = re.compile(
    r"__pycache__|site-packages|dist-packages|tests?|idle_test|idlelib|lib2to3|turtledemo|ensurepip"
    r"|encodings|pydoc_data|config-.*|_sysconfigdata.*"
)
_BEGINNING_BYTES = 8192  # of a file, read to tell whether it is binary
CACHE_NAME = "lstmfast-cache"  # of the folder beside run folders that holds encoded texts
_RUN_FILES = frozenset({"metrics.jsonl", "checkpoint.safetensors"})
_NOT_ASCII = bytes(byte for byte in range(256) if not (32 <= byte < 127 or byte == ord("\n")))


@dataclass(frozen=True)
class Part:
    """A stretch of bytes on disk: a file, a member of a zip archive, or Python source reduced to ASCII."""

    name: str
    path: Path
    member: zipfile.ZipInfo | None = None
    ascii_only: bool = False

    @property
    def size_bytes(self) -> int:
        return self.member.file_size if self.member else self.path.stat().st_size

    @property
    def identity(self) -> list[str | int]:
        """Values that change when the bytes do."""
        status = self.path.stat()
        member = self.member.filename if self.member else ""
        return [str(self.path), status.st_size, status.st_mtime_ns, member, self.ascii_only]

    def pieces(self) -> Iterator[bytes]:
        """The bytes, a piece at a time. Raises ValueError if an archive is damaged."""
        if self.member is None:
            with self.path.open("rb") as file:
                yield from files.pieces(file)
            return
        try:  # zipfile raises RuntimeError for a password, and a subclass of it for a method it does not have
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                yield from files.pieces(file)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise ValueError(f"{self.name} cannot be unpacked: {error}") from error


def _zip_parts(path: Path) -> list[Part]:
    """The text members of an archive, in its order: a single member whatever it holds, else those without NUL bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                member
                for member in archive.infolist()
                if not member.is_dir() and not member.filename.startswith("__MACOSX/")
            ]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a readable zip archive: {error}") from error
    parts = [Part(f"{path}:{member.filename}", path, member) for member in members]
    if len(parts) > 1:
        parts = [part for part in parts if b"\0" not in next(part.pieces(), b"")]
    if not parts:
        raise ValueError(f"{path} holds no text file")
    return parts


def standard_library_parts() -> list[Part]:
    """The running Python's own .py files, in sorted order."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _NOT_LIBRARY.fullmatch(name))
        for name in sorted(names):
            if name.endswith(".py") and not _NOT_LIBRARY.fullmatch(name):
                parts.append(Part(os.path.join(here, name), Path(here, name), ascii_only=True))
    if not parts:
        raise ValueError(f"this Python has no library sources in {folder}; name a text file to train on")
    return parts


def text_parts(path: Path, encoding: str) -> tuple[list[Part], int]:
    """The file itself, the text members of a zip archive, or the text files of a folder; and how many were left out."""
    if path.is_dir():
        return _folder_parts(path, encoding)
    if not path.exists():
        raise FileNotFoundError(f"text file {path} does not exist")
    return _zip_parts(path) if path.suffix.lower() == ".zip" else [Part(str(path), path)], 0


def _folder_parts(folder: Path, encoding: str) -> tuple[list[Part], int]:
    """All text files in a folder and below, in sorted order; hidden and binary ones, and runs, are left out.

    A file is binary if its beginning has a NUL byte, unless the encoding has them too.
    """
    has_nul = "\0" in "a".encode(encoding).decode("latin-1")
    parts, left_out = [], 0
    for here, folders, names in os.walk(folder, onerror=_raise):
        hidden = [name for name in folders if name.startswith(".")]
        left_out += len(hidden)
        folders[:] = sorted({*folders} - {*hidden} - {CACHE_NAME})
        if not _RUN_FILES.isdisjoint(names):  # a run's files change while it trains
            folders[:] = []
            continue
        for name in sorted(names):
            path = Path(here, name)
            if name.startswith(".") or not path.is_file() or (not has_nul and _begins_binary(path)):
                left_out += 1
            else:
                parts.append(Part(str(path), path))
    if not parts:
        others = f" ({left_out} hidden or binary)" if left_out else ""
        raise ValueError(f"folder {folder} holds no text file{others}")
    return parts, left_out


def _begins_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(_BEGINNING_BYTES)


def _raise(error: OSError) -> None:
    raise error


def to_ascii(piece: bytes) -> bytes:
    """Keep printable ASCII and newlines; replace a tab by four spaces."""
    return piece.replace(b"\t", b"    ").translate(None, _NOT_ASCII)


def _keep_stream(stream: IO[bytes], folder: Path) -> Path:
    """Copy a stream into the cache, named by its content: it can be read only once, and a run resumes from the copy."""
    digest = hashlib.blake2b(digest_size=16)
    with files.new_file(folder) as (file, rename_to):
        for piece in files.pieces(stream):
            digest.update(piece)
            file.write(piece)
        path = folder / f"stream-{digest.hexdigest()}.txt"
        if not path.exists():
            rename_to(path)
    return path


def is_url(source: str) -> bool:
    """Whether a source is an http(s) address."""
    return source.lower().startswith(("http://", "https://"))


def local_path(source: str, folder: Path, expected_bytes: int | None, progress: Progress | None) -> Path:
    """Path of a source on this disk, downloaded or copied if needed. Raises ValueError if its size is wrong."""
    if is_url(source):
        return download(source, folder, expected_bytes=expected_bytes, progress=progress)
    path = Path(source).absolute()
    if source == "-":
        path = _keep_stream(streams.standard_input(), folder)
    elif path.is_fifo() or path.is_char_device():
        with path.open("rb") as stream:
            path = _keep_stream(stream, folder)
    if expected_bytes is not None and path.is_dir():
        raise ValueError(f"expected_bytes is the size of one file or address, and {source} is a folder")
    if expected_bytes is not None and path.is_file():
        files.check_size(source, path.stat().st_size, expected_bytes)
    return path


def name_of(sources: Sequence[str]) -> str:
    """A short name of a list of sources, for display."""
    if not sources:
        return f"the standard library of Python {platform.python_version()}"
    shown = {"-": "standard input"}
    names = [source if is_url(source) else shown.get(source, Path(source).absolute().name) for source in sources]
    return " + ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"
