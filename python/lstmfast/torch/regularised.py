"""Calls of an LSTM with options that torch's has not: recurrent dropout, zoneout, weight dropout, layer normalisation,
learnt initial states.

Serves them by the kernels, or in torch operations with the same masks where the kernels cannot (see `paths`). Masks
depend on one seed per call, drawn from torch's generator, and on the places in the batch and in x. torch's own forward
never serves such a module: it would compute something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import _disable_current_modes

from lstmfast import _core
from lstmfast.cells import Cell
from lstmfast.torch import arguments, composite, kernels, paths, recording, serving, weights
from lstmfast.torch.calls import CallOptions, Extras, Noise, Result, Variant, Weights

CELL = "_cell"  # of a module of lstmfast.torch.LSTM: the cell, if it is not torch's
_functorch = torch._C._functorch


def cell_of(module: nn.Module) -> Cell | None:
    """The cell of a module with such options; None for any other module."""
    return getattr(module, CELL, None) if serving.is_ours(module) else None


# --- parameters -------------------------------------------------------------------------------------------------------


def register(module: nn.LSTM, cell: Cell) -> None:
    """Give a new module the parameters that its cell has besides torch's: norm_gain_l0, ..., initial_c_l0_reverse."""
    module.__dict__[CELL] = cell
    for k, layer in enumerate(weights.by_layer(module)):
        hidden_size, output_size = layer.weight_hh.shape[0] // 4, layer.weight_hh.shape[1]
        shapes: dict[str, tuple[int, ...]] = {}
        if cell.layer_norm is not None:
            rows = 2 if cell.layer_norm == "products" else 1
            shapes = {"norm_gain": (rows, 4 * hidden_size), "cell_gain": (hidden_size,), "cell_shift": (hidden_size,)}
        if cell.learn_initial_state:
            shapes |= {"initial_h": (output_size,), "initial_c": (hidden_size,)}
        for name, shape in shapes.items():
            values = layer.weight_hh.detach().new_empty(shape)
            setattr(module, f"{name}{weights.suffix(module, k)}", nn.Parameter(values))
    reset_parameters(module)


def reset_parameters(module: nn.LSTM) -> None:
    """Set the gains to 1, shifts and initial states to 0."""
    with torch.no_grad():
        for layer in extras_of(module):
            for name, values in zip(Extras._fields, layer, strict=True):
                if values is not None:
                    values.fill_(1.0 if name.endswith("gain") else 0.0)


def extras_of(module: nn.Module) -> list[Extras]:
    """The parameters that torch's LSTM lacks, of every layer and direction; computed ones, if they are parametrized."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    ends = [weights.suffix(module, k) for k in range(count)]
    return [Extras(*(getattr(module, f"{name}{end}", None) for name in Extras._fields)) for end in ends]


# --- a call -----------------------------------------------------------------------------------------------------------


def lstm(
    module: Any,
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_cells: bool = False,
    matmul_precision: str | None = None,
    seed: int | None = None,
    first_step: int = 0,
) -> Any:
    """`lstmfast.torch.LSTM.forward` of a module with such options."""
    cell: Cell = module._cell
    is_packed = isinstance(input, PackedSequence)
    x = input.data if is_packed else input
    if not isinstance(x, Tensor):
        raise TypeError(f"LSTM: input must be a tensor or a PackedSequence, got {type(x).__name__}")
    hx = arguments.pair_of(x, 3, hx) if not is_packed else hx
    arguments.check_pair(hx, "LSTM")
    layers, extras = weights.by_layer(module), extras_of(module)
    tensors = _tensors(x, hx, layers, extras)
    path = _path(module, tensors, return_cells)
    noise = _noise(module, cell, seed, first_step)
    if is_packed:
        arguments.check_packed(module, x, hx, int(input.batch_sizes[0]))
        if lengths is not None or resets is not None or return_cells:
            raise ValueError("lengths, resets and return_cells must not be given with a PackedSequence")
    if not arguments.is_call(module, x, hx, layers, is_packed):
        serving.originals[nn.LSTM](module, input, hx)  # says what is wrong
        raise ValueError(f"LSTM with {_words(cell)}: an input of shape {tuple(x.shape)} is not supported")
    if recording.is_on:
        recording.note(path.name, path.why)
    h_dtype, c_dtype = arguments.result_dtypes(
        module, x, None if hx is None else hx[1], input.batch_sizes if is_packed else None
    )
    precision = arguments.precision_of(matmul_precision)
    is_cast = arguments.autocasts()
    with arguments.without_autocast(x):
        form, x = arguments.Form.of(module, input)
        state = form.state_in(hx)
        records = paths.may_have_gradients(tensors)
        x, state, layers = arguments.computed(x, state, layers, None, copies=records and is_cast)
        extras = [Extras(*(None if e is None else e.to(x.dtype) for e in layer)) for layer in extras]
        if records and state is not None:  # torch copies states too, and its caller may write into them
            state = state[0].clone(), state[1].clone()
        if resets is not None and form.batch_first and form.is_batched:
            resets = torch.as_tensor(resets).t()
        options = CallOptions(
            form.lengths if is_packed else arguments.lengths_of(lengths, x, paths.is_under_func()),
            arguments.resets_of(resets, x), False, precision,
        )

        def run(k: int, x: Tensor, reverse: bool, wants_cells: bool) -> Result:
            h0, c0 = (None, None) if state is None else (state[0][k], state[1][k])
            variant = Variant(cell, extras[k], None if noise is None else (noise[0], k, noise[2]))
            return run_layer(
                path.name, x, h0, c0, layers[k], options._replace(reverse=reverse), variant, wants_cells=wants_cells
            )

        h, h_n, c_n, cells = _run_stack(module, run, form, x, return_cells)
        if h_dtype is not h.dtype or c_dtype is not c_n.dtype:
            h, h_n, c_n = h.to(h_dtype), h_n.to(h_dtype), c_n.to(c_dtype)
            cells = None if cells is None else cells.to(c_dtype)
        elif path.name == "kernels" and h.requires_grad and not (is_packed or module.bidirectional):
            h = h.clone()  # backward reads the other one, and the caller may write
        output, state = form.out(h, input), form.state_out((h_n, c_n))
        return (output, state, form.out(cells, input)) if return_cells else (output, state)


def _run_stack(
    module: Any, run: Callable[[int, Tensor, bool, bool], Result], form: arguments.Form, x: Tensor, return_cells: bool
) -> Result:
    """The stack over x [T, B, I]. run: a layer and direction, from (number, input, reverse, wants_cells)."""
    directions = 2 if module.bidirectional else 1
    found: list[Result] = []
    for layer in range(module.num_layers):
        is_top = layer == module.num_layers - 1
        first = layer * directions
        results = [run(first + d, x, d == 1, return_cells and is_top) for d in range(directions)]
        found += results
        x = results[0].h if directions == 1 else torch.cat([result.h for result in results], -1)
        if module.dropout and module.training and not is_top:
            x = serving.dropout(form, x, module.dropout)
    top = [result.cells for result in found[-directions:] if result.cells is not None]
    h_n, c_n = torch.stack([result.h_n for result in found]), torch.stack([result.c_n for result in found])
    return Result(x, h_n, c_n, torch.cat(top, -1) if top else None)


def run_layer(
    path: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    own: Weights,
    options: CallOptions,
    variant: Variant,
    *,
    wants_cells: bool = False,
) -> Result:
    """One direction of one layer over x [T, B, I], by the kernels or in torch operations."""
    if path != "kernels":
        return Result(*composite.forward(x, h0, c0, own, options, variant))
    kernels.follow_torchs_threads()
    records = paths.may_have_gradients((x, h0, c0, *own, *variant.extras))
    if records:
        x = serving.to_be_saved(x, own)
    return kernels.run_variant(x, h0, c0, own, options, variant, records=records, keep_cells=wants_cells)


def uncompiled() -> Callable[..., Any]:
    """`lstm` as a call that torch.compile leaves out of its graph."""
    global _uncompiled
    if _uncompiled is None:
        _uncompiled = torch.compiler.disable(lstm)
    return _uncompiled


_uncompiled: Callable[..., Any] | None = None


# --- which path -------------------------------------------------------------------------------------------------------


def _path(module: nn.Module, tensors: tuple[Tensor | None, ...], wants_cells: bool) -> paths.Path:
    path = paths.choose(module, tensors, is_ours=True, wants_cells=wants_cells)
    if path.name == "kernels":
        return path
    why = "lstmfast's CUDA kernels have no such options" if path.name == "cuda" else path.why
    return paths.Path("composite", why)


def explain(module: nn.Module, input: Any, hx: Any = None, *, return_cells: bool = False) -> str:
    """Say in a sentence what serves a call of such a module, and why."""
    x = input.data if isinstance(input, PackedSequence) else input
    path = _path(module, _tensors(x, hx, weights.by_layer(module), extras_of(module)), return_cells)
    if path.name == "kernels":
        return f"lstmfast's kernels ({_core.current_isa()}): {path.why}"
    return f"torch operations, step by step: {path.why}"


def _tensors(x: Tensor, hx: Any, layers: list[Weights], extras: list[Extras]) -> tuple[Tensor | None, ...]:
    return (x, *(hx or ()), *(w for layer in layers for w in layer), *(e for layer in extras for e in layer))


def _words(cell: Cell) -> str:
    return ", ".join(sorted(cell.features))


# --- the seed ---------------------------------------------------------------------------------------------------------


def _noise(module: nn.Module, cell: Cell, seed: int | None, first_step: int) -> Noise | None:
    """The noise of a call, its layer still 0; None in inference and for cells without any."""
    if not (module.training and cell.is_random):
        return None
    if torch.jit.is_tracing() or paths.is_exporting():
        raise RuntimeError(
            f"LSTM with {_words(cell)}: an exported or traced graph would repeat the same masks in every call; "
            "call eval() before exporting"
        )
    if seed is None:
        seed = drawn_seed()
    elif not 0 <= int(seed) < 2**64:
        raise ValueError(f"seed must be from 0 to 2**64 - 1, got {seed}")
    if int(first_step) < 0:
        raise ValueError(f"first_step must be 0 or more, got {first_step}")
    return int(seed), 0, int(first_step) % 2**32


def drawn_seed() -> int:
    """A seed from torch's CPU generator, as torch.manual_seed and checkpoints set it."""
    transform = _functorch.peek_interpreter_stack()
    if transform is not None:
        if transform.key() == _functorch.TransformType.Vmap:
            _check_randomness(_functorch.CVmapInterpreterPtr(transform).randomness())
        with temporarily_pop_interpreter_stack():
            return drawn_seed()
    with _disable_current_modes():
        return int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device="cpu")) % 2**64


def _check_randomness(randomness: Any) -> None:
    """vmap's `randomness` decides whether its samples may share the masks."""
    if randomness == _functorch.RandomnessType.Same:
        return
    raise RuntimeError(
        "LSTM: in training, vmap needs randomness='same' for its masks, which are then the same for every sample; call "
        "eval() for none"
    )
