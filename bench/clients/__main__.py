"""`python -m lstmfast.bench.clients [NAME ...]`, or `lstmfast bench clients`: every project in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PREFIX = "with_"
NAMES = tuple(sorted(path.stem.removeprefix(PREFIX) for path in Path(__file__).parent.glob(f"{PREFIX}*.py")))
ABSENT = re.compile(r"^ModuleNotFoundError: No module named '(?!lstmfast\b|bench\b)(\w+)[\w.]*'\s*\Z", re.MULTILINE)


def run(names: Sequence[str] = ()) -> int:
    """Print the lines of each project: 1 if one failed, such as by figures that disagree, else 0.

    A project with a package that is not installed is skipped. Raises ValueError for a name that is none of NAMES.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"a client must be one of {', '.join(NAMES)}, got {unknown[0]!r}")
    status = 0
    for name in names or NAMES:
        command = [sys.executable, "-m", f"{__package__}.{PREFIX}{name}"]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.stdout, end="")
        if done.returncode and (absent := ABSENT.search(done.stderr)):
            print(f"{name}: skipped, {absent[1]} is not installed")
        elif done.returncode:
            status = 1
            print(f"{name}: failed\n{done.stderr}", end="")
        sys.stdout.flush()
    return status


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"lstmfast.bench.clients: {error}")
