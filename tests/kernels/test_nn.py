"""The hot loops around the LSTM: projection, loss, embedding, norm and updates, against the reference, at odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lstmfast import _core, optimizers, reference
from support.sequences import Outputs
from support.tolerances import gradients, sums
from support.updates import updated_by_reference

PRODUCTS = [(1, 1, 1), (3, 5, 7), (4, 8, 16), (7, 33, 17), (65, 9, 31), (1030, 100, 5), (0, 3, 2), (3, 0, 2), (3, 2, 0)]
SIZES = [0, 1, 3, 8, 17, 33, 1000]


# --- projection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
def test_linear_is_the_references(isa, dtype, rng, shape, with_bias):
    (n, k, m), outputs = shape, Outputs()
    x, kernel, bias = (rng.standard_normal(size).astype(dtype) for size in [(n, k), (k, m), (m,)])
    out = outputs.contiguous("out", (n, m), dtype)
    _core.linear(x, kernel, bias if with_bias else None, out)
    expected = reference.linear(x.astype(float), kernel.astype(float), bias.astype(float) if with_bias else None)
    assert_allclose(out, expected, **sums(dtype, k + 1))


def test_a_deep_product_is_summed_in_pieces(isa, rng):
    # In order 2,048 terms lose 8.0e-7 of the sum, in pieces of 128 on every ISA 2.2e-7.
    x, kernel = rng.standard_normal((64, 2048)).astype(np.float32), rng.standard_normal((2048, 64)).astype(np.float32)
    out, expected = np.empty((64, 64), np.float32), x.astype(float) @ kernel.astype(float)
    _core.linear(x, kernel, None, out)
    assert np.linalg.norm(out - expected) <= 3e-7 * np.linalg.norm(expected)


@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
def test_gradients_of_linear_are_the_references(isa, dtype, rng, shape):
    n, k, m = shape
    x, kernel, d_out = (rng.standard_normal(size).astype(dtype) for size in [(n, k), (k, m), (n, m)])
    outputs = Outputs()
    d = [outputs.contiguous(str(size), size, dtype) for size in [(n, k), (k, m), (m,)]]
    _core.linear_backward(x, kernel, d_out, *d)
    expected = reference.linear_backward(x.astype(float), kernel.astype(float), d_out.astype(float))
    assert_allclose(np.concatenate([v.ravel() for v in d]), flat(expected), **gradients(dtype, max(shape)))


@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
def test_linear_and_its_gradients_write_nothing_outside_their_outputs(isa, dtype, rng, shape):
    (n, k, m), outputs = shape, Outputs()
    x, kernel, d_out = (rng.standard_normal(size).astype(dtype) for size in [(n, k), (k, m), (n, m)])
    _core.linear(x, kernel, None, outputs.contiguous("out", (n, m), dtype))
    d = [outputs.contiguous(f"gradient {size}", size, dtype) for size in [(n, k), (k, m), (m,)]]
    _core.linear_backward(x, kernel, d_out, *d)
    assert outputs.spilled() == []


@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
def test_packed_linear_gives_the_bits_of_linear(isa, dtype, rng, shape):
    (n, k, m), outputs = shape, Outputs()
    x, kernel, bias = (rng.standard_normal(size).astype(dtype) for size in [(n, k), (k, m), (m,)])
    expected, out = np.empty((n, m), dtype), outputs.contiguous("out", (n, m), dtype)
    _core.linear(x, kernel, bias, expected)
    _core.PackedLinear(kernel, bias).apply(x, out)
    assert_array_equal(out, expected)
    assert outputs.spilled() == []


def test_packed_linear_keeps_the_weights_that_it_was_made_of(isa, dtype, rng):
    x, kernel, bias = (rng.standard_normal(size).astype(dtype) for size in [(3, 5), (5, 7), (7,)])
    packed, before, after = _core.PackedLinear(kernel, bias), np.empty((3, 7), dtype), np.empty((3, 7), dtype)
    packed.apply(x, before)
    kernel[:], bias[:] = 0, 0
    packed.apply(x, after)
    assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros(5), np.zeros(2), None, None), ValueError, r"kernel must have 2 axes \[inputs, outputs\]"),
        ((np.zeros((5, 2)), None, None, None), TypeError, "bias must be a NumPy array, got None"),
        ((np.zeros((5, 2)), np.zeros(3), None, None), ValueError, r"bias must have shape \(2,\), got \(3,\)"),
        ((np.zeros((5, 2)), np.zeros(2, "f4"), None, None), TypeError, "bias must be float64, got float32"),
        ((np.zeros((5, 2)), np.zeros(2), np.zeros((3, 4)), np.zeros((3, 2))), ValueError, r"x must have shape \(3, 5"),
        ((np.zeros((5, 2)), np.zeros(2), np.zeros((3, 5)), np.zeros((3, 5))), ValueError, r"out must have shape \(3"),
        ((np.zeros((5, 2)), np.zeros(2), np.zeros((3, 5), "f4"), np.zeros((3, 2))), TypeError, "x must be float64"),
    ],
)
def test_packed_linear_error_names_the_argument(arguments, error, message):
    kernel, bias, x, out = arguments
    with pytest.raises(error, match=message):
        _core.PackedLinear(kernel, bias).apply(x, out)


# --- loss -------------------------------------------------------------------------------------------------------------

LOGITS = [(1, 1), (3, 2), (5, 7), (4, 16), (2, 27), (7, 33), (65, 96), (0, 5)]


@pytest.mark.parametrize("size", [1.0, 60.0], ids=["logits of 1", "logits of 60"])
@pytest.mark.parametrize("shape", LOGITS, ids=str)
def test_cross_entropy_and_its_gradient_are_the_references(isa, dtype, rng, shape, size):
    logits = (size * rng.standard_normal(shape)).astype(dtype)
    targets = rng.integers(0, shape[1], shape[0]).astype(np.int32)
    losses, d_logits = np.empty(shape[0], dtype), np.empty(shape, dtype)
    _core.softmax_cross_entropy(logits, targets, losses, d_logits, 0.25)
    expected = reference.softmax_cross_entropy(logits.astype(float), targets, scale=0.25)
    assert_allclose(flat([losses, d_logits]), flat(expected), **sums(dtype, shape[1], size))


def test_gradient_of_cross_entropy_may_overwrite_the_logits(isa, dtype, rng):
    logits, targets = rng.standard_normal((5, 27)).astype(dtype), rng.integers(0, 27, 5).astype(np.int32)
    apart, losses = np.empty_like(logits), np.empty(5, dtype)
    _core.softmax_cross_entropy(logits, targets, losses, apart)
    _core.softmax_cross_entropy(logits, targets, losses, logits)
    assert_array_equal(logits, apart)


def test_losses_are_the_same_without_gradient(isa, dtype, rng):
    logits, targets = rng.standard_normal((5, 27)).astype(dtype), rng.integers(0, 27, 5).astype(np.int32)
    alone, together = np.empty(5, dtype), np.empty(5, dtype)
    _core.softmax_cross_entropy(logits, targets, alone)
    _core.softmax_cross_entropy(logits, targets, together, np.empty_like(logits))
    assert_array_equal(alone, together)


def test_cross_entropy_of_huge_logits_does_not_overflow(isa, dtype):
    losses = np.empty(2, dtype)
    logits = np.array([[1e30, 0, -1e30], [-1e30, -1e30, -1e30]], dtype)
    _core.softmax_cross_entropy(logits, np.array([0, 1], np.int32), losses)
    assert_allclose(losses, [0, np.log(3)], **sums(dtype, 3))


@pytest.mark.parametrize("shape", LOGITS, ids=str)
def test_cross_entropy_writes_nothing_outside_its_outputs(isa, dtype, rng, shape):
    outputs, targets = Outputs(), np.zeros(shape[0], np.int32)
    losses = outputs.contiguous("losses", shape[:1], dtype)
    d_logits = outputs.contiguous("d_logits", shape, dtype)
    _core.softmax_cross_entropy(rng.standard_normal(shape).astype(dtype), targets, losses, d_logits)
    assert outputs.spilled() == []


# --- cross entropy of a projection ------------------------------------------------------------------------------------


PROJECTIONS = [(1, 1, 1), (3, 5, 7), (0, 3, 2), (7, 33, 1030), (300, 17, 19), (600, 8, 2100)]


@pytest.mark.parametrize("transposed", [False, True], ids=["kernel", "table"])
@pytest.mark.parametrize("shape", PROJECTIONS, ids=str)
def test_cross_entropy_of_a_projection_is_that_of_all_its_logits(isa, dtype, rng, shape, transposed):
    n, k, m = shape
    x, kernel, bias = (rng.standard_normal(size) for size in [(n, k), (k, m), (m,)])
    targets, scale = rng.integers(0, m, n).astype(np.int32), 1 / max(n, 1)
    losses, d_x, d_bias = (np.full(size, np.nan, dtype) for size in [(n,), (n, k), (m,)])
    d_kernel = np.full((m, k) if transposed else (k, m), np.nan, dtype)
    given = (np.ascontiguousarray(kernel.T) if transposed else kernel).astype(dtype)
    _core.projected_cross_entropy(
        x.astype(dtype), given, bias.astype(dtype), targets, losses, d_x, d_kernel, d_bias, transposed, scale
    )
    logits = reference.linear(x, kernel, bias)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    d_logits = (p - np.eye(m)[targets]) * scale
    expected = -np.log(p[np.arange(n), targets]), d_logits @ kernel.T, x.T @ d_logits, d_logits.sum(axis=0)
    found = losses, d_x, d_kernel.T if transposed else d_kernel, d_bias
    for ours, theirs in zip(found, expected, strict=True):
        assert_allclose(ours, theirs, **gradients(dtype, max(n, m) + k))


@pytest.mark.parametrize("transposed", [False, True], ids=["kernel", "table"])
def test_cross_entropy_of_a_projection_has_the_same_bits_on_any_number_of_threads(rng, transposed):
    n, k, m = 300, 64, 2500
    x, kernel, bias = (rng.standard_normal(s).astype("f4") for s in [(n, k), (m, k) if transposed else (k, m), (m,)])
    targets, before, results = rng.integers(0, m, n).astype(np.int32), _core.get_num_threads(), []
    try:
        for threads in (1, 3):
            _core.set_num_threads(threads)
            out = np.empty(n, "f4"), np.empty((n, k), "f4"), np.empty(kernel.shape, "f4"), np.empty(m, "f4")
            _core.projected_cross_entropy(x, kernel, bias, targets, *out, transposed, 1.0)
            results.append(b"".join(a.tobytes() for a in out))
    finally:
        _core.set_num_threads(before)
    assert results[0] == results[1]


# --- embedding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 7, 16, 33])
def test_embedding_gather_copies_rows(isa, dtype, rng, columns):
    table, ids = rng.standard_normal((11, columns)).astype(dtype), rng.integers(0, 11, 9).astype(np.int32)
    out = np.empty((9, columns), dtype)
    _core.embedding_gather(table, ids, out)
    assert_array_equal(out, table[ids])


@pytest.mark.parametrize("columns", [1, 7, 16, 33])
@pytest.mark.parametrize("rows", [0, 1, 50])
def test_embedding_scatter_adds_the_rows_of_an_id_in_their_order(isa, dtype, rng, rows, columns):
    d_out, ids = rng.standard_normal((rows, columns)).astype(dtype), rng.integers(0, 11, rows).astype(np.int32)
    d_table = np.full((11, columns), np.nan, dtype)
    _core.embedding_scatter(d_out, ids, d_table)
    assert_array_equal(d_table, reference.embedding_scatter(d_out, ids, 11))


def test_embedding_scatter_adds_to_what_is_there_if_asked(isa, dtype, rng):
    d_out, ids = rng.standard_normal((9, 5)).astype(dtype), rng.integers(0, 11, 9).astype(np.int32)
    d_table = np.ones((11, 5), dtype)
    _core.embedding_scatter(d_out, ids, d_table, add=True)
    assert_allclose(d_table, 1 + reference.embedding_scatter(d_out, ids, 11), **sums(dtype, 10))


# --- norm and updates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_global_norm_is_the_references(isa, dtype, rng, size):
    values = rng.standard_normal(size).astype(dtype)
    assert_allclose(_core.global_norm(values), reference.global_norm(values), **sums(np.float64, size))


def test_global_norm_of_large_numbers_does_not_overflow(isa, dtype):
    assert_allclose(_core.global_norm(np.full(100, 1e30, dtype)), 1e31, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_global_norm_shows_a_value_that_is_not_finite(isa, dtype, value):
    assert_array_equal(_core.global_norm(np.array([1, value, 1], dtype)), value)


UPDATES = [
    *(kind() for kind in optimizers.OPTIMIZERS.values()),
    optimizers.Momentum(nesterov=True),
    optimizers.Adam(weight_decay=0.01),
]
every_update = pytest.mark.parametrize("optimizer", UPDATES, ids=repr)
HOW = {"learning_rate": 0.1, "gradient_scale": 0.5}


def third_update(optimizer, outputs, size, dtype, rng):
    """An optimizer two steps on, with parameters, gradients and slots that lie in `outputs`."""
    parameters, gradient, *slots = (
        outputs.contiguous(name, (size,), dtype) for name in ("parameters", "gradients", *optimizer.slot_names)
    )
    parameters[:], gradient[:] = rng.standard_normal((2, size))
    for slot in slots:
        slot[:] = rng.random(size)
    optimizer.slots, optimizer.step_count = dict(zip(optimizer.slot_names, slots, strict=True)), 2
    return parameters, gradient, slots


@pytest.mark.parametrize("size", SIZES)
@every_update
def test_update_is_the_references(isa, dtype, rng, optimizer, size):
    parameters, gradient, slots = third_update(optimizer, Outputs(), size, dtype, rng)
    given = (parameters.astype(float), gradient.astype(float), [slot.astype(float) for slot in slots])
    expected = updated_by_reference(optimizer, *given, **HOW)
    optimizer.update(parameters, gradient, **HOW)
    largest = np.abs(expected[0] - given[0]).max(initial=1.0)  # a small second moment makes a large step
    assert_allclose(flat([parameters, *slots]), flat(expected), **sums(dtype, 1, largest))


@every_update
def test_update_leaves_the_gradient_and_the_memory_around_as_they_were(isa, dtype, rng, optimizer):
    outputs = Outputs()
    parameters, gradient, _ = third_update(optimizer, outputs, 17, dtype, rng)
    before = gradient.copy()
    optimizer.update(parameters, gradient, **HOW)
    assert np.array_equal(gradient, before)
    assert outputs.spilled() == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("adagrad", 1, 1, [], [0.1]), ValueError, "optimizer must be one of sgd, .*adam, got adagrad"),
        (("rmsprop", 1, 1, [], [0.1, 0.9, 0.1, 1e-8]), ValueError, "slots must have length 1 for rmsprop, got 0"),
        (("sgd", 1, 1, [], [0.1, 0.9]), ValueError, "constants must have length 1 for sgd, got 2"),
        (("sgd", 3, 2, [], [0.1]), ValueError, r"gradients must have shape \(3,\), got \(2,\)"),
        (("momentum", 3, 3, [np.zeros(2)], [0.1, 0.9]), ValueError, r"every slot must have shape \(3,\), got \(2,\)"),
        (("momentum", 3, 3, [None], [0.1, 0.9]), TypeError, "every slot must be a NumPy array, got None"),
    ],
)
def test_update_error_names_the_argument(arguments, error, message):
    name, parameters, gradient, slots, constants = arguments
    with pytest.raises(error, match=message):
        _core.optimizer_update(name, np.zeros(parameters), np.zeros(gradient), slots, constants, 1.0)


def flat(arrays):
    """All values of some arrays in one."""
    return np.concatenate([np.asarray(array).ravel() for array in arrays])
