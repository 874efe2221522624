"""Weights of other libraries: one object for a stack of LSTMs, and tested conversions between it and every layout.

`LSTMWeights` holds the weights of a stack in our order; `from_arrays` and `to_arrays` read and write dicts of named
arrays in any of `LAYOUTS`; `convert` does both. `load` and `read` read files. Refuses to compute an LSTM, and imports a
framework only to read its own files.
"""

import warnings
from typing import TYPE_CHECKING, Any

from lstmfast.layouts.converters import LayoutArrays, convert, from_arrays, reorder, to_arrays
from lstmfast.layouts.finder import FoundLSTM
from lstmfast.layouts.quantized import from_quantized
from lstmfast.layouts.readers import Contents, load, read
from lstmfast.layouts.table import LAYOUTS, Layout, LayoutArray, gate_order, layout
from lstmfast.layouts.weights import CellWeights, LSTMWeights

__all__ = [
    "LAYOUTS",
    "CellWeights",
    "Contents",
    "FoundLSTM",
    "LSTMWeights",
    "Layout",
    "LayoutArrays",
    "LayoutArray",
    "convert",
    "from_arrays",
    "from_quantized",
    "gate_order",
    "layout",
    "load",
    "read",
    "reorder",
    "to_arrays",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The deprecated name `Variable` of `LayoutArray`."""
        if name != "Variable":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        warnings.warn("layouts.Variable is now called layouts.LayoutArray", DeprecationWarning, stacklevel=2)
        return LayoutArray
