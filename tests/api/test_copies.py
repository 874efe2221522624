"""Layers and models can be copied, pickled and sent to a new process; what comes out is whole, and shares nothing."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import lstmfast as lf

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 3, 4), dtype=np.float32)
IDS = RNG.integers(0, 4, (6, 3)).astype(np.int32)
LABELS = np.array([1, 0, 1], np.int32)

COPIES: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy} | {
    f"pickle protocol {protocol}": lambda value, protocol=protocol: pickle.loads(pickle.dumps(value, protocol))
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
}

MAKERS: dict[str, Callable[[], Any]] = {
    "LSTM": lambda: lf.LSTM(4, 5, rng=np.random.default_rng(1)),
    "stack": lambda: lf.LSTM(
        4, 5, num_layers=3, bidirectional=True, batch_first=True, dropout=0.5, rng=np.random.default_rng(1)
    ),
    "variant": lambda: lf.LSTM(4, 5, projection_size=3, peepholes=True, cell_clip=0.5, coupled_gates=True),
    "float64": lambda: lf.LSTM(4, 5, forget_bias=0.25, dtype="float64"),
    "LSTMCell": lambda: lf.LSTMCell(4, 5, peepholes=True, projection_size=3),
    "Linear": lambda: lf.Linear(4, 5),
    "Embedding": lambda: lf.Embedding(4, 5),
    "CharLM": lambda: lf.CharLM(4, 5, num_layers=2, embedding_size=3, dropout=0.2),
    "one-hot CharLM": lambda: lf.CharLM(4, 5),
    "SequenceClassifier": lambda: lf.SequenceClassifier(4, 5, 2, bidirectional=True),
    "frozen": lambda: lf.LSTM(4, 5).inference(),
}
WITH_BUFFER = [name for name in MAKERS if name != "frozen"]


def run(of: Any) -> list[Any]:
    """What a layer or model answers."""
    if isinstance(of, lf.LSTMCell):
        return list(of(X[0], (np.full((3, 3), 0.1, np.float32), np.full((3, 5), 0.1, np.float32))))
    if isinstance(of, lf.Linear):
        return [of(X)]
    if isinstance(of, lf.Embedding):
        return [of(IDS)]
    if isinstance(of, lf.CharLM):
        logits, (h, c) = of(IDS)
        return [logits, h, c]
    if isinstance(of, lf.SequenceClassifier):
        return [of(X)]
    h, (h_n, c_n) = of(X.astype(getattr(of, "dtype", X.dtype)))
    return [h, h_n, c_n]


@pytest.fixture(params=MAKERS)
def made(request):
    return MAKERS[request.param]()


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_copy_answers_the_same(made, make_copy):
    run(made)  # workspaces exist
    for mine, copied in zip(run(made), run(make_copy(made)), strict=True):
        assert_array_equal(copied, mine)


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", WITH_BUFFER)
def test_parameters_of_a_copy_are_views_of_one_buffer(name, make_copy):
    original = MAKERS[name]()
    copied = make_copy(original)
    assert list(copied.parameters) == list(original.parameters)
    for views, buffer in ((copied.parameters, "parameter_buffer"), (copied.gradients, "gradient_buffer")):
        whole = getattr(copied, buffer)
        whole[...] = np.arange(whole.size)
        assert_array_equal(np.concatenate([view.reshape(-1) for view in views.values()]), whole)
        assert not np.shares_memory(whole, getattr(original, buffer))


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", ["LSTM", "stack", "variant"])
def test_cells_of_a_copied_layer_are_views_too(name, make_copy):
    layer = make_copy(MAKERS[name]())
    layer.parameter_buffer[...] = 3
    for cell in layer.cells:
        assert (cell.kernel == 3).all()
        assert (cell.gates["forget"].bias == 3).all()
        assert all((view == 3).all() for view in cell.parameters.values())
    assert layer.cells[0].projection is layer.cells[0].parameters.get("projection")


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", ["CharLM", "SequenceClassifier"])
def test_layers_of_a_copied_model_use_its_buffer(name, make_copy):
    model = make_copy(MAKERS[name]())
    before = run(model)[0]
    model.parameter_buffer *= 0.5
    assert not np.array_equal(run(model)[0], before)
    assert np.shares_memory(model.lstm.cells[0].kernel, model.parameter_buffer)
    assert np.shares_memory(model.lstm.gradient_buffer, model.gradient_buffer)


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_copied_models_learn_the_same_steps(make_copy):
    def train(model: lf.CharLM, rng: np.random.Generator, optimizer: Any) -> Any:
        for _ in range(3):
            model.loss_and_gradients(IDS[:-1], IDS[1:], rng=rng)
            optimizer.update(model.parameter_buffer, model.gradient_buffer, learning_rate=0.1)
        return model.parameter_buffer

    model, optimizer, rng = MAKERS["CharLM"](), lf.optimizers.Adam(), np.random.default_rng(3)
    optimizer.init(model.parameter_buffer)
    train(model, rng, optimizer)
    copied = make_copy((model, rng, optimizer))
    assert_array_equal(train(*copied), train(model, rng, optimizer))


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_dropout_goes_on_where_the_original_is(make_copy):
    layer = MAKERS["stack"]()
    layer(X, training=True)
    copied = make_copy(layer)
    assert_array_equal(copied(X, training=True)[0], layer(X, training=True)[0])


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_a_model_of_ones_own_keeps_its_one_buffer(make_copy):
    storage = lf.ParameterBuffer.allocate({"lstm": lf.LSTM.shapes(4, 5), "out": lf.Linear.shapes(5, 2)}, "float32")
    storage.fill(None, np.random.default_rng(0))
    layers = {
        "lstm": lf.LSTM(4, 5, storage=storage.part("lstm.")),
        "out": lf.Linear(5, 2, storage=storage.part("out.")),
        "storage": storage,
    }
    copied = make_copy(layers)
    copied["storage"].values[...] = 7
    copied["storage"].gradient_values[...] = 8
    for name in ("lstm", "out"):
        assert (copied[name].parameter_buffer == 7).all()
        assert (copied[name].gradient_buffer == 8).all()
    assert not (storage.values == 7).any()


def test_shallow_copy_shares_weights_and_no_workspace():
    layer = MAKERS["stack"]()
    twin = copy.copy(layer)
    h, _ = layer(X, training=True)
    twin(X[:, :2])
    layer.backward(np.ones_like(h))
    layer.parameter_buffer[...] = 0.1
    assert_array_equal(twin(X)[0], layer(X)[0])
    assert np.shares_memory(twin.parameter_buffer, layer.parameter_buffer)


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_backward_stays_with_the_original(make_copy):
    layer = MAKERS["LSTM"]()
    h, _ = layer(X, training=True)
    copied = make_copy(layer)
    with pytest.raises(RuntimeError, match="training=True"):
        copied.backward(h)
    layer.backward(h)
    copied(X, training=True)
    copied.backward(h)
    assert_array_equal(copied.gradient_buffer, layer.gradient_buffer)


def answer(of: Any, queue: Any) -> None:
    """Sent to the other process."""
    queue.put(run(of))


@pytest.mark.parametrize("name", ["LSTM", "CharLM", "SequenceClassifier", "frozen"])
def test_layers_and_models_go_to_a_spawned_process(name):
    of, context = MAKERS[name](), multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=answer, args=(of, queue))
    process.start()
    answers = queue.get(timeout=60)
    process.join()
    for there, here in zip(answers, run(of), strict=True):
        assert_array_equal(there, here)


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("made", ["LSTM", "CharLM"], indirect=False)
def test_a_stream_says_that_it_cannot_be_copied(made, make_copy):
    stream = MAKERS["one-hot CharLM" if made == "CharLM" else made]().stream()
    with pytest.raises(TypeError, match="a stream cannot be copied or pickled: make another from its layer or model"):
        make_copy(stream)


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_what_lstm_returns_can_be_copied_without_its_backward(make_copy):
    cell = lf.LSTMCell(4, 5)
    out = lf.lstm(X, cell.kernel, cell.bias, keep_for_backward=True, return_gates=True)
    copied = make_copy(out)
    assert_array_equal(copied.h, out.h)
    assert_array_equal(copied.gates, out.gates)
    with pytest.raises(ValueError, match="got one that kept nothing"):
        lf.lstm_backward(copied)


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_a_copied_sequence_is_one_that_has_not_run(make_copy):
    from support.sequences import sequence_of

    cell = lf.LSTMCell(4, 5)
    h, h_n, c_n = np.empty((6, 3, 5), "f"), np.empty((3, 5), "f"), np.empty((3, 5), "f")
    sequence = sequence_of()
    sequence.load(cell.kernel, cell.bias)
    sequence.forward(X, h, h_n, c_n, keep_for_backward=True)
    copied = make_copy(sequence)
    with pytest.raises(RuntimeError, match="keep_for_backward"):
        copied.backward()
    with pytest.raises(RuntimeError, match="needs a load"):
        copied.forward(X, h, h_n, c_n)


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_a_copied_sequence_keeps_its_cell_and_direction(make_copy):
    from support.sequences import sequence_of

    cell, found = lf.LSTMCell(4, 5), []
    sequence = sequence_of(reverse=True, forget_bias=2.0, cell_clip=0.1, coupled_gates=False)
    for each in (sequence, make_copy(sequence)):
        h, h_n, c_n = np.empty((6, 3, 5), "f"), np.empty((3, 5), "f"), np.empty((3, 5), "f")
        each.load(cell.kernel, cell.bias)
        each.forward(X, h, h_n, c_n)
        found.append(h)
    assert_array_equal(*found)
