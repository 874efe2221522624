"""What `lstmfast.onnx.export` writes, run by ONNX Runtime: our numbers, for every kind of layer and model.

ONNX Runtime has no float64 LSTM, so float64 is held against ONNX's own reference evaluator. Nothing here has a backward
pass. Graphs as such, and import, are `test_onnx`'s affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lstmfast as lf
from support import documents, parity, tolerances

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")

import lstmfast.onnx  # noqa: E402  it imports onnx

Array = npt.NDArray[Any]

TIME_STEPS, BATCH, INPUT_SIZE, HIDDEN_SIZE = 7, 5, 6, 9
TOLERANCE = tolerances.states("float32", 3 * HIDDEN_SIZE)


def run(model: Any, inputs: Mapping[str, Array], **options: Any) -> list[Array]:
    """The outputs of an exported model, by ONNX Runtime."""
    graph = lstmfast.onnx.to_model_proto(model, **options)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(inputs)))


def layer_with(rng: np.random.Generator, **options: Any) -> lf.LSTM:
    """A layer all of whose weights are random."""
    layer = lf.LSTM(INPUT_SIZE, HIDDEN_SIZE, rng=rng, **options)
    layer.parameter_buffer[:] = rng.normal(scale=0.5, size=layer.parameter_buffer.size)
    return layer


def arguments_for(layer: lf.LSTM, rng: np.random.Generator, time_steps: int = TIME_STEPS) -> dict[str, Array]:
    """Random x, h0 and c0 of a call."""
    axes = (BATCH, time_steps) if layer.batch_first else (time_steps, BATCH)
    state = (len(layer.cells), BATCH, layer.hidden_size)
    shapes = {"x": (*axes, INPUT_SIZE), "h0": state, "c0": state}
    return {name: rng.standard_normal(shape).astype(layer.dtype) for name, shape in shapes.items()}


def assert_close(actual: list[Array], expected: list[Array]) -> None:
    """As many arrays, and all close."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, **TOLERANCE)


@pytest.mark.parametrize(("dtype", "time_steps"), parity.CASES)
def test_the_numbers_of_a_layer_are_the_same_within_the_promise(
    dtype: str, time_steps: int, rng: np.random.Generator
) -> None:
    p = parity.problem(rng, dtype, time_steps)
    layer = lf.LSTM(parity.INPUT_SIZE, parity.HIDDEN_SIZE, forget_bias=1.0, dtype=dtype)
    layer.parameters["layer0.kernel"][...], layer.parameters["layer0.bias"][...] = p["kernel"], p["bias"]
    inputs = {"x": p["x"], "h0": p["h0"][None], "c0": p["c0"][None]}
    if dtype == "float64":
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(lstmfast.onnx.to_model_proto(layer))
        h, h_n, c_n = evaluator.run(None, inputs)
    else:
        h, h_n, c_n = run(layer, inputs)
    ours = parity.ours(p, forget_bias=1.0)
    theirs = {"h": h, "h_n": h_n[0], "c_n": c_n[0]}
    parity.assert_same({name: ours[name] for name in theirs}, theirs, tolerances.PARITY[dtype, time_steps])


@pytest.mark.parametrize("lengths", [None, [4, 7, 1, 6, 5]], ids=["whole", "lengths"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_every_stack_gives_the_same(
    num_layers: int, bidirectional: bool, batch_first: bool, lengths: list[int] | None, rng: np.random.Generator
) -> None:
    layer = layer_with(rng, num_layers=num_layers, bidirectional=bidirectional, batch_first=batch_first)
    inputs = arguments_for(layer, rng)
    h, (h_n, c_n) = layer(inputs["x"], (inputs["h0"], inputs["c0"]), lengths=lengths)
    if lengths:
        inputs["lengths"] = np.array(lengths, np.int32)
    assert_close(run(layer, inputs, lengths=bool(lengths)), [h, h_n, c_n])


@pytest.mark.parametrize(
    "variant", [{"peepholes": True}, {"coupled_gates": True}, {"peepholes": True, "coupled_gates": True}], ids=" ".join
)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
def test_peepholes_and_coupled_gates_are_those_of_the_operator(
    variant: dict[str, bool], bidirectional: bool, rng: np.random.Generator, tmp_path: Path
) -> None:
    layer = layer_with(rng, bidirectional=bidirectional, **variant)
    for cell in layer.cells:
        if cell.peepholes is not None:
            cell.peepholes[...] = rng.standard_normal(cell.peepholes.shape)
    inputs = arguments_for(layer, rng)
    h, (h_n, c_n) = layer(inputs["x"], (inputs["h0"], inputs["c0"]))
    assert_close(run(layer, inputs), [h, h_n, c_n])
    lstmfast.onnx.export(layer, tmp_path / "layer.onnx")
    again = lstmfast.onnx.load(tmp_path / "layer.onnx")
    np.testing.assert_array_equal(again(inputs["x"])[0], layer(inputs["x"])[0])


@pytest.mark.parametrize("opset", [lstmfast.onnx.OLDEST_OPSET, lstmfast.onnx.DEFAULT_OPSET, 22])
def test_older_and_newer_operator_sets_give_the_same(opset: int, rng: np.random.Generator) -> None:
    layer = layer_with(rng, num_layers=2, bidirectional=True)
    inputs = arguments_for(layer, rng)
    h, (h_n, c_n) = layer(inputs["x"], (inputs["h0"], inputs["c0"]))
    assert_close(run(layer, inputs, opset=opset), [h, h_n, c_n])


def test_time_and_batch_are_free_and_states_carry_a_sequence_on(rng: np.random.Generator) -> None:
    layer = layer_with(rng)
    inputs = arguments_for(layer, rng)
    graph = lstmfast.onnx.to_model_proto(layer)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    state, parts = [inputs["h0"], inputs["c0"]], []
    for first, last in ((0, 1), (1, 6), (6, TIME_STEPS)):
        h, *state = session.run(None, {"x": inputs["x"][first:last], "h0": state[0], "c0": state[1]})
        parts.append(h)
    expected, _ = layer(inputs["x"], (inputs["h0"], inputs["c0"]))
    np.testing.assert_allclose(np.concatenate(parts), expected, **TOLERANCE)
    one_row = session.run(None, {"x": inputs["x"][:, :1], "h0": inputs["h0"][:, :1], "c0": inputs["c0"][:, :1]})
    np.testing.assert_allclose(one_row[0], expected[:, :1], **TOLERANCE)


@pytest.mark.parametrize(
    ("vocab_size", "embedding_size"),
    [(11, None), (4 * HIDDEN_SIZE + 1, None), (11, 5)],
    ids=["one-hot", "one-hot-of-many", "embedding"],
)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_language_model_reads_ids_and_gives_the_same_logits(
    vocab_size: int, embedding_size: int | None, num_layers: int, rng: np.random.Generator
) -> None:
    model = lf.CharLM(vocab_size, HIDDEN_SIZE, num_layers=num_layers, embedding_size=embedding_size, rng=rng)
    ids = rng.integers(0, vocab_size, (TIME_STEPS, BATCH))
    h0, c0 = rng.standard_normal((2, num_layers, BATCH, HIDDEN_SIZE)).astype(np.float32)
    logits, (h_n, c_n) = model(ids, (h0, c0))
    assert_close(run(model, {"ids": ids, "h0": h0, "c0": c0}), [logits, h_n, c_n])


def test_tied_weights_are_held_once_and_give_the_same_logits(rng: np.random.Generator) -> None:
    model = lf.CharLM(11, HIDDEN_SIZE, embedding_size=HIDDEN_SIZE, tied=True, rng=rng)
    ids = rng.integers(0, 11, (TIME_STEPS, BATCH))
    h0, c0 = rng.standard_normal((2, 1, BATCH, HIDDEN_SIZE)).astype(np.float32)
    logits, (h_n, c_n) = model(ids, (h0, c0))
    assert_close(run(model, {"ids": ids, "h0": h0, "c0": c0}), [logits, h_n, c_n])
    names = [each.name for each in lf.onnx.to_model_proto(model).graph.initializer]
    assert "embedding" in names and "projection.kernel" not in names


def test_a_trained_run_is_exported_by_its_path_with_its_vocabulary(tmp_path: Path, rng: np.random.Generator) -> None:
    import json

    from lstmfast.command.main import main
    from lstmfast.data import Vocabulary
    from lstmfast.run_folder import load_model

    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 200)
    settings = "--steps 2 --hidden-size 8 --batch-size 4 --unroll 5 --sample-every 0"
    main(["train", str(tmp_path / "text.txt"), *settings.split(), "--out", str(tmp_path / "run")])
    lstmfast.onnx.export(tmp_path / "run", tmp_path / "run.onnx")
    model, vocabulary, _ = load_model(tmp_path / "run")
    (stored,) = onnx.load(tmp_path / "run.onnx").metadata_props
    assert stored.key == lstmfast.onnx.VOCABULARY
    assert Vocabulary.from_json(json.loads(stored.value)) == vocabulary
    session = onnxruntime.InferenceSession(tmp_path / "run.onnx", providers=["CPUExecutionProvider"])
    ids, state = rng.integers(0, vocabulary.size, (TIME_STEPS, 1)), model.zero_state(1)
    logits, _ = model(ids)
    np.testing.assert_allclose(session.run(None, {"ids": ids, "h0": state[0], "c0": state[1]})[0], logits, **TOLERANCE)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
def test_a_classifier_gives_the_same_logits(bidirectional: bool, rng: np.random.Generator) -> None:
    model = lf.SequenceClassifier(INPUT_SIZE, HIDDEN_SIZE, 3, num_layers=2, bidirectional=bidirectional, rng=rng)
    x, lengths = rng.standard_normal((TIME_STEPS, BATCH, INPUT_SIZE)).astype(np.float32), np.array([4, 7, 1, 6, 5])
    expected = model(x, lengths=lengths)
    assert_close(run(model, {"x": x, "lengths": lengths.astype(np.int32)}, lengths=True), [expected])


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
def test_a_classifier_begins_with_its_learnt_states_and_drops_nothing(
    bidirectional: bool, rng: np.random.Generator
) -> None:
    cell = lf.Cell(recurrent_dropout=0.5, weight_dropout=0.5, learn_initial_state=True)
    model = lf.SequenceClassifier(
        INPUT_SIZE, HIDDEN_SIZE, 3, num_layers=2, bidirectional=bidirectional, cell=cell, rng=rng
    )
    model.parameter_buffer[:] = rng.normal(scale=0.5, size=model.parameter_buffer.size)
    x = rng.standard_normal((TIME_STEPS, BATCH, INPUT_SIZE)).astype(np.float32)
    assert_close(run(model, {"x": x}), [model(x)])


def test_the_example_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(documents.python_of("onnx.md"), names)
    assert names["logits"].shape == (1, 1, 96)
