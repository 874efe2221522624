"""The arguments of a call: checks, result dtypes, and conversion to the kernels' order of axes.

torch's modules take packed sequences, unbatched input, and batch before time; the kernels take [time, batch, size] and
lengths. `Form` converts both ways. Wrong arguments for which torch has a clear error are left to it; those that crash
torch or pass unnoticed are refused here.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstmfast import _checks as check
from lstmfast.torch.calls import Weights

COMPUTED = (torch.float32, torch.float64)
ROUNDED = (torch.bfloat16, torch.float16)
State = tuple[Tensor, Tensor]

# --- dtypes -----------------------------------------------------------------------------------------------------------


def autocasts() -> bool:
    """Whether torch.autocast is on for any device."""
    return bool(torch._C._is_any_autocast_enabled())


def is_one_operation(module: nn.Module, x: Tensor, sizes: Tensor | None) -> bool:
    """Whether torch runs such sequences as one operation on the CPU. sizes: the batch sizes of a packed one.

    It does for dense ones, and packed ones of equally long rows, of a dtype that oneDNN has, without projection. Others
    are many operations, whose backward reads no output and whose states have their own dtypes.
    """
    if isinstance(module, nn.LSTMCell) or module.proj_size or x.numel() == 0 or not torch._C._get_mkldnn_enabled():
        return False
    if sizes is not None and int(sizes[0]) != int(sizes[-1]):
        return False
    return x.dtype is torch.float32 or (x.dtype in ROUNDED and _has_onednn(x.dtype))


def result_dtypes(
    module: nn.Module, x: Tensor, c0: Tensor | None, sizes: Tensor | None
) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes of h and c that torch returns: the input's, or autocast's.

    Under autocast torch's one operation for a sequence returns autocast's dtype. Where it runs many operations, gates
    have autocast's dtype and states are promoted with it.
    """
    kind = x.device.type
    if not autocasts() or kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return x.dtype, x.dtype
    if x.dtype is torch.float64:
        return x.dtype, x.dtype
    lower = torch.get_autocast_dtype(kind)
    if kind == "cuda" or is_one_operation(module, x, sizes):
        return lower, lower
    state = torch.promote_types(lower, x.dtype if c0 is None else c0.dtype)
    return lower if getattr(module, "proj_size", 0) else state, state


def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether torch runs sequences of this lower dtype as one operation on this CPU."""
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def without_autocast(x: Tensor) -> Any:
    """A context in which operations compute in the dtypes of their arguments."""
    return torch.autocast(x.device.type, enabled=False) if autocasts() else contextlib.nullcontext()


def computed(
    x: Tensor, hx: State | None, weights: list[Weights], dtype: torch.dtype | None, *, copies: bool
) -> tuple[Tensor, State | None, list[Weights]]:
    """Cast every tensor to `dtype`; with None to what the CPU kernels compute in: float32 for lower or mixed ones.

    copies: copy tensors that already have the dtype too, as autocast does; writes before backward are then allowed.
    """
    tensors = [x, *(hx or ()), *(w for layer in weights for w in layer if w is not None)]
    dtypes = {t.dtype for t in tensors}
    if not copies and len(dtypes) == 1 and (x.dtype in COMPUTED if dtype is None else x.dtype is dtype):
        return x, hx, weights
    target = dtype or (torch.float64 if torch.float64 in dtypes else torch.float32)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(target, copy=copies)

    return (
        cast(x),
        None if hx is None else (cast(hx[0]), cast(hx[1])),
        [Weights(*(None if w is None else cast(w) for w in layer)) for layer in weights],
    )


# --- checks -----------------------------------------------------------------------------------------------------------


def check_pair(hx: Any, word: str) -> None:
    """Refuse a state that is not two tensors. word: the class whose call it is."""
    if hx is None:
        return
    if not isinstance(hx, (tuple, list)) or len(hx) != 2 or not all(isinstance(part, Tensor) for part in hx):
        came = f"{len(hx)} of them" if isinstance(hx, (tuple, list)) and len(hx) != 2 else _kinds(hx)
        raise TypeError(f"{word}: hx must be a pair of tensors (h_0, c_0), got {came}")


def _kinds(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return type(value).__name__


def pair_of(x: Tensor, dims: int, hx: Any) -> Any:
    """hx; for unbatched input its first two items, as torch then takes any sequence of states or a tensor of them.

    dims: the number of axes of batched input.
    """
    if hx is None or x.dim() >= dims or not (isinstance(hx, (tuple, list, Tensor)) and len(hx) >= 2):
        return hx
    return hx[0], hx[1]


def check_cell(module: nn.Module, x: Any, hx: Any) -> None:
    """Refuse arguments that crash torch's own cell or fail only deep inside it."""
    check_pair(hx, "LSTMCell")
    if x.dim() not in (1, 2):
        raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {x.dim()}D instead")
    for name, part in zip(("h_0", "c_0"), hx or (), strict=False):
        if part.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected {name} to be 1D or 2D, got {part.dim()}D instead")
        wanted = (*x.shape[:-1], module.hidden_size)
        if part.dim() != x.dim() or part.shape[:-1] != x.shape[:-1]:
            raise RuntimeError(f"LSTMCell: {name} must have shape {wanted} for an input of shape "
                               f"{tuple(x.shape)}, got {tuple(part.shape)}")


def check_packed(module: nn.Module, x: Tensor, hx: State | None, batch: int) -> None:
    """Refuse sizes of a packed sequence that torch does not check."""
    if x.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {x.dim()}")
    if x.shape[-1] != module.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {module.input_size}, got {x.shape[-1]}"
        )
    count = module.num_layers * (2 if module.bidirectional else 1)
    for k, (part, size) in enumerate(zip(hx or (), _state_sizes(module), strict=False)):
        if part.shape != (count, batch, size):
            raise RuntimeError(f"Expected hidden[{k}] size {(count, batch, size)}, got {list(part.shape)}")


def is_cell_call(module: nn.Module, x: Tensor, hx: State | None, weights: Weights) -> bool:
    """Whether torch accepts these arguments, whose ranks are checked; if not, its own error is left to it."""
    if x.shape[-1] != module.input_size or not _have_dtype([x, *(hx or ())], [weights]):
        return False
    return hx is None or all(part.shape[-1] == module.hidden_size for part in hx)


def is_call(module: nn.Module, x: Tensor, hx: State | None, weights: list[Weights], is_packed: bool) -> bool:
    """Whether torch accepts these arguments; if not, its own error is left to it."""
    if x.dim() not in (2, 3):
        return False
    if x.shape[-1] != module.input_size or not _have_dtype([x, *(hx or ())], weights):
        return False
    count = module.num_layers * (2 if module.bidirectional else 1)
    if len(weights) != count or not _have_shapes(module, weights):
        return False
    if is_packed:
        return True
    is_batched = x.dim() == 3
    if x.shape[(1 if module.batch_first else 0) if is_batched else 0] == 0:
        return False  # no steps: an error of torch
    rows = (x.shape[0 if module.batch_first else 1],) if is_batched else ()
    return hx is None or all(
        part.shape == (count, *rows, size) for part, size in zip(hx, _state_sizes(module), strict=True)
    )


def _state_sizes(module: nn.Module) -> tuple[int, int]:
    return module.proj_size or module.hidden_size, module.hidden_size


def _have_shapes(module: nn.Module, weights: list[Weights]) -> bool:
    """Whether the weights, which the user may have replaced, have this module's shapes."""
    rows, output_size = 4 * module.hidden_size, _state_sizes(module)[0]
    directions = 2 if module.bidirectional else 1
    for k, layer in enumerate(weights):
        input_size = module.input_size if k < directions else output_size * directions
        if layer.weight_ih.shape != (rows, input_size) or layer.weight_hh.shape != (rows, output_size):
            return False
        if any(bias is not None and bias.shape != (rows,) for bias in (layer.bias_ih, layer.bias_hh)):
            return False
    return True


def _have_dtype(values: list[Tensor], weights: list[Weights]) -> bool:
    """Whether torch can multiply these: one dtype, or under autocast any without float64."""
    dtypes = {t.dtype for t in (*values, *(w for layer in weights for w in layer)) if t is not None}
    return len(dtypes) == 1 or (autocasts() and dtypes <= {torch.float32, *ROUNDED})


def lengths_of(lengths: Any, x: Tensor, is_traced: bool) -> Tensor | None:
    """A copy of lengths as int64 on x's device, checked unless they are on a device already or traced."""
    if lengths is None:
        return None
    numbers = torch.as_tensor(lengths)
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype is torch.bool:
        raise TypeError(f"lengths must be integers, got {numbers.dtype}")
    if numbers.shape != (x.shape[1],):
        raise ValueError(f"lengths must have shape ({x.shape[1]},) = (batch,), got {tuple(numbers.shape)}")
    if numbers.is_cpu and numbers.numel() and not is_traced:
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high > x.shape[0]:
            bad = low if low < 0 else high
            raise ValueError(f"lengths must be between 0 and {x.shape[0]} = time_steps, got {bad}")
    return numbers.to(x.device, torch.int64, copy=True).contiguous()


def resets_of(resets: Any, x: Tensor) -> Tensor | None:
    """A copy of resets [time_steps, batch], bool."""
    if resets is None:
        return None
    flags = torch.as_tensor(resets, device=x.device)
    if flags.dtype is not torch.bool:
        raise TypeError(f"resets must be bool, got {flags.dtype}")
    if flags.dim() == 1:
        flags = flags.unsqueeze(1)
    if flags.shape != x.shape[:2]:
        raise ValueError(f"resets must have shape {tuple(x.shape[:2])} = (time_steps, batch), got {tuple(flags.shape)}")
    return flags.clone(memory_format=torch.contiguous_format)


def precision_of(word: str | None) -> str:
    """The precision asked for, or torch's setting; "" in tracing: operators then ask at run time."""
    if word is not None:
        return check.matmul_precision(word)
    return "" if torch.compiler.is_compiling() else torch.get_float32_matmul_precision()


# --- from torch's order to the kernels' and back ----------------------------------------------------------------------


class Form(NamedTuple):
    """How the arguments of an LSTM were given."""

    is_packed: bool
    is_batched: bool
    batch_first: bool
    lengths: Tensor | None = None  # of a packed sequence, its longest row first
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None

    @classmethod
    def of(cls, module: nn.Module, input: Tensor | PackedSequence) -> tuple[Form, Tensor]:
        """The form of an input, and the input as [time, batch, size], padded if it was packed."""
        if isinstance(input, PackedSequence):
            data, sizes, sorted_indices, unsorted_indices = input
            x, lengths = pad_packed_sequence(PackedSequence(data, sizes))
            return cls(True, True, False, lengths, sorted_indices, unsorted_indices), x
        form = cls(False, input.dim() == 3, module.batch_first)
        x = input if form.is_batched else input.unsqueeze(0 if form.batch_first else 1)
        return form, x.transpose(0, 1) if form.batch_first else x

    def state_in(self, hx: State | None) -> State | None:
        """States as [layers, batch, size], in the order of the rows."""
        if hx is None:
            return None
        if self.sorted_indices is not None:
            return hx[0].index_select(1, self.sorted_indices), hx[1].index_select(1, self.sorted_indices)
        return (hx[0], hx[1]) if self.is_batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))

    def state_out(self, hx: State) -> State:
        """States in the caller's form."""
        if self.unsorted_indices is not None:
            return hx[0].index_select(1, self.unsorted_indices), hx[1].index_select(1, self.unsorted_indices)
        return hx if self.is_batched else (hx[0].squeeze(1), hx[1].squeeze(1))

    def out(self, h: Tensor, input: Any) -> Any:
        """An output [time, batch, size] in the form of the input."""
        if self.is_packed:
            packed = pack_padded_sequence(h, self.lengths, enforce_sorted=True)
            return PackedSequence(packed.data, input.batch_sizes, self.sorted_indices, self.unsorted_indices)
        if self.batch_first:
            h = h.transpose(0, 1)
        return h if self.is_batched else h.squeeze(0 if self.batch_first else 1)

    def dropout(self, h: Tensor, probability: float) -> Tensor:
        """Dropout before the next layer; packed sequences get torch's masks, drawn for valid steps only."""
        if not self.is_packed:
            return nn.functional.dropout(h, probability, True)
        packed = pack_padded_sequence(h, self.lengths, enforce_sorted=True)
        kept = nn.functional.dropout(packed.data, probability, True)
        return pad_packed_sequence(PackedSequence(kept, packed.batch_sizes))[0]
