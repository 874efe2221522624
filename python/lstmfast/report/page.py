"""The page itself: everything that it shows, as JSON, and one HTML file that needs nothing else.

The numbers are those of the model with its weights rounded to 8 bits, which is the one that the page holds and runs.
Refuses to choose the text (see `passage`), and words: these are in report.html and the scripts beside it.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lstmfast import gates
from lstmfast._checks import Array
from lstmfast.inspection import Inspection
from lstmfast.models import CharLM
from lstmfast.report import causes, cells
from lstmfast.report.cells import Finding
from lstmfast.report.network import Layer, Network, Trace, axis_of_scales, quantized, rounded
from lstmfast.report.passage import Passage
from lstmfast.report.tracks import ABOUT, tracks
from lstmfast.text.vocabulary import Vocabulary
from lstmfast.training.config import Config

SCRIPTS = ("model.js", "draw.js", "page.js")
WINDOW = 100  # symbols back from a prediction

_GUESSES = 5
_MOST_KNOCKED_OUT, _COMPARED = 16, 8  # found cells, and others to compare them with
_CANDIDATES, _EXAMPLES = 48, 5  # positions tried and shown for what a prediction hangs on


@dataclasses.dataclass(frozen=True)
class Run:
    """What a page tells of a run: its name, settings, lines of metrics, samples as in their file, and variables."""

    name: str
    config: Config
    metrics: Sequence[dict[str, float]] = ()
    samples: str = ""
    variables: Inspection | None = None


def contents(model: CharLM, vocabulary: Vocabulary, passage: Passage, beginning: int, run: Run) -> dict[str, Any]:
    """Everything on the page, for `to_html`. beginning: the id that is read before the passage.

    Raises ValueError if a weight is not finite, and for cells with zoneout or layer_norm.
    """
    if not np.isfinite(model.parameter_buffer).all():
        raise ValueError("the model has weights that are not finite: its training failed, and there is nothing to show")
    exact = Network.of(model)
    network = rounded(exact)
    ids = np.concatenate([[beginning], passage.ids]).astype(np.int64)
    trace, exact_trace = network.read(ids), exact.read(ids)
    after = [own[1:] for own in trace.c]  # the state after each symbol of the passage
    known = _by_symbol(tracks(passage.text), passage)
    found = cells.find(after, known, rng=np.random.default_rng(0))
    bits = trace.surprise(ids)
    same = exact_trace.logits[:-1].argmax(axis=-1) == trace.logits[:-1].argmax(axis=-1)
    return {
        "name": run.name,
        "vocabulary": {"kind": vocabulary.kind, "symbols": list(vocabulary.symbols or "")},
        "beginning": beginning,
        "ids": _packed(passage.ids.astype("<u2")),
        "characters": passage.characters,
        "notes": list(passage.notes),
        "window": WINDOW,
        "network": _network(network, exact),
        "rounding": {"bits": float(exact_trace.surprise(ids).mean()), "same": float(same.mean())},
        "bits": _packed(bits.astype("<f4")),
        "guesses": _guesses(trace, ids),
        "tracks": [
            {"name": name, "about": ABOUT[name], "values": _packed(values.astype("<f4"))}
            for name, values in known.items()
        ],
        "found": [dataclasses.asdict(finding) for finding in found],
        "saturation": [_packed(cells.saturation(own[1:]).astype("<f4")) for own in trace.gates],
        "half_lives": [_packed(cells.half_lives(own[1:, 1]).astype("<f4")) for own in trace.gates],
        "knock_out": _knock_out(network, ids, found),
        "examples": _examples(network, trace, ids),
        "run": _run(run, model),
    }


def to_html(data: dict[str, Any]) -> bytes:
    """The page, UTF-8: the template with its style, its scripts and the data in it."""
    folder = importlib.resources.files("lstmfast.report")

    def text_of(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    # In a script element only "</script" and "<!--" would end or change it; JSON can write "<" otherwise.
    embedded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "style": text_of("report.css"), "script": "\n".join(map(text_of, SCRIPTS)), "data": embedded,
        "title": data["name"].replace("&", "&amp;").replace("<", "&lt;"),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], text_of("report.html"))
    return page.encode("utf-8", errors="replace")


def _by_symbol(known: dict[str, Any], passage: Passage) -> dict[str, Any]:
    """Tracks with one value for each symbol: the bytes of a character have that of the last character read."""
    if all(passage.characters):
        return known
    last = np.cumsum([bool(character) for character in passage.characters]) - 1
    return {name: np.where(last < 0, 0.0, values[np.maximum(last, 0)]) for name, values in known.items()}


def _network(network: Network, exact: Network) -> dict[str, Any]:
    """Sizes and weights; kernels as 8-bit integers with their scales."""

    def integers(name: str, values: Array | None) -> dict[str, Any] | None:
        if values is None:
            return None
        axis = axis_of_scales(name)
        numbers, scales = quantized(values, axis)
        return {"shape": values.shape, "axis": axis, "values": _packed(numbers), "scales": _packed(scales)}

    def numbers(values: Array | None) -> str | None:
        return None if values is None else _packed(values.astype("<f4"))

    def layer_of(layer: Layer) -> dict[str, Any]:
        return {
            "hidden_size": layer.hidden_size,
            "output_size": len(layer.recurrent_kernel),
            "input_kernel": integers("input_kernel", layer.input_kernel),
            "recurrent_kernel": integers("recurrent_kernel", layer.recurrent_kernel),
            "projection": integers("projection", layer.projection),
            "bias": _packed(layer.bias.astype("<f4")),
            "peepholes": numbers(layer.peepholes),
            "initial_h": numbers(layer.initial_h),
            "initial_c": numbers(layer.initial_c),
        }

    return {
        "gates": list(gates.NAMES),
        "cell": dataclasses.asdict(network.cell),
        "table": integers("table", exact.table),
        "layers": [layer_of(layer) for layer in exact.layers],
        "output_kernel": integers("output_kernel", exact.output_kernel),
        "output_bias": _packed(exact.output_bias.astype("<f4")),
    }


def _guesses(trace: Trace, ids: Any) -> dict[str, Any]:
    """For each symbol the likeliest ids with their probabilities, that of the true one, and its rank from 1."""
    logits = trace.logits[:-1].astype(np.float64)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = shifted / shifted.sum(axis=-1, keepdims=True)
    best = np.argsort(-p, axis=-1, kind="stable")[:, :_GUESSES]
    true = np.take_along_axis(p, ids[1:, None], axis=-1)
    rank = 1 + (p > true).sum(axis=-1)
    return {
        "count": best.shape[1], "ids": _packed(best.astype("<u2")), "rank": _packed(rank.astype("<u2")),
        "p": _packed(np.take_along_axis(p, best, axis=-1).astype("<f4")), "true": _packed(true.astype("<f4")),
    }


def _knock_out(network: Network, ids: Any, found: Sequence[Finding]) -> list[dict[str, Any]]:
    """Bits per symbol without each found cell, and without others that are spread evenly, to compare with."""
    chosen = list(dict.fromkeys((finding.layer, finding.cell) for finding in found))[:_MOST_KNOCKED_OUT]
    places = [(k, cell) for k, layer in enumerate(network.layers) for cell in range(layer.hidden_size)]
    others = [place for place in places if place not in chosen]
    compared = [others[index] for index in np.linspace(0, len(others) - 1, _COMPARED).astype(int)] if others else []
    bits = causes.knock_out(network, ids, dict.fromkeys([*chosen, *compared]))
    return [
        {"layer": layer, "cell": cell, "bits": value, "found": (layer, cell) in chosen}
        for (layer, cell), value in bits.items()
    ]


def _examples(network: Network, trace: Trace, ids: Any) -> list[int]:
    """Positions in the passage whose predictions reach back the farthest, of those tried that were likely right."""
    candidates = np.unique(np.linspace(1, len(ids) - 1, _CANDIDATES).astype(int))
    likely = np.exp2(-trace.surprise(ids)) > 0.5
    reached = {
        int(place): causes.reach(causes.connectivity(network, trace, ids, int(place), WINDOW))
        for place in candidates
        if likely[place - 1]
    }
    best = sorted(reached, key=lambda place: -reached[place])[:_EXAMPLES]
    return sorted(place - 1 for place in best)


def _run(run: Run, model: CharLM) -> dict[str, Any]:
    settings = {
        entry.name: dataclasses.asdict(getattr(run.config, entry.name))
        for entry in dataclasses.fields(run.config)
        if dataclasses.is_dataclass(getattr(run.config, entry.name))
    }
    found = run.variables
    return {
        "parameters": int(model.parameter_buffer.size),
        "preset": run.config.preset,
        "settings": settings,
        "metrics": [{key: value for key, value in line.items() if np.isfinite(value)} for line in run.metrics],
        "samples": _samples(run.samples),
        "formula": list(found.formula) if found else [],
        "variables": [variable.to_json() for variable in found.variables] if found else [],
    }


def _samples(text: str) -> list[dict[str, Any]]:
    """The sets of a samples.txt: step and text."""
    parts = re.split(r"^=== step (\d+) ===\n", text, flags=re.M)
    return [
        {"step": int(step), "text": sample.removesuffix("\n\n")}
        for step, sample in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _packed(values: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
