"""Many processes: the tree of sums, trainers that share a batch, and the command under torchrun and mpiexec."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from lstmfast import distributed
from lstmfast.config import Config, ModelConfig, TrainingConfig
from lstmfast.data import load_corpus
from lstmfast.distributed import FailedTogether, Group, Lone, TreeSum, place_in
from lstmfast.trainer import Callback, Trainer, make_trainer
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
