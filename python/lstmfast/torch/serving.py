"""A call of an LSTM or LSTMCell of torch, served by lstmfast: the fast path, the whole path, and what `explain` says.

Modules are torch's, or lstmfast's subclasses of them; nothing here depends on which.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.nn.utils.rnn import PackedSequence

from lstmfast import _core, runtime
from lstmfast.torch import arguments, composite, kernels, on_cuda, operators, paths, recording, weights
from lstmfast.torch.calls import CallOptions, Result, Weights
from lstmfast.torch.weights import Workspace

# True in the __dict__ of a converted module, where any process can unpickle it, and in the classes of ours.
MARK = "_lstmfast"
originals = {nn.LSTM: nn.LSTM.forward, nn.LSTMCell: nn.LSTMCell.forward}  # before `convert` wraps them
EVERYWHERE: list[bool] = []  # not empty: modules without the mark are served too (`patch`). Dynamo guards on a list.


def is_ours(module: nn.Module) -> bool:
    """Whether lstmfast.torch made the module, rather than converted it."""
    return hasattr(type(module), MARK)


def is_served(module: nn.Module) -> bool:
    """Whether calls of the module come here, if its `forward` is torch's, or calls it."""
    return bool(EVERYWHERE) or MARK in module.__dict__ or is_ours(module)


def takes_resets(module: nn.Module, x: Tensor, hx: tuple[Tensor, Tensor] | None) -> bool:
    """Whether a call of an LSTM with these tensors may have `lengths` and `resets`; no other path knows them."""
    if not is_served(module):
        return False
    if is_ours(module) and getattr(module, "_cell", None) is not None:
        return True
    tensors = _tensors(x, hx, weights.by_layer(module))
    return paths.choose(module, tensors, is_ours=is_ours(module), wants_cells=False).name != "torch"


# --- an LSTM ----------------------------------------------------------------------------------------------------------


def lstm(
    module: nn.Module,
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_cells: bool = False,
    matmul_precision: str | None = None,
) -> Any:
    """`nn.LSTM.forward`, with the arguments of `lstmfast.torch.LSTM` besides."""
    extras = lengths is not None or resets is not None or return_cells
    if not extras and not paths.is_transformed():
        found = _fast_lstm(module, input, hx, matmul_precision)
        if found is not None:
            return found
    is_packed = isinstance(input, PackedSequence)
    x = input.data if is_packed else input
    if not isinstance(x, Tensor):  # a torch.fx proxy, or a mistake
        return _by_torch(module, nn.LSTM, paths.Path("torch", "its input is no tensor"), extras, input, hx)
    hx = arguments.pair_of(x, 3, hx) if not is_packed else hx
    arguments.check_pair(hx, "LSTM")
    layers = weights.by_layer(module)
    path = paths.choose(module, _tensors(x, hx, layers), is_ours=is_ours(module), wants_cells=return_cells)
    if path.is_watched and extras:
        path = paths.Path("composite", path.why)
    if is_packed and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        arguments.check_packed(module, x, hx, int(input.batch_sizes[0]))
    _note(path)
    if path.name == "torch" or not arguments.is_call(module, x, hx, layers, is_packed):
        return _by_torch(module, nn.LSTM, path, extras, input, hx)
    if is_packed and extras:
        raise ValueError("lengths, resets and return_cells must not be given with a PackedSequence")
    sizes = input.batch_sizes if is_packed else None
    h_dtype, c_dtype = arguments.result_dtypes(module, x, None if hx is None else hx[1], sizes)
    precision = arguments.precision_of(matmul_precision)
    is_cast = arguments.autocasts()
    format = _format_of_call(module, x, layers)
    may_be_written = path.name in ("kernels", "cuda") and (extras or _may_be_written(module, x, sizes))
    with arguments.without_autocast(x):
        form, x = arguments.Form.of(module, input)
        state = form.state_in(hx)
        records = paths.may_have_gradients(_tensors(x, state, layers))
        x, state, layers = arguments.computed(
            x, state, layers, h_dtype if path.name == "cuda" else None, copies=records and is_cast
        )
        if records and state is not None:  # torch copies states too, and its caller may write into them
            state = state[0].clone(), state[1].clone()
        is_traced = torch.compiler.is_compiling() or paths.is_under_func()
        if resets is not None and form.batch_first and form.is_batched:
            resets = torch.as_tensor(resets).t()
        options = CallOptions(
            form.lengths if is_packed else arguments.lengths_of(lengths, x, is_traced),
            arguments.resets_of(resets, x), False, precision,
        )
        h, h_n, c_n, cells = _run_stack(module, path.name, x, state, layers, options, form, format, return_cells)
        if h_dtype is not h.dtype or c_dtype is not c_n.dtype:
            h, h_n, c_n = h.to(h_dtype), h_n.to(h_dtype), c_n.to(c_dtype)
            cells = None if cells is None else cells.to(c_dtype)
        elif may_be_written and h.requires_grad:
            h = h.clone()
        output, state = form.out(h, input), form.state_out((h_n, c_n))
        return (output, state, form.out(cells, input)) if return_cells else (output, state)


def _may_be_written(module: nn.Module, x: Tensor, sizes: Tensor | None) -> bool:
    """Whether torch lets its caller write into the output before backward, for which ours must be a copy.

    It does wherever the output is not what its backward reads: only its one operation for a sequence returns that. The
    outputs of two directions, and of packed sequences, are put together in new memory anyway. Under hooks on saved
    tensors, nobody would notice the write.
    """
    if sizes is not None or module.bidirectional:
        return False
    return not arguments.is_one_operation(module, x, None) or kernels.has_saved_tensor_hooks()


def _fast_lstm(module: nn.Module, x: Any, hx: Any, precision: str | None) -> Any:
    """Layers in one direction, and nothing unusual about the arguments; None where it is another case."""
    layers = module.num_layers
    if module.bidirectional or module.proj_size or not _is_plain(x, 3, module.input_size):
        return None
    if layers > 1 and ((module.dropout and module.training) or _computes_weights(module)):
        return None
    batch_first = module.batch_first
    if batch_first:
        x = x.transpose(0, 1)
    if hx is not None:
        if not _are_plain_states(hx, (layers, x.shape[1], module.hidden_size), x.dtype):
            return None
        if torch.is_grad_enabled():  # torch copies them too, and its caller may write into them
            hx = hx[0].clone(), hx[1].clone()
    precision = arguments.precision_of(precision)
    h, states = x, []
    for layer in range(layers):
        h0, c0 = (None, None) if hx is None else (hx[0][layer], hx[1][layer])
        names = _names(layer, module.bias)
        found = _fast_layer(module, names, h, h0, c0, precision, layer, layers, keep_layer_axis=True)
        if found is None:
            return None
        h = found[0]
        states.append(found[1:])
    h_n, c_n = states[0] if layers == 1 else map(torch.cat, zip(*states, strict=True))
    if h.requires_grad and _may_be_written(module, x, None):
        h = h.clone()
    return h.transpose(0, 1) if batch_first else h, (h_n, c_n)


def _computes_weights(module: nn.Module) -> bool:
    """Whether a weight is no parameter, but computed by each look at it: of a stack all are to be read together."""
    own = module._parameters
    return any(own.get(name) is None for name in module._flat_weights_names)


@functools.cache
def _names(layer: int, bias: bool) -> tuple[str, ...]:
    return tuple(f"{name}_l{layer}" for name in (_CELL if bias else _CELL[:2]))


def _run_stack(
    module: nn.Module,
    path: str,
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    layers: list[Weights],
    options: CallOptions,
    form: arguments.Form,
    format: str,
    wants_cells: bool,
) -> Result:
    """The stack over x [T, B, I]: h [T, B, D*P], h_n, c_n [L*D, B, .], the top layer's cells if wanted."""
    directions = 2 if module.bidirectional else 1
    kept, layers = _kept(module, path, x, hx, layers, format)
    h_n, c_n = [], []
    top_cells: list[Tensor] = []
    for layer in range(module.num_layers):
        is_top = layer == module.num_layers - 1
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            result = _run_layer(
                path, x, None if hx is None else hx[0][k], None if hx is None else hx[1][k], layers[k],
                options._replace(reverse=True) if direction else options, None if kept is None else kept[k],
                wants_cells and is_top,
            )
            outputs.append(result.h)
            h_n.append(result.h_n)
            c_n.append(result.c_n)
            if is_top and result.cells is not None:
                top_cells.append(result.cells)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if module.dropout and module.training and not is_top:
            x = dropout(form, x, module.dropout)
    states = (h_n[0].unsqueeze(0), c_n[0].unsqueeze(0)) if len(h_n) == 1 else (torch.stack(h_n), torch.stack(c_n))
    return Result(x, *states, torch.cat(top_cells, -1) if top_cells else None)


def dropout(form: arguments.Form, x: Tensor, probability: float) -> Tensor:
    """What goes up to the next layer. Transforms of other tensors have no say in the masks, as in torch's LSTM."""
    if paths.is_under_func() and not paths.is_wrapped(x):
        with temporarily_pop_interpreter_stack():
            return dropout(form, x, probability)
    return form.dropout(x, probability)


# --- a cell -----------------------------------------------------------------------------------------------------------


def cell(module: nn.Module, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """`nn.LSTMCell.forward`."""
    if not paths.is_transformed():
        found = _fast_cell(module, input, hx)
        if found is not None:
            return found
    if not isinstance(input, Tensor):  # a torch.fx proxy, or a mistake
        return originals[nn.LSTMCell](module, input, hx)  # type: ignore[no-any-return]
    hx = arguments.pair_of(input, 2, hx)
    arguments.check_cell(module, input, hx)
    (own,) = weights.by_layer(module)
    path = paths.choose(module, _tensors(input, hx, [own]), is_ours=is_ours(module), wants_cells=False)
    _note(path)
    if path.name == "torch" or not arguments.is_cell_call(module, input, hx, own):
        return _by_torch(module, nn.LSTMCell, path, False, input, hx)  # type: ignore[no-any-return]
    is_batched = input.dim() == 2
    x = input.unsqueeze(0) if is_batched else input[None, None]
    if hx is not None and not is_batched:
        hx = hx[0].unsqueeze(0), hx[1].unsqueeze(0)
    h_dtype, c_dtype = arguments.result_dtypes(module, x, None if hx is None else hx[1], None)
    options = CallOptions(matmul_precision=arguments.precision_of(None))
    copies = arguments.autocasts() and paths.may_have_gradients(_tensors(x, hx, [own]))
    format = _format_of_call(module, x, [own])
    with arguments.without_autocast(x):
        x, state, layers = arguments.computed(x, hx, [own], None, copies=copies)
        h0, c0 = state if state is not None else (None, None)
        kept, layers = _kept(module, path.name, x, state, layers, format)
        _, h, c, _ = _run_layer(path.name, x, h0, c0, layers[0], options, None if kept is None else kept[0], False)
        h, c = h.to(h_dtype), c.to(c_dtype)
        return (h, c) if is_batched else (h.squeeze(0), c.squeeze(0))


def _fast_cell(module: nn.Module, x: Any, hx: Any) -> tuple[Tensor, Tensor] | None:
    """Rows, and nothing unusual about the arguments; None where it is another case."""
    if not _is_plain(x, 2, module.input_size):
        return None
    if hx is not None and not _are_plain_states(hx, (x.shape[0], module.hidden_size), x.dtype):
        return None
    h0, c0 = (None, None) if hx is None else hx
    names, precision = _CELL if module.bias else _CELL[:2], torch.get_float32_matmul_precision()
    found = _fast_layer(module, names, x.unsqueeze(0), h0, c0, precision, keep_layer_axis=False)
    return None if found is None else found[1:]


# --- one layer --------------------------------------------------------------------------------------------------------


def _is_plain(x: Any, dims: int, input_size: int) -> bool:
    """Whether the kernels can read x where it is."""
    return (
        type(x) is Tensor
        and x.dim() == dims
        and x.shape[-1] == input_size
        and x.dtype in arguments.COMPUTED
        and x.stride(-1) == 1
        and x.is_cpu
        and x.layout is torch.strided
        and 0 not in x.shape
        and not paths.is_wrapped(x)
    )


def _are_plain_states(hx: Any, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether the kernels can read this pair where it is."""
    return (
        isinstance(hx, (tuple, list))
        and len(hx) == 2
        and all(
            type(part) is Tensor
            and part.is_cpu
            and part.shape == shape
            and part.dtype is dtype
            and part.stride(-1) == 1
            for part in hx
        )
    )


def _fast_layer(
    module: nn.Module,
    names: tuple[str, ...],
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    precision: str,
    layer: int = 0,
    layers: int = 1,
    *,
    keep_layer_axis: bool,
) -> Any:
    """h, h_n, c_n of one layer of a module, whose parameters have these names.

    None where a weight is of an unusual type, dtype or place.
    """
    kernels.follow_torchs_threads()
    options, records = CallOptions(matmul_precision=precision), torch.is_grad_enabled()
    first = layer * len(names)
    workspace = weights.workspaces(module, layers)[layer]
    arrays = workspace.view.of_module(module, names, first)
    if arrays is not None and arrays.kernel[0].dtype != kernels.NUMPY[x.dtype]:
        arrays = None
    if arrays is not None and not records and weights.frozen(module) is None:
        sequence = workspace.sequence(arrays, format=weights.format_of(module))
        return kernels.forward(x, h0, c0, arrays, options, sequence, keep_layer_axis=keep_layer_axis)[:3]
    if arrays is None:
        every = weights.flat(module)
        if len(every) != layers * len(names):
            return None
        own = every[first : first + len(names)]
    else:
        own = workspace.view.tensors()
    wanted = x.requires_grad or (h0 is not None and h0.requires_grad) or (c0 is not None and c0.requires_grad)
    for weight in own:
        if type(weight) is not nn.Parameter and type(weight) is not Tensor:
            return None
        # Those of a view are where they were when it was made.
        if arrays is None and not (weight.dtype is x.dtype and weight.is_cpu and weight.layout is torch.strided):
            return None
        wanted = wanted or weight.requires_grad
    given = Weights(*own, *_NOTHING[len(own) :])
    if wanted and records:
        # A view holds its tensors: no computed weights with their graph, no wrappers of a transform in another thread.
        if arrays is None and all(w.is_leaf and not paths.is_wrapped(w) for w in own):
            arrays = workspace.view.of(given)
        return kernels.LayerFunction.apply(to_be_saved(x, given), h0, c0, *given, options, keep_layer_axis, arrays)
    frozen = weights.frozen(module)
    arrays = workspace.view.of(given if frozen is None else frozen[layer])
    sequence = workspace.sequence(arrays, frozen=frozen is not None, format=weights.format_of(module))
    return kernels.forward(x, h0, c0, arrays, options, sequence, keep_layer_axis=keep_layer_axis)[:3]


def to_be_saved(x: Tensor, own: Weights) -> Tensor:
    """x, or a copy where torch's own operations save none or one of their own, so that their caller may write into x.

    They do so of an x that is not contiguous, or if the weights that multiply it ask for no gradient. Under hooks on
    saved tensors, nobody would notice such a write.
    """
    if kernels.has_saved_tensor_hooks() or not own.weight_ih.requires_grad:
        return x.clone()
    return x.contiguous()


_NOTHING = (None,) * 5
_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _kept(
    module: nn.Module, path: str, x: Tensor, hx: tuple[Tensor, Tensor] | None, layers: list[Weights], format: str
) -> tuple[list[Workspace] | None, list[Weights]]:
    """Workspaces for calls without gradients by the kernels, else None; and the weights to compute with."""
    if path != "kernels":
        return None, layers
    kernels.follow_torchs_threads()
    if paths.may_have_gradients(_tensors(x, hx, layers)):
        return None, layers
    frozen = weights.frozen(module)
    if frozen is not None and frozen[0].weight_ih.dtype is x.dtype:
        layers = frozen
    found = weights.workspaces(module, len(layers), bidirectional=bool(getattr(module, "bidirectional", False)))
    for workspace in found:
        workspace.has_frozen_weights, workspace.format = layers is frozen, format
    return found, layers


def _format_of_call(module: nn.Module, x: Tensor, layers: list[Weights]) -> str:
    """The format of weights in a call without gradients: that of the module where all is float32, without autocast."""
    format = weights.format_of(module)
    if format == "float32" or arguments.autocasts():
        return "float32"
    tensors = (x, *(w for layer in layers for w in layer if w is not None))
    return format if all(t.dtype is torch.float32 for t in tensors) else "float32"


def _run_layer(
    path: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    own: Weights,
    options: CallOptions,
    kept: Workspace | None,
    wants_cells: bool,
) -> Result:
    if path == "composite":
        own = Weights(*(None if w is None else w.contiguous() for w in own))  # so that gradients are, as torch's
        return Result(*composite.forward(x, h0, c0, own, options))
    if path == "operators":
        batch, hidden_size = x.shape[1], own.weight_hh.shape[0] // 4
        h0 = x.new_zeros((batch, own.weight_hh.shape[1])) if h0 is None else h0
        c0 = x.new_zeros((batch, hidden_size)) if c0 is None else c0
        if wants_cells:
            return Result(*composite.forward(x, h0, c0, own, options))
        if paths.is_under_func():  # where nobody notices writes, and a view would keep its base from being swapped
            x, h0, c0 = x.clone(), h0.clone(), c0.clone()
            own = Weights(*(None if w is None else w.clone() for w in own))
        call = operators.TransformedLayer.apply if paths.is_under_func() else operators.layer
        h, h_n, c_n = call(x, h0, c0, *own, *options)
        return Result(h, h_n, c_n, None)
    if path == "cuda":
        if paths.may_have_gradients((x, h0, c0, *own)):
            h, h_n, c_n = on_cuda.LayerFunction.apply(x, h0, c0, *own[:4], options)
            return Result(h, h_n, c_n, None)
        found = on_cuda.forward(x, h0, c0, own, options, keep_cells=wants_cells)
        return Result(found.h, found.h_n, found.c_n, None if found.cells is None else found.cells.to(x.dtype))
    if kept is None:
        h, h_n, c_n = kernels.LayerFunction.apply(to_be_saved(x, own), h0, c0, *own, options, False)
        return Result(h, h_n, c_n, None)
    arrays = kept.view.of(own)
    sequence = kept.sequence(arrays, frozen=kept.has_frozen_weights, format=kept.format)
    return kernels.forward(x, h0, c0, arrays, options, sequence, keep_cells=wants_cells)


# --- torch's own forward, and what is said of a call ------------------------------------------------------------------


def _tensors(x: Tensor, hx: Any, layers: list[Weights]) -> tuple[Tensor | None, ...]:
    return (x, *(hx or ()), *(w for layer in layers for w in layer))


def _note(path: paths.Path) -> None:
    if recording.is_on and not torch.compiler.is_compiling():
        recording.note(path.name, path.why)


def _by_torch(module: nn.Module, base: type, path: paths.Path, extras: bool, input: Any, hx: Any) -> Any:
    _note(path if path.name == "torch" else paths.Path("torch", "its arguments are wrong, as torch says"))
    if path.name == "torch":
        if getattr(module, "strict", False):
            raise RuntimeError(f"strict {base.__name__}: torch's own forward would have to serve this call: {path.why}")
        if extras:
            raise ValueError(
                f"lengths, resets and return_cells need lstmfast's kernels, which cannot serve this call: {path.why}"
            )
    return originals[base](module, input, hx)


def explain(module: nn.Module, input: Any, hx: Any = None, *, return_cells: bool = False) -> str:
    """Say in a sentence which path a call of nn.LSTM's or nn.LSTMCell's forward takes with these arguments, and why."""
    is_lstm, is_packed = isinstance(module, nn.LSTM), isinstance(input, PackedSequence)
    x = input.data if is_packed else input
    layers = weights.by_layer(module)
    path = paths.choose(module, _tensors(x, hx, layers), is_ours=is_ours(module), wants_cells=return_cells)
    if path.name == "torch":
        return f"torch's own forward: {path.why}"
    if is_lstm:
        is_right = arguments.is_call(module, x, hx, layers, is_packed)
    else:
        is_right = arguments.is_cell_call(module, x, hx, layers[0])
    if not is_right:
        return "torch's own forward, which will say what is wrong with the arguments"
    names = {
        "kernels": f"lstmfast's kernels ({_core.current_isa()})",
        "cuda": "lstmfast's CUDA kernels",
        "operators": "lstmfast's operators, which run its kernels",
        "composite": "torch operations, step by step",
    }
    sizes = input.batch_sizes if is_packed else None
    h_dtype, _ = arguments.result_dtypes(module, x, None if hx is None else hx[1], sizes)
    lower = " in float32, rounded at the end" if path.name != "cuda" and h_dtype in arguments.ROUNDED else ""
    frozen = ", with frozen weights" if path.name == "kernels" and weights.frozen(module) is not None else ""
    said = [f"{names[path.name]}{lower}: {path.why}{frozen}"]
    tensors = _tensors(x, hx, layers)
    records, format = paths.may_have_gradients(tensors), _format_of_call(module, x, layers)
    if (wanted := weights.format_of(module)) != "float32":
        if path.name != "kernels":
            said.append(f"weights={wanted!r} is for lstmfast's CPU kernels in eager mode; this call runs without it")
        elif format != wanted:
            said.append(f"weights={wanted!r} is for float32 without autocast; this call runs without it")
        elif records:
            said.append(f"weights={wanted!r} serves inference only; this call may need gradients and runs in float32")
    if path.name == "kernels":
        is_double = any(t is not None and t.dtype is torch.float64 for t in tensors)
        said += _products(module, input, "float64" if is_double else "float32", format, records)
    return ". ".join(said)


def _products(module: nn.Module, input: Any, dtype: str, format: str, training: bool) -> list[str]:
    """What multiplies in the first layer, where it is not plain float32."""
    if isinstance(input, PackedSequence):
        time_steps, batch = len(input.batch_sizes), int(input.batch_sizes[0])
    elif isinstance(module, nn.LSTM):
        time_steps, batch = input.shape[:2] if input.dim() == 3 else (len(input), 1)
        if module.batch_first and input.dim() == 3:
            time_steps, batch = batch, time_steps
    else:
        time_steps, batch = 1, len(input) if input.dim() == 2 else 1
    precision, format = arguments.precision_of(None), "float32" if training else format
    plan = _core.plan_of(
        time_steps, batch, module.input_size, module.hidden_size, dtype, precision,
        not getattr(module, "proj_size", 0), bool(getattr(module, "proj_size", 0)), False, training, format,
    )
    return [sentence.rstrip(".") for sentence in runtime.product_sentences(plan, precision, format, training=training)]
