"""The examples learn what they say: each on a small real text or data set, with few steps, held to a figure.

Figures leave room: seeds 0, 1 and 2 all reach them. The texts are modules of the standard library, so that nothing is
downloaded.
"""

from __future__ import annotations

import argparse as small_text
import importlib
import inspect
import subprocess
import sys
import tarfile as large_text
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("[a-z]*.py"))
TEXT = [inspect.getsourcefile(small_text), inspect.getsourcefile(large_text)]  # 200,000 characters of Python


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Import an example by its name; what it writes goes to a folder of the test's own."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def run(example, name, *arguments):
    """The figures an example returns."""
    return example(name).main([str(argument) for argument in arguments])


# --- what they learn --------------------------------------------------------------------------------------------------


def test_one_kernel_gives_the_numbers_of_twelve_matrices(example):
    results = run(example, "one_matmul", "--steps", 2)
    assert results["difference_of_states"] < 1e-14 and results["difference_of_slopes"] < 1e-7


def test_six_lstm_by_hand_learns_a_text(example):
    assert run(example, "six_lstm", *TEXT, "--steps", 1001)["valid_perplexity"] < 7


def test_first_weights_by_hand_are_those_of_the_preset(example):
    hand, model = _by_hand_and_preset(example)
    np.testing.assert_array_equal(hand.values, model.parameter_buffer)


def test_first_steps_by_hand_are_those_of_the_preset(example):
    from lstmfast import losses, optimizers
    from lstmfast.config import preset

    hand, model = _by_hand_and_preset(example)
    module, schedule, optimizer = example("six_lstm"), preset("udacity").optimizer.make_schedule(7001), optimizers.SGD()
    by_hand, by_trainer = [], []
    hand_state, state = module.zero_state(module.BATCH), model.zero_state(module.BATCH)
    for step in range(20):
        window = np.random.default_rng(step).integers(0, 27, (11, module.BATCH))
        loss, hand_state = module.train_step(hand, window[:-1], window[1:], hand_state, schedule(step))
        by_hand.append(loss)
        loss, state = model.loss_and_gradients(window[:-1], window[1:], state)
        losses.clip_by_global_norm(model.gradient_buffer, preset("udacity").optimizer.clip_norm)
        optimizer.update(model.parameter_buffer, model.gradient_buffer, learning_rate=schedule(step))
        by_trainer.append(loss)
    np.testing.assert_allclose(by_hand, by_trainer, rtol=1e-5)


def _by_hand_and_preset(example):
    from lstmfast.config import preset
    from lstmfast.trainer import make_model

    rngs = (np.random.default_rng(5) for _ in range(2))
    return example("six_lstm").first_weights(next(rngs)), make_model(preset("udacity"), 27, next(rngs))


def test_bigrams_learn_a_text(example):
    results = run(example, "six_lstm_bigrams", *TEXT, "--steps", 300)
    assert results["valid_perplexity"] < 10 and results["valid_perplexity_without_dropout"] < 10


def test_words_are_mirrored(example):
    results = run(example, "six_lstm_mirror", "--steps", 700, *TEXT)
    assert results["held_out_right"] > 0.7


def test_embedding_language_model_learns_a_text(example):
    results = run(example, "embedding_language_model", *TEXT, "--steps", 400, "--hidden-size", 64)
    assert results["valid_loss"] < 2.8


def test_sequence_classifier_tells_the_signals_apart(example):
    assert run(example, "sequence_classifier", "--steps", 300)["held_out_right"] > 0.9


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_sequence_classifier_reads_digits_with_either_loss(example, loss):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install '.[examples]'")
    assert (
        run(example, "sequence_classifier", "--data", "digits", "--loss", loss, "--steps", 700)["held_out_right"] > 0.9
    )


def test_three_layers_are_a_stack_and_learn_a_text(example):
    results = run(example, "three_layers", *TEXT, "--steps", 300, "--hidden-size", 64)
    assert results["difference_from_layers"] == 0.0 and results["loss"] < 3.1


def test_word_reader_reads_misspelt_words(example):
    results = run(example, "word_reader", *TEXT, "--words", 200, "--steps", 250, "--batch-size", 64)
    assert results["right"] > 0.8


def test_word_reader_has_the_kernels_of_256_units_a_direction(example):
    reader = example("word_reader").Reader(5068, np.random.default_rng(0))
    assert [cell.kernel.shape for cell in reader.lstm.cells] == [(272, 1024)] * 2


# --- how they answer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_an_example_shows(example, name, capsys):
    module = example(name)
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    assert module.__doc__.splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "six_lstm.py: argument --steps: must be a whole number of at least 1, got '0'"),
        (["--stepz", "9"], "six_lstm.py: unrecognized arguments: --stepz"),
        (["nowhere.txt"], "nowhere.txt does not exist"),
    ],
)
def test_a_wrong_option_is_answered_in_one_sentence(tmp_path, arguments, sentence):
    said = subprocess.run(
        [sys.executable, EXAMPLES / "six_lstm.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stderr.count("\n")) == (2, 1) and sentence in said.stderr


def test_digits_without_scikit_learn_say_how_to_install_it(example, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit):
        run(example, "sequence_classifier", "--data", "digits")
    assert "pip install scikit-learn" in capsys.readouterr().err


def test_readme_lists_every_example():
    readme = (EXAMPLES / "README.md").read_text()
    assert [name for name in NAMES if f"({name}.py)" not in readme] == []
