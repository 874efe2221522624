"""Problems of regularised cells, and sets of cases that cover the combinations of their options.

A case says which way each option is taken; `problem_of` makes of it the arguments that `lf.lstm` and `reference.lstm`
share. The numbers of a problem depend on the case alone, so that every ISA gets the same one.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

import lstmfast as lf
from lstmfast import _core
from support.oracles import problem, random_lengths, random_resets
from support.sequences import Outputs, strided, upstream_for

Array = npt.NDArray[Any]
Case = dict[str, Any]

DROPOUT = {
    None: {},
    "h": {"recurrent_dropout": 0.4},
    "h, per step": {"recurrent_dropout": 0.4, "recurrent_dropout_per_step": True},
    "g": {"recurrent_dropout": 0.25, "recurrent_dropout_of": "g"},
    "g, per step": {"recurrent_dropout": 0.25, "recurrent_dropout_of": "g", "recurrent_dropout_per_step": True},
}
ZONEOUT = {None: {}, "h": {"zoneout": (0.3, 0.0)}, "c": {"zoneout": (0.0, 0.4)}, "both": {"zoneout": (0.3, 0.4)}}
LAYER_NORM = {None: 0, "products": 2, "gates": 1}  # rows of norm_gain
REGULARISERS: dict[str, tuple[Any, ...]] = {
    "dropout": tuple(DROPOUT),
    "zoneout": tuple(ZONEOUT),
    "weight_dropout": (False, True),
    "layer_norm": tuple(LAYER_NORM),
    "carry": (False, True),
    "learnt_state": (False, True),
}
HOOKS: dict[str, tuple[Any, ...]] = {
    "peepholes": (False, True),
    "projection": (False, True),
    "cell_clip": (False, True),
    "coupled_gates": (False, True),
}
CALLS: dict[str, tuple[Any, ...]] = {
    "lengths": (False, True),
    "resets": (False, True),
    "reverse": (False, True),
    "ids": (False, True),
    "training": (True, False),
    "given": (("h0", "c0"), (), ("h0",), ("c0",)),
}


def is_possible(case: Case) -> bool:
    """Whether a cell can have these options together, whatever those are that the case does not name yet."""
    wants_norm = case.get("layer_norm") or case.get("carry")
    lacks_norm = case.get("layer_norm", "not named") is None
    return not (wants_norm and case.get("coupled_gates")) and not (case.get("carry") and lacks_norm)


def pairwise(ways: Mapping[str, Sequence[Any]], possible: Callable[[Case], bool] = is_possible) -> list[Case]:
    """A small set of cases in which any two ways of two options meet, if they can: two cause nearly all failures.

    Greedy: a case starts with a pair that has not met, and every other option takes the way that adds most new pairs.
    """
    draw = random.Random(0)

    def pairs(case: Case) -> set[Any]:
        return set(itertools.combinations(sorted(case.items(), key=lambda item: item[0]), 2))

    choices = [[(name, way) for way in ways[name]] for name in sorted(ways)]
    missing = {
        pair
        for first, second in itertools.combinations(choices, 2)
        for pair in itertools.product(first, second)
        if possible(dict(pair))
    }
    cases = []
    while missing:
        case = dict(draw.choice(sorted(missing, key=repr)))
        for name in draw.sample(sorted(set(ways) - set(case)), len(ways) - len(case)):
            candidates = [{**case, name: way} for way in draw.sample(list(ways[name]), len(ways[name]))]
            case = max(filter(possible, candidates), key=lambda each: len(pairs(each) & missing))
        missing -= pairs(case)
        cases.append({name: case[name] for name in ways})
    return cases


def name_of(case: Case) -> str:
    """The options that are on."""
    return " ".join(name if way is True else f"{name}={way}" for name, way in case.items() if way) or "plain"


def problem_of(
    case: Case, sizes: tuple[int, int, int, int], dtype: npt.DTypeLike = np.float64
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """The arrays of a problem of these T, B, I, H, the gradients of its outputs, and its other options."""
    rng = np.random.default_rng(zlib.crc32(repr((case, sizes)).encode()))
    time_steps, batch, _, hidden_size = sizes
    hooks = {name: case.get(name, False) for name in HOOKS}
    p = problem(
        rng, *sizes, dtype=dtype, ids=case.get("ids", False), peepholes=hooks["peepholes"],
        projection_size=(hidden_size + 2) // 2 if hooks["projection"] else None,
    )
    upstream = upstream_for(rng, p)
    more = {}
    if rows := LAYER_NORM[case.get("layer_norm")]:
        more["norm_gain"] = 1 + rng.standard_normal((rows, 4 * hidden_size)) / 4
        more["cell_gain"] = 1 + rng.standard_normal(hidden_size) / 4
        more["cell_shift"] = rng.standard_normal(hidden_size) / 4
    if case.get("learnt_state"):
        more["initial_h"] = rng.uniform(-1, 1, p["h0"].shape[1])
        more["initial_c"] = rng.standard_normal(hidden_size)
    p |= {name: values.astype(dtype) for name, values in more.items()}
    for name in {"h0", "c0"} - set(case.get("given", ("h0", "c0"))):
        del p[name]
    options: dict[str, Any] = {
        "forget_bias": 0.5,
        "cell_clip": 0.6 if hooks["cell_clip"] else None,
        "coupled_gates": hooks["coupled_gates"],
        **DROPOUT[case.get("dropout")],
        **ZONEOUT[case.get("zoneout")],
        "weight_dropout": 0.35 if case.get("weight_dropout") else 0.0,
        "layer_norm_epsilon": 0.1,  # large: a deviation near 0, as of cells that are all clipped, magnifies rounding
        "layer_norm_carry": case.get("carry", False),
        "lengths": random_lengths(rng, time_steps, batch) if case.get("lengths") else None,
        "resets": random_resets(rng, time_steps, batch) if case.get("resets") else None,
        "reverse": case.get("reverse", False),
    }
    if case.get("training", True):
        options |= {"seed": int(rng.integers(2**64, dtype=np.uint64)), "layer": 3, "first_step": 2**32 - 2}
    return p, upstream, options


def run_package(p: dict[str, Array], upstream: dict[str, Array], **options: Any) -> dict[str, Array]:
    """All outputs and gradients by the package's functions, as `sequences.run_reference` has them."""
    out = lf.lstm(**p, keep_for_backward=True, return_cells=True, return_gates=True, **options)
    d = lf.lstm_backward(out, **upstream)
    results = {name: getattr(out, name) for name in ("h", "h_n", "c_n", "cells", "gates")}
    return results | {f"d_{name}": value for name, value in vars(d).items() if value is not None}


# Arrays that the extension takes together.
GROUPS = {"norms": ("norm_gain", "cell_gain", "cell_shift"), "initial": ("initial_h", "initial_c")}


def cell_of(p: dict[str, Array], options: dict[str, Any]) -> lf.Cell:
    """The cell that has these arrays and options of `lstm`."""
    of_cell = {field.name for field in fields(lf.Cell)}
    return lf.Cell(
        projection_size=p["projection"].shape[1] if "projection" in p else None,
        peepholes="peepholes" in p,
        layer_norm={1: "gates", 2: "products"}[len(p["norm_gain"])] if "norm_gain" in p else None,
        learn_initial_state="initial_h" in p,
        **{name: value for name, value in options.items() if name in of_cell},
    )


def run_core(
    p: dict[str, Array],
    upstream: dict[str, Array] | None,
    *,
    outputs: Outputs | None = None,
    sequence: _core.Sequence | None = None,
    transposed: bool = False,
    restored: bool = False,
    weights: str = "float32",
    matmul_precision: str = "highest",
    **options: Any,
) -> dict[str, Array]:
    """As `run_package`, by the extension itself, into `outputs`; without upstream, outputs alone.

    transposed: the weights lie as in PyTorch. restored: what the forward pass saved goes to another sequence, which
    runs the backward pass; there are no cells then.
    """
    dtype, outputs = p["kernel"].dtype, outputs or Outputs()
    (time_steps, batch), hidden = p["x"].shape[:2], p["bias"].shape[0] // 4
    cell = cell_of(p, options)
    output = cell.output_size(hidden)
    states = {"h": (batch, output), "c": (batch, hidden)}
    noise = (options["seed"], options["layer"], options["first_step"]) if "seed" in options else None
    call = {"x": p["x"], **{name: p[name] for name in ("h0", "c0") if name in p}}
    call |= {name: options[name] for name in ("lengths", "resets")}
    call |= {"matmul_precision": matmul_precision, "noise": noise}
    loaded = {name: p[name] for name in ("kernel", "peepholes", "projection") if name in p}
    if transposed:
        kernels = np.split(p["kernel"], [p["kernel"].shape[0] - output])
        loaded["kernel"] = tuple(strided(part.T) for part in kernels)
        loaded |= {"projection": strided(p["projection"].T)} if "projection" in p else {}
    for name, parts in GROUPS.items():
        loaded |= {name: tuple(p[part] for part in parts)} if parts[0] in p else {}

    results = {
        "h": outputs.strided("h", (time_steps, *states["h"]), dtype),
        "h_n": outputs.strided("h_n", states["h"], dtype),
        "c_n": outputs.strided("c_n", states["c"], dtype),
        "gates": outputs.contiguous("gates", (time_steps, batch, 4, hidden), dtype),
    }
    keep: Any = upstream is not None
    if restored:
        updates = time_steps * batch if options["lengths"] is None else int(np.sum(options["lengths"]))
        rows = len(p.get("norm_gain", ()))
        keep = np.empty(_core.saved_size(updates, hidden, "projection" in p, dtype == np.float64, rows), dtype)
    else:
        results["cells"] = outputs.strided("cells", (time_steps, batch, hidden), dtype)
    sequence = sequence or _core.Sequence(options["reverse"], cell)
    sequence.load(bias=p["bias"], weights=weights, **loaded)
    sequence.forward(**call, **results, keep_for_backward=keep)
    if upstream is None:
        return results
    if restored:
        sequence = _core.Sequence(options["reverse"], cell)
        sequence.load(bias=None, **loaded)
        sequence.restore(**call, h=results["h"].copy(), saved=keep.copy())

    d: dict[str, Any] = {
        "bias": outputs.contiguous("d_bias", p["bias"].shape, dtype),
        "h0": outputs.strided("d_h0", states["h"], dtype),
        "c0": outputs.strided("d_c0", states["c"], dtype),
    }
    if p["x"].ndim == 3:
        d["x"] = outputs.strided("d_x", p["x"].shape, dtype)
    for name, value in loaded.items():
        parts = value if isinstance(value, tuple) else (value,)
        made = tuple(outputs.contiguous(f"d_{name}[{k}]", part.shape, dtype) for k, part in enumerate(parts))
        d[name] = made if isinstance(value, tuple) else made[0]
    sequence.backward(**upstream, **{f"d_{name}": value for name, value in d.items()})
    if transposed:
        d["kernel"] = np.concatenate([part.T for part in d["kernel"]])
        d |= {"projection": d["projection"].T} if "projection" in d else {}
    for name, parts in GROUPS.items():
        d |= dict(zip(parts, d.pop(name, ()), strict=False))
    return results | {f"d_{name}": value for name, value in d.items()}
