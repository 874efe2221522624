"""Plots of a run, as files only. Does nothing without matplotlib."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

_SMOOTHED_FROM = 60  # with fewer lines of metrics each is a mean of many steps for the width it takes
_FIRST_PART = 0.05  # of the steps: losses of an untrained model would leave no height for the rest


def plot_loss(metrics: str | os.PathLike[str], picture: str | os.PathLike[str]) -> bool:
    """Draw the losses of a metrics.jsonl, in nats over steps, as a PNG; False where that is not possible.

    Long runs show their training loss faintly, and its running mean over 2 % of the run. A missing or broken
    matplotlib, or a picture that cannot be written, is no error: the run is done, and its numbers are in the metrics.
    """
    lines = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    if not lines:
        return False
    trained = [(line["step"], line["loss"]) for line in lines]
    validated = [(line["step"], line["valid_loss"]) for line in lines if "valid_loss" in line]
    temporary = Path(picture).with_name(f"{Path(picture).name}.tmp")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xlabel="step", ylabel="loss in nats")
        if len(lines) < _SMOOTHED_FROM:
            axes.plot(*zip(*trained, strict=True), color="C0", label="training")
        else:
            axes.plot(*zip(*trained, strict=True), color="C0", alpha=0.25, linewidth=0.8)
            axes.plot(*zip(*_smoothed(trained), strict=True), color="C0", label="training, smoothed")
        if validated:
            axes.plot(*zip(*validated, strict=True), color="C1", marker=".", label="validation")
        finite = [value for _, value in trained + validated if math.isfinite(value)]
        if finite and (high := highest_shown(trained + validated)) > (low := min(finite)):
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(temporary, dpi=120, format="png")
        os.replace(temporary, picture)
    except Exception:  # a library built against another numpy raises what it likes
        temporary.unlink(missing_ok=True)
        return False
    return True


def highest_shown(losses: Sequence[tuple[float, float]]) -> float:
    """The top of a plot of (step, loss): the highest finite loss after the first twentieth of the steps.

    Of all steps, where there are fewer than 8 losses; NaN if none is finite.
    """
    finite = [point for point in losses if math.isfinite(point[1])]
    steps = [step for step, _ in losses]
    begin = min(steps) + _FIRST_PART * (max(steps) - min(steps)) if len(losses) >= 8 else -math.inf
    return max([value for step, value in finite if step >= begin] or [value for _, value in finite], default=math.nan)


def _smoothed(losses: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Centred running means over 2 % of the points, of the finite values."""
    reach = max(len(losses) // 100, 1)
    means = []
    for number, (step, _) in enumerate(losses):
        near = [value for _, value in losses[max(number - reach, 0) : number + reach + 1] if math.isfinite(value)]
        means.append((step, sum(near) / len(near) if near else math.nan))
    return means
