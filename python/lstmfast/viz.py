"""Figures of what an LSTM does and of its weights: NumPy arrays in, matplotlib figures out.

For any LSTM, whatever its data: `gates_over_time`, `saturation`, `forget_half_lives`, `weights_by_gate`. The numbers
are those of `gate_statistics`. Needs matplotlib (`pip install 'lstmfast[plot]'`), imported only by a call. Refuses to
run an LSTM, to open windows and to change settings of matplotlib: figures are not registered with pyplot. To show one
in a window, draw into one of pyplot: `figure=plt.figure(layout="constrained")`, or `ax=plt.gca()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import gate_statistics as statistics
from lstmfast import gates as order
from lstmfast._checks import Array
from lstmfast._engine.results import Output
from lstmfast.layers import LSTMCell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["forget_half_lives", "gates_over_time", "saturation", "weights_by_gate"]

# Okabe & Ito 2008, to be told apart by colour-blind readers; grey for their yellow, which is faint on white. The styles
# keep lines apart in print.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_STYLES = ("-", "--", "-.", ":")
_DIVERGING = "RdBu_r"  # white at 0; red and blue are told apart by colour-blind readers
_MOST_LABELS = 80  # at the time axis, above which every second, third, ... is shown
_NAME_HEIGHT = 0.1  # inches of the name of a row, in 7 points
_TITLES = ("input gate", "forget gate", "candidate", "output gate")


def gates_over_time(
    gates: Output | npt.NDArray[np.floating[Any]],
    units: Sequence[int],
    *,
    cells: npt.NDArray[np.floating[Any]] | None = None,
    h: npt.NDArray[np.floating[Any]] | None = None,
    row: int = 0,
    lengths: npt.ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """Draw the gates and states of some units over the steps of one sequence: panels i, f, g, o, c, h.

    gates: the output of `lstm(..., return_gates=True, return_cells=True)`, or an array, activated, in order i, f, g, o.
    cells, h: the states beside an array of gates; the panel of one that is None is left out. Units of h after a
    projection are no units of the cell: such an h of an output is left out.
    Shapes: gates [T, B, 4, H]; cells, h [T, B, H]; lengths [B]; all without B for one sequence. units: up to 8 of the
    H. row: which of the B sequences; it ends after lengths[row] steps. labels: one per step shown, e.g. characters, in
    place of step numbers. figure: draw there (a Figure or SubFigure of matplotlib) and return it.
    Units: i, f, o are shares from 0 to 1; g and h lie between -1 and 1; c has no bounds.
    Raises TypeError for other arrays, ValueError for shapes, units or labels that do not fit, ImportError without
    matplotlib.

    >>> out = lf.lstm(x, kernel, bias, return_gates=True, return_cells=True)
    >>> lf.viz.gates_over_time(out, units=[0, 5, 9]).savefig("gates.png")
    """
    if isinstance(gates, Output):
        if cells is not None or h is not None:
            raise ValueError("cells and h must be None beside the output of lstm, which has its own")
        cells = gates.cells
        h = gates.h if gates.gates is not None and gates.h.shape[-1] == gates.gates.shape[-1] else None
    whole = _gates_of(gates)
    time_steps, batch, _, hidden_size = whole.shape
    row = _index("row", row, batch)
    if np.ndim(units) != 1:
        raise TypeError(f"units must be a sequence of whole numbers, such as [0, 5], got {units!r}")
    units = [_index("units", unit, hidden_size) for unit in units]
    if not 1 <= len(units) <= len(_COLORS):
        raise ValueError(f"units must be 1 to {len(_COLORS)} units, got {len(units)}: more cannot be told apart")
    ends = check.lengths(lengths, time_steps, batch)
    steps = time_steps if ends is None else int(ends[row])
    if steps < 1:
        raise ValueError(f"gates must have at least one step to draw, got none in row {row}")
    if labels is not None and len(labels) != steps:
        raise ValueError(f"labels must be one for each of the {steps} steps shown, got {len(labels)}")
    panels: list[tuple[str, Array, tuple[int, int] | None]] = [
        (f"${letter}$  {title}", whole[:, row, gate], (-1, 1) if letter == "g" else (0, 1))
        for gate, (letter, title) in enumerate(zip(order.LETTERS, _TITLES, strict=True))
    ]
    for name, states, title in (("cells", cells, "$c$  cell state"), ("h", h, "$h$  output")):
        if states is not None:
            states = check.sequence(name, states, (hidden_size,))
            check.has_shape(name, states, (time_steps, batch, hidden_size), "(time_steps, batch, hidden_size) of gates")
            panels.append((title, states[:, row], None))

    drawn: Figure = _figure(figure, min(max(0.1 * steps, 7), 14), 1.25 * len(panels) + 0.6)
    grid = drawn.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    marker = "." if steps <= 60 else ""
    for axes, (title, values, bounds) in zip(grid, panels, strict=True):
        for number, unit in enumerate(units):
            axes.plot(
                values[:steps, unit], _STYLES[number % len(_STYLES)], marker=marker, ms=4, color=_COLORS[number],
                lw=1.4, label=f"unit {unit}",
            )
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        if bounds is None:
            axes.axhline(0, color="0.6", lw=0.8, zorder=0)
        else:
            axes.set_ylim(bounds[0] - 0.06, bounds[1] + 0.06)
            axes.set_yticks([bounds[0], sum(bounds) / 2, bounds[1]])
    columns = min(len(units), 4)
    grid[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, frameon=False, borderaxespad=0.1)
    grid[-1].set_xlim(-0.5, steps - 0.5)
    if labels is None:
        grid[-1].set_xlabel("time step")
        grid[-1].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    else:
        every = -(-steps // _MOST_LABELS)
        grid[-1].set_xticks(range(0, steps, every), list(labels[::every]))
        grid[-1].tick_params(axis="x", length=0)
    return drawn


def saturation(
    gates: Output | npt.NDArray[np.floating[Any]],
    *,
    lengths: npt.ArrayLike | None = None,
    low: float = 0.1,
    high: float = 0.9,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """Draw for each unit the share of steps at which a gate is nearly closed against that at which it is nearly open.

    Three panels: input, forget and output gate; the candidate is no gate of this kind. A point at the lower right is a
    unit whose gate is always closed, at the upper left always open, at the lower left never decided. On the diagonal
    line it is one or the other at every step; none can be above.
    gates: the output of `lstm(..., return_gates=True)`, or an array, activated, in order i, f, g, o. Shapes: [T, B, 4,
    H], or [T, 4, H] of one sequence; lengths [B]. low, high: bounds of closed and open. figure: draw there, return it.
    Raises as `gate_statistics.gate_saturation`, which computes the numbers; ImportError without matplotlib.

    >>> lf.viz.saturation(lf.lstm(x, kernel, bias, return_gates=True)).savefig("saturation.png")
    """
    shares = statistics.gate_saturation(_gates_of(gates), lengths=lengths, low=low, high=high)
    drawn: Figure = _figure(figure, 9, 3.4)
    grid = drawn.subplots(1, len(statistics.SIGMOID_GATES), sharey=True)
    for number, (axes, name) in enumerate(zip(grid, statistics.SIGMOID_GATES, strict=True)):
        axes.plot([1, 0], [0, 1], color="0.7", lw=0.8, zorder=0)
        axes.text(0.05, 1, "always open", color="0.4", fontsize=8, va="center")
        axes.text(1, 0.05, "always closed", color="0.4", fontsize=8, ha="center", rotation=90)
        axes.scatter(shares.closed[number], shares.open[number], s=22, color=_COLORS[number], alpha=0.6, lw=0,
                     clip_on=False)
        axes.set_title(f"{name} gate", fontsize=10)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_xlabel(f"share of steps below {low:g}")
        axes.grid(alpha=0.3)
    grid[0].set_ylabel(f"share of steps above {high:g}")
    return drawn


def forget_half_lives(
    gates: Output | npt.NDArray[np.floating[Any]],
    *,
    lengths: npt.ArrayLike | None = None,
    bins: int = 15,
    ax: Axes | None = None,
) -> Figure:
    """Draw a histogram of how long the units remember: the half-lives of their cell states, in steps.

    Half-life: ln 0.5 / (the mean of ln f over all steps and sequences), by `gate_statistics.forget_half_life`. Bars
    have equal widths on a logarithmic axis; units at 0 and at infinity have no place there and are counted in a note.
    gates: the output of `lstm(..., return_gates=True)`, or an array, activated, in order i, f, g, o. Shapes: [T, B, 4,
    H], or [T, 4, H] of one sequence; lengths [B]. bins: number of bars. ax: draw there, and return its figure.
    Raises as `gate_statistics.forget_half_life`; ImportError without matplotlib.

    >>> lf.viz.forget_half_lives(lf.lstm(x, kernel, bias, return_gates=True)).savefig("half_lives.png")
    """
    forget = _gates_of(gates)[:, :, order.NAMES.index("forget")]
    steps = statistics.forget_half_life(forget, lengths=lengths)
    bins = check.whole_number("bins", bins)
    axes: Any = _figure(None, 6, 3.4).subplots() if ax is None else ax
    shown = steps[np.isfinite(steps) & (steps > 0)]
    axes.set_xscale("log")
    if shown.size:
        first, last = np.log10(shown.min()), np.log10(shown.max())
        around = max(0.5 - (last - first) / 2, 0)  # at least a decade, which has labels wherever it begins
        edges = np.logspace(first - around, last + around, bins + 1)
        edges[0], edges[-1] = min(edges[0], shown.min()), max(edges[-1], shown.max())
        axes.hist(shown, edges, color=_COLORS[0], edgecolor="white", lw=0.5)
        median = float(np.median(steps))
        if 0 < median < np.inf:
            axes.axvline(median, color=_COLORS[1], lw=1.4, ls="--", label=f"median {median:.3g}")
    for value, words in ((0, "0 (f was 0)"), (np.inf, "infinity (f was always 1)")):
        if count := int(np.sum(steps == value)):
            axes.plot([], [], " ", label=f"{count} {'unit' if count == 1 else 'units'} at {words}")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.1)
    axes.set_xlabel("half-life of the cell state in steps")
    axes.set_ylabel("units")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0, top=None if shown.size else 1)
    least, most = axes.get_xlim()
    axes.xaxis.get_major_locator().set_params(subs=(1, 2, 5) if most < 300 * least else (1,))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.grid(alpha=0.3)
    drawn: Figure = axes.figure
    return drawn


def weights_by_gate(
    kernel: LSTMCell | npt.NDArray[np.floating[Any]],
    *,
    output_size: int | None = None,
    input_names: Sequence[str] | None = None,
    limit: float | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """Draw the kernel as one image per gate: input, forget, candidate (cell), output, each over the units.

    The upper part of an image has the rows that multiply the input x, the lower one those that multiply the previous h.
    kernel: an `LSTMCell`, or its kernel [input_size + output_size, 4*hidden_size], columns i, f, g, o. output_size:
    size of h, hidden_size if None. input_names: one per row of the input, e.g. characters. limit: the weight of the
    full colours; None is the 99.5th percentile of all absolute weights, so that a few large ones do not fade the rest.
    figure: draw there, and return it. Weights have no unit.
    Raises TypeError for other arrays, ValueError for shapes, names or a limit that do not fit and for weights that are
    not finite, ImportError without matplotlib.

    >>> lf.viz.weights_by_gate(lf.LSTMCell(12, 64)).savefig("weights.png")
    """
    if isinstance(kernel, LSTMCell):
        if output_size is not None:
            raise ValueError(f"output_size must be None for a cell, which has its own, got {output_size}")
        output_size, kernel = kernel.output_size, kernel.kernel
    weights = check.array("kernel", kernel, ("input_size + output_size", "4*hidden_size"))
    rows, columns = weights.shape
    hidden_size = columns // order.COUNT
    output_size = hidden_size if output_size is None else check.whole_number("output_size", output_size)
    input_size = rows - output_size
    if columns % order.COUNT or hidden_size < 1 or input_size < 1:
        raise ValueError(
            f"kernel must have shape (input_size + {output_size}, 4*hidden_size) with input_size at least 1, "
            f"got {weights.shape}"
        )
    if not np.isfinite(weights).all():
        raise ValueError("kernel must be finite, got NaN or infinity")
    if input_names is not None and len(input_names) != input_size:
        raise ValueError(f"input_names must be one for each of the {input_size} rows of x, got {len(input_names)}")
    if limit is None:
        limit = float(np.percentile(np.abs(weights), 99.5)) or float(np.abs(weights).max()) or 1.0
    elif check.finite("limit", limit) <= 0:
        raise ValueError(f"limit must be above 0, got {limit:g}")

    drawn: Figure = _figure(figure, 11, 5.5 + (0 if input_names is None else min(0.06 * input_size, 3)))
    parts = {"x": weights[:input_size], "h": weights[input_size:]}
    share = min(max(input_size / rows, 0.25), 0.75)  # of the height: neither part becomes a line
    height = drawn.bbox.height / drawn.dpi  # in inches
    if input_names is not None:
        share = max(share, min(1.3 * input_size * _NAME_HEIGHT / height, 0.5))
    grid = drawn.subplots(2, order.COUNT, squeeze=False, sharex=True, sharey="row",
                           gridspec_kw={"height_ratios": [share, 1 - share], "hspace": 0.03, "wspace": 0.05})
    for line, (letter, part) in zip(grid, parts.items(), strict=True):
        for axes, name in zip(line, order.NAMES, strict=True):
            image = axes.imshow(part[:, order.columns(name, hidden_size)], cmap=_DIVERGING, vmin=-limit, vmax=limit,
                                aspect="auto", interpolation="nearest")
            axes.tick_params(left=axes is line[0])
        for locator in (line[0].yaxis.get_major_locator(), line[0].xaxis.get_major_locator()):
            locator.set_params(integer=True, min_n_ticks=1)
        line[0].set_ylabel(f"rows of {letter}")
    for number, axes in enumerate(grid[0]):
        axes.set_title(f"${order.LETTERS[number]}$  {_TITLES[number]}", fontsize=10)
        axes.tick_params(axis="x", length=0)
    for axes in grid[1]:
        axes.set_xlabel("unit")
    if input_names is not None:
        every = -(-input_size // max(int(0.8 * share * height / _NAME_HEIGHT), 1))
        grid[0, 0].set_yticks(range(0, input_size, every), list(input_names[::every]))
        grid[0, 0].tick_params(axis="y", length=0, labelsize=7 if input_size > 12 else 10)
    extend = "both" if np.abs(weights).max() > limit else "neither"
    drawn.colorbar(image, ax=grid, label="weight", extend=extend, fraction=0.03, pad=0.01)
    return drawn


def _figure(figure: Any, width: float, height: float) -> Any:
    """The figure given, or a new one of this size in inches. Raises ImportError without matplotlib."""
    if figure is not None:
        return figure
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(f"lstmfast.viz needs matplotlib: pip install 'lstmfast[plot]' ({error})") from error
    return Figure(figsize=(width, height), layout="constrained")


def _gates_of(gates: Any) -> Array:
    """Gates [T, B, 4, H] of an output of `lstm` or of an array."""
    if isinstance(gates, Output):
        if gates.gates is None:
            raise ValueError("gates must be the output of lstm(..., return_gates=True), got one without gates")
        gates = gates.gates
    return check.sequence("gates", gates, (order.COUNT, "hidden_size"))


def _index(name: str, value: Any, count: int) -> int:
    number = check.whole_number(name, value, 0)
    if number >= count:
        raise ValueError(f"{name} must be below {count}, got {number}")
    return number
