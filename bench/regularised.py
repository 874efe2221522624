"""What regularised cells cost beside the plain one: `python -m lstmfast.bench.regularised [--against torch,keras]`.

Training steps of one layer in float32, forward and backward with the gradient of the input, every shape in one process.
All cells take turns; printed are milliseconds of the plain cell and, for each option, the median of the rounds' ratios
to it. The peers do recurrent dropout of h, with one mask for all steps: a loop over torch.nn.LSTMCell with the same
masks, whose outputs must agree, and keras.layers.LSTM(recurrent_dropout=...), on whatever backend Keras has.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from lstmfast.bench import machine
from lstmfast.bench.rounds import rounds_of
from lstmfast.bench.shapes import Shape, chosen

import lstmfast as lf
from lstmfast import reference

SHAPES = "udacity,small,medium,large,wide"
RATE, SEED = 0.2, 1
CELLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout of h": {"recurrent_dropout": RATE},
    "of h, per step": {"recurrent_dropout": RATE, "recurrent_dropout_per_step": True},
    "of g": {"recurrent_dropout": RATE, "recurrent_dropout_of": "g"},
    "zoneout": {"zoneout": 0.1},
    "weight dropout": {"weight_dropout": RATE},
    "layer norm": {"layer_norm": True},
    "learnt state": {"learn_initial_state": True},
}
SECONDS_A_TURN = 0.1
Call = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="Regularised cells beside the plain one and beside peers.")
    parser.add_argument("--shapes", default=SHAPES, help="names or BxTxIxH, with commas")
    parser.add_argument("--against", default="", help="torch, keras or both, with a comma")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    peers = [name for name in options.against.split(",") if name]
    if unknown := set(peers) - set(PEERS):
        parser.error(f"--against must be of {', '.join(PEERS)}, got {', '.join(sorted(unknown))}")
    lf.set_num_threads(options.threads)
    names = [*list(CELLS)[1:], *peers]
    print(f"{machine.describe()['cpu']}, {lf._core.current_isa()}, {options.threads} thread(s)")
    print(f"{'':10}{'plain, ms':>11}" + "".join(f"{name:>16}" for name in names))
    for name, shape in chosen(options.shapes.split(",")).items():
        calls = [layer_call(shape, **cell) for cell in CELLS.values()]
        calls += [PEERS[peer](shape, options.threads) for peer in peers]
        plain, *others = rounds_of(calls, SECONDS_A_TURN)
        ratios = [statistics.median(a / b for a, b in zip(other, plain, strict=True)) for other in others]
        print(f"{name:10}{1e3 * statistics.median(plain):11.2f}" + "".join(f"{r:15.2f}x" for r in ratios), flush=True)


def problem(shape: Shape) -> tuple[Any, Any]:
    """x [T, B, I] and the derivative by h [T, B, H]."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((shape.time_steps, shape.batch, shape.input_size), np.float32)
    return x, rng.standard_normal((shape.time_steps, shape.batch, shape.hidden_size), np.float32)


def layer(shape: Shape, **cell: Any) -> lf.LSTM:
    """The same weights in every cell."""
    return lf.LSTM(shape.input_size, shape.hidden_size, rng=np.random.default_rng(0), **cell)


def layer_call(shape: Shape, **cell: Any) -> Call:
    """A training step of a layer with this cell."""
    lstm, (x, d_h) = layer(shape, **cell), problem(shape)

    def call() -> None:
        lstm(x, training=True)
        lstm.backward(d_h)

    return call


def torch_call(shape: Shape, threads: int) -> Call:
    """A loop over torch.nn.LSTMCell with the masks of ours."""
    import torch

    torch.set_num_threads(threads)
    ours, (x_values, d_values) = layer(shape, recurrent_dropout=RATE), problem(shape)
    kernel, hidden = ours.cells[0].kernel, shape.hidden_size
    cell = torch.nn.LSTMCell(shape.input_size, hidden)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.from_numpy(kernel[: shape.input_size].T.copy()))
        cell.weight_hh.copy_(torch.from_numpy(kernel[shape.input_size :].T.copy()))
        cell.bias_ih.zero_()
        cell.bias_hh.zero_()
        cell.bias_hh[hidden : 2 * hidden] = ours.forget_bias
    is_dropped = reference.masks(reference.Noise(SEED), reference.RECURRENT_DROPOUT, 0, RATE, (shape.batch, hidden))
    mask = torch.from_numpy((~is_dropped / (1 - RATE)).astype(np.float32))
    x, d_h = torch.from_numpy(x_values).requires_grad_(), torch.from_numpy(d_values)

    def forward() -> Any:
        h = c = torch.zeros(shape.batch, hidden)
        outputs = []
        for step in x:
            h, c = cell(step, (h * mask, c))
            outputs.append(h)
        return torch.stack(outputs)

    def call() -> None:
        cell.zero_grad()
        x.grad = None
        forward().backward(d_h)

    wanted = ours(x_values, training=True, seed=SEED)[0]
    np.testing.assert_allclose(forward().detach().numpy(), wanted, rtol=1e-3, atol=1e-4)
    return call


def keras_call(shape: Shape, threads: int) -> Call:
    """Keras' layer with dropout of h, compiled where its backend compiles."""
    import keras

    lstm = keras.layers.LSTM(shape.hidden_size, return_sequences=True, recurrent_dropout=RATE)
    x_values, d_values = (values.swapaxes(0, 1).copy() for values in problem(shape))
    lstm.build(x_values.shape)
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(threads)
        x, d_h = torch.from_numpy(x_values).requires_grad_(), torch.from_numpy(d_values)
        return lambda: lstm(x, training=True).backward(d_h)
    import tensorflow as tf

    x, d_h = tf.constant(x_values), tf.constant(d_values)

    def train() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            h = lstm(x, training=True)
        return tape.gradient(h, [x, *lstm.trainable_weights], output_gradients=d_h)

    compiled: Call = tf.function(train)
    return compiled


PEERS: dict[str, Callable[[Shape, int], Call]] = {"torch": torch_call, "keras": keras_call}


if __name__ == "__main__":
    main()
