"""The command line: `lstmfast train | sample | eval | report | inspect | bench | info`.

An error is one line on standard error, with exit status 2; only results go to standard output. Refuses to train and to
sample: this reads arguments, opens folders and prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from lstmfast import _core, cuda, inspection, losses, runtime
from lstmfast import _streams as streams
from lstmfast.command.display import printable
from lstmfast.command.errors import in_one_line
from lstmfast.command.options import ABOUT, EvalOptions, InfoOptions, InspectOptions, SampleOptions, parse, set_up
from lstmfast.command.report import report
from lstmfast.command.train import CACHE, train
from lstmfast.text.corpus import Corpus, load_corpus
from lstmfast.text.files import CacheFolderError
from lstmfast.training.presets import PRESETS
from lstmfast.training.run_folder import checkpoint_of, load_model
from lstmfast.training.sampler import Sampler
from lstmfast.training.trainer import evaluate

_PIECE_LENGTH = 16  # draws from one flush of the output to the next: below what an eye sees, above the cost of a flush
_SIGPIPE = 13  # signal.SIGPIPE, which Windows lacks


def sample(argv: Sequence[str]) -> int:
    """Generate text with a trained model."""
    options = parse(SampleOptions, "sample", argv)
    model, vocabulary, config = load_model(options.run)
    set_up(options, config)
    if options.seed < 0:
        raise ValueError(f"seed must be 0 or more, got {options.seed}")
    rng = np.random.default_rng(options.seed)
    sampler = Sampler(
        model, vocabulary, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
        weights=options.weights,
    )
    _replace_unencodable("replace")  # a terminal may lack characters of the model
    if "\r" not in (vocabulary.symbols or ("" if config.has_tokens else "\r")):
        prime, *stop = (re.sub("\r\n?", "\n", text) for text in (options.prime, *options.stop))  # as the text was read
        options = dataclasses.replace(options, prime=prime, stop=tuple(stop))
    if options.best_of < 1:
        raise ValueError(f"best_of must be at least 1, got {options.best_of}")
    if options.best_of > 1:
        if options.streams != 1:
            raise ValueError(f"best_of writes one text, but streams is {options.streams}; give one of the two")
        text = sampler.best_of(options.best_of, options.length, rng=rng, prime=options.prime, stop=options.stop)
        print(options.prime + text)
        return 0
    pieces = sampler.pieces(
        options.length, rng=rng, prime=options.prime, streams=options.streams, stop=options.stop,
        piece_length=_PIECE_LENGTH,
    )
    (_write_one if options.streams == 1 else _write_several)(options.prime, pieces, options.streams)
    return 0


def _write_one(prime: str, pieces: Iterator[list[str]], _: int) -> None:
    """Write a text while it is drawn."""
    print(prime, end="", flush=True)
    try:
        for [piece] in pieces:
            if piece:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        raise
    print()


def _write_several(prime: str, pieces: Iterator[list[str]], streams: int) -> None:
    """Write texts one after the other, once all are drawn."""
    texts: list[list[str]] = [[prime] for _ in range(streams)]
    interrupted = None
    try:
        for drawn in pieces:
            for text, piece in zip(texts, drawn, strict=True):
                text.append(piece)
    except KeyboardInterrupt as error:
        interrupted = error
    print("\n\n".join("".join(text) for text in texts))
    if interrupted:
        raise interrupted


def evaluate_text(argv: Sequence[str]) -> int:
    """Measure how well a trained model predicts a text."""
    options = parse(EvalOptions, "eval", argv)
    if not options.text:
        raise ValueError("TEXT is missing: name a file, a zip archive, an address, or - for standard input")
    model, vocabulary, config = load_model(options.run)
    set_up(options, config)

    def load(cache_folder: Path | None) -> Corpus:
        return load_corpus(
            options.text,
            vocabulary=vocabulary,
            vocabulary_size=config.data.vocabulary_size,
            fold=options.fold or config.data.fold,
            encoding=options.encoding or config.data.encoding,
            cache_folder=cache_folder,
        )

    try:
        corpus = load(checkpoint_of(options.run).parent.parent / CACHE)
    except CacheFolderError:  # such as a published run: the text is not cached then
        corpus = load(None)
    loss = evaluate(model.inference(weights=options.weights), corpus.ids)
    result = {
        "characters": len(corpus.ids),
        "loss": loss,
        "bits_per_char": losses.bits_per_character(loss),
        "perplexity": losses.perplexity(loss),
    }
    unit = "character"
    if counts := corpus.count(corpus.ids[1:]):  # the first one is not predicted
        unit = "token"
        result |= {
            "characters": round(counts.characters),
            "bits_per_char": counts.bits_per_character(loss),
            "tokens": len(corpus.ids),
            "words": counts.words,
            "word_perplexity": counts.word_perplexity(loss),
        }
    if options.json:
        print(json.dumps(result))
    else:
        print(corpus.description)
        print(f"loss        {loss:.4f} nats per {unit}, {result['bits_per_char']:.4f} bits per character")
        per_word = f" per token, {result['word_perplexity']:.4f} per word" if counts else ""
        print(f"perplexity  {result['perplexity']:.4f}{per_word}")
    return 0


def inspect(argv: Sequence[str]) -> int:
    """List the variables of a model or weight file, their gates, and the reasons for their shapes."""
    options = parse(InspectOptions, "inspect", argv)
    found = inspection.inspect(options.path, layout=options.layout or None)
    print(json.dumps(found.to_json(), indent=2) if options.json else printable(str(found)))
    return 0


def info(argv: Sequence[str]) -> int:
    """Describe this installation."""
    options = parse(InfoOptions, "info", argv)
    build = runtime.build_info()
    facts: dict[str, Any] = {
        "version": _core.__version__,
        "compiler": build.get("compiler", "unknown"),
        "isas_built": _core.built_isas(),
        "isas_available": _core.available_isas(),
        "isa": _core.current_isa(),
        "threads": runtime.get_num_threads(),
        "cuda": cuda.describe(),
    }
    if options.json:
        print(json.dumps(facts))
        return 0
    for name, fact in facts.items():
        print(f"{name.replace('_', ' '):14}  {', '.join(fact) if isinstance(fact, list) else fact}")
    if unbuilt := _core.unbuilt_isas():
        streams.tell(
            f"lstmfast: this CPU has {', '.join(unbuilt)}, but this build has no kernels for that and is slower than "
            "it could be; build lstmfast from source on this machine: docs/platforms.md"
        )
    return 0


def bench(argv: Sequence[str]) -> int:
    """Compare the speed of lstmfast with that of its alternatives."""
    command = importlib.import_module("lstmfast.bench.command")  # outside the package in the sources: imported late
    status: int = command.run(parse(command.BenchOptions, "bench", argv))
    return status


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "sample": sample,
    "eval": evaluate_text,
    "report": report,
    "inspect": inspect,
    "bench": bench,
    "info": info,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 2 after an error, 128 + n when stopped by signal n."""
    if argv is None:
        streams.occupy()
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if streams.is_closed(sys.stdout):
            if _has_results(argv):
                raise OSError("standard output is closed, but the result goes there")
            return _dispatch(argv)
        with contextlib.redirect_stdout(cast(TextIO, streams.Results(sys.stdout))) as results:
            try:
                return _dispatch(argv)
            finally:
                results.flush()
    except KeyboardInterrupt:
        streams.tell("lstmfast: interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of the output has seen enough
        streams.settle(sys.stdout)
        return 128 + _SIGPIPE
    except Exception as error:
        if "--traceback" in argv and not streams.is_closed(sys.stderr):
            raise
        streams.tell(f"lstmfast: error: {in_one_line(error)}")
        return 2


def _has_results(argv: Sequence[str]) -> bool:
    """Whether a command writes to standard output: all do but `train`."""
    return argv[:1] != ["train"] or "--help" in argv or "-h" in argv


def _dispatch(argv: Sequence[str]) -> int:
    _replace_unencodable("backslashreplace")  # names of files and variables, frames of help
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(f"lstmfast {_core.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise ValueError(f"the command must be one of {', '.join(COMMANDS)}, got {argv[0]!r}")
    return COMMANDS[argv[0]](argv[1:])


def _replace_unencodable(errors: str) -> None:
    """Set how standard output replaces characters that its encoding lacks; by default the first one is an error."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors=errors)


def _usage() -> str:
    lines = ["usage: lstmfast COMMAND [options]     (details: lstmfast COMMAND --help)", ""]
    lines += [f"  {name:8} {ABOUT[name].partition('. ')[0].removesuffix('.')}." for name in COMMANDS]
    return "\n".join([*lines, "", f"Presets of train: {', '.join(PRESETS)}. Begin with: lstmfast train"])
