"""The recorded results of a program's run, and how two runs differ. Does not know programs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from support import tolerances


class Seen(NamedTuple):
    """A tensor as it was when it was recorded."""

    value: Tensor
    kind: str
    requires_grad: bool
    is_contiguous: bool


class Undecided(Exception):
    """An error that says nothing about the call: if torch raises it and ours does not, neither is wrong."""


class Trace:
    """What was recorded, call by call, each thing with a label of its own, and the errors that ended calls."""

    def __init__(self) -> None:
        self.calls: dict[str, dict[str, Any]] = {}
        self.errors: dict[str, Exception] = {}
        self.begin("the module")

    def begin(self, call: str) -> None:
        """What follows belongs to this call."""
        self.call = call
        self._entries = self.calls[call] = {}

    def record(self, label: str, value: Any) -> None:
        """Record a tensor, of which a copy is kept, or anything that can be compared by ==."""
        if isinstance(value, Tensor):
            copy = (
                torch.zeros(value.shape, dtype=value.dtype)
                if value.is_meta
                else value.detach().as_subclass(Tensor).clone()
            )
            value = Seen(copy, type(value).__name__, value.requires_grad, value.is_contiguous())
        self._entries[f"{len(self._entries) + 1}: {label}"] = value

    def fail(self, error: Exception) -> None:
        """The call ended with this error."""
        self.errors[self.call] = error

    def shared(self, label: str, tensors: dict[str, Tensor | None]) -> None:
        """Record which of these tensors, which ought to be of their own, lie in the same memory."""
        owners: dict[int, str] = {}
        pairs = set()
        for name, tensor in tensors.items():
            if tensor is None or tensor.layout is not torch.strided or tensor.numel() == 0:
                continue
            first = owners.setdefault(tensor.untyped_storage().data_ptr(), name)
            if first != name:
                pairs.add(f"{first} and {name}")
        self.record(f"{label} in the same memory", frozenset(pairs))


class Difference(NamedTuple):
    """kind: a word or two, the same for like differences; text: what both said."""

    kind: str
    text: str


def compare(
    torchs: Trace,
    ours: Trace,
    right: Callable[[], Trace],
    *,
    unit: float,
    terms: int,
    disturbed: Callable[[int], Trace] | None = None,
) -> list[Difference]:
    """How ours differs from torch's, the first of every kind.

    right: gives a run of the equations in float64. It decides where torch raises and ours does not, and where values
    lie further apart than `unit`, the machine epsilon of the lowest precision, allows with `terms` terms in a sum.
    disturbed: gives one in which every number is off by a rounding that follows from a seed; how far its results go
    astray is how far ours may.
    """
    found: dict[str, Difference] = {}
    judge: Trace | None = None
    astray: list[Trace] = []

    def differ(kind: str, text: str) -> None:
        found.setdefault(kind, Difference(kind, text))

    for call, entries in ours.calls.items():
        known = torchs.calls.get(call, {})
        torch_error, our_error = torchs.errors.get(call), ours.errors.get(call)
        for label, mine in entries.items():
            theirs = known.get(label)
            if label in known:
                for kind, text in _structure(f"{call}, {label}", mine, theirs):
                    differ(kind, text)
            if not isinstance(mine, Seen) or (label in known and not isinstance(theirs, Seen)):
                continue
            if label in known and (mine.value.shape != theirs.value.shape or _close(mine, theirs, unit, terms)):
                continue
            if isinstance(torch_error, (Undecided, CheckpointError)):  # torch's own recomputation may differ
                break
            judge = judge or right()
            exact = judge.calls.get(call, {}).get(label)
            if isinstance(exact, Seen):
                if _close(mine, exact, unit, terms):
                    continue
                if disturbed is not None:
                    astray = astray or [disturbed(seed) for seed in range(3)]
                grown = _grown(exact, [trace.calls.get(call, {}).get(label) for trace in astray])
                if _apart(mine, exact) <= grown:
                    continue
                if label in known and not (_close(theirs, exact, unit, terms) or _apart(theirs, exact) <= grown):
                    return list(found.values())  # torch is wrong itself: a write that nobody counts
            if label not in known and not isinstance(exact, Seen):
                continue  # torch refuses it, and nobody can tell what is right
            said = [
                f"torch: {_shown(theirs, mine) if label in known else _raised(torch_error)}",
                f"ours: {_shown(mine, theirs or exact)}",
                f"the equations: {_shown(exact, mine) if isinstance(exact, Seen) else _raised(judge.errors.get(call))}",
            ]
            differ("values", "\n".join([f"{call}, {label}", *said]))
            break
        if str(our_error).startswith("lengths, resets and return_cells need lstmfast's kernels"):
            break  # which have no tensor subclasses
        if "modified by an inplace operation" in str(our_error) and torch_error is None:
            judge = judge or right()
            exacts = judge.calls.get(call, {})
            pairs = [(known[label], exacts.get(label)) for label in known if label not in entries]
            if any(isinstance(a, Seen) and isinstance(b, Seen) and not _close(a, b, unit, terms) for a, b in pairs):
                break  # torch is wrong in silence where ours refuses
        if our_error is not None and (torch_error is None or len(entries) < len(known)):
            at = next((label for label in known if label not in entries), "its end")
            said = [f"torch: {_raised(torch_error)}", f"ours: {_raised(our_error)}"]
            differ(
                f"raises {type(our_error.__cause__ or our_error).__name__}", "\n".join([f"{call}, before {at}", *said])
            )
        if "values" in found:  # what follows from it may differ too
            break
    return list(found.values())


def _structure(label: str, mine: Any, theirs: Any) -> list[Difference]:
    """Everything but values."""
    found = []

    def differ(kind: str, mine: Any, theirs: Any) -> None:
        found.append(Difference(kind, f"{label}: {kind}\ntorch: {theirs}\nours: {mine}"))

    if theirs is None and isinstance(mine, Seen) and not mine.value.any():
        return found  # a gradient that is zero whatever the numbers: torch leaves it out or not
    if not isinstance(mine, Seen) or not isinstance(theirs, Seen):
        if isinstance(mine, frozenset) and isinstance(theirs, frozenset):
            if mine - theirs:
                differ("same memory", sorted(mine), sorted(theirs))
        elif type(mine) is not type(theirs) or mine != theirs:
            differ(label.split(": ")[-1].split(" of ")[0], _shown(mine), _shown(theirs))
        return found
    if mine.value.shape != theirs.value.shape:
        differ("shape", tuple(mine.value.shape), tuple(theirs.value.shape))
    if mine.value.dtype != theirs.value.dtype:
        differ("dtype", mine.value.dtype, theirs.value.dtype)
    if mine.requires_grad != theirs.requires_grad and theirs.value.numel():
        differ("requires_grad", mine.requires_grad, theirs.requires_grad)
    if mine.kind != theirs.kind:
        differ("type of tensor", mine.kind, theirs.kind)
    if theirs.is_contiguous and not mine.is_contiguous and _has_layout(label):
        differ("contiguous", mine.is_contiguous, theirs.is_contiguous)
    return found


def _has_layout(label: str) -> bool:
    """Whether callers may rely on how it lies: outputs, which people view, and gradients that lie as parameters do."""
    return "output of" in label or "gradient of weight" in label or "gradient of bias" in label


def _close(mine: Seen, theirs: Seen, unit: float, terms: int) -> bool:
    if mine.value.shape != theirs.value.shape:
        return False
    if mine.value.numel() == 0:
        return True
    a, b = mine.value, theirs.value
    if not (a.is_floating_point() and b.is_floating_point()):
        return torch.equal(a, b)
    a, b = a.double(), b.double()
    bound = tolerances.rounded(unit, terms) * max(1.0, float(b.abs().nan_to_num(0, 0, 0).max()))
    apart = (a - b).abs_()
    return bool((apart <= bound).all()) or torch.allclose(a, b, rtol=0, atol=bound, equal_nan=True)


def _apart(one: Seen, other: Seen) -> float:
    """How far the furthest numbers of two tensors lie apart; infinitely far where that cannot be said."""
    if one.value.shape != other.value.shape:
        return math.inf
    apart = float((one.value.double() - other.value.double()).abs().max())
    return math.inf if math.isnan(apart) else apart


def _grown(exact: Seen, disturbed: list[Any]) -> float:
    """How far from `exact` a result may lie: some times as far as those that come of disturbed numbers."""
    apart = max((_apart(one, exact) for one in disturbed if isinstance(one, Seen)), default=0.0)
    return tolerances.GROWTH * apart if apart < math.inf else 0.0


def _raised(error: Exception | None) -> str:
    if error is None:
        return "no error"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _shown(value: Any, other: Any = None) -> str:
    """A few words of a value; of a tensor the numbers from where it is furthest from the other."""
    if not isinstance(value, Seen):
        return repr(value)[:300]
    flat, start = value.value.flatten(), 0
    if isinstance(other, Seen) and flat.numel() and other.value.numel() == flat.numel():
        apart = (flat.double() - other.value.flatten().double()).abs()
        start = int(apart.nan_to_num(torch.inf).argmax())
    numbers = ", ".join(f"{number:.6g}" for number in flat[start : start + 5].tolist())
    return f"{value.value.dtype} {tuple(value.value.shape)}, from [{start}] on: {numbers}"
