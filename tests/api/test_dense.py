"""What stands before and after an LSTM: a table of rows and a product with a bias, their slopes, what they refuse."""

from __future__ import annotations

import re

import numpy as np
import pytest

import lstmfast as lf
from support.oracles import slopes
from support.tolerances import DIFFERENCE, SAME, sums

T, B, IN, OUT, V = 4, 3, 5, 7, 6


# --- Linear -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(B,), (T, B), (T, 0), (2, T, B)], ids=str)
def test_linear_is_the_product_with_its_kernel_and_its_bias(rng, dtype, axes):
    layer, x = lf.Linear(IN, OUT, dtype=dtype, rng=rng), rng.standard_normal((*axes, IN)).astype(dtype)
    layer.bias[:] = rng.standard_normal(OUT)
    np.testing.assert_allclose(layer(x), x @ layer.kernel + layer.bias, **sums(dtype, IN))


def test_linear_reads_what_lies_apart(rng):
    layer, x = (
        lf.Linear(IN, OUT, dtype="float64", rng=rng),
        rng.standard_normal((B, T, 2 * IN))[..., ::2].swapaxes(0, 1),
    )
    np.testing.assert_allclose(layer(x), x @ layer.kernel + layer.bias, **SAME)


def test_gradients_of_linear_are_the_slopes_of_the_loss(rng):
    layer = lf.Linear(IN, OUT, dtype="float64", rng=rng)
    values = {"x": rng.standard_normal((T, B, IN)), **layer.parameters}
    directions = {name: rng.standard_normal(value.shape) for name, value in values.items()}
    weights = rng.standard_normal((T, B, OUT))

    def loss(at):
        return float((weights * (at["x"] @ at["kernel"] + at["bias"]) ** 2).sum())

    d_x = layer.backward(2 * weights * layer(values["x"], training=True))
    actual = [float((d * directions[name]).sum()) for name, d in {"x": d_x, **layer.gradients}.items()]
    np.testing.assert_allclose(actual, slopes(loss, values, directions), **DIFFERENCE)


# --- Embedding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(B,), (T, B), (0, B)], ids=str)
def test_embedding_is_the_rows_of_its_table(rng, dtype, axes):
    layer, ids = lf.Embedding(V, IN, dtype=dtype, rng=rng), rng.integers(0, V, axes)
    np.testing.assert_array_equal(layer(ids), layer.table[ids])


def test_gradient_of_an_embedding_adds_up_the_rows_of_each_id(rng):
    layer, ids = lf.Embedding(V, IN, dtype="float64", rng=rng), rng.integers(0, 3, (T, B))
    layer(ids, training=True)
    d_out = rng.standard_normal((T, B, IN))
    layer.backward(d_out)
    expected = np.zeros((V, IN))
    np.add.at(expected, ids, d_out)
    np.testing.assert_allclose(layer.gradients["table"], expected, **SAME)


def test_embedding_remembers_the_ids_of_the_call_not_the_array_they_came_in(rng):
    layer, ids = lf.Embedding(V, IN, dtype="float64", rng=rng), np.zeros(B, np.int32)
    layer(ids, training=True)
    ids[:] = 1
    layer.backward(np.ones((B, IN)))
    assert (layer.gradients["table"][0] == B).all() and not layer.gradients["table"][1:].any()


# --- both -------------------------------------------------------------------------------------------------------------

both = pytest.mark.parametrize(
    ("layer", "x"),
    [(lf.Linear(IN, OUT), np.ones((B, IN), "f4")), (lf.Embedding(V, OUT), np.zeros(B, int))],
    ids=["linear", "embedding"],
)


@both
@pytest.mark.parametrize("before", ["no call", "a call without training"])
def test_backward_without_a_training_call_says_so(layer, x, before):
    layer(x, training=True)
    layer = type(layer)(*(getattr(layer, name) for name in vars(layer) if name.endswith("_size")))
    if before == "a call without training":
        layer(x, training=True)
        layer(x)
    with pytest.raises(RuntimeError, match="training=True"):
        layer.backward(np.ones((B, OUT), "f4"))


@both
def test_backward_refuses_another_shape_by_name(layer, x):
    layer(x, training=True)
    with pytest.raises(ValueError, match=re.escape(f"d_out must have shape ({B}, {OUT}) = the shape of the output")):
        layer.backward(np.ones((B, OUT + 1), "f4"))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: lf.Linear(IN, OUT)(np.ones((B, OUT), "f4")),
            ValueError,
            "x must have shape (axis0, 5) = (..., input_size), got",
        ),
        (lambda: lf.Linear(IN, OUT)(np.ones((B, IN))), TypeError, "x must be float32 like this layer, got float64"),
        (lambda: lf.Linear(IN, OUT)(np.float32(1)), TypeError, "x must be a NumPy array"),
        (lambda: lf.Linear(0, OUT), ValueError, "input_size must be at least 1, got 0"),
        (lambda: lf.Embedding(V, IN)(np.array([0, V])), ValueError, "ids must hold ids from 0 to 5"),
        (lambda: lf.Embedding(V, IN)(np.ones(B)), TypeError, "ids must hold integer ids, got float64"),
        (lambda: lf.Embedding(V, IN)(np.array(1)), ValueError, "ids must have shape"),
        (lambda: lf.Embedding(V, 2.5), TypeError, "embedding_size must be a whole number, got 2.5"),
    ],
)
def test_argument_at_fault_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


# --- one buffer for a model of one's own ------------------------------------------------------------------------------


def test_layers_of_a_model_share_one_buffer_by_their_shapes(rng):
    shapes = {"embedding": lf.Embedding.shapes(V, IN), "lstm": lf.LSTM.shapes(IN, OUT), "scale": (2,)}
    storage = lf.ParameterBuffer.allocate(shapes, "float32")
    layer = lf.LSTM(IN, OUT, storage=storage.part("lstm."))
    storage.values[:] = 3
    names = ["embedding.table", "lstm.layer0.kernel", "lstm.layer0.bias", "scale"]
    assert (list(storage.parameters), float(layer.cells[0].kernel.min())) == (names, 3.0)
