"""Stepping and sampling: a stream is a sequence taken one step at a time, and chooses tokens as the reference does."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lstmfast import _core, reference
from support.rounded_factors import meant, product
from support.tolerances import states

T, INPUT, H, V, FORGET_BIAS = 6, 5, 17, 27, 1.0

Array = npt.NDArray[Any]

EVERY_PRODUCT = True


def stack(rng: np.random.Generator, layers: int, dtype: npt.DTypeLike, input_size: int) -> tuple[list[Array], ...]:
    """Random kernels and biases of a stack of layers."""
    sizes = [input_size] + [H] * (layers - 1)
    kernels = [(rng.standard_normal((size + H, 4 * H)) / 3).astype(dtype) for size in sizes]
    return kernels, [rng.standard_normal(4 * H).astype(dtype) for _ in sizes]


def stream_of(
    kernels: list[Array], biases: list[Array], batch_size: int, *, tokens: bool = True, weights: str = "float32"
) -> _core.Stream:
    """A stream of a stack, in the zero state."""
    return _core.Stream(
        kernels, biases, batch_size=batch_size, token_input=tokens, forget_bias=FORGET_BIAS, weights=weights
    )


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


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
def test_stepping_on_nothing_is_an_error(isa, dtype, rng, tokens):
    stream = stream_of(*stack(rng, 1, dtype, V if tokens else INPUT), 1, tokens=tokens)
    with pytest.raises(TypeError, match="x must be a NumPy array, got None"):
        stream.step(None)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("batch", [1, 2])
def test_large_steps_have_the_same_bits_for_any_number_of_threads(isa, rng, threads, batch, weights):
    hidden = 530  # above the work that is shared, and no multiple of anything
    kernels = [rng.standard_normal((hidden + n, 4 * hidden)).astype(np.float32) / 30 for n in (INPUT, hidden)]
    biases, x = [rng.standard_normal(4 * hidden).astype(np.float32)] * 2, inputs(rng, batch, np.float32, tokens=False)

    def run(number: int) -> list[Array]:
        threads.set_num_threads(number)
        stream = stream_of(kernels, biases, batch, tokens=False, weights=weights)
        return [stream.step(x_t).copy() for x_t in x]

    assert_array_equal(run(4), run(1))


# --- weights in fewer bits --------------------------------------------------------------------------------------------


def to_bfloat16(weights: Array) -> Array:
    """float32 weights rounded to the upper half of their bits, ties to even."""
    bits = np.ascontiguousarray(weights).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1) >> 16) << 16).astype(np.uint32).view(np.float32)


COMPRESS = {"bfloat16": to_bfloat16, "int8": lambda weights: meant(weights, "int8")}


SIZES = pytest.mark.parametrize(("hidden", "batch"), [(1, 1), (16, 1), (17, 3), (63, 1), (64, 2), (70, 1), (130, 9)])


def random_stack(rng: np.random.Generator, hidden: int, *, tokens: bool) -> tuple[list[Array], list[Array]]:
    """Kernels and biases of two layers."""
    sizes = [V if tokens else INPUT, hidden]
    kernels = [rng.standard_normal((size + hidden, 4 * hidden)).astype(np.float32) / 4 for size in sizes]
    return kernels, [rng.standard_normal(4 * hidden).astype(np.float32) for _ in sizes]


@SIZES
@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
def test_bfloat16_steps_equal_the_sequence_with_the_weights_they_stand_for(isa, rng, hidden, batch, tokens):
    kernels, biases = random_stack(rng, hidden, tokens=tokens)
    x = inputs(rng, batch, np.float32, tokens=tokens)
    stream = stream_of(kernels, biases, batch, tokens=tokens, weights="bfloat16")
    steps = [stream.step(x_t).copy() for x_t in x]
    expected = x
    for layer, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        rounded_rows = V if tokens and layer == 0 else 0  # those that ids select stay as they are
        kept = np.vstack([kernel[:rounded_rows], to_bfloat16(kernel[rounded_rows:])]).astype(float)
        expected = reference.lstm(expected, kept, bias.astype(float), forget_bias=FORGET_BIAS).h
    assert_allclose(steps, expected, **states(np.float32, 2 * hidden))


@SIZES
@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
def test_int8_steps_are_gates_of_the_products_of_rounded_factors(isa, rng, hidden, batch, tokens):
    kernels, biases = random_stack(rng, hidden, tokens=tokens)
    stream = stream_of(kernels, biases, batch, tokens=tokens, weights="int8")
    for x in inputs(rng, batch, np.float32, tokens=tokens):
        before_h, before_c = (values.copy() for values in stream.state)
        stream.step(x)
        below = x
        for kernel, bias, h, c, *after in zip(kernels, biases, before_h, before_c, *stream.state, strict=True):
            above, recurrent = np.split(kernel, [len(kernel) - hidden])
            z = np.tile(bias, (batch, 1))
            z[:, hidden : 2 * hidden] += np.float32(FORGET_BIAS)
            z = z + above[below] if below.dtype == np.int32 else product(below, above, z, "int8")
            z = product(h, recurrent, z, "int8").astype(float)
            # No rows: reference.lstm_step is then the gates of its bias.
            expected = [
                reference.lstm_step(np.zeros((1, 0)), np.zeros((1, hidden)), c_row[None].astype(float),
                                    np.zeros((hidden, 4 * hidden)), z_row)
                for z_row, c_row in zip(z, c, strict=True)
            ]
            for index, values in enumerate(after):
                assert_allclose(values, [row[index][0] for row in expected], **states(np.float32, 2))
            below = after[0]


# bfloat16 has 8 bits: half of its step, 2**-7, by the value's power of two, is at most 2**-8 of the value.
@pytest.mark.parametrize(("weights", "part"), [("bfloat16", 2**-8), ("int8", 1 / 254)])
def test_compressed_weights_differ_by_at_most_half_a_step(rng, weights, part):
    kernel = rng.standard_normal((40, 12)).astype(np.float32)
    error = np.abs(COMPRESS[weights](kernel) - kernel)
    size = np.abs(kernel) if weights == "bfloat16" else np.abs(kernel).max(axis=0)
    assert (error <= size * part * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("weights", "special"),
    [(weights, special) for weights in COMPRESS for special in (0.0, 1e-45, 1e-38, 1e14)] + [("bfloat16", 3e38)],
)
def test_compressed_weights_of_any_size_stand_for_themselves(isa, rng, special, weights):
    kernel = np.full((1 + H, 4 * H), special, np.float32)
    kernel[0] = 0.5
    stream = stream_of([kernel], [np.zeros(4 * H, np.float32)], 1, tokens=False, weights=weights)
    plain = stream_of([kernel], [np.zeros(4 * H, np.float32)], 1, tokens=False)
    x = np.ones((3, 1, 1), np.float32)
    steps, expected = ([s.step(x_t).copy() for x_t in x] for s in (stream, plain))
    assert_allclose(steps, expected, rtol=2**-8, atol=1e-30)


def test_bfloat16_keeps_what_is_not_finite(isa, rng):
    kernel = np.zeros((1 + H, 4 * H), np.float32)
    kernel[0, 0], kernel[0, 1] = np.nan, np.inf
    stream = stream_of([kernel], [np.zeros(4 * H, np.float32)], 1, tokens=False, weights="bfloat16")
    h = stream.step(np.ones((1, 1), np.float32))[0]
    assert np.isnan(h[0]) and np.isfinite(h[1:]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_int8_weights_must_be_finite(isa, rng, value):
    (kernels, biases) = stack(rng, 1, np.float32, INPUT)
    kernels[0][2, 3] = value
    with pytest.raises(ValueError, match="kernel must be finite"):
        stream_of(kernels, biases, 1, tokens=False, weights="int8")


@pytest.mark.parametrize("weights", COMPRESS)
def test_float64_weights_are_not_compressed(isa, rng, weights):
    with pytest.raises(ValueError, match=f"weights must be float32.*got {weights}"):
        stream_of(*stack(rng, 1, np.float64, INPUT), 1, tokens=False, weights=weights)


def test_unknown_weights_error_lists_the_known_words(isa, rng):
    with pytest.raises(ValueError, match="weights must be float32, bfloat16 or int8, got int4"):
        stream_of(*stack(rng, 1, np.float32, INPUT), 1, tokens=False, weights="int4")


@pytest.mark.parametrize("weights", COMPRESS)
def test_generating_with_compressed_weights_chooses_by_the_logits_of_its_steps(isa, rng, weights):
    kernels, projection = stack(rng, 2, np.float32, V), projection_of(rng, np.float32)
    uniforms, token = rng.random((30, 2)), rng.integers(0, V, 2).astype(np.int32)
    stream, current, expected = stream_of(*kernels, 2, weights=weights), token, []
    for uniform in uniforms:
        logits = reference.linear(stream.step(current), *projection)
        current = reference.choose_token(reference.next_token_distribution(logits), uniform)
        expected.append(current)
    stream = stream_of(*kernels, 2, weights=weights)
    assert_array_equal(generate(stream, projection, token, uniforms, OPTIONS[1]), expected)


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
