"""The run folder: a run on the disk that can be killed at any moment and resumed bit for bit.

`RunFolder` is the trainer's callback that writes it; `load_model` takes the model out of one. `checkpoint`
defines the file format, `trainer` the meaning of its values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lstmfast.models import CharLM
from lstmfast.text.corpus import Corpus
from lstmfast.text.tokens import AnyVocabulary, vocabulary_from_json
from lstmfast.training import checkpoint, plot
from lstmfast.training.checkpoint import Checkpoint, Header, copy_tensors, is_parameter
from lstmfast.training.config import Config, stored_config
from lstmfast.training.recipe import make_model
from lstmfast.training.trainer import Callback, Snapshot, Summary, Trainer

EVENTS = "tensorboard"  # the folder of the event files, see `tensorboard`


class RunFolder(Callback):
    """A run on the disk: settings, metrics, samples and one checkpoint, and at the end a picture of the loss.

    A checkpoint records the lengths of the other files. Resuming truncates them to these lengths, because the resumed
    run writes the rest again.
    """

    CONFIG = "config.json"
    METRICS = "metrics.jsonl"
    SAMPLES = "samples.txt"
    CHECKPOINT = "checkpoint.safetensors"
    PICTURE = "loss.png"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._config: Config | None = None
        self._corpus: Corpus | None = None

    def claim(self, *, overwrite: bool = False) -> None:
        """Make the folder for a new run and check that it is writable. A folder that is not empty needs `overwrite`.

        Raises FileExistsError or OSError naming the folder. Nothing in it is changed yet.
        """
        if self.path.is_dir() and any(self.path.iterdir()) and not overwrite:
            raise FileExistsError(
                f"run folder {self.path} is not empty: give --resume {self.path} to go on with its run, "
                "--overwrite to replace it, or another --out"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"run folder {self.path} cannot be written: {error.strerror}") from error
        self.check_writable()

    def check_writable(self) -> None:
        """Check that a run can go on here, before changing anything. Raises OSError naming the folder or the file."""
        try:
            probe = self.path / f"{self.CHECKPOINT}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OSError(f"run folder {self.path} cannot be written: {error.strerror}") from error
        for path in (self.path / self.METRICS, self.path / self.SAMPLES):
            try:
                if path.exists():
                    path.open("r+b").close()
            except OSError as error:
                raise OSError(f"{path} cannot be written: {error.strerror}") from error

    def begin(self, config: Config, corpus: Corpus, trainer: Trainer) -> None:
        """Start a new run here; files of an earlier one are deleted, its checkpoint first."""
        for name in (self.CHECKPOINT, self.CONFIG, self.METRICS, self.SAMPLES, self.PICTURE):
            (self.path / name).unlink(missing_ok=True)
        self.remove_events()
        self._attach(config, corpus, trainer)

    def resume(self, config: Config, corpus: Corpus, trainer: Trainer) -> None:
        """Restore the trainer, cut the other files to what the checkpoint counts, and go on writing here.

        Errors are those of `restore`, and OSError if the folder cannot be written. Nothing is lost then.
        """
        self.check_writable()
        sizes = self.restore(corpus, trainer)
        for name in (self.METRICS, self.SAMPLES):
            _cut(self.path / name, sizes.get(name, 0))
        self._attach(config, corpus, trainer)

    def restore(self, corpus: Corpus, trainer: Trainer) -> Mapping[str, int]:
        """Restore the trainer from the run's checkpoint, or leave it at step 0 if there is none. Writes nothing.

        Returns the sizes of the other files at the checkpoint. Raises ValueError naming what differs if the text, its
        vocabulary or the model's shape is not the run's.
        """
        path = self.path / self.CHECKPOINT
        if not path.exists():
            return {}
        saved = checkpoint.load(path)
        self._check_same_text(saved, corpus)
        try:
            trainer.restore(Snapshot(dict(saved.tensors), saved.metadata["progress"]))
            sizes: Mapping[str, int] = saved.metadata["file_bytes"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"checkpoint {path} cannot be resumed: {_reason(error)}") from error
        return sizes

    def _attach(self, config: Config, corpus: Corpus, trainer: Trainer) -> None:
        self._config, self._corpus = config, corpus
        try:
            checkpoint.replace_file(self.path / self.CONFIG, config.to_json().encode() + b"\n")
        except OSError as error:
            raise OSError(f"{self.path / self.CONFIG} cannot be written: {error.strerror}") from error
        trainer.callbacks.append(self)

    def _check_same_text(self, saved: Checkpoint, corpus: Corpus) -> None:
        vocabulary = stored_vocabulary(saved)
        if vocabulary != corpus.vocabulary:
            raise ValueError(
                f"the run in {self.path} has learnt a vocabulary of {vocabulary.size} symbols ({vocabulary.kind}), but "
                f"its text now has another of {corpus.vocabulary.size} ({corpus.vocabulary.kind}); start a new run"
            )
        if saved.metadata.get("text_fingerprint") != corpus.fingerprint:
            raise ValueError(
                f"the text of the run in {self.path} has changed since it began ({corpus.description} now); "
                "bring the old text back, or start a new run"
            )

    def read_config(self) -> Config:
        """The settings of this folder's run. Raises OSError or ValueError naming the file."""
        path = self.path / self.CONFIG
        try:
            return Config.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.path} is no run folder: it holds no {self.CONFIG}") from error
        except OSError as error:
            raise OSError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{path} holds no settings that can be used: {error}") from error

    def learnt_text(self) -> str | None:
        """The fingerprint of the run's training text, None before its first checkpoint."""
        path = self.path / self.CHECKPOINT
        if not path.exists():
            return None
        fingerprint = checkpoint.read_header(path).metadata.get("text_fingerprint")
        return fingerprint if isinstance(fingerprint, str) else None

    def read_metrics(self) -> list[dict[str, float]]:
        """The lines of metrics so far. Raises OSError if they cannot be read."""
        path = self.path / self.METRICS
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def read_samples(self) -> str:
        """The samples so far, as in their file."""
        path = self.path / self.SAMPLES
        return path.read_bytes().decode("utf-8", "surrogatepass") if path.exists() else ""

    def remove_events(self) -> None:
        """Remove TensorBoard's event files."""
        for path in (self.path / EVENTS).glob("events.out.tfevents.*"):
            path.unlink()

    def learnt_vocabulary(self) -> AnyVocabulary | None:
        """The vocabulary of the run's model, None before its first checkpoint."""
        path = self.path / self.CHECKPOINT
        return stored_vocabulary(checkpoint.read_header(path)) if path.exists() else None

    def on_summary(self, trainer: Trainer, summary: Summary) -> None:
        """Append a line of metrics."""
        self._append(self.METRICS, json.dumps(summary.to_json()) + "\n")

    def on_samples(self, trainer: Trainer, step: int, texts: list[str]) -> None:
        """Append a set of samples under its step number."""
        self._append(self.SAMPLES, f"=== step {step} ===\n" + "".join(f"{text}\n" for text in texts) + "\n")

    def on_checkpoint(self, trainer: Trainer) -> None:
        """Write the checkpoint."""
        if self._config is None or self._corpus is None:
            raise RuntimeError("a run folder must be given its run: call begin or resume")
        snapshot = trainer.snapshot()
        metadata = {
            "config": json.loads(self._config.to_json()),
            "vocabulary": self._corpus.vocabulary.to_json(),
            "text_fingerprint": self._corpus.fingerprint,
            "progress": snapshot.progress,
            "file_bytes": {name: _size_on_disk(self.path / name) for name in (self.METRICS, self.SAMPLES)},
        }
        checkpoint.save(self.path / self.CHECKPOINT, snapshot.tensors, metadata)

    def on_end(self, trainer: Trainer) -> None:
        """Plot the loss if there are metrics and matplotlib is installed."""
        if (self.path / self.METRICS).exists():
            plot.plot_loss(self.path / self.METRICS, self.path / self.PICTURE)

    def _append(self, name: str, text: str) -> None:
        path = self.path / name
        try:
            with path.open("a", encoding="utf-8", errors="surrogatepass", newline="") as file:
                file.write(text)
        except OSError as error:
            raise OSError(f"{path} cannot be written: {error.strerror}; the last checkpoint is kept") from error


def _reason(error: Exception) -> str:
    return f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)


def _size_on_disk(path: Path) -> int:
    """Size of a file once flushed to the disk, so that a power cut loses no lines that a checkpoint counts."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:  # Windows flushes no file that is open for reading alone
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _cut(path: Path, size_bytes: int) -> None:
    if path.exists() and path.stat().st_size > size_bytes:
        os.truncate(path, size_bytes)


def load_model(path: str | os.PathLike[str]) -> tuple[CharLM, AnyVocabulary, Config]:
    """Model, vocabulary and settings of a checkpoint or a run folder. Raises ValueError or OSError naming the file."""
    saved = checkpoint.load(checkpoint_of(path))
    config, vocabulary = stored_config(saved.metadata, saved.path), stored_vocabulary(saved)
    model = make_model(config, vocabulary.size, np.random.default_rng(0))
    try:
        copy_tensors({name: values for name, values in saved.tensors.items() if is_parameter(name)}, model.parameters)
    except ValueError as error:
        raise ValueError(f"checkpoint {saved.path} does not fit together: {error}") from error
    return model, vocabulary, config


def checkpoint_of(path: str | os.PathLike[str]) -> Path:
    """The checkpoint file of a run folder, or the path itself if it is a file."""
    path = Path(path)
    if not path.is_dir():
        return path
    if not (path / RunFolder.CHECKPOINT).exists():
        raise FileNotFoundError(f"{path} is no run folder that can be used: it holds no {RunFolder.CHECKPOINT}")
    return path / RunFolder.CHECKPOINT


def stored_vocabulary(saved: Checkpoint | Header) -> AnyVocabulary:
    """The vocabulary of a checkpoint's model."""
    try:
        return vocabulary_from_json(saved.metadata["vocabulary"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"checkpoint {saved.path} holds no vocabulary that can be used: {error}") from error
