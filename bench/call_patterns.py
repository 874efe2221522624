"""How other projects call an LSTM, stock PyTorch beside served: `python -m lstmfast.bench.call_patterns`.

A projection, packed rows that are not sorted, one step of many rows, long audio with truncated backpropagation. One
thread, inputs and weights at random; the median of three rounds in turns, each at least a second. Outputs are compared
first. Refuses to time whole projects (see `bench.clients`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import lstmfast.torch

_ROUNDS, _SECONDS, _LEAST_CALLS = 3, 1.0, 2
_LARGEST_DIFFERENCE = 1e-4

Work = Callable[[nn.LSTM], Tensor]


def patterns() -> Iterator[tuple[str, nn.LSTM, Work]]:
    """What it is, the stock module, and a call that returns its output."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = random(100, 32, 128)
    for size in (32, 64):
        projected = nn.LSTM(128, 256, proj_size=size)
        yield f"proj_size={size}, 256 units, 32 x 100 x 128, training", projected, lambda lstm: trained(lstm, x)
    yield "proj_size=64, 256 units, 32 x 100 x 128, inference", projected, lambda lstm: forward(lstm, x)[0]
    lengths = torch.randint(20, 101, (32,), generator=generator)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    both = nn.LSTM(128, 128, bidirectional=True)
    yield "packed, not sorted, 2 directions of 128 units, training", both, lambda lstm: trained(lstm, packed)
    step = random(1, 1600, 30)
    for units in (40, 64):
        stack = nn.LSTM(30, units, 2)
        yield f"12 calls of one step, 1,600 rows, 2 x {units} units, inference", stack, lambda lstm: stepped(lstm, step)
    audio = random(8000, 128, 1)
    for units in (8, 16, 32):
        mono = nn.LSTM(1, units)
        yield f"128 x 8,000 samples, {units} units, training by 2,000", mono, lambda lstm: truncated(lstm, audio)


def trained(lstm: nn.LSTM, x: Any) -> Tensor:
    """The output of a forward pass that is followed by backward."""
    output = lstm(x)[0]
    values: Tensor = output.data if isinstance(output, PackedSequence) else output
    values.sum().backward()
    lstm.zero_grad()
    return values.detach()


def forward(lstm: nn.LSTM, x: Tensor, state: Any = None) -> Any:
    """A call without gradients."""
    with torch.no_grad():
        return lstm(x, state)


def stepped(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Step by step, as forecasts are drawn."""
    state = None
    for _ in range(12):
        output, state = forward(lstm, x, state)
    return output


def truncated(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Backpropagation through 2,000 steps at a time, with the state carried."""
    state = None
    for part in x.split(2000):
        output, state = lstm(part, state)
        state = tuple(values.detach() for values in state)
        output.sum().backward()
        lstm.zero_grad()
    return output.detach()


def seconds(call: Callable[[], Any]) -> float:
    """The median time of a call."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < _LEAST_CALLS or time.perf_counter() - start < _SECONDS:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    for name, stock, work in patterns():
        served = type(stock)(
            stock.input_size, stock.hidden_size, stock.num_layers, bidirectional=stock.bidirectional,
            proj_size=stock.proj_size,
        )
        served.load_state_dict(stock.state_dict())
        lstmfast.torch.convert(served)
        difference = float((work(stock) - work(served)).abs().max())
        if not difference < _LARGEST_DIFFERENCE:
            raise SystemExit(f"{name}: outputs differ by {difference:.0e}")
        rounds = [(seconds(lambda: work(stock)), seconds(lambda: work(served))) for _ in range(_ROUNDS)]  # noqa: B023
        theirs, ours = sorted(rounds, key=lambda pair: pair[0] / pair[1])[_ROUNDS // 2]
        print(f"{name:62}  stock {1e3 * theirs:8.2f} ms  served {1e3 * ours:8.2f} ms  {theirs / ours:.2f}x", flush=True)


if __name__ == "__main__":
    main()
