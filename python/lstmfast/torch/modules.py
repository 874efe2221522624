"""torch.nn.LSTM and torch.nn.LSTMCell with this library's kernels: `forward` is ours, all else is torch's own.

A call takes one of five ways. `explain` says which, and why:
    kernels     CPU tensors of float32 and float64, and lower precisions by way of float32
    cuda        CUDA tensors of float32 and bfloat16, where lstmfast has kernels for them; LSTM alone
    operators   either of them while torch.compile, torch.export or torch.func look on
    composite   torch operations, where forward-mode derivatives or gradients of cell states are wanted
    torch       torch's own forward: other devices, quantized modules, and whatever torch refuses, in torch's words
Refuses to hold weights in any form but torch's: there is no flat buffer, and state_dict is torch's.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstmfast import _checks as check
from lstmfast import _core
from lstmfast.torch import composite, kernels, on_cuda, operators
from lstmfast.torch.kernels import Arrays, How, Weights

_COMPUTED = (torch.float32, torch.float64)
_ROUNDED = (torch.bfloat16, torch.float16)
_NUMPY = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_forward_ad = torch.autograd.forward_ad
_functorch = torch._C._functorch


# --- which way --------------------------------------------------------------------------------------------------------


class Way(NamedTuple):
    """One of "kernels", "cuda", "operators", "composite", "torch", and the reason in a few words."""

    name: str
    why: str


def _way(module: nn.Module, tensors: tuple[Tensor | None, ...], wants_cells: bool) -> Way:
    """tensors: the input first."""
    present = [t for t in tensors if t is not None]
    name, why = "kernels", "CPU tensors of a dtype that the kernels have"
    if any(on_cuda.lies_on_device(t) for t in present):
        if not isinstance(module, LSTM):
            return Way("torch", "single steps on CUDA are left to torch's fused cell")
        refusal = on_cuda.refusal(present, module.hidden_size, module.proj_size, _result_dtype(present[0]))
        if refusal is not None:
            return Way("torch", refusal)
        name, why = "cuda", "CUDA tensors of a dtype that the kernels have"
    elif torch.compiler.is_compiling() and any(t.dtype not in _COMPUTED for t in present):
        return Way("torch", "dtypes other than float32 and float64 are not traced")
    if torch.compiler.is_compiling():
        return Way("operators", "torch.compile or torch.export looks on")
    if torch.jit.is_tracing():
        return Way("torch", "torch.jit traces torch's own operations")
    for tensor in present if name == "kernels" else ():
        if tensor.device.type != "cpu":
            return Way("torch", f"there is a tensor on {tensor.device}, and there are no kernels for that device")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return Way("torch", "there is a tensor that is sparse or quantized")
        if tensor.dtype not in _COMPUTED and tensor.dtype not in _ROUNDED:
            return Way("torch", f"there is a tensor of {tensor.dtype}")
    transforms = _functorch.get_interpreter_stack()
    if _forward_ad._current_level >= 0 or (
        transforms and any(t.key() == _functorch.TransformType.Jvp for t in transforms)
    ):
        return Way("composite", "forward-mode derivatives are taken")
    if wants_cells and _may_have_gradients(tensors):
        return Way("composite", "gradients may come back through the cell states")
    if transforms:
        return Way("operators", "torch.func transforms it")
    for tensor in present:
        if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
            return Way("torch", f"there is a {type(tensor).__name__}, which is more than a tensor")
    return Way(name, why)


# --- weights kept in the kernels' order -------------------------------------------------------------------------------


class _Kept:
    """One direction of one layer: its weights as the kernels take them, and a workspace that has them packed."""

    def __init__(self) -> None:
        self.stamp: Any = None
        self.arrays: Arrays | None = None
        self.sequence = _core.Sequence()
        self.packed = False
        self.marks: list[tuple[str, Tensor, int, int]] = []  # (name, parameter, data_ptr, version) of what is packed

    def is_current(self, parameters: dict[str, Any]) -> bool:
        """Whether these very parameters are packed, unwritten since. For calls of which `read` is a large part."""
        for name, tensor, address, version in self.marks:
            current = parameters.get(name)
            if current is None or current is not tensor:
                return False
            if tensor._version != version or tensor.data_ptr() != address:
                return False
        return self.packed and bool(self.marks)

    def mark(self, parameters: dict[str, Tensor | None]) -> None:
        """Remember what is packed, where all of it are parameters of the module and torch counts their writes."""
        self.marks = []
        if any(p is None or p.is_inference() for p in parameters.values()):
            return
        self.marks = [(name, p, p.data_ptr(), p._version) for name, p in parameters.items() if p is not None]

    def read(self, weights: Weights) -> Arrays:
        """The weights, to be packed again if torch has counted a write since the last time, or may not have."""
        try:
            stamp: Any = tuple((id(w), w.data_ptr(), w._version) for w in weights if w is not None)
        except RuntimeError:  # tensors made in inference mode count no writes
            stamp = None
        if stamp is None or stamp != self.stamp or self.arrays is None:
            self.arrays, self.packed = kernels.arrays(weights), False
            self.stamp = stamp
        return self.arrays


class _Keeper(threading.local):
    """What modules keep, each thread for itself: workspaces serve one call at a time. No part of the module's state."""

    def __init__(self) -> None:
        self._of: weakref.WeakKeyDictionary[nn.Module, list[_Kept]] = weakref.WeakKeyDictionary()

    def of(self, module: nn.Module, count: int) -> list[_Kept]:
        """The kept weights of a module with `count` layers and directions."""
        found = self.seen(module)
        if found is None or len(found) != count:
            found = self._of[module] = [_Kept() for _ in range(count)]
        return found

    def seen(self, module: nn.Module) -> list[_Kept] | None:
        """What is kept of it, if anything."""
        return self._of.get(module)

    def forget(self, module: nn.Module) -> None:
        """Drop what is kept."""
        self._of.pop(module, None)


_keeper = _Keeper()


def weights_changed(module: nn.Module) -> None:
    """Say that weights were written in a way that torch does not count: through `.data` or memory that is shared.

    Calls that gradients may follow read the weights anew each time, and forget what was kept. Others keep them packed
    until torch's version counters say that they were written; an optimizer's step, `load_state_dict` and all in-place
    operations under no_grad are counted. Must be called in the thread that calls the module.
    """
    for part in module.modules():
        _keeper.forget(part)


# --- one layer, whichever way -----------------------------------------------------------------------------------------


class _Layer(NamedTuple):
    h: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor | None


def _run_layer(
    way: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Weights,
    how: How,
    kept: _Kept | None,
    cells: bool,
) -> _Layer:
    if way == "composite":
        return _Layer(*composite.forward(x, h0, c0, weights, how))
    if way == "operators":
        batch, hidden_size = x.shape[1], weights.weight_hh.shape[0] // 4
        h0 = x.new_zeros((batch, weights.weight_hh.shape[1])) if h0 is None else h0
        c0 = x.new_zeros((batch, hidden_size)) if c0 is None else c0
        if cells:
            return _Layer(*composite.forward(x, h0, c0, weights, how))
        call = operators.TransformedLayer.apply if _is_under_func() else operators.layer
        h, h_n, c_n = call(x, h0, c0, *weights, *how)
        return _Layer(h, h_n, c_n, None)
    if way == "cuda":
        if _may_have_gradients((x, h0, c0, *weights)):
            h, h_n, c_n = on_cuda.LayerFunction.apply(x, h0, c0, *weights[:4], how)
            return _Layer(h, h_n, c_n, None)
        found = on_cuda.forward(x, h0, c0, weights, how, keep_cells=cells)
        return _Layer(found.h, found.h_n, found.c_n, None if found.cells is None else found.cells.to(x.dtype))
    if kept is None:
        h, h_n, c_n = kernels.LayerFunction.apply(x, h0, c0, *weights, how, False)
        return _Layer(h, h_n, c_n, None)
    arrays = kept.read(weights)
    packed, kept.packed = kept.packed, False
    result = kernels.forward(x, h0, c0, arrays, how, kept.sequence, keep_cells=cells, same_weights=packed)
    kept.packed = True
    return _Layer(*result)


def _may_have_gradients(tensors: tuple[Tensor | None, ...]) -> bool:
    if not torch.is_grad_enabled():
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


# --- one layer with nothing unusual about it, as most calls have it: the shorter way ----------------------------------

_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_LAYER = tuple(f"{name}_l0" for name in _CELL)


def _is_plain(x: Any, dims: int, input_size: int) -> bool:
    """Whether the kernels can read x as it lies."""
    return (
        type(x) is Tensor
        and x.dim() == dims
        and x.shape[-1] == input_size
        and x.dtype in _COMPUTED
        and x.stride(-1) == 1
        and x.is_cpu
        and x.layout is torch.strided
        and 0 not in x.shape
    )


def _are_plain_states(hx: Any, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether the kernels can read this pair as it lies."""
    return len(hx) == 2 and all(
        type(part) is Tensor and part.is_cpu and part.shape == shape and part.dtype is dtype and part.stride(-1) == 1
        for part in hx
    )


def _quick(
    module: nn.Module,
    names: tuple[str, ...],
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    precision: str,
    *,
    alone: bool,
) -> Any:
    """h, h_n, c_n of a module with these parameters; None where they are unusual, or neither packed nor in training."""
    own = module._parameters
    if torch.is_grad_enabled():
        weights = [own.get(name) for name in names]
        wanted = x.requires_grad or (h0 is not None and h0.requires_grad) or (c0 is not None and c0.requires_grad)
        for weight in weights:
            if type(weight) is not nn.Parameter or weight.dtype is not x.dtype or not weight.is_cpu:
                return None
            wanted = wanted or weight.requires_grad
        if wanted:
            kernels.follow_torchs_threads()
            _keeper.forget(module)
            if len(weights) == 2:
                weights += [None, None]
            return kernels.LayerFunction.apply(x, h0, c0, *weights, None, How(matmul_precision=precision), alone)
    all_kept = _keeper.seen(module)
    if all_kept is None or len(all_kept) != 1:
        return None
    kept = all_kept[0]
    if not kept.is_current(own) or kept.arrays is None or kept.arrays.kernel[0].dtype != _NUMPY[x.dtype]:
        return None
    kernels.follow_torchs_threads()
    how = How(matmul_precision=precision)
    kept.packed = False
    found = kernels.forward(x, h0, c0, kept.arrays, how, kept.sequence, same_weights=True, alone=alone)
    kept.packed = True
    return found[:3]


# --- the modules ------------------------------------------------------------------------------------------------------


class LSTM(nn.LSTM):
    """torch.nn.LSTM, computed by lstmfast: same constructor, parameters, state_dict, results and errors.

    Calls take four arguments more. lengths [batch], each from 0 to time_steps and in any order: rows end there, outputs
    past it are zero and final states are those of each row's own last step. resets [time_steps, batch], bool (with
    batch_first [batch, time_steps]): the state is zeroed before that step. return_cells: the result is (output,
    (h_n, c_n), cells) with the top layer's c at every step. matmul_precision: "highest", "high" or "medium"; None is
    what torch.get_float32_matmul_precision() says.
    strict: attribute; True makes calls that torch's own forward would have to serve an error.
    """

    strict = False

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cells: bool = False,
        matmul_precision: str | None = None,
    ) -> Any:
        """Run the stack; see torch.nn.LSTM and the class."""
        if lengths is None and resets is None and not return_cells and not _is_transformed():
            quick = self._quickly(input, hx, matmul_precision)
            if quick is not None:
                return quick
        packed = isinstance(input, PackedSequence)
        x: Tensor = input.data if packed else input
        weights = self._weights()
        tensors = (x, *(hx or ()), *(w for layer in weights for w in layer))
        way = _way(self, tensors, return_cells)
        if packed and x.shape[-1] != self.input_size:  # torch checks this only where a state is given
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )
        if way.name == "torch" or not self._acceptable(x, hx, packed):
            return self._by_torch(input, hx, way, lengths is not None or resets is not None or return_cells)
        if packed and (lengths is not None or resets is not None or return_cells):
            raise ValueError("lengths, resets and return_cells must not be given with a PackedSequence")
        sizes = packed_lengths = sorted_indices = unsorted_indices = None
        batched, batch_first = packed or x.dim() == 3, self.batch_first
        if packed:
            _, sizes, sorted_indices, unsorted_indices = input
            x, packed_lengths = pad_packed_sequence(PackedSequence(x, sizes))
            lengths = packed_lengths
            batch_first = False
            if hx is not None and sorted_indices is not None:
                hx = (hx[0].index_select(1, sorted_indices), hx[1].index_select(1, sorted_indices))
        elif not batched:
            x = x.unsqueeze(0 if batch_first else 1)
            hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        if batch_first:
            x = x.transpose(0, 1)
            resets = None if resets is None else resets.transpose(0, 1)
        how = How(
            _lengths(lengths, x), _resets(resets, x), False,
            _precision(matmul_precision),
        )  # fmt: skip

        dtype = _result_dtype(x)
        x, hx, weights = _computed(x, hx, weights, dtype if on_cuda.lies_on_device(x) else None)
        h, h_n, c_n, cells = self._run(way.name, x, hx, weights, how, return_cells)
        if dtype is not x.dtype:
            h, h_n, c_n, cells = (None if t is None else t.to(dtype) for t in (h, h_n, c_n, cells))

        if packed:
            data = pack_padded_sequence(h, packed_lengths).data
            if unsorted_indices is not None:
                h_n, c_n = h_n.index_select(1, unsorted_indices), c_n.index_select(1, unsorted_indices)
            return PackedSequence(data, sizes, sorted_indices, unsorted_indices), (h_n, c_n)
        if batch_first:
            h, cells = h.transpose(0, 1), None if cells is None else cells.transpose(0, 1)
        if not batched:
            axis = 0 if self.batch_first else 1
            h, h_n, c_n = h.squeeze(axis), h_n.squeeze(1), c_n.squeeze(1)
            cells = None if cells is None else cells.squeeze(axis)
        return (h, (h_n, c_n), cells) if return_cells else (h, (h_n, c_n))

    def _quickly(self, x: Any, hx: Any, precision: str | None) -> Any:
        """One layer in one direction, and nothing unusual about the arguments; None where it is another case."""
        if self.num_layers > 1 or self.bidirectional or self.proj_size or not _is_plain(x, 3, self.input_size):
            return None
        batch_first = self.batch_first
        if batch_first:
            x = x.transpose(0, 1)
        h0 = c0 = None
        if hx is not None:
            if not _are_plain_states(hx, (1, x.shape[1], self.hidden_size), x.dtype):
                return None
            h0, c0 = hx[0][0], hx[1][0]
        names = _LAYER if self.bias else _LAYER[:2]
        found = _quick(self, names, x, h0, c0, _precision(precision), alone=True)
        if found is None:
            return None
        h, h_n, c_n = found
        return h.transpose(0, 1) if batch_first else h, (h_n, c_n)

    def _run(
        self, way: str, x: Tensor, hx: tuple[Tensor, Tensor] | None, weights: list[Weights], how: How, cells: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The stack over x [T, B, I]: h [T, B, D*P], h_n, c_n [L*D, B, .], the top layer's cells if wanted."""
        directions = 2 if self.bidirectional else 1
        kept: list[_Kept] | None = None
        if way == "kernels":
            kernels.follow_torchs_threads()
            if _may_have_gradients((x, *(hx or ()), *(w for layer in weights for w in layer))):
                _keeper.forget(self)
            else:
                kept = _keeper.of(self, len(weights))
        h_n, c_n = [], []
        top_cells: list[Tensor] = []
        for layer in range(self.num_layers):
            top = layer == self.num_layers - 1
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                result = _run_layer(
                    way, x, None if hx is None else hx[0][k], None if hx is None else hx[1][k], weights[k],
                    how._replace(reverse=True) if direction else how, None if kept is None else kept[k], cells and top,
                )  # fmt: skip
                outputs.append(result.h)
                h_n.append(result.h_n)
                c_n.append(result.c_n)
                if cells and top and result.cells is not None:
                    top_cells.append(result.cells)
            x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
            if self.dropout and self.training and not top:
                x = nn.functional.dropout(x, self.dropout, True)
        if kept is not None and len(kept) == 1:
            kept[0].mark({name: self._parameters.get(name) for name in (_LAYER if self.bias else _LAYER[:2])})
        states = (h_n[0].unsqueeze(0), c_n[0].unsqueeze(0)) if len(h_n) == 1 else (torch.stack(h_n), torch.stack(c_n))
        return x, *states, torch.cat(top_cells, -1) if top_cells else None

    def _weights(self) -> list[Weights]:
        """The parameters of every layer and direction, as they are now: computed ones too."""
        own = self._parameters
        found = []
        for layer in range(self.num_layers):
            for suffix in ("", "_reverse") if self.bidirectional else ("",):
                names = (f"weight_ih_l{layer}{suffix}", f"weight_hh_l{layer}{suffix}")
                w_ih, w_hh = (own.get(name) if own.get(name) is not None else getattr(self, name) for name in names)
                bias: tuple[Any, Any] = (None, None)
                if self.bias:
                    bias = getattr(self, f"bias_ih_l{layer}{suffix}"), getattr(self, f"bias_hh_l{layer}{suffix}")
                w_hr = getattr(self, f"weight_hr_l{layer}{suffix}") if self.proj_size else None
                found.append(Weights(w_ih, w_hh, *bias, w_hr))
        return found

    def _acceptable(self, x: Tensor, hx: Any, packed: bool) -> bool:
        """Whether torch would take these; what it would not take it refuses itself, in its own words."""
        weight = self.weight_ih_l0
        if x.dim() != (2 if packed else 3) and not (x.dim() == 2 and not packed):
            return False
        if x.shape[-1] != self.input_size or (x.dtype != weight.dtype and not _autocasts()):
            return False
        if packed:
            return hx is None or _is_state(hx, 3, x.dtype, None, self)
        batched = x.dim() == 3
        if x.shape[(1 if self.batch_first else 0) if batched else 0] == 0:
            return False  # no steps: an error of torch
        batch = x.shape[0 if self.batch_first else 1] if batched else None
        return hx is None or _is_state(hx, 3 if batched else 2, x.dtype, batch, self)

    def _by_torch(self, input: Any, hx: Any, way: Way, ours_alone: bool) -> Any:
        if way.name == "torch":
            if self.strict:
                raise RuntimeError(f"strict LSTM: torch's own forward would have to serve this call: {way.why}")
            if ours_alone:
                raise ValueError(
                    f"lengths, resets and return_cells need lstmfast's kernels, which cannot serve this call: {way.why}"
                )
        return super().forward(input, hx)


class LSTMCell(nn.LSTMCell):
    """torch.nn.LSTMCell, computed by lstmfast: same constructor, parameters, state_dict, results and errors.

    strict: attribute; True makes calls that torch's own forward would have to serve an error.
    """

    strict = False

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Advance by one step; see torch.nn.LSTMCell."""
        if not _is_transformed():
            quick = self._quickly(input, hx)
            if quick is not None:
                return quick
        weights = self._weights()
        tensors = (input, *(hx or ()), *weights)
        way = _way(self, tensors, False)
        if way.name == "torch" or not self._acceptable(input, hx):
            if way.name == "torch" and self.strict:
                raise RuntimeError(f"strict LSTMCell: torch's own forward would have to serve this call: {way.why}")
            return super().forward(input, hx)  # type: ignore[no-any-return]
        batched = input.dim() == 2
        x = input.unsqueeze(0) if batched else input[None, None]
        if hx is not None and not batched:
            hx = hx[0].unsqueeze(0), hx[1].unsqueeze(0)
        dtype = _result_dtype(x)
        x, hx, (weights,) = _computed(x, hx, [weights], None)
        kept = None
        if way.name == "kernels":
            kernels.follow_torchs_threads()
            if _may_have_gradients(tensors):
                _keeper.forget(self)
            else:
                (kept,) = _keeper.of(self, 1)
        how = How(matmul_precision=_precision(None))
        h0, c0 = hx if hx is not None else (None, None)
        _, h, c, _ = _run_layer(way.name, x, h0, c0, weights, how, kept, False)
        if kept is not None:
            kept.mark({name: self._parameters.get(name) for name in (_CELL if self.bias else _CELL[:2])})
        if dtype is not x.dtype:
            h, c = h.to(dtype), c.to(dtype)
        return (h, c) if batched else (h.squeeze(0), c.squeeze(0))

    def _quickly(self, x: Any, hx: Any) -> tuple[Tensor, Tensor] | None:
        """Rows, and nothing unusual about the arguments; None where it is another case."""
        if not _is_plain(x, 2, self.input_size):
            return None
        h0, c0 = (None, None) if hx is None else hx
        if hx is not None and not _are_plain_states(hx, (x.shape[0], self.hidden_size), x.dtype):
            return None
        names = _CELL if self.bias else _CELL[:2]
        found = _quick(self, names, x.unsqueeze(0), h0, c0, torch.get_float32_matmul_precision(), alone=False)
        return None if found is None else found[1:]

    def _weights(self) -> Weights:
        bias: tuple[Any, Any] = (self.bias_ih, self.bias_hh) if self.bias else (None, None)
        return Weights(self.weight_ih, self.weight_hh, *bias, None)

    def _acceptable(self, x: Tensor, hx: Any) -> bool:
        """Whether torch would take these; what it would not take it refuses itself, in its own words."""
        if x.dim() not in (1, 2) or x.shape[-1] != self.input_size:
            return False
        if x.dtype != self.weight_ih.dtype and not _autocasts():
            return False
        if hx is None:
            return True
        shape = (*x.shape[:-1], self.hidden_size)
        return len(hx) == 2 and all(part.shape == shape and (part.dtype == x.dtype or _autocasts()) for part in hx)


def explain(module: nn.Module, input: Any, hx: Any = None, *, return_cells: bool = False) -> str:
    """Say in a sentence which way a call of this LSTM or LSTMCell with these arguments would take, and why.

    Raises TypeError for other modules.
    """
    if not isinstance(module, (nn.LSTM, nn.LSTMCell)):
        raise TypeError(f"module must be an LSTM or LSTMCell, got {type(module).__name__}")
    if not isinstance(module, (LSTM, LSTMCell)):
        return f"torch's own forward: this is torch's {type(module).__name__}; see lstmfast.torch.convert"
    packed = isinstance(input, PackedSequence)
    x = input.data if packed else input
    layers = module._weights() if isinstance(module, LSTM) else [module._weights()]
    weights = [w for layer in layers for w in layer]
    way = _way(module, (x, *(hx or ()), *weights), return_cells)
    if way.name == "torch":
        return f"torch's own forward: {way.why}"
    acceptable = module._acceptable(x, hx, packed) if isinstance(module, LSTM) else module._acceptable(x, hx)
    if not acceptable:
        return "torch's own forward, which will say what is wrong with the arguments"
    names = {
        "kernels": f"lstmfast's kernels ({_core.current_isa()})",
        "cuda": "lstmfast's CUDA kernels",
        "operators": "lstmfast's operators, which run its kernels",
        "composite": "torch operations, step by step",
    }
    lower = " in float32, rounded at the end" if way.name != "cuda" and _result_dtype(x) in _ROUNDED else ""
    return f"{names[way.name]}{lower}: {way.why}"


# --- arguments --------------------------------------------------------------------------------------------------------


def _is_under_func() -> bool:
    return not torch.compiler.is_compiling() and _functorch.peek_interpreter_stack() is not None


def _is_transformed() -> bool:
    """Whether a compiler, torch.func, forward-mode derivatives, a tracer or autocast change what operations mean."""
    return (
        torch.compiler.is_compiling()
        or _functorch.peek_interpreter_stack() is not None
        or _forward_ad._current_level >= 0
        or torch.jit.is_tracing()
        or _autocasts()
    )


def _precision(word: str | None) -> str:
    """What is asked for, or torch's setting; "" while somebody traces: operators then ask when they run."""
    if word is not None:
        return check.matmul_precision(word)
    return "" if torch.compiler.is_compiling() else torch.get_float32_matmul_precision()


def _autocasts() -> bool:
    return bool(torch._C._is_any_autocast_enabled())


def _result_dtype(x: Tensor) -> torch.dtype:
    """The dtype that torch would return: autocast's, or the input's."""
    kind = x.device.type
    if _autocasts() and kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) and x.dtype is not torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


def _computed(
    x: Tensor, hx: tuple[Tensor, Tensor] | None, weights: list[Weights], dtype: torch.dtype | None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None, list[Weights]]:
    """The same in this dtype, or if None in what the CPU's kernels compute in: float32 for what is lower or mixed."""
    tensors = [x, *(hx or ()), *(w for layer in weights for w in layer if w is not None)]
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) == 1 and (x.dtype in _COMPUTED if dtype is None else x.dtype is dtype):
        return x, hx, weights
    target = dtype or (torch.float64 if torch.float64 in dtypes else torch.float32)
    return (
        x.to(target),
        None if hx is None else (hx[0].to(target), hx[1].to(target)),
        [Weights(*(None if w is None else w.to(target) for w in layer)) for layer in weights],
    )


def _is_state(hx: Any, dims: int, dtype: torch.dtype, batch: int | None, module: LSTM) -> bool:
    """Whether hx is a pair of states that torch takes. batch None: any."""
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        return False
    cells = module.num_layers * (2 if module.bidirectional else 1)
    for part, size in zip(hx, (module.proj_size or module.hidden_size, module.hidden_size), strict=True):
        if part.dim() != dims or part.shape[0] != cells or part.shape[-1] != size:
            return False
        if (batch is not None and part.shape[1] != batch) or (part.dtype != dtype and not _autocasts()):
            return False
    return True


def _lengths(lengths: Any, x: Tensor) -> Tensor | None:
    """lengths as int64 where x is, checked unless they lie on a device already or somebody traces."""
    if lengths is None:
        return None
    numbers = torch.as_tensor(lengths)
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype is torch.bool:
        raise TypeError(f"lengths must be integers, got {numbers.dtype}")
    if numbers.shape != (x.shape[1],):
        raise ValueError(f"lengths must have shape ({x.shape[1]},) = (batch,), got {tuple(numbers.shape)}")
    is_traced = torch.compiler.is_compiling() or _functorch.peek_interpreter_stack() is not None
    if numbers.is_cpu and numbers.numel() and not is_traced:
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high > x.shape[0]:
            bad = low if low < 0 else high
            raise ValueError(f"lengths must lie between 0 and {x.shape[0]} = time_steps, got {bad}")
    return numbers.to(x.device, torch.int64).contiguous()


def _resets(resets: Any, x: Tensor) -> Tensor | None:
    """resets [time_steps, batch] as bool."""
    if resets is None:
        return None
    flags = torch.as_tensor(resets, device=x.device)
    if flags.dtype is not torch.bool:
        raise TypeError(f"resets must be bool, got {flags.dtype}")
    if flags.dim() == 1:
        flags = flags.unsqueeze(1)
    if flags.shape != x.shape[:2]:
        raise ValueError(f"resets must have shape {tuple(x.shape[:2])} = (time_steps, batch), got {tuple(flags.shape)}")
    return flags.contiguous()
