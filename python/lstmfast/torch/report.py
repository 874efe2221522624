"""What was recorded of a program's LSTMs, as text for a terminal: who served them, for how long, and whether it pays.

Refuses to record (see `recording`).
"""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from lstmfast.torch import recording
from lstmfast.torch.convert import computes_by_itself
from lstmfast.torch.modules import LSTM, LSTMCell
from lstmfast.torch.recording import Record

_NAMES = {
    "kernels": "lstmfast's kernels",
    "cuda": "lstmfast's CUDA kernels",
    "operators": "lstmfast's operators",
    "composite": "torch operations, step by step",
    "torch": "torch's own forward",
}
_LITTLE = 0.05  # of the program's time: less cannot pay
_COLUMNS = f"{'calls':>10}{'forward':>11}{'backward':>11}{'share':>8}"
_MOST_MODULES = 20


def report(*, width: int | None = None) -> str:
    """The table of calls since `patch(report=True)`, per module, with the share of the rest of the program.

    width: of a line, in columns; that of the terminal by default, 120 at most. Calls inside graphs of torch.compile and
    in other processes are not in it. Raises RuntimeError if nothing was recorded.
    """
    if not recording.was_started():
        raise RuntimeError("report: nothing is recorded; call lstmfast.torch.patch(report=True) first")
    width = max(60, width or min(120, shutil.get_terminal_size().columns))
    found, total = recording.records(), recording.elapsed_ns()
    lines = [*_summary(found, total), ""]
    if found:
        lines.append(f"{'module':{width - len(_COLUMNS)}}{_COLUMNS}")
    merged = _merged(found)
    for group in merged[:_MOST_MODULES]:
        lines += [*_rows(group, total, width)]
    if rest := merged[_MOST_MODULES:]:
        lines.append(f"and {len(rest)} more, which took {_time(sum(map(_time_of, rest)))}")
    if any(path == "torch" for record in found for path, _ in record.paths):
        lines.append("Backward passes of torch's own forward are not timed: they count as the rest of the program.")
    lines += [
        f"{cls.__module__}.{cls.__qualname__}: its own forward, which does not call torch's, serves it"
        for cls in _own_ways()
    ]
    return "\n".join(part for line in lines for part in (_wrapped(line, width) if len(line) > width else [line]))


def _summary(found: list[Record], total: int) -> Iterator[str]:
    spent = sum(record.forward_ns + record.backward_ns for record in found)
    if not found:
        yield f"lstmfast.torch: {_time(total)}, in which no LSTM or LSTMCell was called from Python"
        return
    share = spent / total
    yield (
        f"lstmfast.torch: {_time(total)}, of which LSTMs {_time(spent)} ({share:.0%}) and the rest of the program "
        f"{_time(max(0, total - spent))}"
    )
    sampled = [record for record in found if record.sample is not None]
    weights = [record.forward_ns + record.backward_ns for record in sampled]
    if share < _LITTLE:
        yield "It hardly matters here how fast LSTMs are."
    elif sum(weights):
        times = [record.sample for record in sampled if record.sample is not None]
        gain = sum(w * theirs / ours for w, (ours, theirs) in zip(weights, times, strict=True)) / sum(weights)
        without = total + (gain - 1) * sum(weights)
        yield (
            f"At the speed of torch's own forward it would take about {_time(without)}, {without / total:.2f} times as "
            "long (estimate: one call per module was run by both, without gradients)."
        )


def _rows(group: list[Record], total: int, width: int) -> Iterator[str]:
    calls, spent = sum(record.calls for record in group), _time_of(group)
    forward, backward = sum(r.forward_ns for r in group), sum(r.backward_ns for r in group)
    first, name = group[0], group[0].name or group[0].sizes
    several = f" ({len(group)} modules)" if len(group) > 1 else ""
    head = width - len(_COLUMNS)
    *above, last = textwrap.wrap(name + several, head - 1, subsequent_indent="  ") or [""]
    yield from above
    in_backward = _time(backward) if backward else "-"
    yield f"{last:{head}}{calls:>10,}{_time(forward):>11}{in_backward:>11}{spent / total:>8.1%}"
    if first.name:
        yield f"  {first.sizes}"
    if backward_calls := sum(record.backward_calls() for record in group):
        yield f"  backward passes: {backward_calls:,}"
    counts: Counter[tuple[str, str]] = Counter()
    for record in group:
        counts.update(record.paths)
    for (path, why), count in counts.most_common():
        yield f"  {count:,} by {_NAMES[path]}: {why}"
    if len(group) == 1 and first.sample is not None:
        ours, theirs = first.sample
        yield (
            f"  one forward without gradients: {_time(ours)}, torch's own {_time(theirs)}: "
            f"{max(ours, theirs) / min(ours, theirs):.2f} times as {'fast' if ours < theirs else 'slow'}"
        )


def _merged(found: list[Record]) -> list[list[Record]]:
    """Records of modules of the same name and sizes together, those first that took longest."""
    groups: dict[Any, list[Record]] = {}
    for record in found:
        groups.setdefault((record.name, record.sizes), []).append(record)
    return sorted(groups.values(), key=_time_of, reverse=True)


def _time_of(group: list[Record]) -> int:
    return sum(record.forward_ns + record.backward_ns for record in group)


def _own_ways() -> Iterator[type[nn.Module]]:
    """Subclasses of torch's classes that convert and patch cannot serve."""
    waiting: list[Any] = [nn.LSTM, nn.LSTMCell]
    while waiting:
        for cls in waiting.pop().__subclasses__():
            waiting.append(cls)
            if cls not in (LSTM, LSTMCell) and computes_by_itself(cls) is not None:
                yield cls


def _wrapped(line: str, width: int) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(line.strip(), width, initial_indent=indent, subsequent_indent=indent + "  " * bool(indent))


def _time(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.{2 if nanoseconds < 10 * size else 1}f} {unit}"
    return f"{nanoseconds / 1e3:.0f} us"
