"""Data parallelism over processes: a group of them, and one fixed binary tree of sums.

Floating-point sums depend on their order. Here a batch is cut into shards, a power of two of them, and their values are
added in one binary tree: shard 0 with 1, 2 with 3, then these sums with each other. Each process adds up a subtree,
and pairs of processes add up the rest. So the bits depend on the number of shards and not on that of processes.

Transports are those of MPI (mpi4py) and torch.distributed (gloo); both are imported when they are needed. Refuses to
start processes (see `mpiexec` and `torchrun`) and to use a transport's own sums, whose order is not fixed.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import numpy as np

from lstmfast import _checks as check
from lstmfast._checks import Array

T = TypeVar("T")

_SMALL = 4096  # items: up to here one message of everything is faster than two of halves
_JOIN_TIME, _WAIT_TIME = timedelta(minutes=5), timedelta(days=2)  # others wait while rank 0 validates and saves


class Group(Protocol):
    """Processes that work together: `size` of them, a power of two, and the own number `rank` from 0."""

    rank: int
    size: int

    def exchange(self, send: Array, receive: Array, partner: int) -> None:
        """Send a contiguous array to the partner and fill another with what it sends; the partner does the same.

        Raises ConnectionError if the partner has ended.
        """


class Lone:
    """A group of one."""

    rank, size = 0, 1

    def exchange(self, send: Array, receive: Array, partner: int) -> None:
        """There is nobody to exchange with."""
        raise ValueError(f"partner must be a rank of the group, but it has only rank 0, got {partner}")


class MPIGroup:
    """The processes of an MPI communicator, by default of all that mpiexec started."""

    def __init__(self, communicator: Any = None) -> None:
        from mpi4py import MPI

        self._communicator = MPI.COMM_WORLD if communicator is None else communicator
        self._lost = MPI.Exception
        self.rank, self.size = self._communicator.Get_rank(), self._communicator.Get_size()

    def exchange(self, send: Array, receive: Array, partner: int) -> None:
        """See `Group`."""
        try:
            self._communicator.Sendrecv(send.view(np.uint8), partner, 0, receive.view(np.uint8), partner, 0)
        except self._lost as error:
            raise ConnectionError(_lost(partner)) from error

    def abort(self, status: int) -> None:
        """End every process: MPI's own exit waits for all of them, also for those that wait for this one."""
        self._communicator.Abort(status)


class TorchGroup:
    """The processes of torch.distributed, by default of all that torchrun started, connected by gloo."""

    def __init__(self, process_group: Any = None) -> None:
        import torch
        import torch.distributed

        self._torch, self._distributed = torch, torch.distributed
        if process_group is None:
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo", timeout=_JOIN_TIME)
            process_group = torch.distributed.new_group(backend="gloo", timeout=_WAIT_TIME)
        self._group = process_group
        self.rank = torch.distributed.get_rank(process_group)
        self.size = torch.distributed.get_world_size(process_group)

    def exchange(self, send: Array, receive: Array, partner: int) -> None:
        """See `Group`."""
        there = self._distributed.get_global_rank(self._group, partner)
        try:
            works = [
                self._distributed.isend(self._torch.from_numpy(send), there, group=self._group),
                self._distributed.irecv(self._torch.from_numpy(receive), there, group=self._group),
            ]
            for work in works:
                work.wait()
        except RuntimeError as error:
            raise ConnectionError(_lost(partner)) from error


def _lost(partner: int) -> str:
    return f"the connection to rank {partner} was lost: that process has ended"


# --- choice of the transport ------------------------------------------------------------------------------------------

_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK")


def place_in(environment: Mapping[str, str]) -> tuple[str, int, int]:
    """What started this process, "torchrun", "mpiexec" or "" if neither, and its rank and the number of processes.

    Raises ValueError naming a variable that is not a number.
    """
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
        return "torchrun", _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    sizes = [*_MPI_SIZES, *(("SLURM_NTASKS",) if "PMIX_RANK" in environment else ())]  # srun --mpi=pmix has no other
    size_name = next((name for name in sizes if name in environment), None)
    rank_name = next((name for name in _MPI_RANKS if name in environment), None)
    if size_name is None or rank_name is None:
        return "", 0, 1
    return "mpiexec", _number(environment, rank_name), _number(environment, size_name)


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment[name]
    if not value.isdecimal():
        raise ValueError(f"the environment variable {name} must be a whole number, got {value!r}")
    return int(value)


def from_environment(environment: Mapping[str, str] = os.environ) -> Group:
    """The group that mpiexec or torchrun made of this process; a group of one if neither started it.

    Raises ValueError if the number of processes is not a power of two, or if mpi4py belongs to another MPI than
    mpiexec; ImportError naming the package that is missing; ConnectionError if the processes do not find each other.
    """
    launcher, rank, size = place_in(environment)
    if size == 1:
        return Lone()
    if not _is_power_of_two(size):
        raise ValueError(f"the number of processes must be a power of two, got {size} from {launcher}")
    if launcher == "torchrun":
        try:
            return TorchGroup()
        except ImportError as error:
            raise ImportError("processes of torchrun talk through PyTorch: pip install 'lstmfast[torch]'") from error
        except RuntimeError as error:
            raise ConnectionError(f"the {size} processes of torchrun did not find each other: {error}") from error
    try:
        group = MPIGroup()
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, its MPI is not
        raise ImportError("processes of mpiexec talk through mpi4py: pip install 'lstmfast[mpi]'") from error
    if group.size != size:
        raise ValueError(
            f"mpiexec started {size} processes, but mpi4py sees {group.size}: they belong to different MPI libraries; "
            "use the mpiexec of the library that mpi4py was built for"
        )
    return group


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


# --- sums -------------------------------------------------------------------------------------------------------------


class TreeSum:
    """The sum of one array per shard over all processes, in one fixed binary tree.

    shards: how many there are in all, a power of two and a multiple of the number of processes. `mine`: the shards of
    this process. Raises ValueError naming the number that does not fit.
    """

    def __init__(self, group: Group, shards: int) -> None:
        if not _is_power_of_two(check.whole_number("shards", shards)):
            raise ValueError(f"shards must be a power of two, got {shards}")
        if not _is_power_of_two(group.size):
            raise ValueError(f"the number of processes must be a power of two, got {group.size}")
        if shards % group.size:
            raise ValueError(
                f"shards ({shards}) must be a multiple of the number of processes, got {group.size} processes"
            )
        count = shards // group.size
        self.shards = shards
        self.mine = range(group.rank * count, (group.rank + 1) * count)
        self._group = group
        self._added = 0
        self._pending: dict[int, Array] = {}  # sums of complete subtrees, by their height
        self._spare = np.empty(0)

    def rows(self, shard: int, batch_size: int) -> slice:
        """The rows of a batch that a shard has. Raises ValueError if the rows cannot be shared evenly."""
        if batch_size % self.shards:
            raise ValueError(f"batch_size must be a multiple of the {self.shards} shards, got {batch_size}")
        count = batch_size // self.shards
        return slice(shard * count, (shard + 1) * count)

    def add(self, values: Array) -> bool:
        """Add the array of the next shard of `mine`, contiguous and one-dimensional, which is overwritten.

        True after the last one; then `values` holds the sum over all shards, the same bits in every process.
        """
        height, index = 0, self._added
        while index & 1:
            values += self._pending[height]  # a + b = b + a, also in the last bit
            height, index = height + 1, index >> 1
        self._added += 1
        if self._added < len(self.mine):
            pending = self._pending.get(height)
            if pending is None or pending.shape != values.shape:
                pending = self._pending[height] = np.empty_like(values)
            pending[...] = values
            return False
        self._added = 0
        self._add_across(values)
        return True

    def _add_across(self, values: Array) -> None:
        """The upper levels of the tree: recursive doubling of small arrays, halving and doubling of large ones."""
        group, small = self._group, values.size <= _SMALL
        if self._spare.size < values.size or self._spare.dtype != values.dtype:
            self._spare = np.empty(values.size if group.size > 1 else 0, values.dtype)
        first, end = 0, values.size  # the part of the sum that this process computes
        others: list[tuple[int, int, int]] = []  # the parts its partners compute
        for partner in partners(group):
            middle = first if small else (first + end) // 2
            upper = group.rank > partner or small
            mine, theirs = ((middle, end), (first, middle)) if upper else ((first, middle), (middle, end))
            if small:
                theirs = mine
            received = self._spare[: mine[1] - mine[0]]
            group.exchange(values[slice(*theirs)], received, partner)
            values[slice(*mine)] += received
            first, end = mine
            others.append((*theirs, partner))
        for start, stop, partner in [] if small else reversed(others):
            group.exchange(values[first:end], values[start:stop], partner)
            first, end = min(first, start), max(end, stop)


def partners(group: Group) -> list[int]:
    """The ranks that a process meets on the way up the tree: its neighbour, then those 2, 4, ... ranks away."""
    return [group.rank ^ (1 << level) for level in range(group.size.bit_length() - 1)]


# --- other messages ---------------------------------------------------------------------------------------------------


def gather_arrays(group: Group, values: Array) -> Array:
    """The arrays of all ranks, of one shape and type, in every process: [size, *values.shape]."""
    gathered = np.empty((group.size, *values.shape), values.dtype)
    gathered[group.rank] = values
    for level, partner in enumerate(partners(group)):
        first, theirs = (rank >> level << level for rank in (group.rank, partner))
        count = 1 << level
        group.exchange(
            gathered[first : first + count].reshape(-1), gathered[theirs : theirs + count].reshape(-1), partner
        )
    return gathered


def gather(group: Group, value: Any) -> list[Any]:
    """The values of all ranks, anything JSON can hold, in every process."""
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = gather_arrays(group, np.array([len(encoded)], np.int64))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(encoded)] = encoded
    found = gather_arrays(group, padded)
    return [json.loads(row[: int(length)].tobytes()) for row, length in zip(found, lengths[:, 0], strict=True)]


def broadcast(group: Group, value: T) -> T:
    """The value of rank 0, anything JSON can hold, in every process."""
    received: T = gather(group, value if group.rank == 0 else None)[0] if group.size > 1 else value
    return received


def barrier(group: Group) -> None:
    """Return when every process is here."""
    gather_arrays(group, np.zeros(1, np.uint8))


class FailedTogether(Exception):
    """An error that every process knows of; rank 0 tells it to the user."""


def together(group: Group, act: Callable[[], T], describe: Callable[[Exception], str] = str) -> T:
    """What `act` returns in this process, once it has returned in all.

    If it raises in any, all raise FailedTogether with the words of the first rank that failed, and its number unless
    that is 0. A group of one raises the error itself.
    """
    if group.size == 1:
        return act()
    failure: Exception | None = None
    try:
        result = act()
    except (ConnectionError, FailedTogether):  # the other processes know
        raise
    except Exception as error:
        failure = error
    all_words = gather(group, None if failure is None else describe(failure))
    for rank, words in enumerate(all_words):
        if words is not None:
            raise FailedTogether(f"rank {rank} of {group.size}: {words}" if rank else words) from failure
    return result


def cores_per_process(group: Group) -> int:
    """Cores for this process where those of its machine are shared evenly among the processes that may use them.

    Launchers that bind processes to cores, as mpiexec may, have shared them out already.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))
    places: list[tuple[str, list[int]]] = gather(group, (socket.gethostname(), cores))
    sharing = sum(host == places[group.rank][0] and not set(cores).isdisjoint(theirs) for host, theirs in places)
    return max(len(cores) // sharing, 1)

