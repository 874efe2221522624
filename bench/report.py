"""What a bench prints: the machine, then each contender's time with its spread, then ratios with their direction."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from harness import Result


def print_result(title: str, machine: dict[str, str], result: Result, *, unit: str, per_step: float) -> None:
    """Print one comparison. A step is `per_step` units of work, of which the speed is counted per second."""
    print(title)
    pinned = "not pinned" if result.core is None else f"all pinned to core {result.core}"
    for name, value in {**machine, "threads": f"1 each, {pinned}, {result.rounds} interleaved rounds"}.items():
        print(f"  {name + ':':<13}{value}")
    if len(result.versions) > 1:
        print(f"  {'agreement:':<13}{result.agreement_steps} steps, largest difference {result.largest_difference:.1e}")
    print(f"\n  {'contender':<10}{'version':<24}{'ms (median)':>12}{'p10':>9}{'p90':>9}{unit + '/s':>18}")
    for name, spread in result.milliseconds.items():
        times = f"{spread.median:>12.3f}{spread.p10:>9.3f}{spread.p90:>9.3f}"
        print(f"  {name:<10}{result.versions[name]:<24}{times}{1e3 * per_step / spread.median:>18,.0f}")
    for name, reason in result.absent.items():
        print(f"  {name:<10}absent: {reason}")
    print()
    for name, ratio in result.ratios.items():
        print(f"  lstmfast does {ratio.median:.2f} times the work of {name} (p10 {ratio.p10:.2f}, p90 {ratio.p90:.2f})")


def write_json(path: Path, machine: dict[str, str], result: Result) -> None:
    """Write the same as JSON."""
    path.write_text(json.dumps({"machine": machine, "result": asdict(result)}, indent=2) + "\n", encoding="utf-8")
