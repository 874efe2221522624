"""Shared by the examples: options, the text they read, and a table at the end. No model code."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import lstmfast as lf
from lstmfast.data import Corpus, load_corpus

CACHE = "runs/lstmfast-cache"  # shared with `lstmfast train`
Results = Mapping[str, float]


class Options(argparse.ArgumentParser):
    """Options that every example has, --steps only if it trains; errors are one sentence."""

    def __init__(self, doc: str, *, steps: int | None, text: bool = True) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        if text:
            texts = "text files, zip archives or addresses to train on; none: the source of Python's standard library"
            self.add_argument("text", nargs="*", metavar="TEXT", help=texts)
        if steps is not None:
            self.add_number("--steps", steps, "batches to train on")
        self.add_number("--seed", 0, "random seed", at_least=0)
        self.add_number("--threads", 0, "threads to use; 0: as many as there are cores", at_least=0)

    def add_number(self, name: str, default: int, what: str, *, at_least: int = 1) -> None:
        """Add an option that takes an integer."""

        def whole_number(value: str) -> int:
            if not value.isdecimal() or int(value) < at_least:
                raise argparse.ArgumentTypeError(f"must be a whole number of at least {at_least}, got {value!r}")
            return int(value)

        self.add_argument(name, type=whole_number, default=default, metavar="N", help=f"{what} (default: {default})")

    def add_fraction(self, name: str, default: float, what: str) -> None:
        """Add an option that takes a number of at least 0 and below 1."""

        def fraction(value: str) -> float:
            try:
                number = float(value)
            except ValueError:
                number = -1.0
            if not 0 <= number < 1:
                raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {value!r}")
            return number

        self.add_argument(name, type=fraction, default=default, metavar="X", help=f"{what} (default: {default})")

    def error(self, message: str) -> NoReturn:
        """Exit with one sentence, without the usage text."""
        self.exit(2, f"{self.prog}: {message}\n")

    def run(self, example: Callable[[Any], Results], arguments: Sequence[str] | None) -> Results:
        """Run an example with the given options; its errors are one sentence too."""
        options = self.parse_args(arguments)
        if options.threads:
            lf.set_num_threads(options.threads)
        try:
            return example(options)
        except (ImportError, OSError, ValueError) as error:
            named = isinstance(error, OSError) and error.filename and error.strerror
            self.error(f"{error.filename}: {error.strerror}" if named else str(error))


def read_text(sources: Sequence[str], *, fold: bool = False) -> Corpus:
    """The text as ids, and its vocabulary. fold: reduced to 27 symbols, space and a to z."""
    corpus = load_corpus(sources, fold=fold, cache_folder=CACHE)
    print(f"Text: {corpus.description}\n")
    return corpus


def read_words(sources: Sequence[str], *, shortest: int, longest: int) -> Counter[str]:
    """The count of each word of a to z in the text, in lower case, with this many letters."""
    corpus = read_text(sources, fold=True)
    words = corpus.vocabulary.decode(corpus.ids).split()
    return Counter(word for word in words if shortest <= len(word) <= longest)


def is_due(step: int, steps: int, lines: int = 8) -> bool:
    """Whether to print a line at this step: the first, the last, and evenly between them."""
    return step == 0 or (step + 1) * lines // steps > step * lines // steps


def print_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print the results: a name and a value on each line."""
    listed = list(rows)
    width = max(len(name) for name, _ in listed)
    print(f"\n{title}")
    for name, value in listed:
        print(f"  {name:<{width}}  {value}")
