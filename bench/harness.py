"""Timing side by side: every contender in its own process, on the same cores, in turns within one run.

Agreement comes first: contenders whose values differ are not timed. Then come rounds: each contender works for a
while, in an order that rotates from round to round, so other load on the machine affects all alike. The parent waits
on a pipe meanwhile. Does not know what the work is (sections.py, workers/) and prints nothing (report.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .problems import Problem
from .shapes import Shape

WORKERS = Path(__file__).with_name("workers")
_PAGE_BYTES = 4096  # the granularity of memory growth

# Environment variables that would change a library's speed are cleared; the others keep libraries on the CPU and quiet.
_TUNING_PREFIXES = (
    "ATEN_", "DNNL_", "GOTO_", "JAX_", "KERAS_", "KMP_", "LSTMFAST_NUM_", "MKL_", "NVPL_", "OMP_", "ONEDNN_",
    "OPENBLAS_", "OPENVINO_", "ORT_", "OV_", "TF_", "XLA_",
)
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"
}


class BenchError(ValueError):
    """An error that makes figures worthless: contenders that disagree, a worker that died."""


@dataclass(frozen=True)
class Contender:
    """A library, or one way of using it. settings: for its works; tolerance: of its values, 0 for the task's."""

    label: str
    module: Path
    python: str = sys.executable
    settings: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0

    @classmethod
    def of(cls, library: str, python: str = sys.executable, **settings: Any) -> Contender:
        """The contender of a library in workers/."""
        return cls(library, WORKERS / f"in_{library}.py", python, settings)


@dataclass(frozen=True)
class Task:
    """One piece of work for all contenders, which does `amount` of `unit`, from which a rate per second follows.

    reference: the contender whose values the others must match; the first by default.
    error_of: the value whose error in the Euclidean norm is shown; without it, the largest difference of all values.
    """

    section: str
    case: str
    kind: str
    work: str
    problem: Problem
    amount: float
    unit: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    shape: Shape | None = None
    tolerance: float = 1e-4
    reference: str = ""
    error_of: str = ""


@dataclass(frozen=True)
class Spread:
    """Median and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float] | npt.NDArray[Any]) -> Spread:
        """The spread of some values."""
        p10, median, p90 = np.percentile(values, [10, 50, 90])
        return cls(float(median), float(p10), float(p90))


@dataclass(frozen=True)
class Measured:
    """One contender's share of a comparison, in milliseconds (or MiB): all samples, and the median of each round."""

    version: str
    dtype: str
    spread: Spread
    rounds: list[float]
    difference: float
    """Largest difference of its values from the reference's, relative to the largest of those; or the task's error."""


@dataclass(frozen=True)
class Comparison:
    """Results of one task. Contenders are in order, lstmfast first."""

    section: str
    case: str
    kind: str
    shape: Shape | None
    threads: int
    amount: float
    unit: str
    measured: dict[str, Measured]
    absent: dict[str, str]
    quantity: str = "ms"

    def ratio(self, peer: str, ours: str = "lstmfast") -> Spread:
        """The peer's time (or memory) divided by ours, round by round. Above 1 lstmfast is better."""
        pairs = zip(self.measured[peer].rounds, self.measured[ours].rounds, strict=True)
        return Spread.of([theirs / ours for theirs, ours in pairs])

    def rate(self, label: str) -> float:
        """Units of work per second."""
        return 1e3 * self.amount / self.measured[label].spread.median


class Worker:
    """One process of one contender. Its standard error is kept for error messages."""

    def __init__(self, contender: Contender, cores: Sequence[int], threads: int) -> None:
        self.contender = contender
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = {key: value for key, value in os.environ.items() if not key.startswith(_TUNING_PREFIXES)}
        counts = dict.fromkeys(("LSTMFAST_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        self._process = subprocess.Popen(
            [contender.python, str(WORKERS / "worker.py"), str(contender.module), str(threads)],
            env=environment | _ENVIRONMENT | counts, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )
        greeting = self._receive()
        self.version: str = greeting.get("version", "")
        self.absent: str = greeting.get("absent", "")

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send the worker a request and return its answer. Raises BenchError if it died."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()  # closes its input, which ends it
        self._errors.close()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()
            reason = f": {said[-1].strip()}" if said else ""
            raise BenchError(f"the worker of {self.contender.label} ended with status {status}{reason}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Crew:
    """The workers of a run, started when first needed and kept, because loading a library takes seconds.

    cores: to pin to, in order; with n threads a worker may use the first n. Empty: no pinning.
    """

    def __init__(self, cores: Sequence[int], rounds: int, seconds: float) -> None:
        self._cores = list(cores)
        self._rounds, self._seconds = rounds, seconds
        self._workers: dict[tuple[str, int], Worker] = {}
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()
        self._folder.cleanup()

    def worker(self, contender: Contender, threads: int) -> Worker:
        """The contender's process for this number of threads."""
        key = contender.label, threads
        if key not in self._workers:
            self._workers[key] = Worker(contender, self._cores[:threads], threads)
        return self._workers[key]

    def compare(self, task: Task, contenders: Sequence[Contender], threads: int) -> Comparison:
        """Time a task in all contenders, if they agree.

        Raises BenchError, before anything is timed, if a contender's values differ from the reference's by more than
        its tolerance, or if lstmfast itself is missing.
        """
        present: dict[str, Worker] = {}
        absent: dict[str, str] = {}
        problem = self._save("problem", task.problem)
        for contender in contenders:
            worker = self.worker(contender, threads)
            if reason := worker.absent or self._make(worker, task, problem):
                absent[contender.label] = reason
            else:
                present[contender.label] = worker
        differences = self._agree(task, present, absent)
        present = {label: present[label] for label in present if label in differences}
        if contenders[0].label in absent:
            raise BenchError(f"{contenders[0].label} cannot run: {absent[contenders[0].label]}")
        samples: dict[str, list[list[float]]] = {label: [] for label in present}
        for label in self._turns(list(present)):
            answer = present[label].ask("time", seconds=self._seconds / self._rounds)
            if "unable" in answer:
                raise BenchError(f"{label} failed while it was timed: {answer['unable']}")
            samples[label].append(answer["milliseconds"])
        measured = {
            label: Measured(
                present[label].version, _dtype(present[label].contender), Spread.of(np.concatenate(rounds)),
                [float(np.median(part)) for part in rounds], differences[label],
            )
            for label, rounds in samples.items()
        }
        return Comparison(
            task.section, task.case, task.kind, task.shape, threads, task.amount, task.unit, measured, absent
        )

    def compare_memory(self, task: Task, contenders: Sequence[Contender], warm_up: Problem) -> Comparison:
        """As `compare`, in fresh processes: each one's peak growth in MiB during its first step, less `amount` bytes.

        Libraries are warmed up with a small problem first, so what they load is not counted.
        """
        measured: dict[str, Measured] = {}
        absent: dict[str, str] = {}
        problem, small = self._save("problem", task.problem), self._save("small", warm_up)
        for contender in contenders:
            worker = Worker(contender, self._cores[:1], 1)
            try:
                reason = worker.absent or self._make(worker, task, small)
                if not reason:
                    worker.ask("time", seconds=0)
                    self._make(worker, task, problem)
                    answer = worker.ask("memory")
                    reason = answer.get("unable", "")
                if reason:
                    absent[contender.label] = reason
                    continue
                mebibytes = max(answer["bytes"] - task.amount, _PAGE_BYTES) / (1 << 20)
                measured[contender.label] = Measured(
                    worker.version, _dtype(contender), Spread.of([mebibytes]), [mebibytes], 0.0
                )
            finally:
                worker.close()
        return Comparison(
            task.section, task.case, task.kind, task.shape, 1, task.amount, task.unit, measured, absent, "MiB"
        )

    @staticmethod
    def _make(worker: Worker, task: Task, problem: str) -> str:
        """Make a worker prepare the task's work; return the reason if it cannot."""
        settings = {**task.settings, **worker.contender.settings}
        reason: str = worker.ask("make", work=task.work, problem=problem, settings=settings).get("unable", "")
        return reason

    def _agree(self, task: Task, workers: Mapping[str, Worker], absent: dict[str, str]) -> dict[str, float]:
        """Each contender's difference from the reference; those that fail join the absent. Also warms up.

        Raises BenchError if a difference is too large.
        """
        path = self._path("values")
        others = [label for label in workers if label != task.reference]
        order = [task.reference, *others] if task.reference in workers else others
        differences: dict[str, float] = {}
        reference, wanted = "", dict[str, Any]()
        for label in order:
            if reason := workers[label].ask("values", path=path).get("unable"):
                absent[label] = reason
                continue
            values = dict(np.load(path))
            reference, wanted = (reference, wanted) if reference else (label, values)
            differences[label] = max(_difference(values.get(name), wanted[name]) for name in wanted)
            tolerance = workers[label].contender.tolerance or task.tolerance
            if not differences[label] <= tolerance:
                raise BenchError(
                    f"{label} and {reference} must agree to {tolerance:g} in {task.section} {task.case} {task.kind}, "
                    f"but differ by {differences[label]:.2g}: not the same work, so it was not timed"
                )
            if task.error_of:
                differences[label] = _error(values[task.error_of], wanted[task.error_of])
        return differences

    def _turns(self, labels: list[str]) -> Iterator[str]:
        """The order of turns: everyone once per round, each round starting with the next contender."""
        for turn in range(self._rounds):
            first = turn % len(labels)
            yield from labels[first:] + labels[:first]

    def _save(self, name: str, arrays: Mapping[str, Any]) -> str:
        np.savez(self._path(name), **arrays)
        return self._path(name)

    def _path(self, name: str) -> str:
        return str(Path(self._folder.name, f"{name}.npz"))


def _dtype(contender: Contender) -> str:
    return str(contender.settings.get("dtype", "float32"))


def _error(values: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """The Euclidean norm of the difference, relative to that of what was wanted."""
    return float(np.linalg.norm(values.astype(np.float64) - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))


def _difference(values: npt.NDArray[Any] | None, wanted: npt.NDArray[Any]) -> float:
    """The largest difference relative to the largest expected value; infinite if values are missing or misshapen."""
    if values is None or values.shape != wanted.shape:
        return float("inf")
    if not values.size:
        return 0.0
    largest = np.abs(values.astype(np.float64) - wanted).max()
    return float(largest / max(float(np.abs(wanted).max()), 1e-30))
