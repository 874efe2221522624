"""The command line: `lstmfast train | sample | eval | inspect | bench | info`.

Flags, defaults and help are generated from the dataclasses of `config` and those below. What goes wrong is said in one
line on standard error with exit status 2; results alone go to standard output. No training and no sampling happens
here: this reads arguments, opens folders and draws on the terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, TypeVar, cast

import numpy as np
import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

from lstmfast import _core, cuda, inspection, losses, runtime
from lstmfast._engine import streams
from lstmfast.command.display import Display, make_display, printable
from lstmfast.text.corpus import Corpus, load_corpus
from lstmfast.text.files import CacheFolderError
from lstmfast.training.config import (
    PRESETS,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    changed_settings,
    preset,
)
from lstmfast.training.recipe import make_trainer
from lstmfast.training.run_folder import RunFolder, checkpoint_of, load_model
from lstmfast.training.sampler import Sampler
from lstmfast.training.trainer import Trainer, evaluate

T = TypeVar("T")

_CACHE = "lstmfast-cache"  # beside the run folders, so that runs share encoded texts and downloads
_CHANGEABLE = {"steps", "checkpoint_every"}  # settings a resumed run may change, since they do not change its past

# Docstrings are not asked for these: Python may run without any (-OO). The list of commands has the first sentences.
_ABOUT = {
    "train": "Learn a text, character by character, and leave a run folder. Without a text: the source of Python's own "
    "standard library.",
    "sample": "Write text as a trained model would. It alone goes to standard output.",
    "eval": "Say how well a trained model predicts a text.",
    "inspect": "List the variables of a model or a file of weights, their gates, and why these shapes.",
    "bench": "Measure lstmfast beside what one would use instead.",
    "info": "Say what this installation is and what it uses of this machine.",
}


# --- options ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Common:
    traceback: FlagCreatePairsOff[bool] = False
    """Show where an error comes from."""


@dataclass(frozen=True, kw_only=True)
class _Machine(_Common):
    threads: int = 0
    """Threads to use; 0: as many as there are cores. The results are the same bits for any number."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(_Machine):
    """Options of `train`."""

    text: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """Files, zip archives, http(s) addresses, or - for standard input; joined in this order."""
    preset: str = "stdlib"
    """Where the defaults below come from: stdlib, or udacity (the classic 6_lstm notebook)."""
    out: str = ""
    """Run folder; by default the first of runs/PRESET-1, runs/PRESET-2, ... that is not there yet."""
    resume: str = ""
    """Go on with the run in this folder: its text, its settings, its last checkpoint. --steps may be raised; a cosine
    then ends at the new last step."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the run that is in the run folder."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where loss and gradients are made; cuda needs a build with CUDA, a GPU, and torch or cupy. As with threads, a run
    can go on on another device, but not with the same bits."""
    data: OmitArgPrefixes[DataConfig]
    """What the text is read as, and which part of it validates."""
    model: OmitArgPrefixes[ModelConfig]
    """The shape of the model and its first weights."""
    optimizer: OmitArgPrefixes[OptimizerConfig]
    """How gradients become steps."""
    training: OmitArgPrefixes[TrainingConfig]
    """How long, in what portions, and what is reported on the way. "Every" counts steps from the first, number 0."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(_Machine):
    """Options of `sample`."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder or checkpoint file."""
    length: int = 500
    """Characters to write after the prime."""
    prime: str = ""
    """Text that the model goes on from."""
    temperature: float = 0.7
    """Below 1 the text keeps to what is likely; 0 always takes the likeliest character."""
    top_k: int = 0
    """Choose among this many likeliest characters; 0: all."""
    top_p: float = 1.0
    """Choose among the fewest characters that together reach this probability; 1: all."""
    streams: int = 1
    """Texts to write, an empty line between them."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Keep the weights as they are, in half or in a quarter of the bytes: faster where the model is large."""
    seed: int = 0
    """Another number gives another text."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(_Machine):
    """Options of `eval`."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder or checkpoint file."""
    text: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")]
    """Files, zip archives, http(s) addresses, or - for standard input; joined in this order."""
    fold: FlagCreatePairsOff[bool] = False
    """Reduce the text to the fixed 27 symbols, also where the run did not."""
    encoding: str = ""
    """Encoding of the text; by default that of the run."""
    json: FlagCreatePairsOff[bool] = False
    """Write a JSON object."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions(_Common):
    """Options of `inspect`."""

    path: Annotated[Positional[str], tyro.conf.arg(metavar="PATH")]
    """Run folder or checkpoint, or a file of PyTorch, safetensors, NumPy, Keras, TensorFlow (or its folder) or ONNX."""
    layout: str = ""
    """Which library's names these are, where they do not tell: one of lstmfast.layouts.LAYOUTS."""
    json: FlagCreatePairsOff[bool] = False
    """Write a JSON object."""


@dataclass(frozen=True, kw_only=True)
class InfoOptions(_Common):
    """Options of `info`."""

    json: FlagCreatePairsOff[bool] = False
    """Write a JSON object."""


def _parse(kind: type[T], command: str, argv: Sequence[str], default: T | Any = tyro.MISSING_NONPROP) -> T:
    """Options from arguments. tyro reports what it cannot parse in a box; here its sentence becomes a ValueError."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind, prog=f"lstmfast {command}", description=_ABOUT[command], args=list(argv), default=default
            )
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise ValueError(_sentence_in_box(said.getvalue())) from None


def _set_up(options: _Machine, config: Config) -> None:
    """Have the extension work as this command was asked to and as the run's settings say."""
    if options.threads < 0:
        raise ValueError(f"threads must be 0 or more, got {options.threads}")
    if options.threads:
        runtime.set_num_threads(options.threads)
    runtime.set_matmul_precision(config.model.matmul_precision)


def _sentence_in_box(box: str) -> str:
    """What stands in a box of tyro's before its first rule, on one line."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    rule = next((number for number, line in enumerate(lines) if not line.strip("─╰╯ ")), len(lines))
    sentence = " ".join(line for line in lines[:rule] if line)
    return re.sub(r"^Error parsing (?:\w+: )?", "", sentence)


# --- train ------------------------------------------------------------------------------------------------------------


def train(argv: Sequence[str]) -> int:
    """Learn a text and leave a run folder."""
    resumed, name = _value_of("--resume", argv), _value_of("--preset", argv)
    base = RunFolder(resumed).read_config() if resumed else preset(name or "stdlib")
    groups: dict[str, Any] = {group: getattr(base, group) for group in ("data", "model", "optimizer", "training")}
    options = _parse(TrainOptions, "train", argv, TrainOptions(preset=base.preset, **groups))
    groups = {group: getattr(options, group) for group in groups}
    config = Config(preset=base.preset, text=options.text or base.text, **groups)
    if resumed:
        _check_resumable(options, base, config, name)
    _set_up(options, config)
    folder = RunFolder(resumed or options.out or _free_folder(config.preset))
    with make_display() as display:
        return _train(folder, config, options, display)


def _check_resumable(options: TrainOptions, base: Config, config: Config, preset_name: str | None) -> None:
    unwanted = {
        "text": options.text, "--out": options.out, "--overwrite": options.overwrite, "--preset": preset_name
    }
    if given := [name for name, value in unwanted.items() if value]:
        raise ValueError(f"--resume goes on in the run's own folder with its own text and settings, without {given[0]}")
    for name, (old, new) in changed_settings(base, config).items():
        flag = f"--{name.replace('_', '-')}"
        if name not in _CHANGEABLE:
            raise ValueError(f"{flag} of the run {options.resume} is {old} and cannot become {new}; start a new run")
        if name == "steps" and new < old:
            raise ValueError(f"--steps of the run {options.resume} is {old} and can only be raised, got {new}")


def _train(folder: RunFolder, config: Config, options: TrainOptions, display: Display) -> int:
    resuming = bool(options.resume)
    fresh = not folder.path.exists()
    if resuming:
        folder.check_writable()
    else:
        folder.claim(overwrite=options.overwrite)
    try:
        corpus = _load_text(config, folder, display, resuming=resuming)
        config = dataclasses.replace(config, text=corpus.sources)
        trainer = make_trainer(config, corpus, [display], device=options.device)
    except BaseException:
        if fresh:
            with contextlib.suppress(OSError):
                folder.path.rmdir()
        raise
    (folder.resume if resuming else folder.begin)(config, corpus, trainer)
    display.begin(trainer, _introduction(folder, config, corpus, trainer, options))
    with _stop_on_signal(trainer) as received:
        done = trainer.run()
    run = shlex.quote(str(folder.path))
    if done:
        display.end(f"Done. Run folder: {folder.path}\nNext: lstmfast sample {run} --length 500")
        return 0
    display.end(f"Stopped after {trainer.step:,} steps and saved. Go on with: lstmfast train --resume {run}")
    return 128 + received[0]


def _load_text(config: Config, folder: RunFolder, display: Display, *, resuming: bool) -> Corpus:
    data = config.data

    def load(verbatim: bool) -> Corpus:
        return load_corpus(
            config.text,
            vocabulary=data.vocabulary,
            fold=data.fold,
            encoding=data.encoding,
            cache_folder=folder.path.parent / _CACHE,
            expected_bytes=data.expected_bytes or None,
            progress=display.on_text,
            verbatim=verbatim,
        )

    corpus = load(verbatim=False)
    # Runs from before line ends and byte order marks were read as they are now have them in their text.
    if resuming and (learnt := folder.learnt_text()) not in (None, corpus.fingerprint):
        with contextlib.suppress(ValueError):
            before = load(verbatim=True)
            corpus = before if before.fingerprint == learnt else corpus
    return corpus


def _introduction(folder: RunFolder, config: Config, corpus: Corpus, trainer: Trainer, options: TrainOptions) -> str:
    shape, training = config.model, config.training
    layers = "1 layer" if shape.num_layers == 1 else f"{shape.num_layers} layers"
    threads, portion = runtime.get_num_threads(), f"{training.batch_size} x {training.unroll} characters"
    begun = f", resumed after {trainer.step:,}" if trainer.step else ""
    machine = f"CPU:   {_core.current_isa()}, {threads} thread{'s' if threads > 1 else ''}"
    if options.device == "cuda":
        machine = f"CUDA:  {cuda.describe()}"
    return (
        f"Text:  {corpus.description}\n"
        f"Model: {layers} of {shape.hidden_size} units, {trainer.model.parameter_buffer.size:,} variables\n"
        f"Run:   {folder.path}, {training.steps:,} steps of {portion}{begun}\n"
        f"{machine}\n"
    )


def _free_folder(name: str) -> Path:
    number = 1
    while (path := Path("runs", f"{name}-{number}")).exists():
        number += 1
    return path


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The value an option has been given, looked up before parsing because the other defaults depend on it."""
    for number, argument in enumerate(argv):
        if argument == flag and number + 1 < len(argv):
            return argv[number + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return None


@contextlib.contextmanager
def _stop_on_signal(trainer: Trainer) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM let the trainer finish its step; a second one falls back to what it did before."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: object) -> None:
        received.append(number)
        trainer.stop()
        restore()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield received
    finally:
        restore()


# --- sample, eval -----------------------------------------------------------------------------------------------------


def sample(argv: Sequence[str]) -> int:
    """Write text as a trained model would."""
    options = _parse(SampleOptions, "sample", argv)
    model, vocabulary, config = load_model(options.run)
    _set_up(options, config)
    if options.seed < 0:
        raise ValueError(f"seed must be 0 or more, got {options.seed}")
    rng = np.random.default_rng(options.seed)
    sampler = Sampler(
        model, vocabulary, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
        weights=options.weights,
    )
    _write_what_can_be_written("replace")  # a terminal may not have every character that a model has
    if "\r" not in (vocabulary.symbols or "\r"):
        options = dataclasses.replace(options, prime=re.sub("\r\n?", "\n", options.prime))  # as its text was read
    if options.streams > 1:
        texts = sampler.generate(options.length, rng=rng, prime=options.prime, streams=options.streams)
        print("\n\n".join(options.prime + text for text in texts))
        return 0
    pieces = sampler.pieces(options.length, rng=rng, prime=options.prime, streams=options.streams)
    print(options.prime, end="")
    for [piece] in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def evaluate_text(argv: Sequence[str]) -> int:
    """Say how well a trained model predicts a text."""
    options = _parse(EvalOptions, "eval", argv)
    if not options.text:
        raise ValueError("TEXT is missing: name a file, a zip archive, an address, or - for standard input")
    model, vocabulary, config = load_model(options.run)
    _set_up(options, config)

    def load(cache_folder: Path | None) -> Corpus:
        return load_corpus(
            options.text,
            vocabulary=vocabulary,
            fold=options.fold or config.data.fold,
            encoding=options.encoding or config.data.encoding,
            cache_folder=cache_folder,
        )

    try:
        corpus = load(checkpoint_of(options.run).parent.parent / _CACHE)
    except CacheFolderError:  # a run of somebody else's, or one that was published: nothing of this text is kept then
        corpus = load(None)
    loss = evaluate(model, corpus.ids)
    result = {
        "characters": len(corpus.ids),
        "loss": loss,
        "bits_per_char": losses.bits_per_character(loss),
        "perplexity": losses.perplexity(loss),
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(corpus.description)
        print(f"loss        {loss:.4f} nats per character, {result['bits_per_char']:.4f} bits per character")
        print(f"perplexity  {result['perplexity']:.4f}")
    return 0


# --- inspect, info ----------------------------------------------------------------------------------------------------


def inspect(argv: Sequence[str]) -> int:
    """List the variables of a model or a file of weights, their gates, and why these shapes."""
    options = _parse(InspectOptions, "inspect", argv)
    found = inspection.inspect(options.path, layout=options.layout or None)
    print(json.dumps(found.to_json(), indent=2) if options.json else printable(str(found)))
    return 0


def info(argv: Sequence[str]) -> int:
    """Say what this installation is."""
    options = _parse(InfoOptions, "info", argv)
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
    return 0


# --- bench ------------------------------------------------------------------------------------------------------------


def bench(argv: Sequence[str]) -> int:
    """Measure lstmfast beside what one would use instead."""
    command = importlib.import_module("lstmfast.bench.command")  # lies in bench/ in the sources, hence no import above
    status: int = command.run(_parse(command.BenchOptions, "bench", argv))
    return status


# --- the program ------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "sample": sample,
    "eval": evaluate_text,
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
    except BrokenPipeError:  # whoever read the output has seen enough
        streams.settle(sys.stdout)
        return 128 + signal.SIGPIPE
    except Exception as error:
        if "--traceback" in argv and not streams.is_closed(sys.stderr):
            raise
        streams.tell(f"lstmfast: error: {_in_one_line(error)}")
        return 2


def _has_results(argv: Sequence[str]) -> bool:
    """Whether a command writes to standard output: all but a training do."""
    return argv[:1] != ["train"] or "--help" in argv or "-h" in argv


def _dispatch(argv: Sequence[str]) -> int:
    _write_what_can_be_written("backslashreplace")  # names of files and variables, frames of help
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(f"lstmfast {_core.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise ValueError(f"the command must be one of {', '.join(COMMANDS)}, got {argv[0]!r}")
    return COMMANDS[argv[0]](argv[1:])


def _write_what_can_be_written(errors: str) -> None:
    """Have characters that standard output's encoding lacks replaced as this says; else the first would be an error."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors=errors)


def _usage() -> str:
    lines = ["usage: lstmfast COMMAND [options]     (lstmfast COMMAND --help says more)", ""]
    lines += [f"  {name:8} {_ABOUT[name].partition('. ')[0].removesuffix('.')}." for name in COMMANDS]
    return "\n".join([*lines, "", f"Presets of train: {', '.join(PRESETS)}. Begin with: lstmfast train"])


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        words = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, (ValueError, OSError, ImportError, cuda.CudaUnavailableError)):
        words = str(error)
    else:
        words = f"{type(error).__name__}: {error} (--traceback shows where)"
    return " ".join(words.split())
