"""Many processes with a loop of your own: layers put together by hand, gradients added up in a fixed order.

    python examples/data_parallel.py
    mpiexec -n 2 python examples/data_parallel.py
    torchrun --nproc-per-node 2 examples/data_parallel.py

All three end with the same weights, bit for bit. Each process computes the gradients of its own rows of the batch, and
`TreeSum` adds them up in an order that does not depend on the number of processes; then all make the same update.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from _shared import CACHE, Options, Results, is_due, print_table

import lstmfast as lf
from lstmfast import distributed
from lstmfast.data import Batches, load_corpus

SHARDS = 4  # parts of the batch: the bits depend on their number, and not on that of the processes
BATCH, UNROLL, EMBEDDING, HIDDEN = 32, 32, 16, 64

Array = npt.NDArray[Any]


class Model:
    """Embedding, LSTM, projection, all variables in one buffer."""

    def __init__(self, symbols: int, rng: np.random.Generator) -> None:
        shapes = {
            "embedding": lf.Embedding.shapes(symbols, EMBEDDING),
            "lstm": lf.LSTM.shapes(EMBEDDING, HIDDEN),
            "projection": lf.Linear.shapes(HIDDEN, symbols),
        }
        self.storage = lf.ParameterBuffer.allocate(shapes, "float32")
        self.storage.fill(None, rng)
        self.embedding = lf.Embedding(symbols, EMBEDDING, storage=self.storage.part("embedding."))
        self.lstm = lf.LSTM(EMBEDDING, HIDDEN, storage=self.storage.part("lstm."))
        self.projection = lf.Linear(HIDDEN, symbols, storage=self.storage.part("projection."))

    def loss_and_gradients(self, inputs: Array, targets: Array, state: Any) -> tuple[float, Any]:
        """Fill the gradients of the mean loss of targets after inputs, both [T, B]; return the loss and the state."""
        h, state = self.lstm(self.embedding(inputs, training=True), state, training=True)
        loss, d_logits = lf.losses.softmax_cross_entropy(self.projection(h, training=True), targets)
        d_embedded, _ = self.lstm.backward(self.projection.backward(d_logits))
        assert d_embedded is not None
        self.embedding.backward(d_embedded)
        return loss, state


def example(options: Any) -> Results:
    group = distributed.from_environment()
    if group.size > 1 and not options.threads:
        lf.set_num_threads(distributed.cores_per_process(group))
    if group.rank == 0:
        load_corpus(options.text, cache_folder=CACHE)
    distributed.barrier(group)  # rank 0 has encoded the text, and the others find it in the cache
    corpus = load_corpus(options.text, cache_folder=CACHE)
    model = Model(corpus.vocabulary.size, np.random.default_rng(options.seed))  # first weights alike in all processes
    weights, gradients = model.storage.values, model.storage.gradient_values
    optimizer = lf.optimizers.Adam()
    optimizer.init(weights)
    batches = Batches(corpus.ids, BATCH, UNROLL)
    gradient_sum, loss_sum = distributed.TreeSum(group, SHARDS), distributed.TreeSum(group, SHARDS)
    states: dict[int, Any] = dict.fromkeys(gradient_sum.mine)

    loss = np.zeros(1)
    for step in range(options.steps):
        inputs, targets = batches.next()
        for shard in gradient_sum.mine:
            rows = gradient_sum.rows(shard, BATCH)
            loss[0], states[shard] = model.loss_and_gradients(inputs[:, rows], targets[:, rows], states[shard])
            gradient_sum.add(gradients)  # after the last shard: the sum over all shards of all processes
            loss_sum.add(loss)
        gradients /= SHARDS
        lf.losses.clip_by_global_norm(gradients, 1.0)
        optimizer.update(weights, gradients, learning_rate=1e-2)
        if group.rank == 0 and is_due(step, options.steps):
            print(f"step {step:5,}  loss {loss[0] / SHARDS:.4f}")

    if group.rank == 0:
        print_table(f"{SHARDS} shards, {group.size} process{'es' if group.size > 1 else ''}", [
            ("loss of the last batch", f"{loss[0] / SHARDS:.4f} nats per character"),
            ("SHA-256 of the weights", hashlib.sha256(weights.tobytes()).hexdigest()[:16]),
        ])
    return {"loss": loss[0] / SHARDS}


def main(arguments: Sequence[str] | None = None) -> Results:
    return Options(__doc__, steps=500).run(example, arguments)


if __name__ == "__main__":
    main()
