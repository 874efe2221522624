"""Twelve small matrices or one large kernel: the same LSTM, fewer products.

The first exercise of assignment 6 of Udacity's deep learning course (2016). Its model has twelve variables, ix im
ib for the input gate, fx fm fb for the forget gate, cx cm cb for the cell and ox om ob for the output gate: eight
products a step. Concatenated, they are one kernel and one bias, and x and h one row: one product. This example
implements both, puts the twelve into the kernel, and shows that states and gradients are the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from _shared import Options, Results, print_table

import lstmfast as lf

SYMBOLS, UNITS, BATCH, UNROLL = 27, 64, 64, 10
GATES = {"i": "input", "f": "forget", "c": "cell", "o": "output"}

Array = npt.NDArray[Any]
Weights = dict[str, Array]


def twelve_matrices(rng: np.random.Generator) -> Weights:
    """ix im ib, fx fm fb, cx cm cb, ox om ob, as the notebook has them."""
    shapes = {"x": (SYMBOLS, UNITS), "m": (UNITS, UNITS), "b": (1, UNITS)}
    return {gate + kind: 0.3 * rng.standard_normal(shape) for gate in GATES for kind, shape in shapes.items()}


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def run_twelve(w: Weights, x: Array) -> Array:
    """The outputs h [T, B, UNITS] over x [T, B, SYMBOLS]: eight products a step."""
    h = c = np.zeros((x.shape[1], UNITS), x.dtype)
    outputs = []
    for x_t in x:
        input_gate = sigmoid(x_t @ w["ix"] + h @ w["im"] + w["ib"])
        forget_gate = sigmoid(x_t @ w["fx"] + h @ w["fm"] + w["fb"])
        update = np.tanh(x_t @ w["cx"] + h @ w["cm"] + w["cb"])
        output_gate = sigmoid(x_t @ w["ox"] + h @ w["om"] + w["ob"])
        c = forget_gate * c + input_gate * update
        h = output_gate * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


def run_one(kernel: Array, bias: Array, x: Array) -> Array:
    """The same with one product a step; the four gates are a quarter of its columns each."""
    h = c = np.zeros((x.shape[1], UNITS), x.dtype)
    outputs = []
    for x_t in x:
        i, f, g, o = np.split(np.hstack([x_t, h]) @ kernel + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


def views_of(kernel: Array, bias: Array) -> Weights:
    """The twelve matrices as views of one kernel [SYMBOLS + UNITS, 4*UNITS] and one bias [4*UNITS]."""
    gates = lf.gates.Gates(kernel, bias)
    views = {}
    for letter, name in GATES.items():
        views[letter + "x"] = gates[name].input_kernel
        views[letter + "m"] = gates[name].recurrent_kernel
        views[letter + "b"] = gates[name].bias[None]
    return views


def slope(loss: Callable[[Weights], float], w: Weights, name: str, direction: Array) -> float:
    """The slope of a loss when one of the twelve moves along a direction: two runs, no backpropagation."""
    step = 6e-6
    ahead, behind = {**w, name: w[name] + step * direction}, {**w, name: w[name] - step * direction}
    return (loss(ahead) - loss(behind)) / (2 * step)


def microseconds(run: Callable[[], Any], repetitions: int) -> float:
    """The time of one call, the minimum over all."""
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times) * 1e6


def example(options: Any) -> Results:
    rng = np.random.default_rng(options.seed)
    ids = rng.integers(0, SYMBOLS, (UNROLL, BATCH))
    x, wanted = np.eye(SYMBOLS)[ids], rng.standard_normal((UNROLL, BATCH, UNITS))

    twelve = twelve_matrices(rng)
    kernel, bias = np.empty((SYMBOLS + UNITS, 4 * UNITS)), np.empty(4 * UNITS)
    for name, view in views_of(kernel, bias).items():
        view[...] = twelve[name]  # each of the twelve has its place in the kernel

    h = run_twelve(twelve, x)
    fused = lf.lstm(ids, kernel, bias, keep_for_backward=True)  # ids look up rows: no one-hot product at all
    differences = {"one product": np.abs(run_one(kernel, bias, x) - h).max(), "lf.lstm": np.abs(fused.h - h).max()}

    def loss(w: Weights) -> float:
        return float((run_twelve(w, x) * wanted).sum())

    gradients = lf.lstm_backward(fused, wanted)
    parts = views_of(gradients.kernel, gradients.bias)
    print("matrix   shape     slope by two runs  from lf.lstm_backward")
    worst = 0.0
    for name, part in parts.items():
        direction = rng.standard_normal(part.shape) / np.sqrt(part.size)
        measured, ours = slope(loss, twelve, name, direction), float((part * direction).sum())
        worst = max(worst, abs(measured - ours) / (1 + abs(measured)))
        print(f"{name}       {part.shape[0]:3} x {part.shape[1]}  {measured:17.9f}  {ours:.9f}")

    single = {name: value.astype("float32") for name, value in twelve.items()}
    x32, kernel32, bias32 = x.astype("float32"), kernel.astype("float32"), bias.astype("float32")
    times = {
        "twelve matrices in NumPy": microseconds(lambda: run_twelve(single, x32), options.steps),
        "one kernel in NumPy": microseconds(lambda: run_one(kernel32, bias32, x32), options.steps),
        "one kernel in lf.lstm": microseconds(lambda: lf.lstm(ids, kernel32, bias32), options.steps),
    }
    print_table("The largest difference from the twelve matrices", [
        *((f"h by {name}", f"{difference:.1e}") for name, difference in differences.items()),
        ("slopes, relative", f"{worst:.1e}"),
    ])
    print_table(
        f"{UNROLL} steps of {BATCH} rows in float32, the best of {options.steps}",
        [(name, f"{duration:7.0f} us") for name, duration in times.items()],
    )
    return {
        "difference_of_states": float(max(differences.values())),
        "difference_of_slopes": worst,
        "speedup": times["twelve matrices in NumPy"] / times["one kernel in lf.lstm"],
    }


def main(arguments: Sequence[str] | None = None) -> Results:
    return Options(__doc__, steps=200, text=False).run(example, arguments)


if __name__ == "__main__":
    main()
