"""Argument checks of the public functions, with errors in the user's words.

Every check returns the value in the form the extension takes, or raises an error that names the argument, what was
wanted and what came. Refuses to compute, and to convert: float32 stays float32 and float64 stays float64. An array is
copied only if its last axis is not contiguous. The extension checks its arguments again.
Masked arrays are always refused: nothing here reads a mask, and masked values are not valid numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
State: TypeAlias = tuple[Array, Array]
Size: TypeAlias = int | str  # a string stands for any size and is its name in the error

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_BYTE, _ULONGLONG = np.dtype(np.byte).num, np.dtype(np.ulonglong).num  # the range of the integer types
_MaskedArray, _Matrix = np.ma.MaskedArray, np.matrix  # looked up once: a lookup would slow down single steps
MATMUL_PRECISIONS = ("highest", "high", "medium")
WEIGHTS = ("float32", "bfloat16", "int8")
LARGEST_INT8_WEIGHT = 2.0**48  # as in csrc/cpu/dot_kernels.h


def whole_number(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an int of at least `minimum`."""
    unmasked(name, value)
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def finite(name: str, value: Any, minimum: float = -math.inf) -> float:
    """Return `value` as a finite float of at least `minimum`."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum:g}, got {number:g}")
    return number


def cell_clip(value: Any) -> float | None:
    """Return `value` as a float above 0, or None for no clip."""
    if value is None:
        return None
    return positive("cell_clip", value)


def fraction(name: str, value: Any) -> float:
    """Return `value` as a float in [0, 1)."""
    number = finite(name, value)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} must lie in [0, 1), got {number:g}")
    return number


def positive(name: str, value: Any) -> float:
    """Return `value` as a finite float above 0."""
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be above 0, got {number:g}")
    return number


def one_of(name: str, value: Any, words: tuple[str, ...]) -> Any:
    """Return `value`, one of these words."""
    if value not in words:
        raise ValueError(f"{name} must be {' or '.join(map(repr, words))}, got {value!r}")
    return value


def seed(value: Any) -> int:
    """Return the seed of a training call, a whole number below 2^64."""
    number = whole_number("seed", value, 0)
    if number >= 2**64:
        raise ValueError(f"seed must be below 2**64, got {number}")
    return number


def float_dtype(value: Any) -> np.dtype[Any]:
    """Return the dtype `value` names: float32 or float64."""
    for dtype in (FLOAT32, FLOAT64):
        if value is not None and dtype == value:
            return dtype
    raise TypeError(f"dtype must be float32 or float64, got {value!r}")


def matmul_precision(value: Any) -> str:
    """Return `value` if it is one of MATMUL_PRECISIONS."""
    if value not in MATMUL_PRECISIONS:
        raise ValueError(f"matmul_precision must be one of {', '.join(MATMUL_PRECISIONS)}, got {value!r}")
    return str(value)


def kept_weights(value: Any, dtype: np.dtype[Any]) -> str:
    """Return `value` if it is one of WEIGHTS and a layer of this dtype supports it."""
    if value not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {value!r}")
    if value != "float32" and dtype != FLOAT32:
        raise ValueError(f"weights must be float32, which leaves them as they are, for a {dtype} layer, got {value!r}")
    return str(value)


def int8_weights(parameters: Mapping[str, Array]) -> None:
    """Raise unless all kernels can be rounded to int8: finite, and not too large for float32 sums of products."""
    for name, values in parameters.items():
        if name.endswith("kernel"):
            int8_kernel(name, values)


def int8_kernel(name: str, values: Array) -> None:
    """Raise unless this kernel can be rounded to int8."""
    if not (np.abs(values) <= LARGEST_INT8_WEIGHT).all():
        raise ValueError(f"{name} must be finite, and at most {LARGEST_INT8_WEIGHT:.1e}, to be kept as int8")


def generator(name: str, value: Any) -> np.random.Generator:
    """Return `value` if it is a numpy.random.Generator."""
    if not isinstance(value, np.random.Generator):
        raise TypeError(
            f"{name} must be a numpy.random.Generator, such as numpy.random.default_rng(0), got {type(value).__name__}"
        )
    return value


def ndarray(name: str, value: Any, kind: str) -> None:
    """Raise TypeError unless `value` is a NumPy array without a mask."""
    if type(value) is np.ndarray:
        return
    if not isinstance(value, np.ndarray):
        way = next((f"; use .{way}()" for way in ("to_numpy", "numpy", "toarray") if hasattr(value, way)), "")
        raise TypeError(f"{name} must be a NumPy array of {kind}, got {type(value).__name__}{way}")
    unmasked(name, value)


def unmasked(name: str, value: Any) -> None:
    """Raise TypeError for a masked array, even if no value is masked."""
    if isinstance(value, _MaskedArray):
        raise TypeError(
            f"{name} must be an array without a mask, got a masked array with {value.size - int(value.count())} of "
            f"{value.size} values masked; fill it, e.g. with .filled(0), and give lengths where sequences end early"
        )


def is_ready(value: Any, axes: int, size: int, dtype: np.dtype[Any]) -> bool:
    """Whether `value` needs no check or copy: `axes` axes, the last of this size, this dtype, C-contiguous.

    For calls so short that the time of `array` matters. A False result means only that the full check is needed.
    """
    if type(value) is not np.ndarray or value.dtype is not dtype or not value.flags.carray:
        return False
    shape = value.shape
    return len(shape) == axes and shape[-1] == size


def array(
    name: str,
    value: Any,
    shape: tuple[Size, ...],
    meaning: str = "",
    *,
    dtype: np.dtype[Any] | None = None,
    like: str = "",
) -> Array:
    """Return a float array of this shape and dtype, its last axis contiguous. `like` names the dtype's source."""
    if type(value) is not np.ndarray:
        ndarray(name, value, "float32 or float64")
        value = _without_matrix(value)
    given = value.dtype
    if given is not dtype:  # usually identical: NumPy has one object for each of these dtypes
        if given != FLOAT32 and given != FLOAT64:
            raise TypeError(f"{name} must be a float32 or float64 array, got {given}")
        if dtype is not None and given != dtype:
            raise TypeError(
                f"{name} must be {dtype} like {like}, got {given}; nothing is converted silently, use .astype"
            )
    has_shape(name, value, shape, meaning)
    return _unit_stride(value)


def sequence(name: str, value: Any, features: tuple[Size, ...]) -> Array:
    """Return a float array [time_steps, batch, *features], given as that or without batch: one sequence."""
    ndarray(name, value, "float32 or float64")
    wanted = ", ".join(map(str, features))
    given = value.shape
    value = value[:, None] if value.ndim == len(features) + 1 else value
    try:
        return array(name, value, ("time_steps", "batch", *features))
    except ValueError:
        raise ValueError(
            f"{name} must have shape (time_steps, batch, {wanted}), or (time_steps, {wanted}) for one sequence, "
            f"got {given}"
        ) from None


def has_shape(name: str, value: Array, shape: tuple[Size, ...], meaning: str = "") -> None:
    """Raise ValueError unless `value` has this shape; `meaning` names its sizes in words."""
    given = value.shape
    if given == shape:
        return
    if len(given) == len(shape):
        for size, wanted_size in zip(given, shape, strict=True):
            if size != wanted_size and not isinstance(wanted_size, str):
                break
        else:
            return
    wanted = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
    raise ValueError(f"{name} must have shape {wanted}{f' = {meaning}' if meaning else ''}, got {given}")


def ids(name: str, value: Any, vocabulary_size: int, shape: tuple[Size, ...], meaning: str = "") -> Array:
    """Return token ids as a C-contiguous int32 array; the error names the first invalid id and its position."""
    ndarray(name, value, "integer ids")
    value = _without_matrix(value)
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integer ids, got {value.dtype}")
    has_shape(name, value, shape, meaning)
    value = np.ascontiguousarray(value)
    # As unsigned numbers, negative ids are the largest, so one pass over int32 ids finds those outside either end.
    seen = value.view(np.uint32) if value.dtype == np.int32 else value
    if value.size and (seen.max() >= vocabulary_size or (value is seen and value.min() < 0)):
        bad, position = _first(value, (value < 0) | (value >= vocabulary_size))
        raise ValueError(
            f"{name} must hold ids from 0 to {vocabulary_size - 1} (a vocabulary of {vocabulary_size}), "
            f"got {bad} at position {position}"
        )
    return np.asarray(value, np.int32)


def is_ids(value: Any) -> bool:
    """Whether `value` is token ids and not dense input: an array of any integer dtype."""
    return isinstance(value, np.ndarray) and _BYTE <= value.dtype.num <= _ULONGLONG


def lengths(value: Any, time_steps: int, batch: int) -> Array | None:
    """Return lengths [batch] as int64, each from 0 to `time_steps`, or None."""
    if value is None:
        return None
    unmasked("lengths", value)
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, got {numbers.dtype}")
    has_shape("lengths", numbers, (batch,), "(batch,)")
    outside = (numbers < 0) | (numbers > time_steps)
    if outside.any():
        bad, position = _first(numbers, outside)
        raise ValueError(f"lengths must lie between 0 and {time_steps} = time_steps, got {bad} at position {position}")
    return np.ascontiguousarray(numbers, np.int64)


def resets(value: Any, shape: tuple[int, int], meaning: str) -> Array | None:
    """Return resets as a bool array whose last axis has unit stride, or None."""
    if value is None:
        return None
    unmasked("resets", value)
    flags = np.asarray(value)
    if flags.dtype != np.bool_:
        raise TypeError(f"resets must be a bool array, got {flags.dtype}")
    has_shape("resets", flags, shape, meaning)
    return _unit_stride(flags)


def state(
    name: str, value: Any, shapes: tuple[tuple[int, int, int], tuple[int, int, int]], dtype: np.dtype[Any], like: str
) -> tuple[Array | None, Array | None]:
    """Return the pair (h, c) of a layer stack, of these shapes; (None, None) for None."""
    if value is None:
        return None, None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair of arrays (h, c), got {type(value).__name__}")
    h, c = (
        array(f"{name}[{k}]", part, shape, f"(num_layers*num_directions, batch, {last})", dtype=dtype, like=like)
        for k, (part, shape, last) in enumerate(zip(value, shapes, _state_sizes(*shapes), strict=True))
    )
    return h, c


def _state_sizes(h: tuple[int, ...], c: tuple[int, ...]) -> tuple[str, str]:
    """Names of the last axes of h and c."""
    return "hidden_size" if h == c else "projection_size", "hidden_size"


def buffer(name: str, value: Any, size: int | None = None, dtype: np.dtype[Any] | None = None, like: str = "") -> Array:
    """Return a writable contiguous 1-D float array, to be updated in place; never a copy."""
    values: Array = array(name, value, ("count" if size is None else size,), dtype=dtype, like=like)
    copied = values is not value
    if copied or not values.flags.writeable:
        raise ValueError(f"{name} must be a writable contiguous 1-D array, because it is updated in place")
    return values


def _without_matrix(value: Array) -> Array:
    """Return a numpy.matrix as a plain array: every index into a matrix gives two axes."""
    return np.asarray(value) if isinstance(value, _Matrix) else value


def _unit_stride(value: Array) -> Array:
    flags = value.flags
    ready = flags.carray or (value.strides[-1] == value.itemsize and flags.aligned)
    return value if ready else value.copy()


def _first(value: Array, marked: Array) -> tuple[Any, list[int]]:
    position = np.unravel_index(int(marked.argmax()), value.shape)
    return value[position], [int(p) for p in position]
