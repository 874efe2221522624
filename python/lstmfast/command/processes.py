"""A command in many processes: one voice, one exit status, and checks that all of them do the same.

What goes wrong before training fails everywhere together: rank 0 says one sentence, every process has status 2. Refuses
to know transports and sums (see `distributed`) and what the command does.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lstmfast import __version__, _core, distributed, runtime
from lstmfast import _streams as streams
from lstmfast.command.errors import in_one_line
from lstmfast.distributed import FailedTogether, Group, Lone, MPIGroup
from lstmfast.training.config import Config, changed_settings

T = TypeVar("T")

_SECONDS_TO_SPEAK = 1.0  # a launcher ends all processes when one has failed; rank 0 needs time to say why
_PROBE = ".seen-by-all"


def run(argv: Sequence[str], act: Callable[[Group], int]) -> int:
    """The exit status of `act` in the group that this process belongs to, alone or as started by a launcher."""
    _, rank, size = distributed.place_in(os.environ)
    if size == 1:
        return act(Lone())
    try:
        group = distributed.from_environment()
    except Exception:
        if rank == 0:
            raise
        time.sleep(_SECONDS_TO_SPEAK)
        return 2
    with contextlib.redirect_stdout(io.StringIO()) if rank else contextlib.nullcontext():  # such as --help
        try:
            status = act(group)
            with contextlib.suppress(ConnectionError):
                distributed.barrier(group)  # a launcher may end the others as soon as one has ended
            return status
        except Exception as error:
            if "--traceback" in argv and not streams.is_closed(sys.stderr):
                traceback.print_exception(error)
            return _fail(group, error)
        except KeyboardInterrupt:
            if isinstance(group, MPIGroup):
                group.abort(130)
            raise


def _fail(group: Group, error: Exception) -> int:
    """Say what went wrong, once where all know it, and end the other processes."""
    known = isinstance(error, FailedTogether)
    if group.rank == 0:
        kept = "; the last checkpoint is kept" if isinstance(error, ConnectionError) else ""
        words = str(error) if known else in_one_line(error)
        streams.tell(f"lstmfast: error: {words}{kept}")
    elif not known and not isinstance(error, ConnectionError):
        streams.tell(f"lstmfast: error: rank {group.rank} of {group.size}: {in_one_line(error)}")
    if known:
        with contextlib.suppress(ConnectionError):
            distributed.barrier(group)
            return 2
    if isinstance(group, MPIGroup):
        group.abort(2)
    return 2


def together(group: Group, act: Callable[[], T]) -> T:
    """As `distributed.together`, with the words of the command line."""
    return distributed.together(group, act, in_one_line)


def on_first(group: Group, act: Callable[[], T]) -> T:
    """What `act` returns on rank 0, anything JSON can hold, in every process; it fails in all if it fails there."""
    return distributed.broadcast(group, together(group, act if group.rank == 0 else lambda: None))  # type: ignore[return-value]


def share_cores(group: Group) -> None:
    """Use this process's share of the cores, unless the environment says how many threads to use.

    torchrun sets OMP_NUM_THREADS to 1 by itself, so that variable does not count under it.
    """
    by_torchrun = not isinstance(group, MPIGroup)
    if "LSTMFAST_NUM_THREADS" not in os.environ and (by_torchrun or "OMP_NUM_THREADS" not in os.environ):
        runtime.set_num_threads(distributed.cores_per_process(group))


def check_settings(group: Group, config: Config, others: dict[str, Any]) -> None:
    """Raise FailedTogether unless all ranks have the same version, kernels, settings and other options."""
    if group.size == 1:
        return
    told = distributed.gather(group, [__version__, _core.current_isa(), config.to_json(), others])
    first_version, first_kernels, first_settings, first_others = told[0]
    for rank, (version, kernels, settings, own_others) in enumerate(told):
        if version != first_version:
            raise FailedTogether(f"rank {rank} has lstmfast {version}, but rank 0 has {first_version}; use one version")
        if kernels != first_kernels:
            raise FailedTogether(
                f"rank {rank} computes with the {kernels} kernels, but rank 0 with {first_kernels}, and their sums "
                "differ in the last bits; set LSTMFAST_ISA in all processes to one that every machine has"
            )
        changed = changed_settings(Config.from_json(first_settings), Config.from_json(settings))
        changed |= {name: (first_others[name], own) for name, own in own_others.items() if own != first_others[name]}
        for name, (wanted, came) in changed.items():
            raise FailedTogether(
                f"--{name.replace('_', '-')} is {came!r} on rank {rank}, but {wanted!r} on rank 0; give every process "
                "the same options"
            )


def check_same(group: Group, what: str, value: Any, advice: str) -> None:
    """Raise FailedTogether unless all ranks have the same value, such as a fingerprint; advice: what to do then."""
    values = distributed.gather(group, value) if group.size > 1 else [value]
    for rank, other in enumerate(values):
        if other != values[0]:
            raise FailedTogether(f"{what} of rank {rank} is not that of rank 0; {advice}")


def check_visible(group: Group, folder: Path) -> None:
    """Raise FailedTogether unless all ranks see the run folder of rank 0, which has made it."""
    if group.size == 1:
        return
    probe = Path(on_first(group, lambda: str(_make_probe(folder))))
    try:
        together(group, functools.partial(_find_probe, probe))
    finally:
        if group.rank == 0:
            probe.unlink(missing_ok=True)


def _make_probe(folder: Path) -> Path:
    probe = folder.absolute() / f"{_PROBE}-{os.getpid()}"
    probe.touch()
    return probe


def _find_probe(probe: Path) -> None:
    if not probe.exists():
        raise not_seen(probe.parent)


def not_seen(folder: Path) -> FileNotFoundError:
    """The error of a rank that does not see the run folder of rank 0."""
    return FileNotFoundError(
        f"the run folder {folder} of rank 0 is not seen here; put it on a file system that all processes share"
    )
