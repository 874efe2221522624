"""Products of rounded factors in NumPy: what csrc/cpu/dot_kernels.h says, bit for bit. No claims here."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

WORDS_OF_PIECE = 128
SMALLEST = np.float32(2.0**-100)


class Format(NamedTuple):
    """Elements in a word of 32 bits, and the largest numbers of a left and a right factor."""

    elements: int
    largest_left: int
    largest_right: int


FORMATS = {"int16": Format(2, 2047, 4095), "int8": Format(4, 127, 127)}


def rounded(values: Array, largest: int, axis: int) -> tuple[Array, Array]:
    """Whole numbers and the float32 scales that they are multiples of, one for each row (axis 1) or column (axis 0)."""
    size = np.abs(values).max(axis, keepdims=True, initial=np.float32(0))
    is_zero = size < SMALLEST
    safe = np.where(is_zero, np.float32(1), size)
    scales = np.where(is_zero, np.float32(0), safe / np.float32(largest))
    inverse = np.where(is_zero, np.float32(0), np.float32(largest) / safe)
    return np.rint(values * inverse).astype(np.int64), scales


def product(x: Array, kernel: Array, z: Array, name: str) -> Array:
    """z + x @ kernel in float32 [rows, columns], of rounded factors."""
    form = FORMATS[name]
    left, row_scales = rounded(x, form.largest_left, 1)
    right, column_scales = rounded(kernel, form.largest_right, 0)
    z = np.broadcast_to(z, (len(x), kernel.shape[1]))
    for first in range(0, x.shape[1], WORDS_OF_PIECE * form.elements):
        piece = slice(first, first + WORDS_OF_PIECE * form.elements)
        z = z + (left[:, piece] @ right[piece]).astype(np.float32) * row_scales * column_scales
    return np.asarray(z)


def meant(kernel: Array, name: str) -> Array:
    """The weights that a rounded kernel stands for."""
    numbers, scales = rounded(kernel, FORMATS[name].largest_right, 0)
    return np.asarray(numbers * scales.astype(float))
