"""Stepping and sampling: a stream is a sequence taken one step at a time, and chooses tokens as the reference does."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lstmfast import _core, reference
from tolerances import states

T, INPUT, H, V, FORGET_BIAS = 6, 5, 17, 27, 1.0

Array = npt.NDArray[Any]


def stack(rng: np.random.Generator, layers: int, dtype: npt.DTypeLike, input_size: int) -> tuple[list[Array], ...]:
    """Random kernels and biases of a stack of layers."""
    sizes = [input_size] + [H] * (layers - 1)
    kernels = [(rng.standard_normal((size + H, 4 * H)) / 3).astype(dtype) for size in sizes]
    return kernels, [rng.standard_normal(4 * H).astype(dtype) for _ in sizes]


def stream_of(kernels: list[Array], biases: list[Array], batch_size: int, *, tokens: bool = True) -> _core.Stream:
    """A stream of a stack, in the zero state."""
    return _core.Stream(kernels, biases, batch_size=batch_size, token_input=tokens, forget_bias=FORGET_BIAS)


def inputs(rng: np.random.Generator, batch: int, dtype: npt.DTypeLike, *, tokens: bool) -> Array:
    """Random inputs of T steps."""
    if tokens:
        return rng.integers(0, V, (T, batch)).astype(np.int32)
    return rng.standard_normal((T, batch, INPUT)).astype(dtype)


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize(("layers", "batch"), [(1, 1), (2, 3), (3, 9)])
def test_steps_equal_the_sequence(isa, dtype, rng, layers, batch, tokens):
    kernels, biases = stack(rng, layers, dtype, V if tokens else INPUT)
    x = inputs(rng, batch, dtype, tokens=tokens)
    stream = stream_of(kernels, biases, batch, tokens=tokens)
    steps = [stream.step(x_t).copy() for x_t in x]
    expected = x
    for kernel, bias in zip(kernels, biases, strict=True):
        wide = kernel.astype(float), bias.astype(float)
        expected = reference.lstm(expected, *wide, forget_bias=FORGET_BIAS).h
    assert_allclose(steps, expected, **states(dtype, 2 * H))


def test_step_returns_the_same_array_every_time(isa, dtype, rng):
    stream, x = stream_of(*stack(rng, 2, dtype, V), 3), inputs(rng, 3, dtype, tokens=True)
    first = stream.step(x[0])
    assert stream.step(x[1]) is first or np.shares_memory(stream.step(x[1]), first)


def test_stream_keeps_its_own_copy_of_the_weights(isa, dtype, rng):
    (kernels, biases), x = stack(rng, 1, dtype, V), inputs(rng, 2, dtype, tokens=True)
    expected = stream_of(kernels, biases, 2).step(x[0]).copy()
    stream = stream_of(kernels, biases, 2)
    kernels[0][...] = biases[0][...] = 0
    assert_array_equal(stream.step(x[0]), expected)


def test_reset_equals_starting_anew(isa, dtype, rng):
    weights, x = stack(rng, 2, dtype, V), inputs(rng, 3, dtype, tokens=True)
    stream = stream_of(*weights, 3)
    stream.step(x[0])
    stream.reset()
    assert_array_equal(stream.step(x[1]), stream_of(*weights, 3).step(x[1]))


def test_state_put_back_goes_on_from_there(isa, dtype, rng):
    stream, x = stream_of(*stack(rng, 2, dtype, V), 3), inputs(rng, 3, dtype, tokens=True)
    stream.step(x[0])
    state = stream.state
    expected = stream.step(x[1]).copy()
    stream.state = state
    assert_array_equal(stream.step(x[1]), expected)


def test_state_is_a_copy(isa, dtype, rng):
    stream, x = stream_of(*stack(rng, 1, dtype, V), 1), inputs(rng, 1, dtype, tokens=True)
    stream.step(x[0])
    h, c = (part.copy() for part in stream.state)
    for part in stream.state:
        part[...] = 0
    assert_array_equal(stream.state, (h, c))


def test_streams_of_a_batch_do_not_touch_each_other(isa, dtype, rng):
    weights, x = stack(rng, 2, dtype, V), inputs(rng, 3, dtype, tokens=True)
    together, alone = stream_of(*weights, 3), [stream_of(*weights, 1) for _ in range(3)]
    expected = [[stream.step(x_t[b : b + 1])[0].copy() for b, stream in enumerate(alone)] for x_t in x]
    assert_allclose([together.step(x_t).copy() for x_t in x], expected, **states(dtype, 2 * H))


@pytest.mark.parametrize("token", [-1, V])
def test_token_outside_the_vocabulary_is_an_error(isa, dtype, rng, token):
    stream = stream_of(*stack(rng, 1, dtype, V), 1)
    with pytest.raises(ValueError, match=str(token)):
        stream.step(np.array([token], np.int32))


# --- sampling ---------------------------------------------------------------------------------------------------------

OPTIONS = [
    {"temperature": 0.0, "top_k": 0, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
    {"temperature": 0.5, "top_k": 0, "top_p": 1.0},
    {"temperature": 2.0, "top_k": 3, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 1, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.5},
    {"temperature": 1.5, "top_k": 5, "top_p": 0.8},
]


def projection_of(rng: np.random.Generator, dtype: npt.DTypeLike) -> tuple[Array, Array]:
    """A random projection from the units to the vocabulary."""
    return rng.standard_normal((H, V)).astype(dtype), rng.standard_normal(V).astype(dtype)


def generate(stream: _core.Stream, projection: Any, token: Array, uniforms: Array, options: dict[str, Any]) -> Array:
    """The tokens that a stream generates; `token` is left at the last of them."""
    out = np.empty(uniforms.shape, np.int32)
    stream.generate(*projection, token, uniforms, options["temperature"], options["top_k"], options["top_p"], out)
    return out


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(f"{value:g}" for value in options.values()))
@pytest.mark.parametrize("batch", [1, 3])
def test_generated_tokens_are_those_the_reference_chooses(isa, dtype, rng, batch, options):
    weights, projection, uniforms = stack(rng, 2, dtype, V), projection_of(rng, dtype), rng.random((30, batch))
    token = rng.integers(0, V, batch).astype(np.int32)
    stream, current, expected = stream_of(*weights, batch), token, []
    for uniform in uniforms:
        logits = reference.linear(stream.step(current), *projection)
        current = reference.choose_token(reference.next_token_distribution(logits, **options), uniform)
        expected.append(current)
    assert_array_equal(generate(stream_of(*weights, batch), projection, token, uniforms, options), expected)


def test_greedy_takes_the_first_of_equal_maxima(isa, dtype, rng):
    projection = np.zeros((H, V), dtype), np.zeros(V, dtype)
    stream, token = stream_of(*stack(rng, 1, dtype, V), 1), np.array([4], np.int32)
    assert generate(stream, projection, token, np.full((3, 1), 0.9), OPTIONS[0]).ravel().tolist() == [0, 0, 0]


def test_top_k_of_equal_tokens_keeps_the_lower_ids(isa, dtype, rng):
    projection, options = (np.zeros((H, V), dtype), np.zeros(V, dtype)), {**OPTIONS[1], "top_k": 3}
    stream, token = stream_of(*stack(rng, 1, dtype, V), 1), np.array([4], np.int32)
    uniforms = np.array([[0.0], [0.3], [0.4], [0.6], [0.7], [1 - 2**-53]])
    assert generate(stream, projection, token, uniforms, options).ravel().tolist() == [0, 0, 1, 1, 2, 2]


def test_generating_in_two_pieces_equals_generating_at_once(isa, dtype, rng):
    weights, projection, uniforms = stack(rng, 2, dtype, V), projection_of(rng, dtype), rng.random((20, 3))
    start = rng.integers(0, V, 3).astype(np.int32)
    at_once = generate(stream_of(*weights, 3), projection, start.copy(), uniforms, OPTIONS[1])
    stream, token = stream_of(*weights, 3), start.copy()
    pieces = [generate(stream, projection, token, part, OPTIONS[1]) for part in (uniforms[:7], uniforms[7:])]
    assert_array_equal(np.concatenate(pieces), at_once)


def test_generate_leaves_the_last_token_where_it_read_the_first(isa, dtype, rng):
    stream, token = stream_of(*stack(rng, 1, dtype, V), 2), np.array([1, 2], np.int32)
    out = generate(stream, projection_of(rng, dtype), token, rng.random((5, 2)), OPTIONS[1])
    assert_array_equal(token, out[-1])


def test_generating_nothing_changes_nothing(isa, dtype, rng):
    stream, token = stream_of(*stack(rng, 1, dtype, V), 2), np.array([1, 2], np.int32)
    generate(stream, projection_of(rng, dtype), token, np.empty((0, 2)), OPTIONS[1])
    assert_array_equal([*np.concatenate(stream.state).ravel(), *token], [0] * (4 * H) + [1, 2])
