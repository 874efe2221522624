"""`lstmfast.keras.LSTM` beside `keras.layers.LSTM`: the same numbers, weights, masks, files and training.

Runs under the backend that KERAS_BACKEND names, or the first that is installed. Keras itself is the oracle throughout.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import documents
import parity
import tolerances

Array = npt.NDArray[Any]

_INSTALLED = [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]
if not _INSTALLED:
    pytest.skip("Keras has none of its backends here: tensorflow, jax, torch", allow_module_level=True)
os.environ.setdefault("KERAS_BACKEND", _INSTALLED[0])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
keras = pytest.importorskip("keras", minversion="3", reason="Keras 3 is not installed: pip install '.[keras]'")

import lstmfast.keras  # noqa: E402  it imports keras

BACKEND = keras.backend.backend()
BATCH, TIME_STEPS, INPUT_SIZE, UNITS = 5, 7, 3, 4

# Of Keras' backends only TensorFlow keeps float64 throughout: under the others its type promotion sends some products
# and functions of a float64 layer through float32 (measured: 3e-8 in one step of a cell).
KERAS_IS_EXACT = BACKEND == "tensorflow"
DTYPE = "float64" if KERAS_IS_EXACT else "float32"
CASES = [case for case in parity.CASES if KERAS_IS_EXACT or case[0] == "float32"]
CLOSE = tolerances.SAME if KERAS_IS_EXACT else tolerances.gradients("float32", BATCH * TIME_STEPS)


def outputs_and_gradients(
    layer: Any, x: Array, state: list[Array], d: list[Array], mask: Array | None = None
) -> tuple[list[Array], list[Array]]:
    """What a layer returns, and the derivatives of sum(d * returned) by x, state and weights."""

    def loss(returned: Any) -> Any:
        return sum(keras.ops.sum(each * keras.ops.convert_to_tensor(by)) for each, by in zip(returned, d, strict=True))

    if BACKEND == "jax":
        import jax

        others = [variable.value for variable in layer.non_trainable_variables]

        def run(x: Any, state: Any, weights: Any) -> Any:
            returned, _ = layer.stateless_call(weights, others, x, initial_state=state, mask=mask, training=True)
            return loss(returned), returned

        weights = [variable.value for variable in layer.trainable_variables]
        (_, returned), (d_x, d_state, d_weights) = jax.value_and_grad(run, (0, 1, 2), has_aux=True)(x, state, weights)
        gradients = [d_x, *d_state, *d_weights]
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        inputs = [tf.constant(values) for values in (x, *state)]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            returned = layer(inputs[0], initial_state=inputs[1:], mask=mask, training=True)
            total = loss(returned)
        gradients = tape.gradient(total, [*inputs, *layer.trainable_variables])
    else:
        import torch

        inputs = [torch.tensor(values, requires_grad=True) for values in (x, *state)]
        torch_mask = None if mask is None else torch.tensor(mask)
        returned = layer(inputs[0], initial_state=inputs[1:], mask=torch_mask, training=True)
        layer.zero_grad()
        loss(returned).backward()
        gradients = [tensor.grad for tensor in (*inputs, *(variable.value for variable in layer.trainable_variables))]
    return to_arrays(returned), to_arrays(gradients)


def to_arrays(tensors: Any) -> list[Array]:
    """Tensors of any backend as NumPy arrays."""
    return [np.asarray(keras.ops.convert_to_numpy(tensor)) for tensor in tensors]


def pair(units: int = UNITS, input_shape: tuple[int | None, ...] = (BATCH, TIME_STEPS, INPUT_SIZE), **arguments: Any):
    """Keras' layer and ours with the same weights, none of which is zero."""
    theirs, ours = keras.layers.LSTM(units, **arguments), lstmfast.keras.LSTM(units, **arguments)
    theirs.build(input_shape)
    ours.build(input_shape)
    rng = np.random.default_rng(0)
    theirs.set_weights([rng.standard_normal(values.shape) / 2 for values in theirs.get_weights()])
    ours.set_weights(theirs.get_weights())
    return theirs, ours


def mask_of(kind: str, rng: np.random.Generator) -> Array | None:
    """No mask; rows padded at their end, one row empty and one full; or a mask without any order."""
    if kind == "no mask":
        return None
    if kind == "padded":
        return np.arange(TIME_STEPS) < np.array([4, TIME_STEPS, 0, 1, 5])[:, None]
    return rng.random((BATCH, TIME_STEPS)) < 1 / 2


def random(rng: np.random.Generator, *shape: int) -> Array:
    """Normal numbers in the dtype that this backend is compared in."""
    return rng.standard_normal(shape).astype(DTYPE)


def tiny_model(layer: Any) -> Any:
    """Masked input, the layer, one number out of it."""
    return keras.Sequential(
        [keras.Input((TIME_STEPS, INPUT_SIZE)), keras.layers.Masking(), layer, keras.layers.Dense(1)]
    )


def data(rng: np.random.Generator) -> tuple[Array, Array]:
    """x with padded rows, and y."""
    x = rng.standard_normal((4 * BATCH, TIME_STEPS, INPUT_SIZE)).astype(np.float32)
    x[::3, 4:] = 0
    return x, rng.standard_normal((4 * BATCH, 1)).astype(np.float32)


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "time_steps"), CASES)
def test_outputs_and_derivatives_are_those_of_keras_within_the_promise(
    dtype: str, time_steps: int, rng: np.random.Generator
) -> None:
    p = parity.problem(rng, dtype, time_steps)
    layer = keras.layers.LSTM(parity.HIDDEN_SIZE, return_sequences=True, return_state=True, dtype=dtype)
    layer.build((parity.BATCH, time_steps, parity.INPUT_SIZE))
    layer.set_weights([*np.split(p["kernel"], [parity.INPUT_SIZE]), p["bias"]])
    d = [p["d_h"].swapaxes(0, 1), p["d_h_n"], p["d_c_n"]]
    (h, h_n, c_n), (d_x, d_h0, d_c0, d_kernel, d_recurrent_kernel, d_bias) = outputs_and_gradients(
        layer, p["x"].swapaxes(0, 1), [p["h0"], p["c0"]], d
    )
    theirs = {
        "h": h.swapaxes(0, 1), "h_n": h_n, "c_n": c_n, "d_x": d_x.swapaxes(0, 1), "d_h0": d_h0, "d_c0": d_c0,
        "d_kernel": np.concatenate([d_kernel, d_recurrent_kernel]), "d_bias": d_bias,
    }  # fmt: skip
    parity.assert_same(parity.ours(p), theirs, tolerances.PARITY[dtype, time_steps])


@pytest.fixture
def float64_in_jax() -> Iterator[None]:
    """JAX has float64 only on demand."""
    if BACKEND != "jax":
        yield
        return
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def test_float64_stays_float64_under_every_backend(float64_in_jax: None, rng: np.random.Generator) -> None:
    p = parity.problem(rng, "float64", 10)
    layer = lstmfast.keras.LSTM(parity.HIDDEN_SIZE, return_sequences=True, return_state=True, dtype="float64")
    layer.build((parity.BATCH, 10, parity.INPUT_SIZE))
    layer.set_weights([*np.split(p["kernel"], [parity.INPUT_SIZE]), p["bias"]])
    d = [p["d_h"].swapaxes(0, 1), p["d_h_n"], p["d_c_n"]]
    actual, gradients = outputs_and_gradients(layer, p["x"].swapaxes(0, 1), [p["h0"], p["c0"]], d)
    expected = parity.ours(p)
    theirs = {"h": actual[0].swapaxes(0, 1), "d_x": gradients[0].swapaxes(0, 1), "d_bias": gradients[5]}
    parity.assert_same(theirs, {name: expected[name] for name in theirs}, tolerances.PARITY["float64", 10])


@pytest.mark.parametrize(
    ("mask_kind", "zero_where_masked"),
    [("no mask", False), ("padded", False), ("padded", True), ("anywhere", False), ("anywhere", True)],
)
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("return_sequences", [False, True], ids=["last", "all"])
def test_the_layer_does_what_keras_does_with_masks_and_directions(
    return_sequences: bool, go_backwards: bool, mask_kind: str, zero_where_masked: bool, rng: np.random.Generator
) -> None:
    theirs, ours = pair(
        return_sequences=return_sequences, return_state=True, go_backwards=go_backwards,
        zero_output_for_mask=zero_where_masked, dtype=DTYPE,
    )  # fmt: skip
    x, mask = random(rng, BATCH, TIME_STEPS, INPUT_SIZE), mask_of(mask_kind, rng)
    output_shape = (BATCH, TIME_STEPS, UNITS) if return_sequences else (BATCH, UNITS)
    d = [random(rng, *shape) for shape in (output_shape, (BATCH, UNITS), (BATCH, UNITS))]
    state = [random(rng, BATCH, UNITS) for _ in range(2)]
    expected = outputs_and_gradients(theirs, x, state, d, mask)
    actual = outputs_and_gradients(ours, x, state, d, mask)
    for a, e in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
        np.testing.assert_allclose(a, e, **CLOSE)


@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no-bias"])
def test_a_model_trains_as_it_does_with_the_layer_of_keras(use_bias: bool, rng: np.random.Generator) -> None:
    x, y = data(rng)
    losses = []
    for layer in pair(use_bias=use_bias, kernel_regularizer="l2", bias_constraint="max_norm"):
        model = tiny_model(layer)
        model.layers[-1].set_weights([np.ones((UNITS, 1)), np.zeros(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        losses.append(model.fit(x, y, batch_size=5, epochs=3, shuffle=False, verbose=0).history["loss"])
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], **tolerances.sums("float32", x.size))


def test_dropout_falls_where_that_of_keras_falls(rng: np.random.Generator) -> None:
    x, state = random(rng, BATCH, TIME_STEPS, INPUT_SIZE), [np.zeros((BATCH, UNITS), DTYPE)] * 2
    d = [np.ones((BATCH, UNITS), DTYPE)] * 3
    theirs, ours = (
        outputs_and_gradients(layer, x, state, d) for layer in pair(dropout=0.5, seed=3, return_state=True, dtype=DTYPE)
    )
    for a, e in zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), strict=True):
        np.testing.assert_allclose(a, e, **CLOSE)
    assert np.any(ours[1][0] == 0)


@pytest.mark.parametrize("merge_mode", ["concat", "sum"])
def test_bidirectional_wraps_it(merge_mode: str, rng: np.random.Generator) -> None:
    x = data(rng)[0]
    mask = np.any(x != 0, axis=2)
    theirs, ours = (
        keras.layers.Bidirectional(layer(UNITS, return_sequences=True, dtype=DTYPE), merge_mode, dtype=DTYPE)
        for layer in (keras.layers.LSTM, lstmfast.keras.LSTM)
    )
    for layer in (theirs, ours):
        layer.build(x.shape)
    ours.set_weights(theirs.get_weights())
    (expected,), (actual,) = (to_arrays([layer(x.astype(DTYPE), mask=mask)]) for layer in (theirs, ours))
    np.testing.assert_allclose(actual, expected, **CLOSE)


def test_a_stateful_layer_goes_on_where_it_was(rng: np.random.Generator) -> None:
    x, d = random(rng, BATCH, TIME_STEPS, INPUT_SIZE), [np.ones((BATCH, UNITS), DTYPE)] * 3
    _, whole = pair(return_state=True, dtype=DTYPE)
    _, parts = pair(return_state=True, stateful=True, dtype=DTYPE, input_shape=(BATCH, None, INPUT_SIZE))
    parts(x[:, :3])
    expected = to_arrays(whole(x))
    for a, e in zip(to_arrays(parts(x[:, 3:])), expected, strict=True):
        np.testing.assert_allclose(a, e, **CLOSE)
    parts.reset_state()
    assert all(not np.any(values) for values in to_arrays(parts.states))
    state = [random(rng, BATCH, UNITS) for _ in range(2)]  # overwritten by the call's end, before backward
    theirs, ours = pair(return_state=True, stateful=True, dtype=DTYPE)
    _, expected = outputs_and_gradients(theirs, x, state, d)
    _, actual = outputs_and_gradients(ours, x, state, d)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, **CLOSE)


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "graph"])
def test_second_derivatives_are_refused_and_not_taken_for_zero(traced: bool, rng: np.random.Generator) -> None:
    if traced and BACKEND == "torch":
        pytest.skip("PyTorch has one way to differentiate")
    _, layer = pair()
    x = rng.standard_normal((BATCH, TIME_STEPS, INPUT_SIZE)).astype(np.float32)
    with pytest.raises(
        (NotImplementedError, RuntimeError, ValueError), match="first derivatives only|twice|Pure callb"
    ):
        if BACKEND == "tensorflow":
            import tensorflow as tf

            def slope_of_slope(x: Any) -> Any:
                with tf.GradientTape() as outer:
                    outer.watch(x)
                    with tf.GradientTape() as inner:
                        inner.watch(x)
                        y = layer(x)
                    slope = inner.gradient(y, x)
                return outer.gradient(slope, x)

            (tf.function(slope_of_slope) if traced else slope_of_slope)(tf.constant(x))
        elif BACKEND == "jax":
            import jax

            weights, others = (
                [v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables)
            )
            slope = jax.grad(lambda x: layer.stateless_call(weights, others, x)[0].sum())
            (jax.jit if traced else lambda f: f)(jax.grad(lambda x: slope(x).sum()))(x)
        else:
            import torch

            of = torch.tensor(x, requires_grad=True)
            (slope,) = torch.autograd.grad(layer(of).sum(), of, create_graph=True)
            slope.sum().backward()


# --- one in place of the other ----------------------------------------------------------------------------------------


def test_first_weights_are_those_of_keras() -> None:
    first = []
    for kind in (keras.layers.LSTM, lstmfast.keras.LSTM):
        keras.utils.set_random_seed(5)
        layer = kind(UNITS)
        layer.build((BATCH, TIME_STEPS, INPUT_SIZE))
        first.append(layer.get_weights())
    for a, e in zip(*first, strict=True):
        np.testing.assert_array_equal(a, e)


def test_settings_of_the_layer_of_keras_make_this_one_and_the_other_way_round() -> None:
    theirs = keras.layers.LSTM(UNITS, return_sequences=True, dropout=0.25, kernel_regularizer="l2", seed=1)
    ours = lstmfast.keras.LSTM.from_config(theirs.get_config())
    config = {**ours.get_config()}
    assert config.pop("matmul_precision") is None
    assert keras.layers.LSTM.from_config(config).get_config() == theirs.get_config()


def test_a_saved_model_loads_and_gives_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    x, _ = data(rng)
    model = tiny_model(keras.layers.Bidirectional(lstmfast.keras.LSTM(UNITS, matmul_precision="highest")))
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].forward_layer.matmul_precision == "highest"
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)


def test_convert_replaces_every_lstm_of_a_model_and_keeps_its_weights(rng: np.random.Generator) -> None:
    x, _ = data(rng)
    inputs = keras.Input((None, INPUT_SIZE))
    both = keras.layers.Bidirectional(keras.layers.LSTM(UNITS, return_sequences=True), "ave")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.LSTM(UNITS)(both)))
    converted = lstmfast.keras.convert(model)
    kinds = [type(layer) for layer in converted.layers]
    assert kinds == [keras.layers.InputLayer, keras.layers.Bidirectional, lstmfast.keras.LSTM, keras.layers.Dense]
    assert isinstance(converted.layers[1].backward_layer, lstmfast.keras.LSTM)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(converted.predict(x, verbose=0), expected, **tolerances.states("float32", 3 * UNITS))


def test_convert_says_so_where_there_is_nothing_to_convert() -> None:
    with pytest.raises(ValueError, match=r"model must have a keras.layers.LSTM to replace, got nothing without one"):
        lstmfast.keras.convert(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)], name="nothing"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "relu"}, "activation must be tanh, got relu"),
        ({"activation": None}, "activation must be tanh, got linear"),
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation must be sigmoid, got hard_sigmoid"),
        ({"recurrent_dropout": 0.25}, "recurrent_dropout must be 0, got 0.25"),
        ({"dropout": 0.5, "implementation": 1}, "implementation must be 2 where there is dropout, got 1"),
        ({"use_cudnn": True}, "use_cudnn must be 'auto' or False, got True"),
        ({"dtype": "bfloat16"}, "dtype must compute in float32 or float64, got bfloat16"),
        ({"dtype": "mixed_float16"}, "dtype must compute in float32 or float64, got float16"),
        ({"matmul_precision": "low"}, "matmul_precision must be one of highest, high, medium, got 'low'"),
    ],
)
def test_what_the_kernels_do_not_compute_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lstmfast.keras.LSTM(UNITS, **arguments)


def test_the_example_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(documents.python_of("keras.md"), names)
    assert isinstance(names["ours"].layers[0].forward_layer, lstmfast.keras.LSTM)
    assert (tmp_path / "model.keras").exists()
