"""A run killed at any moment and resumed equals the uninterrupted run, bit for bit. Real processes, really killed."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmfast.command.main import main
from lstmfast.config import Config
from lstmfast.data import load_corpus
from lstmfast.run_folder import RunFolder, load_model
from lstmfast.trainer import Trainer
from lstmfast.training import checkpoint, plot
from lstmfast.training.checkpoint import is_parameter

STEPS = 60
# Dropout, two layers, an embedding, Adam, samples and validation: all that carries state or draws random numbers.
FLAGS = (
    f"--steps {STEPS} --hidden-size 8 --num-layers 2 --embedding-size 5 --dropout 0.3 --batch-size 4 --unroll 6 "
    "--seed 3 --summary-every 7 --validate-every 20 --sample-every 11 --sample-length 20 --checkpoint-every 4"
).split()

OWN = "--resume uses the run's own folder, text and settings; remove "

# The command line in a process of its own. It draws no picture of the loss: matplotlib takes longer than these runs.
PROGRAM = """
import sys
sys.modules["matplotlib"] = None
from lstmfast.command.main import main
sys.exit(main(sys.argv[1:]))
"""

# The same with a SIGKILL at the n-th call of a function of os, before or after it is made.
KILL_AT_CALL = (
    """
import os, signal, sys
name, last, position = sys.argv[1], int(sys.argv[2]), sys.argv[3]
original = getattr(os, name)
calls = 0
def counted(*arguments):
    global calls
    calls += 1
    if calls == last and position == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments)
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(os, name, counted)
del sys.argv[1:4]
"""
    + PROGRAM
)


def command(*arguments: str | int | Path) -> list[str]:
    """For a process that is to be killed."""
    return [sys.executable, "-c", PROGRAM, *map(str, arguments)]


def run(*arguments: str | int | Path) -> int:
    """The exit status of a command that runs to its end, in this process."""
    return main(list(map(str, arguments)))


def parameters(folder: Path) -> dict[str, bytes]:
    saved = checkpoint.load(folder / RunFolder.CHECKPOINT)
    return {name: values.tobytes() for name, values in saved.tensors.items() if is_parameter(name)}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics, but for the speed, which no two runs share."""
    lines = [json.loads(line) for line in (folder / RunFolder.METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "chars_per_second"} for line in lines]


def outcome(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]], str]:
    return parameters(folder), metrics(folder), (folder / RunFolder.SAMPLES).read_text()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = random.Random(1).choices(["the ", "cat ", "sat ", "on ", "a ", "mat\n"], k=500)
    path.write_text("".join(words))
    return path


@pytest.fixture(scope="module")
def uninterrupted(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed. Tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert run("train", text, "--out", folder, *FLAGS) == 0
    return folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process draw none either."""
    monkeypatch.setattr(plot, "plot_loss", lambda metrics, picture: False)


@pytest.mark.parametrize(
    ("function", "call", "position"),
    [
        ("fsync", 1, "before"),  # config.json: its temporary file is written, and nothing else there
        ("replace", 2, "before"),  # the first checkpoint, whole but not yet in its place
        ("fsync", 10, "before"),  # within the flush before a checkpoint
        ("fsync", 15, "after"),
        ("replace", 6, "before"),  # a later checkpoint: metrics and samples are ahead of the one in place
        ("replace", 6, "after"),  # in its place, but the folder not yet flushed
        ("replace", 16, "after"),  # the last
    ],
)
def test_a_run_killed_inside_a_write_and_resumed_equals_the_uninterrupted_run(
    text: Path, uninterrupted: Path, tmp_path: Path, function: str, call: int, position: str
) -> None:
    folder = tmp_path / "run"
    arguments = ["train", str(text), "--out", str(folder), *FLAGS]
    killed = [sys.executable, "-c", KILL_AT_CALL, function, str(call), position, *arguments]
    assert subprocess.run(killed, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    begun = (folder / RunFolder.CONFIG).exists()  # if not, there is nothing to resume, and the same command begins it
    assert run(*(["train", "--resume", folder] if begun else [*arguments, "--overwrite"])) == 0
    assert outcome(folder) == outcome(uninterrupted)


def test_a_run_killed_again_and_again_at_random_equals_the_uninterrupted_run(text: Path, tmp_path: Path) -> None:
    longer = [*FLAGS, "--steps", "1500", "--checkpoint-every", "50"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run("train", text, "--out", straight, *longer) == 0
    arguments: list[str | int | Path] = ["train", text, "--out", broken, *longer]
    for seconds in (0.0, random.uniform(0, 0.5), random.uniform(0, 0.5)):
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_new(broken / RunFolder.CHECKPOINT, process)
        time.sleep(seconds)
        process.kill()
        process.wait()
        arguments = ["train", "--resume", broken]
    assert run(*arguments) == 0
    assert outcome(broken) == outcome(straight)


def wait_for_new(path: Path, process: subprocess.Popen[Any]) -> None:
    """Return when the process has written the file, or has ended."""
    before = path.stat().st_mtime_ns if path.exists() else None
    while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == before):
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_finishes_its_step_saves_and_says_how_to_resume(
    text: Path, tmp_path: Path, number: int
) -> None:
    folder = tmp_path / "run with space"
    endless = command("train", text, "--out", folder, *FLAGS, "--steps", "1000000")
    process = subprocess.Popen(endless, stderr=subprocess.PIPE, text=True)
    wait_for_new(folder / RunFolder.CHECKPOINT, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    steps = steps_of(folder)
    advice = f"Stopped after {steps:,} steps and saved. Resume with: lstmfast train --resume '{folder}'\n"
    assert (process.returncode, said[-len(advice) :]) == (128 + number, advice)


def test_a_run_interrupted_and_resumed_equals_the_uninterrupted_run(
    text: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a step that is due for nothing: the signal is sent from within the update."""

    def interrupt(self: Trainer, step: int) -> tuple[float, float]:
        if step == 25:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, step)

    update = Trainer._update
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", interrupt)
        assert run("train", text, "--out", tmp_path / "run", *FLAGS) == 128 + signal.SIGINT
    assert steps_of(tmp_path / "run") == 26
    assert run("train", "--resume", tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def steps_of(folder: Path) -> int:
    """Updates that the run's checkpoint holds."""
    return int(checkpoint.load(folder / RunFolder.CHECKPOINT).metadata["progress"]["step"])


@pytest.fixture
def stopped(uninterrupted: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may resume or spoil."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "run"))


def test_a_finished_run_that_is_resumed_stays_as_it_is(stopped: Path, uninterrupted: Path) -> None:
    assert run("train", "--resume", stopped) == 0
    assert outcome(stopped) == outcome(uninterrupted)


def test_steps_may_be_raised(stopped: Path) -> None:
    assert run("train", "--resume", stopped, "--steps", STEPS + 5) == 0
    assert steps_of(stopped) == STEPS + 5


def test_raised_steps_are_remembered_by_the_run(stopped: Path) -> None:
    run("train", "--resume", stopped, "--steps", STEPS + 5)
    assert RunFolder(stopped).read_config().training.steps == STEPS + 5


def test_a_run_is_resumed_from_another_folder(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(text.parent)
    run("train", text.name, "--out", tmp_path / "run", *FLAGS)
    monkeypatch.chdir(tmp_path)
    assert run("train", "--resume", "run", "--steps", STEPS + 1) == 0


def test_a_run_of_standard_input_is_resumed_without_it(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with text.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert run("train", "-", "--out", tmp_path / "run", *FLAGS) == 0
    assert run("train", "--resume", tmp_path / "run", "--steps", STEPS + 1) == 0


Refusal = Callable[..., str]


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """What a refused command says, which must be one line and status 2."""

    def refuse(*arguments: str | int | Path) -> str:
        capsys.readouterr()
        status, (out, err) = run(*arguments), capsys.readouterr()
        assert (status, out, err.count("\n")) == (2, "", 1), err
        return err.removeprefix("lstmfast: error: ").rstrip()

    return refuse


def test_a_text_with_another_vocabulary_is_refused(stopped: Path, tmp_path: Path, refusal: Refusal) -> None:
    config = RunFolder(stopped).read_config()
    (tmp_path / "other.txt").write_text("0123456789" * 500)
    changed = dataclasses.replace(config, text=(str(tmp_path / "other.txt"),))
    (stopped / RunFolder.CONFIG).write_text(changed.to_json())
    assert "has learnt a vocabulary of 11 symbols (characters), but its text now has another of 10" in refusal(
        "train", "--resume", stopped
    )


def test_a_text_that_has_changed_is_refused(stopped: Path, text: Path, tmp_path: Path, refusal: Refusal) -> None:
    config = RunFolder(stopped).read_config()
    (tmp_path / "other.txt").write_text(text.read_text() + "the cat ")
    changed = dataclasses.replace(config, text=(str(tmp_path / "other.txt"),))
    (stopped / RunFolder.CONFIG).write_text(changed.to_json())
    assert "has changed since it began" in refusal("train", "--resume", stopped)


def test_settings_of_another_shape_are_refused_with_both_shapes(stopped: Path, refusal: Refusal) -> None:
    config = RunFolder(stopped).read_config()
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, hidden_size=9))
    (stopped / RunFolder.CONFIG).write_text(changed.to_json())
    assert refusal("train", "--resume", stopped) == (
        f"checkpoint {stopped / RunFolder.CHECKPOINT} cannot be resumed: "
        "its lstm.layer0.kernel is float32 [13, 32], but the settings ask for float32 [14, 36]"
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hidden-size", "9"], "--hidden-size of the run RUN is 8 and cannot become 9; start a new run"),
        (["--learning-rate", "0.1"], "--learning-rate of the run RUN is 0.02 and cannot become 0.1; start a new run"),
        (
            ["--vocabulary", "bytes"],
            "--vocabulary of the run RUN is characters and cannot become bytes; start a new run",
        ),
        (["--steps", "5"], "--steps of the run RUN is 60 and can only be raised, got 5"),
        (["--overwrite"], OWN + "--overwrite"),
        (["--out", "x"], OWN + "--out"),
        (["--preset", "udacity"], OWN + "--preset"),
        (["x.txt"], OWN + "text"),
    ],
)
def test_what_a_resumed_run_cannot_change_is_refused_by_name(
    uninterrupted: Path, refusal: Refusal, flags: list[str], words: str
) -> None:
    assert refusal("train", "--resume", uninterrupted, *flags) == words.replace("RUN", str(uninterrupted))


@pytest.mark.parametrize("length", [0, 100, 3000])
def test_a_truncated_checkpoint_is_refused_and_left_as_it_is(stopped: Path, refusal: Refusal, length: int) -> None:
    os.truncate(stopped / RunFolder.CHECKPOINT, length)
    files = {path.name: path.read_bytes() for path in stopped.iterdir()}
    assert f"{stopped / RunFolder.CHECKPOINT} is not a usable checkpoint" in refusal(
        "train", "--resume", stopped
    )
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == files


def test_a_checkpoint_without_progress_is_refused_by_name(stopped: Path, refusal: Refusal) -> None:
    saved = checkpoint.load(stopped / RunFolder.CHECKPOINT)
    metadata = {name: value for name, value in saved.metadata.items() if name != "progress"}
    checkpoint.save(stopped / RunFolder.CHECKPOINT, dict(saved.tensors), metadata)
    assert refusal("train", "--resume", stopped).endswith("cannot be resumed: it has no progress")


def test_damaged_settings_are_refused_by_name(stopped: Path, refusal: Refusal) -> None:
    (stopped / RunFolder.CONFIG).write_text('{"preset": 3')
    assert f"{stopped / RunFolder.CONFIG} holds no settings that can be used" in refusal("train", "--resume", stopped)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Have the system refuse every opening for writing below a folder, as it does to others than root."""

    def protect(folder: Path) -> None:
        def guarded(original: Callable[..., Any], name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                inside = any(
                    Path(os.path.abspath(argument)).is_relative_to(folder)
                    for argument in arguments
                    if isinstance(argument, (str, os.PathLike))
                )
                mode = options.get("mode", arguments[1] if len(arguments) > 1 else "r")
                writes = isinstance(mode, int) and mode & (os.O_WRONLY | os.O_RDWR) if name == "open" else True
                writes = (
                    any(letter in mode for letter in "wax+") if name == "io.open" and isinstance(mode, str) else writes
                )
                if inside and writes:
                    raise PermissionError(13, "Permission denied", os.fspath(arguments[0]))
                return original(*arguments, **options)

            return call

        monkeypatch.setattr(io, "open", guarded(io.open, "io.open"))
        for name in ("open", "mkdir", "unlink", "rename", "replace", "truncate"):
            monkeypatch.setattr(os, name, guarded(getattr(os, name), name))

    return protect


@pytest.mark.parametrize("cached", [False, True], ids=["first time", "known text"])
def test_a_read_only_run_can_be_evaluated_sampled_and_inspected(
    stopped: Path, text: Path, read_only: Any, capsys: pytest.CaptureFixture[str], cached: bool
) -> None:
    other = text.with_name("other.txt")
    other.write_text(text.read_text()[:400])
    if cached:
        assert run("eval", stopped, other) == 0
    read_only(stopped.parent)
    before = contents(stopped)
    assert [run("eval", stopped, other), run("sample", stopped), run("inspect", stopped)] == [0, 0, 0]
    assert contents(stopped) == before


def test_a_read_only_run_that_is_resumed_is_one_sentence_and_loses_nothing(
    stopped: Path, read_only: Any, refusal: Refusal
) -> None:
    (stopped / RunFolder.METRICS).open("a").write('{"step": "written after the checkpoint"}\n')
    before = contents(stopped)
    read_only(stopped.parent)
    assert f"run folder {stopped} cannot be written: Permission denied" in refusal("train", "--resume", stopped)
    assert contents(stopped) == before


@pytest.mark.parametrize("name", [RunFolder.METRICS, RunFolder.SAMPLES])
def test_a_file_of_a_run_that_cannot_be_written_is_named_before_anything_changes(
    stopped: Path, read_only: Any, refusal: Refusal, name: str
) -> None:
    for each in (RunFolder.METRICS, RunFolder.SAMPLES):
        (stopped / each).open("a").write("written after the checkpoint\n")
    before = contents(stopped)
    read_only(stopped / name)
    assert f"{stopped / name} cannot be written: Permission denied" in refusal("train", "--resume", stopped)
    assert contents(stopped) == before


def test_a_run_from_before_line_ends_were_read_as_line_breaks_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"the cat sat on the mat\r\n" * 40)
    as_it_was = functools.partial(load_corpus, verbatim=True)
    with monkeypatch.context() as before:
        before.setattr(
            "lstmfast.command.train.load_corpus",
            lambda sources, **how: as_it_was(sources, **{**how, "verbatim": True}),
        )
        assert run("train", path, "--out", tmp_path / "old", *FLAGS, "--steps", 9) == 0
    assert run("train", "--resume", tmp_path / "old", "--steps", 12) == 0
    assert "\r" in load_model(tmp_path / "old")[1].symbols


def test_full_disk_at_a_checkpoint_leaves_the_last_one_to_resume_from(text: Path, tmp_path: Path) -> None:
    """A limit on file sizes lets the settings through and stops the first checkpoint in the middle of its write."""
    folder = tmp_path / "run"
    run("train", text, "--out", folder, *FLAGS, "--steps", 20)
    before = outcome(folder)
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))"
    resume = [sys.executable, "-c", limit + PROGRAM, "train", "--resume", str(folder), "--steps", "30"]
    failed = subprocess.run(resume, capture_output=True, text=True, timeout=120)
    message = f"lstmfast: error: checkpoint {folder / RunFolder.CHECKPOINT} was not written: File too large; "
    assert (failed.returncode, failed.stderr.splitlines()[-1]) == (2, message + "what was there before is kept")
    assert parameters(folder) == before[0]
    assert not list(folder.glob("*.tmp"))


def test_the_checkpoint_holds_all_that_the_next_step_depends_on(uninterrupted: Path) -> None:
    saved = checkpoint.load(uninterrupted / RunFolder.CHECKPOINT)
    assert saved.metadata["progress"].keys() == {
        "step", "optimizer_steps", "position", "loss_sum", "loss_count", "rngs"
    }
    assert {name for name in saved.tensors if not is_parameter(name)} == {
        "optimizer.first_moment", "optimizer.second_moment", "state.h", "state.c"
    }
    assert Config.from_json(json.dumps(saved.metadata["config"])) == RunFolder(uninterrupted).read_config()
    assert np.isfinite(saved.tensors["state.c"]).all()
