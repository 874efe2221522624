"""Timing side by side: every contender in a process of its own, one thread, one core, in turns within one run.

Agreement comes first: contenders whose values differ are not timed. Then rounds: each contender in turn does a few
steps, and the order turns from round to round, so that what else the machine does falls on all alike. The parent waits
on a pipe meanwhile. Knows nothing of what the work is (contenders.py) and prints nothing (report.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contenders import CONTENDERS, Problem

# What would change a library's speed behind the bench's back: cleared, then one thread for everybody.
_TUNING_PREFIXES = ("ATEN_", "DNNL_", "GOTO_", "KMP_", "MKL_", "NVPL_", "OMP_", "ONEDNN_", "OPENBLAS_")
_ONE_THREAD = {"LSTMFAST_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass
class Contender:
    """One worker process and what it has shown: the milliseconds of each step, in one list per round."""

    name: str
    process: subprocess.Popen[str]
    version: str = ""
    absent: str = ""
    rounds: list[list[float]] = field(default_factory=list)

    def run(self, steps: int) -> tuple[list[Any], list[float]]:
        """Do some steps: (their values, their milliseconds). Raises RuntimeError if the worker died."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        answer = self.receive()
        return answer["values"], answer["milliseconds"]

    def receive(self) -> dict[str, Any]:
        """The worker's next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.name} ended with status {self.process.wait()}; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Spread:
    """Median and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some values."""
        p10, median, p90 = np.percentile(values, [10, 50, 90])
        return cls(float(median), float(p10), float(p90))


@dataclass(frozen=True)
class Result:
    """What one comparison has shown. `largest_difference` is between the values of contenders before timing."""

    work: str
    core: int | None
    rounds: int
    steps_per_round: int
    agreement_steps: int
    largest_difference: float
    versions: dict[str, str]
    absent: dict[str, str]
    milliseconds: dict[str, Spread]
    ratios: dict[str, Spread]
    """Per absent-free peer: its time divided by lstmfast's, round by round. Above 1 lstmfast is the faster one."""


def compare(
    work: str,
    problem: Problem,
    *,
    pythons: dict[str, str],
    rounds: int,
    steps_per_round: int,
    agreement_steps: int,
    tolerance: float,
    core: int | None,
) -> Result:
    """Run all contenders of a work on one problem.

    pythons: contender -> interpreter, for those that live in an environment of their own. Raises RuntimeError if a
    contender's values differ from lstmfast's by more than `tolerance` in any of the first `agreement_steps`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.npz"
        np.savez(path, **problem)
        everyone = [_start(work, name, pythons.get(name, sys.executable), path, core) for name in CONTENDERS[work]]
        try:
            present = [contender for contender in everyone if not contender.absent]
            difference = _agree(present, agreement_steps, tolerance)
            for turn in range(rounds):
                first = turn % len(present)
                for contender in present[first:] + present[:first]:
                    contender.rounds.append(contender.run(steps_per_round)[1])
        finally:
            for contender in everyone:
                _stop(contender)
    ours = next(contender for contender in present if contender.name == "lstmfast")
    return Result(
        work, core, rounds, steps_per_round, agreement_steps, difference,
        versions={contender.name: contender.version for contender in present},
        absent={contender.name: contender.absent for contender in everyone if contender.absent},
        milliseconds={contender.name: Spread.of(np.concatenate(contender.rounds)) for contender in present},
        ratios={peer.name: Spread.of(_ratios(peer, ours)) for peer in present if peer is not ours},
    )  # fmt: skip


def _start(work: str, name: str, python: str, problem: Path, core: int | None) -> Contender:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_TUNING_PREFIXES)}
    process = subprocess.Popen(
        [python, str(Path(__file__).with_name("contenders.py")), work, name, str(problem)],
        env=environment | _ONE_THREAD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    contender = Contender(name, process)
    greeting = contender.receive()
    contender.version, contender.absent = greeting.get("version", ""), greeting.get("absent", "")
    if name == "lstmfast" and contender.absent:
        _stop(contender)
        raise RuntimeError(f"lstmfast is not installed for {python}: {contender.absent}")
    return contender


def _stop(contender: Contender) -> None:
    contender.process.communicate()  # its input ends, and so does it


def _agree(contenders: list[Contender], steps: int, tolerance: float) -> float:
    """The largest difference between anyone's values and lstmfast's. Doubles as the warm-up."""
    ours, *others = [(contender.name, np.asarray(contender.run(steps)[0])) for contender in contenders]
    largest = 0.0
    for name, values in others:
        difference = float(np.abs(values - ours[1]).max())
        if not difference <= tolerance:
            raise RuntimeError(
                f"{name} and lstmfast must agree to {tolerance:g} over the first {steps} steps, but differ by "
                f"{difference:g}: not the same work, nothing was timed"
            )
        largest = max(largest, difference)
    return largest


def _ratios(peer: Contender, ours: Contender) -> list[float]:
    return [float(np.median(a) / np.median(b)) for a, b in zip(peer.rounds, ours.rounds, strict=True)]
