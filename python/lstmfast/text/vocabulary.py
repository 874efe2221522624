"""Vocabularies: which symbol each token id stands for.

A token is a character or a byte. Refuses to be a tokenizer: words and byte pairs are in `tokens`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast.text.decoding import decoded

Ids = npt.NDArray[Any]
"""One-dimensional unsigned integers, as narrow as the vocabulary allows."""
_UDACITY_SYMBOLS = " abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Vocabulary:
    """Which symbol each id stands for; make one with `characters`, `udacity` or `bytes_`.

    kind: "characters" (a given set, ids in code point order), "udacity" (space, a to z: ids 0 to 26) or "bytes" (0 to
    255). symbols: all characters in id order; None for bytes. Raises ValueError if the two do not fit together.
    """

    kind: str
    symbols: str | None

    def __post_init__(self) -> None:
        symbols = self.symbols or ""
        fits = {
            "characters": bool(symbols) and symbols == "".join(sorted(set(symbols))),
            "udacity": symbols == _UDACITY_SYMBOLS,
            "bytes": self.symbols is None,
        }
        if self.kind not in fits:
            raise ValueError(f"vocabulary kind must be one of {', '.join(fits)}, got {self.kind!r}")
        if not fits[self.kind]:
            raise ValueError(
                f"symbols of a {self.kind!r} vocabulary must be distinct and sorted characters "
                f"(the fixed 27 for udacity, None for bytes), got {symbols[:40]!r}"
            )

    @classmethod
    def characters(cls, symbols: Iterable[str]) -> Vocabulary:
        """The distinct characters of `symbols`, in code point order."""
        return cls("characters", "".join(sorted(set(symbols))))

    @classmethod
    def udacity(cls) -> Vocabulary:
        """The 27 symbols of the Udacity 6_lstm notebook: space is 0, a to z are 1 to 26."""
        return cls("udacity", _UDACITY_SYMBOLS)

    @classmethod
    def bytes_(cls) -> Vocabulary:
        """All 256 bytes: for any file, whatever its encoding."""
        return cls("bytes", None)

    @property
    def size(self) -> int:
        """Number of symbols."""
        return 256 if self.symbols is None else len(self.symbols)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Smallest unsigned integer type that holds every id, little-endian."""
        return smallest_type(self.size)

    def encode(self, text: str | bytes, *, where: str = "text") -> Ids:
        """Ids [len(text)] of a text. Raises ValueError naming `where`, the first unknown character and its position."""
        if self.symbols is None:
            data = text.encode() if isinstance(text, str) else text
            ids: Ids = np.frombuffer(data, self.dtype).copy()
            return ids
        if isinstance(text, bytes):
            text = "".join(decoded([text], "utf-8", where))
        return self._encode_piece(text, where, 0)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Text of ids (any shape, read in C order). Raises ValueError if an id is outside the vocabulary."""
        flat = check_ids(ids, self.size)
        if not flat.size:
            return ""
        if self.symbols is None:
            return str(flat.astype(np.uint8).tobytes(), "utf-8", errors="replace")
        return text_of(code_points(self.symbols)[flat])

    def to_json(self) -> dict[str, str | None]:
        """The form that `from_json` reads: {"kind": ..., "symbols": ...}."""
        return {"kind": self.kind, "symbols": self.symbols}

    @classmethod
    def from_json(cls, data: Any) -> Vocabulary:
        """The vocabulary that `to_json` wrote. Raises ValueError on anything else."""
        if not (
            isinstance(data, dict)
            and data.keys() == {"kind", "symbols"}
            and isinstance(data["kind"], str)
            and isinstance(data["symbols"], (str, type(None)))
        ):
            raise ValueError(f'a stored vocabulary must be {{"kind": text, "symbols": text or null}}, got {data!r:.80}')
        return cls(data["kind"], data["symbols"])

    @functools.cached_property
    def _id_of_code_point(self) -> npt.NDArray[np.int32]:
        """Id by code point, -1 for unknown characters; the last entry covers all code points above the symbols."""
        points = code_points(self.symbols or "")
        table = np.full(int(points[-1]) + 2, -1, np.int32)
        table[points] = np.arange(points.size)
        return table

    def _encode_piece(self, text: str, where: str, position: int) -> Ids:
        """`encode` for a piece of text that starts at character `position` of `where`."""
        ids = self._id_of_code_point.take(code_points(text), mode="clip")
        if ids.size and ids.min() < 0:
            first = int((ids < 0).argmax())
            raise ValueError(self._unknown_character(where, text[first], position + first))
        return ids.astype(self.dtype)

    def _unknown_character(self, where: str, character: str, position: int) -> str:
        found = f"{where}: character {character!r} (U+{ord(character):04X}) at position {position} is not one of the"
        if self.kind == "udacity":
            return (
                f"{found} 27 symbols of the udacity vocabulary (space and a to z); --fold reduces a text to them: "
                "lower case, and every run of other characters becomes one space"
            )
        return f"{found} {self.size} characters of this vocabulary; remove it, or train on a text that has it"


def smallest_type(size: int) -> np.dtype[Any]:
    """The smallest unsigned integer type that holds ids below `size`, little-endian."""
    return np.dtype("<u1" if size <= 1 << 8 else "<u2" if size <= 1 << 16 else "<u4")


def check_ids(ids: npt.ArrayLike, size: int) -> Ids:
    """Return ids of any shape in one line. Raises ValueError if one is outside a vocabulary of this size."""
    check.unmasked("ids", ids)
    flat = np.asarray(ids).ravel()
    if not flat.size:
        return flat.astype(np.uint8)
    if flat.dtype.kind not in "iu" or flat.min() < 0 or flat.max() >= size:
        raise ValueError(f"ids must be integers from 0 to {size - 1}, got {flat.min()} to {flat.max()}")
    return flat


def code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), "<u4")


def text_of(code_points: npt.NDArray[np.uint32]) -> str:
    return str(code_points.astype("<u4").tobytes(), "utf-32-le", errors="surrogatepass")


_FOLDED = bytes(ord(chr(byte).lower()) if chr(byte).isascii() and chr(byte).isalpha() else 32 for byte in range(256))


def fold_to_udacity(text: str) -> str:
    """Reduce a text to the 27 udacity symbols as text8 was made: lower case, every other run becomes one space.

    Only A to Z are lowered; accented letters count as other characters.
    """
    letters = np.frombuffer(text.encode("ascii", errors="replace").translate(_FOLDED), np.uint8)
    kept = letters != ord(" ")
    kept[1:] |= kept[:-1]  # the first space after a letter is kept, the others are dropped
    kept[:1] = True
    return str(letters[kept].tobytes(), "ascii")
