"""Plots of a run, as files only. Does nothing without matplotlib."""

from __future__ import annotations

import json
import os
from pathlib import Path


def plot_loss(metrics: str | os.PathLike[str], picture: str | os.PathLike[str]) -> bool:
    """Draw the losses of a metrics.jsonl, in nats per character over steps, as a PNG; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    validated = [line for line in lines if "valid_loss" in line]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss, nats per character")
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], label="training")
    if validated:
        values = [line["valid_loss"] for line in validated]
        axes.plot([line["step"] for line in validated], values, marker=".", label="validation")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    return True
