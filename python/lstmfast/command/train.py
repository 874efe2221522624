"""`lstmfast train`: from the arguments to a run folder, new or resumed.

Refuses to train: `training.trainer` is the loop. This opens the folder, reads the text, and stops the loop on a signal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lstmfast import _core, cuda, runtime
from lstmfast.command.display import Display, make_display
from lstmfast.command.options import TrainOptions, parse, set_up
from lstmfast.text.corpus import Corpus, load_corpus
from lstmfast.text.sources import CACHE_NAME
from lstmfast.text.tokens import AnyVocabulary
from lstmfast.training.config import Config, changed_settings
from lstmfast.training.presets import preset
from lstmfast.training.recipe import make_trainer, timed
from lstmfast.training.run_folder import RunFolder
from lstmfast.training.tensorboard import TensorBoard, load_writer
from lstmfast.training.trainer import Trainer

CACHE = CACHE_NAME  # beside the run folders, so that runs share encoded texts and downloads
_CHANGEABLE = {"steps", "checkpoint_every"}  # settings a resumed run may change, since they do not change its past


def train(argv: Sequence[str]) -> int:
    """Train on a text and write a run folder."""
    resumed, name = _value_of("--resume", argv), _value_of("--preset", argv)
    base = RunFolder(resumed).read_config() if resumed else preset(name or "stdlib")
    if not resumed and _value_of("--minutes", argv):
        if _value_of("--steps", argv):
            raise ValueError("--minutes and --steps both say how long to train; give one of them")
        base = _with_steps(base, 0)
    options, config = _parse(argv, base)
    if resumed:
        _check_resumable(options, base, config, name)
    set_up(options, config)
    if options.tensorboard:
        load_writer()  # a missing package is said before anything is written
    folder = RunFolder(resumed or options.out or _free_folder(config.preset))
    with make_display() as display:
        return _train(folder, config, options, display, argv)


def _parse(argv: Sequence[str], base: Config) -> tuple[TrainOptions, Config]:
    """The options, and the settings: those of `base`, except where a flag says otherwise."""
    groups: dict[str, Any] = {group: getattr(base, group) for group in ("data", "model", "optimizer", "training")}
    options = parse(TrainOptions, "train", argv, TrainOptions(preset=base.preset, **groups))
    groups = {group: getattr(options, group) for group in groups}
    return options, Config(preset=base.preset, text=options.text or base.text, **groups)


def _settled(argv: Sequence[str], config: Config, corpus: Corpus, device: str) -> Config:
    """The settings of a new run, now that its text is known: those without a flag follow from its size and the time."""
    def with_steps(steps: int) -> Config:
        hidden_size = config.model.hidden_size if _value_of("--hidden-size", argv) else 0
        base = preset(
            config.preset, characters=len(corpus.ids), minutes=config.training.minutes, hidden_size=hidden_size,
            steps=steps,
        )
        return dataclasses.replace(_parse(argv, _with_steps(base, steps))[1], text=config.text)

    settled = with_steps(config.training.steps)
    return settled if settled.training.steps else with_steps(timed(settled, corpus, device=device).training.steps)


def _with_steps(config: Config, steps: int) -> Config:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, steps=steps))


def _check_resumable(options: TrainOptions, base: Config, config: Config, preset_name: str | None) -> None:
    unwanted = {
        "text": options.text, "--out": options.out, "--overwrite": options.overwrite, "--preset": preset_name
    }
    if given := [name for name, value in unwanted.items() if value]:
        raise ValueError(f"--resume uses the run's own folder, text and settings; remove {given[0]}")
    for name, (old, new) in changed_settings(base, config).items():
        flag = f"--{name.replace('_', '-')}"
        if name not in _CHANGEABLE:
            raise ValueError(f"{flag} of the run {options.resume} is {old} and cannot become {new}; start a new run")
        if name == "steps" and new < old:
            raise ValueError(f"--steps of the run {options.resume} is {old} and can only be raised, got {new}")


def _train(folder: RunFolder, config: Config, options: TrainOptions, display: Display, argv: Sequence[str]) -> int:
    resuming = bool(options.resume)
    fresh = not folder.path.exists()
    if resuming:
        folder.check_writable()
    else:
        folder.claim(overwrite=options.overwrite)
    try:
        corpus = _load_text(config, folder, display, resuming=resuming)
        config = dataclasses.replace(config, text=corpus.sources)
        if not resuming:
            config = _settled(argv, config, corpus, options.device)
        trainer = make_trainer(config, corpus, [display], device=options.device)
    except BaseException:
        if fresh:
            with contextlib.suppress(OSError):
                folder.path.rmdir()
        raise
    (folder.resume if resuming else folder.begin)(config, corpus, trainer)
    if options.tensorboard:
        trainer.callbacks.append(TensorBoard(folder))
    display.begin(trainer, _introduction(folder, config, corpus, trainer, options))
    with _stop_on_signal(trainer) as received:
        done = trainer.run()
    display.show_loss(folder.read_metrics())
    run = shlex.quote(str(folder.path))
    if done:
        display.end(f"Done. Run folder: {folder.path}\nNext: lstmfast sample {run} --length 500")
        return 0
    display.end(f"Stopped after {trainer.step:,} steps and saved. Resume with: lstmfast train --resume {run}")
    return 128 + received[0]


def _load_text(config: Config, folder: RunFolder, display: Display, *, resuming: bool) -> Corpus:
    data = config.data
    vocabulary: str | AnyVocabulary = data.vocabulary
    if resuming and config.has_tokens:
        vocabulary = folder.learnt_vocabulary() or vocabulary  # another version of the library may learn another one

    def load(verbatim: bool) -> Corpus:
        return load_corpus(
            config.text,
            vocabulary=vocabulary,
            vocabulary_size=data.vocabulary_size,
            fold=data.fold,
            encoding=data.encoding,
            cache_folder=folder.path.parent / CACHE,
            expected_bytes=data.expected_bytes or None,
            progress=display.on_text,
            verbatim=verbatim,
        )

    corpus = load(verbatim=False)
    # Runs made before line ends were converted and byte order marks dropped have both in their text.
    if resuming and (trained_on := folder.learnt_text()) not in (None, corpus.fingerprint):
        with contextlib.suppress(ValueError):
            before = load(verbatim=True)
            corpus = before if before.fingerprint == trained_on else corpus
    return corpus


def _introduction(folder: RunFolder, config: Config, corpus: Corpus, trainer: Trainer, options: TrainOptions) -> str:
    shape, training = config.model, config.training
    layers = "1 layer" if shape.num_layers == 1 else f"{shape.num_layers} layers"
    unit = "tokens" if config.has_tokens else "characters"
    threads, portion = runtime.get_num_threads(), f"{training.batch_size} x {training.unroll} {unit}"
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
    """The value given to an option, looked up before parsing because other defaults depend on it."""
    for number, argument in enumerate(argv):
        if argument == flag and number + 1 < len(argv):
            return argv[number + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return None


@contextlib.contextmanager
def _stop_on_signal(trainer: Trainer) -> Iterator[list[int]]:
    """On Ctrl-C or SIGTERM the trainer finishes its step; a second signal has its previous effect."""
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
