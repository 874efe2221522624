"""The torch drop-in against torch's own modules and against the bare library: `python -m lstmfast.bench.drop_in`.

One layer in float32, inference and training, every shape in one process, one thread: torch.nn.LSTM, lstmfast.torch.LSTM
and lf.LSTM with the same weights take turns, after their results were found to agree. Training includes the gradient of
the input, as for an upper layer. Prints microseconds, the median of rounds, and two ratios: how many times faster the
drop-in is than torch, and how much of the library's own speed it keeps.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lstmfast.bench import machine
from lstmfast.bench.rounds import rounds_of
from lstmfast.bench.shapes import Shape, chosen

import lstmfast as lf
import lstmfast.torch
from lstmfast import layouts

SHAPES = "step64,step256,stream64,stream256,udacity,small,medium,long"
SECONDS_A_TURN = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description="The drop-in beside torch and the library.")
    parser.add_argument("--shapes", default=SHAPES, help="names or BxTxIxH, with commas")
    names = chosen(parser.parse_args().shapes.split(","))
    torch.set_num_threads(1)
    print(f"{machine.describe()['cpu']}, {lf._core.current_isa()}, torch {torch.__version__}, 1 thread")
    print(f"{'':22}{'torch':>10}{'drop-in':>10}{'library':>10}   faster than torch   of the library's speed")
    for name, shape in names.items():
        for training in (False, True):
            show(f"{name} {'training' if training else 'inference'}", time_all(layer_calls(shape, training)))
    for training in (False, True):
        show(f"cell64 {'training' if training else 'inference'}", time_all(cell_calls(64, training)))


def layer_calls(shape: Shape, training: bool) -> list[Callable[[], Any]]:
    """One call, or one training step, of each."""
    theirs = torch.nn.LSTM(shape.input_size, shape.hidden_size)
    mine = lstmfast.torch.LSTM(shape.input_size, shape.hidden_size)
    mine.load_state_dict(theirs.state_dict())
    arrays = {name: value.numpy() for name, value in theirs.state_dict().items()}
    layer = layouts.from_arrays(arrays, "pytorch").to_layer()
    x = np.random.default_rng(0).standard_normal((shape.time_steps, shape.batch, shape.input_size), np.float32)
    d_h, tensor = np.ones((shape.time_steps, shape.batch, shape.hidden_size), np.float32), torch.from_numpy(x)
    upstream = torch.from_numpy(d_h)
    np.testing.assert_allclose(mine(tensor)[0].detach().numpy(), layer(x)[0], rtol=1e-4, atol=1e-5)

    def library() -> None:
        layer(x, training=training)
        if training:
            layer.backward(d_h)

    return [module_call(theirs, tensor, upstream, training), module_call(mine, tensor, upstream, training), library]


def cell_calls(size: int, training: bool) -> list[Callable[[], Any]]:
    """One step of one row of each cell."""
    theirs, mine, cell = torch.nn.LSTMCell(size, size), lstmfast.torch.LSTMCell(size, size), lf.LSTMCell(size, size)
    x, upstream = torch.randn(1, size), torch.ones(1, size)
    state = np.zeros((1, size), np.float32), np.zeros((1, size), np.float32)
    calls = [module_call(module, x, upstream, training) for module in (theirs, mine)]
    return calls if training else [*calls, lambda: cell(x.numpy(), state)]  # lf.LSTMCell has no backward


def module_call(module: Any, x: Any, upstream: Any, training: bool) -> Callable[[], Any]:
    """A call of a torch module without gradients, or forward and backward with them."""
    if not training:

        def infer() -> None:
            with torch.no_grad():
                module(x)

        return infer

    x = x.clone().requires_grad_()

    def train() -> None:
        module.zero_grad()
        x.grad = None
        module(x)[0].backward(upstream)

    return train


def time_all(calls: list[Callable[[], Any]]) -> list[float]:
    """Seconds per call: the median of rounds in which all take turns."""
    return [statistics.median(times) for times in rounds_of(calls, SECONDS_A_TURN)]


def show(name: str, times: list[float]) -> None:
    """One line of the table."""
    theirs, mine, *library = (1e6 * t for t in times)
    alone = f"{library[0]:10.1f}" if library else f"{'':10}"
    kept = f"{library[0] / mine:21.0%}" if library else ""
    print(f"{name:22}{theirs:10.1f}{mine:10.1f}{alone}{theirs / mine:17.2f}x{kept}")


if __name__ == "__main__":
    main()
