"""`lstmfast.keras.LSTM` beside `keras.layers.LSTM`: the same numbers, weights, masks, files and training.

Runs under the backend that KERAS_BACKEND names, or the first that is installed. Keras itself is the oracle throughout.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from support import documents, parity, tolerances

Array = npt.NDArray[Any]

_INSTALLED = [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]
if not _INSTALLED:
    pytest.skip("Keras has none of its backends here: tensorflow, jax, torch", allow_module_level=True)
os.environ.setdefault("KERAS_BACKEND", _INSTALLED[0])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
keras = pytest.importorskip("keras", minversion="3", reason="Keras 3 is not installed: pip install '.[keras]'")

import lstmfast as lf  # noqa: E402
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


# --- regularised cells ------------------------------------------------------------------------------------------------

REGULARISED: list[dict[str, Any]] = [
    {"recurrent_dropout": 0.4},
    {"recurrent_dropout": 0.4, "recurrent_dropout_of": "g", "recurrent_dropout_per_step": True, "zoneout": 0.2},
    {"weight_dropout": 0.3, "zoneout": (0.3, 0.1), "layer_norm": "products"},
    {"layer_norm": "gates", "layer_norm_carry": True, "layer_norm_epsilon": 1e-3},
]


def regularised(rng: np.random.Generator, **options: Any) -> Any:
    """A built layer that returns everything, with a seed and weights at random."""
    layer = lstmfast.keras.LSTM(UNITS, seed=5, return_sequences=True, return_state=True, dtype=DTYPE, **options)
    layer.build((BATCH, TIME_STEPS, INPUT_SIZE))
    layer.set_weights([rng.standard_normal(values.shape) / 2 for values in layer.get_weights()])
    return layer


@pytest.mark.parametrize("options", REGULARISED, ids=str)
@pytest.mark.parametrize("kind", ["no mask", "padded"])
def test_training_draws_the_masks_of_the_seed_of_keras(options: dict[str, Any], kind: str, rng: Any) -> None:
    layer, mask = regularised(rng, **options), mask_of(kind, rng)
    x, d_h = random(rng, BATCH, TIME_STEPS, INPUT_SIZE), random(rng, BATCH, TIME_STEPS, UNITS)
    h0, c0, d_h_n, d_c_n = random(rng, 4, BATCH, UNITS)
    if mask is not None:
        d_h[~mask] = 0  # Keras repeats the last output there
    kernel, recurrent, bias, *norms = (values.astype(DTYPE) for values in layer.get_weights())
    found, gradients = outputs_and_gradients(layer, x, [h0, c0], [d_h, d_h_n, d_c_n], mask)
    its = {name: value for name, value in options.items() if name != "layer_norm"}
    its |= dict(zip(("norm_gain", "cell_gain", "cell_shift"), norms, strict=False))
    out = lf.lstm(
        x.swapaxes(0, 1), np.concatenate([kernel, recurrent]), bias, h0, c0, keep_for_backward=True, seed=5,
        lengths=None if mask is None else mask.sum(1), **its,
    )
    d = lf.lstm_backward(out, np.ascontiguousarray(d_h.swapaxes(0, 1)), d_h_n, d_c_n)
    of_norms = [d.norm_gain, d.cell_gain, d.cell_shift] if norms else []
    expected = [out.h_n, out.c_n, d.x.swapaxes(0, 1), d.h0, d.c0, *np.split(d.kernel, [INPUT_SIZE]), d.bias, *of_norms]
    for mine, theirs in zip([*found[1:], *gradients], expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_every_training_call_has_its_own_masks_and_inference_none(rng: np.random.Generator) -> None:
    layer, x = regularised(rng, recurrent_dropout=0.5), random(rng, BATCH, TIME_STEPS, INPUT_SIZE)
    plain = lstmfast.keras.LSTM(UNITS, return_sequences=True, dtype=DTYPE)
    plain.build(x.shape)
    plain.set_weights(layer.get_weights())
    first, second, inference = (to_arrays(layer(x, training=training)[:1])[0] for training in (True, True, False))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(inference, to_arrays([plain(x)])[0])


def test_inference_draws_no_masks_where_gradients_may_be_asked_for(rng: np.random.Generator) -> None:
    layer, x = regularised(rng, zoneout=0.3), random(rng, BATCH, TIME_STEPS, INPUT_SIZE)
    first, again = (to_arrays(layer(x, training=False)) for _ in range(2))
    for mine, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_regularised_layer_is_saved_with_its_weights_and_settings(rng: np.random.Generator, tmp_path: Path) -> None:
    x, _ = data(rng)
    options = {"recurrent_dropout": 0.2, "zoneout": (0.1, 0.2), "layer_norm": "gates", "learn_initial_state": True}
    model = tiny_model(keras.layers.Bidirectional(lstmfast.keras.LSTM(UNITS, **options)))
    model.set_weights([rng.standard_normal(values.shape) for values in model.get_weights()])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    layer = loaded.layers[1].forward_layer
    assert [weight.name for weight in layer.weights] == [
        "kernel", "recurrent_kernel", "bias", "norm_gain", "cell_gain", "cell_shift", "initial_h", "initial_c"
    ]
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_learnt_states_begin_rows_that_are_given_none_and_are_trained(rng: np.random.Generator) -> None:
    layer, x = regularised(rng, learn_initial_state=True), random(rng, BATCH, TIME_STEPS, INPUT_SIZE)
    h0, c0 = (np.broadcast_to(values, (BATCH, UNITS)).astype(DTYPE) for values in layer.get_weights()[3:])
    for mine, theirs in zip(to_arrays(layer(x)), to_arrays(layer(x, initial_state=[h0, c0])), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)
    assert [weight.name for weight in layer.trainable_variables][3:] == ["initial_h", "initial_c"]


def test_recurrent_dropout_is_converted_with_a_warning(rng: np.random.Generator) -> None:
    x, _ = data(rng)
    model = tiny_model(keras.layers.LSTM(UNITS, recurrent_dropout=0.25, name="it"))
    with pytest.warns(UserWarning, match="recurrent_dropout of it: one mask is drawn for all gates"):
        copy = lstmfast.keras.convert(model)
    assert copy.layers[1].recurrent_dropout == 0.25
    np.testing.assert_allclose(copy.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


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
    }
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
    )
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
        (NotImplementedError, RuntimeError, ValueError), match="only first derivatives|twice|Pure callb"
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


def functional(*layers: Any, shape: tuple[int | None, ...] = (None, INPUT_SIZE), name: str | None = None) -> Any:
    """A functional model of layers one after the other."""
    outputs = inputs = keras.Input(shape)
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name=name)


def sequential(*layers: Any, shape: tuple[int | None, ...] = (None, INPUT_SIZE), name: str | None = None) -> Any:
    """The same as a Sequential model."""
    return keras.Sequential([keras.Input(shape), *layers], name=name)


def rnn_of_a_cell(**arguments: Any) -> Any:
    return keras.layers.RNN(keras.layers.LSTMCell(UNITS), **arguments)


def lstm(**arguments: Any) -> Any:
    return keras.layers.LSTM(UNITS, **arguments)


@keras.saving.register_keras_serializable("lstmfast-tests")
class Doubled(keras.layers.Wrapper):
    """A wrapper such as users write."""

    def call(self, x: Any) -> Any:
        return 2 * self.layer(x)


WINDOWS = (2, TIME_STEPS, INPUT_SIZE)
WRAPPED: dict[str, tuple[Any, int]] = {
    "TimeDistributed alone": (lambda: sequential(keras.layers.TimeDistributed(lstm()), shape=WINDOWS), 1),
    "TimeDistributed beside another": (
        lambda: functional(keras.layers.TimeDistributed(lstm()), lstm(), shape=WINDOWS), 2
    ),
    "TimeDistributed around Bidirectional": (
        lambda: sequential(keras.layers.TimeDistributed(keras.layers.Bidirectional(lstm())), shape=WINDOWS), 2
    ),
    "TimeDistributed around a Sequential model": (
        lambda: sequential(
            keras.layers.TimeDistributed(sequential(lstm(return_sequences=True), lstm(), shape=WINDOWS[1:])),
            shape=WINDOWS,
        ),
        2,
    ),
    "TimeDistributed around a functional model": (
        lambda: functional(
            keras.layers.TimeDistributed(functional(lstm(), keras.layers.Dense(2), shape=WINDOWS[1:])), shape=WINDOWS
        ),
        1,
    ),
    "models in models": (
        lambda: functional(
            functional(lstm(return_sequences=True)),
            sequential(sequential(lstm(), shape=(None, UNITS)), shape=(None, UNITS)),
        ),
        2,
    ),
    "RNN of a cell": (lambda: sequential(keras.layers.Masking(), rnn_of_a_cell(return_sequences=True), lstm()), 2),
    "Bidirectional RNN of a cell": (lambda: functional(keras.layers.Bidirectional(rnn_of_a_cell())), 2),
    "a wrapper of the user's": (lambda: sequential(Doubled(lstm())), 1),
    "a Lambda beside it": (lambda: sequential(lstm(), keras.layers.Lambda(lambda x: 2 * x)), 1),
    "built by its first call": (lambda: keras.Sequential([lstm(return_sequences=True), keras.layers.Dense(2)]), 1),
    "activity and weights with penalties": (
        lambda: sequential(lstm(activity_regularizer="l2", kernel_regularizer="l1", bias_constraint="max_norm")), 1
    ),
}


def input_shape_of(model: Any) -> tuple[int, ...]:
    """A batch of sequences, or of windows of them where the model asks for that."""
    windows = (WINDOWS[0],) if model.built and len(model.input_shape) == 4 else ()
    return BATCH, *windows, TIME_STEPS, INPUT_SIZE


@pytest.mark.parametrize(("make", "count"), WRAPPED.values(), ids=WRAPPED.keys())
def test_convert_finds_every_lstm_and_the_copy_gives_the_same(make: Any, count: int, rng: np.random.Generator) -> None:
    model = make()
    x = rng.standard_normal(input_shape_of(model)).astype(np.float32)
    expected = model.predict(x, verbose=0)
    converted = lstmfast.keras.convert(model)
    assert lstmfast.keras.explain(converted).startswith(f"{count} of {count} LSTMs")
    np.testing.assert_allclose(converted.predict(x, verbose=0), expected, **tolerances.states("float32", 3 * UNITS))


@pytest.mark.parametrize("name", [name for name in WRAPPED if "Lambda" not in name and "first call" not in name])
def test_a_converted_model_survives_clone_config_and_file(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    converted = lstmfast.keras.convert(WRAPPED[name][0]())
    converted.save(tmp_path / "model.keras")
    clone, again = keras.models.clone_model(converted), type(converted).from_config(converted.get_config())
    clone.set_weights(converted.get_weights())
    again.set_weights(converted.get_weights())
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = rng.standard_normal(input_shape_of(converted)).astype(np.float32)
    for copy in (clone, again, loaded):
        assert lstmfast.keras.explain(copy).splitlines()[0].partition(" of ")[0] == str(WRAPPED[name][1])
        np.testing.assert_array_equal(copy.predict(x, verbose=0), converted.predict(x, verbose=0))


@keras.saving.register_keras_serializable("lstmfast-tests")
class Block(keras.layers.Layer):
    """A layer that makes its LSTM by itself, so that no setting says so."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.inner = keras.layers.LSTM(UNITS, name="inner")

    def call(self, x: Any) -> Any:
        return self.inner(x)


class Stepping(keras.layers.Layer):
    """A layer that calls a cell step by step."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.cell = keras.layers.LSTMCell(UNITS, name="cell")

    def call(self, x: Any) -> Any:
        zeros = keras.ops.zeros((keras.ops.shape(x)[0], UNITS))
        return self.cell(x[:, 0], [zeros, zeros])[0]


class Own(keras.layers.LSTM):
    """Somebody's own LSTM."""


LEFT: dict[str, tuple[Any, str]] = {
    "activation": (lambda: lstm(activation="relu", name="it"), "it: activation must be tanh, got relu"),
    "implementation": (
        lambda: lstm(dropout=0.5, implementation=1, name="it"), "it: implementation must be 2 where there is dropout"
    ),
    "dtype": (lambda: lstm(dtype="mixed_float16", name="it"), "it: dtype must compute in float32 or float64"),
    "one direction": (
        lambda: keras.layers.Bidirectional(
            lstm(), backward_layer=lstm(activation="relu", go_backwards=True, name="back"), name="both"
        ),
        "both/back: activation must be tanh, got relu",
    ),
    "within a wrapper": (
        lambda: Doubled(lstm(recurrent_activation="hard_sigmoid", name="it"), name="twice"),
        "twice/it: recurrent_activation must be sigmoid, got hard_sigmoid",
    ),
    "cells in a stack": (
        lambda: keras.layers.RNN([keras.layers.LSTMCell(UNITS), keras.layers.LSTMCell(2)], name="it"),
        "it: its cell is a StackedRNNCells; give each LSTMCell an LSTM of its own",
    ),
    "a class of its own": (lambda: Own(UNITS, name="it"), "it: Own is a custom class"),
    "made by the layer around it": (lambda: Block(name="block"), "block/inner: the layer around it creates it"),
    "a cell alone": (lambda: Stepping(name="step"), "step/cell: a cell that is called step by step"),
}


@pytest.mark.parametrize(("make", "words"), LEFT.values(), ids=LEFT.keys())
def test_convert_counts_and_names_what_would_stay_keras(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"^1 of \d LSTMs of outer cannot be converted") as raised:
        lstmfast.keras.convert(functional(lstm(return_sequences=True), make(), name="outer"))
    assert words in str(raised.value)


@pytest.mark.parametrize(("make", "words"), LEFT.values(), ids=LEFT.keys())
def test_convert_partly_warns_of_what_stays_and_converts_the_rest(
    make: Any, words: str, rng: np.random.Generator
) -> None:
    x = data(rng)[0]
    model = functional(lstm(return_sequences=True, name="first"), make())
    with pytest.warns(UserWarning, match=rf"^1 of \d LSTMs of .* cannot be converted.*: {re.escape(words)}"):
        converted = lstmfast.keras.convert(model, partly=True)
    assert "first: lstmfast's" in lstmfast.keras.explain(converted)
    np.testing.assert_allclose(
        converted.predict(x, verbose=0), model.predict(x, verbose=0), **tolerances.states("float16", 3 * UNITS)
    )


def test_convert_partly_is_refused_where_no_lstm_can_be_converted() -> None:
    with pytest.raises(ValueError, match="1 of 1 LSTMs of sequential.* cannot be converted: block/inner: the layer"):
        lstmfast.keras.convert(sequential(Block(name="block")), partly=True)


def test_convert_keeps_what_is_frozen() -> None:
    frozen = keras.layers.Bidirectional(lstm(return_sequences=True))
    frozen.trainable = False
    inner = functional(lstm(), shape=(None, 2 * UNITS))
    inner.trainable = False
    model = functional(frozen, inner, keras.layers.Dense(2))
    converted = lstmfast.keras.convert(model)
    assert [w.shape for w in converted.trainable_weights] == [w.shape for w in model.trainable_weights]
    assert [layer.trainable for layer in converted.layers[1:]] == [False, False, True]


def test_convert_keeps_the_states_of_stateful_layers_and_those_returned(rng: np.random.Generator) -> None:
    x = rng.standard_normal((BATCH, TIME_STEPS, INPUT_SIZE)).astype(np.float32)
    inputs = keras.Input(batch_shape=x.shape)
    sequence, h, c = lstm(return_sequences=True, return_state=True, stateful=True)(inputs)
    model = keras.Model(inputs, [lstm()(sequence, initial_state=[h, c]), h, c])
    model(x)
    converted = lstmfast.keras.convert(model)
    for a, e in zip(to_arrays(converted(x)), to_arrays(model(x)), strict=True):
        np.testing.assert_allclose(a, e, **tolerances.states("float32", 3 * UNITS))


def test_a_compiled_model_is_compiled_alike(rng: np.random.Generator) -> None:
    x, y = data(rng)
    model = tiny_model(lstm())
    model.compile(keras.optimizers.SGD(0.25), "mse")
    converted = lstmfast.keras.convert(model)
    assert keras.ops.convert_to_numpy(converted.optimizer.learning_rate) == 0.25
    fits = [each.fit(x, y, shuffle=False, epochs=2, verbose=0).history["loss"] for each in (converted, model)]
    np.testing.assert_allclose(*fits, **tolerances.sums("float32", x.size))


def test_a_loss_that_cannot_be_made_again_costs_the_copy_its_compilation_alone() -> None:
    model = tiny_model(lstm())
    model.compile("sgd", lambda y, z: keras.ops.mean((y - z) ** 2))
    with pytest.warns(UserWarning, match="is not compiled, call compile"):
        converted = lstmfast.keras.convert(model)
    assert (model.compiled, converted.compiled) == (True, False)


class ModelOfItsOwn(keras.Model):
    """A model whose call is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = keras.layers.LSTM(UNITS, name="inner")

    def call(self, x: Any) -> Any:
        return self.inner(x)


class OwnStep(keras.Model):
    """A functional model with a training step of its own."""

    def train_step(self, *arguments: Any) -> Any:
        return super().train_step(*arguments)


class OwnCall(keras.Model):
    """A functional model that builds itself, and has a call of its own."""

    def __init__(self, units: int) -> None:
        inputs = keras.Input((TIME_STEPS, INPUT_SIZE))
        super().__init__(inputs, keras.layers.LSTM(units)(inputs))

    def call(self, x: Any) -> Any:
        return 2 * super().call(x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sequential(keras.layers.Dense(1), name="none"), ValueError, "keras.layers.LSTM to replace, got none"),
        (
            lambda: sequential(lstmfast.keras.LSTM(UNITS), name="ours"),
            ValueError, "keras.layers.LSTM to replace, got ours, which already uses lstmfast",
        ),
        (
            ModelOfItsOwn, ValueError,
            r"must be Sequential or functional .* of the class ModelOfItsOwn; in its code, make its LSTMs \(inner\)",
        ),
        (lambda: OwnCall(3), ValueError, "own_call.* of the class OwnCall cannot be copied: its call would be lost"),
        (lambda: lstm(), TypeError, "model must be a keras.Model, got LSTM"),
        (lambda: [1], TypeError, "model must be a keras.Model, got list"),
    ],
)
def test_convert_says_so_where_it_cannot_make_a_copy(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lstmfast.keras.convert(make())


def test_convert_says_so_where_a_layer_is_shared_across_a_wrapper() -> None:
    shared, inputs = lstm(), keras.Input(WINDOWS)
    model = keras.Model(inputs, [keras.layers.TimeDistributed(shared)(inputs), shared(inputs[:, 0])], name="pair")
    with pytest.raises(ValueError, match="pair cannot be copied: it has 3 weights and its copy 6"):
        lstmfast.keras.convert(model)


def test_a_functional_model_keeps_a_training_step_of_its_own() -> None:
    inputs = keras.Input((TIME_STEPS, INPUT_SIZE))
    assert type(lstmfast.keras.convert(OwnStep(inputs, lstm()(inputs)))) is OwnStep


def test_explain_counts_and_names_every_lstm() -> None:
    model = sequential(lstm(name="a", return_sequences=True), lstmfast.keras.LSTM(2, name="b"), name="both")
    assert lstmfast.keras.explain(model).splitlines() == [
        "1 of 2 LSTMs of both run lstmfast's loop", "a: Keras', convert replaces it", "b: lstmfast's"
    ]


@pytest.mark.skipif(BACKEND != "torch", reason="other backends have no tensors that can be written")
@pytest.mark.parametrize("batch", [1, BATCH])
def test_outputs_may_be_written_before_the_backward_pass(batch: int, rng: np.random.Generator) -> None:
    _, layer = pair(return_sequences=True, return_state=True)
    x = rng.standard_normal((batch, TIME_STEPS, INPUT_SIZE)).astype(np.float32)
    gradients = []
    for written in (False, True):
        outputs = layer(x)
        if written:
            for output in outputs:
                output.detach().zero_()
        layer.zero_grad()
        sum(output.sum() for output in outputs).backward()
        gradients.append([variable.value.grad for variable in layer.trainable_variables])
    for a, e in zip(*map(to_arrays, gradients), strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.skipif(BACKEND != "torch", reason="other backends have no tensors that can be written")
@pytest.mark.parametrize("flags", [[], ["-O"]], ids=["python", "python -O"])
def test_an_input_that_was_written_before_the_backward_pass_is_an_error(flags: list[str]) -> None:
    code = f"""
import torch, lstmfast.keras
layer = lstmfast.keras.LSTM(4)
layer.build({(BATCH, TIME_STEPS, INPUT_SIZE)})
x = torch.ones({(BATCH, TIME_STEPS, INPUT_SIZE)})
y = layer(x)
x.zero_()
y.sum().backward()
"""
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, "modified by an inplace operation" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "relu"}, "activation must be tanh, got relu"),
        ({"activation": None}, "activation must be tanh, got linear"),
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation must be sigmoid, got hard_sigmoid"),
        ({"recurrent_dropout": 0.25, "dropout": 0.5, "implementation": 1}, "implementation must be 2 where"),
        ({"recurrent_dropout": 1.0}, "recurrent_dropout must lie in"),
        ({"layer_norm": "rows"}, "layer_norm must be"),
        ({"learn_initial_state": True, "stateful": True}, "learn_initial_state must be False for a stateful layer"),
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
