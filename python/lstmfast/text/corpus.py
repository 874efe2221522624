"""The corpus: a text encoded once and memory-mapped from a cache file.

A text is read in pieces and encoded to the smallest integer type, so that memory does not grow with the text. Refuses
to know where bytes come from (see `sources`) and how ids are batched (see `batches`).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lstmfast.text import files
from lstmfast.text.decoding import check_encoding, decoded
from lstmfast.text.files import Progress
from lstmfast.text.sources import Part, is_url, local_path, name_of, standard_library_parts, text_parts, to_ascii
from lstmfast.text.tokens import KINDS, AnyVocabulary, Counts, TokenVocabulary, vocabulary_from_json
from lstmfast.text.vocabulary import Ids, Vocabulary, code_points, fold_to_udacity, text_of


@dataclass(frozen=True)
class Corpus:
    """An encoded text, memory-mapped read-only.

    ids [length] in the smallest unsigned type; description: one line to show; fingerprint: equal when vocabulary and
    ids are, wherever the text came from; sources: what to give `load_corpus` to have the same text again from any
    folder (paths made absolute, standard input replaced by its kept copy). characters_of_unknown: the mean length of
    the words that the vocabulary lacks.
    """

    ids: Ids
    vocabulary: AnyVocabulary
    description: str
    fingerprint: str
    sources: tuple[str, ...]
    characters_of_unknown: float = 0.0

    def count(self, ids: Ids) -> Counts | None:
        """The amount of text that a part of `ids` is; None where tokens are characters or bytes."""
        if isinstance(self.vocabulary, Vocabulary):
            return None
        return self.vocabulary.count(ids, self.characters_of_unknown)


def load_corpus(
    sources: Sequence[str] = (),
    *,
    vocabulary: str | AnyVocabulary = "characters",
    vocabulary_size: int = 10_000,
    fold: bool = False,
    encoding: str = "utf-8",
    cache_folder: str | os.PathLike[str] | None,
    expected_bytes: int | None = None,
    progress: Progress | None = None,
    verbatim: bool = False,
) -> Corpus:
    """Read, encode and memory-map a text; a second call with the same sources and options only maps the cache.

    sources: files, folders, zip archives, "-" (standard input) and http(s) addresses, joined in order with nothing
    between; none at all means the running Python's standard library, as printable ASCII and newlines. A folder stands
    for all text files in it and below, sorted by path. vocabulary: "characters" (those found), "udacity", "bytes",
    "words" or "bpe" (byte pairs) of at most vocabulary_size tokens, learnt from this text with the `tokenizers`
    library, or a Vocabulary or TokenVocabulary to encode with. fold: reduce the text to the 27 udacity symbols.
    Text is read as Python reads it: CR and CR LF become newlines and a byte order mark is dropped; with `verbatim`, or
    a Vocabulary that has CR, both are kept. Bytes are never changed.
    cache_folder: None keeps nothing, not even the copy of standard input that `Corpus.sources` then names.
    expected_bytes: size of the one file or download, in bytes, before unpacking.
    Raises ValueError (empty or undecodable text, unknown characters, wrong size, options that exclude each other),
    ImportError (no `tokenizers`), FileNotFoundError, CacheFolderError if the cache cannot be written, and OSError if
    the network fails.
    """
    if cache_folder is None:
        with files.temporary_folder() as folder_for_now:
            return load_corpus(
                sources, vocabulary=vocabulary, vocabulary_size=vocabulary_size, fold=fold, encoding=encoding,
                cache_folder=folder_for_now, expected_bytes=expected_bytes, progress=progress, verbatim=verbatim,
            )
    sources = (sources,) if isinstance(sources, str) else tuple(map(str, sources))
    wanted = _wanted_vocabulary(vocabulary, fold)
    check_encoding(encoding)
    if expected_bytes is not None and len(sources) != 1:
        raise ValueError(f"expected_bytes is the size of one file or address, got {len(sources)} sources")
    if sources.count("-") > 1:
        raise ValueError("standard input ('-') can be read only once, but sources name it more than once")
    folder = files.make_folder(cache_folder)

    paths = [local_path(source, folder, expected_bytes, progress) for source in sources]
    found = [text_parts(path, encoding) for path in paths] if sources else [(standard_library_parts(), 0)]
    parts, left_out = [part for some, _ in found for part in some], sum(count for _, count in found)
    verbatim = verbatim or (wanted is not None and "\r" in (wanted.symbols or ""))
    reader = Reader(parts, encoding, fold, verbatim, progress)
    identity = [[part.identity for part in parts], encoding, fold, verbatim]
    kind = vocabulary if isinstance(vocabulary, str) else vocabulary.kind
    learnt = [kind, vocabulary_size] if kind in KINDS else None  # what the vocabulary found in a text depends on
    keys = [learnt] if wanted is None else [learnt, wanted.to_json()]
    candidates = [_cache_path(folder, identity, key) for key in keys]
    stored = next(filter(None, (_open_cache(path, wanted) for path in candidates)), None)
    if stored is None:
        _encode_to(candidates[-1], reader, wanted or _found_vocabulary(reader, kind, vocabulary_size))
        stored = _open_cache(candidates[-1], wanted)
        if stored is None:
            raise OSError(f"{candidates[-1]} was changed by another process while it was being written; try again")
    hidden = f"; left out: {left_out:,} hidden or binary" if left_out else ""
    return Corpus(
        ids=stored.ids,
        vocabulary=stored.vocabulary,
        description=f"{name_of(sources)}: {_describe(stored)}{hidden}",
        fingerprint=stored.fingerprint,
        sources=tuple(source if is_url(source) else str(path) for source, path in zip(sources, paths, strict=True)),
        characters_of_unknown=stored.text.unknown_characters / max(stored.text.unknown, 1),
    )


def _describe(stored: _Stored) -> str:
    vocabulary, text, count = stored.vocabulary, stored.text, len(stored.ids)
    if isinstance(vocabulary, Vocabulary):
        return f"{count:,} {'bytes' if vocabulary.kind == 'bytes' else 'characters'}, {vocabulary.size} symbols"
    tokens = f"{text.characters:,} characters, {count:,} tokens of {vocabulary.size:,}"
    return f"{tokens}, {text.unknown / max(count, 1):.1%} unknown" if vocabulary.kind == "words" else tokens


def _wanted_vocabulary(vocabulary: str | AnyVocabulary, fold: bool) -> AnyVocabulary | None:
    """The vocabulary asked for; None if it is to be collected from the text."""
    if not isinstance(vocabulary, str):
        wanted: AnyVocabulary | None = vocabulary
    elif vocabulary in KINDS:
        return None
    else:
        choices = {"characters": None, "udacity": Vocabulary.udacity(), "bytes": Vocabulary.bytes_()}
        if vocabulary not in choices:
            raise ValueError(f"vocabulary must be one of {', '.join([*choices, *KINDS])}, got {vocabulary!r}")
        wanted = choices[vocabulary]
    if fold and wanted is not None and wanted.kind == "bytes":
        raise ValueError("fold makes a text of 27 symbols, so it needs the udacity vocabulary, got 'bytes'")
    return Vocabulary.udacity() if fold and wanted is None else wanted


def _found_vocabulary(reader: Reader, kind: str, size: int) -> AnyVocabulary:
    if kind in KINDS:
        texts = (text for _, _, text in reader.text_pieces("read"))
        return TokenVocabulary.train(kind, size, texts) or _refuse_empty(reader)
    return Vocabulary.characters(reader.find_characters() or _refuse_empty(reader))


def _refuse_empty(reader: Reader) -> Any:
    names = ", ".join(part.name for part in reader.parts[:3])
    raise ValueError(f"the text is empty: {names} {'holds' if len(reader.parts) == 1 else 'hold'} no characters")


@dataclass
class _TextSize:
    """What the ids of tokens do not tell: the text's length, and how many unknown tokens stand for how much of it."""

    characters: int = 0
    unknown: int = 0
    unknown_characters: int = 0


@dataclass(frozen=True)
class Reader:
    """All parts of a corpus as one sequence of bytes or of text, readable more than once."""

    parts: list[Part]
    encoding: str
    fold: bool
    verbatim: bool
    progress: Progress | None
    size: _TextSize = field(default_factory=_TextSize)

    def byte_pieces(self, activity: str) -> Iterator[tuple[Part, Iterator[bytes]]]:
        """Each part with its pieces; `progress` is told of every one under the name `activity`."""
        total = sum(part.size_bytes for part in self.parts)
        done = 0

        def watched(part: Part) -> Iterator[bytes]:
            nonlocal done
            for piece in part.pieces():
                done += len(piece)
                yield to_ascii(piece) if part.ascii_only else piece
                if self.progress:
                    self.progress(activity, done, total)

        for part in self.parts:
            yield part, watched(part)

    def text_pieces(self, activity: str) -> Iterator[tuple[str, int, str]]:
        """(name of the part, position of the piece in it, the piece)."""
        after_space = False
        for part, pieces in self.byte_pieces(activity):
            position = 0
            encoding = "ascii" if part.ascii_only else self.encoding
            for text in decoded(pieces, encoding, part.name, verbatim=self.verbatim):
                if self.fold:
                    text = fold_to_udacity(text)
                    text = text[1:] if after_space and text.startswith(" ") else text
                    after_space = text.endswith(" ") if text else after_space
                yield part.name, position, text
                position += len(text)

    def find_characters(self) -> str:
        """The distinct characters, in code point order."""
        seen = np.zeros(sys.maxunicode + 1, bool)
        for _, _, text in self.text_pieces("read"):
            seen[code_points(text)] = True
        return text_of(seen.nonzero()[0].astype(np.uint32))

    def encoded_pieces(self, vocabulary: AnyVocabulary) -> Iterator[Ids]:
        """The ids, a piece at a time."""
        if isinstance(vocabulary, TokenVocabulary):
            yield from vocabulary.encode_pieces(self._measured(text for _, _, text in self.text_pieces("encode")))
        elif vocabulary.kind == "bytes":
            for _, pieces in self.byte_pieces("encode"):
                for piece in pieces:
                    yield np.frombuffer(piece, np.uint8)
        else:
            for name, position, text in self.text_pieces("encode"):
                yield vocabulary._encode_piece(text, name, position)

    def _measured(self, texts: Iterator[str]) -> Iterator[str]:
        for text in texts:
            self.size.characters += len(text)
            yield text


# A cache file is the ids from offset 0, so that they map on a page boundary, then a JSON object that describes them,
# then its length and a magic word. A truncated file has no magic word; a flipped bit fails the fingerprint, which takes
# 1 s for 1 GB to check. Hence no fsync: a file damaged by a power cut is detected and written again.
_TRAILER = struct.Struct("<Q16s")
_MAGIC = b"lstmfast corpus1"


@dataclass(frozen=True)
class _Stored:
    """The contents of a cache file."""

    ids: Ids
    vocabulary: AnyVocabulary
    fingerprint: str
    text: _TextSize


def _cache_path(folder: Path, identity: list[Any], vocabulary_key: Any) -> Path:
    key = json.dumps([_MAGIC.decode(), identity, vocabulary_key])
    return folder / f"corpus-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.ids"


def _new_fingerprint(vocabulary: AnyVocabulary) -> hashlib.blake2b:
    return hashlib.blake2b(json.dumps(vocabulary.to_json()).encode(), digest_size=16)


def _encode_to(path: Path, reader: Reader, vocabulary: AnyVocabulary) -> None:
    fingerprint = _new_fingerprint(vocabulary)
    empty = True
    text = reader.size
    known_characters = 0.0
    with files.new_file(path.parent) as (file, rename_to):
        for ids in reader.encoded_pieces(vocabulary):
            encoded = ids.tobytes()
            fingerprint.update(encoded)
            file.write(encoded)
            empty = empty and not encoded
            if isinstance(vocabulary, TokenVocabulary):
                known_characters += vocabulary.count(ids).characters
                text.unknown += 0 if vocabulary.unknown is None else int(np.count_nonzero(ids == vocabulary.unknown))
        if empty:
            _refuse_empty(reader)
        header = {"name": path.name, "fingerprint": fingerprint.hexdigest(), "vocabulary": vocabulary.to_json()}
        if isinstance(vocabulary, TokenVocabulary):
            text.unknown_characters = text.characters - int(known_characters)
            header["text"] = vars(text)
        described = json.dumps(header).encode()
        file.write(described + _TRAILER.pack(len(described), _MAGIC))
        rename_to(path)


def _open_cache(path: Path, wanted: AnyVocabulary | None) -> _Stored | None:
    """The contents of a cache file; None if absent, damaged, another's or of another vocabulary."""
    try:
        with path.open("rb") as file:
            end = file.seek(-_TRAILER.size, os.SEEK_END)
            described_bytes, magic = _TRAILER.unpack(file.read())
            if magic != _MAGIC:
                return None
            ids_bytes = file.seek(end - described_bytes)
            header = json.loads(file.read(described_bytes))
            vocabulary = vocabulary_from_json(header["vocabulary"])
            if header["name"] != path.name or wanted not in (None, vocabulary):
                return None
            fingerprint = _new_fingerprint(vocabulary)
            file.seek(0)
            for start in range(0, ids_bytes, files.PIECE_BYTES):
                fingerprint.update(file.read(min(files.PIECE_BYTES, ids_bytes - start)))
            if header["fingerprint"] != fingerprint.hexdigest():
                return None
        shape = (ids_bytes // vocabulary.dtype.itemsize,)
        ids = np.memmap(path, vocabulary.dtype, mode="r", shape=shape)
        return _Stored(ids, vocabulary, header["fingerprint"], _TextSize(**header.get("text", {})))
    except (OSError, ValueError, KeyError, TypeError):
        return None
