"""Arrays that lie on a GPU, whoever made them: where they are, and the few operations that their framework does for us.

Arrays are read through `__cuda_array_interface__` and, where that has no word for their dtype (bfloat16) or is missing,
through DLPack. Memory, large products and streams are the caller's framework's, PyTorch or CuPy, which is imported
already when its arrays come here: nothing imports one. Arrays of other frameworks get an error that names the way.
Refuses to compute an LSTM (see `_sequences`).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmfast.cuda import _library

DeviceArray: TypeAlias = Any
"""An array of a framework: no type is shared by all of them."""

_CPU, _CUDA, _CUDA_MANAGED = 1, 2, 13  # DLDeviceType
_NO_SYNCHRONIZATION = -1  # the stream that tells DLPack to order nothing: we launch on the framework's own


# --- where an array lies ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Place:
    """An array's memory: address, shape, strides in elements, dtype by name, number of the device. Keeps it alive."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: int
    owner: Any

    @property
    def is_contiguous(self) -> bool:
        """Whether elements lie one after the other, the last axis first."""
        return all(
            size == 1 or given == wanted
            for size, given, wanted in zip(self.shape, self.strides, _contiguous(self.shape), strict=True)
        )


class _DLDevice(ctypes.Structure):
    _fields_ = [("type", c_int32), ("number", c_int32)]


class _DLDataType(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p), ("device", _DLDevice), ("axes", c_int32), ("dtype", _DLDataType),
        ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)), ("byte_offset", c_uint64),
    ]  # fmt: skip


_DL_DTYPES = {
    (0, 32): "int32", (0, 64): "int64", (1, 8): "uint8", (2, 16): "float16", (2, 32): "float32", (2, 64): "float64",
    (4, 16): "bfloat16", (6, 8): "bool",
}  # fmt: skip

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = c_void_p, [ctypes.py_object, c_char_p]


def is_device_array(value: Any) -> bool:
    """Tell an array that lies on a GPU. Where the loaded library runs on the CPU, other frameworks' host arrays do."""
    if isinstance(value, np.ndarray):
        return False
    where = getattr(value, "__dlpack_device__", None)
    if where is None:
        return hasattr(value, "__cuda_array_interface__")
    kind = int(where()[0])
    return kind in (_CUDA, _CUDA_MANAGED) or (kind == _CPU and _host_plays_device())


def place_of(array: DeviceArray) -> Place:
    """Where an array lies. Raises TypeError for one that says so in no way that is known here."""
    try:
        interface = getattr(array, "__cuda_array_interface__", None)
    except (RuntimeError, TypeError, ValueError):  # PyTorch has no typestr for bfloat16 and raises
        interface = None
    if interface is not None:
        dtype = np.dtype(interface["typestr"])
        shape = tuple(interface["shape"])
        given = interface.get("strides")
        strides = _contiguous(shape) if given is None else tuple(step // dtype.itemsize for step in given)
        number = int(array.__dlpack_device__()[1]) if hasattr(array, "__dlpack_device__") else 0
        return Place(interface["data"][0] or 0, shape, strides, dtype.name, number, array)
    if not hasattr(array, "__dlpack__"):
        raise TypeError(f"{type(array).__name__} has neither __cuda_array_interface__ nor __dlpack__")
    on_gpu = int(array.__dlpack_device__()[0]) != _CPU
    capsule = array.__dlpack__(stream=_NO_SYNCHRONIZATION) if on_gpu else array.__dlpack__()
    # The capsule is never consumed: it lives as long as the Place does, and then gives the memory back itself.
    tensor = ctypes.cast(_capsule_pointer(capsule, b"dltensor"), POINTER(_DLTensor)).contents
    kind = (tensor.dtype.code, tensor.dtype.bits)
    shape = tuple(tensor.shape[k] for k in range(tensor.axes))
    strides = tuple(tensor.strides[k] for k in range(tensor.axes)) if tensor.strides else _contiguous(shape)
    address = (tensor.data or 0) + tensor.byte_offset
    return Place(address, shape, strides, _DL_DTYPES.get(kind, f"dtype {kind}"), tensor.device.number, (array, capsule))


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _host_plays_device() -> bool:
    library = _library.loaded()
    return library is not None and library.is_emulated


# --- what the framework does ------------------------------------------------------------------------------------------


class Framework(Protocol):
    """What is asked of the library that the caller's arrays belong to. dtypes are names; `like` says which device."""

    name: str

    def dtype_of(self, array: DeviceArray) -> str: ...
    def plain(self, array: DeviceArray) -> DeviceArray: ...  # without what an autograd records
    def contiguous(self, array: DeviceArray) -> DeviceArray: ...
    def cast(self, array: DeviceArray, dtype: str) -> DeviceArray: ...
    def empty(self, shape: Sequence[int], dtype: str, like: DeviceArray) -> DeviceArray: ...
    def zeros(self, shape: Sequence[int], dtype: str, like: DeviceArray) -> DeviceArray: ...
    def from_host(self, values: npt.NDArray[Any], like: DeviceArray) -> DeviceArray: ...
    def to_host(self, array: DeviceArray) -> npt.NDArray[Any]: ...  # waits; bfloat16 becomes float32
    def join(self, arrays: Sequence[DeviceArray], axis: int = 0) -> DeviceArray: ...
    def choose(self, mask: DeviceArray, where: DeviceArray) -> DeviceArray: ...  # zero where the mask is false
    def product(self, a: DeviceArray, b: DeviceArray, dtype: str) -> DeviceArray: ...  # a @ b, sums in float32
    def column_sums(self, array: DeviceArray, dtype: str) -> DeviceArray: ...  # of two axes; summed in float32
    def rows_at(self, table: DeviceArray, ids: DeviceArray) -> DeviceArray: ...
    def add_rows(self, rows: DeviceArray, ids: DeviceArray, count: int) -> DeviceArray: ...  # deterministic
    # Losses [N] of targets [N] by logits [N, V], and softmax - one-hot, the derivative of their sum.
    def cross_entropy(self, logits: DeviceArray, targets: DeviceArray) -> tuple[DeviceArray, DeviceArray]: ...
    def stream(self, like: DeviceArray) -> int: ...
    def is_capturing(self) -> bool: ...
    def on_device_of(self, like: DeviceArray) -> contextlib.AbstractContextManager[Any]: ...


class Torch:
    """PyTorch."""

    name = "torch"

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def dtype_of(self, array: DeviceArray) -> str:
        return str(array.dtype).removeprefix("torch.")

    def plain(self, array: DeviceArray) -> DeviceArray:
        return array.detach()

    def contiguous(self, array: DeviceArray) -> DeviceArray:
        return array.contiguous()

    def cast(self, array: DeviceArray, dtype: str) -> DeviceArray:
        return array.to(getattr(self._torch, dtype))

    def empty(self, shape: Sequence[int], dtype: str, like: DeviceArray) -> DeviceArray:
        return self._torch.empty(tuple(shape), dtype=getattr(self._torch, dtype), device=like.device)

    def zeros(self, shape: Sequence[int], dtype: str, like: DeviceArray) -> DeviceArray:
        return self._torch.zeros(tuple(shape), dtype=getattr(self._torch, dtype), device=like.device)

    def from_host(self, values: npt.NDArray[Any], like: DeviceArray) -> DeviceArray:
        # A copy even where the "device" is the host: what the caller does to his array later is no business of ours.
        return self._torch.from_numpy(np.array(values, order="C")).to(like.device)

    def to_host(self, array: DeviceArray) -> npt.NDArray[Any]:
        array = array.detach()
        values: npt.NDArray[Any] = (array.float() if array.dtype == self._torch.bfloat16 else array).cpu().numpy()
        return values

    def join(self, arrays: Sequence[DeviceArray], axis: int = 0) -> DeviceArray:
        return self._torch.cat(tuple(arrays), axis)

    def choose(self, mask: DeviceArray, where: DeviceArray) -> DeviceArray:
        return where.masked_fill(~mask, 0)

    def product(self, a: DeviceArray, b: DeviceArray, dtype: str) -> DeviceArray:
        wanted = getattr(self._torch, dtype)
        if a.dtype == b.dtype and a.dtype != wanted and a.is_cuda:
            with contextlib.suppress(TypeError, RuntimeError):  # before PyTorch 2.8 there is no out_dtype
                return self._torch.mm(a, b, out_dtype=wanted)
            return (a @ b).to(wanted)
        if a.dtype == b.dtype and a.is_cuda:
            return a @ b
        return (a.float() @ b.float()).to(wanted)

    def column_sums(self, array: DeviceArray, dtype: str) -> DeviceArray:
        return array.sum(0, dtype=self._torch.float32).to(getattr(self._torch, dtype))

    def rows_at(self, table: DeviceArray, ids: DeviceArray) -> DeviceArray:
        return table[ids.long()]

    def add_rows(self, rows: DeviceArray, ids: DeviceArray, count: int) -> DeviceArray:
        # index_put_ sorts its indices on CUDA and adds in a fixed order, where index_add_ takes atomics.
        sums = rows.new_zeros((count, rows.shape[1]))
        return sums.index_put_((ids.long(),), rows, accumulate=True)

    def cross_entropy(self, logits: DeviceArray, targets: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
        targets, row = targets.long(), self._torch.arange(len(targets), device=logits.device)
        log_probabilities = self._torch.log_softmax(logits, 1)
        d_logits = log_probabilities.exp()
        d_logits[row, targets] -= 1
        return -log_probabilities[row, targets], d_logits

    def stream(self, like: DeviceArray) -> int:
        return int(self._torch.cuda.current_stream(like.device).cuda_stream) if like.is_cuda else 0

    def is_capturing(self) -> bool:
        return bool(self._torch.cuda.is_available() and self._torch.cuda.is_current_stream_capturing())

    def on_device_of(self, like: DeviceArray) -> contextlib.AbstractContextManager[Any]:
        return self._torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()


class Cupy:
    """CuPy, or any module of its interface. No bfloat16: NumPy's interface has none."""

    name = "cupy"

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def dtype_of(self, array: DeviceArray) -> str:
        return str(array.dtype)

    def plain(self, array: DeviceArray) -> DeviceArray:
        return array

    def contiguous(self, array: DeviceArray) -> DeviceArray:
        return self._cupy.ascontiguousarray(array)

    def cast(self, array: DeviceArray, dtype: str) -> DeviceArray:
        return array.astype(_numpy_dtype(dtype), copy=False)

    def empty(self, shape: Sequence[int], dtype: str, like: DeviceArray) -> DeviceArray:
        return self._cupy.empty(tuple(shape), _numpy_dtype(dtype))

    def zeros(self, shape: Sequence[int], dtype: str, like: DeviceArray) -> DeviceArray:
        return self._cupy.zeros(tuple(shape), _numpy_dtype(dtype))

    def from_host(self, values: npt.NDArray[Any], like: DeviceArray) -> DeviceArray:
        return self._cupy.asarray(np.array(values, order="C"))

    def to_host(self, array: DeviceArray) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = self._cupy.asnumpy(array)
        return values

    def join(self, arrays: Sequence[DeviceArray], axis: int = 0) -> DeviceArray:
        return self._cupy.concatenate(list(arrays), axis)

    def choose(self, mask: DeviceArray, where: DeviceArray) -> DeviceArray:
        return self._cupy.where(mask, where, where.dtype.type(0))

    def product(self, a: DeviceArray, b: DeviceArray, dtype: str) -> DeviceArray:
        return a @ b

    def column_sums(self, array: DeviceArray, dtype: str) -> DeviceArray:
        return array.sum(axis=0)

    def rows_at(self, table: DeviceArray, ids: DeviceArray) -> DeviceArray:
        return table[ids]

    def add_rows(self, rows: DeviceArray, ids: DeviceArray, count: int) -> DeviceArray:
        # A product with one-hot rows: CuPy's scatter_add takes atomics, and sums would change from run to run.
        one_hot = (self._cupy.arange(count)[:, None] == ids[None, :]).astype(rows.dtype)
        return one_hot @ rows

    def cross_entropy(self, logits: DeviceArray, targets: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
        row = self._cupy.arange(len(targets))
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probabilities = shifted - self._cupy.log(self._cupy.exp(shifted).sum(axis=1, keepdims=True))
        d_logits = self._cupy.exp(log_probabilities)
        d_logits[row, targets] -= 1
        return -log_probabilities[row, targets], d_logits

    def stream(self, like: DeviceArray) -> int:
        return int(self._cupy.cuda.get_current_stream().ptr)

    def is_capturing(self) -> bool:
        return bool(self._cupy.cuda.get_current_stream().is_capturing())

    def on_device_of(self, like: DeviceArray) -> contextlib.AbstractContextManager[Any]:
        device: contextlib.AbstractContextManager[Any] = like.device
        return device


_adapters: dict[str, Callable[[Any], Framework]] = {"torch": Torch, "cupy": Cupy}
_frameworks: dict[str, Framework] = {}


def framework_of(name: str, array: DeviceArray) -> Framework:
    """The framework of an argument. Raises TypeError where it is none whose memory and products we can use."""
    module = type(array).__module__.split(".")[0]
    if module not in _frameworks:
        if module not in _adapters:
            raise TypeError(
                f"{name} must be an array of torch or cupy, got {type(array).__module__}.{type(array).__name__}; "
                f"others go there and back without a copy: torch.from_dlpack({name})"
            )
        _frameworks[module] = _adapters[module](sys.modules[module])
    return _frameworks[module]


def default_device(number: int = 0) -> tuple[Framework, DeviceArray]:
    """A framework that is installed here and can use the device, PyTorch before CuPy, and an empty array of it there.

    For those who bring no arrays of their own. Raises CudaUnavailableError with the reason where there is none,
    ValueError for a number that no device has.
    """
    library = _library.require()
    if not 0 <= number < library.device_count()[0]:
        raise ValueError(f"device must be one of 0 to {library.device_count()[0] - 1}, got {number}")
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.is_available() or library.is_emulated:
            like = torch.empty(0, device="cpu" if library.is_emulated else f"cuda:{number}")
            return framework_of("array", like), like
    with contextlib.suppress(ImportError):
        import cupy

        with cupy.cuda.Device(number):
            like = cupy.empty(0, np.float32)
        return framework_of("array", like), like
    raise _library.CudaUnavailableError(
        "a CUDA device needs torch with CUDA or cupy here, for its memory and the large products"
    )


def _numpy_dtype(name: str) -> npt.DTypeLike:
    if name == "bfloat16":
        raise TypeError("bfloat16 on a CUDA device needs torch: cupy has no such dtype")
    return np.dtype(name)


@contextlib.contextmanager
def _registered(module: str, framework: Framework) -> Iterator[None]:
    """Let arrays of this module be a framework's own. For tests."""
    _frameworks[module] = framework
    try:
        yield
    finally:
        del _frameworks[module]
