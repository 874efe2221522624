"""Output of the bench: a table in the terminal, JSON, and tables in Markdown between marker comments.

A ratio always says its direction: "lstmfast does 2.1x" the work of a contender in the same time. It is the median over
the rounds of the contender's time divided by lstmfast's, with the 10th and 90th percentile. Measures nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from .harness import Comparison, Measured, Spread
from .shapes import Shape

_FORMAT = 1
_OURS = "lstmfast"
# The peers of geometric means: lstmfast is compared with the fastest of these, shape by shape.
_RIVALS = {"inference": ("torch", "onnxruntime", "openvino"), "training": ("torch", "jax")}
# lstmfast's variants of `precision`, from exact to less exact; the types that their rivals may use; the rivals that
# come in with each. Those of more exact types stay in, since a CPU may run them faster.
_PRECISIONS = {
    "lstmfast float64": ("float64", ("torch float64",)),
    "lstmfast": ("float32", ("torch", "onnxruntime", "openvino", "ncnn")),
    "lstmfast medium": ("bfloat16 or float32", ("torch autocast", "torch fp32=bf16", "torch bf16", "openvino bf16")),
    "lstmfast bf16": ("bfloat16 or float32", ()),
    "lstmfast int8": ("int8, bfloat16 or float32", ("torch int8", "onnxruntime int8")),
}


@dataclass
class Report:
    """One run: the machine, its peaks (see machine.py), how it was measured, and the results."""

    machine: dict[str, str]
    peaks: dict[str, Any]
    settings: dict[str, Any]
    comparisons: list[Comparison] = field(default_factory=list)

    def to_json(self) -> str:
        """Indented JSON, as `from_json` reads it. Ratios are included for other readers."""
        values = {"format": _FORMAT, **dataclasses.asdict(self)}
        for written, comparison in zip(values["comparisons"], self.comparisons, strict=True):
            written["shape"] = comparison.shape and comparison.shape._asdict()
            written["lstmfast_does"] = {
                label: dataclasses.asdict(comparison.ratio(label)) for label in peers(comparison)
            }
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read the output of `to_json`. Raises ValueError for anything else."""
        try:
            values = json.loads(text)
            if values.pop("format") != _FORMAT:
                raise KeyError("format")
            values["comparisons"] = [_comparison(written) for written in values["comparisons"]]
            return cls(**values)
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a result of lstmfast bench --json of this version ({error})") from None

    def of(self, section: str, kind: str = "") -> list[Comparison]:
        """The comparisons of a section, of one kind or of both."""
        return [found for found in self.comparisons if found.section == section and kind in ("", found.kind)]

    def share_of_peak(self, comparison: Comparison, label: str) -> float | None:
        """Share of the peak of the cores in use, for work counted in operations or bytes; None if unknown."""
        if comparison.unit == "GFLOP/s":
            peak = self.peaks.get("flops", {}).get(comparison.measured[label].dtype, 0.0)
        elif comparison.unit == "GB/s":
            peak = self._read_bandwidth(1e9 * comparison.amount)
        else:
            return None
        return 1e9 * comparison.rate(label) / (peak * comparison.threads) if peak else None

    def _read_bandwidth(self, size_bytes: float) -> float:
        """Bytes per second from the nearest cache that holds this size; a probe reads half a cache."""
        reads = self.peaks.get("reads", [])
        fitting = [read for read in reads if size_bytes <= 2 * read["bytes"]] or reads[-1:]
        return float(fitting[0]["bytes_per_second"]) if fitting else 0.0


def _comparison(written: dict[str, Any]) -> Comparison:
    values = {name: value for name, value in written.items() if name != "lstmfast_does"}
    values["shape"] = values["shape"] and Shape(**values["shape"])
    values["measured"] = {
        label: Measured(**{**measured, "spread": Spread(**measured["spread"])})
        for label, measured in values["measured"].items()
    }
    return Comparison(**values)


def peers(comparison: Comparison) -> list[str]:
    """The contenders other than lstmfast."""
    return [label for label in comparison.measured if label != _OURS and _OURS in comparison.measured]


def fastest_peer(comparison: Comparison, among: Sequence[str] = ()) -> str | None:
    """The peer with the smallest median, of these or of all; lstmfast's own variants are not peers."""
    labels = [label for label in peers(comparison) if not label.startswith(_OURS) and (not among or label in among)]
    return min(labels, key=lambda label: comparison.measured[label].spread.median, default=None)


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


# --- in the terminal --------------------------------------------------------------------------------------------------

_COLUMNS = "{:<16} {:<16}{:>9}{:>9}{:>9}{:>14}{:>8}{:>8}  {:<19}"
WIDTH = 110
_SHORT_UNITS = {"characters/s": "char/s", "row steps/s": "steps/s"}


def header(report: Report) -> str:
    """The machine, its peaks and how it is measured, in aligned lines."""
    facts = {**report.machine, **_peaks_in_words(report), **report.settings}
    lines = []
    for name, value in facts.items():
        lines += textwrap.wrap(f"{name + ':':<15} {value}", WIDTH, subsequent_indent=" " * 16)
    return "\n".join(lines)


def section_heading(comparison: Comparison, about: str) -> str:
    """The heading of a table, and its column names."""
    if comparison.quantity == "MiB":
        names = ("peak", "", "", "", "", "", "lstmfast needs")
    else:
        names = ("median", "p10", "p90", "rate", "of peak", "differs", "lstmfast does")
    columns = _COLUMNS.format("case", "contender", *names)
    title = comparison.section if comparison.section == comparison.kind else f"{comparison.section}, {comparison.kind}"
    title = "\n".join(textwrap.wrap(f"{title}: {about}", WIDTH))
    return f"{title}\n\n{columns.rstrip()}\n{'-' * WIDTH}"


def table_rows(report: Report, comparison: Comparison) -> str:
    """One comparison, a line per contender; the shape is below the name of the case."""
    threads = f"{comparison.threads} thread{'s' if comparison.threads > 1 else ''}"
    names = [comparison.case, str(comparison.shape or ""), threads if comparison.section == "threads" else ""]
    if names[0] == names[1]:
        del names[1]
    lines = []
    for label, found in comparison.measured.items():
        memory = comparison.quantity == "MiB"
        share = report.share_of_peak(comparison, label)
        cells = [
            label, amount(comparison, found.spread.median),
            "" if memory else amount(comparison, found.spread.p10),
            "" if memory else amount(comparison, found.spread.p90),
            "" if memory else _rate(comparison, label, thousands=True),
            "" if share is None else f"{share:.0%}",
            f"{found.difference:.0e}" if found.difference else "" if memory else "-",
            ratio_in_words(comparison, label, " ({}-{})") if label in peers(comparison) else "",
        ]
        lines.append(_COLUMNS.format(names.pop(0) if names else "", *cells))
    for label, reason in comparison.absent.items():
        lines.append(f"{names.pop(0) if names else '':<16} {label:<16}absent: {reason}")
    lines += [name for name in names if name]
    return "\n".join(line[:WIDTH].rstrip() for line in lines)


def section_summary(report: Report, section: str, kind: str) -> list[str]:
    """A section's summary in sentences; empty if there are no peers."""
    found = report.of(section, kind)
    if section == "sequence":
        rivals = _rivals(found, kind)
        ratios = _ratios(found, rivals)
        return [_mean_in_words(kind, _OURS, _of_the_fastest(rivals), ratios)] if len(ratios) > 1 else []
    if section == "precision":
        return [_mean_in_words(kind, *mean) for mean in _precision_ratios(found)]
    if section == "ragged":
        return _ragged_summary(found)
    if section == "threads":
        return _threads_summary(found)
    if section in ("training", "sampling", "memory"):
        return [_sentence(comparison, label) for comparison in found for label in peers(comparison)]
    return []


def _sentence(comparison: Comparison, label: str) -> str:
    ratio = comparison.ratio(label)
    if comparison.quantity == "MiB":
        return f"{comparison.case}: lstmfast needs 1/{ratio.median:.1f} of the memory that {label} needs."
    return (
        f"{comparison.case}: lstmfast does {_short(ratio.median)} times the work of {label} "
        f"(p10 {_short(ratio.p10)}, p90 {_short(ratio.p90)})."
    )


def _rivals(found: Sequence[Comparison], kind: str) -> list[str]:
    """The measured ones of `_RIVALS`; a mean must not name absent ones."""
    return [label for label in _RIVALS[kind] if any(label in comparison.measured for comparison in found)]


def _of_the_fastest(labels: Sequence[str]) -> str:
    return f"the fastest of {', '.join(labels[:-1])} and {labels[-1]}" if len(labels) > 1 else "".join(labels)


def _ratios(found: Sequence[Comparison], among: Sequence[str], ours: str = _OURS) -> dict[str, float]:
    """By case, how many times the work of the fastest of these peers lstmfast does; empty if none was measured."""
    named = [(comparison, fastest_peer(comparison, among)) for comparison in found if among]
    return {
        comparison.case: comparison.ratio(peer, ours).median
        for comparison, peer in named
        if peer and ours in comparison.measured
    }


def _precision_ratios(found: Sequence[Comparison]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """For each of lstmfast's variants that was measured with a rival: its label, whom it meets in words, `_ratios`."""
    among: list[str] = []
    for ours, (types, theirs) in _PRECISIONS.items():
        among += theirs
        if ratios := _ratios(found, among, ours):
            yield ours, f"the fastest peer in {types}", ratios


def _mean_in_words(kind: str, ours: str, whom: str, ratios: dict[str, float]) -> str:
    least, most = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    if len(ratios) == 1:
        return f"{kind}, {least}: {ours} does {ratios[least]:.2f} times the work of {whom}."
    return (
        f"{kind}, geometric mean over {len(ratios)} shapes: {ours} does {geometric_mean(ratios.values()):.2f} times "
        f"the work of {whom} (least {ratios[least]:.2f} at {least}, most {ratios[most]:.2f} at {most})."
    )


def _ragged_summary(found: Sequence[Comparison]) -> list[str]:
    """For each contender, the cost of a useful step of the ragged batch relative to one of the dense batch."""
    lines = []
    for dense, ragged in zip(found[::2], found[1::2], strict=False):
        costs = [
            f"{label} {dense.rate(label) / ragged.rate(label):.2f}"
            for label in ragged.measured
            if label in dense.measured
        ]
        lines.append(f"{ragged.case}: a useful step costs, in steps of the dense batch: {', '.join(costs)}.")
        if peer := fastest_peer(dense):
            gain = dense.measured[peer].spread.median / ragged.measured[_OURS].spread.median
            lines.append(
                f"{ragged.case}: lstmfast does {_short(gain)} times the work of {peer} running all steps, padding too."
            )
    return lines


def _threads_summary(found: Sequence[Comparison]) -> list[str]:
    """For each shape and contender, the speed of the largest number of threads relative to one."""
    lines = []
    for case, group in groupby(found, key=lambda comparison: comparison.case):
        comparisons = list(group)
        one, most = comparisons[0], comparisons[-1]
        gains = [
            f"{label} {most.rate(label) / one.rate(label):.2f}" for label in most.measured if label in one.measured
        ]
        if most.threads > one.threads:
            lines.append(f"{case}: {most.threads} threads do, in terms of {one.threads}: {', '.join(gains)}.")
    return lines


def ratio_in_words(comparison: Comparison, label: str, brackets: str) -> str:
    """1.46x (1.40-1.51): lstmfast does 1.46 times the peer's work, or needs 1/1.46 of its memory."""
    ratio = comparison.ratio(label)
    if comparison.quantity == "MiB":
        return f"1/{ratio.median:.1f}"
    return f"{_short(ratio.median)}x" + brackets.format(_short(ratio.p10), _short(ratio.p90))


def amount(comparison: Comparison, value: float) -> str:
    """A time or a size with three digits and its unit."""
    if comparison.quantity == "MiB":
        return f"{value:.1f} MiB"
    for factor, unit in ((1e3, "us"), (1.0, "ms"), (1e-3, "s")):
        if value * factor < 999.5 or unit == "s":
            break
    return f"{_short(value * factor)} {unit}"


def _rate(comparison: Comparison, label: str, *, thousands: bool = False) -> str:
    rate, unit = comparison.rate(label), comparison.unit
    if unit in _SHORT_UNITS:  # of countable things, which may come in thousands
        unit = _SHORT_UNITS[unit]
        if thousands and rate >= 1000:
            rate, unit = rate / 1000, f"k{unit}"
    return f"{_short(rate)} {unit}"


def _short(value: float) -> str:
    """A number with three digits, or all digits before the point if there are more."""
    return f"{value:,.{max(0, 2 - int(math.log10(max(value, 1))))}f}"


def _peaks_in_words(report: Report) -> dict[str, str]:
    flops = [f"{kind} {value / 1e9:,.0f} GFLOP/s" for kind, value in report.peaks.get("flops", {}).items()]
    reads = [f"{read['from']} {read['bytes_per_second'] / 1e9:,.0f}" for read in report.peaks.get("reads", [])]
    words = {"peak of a core": ", ".join(flops), "reads of a core": f"{', '.join(reads)} GB/s"}
    return {name: value for name, value in words.items() if report.peaks}


# --- in Markdown ------------------------------------------------------------------------------------------------------

_BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- bench:end -->)", re.DOTALL)
_ROW_PER_CONTENDER = ("training", "sampling", "memory")


def check_markers(name: str, text: str, sections: Iterable[str]) -> None:
    """Raise ValueError if a Markdown text has no block to write into, or one with an unknown name."""
    known = ("machine", "summary", *sections)
    found = [block[2] for block in _BLOCK.finditer(text)]
    if not found:
        raise ValueError(f"{name} has no block from <!-- bench:NAME --> to <!-- bench:end --> to write into")
    if unknown := [block for block in found if block not in known]:
        raise ValueError(f"a block in {name} must be named one of {', '.join(known)}, got {unknown[0]!r}")


def write_between_markers(text: str, reports: Sequence[Report], sections: Iterable[str]) -> str:
    """A Markdown text with these reports' tables in its blocks `<!-- bench:NAME -->` to `<!-- bench:end -->`.

    NAME is machine, summary or a section; the block of a section that was not measured is left unchanged. With several
    reports, each one's tables are headed by its CPU; the summary, which names its own, is of the one with most results.
    """
    makers: dict[str, Callable[[Report], str]] = {name: partial(_section_tables, section=name) for name in sections}
    makers |= {"machine": _machine_list, "summary": _summary}

    def fill(block: re.Match[str]) -> str:
        shown, parts = reports, []
        if block[2] == "summary":
            shown = [max(reports, key=lambda report: len(report.comparisons))]
        for report in shown:
            if made := makers[block[2]](report):
                parts.append(f"**{report.machine['cpu']}**\n\n{made}" if len(shown) > 1 else made)
        return block[1] + "\n\n".join(parts) + f"\n{block[3]}" if parts else block[0]

    return _BLOCK.sub(fill, text)


def _machine_list(report: Report) -> str:
    facts = {**report.machine, **_peaks_in_words(report), **report.settings, "versions": _versions(report)}
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _versions(report: Report) -> str:
    """All that were measured with: sections may be older than others."""
    measured = (item for comparison in report.comparisons for item in comparison.measured.items())
    return ", ".join(dict.fromkeys(f"{label} {found.version}" for label, found in measured if " " not in label))


def _section_tables(report: Report, section: str) -> str:
    """One table per kind of work, and the sentences below it."""
    parts = []
    make = {"precision": _precision_rows}.get(section, _contender_rows if section in _ROW_PER_CONTENDER else _case_rows)
    for kind in dict.fromkeys(comparison.kind for comparison in report.of(section)):
        found = report.of(section, kind)
        summary = "\n".join(f"- {sentence}" for sentence in section_summary(report, section, kind))
        parts += [f"{kind.capitalize()}:", "\n".join(make(report, found)), summary]
    return "\n\n".join(part for part in parts if part)


def _case_rows(report: Report, found: Sequence[Comparison]) -> Iterator[str]:
    """A row per case: all medians, lstmfast's rate, and its ratio to the fastest peer."""
    labels = list(dict.fromkeys(label for comparison in found for label in comparison.measured))
    show_threads = len({comparison.threads for comparison in found}) > 1
    yield _markdown_row("case", "B, T, I, H", *["threads"] * show_threads, *labels, "rate", "of peak", "lstmfast does")
    yield _markdown_row("---", "---", *["---:"] * (len(labels) + 2 + show_threads), "---")
    for comparison in found:
        peer, share = fastest_peer(comparison), report.share_of_peak(comparison, _OURS)
        yield _markdown_row(
            comparison.case,
            ", ".join(map(str, comparison.shape or ())),
            *[str(comparison.threads)] * show_threads,
            *(_median(comparison, label) for label in labels),
            _rate(comparison, _OURS),
            "" if share is None else f"{share:.0%}",
            f"{ratio_in_words(comparison, peer, ' ({} to {})')} {peer}" if peer else "",
        )


def _precision_rows(report: Report, found: Sequence[Comparison]) -> Iterator[str]:
    """A row for each contender: its median in each case, and the range of its errors."""
    yield _markdown_row("contender", *(f"{comparison.case} {comparison.shape}" for comparison in found), "error")
    yield _markdown_row("---", *["---:"] * len(found), "---")
    for label in dict.fromkeys(label for comparison in found for label in comparison.measured):
        errors = [comparison.measured[label].difference for comparison in found if label in comparison.measured]
        ends = dict.fromkeys(f"{error:.0e}" for error in (min(errors), max(errors)) if error)
        medians = (_median(comparison, label) for comparison in found)
        yield _markdown_row(label, *medians, " to ".join(ends) or "reference")


def _median(comparison: Comparison, label: str) -> str:
    """The cell of a contender; empty if it is absent."""
    measured = comparison.measured.get(label)
    return amount(comparison, measured.spread.median) if measured else ""


def _contender_rows(report: Report, found: Sequence[Comparison]) -> Iterator[str]:
    """A row per contender and case."""
    if found[0].quantity == "MiB":
        heads = ["peak", "lstmfast needs"]
    else:
        heads = ["median", "p10 to p90", "rate", "of peak", "differs by", "lstmfast does"]
    yield _markdown_row("case", "B, T, I, H", "contender", *heads)
    yield _markdown_row("---", "---", "---", *["---:"] * (len(heads) - 1), "---")
    for comparison in found:
        for label, measured in comparison.measured.items():
            share = report.share_of_peak(comparison, label)
            details = (
                f"{amount(comparison, measured.spread.p10)} to {amount(comparison, measured.spread.p90)}",
                _rate(comparison, label),
                "" if share is None else f"{share:.0%}",
                f"{measured.difference:.0e}" if measured.difference else "",
            )
            yield _markdown_row(
                comparison.case,
                ", ".join(map(str, comparison.shape or ())),
                label,
                amount(comparison, measured.spread.median),
                *(details if len(heads) > 2 else ()),
                ratio_in_words(comparison, label, " ({} to {})") if label in peers(comparison) else "",
            )


_SUMMARY_ROWS = {
    "step": "one step of one stream, {shape.hidden_size} units, from Python",
    "training": "training step of the preset `{case}` ({shape.hidden_size} units, batch {shape.batch})",
    "sampling": "characters from one stream, {shape.hidden_size} units",
    "ragged": "batch of rows of T/2 to T steps, {kind}, {shape}",
    "memory": "memory of a training step, {shape}",
}


def _summary(report: Report) -> str:
    """The figures of the front page: one row per use, against the fastest peer."""
    rows = []
    for kind in _RIVALS:
        rivals = _rivals(report.of("sequence", kind), kind)
        if ratios := _ratios(report.of("sequence", kind), rivals):
            rows.append(_mean_row(f"one layer, {kind}", _of_the_fastest(rivals), ratios, "sequence"))
        for ours, whom, ratios in _precision_ratios(report.of("precision", kind)):
            if ours in ("lstmfast medium", "lstmfast int8"):
                rows.append(_mean_row(f"one layer, {kind}, {ours.split()[-1]}", whom, ratios, "precision"))
    for section, words in _SUMMARY_ROWS.items():
        for comparison in report.of(section):
            peer = fastest_peer(comparison)
            if peer is None or comparison.case.endswith(" dense"):
                continue
            what = words.format(shape=comparison.shape, case=comparison.case, kind=comparison.kind)
            ours, theirs = _shown(comparison, _OURS), f"{_shown(comparison, peer)} ({peer})"
            ratio = ratio_in_words(comparison, peer, " ({} to {})")
            ratio = f"needs {ratio}" if comparison.quantity == "MiB" else ratio
            rows.append(_markdown_row(what, ours, theirs, ratio, f"`lstmfast bench {section}`"))
    if not rows:
        return ""
    where = f"Measured on {report.machine['cpu']}; threads: {report.settings['threads']}; {_versions(report)}."
    head = _markdown_row("what", "lstmfast", "fastest other", "lstmfast does", "command")
    return "\n".join([where, "", head, "|---|---:|---:|---|---|", *rows])


def _mean_row(what: str, whom: str, ratios: dict[str, float], section: str) -> str:
    mean = f"**{geometric_mean(ratios.values()):.2f}x**, geometric mean"
    ends = f"({min(ratios.values()):.2f} to {max(ratios.values()):.2f})"
    return _markdown_row(f"{what}, {len(ratios)} shapes", "", whom, f"{mean} {ends}", f"`lstmfast bench {section}`")


def _shown(comparison: Comparison, label: str) -> str:
    """A rate for characters, otherwise a time or a size."""
    if comparison.unit == "characters/s":
        return _rate(comparison, label)
    return amount(comparison, comparison.measured[label].spread.median)


def _markdown_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
