"""Weights of other libraries' cells with layer normalisation: read, they compute what the original's equations do.

The equations are written here once more, one loop per library, from its own source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lstmfast as lf
from lstmfast.layouts import LSTMWeights, from_arrays, load, to_arrays

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

IN, H, TIME_STEPS, BATCH = 3, 4, 5, 2
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def norm(values: Array, epsilon: float) -> Array:
    centred = values - values.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + epsilon)


def contrib(w: Arrays, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """tf.contrib.rnn.LayerNormBasicLSTMCell: each gate has a norm, and the normalised c goes on."""
    parts = dict(zip("ijfo", np.split(np.concatenate([x, h], 1) @ w["kernel"], 4, axis=1), strict=True))
    names = zip("ijfo", ("input", "transform", "forget", "output"), strict=True)
    i, j, f, o = (w[f"{name}/gamma"] * norm(parts[k], 1e-12) + w[f"{name}/beta"] for k, name in names)
    c = c * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
    c = w["state/gamma"] * norm(c, 1e-12) + w["state/beta"]
    return np.tanh(c) * sigmoid(o), c


def addons(w: Arrays, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """tfa.rnn.LayerNormLSTMCell: a norm for each product, and the normalised c goes on."""

    def normed(values: Array, name: str) -> Array:
        return w[f"{name}/gamma"] * norm(values, 1e-3) + w[f"{name}/beta"]

    z = normed(x @ w["kernel"], "kernel_norm") + normed(h @ w["recurrent_kernel"], "recurrent_norm") + w["bias"]
    i, f, g, o = np.split(z, 4, axis=1)
    c = normed(sigmoid(f) * c + sigmoid(i) * np.tanh(g), "state_norm")
    return sigmoid(o) * np.tanh(c), c


def haste(w: Arrays, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """haste_pytorch.LayerNormLSTM: a gain for each product, and c goes on as it is."""
    z = w["gamma"][0] * norm(x @ w["kernel"], 1e-5) + w["gamma"][1] * norm(h @ w["recurrent_kernel"], 1e-5) + w["bias"]
    i, g, f, o = np.split(z, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(w["gamma_h"] * norm(c, 1e-5) + w["beta_h"]), c


def norms(*names: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{part}": (size,) for name in names for part in ("gamma", "beta")}


SPLIT = {"kernel": (IN, 4 * H), "recurrent_kernel": (H, 4 * H), "bias": (4 * H,)}
Step = Callable[[Arrays, Array, Array, Array], tuple[Array, Array]]
CELLS: dict[str, tuple[str, dict[str, tuple[int, ...]], Step]] = {
    "contrib": (
        "rnn/layer_norm_basic_lstm_cell/",
        {"kernel": (IN + H, 4 * H), **norms("input", "transform", "forget", "output", "state", size=H)}, contrib,
    ),
    "addons": (
        "rnn/layer_norm_lstm_cell/",
        {**SPLIT, **norms("kernel_norm", "recurrent_norm", size=4 * H), **norms("state_norm", size=H)}, addons,
    ),
    "haste": ("encoder.", {**SPLIT, "gamma": (2, 4 * H), "gamma_h": (H,), "beta_h": (H,)}, haste),
}


def drawn(rng: np.random.Generator, shapes: dict[str, tuple[int, ...]]) -> Arrays:
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(("scope", "shapes", "step"), CELLS.values(), ids=CELLS)
def test_a_layer_of_such_weights_computes_what_the_original_does(
    scope: str, shapes: dict[str, tuple[int, ...]], step: Step, tmp_path: Path, rng: np.random.Generator
) -> None:
    own = drawn(rng, shapes)
    slots = {f"{scope}{name}/Adam": values for name, values in own.items()}
    np.savez(tmp_path / "w.npz", **{f"{scope}{name}": values for name, values in own.items()}, **slots)
    x = rng.standard_normal((TIME_STEPS, BATCH, IN)).astype(np.float32)
    h = c = np.zeros((BATCH, H), np.float32)
    outputs = []
    for x_t in x:
        h, c = step(own, x_t, h, c)
        outputs.append(h)
    found, state = load(tmp_path / "w.npz").to_layer()(x)
    assert_allclose(found, outputs, **CLOSE)
    assert_allclose(state[0][0], h, **CLOSE)


def test_layers_and_directions_of_contribs_cells_form_one_stack(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {}
    for direction in ("fw", "bw"):
        for layer in range(2):
            shapes = {**CELLS["contrib"][1], "kernel": ((2 * H if layer else IN) + H, 4 * H)}
            scope = f"stack_bidirectional_rnn/cell_{layer}/bidirectional_rnn/{direction}/layer_norm_basic_lstm_cell/"
            arrays |= {f"{scope}{name}": values for name, values in drawn(rng, shapes).items()}
    np.savez(tmp_path / "w.npz", **arrays)
    weights = load(tmp_path / "w.npz")
    assert (weights.num_layers, weights.bidirectional, weights.layer_norm, weights.layer_norm_carry) == (
        2, True, "gates", True
    )


@pytest.mark.parametrize(("scope", "shapes", "step"), CELLS.values(), ids=CELLS)
def test_what_no_file_contains_is_said(
    scope: str, shapes: dict[str, tuple[int, ...]], step: Step, tmp_path: Path, rng: np.random.Generator
) -> None:
    np.savez(tmp_path / "w.npz", **{f"{scope}{name}": values for name, values in drawn(rng, shapes).items()})
    [first, *_] = load(tmp_path / "w.npz").assumptions
    assert "assuming its default epsilon" in first
    assert lf.inspect(tmp_path / "w.npz")


def test_our_own_arrays_keep_norms_and_learnt_states(rng: np.random.Generator) -> None:
    layer = lf.LSTM(IN, H, layer_norm=True, learn_initial_state=True, zoneout=0.1, rng=rng)
    for values in layer.parameters.values():
        values[...] = rng.standard_normal(values.shape)
    weights = LSTMWeights.from_layer(layer)
    again = replace(from_arrays(to_arrays(weights, "lstmfast"), "lstmfast", forget_bias=1.0), zoneout=weights.zoneout)
    x = rng.standard_normal((TIME_STEPS, BATCH, IN)).astype(np.float32)
    assert_array_equal(again.to_layer()(x)[0], layer(x)[0])


@pytest.mark.parametrize("target", ["pytorch", "keras", "tf1", "haste", "onnx"])
def test_a_layout_without_norms_refuses_them_by_name(target: str, rng: np.random.Generator) -> None:
    weights = LSTMWeights.from_layer(lf.LSTM(IN, H, layer_norm=True, forget_bias=0.0, rng=rng))
    with pytest.raises(ValueError, match="cannot store norm_gain"):
        to_arrays(weights, target)
