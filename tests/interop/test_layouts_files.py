"""Weights out of real files: what they hold, which LSTMs are in them, and what is refused, in one sentence.

Files are written by the libraries themselves where those are installed; TensorFlow's lie in `files`. That outputs are
the same too is shown for PyTorch here, and for the others in test_parity_layouts_files.py.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lstmfast as lf
from lstmfast.config import Config, ModelConfig
from lstmfast.layouts import LSTMWeights, load, read, tensor_bundle, to_arrays
from support import tolerances

Array = npt.NDArray[Any]
FILES = Path(__file__).parent / "files"


@pytest.fixture
def layer(rng: np.random.Generator) -> lf.LSTM:
    """Two layers, both directions, all weights random."""
    made = lf.LSTM(3, 4, num_layers=2, bidirectional=True, forget_bias=0.0, rng=rng)
    made.parameter_buffer[...] = rng.standard_normal(made.parameter_buffer.size)
    return made


def same(weights: LSTMWeights, layer: lf.LSTM) -> bool:
    """Whether weights are those of a layer, bit for bit."""
    arrays = to_arrays(weights, "lstmfast", forget_bias=layer.forget_bias)
    return {n: v.tobytes() for n, v in arrays.items()} == {n: v.tobytes() for n, v in layer.parameters.items()}


def save_safetensors(arrays: dict[str, Any], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path)


def torch_or_skip() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")


def save_torch(arrays: dict[str, Any], path: Path) -> None:
    torch = torch_or_skip()
    torch.save({name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}, path)


def save_npz(arrays: dict[str, Any], path: Path) -> None:
    np.savez(path, **arrays)


WRITERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "w.safetensors": save_safetensors, "w.npz": save_npz, "w.pt": save_torch, "w.pth": save_torch, "w.bin": save_torch,
}
NAMED = [
    "lstmfast",
    "tf1",
    "tf1-legacy",
    "keras",
    "keras-cudnn",
    "keras-1",
    "pytorch",
    "onnx",
    "char-rnn",
]  # whose names tell what they are


# --- arrays by name ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", NAMED)
@pytest.mark.parametrize("file", WRITERS)
def test_arrays_of_any_layout_come_out_of_any_file(file: str, layout: str, layer: lf.LSTM, tmp_path: Path) -> None:
    arrays = to_arrays(LSTMWeights.from_layer(layer), layout)
    WRITERS[file](arrays, tmp_path / file)
    known = arrays.forget_bias is not None
    assert same(load(tmp_path / file, forget_bias=0.0 if known else None), layer)


@pytest.mark.parametrize("layout", ["haste", "torch-rnn", "block-lstm-v2", "cudnn"])
def test_where_names_do_not_tell_the_layout_is_named(layout: str, layer: lf.LSTM, tmp_path: Path) -> None:
    save_npz(to_arrays(LSTMWeights.from_layer(layer), layout), tmp_path / "w.npz")
    assert same(load(tmp_path / "w.npz", layout=layout), layer)


def test_udacitys_twelve_arrays_are_known(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = lf.LSTM(5, 3, forget_bias=0.0, rng=rng)
    save_npz(to_arrays(LSTMWeights.from_layer(layer), "udacity"), tmp_path / "w.npz")
    assert same(load(tmp_path / "w.npz"), layer)


def test_other_arrays_of_a_file_are_there_too(layer: lf.LSTM, tmp_path: Path) -> None:
    save_npz({**to_arrays(LSTMWeights.from_layer(layer), "keras"), "dense/kernel": np.ones((8, 2))}, tmp_path / "w.npz")
    contents = read(tmp_path / "w.npz")
    assert (len(contents.lstms), len(contents.arrays)) == (1, 13)


def test_half_precision_is_widened_and_that_is_said(tmp_path: Path) -> None:
    arrays = to_arrays(LSTMWeights.from_layer(lf.LSTM(2, 3, forget_bias=0.0)), "pytorch")
    save_npz({name: values.astype(np.float16) for name, values in arrays.items()}, tmp_path / "w.npz")
    [found] = read(tmp_path / "w.npz").lstms
    assert found.weights().dtype == np.float32
    assert found.notes[0] == "weight_ih_l0 is float16 in the file and was widened to float32, which is exact."


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def test_a_torch_module_and_the_layer_of_its_file_give_the_same_numbers(tmp_path: Path, rng: Any, dtype: Any) -> None:
    torch = torch_or_skip()
    theirs = torch.nn.LSTM(5, 7, 2, bidirectional=True).to(getattr(torch, dtype.name))
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    x = rng.standard_normal((6, 3, 5)).astype(dtype)
    expected = theirs(torch.from_numpy(x))[0].detach().numpy()
    assert_allclose(load(tmp_path / "w.pt").to_layer()(x)[0], expected, **tolerances.states(dtype, 21))


def test_a_projected_torch_module_and_the_weights_of_its_file_give_the_same_numbers(tmp_path: Path, rng: Any) -> None:
    torch = torch_or_skip()
    theirs = torch.nn.LSTM(5, 7, 2, proj_size=3, bidirectional=True)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    x = rng.standard_normal((6, 3, 5)).astype(np.float32)
    expected = theirs(torch.from_numpy(x))[0].detach().numpy()
    assert_allclose(load(tmp_path / "w.pt").to_layer()(x)[0], expected, **tolerances.states(np.float32, 9))


def model_of_torch() -> Any:
    torch = torch_or_skip()
    parts = {
        "encoder": torch.nn.LSTM(3, 4, 2), "decoder": torch.nn.LSTMCell(4, 5), "gru": torch.nn.GRU(3, 4),
        "rnn": torch.nn.RNN(3, 4), "projected": torch.nn.LSTM(3, 4, proj_size=2, bias=False),
        "head": torch.nn.Linear(5, 2),
    }
    return torch.nn.ModuleDict(parts)


@pytest.mark.parametrize("zipped", [True, False])
def test_every_lstm_of_a_torch_model_is_found_and_no_other_layer(zipped: bool, tmp_path: Path) -> None:
    model = model_of_torch()
    contents = {"model": model.state_dict(), "epoch": 3, "seen": [1, 2]}
    torch_or_skip().save(contents, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    found = {each.name: each.weights() for each in read(tmp_path / "w.pt").lstms}
    sizes = {name: (w.num_layers, w.input_size, w.hidden_size, w.output_size) for name, w in found.items()}
    assert sizes == {"model.encoder": (2, 3, 4, 4), "model.decoder": (1, 4, 5, 5), "model.projected": (1, 3, 4, 2)}
    assert_array_equal(found["model.decoder"].cells[0].kernel[:4].T, model["decoder"].weight_ih.detach().numpy())


def test_name_chooses_among_several(tmp_path: Path) -> None:
    torch_or_skip().save(model_of_torch().state_dict(), tmp_path / "w.pt")
    assert load(tmp_path / "w.pt", name="decoder").hidden_size == 5
    words = r"name must choose one of the LSTMs in .*w\.pt: 'encoder', 'decoder', 'projected'$"
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "w.pt")
    with pytest.raises(ValueError, match="'projected', got 'gru'"):
        load(tmp_path / "w.pt", name="gru")


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
def test_bfloat16_is_widened_exactly(file: str, tmp_path: Path) -> None:
    torch = torch_or_skip()
    from safetensors.torch import save_file

    weights = {name: values.bfloat16() for name, values in torch.nn.LSTM(2, 3).state_dict().items()}
    (torch.save if file == "w.pt" else save_file)(weights, tmp_path / file)
    expected = {name: values.float().numpy() for name, values in weights.items()}
    arrays = read(tmp_path / file).arrays
    assert {name: values.tobytes() for name, values in arrays.items()} == {
        name: values.tobytes() for name, values in expected.items()
    }


# --- code in pickles --------------------------------------------------------------------------------------------------


class Trap:
    """Unpickled by a loader that executes what it reads, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["w.pt", "w.pth", "w.bin", "w.pkl", "w"])
@pytest.mark.parametrize("zipped", [True, False, None])
def test_a_pickle_with_code_is_refused_and_never_executed(file: str, zipped: bool | None, tmp_path: Path) -> None:
    torch, trap = torch_or_skip(), tmp_path / "sprung"
    contents = {"weight_ih_l0": Trap(trap)}
    if zipped is None:
        (tmp_path / file).write_bytes(pickle.dumps(contents, protocol=2))
    else:
        torch.save(contents, tmp_path / file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="which is not executed: save model.state_dict"):
        read(tmp_path / file)
    assert not trap.exists()


def test_the_trap_works_on_a_loader_that_executes(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


def test_a_pickle_inside_of_an_npz_is_refused_and_never_executed(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", kernel=np.array([Trap(tmp_path / "sprung")], dtype=object))
    with pytest.raises(
        ValueError, match=r"w\.npz is not a usable \.npz archive.*: it contains pickled objects, which are not loaded"
    ):
        read(tmp_path / "w.npz")
    assert not (tmp_path / "sprung").exists()


def test_a_whole_torch_module_is_refused(tmp_path: Path) -> None:
    torch = torch_or_skip()
    torch.save(torch.nn.LSTM(2, 3), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt holds code \(torch\.nn\.modules\.rnn\.LSTM\), which is not executed"):
        read(tmp_path / "w.pt")


# --- Keras ------------------------------------------------------------------------------------------------------------


def keras_settings(*layers: tuple[str, str, dict[str, Any], str]) -> dict[str, Any]:
    """A configuration of layers: class, name, settings, and the layer it reads."""
    return {
        "class_name": "Functional",
        "config": {
            "name": "model",
            "layers": [
                {
                    "class_name": kind,
                    "config": {"name": name, **settings},
                    "inbound_nodes": [
                        {"args": [{"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, 0]}}]}
                    ],
                }
                for kind, name, settings, source in layers
            ],
        },
    }


def write_keras(path: Path, layers: dict[str, tuple[str, int, int]], config: dict[str, Any], rng: Any) -> None:
    """What Keras 3 writes of LSTM layers: path -> (its name, input size, units)."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install '.[keras]'")
    weights = path.with_suffix(".weights.h5")
    with h5py.File(weights, "w") as file:
        for place, (name, rows, units) in layers.items():
            file.create_group(f"layers/{place}/vars").attrs["name"] = name
            for number, shape in enumerate([(rows, 4 * units), (units, 4 * units), (4 * units,)]):
                values = rng.standard_normal(shape).astype(np.float32)
                file.create_dataset(f"layers/{place}/cell/vars/{number}", data=values)
        file.create_dataset("optimizer/vars/0", data=np.zeros(3))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.write(weights, "model.weights.h5")


STACK = {"lstm": ("first", 3, 4), "lstm_1": ("second", 4, 4)}


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_keras_layers_that_feed_each_other_are_a_stack(suffix: str, tmp_path: Path, rng: Any) -> None:
    between = ("Dropout", "drop", {}, "first")
    config = keras_settings(("LSTM", "first", {}, "x"), between, ("LSTM", "second", {}, "drop"))
    write_keras(tmp_path / "w.keras", STACK, config, rng)
    [found] = read((tmp_path / "w.keras").with_suffix(suffix)).lstms
    weights = found.weights()
    assert (weights.num_layers, weights.input_size, weights.hidden_size) == (2, 3, 4)
    assert found.notes == ("lstm, lstm_1 are treated as one stack: each reads the output of the previous one.",)


def test_keras_layers_that_do_not_feed_each_other_are_two_lstms(tmp_path: Path, rng: Any) -> None:
    config = keras_settings(("LSTM", "first", {}, "x"), ("LSTM", "second", {}, "y"))
    write_keras(tmp_path / "w.keras", STACK, config, rng)
    assert [each.name for each in read(tmp_path / "w.keras").lstms] == ["lstm", "lstm_1"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activation": "relu"}, "lstm has activation='relu'; an LSTM here has 'tanh'"),
        ({"recurrent_activation": "hard_sigmoid"}, "lstm has recurrent_activation='hard_sigmoid'; an LSTM here has"),
        ({"go_backwards": True}, "lstm has go_backwards=True; an LSTM here has False"),
    ],
)
def test_a_keras_layer_that_computes_something_else_is_refused(
    settings: dict[str, Any], words: str, tmp_path: Path, rng: Any
) -> None:
    config = keras_settings(("LSTM", "first", settings, "x"))
    write_keras(tmp_path / "w.keras", {"lstm": ("first", 3, 4)}, config, rng)
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "w.keras")


# --- TensorFlow checkpoints, written by TensorFlow --------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "tf1-2", "tf1-2.index", "tf1-2.data-00000-of-00001"])
def test_a_checkpoint_is_named_by_folder_prefix_or_any_of_its_files(path: str) -> None:
    found = {each.name: each.weights() for each in read(FILES / path).lstms}
    sizes = {name: (w.num_layers, w.bidirectional, w.input_size, w.hidden_size) for name, w in found.items()}
    assert sizes == {"both": (1, True, 4, 5), "model/rnn": (2, False, 3, 4), "wide/rnn": (1, False, 3, 4)}
    assert (found["wide/rnn"].has_peepholes, found["wide/rnn"].output_size) == (True, 2)


def test_several_data_files_are_read_and_bfloat16_is_widened() -> None:
    arrays = read(FILES / "two").arrays
    assert_array_equal(arrays["rnn/basic_lstm_cell/kernel"], np.arange(40, dtype=np.float32).reshape(5, 8))
    assert_array_equal(arrays["rnn/basic_lstm_cell/bias"], np.arange(8, dtype=np.float32))
    assert_array_equal(arrays["half"], np.arange(8, dtype=np.float32))
    assert "words" not in arrays


def test_a_partitioned_variable_is_left_out_and_that_is_said() -> None:
    contents = read(FILES / "part")
    assert contents.notes == ("rnn/basic_lstm_cell/kernel is partitioned, which is not supported, and was left out.",)
    assert (list(contents.arrays), contents.lstms) == (["rnn/basic_lstm_cell/bias"], ())


def test_a_checkpoint_of_version_1_is_refused() -> None:
    with pytest.raises(ValueError, match="it is a checkpoint of version 1, which only TensorFlow itself reads"):
        read(FILES / "version1.ckpt")


CELL = {"kernel": (7, 16), "bias": (16,), "weights": (7, 16), "biases": (16,), "Matrix": (7, 16), "Bias": (16,)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [  # of TensorFlow 0.x, 1.0, 1.2 and later; input 3, 4 units
        (["RNN/BasicLSTMCell/Linear/Matrix", "RNN/BasicLSTMCell/Linear/Bias"], {"RNN": (1, 1)}),
        (["rnn/basic_lstm_cell/weights", "rnn/basic_lstm_cell/biases"], {"rnn": (1, 1)}),
        (["a/rnn/lstm_cell/kernel", "b/rnn/lstm_cell/kernel"], {"a/rnn": (1, 1), "b/rnn": (1, 1)}),
        (["rnn/lstm_cell/kernel", "rnn/lstm_cell_1/kernel"], {"rnn": (1, 1), "rnn/lstm_cell_1": (1, 1)}),
        (["BiRNN/FW/LSTMCell/kernel", "BiRNN/BW/LSTMCell/kernel"], {"": (1, 2)}),
        (
            [f"x/stack_bidirectional_rnn/cell_0/bidirectional_rnn/{d}w/basic_lstm_cell/kernel" for d in "fb"],
            {"x": (1, 2)},
        ),
        (
            [f"bidirectional_rnn/{d}w/multi_rnn_cell/cell_0/lstm_cell/kernel" for d in "fb"],
            {"fw": (1, 1), "bw": (1, 1)},
        ),
        (["rnn/lstm_cell/kernel", "rnn/lstm_cell/kernel/Adam", "rnn/gru_cell/gates/kernel"], {"rnn": (1, 1)}),
    ],
)
def test_cells_of_tensorflow_1_are_found_by_the_names_of_its_versions(
    names: list[str], expected: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    arrays = {name: np.ones(CELL.get(name.rpartition("/")[2], (3,)), np.float32) for name in names}
    np.savez(tmp_path / "w.npz", **arrays)
    found = {each.name: each.weights() for each in read(tmp_path / "w.npz").lstms}
    assert {name: (w.num_layers, 1 + w.bidirectional) for name, w in found.items()} == expected


def test_cells_of_cudnn_in_tensorflow_add_no_forget_bias(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{"cudnn_lstm/rnn/cudnn_compatible_lstm_cell/kernel": np.ones((7, 16))})
    assert load(tmp_path / "w.npz").cells[0].forget_bias == 0.0


def copied(tmp_path: Path, name: str = "two") -> Path:
    for file in FILES.glob(f"{name}.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / f"{name}.index"


def test_a_checkpoint_without_one_of_its_data_files_says_which(tmp_path: Path) -> None:
    index = copied(tmp_path)
    (tmp_path / "two.data-00001-of-00002").unlink()
    with pytest.raises(FileNotFoundError, match=r"two\.data-00001-of-00002"):
        read(index)


def test_a_data_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    index = copied(tmp_path)
    (tmp_path / "two.data-00000-of-00002").write_bytes(bytes(159))
    with pytest.raises(ValueError, match="ends before rnn/basic_lstm_cell/kernel does"):
        read(index)


def test_every_changed_byte_of_an_index_is_refused_or_makes_no_difference(tmp_path: Path) -> None:
    """Blocks have checksums; what lies outside of them only says where they are."""
    index = copied(tmp_path)
    whole, expected = index.read_bytes(), read(index).arrays
    for at in range(len(whole)):
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :])
        try:
            arrays, _ = tensor_bundle.read(index)
        except ValueError as error:
            assert str(index) in str(error)
        else:
            assert {name: values.tobytes() for name, values in arrays.items()} == {
                name: values.tobytes() for name, values in expected.items()
            }, at


@pytest.mark.parametrize("end", [0, 1, 40, 100, 200, 228])
def test_an_index_that_is_cut_short_is_refused(end: int, tmp_path: Path) -> None:
    index = copied(tmp_path)
    index.write_bytes(index.read_bytes()[:end])
    with pytest.raises(ValueError, match=r"two\.index is not the index of a checkpoint, as its name says"):
        read(index)


def test_compressed_blocks_are_refused_in_a_sentence(tmp_path: Path) -> None:
    index = copied(tmp_path)
    whole = bytearray(index.read_bytes())
    _, at = tensor_bundle._varint(whole, len(whole) - 48)
    _, at = tensor_bundle._varint(whole, at)
    offset, at = tensor_bundle._varint(whole, at)
    size, _ = tensor_bundle._varint(whole, at)
    whole[offset + size] = 1  # snappy, with a checksum that agrees
    crc = tensor_bundle._masked_crc(bytes(whole[offset : offset + size + 1]))
    whole[offset + size + 1 : offset + size + 5] = crc.to_bytes(4, "little")
    index.write_bytes(whole)
    with pytest.raises(ValueError, match=r"its blocks are compressed \(kind 1\), which is not supported"):
        read(index)


# --- ONNX and runs of our own -----------------------------------------------------------------------------------------


def test_a_layer_comes_back_out_of_the_onnx_file_it_was_written_to(layer: lf.LSTM, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")
    import lstmfast.onnx

    lstmfast.onnx.export(layer, tmp_path / "w.onnx")
    contents = read(tmp_path / "w.onnx")
    assert (contents.kind, [each.name for each in contents.lstms]) == ("ONNX model", ["layer0"])
    assert same(load(tmp_path / "w.onnx"), layer)


def save_graph(onnx: Any, node: Any, shapes: dict[str, tuple[int, ...]], path: Path, rng: Any) -> None:
    """Write a model of one node over x [time, batch, 3], with random arrays of these shapes."""
    stored = [
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    x = onnx.helper.make_tensor_value_info("x", 1, ["t", "b", 3])
    y = onnx.helper.make_tensor_value_info("y", 1, None)
    graph = onnx.helper.make_graph([node], "graph", [x], [y], stored)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)


def test_onnx_runtime_and_the_layer_of_its_file_give_the_same_numbers(tmp_path: Path, rng: Any) -> None:
    """Both biases random and no forget bias: a file of another exporter."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")
    shapes = {"w": (2, 16, 3), "r": (2, 16, 4), "b": (2, 32)}
    given = {"name": "n", "hidden_size": 4, "direction": "bidirectional"}
    node = onnx.helper.make_node("LSTM", ["x", *shapes], ["y"], **given)
    save_graph(onnx, node, shapes, tmp_path / "w.onnx", rng)
    x = rng.standard_normal((6, 5, 3)).astype(np.float32)
    [y] = runtime.InferenceSession(tmp_path / "w.onnx").run(["y"], {"x": x})
    h, _ = load(tmp_path / "w.onnx").to_layer()(x)
    assert_allclose(h, y.swapaxes(1, 2).reshape(6, 5, 8), **tolerances.states(np.float32, 7))


@pytest.mark.parametrize("coupled", [False, True])
def test_onnx_runtime_and_the_peepholes_of_its_file_give_the_same_numbers(
    coupled: bool, tmp_path: Path, rng: Any
) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")
    shapes = {"w": (1, 16, 3), "r": (1, 16, 4), "b": (1, 32), "p": (1, 12)}
    given = {"name": "n", "hidden_size": 4, "input_forget": int(coupled)}
    node = onnx.helper.make_node("LSTM", ["x", "w", "r", "b", "", "", "", "p"], ["y"], **given)
    save_graph(onnx, node, shapes, tmp_path / "w.onnx", rng)
    x = rng.standard_normal((6, 5, 3)).astype(np.float32)
    [y] = runtime.InferenceSession(tmp_path / "w.onnx").run(["y"], {"x": x})
    weights = load(tmp_path / "w.onnx")
    assert weights.coupled_gates == coupled
    assert_allclose(weights.to_layer()(x)[0], y[:, 0], **tolerances.states(np.float32, 7))


def test_an_onnx_node_that_computes_something_else_is_listed_but_not_loaded(tmp_path: Path, rng: Any) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")
    node = onnx.helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="n", hidden_size=2, clip=3.0)
    save_graph(onnx, node, {"w": (1, 8, 3), "r": (1, 8, 2)}, tmp_path / "w.onnx", rng)
    assert [each.name for each in read(tmp_path / "w.onnx").lstms] == ["n"]
    with pytest.raises(ValueError, match=r"w\.onnx: LSTM node n clips the inputs of its activations to 3"):
        load(tmp_path / "w.onnx")


def write_run(folder: Path, rng: Any) -> lf.CharLM:
    """A run folder's checkpoint with a model of 5 symbols."""
    from lstmfast.training import checkpoint

    model = lf.CharLM(5, 4, num_layers=2, forget_bias=0.5, rng=rng)
    config = Config(preset="stdlib", model=ModelConfig(hidden_size=4, num_layers=2, forget_bias=0.5))
    tensors = {**model.parameters, "state.h": np.zeros(3, np.float32)}
    folder.mkdir()
    words = {"config": json.loads(config.to_json())}
    checkpoint.save(folder / "checkpoint.safetensors", tensors, words)
    return model


@pytest.mark.parametrize("path", ["run", "run/checkpoint.safetensors"])
def test_a_run_is_read_with_its_forget_bias_and_without_the_trainers_own(path: str, tmp_path: Path, rng: Any) -> None:
    model = write_run(tmp_path / "run", rng)
    contents = read(tmp_path / path)
    assert set(contents.arrays) == set(model.parameters)
    assert same(load(tmp_path / path), model.lstm)
    assert load(tmp_path / path).cells[0].forget_bias == 0.5


# --- what is not what it claims ---------------------------------------------------------------------------------------

SUFFIXES = [".pt", ".pth", ".safetensors", ".npz", ".h5", ".keras", ".onnx", ".index"]


@pytest.mark.parametrize("contents", [b"", b"hello, I am a text\n" * 9, bytes(999), b"\x80\x04junk", b"PK\x03\x04junk"])
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".txt", ""])
def test_a_file_that_is_not_what_it_claims_is_refused_in_one_sentence(
    suffix: str, contents: bytes, tmp_path: Path
) -> None:
    module = {".onnx": "onnx", ".pt": "torch", ".pth": "torch", ".txt": "torch", "": "torch"}.get(suffix, "numpy")
    pytest.importorskip(module, reason=f"{module} is not installed")
    path = tmp_path / f"w{suffix}"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=r"w(\.\w+)? (is|begins|holds|cannot)") as refusal:
        read(path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 320 + len(str(path))


def test_what_is_no_weight_file_is_told_what_is(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("hello")
    formats = (
        "PyTorch (.pt, .pth), safetensors, NumPy (.npz), Keras (.h5, .weights.h5, .keras), TensorFlow checkpoints and "
        "SavedModel folders, ONNX, lstmfast run folders"
    )
    words = rf"w\.txt is not a supported weight file \(supported: {re.escape(formats)}\)$"
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "w.txt")


def test_one_kind_under_the_name_of_another_says_both(layer: lf.LSTM, tmp_path: Path) -> None:
    save_safetensors(dict(layer.parameters), tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"w\.pt is not a file of torch\.save, as its name says: it is a safetensors file"
    ):
        read(tmp_path / "w.pt")


@pytest.mark.parametrize("file", ["w.safetensors", "w.npz", "w.pt"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_is_cut_short_is_refused(file: str, share: float, layer: lf.LSTM, tmp_path: Path) -> None:
    WRITERS[file](dict(layer.parameters), tmp_path / file)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=rf"{file} "):
        read(tmp_path / file)


def test_what_is_missing_is_named_with_the_file(layer: lf.LSTM, tmp_path: Path) -> None:
    arrays = to_arrays(LSTMWeights.from_layer(layer), "pytorch")
    del arrays["weight_hh_l1"]
    save_npz(arrays, tmp_path / "w.npz")
    with pytest.raises(ValueError, match=r"w\.npz: weights lack variables of pytorch: weight_hh_l1"):
        load(tmp_path / "w.npz")


def test_a_hidden_size_that_does_not_divide_is_named_with_the_file(tmp_path: Path) -> None:
    save_npz({"weight_ih_l0": np.ones((9, 3)), "weight_hh_l0": np.ones((9, 2))}, tmp_path / "w.npz")
    with pytest.raises(ValueError, match=r"w\.npz: weight_ih_l0 must have 4\*hidden_size rows, got 9"):
        load(tmp_path / "w.npz")


def test_a_file_without_an_lstm_lists_its_arrays(tmp_path: Path) -> None:
    save_npz({"a": np.ones(2), "b": np.ones(3)}, tmp_path / "w.npz")
    with pytest.raises(ValueError, match=r"w\.npz holds no LSTM: its arrays are a, b"):
        load(tmp_path / "w.npz")


def test_a_file_that_is_not_there_and_a_folder_without_a_checkpoint_are_os_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        read(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="contains neither an lstmfast or TensorFlow checkpoint"):
        read(tmp_path)


def test_an_unknown_layout_lists_the_known_ones(layer: lf.LSTM, tmp_path: Path) -> None:
    save_npz(dict(layer.parameters), tmp_path / "w.npz")
    with pytest.raises(ValueError, match="layout must be one of lstmfast, tf1, .*, got 'torch'"):
        read(tmp_path / "w.npz", layout="torch")


@pytest.mark.parametrize(
    ("file", "module", "extra"),
    [("w.pt", "torch", "torch"), ("w.h5", "h5py", "keras"), ("w.keras", "h5py", "keras"), ("w.onnx", "onnx", "onnx")],
)
def test_without_an_optional_library_the_extra_is_named(
    file: str, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if file == "w.pt":
        contents = b"\x80\x02}q\x00."
    elif file == "w.h5":
        contents = b"\x89HDF\r\n\x1a\n"
    else:
        contents = b""
    (tmp_path / file).write_bytes(contents)
    if file == "w.keras":
        with zipfile.ZipFile(tmp_path / file, "w") as archive:
            archive.writestr("model.weights.h5", b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=rf"needs {module}, which is not installed: pip install 'lstmfast\[{extra}\]'"
    ):
        read(tmp_path / file)
