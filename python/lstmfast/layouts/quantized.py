"""Weights of LSTMs that torch.ao quantized dynamically, as float32.

These modules pack their weights into objects that only torch can open, so the module itself is needed: their state_dict
and files of it hold nothing that can be read without it. Imports no framework: a module is asked for its own weights.
Refuses statically quantized modules, which also round what is inside a step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lstmfast._checks import Array
from lstmfast.layouts.converters import from_arrays
from lstmfast.layouts.weights import LSTMWeights

_MODULES = ".nn.quantized.dynamic."
_NAMES = ("LSTM", "LSTMCell")


def is_quantized_lstm(module: Any) -> bool:
    """Whether this is an LSTM or LSTMCell of torch.ao.nn.quantized.dynamic, or of a subclass."""
    return any(_MODULES in f"{cls.__module__}." and cls.__name__ in _NAMES for cls in type(module).__mro__)


def from_quantized(module: Any) -> LSTMWeights:
    """`LSTMWeights` of a torch.ao.nn.quantized.dynamic.LSTM or LSTMCell, dequantized to float32 and copied.

    module: as torch.ao.quantization.quantize_dynamic makes it, with dtype qint8 or float16. torch.ao also rounds the
    inputs and states of qint8 modules to integers at run time, which an LSTM here does not. Raises TypeError for
    anything else, naming what to pass.
    """
    if not is_quantized_lstm(module):
        raise TypeError(
            "module must be an LSTM or LSTMCell of torch.ao.nn.quantized.dynamic (of a float module pass the arrays "
            "of its state_dict to layouts.from_arrays; the state_dict of a quantized one is packed: load it into the "
            f"module and pass that), got {type(module).__module__}.{type(module).__qualname__}"
        )
    arrays = {name: _floats(tensor) for name, tensor in {**module.get_weight(), **module.get_bias()}.items()}
    weights = from_arrays(arrays, "pytorch")
    notes = [
        "The weights were dequantized to float32; torch.ao also rounds inputs and states of int8 modules to integers, "
        "which an LSTM here does not."
    ]
    if getattr(module, "batch_first", False):
        notes.append("The module has batch_first=True: a layer of it needs batch_first=True.")
    return replace(weights, assumptions=(*weights.assumptions, *notes))


def _floats(tensor: Any) -> Array:
    tensor = tensor.detach()
    array: Array = (tensor.dequantize() if tensor.is_quantized else tensor).float().numpy()
    return array
