"""Many processes: the tree of sums, trainers that share a batch, and the command under torchrun and mpiexec."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmfast import distributed
from lstmfast.command import processes
from lstmfast.command import train as command
from lstmfast.command.main import main
from lstmfast.config import Config, ModelConfig, TrainingConfig
from lstmfast.data import load_corpus
from lstmfast.distributed import FailedTogether, Group, Lone, TreeSum, place_in
from lstmfast.run_folder import RunFolder
from lstmfast.trainer import Callback, Trainer, make_trainer
from lstmfast.training import checkpoint
from lstmfast.training.recipe import timed
from support.groups import in_threads

# --- the tree ---------------------------------------------------------------------------------------------------------


def parts(count: int, length: int) -> list[np.ndarray[Any, Any]]:
    """Arrays whose sum depends on the order of additions in nearly every element."""
    rng = np.random.default_rng(length)
    return [(rng.standard_normal(length) * 10.0 ** rng.integers(-3, 4)).astype(np.float32) for _ in range(count)]


def tree_of(values: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The sum in the tree, by definition."""
    while len(values) > 1:
        values = [left + right for left, right in zip(values[::2], values[1::2], strict=True)]
    return values[0]


@pytest.mark.parametrize("length", [1, 3, 4096, 4097, 10_007])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_sums_have_the_bits_of_the_tree_in_every_process(size: int, length: int) -> None:
    shards = parts(8, length)

    def add_mine(group: Group) -> bytes:
        tree = TreeSum(group, 8)
        for shard in tree.mine:
            values = shards[shard].copy()
            tree.add(values)
        return values.tobytes()

    assert in_threads(size, add_mine) == [tree_of(shards).tobytes()] * size


def test_a_tree_adds_again_and_again() -> None:
    tree = TreeSum(Lone(), 4)
    for length in (5, 7, 7):
        shards = parts(4, length)
        values = [part.copy() for part in shards]
        assert [tree.add(part) for part in values] == [False, False, False, True]
        assert values[-1].tobytes() == tree_of(shards).tobytes()


def test_a_process_sends_less_than_two_gradients_whatever_the_number_of_processes() -> None:
    def sent(group: Any) -> int:
        TreeSum(group, group.size).add(np.ones(8192, np.float32))
        return int(group.sent_bytes)

    assert in_threads(8, sent) == [2 * 7 * 8192 * 4 // 8] * 8


@pytest.mark.parametrize(
    ("size", "shards", "words"),
    [
        (1, 3, "shards must be a power of two, got 3"),
        (3, 8, "the number of processes must be a power of two, got 3"),
        (4, 2, r"shards \(2\) must be a multiple of the number of processes, got 4 processes"),
    ],
)
def test_numbers_that_make_no_tree_are_refused(size: int, shards: int, words: str) -> None:
    group = Lone()
    group.size = size
    with pytest.raises(ValueError, match=words):
        TreeSum(group, shards)


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 4 shards, got 6"):
        TreeSum(Lone(), 4).rows(0, 6)


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 8])
def test_values_of_all_ranks_are_gathered_in_their_order(size: int) -> None:
    wanted = [{"rank": rank, "words": "x" * rank * 10} for rank in range(size)]
    assert in_threads(size, lambda group: distributed.gather(group, wanted[group.rank])) == [wanted] * size


def test_the_value_of_rank_0_is_broadcast() -> None:
    assert in_threads(4, lambda group: distributed.broadcast(group, f"from {group.rank}")) == ["from 0"] * 4


@pytest.mark.parametrize(("bad", "words"), [((2, 3), "rank 2 of 4: no 2"), ((0, 1), "no 0")])
def test_a_failure_of_one_fails_all_with_the_words_of_the_first(bad: tuple[int, ...], words: str) -> None:
    def act(group: Group) -> None:
        if group.rank in bad:
            raise OSError(f"no {group.rank}")

    errors = in_threads(4, lambda group: distributed.together(group, lambda: act(group)))
    assert [(type(error), str(error)) for error in errors] == [(FailedTogether, words)] * 4


def test_what_all_have_done_is_returned_to_each() -> None:
    assert in_threads(2, lambda group: distributed.together(group, lambda: group.rank)) == [0, 1]


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert in_threads(4, distributed.cores_per_process) == [2] * 4


# --- the environment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, ("", 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost"}, ("torchrun", 3, 4)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, ("", 0, 1)),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"}, ("mpiexec", 1, 4)),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, ("mpiexec", 1, 2)),
        ({"PMIX_RANK": "5", "SLURM_NTASKS": "8"}, ("mpiexec", 5, 8)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, ("", 0, 1)),  # a batch script of SLURM, not started by srun
    ],
)
def test_the_environment_tells_the_launcher_rank_and_size(
    environment: dict[str, str], place: tuple[str, int, int]
) -> None:
    assert place_in(environment) == place


def test_a_variable_that_is_no_number_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="variable PMI_SIZE must be a whole number, got 'two'"):
        place_in({"PMI_SIZE": "two", "PMI_RANK": "0"})


def test_without_a_launcher_the_group_is_of_one() -> None:
    assert distributed.from_environment({}).size == 1


def test_three_processes_are_refused_before_they_are_connected() -> None:
    with pytest.raises(ValueError, match="number of processes must be a power of two, got 3 from mpiexec"):
        distributed.from_environment({"PMI_SIZE": "3", "PMI_RANK": "0"})


# --- trainers ---------------------------------------------------------------------------------------------------------

# All that carries state or draws random numbers: dropout, resets, two layers, Adam, accumulated batches.
SMALL = Config(
    model=ModelConfig(hidden_size=5, num_layers=2, embedding_size=3, dropout=0.3, projection_size=4),
    training=TrainingConfig(
        steps=9, batch_size=8, unroll=5, shards=8, accumulate=2, reset_rate=0.2, summary_every=3, validate_every=4,
        sample_every=4, sample_length=20, checkpoint_every=0,
    ),
)


class Notes(Callback):
    """Collects what the trainer tells."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.snapshots: list[Any] = []

    def on_summary(self, trainer: Trainer, summary: Any) -> None:
        self.told.append(dataclasses.replace(summary, chars_per_second=0.0))

    def on_samples(self, trainer: Trainer, step: int, texts: list[str]) -> None:
        self.told.append(texts)

    def on_checkpoint(self, trainer: Trainer) -> None:
        self.snapshots.append(trainer.snapshot())


class StopAt(Callback):
    """Asks one rank to stop after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, trainer: Trainer, step: int, loss: float) -> None:
        if step == self._step:
            trainer.stop()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on a mat and so on\n" * 200)
    return load_corpus([str(path)], cache_folder=None)


def trained(
    corpus: Any, size: int, *, start: Any = None, stop: tuple[int, int] | None = None, config: Config = SMALL
) -> Any:
    """(what rank 0 was told, its last snapshot) of `size` ranks. stop: (rank, step) of a request to stop."""

    def act(group: Group) -> Any:
        notes = Notes()
        stops = [StopAt(stop[1])] if stop and stop[0] == group.rank else []
        trainer = make_trainer(config, corpus, [notes, *stops], group=group)
        if start is not None:
            trainer.restore(start)
        trainer.run()
        return notes.told, notes.snapshots[-1]

    results = in_threads(size, act)
    errors = [result for result in results if isinstance(result, Exception)]
    assert errors == []
    return results[0]


def bits(result: Any) -> Any:
    told, snapshot = result
    return told, {name: values.tobytes() for name, values in snapshot.tensors.items()}, snapshot.progress


@pytest.fixture(scope="module")
def alone(corpus: Any) -> Any:
    """The run of one process with 8 shards."""
    return bits(trained(corpus, 1))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_any_number_of_processes_gives_the_same_bits(corpus: Any, alone: Any, size: int) -> None:
    assert bits(trained(corpus, size)) == alone


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 4), (4, 2)])
def test_a_run_goes_on_with_another_number_of_processes(corpus: Any, alone: Any, first: int, second: int) -> None:
    told, stopped = trained(corpus, first, stop=(0, 3))
    told_later, ended = trained(corpus, second, start=stopped)
    assert bits((told + told_later, ended)) == alone


def test_a_request_to_stop_of_any_rank_stops_all_at_one_step(corpus: Any) -> None:
    assert trained(corpus, 4, stop=(2, 3))[1].progress["step"] == 5  # asked after the exchange of step 3


def test_all_ranks_take_the_number_of_steps_that_rank_0_measured(corpus: Any) -> None:
    training = dataclasses.replace(SMALL.training, steps=0, minutes=0.005)
    config = dataclasses.replace(SMALL, training=training)
    steps = in_threads(2, lambda group: timed(config, corpus, group=group).training.steps)
    assert steps[0] >= 1 and steps == steps[:1] * 2


def test_settings_that_differ_are_named_with_the_rank() -> None:
    def check(group: Group) -> None:
        training = dataclasses.replace(SMALL.training, seed=group.rank // 2)
        processes.check_settings(group, dataclasses.replace(SMALL, training=training), {})

    words = "--seed is 1 on rank 2, but 0 on rank 0; give every process the same options"
    assert [str(error) for error in in_threads(4, check)] == [words] * 4


def test_a_text_that_asks_for_few_rows_gets_as_many_as_the_shards_can_share(corpus: Any) -> None:
    short = dataclasses.replace(corpus, ids=corpus.ids[:1500])  # 5 rows where one process reads it
    config = dataclasses.replace(Config(), training=dataclasses.replace(Config().training, steps=10, batch_size=8))
    group = Lone()
    group.size = 4
    argv = ["--steps", "10", "--hidden-size", "8"]
    assert command._settled(argv, config, short, "cpu", group).training.batch_size == 8


def test_shards_compute_what_the_whole_batch_would(corpus: Any) -> None:
    plain = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, dropout=0.0))
    one_shard = dataclasses.replace(plain, training=dataclasses.replace(plain.training, shards=1))
    ends = [trained(corpus, 1, config=config)[1] for config in (one_shard, plain)]
    whole, cut = (end.tensors["projection.kernel"] for end in ends)
    np.testing.assert_allclose(cut, whole, atol=2e-4)


def test_accumulated_batches_give_the_gradient_of_both(corpus: Any) -> None:
    """Without carried state two batches of 8 rows, one after another, are the two halves of a batch of 16."""
    trainer = make_trainer(
        dataclasses.replace(
            SMALL, model=dataclasses.replace(SMALL.model, dropout=0.0),
            training=dataclasses.replace(SMALL.training, shards=1, reset_rate=1.0),
        ),
        corpus,
    )
    inputs, targets = trainer._batches.next()
    more_inputs, more_targets = trainer._batches.next()
    trainer._batches.position = 0
    model: Any = trainer.model
    model.loss_and_gradients(
        np.hstack([inputs, more_inputs]), np.hstack([targets, more_targets]), rng=np.random.default_rng(0)
    )
    wanted = model.gradient_buffer.copy()
    trainer._compute_gradients()
    np.testing.assert_allclose(model.gradient_buffer / 2, wanted, atol=1e-6)


# --- the command ------------------------------------------------------------------------------------------------------

FLAGS = [
    *("--steps", "40", "--hidden-size", "6", "--embedding-size", "4", "--dropout", "0.2", "--batch-size", "8"),
    *("--unroll", "5", "--shards", "8", "--summary-every", "9", "--validate-every", "20", "--sample-every", "15"),
    *("--sample-length", "20", "--checkpoint-every", "5"),
]
PROGRAM = """
import sys
sys.modules["matplotlib"] = None
from lstmfast.command.main import main
sys.exit(main(sys.argv[1:]))
"""
# The same on a machine that lacks what other machines see.
BLIND = (
    """
import pathlib
exists = pathlib.Path.exists
pathlib.Path.exists = lambda path: ".seen-by-all" not in path.name and exists(path)
"""
    + PROGRAM
)
LIMIT_SECONDS = 120


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def torchrun(size: int) -> list[str]:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size)]
    return [*launcher, "--master-port", str(free_port()), "--no-python", sys.executable]


def mpiexec(size: int) -> list[str]:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install '.[mpi]'")
    beside = Path(sys.executable).parent / "mpiexec"
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("there is no mpiexec")
    options = ["--allow-run-as-root", "--oversubscribe"] if "open" in str(mpi_library()).lower() else []
    return [launcher, *options, "-n", str(size), sys.executable]


def mpi_library() -> str:
    """The name of the MPI that mpi4py uses, asked in another process: importing it here would start MPI."""
    ask = "import mpi4py.MPI as m; print(m.Get_library_version())"
    return subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout


LAUNCHERS = pytest.mark.parametrize("launcher", [torchrun, mpiexec])
Command = list[Any]


def start(*command: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"LSTMFAST_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status and what was said."""
    try:
        _, said = process.communicate(timeout=LIMIT_SECONDS)
    finally:
        process.kill()
    return process.returncode, said


def outcome(folder: Path) -> Any:
    """All that a run leaves, but for the speed."""
    saved = checkpoint.load(folder / RunFolder.CHECKPOINT)
    lines = [json.loads(line) for line in (folder / RunFolder.METRICS).read_text().splitlines()]
    return (
        {name: values.tobytes() for name, values in saved.tensors.items()},
        saved.metadata["progress"],
        [{name: value for name, value in line.items() if name != "chars_per_second"} for line in lines],
        (folder / RunFolder.SAMPLES).read_text(),
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on a mat and so on\n" * 100)
    return path


@pytest.fixture(scope="module")
def by_one(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run of one process leaves."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert ended(start(sys.executable, "-c", PROGRAM, "train", text, "--out", folder, *FLAGS))[0] == 0
    return outcome(folder)


@LAUNCHERS
@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.sweep), 4])
def test_processes_of_a_launcher_leave_the_run_of_one_process(
    text: Path, tmp_path: Path, by_one: Any, launcher: Callable[[int], Command], size: int
) -> None:
    status, said = ended(start(*launcher(size), "-c", PROGRAM, "train", text, "--out", tmp_path / "run", *FLAGS))
    assert (status, said.count("Done.")) == (0, 1), said
    assert outcome(tmp_path / "run") == by_one


def rank_of(process: str) -> str:
    """The rank in the environment of a process of ours, "" of others."""
    with contextlib.suppress(OSError):
        for entry in Path("/proc", process, "environ").read_bytes().decode(errors="replace").split("\0"):
            name, _, value = entry.partition("=")
            if name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
                return value
    return ""


def process_of(rank: int, folder: Path) -> int:
    """The process of a rank of the run in a folder."""
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path("/proc", process, "cmdline").read_bytes().decode(errors="replace").split("\0")
            if command[1:2] == ["-c"] and str(folder) in command and rank_of(process) == str(rank):
                return int(process)
    raise AssertionError(f"no process is rank {rank}")


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not path.exists():
        time.sleep(0.01)


linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc to find processes in")


@linux
@LAUNCHERS
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.sweep)])
def test_a_killed_process_ends_all_and_another_number_goes_on_with_the_same_bits(
    text: Path, tmp_path: Path, launcher: Callable[[int], Command], victim: int
) -> None:
    long = [*FLAGS, "--steps", "400"]
    folder, straight = tmp_path / "run", tmp_path / "straight"
    process = start(*launcher(2), "-c", PROGRAM, "train", text, "--out", folder, *long)
    wait_for(folder / RunFolder.CHECKPOINT, process)
    os.kill(process_of(victim, folder), signal.SIGKILL)
    started = time.monotonic()
    assert ended(process)[0] != 0
    assert time.monotonic() - started < 20
    for arguments in (["--resume", folder], [text, "--out", straight, *long]):
        assert ended(start(sys.executable, "-c", PROGRAM, "train", *arguments))[0] == 0
    assert outcome(folder) == outcome(straight)


@LAUNCHERS
def test_a_run_of_one_process_goes_on_with_two(
    text: Path, tmp_path: Path, launcher: Callable[[int], Command]
) -> None:
    folder = tmp_path / "run"
    kept = [*FLAGS, "--steps", "20"]
    straight = start(sys.executable, "-c", PROGRAM, "train", text, "--out", folder, *kept, "--schedule", "constant")
    assert ended(straight)[0] == 0
    shutil.copytree(folder, tmp_path / "alone")
    more = ["--steps", "40"]
    assert ended(start(*launcher(2), "-c", PROGRAM, "train", "--resume", folder, *more))[0] == 0
    assert ended(start(sys.executable, "-c", PROGRAM, "train", "--resume", tmp_path / "alone", *more))[0] == 0
    assert outcome(folder) == outcome(tmp_path / "alone")


@linux
@LAUNCHERS
def test_a_signal_to_one_process_stops_all_at_a_step_and_saves(
    text: Path, tmp_path: Path, launcher: Callable[[int], Command]
) -> None:
    folder = tmp_path / "run"
    endless = [*FLAGS, "--steps", "1000000", "--sample-every", "0", "--validate-every", "0"]
    process = start(*launcher(2), "-c", PROGRAM, "train", text, "--out", folder, *endless)
    wait_for(folder / RunFolder.CHECKPOINT, process)
    os.kill(process_of(1, folder), signal.SIGTERM)
    status, said = ended(process)
    steps = checkpoint.load(folder / RunFolder.CHECKPOINT).metadata["progress"]["step"]
    assert (status != 0, said.count(f"Stopped after {steps:,} steps and saved.")) == (True, 1), said


def with_shards(size: int, resuming: bool = False, **settings: int) -> int:
    """The number of shards of a run that `size` processes begin or go on with."""
    group = Lone()
    group.size = size
    config = Config(training=TrainingConfig(**settings))
    return command._with_shards(config, group, resuming=resuming).training.shards


@pytest.mark.parametrize(
    ("size", "settings", "shards"),
    [
        (1, {}, 1),
        (4, {}, 4),
        (2, {"shards": 8}, 8),
        (1, {"resuming": True}, 1),  # a run of an earlier version
    ],
)
def test_there_is_one_shard_for_each_process_where_nobody_asks(size: int, settings: Any, shards: int) -> None:
    assert with_shards(size, **settings) == shards


@pytest.mark.parametrize(
    ("size", "settings", "words"),
    [
        (4, {"shards": 2}, "2 shards, which 4 processes cannot share evenly; start 2 or fewer, or give --shards 4"),
        (4, {"shards": 2, "resuming": True}, "2 shards, which 4 processes cannot share evenly; start 2 or fewer$"),
        (2, {"resuming": True}, "1 shard, which 2 processes cannot share"),
        (4, {"batch_size": 6}, "batch_size must be a multiple of 4, the number of shards, got 6"),
    ],
)
def test_a_number_of_processes_that_does_not_fit_the_batch_is_refused(size: int, settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_shards(size, **settings)


def by_hand(*commands: Command) -> list[tuple[int, str]]:
    """What ranks with a command each say and return, as processes of torch.distributed without a launcher."""
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")
    place = {"WORLD_SIZE": str(len(commands)), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    started = []
    for rank, arguments in enumerate(commands):
        environment = os.environ | place | {"RANK": str(rank), "LSTMFAST_NUM_THREADS": "1"}
        ours = [sys.executable, "-c", *map(str, arguments)]
        started.append(subprocess.Popen(ours, env=environment, stderr=subprocess.PIPE, text=True))
    return [ended(process) for process in started]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([], ["--seed", "1"], "--seed is 1 on rank 1, but 0 on rank 0; give every process the same options"),
        (["--shards", "1"], ["--shards", "1"], "the batch has 1 shard, which 2 processes cannot share evenly"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_all_in_one_sentence(
    text: Path, tmp_path: Path, first: list[str], second: list[str], words: str
) -> None:
    common = [PROGRAM, "train", text, "--out", tmp_path / "run", *FLAGS]
    told, silent = by_hand([*common, *first], [*common, *second])
    assert (told[0], told[1].count("\n"), silent) == (2, 1, (2, "")), told[1]
    assert words in told[1]
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_another_machine_does_not_see_is_refused(text: Path, tmp_path: Path) -> None:
    common = ["train", text, "--out", tmp_path / "run", *FLAGS]
    told, silent = by_hand([PROGRAM, *common], [BLIND, *common])
    assert told == (
        2,
        f"lstmfast: error: rank 1 of 2: the run folder {tmp_path / 'run'} of rank 0 is not seen here; "
        "put it on a file system that all processes share\n",
    )
    assert (silent, (tmp_path / "run").exists()) == ((2, ""), False)


def test_texts_that_differ_are_refused(text: Path, tmp_path: Path) -> None:
    """On another machine the same name is that of another file."""
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("cat", "dog"))
    elsewhere = f"""
import lstmfast.command.train as command
load = command.load_corpus
command.load_corpus = lambda sources, **options: load([{str(other)!r}], **options)
"""
    common = ["train", text, "--out", tmp_path / "run", *FLAGS]
    told, silent = by_hand([PROGRAM, *common], [elsewhere + PROGRAM, *common])
    words = "lstmfast: error: the text of rank 1 is not that of rank 0; give all machines the same files\n"
    assert (told, silent) == ((2, words), (2, ""))


@pytest.mark.parametrize("rank", [0, 1])
def test_without_the_transports_package_rank_0_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr(processes, "_SECONDS_TO_SPEAK", 0.0)
    for name, value in {"PMI_SIZE": "2", "PMI_RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    status, (out, err) = main(["train"]), capsys.readouterr()
    sentence = "lstmfast: error: processes of mpiexec talk through mpi4py: pip install 'lstmfast[mpi]'\n"
    assert (status, out, err) == (2, "", "" if rank else sentence)
