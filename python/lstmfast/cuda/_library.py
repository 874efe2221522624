"""ctypes binding of liblstmfast_cuda (csrc/cuda/lstmfast_cuda.h), loaded on first use.

The library is optional and needs no driver to load. It is beside this file if the package was built with
LSTMFAST_CUDA=1. Refuses to allocate, to choose streams and to deal with frameworks (see `_arrays`).
"""

from __future__ import annotations

import ctypes
import functools
import threading
from ctypes import POINTER, c_char, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

from lstmfast._engine.devices import set_emulation

ABI_VERSION = 1
MAX_HIDDEN_SIZE = 2048
WORKSPACE_ALIGNMENT = 256
FLOAT32, BFLOAT16 = 0, 1
_INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver
DTYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16}
PATHS = {0: "none", 1: "step", 2: "sequence", 3: "cluster"}

_FOLDER = Path(__file__).resolve().parent
_NAMES = ("liblstmfast_cuda.so", "liblstmfast_cuda.dylib")


class CudaUnavailableError(RuntimeError):
    """CUDA is unavailable to lstmfast; the message says why and what would help."""


class Device(ctypes.Structure):
    """LstmfastCudaDevice."""

    _fields_ = [
        ("compute_major", c_int32), ("compute_minor", c_int32),
        ("sm_count", c_int32), ("shared_bytes_per_block", c_int32), ("registers_per_sm", c_int32),
        ("threads_per_sm", c_int32), ("clock_mhz", c_int32), ("cooperative_launch", c_int32),
        ("l2_bytes", c_int64), ("name", c_char * 256),
    ]


class DirectionPlan(ctypes.Structure):
    """LstmfastCudaDirectionPlan."""

    _fields_ = [
        ("path", c_int32), ("variant", c_int32), ("threads", c_int32), ("blocks_per_group", c_int32),
        ("groups", c_int32), ("slice_rows", c_int32), ("launches", c_int32), ("cluster_size", c_int32),
        ("shared_bytes", c_int32), ("microseconds_per_step", c_float),
    ]


class Plan(ctypes.Structure):
    """LstmfastCudaPlan."""

    _fields_ = [
        ("hidden_size", c_int64), ("batch", c_int64), ("dtype", c_int32), ("training", c_int32),
        ("forward", DirectionPlan), ("backward", DirectionPlan),
    ]


class Forward(ctypes.Structure):
    """LstmfastCudaForward."""

    _fields_ = [
        ("time_steps", c_int64), ("z", c_void_p), ("recurrent_kernel", c_void_p), ("recurrent_kernel_stride", c_int64),
        ("h0", c_void_p), ("c0", c_void_p), ("lengths", c_void_p), ("resets", c_void_p), ("h", c_void_p),
        ("h_n", c_void_p), ("c_n", c_void_p), ("gates", c_void_p), ("cells", c_void_p), ("workspace", c_void_p),
        ("workspace_bytes", c_int64), ("z_dtype", c_int32), ("reverse", c_int32), ("spin_limit", c_int32),
        ("reuse_weights", c_int32),
    ]


class Backward(ctypes.Structure):
    """LstmfastCudaBackward."""

    _fields_ = [
        ("time_steps", c_int64), ("recurrent_kernel", c_void_p), ("recurrent_kernel_stride", c_int64),
        ("c0", c_void_p), ("gates", c_void_p), ("cells", c_void_p), ("lengths", c_void_p), ("resets", c_void_p),
        ("d_h", c_void_p), ("d_h_n", c_void_p), ("d_c_n", c_void_p), ("d_z", c_void_p), ("d_h0", c_void_p),
        ("d_c0", c_void_p), ("workspace", c_void_p), ("workspace_bytes", c_int64), ("reverse", c_int32),
        ("spin_limit", c_int32),
    ]


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "abi_version": (c_int, []),
    "runtime_version": (c_int, []),
    "is_emulated": (c_int, []),
    "error_string": (c_char_p, [c_int]),
    "device_count": (c_int, [POINTER(c_int)]),
    "device_properties": (c_int, [c_int, POINTER(Device)]),
    "set_device": (c_int, [c_int]),
    "plan": (c_int, [POINTER(Device), c_int64, c_int64, c_int32, c_int32, POINTER(Plan)]),
    "plan_path": (c_int, [POINTER(Device), c_int64, c_int64, c_int32, c_int32, c_int32, POINTER(Plan)]),
    "workspace_bytes": (c_int64, [POINTER(Plan), c_int64, c_int32]),
    "forward": (c_int, [POINTER(Plan), POINTER(Forward), c_void_p]),
    "backward": (c_int, [POINTER(Plan), POINTER(Backward), c_void_p]),
}


class Library:
    """The functions of one shared library, with errors as Python exceptions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            loaded = ctypes.CDLL(str(path))
        except OSError as error:
            raise CudaUnavailableError(f"{path.name} is there but cannot be loaded: {error}") from None
        self._functions: dict[str, Any] = {}
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, f"lstmfast_cuda_{name}")
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function
        if (version := self._functions["abi_version"]()) != ABI_VERSION:
            raise CudaUnavailableError(f"{path} has ABI version {version}, but this package needs {ABI_VERSION}")
        self.is_emulated = bool(self._functions["is_emulated"]())
        self._plans = functools.lru_cache(maxsize=1024)(self._make_plan)
        self._devices = functools.lru_cache(maxsize=64)(self._ask_device)

    def device_count(self) -> tuple[int, str]:
        """The number of devices and, if 0, the reason."""
        count = c_int(0)
        status = self._functions["device_count"](ctypes.byref(count))
        if status == _INSUFFICIENT_DRIVER:  # also what the runtime returns without any driver
            major, minor = divmod(int(self._functions["runtime_version"]()) // 10, 100)
            return 0, f"there is no NVIDIA driver, or one too old for CUDA {major}.{minor}"
        return count.value, self.words_of(status) if status else ""

    def device(self, number: int) -> Device:
        """The properties of a device."""
        return self._devices(number)

    def plan(self, device: int, hidden_size: int, batch: int, dtype: str, training: bool, path: int = 0) -> Plan:
        """How a sequence of this shape runs; `path` forces one of PATHS. Raises ValueError if no kernel takes it."""
        return self._plans(device, hidden_size, batch, dtype, training, path)

    def workspace_bytes(self, plan: Plan, time_steps: int, *, backward: bool) -> int:
        """The size of the workspace that a call needs."""
        return int(self._functions["workspace_bytes"](ctypes.byref(plan), time_steps, int(backward)))

    def forward(self, device: int, plan: Plan, arguments: Forward, stream: int) -> None:
        """Launch on a device and a stream. Raises RuntimeError if the launch is refused."""
        self._call("set_device", device)
        self._call("forward", ctypes.byref(plan), ctypes.byref(arguments), stream)

    def backward(self, device: int, plan: Plan, arguments: Backward, stream: int) -> None:
        """As `forward`."""
        self._call("set_device", device)
        self._call("backward", ctypes.byref(plan), ctypes.byref(arguments), stream)

    def words_of(self, status: int) -> str:
        """The message of an error code."""
        return str(self._functions["error_string"](status).decode(errors="replace"))

    def _call(self, name: str, *arguments: Any) -> None:
        if status := self._functions[name](*arguments):
            raise RuntimeError(f"lstmfast_cuda_{name} failed with code {status}: {self.words_of(status)}")

    def _ask_device(self, number: int) -> Device:
        properties = Device()
        self._call("device_properties", number, ctypes.byref(properties))
        return properties

    def _make_plan(self, device: int, hidden_size: int, batch: int, dtype: str, training: bool, path: int) -> Plan:
        plan, properties = Plan(), ctypes.byref(self.device(device))
        shape = (hidden_size, batch, DTYPES[dtype], int(training))
        if path:
            status = self._functions["plan_path"](properties, *shape, path, ctypes.byref(plan))
        else:
            status = self._functions["plan"](properties, *shape, ctypes.byref(plan))
        if status:
            way = f" by the path {PATHS[path]}" if path else ""
            raise ValueError(
                f"no CUDA kernel runs hidden_size {hidden_size}, batch {batch}, {dtype}{way} on "
                f"{self.device(device).name.decode()}: {self.words_of(status)}"
            )
        return plan


_lock = threading.Lock()
_loaded: Library | None = None
_path: Path | None = None  # replaces the library beside this file; see `_use`


def load() -> Library:
    """The library. Raises CudaUnavailableError with the reason if there is none. Does not check for devices."""
    global _loaded
    with _lock:
        if _loaded is None:
            path = _path or next((_FOLDER / name for name in _NAMES if (_FOLDER / name).exists()), None)
            if path is None:
                raise CudaUnavailableError(
                    "this installation has no CUDA kernels: build it with LSTMFAST_CUDA=1 pip install ."
                )
            _loaded = Library(path)
            set_emulation(_loaded.is_emulated)
        return _loaded


def require() -> Library:
    """The library, with at least one device. Raises CudaUnavailableError with the reason."""
    library = load()
    count, reason = library.device_count()
    if count == 0:
        raise CudaUnavailableError(f"no CUDA device can be used here: {reason or 'the driver reports none'}")
    return library


def _use(path: Path | None) -> None:
    """Use the library at this path from now on, None: the installed one. For tests, whose kernels run on the CPU."""
    global _loaded, _path
    with _lock:
        _loaded, _path = None, path
        set_emulation(False)
