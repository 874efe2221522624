"""Threads, instruction sets, the precision of matrix products, and which kernel a call would use.

Refuses to guess: everything comes from the extension. The extension reads the environment variables LSTMFAST_ISA and
LSTMFAST_NUM_THREADS once, when it first needs them.
"""

from __future__ import annotations

import os
from typing import Any

from lstmfast import _checks as check
from lstmfast import _core, _memory
from lstmfast.cells import Cell

_matmul_precision = "highest"

_WHY_FLOAT32 = {
    "dtype": "float64 factors are never rounded",
    "cell": "only cells without a projection have other products",
    "isa": "this CPU has no faster instruction for it",
    "size": "the batch or the layer is too small to gain",
}
_HOOKS = {
    "peepholes": "peepholes",
    "projection_size": "a projection",
    "cell_clip": "a clip",
    "coupled_gates": "coupled gates",
    "layer_norm": "layer normalisation",
    "zoneout": "zoneout",
}
_HOOKS_OF_TRAINING = {"recurrent_dropout": "recurrent dropout", "weight_dropout": "weight dropout"}
_ROUNDED = {
    "int16": "x and h are rounded to 12 bits and weights to 13",
    "int8": "x, h and weights are rounded to 8 bits",
}


def set_matmul_precision(precision: str) -> None:
    """Set the default precision of matrix products, for calls without their own: "highest", "high" or "medium".

    "highest" is as accurate as float32 arithmetic. "high" allows an error of 1e-5 of a product's size and "medium" of
    1e-2, if that is faster on the CPU. On AMX factors are two parts of bfloat16, or one. On VNNI "medium" rounds the
    factors of the forward pass to 12 and 13 bits (error about 5e-4), and those of the backward pass to bfloat16 if the
    CPU multiplies it. Otherwise both run as "highest".
    Nonlinearities, states and float64 are never less exact. Raises ValueError for any other value.
    """
    global _matmul_precision
    _matmul_precision = check.matmul_precision(precision)


def get_matmul_precision() -> str:
    """Return the default precision of matrix products, initially "highest"."""
    return _matmul_precision


def resolve_matmul_precision(precision: str | None) -> str:
    """Return the precision of a call: its own, or with None the default."""
    return _matmul_precision if precision is None else check.matmul_precision(precision)


def set_num_threads(num_threads: int) -> None:
    """Set how many threads a call may use, at least 1. Results have the same bits for any number."""
    _core.set_num_threads(check.whole_number("num_threads", num_threads))


def get_num_threads() -> int:
    """Return how many threads a call may use."""
    return _core.get_num_threads()


def release_memory() -> None:
    """Release the workspaces that layers and functions keep from call to call.

    After a call that was much larger than the following ones, workspaces shrink by themselves within 15 calls; this is
    for a program that makes no calls for a while. Keeps weights, packed weights, and what the `backward` of a call with
    training=True needs. Skips layers that are running in another thread. The next call of each layer allocates again,
    and is slower.
    """
    _memory.release_pools()
    _core.release_memory()


def available_isas() -> list[str]:
    """Return the instruction sets that the extension was built for and this CPU supports, the narrowest first."""
    return _core.available_isas()


def build_info() -> dict[str, str]:
    """Return the version, compiler, flags and other build settings of the extension."""
    return _core.build_info()


def explain(
    batch: int,
    time_steps: int,
    input_size: int,
    hidden_size: int,
    dtype: Any = "float32",
    *,
    token_input: bool = False,
    matmul_precision: str | None = None,
    training: bool = False,
    weights: str = "float32",
    projection_size: int | None = None,
    peepholes: bool = False,
    cell_clip: float | None = None,
    coupled_gates: bool = False,
    cell: Cell | None = None,
) -> str:
    """Return a few sentences on which kernel a call of this shape would use, and why.

    token_input: ids [time_steps, batch] in place of x [time_steps, batch, input_size]. training: a call followed by
    backward. weights: as in `LSTM.inference`; the last five as in `LSTM`. Raises ValueError for a size out of range or
    an unknown precision, TypeError for another dtype.
    """
    batch = check.whole_number("batch", batch, 0)
    time_steps = check.whole_number("time_steps", time_steps, 0)
    input_size = check.whole_number("input_size", input_size, 0)
    hidden_size = check.whole_number("hidden_size", hidden_size)
    precision = resolve_matmul_precision(matmul_precision)
    name = check.float_dtype(dtype).name
    weights = check.kept_weights(weights, check.float_dtype(dtype))
    cell = Cell.of(
        cell, projection_size=projection_size, peepholes=peepholes, cell_clip=cell_clip, coupled_gates=coupled_gates
    )
    output_size = cell.output_size(hidden_size)
    hooks = [words for option, words in _HOOKS.items() if getattr(cell, option)]
    if training:
        hooks += [words for option, words in _HOOKS_OF_TRAINING.items() if getattr(cell, option)]

    plan = _core.plan_of(
        time_steps, batch, input_size, hidden_size, name, precision, not hooks, cell.projection_size is not None,
        token_input, training, weights,
    )
    reason = "forced by LSTMFAST_ISA" if os.environ.get("LSTMFAST_ISA") else "the widest that this CPU supports"
    hoists_input = plan["hoists_input"] or cell.layer_norm is not None
    alone = token_input or hoists_input
    gates = "the gates are computed while it is in registers"
    if cell.layer_norm is not None:
        gates = "it is normalised in memory before the gates are computed"
    depth, width = output_size + (0 if alone else input_size), 4 * hidden_size
    step = (
        f"Each step is one product of {'h' if alone else '[x, h]'} ({batch} x {depth}) and the kernel "
        f"({depth} x {width}); {gates}"
    )
    source = ""
    if token_input:
        source = f". An id adds one of {input_size} rows of the kernel, looked up and not multiplied"
    elif hoists_input:
        source = f". The product of x ({input_size} x {width}) is computed beforehand, for many steps at once"
    sentences = [
        f"{name} on the {plan['isa']} kernels, {reason}.",
        f"{step}{source}.",
        f"At most {get_num_threads()} threads share the {time_steps} steps, fewer if there is too little work.",
    ]
    if 0 < time_steps * batch <= plan["rows_unpacked"]:
        sentences.append(
            f"Weights are read in place, not packed: for up to {plan['rows_unpacked']} rows if they serve one call, as "
            f"in training, lstm and lstm_step, and for up to {plan['rows_unlooked']} rows otherwise."
        )
    if hooks:
        listed = " and ".join([", ".join(hooks[:-1]), hooks[-1]] if hooks[1:] else hooks)
        sentences.append(f"The cell has {listed}, computed in the same step.")
    sentences += product_sentences(plan, precision, weights, training=training)
    return " ".join(sentences)


def product_sentences(plan: dict[str, Any], precision: str, weights: str, *, training: bool) -> list[str]:
    """Name the products of a call with this plan of `_core.plan_of`; none for those of float32 as they are."""
    sentences = []
    rounded, _, backward = plan["path"].partition(" and ")
    reason = f'matmul_precision "{precision}"' if weights == "float32" else f'weights "{weights}"'
    if rounded == "bf16x":
        parts, products = _count(plan["bf16x_parts"], "bfloat16 part"), _count(plan["bf16x_products"], "product")
        largest = f"{plan['bf16x_largest']:.1e}".replace("e+", "e")
        sentences.append(
            f"{reason}: factors are split into {parts} and multiplied in {products} on the "
            f"{plan['bf16x_unit']}; if a value is not finite or above {largest}, the call runs in float32."
        )
    elif rounded in _ROUNDED:
        unit = plan["dot_unit"] or "several instructions each, because this CPU has none for dot products"
        sentences.append(f"{reason}: {_ROUNDED[rounded]}, multiplied by {unit}; sums of integers are exact.")
        if training:
            unit = f"are of bfloat16, on the {plan['bf16x_unit']}" if backward else "are float32"
            sentences.append(f"The backward pass's products {unit}.")
    elif weights != "float32" or precision != "highest":
        sentences.append(f"{reason} is multiplied in float32: {_WHY_FLOAT32[plan['refusal']]}.")
    return sentences


def _count(count: int, noun: str) -> str:
    words = {1: "one", 2: "two", 3: "three", 6: "six"}
    return f"{words[count]} {noun}{'' if count == 1 else 's'}"
