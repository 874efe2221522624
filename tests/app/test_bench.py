"""The bench: nobody is timed who does other work, ratios say their direction, results survive a file. No timings."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lstmfast.bench import machine, problems, report
from lstmfast.bench.harness import BenchError, Comparison, Contender, Crew, Measured, Spread, Task
from lstmfast.bench.sections import SECTIONS, Bench
from lstmfast.bench.shapes import SHAPES, Shape

from lstmfast.command.main import main

# A library for workers: what its values are is a setting, and a step that is done leaves a file.
FAKE = """
from pathlib import Path
import numpy as np

def version(threads):
    return "1.0"

class Work:
    def __init__(self, problem, settings):
        if settings.get("unable"):
            raise NotImplementedError("it does not train")
        self.settings = settings

    def step(self):
        if self.settings.get("dies"):
            raise SystemExit("no more memory")
        if "trace" in self.settings:
            Path(self.settings["trace"]).touch()

    def values(self):
        return {"h": np.full(3, self.settings.get("value", 1.0))}

WORKS = {"sequence": Work}
"""
TASK = Task("sequence", "udacity", "inference", "sequence", {}, 2.0, "GFLOP/s", shape=SHAPES["udacity"])
ALONE = ["--against", "", "--shapes", "tiny", "--rounds", "1", "--seconds", "0"]

Fake = Callable[..., Contender]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Make a contender of the fake library."""
    module = tmp_path / "in_fake.py"
    module.write_text(FAKE)
    return lambda label, **settings: Contender(label, module, settings=settings)


@pytest.fixture
def crew() -> Iterator[Crew]:
    """Two rounds of no more than a step each."""
    with Crew(cores=[], rounds=2, seconds=0) as crew:
        yield crew


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `lstmfast bench` in a folder of its own: status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["bench", *arguments])
        return status, *capsys.readouterr()

    return run


def compared(ours: float, theirs: float, **changes: Any) -> Comparison:
    """A comparison of lstmfast and torch that took so many milliseconds in each of two rounds."""
    measured = {
        label: Measured("1.0", "float32", Spread(ms, ms, ms), [ms, ms], 1e-7)
        for label, ms in {"lstmfast": ours, "torch": theirs}.items()
    }
    fields: dict[str, Any] = {
        "section": "sequence", "case": "udacity", "kind": "inference", "shape": SHAPES["udacity"], "threads": 1,
        "amount": 2.0, "unit": "GFLOP/s", "measured": measured, "absent": {"jax": "No module named 'jax'"},
    }
    return Comparison(**fields | changes)


def precisions(case: str, medium: float, torch: float, autocast: float) -> Comparison:
    """A comparison of precisions that took so many milliseconds; lstmfast in float32 takes two."""
    shown = {"lstmfast": (2.0, 1e-7), "lstmfast medium": (medium, 5e-4), "torch": (torch, 1e-7)}
    measured = {
        label: Measured("1.0", "float32", Spread(ms, ms, ms), [ms, ms], error)
        for label, (ms, error) in {**shown, "torch autocast": (autocast, 3e-3)}.items()
    }
    return compared(1.0, 1.0, section="precision", case=case, measured=measured)


def reported(*comparisons: Comparison) -> report.Report:
    """A report of a machine that does 8,000 GFLOP/s."""
    peaks = {"flops": {"float32": 8e12}, "reads": [{"from": "L1", "bytes": 16384, "bytes_per_second": 1e11}]}
    return report.Report({"cpu": "a CPU"}, peaks, {"threads": "1 each"}, list(comparisons))


# --- agreement, turns, absence ----------------------------------------------------------------------------------------


def test_contenders_that_disagree_are_an_error_and_nobody_is_timed(crew: Crew, fake: Fake, tmp_path: Path) -> None:
    trace = str(tmp_path / "timed")
    others = [fake("lstmfast", trace=trace), fake("torch", trace=trace, value=1.001)]
    with pytest.raises(BenchError, match=r"torch and lstmfast must agree to 0\.0001 .* differ by 0\.001"):
        crew.compare(TASK, others, threads=1)


def test_values_that_are_no_numbers_never_agree(crew: Crew, fake: Fake) -> None:
    with pytest.raises(BenchError, match="differ by nan"):
        crew.compare(TASK, [fake("lstmfast"), fake("torch", value=math.nan)], threads=1)


def test_contenders_that_agree_are_timed_in_every_round(crew: Crew, fake: Fake) -> None:
    found = crew.compare(TASK, [fake("lstmfast"), fake("torch", value=1.00001)], threads=1)
    assert {label: len(measured.rounds) for label, measured in found.measured.items()} == {"lstmfast": 2, "torch": 2}


def test_a_contender_that_cannot_be_imported_is_listed_with_the_reason(crew: Crew, fake: Fake, tmp_path: Path) -> None:
    module = tmp_path / "in_missing.py"
    module.write_text("import a_library_that_nobody_has\n")
    found = crew.compare(TASK, [fake("lstmfast"), Contender("missing", module)], threads=1)
    assert found.absent == {"missing": "No module named 'a_library_that_nobody_has'"}


def test_a_contender_that_cannot_do_the_work_is_listed_with_the_reason(crew: Crew, fake: Fake) -> None:
    found = crew.compare(TASK, [fake("lstmfast"), fake("torch", unable=True)], threads=1)
    assert (list(found.measured), found.absent) == (["lstmfast"], {"torch": "it does not train"})


def test_a_worker_that_dies_is_an_error_with_its_last_words(crew: Crew, fake: Fake) -> None:
    with pytest.raises(BenchError, match="the worker of torch ended with status 1: no more memory"):
        crew.compare(TASK, [fake("lstmfast"), fake("torch", dies=True)], threads=1)


def test_the_error_of_one_value_is_that_of_its_norm(crew: Crew, fake: Fake) -> None:
    task = dataclasses.replace(TASK, tolerance=0.1, reference="exact", error_of="h")
    found = crew.compare(task, [fake("lstmfast", value=1.05), fake("exact")], threads=1)
    assert found.measured["lstmfast"].difference == pytest.approx(0.05)


@pytest.mark.parametrize("peer", ["torch", "onnxruntime", "openvino", "ncnn", "jax"])
def test_peers_agree_with_lstmfast_in_all_that_they_can_do(crew: Crew, peer: str) -> None:
    if importlib.util.find_spec(peer) is None:
        pytest.skip(f"{peer} is not installed")
    contenders = [Contender.of("lstmfast"), Contender.of(peer)]
    for batch, ragged, training in itertools.product((1, 3), (False, True), (False, True)):
        problem = problems.layer(SHAPES["tiny"]._replace(batch=batch), ragged=ragged)
        task = Task("", "", "", "sequence", problem, 1.0, "", {"training": training}, tolerance=1e-5)
        found = crew.compare(task, contenders, threads=1)
        assert peer in found.measured or re.search("train|lengths|no batch", found.absent[peer])


@pytest.mark.parametrize("peer", ["torch", "onnxruntime", "openvino"])
def test_peers_at_less_than_float32_have_an_error_of_their_precision(crew: Crew, peer: str) -> None:
    if importlib.util.find_spec(peer) is None:
        pytest.skip(f"{peer} is not installed")
    shapes = {"tiny": SHAPES["tiny"]}
    (inference, *_) = SECTIONS["precision"](Bench(crew, [Contender.of("lstmfast"), Contender.of(peer)], shapes, 1, 1))
    assert peer in inference.measured and inference.measured["lstmfast float64"].difference == 0.0
    assert 1e-9 < inference.measured[peer].difference < 1e-5
    assert 1e-4 < inference.measured["lstmfast int8"].difference < 0.1
    assert all(found.difference < 0.1 for found in inference.measured.values())


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_a_peer_that_takes_twice_the_time_has_half_the_work_done() -> None:
    assert compared(ours=1.0, theirs=2.0).ratio("torch").median == 2.0


def test_the_table_says_who_does_how_much_of_whose_work() -> None:
    comparison = compared(ours=1.0, theirs=2.0)
    rows = report.table_rows(reported(comparison), comparison).splitlines()
    assert rows[1].split()[1:] == [
        "torch", "2.00", "ms", "2.00", "ms", "2.00", "ms", "1,000", "GFLOP/s", "12%", "1e-07", "2.00x", "(2.00-2.00)"
    ]


def test_the_table_lists_who_is_absent_and_why() -> None:
    comparison = compared(ours=1.0, theirs=2.0)
    assert "jax             absent: No module named 'jax'" in report.table_rows(reported(comparison), comparison)


def test_every_line_of_a_table_fits_110_columns() -> None:
    comparison = compared(ours=1.0, theirs=2.0, shape=Shape(128, 50, 1024, 1024), absent={"jax": "x" * 200})
    heading = report.section_heading(comparison, "what " * 40)
    lines = f"{heading}\n{report.table_rows(reported(comparison), comparison)}".splitlines()
    assert max(map(len, lines)) <= 110


def test_the_summary_of_shapes_is_a_geometric_mean_against_the_fastest_peer_measured() -> None:
    found = reported(compared(1.0, 2.0, case="a"), compared(1.0, 8.0, case="b"))
    assert report.section_summary(found, "sequence", "inference") == [
        "inference, geometric mean over 2 shapes: lstmfast does 4.00 times the work of torch "
        "(least 2.00 at a, most 8.00 at b)."
    ]


def test_a_precision_is_held_against_the_fastest_peer_of_its_types_or_more_exact_ones() -> None:
    found = reported(precisions("a", medium=1.0, torch=4.0, autocast=8.0), precisions("b", 1.0, 2.0, 1.0))
    assert report.section_summary(found, "precision", "inference")[-1] == (
        "inference, geometric mean over 2 shapes: lstmfast medium does 2.00 times the work of the fastest peer in "
        "bfloat16 or float32 (least 1.00 at b, most 4.00 at a)."
    )


def test_the_table_of_precisions_has_a_row_for_each_contender_with_its_errors() -> None:
    found = reported(precisions("a", 1.0, 4.0, 8.0), precisions("b", 2.0, 4.0, 8.0))
    found.comparisons[1].measured.pop("torch")
    written = report.write_between_markers("<!-- bench:precision -->\n<!-- bench:end -->", [found], SECTIONS)
    assert "| lstmfast medium | 1.00 ms | 2.00 ms | 5e-04 |\n| torch | 4.00 ms |  | 1e-07 |\n" in written


def test_a_result_survives_its_json() -> None:
    found = reported(compared(1.0, 2.0), compared(3.0, 1.0, shape=None, kind="training", quantity="MiB"))
    assert report.Report.from_json(found.to_json()) == found


def test_json_that_is_no_result_is_named() -> None:
    with pytest.raises(ValueError, match="not a result of lstmfast bench --json"):
        report.Report.from_json('{"format": 0}')


def test_tables_go_between_the_markers_and_nothing_else_changes() -> None:
    text = (
        "before\n<!-- bench:sequence -->\nold\n<!-- bench:end -->\nafter\n<!-- bench:step -->\nkept\n<!-- bench:end -->"
    )
    written = report.write_between_markers(text, [reported(compared(1.0, 2.0))], SECTIONS)
    before, table, after = written.partition("<!-- bench:sequence -->\n")[0], written, written.partition("after")[2]
    assert (before, after) == ("before\n", "\n<!-- bench:step -->\nkept\n<!-- bench:end -->")
    assert "old" not in table
    assert (
        "| udacity | 64, 10, 27, 64 | 1.00 ms | 2.00 ms | 2,000 GFLOP/s | 25% | 2.00x (2.00 to 2.00) torch |" in table
    )


def test_results_of_several_machines_stand_below_each_other_with_their_cpus() -> None:
    others = [reported(compared(1.0, 2.0)), reported(compared(1.0, 4.0)), reported()]
    others[1].machine["cpu"] = "another CPU"
    written = report.write_between_markers("<!-- bench:sequence -->\n<!-- bench:end -->", others, SECTIONS)
    assert re.findall(r"^\*\*.*\*\*$|\d\.00x", written, re.MULTILINE) == [
        "**a CPU**", "2.00x", "**another CPU**", "4.00x"
    ]


def test_the_summary_is_of_the_machine_with_most_results() -> None:
    one, other = reported(compared(1.0, 2.0)), reported(compared(1.0, 4.0), compared(1.0, 4.0))
    one.machine["cpu"], other.machine["cpu"] = "one CPU", "another CPU"
    written = report.write_between_markers("<!-- bench:summary -->\n<!-- bench:end -->", [one, other], SECTIONS)
    assert "Measured on another CPU" in written and "one CPU" not in written


def test_writing_the_same_result_twice_changes_nothing() -> None:
    text = "<!-- bench:machine -->\n<!-- bench:end -->\n<!-- bench:summary -->\n<!-- bench:end -->\n"
    once = report.write_between_markers(text, [reported(compared(1.0, 2.0))], SECTIONS)
    assert report.write_between_markers(once, [reported(compared(1.0, 2.0))], SECTIONS) == once


@pytest.mark.parametrize("text", ["no block", "<!-- bench:nonsense -->\n<!-- bench:end -->"])
def test_a_document_without_a_known_block_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="block"):
        report.check_markers("README.md", text, SECTIONS)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["steps"], "a section must be one of step, sequence, "),
        (["step", "clients"], "clients is measured by itself: lstmfast bench clients, without step"),
        (["clients", "steps"], "a client must be one of darts, demucs, "),
        (["step", "--shapes", "enormous"], "a shape must be one of tiny, udacity, "),
        (["step", "--against", "theano"], "against must name contenders from torch, onnxruntime, openvino, "),
        (["step", "--python-torch", "nowhere/python"], "--python-torch must be a Python interpreter, got 'nowhere"),
        (["step", "--rounds", "0"], "rounds must be 1 or more, got 0"),
        (["step", "--json", "nowhere/result.json"], "nowhere/result.json is in a folder that does not exist"),
        (["--from", "nowhere.json"], "nowhere.json: No such file or directory"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(bench: Run, arguments: list[str], sentence: str) -> None:
    status, out, error = bench(*arguments)
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert error.startswith(f"lstmfast: error: {sentence}")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_runs_with_lstmfast_alone(bench: Run, section: str) -> None:
    status, out, error = bench(section, *ALONE, "--json", "result.json")
    assert (status, error) == (0, "")
    comparisons = json.loads(Path("result.json").read_text())["comparisons"]
    assert comparisons and all("lstmfast" in comparison["measured"] for comparison in comparisons)
    assert out.splitlines()[-1].strip()


def test_a_result_read_from_its_file_is_shown_as_it_was(bench: Run) -> None:
    _, measured, _ = bench("step", *ALONE, "--json", "result.json")
    _, shown, _ = bench("--from", "result.json")
    assert shown == measured


def test_a_folder_of_results_has_a_file_for_the_kind_of_cpu_that_keeps_other_sections(bench: Run) -> None:
    Path("results").mkdir()
    bench("step", *ALONE, "--json", "results")
    bench("sampling", *ALONE, "--json", "results")
    (path,) = Path("results").iterdir()
    found = report.Report.from_json(path.read_text())
    assert path.name == machine.file_name(machine.describe()["cpu"])
    assert [comparison.section for comparison in found.comparisons] == ["step", "sampling"]


def test_all_results_of_a_folder_are_shown(bench: Run) -> None:
    Path("results").mkdir()
    for name in ("a", "b"):
        found = reported(compared(1.0, 2.0))
        found.machine["cpu"] = name
        Path("results", f"{name}.json").write_text(found.to_json())
    assert re.findall(r"^cpu: +(\w)$", bench("--from", "results")[1], re.MULTILINE) == ["a", "b"]


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        ("AMD EPYC (family 26, model 2, stepping 1)", "amd-epyc-26-2-1.json"),
        ("Intel(R) Xeon(R) Processor (family 6, model 207, stepping 2)", "intel-xeon-processor-6-207-2.json"),
        ("aarch64 (implementer 0x41, part 0xd40)", "aarch64-0x41-0xd40.json"),
    ],
)
def test_a_file_of_results_is_named_after_the_kind_of_cpu(cpu: str, name: str) -> None:
    assert machine.file_name(cpu) == name


def test_a_picture_is_drawn(bench: Run) -> None:
    pytest.importorskip("matplotlib")
    bench("scaling", *ALONE, "--plot", "result.png")
    assert Path("result.png").read_bytes().startswith(b"\x89PNG")


def test_importing_lstmfast_does_not_import_the_bench() -> None:
    program = "import sys, lstmfast; print('lstmfast.bench' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


# --- what is worked on ------------------------------------------------------------------------------------------------


def test_ragged_rows_have_from_half_to_all_of_the_steps() -> None:
    lengths = problems.layer(SHAPES["small"], ragged=True)["lengths"]
    assert (lengths.min() >= 25, lengths.max() <= 50, np.unique(lengths).size > 10) == (True, True, True)
