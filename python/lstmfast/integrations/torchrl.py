"""torchrl's LSTMModule: all trajectories of a batch in one call, with their lengths.

In recurrent mode torchrl's "pad" back end cuts the whole tensordict into padded trajectories wherever `is_init` is set,
and "scan" runs step by step. Here only what the LSTM reads is cut, and the kernels run the useful steps. Single steps
of a collector stay torchrl's code, served by `convert`.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor

from lstmfast.integrations.expected import check_method
from lstmfast.torch import convert, revert, serving
from lstmfast.torch.paths import is_under_func

_PARAMETERS = ("input", "batch", "steps", "device", "dtype", "hidden0_in", "hidden1_in", "splits", "is_init", "backend")
_PAD_PARAMETERS = ("input", "hidden0_in", "hidden1_in", "is_init")
_BACKEND = "_lstmfast_backend"  # in an accelerated module: what `recurrent_backend` was


def accelerate(module: Any) -> int:
    """Serve every LSTMModule in a module, or that module; return how many there are.

    Outputs, states at the ends of trajectories and gradients are as with torchrl's own back ends. `restore` undoes it.
    Raises RuntimeError, and changes nothing, if there is no LSTMModule, if one does not hold a torch.nn.LSTM or is
    accelerated already, or if this version of torchrl has other methods.
    """
    found = _modules_of(module)
    if not found:
        raise RuntimeError(f"torchrl.accelerate: there is no LSTMModule of torchrl in this {type(module).__name__}")
    for part in found:
        if _BACKEND in part.__dict__:
            raise RuntimeError("torchrl.accelerate: this module is accelerated already")
        check_method("torchrl.accelerate", type(part), "_lstm", _PARAMETERS, "torchrl")
        check_method("torchrl.accelerate", type(part), "_lstm_pad_with_resets", _PAD_PARAMETERS, "torchrl")
        if not isinstance(part.lstm, torch.nn.LSTM):
            raise RuntimeError(
                f"torchrl.accelerate: this LSTMModule holds a {type(part.lstm).__name__} in Python; call its "
                "make_cudnn_based() first"
            )
        if part.recurrent_backend == "triton":
            raise RuntimeError("torchrl.accelerate: recurrent_backend='triton' is for GPUs; use 'pad' on a CPU")
    convert(torch.nn.ModuleList(part.lstm for part in found))
    for part in found:
        part.__dict__[_BACKEND] = part.recurrent_backend
        part.recurrent_backend = "scan"  # which hands `is_init` to _lstm and cuts nothing before
        part._lstm = functools.partial(_lstm, part)
    return len(found)


def restore(module: Any) -> None:
    """Undo `accelerate`. Raises RuntimeError if no LSTMModule in it is accelerated."""
    found = [part for part in _modules_of(module) if _BACKEND in part.__dict__]
    if not found:
        raise RuntimeError("torchrl.restore: this module is not accelerated")
    for part in found:
        part.recurrent_backend = part.__dict__.pop(_BACKEND)
        del part._lstm
        revert(part.lstm)


def _modules_of(module: Any) -> list[Any]:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    theirs = sys.modules.get("torchrl.modules")  # it is imported, or there is none of its modules
    return [] if theirs is None else [part for part in module.modules() if isinstance(part, theirs.LSTMModule)]


def _lstm(
    module: Any,
    input: Tensor,
    batch: int,
    steps: int,
    device: Any,
    dtype: torch.dtype,
    hidden0_in: Tensor | None = None,
    hidden1_in: Tensor | None = None,
    splits: Tensor | None = None,
    is_init: Tensor | None = None,
    backend: str = "pad",
) -> Any:
    """In place of `LSTMModule._lstm`, with its arguments and results.

    Shapes: input [batch, steps, input_size]; is_init [batch, steps]; states [batch, steps, layers, size], read at the
    first step of each trajectory and returned at the last one, zero elsewhere.
    """
    lstm, theirs = module.lstm, type(module)
    if is_init is None or torch.compiler.is_compiling() or is_under_func() or input.numel() == 0:
        states = hidden0_in, hidden1_in
        return theirs._lstm(module, input, batch, steps, device, dtype, *states, splits, is_init, backend)
    begins = is_init.clone()
    begins[:, 0] = True  # a row begins a trajectory, in the state that it has there
    starts = begins.flatten().nonzero().squeeze(1)
    hx = None
    if hidden0_in is not None and hidden1_in is not None:
        h0, c0 = (states.flatten(0, 1)[starts].transpose(0, 1).contiguous() for states in (hidden0_in, hidden1_in))
        hx = h0, c0
    if (hidden0_in is None) is not (hidden1_in is None) or not serving.takes_resets(lstm, input, hx):
        return theirs._lstm_pad_with_resets(module, input, *_both(module, input, hidden0_in, hidden1_in), is_init)
    lengths = torch.diff(starts, append=starts.new_tensor([batch * steps]))
    row = torch.repeat_interleave(torch.arange(len(starts)), lengths)
    position = torch.arange(batch * steps) - starts[row]
    x = input.new_zeros((len(starts), int(lengths.max()), input.shape[-1]))
    x = x.index_put((row, position), input.flatten(0, 1))
    output, states = lstm(x, hx, lengths=lengths)
    ends = starts + lengths - 1
    placed = (
        state.new_zeros((batch * steps, *state.shape[::2])).index_put((ends,), state.transpose(0, 1))
        for state in states
    )
    return output[row, position].unflatten(0, (batch, steps)), *(state.unflatten(0, (batch, steps)) for state in placed)


def _both(module: Any, input: Tensor, h: Tensor | None, c: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states, zeros where there are none."""
    if h is not None and c is not None:
        return h, c
    if h is not None or c is not None:
        raise RuntimeError(f"both states must be given, or none: got {type(h).__name__} and {type(c).__name__}")
    lstm = module.lstm
    count = lstm.num_layers * (2 if lstm.bidirectional else 1)
    sizes = lstm.proj_size or lstm.hidden_size, lstm.hidden_size
    zeros = [input.new_zeros((*input.shape[:2], count, size)) for size in sizes]
    return zeros[0], zeros[1]
