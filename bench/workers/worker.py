"""One worker: a process with one library that makes pieces of work, returns their values and times them.

`worker.py IN_LIBRARY.py THREADS` reads one JSON object per line from standard input and answers each with one. It runs
under the interpreter of the library it measures, which needs NumPy but not lstmfast, so it imports no bench code.
IN_LIBRARY.py defines `version(threads)`, called once, and `WORKS`: name -> class. A work is made from a problem (arrays
in lstmfast's names and layouts) and settings; `step()` does it once, `values()` does it and returns arrays to compare,
both inside `context()` if the work has one, entered once for many steps. NotImplementedError means that the library
cannot do a work; any other error is answered as {"unable": reason}. harness.py, at the other end, judges.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_SHORTEST_SAMPLE = 50e-6  # seconds; shorter steps are timed several at once, because reading the clock takes 0.1 us
_SHORT = 0.1  # seconds; a longer step is warm after one run and needs no second trial


class Worker:
    """The library, and the work that was made last."""

    def __init__(self, library: ModuleType) -> None:
        self._library = library
        self._work: Any = None
        self._context: Callable[[], Any] = contextlib.nullcontext
        self._steps_per_sample = 1

    def make(self, work: str, problem: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Make a work from the .npz file `problem`."""
        self._work, self._steps_per_sample = None, 1
        if work not in self._library.WORKS:
            return {"unable": f"this bench has no {work} for it"}
        self._work = self._library.WORKS[work](dict(np.load(problem)), settings)
        self._context = getattr(self._work, "context", contextlib.nullcontext)
        return {}

    def values(self, path: str) -> dict[str, Any]:
        """Do the work and write its results to an .npz file. Also warms up."""
        with self._context():
            begin = time.perf_counter()
            values = self._work.values()
            if time.perf_counter() - begin < _SHORT:
                _seconds_of(self._work.step, 1)
                self._steps_per_sample = math.ceil(_SHORTEST_SAMPLE / _seconds_of(self._work.step, 1))
        np.savez(path, **values)
        return {}

    def time(self, seconds: float) -> dict[str, Any]:
        """Repeat the work for about this long, at least once: the milliseconds of each step."""
        step = self._work.step
        samples: list[float] = []
        gc.collect()
        gc.disable()
        with self._context():
            end = time.perf_counter() + seconds
            while not samples or time.perf_counter() < end:
                samples.append(1e3 * _seconds_of(step, self._steps_per_sample))
        gc.enable()
        return {"milliseconds": samples}

    def memory(self) -> dict[str, Any]:
        """Do the work once: the peak growth of the process in bytes."""
        gc.collect()
        before = _reset_peak_memory()
        self._work.step()
        return {"bytes": _status_bytes("VmHWM") - before}

    def call(self, function: str, arguments: list[Any]) -> dict[str, Any]:
        """The result of any other function in the library's file."""
        return {"result": getattr(self._library, function)(*arguments)}


def _seconds_of(step: Callable[[], Any], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - begin) / count


def _reset_peak_memory() -> int:
    """Reset the system's record of peak memory (Linux only); return the present use."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise NotImplementedError(f"the system does not reset the peak of memory: {error.strerror}") from None
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the answers

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    path, threads = Path(sys.argv[1]), int(sys.argv[2])
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        answer({"absent": str(error)})
        return
    answer({"version": module.version(threads)})
    worker = Worker(module)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer(getattr(worker, message.pop("do"))(**message))
        except NotImplementedError as reason:
            answer({"unable": str(reason)})
        except Exception as error:
            answer({"unable": " ".join(f"{type(error).__name__}: {error}".split())[:200]})


if __name__ == "__main__":
    main()
