"""The three standard streams as programs find them: closed, on a full disk, with nobody at the other end any more.

Service managers, cron and windows start programs without some of them; Python then has None in their place. What is
said on standard error is no result, so nothing ends because of it; what standard output does not take is an error.
Refuses to know what is written.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, Any, TextIO


class Errors:
    """A standard error that takes no offence where it cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write if that can be done."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if that can be done."""
        settle(self._stream)


class Results:
    """A standard output that says so where it cannot be written.

    `write` and `flush` raise OSError in a sentence; BrokenPipeError, which means that the reader has seen enough, as it
    is.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or raise."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._said(error) from error

    def flush(self) -> None:
        """Flush, or raise."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._said(error) from error

    def _said(self, error: OSError) -> OSError:
        settle(self._stream)
        return OSError(f"standard output cannot be written: {error.strerror}")


def tell(text: str) -> None:
    """Print lines on standard error, where there is one."""
    if sys.stderr is not None:  # print would take None for standard output
        print(text, file=Errors(sys.stderr), flush=True)


def settle(stream: Any) -> None:
    """Write what a stream still holds; where that fails, let it lead nowhere from here on.

    Without this the interpreter tries once more when it ends, and ends with a message and a status of its own.
    """
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # there is no file below it, or not any more
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def standard_input() -> IO[bytes]:
    """Standard input as bytes. Raises ValueError where the program has none."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise ValueError("standard input ('-') is closed; name a text file")
    binary: IO[bytes] = stream
    return binary


def is_closed(stream: TextIO | None) -> bool:
    """Tell a standard stream that is not there."""
    return stream is None or stream.closed


def occupy() -> None:
    """Have the numbers of closed standard streams lead nowhere, lest the next file that is opened get one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
