"""The machine underneath: threads, instruction sets, matrix-product precision, and which kernel a call would use.

Refuses to guess: everything is asked of the extension. The environment variables LSTMFAST_ISA and LSTMFAST_NUM_THREADS
are read once, by the extension, when it first needs them.
"""

from __future__ import annotations

import os
from typing import Any

from lstmfast import _checks as check
from lstmfast import _core, _memory

_matmul_precision = "highest"

_WHY_FLOAT32 = {
    "dtype": "float64 factors are never rounded",
    "cell": "only plain cells have other products",
    "isa": "this CPU has no faster instruction for it",
    "size": "the batch or the layer is too small to gain",
}
_ROUNDED = {
    "int16": "x and h are rounded to 12 bits and weights to 13",
    "int8": "x, h and weights are rounded to 8 bits",
}


def set_matmul_precision(precision: str) -> None:
    """Set how exact matrix products are for every call that does not say so itself: "highest", "high" or "medium".

    "highest" is as accurate as float32 arithmetic. "high" allows an error of 1e-5 of a product's size and "medium" of
    1e-2, where a CPU gains from it. On AMX factors are two parts of bfloat16, or one. On VNNI "medium" rounds the
    factors of the forward pass to 12 and 13 bits (error about 5e-4), and those of the backward pass to bfloat16 where
    the CPU multiplies it. Elsewhere both run as "highest".
    Nonlinearities, states and float64 are never less exact. Raises ValueError for any other word.
    """
    global _matmul_precision
    _matmul_precision = check.matmul_precision(precision)


def get_matmul_precision() -> str:
    """Return the precision set last, "highest" at first."""
    return _matmul_precision


def resolve_matmul_precision(precision: str | None) -> str:
    """Return the precision a call runs under: its own, or with None the one set for all."""
    return _matmul_precision if precision is None else check.matmul_precision(precision)


def set_num_threads(num_threads: int) -> None:
    """Set how many threads a call may use, at least 1. Results have the same bits for any number."""
    _core.set_num_threads(check.whole_number("num_threads", num_threads))


def get_num_threads() -> int:
    """Return how many threads a call may use."""
    return _core.get_num_threads()


def release_memory() -> None:
    """Give the memory that calls left for the next ones of their size back to the system.

    Layers and functions keep their workspaces from call to call. After a call that was much larger than those that
    follow they shrink by themselves, within 15 calls; this is for a program that makes no further calls for a while.
    Kept are weights, what is packed of them, and what the `backward` of a call with training=True needs. Layers that
    another thread runs at this moment are left alone. The next call of each layer allocates again, and is slower once.
    """
    _memory.release_pools()
    _core.release_memory()


def available_isas() -> list[str]:
    """Return the instruction sets that are built in and that this CPU runs, the narrowest first."""
    return _core.available_isas()


def build_info() -> dict[str, str]:
    """Return version, compiler, flags and the like of the extension."""
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
) -> str:
    """Say in a few sentences which kernel a call of this shape would use, and why.

    `token_input` stands for ids [time_steps, batch] in place of x [time_steps, batch, input_size], `training` for a
    call that backward follows; weights is that of `LSTM.inference`, and the last four are those of `LSTM`. Raises as
    `lstm` does: ValueError for a size out of range or an unknown precision, TypeError for another dtype.
    """
    batch = check.whole_number("batch", batch, 0)
    time_steps = check.whole_number("time_steps", time_steps, 0)
    input_size = check.whole_number("input_size", input_size, 0)
    hidden_size = check.whole_number("hidden_size", hidden_size)
    precision = resolve_matmul_precision(matmul_precision)
    name = check.float_dtype(dtype).name
    weights = check.kept_weights(weights, check.float_dtype(dtype))
    output_size = hidden_size if projection_size is None else check.whole_number("projection_size", projection_size)
    hooks = [
        what
        for what, wanted in {
            "peepholes": peepholes,
            "a projection": projection_size,
            "a clip": check.cell_clip(cell_clip),
            "coupled gates": coupled_gates,
        }.items()
        if wanted
    ]

    plan = _core.plan_of(
        time_steps, batch, input_size, hidden_size, name, precision, not hooks, token_input, training, weights
    )
    reason = "forced by LSTMFAST_ISA" if os.environ.get("LSTMFAST_ISA") else "the widest that this CPU runs"
    alone = token_input or plan["hoists_input"]
    depth, width = output_size + (0 if alone else input_size), 4 * hidden_size
    step = (
        f"Each step is one product of {'h' if alone else '[x, h]'} ({batch} x {depth}) by the kernel "
        f"({depth} x {width}) whose gates are split while it is in registers"
    )
    source = ""
    if token_input:
        source = f"; an id adds its row of the kernel's {input_size}, looked up and not multiplied"
    elif plan["hoists_input"]:
        source = f"; that of x ({input_size} x {width}) is made before, for many steps at once"
    sentences = [
        f"{name} on the {plan['isa']} kernels, {reason}.",
        f"{step}{source}.",
        f"At most {get_num_threads()} threads share the {time_steps} steps, fewer where there is too little work.",
    ]
    if 0 < time_steps * batch <= plan["rows_unpacked"]:
        sentences.append(
            f"So few rows read the weights as they lie: up to {plan['rows_unpacked']} where weights serve one call, as "
            f"in training, lstm and lstm_step, and up to {plan['rows_unlooked']} elsewhere; more rows have them packed."
        )
    if hooks:
        sentences.append(f"The cell has {' and '.join(hooks)}: hooks of the same step.")
    rounded, _, backward = plan["path"].partition(" and ")
    reason = f'matmul_precision "{precision}"' if weights == "float32" else f'weights "{weights}"'
    if rounded == "bf16x":
        parts, products = _count(plan["bf16x_parts"], "bfloat16 part"), _count(plan["bf16x_products"], "product")
        largest = f"{plan['bf16x_largest']:.1e}".replace("e+", "e")
        sentences.append(
            f"{reason}: factors are split in {parts} and multiplied in {products} on the "
            f"{plan['bf16x_unit']}; where a value is not finite or above {largest}, the call runs in float32."
        )
    elif rounded in _ROUNDED:
        unit = "dot products of VNNI" if plan["has_dot_products"] else "products of pairs: this CPU has no VNNI"
        sentences.append(f"{reason}: {_ROUNDED[rounded]}, multiplied by {unit}; sums of integers are exact.")
        if training:
            unit = f"are of bfloat16, on the {plan['bf16x_unit']}" if backward else "are float32"
            sentences.append(f"The backward pass's products {unit}.")
    elif weights != "float32" or precision != "highest":
        sentences.append(f"{reason} is multiplied in float32: {_WHY_FLOAT32[plan['refusal']]}.")
    return " ".join(sentences)


def _count(count: int, noun: str) -> str:
    words = {1: "one", 2: "two", 3: "three", 6: "six"}
    return f"{words[count]} {noun}{'' if count == 1 else 's'}"
