"""What training shows on standard error: a live progress bar on a terminal, plain lines elsewhere.

Both are callbacks of the trainer. Refuses to write to standard output and to keep anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO, cast

from lstmfast import _streams as streams
from lstmfast import losses
from lstmfast.command.curve import draw_loss
from lstmfast.training.trainer import Callback, Summary, Trainer

if TYPE_CHECKING:
    from rich.progress import Progress

_LINE_BREAK = re.compile(r"\r\n|[\r\v\f\x85]")  # of Windows, of old Macs, and page breaks
_UNPRINTABLE = re.compile(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]")  # a model must not send escape sequences to a terminal
_ACTIVITIES = {"download": "Downloading", "read": "Reading", "encode": "Encoding"}
_SLOW_BYTES = 32_000_000  # a text of this size takes about a second to read
_REDRAW_SECONDS = 0.1
_SPEED_SECONDS = 0.5  # a mean over less is noise


def printable(text: str) -> str:
    """A text with all line breaks as \\n and all other control characters except tabs replaced."""
    return _UNPRINTABLE.sub("\ufffd", _LINE_BREAK.sub("\n", text))


class Display(Callback):
    """Plain lines on standard error, one for each summary: for logs and simple terminals."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._first_step = 0
        self._activity = ""

    def say(self, text: str) -> None:
        """Print lines."""
        streams.tell(printable(text))

    def on_text(self, activity: str, done_bytes: int, all_bytes: int | None) -> None:
        """Called while a text is downloaded, read or encoded."""
        slow = all_bytes is None or all_bytes > _SLOW_BYTES
        if slow and activity != self._activity:
            self._activity = activity
            self.say(f"{_ACTIVITIES[activity]} the text ...")

    def begin(self, trainer: Trainer, introduction: str) -> None:
        """Called before the first step."""
        self._started, self._first_step = time.perf_counter(), trainer.step
        self.say(introduction)

    def end(self, words: str) -> None:
        """Called after the last step."""
        self.say(words)

    def show_loss(self, metrics: Sequence[Mapping[str, float]]) -> None:
        """Called at the end with the lines of metrics: nothing here, since a log has the numbers."""

    def on_summary(self, trainer: Trainer, summary: Summary) -> None:
        """One line."""
        words = [
            f"step {summary.step:6,}/{trainer.settings.steps:,}",
            f"loss {summary.loss:.4f}",
            f"{_bits_per_character(trainer, summary.loss):.3f} bits/char",
            f"{summary.chars_per_second:9,} chars/s",
            f"{self._time_left(trainer)} left",
        ]
        if summary.valid_loss is not None:
            words.append(f"validation {summary.valid_loss:.4f} ({_described(summary)})")
        self.say("  ".join(words))

    def on_samples(self, trainer: Trainer, step: int, texts: list[str]) -> None:
        """The samples between two rules."""
        self.say("\n".join([f"--- step {step:,} ".ljust(80, "-"), *texts, "-" * 80]))

    def _time_left(self, trainer: Trainer) -> str:
        made = trainer.step - self._first_step
        seconds = (time.perf_counter() - self._started) / max(made, 1) * (trainer.settings.steps - trainer.step)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


def _bits_per_character(trainer: Trainer, loss: float) -> float:
    return trainer.counts.bits_per_character(loss) if trainer.counts else losses.bits_per_character(loss)


def _described(summary: Summary) -> str:
    """The validation loss in other units."""
    loss, counts = summary.valid_loss or 0.0, summary.valid_counts
    if counts is None:
        return f"perplexity {losses.perplexity(loss):.2f}"
    return f"{counts.bits_per_character(loss):.3f} bits/char, perplexity {counts.word_perplexity(loss):,.1f} per word"


class LiveDisplay(Display):
    """A progress bar at the bottom of the terminal, drawn ten times a second between steps; samples scroll above it."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._task = progress.add_task("", total=None, words="")
        self._loss, self._speed, self._validation = 0.0, 0.0, ""
        self._drawn_at = 0.0
        self._restart_speed()

    def say(self, text: str) -> None:
        """Print lines above the bar."""
        self._progress.console.print(printable(text), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def on_text(self, activity: str, done_bytes: int, all_bytes: int | None) -> None:
        """Move the bar along the text."""
        self._draw(_ACTIVITIES[activity], done_bytes, all_bytes, f"{done_bytes / 1e6:,.0f} MB")

    def begin(self, trainer: Trainer, introduction: str) -> None:
        """Switch the bar to counting steps."""
        super().begin(trainer, introduction)
        self._restart_speed()
        self._draw("Training", trainer.step, trainer.settings.steps, "")

    def end(self, words: str) -> None:
        """Leave the bar where it is and print below it."""
        self._progress.stop()
        super().say(words)

    def show_loss(self, metrics: Sequence[Mapping[str, float]]) -> None:
        """Draw the loss over the steps below the bar."""
        console = self._progress.console
        console_has_dots = os.environ.get("TERM") != "linux"  # the font of Linux's own console
        if curve := draw_loss(metrics, console.width, console.encoding if console_has_dots else "ascii"):
            self._progress.stop()
            super().say(f"\n{curve}\n")

    def on_step(self, trainer: Trainer, step: int, loss: float) -> None:
        """Redraw if a tenth of a second has passed."""
        settings = trainer.settings
        self._loss = 0.98 * self._loss + 0.02 * loss if self._loss else loss
        self._characters += settings.characters_per_step * trainer.characters_per_id
        now = time.perf_counter()
        if now - self._drawn_at >= _REDRAW_SECONDS or trainer.done:
            self._drawn_at = now
            if now - self._counted_from >= _SPEED_SECONDS:
                self._speed = self._characters / (now - self._counted_from)
            self._draw_step(trainer)

    def on_summary(self, trainer: Trainer, summary: Summary) -> None:
        """Show the exact loss and speed, and the validation loss until the next one."""
        self._loss, self._speed = summary.loss, summary.chars_per_second
        if summary.valid_loss is not None:
            self._validation = f"  valid {summary.valid_loss:.3f}"
            if summary.valid_counts is not None:
                self._validation += f" ({_described(summary)})"
        if trainer.done:
            self._draw_step(trainer)
        self._restart_speed()

    def on_samples(self, trainer: Trainer, step: int, texts: list[str]) -> None:
        """The samples above the bar."""
        super().on_samples(trainer, step, texts)
        self._restart_speed()

    def _restart_speed(self) -> None:
        """Measure the speed from here, so that only time spent in steps counts."""
        self._counted_from, self._characters = time.perf_counter(), 0.0

    def _draw_step(self, trainer: Trainer) -> None:
        words = (
            f"{trainer.step:,}/{trainer.settings.steps:,}  loss {self._loss:.3f}  "
            f"{_bits_per_character(trainer, self._loss):.3f} bits/char{self._validation}  {self._speed:,.0f} chars/s  "
            f"{self._time_left(trainer)} left"
        )
        self._draw("Training", trainer.step, trainer.settings.steps, words)

    def _draw(self, activity: str, done: int, total: int | None, words: str) -> None:
        self._progress.start()  # not earlier: an error before the first step then prints one line and no bar
        self._progress.update(self._task, description=activity, completed=done, total=total, words=words)
        self._progress.refresh()


@contextlib.contextmanager
def make_display() -> Iterator[Display]:
    """A live display if standard error is a terminal that supports it, plain lines otherwise."""
    if streams.is_closed(sys.stderr) or not sys.stderr.isatty():
        yield Display()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(file=cast(TextIO, streams.Errors(sys.stderr)))
    if console.is_dumb_terminal:
        yield Display()
        return
    words = TextColumn("{task.fields[words]}", markup=False)
    bar = BarColumn(bar_width=20)
    progress = Progress(TextColumn("{task.description}"), bar, words, console=console, auto_refresh=False)
    try:
        yield LiveDisplay(progress)
    finally:
        progress.stop()
