"""`python -m lstmfast.cuda.selftest`: every kernel that this device can run, against the CPU's, at odd shapes too.

Prints one line for each kernel and shape with the largest error as a part of what is allowed, and a verdict at the end.
Exit status: 0 if all agree, 1 if one does not, 2 if there is nothing to test here. Needs no input and no arguments;
`--device N` chooses a device, `--quick` a few shapes. For speed see `lstmfast bench --device cuda`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lstmfast._core import __version__
from lstmfast.cuda import _health, _library
from lstmfast.cuda._arrays import default_device
from lstmfast.cuda._kernels import Context
from lstmfast.cuda._library import DTYPES, PATHS, CudaUnavailableError, Plan

# batch, hidden_size, time_steps: single cells and rows, sizes beside powers of two, and what people use.
SHAPES = [
    (1, 1, 3), (1, 16, 5), (3, 37, 5), (5, 64, 4), (4, 33, 7), (9, 100, 4), (2, 129, 5), (17, 7, 6), (16, 128, 9),
    (64, 256, 9), (16, 512, 9), (33, 768, 5), (128, 1024, 5), (8, 2048, 5), (1, 1024, 17),
]  # fmt: skip
QUICK_SHAPES = [(1, 1, 3), (3, 37, 5), (17, 64, 4)]


@dataclass(frozen=True)
class Case:
    """One line of the report."""

    path: str
    dtype: str
    batch: int
    hidden_size: int
    time_steps: int
    agreement: _health.Agreement | None
    problem: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the kernel ran and agrees."""
        return self.agreement is not None and self.agreement.is_good

    def line(self) -> str:
        """The case in words and numbers."""
        head = f"{self.path:8}  {self.dtype:8}  B {self.batch:4}  H {self.hidden_size:4}  T {self.time_steps:3}  "
        if self.agreement is None:
            return f"{head}FAILED  {self.problem}"
        worst = max(self.agreement.errors, key=self.agreement.errors.__getitem__)
        return f"{head}{'ok' if self.is_good else 'WRONG':6}  {self.agreement.worst:8.3g} of the bound, in {worst}"


def run(on: Context, shapes: Sequence[tuple[int, int, int]]) -> list[Case]:
    """Try every path with every dtype at every shape it takes, both ways through time, with and without ragged rows."""
    cases = []
    for batch, hidden_size, time_steps in shapes:
        for dtype in DTYPES:
            for path, name in PATHS.items():
                if not path:
                    continue
                try:
                    plan = on.library.plan(on.device, hidden_size, batch, dtype, True, path)
                except ValueError:
                    continue  # no kernel of this path takes this shape here
                case = _case(on, plan, name, dtype, time_steps)
                cases.append(case)
                print(case.line(), flush=True)
    return cases


def _case(on: Context, plan: Plan, path: str, dtype: str, time_steps: int) -> Case:
    shape = int(plan.batch), int(plan.hidden_size), time_steps
    errors: dict[str, float] = {}
    try:
        for seed, (reverse, ragged) in enumerate([(False, False), (False, True), (True, True)]):
            agreement = _health.compare(
                on, plan, dtype, seed=seed, time_steps=time_steps, reverse=reverse, ragged=ragged
            )
            for name, error in agreement.errors.items():
                errors[name] = max(errors.get(name, 0.0), float("inf") if error != error else error)
    except RuntimeError as error:
        return Case(path, dtype, *shape, None, str(error))
    return Case(path, dtype, *shape, _health.Agreement(errors))


def main(argv: Sequence[str] | None = None) -> int:
    """Test and report; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m lstmfast.cuda.selftest", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", type=int, default=0, help="number of the device")
    parser.add_argument("--quick", action="store_true", help="three small shapes only")
    options = parser.parse_args(argv)
    try:
        library = _library.require()
        framework, like = default_device(options.device)
    except (CudaUnavailableError, ValueError) as error:
        print(f"Nothing to test: {error}")
        return 2
    device = library.device(options.device)
    print(
        f"lstmfast {__version__} on {device.name.decode()}, sm_{device.compute_major}{device.compute_minor}, "
        f"{device.sm_count} multiprocessors, arrays by {framework.name}"
    )
    started = time.perf_counter()
    cases = run(Context(library, framework, like, options.device), QUICK_SHAPES if options.quick else SHAPES)
    bad = [case for case in cases if not case.is_good]
    seconds = time.perf_counter() - started
    if bad:
        print(f"{len(bad)} of {len(cases)} cases are wrong ({seconds:.0f} s). Please report this with the lines above.")
        return 1
    print(f"All {len(cases)} cases agree with the CPU ({seconds:.0f} s).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
