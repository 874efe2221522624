"""Text in, batches of token ids out: sources, vocabularies, the corpus cache and the classic batch generator.

A text is read in pieces of a mebibyte, encoded once to the smallest integer type and memory-mapped from a cache file,
so that memory does not grow with the text. This is no tokenizer (a token is a character or a byte) and no data loader:
nothing is shuffled, nothing is padded, and no thread reads ahead.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import hashlib
import http.client
import io
import json
import mmap
import operator
import os
import platform
import re
import struct
import sys
import sysconfig
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import streams

__all__ = ["Batches", "CacheFolderError", "Corpus", "Vocabulary", "download", "fold_to_udacity", "load_corpus", "split"]

Progress = Callable[[str, int, "int | None"], None]
"""Called as progress("download" | "read" | "encode", bytes done, bytes in all or None), about once a mebibyte."""

Ids = npt.NDArray[Any]
"""One-dimensional unsigned integers, as narrow as the vocabulary allows."""

_UDACITY_SYMBOLS = " abcdefghijklmnopqrstuvwxyz"
_PIECE_BYTES = 1 << 20
_AHEAD_BYTES = 1 << 20  # of text copied ahead of the batches, all streams together
_STREAMS_PER_RELEASE = 8
_TIMEOUT_SECONDS = 30


# Vocabularies


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
        """All 256 bytes: any file can be learnt, whatever its encoding."""
        return cls("bytes", None)

    @property
    def size(self) -> int:
        """Number of symbols."""
        return 256 if self.symbols is None else len(self.symbols)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Smallest unsigned integer type that holds every id, little-endian."""
        return np.dtype("<u1" if self.size <= 1 << 8 else "<u2" if self.size <= 1 << 16 else "<u4")

    def encode(self, text: str | bytes, *, where: str = "text") -> Ids:
        """Ids [len(text)] of a text. Raises ValueError naming `where`, the first unknown character and its position."""
        if self.symbols is None:
            data = text.encode() if isinstance(text, str) else text
            ids: Ids = np.frombuffer(data, self.dtype).copy()
            return ids
        if isinstance(text, bytes):
            text = "".join(_decoded([text], "utf-8", where))
        return self._encode_piece(text, where, 0)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Text of ids (any shape, read in C order). Raises ValueError if an id lies outside the vocabulary."""
        check.unmasked("ids", ids)
        flat = np.asarray(ids).ravel()
        if not flat.size:
            return ""
        if flat.dtype.kind not in "iu" or flat.min() < 0 or flat.max() >= self.size:
            raise ValueError(f"ids must be integers from 0 to {self.size - 1}, got {flat.min()} to {flat.max()}")
        if self.symbols is None:
            return str(flat.astype(np.uint8).tobytes(), "utf-8", errors="replace")
        return _text_of(_code_points(self.symbols)[flat])

    def to_json(self) -> dict[str, str | None]:
        """What `from_json` reads: {"kind": ..., "symbols": ...}."""
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
        """Id by code point, -1 for strangers; the last entry stands for everything beyond the highest symbol."""
        points = _code_points(self.symbols or "")
        table = np.full(int(points[-1]) + 2, -1, np.int32)
        table[points] = np.arange(points.size)
        return table

    def _encode_piece(self, text: str, where: str, position: int) -> Ids:
        """`encode` for a piece of text that starts at character `position` of `where`."""
        ids = self._id_of_code_point.take(_code_points(text), mode="clip")
        if ids.size and ids.min() < 0:
            first = int((ids < 0).argmax())
            raise ValueError(self._stranger(where, text[first], position + first))
        return ids.astype(self.dtype)

    def _stranger(self, where: str, character: str, position: int) -> str:
        found = f"{where}: character {character!r} (U+{ord(character):04X}) at position {position} is not one of the"
        if self.kind == "udacity":
            return (
                f"{found} 27 symbols of the udacity vocabulary (space and a to z); --fold reduces a text to them: "
                "lower case, and every run of other characters becomes one space"
            )
        return f"{found} {self.size} characters of this vocabulary; take it out of the text, or train on a text with it"


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), "<u4")


def _text_of(code_points: npt.NDArray[np.uint32]) -> str:
    return str(code_points.astype("<u4").tobytes(), "utf-32-le", errors="surrogatepass")


_FOLDED = bytes(ord(chr(byte).lower()) if chr(byte).isascii() and chr(byte).isalpha() else 32 for byte in range(256))


def fold_to_udacity(text: str) -> str:
    """Reduce a text to the 27 udacity symbols as text8 was made: lower case, every other run becomes one space.

    Only A to Z have a lower case here; an accented letter is an "other character".
    """
    letters = np.frombuffer(text.encode("ascii", errors="replace").translate(_FOLDED), np.uint8)
    kept = letters != ord(" ")
    kept[1:] |= kept[:-1]  # the first space after a letter stays, those behind it go
    kept[:1] = True
    return str(letters[kept].tobytes(), "ascii")


# Sources: where the text comes from


@dataclass(frozen=True)
class _Part:
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
        """What changes when the bytes do."""
        status = self.path.stat()
        member = self.member.filename if self.member else ""
        return [str(self.path), status.st_size, status.st_mtime_ns, member, self.ascii_only]

    def pieces(self) -> Iterator[bytes]:
        if self.member is None:
            with self.path.open("rb") as file:
                yield from _pieces(file)
            return
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                yield from _pieces(file)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"{self.name} cannot be unpacked: {error}") from error


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece


def _zip_parts(path: Path) -> list[_Part]:
    """The text members of an archive, in its order: a lone member whatever it is, of several those without NUL."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                member
                for member in archive.infolist()
                if not member.is_dir() and not member.filename.startswith("__MACOSX/")
            ]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a zip archive that can be read: {error}") from error
    parts = [_Part(f"{path}:{member.filename}", path, member) for member in members]
    if len(parts) > 1:
        parts = [part for part in parts if b"\0" not in next(part.pieces(), b"")]
    if not parts:
        raise ValueError(f"{path} holds no text file")
    return parts


# Tests, tables and generated files would teach the model little Python; without them the text has about 8.8 million
# characters on Python 3.11. What is third-party or depends on this machine is left out as well.
_NOT_LIBRARY = re.compile(
    r"__pycache__|site-packages|dist-packages|tests?|idle_test|idlelib|lib2to3|turtledemo|ensurepip"
    r"|encodings|pydoc_data|config-.*|_sysconfigdata.*"
)
_NOT_ASCII = bytes(byte for byte in range(256) if not (32 <= byte < 127 or byte == ord("\n")))


def _standard_library_parts() -> list[_Part]:
    """The running Python's own .py files, in sorted order."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts = []
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _NOT_LIBRARY.fullmatch(name))
        for name in sorted(files):
            if name.endswith(".py") and not _NOT_LIBRARY.fullmatch(name):
                parts.append(_Part(os.path.join(here, name), Path(here, name), ascii_only=True))
    if not parts:
        raise ValueError(f"this Python has no library sources in {folder}; name a text file to learn from")
    return parts


def _file_parts(path: Path) -> list[_Part]:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the text files in it")
    if not path.exists():
        raise FileNotFoundError(f"text file {path} does not exist")
    return _zip_parts(path) if path.suffix.lower() == ".zip" else [_Part(str(path), path)]


def _keep_stream(stream: IO[bytes], folder: Path) -> Path:
    """Copy what can be read only once into the cache, under a name made of its content: a run resumes from there."""
    digest = hashlib.blake2b(digest_size=16)
    with _new_file(folder) as (file, rename_to):
        for piece in _pieces(stream):
            digest.update(piece)
            file.write(piece)
        path = folder / f"stream-{digest.hexdigest()}.txt"
        if not path.exists():
            rename_to(path)
    return path


def _is_url(source: str) -> bool:
    return source.lower().startswith(("http://", "https://"))


def _local_path(source: str, folder: Path, expected_bytes: int | None, progress: Progress | None) -> Path:
    """Bring a source onto this disk. Raises ValueError if it has not `expected_bytes`."""
    if _is_url(source):
        return download(source, folder, expected_bytes=expected_bytes, progress=progress)
    path = Path(source).absolute()
    if source == "-":
        path = _keep_stream(streams.standard_input(), folder)
    elif path.is_fifo() or path.is_char_device():
        with path.open("rb") as stream:
            path = _keep_stream(stream, folder)
    if expected_bytes is not None and path.is_file():
        _check_size(source, path.stat().st_size, expected_bytes)
    return path


def _check_size(name: str, size: int, expected_bytes: int) -> None:
    if size != expected_bytes:
        raise ValueError(f"{name} has {size} bytes, but expected_bytes is {expected_bytes}: this is not the file meant")


# Reading: bytes to text, a piece at a time


_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
          codecs.BOM_UTF16_BE: "utf-16"}


def _decoded(pieces: Iterable[bytes], encoding: str, where: str, *, verbatim: bool = True) -> Iterator[str]:
    """Decode pieces that may end inside a character; unless `verbatim`, as text is read (see `load_corpus`).

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
            "name the encoding with --encoding, or learn bytes with --vocabulary bytes"
        ) from error


@dataclass(frozen=True)
class _Reader:
    """All parts of a corpus as one run of bytes or of text, readable more than once."""

    parts: list[_Part]
    encoding: str
    fold: bool
    verbatim: bool
    progress: Progress | None

    def byte_pieces(self, activity: str) -> Iterator[tuple[_Part, Iterator[bytes]]]:
        total = sum(part.size_bytes for part in self.parts)
        done = 0

        def watched(part: _Part) -> Iterator[bytes]:
            nonlocal done
            for piece in part.pieces():
                done += len(piece)
                yield piece.replace(b"\t", b"    ").translate(None, _NOT_ASCII) if part.ascii_only else piece
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
            for text in _decoded(pieces, encoding, part.name, verbatim=self.verbatim):
                if self.fold:
                    text = fold_to_udacity(text)
                    text = text[1:] if after_space and text.startswith(" ") else text
                    after_space = text.endswith(" ") if text else after_space
                yield part.name, position, text
                position += len(text)

    def find_characters(self) -> str:
        seen = np.zeros(sys.maxunicode + 1, bool)
        for _, _, text in self.text_pieces("read"):
            seen[_code_points(text)] = True
        return _text_of(seen.nonzero()[0].astype(np.uint32))

    def encoded_pieces(self, vocabulary: Vocabulary) -> Iterator[Ids]:
        if vocabulary.kind == "bytes":
            for _, pieces in self.byte_pieces("encode"):
                for piece in pieces:
                    yield np.frombuffer(piece, np.uint8)
        else:
            for name, position, text in self.text_pieces("encode"):
                yield vocabulary._encode_piece(text, name, position)


# The corpus and its cache


@dataclass(frozen=True)
class Corpus:
    """An encoded text, memory-mapped read-only.

    ids [length] in the smallest unsigned type; description: one line for people; fingerprint: equal when vocabulary and
    ids are, wherever the text came from; sources: what to give `load_corpus` to have the same text again from any
    folder (paths made absolute, standard input replaced by its kept copy).
    """

    ids: Ids
    vocabulary: Vocabulary
    description: str
    fingerprint: str
    sources: tuple[str, ...]


def load_corpus(
    sources: Sequence[str] = (),
    *,
    vocabulary: str | Vocabulary = "characters",
    fold: bool = False,
    encoding: str = "utf-8",
    cache_folder: str | os.PathLike[str] | None,
    expected_bytes: int | None = None,
    progress: Progress | None = None,
    verbatim: bool = False,
) -> Corpus:
    """Read, encode and memory-map a text; a second call with the same sources and options only maps the cache.

    sources: files, zip archives, "-" (standard input) and http(s) addresses, joined in order with nothing between; none
    at all means the running Python's standard library, as printable ASCII and newlines. vocabulary: "characters" (those
    found), "udacity", "bytes", or a Vocabulary to encode with. fold: reduce the text to the 27 udacity symbols.
    Text is read as Python reads it: CR and CR LF are line breaks, and a byte order mark is no part of it; with
    `verbatim`, or a Vocabulary that knows CR, all of it stays. Bytes always stay as they are.
    cache_folder: None keeps nothing, and what `sources` then says of standard input is gone with the call.
    expected_bytes: size of the one file or download, in bytes, before unpacking.
    Raises ValueError (empty or undecodable text, unknown characters, wrong size, options that exclude each other),
    FileNotFoundError, CacheFolderError where the cache cannot be written, and OSError where the network fails.
    """
    if cache_folder is None:
        with _temporary_folder() as folder_for_now:
            return load_corpus(
                sources, vocabulary=vocabulary, fold=fold, encoding=encoding, cache_folder=folder_for_now,
                expected_bytes=expected_bytes, progress=progress, verbatim=verbatim,
            )
    sources = (sources,) if isinstance(sources, str) else tuple(map(str, sources))
    wanted = _wanted_vocabulary(vocabulary, fold)
    _check_encoding(encoding)
    if expected_bytes is not None and len(sources) != 1:
        raise ValueError(f"expected_bytes is the size of one file or address, got {len(sources)} sources")
    if sources.count("-") > 1:
        raise ValueError("standard input ('-') can be read only once, but sources name it more often")
    folder = _make_folder(cache_folder)

    paths = [_local_path(source, folder, expected_bytes, progress) for source in sources]
    parts = [part for path in paths for part in _file_parts(path)] if sources else _standard_library_parts()
    verbatim = verbatim or (wanted is not None and "\r" in (wanted.symbols or ""))
    reader = _Reader(parts, encoding, fold, verbatim, progress)
    identity = [[part.identity for part in parts], encoding, fold, verbatim]
    candidates = [_cache_path(folder, identity, choice) for choice in dict.fromkeys((None, wanted))]
    stored = next(filter(None, (_open_cache(path, wanted) for path in candidates)), None)
    if stored is None:
        _encode_to(candidates[-1], reader, wanted or _found_vocabulary(reader))
        stored = _open_cache(candidates[-1], wanted)
        if stored is None:
            raise OSError(f"{candidates[-1]} was changed by somebody else while it was being written; try again")
    ids, used, fingerprint = stored

    unit = "bytes" if used.kind == "bytes" else "characters"
    return Corpus(
        ids=ids,
        vocabulary=used,
        description=f"{_name_of(sources)}: {len(ids):,} {unit}, {used.size} symbols",
        fingerprint=fingerprint,
        sources=tuple(source if _is_url(source) else str(path) for source, path in zip(sources, paths, strict=True)),
    )


def _wanted_vocabulary(vocabulary: str | Vocabulary, fold: bool) -> Vocabulary | None:
    """The vocabulary asked for; None where it is to be found in the text."""
    if isinstance(vocabulary, Vocabulary):
        wanted: Vocabulary | None = vocabulary
    else:
        choices = {"characters": None, "udacity": Vocabulary.udacity(), "bytes": Vocabulary.bytes_()}
        if vocabulary not in choices:
            raise ValueError(f"vocabulary must be one of {', '.join(choices)}, got {vocabulary!r}")
        wanted = choices[vocabulary]
    if fold and wanted is not None and wanted.kind == "bytes":
        raise ValueError("fold makes a text of 27 symbols, so it needs the udacity vocabulary, got 'bytes'")
    return Vocabulary.udacity() if fold and wanted is None else wanted


def _check_encoding(encoding: str) -> None:
    try:
        with contextlib.suppress(UnicodeDecodeError):
            b" ".decode(encoding)
    except LookupError as error:
        raise ValueError(f"encoding must name a text encoding that Python knows, got {encoding!r}") from error


def _name_of(sources: Sequence[str]) -> str:
    if not sources:
        return f"the standard library of Python {platform.python_version()}"
    shown = {"-": "standard input"}
    names = [source if _is_url(source) else shown.get(source, Path(source).name) for source in sources]
    return " + ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"


def _found_vocabulary(reader: _Reader) -> Vocabulary:
    return Vocabulary.characters(reader.find_characters() or _refuse_empty(reader))


def _refuse_empty(reader: _Reader) -> str:
    names = ", ".join(part.name for part in reader.parts[:3])
    raise ValueError(f"the text is empty: {names} {'holds' if len(reader.parts) == 1 else 'hold'} no characters")


class CacheFolderError(OSError):
    """The cache folder cannot be written: read-only, somebody else's, or full."""


def _make_folder(folder: str | os.PathLike[str]) -> Path:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheFolderError(f"the cache folder {folder} cannot be made: {error.strerror}") from error
    return Path(folder).absolute()


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="lstmfast-")
    except OSError as error:
        raise CacheFolderError(f"no temporary folder can be made: {error.strerror or error}; set TMPDIR") from error
    with folder as path:
        yield path


@contextlib.contextmanager
def _new_file(folder: Path) -> Iterator[tuple[IO[bytes], Callable[[Path], None]]]:
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


# A cache file is the ids from offset 0, so that they map on a page boundary, then a JSON object that describes them,
# then its length and a magic word. A file cut short has no magic word; a flipped bit fails the fingerprint, which costs
# 1 s for 1 GB to check. Hence no fsync: what a power cut leaves is noticed and made again.
_TRAILER = struct.Struct("<Q16s")
_MAGIC = b"lstmfast corpus1"


def _cache_path(folder: Path, identity: list[Any], wanted: Vocabulary | None) -> Path:
    key = json.dumps([_MAGIC.decode(), identity, wanted and wanted.to_json()])
    return folder / f"corpus-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.ids"


def _new_fingerprint(vocabulary: Vocabulary) -> hashlib.blake2b:
    return hashlib.blake2b(json.dumps(vocabulary.to_json()).encode(), digest_size=16)


def _encode_to(path: Path, reader: _Reader, vocabulary: Vocabulary) -> None:
    fingerprint = _new_fingerprint(vocabulary)
    empty = True
    with _new_file(path.parent) as (file, rename_to):
        for ids in reader.encoded_pieces(vocabulary):
            encoded = ids.tobytes()
            fingerprint.update(encoded)
            file.write(encoded)
            empty = empty and not encoded
        if empty:
            _refuse_empty(reader)
        header = {"name": path.name, "fingerprint": fingerprint.hexdigest(), "vocabulary": vocabulary.to_json()}
        described = json.dumps(header).encode()
        file.write(described + _TRAILER.pack(len(described), _MAGIC))
        rename_to(path)


def _open_cache(path: Path, wanted: Vocabulary | None) -> tuple[Ids, Vocabulary, str] | None:
    """(ids, vocabulary, fingerprint) of a cache file; None if it is absent, damaged, foreign or not `wanted`."""
    try:
        with path.open("rb") as file:
            end = file.seek(-_TRAILER.size, os.SEEK_END)
            described_bytes, magic = _TRAILER.unpack(file.read())
            if magic != _MAGIC:
                return None
            ids_bytes = file.seek(end - described_bytes)
            header = json.loads(file.read(described_bytes))
            vocabulary = Vocabulary.from_json(header["vocabulary"])
            if header["name"] != path.name or wanted not in (None, vocabulary):
                return None
            fingerprint = _new_fingerprint(vocabulary)
            file.seek(0)
            for start in range(0, ids_bytes, _PIECE_BYTES):
                fingerprint.update(file.read(min(_PIECE_BYTES, ids_bytes - start)))
            if header["fingerprint"] != fingerprint.hexdigest():
                return None
        shape = (ids_bytes // vocabulary.dtype.itemsize,)
        return np.memmap(path, vocabulary.dtype, mode="r", shape=shape), vocabulary, header["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def split(ids: Ids, *, valid_first: int = 0, valid_fraction: float = 0.0) -> tuple[Ids, Ids]:
    """Training and validation ids, both views: validate on the first `valid_first` or on the last `valid_fraction`.

    Raises ValueError if both are asked for or nothing would be left to train on.
    """
    check.unmasked("ids", ids)
    if valid_first and valid_fraction:
        raise ValueError(f"valid_first ({valid_first}) and valid_fraction ({valid_fraction}) exclude each other")
    if not 0.0 <= valid_fraction < 1.0:
        raise ValueError(f"valid_fraction must be at least 0 and below 1, got {valid_fraction}")
    if not 0 <= valid_first <= max(len(ids) - 1, 0):
        raise ValueError(f"valid_first must lie from 0 to below the {len(ids)} characters there are, got {valid_first}")
    if valid_first:
        return ids[valid_first:], ids[:valid_first]
    boundary = len(ids) - int(len(ids) * valid_fraction)
    return ids[:boundary], ids[boundary:]


# Batches


class Batches:
    """Time-major batches of contiguous streams: the BatchGenerator of the Udacity 6_lstm notebook.

    Stream b starts at b * (len(ids) // batch_size), every batch moves all streams on by `unroll`, and the end of the
    text joins its beginning. `position` counts the characters each stream has advanced; setting it is all that resuming
    takes. Raises ValueError if ids are fewer than batch_size * unroll + 1.
    """

    def __init__(self, ids: Ids, batch_size: int, unroll: int) -> None:
        batch_size, unroll = operator.index(batch_size), operator.index(unroll)
        check.ndarray("ids", ids, "integers")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"ids must be a one-dimensional integer array, got {ids.dtype} of shape {ids.shape}")
        if batch_size < 1 or unroll < 1:
            raise ValueError(f"batch_size and unroll must be at least 1, got {batch_size} and {unroll}")
        if len(ids) < batch_size * unroll + 1:
            raise ValueError(
                f"the text has {len(ids)} characters, but batch_size {batch_size} and unroll {unroll} need at least "
                f"{batch_size * unroll + 1}; give a longer text, or lower batch_size or unroll"
            )
        self.position = 0
        self._ids = np.asarray(ids)
        self._unroll = unroll
        self._starts = range(0, len(ids) // batch_size * batch_size, len(ids) // batch_size)
        steps = min(len(ids), _AHEAD_BYTES // (batch_size * ids.itemsize))
        self._ahead: Ids = np.empty((max(steps, unroll + 1), batch_size), ids.dtype)
        self._mapping = _mapping_under(ids)
        self._copy_ahead()

    def next(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The next inputs and targets, both int32 [unroll, batch_size] and contiguous; targets are one step ahead.

        Fresh memory on every call; the two are overlapping views of one window [unroll + 1, batch_size].
        """
        length = self._unroll + 1
        if not 0 <= self.position - self._ahead_position <= len(self._ahead) - length:
            self._copy_ahead()
        first = self.position - self._ahead_position
        window = self._ahead[first : first + length].astype(np.int32)
        self.position += self._unroll
        return window[:-1], window[1:]

    def _copy_ahead(self) -> None:
        """Copy the text that follows `position`, so that few pages of a mapped corpus are resident at any time.

        Linux maps a whole large folio at a fault, whatever is advised: on 6.18, 64 streams read in place held 80 MB of
        a 96 MB corpus at once, 1 MB each. Here at most `_STREAMS_PER_RELEASE` of them are mapped, none afterwards.
        """
        steps = self.position % len(self._ids) + np.arange(len(self._ahead))
        for stream, start in enumerate(self._starts):
            self._ahead[:, stream] = self._ids.take(start + steps, mode="wrap")
            if self._mapping and (stream % _STREAMS_PER_RELEASE == 0 or start == self._starts[-1]):
                self._mapping.madvise(mmap.MADV_DONTNEED)  # of a read-only file: only the mapping goes, no data
        self._ahead_position = self.position


def _mapping_under(ids: Ids) -> mmap.mmap | None:
    """The file mapping an array looks into, where there is one whose pages can be given back."""
    owner: Any = ids
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") else None


# Downloads


def download(
    url: str,
    folder: str | os.PathLike[str],
    *,
    expected_bytes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download once: the path of the file in `folder`, fetched only if it is not there yet.

    What an interrupted download left is resumed if the server still has the same file (same length, ETag and date) and
    sends ranges, and begun again otherwise. Raises ValueError if the file has not `expected_bytes`, OSError if the
    server cannot be reached, refuses, or breaks off; the file's name then does not exist.
    """
    target = _make_folder(folder) / _file_name(url)
    if not target.exists():
        with _new_file(target.parent):
            pass  # an error of the folder, and not of the server
    try:
        if not target.exists():
            _fetch(url, target, expected_bytes, progress)
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(f"cannot download {url}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise OSError(f"cannot download {url}: {reason}; run the same command again to resume") from error
    if expected_bytes is not None:
        _check_size(f"{url} (kept as {target})", target.stat().st_size, expected_bytes)
    return target


def _file_name(url: str) -> str:
    """The address's own file name behind a hash of the whole address, so that two files of one name do not meet."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 1)[-1]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", last)[-80:] or "download"
    return f"{hashlib.blake2b(url.encode(), digest_size=4).hexdigest()}-{readable}"


def _fetch(url: str, target: Path, expected_bytes: int | None, progress: Progress | None) -> None:
    kept = next(target.parent.glob(f"{target.name}.*.partial"), None)
    offset = kept.stat().st_size if kept else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            start, total = _extent(response)
            partial = _partial_path(target, response, total)
            same_file = kept == partial and start == offset
            if same_file or start == 0:
                if kept and not same_file:
                    kept.unlink()
                if total is not None and expected_bytes is not None:
                    _check_size(url, total, expected_bytes)
                _receive(response, partial, start, total, expected_bytes, url, progress)
                os.replace(partial, target)
                return
    except urllib.error.HTTPError as error:
        if not (kept and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise
        error.close()
    if kept is None:
        raise ConnectionError("the server sent a part of the file without being asked to")
    kept.unlink()  # the beginning of another file than the server has now
    _fetch(url, target, expected_bytes, progress)


def _extent(response: Any) -> tuple[int, int | None]:
    """(offset of the first byte sent, length of the whole file if the server tells)."""
    if response.status == http.client.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found:
            return -1, None
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _partial_path(target: Path, response: Any, total: int | None) -> Path:
    """Where the beginning of exactly this version of the file is kept: its name tells two versions apart."""
    version = f"{total} {response.headers.get('ETag')} {response.headers.get('Last-Modified')}"
    return target.with_name(f"{target.name}.{hashlib.blake2b(version.encode(), digest_size=4).hexdigest()}.partial")


def _receive(
    response: Any,
    partial: Path,
    start: int,
    total: int | None,
    expected_bytes: int | None,
    url: str,
    progress: Progress | None,
) -> None:
    """Append the response to `partial` from byte `start`; returns only when the file is whole and on the disk."""
    done = start
    with partial.open("ab" if start else "wb") as file:
        while piece := response.read(_PIECE_BYTES):
            file.write(piece)
            done += len(piece)
            if progress:
                progress("download", done, total)
            if expected_bytes is not None and done > expected_bytes:
                break
        file.flush()
        os.fsync(file.fileno())  # unlike the corpus cache, a download is known to be whole by its size alone
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")
    if expected_bytes is not None and done != expected_bytes:
        partial.unlink()
        _check_size(url, done, expected_bytes)
