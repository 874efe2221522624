"""The two models: what they compute, that gradients are slopes and streams speak as the model, what they refuse."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest

import lstmfast as lf
from lstmfast import losses, reference
from lstmfast._engine.cpu import CPU
from lstmfast.cuda._engine import CudaEngine
from support.oracles import slopes
from support.tolerances import DIFFERENCE, SAME, states, sums

V, T, B, H = 11, 5, 3, 6
KINDS = [(1, None), (2, None), (2, 4)]
kinds = pytest.mark.parametrize(
    ("num_layers", "embedding_size"), KINDS, ids=["one-hot", "two layers", "two layers, embedding"]
)


def _model(rng, num_layers=1, embedding_size=None, dtype="float64", **options) -> lf.CharLM:
    return lf.CharLM(V, H, num_layers=num_layers, embedding_size=embedding_size, dtype=dtype, rng=rng, **options)


def _ids(rng, *shape):
    return rng.integers(0, V, shape or (T, B)).astype(np.int32)


# --- CharLM -----------------------------------------------------------------------------------------------------------


def test_variables_are_named_and_shaped_as_promised(rng):
    shapes = {name: value.shape for name, value in _model(rng, 2, 4).parameters.items()}
    assert shapes == {
        "embedding": (V, 4),
        "lstm.layer0.kernel": (4 + H, 4 * H), "lstm.layer0.bias": (4 * H,),
        "lstm.layer1.kernel": (2 * H, 4 * H), "lstm.layer1.bias": (4 * H,),
        "projection.kernel": (H, V), "projection.bias": (V,),
    }


def test_all_variables_lie_in_one_buffer(rng):
    model = _model(rng, 2, 4)
    model.parameter_buffer[:] = 3.0
    assert all((value == 3.0).all() for value in model.parameters.values())


def test_initializer_is_asked_for_every_variable_by_name(rng):
    asked = []

    def initializer(name, shape, rng):
        asked.append(name)
        return np.zeros(shape)

    model = _model(rng, 2, 4, initializer=initializer)
    assert asked == list(model.parameters)


def test_initializer_of_a_wrong_shape_is_refused_by_the_variables_name(rng):
    with pytest.raises(ValueError, match=re.escape("lstm.layer0.bias must have shape (24,), got (1,)")):
        _model(rng, initializer=lambda name, shape, rng: np.zeros(1 if name.endswith("bias") else shape))


@kinds
def test_logits_are_embedding_stack_and_projection_one_after_another(rng, dtype, num_layers, embedding_size):
    model, ids = _model(rng, num_layers, embedding_size, dtype), _ids(rng)
    x = ids if embedding_size is None else model.parameters["embedding"][ids]
    for cell in model.lstm.cells:
        x = reference.lstm(x, cell.kernel, cell.bias, forget_bias=1.0).h
    expected = x @ model.parameters["projection.kernel"] + model.parameters["projection.bias"]
    np.testing.assert_allclose(model(ids)[0], expected, **states(dtype, V + H))


@kinds
def test_loss_is_the_cross_entropy_of_the_logits(rng, dtype, num_layers, embedding_size):
    model, inputs, targets = _model(rng, num_layers, embedding_size, dtype), _ids(rng), _ids(rng)
    expected, _ = losses.softmax_cross_entropy(model(inputs)[0], targets)
    np.testing.assert_allclose(model.loss(inputs, targets)[0], expected, **sums(dtype, V))


@kinds
def test_gradients_are_the_slopes_of_the_loss(rng, num_layers, embedding_size):
    model, inputs, targets = _model(rng, num_layers, embedding_size), _ids(rng), _ids(rng)
    state = tuple(rng.standard_normal((2, num_layers, B, H)))
    values = {name: value.copy() for name, value in model.parameters.items()}
    directions = {name: rng.standard_normal(value.shape) for name, value in values.items()}

    def loss(v):
        for name, value in v.items():
            model.parameters[name][:] = value
        return model.loss(inputs, targets, state)[0]

    expected = slopes(loss, values, directions)
    loss(values)
    model.loss_and_gradients(inputs, targets, state)
    found = [(model.gradients[name] * direction).sum() for name, direction in directions.items()]
    np.testing.assert_allclose(found, expected, **DIFFERENCE)


PROJECTED = pytest.mark.parametrize("projection_size", [None, 4], ids=["as long as the units", "shortened"])
PARTS = pytest.mark.parametrize("in_parts", [False, True], ids=["all logits", "in parts"])


def _tied(rng, projection_size=None, dtype="float64", **options):
    cell = lf.Cell(projection_size=projection_size)
    return _model(rng, 2, projection_size or H, dtype, cell=cell, tied=True, **options)


def _set_parts(monkeypatch, in_parts):
    monkeypatch.setattr(type(CPU), "projected_classes", 1 if in_parts else 1 << 30)


@PARTS
@PROJECTED
def test_gradients_of_tied_weights_are_the_slopes_of_the_loss(rng, monkeypatch, projection_size, in_parts):
    _set_parts(monkeypatch, in_parts)
    model, inputs, targets = _tied(rng, projection_size, dropout=0.3), _ids(rng), _ids(rng)
    values = {name: value.copy() for name, value in model.parameters.items()}
    directions = {name: rng.standard_normal(value.shape) for name, value in values.items()}

    def loss(v):
        for name, value in v.items():
            model.parameters[name][:] = value
        return model.loss_and_gradients(inputs, targets, rng=np.random.default_rng(0))[0]

    expected = slopes(loss, values, directions)
    loss(values)
    found = [(model.gradients[name] * direction).sum() for name, direction in directions.items()]
    np.testing.assert_allclose(found, expected, **DIFFERENCE)


@PARTS
def test_a_tied_model_is_the_one_whose_projection_is_its_table_transposed(rng, monkeypatch, dtype, in_parts):
    _set_parts(monkeypatch, in_parts)
    tied, untied, ids = _tied(rng, dtype=dtype), _model(rng, 2, H, dtype), _ids(rng)
    for name, values in tied.parameters.items():
        untied.parameters[name][:] = values
    untied.parameters["projection.kernel"][:] = tied.parameters["embedding"].T
    np.testing.assert_allclose(tied(ids)[0], untied(ids)[0], **states(dtype, V + H))
    np.testing.assert_allclose(tied.loss(ids, ids)[0], untied.loss(ids, ids)[0], **sums(dtype, V))


def test_tied_weights_are_held_once(rng):
    assert "projection.kernel" not in _tied(rng).parameters


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_of_a_tied_model_is_tied(rng, how):
    model, ids = how(_tied(rng)), _ids(rng)
    before = model(ids)[0]
    model.parameters["embedding"] *= 2
    np.testing.assert_allclose(model.projection.kernel, model.parameters["embedding"].T)
    assert not np.array_equal(model(ids)[0], before)


@pytest.mark.parametrize(
    ("embedding_size", "message"),
    [
        (None, "tied shares the table of an embedding, and this model has none: give embedding_size 6"),
        (4, "tied needs embedding_size to be the length of the LSTM's outputs, 6"),
    ],
)
def test_what_cannot_be_tied_is_refused(rng, embedding_size, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _model(rng, 1, embedding_size, tied=True)


@PROJECTED
def test_stream_and_frozen_copy_of_a_tied_model_speak_as_the_model(rng, dtype, projection_size):
    model, ids = _tied(rng, projection_size, dtype), _ids(rng)
    stream = model.stream(B)
    expected = model(ids)[0]
    np.testing.assert_allclose([stream.step(ids_t).copy() for ids_t in ids], expected, **states(dtype, V + H))
    np.testing.assert_allclose(model.inference()(ids)[0], expected, **states(dtype, V + H))


def test_int8_weights_of_a_tied_model_give_nearly_its_logits(rng):
    model, ids = _tied(rng, dtype="float32"), _ids(rng)
    np.testing.assert_allclose(model.inference(weights="int8")(ids)[0], model(ids)[0], atol=0.05)


class _ElsewhereEngine(type(CPU)):
    """An engine with arrays of its own, as a device has them, that computes on the CPU."""

    projected_classes = float("inf")

    def to_engine(self, values):
        return values.copy()

    to_host = to_engine


def test_tied_weights_of_another_engine_have_the_gradients_of_the_cpus(rng, monkeypatch):
    monkeypatch.setattr(CudaEngine, "default", classmethod(lambda cls: _ElsewhereEngine()))
    here = _tied(rng, dtype="float32")
    there = _tied(rng, dtype="float32", device="cuda")
    there.parameter_buffer[:] = here.parameter_buffer
    inputs, targets = _ids(rng), _ids(rng)
    losses_found = [model.loss_and_gradients(inputs, targets)[0] for model in (here, there)]
    assert losses_found[0] == losses_found[1]
    np.testing.assert_array_equal(there.gradient_buffer, here.gradient_buffer)


@pytest.mark.parametrize("embedding_size", [None, 4], ids=["one-hot", "embedding"])
@PARTS
def test_gradients_do_not_depend_on_how_many_logits_are_kept(rng, monkeypatch, embedding_size, in_parts):
    model, inputs, targets = _model(rng, 1, embedding_size), _ids(rng), _ids(rng)
    model.loss_and_gradients(inputs, targets)
    expected = model.gradient_buffer.copy()
    _set_parts(monkeypatch, in_parts)
    model.loss_and_gradients(inputs, targets)
    np.testing.assert_allclose(model.gradient_buffer, expected, **SAME)


@pytest.mark.parametrize("embedding_size", [None, 4], ids=["one-hot", "embedding"])
def test_gradients_under_dropout_are_the_slopes_of_the_same_draw(rng, embedding_size):
    model, inputs, targets = _model(rng, 2, embedding_size, dropout=0.3), _ids(rng), _ids(rng)
    start, direction = model.parameter_buffer.copy(), rng.standard_normal(model.parameter_buffer.size)

    def loss(v):
        model.parameter_buffer[:] = v["buffer"]
        return model.loss_and_gradients(inputs, targets, rng=np.random.default_rng(0))[0]

    expected = slopes(loss, {"buffer": start}, {"buffer": direction})
    loss({"buffer": start})
    np.testing.assert_allclose([model.gradient_buffer @ direction], expected, **DIFFERENCE)


def test_loss_of_evaluation_knows_no_dropout(rng):
    inputs, targets = _ids(rng), _ids(rng)
    dropped, plain = (_model(np.random.default_rng(1), dropout=p).loss(inputs, targets)[0] for p in (0.5, 0.0))
    assert dropped == plain


def test_training_loss_without_dropout_is_the_evaluation_loss(rng):
    model, inputs, targets = _model(rng, 2, 4), _ids(rng), _ids(rng)
    assert model.loss_and_gradients(inputs, targets)[0] == model.loss(inputs, targets)[0]


def test_gradients_do_not_depend_on_what_was_computed_before(rng):
    model, inputs, targets = _model(rng, 2, 4), _ids(rng), _ids(rng)
    model.loss_and_gradients(inputs, targets)
    first = model.gradient_buffer.copy()
    model.loss(_ids(rng, 7, 2), _ids(rng, 7, 2))
    model.loss_and_gradients(targets, inputs)
    model.loss_and_gradients(inputs, targets)
    np.testing.assert_array_equal(model.gradient_buffer, first)


def test_state_returned_carries_the_text_on(rng):
    model, ids = _model(rng, 2), _ids(rng)
    _, state = model.loss_and_gradients(ids[:2], ids[:2])
    np.testing.assert_allclose(model(ids[2:], state)[0], model(ids)[0][2:], **SAME)


def test_state_returned_survives_the_next_call(rng):
    model, ids = _model(rng), _ids(rng)
    _, (h, _) = model.loss_and_gradients(ids, ids)
    kept = h.copy()
    model.loss_and_gradients(ids, ids, (h, h))
    np.testing.assert_array_equal(h, kept)


def test_training_lowers_the_loss_of_a_text_that_repeats(rng):
    model, optimizer = _model(rng, dtype="float32"), lf.optimizers.Adam()
    text = np.arange(T * B + 1, dtype=np.int32) % V
    inputs, targets = text[:-1].reshape(T, B), text[1:].reshape(T, B)
    optimizer.init(model.parameter_buffer)
    for _ in range(200):
        model.loss_and_gradients(inputs, targets)
        optimizer.update(model.parameter_buffer, model.gradient_buffer, learning_rate=0.05)
    assert model.loss(inputs, targets)[0] < 0.1


@pytest.mark.parametrize(
    ("inputs", "targets", "error", "message"),
    [
        (np.full((T, B), V), np.zeros((T, B), int), ValueError, "inputs must hold ids from 0 to 10"),
        (np.zeros((T, B), int), np.full((T, B), -1), ValueError, "a vocabulary of 11), got -1 at position [0, 0]"),
        (np.zeros((T, B)), np.zeros((T, B), int), TypeError, "inputs must hold integer ids, got float64"),
        (np.zeros((T, B), int), np.zeros((B, T), int), ValueError, "targets must have shape (5, 3) = "),
        (np.zeros((T, 0), int), np.zeros((T, 0), int), ValueError, "inputs must hold at least one token"),
    ],
)
def test_training_error_names_the_argument_what_was_wanted_and_what_came(rng, inputs, targets, error, message):
    with pytest.raises(error, match=re.escape(message)):
        _model(rng).loss_and_gradients(inputs, targets)


def test_dropout_without_a_generator_is_refused(rng):
    with pytest.raises(ValueError, match=re.escape("rng must be a numpy.random.Generator because dropout is 0.5")):
        _model(rng, dropout=0.5).loss_and_gradients(_ids(rng), _ids(rng))


# --- streams ----------------------------------------------------------------------------------------------------------


@kinds
def test_stream_speaks_as_the_model(rng, dtype, num_layers, embedding_size):
    model, ids = _model(rng, num_layers, embedding_size, dtype), _ids(rng)
    stream = model.stream(B)
    logits = [stream.step(ids_t).copy() for ids_t in ids]
    np.testing.assert_allclose(logits, model(ids)[0], **states(dtype, V + H))


def test_generated_tokens_are_those_the_model_would_choose(rng):
    model, token, uniforms = _model(rng, 2, 4), _ids(rng, B), rng.random((20, B))
    drawn = model.stream(B).generate(token.copy(), uniforms, temperature=0.5, top_k=5, top_p=0.9)
    logits, _ = model(np.concatenate([token[None], drawn[:-1]]))
    chosen = [
        reference.choose_token(reference.next_token_distribution(z, temperature=0.5, top_k=5, top_p=0.9), u)
        for z, u in zip(logits, uniforms, strict=True)
    ]
    np.testing.assert_array_equal(drawn, chosen)


def test_generating_in_two_parts_is_generating_at_once(rng):
    model, token, uniforms = _model(rng), _ids(rng, B), rng.random((10, B))
    whole = model.stream(B).generate(token.copy(), uniforms)
    stream, last = model.stream(B), token.copy()
    parts = [stream.generate(last, uniforms[:4]), stream.generate(last, uniforms[4:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_stream_goes_on_from_a_state_it_is_given(rng):
    model, ids = _model(rng, 2), _ids(rng)
    stream = model.stream(B)
    _, stream.state = model(ids[:-1])
    np.testing.assert_allclose(stream.step(ids[-1]), model(ids)[0][-1], **SAME)


def test_reset_zeroes_the_state_of_a_stream(rng):
    stream = _model(rng).stream(B)
    stream.step(_ids(rng, B))
    stream.reset()
    assert not np.any(stream.state)


GENERATE_ERRORS = [
    ({"token": np.full(B, V, np.int32)}, ValueError, "token must hold ids from 0 to 10 (a vocabulary of 11), got 11"),
    ({"token": np.zeros(B, np.int64)}, TypeError, "token must be a writable contiguous int32 array"),
    ({"token": np.zeros(B + 1, np.int32)}, ValueError, "token must have shape (3,) = (batch_size,), got (4,)"),
    ({"uniforms": np.ones((4, B))}, ValueError, "uniforms must lie in [0, 1), got 1 to 1"),
    ({"uniforms": np.full((4, B), np.nan)}, ValueError, "uniforms must lie in [0, 1), got nan to nan"),
    ({"uniforms": np.zeros((4, B), "f4")}, TypeError, "uniforms must be float64"),
    ({"temperature": -1.0}, ValueError, "temperature must be at least 0, got -1"),
    ({"temperature": float("nan")}, ValueError, "temperature must be finite, got nan"),
    ({"top_k": -1}, ValueError, "top_k must be at least 0, got -1"),
    ({"top_p": 0.0}, ValueError, "top_p must lie in (0, 1], got 0"),
    ({"top_p": 1.5}, ValueError, "top_p must lie in (0, 1], got 1.5"),
]


@pytest.mark.parametrize(("changed", "error", "message"), GENERATE_ERRORS, ids=[m for _, _, m in GENERATE_ERRORS])
def test_generate_error_names_the_argument(rng, changed, error, message):
    arguments = {"token": np.zeros(B, np.int32), "uniforms": np.zeros((4, B)), **changed}
    with pytest.raises(error, match=re.escape(message)):
        _model(rng).stream(B).generate(**arguments)


# --- SequenceClassifier -----------------------------------------------------------------------------------------------


def _classifier(rng, bidirectional=False, **options) -> lf.SequenceClassifier:
    return lf.SequenceClassifier(
        4, H, 3, num_layers=2, bidirectional=bidirectional, dtype="float64", rng=rng, **options
    )


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_classifier_sees_the_last_state_of_every_direction_at_each_rows_own_end(rng, bidirectional):
    model, x = _classifier(rng, bidirectional), rng.standard_normal((T, B, 4))
    lengths = np.array([2, T, 1])
    h, _ = model.lstm(x, lengths=lengths)
    features = h[lengths - 1, np.arange(B)]
    if bidirectional:
        features[:, H:] = h[0, :, H:]
    expected = features @ model.parameters["projection.kernel"] + model.parameters["projection.bias"]
    np.testing.assert_allclose(model(x, lengths=lengths), expected, **SAME)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_classifier_gradients_are_the_slopes_of_its_loss(rng, bidirectional, dropout):
    model, x = _classifier(rng, bidirectional, dropout=dropout), rng.standard_normal((T, B, 4))
    labels, lengths = rng.integers(0, 3, B), rng.integers(1, T, B, endpoint=True)
    start, direction = model.parameter_buffer.copy(), rng.standard_normal(model.parameter_buffer.size)

    def loss(v):
        model.parameter_buffer[:] = v["buffer"]
        return model.loss_and_gradients(x, labels, lengths=lengths, rng=np.random.default_rng(0))

    expected = slopes(loss, {"buffer": start}, {"buffer": direction})
    loss({"buffer": start})
    np.testing.assert_allclose([model.gradient_buffer @ direction], expected, **DIFFERENCE)


def _squared_error(logits, labels):
    return float(((logits - labels) ** 2).sum()), 2 * (logits - labels)


def test_loss_of_ones_own_is_the_loss(rng):
    model, x, labels = (
        _classifier(rng, loss=_squared_error),
        rng.standard_normal((T, B, 4)),
        rng.standard_normal((B, 3)),
    )
    assert model.loss(x, labels) == _squared_error(model(x), labels)[0]


def test_loss_of_ones_own_drives_the_gradients(rng):
    model, x, labels = (
        _classifier(rng, loss=_squared_error),
        rng.standard_normal((T, B, 4)),
        rng.standard_normal((B, 3)),
    )
    model.loss_and_gradients(x, labels)
    np.testing.assert_allclose(model.gradients["projection.bias"], 2 * (model(x) - labels).sum(axis=0), **SAME)


def test_loss_of_ones_own_with_a_wrong_gradient_is_refused(rng):
    model = _classifier(rng, loss=lambda logits, labels: (0.0, logits[:1]))
    with pytest.raises(
        ValueError, match=re.escape("d_logits must have shape (3, 3) = the shape of logits, got (1, 3)")
    ):
        model.loss_and_gradients(np.zeros((T, B, 4)), np.zeros(B, int))


def test_loss_that_cannot_be_called_is_refused(rng):
    with pytest.raises(TypeError, match="loss must be callable"):
        _classifier(rng, loss="cross entropy")


def test_classifier_error_names_the_label_outside_of_the_classes(rng):
    with pytest.raises(ValueError, match=re.escape("targets must hold ids from 0 to 2 (a vocabulary of 3), got 3")):
        _classifier(rng).loss(np.zeros((T, B, 4)), np.array([0, 3, 1]))
