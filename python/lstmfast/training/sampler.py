"""Text generation: many streams at once, primed or not, whole or in pieces for live output.

The loop over characters is in C++ (`CharLM.stream`); this module converts the text and draws random numbers from the
caller's generator in such an order that the text does not depend on the piece length. Refuses files and the terminal.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast.models import CharLM
from lstmfast.text.vocabulary import Vocabulary

_PIECE_LENGTH = 4096


class Sampler:
    """Draws text from a model as it is now.

    temperature: divides the logits; 0 is greedy, always the likeliest character. top_k: only the k likeliest; 0: all.
    top_p: only the fewest that together reach this probability; 1: all. weights: how a stream keeps those of the LSTM,
    "float32", "bfloat16" or "int8", see `LSTM.stream`. Raises ValueError naming the argument.
    """

    def __init__(
        self,
        model: CharLM,
        vocabulary: Vocabulary,
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

    def generate(self, length: int, *, rng: np.random.Generator, prime: str = "", streams: int = 1) -> list[str]:
        """One text of `length` characters after `prime` for each stream. The prime is read, not repeated.

        Without a prime a stream begins as if after a line break or, where the vocabulary has none, after a space.
        Raises ValueError if the vocabulary lacks a character of the prime.
        """
        pieces = self.pieces(length, rng=rng, prime=prime, streams=streams)
        return ["".join(text) for text in zip(*pieces, strict=True)]

    def pieces(
        self,
        length: int,
        *,
        rng: np.random.Generator,
        prime: str = "",
        streams: int = 1,
        piece_length: int = _PIECE_LENGTH,
    ) -> Iterator[list[str]]:
        """Yield the text of `generate` in pieces: for each stream the next characters, at most `piece_length`."""
        length, streams = check.whole_number("length", length, 0), check.whole_number("streams", streams)
        piece_length = check.whole_number("piece_length", piece_length)
        primer = self._vocabulary.encode(prime or self._beginning(), where="prime").astype(np.int32)
        return self._draw(length, primer, streams, piece_length, check.generator("rng", rng))

    def _draw(
        self, length: int, primer: npt.NDArray[np.int32], streams: int, piece_length: int, rng: np.random.Generator
    ) -> Iterator[list[str]]:
        stream = self._model.stream(streams, weights=self.weights)
        for token in primer[:-1]:
            stream.step(np.full(streams, token))
        last = np.full(streams, primer[-1])
        decoders = [self._decoder() for _ in range(streams)]
        for done in range(0, max(length, 1), piece_length):
            count = min(piece_length, length - done)
            ids = stream.generate(
                last, rng.random((count, streams)), temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
            )
            final = done + count == length
            yield [decode(column, final) for decode, column in zip(decoders, ids.T, strict=True)]

    def _beginning(self) -> str:
        """The prime of a stream given none."""
        symbols = self._vocabulary.symbols
        return "\n" if symbols is None else next((start for start in "\n " if start in symbols), symbols[0])

    def _decoder(self) -> Callable[[npt.NDArray[Any], bool], str]:
        """Ids to text, piece by piece. A character's bytes may be split between two pieces."""
        if self._vocabulary.kind != "bytes":
            return lambda ids, final: self._vocabulary.decode(ids)
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda ids, final: utf8.decode(ids.astype(np.uint8).tobytes(), final)
