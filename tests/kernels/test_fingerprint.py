"""The fingerprint by which a Sequence sees that weights have changed: what it is, and that no change escapes it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmfast import _core
from support.sequences import load_and_forward, sequence_of

Arrays = dict[str, Any]
fingerprint = _core.fingerprint
PRIME, PIECE, SHIFT = 2**61 - 1, 4096, 16
# Below, at and above a vector of every ISA, one unrolled loop of them, and a piece.
COUNTS = [0, 1, 2, 3, 5, 8, 15, 16, 17, 63, 64, 65, 127, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 5000]


def reference(matrix: Any) -> tuple[int, int]:
    """The same in Python's integers: NH of every piece of a row, and polynomials of those."""
    points, keys = _core.testing.fingerprint_keys()
    rows = matrix.reshape(1, -1) if matrix.flags.c_contiguous or len(matrix) == 1 else matrix
    values = [0, 0]
    for row in rows:
        bytes_of_row = np.ascontiguousarray(row).tobytes()
        for start in range(0, len(bytes_of_row), PIECE):
            piece = bytes_of_row[start : start + PIECE]
            words = np.frombuffer(piece.ljust(-(-len(piece) // 64) * 64, b"\0"), "u4")
            for i in range(2):
                keyed = (words + keys[i * SHIFT :][: len(words)]).astype("u8")
                total = int((keyed[::2] * keyed[1::2]).sum(dtype="u8"))
                for half in (total >> 32, total & 0xFFFFFFFF):
                    values[i] = (values[i] * points[i] + half) % PRIME
    return values[0], values[1]


@pytest.mark.parametrize("count", COUNTS)
def test_fingerprint_is_that_of_the_reference(isa, dtype, rng, count):
    values = rng.standard_normal((1, count)).astype(dtype)
    assert fingerprint(values) == reference(values)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 64), (4, 700), (2, 2050)], ids=str)
def test_rows_with_gaps_between_them(isa, dtype, rng, shape):
    rows, columns = shape
    values = rng.standard_normal((rows, columns + 3)).astype(dtype)
    assert fingerprint(values[:, 1:-2]) == reference(values[:, 1:-2])


def test_what_lies_in_the_gaps_is_not_looked_at(isa, dtype, rng):
    values = rng.standard_normal((5, 40)).astype(dtype)
    before = fingerprint(values[:, :33])
    values[:, 33:] = np.nan
    assert fingerprint(values[:, :33]) == before


@pytest.mark.parametrize("offset", range(1, 17))
def test_alignment_does_not_matter(isa, dtype, rng, offset):
    values = rng.standard_normal(1100).astype(dtype)
    moved = np.empty(1120, dtype)[offset : offset + 1100]
    moved[...] = values
    assert fingerprint(moved[None]) == fingerprint(values[None])


def test_every_single_bit_counts(isa, dtype, rng):
    values = rng.standard_normal((1, 37)).astype(dtype)
    bits = values.view(np.uint8)
    seen = {fingerprint(values)}
    for byte, bit in itertools.product(range(bits.size), range(8)):
        bits[0, byte] ^= 1 << bit
        seen.add(fingerprint(values))
        bits[0, byte] ^= 1 << bit
    assert len(seen) == 1 + 8 * bits.size


def test_every_position_of_a_large_matrix_counts(isa, dtype, rng):
    values = rng.standard_normal((3, 1700)).astype(dtype)
    before = fingerprint(values)
    flat = values.reshape(-1)
    for position in range(0, flat.size, 7):
        kept, flat[position] = flat[position], np.nextafter(flat[position], dtype.type(9))
        assert fingerprint(values) != before, position
        flat[position] = kept
    assert fingerprint(values) == before


def swapped(values: Any, i: int, j: int) -> Any:
    """The array with two rows exchanged."""
    order = list(range(len(values)))
    order[i], order[j] = j, i
    return values[order]


CHANGES = {
    "rows swapped": lambda v: swapped(v, 0, 1),
    "distant rows swapped": lambda v: swapped(v, 2, 9),
    "columns swapped": lambda v: np.ascontiguousarray(swapped(v.T, 0, 1).T),
    "pieces swapped": lambda v: np.ascontiguousarray(np.roll(v.reshape(-1), 1024).reshape(v.shape)),
    "all signs": lambda v: -v,
    "one sign": lambda v: np.concatenate([-v[:1], v[1:]]),
    "sign of zero": lambda v: np.where(v == 0, -v, v),
    "payload of a NaN": lambda v: np.where(np.isnan(v), -v, v),
    "moved on by one": lambda v: np.ascontiguousarray(np.roll(v, 1)),
    "all zero": np.zeros_like,
    "doubled": lambda v: 2 * v,
    "one moved to another": lambda v: v + np.eye(*v.shape, dtype=v.dtype) - np.eye(*v.shape, k=1, dtype=v.dtype),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_of_the_kinds_that_programs_make(isa, dtype, rng, change):
    values = rng.standard_normal((12, 256)).astype(dtype)
    values[3, 4], values[5, 6] = 0.0, np.nan
    changed = change(values)
    assert changed.shape == values.shape
    assert changed.tobytes() != values.tobytes()
    assert fingerprint(changed) != fingerprint(values)


@pytest.mark.parametrize("shape", [(3, 5), (64, 1000), (1500, 1024), (1025, 2050)], ids=str)
def test_threads_and_isas_give_the_same_value(threads, rng, shape):
    values, found = rng.standard_normal(shape).astype(np.float32), set()
    before = _core.current_isa()
    for isa, count in itertools.product(_core.available_isas(), (1, 2, 3)):
        _core.testing.set_isa(isa)
        threads.set_num_threads(count)
        found.add(fingerprint(values))
    _core.testing.set_isa(before)
    assert len(found) == 1


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_two_contents_that_differ_have_different_fingerprints(data):
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 300))
    first = np.frombuffer(data.draw(st.binary(min_size=8, max_size=64)).ljust(64, b"\1"), "u4")
    values = np.resize(first, (rows, columns)).copy()
    changed = values.copy()
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
        changed[place] = data.draw(st.integers(0, 2**32 - 1))
    same = values.tobytes() == changed.tobytes()
    assert (fingerprint(values.view("f4")) == fingerprint(changed.view("f4"))) == same


def test_keys_are_drawn_anew_in_every_process():
    code = "from lstmfast import _core; print(_core.testing.fingerprint_keys()[0])"
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 2


# ---- A Sequence that looks


def run(sequence: _core.Sequence, p: Arrays, **options: Any) -> Any:
    """h of one call in inference."""
    steps, batch = p["x"].shape[:2]
    hidden = p["bias"].size // 4
    output = p["projection"].shape[-1 if isinstance(p["kernel"], np.ndarray) else 0] if "projection" in p else hidden
    dtype = p["bias"].dtype
    h, h_n, c_n = (np.empty(shape, dtype) for shape in ((steps, batch, output), (batch, output), (batch, hidden)))
    load_and_forward(sequence, **p, h=h, h_n=h_n, c_n=c_n, **options)
    return h


def weights(rng: np.random.Generator, dtype: Any, layout: str, projected: bool, rows: int = 12) -> Arrays:
    """A layer of 9 inputs and 7 units, and x of that many rows."""
    inputs, hidden, output = 9, 7, 5 if projected else 7
    steps, batch = (rows // 4, 4) if rows >= 4 else (rows, 1)

    def draw(*shape: int) -> Any:
        return (rng.standard_normal(shape) / 4).astype(dtype)

    kernel: Any = draw(inputs + output, 4 * hidden)
    if layout == "transposed":
        kernel = draw(4 * hidden, inputs), draw(4 * hidden, output)
    elif layout == "gaps":
        kernel = draw(inputs + output, 4 * hidden + 3)[:, 2:-1]
    p = {"x": draw(steps, batch, inputs), "kernel": kernel, "bias": draw(4 * hidden)}
    if layout == "ids":
        p["x"] = rng.integers(0, inputs, (steps, batch)).astype(np.int32)
    if projected:
        p["projection"] = draw(output, hidden) if layout == "transposed" else draw(hidden, output)
    # Far from zero, where a weight would make no difference.
    p["h0"], p["c0"] = (rng.uniform(0.25, 1, (batch, size)).astype(dtype) for size in (output, hidden))
    return p


def arrays_of(p: Arrays) -> list[Any]:
    """All weights, each an array."""
    kernel = p["kernel"] if isinstance(p["kernel"], tuple) else (p["kernel"],)
    return [*kernel, p["bias"], *([p["projection"]] if "projection" in p else [])]


@pytest.mark.parametrize("projected", [False, True], ids=["plain", "projected"])
@pytest.mark.parametrize("layout", ["rows", "gaps", "transposed", "ids"])
@pytest.mark.parametrize("rows", [1, 2, 4, 12])
def test_any_weight_written_between_two_calls_is_seen(isa, dtype, rng, layout, projected, rows):
    p, sequence = weights(rng, dtype, layout, projected, rows), sequence_of()
    for array in arrays_of(p):
        for place in np.ndindex(array.shape):
            before = run(sequence, p)
            array[place] += 1
            after = run(sequence, p)
            assert np.array_equal(after, run(sequence_of(), p)), (array.shape, place)
            assert layout == "ids" or not np.array_equal(after, before), (array.shape, place)


@pytest.mark.parametrize("between", ["training", "other shape", "few rows", "once", "ids", "other weights", "promised"])
@pytest.mark.parametrize("write", [False, True], ids=["untouched", "written"])
def test_calls_of_other_kinds_in_between(isa, dtype, rng, between, write):
    p, sequence = weights(rng, dtype, "rows", False), sequence_of()
    run(sequence, p)
    if write:
        p["kernel"][3, 4] += 1
    other = {
        "training": lambda: run(sequence, p, keep_for_backward=True),
        "other shape": lambda: run(sequence, {**p, "x": p["x"][..., :4].copy(), "kernel": p["kernel"][5:].copy()}),
        "few rows": lambda: run(sequence, {**p, "x": p["x"][:1]}),
        "once": lambda: run(sequence, p, serves_one_call=True),
        "ids": lambda: run(sequence, {**p, "x": np.zeros((3, 4), np.int32)}),
        "other weights": lambda: run(sequence, {**p, "kernel": p["kernel"] + 1}),
        "promised": lambda: run(sequence, {**p, "kernel": p["kernel"] * 2}, frozen=True),
    }
    other[between]()
    assert np.array_equal(run(sequence, p), run(sequence_of(), p))


def test_equal_weights_elsewhere_are_the_same_weights(isa, dtype, rng):
    p, sequence = weights(rng, dtype, "rows", False), sequence_of()
    expected = run(sequence, p)
    assert np.array_equal(run(sequence, {**p, "kernel": p["kernel"].copy()}), expected)


def test_another_isa_packs_again(isa, dtype, rng):
    p, sequence = weights(rng, dtype, "rows", False), sequence_of()
    run(sequence, p)
    _core.testing.set_isa("generic")
    assert np.array_equal(run(sequence, p), run(sequence_of(), p))


def run_again(sequence: _core.Sequence, p: Arrays) -> Any:
    """h of another call with the weights that are loaded."""
    h = np.empty((*p["x"].shape[:2], p["h0"].shape[1]), p["bias"].dtype)
    sequence.forward(p["x"], h, np.empty_like(p["h0"]), np.empty_like(p["c0"]), p["h0"], p["c0"])
    return h


def test_a_call_without_another_load_looks_too(isa, dtype, rng):
    p, sequence = weights(rng, dtype, "rows", False), sequence_of()
    run(sequence, p)
    p["kernel"][3, 4] += 1
    assert np.array_equal(run_again(sequence, p), run(sequence_of(), p))


def test_frozen_weights_are_not_looked_at(isa, dtype, rng):
    p, sequence = weights(rng, dtype, "rows", False), sequence_of()
    expected = run(sequence, p, frozen=True)
    p["kernel"][...] = np.nan
    assert np.array_equal(run_again(sequence, p), expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_load_ends_the_promise_of_the_one_before(isa, dtype, rng, frozen):
    p, sequence = weights(rng, dtype, "rows", False), sequence_of()
    run(sequence, p, frozen=True)
    p["kernel"][...] = np.nan
    assert np.isnan(run(sequence, p, frozen=frozen)).all()


def test_weights_that_serve_one_call_are_let_go_of(rng):
    p, sequence = weights(rng, np.float32, "rows", False), sequence_of()
    before = sys.getrefcount(p["kernel"])
    run(sequence, p, serves_one_call=True)
    after = sys.getrefcount(p["kernel"])
    assert after == before
    with pytest.raises(RuntimeError, match="forward needs a load before it"):
        run_again(sequence, p)
