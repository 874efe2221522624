"""`lstmfast train`: from the arguments to a run folder, new or resumed.

Refuses to train: `training.trainer` is the loop. This opens the folder, reads the text, and stops the loop on a signal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lstmfast import _core, cuda, distributed, runtime
from lstmfast.command import processes
from lstmfast.command.display import Display, make_display
from lstmfast.command.options import TrainOptions, parse, set_up
from lstmfast.distributed import Group
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
_ONE_SIGNAL_SECONDS = 1.0
_CHANGEABLE = {"steps", "checkpoint_every"}  # settings a resumed run may change, since they do not change its past


def train(argv: Sequence[str]) -> int:
    """Train on a text and write a run folder, alone or as one of many processes."""
    return processes.run(argv, lambda group: _train_in(group, argv))


def _train_in(group: Group, argv: Sequence[str]) -> int:
    resumed = _value_of("--resume", argv)
    if group.size > 1:  # all see the folder under its name on rank 0, where a path may be relative to another place
        there = distributed.broadcast(group, resumed and str(Path(resumed).absolute()))
        resumed = there if resumed and group.rank else resumed
    options, config = processes.together(group, lambda: _read_settings(argv, resumed, group))
    set_up(options, config)
    if group.size > 1 and not options.threads:
        processes.share_cores(group)
    others = {"device": options.device, "overwrite": options.overwrite, "resume": bool(options.resume)}
    processes.check_settings(group, config, others)
    folder = RunFolder(options.resume or options.out or _free_folder(config.preset))
    if group.size > 1:
        path = processes.on_first(group, lambda: str(folder.path.absolute()))
        folder = folder if group.rank == 0 else RunFolder(path)
    with make_display() if group.rank == 0 else contextlib.nullcontext(_Silent()) as display:
        return _train(folder, config, options, display, argv, group)


def _read_settings(argv: Sequence[str], resumed: str | None, group: Group) -> tuple[TrainOptions, Config]:
    name = _value_of("--preset", argv)
    if group.rank and resumed and not Path(resumed).is_dir():
        raise processes.not_seen(Path(resumed))
    base = RunFolder(resumed).read_config() if resumed else preset(name or "stdlib")
    if not resumed and _value_of("--minutes", argv):
        if _value_of("--steps", argv):
            raise ValueError("--minutes and --steps both say how long to train; give one of them")
        base = _with_steps(base, 0)
    options, config = _parse(argv, base)
    if resumed:
        _check_resumable(options, base, config, name)
        config = _with_shards(config, group, resuming=True)
    if options.tensorboard and group.rank == 0:
        load_writer()  # a missing package is said before anything is written
    return options, config


def _parse(argv: Sequence[str], base: Config) -> tuple[TrainOptions, Config]:
    """The options, and the settings: those of `base`, except where a flag says otherwise."""
    groups: dict[str, Any] = {group: getattr(base, group) for group in ("data", "model", "optimizer", "training")}
    options = parse(TrainOptions, "train", argv, TrainOptions(preset=base.preset, **groups))
    groups = {group: getattr(options, group) for group in groups}
    return options, Config(preset=base.preset, text=options.text or base.text, **groups)


def _settled(argv: Sequence[str], config: Config, corpus: Corpus, device: str, group: Group) -> Config:
    """The settings of a new run, now that its text is known: those without a flag follow from its size and the time."""
    def with_steps(steps: int) -> Config:
        hidden_size = config.model.hidden_size if _value_of("--hidden-size", argv) else 0
        base = preset(
            config.preset, characters=len(corpus.ids), minutes=config.training.minutes, hidden_size=hidden_size,
            steps=steps,
        )
        shards, rows = config.training.shards or group.size, base.training.batch_size
        rows = -(-rows // shards) * shards  # the next number that the shards can share
        base = dataclasses.replace(base, training=dataclasses.replace(base.training, batch_size=rows))
        settings = _parse(argv, _with_steps(base, steps))[1]
        return _with_shards(dataclasses.replace(settings, text=config.text), group, resuming=False)

    settled = with_steps(config.training.steps)
    if settled.training.steps:
        return settled
    return with_steps(timed(settled, corpus, device=device, group=group).training.steps)


def _with_steps(config: Config, steps: int) -> Config:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, steps=steps))


def _with_shards(config: Config, group: Group, *, resuming: bool) -> Config:
    """The settings with the number of shards that 0 stands for. Runs of earlier versions have one."""
    batch_size = config.training.batch_size
    shards = config.training.shards or (1 if resuming else group.size)
    if shards % group.size:
        raise ValueError(
            f"the batch has {shards} shard{'s' if shards > 1 else ''}, which {group.size} processes cannot share "
            f"evenly; start {shards} or fewer{'' if resuming else f', or give --shards {group.size}'}"
        )
    if batch_size % shards:
        raise ValueError(f"batch_size must be a multiple of {shards}, the number of shards, got {batch_size}")
    return dataclasses.replace(config, training=dataclasses.replace(config.training, shards=shards))


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


def _train(
    folder: RunFolder, config: Config, options: TrainOptions, display: Display, argv: Sequence[str], group: Group
) -> int:
    resuming, first = bool(options.resume), group.rank == 0
    fresh = not folder.path.exists()

    def claim() -> None:
        if resuming:
            folder.check_writable()
        else:
            folder.claim(overwrite=options.overwrite)

    processes.on_first(group, claim)
    try:
        processes.check_visible(group, folder.path)
        corpus = _load_text(config, folder, display, group, resuming=resuming)
        config = dataclasses.replace(config, text=corpus.sources)
        if not resuming:
            config = processes.together(group, lambda: _settled(argv, config, corpus, options.device, group))
            processes.check_settings(group, config, {})
        callbacks = [display] if first else []
        trainer = processes.together(
            group, lambda: make_trainer(config, corpus, callbacks, device=options.device, group=group)
        )
    except BaseException:
        if fresh and first:
            with contextlib.suppress(OSError):
                folder.path.rmdir()
        raise

    def open_folder() -> None:
        if first:
            (folder.resume if resuming else folder.begin)(config, corpus, trainer)
        elif resuming:
            folder.restore(corpus, trainer)

    processes.together(group, open_folder)
    if group.size > 1:
        processes.check_same(group, "the state", _digest(trainer), "use the same versions of NumPy everywhere")
    if options.tensorboard and first:
        trainer.callbacks.append(TensorBoard(folder))
    display.begin(trainer, _introduction(folder, config, corpus, trainer, options, group))
    with _stop_on_signal(trainer, from_launcher=group.size > 1) as received:
        done = trainer.run()
    if first:
        display.show_loss(folder.read_metrics())
    run = shlex.quote(str(folder.path))
    if done:
        display.end(f"Done. Run folder: {folder.path}\nNext: lstmfast sample {run} --length 500")
        return 0
    display.end(f"Stopped after {trainer.step:,} steps and saved. Resume with: lstmfast train --resume {run}")
    return 128 + (received[0] if received else signal.SIGTERM)  # none: another process was told to stop


class _Silent(Display):
    """The display of all ranks but 0."""

    def say(self, text: str) -> None:
        """Say nothing."""


def _digest(trainer: Trainer) -> str:
    """A fingerprint of everything the next step depends on."""
    snapshot = trainer.snapshot()
    digest = hashlib.sha256(json.dumps(snapshot.progress, sort_keys=True).encode())
    for name in sorted(snapshot.tensors):
        digest.update(snapshot.tensors[name].tobytes())
    return digest.hexdigest()


def _load_text(config: Config, folder: RunFolder, display: Display, group: Group, *, resuming: bool) -> Corpus:
    """The text; rank 0 reads it first, and the others find it in the cache where they share a file system."""
    if group.size == 1:
        return _load_corpus(config, folder, display, resuming=resuming)
    corpus: Corpus | None = None

    def load() -> list[str]:
        nonlocal corpus
        corpus = _load_corpus(config, folder, display, resuming=resuming)
        return list(corpus.sources)

    same_text = dataclasses.replace(config, text=tuple(processes.on_first(group, load)))
    loaded = processes.together(
        group, lambda: corpus or _load_corpus(same_text, folder, display, resuming=resuming)
    )
    processes.check_same(
        group, "the text", [loaded.fingerprint, loaded.vocabulary.to_json()], "give all machines the same files"
    )
    return loaded


def _load_corpus(config: Config, folder: RunFolder, display: Display, *, resuming: bool) -> Corpus:
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


def _introduction(
    folder: RunFolder, config: Config, corpus: Corpus, trainer: Trainer, options: TrainOptions, group: Group
) -> str:
    shape, training = config.model, config.training
    layers = "1 layer" if shape.num_layers == 1 else f"{shape.num_layers} layers"
    unit = "tokens" if config.has_tokens else "characters"
    threads, portion = runtime.get_num_threads(), f"{training.batch_size} x {training.unroll} {unit}"
    if training.accumulate > 1:
        portion = f"{training.accumulate} x {portion}"
    begun = f", resumed after {trainer.step:,}" if trainer.step else ""
    machine = f"CPU:   {_core.current_isa()}, {threads} thread{'s' if threads > 1 else ''}"
    if group.size > 1:
        machine += f" in each of {group.size} processes; {training.batch_size} rows in {training.shards} shards"
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
def _stop_on_signal(trainer: Trainer, *, from_launcher: bool) -> Iterator[list[int]]:
    """On Ctrl-C or SIGTERM the trainer finishes its step; a second signal has its previous effect.

    from_launcher: a terminal sends Ctrl-C to each process and a launcher passes it on, so two in one second are one.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    received_at = 0.0

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: object) -> None:
        nonlocal received_at
        if not received:
            received.append(number)
            received_at = time.monotonic()
            trainer.stop()
            if not from_launcher:
                restore()
        elif time.monotonic() - received_at > _ONE_SIGNAL_SECONDS:
            restore()
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield received
    finally:
        restore()
