"""The loss of a run as lines of characters for a terminal: Braille dots, or ASCII where the encoding has none.

Refuses to print and to open files. No plotting library: rich has no plots, and another dependency would cost more than
this page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lstmfast.training.plot import highest_shown

Point = tuple[float, float]
Spot = tuple[int, int]

_HEIGHT = 12  # lines of the plot itself
_WIDEST = 100  # columns in all: a wider plot says no more
_MARK_COLUMNS = 4  # of more frequent validations the mean: their marks would hide the training loss
_NARROWEST = 48  # below this there is no room for a plot
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bits of a Braille character, from the top


def draw_loss(metrics: Sequence[Mapping[str, float]], width: int, encoding: str = "utf-8") -> str:
    """Training and validation loss over steps, in lines of at most `width` characters.

    metrics: lines of metrics.jsonl. Values that are not finite leave gaps. Returns "" where there is nothing to see:
    fewer than two finite losses, or fewer than 48 columns.
    """
    losses = [(line["step"], line["loss"]) for line in metrics]
    validated = [(line["step"], line["valid_loss"]) for line in metrics if "valid_loss" in line]
    finite = [point for point in losses if math.isfinite(point[1])]
    if len(finite) < 2 or width < _NARROWEST:
        return ""
    try:
        "\u28ff\u25cf\u2502\u2514\u2500".encode(encoding)
        fine, mark, side, corner, floor = True, "\u25cf", "\u2502", "\u2514", "\u2500"
    except (LookupError, UnicodeEncodeError):
        fine, mark, side, corner, floor = False, "o", "|", "+", "-"

    low, high = min(value for _, value in finite), highest_shown(losses + validated)
    low = min([low, *(value for _, value in validated if math.isfinite(value))])
    if high <= low:
        low, high = low - 0.05, low + 0.05
    first, last = min(losses)[0], max(losses)[0]
    columns = min(width, _WIDEST) - 9

    def spots(points: Sequence[Point], across: int, down: int) -> list[Spot | None]:
        """Column and row of the mean of each column's points; None where they are not finite or above the plot."""
        found: dict[int, list[float]] = {}
        for step, value in points:
            found.setdefault(round((step - first) / max(last - first, 1) * (across - 1)), []).append(value)
        places: list[Spot | None] = []
        for column, values in sorted(found.items()):
            shown = [value for value in values if value <= high]  # NaN is not
            height = sum(shown) / len(shown) if shown else math.nan
            row = (high - height) / (high - low) * (down - 1)
            places.append((column, round(row)) if math.isfinite(row) else None)
        return places

    cells = [[" "] * columns for _ in range(_HEIGHT)]
    across, down = (2 * columns, 4 * _HEIGHT) if fine else (columns, _HEIGHT)
    bits: dict[Spot, int] = {}
    for column, row in _line(spots(losses, across, down)):
        cell = (row // 4, column // 2) if fine else (row, column)
        bits[cell] = bits.get(cell, 0) | (_DOTS[row % 4][column % 2] if fine else 0)
    for (row, column), pattern in bits.items():
        cells[row][column] = chr(0x2800 + pattern) if fine else "."
    gap = 1 if len(validated) <= columns // _MARK_COLUMNS else _MARK_COLUMNS
    for spot in spots(validated, columns // gap, _HEIGHT):
        if spot:
            cells[spot[1]][spot[0] * gap] = mark

    labels = {row: f"{high - (high - low) * row / (_HEIGHT - 1):7.3f}" for row in (0, _HEIGHT // 2, _HEIGHT - 1)}
    title = f"loss in nats: {chr(0x2812) * 2 if fine else '..'} training"
    title += f"  {mark} validation" if validated else ""
    ends = f"{first:,.0f}", f"step {last:,.0f}"
    return "\n".join([
        f"{'':8}{title}",
        *(f"{labels.get(row, ''):7} {side}{''.join(line)}".rstrip() for row, line in enumerate(cells)),
        f"{'':8}{corner}{floor * columns}",
        f"{'':9}{ends[0]}{ends[1]:>{columns - len(ends[0])}}",
    ])


def _line(spots: Sequence[Spot | None]) -> list[Spot]:
    """The dots of a line through these spots; None interrupts it."""
    dots = [spot for spot in spots if spot]
    for one, other in zip(spots, spots[1:], strict=False):
        if one and other:
            (x, y), (right, below) = one, other
            count = max(abs(right - x), abs(below - y))
            dots += [(x + round((right - x) * n / count), y + round((below - y) * n / count)) for n in range(count)]
    return dots
