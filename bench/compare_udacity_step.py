"""The whole training step of the classic 6_lstm model, lstmfast against PyTorch, one thread each.

27 symbols, 64 units, batch 64, 10 unrollings: forward, loss, backward, clipping at 1.25 and SGD. Batches are made
before the timing, for both. Before it the losses of 20 steps from the same weights are compared.
"""

from __future__ import annotations

import problems
from command import Bench, run

if __name__ == "__main__":
    run(
        Bench(
            title="Training step: 27 symbols, 64 units, batch 64, 10 unrollings, clip 1.25, SGD",
            work="training",
            unit="characters",
            per_step=problems.BATCH_SIZE * problems.UNROLL,
            agreement_steps=20,
            tolerance=1e-4,
            rounds=20,
            steps_per_round=50,
        ),
        problems.training(batch_count=200),
    )
