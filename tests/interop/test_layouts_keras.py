"""Weights of every Keras: activations that a file says or does not say, CuDNNLSTM, the twelve arrays of Keras 1.

Files of old versions are made here as those versions wrote them; what Keras 3 is installed for, it writes itself.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lstmfast as lf
from lstmfast import reference
from lstmfast.layouts import LSTMWeights, load, read, tensor_bundle, to_arrays
from support import tolerances

Array = npt.NDArray[Any]

IN, H = 3, 4


@pytest.fixture
def h5py() -> Any:
    return pytest.importorskip("h5py", reason="h5py is not installed: pip install '.[keras]'")


def write_h5(
    h5py: Any, path: Path, arrays: dict[str, Array], version: str | None = "2.1.6", config: Any = None
) -> Path:
    """An .h5 as Keras before 3 wrote it: of weights, or with a configuration of a whole model."""
    with h5py.File(path, "w") as file:
        if config is not None:
            file.attrs["model_config"] = json.dumps(config).encode()
        group = file.create_group("model_weights") if config is not None else file
        group.attrs["backend"] = b"tensorflow"
        if version is not None:
            group.attrs["keras_version"] = version.encode()
        for name, values in arrays.items():
            group[name] = values
    return path


def lstm_arrays(rng: np.random.Generator, layer: str = "lstm_1", rows: int = IN, units: int = H) -> dict[str, Array]:
    """The arrays of a layer by the names of Keras 2."""
    shapes = {"kernel": (rows, 4 * units), "recurrent_kernel": (units, 4 * units), "bias": (4 * units,)}
    return {f"{layer}/{layer}/{n}:0": rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def sequential(*layers: tuple[str, dict[str, Any]], bare: bool = False) -> dict[str, Any]:
    """The configuration of a Sequential; bare: before Keras 2.2.3, when it was a list."""
    found = [{"class_name": kind, "config": settings} for kind, settings in layers]
    return {"class_name": "Sequential", "config": found if bare else {"name": "sequential_1", "layers": found}}


PLAIN = {"name": "lstm_1", "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True,
         "unit_forget_bias": True, "implementation": 1, "go_backwards": False}


# --- activations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.2.2", "2.0.9", "2.1.6", "2.2.5", "2.2.4-tf", None])
def test_weights_of_an_old_keras_come_with_a_sentence_on_hard_sigmoid(
    version: str | None, h5py: Any, tmp_path: Path, rng: Any
) -> None:
    weights = load(write_h5(h5py, tmp_path / "w.h5", lstm_arrays(rng), version))
    [said] = [words for words in weights.assumptions if "hard_sigmoid" in words]
    assert "the recurrent_activation of lstm_1: assuming sigmoid" in said
    assert (f"Keras {version}" if version else "an unknown version of Keras") in said


@pytest.mark.parametrize("version", ["2.3.0", "2.3.1", "2.4.0", "2.11.0", "3.5.0"])
def test_weights_of_keras_since_2_3_need_no_sentence(version: str, h5py: Any, tmp_path: Path, rng: Any) -> None:
    assert load(write_h5(h5py, tmp_path / "w.h5", lstm_arrays(rng), version)).assumptions == ()


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("version", ["2.1.6", "2.2.4-tf"])
def test_a_whole_model_of_an_old_keras_says_what_it_has(
    version: str, bare: bool, h5py: Any, tmp_path: Path, rng: Any
) -> None:
    config = sequential(("LSTM", PLAIN), bare=bare)
    assert load(write_h5(h5py, tmp_path / "w.h5", lstm_arrays(rng), version, config)).assumptions == ()


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("LSTM", {"recurrent_activation": "hard_sigmoid"}, "lstm_1 has recurrent_activation='hard_sigmoid'"),
        ("LSTM", {"inner_activation": "hard_sigmoid"}, "lstm_1 has inner_activation='hard_sigmoid'"),
        ("LSTM", {"activation": "relu"}, "lstm_1 has activation='relu'"),
        ("LSTM", {"activation": {"class_name": "function", "config": "mine"}}, "lstm_1 has activation={"),
        ("LSTM", {"go_backwards": True}, "lstm_1 has go_backwards=True"),
        ("RNN", {"cell": {"class_name": "LSTMCell", "config": {"recurrent_activation": "hard_sigmoid"}}}, "lstm_1 has"),
        ("TimeDistributed", {"layer": {"class_name": "LSTM", "config": {"activation": "elu"}}}, "activation='elu'"),
        ("Bidirectional", {"layer": {"class_name": "LSTM", "config": {"activation": "elu"}}}, "activation='elu'"),
        (
            "Bidirectional",
            {
                "layer": {"class_name": "LSTM", "config": {}},
                "backward_layer": {"class_name": "LSTM", "config": {"activation": "elu", "go_backwards": True}},
            },
            "activation='elu'",
        ),
    ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_a_whole_model_with_other_settings_is_refused(
    kind: str, settings: dict[str, Any], words: str, bare: bool, h5py: Any, tmp_path: Path, rng: Any
) -> None:
    config = sequential((kind, {"name": "lstm_1", **settings}), bare=bare)
    path = write_h5(h5py, tmp_path / "w.h5", lstm_arrays(rng), "2.1.6", config)
    with pytest.raises(ValueError, match=words):
        load(path)


def test_a_layout_that_is_named_does_not_make_other_settings_good(h5py: Any, tmp_path: Path, rng: Any) -> None:
    config = sequential(("LSTM", {**PLAIN, "recurrent_activation": "hard_sigmoid"}))
    path = write_h5(h5py, tmp_path / "w.h5", lstm_arrays(rng), "2.1.6", config)
    with pytest.raises(ValueError, match="recurrent_activation='hard_sigmoid'"):
        load(path, layout="keras")
    path = write_h5(h5py, tmp_path / "v.h5", lstm_arrays(rng), "2.1.6")
    assert "hard_sigmoid" in load(path, layout="keras").assumptions[0]


def test_of_two_models_with_a_layer_of_the_same_name_the_settings_of_both_count(
    h5py: Any, tmp_path: Path, rng: Any
) -> None:
    inner = [sequential(("LSTM", {**PLAIN, "activation": each}))["config"] for each in ("tanh", "relu")]
    config = sequential(*(("Sequential", {**each, "name": f"part_{k}"}) for k, each in enumerate(inner)))
    arrays = {f"part_1/{name}": values for name, values in lstm_arrays(rng).items()}
    with pytest.raises(ValueError, match="activation='relu'"):
        load(write_h5(h5py, tmp_path / "w.h5", arrays, "2.1.6", config))


def test_a_layer_of_a_class_of_its_program_is_named(h5py: Any, tmp_path: Path, rng: Any) -> None:
    config = sequential(("Custom>ZoneoutLSTM", PLAIN))
    weights = load(write_h5(h5py, tmp_path / "w.h5", lstm_arrays(rng), "2.9.0", config))
    assert weights.assumptions == (
        "lstm_1 is a Custom>ZoneoutLSTM, a custom class, or is inside one: assuming it computes what Keras' LSTM "
        "does.",
    )


def test_a_layer_that_the_configuration_does_not_name_is_said_to_be_assumed(
    h5py: Any, tmp_path: Path, rng: Any
) -> None:
    config = sequential(("Encoder", {"name": "encoder", "units": 4}))
    weights = load(write_h5(h5py, tmp_path / "w.h5", lstm_arrays(rng), "2.9.0", config))
    assert weights.assumptions == ("The file's settings do not mention lstm_1: assuming tanh and sigmoid.",)


def test_layers_of_a_sequential_with_another_between_are_two_lstms(h5py: Any, tmp_path: Path, rng: Any) -> None:
    arrays = {**lstm_arrays(rng), **lstm_arrays(rng, "lstm_2", H)}
    second = {**PLAIN, "name": "lstm_2"}
    for between, count in ((("Dense", {"name": "dense_1"}), 2), (("Dropout", {"name": "dropout_1"}), 1)):
        path = write_h5(
            h5py, tmp_path / f"{count}.h5", arrays, "2.1.6", sequential(("LSTM", PLAIN), between, ("LSTM", second))
        )
        assert len(read(path).lstms) == count


def test_a_file_of_weights_that_names_its_layers_in_order_tells_what_stands_between(
    h5py: Any, tmp_path: Path, rng: Any
) -> None:
    arrays = {**lstm_arrays(rng), **lstm_arrays(rng, "lstm_2", H)}
    for between, count in (("dense_1", 2), ("activation_1", 2), ("dropout_1", 1), ("spatial_dropout1d", 1)):
        path = write_h5(h5py, tmp_path / f"{between}.h5", arrays)
        with h5py.File(path, "a") as file:
            file.attrs["layer_names"] = [b"lstm_1", between.encode(), b"lstm_2"]
        assert len(read(path).lstms) == count
        assert "hard_sigmoid" in read(path).lstms[0].notes[0]


@pytest.mark.parametrize("wrapper", ["weight_normalization", "spectral_normalization_1"])
def test_a_layer_within_a_wrapper_that_normalizes_is_refused(wrapper: str, tmp_path: Path, rng: Any) -> None:
    np.savez(tmp_path / "w.npz", **{f"{wrapper}/{name}": values for name, values in lstm_arrays(rng).items()})
    with pytest.raises(ValueError, match=f"is inside {wrapper}, by its name a wrapper that changes its kernels"):
        load(tmp_path / "w.npz")


def test_a_checkpoint_of_tensorflow_1_with_a_layer_of_keras_is_said_to_hold_no_activations(
    tmp_path: Path, rng: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {name.removesuffix(":0"): values for name, values in lstm_arrays(rng, "lstm").items()}
    monkeypatch.setattr(tensor_bundle, "read", lambda index: (arrays, []))
    files = Path(__file__).parent / "files"
    assert "TensorFlow 1 used tanh and hard_sigmoid" in load(files / "tf1-2").assumptions[0]


# --- CuDNNLSTM --------------------------------------------------------------------------------------------------------


def cudnn_arrays(rng: np.random.Generator, rows: int = IN) -> tuple[dict[str, Array], Array, Array, Array]:
    """What Keras 2 keeps of a CuDNNLSTM, and the kernels and the bias of an LSTM that computes the same.

    Each gate's block has in memory cuDNN's matrix [H, rows]; there are two biases, one behind the other.
    """
    blocks = [rng.standard_normal((H, rows)).astype(np.float32) for _ in range(4)]
    recurrent = [rng.standard_normal((H, H)).astype(np.float32) for _ in range(4)]
    biases = rng.standard_normal((2, 4 * H)).astype(np.float32)
    kept = {
        "kernel:0": np.concatenate([block.reshape(rows, H) for block in blocks], axis=1),
        "recurrent_kernel:0": np.concatenate([block.reshape(H, H) for block in recurrent], axis=1),
        "bias:0": biases.reshape(-1),
    }
    kernels = [np.concatenate([block.T for block in each], axis=1) for each in (blocks, recurrent)]
    return kept, kernels[0], kernels[1], biases


@pytest.mark.parametrize("scope", ["cu_dnnlstm_1/cu_dnnlstm_1/", "cu_dnnlstm/", "model_weights/rnn/rnn/"])
def test_weights_of_a_cudnn_lstm_are_put_in_the_order_of_an_lstm(scope: str, tmp_path: Path, rng: Any) -> None:
    kept, kernel, recurrent, biases = cudnn_arrays(rng)
    np.savez(tmp_path / "w.npz", **{scope + name: values for name, values in kept.items()})
    [cell] = load(tmp_path / "w.npz").cells
    assert_array_equal(cell.kernel, np.concatenate([kernel, recurrent]))
    assert_array_equal(np.stack([cell.bias, cell.recurrent_bias]), biases)  # type: ignore[arg-type]


def test_cudnn_lstms_stack_and_have_two_directions(tmp_path: Path, rng: Any) -> None:
    arrays = {}
    for layer, rows in (("bidirectional_1", IN), ("bidirectional_2", 2 * H)):
        for direction in ("forward", "backward"):
            kept = cudnn_arrays(rng, rows)[0]
            arrays |= {f"{layer}/{direction}_cu_dnnlstm/{name}": values for name, values in kept.items()}
    np.savez(tmp_path / "w.npz", **arrays)
    weights = load(tmp_path / "w.npz")
    assert (weights.num_layers, weights.bidirectional, weights.input_size) == (2, True, IN)


def test_of_a_cudnn_lstm_nothing_is_said_of_activations(h5py: Any, tmp_path: Path, rng: Any) -> None:
    arrays = {f"cu_dnnlstm_1/cu_dnnlstm_1/{name}": values for name, values in cudnn_arrays(rng)[0].items()}
    assert load(write_h5(h5py, tmp_path / "w.h5", arrays, "2.1.6")).assumptions == ()


def test_a_cudnn_lstm_and_an_lstm_are_not_one_stack(tmp_path: Path, rng: Any) -> None:
    arrays = {f"rnn_1/{name}": values for name, values in cudnn_arrays(rng)[0].items()}
    arrays |= {name.replace("rnn_2/rnn_2", "rnn_2"): v for name, v in lstm_arrays(rng, "rnn_2", H).items()}
    np.savez(tmp_path / "w.npz", **arrays)
    assert [each.arrays.layout for each in read(tmp_path / "w.npz").lstms] == ["keras-cudnn", "keras"]


# --- Keras 1 ----------------------------------------------------------------------------------------------------------


def keras1_arrays(rng: np.random.Generator, layer: str, rows: int = IN) -> dict[str, Array]:
    """The twelve arrays of a layer of Keras 1, in the order in which it kept them: i, c, f, o."""
    return {
        f"{layer}_{part}_{gate}": rng.standard_normal(shape).astype(np.float32)
        for gate in "icfo"
        for part, shape in (("W", (rows, H)), ("U", (H, H)), ("b", (H,)))
    }


def keras1_output(arrays: dict[str, Array], layer: str, x: Array) -> Array:
    """h of every step by the equations of Keras 1, whose gates have sigmoid."""
    h, c = np.zeros((2, x.shape[1], H))
    outputs = []
    for step in x.astype(np.float64):
        z = {
            g: step @ arrays[f"{layer}_W_{g}"] + h @ arrays[f"{layer}_U_{g}"] + arrays[f"{layer}_b_{g}"] for g in "icfo"
        }
        i, f, o = (reference.sigmoid(z[g]) for g in "ifo")
        c = f * c + i * np.tanh(z["c"])
        h = o * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


@pytest.mark.parametrize("scope", ["lstm_1/", "", "encoder/lstm_1/"])
@pytest.mark.parametrize("end", ["", ":0"])
def test_the_twelve_arrays_of_keras_1_are_read(scope: str, end: str, tmp_path: Path, rng: Any) -> None:
    arrays = keras1_arrays(rng, "lstm_1")
    np.savez(tmp_path / "w.npz", **{f"{scope}{name}{end}": values for name, values in arrays.items()})
    x = rng.standard_normal((7, 2, IN)).astype(np.float32)
    got = load(tmp_path / "w.npz").to_layer()(x)[0]
    assert_allclose(got, keras1_output(arrays, "lstm_1", x), **tolerances.states(np.float32, IN + H))


def test_keras_1_is_said_to_have_had_hard_sigmoid(tmp_path: Path, rng: Any) -> None:
    np.savez(tmp_path / "w.npz", **{f"lstm_1/{name}": v for name, v in keras1_arrays(rng, "lstm_1").items()})
    assert load(tmp_path / "w.npz").assumptions == (
        "The file does not give the inner_activation of lstm_1: assuming sigmoid; the default of Keras 1 was "
        "hard_sigmoid.",
    )


@pytest.mark.parametrize(("activation", "words"), [("sigmoid", None), ("hard_sigmoid", "inner_activation='hard_si")])
def test_a_whole_model_of_keras_1_says_its_inner_activation(
    activation: str, words: str | None, h5py: Any, tmp_path: Path, rng: Any
) -> None:
    config = sequential(("LSTM", {"name": "lstm_1", "inner_activation": activation, "activation": "tanh"}), bare=True)
    arrays = {f"lstm_1/{name}": values for name, values in keras1_arrays(rng, "lstm_1").items()}
    path = write_h5(h5py, tmp_path / "w.h5", arrays, None, config)
    if words is None:
        assert load(path).assumptions == ()
    else:
        with pytest.raises(ValueError, match=words):
            load(path)


def test_both_directions_of_keras_1_are_one_layer(tmp_path: Path, rng: Any) -> None:
    forward, backward = (keras1_arrays(rng, f"{each}_lstm_1") for each in ("forward", "backward"))
    np.savez(tmp_path / "w.npz", **{f"bidirectional_1/{name}": v for name, v in {**backward, **forward}.items()})
    weights = load(tmp_path / "w.npz")
    assert_array_equal(weights.layers[0][0].kernel[:IN, :H], forward["forward_lstm_1_W_i"])
    assert_array_equal(weights.layers[0][1].kernel[:IN, :H], backward["backward_lstm_1_W_i"])


def test_layers_of_keras_1_that_fit_are_a_stack(tmp_path: Path, rng: Any) -> None:
    arrays = {
        f"lstm_{k}/{n}": v for k in (1, 2) for n, v in keras1_arrays(rng, f"lstm_{k}", IN if k == 1 else H).items()
    }
    np.savez(tmp_path / "w.npz", **arrays)
    assert load(tmp_path / "w.npz").num_layers == 2


def test_the_three_arrays_of_keras_1_with_consume_less_gpu_lie_like_those_of_keras_2(tmp_path: Path, rng: Any) -> None:
    arrays = {"W": (IN, 4 * H), "U": (H, 4 * H), "b": (4 * H,)}
    arrays = {f"lstm_1/lstm_1_{n}": rng.standard_normal(s).astype(np.float32) for n, s in arrays.items()}  # type: ignore[misc]
    np.savez(tmp_path / "w.npz", **arrays)
    assert_array_equal(load(tmp_path / "w.npz").cells[0].kernel[:IN], arrays["lstm_1/lstm_1_W"])


def test_layers_of_keras_1_with_one_name_in_two_groups_are_two(tmp_path: Path, rng: Any) -> None:
    np.savez(tmp_path / "w.npz", **{f"{g}/{n}": v for g in "ab" for n, v in keras1_arrays(rng, "lstm_1").items()})
    assert [each.name for each in read(tmp_path / "w.npz").lstms] == ["b/lstm_1", "lstm_1"]


@pytest.mark.parametrize("gates", ["zrh", "ifc"])
def test_a_gru_of_keras_1_is_no_lstm(gates: str, tmp_path: Path, rng: Any) -> None:
    arrays = {
        f"gru_1/gru_1_{p}_{g}": np.ones(s) for g in gates for p, s in (("W", (IN, H)), ("U", (H, H)), ("b", (H,)))
    }
    np.savez(tmp_path / "w.npz", **arrays)
    assert read(tmp_path / "w.npz").lstms == ()


def test_arrays_of_a_file_that_only_looks_like_that_of_keras_are_read(h5py: Any, tmp_path: Path, rng: Any) -> None:
    for number, name in enumerate(("layers", "layers/0", "layers/0/layers")):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file[name] = np.ones(3)
            file["lstm/kernel"], file["lstm/recurrent_kernel"] = np.ones((3, 16)), np.ones((4, 16))
        assert load(tmp_path / f"{number}.h5").hidden_size == 4


def test_settings_count_where_the_group_of_layers_has_its_old_name(h5py: Any, tmp_path: Path, rng: Any) -> None:
    """Which is what TensorFlow 2.12 wrote, without the layers' own names."""
    layers = [("LSTM", {**PLAIN, "name": "a"}), ("LSTM", {**PLAIN, "name": "b", "activation": "relu"})]
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        for path in ("lstm", "lstm_1"):
            for number, values in enumerate(lstm_arrays(rng, path).values()):
                file[f"_layer_checkpoint_dependencies/{path}/cell/vars/{number}"] = values
    with zipfile.ZipFile(tmp_path / "w.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(sequential(*layers)))
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
    differs = {each.name: each.differs for each in read(tmp_path / "w.keras").lstms}
    assert differs == {"lstm": (), "lstm_1": ("lstm_1 has activation='relu'; an LSTM here has 'tanh'",)}


# --- Keras 3 writes itself --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras() -> Any:
    import importlib.util
    import os

    installed = [name for name in ("torch", "jax", "tensorflow") if importlib.util.find_spec(name)]
    if not installed:
        pytest.skip("Keras has none of its backends here: torch, jax, tensorflow")
    os.environ.setdefault("KERAS_BACKEND", installed[0])
    pytest.importorskip("h5py", reason="h5py is not installed: pip install '.[keras]'")
    return pytest.importorskip("keras", minversion="3", reason="Keras 3 is not installed: pip install '.[keras]'")


FILES = ["w.keras", "w.weights.h5", "w.h5"]


def saved(model: Any, path: Path) -> Path:
    (model.save_weights if path.name == "w.weights.h5" else model.save)(path)
    return path


def norm_cell(keras: Any) -> Any:
    """A class of LSTM cells with a norm within, as programs write them."""

    class NormCell(keras.layers.LSTMCell):  # type: ignore[misc, name-defined]
        def __init__(self, units: int, **options: Any) -> None:
            super().__init__(units, **options)
            self.norm = keras.layers.LayerNormalization(name="norm")

        def build(self, shape: Any) -> None:
            super().build(shape)
            self.norm.build((None, self.units))

        def call(self, inputs: Any, states: Any, training: bool = False) -> Any:
            h, states = super().call(inputs, states, training=training)
            return self.norm(h), states

    return NormCell


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", FILES)
def test_a_cell_of_keras_with_a_norm_is_refused_by_its_variables(file: str, keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((None, IN)), keras.layers.RNN(norm_cell(keras)(H))])
    with pytest.raises(ValueError, match=r"has variables that no cell of keras has: \S*norm"):
        load(saved(model, tmp_path / file))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("inner", [True, False])
def test_a_class_of_a_program_with_the_variables_of_an_lstm_is_named(
    inner: bool, file: str, keras: Any, tmp_path: Path
) -> None:
    class Zoneout(keras.layers.LSTM):  # type: ignore[misc, name-defined]
        pass

    model = keras.Sequential([keras.Input((None, IN)), Zoneout(H)])
    if inner:
        model = keras.Sequential([keras.Input((None, IN)), model])
    words = load(saved(model, tmp_path / file)).assumptions[0]
    assert words.lower().partition(" is a ")[2].startswith("zoneout, a custom class")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", FILES)
def test_an_lstm_of_keras_with_dropout_is_read_without_the_states_of_its_generators(
    file: str, keras: Any, tmp_path: Path, rng: Any
) -> None:
    given = keras.layers.LSTM(H, dropout=0.2, recurrent_dropout=0.1, return_sequences=True)
    model = keras.Sequential([keras.Input((None, IN)), given])
    x = rng.standard_normal((2, 5, IN)).astype(np.float32)
    got = load(saved(model, tmp_path / file)).to_layer()(np.ascontiguousarray(x.swapaxes(0, 1)))[0].swapaxes(0, 1)
    expected = keras.ops.convert_to_numpy(model(x))
    assert_allclose(got, expected, **tolerances.states(np.float32, IN + H))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["w.keras", "w.h5"])
def test_settings_of_a_model_within_a_model_count(file: str, keras: Any, tmp_path: Path) -> None:
    """Both have an LSTM that their paths call lstm; one of them has another activation."""
    layers = keras.layers
    inner = keras.Sequential([keras.Input((None, H)), layers.LSTM(5, activation="relu", name="b")], name="inner")
    outer = keras.Sequential([keras.Input((None, IN)), layers.LSTM(H, return_sequences=True, name="a"), inner])
    differs = {each.name: each.differs for each in read(saved(outer, tmp_path / file)).lstms}
    assert sorted(words[0].partition(" has ")[2] if words else "" for words in differs.values()) == [
        "", "activation='relu'; an LSTM here has 'tanh'",
    ]


def test_layouts_of_keras_1_and_of_cudnn_come_back_from_files(tmp_path: Path, rng: Any) -> None:
    layer = lf.LSTM(IN, H, num_layers=2, bidirectional=True, forget_bias=0.0, rng=rng)
    for name in ("keras-1", "keras-cudnn"):
        arrays = to_arrays(LSTMWeights.from_layer(layer), name)
        np.savez(tmp_path / "w.npz", **arrays)
        [found] = read(tmp_path / "w.npz").lstms
        assert (found.arrays.layout, found.weights().num_layers) == (name, 2)
        assert_array_equal(found.weights().to_layer().parameter_buffer, layer.parameter_buffer)
