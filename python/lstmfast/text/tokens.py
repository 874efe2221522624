"""Vocabularies of words and of byte pairs, learnt from a text by the `tokenizers` library.

The library's JSON is all that is kept, so that whoever has it encodes alike; decoding and counting need no library.
Refuses other tokenizers than the two that it trains, and special tokens except the unknown word.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from lstmfast import losses
from lstmfast.text.decoding import decoded
from lstmfast.text.vocabulary import Ids, Vocabulary, check_ids, smallest_type

KINDS = ("words", "bpe")
UNKNOWN = "<unk>"  # how an unknown word is written
_UNKNOWN_NAME = "\0"  # and how it is called in the library, which gives its id to every such text

# A word with the space before it, also the one for unknown words in published texts; any other character with the space
# before it; white space that is left.
_WORDS = r" ?<unk>| ?\w+(?:['’]\w+)*| ?[^\w\s]|\n| +(?= )|\s"
_PIECE = 1 << 16  # characters that are encoded at once
_PIECES = 16  # encoded in parallel
_CUT = re.compile(r"[\w!-~](?=[ \n][\w!-~])")  # no token reaches across: each takes white space from its left
_COUNTED = 1 << 20  # ids counted at once


@dataclass(frozen=True)
class Counts:
    """An amount of text: tokens, characters, and words, which are what white space separates."""

    tokens: int
    characters: float
    words: int

    def bits_per_character(self, nats_per_token: float) -> float:
        """A mean loss per token as bits per character, comparable with models of characters."""
        return losses.bits_per_character(nats_per_token * self.tokens / self.characters) if self.characters else 0.0

    def word_perplexity(self, nats_per_token: float) -> float:
        """A mean loss per token as perplexity per word, whatever the tokens are."""
        return losses.perplexity(nats_per_token * self.tokens / self.words) if self.words else 0.0


@dataclass(frozen=True)
class TokenVocabulary:
    """Words or byte pairs, with the methods of a `Vocabulary`; make one with `train`.

    kind: "words" (white space and punctuation marks are tokens, a space belongs to the word after it, and what is rare
    becomes one unknown token) or "bpe" (byte pairs: any text, and decoding gives it back). tokenizer: the library's
    JSON. Raises ValueError if the JSON is not of such a tokenizer.
    """

    kind: str
    tokenizer: str

    symbols: ClassVar[None] = None  # characters are no ids

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"vocabulary kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        try:
            ids = json.loads(self.tokenizer)["model"]["vocab"]
            fits = bool(ids) and sorted(ids.values()) == list(range(len(ids)))
        except (ValueError, KeyError, TypeError, AttributeError):
            fits = False
        if not fits:
            raise ValueError(f"a stored vocabulary of {self.kind} must hold a tokenizer as JSON, with ids from 0 on")

    @classmethod
    def train(cls, kind: str, size: int, texts: Iterable[str]) -> TokenVocabulary | None:
        """The vocabulary of at most `size` tokens for a text given in pieces; None if the text is empty.

        The same text gives the same vocabulary. Raises ImportError without the library.
        """
        library = _library()
        pieces = _pieces_between_words(texts)
        first = next(pieces, None)
        if first is None:
            return None
        trainer: Any
        if kind == "words":
            tokenizer = library.Tokenizer(library.models.WordLevel({}, unk_token=_UNKNOWN_NAME))
            tokenizer.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(_WORDS), "isolated")
            trainer = library.trainers.WordLevelTrainer(
                vocab_size=size, special_tokens=[_UNKNOWN_NAME], show_progress=False
            )
        else:
            tokenizer = library.Tokenizer(library.models.BPE())
            tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
            alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
            trainer = library.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(itertools.chain([first], pieces), trainer)
        return cls(kind, tokenizer.to_str())

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self._strings)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Smallest unsigned integer type that holds every id, little-endian."""
        return smallest_type(self.size)

    @property
    def unknown(self) -> int | None:
        """The id of words that are not in the vocabulary; None for byte pairs."""
        return self._ids[_UNKNOWN_NAME] if self.kind == "words" else None

    def encode(self, text: str | bytes, *, where: str = "text") -> Ids:
        """Ids [tokens] of a text. Raises ImportError without the library, ValueError for what is no text."""
        if isinstance(text, bytes):
            text = "".join(decoded([text], "utf-8", where))
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: character {text[error.start]!r} at position {error.start} is half of a character"
            ) from error
        return np.concatenate([np.empty(0, self.dtype), *self.encode_pieces([text])])

    def encode_pieces(self, texts: Iterable[str]) -> Iterator[Ids]:
        """The ids of a text given in pieces, a piece at a time; they do not depend on where the text was cut."""
        pieces = _pieces_between_words(texts)
        while some := list(itertools.islice(pieces, _PIECES)):
            for encoding in self._encoder.encode_batch_fast(some, add_special_tokens=False):
                yield np.array(encoding.ids, self.dtype)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Text of ids (any shape, read in C order). Raises ValueError if an id is outside the vocabulary."""
        return self.decoder(after_space=True)(ids, True)

    def decoder(self, *, after_space: bool = False) -> Callable[[npt.ArrayLike, bool], str]:
        """A function that decodes ids that come in pieces: (ids, whether they are the last) -> text.

        A byte pair may end within a character, whose text then comes with the next piece. An unknown word is "<unk>",
        and a space before it unless it follows white space; after_space tells what the first id follows.
        """
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")

        def decode(ids: npt.ArrayLike, final: bool) -> str:
            nonlocal after_space
            flat = check_ids(ids, self.size)
            ends = self._measures[1][flat]
            parts = [self._bytes[id] for id in flat.tolist()]
            if self.unknown is not None:
                for place in np.flatnonzero(flat == self.unknown):
                    if not (ends[place - 1] if place else after_space):
                        parts[place] = b" " + parts[place]
            after_space = bool(ends[-1]) if len(ends) else after_space
            return utf8.decode(b"".join(parts), final)

        return decode

    def to_json(self) -> dict[str, str]:
        """The form that `vocabulary_from_json` reads: {"kind": ..., "tokenizer": ...}."""
        return {"kind": self.kind, "tokenizer": self.tokenizer}

    def count(self, ids: Ids, characters_of_unknown: float = 0.0) -> Counts:
        """The amount of text of ids [tokens], with the mean length of the unknown words, each counted as one word."""
        characters, words, after_space = 0.0, 0, True
        for first in range(0, len(ids), _COUNTED):
            piece = np.asarray(ids[first : first + _COUNTED])
            begins, ends, inside, lengths = (table[piece] for table in self._measures)
            characters += float(lengths.sum())
            if self.unknown is not None:
                characters += characters_of_unknown * np.count_nonzero(piece == self.unknown)
            before = np.concatenate([[after_space], ends[:-1]])
            words += int(inside.sum()) + int((begins & before).sum())
            after_space = bool(ends[-1])
        return Counts(len(ids), float(characters), words)

    def beginning(self) -> str:
        """What a text begins after: a line break, else a space, else the most frequent token, as far as it is known."""
        known = (start for start in ("\n", " ") if self.unknown not in self.encode(start))
        return next(known, self._bytes[-1 if self.size == 1 else 1].decode("utf-8", "replace"))

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        ids: dict[str, int] = json.loads(self.tokenizer)["model"]["vocab"]
        return ids

    @functools.cached_property
    def _strings(self) -> list[str]:
        """The library's strings, in id order."""
        return sorted(self._ids, key=self._ids.__getitem__)

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        if self.kind == "words":
            return [(UNKNOWN if id == self.unknown else text).encode() for id, text in enumerate(self._strings)]
        byte_of = {character: byte for byte, character in enumerate(_characters_of_bytes())}
        return [bytes(byte_of[character] for character in text) for text in self._strings]

    @functools.cached_property
    def _measures(self) -> tuple[npt.NDArray[Any], ...]:
        """By id: whether a token begins with a word's character, ends in a space, how many words begin within, length.

        The length of the unknown word is left out. Spaces are the six of ASCII; a byte that continues a character adds
        none.
        """
        spaces = b" \t\n\r\v\f"
        rows = []
        for id, text in enumerate(self._bytes):
            within = sum(a in spaces and b not in spaces for a, b in itertools.pairwise(text))
            length = sum(byte & 0xC0 != 0x80 for byte in text)
            if id == self.unknown:  # a word, with the space before it
                rows.append((False, False, 1, 0))
            else:
                rows.append((text[:1] not in spaces, text[-1:] in spaces, within, length))
        begins, ends, inside, lengths = zip(*rows, strict=True)
        return np.array(begins), np.array(ends), np.array(inside, np.int32), np.array(lengths, np.int32)

    @functools.cached_property
    def _encoder(self) -> Any:
        return _library().Tokenizer.from_str(self.tokenizer)

    def __getstate__(self) -> dict[str, str]:
        return {"kind": self.kind, "tokenizer": self.tokenizer}


AnyVocabulary = Vocabulary | TokenVocabulary


def vocabulary_from_json(data: Any) -> AnyVocabulary:
    """The vocabulary that a `to_json` wrote. Raises ValueError on anything else."""
    if not (isinstance(data, dict) and "tokenizer" in data):
        return Vocabulary.from_json(data)
    if data.keys() != {"kind", "tokenizer"} or not all(isinstance(value, str) for value in data.values()):
        raise ValueError(f'a stored vocabulary must be {{"kind": text, "tokenizer": text}}, got {data!r:.80}')
    return TokenVocabulary(**data)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "vocabularies of words and byte pairs need the tokenizers library: pip install lstmfast[tokenizers]"
        ) from error
    return tokenizers


def _pieces_between_words(texts: Iterable[str]) -> Iterator[str]:
    """Cut a text before white space between two words, where no token is cut, into pieces of at most `_PIECE`.

    A stretch without such a place is cut at `_PIECE`. The pieces depend on the text, not on how it came.
    """
    held = ""
    for text in texts:
        held += text
        start = 0
        while len(held) - start > _PIECE + 1:
            end = _last_cut(held, start)
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def _last_cut(text: str, start: int) -> int:
    last = start + _PIECE
    for begin in (max(start, last - 1024), start):
        cuts = [match.end() for match in _CUT.finditer(text, begin, last + 2)]
        if cuts := [cut for cut in cuts if cut <= last]:
            return cuts[-1]
    return last


def _characters_of_bytes() -> str:
    """The character that stands for each byte in the library's byte pairs, as in GPT-2: printable ones themselves."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))
