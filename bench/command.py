"""What the bench scripts share: options, running, printing. The scripts say what is measured, this says how often."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import machine
from contenders import CONTENDERS, Problem
from harness import compare
from report import print_result, write_json


@dataclass(frozen=True)
class Bench:
    """One comparison: what it is called, what a step of it is worth, and how exactly contenders must agree."""

    title: str
    work: str
    unit: str
    per_step: float
    agreement_steps: int
    tolerance: float
    rounds: int
    steps_per_round: int


def run(bench: Bench, problem: Problem) -> None:
    """Read the command line, compare, print. Exits with status 1 if lstmfast misses what --at-least asks for."""
    cores = machine.usable_cores()
    parser = argparse.ArgumentParser(description=bench.title)
    parser.add_argument("--rounds", type=int, default=bench.rounds, help="rounds of all contenders (%(default)s)")
    parser.add_argument("--steps", type=int, default=bench.steps_per_round, help="steps per round (%(default)s)")
    parser.add_argument("--core", type=int, default=cores[-1] if cores else None, help="core for all (%(default)s)")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="a contender's interpreter")
    parser.add_argument("--at-least", type=float, default=0.0, metavar="RATIO", help="fail below this ratio")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")
    options = parser.parse_args()
    pythons = dict(pair.split("=", 1) for pair in options.python if "=" in pair)
    if len(pythons) != len(options.python) or not pythons.keys() <= CONTENDERS[bench.work].keys():
        parser.error(f"--python must be NAME=PATH with NAME one of {', '.join(CONTENDERS[bench.work])}")
    if options.rounds < 1 or options.steps < 1:
        parser.error("--rounds and --steps must be 1 or more")

    before = machine.describe()
    try:
        result = compare(
            bench.work, problem, pythons=pythons, rounds=options.rounds, steps_per_round=options.steps,
            agreement_steps=bench.agreement_steps, tolerance=bench.tolerance, core=options.core,
        )  # fmt: skip
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    print_result(bench.title, before, result, unit=bench.unit, per_step=bench.per_step)
    if options.json:
        write_json(options.json, before, result)
    if options.at_least and not all(ratio.median >= options.at_least for ratio in result.ratios.values()):
        sys.exit(f"error: below the ratio of {options.at_least:g} that --at-least asks for")
