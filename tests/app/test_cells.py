"""Models of other cells than the standard one: trained, sampled from, kept and read again like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lstmfast as lf
from lstmfast.command.main import main
from lstmfast.config import TrainingConfig
from lstmfast.data import Batches
from lstmfast.optimizers import Adam
from lstmfast.run_folder import load_model
from lstmfast.schedules import Constant
from lstmfast.trainer import Callback, Trainer
from support.oracles import slopes
from support.tolerances import DIFFERENCE, states

CELLS = {
    "projection": lf.Cell(projection_size=3),
    "peepholes": lf.Cell(peepholes=True),
    "clip": lf.Cell(cell_clip=0.5),
    "coupled": lf.Cell(coupled_gates=True),
    "all": lf.Cell(0.3, 2, True, 0.7, True),
    "layer norm": lf.Cell(layer_norm="products", layer_norm_epsilon=0.1),
    "learnt states": lf.Cell(learn_initial_state=True),
}
REGULARISED = lf.Cell(
    0.0, 5, recurrent_dropout=0.3, recurrent_dropout_per_step=True, zoneout=(0.1, 0.2), weight_dropout=0.4,
    layer_norm="gates", layer_norm_epsilon=0.1, learn_initial_state=True,
)
OTHERS = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
IDS = np.random.default_rng(0).integers(0, 5, (7, 2))


def model_of(cell: lf.Cell, **options: object) -> lf.CharLM:
    """A small model of two layers and an embedding."""
    rng = np.random.default_rng(1)
    return lf.CharLM(5, 6, num_layers=2, embedding_size=4, cell=cell, dtype="float64", rng=rng, **options)  # type: ignore[arg-type]


def assert_gradients_are_slopes(
    model: Any, loss: Callable[[], float], loss_and_gradients: Callable[[], object]
) -> None:
    """Hold the gradients of a model against differences of its loss, in a direction for each variable."""
    rng = np.random.default_rng(3)
    values = {name: value.copy() for name, value in model.parameters.items()}
    directions = {name: rng.standard_normal(value.shape) for name, value in values.items()}

    def of(v: dict[str, Any]) -> float:
        for name, value in v.items():
            model.parameters[name][:] = value
        return loss()

    wanted = slopes(of, values, directions)
    of(values)
    loss_and_gradients()
    found = [(model.gradients[name] * direction).sum() for name, direction in directions.items()]
    assert_allclose(found, wanted, **DIFFERENCE)


@OTHERS
def test_gradients_of_a_language_model_are_the_slopes_of_its_loss(cell: lf.Cell) -> None:
    model = model_of(cell)
    assert_gradients_are_slopes(
        model, lambda: model.loss(IDS[:-1], IDS[1:])[0], lambda: model.loss_and_gradients(IDS[:-1], IDS[1:])
    )


@OTHERS
def test_a_stream_gives_the_models_logits_step_by_step(cell: lf.Cell) -> None:
    model = model_of(cell)
    stream = model.stream(2)
    wanted, (h, c) = model(IDS)
    for step, ids in enumerate(IDS):
        assert_allclose(stream.step(ids), wanted[step], **states("float64", 10))
    assert_allclose(stream.state[0], h, **states("float64", 10))
    stream.reset()
    assert_allclose(stream.step(IDS[0]), wanted[0], **states("float64", 10))


@OTHERS
def test_a_stream_draws_the_same_text_as_its_logits_say(cell: lf.Cell) -> None:
    model, token = model_of(cell), np.zeros(2, np.int32)
    drawn = model.stream(2).generate(token, np.full((5, 2), 0.4))
    assert_array_equal(token, drawn[-1])
    read = np.vstack([np.zeros((1, 2), np.int32), drawn[:-1]])
    p = [lf.reference.next_token_distribution(logits) for logits in model(read)[0]]
    assert_array_equal(drawn, [lf.reference.choose_token(each, np.full(2, 0.4)) for each in p])


def test_a_stream_begins_with_the_learnt_states_even_if_its_weights_are_rounded() -> None:
    model = lf.CharLM(5, 6, cell=lf.Cell(learn_initial_state=True), rng=np.random.default_rng(1))
    model.parameters["lstm.layer0.initial_h"][...] = 0.5
    assert_array_equal(model.stream(2, weights="int8").state[0], np.full((1, 2, 6), 0.5, np.float32))


def test_masks_of_a_model_follow_from_its_generator() -> None:
    model = model_of(REGULARISED)

    def loss(seed: int) -> float:
        return model.loss_and_gradients(IDS[:-1], IDS[1:], rng=np.random.default_rng(seed))[0]

    assert loss(0) == loss(0) != loss(1)
    assert_gradients_are_slopes(model, lambda: loss(0), lambda: loss(0))


def test_masks_of_a_classifier_follow_from_its_generator() -> None:
    rng = np.random.default_rng(2)
    model = lf.SequenceClassifier(3, 4, 2, cell=REGULARISED, dtype="float64", rng=rng)
    x, labels = rng.standard_normal((4, 3, 3)), np.array([0, 1, 1])

    def loss() -> float:
        return model.loss_and_gradients(x, labels, rng=np.random.default_rng(0))

    assert_gradients_are_slopes(model, loss, loss)


def test_training_of_a_cell_with_masks_needs_a_generator() -> None:
    message = r"rng must be a numpy.random.Generator because zoneout is \(0.1, 0.1\), got None"
    with pytest.raises(ValueError, match=message):
        model_of(lf.Cell(zoneout=0.1)).loss_and_gradients(IDS[:-1], IDS[1:])


def test_resets_begin_a_text_in_the_middle() -> None:
    model = model_of(lf.Cell(learn_initial_state=True))
    resets = np.zeros((6, 2), bool)
    resets[3] = True
    loss, _ = model.loss_and_gradients(IDS[:-1], IDS[1:], resets=resets)
    parts = [model.loss(IDS[first:last], IDS[first + 1 : last + 1])[0] for first, last in ((0, 3), (3, 6))]
    assert loss == pytest.approx(np.mean(parts), rel=1e-12)


def trainer_of(cell: lf.Cell, **settings: Any) -> Trainer:
    """A trainer of a small model, always the same."""
    changed = TrainingConfig(**{"steps": 6, "batch_size": 4, "unroll": 5, "reset_rate": 0.0, **settings})
    rngs = {f"{use}_rng": np.random.default_rng(2 + k) for k, use in enumerate(("dropout", "reset", "sample"))}
    ids = np.random.default_rng(0).integers(0, 5, 400)
    return Trainer(
        model_of(cell), Adam(), Constant(0.05), Batches(ids, changed.batch_size, changed.unroll), changed, **rngs
    )


@pytest.mark.parametrize("shards", [1, 2])
def test_a_trainer_that_is_restored_draws_the_same_masks(shards: int) -> None:
    trainer = trainer_of(REGULARISED, shards=shards)
    start = trainer.snapshot()
    trainer.run()
    expected = trainer.snapshot()
    trainer.restore(start)
    trainer.run()
    for name, values in trainer.snapshot().tensors.items():
        assert_array_equal(values, expected.tensors[name], err_msg=name)


def test_shards_of_a_batch_have_masks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, seeds = trainer_of(REGULARISED, shards=2, accumulate=2, steps=1), []
    model: Any = trainer.model
    compute = model.loss_and_gradients

    def watch(*arguments: Any, **options: Any) -> Any:
        result = compute(*arguments, **options)
        seeds.append(model.lstm.last_seed)
        return result

    monkeypatch.setattr(model, "loss_and_gradients", watch)
    trainer.run()
    assert len(set(seeds)) == len(seeds) == 4


@pytest.mark.parametrize("reset_rate", [0.0, 0.5])
def test_initial_states_are_learnt_where_texts_begin(reset_rate: float) -> None:
    trainer = trainer_of(lf.Cell(learn_initial_state=True), reset_rate=reset_rate)
    model: Any = trainer.model
    gradients: list[bool] = []

    class Watch(Callback):
        def on_step(self, trainer: Trainer, step: int, loss: float) -> None:
            gradients.append(bool(model.gradients["lstm.layer1.initial_c"].any()))

    trainer.callbacks.append(Watch())
    trainer.run()
    assert gradients[0]
    assert any(gradients[1:]) == (reset_rate > 0)


def test_streams_of_other_cells_keep_their_weights_as_they_are() -> None:
    with pytest.raises(ValueError, match="weights must be 'float32' for cells with peepholes, got 'int8'"):
        lf.CharLM(5, 6, cell=lf.Cell(peepholes=True)).stream(weights="int8")


@OTHERS
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_of_a_classifier_are_the_slopes_of_its_loss(cell: lf.Cell, bidirectional: bool) -> None:
    rng = np.random.default_rng(2)
    model = lf.SequenceClassifier(3, 4, 2, bidirectional=bidirectional, cell=cell, dtype="float64", rng=rng)
    x, labels = rng.standard_normal((4, 3, 3)), np.array([0, 1, 1])
    assert_gradients_are_slopes(model, lambda: model.loss(x, labels), lambda: model.loss_and_gradients(x, labels))


def test_a_loss_of_ones_own_takes_the_place_of_cross_entropy() -> None:
    def squares(logits: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
        difference = logits - np.eye(5)[targets]
        return float((difference**2).sum()), 2 * difference

    model = model_of(lf.Cell(), loss=squares)
    loss, _ = model.loss_and_gradients(IDS[:-1], IDS[1:])
    logits, _ = model(IDS[:-1])
    assert loss == pytest.approx(((logits - np.eye(5)[IDS[1:]]) ** 2).sum())
    assert_gradients_are_slopes(
        model, lambda: model.loss(IDS[:-1], IDS[1:])[0], lambda: model.loss_and_gradients(IDS[:-1], IDS[1:])
    )


def test_cell_and_its_options_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="forget_bias must be set in cell if a cell is given"):
        lf.CharLM(5, 6, cell=lf.Cell(peepholes=True), forget_bias=0.0)
    with pytest.raises(TypeError, match="cell must be a lstmfast.Cell, got str"):
        lf.LSTM(3, 4, cell="peepholes")  # type: ignore[arg-type]


FLAGS = {
    "--projection-size 5 --peepholes --cell-clip 2 --coupled-gates": (
        lf.Cell(0.0, 5, True, 2.0, True), ["clipped to between -2 and 2", "f = 1 - i"],
    ),
    "--projection-size 5 --recurrent-dropout 0.3 --recurrent-dropout-per-step --zoneout 0.1,0.2 --weight-dropout 0.4 "
    "--layer-norm --layer-norm-of gates --layer-norm-epsilon 0.1 --learn-initial-state": (
        REGULARISED, ["0.1 of h and 0.2 of c stay", "Training drops 0.4 of the recurrent weights"],
    ),
}


@pytest.mark.parametrize("flags", FLAGS, ids=["variants", "regularised"])
def test_a_run_of_another_cell_is_trained_resumed_sampled_and_read(
    flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell, notes = FLAGS[flags]
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    run = str(tmp_path / "run")
    sizes = ["--hidden-size", "8", "--batch-size", "4", "--unroll", "6", "--steps", "6", "--sample-length", "5"]
    assert main(["train", str(text), "--out", run, *sizes, *flags.split()]) == 0
    assert main(["train", "--resume", run]) == 0
    assert main(["sample", run, "--length", "20"]) == 0
    model, _, _ = load_model(run)
    assert model.cell == cell
    capsys.readouterr()
    assert main(["inspect", run]) == 0
    shown = capsys.readouterr().out
    assert all(note in shown for note in notes)
    x = np.random.default_rng(0).standard_normal((3, 2, model.vocab_size), dtype=np.float32)
    assert_allclose(lf.layouts.load(run).to_layer()(x)[0], model.lstm(x)[0], **states("float32", 20))


def test_settings_of_a_run_from_before_these_options_are_read_with_what_was_done_then() -> None:
    from lstmfast.config import Config

    text = Config().to_json()
    for name in (*vars(lf.Cell()), "layer_norm_of"):
        if name == "forget_bias":
            continue
        text = "\n".join(line for line in text.splitlines() if f'"{name}"' not in line)
    assert Config.from_json(text) == Config()
