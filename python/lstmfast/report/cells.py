"""What cells do along a text: which track each follows, how far its gates open, how long it remembers.

NumPy on states that are given. Refuses to run a model and to explain why (see `causes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import gates as order
from lstmfast._checks import Array
from lstmfast.gate_statistics import gate_saturation

LOW, HIGH = 0.1, 0.9
"""A gate below or above these is called shut or open, as in Karpathy, Johnson & Fei-Fei 2015."""

_CANDIDATE = order.NAMES.index("cell")
_SHIFTS = 20  # of a track along the text, to learn what chance gives
_LEAST_DEVIATION = 1e-6  # a track or cell that moves less is constant


@dataclass(frozen=True)
class Finding:
    """A cell that follows a track.

    r: the correlation of the track with c, or with tanh(c) where `bounded`, whichever is stronger. chance: what the
    best cell has with the track shifted along the text.
    """

    layer: int
    cell: int
    track: str
    r: float
    bounded: bool
    chance: float


def correlations(c: Array, tracks: npt.NDArray[Any]) -> Array:
    """Pearson's r [K, H] of tracks [K, T] with each cell's values c [T, H]; 0 where one of the two is constant."""
    return np.asarray(_standard(np.asarray(tracks).T).T @ _standard(c) / max(len(c), 1))


def find(
    c: Sequence[Array], tracks: Mapping[str, npt.NDArray[Any]], *, rng: np.random.Generator, best: int = 3
) -> list[Finding]:
    """The `best` cells of each track that is not constant, the strongest |r| first. c: each layer's states [T, H].

    chance is the median, over shifts of the track by at least a tenth of the text, of the strongest |r| of any cell:
    what many cells and a text of this length give without a reason. rng draws the shifts.
    """
    places = [(layer, cell) for layer, own in enumerate(c) for cell in range(own.shape[1])]
    joined = np.concatenate(list(c), axis=1, dtype=np.float64)
    steps, states = len(joined), (_standard(joined), _standard(np.tanh(joined)))
    findings = []
    for name, track in tracks.items():
        shifted = np.stack([np.roll(track, shift) for shift in [0, *_shifts(steps, rng)]])
        both = np.stack([correlations(own, shifted) for own in states])  # [c or tanh(c), shift, cell]
        if not both[:, 0].any():
            continue
        strongest = np.abs(both).max(axis=0)
        chance = float(np.median(strongest[1:].max(axis=1)))
        for place in np.argsort(-strongest[0], kind="stable")[:best]:
            layer, cell = places[place]
            bounded = bool(abs(both[1, 0, place]) > abs(both[0, 0, place]))
            findings.append(Finding(layer, cell, name, float(both[int(bounded), 0, place]), bounded, chance))
    return sorted(findings, key=lambda finding: -abs(finding.r))


def saturation(gates: Array) -> Array:
    """Shares [4, H, 2] of the steps of gates [T, 4, H] at which each is below 0.1 and above 0.9.

    The candidate g lies between -1 and 1 and not between 0 and 1: its shares are those below -0.9 and above 0.9.
    """
    candidate = gates[:, _CANDIDATE]
    shares = np.stack([(candidate < -HIGH).mean(axis=0), (candidate > HIGH).mean(axis=0)], axis=-1)
    return np.insert(np.stack(gate_saturation(gates, low=LOW, high=HIGH), axis=-1), _CANDIDATE, shares, axis=0)


def half_lives(forget: Array) -> Array:
    """Steps [H] until the forget gate [T, H] has left half of what a cell held, the mean over all moments of the text.

    What is more than half there at the end of the text counts as gone then, so long half-lives are lower bounds.
    `gate_statistics.forget_half_life` is another number: that of the mean of ln f, near 0 for a cell that keeps all it
    holds to the end of each line and then loses it.
    """
    steps = len(forget)
    with np.errstate(divide="ignore"):
        lost = -np.log(forget.astype(np.float64)) + 0.0
    # A gate of exactly 0 loses all; a finite number in its place keeps the sums apart from each other.
    total = np.vstack([np.zeros(forget.shape[1]), np.cumsum(np.minimum(lost, 1e3), axis=0)])
    ends = [np.searchsorted(column, column[:-1] + np.log(2)) for column in total.T]
    return np.array([float((np.minimum(end, steps) - np.arange(steps)).mean()) for end in ends])


def _standard(values: Array) -> Array:
    """Values [T, H] with mean 0 and deviation 1, or 0 where they are constant."""
    deviations = np.asarray(values, np.float64) - np.mean(values, axis=0, dtype=np.float64)
    size = deviations.std(axis=0)
    return np.asarray(deviations / np.where(size < _LEAST_DEVIATION, np.inf, size))


def _shifts(steps: int, rng: np.random.Generator) -> list[int]:
    least = max(steps // 10, 1)
    return [int(shift) for shift in rng.integers(least, max(steps - least, least) + 1, _SHIFTS)]
