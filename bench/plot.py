"""A figure of a report, with a panel for each measured section. The only module that needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .harness import Comparison
from .report import Report, peers

_COLORS = {
    "lstmfast": "#d1495b", "torch": "#30638e", "onnxruntime": "#00798c", "openvino": "#66a182", "ncnn": "#7b4b94",
    "jax": "#edae49", "keras": "#8d96a3",
}
_AXES = {"batch": "batch B", "time_steps": "time steps T", "hidden_size": "units H (= inputs I)"}


def draw(reports: Sequence[Report], path: Path) -> None:
    """Draw the figure, machine below machine, into a file of any format that matplotlib writes.

    Raises ValueError if no measured section has a panel.
    """
    drawn = [(report, panels) for report in reports if (panels := _panels(report))]
    if not drawn:
        raise ValueError("--plot has nothing to draw: it shows step, sequence, threads and scaling")
    most = max(len(panels) for _, panels in drawn)
    columns = min(most, 3 if most != 4 else 2)
    rows = [-(-len(panels) // columns) for _, panels in drawn]
    figure = Figure(figsize=(5.6 * columns, 4.4 * sum(rows) + 0.5 * len(rows)), layout="constrained")
    parts = figure.subfigures(len(drawn), 1, squeeze=False, height_ratios=rows)[:, 0]
    for part, height, (report, panels) in zip(parts, rows, drawn, strict=True):
        for number, panel in enumerate(panels):
            panel(part.add_subplot(height, columns, number + 1))
        part.suptitle(f"{report.machine.get('cpu', '')}; threads: {report.settings.get('threads', '')}", fontsize=10)
    figure.savefig(path, dpi=120)


def _panels(report: Report) -> list[Callable[[Any], None]]:
    panels: list[Callable[[Any], None]] = []
    for section in ("step", "sequence"):
        for kind in ("inference", "training"):
            if found := [comparison for comparison in report.of(section, kind) if peers(comparison)]:
                panels.append(lambda axes, found=found: _ratios(axes, found))  # type: ignore[misc]
    if found := report.of("threads", "inference"):
        panels.append(lambda axes: _speed_up(axes, found))
    for axis in _AXES:
        if along := [comparison for comparison in report.of("scaling") if comparison.case.startswith(axis + " ")]:
            panels.append(lambda axes, axis=axis, along=along: _along(axes, report, axis, along))  # type: ignore[misc]
    return panels


def _ratios(axes: Any, found: Sequence[Comparison]) -> None:
    """Bars: lstmfast's speed relative to a peer's, case by case; the line at 1 is a tie."""
    labels = list(dict.fromkeys(label for comparison in found for label in peers(comparison)))
    height = 0.8 / len(labels)
    for number, label in enumerate(labels):
        places, widths, low, high = [], [], [], []
        for row, comparison in enumerate(found):
            if label in comparison.measured:
                ratio = comparison.ratio(label)
                places.append(row + (number - (len(labels) - 1) / 2) * height)
                widths.append(ratio.median)
                low.append(ratio.median - min(ratio.p10, ratio.median))
                high.append(max(ratio.p90, ratio.median) - ratio.median)
        axes.barh(places, widths, height, xerr=[low, high], color=_COLORS.get(label), label=label, error_kw={"lw": 0.8})
    axes.set_xscale("log")
    least, most = axes.get_xlim()
    ticks = {f"1/{n}": 1 / n for n in (20, 10, 5, 2)} | {f"{n}": n for n in (1, 2, 5, 10, 20, 50, 100, 200)}
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.minorticks_off()
    axes.set_xlim(min(least, 0.5), max(most, 2))
    axes.axvline(1, color="black", lw=1)
    names = [f"{c.case}\n{', '.join(map(str, c.shape or ()))}" for c in found]
    axes.set_yticks(range(len(found)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_title(f"{found[0].section}, {found[0].kind}", fontsize=10)
    axes.set_xlabel("times the contender's work that lstmfast does")
    axes.legend(fontsize=8)


def _speed_up(axes: Any, found: Sequence[Comparison]) -> None:
    """Lines: speed relative to one thread."""
    cases = list(dict.fromkeys(comparison.case for comparison in found))
    for case, style in zip(cases, ("-", "--", ":", "-."), strict=False):
        comparisons = [comparison for comparison in found if comparison.case == case]
        for label in comparisons[0].measured:
            common = [comparison for comparison in comparisons if label in comparison.measured]
            gains = [comparison.rate(label) / common[0].rate(label) for comparison in common]
            counts = [comparison.threads for comparison in common]
            axes.plot(counts, gains, style, marker=".", color=_COLORS.get(label), label=f"{label}, {case}")
    counts = sorted({comparison.threads for comparison in found})
    axes.plot(counts, counts, color="black", lw=0.6)
    axes.set_xticks(counts)
    axes.set_title("threads, inference", fontsize=10)
    axes.set_xlabel("threads")
    axes.set_ylabel("times the work of one thread")
    axes.legend(fontsize=7)


def _along(axes: Any, report: Report, axis: str, found: Sequence[Comparison]) -> None:
    """Lines: GFLOP/s against one axis of the shape; the grey line is one core's peak of multiply-adds."""
    for kind, style in (("inference", "-"), ("training", "--")):
        comparisons = [comparison for comparison in found if comparison.kind == kind]
        for label in dict.fromkeys(label for comparison in comparisons for label in comparison.measured):
            measured = [comparison for comparison in comparisons if label in comparison.measured]
            at = [getattr(comparison.shape, axis) for comparison in measured]
            rates = [comparison.rate(label) for comparison in measured]
            axes.plot(at, rates, style, marker=".", color=_COLORS.get(label), label=f"{label}, {kind}")
    if peak := report.peaks.get("flops", {}).get("float32"):
        axes.axhline(peak * found[0].threads / 1e9, color="grey", lw=1, label="multiply-adds at most")
    others = {name: getattr(found[0].shape, name) for name in _AXES if name != axis}
    places = sorted({getattr(comparison.shape, axis) for comparison in found})
    axes.set_xscale("log")
    axes.set_xticks(places, [str(place) for place in places], fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_title(f"scaling ({', '.join(f'{_AXES[name]} {value}' for name, value in others.items())})", fontsize=9)
    axes.set_xlabel(_AXES[axis])
    axes.set_ylabel("GFLOP/s")
    axes.legend(fontsize=8)
