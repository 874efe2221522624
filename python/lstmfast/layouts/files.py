"""Weight files as dicts of named arrays: every format of `FORMATS`, and our runs.

A file's kind is recognized from its first bytes and checked against its name. Nothing in a file is executed: pickles
are read by PyTorch's weights-only loader or not at all (see `pickles`). Libraries are imported when needed, and an
error names the extra that installs them. Refuses to decide which arrays form an LSTM (see `finder`), except for ONNX,
whose nodes say so.
"""

from __future__ import annotations

import importlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lstmfast._checks import Array
from lstmfast.cells import Cell
from lstmfast.layouts import onnx_nodes, pickles, tensor_bundle
from lstmfast.layouts.converters import LayoutArrays
from lstmfast.layouts.finder import FoundLSTM
from lstmfast.layouts.onnx_graph import Graph
from lstmfast.layouts.tensor_bundle import widened_bfloat16
from lstmfast.training import checkpoint
from lstmfast.training.config import stored_config


@dataclass(frozen=True, eq=False)
class File:
    """Contents of a file: `kind` in words, arrays by name, and further metadata.

    forget_bias: the value its program adds at run time, if the file gives it. settings: of Keras layers, by layer name,
    with `name`, `class_name`, `source` (the first layer it reads) and `path` (the prefix of its variables' names);
    order_alone: nothing but the order is known. unsaid: a sentence on what is assumed of Keras layers without settings.
    lstms: if the file itself identifies them. cell: what they compute, if the file says so.
    """

    path: Path
    kind: str
    arrays: dict[str, Array]
    forget_bias: float | None = None
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unsaid: str = ""
    lstms: tuple[FoundLSTM, ...] | None = None
    cell: Cell | None = None


def import_extra(module: str, extra: str, what: str) -> ModuleType:
    """Import an optional library. Raises ImportError naming the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module}, which is not installed: pip install 'lstmfast[{extra}]'") from error


# What NumPy, h5py and zipfile raise for damaged or inconsistent files.
_DAMAGED = (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, MemoryError)
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error)


def _reason(error: BaseException) -> str:
    """A library's error message on one line."""
    words = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(words).split())[:160] or type(error).__name__


# --- which kind -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """One kind of file. title: for lists of formats; words: for a single file; suffixes: of file names."""

    title: str
    words: str
    read: Callable[[Path], File]
    suffixes: tuple[str, ...] = ()


def supported() -> str:
    """The supported formats, in words."""
    return ", ".join([*(each.title for each in FORMATS.values() if each.title), "lstmfast run folders"])


def kind_of(path: Path) -> str:
    """The kind of a file, a key of `FORMATS`. Raises ValueError if it is unsupported or differs from its name."""
    claimed = next((kind for kind, each in FORMATS.items() if path.suffix.lower() in each.suffixes), None)
    found = _kind_by_contents(path)
    if found == "pickle" and claimed in ("torch", None):
        return "torch"  # torch.save's format before 1.6; the loader refuses any other pickle
    if found is None and claimed == "onnx":
        return "onnx"  # ONNX files have no magic number
    if claimed and found != claimed:
        what = f"it is {_OTHERS.get(found) or FORMATS[found].words}" if found else "it does not begin like one"
        raise ValueError(f"{path} is not {FORMATS[claimed].words}, as its name says: {what}")
    if found is None or found in _OTHERS:
        raise ValueError(f"{path} is not a supported weight file (supported: {supported()})")
    return found


_OTHERS = {"zip": "a zip archive of another kind", "pickle": "a pickle"}


def _kind_by_contents(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    return "bundle" if tensor_bundle.is_index(path) else None


def _kind_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (*_DAMAGED, *_DAMAGED_ZIP) as error:
        raise ValueError(f"{path} begins like a zip archive but is truncated or damaged") from error
    if "model.weights.h5" in names:
        return "keras"
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"


# --- readers ----------------------------------------------------------------------------------------------------------


def read_torch(path: Path) -> File:
    """A file of torch.save: a state_dict, or dicts that hold some. Code in it is refused, never executed."""
    torch = import_extra("torch", "torch", f"reading {path}")
    try:
        contents = pickles.load(path, torch)
    except Exception as error:
        raise ValueError(_torch_refusal(path, str(error))) from error
    found: dict[str, Any] = {}
    _collect(found, "", contents, (torch.Tensor, pickles.PickledArray))
    arrays, notes = {}, []
    for name, value in found.items():
        if isinstance(value, pickles.PickledArray):
            if value.values is not None:
                arrays[name] = value.values
            continue
        tensor = value
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
            notes.append(_WIDENED.format(name))
        if tensor.is_quantized:
            tensor = tensor.dequantize()
            notes.append(f"{name} is quantized in the file and was dequantized to float32.")
        try:
            arrays[name] = tensor.detach().resolve_conj().numpy()
        except (TypeError, RuntimeError):  # sparse, or of a type NumPy lacks
            notes.append(f"{name} is a {tensor.dtype} tensor of a kind that NumPy does not support, and was left out.")
    if not arrays and not notes:
        raise ValueError(f"{path} contains no named tensors; it contains a {type(contents).__name__}")
    return File(path, "PyTorch state_dict", arrays, notes=tuple(notes))


def _torch_refusal(path: Path, said: str) -> str:
    """Summarize PyTorch's long error in one sentence."""
    if (name := pickles.refused_name(said)) == "torch.ScriptObject":
        return (
            f"{path} holds weights that torch packed ({name}), as those of quantized modules: load it into the model, "
            "and pass the model's quantized LSTM to lstmfast.layouts.from_quantized"
        )
    if name:
        return f"{path} holds code ({name}), which is not executed: save model.state_dict() instead of the model"
    if "TorchScript" in said:
        return f"{path} is a TorchScript archive, whose code is not executed: save the loaded module's state_dict()"
    if "weights only" in said.lower() or "weights_only" in said:
        return f"{path} holds more than weights, which is refused: save model.state_dict() instead of the model"
    return f"{path} is not a usable torch.save file: {' '.join(said.split())[:160]}"


def _collect(
    found: dict[str, Any], scope: str, value: Any, kinds: tuple[type, ...], around: tuple[int, ...] = ()
) -> None:
    """Every tensor in nested dicts, by its path of names; lists and entries without names are skipped."""
    if isinstance(value, kinds):
        found[scope.removesuffix(".")] = value
    elif isinstance(value, Mapping) and id(value) not in around:  # a dict may hold itself
        for name, inner in value.items():
            if isinstance(name, str):
                _collect(found, f"{scope}{name}.", inner, kinds, (*around, id(value)))


def read_safetensors(path: Path) -> File:
    """A safetensors file of any program; for an lstmfast checkpoint, its settings give the forget bias."""
    from safetensors import SafetensorError, deserialize, safe_open

    arrays, notes = {}, []
    try:
        with safe_open(path, framework="np") as file:
            words = file.metadata() or {}
        if words.get("format") == checkpoint.FORMAT:
            return _our_run(path)
        for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            dtype = _SAFETENSORS_DTYPES.get(tensor["dtype"])
            if dtype is None:
                notes.append(f"{name} has type {tensor['dtype']}, which is not supported, and was left out.")
                continue
            values = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
            if tensor["dtype"] == "BF16":
                values = widened_bfloat16(values)
                notes.append(_WIDENED.format(name))
            arrays[name] = values.astype(values.dtype.newbyteorder("="), copy=False)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a usable safetensors file: {_reason(error)}") from error
    return File(path, "safetensors", arrays, notes=tuple(notes))


_WIDENED = "{} is bfloat16 in the file and was widened to float32, which is exact."
_SAFETENSORS_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}


def _our_run(path: Path) -> File:
    """An lstmfast checkpoint: the model's variables, and the cell that its settings describe."""
    saved = checkpoint.load(path)
    parameters = {name: values for name, values in saved.tensors.items() if checkpoint.is_parameter(name)}
    cell = stored_config(saved.metadata, path).model.cell
    return File(path, "lstmfast checkpoint", parameters, forget_bias=cell.forget_bias, cell=cell)


def read_npz(path: Path) -> File:
    """NumPy's archive. Arrays of objects are pickles and are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return File(path, "NumPy archive", {name: archive[name] for name in archive.files})
    except (*_DAMAGED, *_DAMAGED_ZIP) as error:
        why = "it contains pickled objects, which are not loaded" if "allow_pickle" in str(error) else _reason(error)
        raise ValueError(f"{path} is not a usable .npz archive: {why}") from error


def read_bundle(path: Path) -> File:
    """A TensorFlow checkpoint by its index: version 1's variables, version 2's objects, or a SavedModel's."""
    arrays, notes = tensor_bundle.read(path)
    full_names = tensor_bundle.full_names(path)
    if full_names is None:
        return File(path, "TensorFlow checkpoint", arrays, notes=tuple(notes), unsaid=_UNSAID_BY_TENSORFLOW)
    if path.parent.name == "variables" and (path.parent.parent / "saved_model.pb").exists():
        kind, settings = "TensorFlow SavedModel", _settings_beside(path.parent.parent)
    else:
        kind, settings = "TensorFlow checkpoint of objects", {}
    named = _by_object_names(arrays, full_names, prefer_full=kind == "TensorFlow SavedModel")
    return File(path, kind, named, notes=tuple(notes), settings=settings, unsaid=_UNSAID_BY_TENSORFLOW)


def _by_object_names(arrays: Mapping[str, Array], full_names: Mapping[str, str], prefer_full: bool) -> dict[str, Array]:
    """The variables of a model by their paths through the objects, or by their full names.

    Optimizers' variables and the second list of variables that Keras 3 exports are left out. If several variables
    have the same full name, the first part of later ones gets a number.
    """
    named: dict[str, Array] = {}
    optimizers = {"optimizer/"} | {key.rpartition("/_iterations/")[0] + "/" for key in arrays if "/_iterations/" in key}
    twice = any(re.match(r"variables/\d+/", key) for key in arrays)
    for key in sorted(
        arrays, key=lambda key: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", key)]
    ):
        path = key.removesuffix(_OF_OBJECT)
        in_list = re.search(r"(?:^|/)_?(?P<of>(?:all_|trainable_|non_trainable_)?)(?:variables|weights)/\d+$", path)
        own = not path.startswith(tuple(optimizers)) and "/.OPTIMIZER_SLOT/" not in path
        if twice and path.startswith("_all_variables/"):
            continue
        if not own and not (in_list and in_list["of"] == "trainable_"):  # Keras 3 keeps these under their optimizer
            continue
        full = full_names.get(key, "").removesuffix(":0")
        name = full if full and (in_list or (prefer_full and "/" in full)) else path
        first, _, rest = name.partition("/")
        number = 1
        while name in named:
            number += 1
            name = f"{first} ({number})/{rest}" if rest else f"{first} ({number})"
        named[name] = arrays[key]
    return named


_OF_OBJECT = "/.ATTRIBUTES/VARIABLE_VALUE"
_UNSAID_BY_TENSORFLOW = (
    "The file does not give the activations of {}: assuming tanh and sigmoid, the defaults of TensorFlow 2; tf.keras "
    "in TensorFlow 1 used tanh and hard_sigmoid."
)


def _settings_beside(folder: Path) -> dict[str, dict[str, Any]]:
    """The settings of Keras layers that a SavedModel keeps as JSON."""
    found = []
    for words in tensor_bundle.keras_metadata(folder):
        try:
            found.append(json.loads(words))
        except ValueError:
            continue  # an object that is not a layer
    return _layer_settings(found[::-1])  # popped from the end: the model, which comes first, is visited first


# --- Keras ------------------------------------------------------------------------------------------------------------

_LAYERS_ONCE = "_layer_checkpoint_dependencies"  # TensorFlow 2.12's name for the group "layers"
_CELL_VARIABLES = ("kernel", "recurrent_kernel", "bias")


def read_hdf5(path: Path) -> File:
    """Keras' .weights.h5, or its older .h5 of a whole model or of weights."""
    h5py = import_extra("h5py", "keras", f"reading {path}")
    try:
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
            if config is not None:
                settings = _layer_settings(json.loads(config))
            else:
                settings = _order_of_layers(file) or _classes_by_path(file.get("layers", file.get(_LAYERS_ONCE, {})))
            arrays = _arrays_of_hdf5(file, h5py)
            return File(path, "Keras HDF5 weights", arrays, settings=settings, unsaid=_unsaid_by_hdf5(file))
    except _DAMAGED as error:
        raise ValueError(f"{path} is not a usable Keras HDF5 file: {_reason(error)}") from error


def _order_of_layers(file: Any) -> dict[str, dict[str, Any]]:
    """Sources of the layers of a weight file that lists only names in order: each is assumed to read the one before."""
    found: dict[str, dict[str, Any]] = {}
    below = None
    for given in file.attrs.get("layer_names", ()):
        name = given.decode() if isinstance(given, bytes) else str(given)
        kind = "Dropout" if re.match(r"(?:\w+_)?dropout", name) else None
        found[name] = {"name": name, "class_name": kind, "source": below, "order_alone": True}
        below = name
    return found


def _classes_by_path(groups: Any, scope: str = "") -> dict[str, dict[str, Any]]:
    """Classes of the layers of a Keras 3 weight file, which names layers after their classes."""
    found: dict[str, dict[str, Any]] = {}
    for name, group in groups.items() if hasattr(groups, "items") else ():
        path, kind = f"{scope}{name}", re.sub(r"_\d+$", "", name)
        found[path] = {"name": path, "path": path, "class_name": _KNOWN_CLASSES.get(kind, kind), "source": None}
        if hasattr(group, "items") and "layers" in group:
            found[path]["layers"] = ()
            found |= _classes_by_path(group["layers"], f"{path}/layers/")
    return found


_KNOWN_CLASSES = {"lstm": "LSTM", "rnn": "RNN", "bidirectional": "Bidirectional", "time_distributed": "TimeDistributed"}


def _unsaid_by_hdf5(file: Any) -> str:
    """What is assumed of a layer whose activations are not given: the defaults changed with Keras 2.3."""
    if "layers" in file or _LAYERS_ONCE in file:
        return ""  # the form of Keras 3
    weights = file.get("model_weights", file)
    said = file.attrs.get("keras_version", weights.attrs.get("keras_version", ""))
    version = said.decode() if isinstance(said, bytes) else str(said)
    number = re.match(r"(\d+)\.(\d+)", version)
    if number and (int(number[1]), int(number[2])) >= (2, 3):
        return ""
    return (
        f"The file was written by {f'Keras {version}' if version else 'an unknown version of Keras'} and does not give "
        "the recurrent_activation of {}: assuming sigmoid; the default of Keras before 2.3, and of tf.keras in "
        "TensorFlow 1, was hard_sigmoid."
    )


def read_keras(path: Path) -> File:
    """Keras 3's archive: settings in config.json, numbers in model.weights.h5. No class it names is instantiated."""
    h5py = import_extra("h5py", "keras", f"reading {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            settings = _layer_settings(config)
            with archive.open("model.weights.h5") as inner, h5py.File(inner, "r") as file:
                _add_paths(settings, config, file.get("layers", file.get(_LAYERS_ONCE, {})))
                return File(path, "Keras model", _arrays_of_hdf5(file, h5py), settings=settings)
    except (*_DAMAGED, *_DAMAGED_ZIP) as error:
        raise ValueError(f"{path} is not a usable Keras archive: {_reason(error)}") from error


def _arrays_of_hdf5(file: Any, h5py: ModuleType) -> dict[str, Array]:
    """Every array by its path, with Keras 3's numbers for a cell's variables replaced by their names.

    Keras 3 stores a cell as `layers/lstm/cell/vars/0` and so on. The layer's own name, numbered across the program, is
    in an attribute; names here come from the path, which is numbered within the file.
    """
    arrays: dict[str, Array] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        name = name.removeprefix(f"{_LAYERS_ONCE}/")
        match = re.fullmatch(r"(?:layers/)?((?:[^/]+/)*)vars/([0-9]+)", name)
        if match is not None:
            number = int(match[2])
            of_cell = re.search(r"cell(?:_[0-9]+)?/$", match[1]) and _is_lstm_cell(item.parent)
            name = f"{match[1]}{_CELL_VARIABLES[number] if of_cell and number < len(_CELL_VARIABLES) else number}"
        arrays[name.removesuffix(":0").removeprefix("model_weights/")] = np.asarray(item)

    file.visititems(visit)
    return {name: values for name, values in arrays.items() if not name.startswith("optimizer")}


def _is_lstm_cell(variables: Any) -> bool:
    """Whether the numbered variables of a cell are an LSTM's: the second one has the columns of four gates."""
    second = variables.get("1")
    return second is not None and len(second.shape) == 2 and second.shape[1] == 4 * second.shape[0]


def _layer_settings(config: Any) -> dict[str, dict[str, Any]]:
    """The settings of every layer by its name, at any depth of the configuration.

    If a name recurs with other settings, a number is added to the later key.
    """
    found: dict[str, dict[str, Any]] = {}
    sequences: list[list[Any]] = []
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            inner = value.get("config")
            if isinstance(inner, dict) and isinstance(inner.get("name"), str):
                source = _FIRST_SOURCE.search(json.dumps(value.get("inbound_nodes")))
                settings = {
                    **inner,
                    "class_name": str(value.get("class_name")),
                    "source": (source[1] or source[2]) if source else None,
                }
                name = inner["name"]
                if name in found and found[name] != settings:
                    name = f"{name} ({len(found)})"
                found[name] = settings
            if value.get("class_name") == "Sequential":
                sequences.append(_layers_of(value))
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    for layers in sequences:  # these name no sources: each layer reads the one before
        names = [layer["config"].get("name") for layer in layers]
        for below, name in zip(names, names[1:], strict=False):
            if name in found and found[name]["source"] is None:
                found[name]["source"] = below
    return found


def _layers_of(model: Mapping[str, Any]) -> list[Any]:
    """The configurations of a model's layers; before Keras 2.2.3 a Sequential's config is the list itself."""
    inner = model.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    return [each for each in layers or [] if isinstance(each, dict) and isinstance(each.get("config"), dict)]


_FIRST_SOURCE = re.compile(r'"keras_history": \["([^"]+)"|\[\[\["([^"]+)"')  # Keras 3, then older


def _add_paths(settings: dict[str, dict[str, Any]], model: Mapping[str, Any], groups: Any, scope: str = "") -> None:
    """Add to the settings of a model's layers the prefix of their variables' names.

    groups: the layers' groups in the weight file. Keras 3 stores a layer's own name as an attribute; files without it
    number the layers of each class in their order.
    """
    own_names = {
        str(group["vars"].attrs["name"]): path
        for path, group in groups.items()
        if "vars" in group and "name" in group["vars"].attrs
    }
    counted: dict[str, int] = {}
    for layer in _layers_of(model):
        snake = _snake_case(str(layer.get("class_name")))
        number = counted[snake] = counted.get(snake, -1) + 1
        given, name = layer["config"], layer["config"].get("name")
        path = own_names.get(name, f"{snake}_{number}" if number else snake)
        alike = [each for each in settings.values() if all(each.get(key) == given[key] for key in given)]
        free = next((each for each in alike if "path" not in each), None)
        if free is not None:
            free["path"] = scope + path
        elif alike:  # the same name and settings in another model
            settings[f"{name} ({len(settings)})"] = {**alike[0], "path": scope + path}
        if "layers" in given and path in groups and "layers" in groups[path]:
            _add_paths(settings, layer, groups[path]["layers"], f"{scope}{path}/layers/")


def _snake_case(name: str) -> str:
    """The name of a class as in Keras' paths: InputLayer becomes input_layer, Custom>Mine becomes mine."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name.rpartition(">")[2]))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


# --- ONNX -------------------------------------------------------------------------------------------------------------


def read_onnx(path: Path) -> File:
    """The stored arrays of an ONNX model, and its LSTM nodes; the graph may compute their weights from stored ones."""
    onnx = import_extra("onnx", "onnx", f"reading {path}")
    model = onnx_nodes.read_model(path)
    try:
        arrays = {each.name: np.asarray(onnx.numpy_helper.to_array(each)) for each in model.graph.initializer}
        nodes = onnx_nodes.lstm_nodes(Graph(model))
    except _DAMAGED as error:
        raise ValueError(f"{path} is not a usable ONNX model: {_reason(error)}") from error
    lstms = []
    for stack in onnx_nodes.stacks(nodes):
        names: dict[str, str] = {}
        for k, node in enumerate(stack):
            scope = f"layer{k}." if len(stack) > 1 else ""
            names |= {f"{scope}{letter}": value for letter, value in node.values.items()}
            arrays |= {value: node.arrays[letter] for letter, value in node.values.items() if letter in node.arrays}
        lstms.append(
            FoundLSTM(
                stack[0].name, LayoutArrays(onnx_nodes.stack_arrays(stack), "onnx"), names,
                notes=tuple(note for node in stack for note in node.notes),
                differs=tuple(_onnx_difference(node) for node in stack if _onnx_difference(node)),
                coupled_gates=stack[0].input_forget,
            )
        )
    return File(path, "ONNX model", arrays, lstms=tuple(lstms))


def _onnx_difference(node: onnx_nodes.LSTMNode) -> str:
    try:
        node.refuse_what_differs()
    except ValueError as error:
        return str(error)
    return ""


FORMATS = {
    "torch": Format("PyTorch (.pt, .pth)", "a file of torch.save", read_torch, (".pt", ".pth")),
    "safetensors": Format("safetensors", "a safetensors file", read_safetensors, (".safetensors",)),
    "npz": Format("NumPy (.npz)", "a NumPy .npz archive", read_npz, (".npz",)),
    "hdf5": Format("Keras (.h5, .weights.h5, .keras)", "an HDF5 file", read_hdf5, (".h5", ".hdf5")),
    "keras": Format("", "a Keras archive", read_keras, (".keras",)),
    "bundle": Format(
        "TensorFlow checkpoints and SavedModel folders", "the index of a checkpoint", read_bundle, (".index",)
    ),
    "onnx": Format("ONNX", "an ONNX model", read_onnx, (".onnx",)),
}
