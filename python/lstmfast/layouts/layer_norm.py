"""LSTMs with layer normalisation in files of other libraries, as arrays of our own layout.

Known: TensorFlow's contrib.rnn.LayerNormBasicLSTMCell, TensorFlow addons' LayerNormLSTMCell, haste's LayerNormLSTM. A
cell is recognised by having all of its library's arrays; refuses to guess from some of them. Their equations are in
docs/gates.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lstmfast._checks import Array
from lstmfast.layouts.converters import reorder
from lstmfast.layouts.table import Place

_END = r"(?::0|/\.ATTRIBUTES/VARIABLE_VALUE)?"


@dataclass(frozen=True)
class _Library:
    """One library's cell. names: of its arrays, the optional ones aside; read: ours from its own.

    forget_bias: added at run time, None if the file does not say and the default is 1. options: of `lstmfast.Cell`.
    """

    title: str
    names: tuple[str, ...]
    read: Callable[[Mapping[str, Array]], dict[str, Array]]
    forget_bias: float | None
    options: Mapping[str, Any]
    optional: tuple[str, ...] = ()
    in_stacks: bool = False  # whether scopes have numbers of layers and directions, as TensorFlow 1 writes them


@dataclass
class NormalizedStack:
    """What was found: arrays of our layout, the file's name for each (one of them, if several), and all those names."""

    name: str
    library: str
    forget_bias: float | None
    options: Mapping[str, Any]
    arrays: dict[str, Array] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)
    scopes: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def find(arrays: Mapping[str, Array]) -> list[NormalizedStack]:
    """Every stack of such cells among named arrays."""
    found: dict[tuple[str, str], NormalizedStack] = {}
    for library in _LIBRARIES:
        for scope, own in _cells(arrays, library):
            base, place = _place(scope) if library.in_stacks else (scope, Place(0))
            stack = found.get((library.title, base))
            if stack is None:
                name = base.rstrip("/.")
                stack = NormalizedStack(name, library.title, library.forget_bias, library.options)
                stack.notes.append(_assumption(library))
                found[library.title, base] = stack
            cell = f"layer{place.layer}{'_reverse' if place.reverse else ''}"
            stack.scopes.add(scope)
            stack.parts |= set(own.values())
            values = library.read({name: np.asarray(arrays[given]) for name, given in own.items()})
            for name, array in values.items():
                stack.arrays[f"{cell}.{name}"] = array
                stack.names[f"{cell}.{name}"] = own[_source_of(name, own)]
    return list(found.values())


def _assumption(library: _Library) -> str:
    epsilon = library.options["layer_norm_epsilon"]
    at_run_time = ", and a forget bias of 1 added at run time" if library.forget_bias is None else ""
    return f"Read as {library.title}: assuming its default epsilon, {epsilon:g}{at_run_time}."


def _cells(arrays: Mapping[str, Array], library: _Library) -> Iterator[tuple[str, dict[str, str]]]:
    """The scope of every cell that has all arrays of a library, and the file's names by the library's."""
    words = "|".join(map(re.escape, sorted((*library.names, *library.optional), key=len, reverse=True)))
    pattern = re.compile(rf"(?P<scope>(?:.*[/.])?)(?P<name>{words}){_END}")
    scopes: dict[str, dict[str, str]] = {}
    for given in arrays:
        if match := pattern.fullmatch(given):
            scopes.setdefault(match["scope"], {})[match["name"]] = given
    for scope, own in scopes.items():
        if set(library.names) <= set(own) and _fits({name: np.shape(arrays[given]) for name, given in own.items()}):
            yield scope, own


def _fits(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the kernel is a matrix of four gates, and gains are as long as it is wide, or as one gate."""
    kernel = shapes["kernel"]
    if len(kernel) != 2 or not kernel[1] or kernel[1] % 4:
        return False
    rest = (shape for name, shape in shapes.items() if name not in ("kernel", "recurrent_kernel"))
    return all(shape and shape[-1] in (kernel[1], kernel[1] // 4) for shape in rest)


def _place(scope: str) -> tuple[str, Place]:
    """A stack's scope and a cell's place in it, from `.../multi_rnn_cell/cell_1/...` and `.../fw/...`."""
    layer, reverse, base = 0, False, []
    for part in scope.rstrip("/").split("/"):
        if match := re.fullmatch(r"cell_(\d+)", part):
            layer = int(match[1])
        elif part in ("fw", "bw"):
            reverse = part == "bw"
        else:
            base.append(part)
    return "/".join(base), Place(layer, reverse)


def _source_of(name: str, own: Mapping[str, str]) -> str:
    """The library's name of an array that one of ours was read from, for messages."""
    word = {"norm_gain": "gamma", "cell_gain": "gamma", "bias": "beta", "cell_shift": "beta"}.get(name, name)
    return name if name in own else next(each for each in own if word in each)


# --- the libraries ----------------------------------------------------------------------------------------------------

_CONTRIB_GATES = {"input": "i", "transform": "g", "forget": "f", "output": "o"}


def _read_contrib(own: Mapping[str, Array]) -> dict[str, Array]:
    """[x, h] times one kernel, each gate normalised with its own gamma and beta."""
    names = [name for letter in "ifgo" for name, its in _CONTRIB_GATES.items() if its == letter]
    return {
        "kernel": reorder(own["kernel"], source="igfo", target="lstmfast"),
        "bias": np.concatenate([own[f"{name}/beta"] for name in names]),
        "norm_gain": np.concatenate([own[f"{name}/gamma"] for name in names])[None],
        "cell_gain": own["state/gamma"],
        "cell_shift": own["state/beta"],
    }


def _read_addons(own: Mapping[str, Array]) -> dict[str, Array]:
    """Both products normalised, with a beta each, which join the bias; Keras' order of gates is ours."""
    bias = own["kernel_norm/beta"] + own["recurrent_norm/beta"]
    return {
        "kernel": np.concatenate([own["kernel"], own["recurrent_kernel"]]),
        "bias": bias + own["bias"] if "bias" in own else bias,
        "norm_gain": np.stack([own["kernel_norm/gamma"], own["recurrent_norm/gamma"]]),
        "cell_gain": own["state_norm/gamma"],
        "cell_shift": own["state_norm/beta"],
    }


def _read_haste(own: Mapping[str, Array]) -> dict[str, Array]:
    """Both products normalised with gains alone, one row each; gates are i, g, f, o."""
    kernel = np.concatenate([own["kernel"], own["recurrent_kernel"]])
    turned = {"kernel": kernel, "bias": own["bias"], "norm_gain": own["gamma"]}
    return {
        **{name: reorder(values, source="haste", target="lstmfast") for name, values in turned.items()},
        "cell_gain": own["gamma_h"],
        "cell_shift": own["beta_h"],
    }


def _with_norms(*scopes: str) -> tuple[str, ...]:
    return tuple(f"{scope}/{name}" for scope in scopes for name in ("gamma", "beta"))


_LIBRARIES = (
    _Library(
        "TensorFlow's contrib.rnn.LayerNormBasicLSTMCell", ("kernel", *_with_norms(*_CONTRIB_GATES, "state")),
        _read_contrib, None, {"layer_norm_epsilon": 1e-12, "layer_norm_carry": True}, in_stacks=True,
    ),
    _Library(
        "TensorFlow addons' LayerNormLSTMCell",
        ("kernel", "recurrent_kernel", *_with_norms("kernel_norm", "recurrent_norm", "state_norm")),
        _read_addons, 0.0, {"layer_norm_epsilon": 1e-3, "layer_norm_carry": True}, optional=("bias",),
    ),
    _Library(
        "haste's LayerNormLSTM", ("kernel", "recurrent_kernel", "bias", "gamma", "gamma_h", "beta_h"), _read_haste, 0.0,
        {"layer_norm_epsilon": 1e-5, "layer_norm_carry": False},
    ),
)
