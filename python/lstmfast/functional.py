"""The LSTM as functions: arrays in, arrays out. One layer, one direction, weights as arguments.

The engine depends on the device of x: `_engine.cpu` for NumPy arrays, `cuda` for arrays on a GPU. Refuses to hold
weights (see `layers`) and batch-major arrays (see `LSTM(batch_first=True)`). The equations are in `reference`, the
order of the gates in `gates`.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast import runtime
from lstmfast._checks import Array
from lstmfast._engine import cpu
from lstmfast._engine.devices import is_on_device
from lstmfast._engine.results import Gradients, Output
from lstmfast.cells import NORMALIZED, Cell, check_features, zoneout_rates
from lstmfast.cuda import _sequences as on_cuda

__all__ = ["Gradients", "Output", "lstm", "lstm_backward", "lstm_step"]


def lstm_step(
    x: npt.NDArray[Any],
    h: npt.NDArray[Any],
    c: npt.NDArray[Any],
    kernel: npt.NDArray[Any],
    bias: npt.NDArray[Any],
    *,
    forget_bias: float = 0.0,
    peepholes: npt.NDArray[Any] | None = None,
    projection: npt.NDArray[Any] | None = None,
    cell_clip: float | None = None,
    coupled_gates: bool = False,
    zoneout: float | tuple[float, float] | None = None,
    norm_gain: npt.NDArray[Any] | None = None,
    cell_gain: npt.NDArray[Any] | None = None,
    cell_shift: npt.NDArray[Any] | None = None,
    layer_norm_epsilon: float = 1e-5,
    layer_norm_carry: bool = False,
) -> tuple[Array, Array]:
    """Advance an LSTM by one time step.

    Shapes: x [batch, input_size], or integer ids [batch] (see `lstm`); h, c [batch, hidden_size];
    kernel [input_size + hidden_size, 4*hidden_size]; bias [4*hidden_size]. Column order: i, f, g, o (see `gates`).
    Other options: see `lstm`; as in inference, zoneout uses its expectation.
    Returns (h_next, c_next), both new, [batch, hidden_size]. Many steps with the same weights are faster with
    `LSTM.stream`, which packs them once. Arrays may be on a CUDA device, as in `lstm`.
    Raises ValueError naming the argument whose shape or ids are wrong; TypeError if float32 and float64 are mixed.
    Source: Gers, Schmidhuber & Cummins 2000, eqs. 1-5; `reference.lstm_step` is the same in NumPy.
    """
    if not isinstance(x, np.ndarray) and is_on_device(x):
        out = lstm(
            x[None], kernel, bias, h, c, forget_bias=forget_bias, peepholes=peepholes, projection=projection,
            cell_clip=cell_clip, coupled_gates=coupled_gates, zoneout=zoneout, norm_gain=norm_gain,
        )
        return out.h_n, out.c_n
    if zoneout is None and norm_gain is None and cell_gain is None and cell_shift is None:
        cell = _cell_of(forget_bias, peepholes, projection, cell_clip, coupled_gates)
        return cpu.lstm_step(x, h, c, kernel, bias, cell=cell, peepholes=peepholes, projection=projection)
    norms, layer_norm = _norms(norm_gain, cell_gain, cell_shift)
    cell = _cell_of(
        forget_bias, peepholes, projection, cell_clip, coupled_gates, zoneout=zoneout_rates(zoneout),
        layer_norm=layer_norm, layer_norm_epsilon=layer_norm_epsilon, layer_norm_carry=layer_norm_carry,
    )
    return cpu.lstm_step(x, h, c, kernel, bias, cell=cell, peepholes=peepholes, projection=projection, norms=norms)


def lstm(
    x: npt.NDArray[Any],
    kernel: npt.NDArray[Any],
    bias: npt.NDArray[Any],
    h0: npt.NDArray[Any] | None = None,
    c0: npt.NDArray[Any] | None = None,
    *,
    lengths: npt.ArrayLike | None = None,
    resets: npt.ArrayLike | None = None,
    reverse: bool = False,
    forget_bias: float = 0.0,
    return_cells: bool = False,
    return_gates: bool = False,
    keep_for_backward: bool = False,
    matmul_precision: str | None = None,
    peepholes: npt.NDArray[Any] | None = None,
    projection: npt.NDArray[Any] | None = None,
    cell_clip: float | None = None,
    coupled_gates: bool = False,
    recurrent_dropout: float = 0.0,
    recurrent_dropout_of: Literal["h", "g"] = "h",
    recurrent_dropout_per_step: bool = False,
    zoneout: float | tuple[float, float] | None = None,
    weight_dropout: float = 0.0,
    norm_gain: npt.NDArray[Any] | None = None,
    cell_gain: npt.NDArray[Any] | None = None,
    cell_shift: npt.NDArray[Any] | None = None,
    layer_norm_epsilon: float = 1e-5,
    layer_norm_carry: bool = False,
    initial_h: npt.NDArray[Any] | None = None,
    initial_c: npt.NDArray[Any] | None = None,
    seed: int | None = None,
    layer: int = 0,
    first_step: int = 0,
) -> Output:
    """Run an LSTM over whole sequences.

    Shapes: x [T, B, I], or integer ids [T, B], which stand for one-hot rows: kernel then has V + H rows and ids are in
    0..V-1; kernel [I + H, 4*H]; bias [4*H], columns i, f, g, o; h0, c0 [B, H], zero if None. Time comes first.
    lengths [B], in any order and from 0 to T: row b ends after lengths[b] steps, its later outputs are zero and its
    final state is that of its own last step. resets [T, B], bool: the state is zeroed before that step.
    reverse: each row is read from its own last step to its first; outputs keep their time steps.
    Returns Output: h [T, B, H]; h_n, c_n [B, H]; with return_cells, cells [T, B, H]; with return_gates, the activated
    gates [T, B, 4, H] in order i, f, g, o. keep_for_backward keeps what `lstm_backward` needs, including references to
    x, kernel and the output: do not modify them before that call. matmul_precision: see `set_matmul_precision`.
    Variants of the cell, which can be combined:
    peepholes [3, H], rows i, f, o: the gates i and f also read the cell state before the step, o that after it.
    projection [H, P]: h is (o * tanh(c)) @ projection. h0, h and h_n then end in P, and kernel is [I + P, 4*H].
    cell_clip: c is clipped to [-cell_clip, cell_clip] before any use; no gradient passes where it was clipped.
    coupled_gates: f = 1 - i. The forget gate's columns, its bias and forget_bias are not read, their gradients are 0.
    Regularised cells, which can be combined with each other and with those; `Cell` has the sources:
    recurrent_dropout: share of h that is dropped before the recurrent product, or with recurrent_dropout_of="g" of the
    candidate; one mask for all steps of a row, or with recurrent_dropout_per_step one for each step. zoneout: share of
    h and c, one number or a pair, that keeps its earlier value. weight_dropout: share of the recurrent kernel that is
    dropped. All three draw masks if keep_for_backward or a seed is given; otherwise dropout is off and zoneout takes
    its expectation. Masks depend on seed (drawn if None, and returned as Output.seed), layer, the numbers of row and
    unit, and first_step + time step: a sequence cut in two computes the same, given first_step and the state.
    norm_gain [2, 4*H]: layer normalisation of x @ kernel and h @ kernel before their gains and the bias are applied, or
    [1, 4*H]: of each gate of their sum. cell_gain, cell_shift [H], then needed: o * tanh(norm(c) * cell_gain +
    cell_shift); with layer_norm_carry that also is the c of the next step. Not with coupled_gates.
    initial_h [H or P], initial_c [H]: the state of rows without h0, c0, and after resets, with a gradient.
    If x is on a CUDA device (an array of torch or cupy), all float arrays must be there, and the results are: float32
    or bfloat16, with c, cells and gates in float32. The call is asynchronous, and autograd does not record it.
    Raises ValueError naming the argument whose shape or values are wrong; TypeError for other or mixed dtypes.
    Source: `reference.lstm` is the same in NumPy.
    """
    precision = runtime.resolve_matmul_precision(matmul_precision)
    options: dict[str, Any] = {
        "lengths": lengths, "resets": resets, "reverse": bool(reverse), "return_cells": bool(return_cells),
        "return_gates": bool(return_gates), "keep_for_backward": bool(keep_for_backward),
        "matmul_precision": precision,
    }
    if not isinstance(x, np.ndarray) and is_on_device(x):
        given = {
            "peepholes": peepholes is not None, "projection": projection is not None,
            "cell_clip": cell_clip is not None, "coupled_gates": coupled_gates,
            "recurrent_dropout": recurrent_dropout, "zoneout": zoneout_rates(zoneout), "weight_dropout": weight_dropout,
            "layer_norm": norm_gain is not None,
            "learn_initial_state": initial_h is not None or initial_c is not None,
        }
        check_features([name for name in given if given[name]], on_cuda.FEATURES, on_cuda.PLACE)
        return on_cuda.lstm(x, kernel, bias, h0, c0, forget_bias=check.finite("forget_bias", forget_bias), **options)
    if (
        initial_h is None and initial_c is None and norm_gain is None and cell_gain is None and cell_shift is None
        and zoneout is None and seed is None and not (recurrent_dropout or weight_dropout)
    ):
        cell = _cell_of(forget_bias, peepholes, projection, cell_clip, coupled_gates)
        return cpu.lstm(x, kernel, bias, h0, c0, cell=cell, peepholes=peepholes, projection=projection, **options)
    if (initial_h is None) != (initial_c is None):
        raise ValueError("initial_h and initial_c must be given together, got one of them")
    norms, layer_norm = _norms(norm_gain, cell_gain, cell_shift)
    cell = _cell_of(
        forget_bias, peepholes, projection, cell_clip, coupled_gates, recurrent_dropout=recurrent_dropout,
        recurrent_dropout_of=recurrent_dropout_of, recurrent_dropout_per_step=bool(recurrent_dropout_per_step),
        zoneout=zoneout_rates(zoneout), weight_dropout=weight_dropout, layer_norm=layer_norm,
        layer_norm_epsilon=layer_norm_epsilon, layer_norm_carry=layer_norm_carry,
        learn_initial_state=initial_h is not None,
    )
    noise, seed = None, None if seed is None else check.seed(seed)
    if cell.is_random and (keep_for_backward or seed is not None):
        noise = (draw_seed() if seed is None else seed, *_place(layer, first_step))
    return cpu.lstm(
        x, kernel, bias, h0, c0, cell=cell, peepholes=peepholes, projection=projection, norms=norms,
        initial=None if initial_h is None else (initial_h, initial_c), noise=noise, **options,
    )


def lstm_backward(
    out: Output,
    d_h: npt.NDArray[Any] | None = None,
    d_h_n: npt.NDArray[Any] | None = None,
    d_c_n: npt.NDArray[Any] | None = None,
) -> Gradients:
    """Compute the gradients of a loss by the arguments of `lstm`, from those by its outputs.

    out: returned by lstm(..., keep_for_backward=True). d_h [T, B, H], d_h_n, d_c_n [B, H]; None stands for zeros.
    Returns Gradients: x [T, B, I] (None for ids), kernel, bias, h0, c0, and peepholes and projection if given, each of
    its argument's shape. May be called again with other derivatives.
    Raises ValueError naming the argument at fault, TypeError for another dtype.
    Source: backpropagation through time, Werbos 1990; `reference.lstm_backward` is the same in NumPy.
    """
    if not isinstance(out, Output):
        raise TypeError(f"out must be the Output of lstm, got {type(out).__name__}")
    if out._saved is None:
        raise ValueError("out must come from lstm(..., keep_for_backward=True), got one that kept nothing")
    return out._saved.backward(d_h, d_h_n, d_c_n)


def draw_seed(rng: np.random.Generator | None = None) -> int:
    """Return a seed of masks, from the operating system if rng is None."""
    return int((rng or np.random.default_rng()).integers(2**64, dtype=np.uint64))


def _place(layer: Any, first_step: Any) -> tuple[int, int]:
    """Return the numbers that, with a seed, place a call among others."""
    layer = check.whole_number("layer", layer, 0)
    if layer >= 2**30:  # masks are numbered by 4 * layer in 32 bits
        raise ValueError(f"layer must be below 2**30, got {layer}")
    return layer, check.whole_number("first_step", first_step, 0) % 2**32


def _norms(norm_gain: Any, cell_gain: Any, cell_shift: Any) -> tuple[tuple[Any, Any, Any] | None, str | None]:
    """Return the arrays of a layer normalisation and its kind, or None for both."""
    for name, value in (("cell_gain", cell_gain), ("cell_shift", cell_shift)):
        if (value is None) != (norm_gain is None):
            raise ValueError(f"norm_gain and {name} must be given together, got one of them")
    if norm_gain is None:
        return None, None
    rows = check.array("norm_gain", norm_gain, ("1 or 2", "4*hidden_size")).shape[0]
    kinds = {count: kind for kind, count in NORMALIZED.items()}
    if rows not in kinds:
        raise ValueError(f"norm_gain must have 2 rows, for both products, or 1, for their sum, got {rows}")
    return (norm_gain, cell_gain, cell_shift), kinds[rows]


def _cell_of(
    forget_bias: Any, peepholes: Any, projection: Any, cell_clip: Any, coupled_gates: Any, **regularised: Any
) -> Cell:
    """Return the cell with these options of `lstm`."""
    if projection is None and peepholes is None and cell_clip is None and not coupled_gates and not regularised:
        return _cell(check.finite("forget_bias", forget_bias))
    size = None
    if projection is not None:
        size = check.array("projection", projection, ("hidden_size", "projection_size")).shape[1]
    options = (
        check.finite("forget_bias", forget_bias), size, peepholes is not None, check.cell_clip(cell_clip),
        bool(coupled_gates),
    )
    try:
        return _cell(*options, **regularised)
    except TypeError:  # perhaps a value that cannot be looked up; then `Cell` names it
        return Cell(*options, **regularised)


_cell = functools.lru_cache(maxsize=256)(Cell)  # creating one in every call would slow down single steps
