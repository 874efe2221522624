"""One direction of one LSTM layer on CPU tensors, through the extension: forward, backward, an autograd function.

Tensors share their memory with the extension; one is copied only where its last axis has gaps. torch's weights, [4H, I]
and [4H, H], are what the extension calls transposed, and torch's gates have our order: i, f, g, o.
Refuses to check shapes (see `arguments`) and to be traced (see `operators`).
"""

from __future__ import annotations

import functools
import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lstmfast import _core, runtime
from lstmfast._checks import Array
from lstmfast.cells import Cell
from lstmfast.torch import composite, recording
from lstmfast.torch.calls import CallOptions, Extras, Gradients, Noise, Result, Variant, Wanted, Weights
from lstmfast.torch.memory import PLAIN, of_thread

_functorch = torch._C._functorch
NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}


_NO_EXTRAS = Extras()
Upstream = tuple[Tensor | None, Tensor | None, Tensor | None]


class Arrays(NamedTuple):
    """Weights as the extension takes them: transposed kernels, and what the bias is the sum of.

    norms: norm_gain, cell_gain, cell_shift; initial: initial_h, initial_c; both None for torch's cell.
    """

    kernel: tuple[Array, Array]
    bias: Array | tuple[Array, Array]
    projection: Array | None
    norms: tuple[Array, Array, Array] | None = None
    initial: tuple[Array, Array] | None = None


def arrays(weights: Weights, extras: Extras = _NO_EXTRAS) -> Arrays:
    """The memory of the weights; copies of those whose last axis has gaps."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    kernel = array(w_ih), array(w_hh)
    if b_ih is None or b_hh is None:
        bias: Array | tuple[Array, Array] = np.zeros(len(kernel[1]), kernel[1].dtype)
    else:
        bias = array(b_ih), array(b_hh)
    norms = initial = None
    gain, cell_gain, cell_shift, initial_h, initial_c = extras
    if gain is not None and cell_gain is not None and cell_shift is not None:
        norms = array(gain), array(cell_gain), array(cell_shift)
    if initial_h is not None and initial_c is not None:
        initial = array(initial_h), array(initial_c)
    return Arrays(kernel, bias, None if w_hr is None else array(w_hr), norms, initial)


def _optional(tensor: Tensor | None) -> Array | None:
    return None if tensor is None else array(tensor)


def array(tensor: Tensor) -> Array:
    """The tensor's memory as an array whose last axis has no gaps; a copy where it had."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    values: Array = tensor.numpy()
    if values.ndim and values.shape[-1] > 1 and values.strides[-1] != values.itemsize:
        return np.ascontiguousarray(values)
    return values


def forward(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Arrays,
    options: CallOptions,
    sequence: _core.Sequence,
    *,
    keep_cells: bool = False,
    saved: Array | None = None,
    keep_layer_axis: bool = False,
) -> Result:
    """Run one direction of one layer over x [T, B, I]. Tensors of the weights' dtype, on the CPU.

    sequence: of the direction, with the weights loaded. saved [`saved_size`] receives what `backward` needs.
    """
    h, h_n, c_n, cells = _run_forward(
        Inputs(array(x), _optional(h0), _optional(c0), weights), options, sequence, keep_cells=keep_cells, saved=saved
    )
    if not keep_layer_axis:
        h_n, c_n = h_n[0], c_n[0]
    return Result(torch.from_numpy(h), torch.from_numpy(h_n), torch.from_numpy(c_n), _shared(cells))


def sequence_for_one_call(
    weights: Arrays, options: CallOptions, *, to_restore: bool = False, cell: Cell = PLAIN
) -> _core.Sequence:
    """This thread's sequence of the direction, with these weights loaded; to restore a call, without biases."""
    bias = None if to_restore else weights.bias
    if cell is PLAIN:
        sequence = of_thread.sequences[options.reverse]
        sequence.load(weights.kernel, bias, None, weights.projection, False, True)
        return sequence
    sequence = of_thread.sequence_of(cell, reverse=options.reverse)
    sequence.load(
        weights.kernel, bias, None, weights.projection, False, True, "float32", weights.norms, weights.initial
    )
    return sequence


class Inputs(NamedTuple):
    """What a forward pass reads, as arrays."""

    x: Array
    h0: Array | None
    c0: Array | None
    weights: Arrays


def _run_forward(
    given: Inputs,
    options: CallOptions,
    sequence: _core.Sequence,
    *,
    keep_cells: bool = False,
    saved: Array | None = None,
    noise: Noise | None = None,
) -> tuple[Array, Array, Array, Array | None]:
    """h [T, B, P], h_n [1, B, P], c_n [1, B, H], cells."""
    x, h0, c0, weights = given
    time_steps, batch = x.shape[:2]
    hidden_size = len(weights.kernel[1]) // 4
    output_size = hidden_size if weights.projection is None else len(weights.projection)
    dtype = x.dtype
    h = of_thread.arrays.empty((time_steps, batch, output_size), dtype)
    h_n, c_n = np.empty((1, batch, output_size), dtype), np.empty((1, batch, hidden_size), dtype)
    cells = of_thread.arrays.empty((time_steps, batch, hidden_size), dtype) if keep_cells else None
    # By position: pybind11 takes 100 ns to look up a name, and a step of a small layer takes 2 microseconds.
    sequence.forward(
        x, h, h_n[0], c_n[0], h0, c0,
        None if options.lengths is None else options.lengths.numpy(),
        None if options.resets is None else options.resets.numpy(),
        cells, None, False if saved is None else saved, options.matmul_precision, *_given(noise),
    )
    return h, h_n, c_n, cells


def _given(noise: Noise | None) -> tuple[Noise, ...]:
    return () if noise is None else (noise,)


def saved_size(x: Tensor, weights: Weights, options: CallOptions, cell: Cell = PLAIN) -> int:
    """How many values `forward` leaves for `backward`: gates and cells of every step of every row."""
    updates = x.shape[0] * x.shape[1] if options.lengths is None else int(options.lengths.sum())
    hidden_size = weights.weight_hh.shape[0] // 4
    products = _NORMALIZED_PRODUCTS[cell.layer_norm]
    return _saved_size(updates, hidden_size, weights.weight_hr is not None, x.dtype is torch.float64, *products)


_NORMALIZED_PRODUCTS: dict[str | None, tuple[int, ...]] = {None: (), "products": (2,), "gates": (1,)}
_saved_size = functools.lru_cache(maxsize=256)(_core.saved_size)


def backward(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Weights,
    options: CallOptions,
    h: Tensor,
    saved: Tensor,
    upstream: Upstream,
    wanted: Wanted,
) -> Gradients:
    """Gradients of a forward pass that returned h and left `saved`. upstream: those of h, h_n [B, P], c_n [B, H]."""
    given = Inputs(array(x), _optional(h0), _optional(c0), arrays(weights))
    has_bias = weights.bias_ih is not None
    return _run_backward(given, options, array(h), array(saved), upstream, wanted, has_bias=has_bias)


def _run_backward(
    given: Inputs,
    options: CallOptions,
    h: Array,
    saved: Array,
    upstream: Upstream,
    wanted: Wanted,
    *,
    has_bias: bool,
    cell: Cell = PLAIN,
    noise: Noise | None = None,
) -> Gradients:
    x, h0, c0, weights = given
    columns, output_size = weights.kernel[1].shape
    dtype, batch, hidden_size = x.dtype, x.shape[1], columns // 4
    sequence = sequence_for_one_call(weights, options, to_restore=True, cell=cell)
    sequence.restore(
        x, h, saved, h0, c0,
        None if options.lengths is None else options.lengths.numpy(),
        None if options.resets is None else options.resets.numpy(),
        options.matmul_precision, *_given(noise),
    )
    empty = of_thread.arrays.empty
    d_x = empty(x.shape, dtype) if wanted.x else None
    d_h0 = np.empty((batch, output_size), dtype) if wanted.h0 else None
    d_c0 = np.empty((batch, hidden_size), dtype) if wanted.c0 else None
    d_kernel = d_bias = d_projection = d_norms = d_initial = None
    if wanted.weights:
        d_kernel = empty((columns, x.shape[2]), dtype), empty((columns, output_size), dtype)
        d_bias = np.empty(columns, dtype) if has_bias else None
        d_projection = None if weights.projection is None else np.empty((output_size, hidden_size), dtype)
        d_norms, d_initial = _like(weights.norms), _like(weights.initial)
    d_h, d_h_n, d_c_n = map(_optional, upstream)
    try:
        if cell is PLAIN:
            sequence.backward(d_h, d_h_n, d_c_n, d_x, d_kernel, d_bias, d_h0, d_c0, None, d_projection)
        else:
            sequence.backward(
                d_h, d_h_n, d_c_n, d_x, d_kernel, d_bias, d_h0, d_c0, None, d_projection, d_norms, d_initial
            )
    finally:
        sequence.release()
    found = None
    if d_kernel is not None:
        d_bias_hh = None if d_bias is None else d_bias.copy()
        d_ih, d_hh = map(torch.from_numpy, d_kernel)
        found = Weights(d_ih, d_hh, _shared(d_bias), _shared(d_bias_hh), _shared(d_projection))
    extras = Extras(*map(_shared, (*(d_norms or (None,) * 3), *(d_initial or (None,) * 2))))
    return Gradients(_shared(d_x), _shared(d_h0), _shared(d_c0), found, extras)


def _like(values: tuple[Array, ...] | None) -> Any:
    return None if values is None else tuple(map(np.empty_like, values))


_NO_WEIGHTS = (None,) * 5


def _shared(values: Array | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values)


class LayerFunction(torch.autograd.Function):
    """`forward` for autograd: (x, h0, c0, *Weights, CallOptions, keep_layer_axis, own) -> (h, h_n, c_n).

    own: the memory of the weights, where the caller has it as arrays.
    All that backward reads is saved through autograd, which then checks that nobody has written into it, hands it to
    hooks, drops it for checkpointing, and frees it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        weight_hr: Tensor | None,
        options: CallOptions,
        keep_layer_axis: bool,
        own: Arrays | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
        # As torch's operations do, backward reads aliases, which stay where they are when a parameter's `data` is
        # exchanged, and leaves alone what no gradient depends on: writes there are no error.
        w_ih, w_hh, w_hr = weight_ih.detach(), weight_hh.detach(), None if weight_hr is None else weight_hr.detach()
        given = Inputs(
            array(x), _optional(h0), _optional(c0), own or arrays(Weights(w_ih, w_hh, bias_ih, bias_hh, w_hr))
        )
        saved = of_thread.arrays.empty((saved_size(x, weights, options),), given.x.dtype)
        sequence = sequence_for_one_call(given.weights, options)
        h, h_n, c_n, _ = _run_forward(given, options, sequence, saved=saved)
        sequence.release()
        output, kept = torch.from_numpy(h), torch.from_numpy(saved)
        need = ctx.needs_input_grad
        recurs = len(h) > 1
        ctx.options, ctx.keep_layer_axis, ctx.record = options, keep_layer_axis, recording.current()
        # Without hooks what autograd gives back is this memory; the arrays spare the first backward to ask for them.
        hooks = has_saved_tensor_hooks()
        ctx.arrays = None if hooks else (given, h, saved, _addresses(x, h0, c0, w_ih, w_hh, w_hr))
        ctx.weights, ctx.versions, ctx.has_hooks = weights, _versions(weights), hooks  # for composite gradients
        ctx.save_for_backward(
            x, h0, c0, w_ih if hooks or need[0] else None, w_hh if hooks or recurs or need[1] else None, w_hr,
            output if recurs and any(need[3:8]) else None, kept,
            *(b.detach() if hooks and b is not None else None for b in (bias_ih, bias_hh)),
        )
        ctx.set_materialize_grads(False)
        if not keep_layer_axis:
            h_n, c_n = h_n[0], c_n[0]
        last_c = torch.from_numpy(c_n)
        if need[7] and not recurs and not any(need[:7]):  # only the projection, which the c of one step does not reach
            ctx.mark_non_differentiable(last_c)
        return output, torch.from_numpy(h_n), last_c

    @staticmethod
    @recording.timed
    def backward(ctx: Any, d_h: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None) -> Any:
        x, h0, c0, w_ih, w_hh, w_hr, h, saved, b_ih, b_hh = ctx.saved_tensors
        weights, need = ctx.weights, ctx.needs_input_grad
        if ctx.keep_layer_axis:
            d_h_n, d_c_n = None if d_h_n is None else d_h_n[0], None if d_c_n is None else d_c_n[0]
        upstream = d_h, d_h_n, d_c_n
        differentiable = torch.is_grad_enabled()  # create_graph: somebody will differentiate these gradients
        if differentiable or any(d is not None and _is_batched(d) for d in upstream):
            if _versions(weights) != ctx.versions:
                # Hooks give back copies from before a write; or a checkpoint, which runs again, the weights of now.
                given_back = Weights(w_ih, w_hh, b_ih, b_hh, w_hr)
                if not ctx.has_hooks or (differentiable and not _are_equal(given_back, weights)):
                    _check_versions(weights, ctx.versions)
                elif not differentiable:
                    weights = Weights(*(None if w is None else w.detach().requires_grad_() for w in given_back))
            found = composite.gradients(x, h0, c0, weights, ctx.options, *upstream, need, create_graph=differentiable)
            return (*found, None, None, None)
        wanted = Wanted(need[0], need[1], need[2], any(need[3:8]))
        known, ctx.arrays = ctx.arrays, None  # which would outlive what autograd frees after this
        has_bias = weights.bias_ih is not None
        w_ih, w_hh = weights.weight_ih if w_ih is None else w_ih, weights.weight_hh if w_hh is None else w_hh
        # share_memory_ moves tensors and frees what the arrays point to.
        if known is None or known[3] != _addresses(x, h0, c0, w_ih, w_hh, w_hr):
            # Those not saved, of which no gradient depends, may be of another dtype by now.
            read = weights._replace(weight_ih=w_ih.to(x.dtype), weight_hh=w_hh.to(x.dtype), weight_hr=w_hr)
            given = Inputs(array(x), _optional(h0), _optional(c0), arrays(read))
            # Where h is not saved, only its shape is looked at.
            values = np.empty((*x.shape[:2], read.weight_hh.shape[1]), given.x.dtype) if h is None else array(h)
            known = given, values, array(saved), []
        given, values, kept, _ = known
        d = _run_backward(given, ctx.options, values, kept, upstream, wanted, has_bias=has_bias)
        return (d.x, d.h0, d.c0, *(d.weights or _NO_WEIGHTS), None, None, None)


class VariantFunction(torch.autograd.Function):
    """`forward` of another cell than torch's: (x, h0, c0, *Weights, *Extras, CallOptions, Variant) -> (h, h_n, c_n).

    The variant's own extras are not read. All that backward reads is saved through autograd.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h0: Tensor | None, c0: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        *parameters, options, variant = rest
        weights, extras = Weights(*parameters[:5]), Extras(*parameters[5:])
        given = Inputs(array(x), _optional(h0), _optional(c0), arrays(weights, extras))
        saved = of_thread.arrays.empty((saved_size(x, weights, options, variant.cell),), given.x.dtype)
        sequence = sequence_for_one_call(given.weights, options, cell=variant.cell)
        try:
            h, h_n, c_n, _ = _run_forward(given, options, sequence, saved=saved, noise=variant.noise)
        finally:
            sequence.release()
        output = torch.from_numpy(h)
        ctx.options, ctx.variant, ctx.record = options, variant._replace(extras=_NO_EXTRAS), recording.current()
        ctx.save_for_backward(x, h0, c0, *parameters, output, torch.from_numpy(saved))
        ctx.set_materialize_grads(False)
        return output, torch.from_numpy(h_n[0]), torch.from_numpy(c_n[0])

    @staticmethod
    @recording.timed
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        x, h0, c0, *parameters, h, saved = ctx.saved_tensors
        weights, extras, need = Weights(*parameters[:5]), Extras(*parameters[5:]), ctx.needs_input_grad
        d_h, d_h_n, d_c_n = upstream
        differentiable = torch.is_grad_enabled()  # create_graph: somebody will differentiate these gradients
        if differentiable or any(d is not None and _is_batched(d) for d in upstream):
            found = composite.gradients(
                x, h0, c0, weights, ctx.options, d_h, d_h_n, d_c_n, need,
                variant=ctx.variant._replace(extras=extras), create_graph=differentiable,
            )
            return (*found, None, None)
        wanted = Wanted(need[0], need[1] and h0 is not None, need[2] and c0 is not None, any(need[3:13]))
        given = Inputs(array(x), _optional(h0), _optional(c0), arrays(weights, extras))
        d = _run_backward(
            given, ctx.options, array(h), array(saved), (d_h, d_h_n, d_c_n), wanted,
            has_bias=weights.bias_ih is not None, cell=ctx.variant.cell, noise=ctx.variant.noise,
        )
        return (d.x, d.h0, d.c0, *(d.weights or _NO_WEIGHTS), *(d.extras or _NO_EXTRAS), None, None)


def run_variant(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Weights,
    options: CallOptions,
    variant: Variant,
    *,
    records: bool,
    keep_cells: bool = False,
) -> Result:
    """Run one direction of one layer of another cell than torch's. records: for autograd, without the cells."""
    if records:
        h, h_n, c_n = VariantFunction.apply(x, h0, c0, *weights, *variant.extras, options, variant)
        return Result(h, h_n, c_n, None)
    its = arrays(weights, variant.extras)
    sequence = sequence_for_one_call(its, options, cell=variant.cell)
    given = Inputs(array(x), _optional(h0), _optional(c0), its)
    try:
        found = _run_forward(given, options, sequence, keep_cells=keep_cells, noise=variant.noise)
    finally:
        sequence.release()
    values, last_h, last_c, cells = found
    return Result(torch.from_numpy(values), torch.from_numpy(last_h[0]), torch.from_numpy(last_c[0]), _shared(cells))


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


def _versions(weights: Weights) -> list[int | None]:
    try:
        return [None if w is None else w._version for w in weights]
    except RuntimeError:  # tensors made in inference mode have none
        return [None if w is None or w.is_inference() else w._version for w in weights]


def _check_versions(weights: Weights, versions: list[int | None]) -> None:
    """What autograd checks of saved tensors, for weights, which are not saved."""
    for name, found, expected in zip(Weights._fields, _versions(weights), versions, strict=True):
        if found != expected:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"{name} of an LSTM is at version {found}; expected version {expected} instead"
            )


def _are_equal(some: Weights, others: Weights) -> bool:
    pairs = zip(some, others, strict=True)
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def has_saved_tensor_hooks() -> bool:
    """Whether hooks see, and may replace, what autograd saves now."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _is_batched(tensor: Tensor) -> bool:
    """Whether vmap stands behind it: of torch.func, or of torch.autograd.grad(is_grads_batched=True)."""
    return bool(_functorch.is_batchedtensor(tensor) or _functorch.is_legacy_batchedtensor(tensor))


class _Threads(threading.local):
    seen: int | None = None


_threads = _Threads()


def follow_torchs_threads() -> None:
    """Use as many threads as torch, from the first call on and whenever its number has changed."""
    threads = torch.get_num_threads()
    if threads != _threads.seen:
        _threads.seen = threads
        runtime.set_num_threads(threads)
