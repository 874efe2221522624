"""A stack of three LSTM layers: what it computes, that each layer has its own weights, and what it learns.

Follows the many posts on TensorFlow's MultiRNNCell. Its trap was [cell] * 3, which is one cell three times: the
first layer reads characters and the others read its units, so the kernels cannot even have one shape. Here
`lf.LSTM(num_layers=3)` is the stack; before training it is also run layer by layer, to show that the results agree
to the last bit.

The model is built from the library's layers: an embedding, the stack, and a projection to the next character.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from _shared import Options, Results, is_due, print_table, read_text

import lstmfast as lf
from lstmfast.data import Batches, split

LAYERS, EMBEDDING, BATCH, UNROLL = 3, 32, 32, 32

Array = npt.NDArray[Any]
State = tuple[Array, Array]


class Model:
    """Embedding, stack, projection, all variables in one buffer."""

    def __init__(self, symbols: int, hidden_size: int, rng: np.random.Generator) -> None:
        shapes = {
            "embedding": lf.Embedding.shapes(symbols, EMBEDDING),
            "lstm": lf.LSTM.shapes(EMBEDDING, hidden_size, num_layers=LAYERS),
            "projection": lf.Linear.shapes(hidden_size, symbols),
        }
        self.storage = lf.ParameterBuffer.allocate(shapes, "float32")
        self.storage.fill(None, rng)
        self.embedding = lf.Embedding(symbols, EMBEDDING, storage=self.storage.part("embedding."))
        self.lstm = lf.LSTM(EMBEDDING, hidden_size, num_layers=LAYERS, storage=self.storage.part("lstm."))
        self.projection = lf.Linear(hidden_size, symbols, storage=self.storage.part("projection."))

    def __call__(self, ids: Array, state: State | None = None, *, training: bool = False) -> tuple[Array, State]:
        """The logits of the symbol after each of ids [T, B], and the final state, [3, B, hidden_size] each."""
        h, state = self.lstm(self.embedding(ids, training=training), state, training=training)
        return self.projection(h, training=training), state

    def backward(self, d_logits: Array) -> None:
        """Fill the gradients of all variables."""
        d_embedded, _ = self.lstm.backward(self.projection.backward(d_logits))
        assert d_embedded is not None  # None only if the stack reads ids
        self.embedding.backward(d_embedded)


def layer_by_layer(lstm: lf.LSTM, x: Array) -> Array:
    """The definition of a stack: each layer reads the outputs of the one below."""
    for cell in lstm.cells:
        x = lf.lstm(x, cell.kernel, cell.bias, forget_bias=cell.forget_bias).h
    return x


def example(options: Any) -> Results:
    corpus = read_text(options.text)
    train_ids, valid_ids = split(corpus.ids, valid_first=10_000)
    batches, rng = Batches(train_ids, BATCH, UNROLL), np.random.default_rng(options.seed)
    model = Model(corpus.vocabulary.size, options.hidden_size, rng)
    optimizer, state, recent = lf.optimizers.Adam(), model.lstm.zero_state(BATCH), []
    optimizer.init(model.storage.values)
    learning_rate = lf.schedules.CosineWithWarmup(4e-3, options.steps, options.steps // 20, 0.02)

    x = model.embedding(batches.next()[0])
    difference = float(np.abs(model.lstm(x)[0] - layer_by_layer(model.lstm, x)).max())
    for number, cell in enumerate(model.lstm.cells):
        rows, columns = f"{cell.input_size} + {cell.hidden_size}", f"4*{cell.hidden_size}"
        print(f"layer {number}: kernel {cell.kernel.shape} = ({rows}, {columns})")
    print(f"The stack against its layers run one after another: largest difference {difference:g}\n")

    print("   step  perplexity  length of the gradient in layer 0, 1, 2")
    for step in range(options.steps):
        inputs, targets = batches.next()
        logits, state = model(inputs, state, training=True)
        loss, d_logits = lf.losses.softmax_cross_entropy(logits, targets)
        model.backward(d_logits)
        lengths = [np.linalg.norm(cell.gradients["kernel"]) for cell in model.lstm.cells]
        lf.losses.clip_by_global_norm(model.storage.gradient_values, 1.0)
        optimizer.update(model.storage.values, model.storage.gradient_values, learning_rate=learning_rate(step))
        recent.append(loss)
        if is_due(step, options.steps):
            loss, recent = float(np.mean(recent)), []
            print(f"{step:7,}  {lf.losses.perplexity(loss):10.2f}  {'  '.join(f'{length:.4f}' for length in lengths)}")

    logits, _ = model(valid_ids[:-1, None])
    valid = lf.losses.softmax_cross_entropy(logits, valid_ids[1:, None])[0]
    print_table("The model", [
        *((name, str(value.shape)) for name, value in model.storage.parameters.items()),
        ("variables", f"{model.storage.values.size:,}"),
        ("perplexity of the first 10,000 characters, not trained on", f"{lf.losses.perplexity(valid):.2f}"),
    ])
    return {"loss": loss, "valid_loss": valid, "difference_from_layers": difference}


def main(arguments: Sequence[str] | None = None) -> Results:
    options = Options(__doc__, steps=2500)
    options.add_number("--hidden-size", 128, "units of each layer")
    return options.run(example, arguments)


if __name__ == "__main__":
    main()
