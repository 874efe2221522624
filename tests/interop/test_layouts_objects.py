"""What TensorFlow 2 saves, read without it: checkpoints of objects, SavedModel folders, their Keras layers.

The files lie in `files`; every variable there is numbered, so that a wrong one shows. That outputs are TensorFlow's is
shown in test_parity_layouts_files.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_array_equal

import lstmfast as lf
from lstmfast.layouts import load, read, tensor_bundle

Array = npt.NDArray[Any]
FILES = Path(__file__).parent / "files"
SAVED = FILES / "saved_model"
OF_OBJECT = "/.ATTRIBUTES/VARIABLE_VALUE"


def numbered(place: int, *shape: int) -> Array:
    """The variable at a place in the list of all of a model in `files`."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 100 + np.float32(place)


SIZES = {  # of the model in `files`: layers, directions, input, units
    "layer_with_weights-0": (1, 1, 3, 4),
    "layer_with_weights-1": (1, 2, 4, 3),
    "layer_with_weights-2/cells, layer_with_weights-2/cells_1": (2, 1, 6, 2),
    "layer_with_weights-3": (1, 1, 2, 4),
}
OF_SAVED = dict(
    zip(SIZES, ["lstm_3", "bidirectional_1", "rnn_1/stacked_rnn_cells_1_2, rnn_1/stacked_rnn_cells_1_3", "lstm_5"],
        strict=True)
)


def sizes_in(path: Path) -> dict[str, tuple[int, int, int, int]]:
    found = {}
    for each in read(path).lstms:
        if not each.differs:
            w = each.weights()
            found[each.name] = (w.num_layers, 1 + w.bidirectional, w.input_size, w.hidden_size)
    return found


# --- checkpoints of objects -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tf2", "tf2.index", "tf2.data-00000-of-00001"])
def test_every_lstm_of_a_checkpoint_of_objects_is_found(name: str) -> None:
    contents = read(FILES / name)
    assert (contents.kind, sizes_in(FILES / name)) == ("TensorFlow checkpoint of objects", SIZES)


def test_weights_of_a_checkpoint_of_objects_are_those_that_were_saved() -> None:
    [cell] = load(FILES / "tf2", name="layer_with_weights-0").cells
    assert_array_equal(cell.kernel, np.concatenate([numbered(0, 3, 16), numbered(1, 4, 16)]))
    assert_array_equal(cell.bias, numbered(2, 16))
    forward, reverse = load(FILES / "tf2", name="layer_with_weights-1").cells
    assert_array_equal(forward.kernel[:4], numbered(3, 4, 12))
    assert_array_equal(reverse.kernel[4:], numbered(7, 3, 12))


def test_slots_of_the_optimizer_are_no_variables_of_a_model() -> None:
    names = tensor_bundle.read(FILES / "tf2.index")[0]
    assert any(".OPTIMIZER_SLOT" in name for name in names)
    assert set(read(FILES / "tf2").arrays) == {
        name.removesuffix(OF_OBJECT)
        for name in names
        if "OPTIMIZER_SLOT" not in name and not name.startswith("optimizer/")
    }


def test_a_checkpoint_of_objects_is_said_to_hold_no_activations() -> None:
    assert load(FILES / "tf2", name="layer_with_weights-3").assumptions == (
        "The file does not give the activations of layer_with_weights-3: assuming tanh and sigmoid, the defaults of "
        "TensorFlow 2; tf.keras in TensorFlow 1 used tanh and hard_sigmoid.",
    )


def test_a_folder_with_a_checkpoint_of_objects_leads_to_it(tmp_path: Path) -> None:
    for file in FILES.glob("tf2.*"):
        shutil.copy(file, tmp_path / file.name.replace("tf2", "ckpt-7"))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-7"\n')
    assert sizes_in(tmp_path) == SIZES


@pytest.mark.parametrize("scope", ["optimizer", "opt", "training/opt"])
@pytest.mark.parametrize("path", ["net/lstm/cell/{}", "{scope}/_trainable_variables/{number}"])
def test_what_an_optimizer_keeps_of_an_lstm_is_no_lstm(
    path: str, scope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tf-keras calls it Adam/m/lstm/lstm_cell/kernel; Keras 3 keeps the model's variables by their optimizer."""
    arrays, names = {f"{scope}/_iterations{OF_OBJECT}": np.array(3)}, {}
    for number, (name, shape) in enumerate({"kernel": (3, 16), "recurrent_kernel": (4, 16)}.items()):
        key = path.format(name, scope=scope, number=number) + OF_OBJECT
        arrays[key], names[key] = numbered(0, *shape), f"lstm/lstm_cell/{name}"
        slot = f"{scope}/_variables/{number + 1}{OF_OBJECT}"
        arrays[slot], names[slot] = numbered(9, *shape), f"Adam/m/lstm/lstm_cell/{name}"
    monkeypatch.setattr(tensor_bundle, "read", lambda index: (arrays, []))
    monkeypatch.setattr(tensor_bundle, "full_names", lambda index: names)
    assert_array_equal(load(FILES / "tf2").cells[0].kernel[:3], numbered(0, 3, 16))


@pytest.mark.parametrize("path", ["variables/{number}", "_all_variables/{number}"])
def test_variables_with_one_name_in_two_models_stay_apart(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their biases have the same values and more than ten of them stand in the list."""
    arrays, names = {}, {}
    variables = {"kernel": (3, 16), "recurrent_kernel": (4, 16), "bias": (16,)}
    for number in range(12):
        name, shape = list(variables.items())[number % 3]
        key = path.format(number=number) + OF_OBJECT
        arrays[key] = numbered(0, *shape) if name == "bias" else numbered(number, *shape)
        names[key] = f"lstm/lstm_cell/{name}"
    monkeypatch.setattr(tensor_bundle, "read", lambda index: (dict(sorted(arrays.items())), []))
    monkeypatch.setattr(tensor_bundle, "full_names", lambda index: names)
    found = [each.weights().cells[0] for each in read(FILES / "tf2").lstms]
    assert [int(cell.kernel[0, 0]) for cell in found] == [0, 3, 6, 9]
    assert [int(cell.kernel[3, 0]) for cell in found] == [1, 4, 7, 10]
    assert all(cell.bias[5] == np.float32(0.05) for cell in found)


def test_of_the_two_lists_that_keras_3_exports_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, names = {}, {}
    for scope in ("_all_variables", "variables"):
        for number, (name, shape) in enumerate({"kernel": (3, 16), "recurrent_kernel": (4, 16)}.items()):
            key = f"{scope}/{number}{OF_OBJECT}"
            arrays[key], names[key] = numbered(number, *shape), f"sequential/lstm/lstm_cell/{name}"
    monkeypatch.setattr(tensor_bundle, "read", lambda index: (arrays, []))
    monkeypatch.setattr(tensor_bundle, "full_names", lambda index: names)
    assert [each.name for each in read(FILES / "tf2").lstms] == ["sequential/lstm"]


@pytest.mark.parametrize("scope", ["layer_with_weights-0/cell/", "model/encoder/cell/", "cell/", "", "m/cells/0/"])
def test_names_of_objects_are_known_in_any_file(scope: str, tmp_path: Path) -> None:
    shapes = {"kernel": (3, 16), "recurrent_kernel": (4, 16), "bias": (16,)}
    arrays = {f"{scope}{name}{OF_OBJECT}": numbered(0, *shape) for name, shape in shapes.items()}
    np.savez(tmp_path / "w.npz", **arrays)
    weights = load(tmp_path / "w.npz")
    assert (weights.input_size, weights.hidden_size) == (3, 4)


def test_two_cells_whose_paths_differ_in_a_number_are_two_lstms(tmp_path: Path) -> None:
    arrays = {}
    for number in range(2):
        for name, shape in {"kernel": (4, 16), "recurrent_kernel": (4, 16)}.items():
            arrays[f"m/cells/{number}/{name}{OF_OBJECT}"] = numbered(number, *shape)
    np.savez(tmp_path / "w.npz", **arrays)
    assert [each.name for each in read(tmp_path / "w.npz").lstms] == ["m/cells/0", "m/cells/1"]


def test_a_norm_in_a_cell_of_objects_is_refused(tmp_path: Path) -> None:
    shapes = {"kernel": (3, 16), "recurrent_kernel": (4, 16), "bias": (16,), "norm/gamma": (4,)}
    np.savez(tmp_path / "w.npz", **{f"rnn/cell/{name}{OF_OBJECT}": np.ones(shape) for name, shape in shapes.items()})
    with pytest.raises(ValueError, match="rnn has variables that no cell of keras has: rnn/cell/norm/gamma"):
        load(tmp_path / "w.npz")


# --- SavedModel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner", ["", "variables", "saved_model.pb", "variables/variables", "variables/variables.index"]
)
def test_a_saved_model_is_named_by_its_folder_or_any_file_in_it(inner: str) -> None:
    expected = {OF_SAVED[name]: sizes for name, sizes in SIZES.items() if name != "layer_with_weights-3"}
    assert (read(SAVED / inner).kind, sizes_in(SAVED / inner)) == ("TensorFlow SavedModel", expected)


def test_weights_of_a_saved_model_are_those_that_were_saved() -> None:
    weights = load(SAVED, name="lstm_3")
    assert_array_equal(weights.cells[0].kernel, np.concatenate([numbered(0, 3, 16), numbered(1, 4, 16)]))
    assert weights.assumptions == ()


def test_settings_that_a_saved_model_keeps_of_its_layers_count() -> None:
    with pytest.raises(ValueError, match="lstm_5 has recurrent_activation='hard_sigmoid'; an LSTM here has 'sigmoid'"):
        load(SAVED, name="lstm_5")


def field(number: int, value: bytes) -> bytes:
    """One field of a protocol buffer."""
    size, words = len(value), bytearray([number << 3 | 2])
    while size >= 0x80:
        words.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(words) + bytes([size]) + value


def test_settings_within_the_model_of_tensorflow_before_2_5_count(tmp_path: Path) -> None:
    shutil.copytree(SAVED, tmp_path / "model")
    (tmp_path / "model" / "keras_metadata.pb").unlink()
    layer = json.dumps({"class_name": "LSTM", "config": {"name": "lstm_3", "activation": "relu"}})
    nodes = b"".join(field(1, field(4, field(3, words))) for words in (b"", b"no json", layer.encode()))
    (tmp_path / "model" / "saved_model.pb").write_bytes(field(2, field(7, nodes)))
    with pytest.raises(ValueError, match="lstm_3 has activation='relu'"):
        load(tmp_path / "model", name="lstm_3")


@pytest.mark.parametrize(("between", "count"), [("Dense", 2), ("Dropout", 1)])
def test_layers_of_a_saved_model_are_a_stack_where_its_settings_say_so(
    between: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("lstm", "between", "lstm_1")
    layers = [{"class_name": k, "config": {"name": n}} for k, n in zip(("LSTM", between, "LSTM"), names, strict=True)]
    model = {"class_name": "Sequential", "config": {"name": "model", "layers": layers}}
    kernels = ("kernel", "recurrent_kernel")
    variables = {f"{n}/lstm_cell/{v}": np.ones((4, 16), np.float32) for n in ("lstm", "lstm_1") for v in kernels}
    shutil.copytree(SAVED, tmp_path / "model")
    words = b"".join(field(1, field(5, json.dumps(each).encode())) for each in (model, *layers))
    (tmp_path / "model" / "keras_metadata.pb").write_bytes(words)
    monkeypatch.setattr(tensor_bundle, "read", lambda index: (variables, []))
    assert len(read(tmp_path / "model").lstms) == count


@pytest.mark.parametrize("contents", [b"", b"\xff\xff", b"\x0a\xff\x01"])
def test_a_saved_model_whose_settings_cannot_be_read_is_said_to_hold_no_activations(
    contents: bytes, tmp_path: Path
) -> None:
    shutil.copytree(SAVED, tmp_path / "model")
    (tmp_path / "model" / "keras_metadata.pb").write_bytes(contents)
    assert "does not give the activations of lstm_5" in load(tmp_path / "model", name="lstm_5").assumptions[0]


def test_a_folder_of_a_model_without_variables_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="nor the variables of a SavedModel"):
        read(tmp_path)


def test_inspect_shows_the_gates_of_a_checkpoint_of_objects() -> None:
    found = lf.inspect(FILES / "tf2")
    [kernel] = [each for each in found.variables if each.name == "layer_with_weights-0/cell/kernel"]
    assert "".join(gate.letter for gate in kernel.gates) == "ifgo"


def test_an_object_graph_that_is_damaged_is_refused(tmp_path: Path) -> None:
    for file in FILES.glob("tf2.*"):
        shutil.copy(file, tmp_path / file.name)
    described, [data] = tensor_bundle._described(tmp_path / "tf2.index")
    entry = described["_CHECKPOINTABLE_OBJECT_GRAPH"]
    whole = bytearray(data.read_bytes())
    whole[entry.offset : entry.offset + 2] = b"\xff\x00"  # another length
    data.write_bytes(whole)
    with pytest.raises(ValueError, match=r"tf2\.index has an unusable object graph"):
        read(tmp_path / "tf2")
