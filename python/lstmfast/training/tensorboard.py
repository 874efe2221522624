"""A run's metrics and samples as TensorBoard event files, by the tensorboardX package.

The run folder is what counts: a resumed run's events are written again from its metrics and samples, so that no step
comes twice. Refuses to compute anything.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from lstmfast.training.run_folder import EVENTS, RunFolder
from lstmfast.training.trainer import Callback, Summary, Trainer

_SET = re.compile(r"^=== step (\d+) ===\n(.*?)(?=^=== step \d+ ===\n|\Z)", re.MULTILINE | re.DOTALL)


def load_writer() -> Any:
    """The class that writes event files. Raises ImportError saying how to install it."""
    try:
        return importlib.import_module("tensorboardX").SummaryWriter
    except ImportError as error:
        raise ImportError(f"--tensorboard needs the extra: pip install 'lstmfast[tensorboard]' ({error})") from error
    except Exception as error:  # a protobuf that does not fit raises TypeError
        raise ImportError(
            f"--tensorboard needs a tensorboardX that works: pip install -U 'lstmfast[tensorboard]' ({error})"
        ) from error


class TensorBoard(Callback):
    """Writes RUN/tensorboard, to show with `tensorboard --logdir RUN`.

    Scalars have the names of the fields of metrics.jsonl; samples are the text `samples`. folder: a run that has begun
    or resumed; its metrics and samples so far are written first. Raises ImportError as `load_writer`.
    """

    def __init__(self, folder: RunFolder) -> None:
        make_writer = load_writer()
        folder.remove_events()
        self._writer = make_writer(str(folder.path / EVENTS))
        for line in folder.read_metrics():
            self._add_line(line)
        for step, texts in _SET.findall(folder.read_samples()):
            self._add_samples(int(step), texts)
        self._writer.flush()

    def on_summary(self, trainer: Trainer, summary: Summary) -> None:
        """Write the fields of a line of metrics."""
        self._add_line(summary.to_json())
        self._writer.flush()

    def on_samples(self, trainer: Trainer, step: int, texts: list[str]) -> None:
        """Write a set of samples."""
        self._add_samples(step, "".join(f"{text}\n" for text in texts))

    def on_end(self, trainer: Trainer) -> None:
        """Put everything on the disk. A loop that goes on begins another file."""
        self._writer.close()

    def _add_line(self, line: dict[str, float]) -> None:
        for name in line.keys() - {"step"}:
            self._writer.add_scalar(name, line[name], int(line["step"]))

    def _add_samples(self, step: int, texts: str) -> None:
        # TensorBoard shows Markdown: an indented block keeps line breaks. Lone surrogates have no UTF-8.
        shown = texts.rstrip("\n").encode("utf-8", "replace").decode("utf-8")
        self._writer.add_text("samples", "\n".join(f"    {line}" for line in shown.split("\n")), step)
