"""Text generation: many streams at once, primed or not, whole or while it is drawn, up to a text that ends it.

The loop over characters is in C++ (`CharLM.stream`); this module converts the text and draws random numbers from the
caller's generator in such an order that the text does not depend on the piece length. Refuses files and the terminal.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast.models import CharLM
from lstmfast.text.tokens import AnyVocabulary, TokenVocabulary

_PIECE_LENGTH = 4096
_PIECE_BEFORE_STOP = 64  # what is drawn after a stop is lost
_SCORED_LOGITS = 1 << 22  # at once: 16 MiB of float32


class Sampler:
    """Draws text from a model as it is now.

    temperature: divides the logits; 0 is greedy, always the likeliest character. top_k: only the k likeliest; 0: all.
    top_p: only the fewest that together reach this probability; 1: all. weights: how a stream keeps those of the LSTM,
    "float32", "bfloat16" or "int8", see `LSTM.stream`. Raises ValueError naming the argument.
    """

    def __init__(
        self,
        model: CharLM,
        vocabulary: AnyVocabulary,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        weights: str = "float32",
    ) -> None:
        if model.vocab_size != vocabulary.size:
            raise ValueError(f"the model knows {model.vocab_size} symbols, but the vocabulary has {vocabulary.size}")
        self.temperature = check.finite("temperature", temperature, 0.0)
        self.top_k = check.whole_number("top_k", top_k, 0)
        self.top_p = check.finite("top_p", top_p)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        self.weights = check.kept_weights(weights, model.dtype)
        self._model = model
        self._vocabulary = vocabulary

    def generate(
        self,
        length: int,
        *,
        rng: np.random.Generator,
        prime: str = "",
        streams: int = 1,
        stop: str | Sequence[str] = (),
    ) -> list[str]:
        """One text of `length` characters after `prime` for each stream. The prime is read, not repeated.

        Where the vocabulary is of words or byte pairs, `length` counts these.

        Without a prime a stream begins as if after a line break or, where the vocabulary has none, after a space.
        stop: texts that end a text; it ends before the first of them that is complete in it. The prime is not searched.
        Raises ValueError if the vocabulary lacks a character of the prime or of a stop.
        """
        piece_length = _PIECE_BEFORE_STOP if stop else _PIECE_LENGTH
        pieces = self.pieces(length, rng=rng, prime=prime, streams=streams, piece_length=piece_length, stop=stop)
        return ["".join(text) for text in zip(*pieces, strict=True)]

    def pieces(
        self,
        length: int,
        *,
        rng: np.random.Generator,
        prime: str = "",
        streams: int = 1,
        piece_length: int = _PIECE_LENGTH,
        stop: str | Sequence[str] = (),
    ) -> Iterator[list[str]]:
        """Yield the text of `generate` in pieces: for each stream what the next `piece_length` draws add to it.

        A piece may be empty: a part of a character, or of what may become a stop, waits for the rest.
        """
        length, streams = check.whole_number("length", length, 0), check.whole_number("streams", streams)
        piece_length = check.whole_number("piece_length", piece_length)
        draws = self._draw(length, self._primer(prime), streams, piece_length, check.generator("rng", rng))
        return _written(draws, self._writers(streams, stop))

    def stream(
        self,
        length: int,
        *,
        rng: np.random.Generator,
        prime: str = "",
        stop: str | Sequence[str] = (),
        piece_length: int = 1,
    ) -> Iterator[str]:
        """Yield the one text of `generate` while it is drawn, every `piece_length` draws. No piece is empty."""
        pieces = self.pieces(length, rng=rng, prime=prime, piece_length=piece_length, stop=stop)
        return (piece for [piece] in pieces if piece)

    def best_of(
        self,
        candidates: int,
        length: int,
        *,
        rng: np.random.Generator,
        prime: str = "",
        stop: str | Sequence[str] = (),
    ) -> str:
        """Of the texts of `generate` with `candidates` streams, the one with the highest mean log-probability.

        The mean is over the draws of a text, with those of its stop, under the model itself: temperature 1, all
        characters, weights as they are. An empty text is taken only where all are empty.
        """
        length, candidates = check.whole_number("length", length, 0), check.whole_number("candidates", candidates)
        primer, writers = self._primer(prime), self._writers(candidates, stop)
        draws: list[npt.NDArray[np.int32]] = []

        def kept() -> Iterator[tuple[npt.NDArray[np.int32], bool]]:
            # One draw at a time where the score must know which of them completed a stop.
            count = 1 if stop else _PIECE_LENGTH
            for ids, final in self._draw(length, primer, candidates, count, check.generator("rng", rng)):
                draws.append(ids)
                yield ids, final

        texts = ["".join(text) for text in zip(*_written(kept(), writers), strict=True)]
        scores = self._scores(primer, np.concatenate(draws), np.array([writer.read for writer in writers]))
        return max(zip(texts, scores, strict=True), key=lambda candidate: (bool(candidate[0]), candidate[1]))[0]

    def _scores(
        self, primer: npt.NDArray[np.int32], ids: npt.NDArray[np.int32], counts: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Mean log-probability of the first counts [B] of ids [T, B] after the primer, by the model's forward pass."""
        inputs = np.vstack([np.tile(primer[:, None], ids.shape[1]), ids])[:-1]
        start, state, sums = primer.size - 1, None, np.zeros(ids.shape[1])
        portion = max(_SCORED_LOGITS // (ids.shape[1] * self._model.vocab_size), 1)
        for first in range(0, len(inputs), portion):
            logits, state = self._model(inputs[first : first + portion], state)
            for step, row in enumerate(logits.astype(np.float64), first - start):
                if step >= 0:
                    drawn = np.take_along_axis(row, ids[step][:, None], axis=1)[:, 0]
                    highest = row.max(axis=1)
                    total = highest + np.log(np.exp(row - highest[:, None]).sum(axis=1))
                    sums += np.where(step < counts, drawn - total, 0.0)
        return sums / np.maximum(counts, 1)

    def _primer(self, prime: str) -> npt.NDArray[np.int32]:
        return self._vocabulary.encode(prime or self.beginning(), where="prime").astype(np.int32)

    def _writers(self, streams: int, stop: str | Sequence[str]) -> list[_Writer]:
        stops = (stop,) if isinstance(stop, str) and stop else tuple(stop)
        for text in stops:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop must be texts of at least one character, got {text!r}")
            self._vocabulary.encode(text, where="stop")  # one that can never come is a mistake
        return [_Writer(self._decoder(), stops) for _ in range(streams)]

    def _draw(
        self, length: int, primer: npt.NDArray[np.int32], streams: int, piece_length: int, rng: np.random.Generator
    ) -> Iterator[tuple[npt.NDArray[np.int32], bool]]:
        """Yield ids [at most piece_length, streams], and whether they are the last."""
        stream = self._model.stream(streams, weights=self.weights)
        for token in primer[:-1]:
            stream.step(np.full(streams, token))
        last = np.full(streams, primer[-1])
        for done in range(0, max(length, 1), piece_length):
            count = min(piece_length, length - done)
            ids = stream.generate(
                last, rng.random((count, streams)), temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
            )
            yield ids, done + count == length

    def beginning(self) -> str:
        """The prime of a stream given none."""
        if isinstance(self._vocabulary, TokenVocabulary):
            return self._vocabulary.beginning()
        symbols = self._vocabulary.symbols
        return "\n" if symbols is None else next((start for start in "\n " if start in symbols), symbols[0])

    def _decoder(self) -> Callable[[npt.NDArray[Any], bool], str]:
        """Ids to text, piece by piece. A character's bytes may be split between two pieces."""
        vocabulary = self._vocabulary
        if isinstance(vocabulary, TokenVocabulary):
            return vocabulary.decoder()
        if vocabulary.kind != "bytes":
            return lambda ids, final: vocabulary.decode(ids)
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda ids, final: utf8.decode(ids.astype(np.uint8).tobytes(), final)


class _Writer:
    """Turns the ids of one stream into text that ends before a stop."""

    def __init__(self, decode: Callable[[npt.NDArray[Any], bool], str], stops: tuple[str, ...]) -> None:
        self.stopped = False
        self.read = 0
        """Ids read, up to those that completed a stop."""
        self._decode, self._stops = decode, stops
        self._held = ""  # the beginning of what may become a stop

    def write(self, ids: npt.NDArray[Any], final: bool) -> str:
        """The text that these ids add."""
        if self.stopped:
            return ""
        self.read += len(ids)
        text = self._held + self._decode(ids, final)
        # The stop that is complete first, so that the text does not depend on the pieces.
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        held = 0 if final else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that is a beginning of a stop."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _written(
    draws: Iterator[tuple[npt.NDArray[np.int32], bool]], writers: list[_Writer]
) -> Iterator[list[str]]:
    """Yield what each piece of draws adds to the text of each stream, until all have stopped."""
    for ids, final in draws:
        yield [writer.write(column, final) for writer, column in zip(writers, ids.T, strict=True)]
        if all(writer.stopped for writer in writers):
            return
