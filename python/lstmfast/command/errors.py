"""What a command says of an error: one sentence on one line. Refuses to print it (see `main` and `processes`)."""

from __future__ import annotations

from lstmfast import cuda


def in_one_line(error: Exception) -> str:
    """The words of an error, with the name of its type where that says more."""
    if isinstance(error, OSError) and error.strerror:
        words = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, (ValueError, OSError, ImportError, cuda.CudaUnavailableError)):
        words = str(error)
    else:
        words = f"{type(error).__name__}: {error} (--traceback shows where)"
    return " ".join(words.split())
