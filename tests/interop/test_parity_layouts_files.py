"""Files that Keras and TensorFlow write, read without them: their LSTMs give the same numbers in a layer of ours.

Runs where Keras is installed with one of its backends, and TensorFlow with tf-keras for checkpoints of TensorFlow 1's
real cells, which a process of its own writes: it must choose the old Keras before it imports anything.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lstmfast as lf
from lstmfast.layouts import load, read, to_arrays
from support import parity, tolerances

Array = npt.NDArray[Any]

BATCH, TIME_STEPS = 3, 10
BOUND = tolerances.PARITY["float32", 10]


def outputs(layer: lf.LSTM, x: Array) -> Array:
    """The outputs of a layer for x [batch, time_steps, ...], in that order too."""
    return layer(np.ascontiguousarray(x.swapaxes(0, 1)))[0].swapaxes(0, 1)


# --- Keras ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras() -> Any:
    installed = [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]
    if not installed:
        pytest.skip("Keras has none of its backends here: tensorflow, jax, torch")
    os.environ.setdefault("KERAS_BACKEND", installed[0])
    pytest.importorskip("h5py", reason="h5py is not installed: pip install '.[keras]'")
    return pytest.importorskip("keras", minversion="3", reason="Keras 3 is not installed: pip install '.[keras]'")


@pytest.fixture(scope="module")
def model(keras: Any) -> Any:
    """Two layers with dropout between, both directions, cells stacked in one layer, a GRU, a dense layer."""
    keras.utils.clear_session()  # names of layers are counted from here on
    layers = keras.layers
    given = {"return_sequences": True, "bias_initializer": "random_normal"}
    cells = [layers.LSTMCell(4, bias_initializer="random_normal") for _ in range(2)]
    model = keras.Sequential(
        [
            keras.Input((TIME_STEPS, 3)),
            layers.LSTM(4, name="low", **given),
            layers.Dropout(0.5),
            layers.LSTM(4, name="high", **given),
            layers.Bidirectional(layers.LSTM(5, **given), name="both"),
            layers.RNN(layers.StackedRNNCells(cells), return_sequences=True, name="stacked"),
            layers.GRU(4),
            layers.Dense(2),
        ]
    )
    model.compile("adam", "mse")
    return model


def names_in(path: Path) -> dict[str, str]:
    """What the layers are called in a file: .h5 keeps a program's names, the others count the layers of a kind."""
    if path.name == "w.h5":
        return {"low": "low", "high": "high", "both": "both", "stacked": "stacked/stacked_rnn_cells"}
    return {"low": "lstm", "high": "lstm_1", "both": "bidirectional", "stacked": "rnn/cells"}


@pytest.mark.parametrize("file", ["w.keras", "w.weights.h5", "w.h5"])
def test_every_lstm_of_a_keras_file_gives_the_numbers_of_its_layer(
    file: str, keras: Any, model: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    (model.save_weights if file == "w.weights.h5" else model.save)(tmp_path / file)
    found = {each.name: each.weights().to_layer() for each in read(tmp_path / file).lstms}
    names = names_in(tmp_path / file)
    groups = [["both"], ["stacked"]] + ([["low"], ["high"]] if file == "w.h5" else [["low", "high"]])
    expected_names = {
        ", ".join([names[each] for each in group] + ([f"{names['stacked']}_1"] if group == ["stacked"] else []))
        for group in groups
    }
    assert set(found) == expected_names
    for group in groups:
        [layer] = [layer for name, layer in found.items() if name.split(", ")[0] == names[group[0]]]
        x = rng.standard_normal((BATCH, TIME_STEPS, layer.input_size)).astype(np.float32)
        y: Any = x
        for name in group:
            y = model.get_layer(name)(y)
        assert parity.distance(outputs(layer, x), keras.ops.convert_to_numpy(y)) <= BOUND


def test_a_keras_layer_with_another_activation_is_refused(keras: Any, tmp_path: Path) -> None:
    given = keras.layers.LSTM(4, recurrent_activation="hard_sigmoid")
    keras.Sequential([keras.Input((None, 3)), given]).save(tmp_path / "w.keras")
    with pytest.raises(ValueError, match="recurrent_activation='hard_sigmoid'; an LSTM here has 'sigmoid'"):
        load(tmp_path / "w.keras")


# --- TensorFlow 1 -----------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.src.layers.rnn import legacy_cells as cells

v1 = tf.compat.v1
folder, xs = sys.argv[1], np.load(sys.argv[1] + "/x.npy")
with tf.Graph().as_default():
    v1.set_random_seed(1)
    v1.get_variable_scope().set_initializer(v1.random_normal_initializer(stddev=0.5))
    x = v1.placeholder(tf.float32, [None, None, 3])
    with v1.variable_scope("model"):
        stack = cells.MultiRNNCell([cells.BasicLSTMCell(4), cells.BasicLSTMCell(4)])
        y, _ = v1.nn.dynamic_rnn(stack, x, dtype=tf.float32)
    with v1.variable_scope("both"):
        forward, reverse = cells.BasicLSTMCell(5), cells.BasicLSTMCell(5)
        z, _ = v1.nn.bidirectional_dynamic_rnn(forward, reverse, x, dtype=tf.float32)
    with v1.variable_scope("wide"):
        cell = cells.LSTMCell(4, use_peepholes=True, num_proj=2, forget_bias=0.5)
        w, _ = v1.nn.dynamic_rnn(cell, x, dtype=tf.float32)
    step = v1.get_variable("global_step", [], tf.int64, initializer=v1.zeros_initializer())
    v1.train.AdamOptimizer().minimize(tf.reduce_sum(y), var_list=v1.trainable_variables()[:2])
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, folder + "/run/model", step)
        names = [variable.op.name for variable in v1.global_variables()]
        values = session.run(dict(zip(names, v1.global_variables())))
        y, z, w = session.run([y, tf.concat(z, -1), w], {x: xs})
np.savez(folder + "/variables.npz", **values)

layers = tf_keras.layers
given = {"return_sequences": True, "bias_initializer": "random_normal"}
model = tf_keras.Sequential([tf_keras.Input((None, 3)), layers.LSTM(4, **given), layers.LSTM(4, **given)])
model.add(layers.Bidirectional(layers.LSTM(5, **given)))
model.save(folder + "/old.h5")
model.save_weights(folder + "/old_weights.h5")
model.save_weights(folder + "/objects/model")
model.save(folder + "/saved")
tf.train.Checkpoint(net=model).save(folder + "/inner/model")
low = model.layers[1](model.layers[0](xs))
both = model.layers[2](low)

# The loader's own conversions, of CuDNNLSTM and of Keras 1, which no computer here runs.
from tf_keras.src.saving.legacy.hdf5_format import preprocess_weights_for_loading as as_lstm

random = np.random.default_rng(1)
def arrays_of(*shapes):
    return [random.standard_normal(shape).astype("f") for shape in shapes]
lone = layers.LSTM(4)
cudnn = arrays_of((3, 16), (4, 16), (32,))
first = arrays_of(*[(3, 4), (4, 4), (4,)] * 4)
np.savez(folder + "/cudnn.npz", **dict(zip(["cu_dnnlstm/" + n for n in ("kernel", "recurrent_kernel", "bias")], cudnn)))
np.savez(folder + "/first.npz", **dict(zip([f"lstm_1_{p}_{g}" for g in "icfo" for p in "WUb"], first)))
np.savez(folder + "/as_lstm.npz", cudnn=np.concatenate([w.ravel() for w in as_lstm(lone, cudnn, "2")]),
         first=np.concatenate([w.ravel() for w in as_lstm(lone, first, "1")]))

outputs = {"model/rnn": y, "both": z, "wide/rnn": w, "lstm, lstm_1": low, "bidirectional": both, "low": low}
np.savez(folder + "/outputs.npz", **outputs)
"""


@pytest.fixture(scope="module")
def tf1_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with x.npy, run/ (the checkpoint), and what TensorFlow says the variables and outputs are."""
    for module in ("tensorflow", "tf_keras"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    folder = tmp_path_factory.mktemp("tf1")
    x = np.random.default_rng(0).standard_normal((BATCH, TIME_STEPS, 3)).astype(np.float32)
    np.save(folder / "x.npy", x)
    (folder / "run").mkdir()
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_variable_of_a_checkpoint_has_the_bits_that_tensorflow_says(tf1_run: Path) -> None:
    arrays = read(tf1_run / "run").arrays
    expected = np.load(tf1_run / "variables.npz")
    assert {name: (v.dtype, v.shape, v.tobytes()) for name, v in arrays.items()} == {
        name: (expected[name].dtype, expected[name].shape, expected[name].tobytes()) for name in expected.files
    }


@pytest.mark.parametrize(("name", "forget_bias"), [("model/rnn", None), ("both", 1.0), ("wide/rnn", 0.5)])
def test_cells_of_a_checkpoint_give_the_numbers_of_tensorflow(
    tf1_run: Path, name: str, forget_bias: float | None
) -> None:
    layer = load(tf1_run / "run", name=name, forget_bias=forget_bias).to_layer()
    expected = np.load(tf1_run / "outputs.npz")[name]
    assert parity.distance(outputs(layer, np.load(tf1_run / "x.npy")), expected) <= BOUND


@pytest.mark.parametrize("file", ["old.h5", "old_weights.h5"])
def test_layers_of_an_old_keras_file_give_its_numbers(tf1_run: Path, file: str) -> None:
    expected = np.load(tf1_run / "outputs.npz")
    for name, x in {"lstm, lstm_1": np.load(tf1_run / "x.npy"), "bidirectional": expected["low"]}.items():
        layer = load(tf1_run / file, name=name).to_layer()
        assert parity.distance(outputs(layer, x), expected[name]) <= BOUND


@pytest.mark.parametrize(("path", "names"), [
    ("objects", ["layer_with_weights-0", "layer_with_weights-1", "layer_with_weights-2"]),
    ("inner", [f"net/layer_with_weights-{k}" for k in range(3)]),
    ("saved", ["lstm, lstm_1", "bidirectional"]),
])
def test_layers_of_what_tensorflow_2_saves_give_its_numbers(tf1_run: Path, path: str, names: list[str]) -> None:
    expected, y = np.load(tf1_run / "outputs.npz"), np.load(tf1_run / "x.npy")
    for name in names:
        y = outputs(load(tf1_run / path, name=name).to_layer(), y)
    assert parity.distance(y, expected["bidirectional"]) <= BOUND


@pytest.mark.parametrize("kind", ["cudnn", "first"])
def test_weights_of_older_layers_are_those_that_keras_converts_them_to(tf1_run: Path, kind: str) -> None:
    arrays = to_arrays(load(tf1_run / f"{kind}.npz"), "keras")
    assert np.array_equal(
        np.concatenate([each.ravel() for each in arrays.values()]), np.load(tf1_run / "as_lstm.npz")[kind]
    )
