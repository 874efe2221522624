"""Resemblyzer's encoder of voices, with its own weights: `python -m lstmfast.bench.clients.with_resemblyzer`."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from importlib.metadata import version

import torch
from resemblyzer import VoiceEncoder

from .compare import compare, serving

NAME = f"Resemblyzer {version('Resemblyzer')} VoiceEncoder"
FRAMES, CHANNELS, CALLS = 160, 40, 4


def work(served: bool, rows: int) -> tuple[float, Sequence[float]]:
    """The seconds of a call, the fastest of a few, and the embeddings of random spectrograms."""
    encoder, best = VoiceEncoder("cpu", verbose=False).eval(), float("inf")
    mels = torch.rand(rows, FRAMES, CHANNELS, generator=torch.Generator().manual_seed(0))
    with serving(served), torch.inference_mode():
        for _ in range(CALLS):
            start = time.process_time()
            embeddings = encoder(mels)
            best = min(best, time.process_time() - start)
    return best, embeddings.ravel().tolist()


CASES = {f"3 x 256 units, {rows} x {FRAMES} frames": functools.partial(work, rows=rows) for rows in (1, 8, 64)}

if __name__ == "__main__":
    compare(NAME, CASES, tolerance=1e-5)
