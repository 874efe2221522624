"""The three standard streams, which may be missing, closed, on a full disk, or without a reader.

Service managers, cron and Windows start programs without some of them; Python then sets them to None. Messages on
standard error are not results, so a failed write there is ignored; on standard output it is an error. Refuses to know
what is written.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, Any, TextIO


class Errors:
    """Standard error; failed writes are ignored."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write if possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        settle(self._stream)


class Results:
    """Standard output; failed writes are errors.

    `write` and `flush` raise OSError with a message that names the stream. BrokenPipeError passes unchanged: the reader
    stopped reading.
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
            raise self._failure(error) from error

    def flush(self) -> None:
        """Flush, or raise."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OSError:
        settle(self._stream)
        return OSError(f"standard output cannot be written: {error.strerror}")


def tell(text: str) -> None:
    """Print lines on standard error, if there is one."""
    if sys.stderr is not None:  # print(file=None) writes to standard output
        print(text, file=Errors(sys.stderr), flush=True)


def settle(stream: Any) -> None:
    """Flush a stream; if that fails, redirect it to the null device.

    Otherwise the interpreter flushes it again on exit, and prints its own message and changes the exit status.
    """
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # it has no open file descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def standard_input() -> IO[bytes]:
    """Standard input as bytes. Raises ValueError if the program has none."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise ValueError("standard input ('-') is closed; name a text file")
    binary: IO[bytes] = stream
    return binary


def is_closed(stream: TextIO | None) -> bool:
    """Whether a standard stream is missing or closed."""
    return stream is None or stream.closed


def occupy() -> None:
    """Open the null device in place of closed standard streams, so that no later file gets their descriptors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
