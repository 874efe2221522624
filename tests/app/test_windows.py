"""The command line where the system has and allows no more than Windows: this one without what Windows lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Windows opens no folders, flushes only files that are open for writing, and has neither these names nor these modules.
PROGRAM = """
import errno, fcntl, mmap, os, signal, sys
import numpy, rich.console, rich.progress, safetensors.numpy, tyro  # these know which system they are on
sys.modules["matplotlib"] = None  # takes longer to import than these runs
system_open, system_fsync = os.open, os.fsync

def open_file(path, *arguments, **keywords):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return system_open(path, *arguments, **keywords)

def fsync(descriptor):
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    system_fsync(descriptor)

os.open, os.fsync = open_file, fsync
for name in "fork register_at_fork sched_getaffinity sysconf getuid geteuid getloadavg uname killpg pread".split():
    delattr(os, name)
del mmap.MADV_DONTNEED
del signal.SIGPIPE, signal.SIGKILL, signal.SIGHUP, signal.SIGALRM
sys.modules.update(dict.fromkeys(["fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"]))

from lstmfast.command.main import main
sys.exit(main(sys.argv[1:]))
"""
TINY = "--steps 8 --hidden-size 8 --batch-size 4 --unroll 5 --summary-every 4 --sample-length 30 --checkpoint-every 3"


def lstmfast(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of a small text. Tests must not change it."""
    path = tmp_path_factory.mktemp("windows")
    (path / "text.txt").write_text("the cat sat on the mat\n" * 60)
    done = lstmfast(path, "train", "text.txt", "--out", "run", *TINY.split())
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("command", ["sample run --length 20", "eval run text.txt --json", "inspect run", "info"])
def test_every_command_works(folder: Path, command: str) -> None:
    done = lstmfast(folder, *command.split())
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_is_resumed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes((folder / "text.txt").read_bytes())
    assert lstmfast(tmp_path, "train", "text.txt", "--out", "run", *TINY.split()).returncode == 0
    done = lstmfast(tmp_path, "train", "--resume", "run")
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "sample", "run", "--length", "200000"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (128 + 13, "")
