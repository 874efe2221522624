"""Files in pieces of a mebibyte, and files that appear complete or not at all.

Refuses to know what the bytes mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

PIECE_BYTES = 1 << 20
Progress = Callable[[str, int, "int | None"], None]
"""Called as progress("download" | "read" | "encode", bytes done, bytes in all or None), about once a mebibyte."""


class CacheFolderError(OSError):
    """The cache folder cannot be written: read-only, owned by another user, or the disk is full."""


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """The rest of a file, `PIECE_BYTES` at a time."""
    while piece := file.read(PIECE_BYTES):
        yield piece


def check_size(name: str, size: int, expected_bytes: int) -> None:
    """Raise ValueError, naming the file, if it does not have `expected_bytes`."""
    if size != expected_bytes:
        raise ValueError(f"{name} has {size} bytes, but expected_bytes is {expected_bytes}: not the expected file")


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Absolute path of a folder, created if it is missing. Raises CacheFolderError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheFolderError(f"the cache folder {folder} cannot be created: {error.strerror}") from error
    return Path(folder).absolute()


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder that is removed at the end of the context. Raises CacheFolderError."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="lstmfast-")
    except OSError as error:
        raise CacheFolderError(f"no temporary folder can be created: {error.strerror or error}; set TMPDIR") from error
    with folder as path:
        yield path


@contextlib.contextmanager
def new_file(folder: Path) -> Iterator[tuple[IO[bytes], Callable[[Path], None]]]:
    """A new file that appears under its name complete or not at all: yields it and the function that names it."""
    try:
        file = tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".partial", delete=False)  # noqa: SIM115
    except OSError as error:
        raise CacheFolderError(f"cannot write to the cache folder {folder}: {error.strerror}") from error
    temporary = Path(file.name)

    def rename_to(path: Path) -> None:
        file.close()
        os.replace(temporary, path)

    try:
        with file:
            yield file, rename_to
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise  # the error is the source's, not this file's
        raise CacheFolderError(f"cannot write to the cache folder {folder}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
