"""The public names of `lstmfast.text`: texts, vocabularies and batches. Nothing is defined here."""

from lstmfast.text.batches import Batches
from lstmfast.text.batches import train_valid_split as split
from lstmfast.text.corpus import Corpus, load_corpus
from lstmfast.text.download import download
from lstmfast.text.files import CacheFolderError, Progress
from lstmfast.text.tokens import Counts, TokenVocabulary
from lstmfast.text.vocabulary import Ids, Vocabulary, fold_to_udacity

__all__ = [
    "Batches",
    "CacheFolderError",
    "Corpus",
    "Counts",
    "Ids",
    "Progress",
    "TokenVocabulary",
    "Vocabulary",
    "download",
    "fold_to_udacity",
    "load_corpus",
    "split",
]
