"""Whether CUDA is available, and if not, why. `functional.lstm` uses it for arrays on a CUDA device.

Kernels of our own for the recurrence, forward and backward; memory, streams and the large products around it are the
caller's framework's (torch or cupy). `python -m lstmfast.cuda.selftest` compares every kernel with the CPU's on the
current machine. Importing this loads no library and no framework.
"""

from __future__ import annotations

from lstmfast.cuda._health import KernelMismatchWarning
from lstmfast.cuda._library import CudaUnavailableError, load, require

__all__ = ["CudaUnavailableError", "KernelMismatchWarning", "describe", "is_available"]


def is_available() -> bool:
    """Whether this installation has CUDA kernels and this machine a device for them."""
    try:
        require()
    except CudaUnavailableError:
        return False
    return True


def describe() -> str:
    """The available devices, or why there are none, in one line."""
    try:
        library = load()
    except CudaUnavailableError as error:
        return f"not available: {error}"
    count, reason = library.device_count()
    if count == 0:
        return f"built, but no device can be used here: {reason or 'the driver reports none'}"
    devices = [library.device(number) for number in range(count)]
    return ", ".join(f"{device.name.decode()} (sm_{device.compute_major}{device.compute_minor})" for device in devices)
