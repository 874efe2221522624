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
import threading
import wave
from importlib.metadata import distributions
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


def test_data_parallel_learns_a_text(example):
    assert run(example, "data_parallel", *TEXT, "--steps", 300)["loss"] < 2.4


def test_three_layers_are_a_stack_and_learn_a_text(example):
    results = run(example, "three_layers", *TEXT, "--steps", 300, "--hidden-size", 64)
    assert results["difference_from_layers"] == 0.0 and results["loss"] < 3.1


def test_word_reader_reads_misspelt_words(example):
    results = run(example, "word_reader", *TEXT, "--words", 200, "--steps", 250, "--batch-size", 64)
    assert results["right"] > 0.8


def test_word_reader_has_the_kernels_of_256_units_a_direction(example):
    reader = example("word_reader").Reader(5068, np.random.default_rng(0))
    assert [cell.kernel.shape for cell in reader.lstm.cells] == [(272, 1024)] * 2


def test_adding_problem_is_solved(example):
    results = run(example, "adding_problem", "--time-steps", 200, "--steps", 1000)
    assert results["error"] < 0.01


def test_adding_problem_is_not_solved_with_plain_biases(example):
    results = run(example, "adding_problem", "--time-steps", 200, "--steps", 500, "--plain")
    assert results["error"] > 0.1


@pytest.fixture
def chorales(tmp_path, rng):
    """A file like JSB_Chorales.mat: scales of different length, each note with the fifth above it."""
    scipy_io = pytest.importorskip("scipy.io", reason="SciPy is not installed: pip install '.[examples]'")
    parts = {}
    for name, count in {"traindata": 24, "validdata": 8, "testdata": 8}.items():
        parts[name] = np.empty((1, count), object)
        for k in range(count):
            notes = 30 + (rng.integers(12) + 2 * np.arange(rng.integers(5, 30))) % 24
            parts[name][0, k] = np.zeros((len(notes), 88), "uint8")
            parts[name][0, k][np.arange(len(notes))[:, None], notes[:, None] + [0, 7]] = 1
    scipy_io.savemat(tmp_path / "pieces.mat", parts)
    return tmp_path / "pieces.mat"


def test_chorales_of_different_length_are_learnt(example, chorales):
    results = run(example, "bach_chorales", chorales, "--steps", 300, "--hidden-size", 64)
    assert results["test"] < 2  # about 8 where keys are as frequent as they are, but nothing else is known


def test_sigmoid_cross_entropy_of_the_chorales_has_its_derivative(example, rng):
    loss = example("bach_chorales").sigmoid_cross_entropy
    logits, targets = rng.standard_normal((5, 3, 4)), rng.integers(0, 2, (5, 3, 4))
    lengths, direction = np.array([5, 0, 3]), rng.standard_normal((5, 3, 4))
    above, below = (loss(logits + step * direction, targets, lengths)[0] for step in (1e-6, -1e-6))
    assert (above - below) / 2e-6 == pytest.approx(np.vdot(loss(logits, targets, lengths)[1], direction), rel=1e-6)


@pytest.fixture
def voice(example, tmp_path, rng):
    """The voice-activity example and its model with random weights, under the names of the package's file."""
    from safetensors.numpy import save_file

    shapes = {
        "stft_conv.weight": (258, 1, 256), "final_conv.weight": (1, 128, 1), "final_conv.bias": (1,),
        "lstm_cell.weight_ih": (512, 128), "lstm_cell.weight_hh": (512, 128), "lstm_cell.bias_ih": (512,),
        "lstm_cell.bias_hh": (512,),
    }
    for k, (outputs, inputs) in enumerate([(128, 129), (64, 128), (64, 64), (128, 64)], 1):
        shapes |= {f"conv{k}.weight": (outputs, inputs, 3), f"conv{k}.bias": (outputs,)}
    weights = {name: 0.1 * rng.standard_normal(shape, "float32") for name, shape in shapes.items()}
    save_file(weights, tmp_path / "voice.safetensors")
    module = example("silero_vad")
    return module, module.VoiceActivity(tmp_path / "voice.safetensors")


def test_a_stream_cut_between_chunks_equals_the_whole(voice, rng):
    module, model = voice
    audio = rng.standard_normal((3, 40 * module.CHUNK), "float32")
    first, state = model(audio[:, : 7 * module.CHUNK])
    parts = np.hstack([first, model(audio[:, 7 * module.CHUNK :], state)[0]])
    np.testing.assert_allclose(parts, model(audio)[0], atol=1e-5)


def test_convolution_over_places_is_that_of_its_definition(voice, rng):
    x, kernel = rng.standard_normal((2, 4, 5)), rng.standard_normal((3, 5, 6))
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    every = np.stack([np.einsum("rti,tio->ro", padded[:, k : k + 3], kernel) for k in range(4)], axis=1)
    for stride in (1, 2):
        np.testing.assert_allclose(voice[0].convolve(x, kernel, stride), every[:, ::stride])


def test_whole_recordings_let_other_threads_run(voice, rng, monkeypatch):
    module, model = voice
    audio, begun, done = rng.standard_normal((1, 500 * module.CHUNK), "float32"), threading.Event(), threading.Event()

    def work():
        begun.set()
        model(audio)
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # seconds: only a call that releases the lock lets this thread continue
    try:
        worker = threading.Thread(target=work)
        worker.start()
        begun.wait()
        ran_meanwhile = not done.is_set()
        worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert ran_meanwhile


def test_voice_activity_equals_onnx_runtime_on_the_published_model(example):
    reason = "is not installed: pip install onnx onnxruntime; pip install --no-deps 'silero-vad>=6.2.3'"
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} {reason}")
    if not list(distributions(name="silero-vad")):
        pytest.skip(f"silero-vad {reason}")
    results = run(example, "silero_vad", "--seconds", 4, "--streams", 2, "--runs", 1)
    assert results["difference"] < 1e-5 and 0.3 < results["speech"] < 0.6


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
    assert sentence in one_sentence("six_lstm", tmp_path, *arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.wav"], "nowhere.wav: No such file or directory"),
        (["text.wav"], "text.wav is not a WAV file of whole numbers: file does not start with RIFF id"),
        (["slow.wav"], "slow.wav must have 16 bits and a multiple of 16,000 samples a second, got 16 and 8,000"),
        (["--weights", "text.safetensors"], "text.safetensors is not a safetensors file"),
    ],
)
def test_a_wrong_recording_is_answered_in_one_sentence(tmp_path, arguments, sentence):
    for name in ("text.wav", "text.safetensors"):
        (tmp_path / name).write_text("Not sound at all.")
    with wave.open(str(tmp_path / "slow.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2000))
    assert sentence in one_sentence("silero_vad", tmp_path, *arguments)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("nowhere.mat", "nowhere.mat: No such file or directory"), ("text.mat", "text.mat is not JSB_Chorales.mat")],
)
def test_a_wrong_file_of_chorales_is_answered_in_one_sentence(tmp_path, path, sentence):
    pytest.importorskip("scipy.io", reason="SciPy is not installed: pip install '.[examples]'")
    (tmp_path / "text.mat").write_text("No music at all. " * 20)
    assert sentence in one_sentence("bach_chorales", tmp_path, path)


def one_sentence(name, tmp_path, *arguments):
    """What an example says on standard error before it exits with status 2."""
    said = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    return said.stderr


def test_digits_without_scikit_learn_say_how_to_install_it(example, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit):
        run(example, "sequence_classifier", "--data", "digits")
    assert "pip install scikit-learn" in capsys.readouterr().err


def test_readme_lists_every_example():
    readme = (EXAMPLES / "README.md").read_text()
    assert [name for name in NAMES if f"({name}.py)" not in readme] == []
