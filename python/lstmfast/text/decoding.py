"""Bytes to characters, a piece at a time.

Refuses to guess an encoding: the caller names it, and bytes that are not valid in it are an error.
"""

from __future__ import annotations

import codecs
import contextlib
import io
from collections.abc import Iterable, Iterator
from typing import Any

_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
          codecs.BOM_UTF16_BE: "utf-16"}


def decoded(pieces: Iterable[bytes], encoding: str, where: str, *, verbatim: bool = True) -> Iterator[str]:
    """Decode pieces that may end inside a character.

    Unless `verbatim`, every line end becomes a newline and a byte order mark is dropped.
    Raises ValueError with the offset of the first invalid byte.
    """
    decoder: Any = codecs.getincrementaldecoder(encoding)(errors="strict")
    if not verbatim:
        decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
    fed, start = 0, b""
    at_start = not verbatim
    try:
        for piece in pieces:
            start = start or piece[:4]
            fed += len(piece)
            text = decoder.decode(piece)
            if at_start and text:
                text, at_start = text.removeprefix("\ufeff"), False
            yield text
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        mark = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
        if mark:
            raise ValueError(
                f"{where} begins with the byte order mark of {mark} and is not valid {encoding}: give --encoding {mark}"
            ) from error
        offset = fed - len(error.object) + error.start
        raise ValueError(
            f"{where}: byte 0x{error.object[error.start]:02x} at offset {offset} is not valid {encoding}; "
            "name the encoding with --encoding, or train on bytes with --vocabulary bytes"
        ) from error


def check_encoding(encoding: str) -> None:
    """Raise ValueError if Python has no text encoding of this name."""
    try:
        with contextlib.suppress(UnicodeDecodeError):
            b" ".decode(encoding)
    except LookupError as error:
        raise ValueError(f"encoding must name a text encoding that Python knows, got {encoding!r}") from error
