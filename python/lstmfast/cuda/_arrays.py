"""Arrays on a GPU, from any framework, and the few operations their framework performs for us.

Memory, large products and streams are the caller's framework's, PyTorch or CuPy, which is already
imported when its arrays arrive: only `default_device` imports one. JAX's arrays are immutable and JAX exposes no
stream, so whichever of the two is installed takes them through DLPack, without a copy and in stream order.
Refuses to compute an LSTM (see `_sequences`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmfast._engine.devices import host_plays_device
from lstmfast.cuda import _library

DeviceArray: TypeAlias = Any
"""A framework's array; the frameworks share no type."""

# --- what the framework does ------------------------------------------------------------------------------------------


class Framework(Protocol):
    """Operations required of the caller's framework. dtypes are names; `like` gives the device."""

    name: str
    has_bfloat16: bool

    def dtype_of(self, array: DeviceArray) -> str: ...
    def owns(self, value: Any) -> bool: ...  # an array of this framework on a GPU
    def device_number(self, array: DeviceArray) -> int: ...
    def address(self, array: DeviceArray) -> int: ...
    def from_dlpack(self, array: Any) -> DeviceArray: ...
    def plain(self, array: DeviceArray) -> DeviceArray: ...  # detached from autograd
    def contiguous(self, array: DeviceArray) -> DeviceArray: ...
    def cast(self, array: DeviceArray, dtype: str) -> DeviceArray: ...
    def empty(self, shape: Sequence[int], dtype: str, like: DeviceArray) -> DeviceArray: ...
    def zeros(self, shape: Sequence[int], dtype: str, like: DeviceArray) -> DeviceArray: ...
    def numbers_to(self, count: int, like: DeviceArray) -> DeviceArray: ...  # int32 0 to count - 1
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
    def undisturbed(self, like: DeviceArray) -> contextlib.AbstractContextManager[Any]: ...  # no autograd, no autocast


class Torch:
    """PyTorch."""

    name = "torch"
    has_bfloat16 = True

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def dtype_of(self, array: DeviceArray) -> str:
        return str(array.dtype).removeprefix("torch.")

    def owns(self, value: Any) -> bool:
        return isinstance(value, self._torch.Tensor) and (value.is_cuda or host_plays_device())

    def device_number(self, array: DeviceArray) -> int:
        return array.device.index or 0

    def address(self, array: DeviceArray) -> int:
        return int(array.data_ptr())

    def from_dlpack(self, array: Any) -> DeviceArray:
        return self._torch.from_dlpack(array)

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

    def numbers_to(self, count: int, like: DeviceArray) -> DeviceArray:
        return self._torch.arange(count, dtype=self._torch.int32, device=like.device)

    def from_host(self, values: npt.NDArray[Any], like: DeviceArray) -> DeviceArray:
        # A copy even if the "device" is the host: the caller may change its array later.
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
        # index_put_ sorts its indices on CUDA and adds in a fixed order, while index_add_ uses atomics.
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

    @contextlib.contextmanager
    def undisturbed(self, like: DeviceArray) -> Iterator[None]:
        with self._torch.no_grad(), self._torch.autocast(like.device.type, enabled=False), self.on_device_of(like):
            yield


class Cupy:
    """CuPy, or any module of its interface. No bfloat16: NumPy's interface has none."""

    name = "cupy"
    has_bfloat16 = False

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._module = framework_module(cupy.empty(0))

    def dtype_of(self, array: DeviceArray) -> str:
        return str(array.dtype)

    def owns(self, value: Any) -> bool:
        return framework_module(value) in ("cupy", self._module) and hasattr(value, "__cuda_array_interface__")

    def device_number(self, array: DeviceArray) -> int:
        return int(array.device.id)

    def address(self, array: DeviceArray) -> int:
        return int(array.__cuda_array_interface__["data"][0] or 0)

    def from_dlpack(self, array: Any) -> DeviceArray:
        return self._cupy.from_dlpack(array)

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

    def numbers_to(self, count: int, like: DeviceArray) -> DeviceArray:
        return self._cupy.arange(count, dtype=np.int32)

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
        # A product with one-hot rows: CuPy's scatter_add uses atomics, so sums would vary between runs.
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

    def undisturbed(self, like: DeviceArray) -> contextlib.AbstractContextManager[Any]:
        return self.on_device_of(like)


_adapters: dict[str, Callable[[Any], Framework]] = {"torch": Torch, "cupy": Cupy}
_frameworks: dict[str, Framework] = {}


def framework_module(value: Any) -> str:
    """The name of the library that a value's type comes from."""
    return type(value).__module__.split(".")[0]


def framework_of(name: str, array: DeviceArray) -> Framework:
    """The framework of an argument. Raises TypeError if it is not supported."""
    module = framework_module(array)
    if module not in _frameworks:
        if module not in _adapters:
            raise TypeError(
                f"{name} must be an array of torch, cupy or jax, got {type(array).__module__}.{type(array).__name__}; "
                f"convert others without a copy: torch.from_dlpack({name})"
            )
        _frameworks[module] = _adapters[module](sys.modules[module])
    return _frameworks[module]


class JaxBridge:
    """Converts JAX's arrays to another framework's and back."""

    def __init__(self, array: Any) -> None:
        self._framework, _ = default_device(int(array.__dlpack_device__()[1]))

    @staticmethod
    def serves(value: Any) -> bool:
        """Whether value is a JAX array."""
        return framework_module(value) in ("jax", "jaxlib")

    def take(self, value: Any) -> Any:
        """A JAX array as the framework's; anything else unchanged."""
        return self._framework.from_dlpack(value) if self.serves(value) else value

    def give_back(self, value: DeviceArray | None) -> Any:
        """The framework's array as a JAX array."""
        return None if value is None else sys.modules["jax"].dlpack.from_dlpack(self._framework.contiguous(value))


def default_device(number: int = 0) -> tuple[Framework, DeviceArray]:
    """An installed framework that can use the device, PyTorch before CuPy, and an empty array of it on that device.

    For callers without arrays of their own. Raises CudaUnavailableError with the reason if there is none, ValueError if
    no device has this number.
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
    """Let `framework` own arrays of this module. For tests."""
    _frameworks[module] = framework
    try:
        yield
    finally:
        del _frameworks[module]
