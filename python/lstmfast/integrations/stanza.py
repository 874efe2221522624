"""stanza's LSTM with recurrent dropout: each layer in one call, where stanza steps over nn.LSTMCell row by row.

Serves `LSTMwRecDropout`, of which `PackedLSTM` and the layers of `HighwayLSTM` are made where `rec_dropout` is not 0.
Parameters and state_dict stay stanza's. What the kernels do not serve runs stanza's own loop.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstmfast.cells import Cell
from lstmfast.integrations.expected import check_method
from lstmfast.torch import arguments, convert, paths, regularised, revert
from lstmfast.torch.calls import CallOptions, Variant, Weights
from lstmfast.torch.memory import PLAIN

_PARTS = ("cells", "drop", "rec_drop", "dropout", "num_layers", "num_directions", "hidden_size")


def accelerate(model: Any) -> int:
    """Serve every LSTMwRecDropout of a model, or of a trainer's `model`; return how many there are.

    In training h has one mask per row, layer and call, as in stanza, drawn from torch's generator in another order.
    Other LSTMs of the model are converted too. Undone by `restore`.
    Raises RuntimeError, and changes nothing, if there is no LSTMwRecDropout, if one is accelerated already, or if this
    version of stanza has another one.
    """
    module = _module_of(model)
    found = _parts_of(module)
    if not found:
        raise RuntimeError(f"stanza.accelerate: there is no LSTMwRecDropout of stanza in this {type(module).__name__}")
    for part in found:
        if "forward" in part.__dict__:
            raise RuntimeError("stanza.accelerate: this model is accelerated already, or has a `forward` set on it")
        check_method("stanza.accelerate", type(part), "forward", ("input", "hx"), "stanza")
        if lacking := [name for name in _PARTS if not hasattr(part, name)]:
            raise RuntimeError(f"stanza.accelerate: this LSTMwRecDropout has no {', '.join(lacking)}")
    convert(module)
    for part in found:
        part.forward = functools.partial(_forward, part)
    return len(found)


def restore(model: Any) -> None:
    """Undo `accelerate`. Raises RuntimeError if no LSTMwRecDropout in it is accelerated."""
    module = _module_of(model)
    found = [part for part in _parts_of(module) if getattr(part.__dict__.get("forward"), "func", None) is _forward]
    if not found:
        raise RuntimeError("stanza.restore: this model is not accelerated")
    for part in found:
        del part.forward
    revert(module)


def _module_of(model: Any) -> nn.Module:
    module = model if isinstance(model, nn.Module) else getattr(model, "model", model)
    if not isinstance(module, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or a trainer that has one, got {type(model).__name__}")
    return module


def _parts_of(module: nn.Module) -> list[Any]:
    theirs = sys.modules.get("stanza.models.common.packed_lstm")  # imported, or there is none of its modules
    return [] if theirs is None else [part for part in module.modules() if isinstance(part, theirs.LSTMwRecDropout)]


def _forward(module: Any, input: PackedSequence, hx: Any = None) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
    """In place of `LSTMwRecDropout.forward`, with its arguments and results: rows stay in the order of the packing."""
    rate = float(module.rec_drop.p) if module.rec_drop.training else 0.0
    if not _is_served(module, input, hx, rate):
        return type(module).forward(module, input, hx)  # type: ignore[no-any-return]
    x, lengths = pad_packed_sequence(PackedSequence(input.data, input.batch_sizes))
    cell = Cell(forget_bias=0.0, recurrent_dropout=rate) if rate else PLAIN
    seed = regularised.drawn_seed() if rate else 0
    h_n, c_n = [], []
    for layer in range(module.num_layers):
        if layer and module.dropout > 0:
            packed = pack_padded_sequence(x, lengths)
            x, _ = pad_packed_sequence(PackedSequence(module.drop(packed.data), packed.batch_sizes))
        outputs = []
        for direction in range(module.num_directions):
            k = layer * module.num_directions + direction
            own = module.cells[k]
            weights = Weights(own.weight_ih, own.weight_hh, own.bias_ih, own.bias_hh, None)
            h0, c0 = (None, None) if hx is None else (hx[0][k], hx[1][k])
            options = CallOptions(lengths, None, direction == 1, arguments.precision_of(None))
            variant = Variant(cell, noise=(seed, k, 0) if rate else None)
            h, last_h, last_c, _ = regularised.run_layer("kernels", x, h0, c0, weights, options, variant)
            outputs.append(h)
            h_n.append(last_h)
            c_n.append(last_c)
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
    output = pack_padded_sequence(x, lengths)
    return PackedSequence(output.data, input.batch_sizes), (torch.stack(h_n), torch.stack(c_n))


def _is_served(module: Any, input: PackedSequence, hx: Any, rate: float) -> bool:
    """Whether the kernels compute what stanza's loop would: plain cells without hooks, of one dtype, on the CPU."""
    if paths.is_transformed() or not 0.0 <= rate < 1.0 or (hx is not None and len(hx) != 2):
        return False
    for cell in module.cells:
        if type(cell) is not nn.LSTMCell or cell._forward_hooks or cell._forward_pre_hooks or cell._backward_hooks:
            return False
    tensors = (input.data, *(hx or ()), *module.cells.parameters())
    if any(not isinstance(each, Tensor) or each.dtype not in arguments.COMPUTED for each in tensors):
        return False
    if len({each.dtype for each in tensors}) > 1:
        return False
    return paths.choose(module.cells[0], tensors, is_ours=True, wants_cells=False).name == "kernels"
