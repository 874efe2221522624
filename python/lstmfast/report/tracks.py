"""Tracks: what can be said of each character of a text by rule, to compare with what cells do.

Each track has one number for each character, true after that character has been read. The rules are those of plain text
and of common programming languages; they do not parse one. Refuses to look at a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

ABOUT = {
    "position in the line": "characters since the last line break",
    "indentation": "spaces and tabs that the line begins with, so far",
    "inside the indentation": "1 at the spaces and tabs that a line begins with",
    "inside quotes": "1 between quotation marks",
    "inside brackets": "1 between (), [] or {}",
    "inside a comment": "1 from a # outside of quotes to the end of the line",
    "start of a word": "1 at a letter after something else",
    "length of the word": "letters since the word began, 0 outside",
    "capital letter": "1 at an upper-case letter",
    "line of capitals": "1 while the line has upper-case letters and no lower-case ones",
    "digit": "1 at a digit",
    "white space": "1 at a space, tab or line break",
    "punctuation": "1 at what is neither letter, digit nor white space",
    "characters since an empty line": "characters since the last line without any",
}
"""Every track and its rule in words."""


def tracks(text: str) -> dict[str, Values]:
    """Every track of a text, each [len(text)]."""
    columns = dict(zip(ABOUT, np.array(list(_rows(text)), np.float64).reshape(-1, len(ABOUT)).T, strict=True))
    return {name: np.ascontiguousarray(values) for name, values in columns.items()}


def _rows(text: str) -> Iterator[tuple[float, ...]]:
    line, marks = _Line(), _Marks(text)
    for position, character in enumerate(text):
        line.read(character)
        marks.read(position, character)
        yield (
            line.column, line.indentation, line.column == line.indentation and line.column > 0,
            marks.quote != "", marks.depth > 0, marks.in_comment,
            line.word == 1, line.word, character.isupper(), line.has_upper and not line.has_lower,
            character.isdigit(), character.isspace(),
            not (character.isalpha() or character.isdigit() or character.isspace()), line.since_empty,
        )


@dataclass
class _Line:
    """Where a character is in its line, word and paragraph."""

    column: int = 0
    indentation: int = 0
    word: int = 0
    since_empty: int = 0
    has_upper: bool = False
    has_lower: bool = False

    def read(self, character: str) -> None:
        self.word = self.word + 1 if character.isalpha() else 0
        self.since_empty += 1
        if character == "\n":
            self.since_empty = 0 if self.column == 0 else self.since_empty
            self.column = self.indentation = 0
            self.has_upper = self.has_lower = False
            return
        if character in " \t" and self.indentation == self.column:
            self.indentation += 1
        self.column += 1
        self.has_upper |= character.isupper()
        self.has_lower |= character.islower()


class _Marks:
    """Quotation marks, brackets and comments that are open."""

    def __init__(self, text: str) -> None:
        self.quote, self.depth, self.in_comment = "", 0, False
        self._text, self._escaped, self._skipped = text, False, 0

    def read(self, position: int, character: str) -> None:
        if self._skipped:  # the second and third of three marks
            self._skipped -= 1
        elif self._escaped:
            self._escaped = False
        elif self.in_comment:
            self.in_comment = character != "\n"
        elif self.quote:
            self._read_quoted(position, character)
        elif character in _QUOTES:
            self._open(position, character)
        elif character == "#":
            self.in_comment = True
        elif character in "([{":
            self.depth += 1
        elif character in ")]}":
            self.depth = max(self.depth - 1, 0)
        elif character == "\n" and self._text[position - 1 : position] == "\n":
            self.depth = 0  # one that nobody closed ends with its paragraph

    def _open(self, position: int, character: str) -> None:
        if character == "'" and _word_before(self._text, position).lower() not in _PREFIXES:  # don't
            return
        closing = _QUOTES[character]
        if character in "\"'" and self._text.startswith(character * 3, position):
            closing, self._skipped = character * 3, 2
        self.quote = closing

    def _read_quoted(self, position: int, character: str) -> None:
        is_long = len(self.quote) == 3
        if character == "\\":
            self._escaped = True
        elif self._text.startswith(self.quote, position) and not _is_apostrophe(self._text, position, self.quote):
            self._skipped = len(self.quote) - 1
            self.quote = ""
        elif character == "\n" and not is_long and self.quote not in "”»":
            self.quote = ""  # a mark that nobody closed ends with its line


_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»"}
_PREFIXES = {"", "b", "br", "f", "fr", "r", "rb", "rf", "u"}  # of strings, such as f'{x}'


def _word_before(text: str, position: int) -> str:
    first = position
    while first > 0 and text[first - 1].isalpha():
        first -= 1
    return text[first:position]


def _is_apostrophe(text: str, position: int, quote: str) -> bool:
    return quote == "'" and text[position - 1 : position].isalpha() and text[position + 1 : position + 2].isalpha()
