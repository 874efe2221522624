"""Many to one: a signal of 820 steps of 12 channels in, one of two classes out, through 64 units and their last state.

The shapes are those of a much-read question about sequence classification with TensorFlow: [batch, 820, 12]. The
signals are made here: beats pass over 12 electrodes in a row, every 10 to 16 steps, under noise. In class 0 a beat
goes from the first electrode to the last, in class 1 from the last to the first. Every electrode sees the same in
both classes, and no single step tells them apart: the model must remember which electrode was first, and keep the
answer until the end.

An error at the end carries little information about 800 steps before: gradients fade on the way. So units start with
memories of different length, forget biases log(uniform(1, 20)), which is Tallec & Ollivier's initialization (2018);
written through `cell.gates["forget"].bias`.

--data digits reads real data in place of the signals: scikit-learn's 1,797 handwritten digits, each as 8 time steps
of 8 values (rows of pixels), ten classes.

The loss is a custom one, the sum over the batch or its mean (--loss): a function (logits, labels) -> (loss,
derivative). A sum makes gradients batch-size times as large; Adam is unaffected, but clipping must allow for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from _shared import Options, Results, is_due, print_table

import lstmfast as lf

TIME_STEPS, CHANNELS, UNITS = 820, 12, 64
LONGEST_MEMORY = 20  # steps, at first

Array = npt.NDArray[Any]


def make_signals(count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Signals [count, 820, 12] and labels [count]: 0 if beats go from the first channel to the last, 1 if backwards."""
    labels = rng.integers(0, 2, count)
    heart = np.zeros((count, TIME_STEPS))
    for row in heart:
        intervals = rng.uniform(10, 16) * rng.uniform(0.8, 1.2, TIME_STEPS // 8)
        beats = np.cumsum(intervals).astype(int)
        row[beats[beats < TIME_STEPS]] = 1
    pulse = np.array([0.3, 1.0, 0.6, -0.4, -0.2, 0.1])
    heart = np.apply_along_axis(np.convolve, 1, heart, pulse)[:, :TIME_STEPS]
    forwards = np.stack([np.roll(heart, delay, axis=1) for delay in range(CHANNELS)], axis=-1)
    x = np.where(labels[:, None, None] == 0, forwards, forwards[..., ::-1])
    return (x + 0.2 * rng.standard_normal(x.shape)).astype("float32"), labels


def read_digits() -> tuple[Array, Array]:
    """Images [1797, 8, 8] with values from 0 to 1, and labels [1797] from 0 to 9."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("--data digits needs scikit-learn: pip install scikit-learn") from None
    digits = load_digits()
    return (digits.images / 16).astype("float32"), digits.target


def summed_loss(logits: Array, labels: Array) -> tuple[float, Array]:
    """Softmax cross entropy of a batch, summed, and its derivative by the logits [batch, classes]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_odds = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    d_logits = np.exp(log_odds)
    d_logits[rows, labels] -= 1
    return -float(log_odds[rows, labels].sum()), d_logits


def mean_loss(logits: Array, labels: Array) -> tuple[float, Array]:
    """Softmax cross entropy as a mean over the batch."""
    loss, d_logits = summed_loss(logits, labels)
    return loss / len(labels), d_logits / np.float32(len(labels))


def time_major(batch: Array) -> Array:
    """[batch, time, values] as the model reads it: [time, batch, values]."""
    return np.ascontiguousarray(batch.swapaxes(0, 1))


def accuracy(model: lf.SequenceClassifier, x: Array, labels: Array) -> float:
    return float(np.mean(model(time_major(x)).argmax(axis=1) == labels))


def example(options: Any) -> Results:
    rng = np.random.default_rng(options.seed)
    x, labels = read_digits() if options.data == "digits" else make_signals(1000, rng)
    held_out, known = np.split(rng.permutation(len(x)), [len(x) // 5])
    batch = min(options.batch_size, len(known))
    loss_function, largest_norm = (summed_loss, float(batch)) if options.loss == "sum" else (mean_loss, 1.0)
    model = lf.SequenceClassifier(
        x.shape[2], UNITS, int(labels.max()) + 1, forget_bias=0.0, rng=rng, loss=loss_function
    )
    model.lstm.cells[0].gates["forget"].bias[:] = np.log(rng.uniform(1, LONGEST_MEMORY, UNITS))
    optimizer = lf.optimizers.Adam()
    optimizer.init(model.parameter_buffer)
    learning_rate = lf.schedules.CosineWithWarmup(5e-3, options.steps, options.steps // 20, 0.02)
    print(f"{len(x):,} sequences of {x.shape[1]} steps of {x.shape[2]} values, {len(held_out)} of them held out\n")

    print(f"   step  {options.loss} of a batch  held-out sequences right")
    for step in range(options.steps):
        chosen = rng.choice(known, batch, replace=False)
        loss = model.loss_and_gradients(time_major(x[chosen]), labels[chosen])
        lf.losses.clip_by_global_norm(model.gradient_buffer, largest_norm)
        optimizer.update(model.parameter_buffer, model.gradient_buffer, learning_rate=learning_rate(step))
        if is_due(step, options.steps, lines=10):
            right = accuracy(model, x[held_out], labels[held_out])
            print(f"{step:7,}  {loss:{len(options.loss) + 11}.4f}  {right:.1%}")

    seen, unseen = (accuracy(model, x[part], labels[part]) for part in (known, held_out))
    print_table("The model", [
        *((name, str(value.shape)) for name, value in model.parameters.items()),
        ("sequences it learnt from, right", f"{seen:.1%}"),
        ("held-out sequences right", f"{unseen:.1%}"),
    ])
    return {"loss": loss, "known_right": seen, "held_out_right": unseen}


def main(arguments: Sequence[str] | None = None) -> Results:
    options = Options(__doc__, steps=300, text=False)
    options.add_argument(
        "--data", choices=["signals", "digits"], default="signals", help="what to learn (default: signals)"
    )
    options.add_argument("--loss", choices=["mean", "sum"], default="mean", help="loss of a batch (default: mean)")
    options.add_number("--batch-size", 32, "sequences of a batch")
    return options.run(example, arguments)


if __name__ == "__main__":
    main()
