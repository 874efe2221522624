"""The public names of `lstmfast.text`: texts, vocabularies and batches. Nothing is defined here."""

from lstmfast.text.corpus import (
    Batches,
    CacheFolderError,
    Corpus,
    Ids,
    Progress,
    Vocabulary,
    download,
    fold_to_udacity,
    load_corpus,
    split,
)

__all__ = [
    "Batches",
    "CacheFolderError",
    "Corpus",
    "Ids",
    "Progress",
    "Vocabulary",
    "download",
    "fold_to_udacity",
    "load_corpus",
    "split",
]
