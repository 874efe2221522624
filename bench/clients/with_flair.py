"""flair's SequenceTagger over embeddings of characters, in training: `python -m lstmfast.bench.clients.with_flair`."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from importlib.metadata import version

import flair
import torch
from flair.data import Dictionary, Sentence
from flair.embeddings import CharacterEmbeddings
from flair.models import SequenceTagger

from .compare import compare, serving

NAME = f"flair {version('flair')} SequenceTagger"
SENTENCES, UPDATES = 32, 20
LETTERS, TAGS = "abcdefghijklmnopqrstuvwxyz", ("short", "long")


def _sentences() -> list[Sentence]:
    """Sentences of 5 to 30 random words, each tagged by its length."""
    chance, sentences = random.Random(0), []
    for _ in range(SENTENCES):
        lengths = [chance.randint(1, 12) for _ in range(chance.randint(5, 30))]
        sentence = Sentence(["".join(chance.choices(LETTERS, k=length)) for length in lengths])
        for token in sentence:
            token.add_label("length", TAGS[len(token.text) > 6])
        sentences.append(sentence)
    return sentences


def _dictionary(words: Sequence[str]) -> Dictionary:
    dictionary = Dictionary(add_unk=True)
    for word in words:
        dictionary.add_item(word)
    return dictionary


def work(served: bool) -> tuple[float, Sequence[float]]:
    """The seconds of some updates, and their losses."""
    flair.set_seed(0)
    tagger = SequenceTagger(
        CharacterEmbeddings(_dictionary(LETTERS)), _dictionary(TAGS), "length", tag_format="BIO", use_crf=False,
    )
    optimizer, losses = torch.optim.SGD(tagger.parameters(), lr=0.1), []
    sentences = _sentences()
    with serving(served):
        start = time.process_time()
        for _ in range(UPDATES):
            optimizer.zero_grad()
            loss, words = tagger.forward_loss(sentences)
            (loss / words).backward()
            optimizer.step()
            losses.append(loss.item() / words)
            for sentence in sentences:
                sentence.clear_embeddings()
        return time.process_time() - start, losses


CASES = {f"256 units, both directions, {UPDATES} updates of {SENTENCES} sentences": work}

if __name__ == "__main__":
    flair.device = torch.device("cpu")
    logging.getLogger("flair").setLevel(logging.WARNING)
    compare(NAME, CASES)
