"""Drawing characters one after the other from one stream, lstmfast against PyTorch, one thread each, from Python.

27 symbols, 64 units, temperature 1. The draws are given, so that both must choose the same characters.
"""

from __future__ import annotations

import problems
from command import Bench, run

PIECE_LENGTH = 1000

if __name__ == "__main__":
    run(
        Bench(
            title=f"Sampling: 27 symbols, 64 units, one stream, pieces of {PIECE_LENGTH} characters",
            work="sampling",
            unit="characters",
            per_step=PIECE_LENGTH,
            agreement_steps=2,
            tolerance=0,
            rounds=20,
            steps_per_round=2,
        ),
        problems.sampling(piece_count=2, piece_length=PIECE_LENGTH),
    )
