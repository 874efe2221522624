"""Two processes of one thread against one process of two threads: characters per second of `lstmfast train`.

    python -m bench.processes [--hidden-size N] [--rounds N]

Trains the default model on random text, in turns: alone, and as two processes connected by torch.distributed and, where
mpi4py and its mpiexec are installed, by MPI. Prints medians over the rounds, the time a step spends adding gradients
up (waiting for the other process included), and the ratio. Needs a quiet machine with two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import lstmfast as lf
from lstmfast import config, distributed, trainer
from lstmfast.data import Corpus, Vocabulary

SYMBOLS = 96  # as many as the standard library has
SKIPPED_STEPS = 3


class Steps(trainer.Callback):
    """Records when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step(self, trainer: trainer.Trainer, step: int, loss: float) -> None:
        self.ends.append(time.perf_counter())


def work(hidden_size: int, steps: int) -> None:
    """Train, and print a line of JSON on rank 0."""
    group = distributed.from_environment()
    lf.set_num_threads(2 // group.size)
    preset = config.PRESETS["stdlib"]
    quiet = dataclasses.replace(
        preset.training, steps=steps, sample_every=0, validate_every=0, summary_every=0, checkpoint_every=0,
        shards=group.size,
    )
    settings = dataclasses.replace(
        preset, training=quiet, model=dataclasses.replace(preset.model, hidden_size=hidden_size),
        data=dataclasses.replace(preset.data, valid_fraction=0.0),
    )
    ids = np.random.default_rng(0).integers(0, SYMBOLS, 2_000_000).astype(np.uint8)
    vocabulary = Vocabulary.characters(map(chr, range(32, 32 + SYMBOLS)))
    corpus = Corpus(ids, vocabulary, description="random", fingerprint="", sources=())
    times = Steps()
    run = trainer.make_trainer(settings, corpus, [times], group=group)
    adding = [0.0]
    add_across = run._gradient_sum._add_across

    def timed(values: Any) -> None:
        started = time.perf_counter()
        add_across(values)
        adding.append(time.perf_counter() - started)

    run._gradient_sum._add_across = timed  # type: ignore[method-assign]
    run.run()
    if group.rank == 0:
        step = statistics.median(np.diff(times.ends)[SKIPPED_STEPS:].tolist())
        facts = {
            "step_ms": 1e3 * step, "adding_ms": 1e3 * statistics.median(adding[SKIPPED_STEPS:] or adding),
            "chars_per_second": quiet.characters_per_step / step, "variables": run.model.parameter_buffer.size,
        }
        print(json.dumps(facts), flush=True)


def measure(kind: str, arguments: list[str]) -> dict[str, float]:
    """The figures of one run: "alone", "torchrun" (its environment, set here) or "mpiexec"."""
    worker = [sys.executable, "-m", "bench.processes", "--worker", *arguments]
    if kind == "mpiexec":
        beside = Path(sys.executable).parent / "mpiexec"
        launcher = str(beside) if beside.exists() else shutil.which("mpiexec") or "mpiexec"
        root = ["--allow-run-as-root"] if os.getuid() == 0 else []
        return figures([launcher, *root, "-n", "2", *worker])
    if kind == "alone":
        return figures(worker)
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    second = subprocess.Popen(worker, env=os.environ | place | {"RANK": "1"})
    try:
        return figures(worker, place | {"RANK": "0"})
    finally:
        second.wait()


def figures(command: list[str], environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """The last line that a command prints."""
    ended = subprocess.run(
        command, env=os.environ | (environment or {}), stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = config.PRESETS["stdlib"].model.hidden_size
    parser.add_argument("--hidden-size", type=int, default=default, help=f"units (default: {default})")
    parser.add_argument("--steps", type=int, default=60, help="steps of a run (default: 60)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each kind (default: 5)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.hidden_size, options.steps)
        return
    arguments = ["--hidden-size", str(options.hidden_size), "--steps", str(options.steps)]
    packages = {"torchrun": "torch", "mpiexec": "mpi4py"}
    absent = [kind for kind, package in packages.items() if importlib.util.find_spec(package) is None]
    kinds = ["alone", *(kind for kind in packages if kind not in absent)]
    rounds = [{kind: measure(kind, arguments) for kind in kinds} for _ in range(options.rounds)]
    for kind in absent:
        print(f"{kind}: not measured, {packages[kind]} is not installed")
    for kind in kinds:
        names = "step_ms", "adding_ms", "chars_per_second"
        step, adding, speed = (statistics.median(one[kind][name] for one in rounds) for name in names)
        ratios = [one[kind]["chars_per_second"] / one["alone"]["chars_per_second"] for one in rounds]
        print(
            f"{kind:9} {'1 x 2 threads' if kind == 'alone' else '2 x 1 thread':14} step {step:7.2f} ms, "
            f"of it adding {adding:6.2f} ms, {speed:10,.0f} chars/s, "
            f"{statistics.median(ratios):.2f} of alone ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
