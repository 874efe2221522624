"""Weights between lstmfast and everyone else: one object, and tested ways from and to every other layout.

`LSTMWeights` holds the weights of a stack in our order; `from_arrays` and `to_arrays` read and write dicts of named
arrays in any of `LAYOUTS`; `convert` does both. `load` and `read` take them out of files. Only names, shapes and orders
live here: nothing computes an LSTM, and no framework is imported but to read its own files.
"""

from lstmfast.layouts.converters import LayoutArrays, convert, from_arrays, reorder, to_arrays
from lstmfast.layouts.finder import FoundLSTM
from lstmfast.layouts.readers import Contents, load, read
from lstmfast.layouts.table import LAYOUTS, Layout, Variable, gate_order, layout
from lstmfast.layouts.weights import CellWeights, LSTMWeights

__all__ = [
    "LAYOUTS",
    "CellWeights",
    "Contents",
    "FoundLSTM",
    "LSTMWeights",
    "Layout",
    "LayoutArrays",
    "Variable",
    "convert",
    "from_arrays",
    "gate_order",
    "layout",
    "load",
    "read",
    "reorder",
    "to_arrays",
]
