"""`lstmfast bench`: its options, and running them. sections.py says what is measured, harness.py how."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional

from . import machine, on_cuda, report, shapes
from .clients import __main__ as clients
from .harness import BenchError, Comparison, Contender, Crew
from .sections import ABOUT, SECTIONS, Bench

PEERS = ("torch", "onnxruntime", "openvino", "ncnn", "jax", "keras")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure, against which contenders, and where to write it."""

    sections: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="SECTION")] = ()
    """What to measure, in this order: step, sequence, training, sampling, ragged, threads, precision, memory, scaling;
    without any, all of them. Or clients, alone or before names of projects: their LSTMs served by PyTorch and by
    lstmfast; no option applies."""
    against: str = "torch,onnxruntime,openvino,jax"
    """Contenders, separated by commas: torch, onnxruntime, openvino, ncnn, jax, keras. Empty: lstmfast alone."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: one layer on the GPU beside PyTorch's cuDNN, instead of all else; of the options below only shapes, rounds,
    seconds and json are asked."""
    threads: int = 1
    """Threads of every contender."""
    shapes: str = ""
    """Shapes in place of a section's own, separated by commas: names, or numbers BxTxIxH."""
    rounds: int = 5
    """Rounds in which contenders take turns."""
    seconds: float = 1.0
    """Time for each contender in each comparison, over all rounds; a round does at least one piece of work."""
    core: int = -1
    """First core to pin to; -1: the last one."""
    json: str = ""
    """Also write the result to this file, or into this folder: there to the file of this kind of CPU, which keeps its
    other sections."""
    plot: str = ""
    """Also draw it into this file (.png, .svg, .pdf), with all else in the folder of --json; needs matplotlib."""
    from_: Annotated[str, tyro.conf.arg(name="from")] = ""
    """Measure nothing: show the result that --json wrote to this file, or all in this folder."""
    write: str = ""
    """Also write tables into these Markdown files, separated by commas, between their marker comments; with all else in
    the folder of --json."""
    python_torch: str = ""
    """Interpreter of an environment that has PyTorch."""
    python_onnxruntime: str = ""
    """Interpreter of an environment that has onnxruntime and onnx."""
    python_openvino: str = ""
    """Interpreter of an environment that has OpenVINO."""
    python_ncnn: str = ""
    """Interpreter of an environment that has ncnn."""
    python_jax: str = ""
    """Interpreter of an environment that has JAX."""
    python_keras: str = ""
    """Interpreter of an environment that has Keras and TensorFlow."""
    traceback: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def run(options: BenchOptions) -> int:
    """Measure or read a report, show it, and write the requested files. Raises ValueError for conflicting options."""
    if options.sections[:1] == ("clients",):
        return clients.run(options.sections[1:])
    if options.device == "cuda":
        chosen = list(shapes.chosen(_names(options.shapes)).values())
        return on_cuda.run(rounds=options.rounds, seconds=options.seconds, json_path=options.json, shapes=chosen)
    sections = _sections(options.sections)
    documents = {Path(name): Path(name).read_text(encoding="utf-8") for name in _names(options.write)}
    for path, text in documents.items():
        report.check_markers(str(path), text, SECTIONS)
    for target in filter(None, (options.json, options.plot)):
        if not Path(target).absolute().parent.is_dir():
            raise ValueError(f"{target} is in a folder that does not exist")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install matplotlib")

    if options.from_:
        reports = _read(Path(options.from_))
        for number, found in enumerate(reports):
            print("\n\n" * (number > 0) + report.header(found))
            for name in filter(found.of, sections):
                _show(found, name)
    else:
        found = _measure(options, sections)
        reports = _read(Path(options.json)) if options.json and Path(options.json).is_dir() else [found]
    if options.plot:
        from . import plot

        plot.draw(reports, Path(options.plot))
    for path, text in documents.items():
        path.write_text(report.write_between_markers(text, reports, SECTIONS), encoding="utf-8")
    return 0


def _read(path: Path) -> list[report.Report]:
    """The result in a file, or those in a folder by the names of their files."""
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return [report.Report.from_json(path.read_text(encoding="utf-8")) for path in paths]


def _measure(options: BenchOptions, sections: Sequence[str]) -> report.Report:
    """Measure and print section by section; the JSON file is written after each, so an interrupted run leaves one."""
    for name, least in (("threads", 1), ("rounds", 1), ("core", -1), ("seconds", 0)):
        if not getattr(options, name) >= least:
            raise ValueError(f"{name} must be {least} or more, got {getattr(options, name)}")
    contenders = _contenders(options)
    chosen = shapes.chosen(_names(options.shapes))
    cores = _pinned(options)
    facts = machine.describe()
    target, kept = Path(options.json), list[Comparison]()
    if options.json and target.is_dir():
        target /= machine.file_name(facts["cpu"])
        earlier = _read(target)[0].comparisons if target.exists() else []
        kept = [comparison for comparison in earlier if comparison.section not in sections]
    with Crew(cores, options.rounds, options.seconds) as crew:
        bench = Bench(crew, contenders, chosen, options.threads, len(cores) or os.cpu_count() or 1)
        lstmfast = crew.worker(contenders[0], 1)
        if lstmfast.absent:
            raise BenchError(f"lstmfast cannot run: {lstmfast.absent}")
        peaks = lstmfast.ask("call", function="peaks", arguments=[machine.read_sizes()])["result"]
        found = report.Report(facts, peaks, _method(options, cores, lstmfast.version), kept)
        print(report.header(found), flush=True)
        for name in sections:
            _show(found, name, bench)
            if options.json:
                target.write_text(found.to_json(), encoding="utf-8")
    return found


def _method(options: BenchOptions, cores: Sequence[int], version: str) -> dict[str, str]:
    where = f"pinned to core {cores[0]}" if cores else "not pinned"
    return {
        "lstmfast": version,
        "threads": f"{options.threads} each, {where}{' and the next' if cores and options.threads > 1 else ''}",
        "method": f"{options.rounds} rounds in turns, {options.seconds:g} s for each contender in each case",
    }


def _show(found: report.Report, name: str, bench: Bench | None = None) -> None:
    """Print a section: while measuring it (with a bench), or from the report."""
    kind = ""
    for comparison in SECTIONS[name](bench) if bench else found.of(name):
        if bench:
            found.comparisons.append(comparison)
        if comparison.kind != kind:
            _print_summary(found, name, kind)
            kind = comparison.kind
            print(f"\n{report.section_heading(comparison, ABOUT[name])}")
        print(report.table_rows(found, comparison), flush=True)
    _print_summary(found, name, kind)


def _print_summary(found: report.Report, name: str, kind: str) -> None:
    lines = report.section_summary(found, name, kind) if kind else []
    if lines:
        print("", *(textwrap.fill(line, report.WIDTH) for line in lines), sep="\n")


def _sections(names: Sequence[str]) -> list[str]:
    if "clients" in names:
        raise ValueError(f"clients is measured by itself: lstmfast bench clients, without {names[0]}")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise ValueError(f"a section must be one of {', '.join(SECTIONS)}, got {unknown[0]!r}")
    return list(names or SECTIONS)


def _contenders(options: BenchOptions) -> list[Contender]:
    """lstmfast under this interpreter, and each peer under its own if given, else under this one."""
    names = _names(options.against)
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"against must name contenders from {', '.join(PEERS)}, got {unknown[0]!r}")
    contenders = [Contender.of("lstmfast")]
    for name in names:
        python = getattr(options, f"python_{name}") or sys.executable
        if shutil.which(python) is None:
            raise ValueError(f"--python-{name} must be a Python interpreter, got {python!r}, which is not a program")
        contenders.append(Contender.of(name, python))
    return contenders


def _pinned(options: BenchOptions) -> list[int]:
    """All cores this process may use, beginning with the first one to pin to. Empty if the system cannot pin."""
    cores = machine.usable_cores()
    if options.threads > (len(cores) or os.cpu_count() or 1):
        raise ValueError(f"threads must be at most the {len(cores)} cores this process may use, got {options.threads}")
    if not cores:
        return []
    first = cores[-1] if options.core == -1 else options.core
    if first not in cores:
        raise ValueError(f"core must be one of {', '.join(map(str, cores))}, got {first}")
    return cores[cores.index(first) :] + cores[: cores.index(first)]


def _names(commas: str) -> list[str]:
    return [name.strip() for name in commas.split(",") if name.strip()]
