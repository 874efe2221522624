"""Files in pieces of a mebibyte, and files that appear complete or not at all.

The ground of this room. Refuses to know what the bytes mean.
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
    """The cache folder cannot be written: read-only, somebody else's, or full."""


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


def check_size(name: str, size: int, expected_bytes: int) -> None:
    if size != expected_bytes:
        raise ValueError(f"{name} has {size} bytes, but expected_bytes is {expected_bytes}: this is not the file meant")


def make_folder(folder: str | os.PathLike[str]) -> Path:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheFolderError(f"the cache folder {folder} cannot be made: {error.strerror}") from error
    return Path(folder).absolute()


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="lstmfast-")
    except OSError as error:
        raise CacheFolderError(f"no temporary folder can be made: {error.strerror or error}; set TMPDIR") from error
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
            raise  # of the source that is being read, not of this file
        raise CacheFolderError(f"cannot write to the cache folder {folder}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
