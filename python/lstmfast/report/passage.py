"""The passage that a page shows: the beginning of a text, as symbols that a run knows.

Refuses texts of words and byte pairs: a page would need their tokenizer to read what is typed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lstmfast.text.batches import train_valid_split
from lstmfast.text.corpus import Corpus, load_corpus
from lstmfast.text.files import CacheFolderError
from lstmfast.text.tokens import AnyVocabulary
from lstmfast.text.vocabulary import Ids, Vocabulary
from lstmfast.training.config import Config

_MOST_SYMBOLS = 0xFFFF  # pages hold ids and ranks in 16 bits
_NAMED = 5  # unknown characters that a note names


@dataclass(frozen=True, eq=False)
class Passage:
    """ids [N]; characters [N], one for each symbol; where it is from and what was left out, as sentences.

    Of a character of several bytes, the last byte has the character and those before it have "".
    """

    ids: Ids
    characters: list[str]
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The characters as text."""
        return "".join(self.characters)


def passage_of(
    sources: Sequence[str], vocabulary: Vocabulary, length: int, *, fold: bool, encoding: str
) -> Passage:
    """The first `length` symbols of a text, without characters that the run does not know.

    Raises ValueError if the text is empty or nothing of it is known; otherwise as `load_corpus`.
    """
    is_bytes = vocabulary.symbols is None
    corpus = load_corpus(
        sources, vocabulary="bytes" if is_bytes else "characters", fold=fold, encoding=encoding, cache_folder=None,
        verbatim="\r" in (vocabulary.symbols or ""),
    )
    note = f"The text is {corpus.description}."
    if len(corpus.ids) > length:
        note += f" This is its beginning: {length:,} {_unit(vocabulary)}."
    ids = corpus.ids[:length].copy()
    if is_bytes:
        return Passage(ids, characters_of_bytes(ids), (note,))
    text = corpus.vocabulary.decode(ids)
    unknown = Counter(character for character in text if character not in (vocabulary.symbols or ""))
    if unknown.total() == len(text):
        raise ValueError(
            f"the run knows none of the first {len(text):,} characters of the text, such as {text[0]!r}; it knows "
            f"{vocabulary.symbols!r:.60}"
        )
    known = [character for character in text if character not in unknown]
    return Passage(vocabulary.encode("".join(known)), known, (note, *_left_out(unknown)))


def own_passage(
    vocabulary: Vocabulary, config: Config, length: int, cache_folder: Path, *, fingerprint: str | None = None
) -> Passage:
    """The beginning of what a run was validated on, or trained on if there was no validation.

    fingerprint: that of the text when it was learnt; where it is another one now, the note says so and claims no more.
    Raises ValueError with the reason if the text cannot be read.
    """

    def load(folder: Path | None) -> Corpus:
        data = config.data
        return load_corpus(
            config.text, vocabulary=vocabulary, fold=data.fold, encoding=data.encoding, cache_folder=folder,
        )

    try:
        try:
            corpus = load(cache_folder)
        except CacheFolderError:  # such as a published run
            corpus = load(None)
        training, validation = train_valid_split(
            corpus.ids, valid_first=config.data.valid_first, valid_fraction=config.data.valid_fraction
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"the text of the run cannot be read: {error}; name a TEXT to read instead") from error
    ids = validation[: 2 * length] if len(validation) else training[: 2 * length]
    part = "its validation text, which it did not learn from" if len(validation) else "the text that it learnt from"
    if fingerprint not in (None, corpus.fingerprint):
        part = f"the {'validation' if len(validation) else 'training'} part of its text, which has changed since"
    if not config.data.valid_first and len(validation):
        ids = _from_a_line(ids, vocabulary, length)
    ids = ids[:length].copy()
    note = f"This is the beginning of {part}: {len(ids):,} {_unit(vocabulary)} of {corpus.description}."
    characters = characters_of_bytes(ids) if vocabulary.symbols is None else list(vocabulary.decode(ids))
    return Passage(ids, characters, (note,))


def spelling(vocabulary: AnyVocabulary) -> Vocabulary:
    """The vocabulary, if its symbols are characters or bytes that a page can number. Raises ValueError if not."""
    if isinstance(vocabulary, Vocabulary):
        if vocabulary.size > _MOST_SYMBOLS:
            raise ValueError(f"a report reads runs of up to {_MOST_SYMBOLS:,} symbols, got {vocabulary.size:,} symbols")
        return vocabulary
    raise ValueError(
        f"a report reads runs of characters and bytes, but this one has learnt {vocabulary.kind}: its page could not "
        "split what is typed into them"
    )


def characters_of_bytes(ids: Ids) -> list[str]:
    """For each byte the character that it completes, "" if it completes none; "\ufffd" for a byte that is not UTF-8."""
    text = ids.astype(np.uint8).tobytes().decode("utf-8", errors="surrogateescape")
    characters: list[str] = []
    for character in text:
        if "\udc80" <= character <= "\udcff":
            characters.append("\ufffd")
        else:
            characters += [""] * (len(character.encode()) - 1) + [character]
    return characters


def _from_a_line(ids: Any, vocabulary: Vocabulary, length: int) -> Any:
    """ids after their first line break, if as many are left; a split falls anywhere."""
    if "\n" not in (vocabulary.symbols or "\n"):
        return ids
    breaks = np.flatnonzero(ids == vocabulary.encode("\n")[0])
    return ids[breaks[0] + 1 :] if breaks.size and len(ids) - breaks[0] > length else ids


def _left_out(unknown: Counter[str]) -> list[str]:
    if not unknown:
        return []
    named = ", ".join(f"{character!r} ({count:,})" for character, count in unknown.most_common(_NAMED))
    more = f" and {len(unknown) - _NAMED:,} others" if len(unknown) > _NAMED else ""
    count = unknown.total()
    are, them = ("character was", "it") if count == 1 else ("characters were", "them")
    return [f"{count:,} {are} left out, because the run does not know {them}: {named}{more}."]


def _unit(vocabulary: Vocabulary) -> str:
    return "bytes" if vocabulary.symbols is None else "characters"
