"""Files of weights as dicts of named arrays: PyTorch, safetensors, NumPy, Keras, TensorFlow 1 checkpoints, our runs.

A file is known by how it begins and held against its name. What a file says is never executed: pickles are read by
PyTorch's weights-only loader or not at all. Libraries are imported where they are needed, and an error names the extra
that brings them. Refuses to say which arrays belong to an LSTM (see `finder`), but for ONNX, whose nodes say it.
"""

from __future__ import annotations

import importlib
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lstmfast import checkpoint
from lstmfast._checks import Array
from lstmfast.layouts import onnx_nodes, tensor_bundle
from lstmfast.layouts.converters import LayoutArrays
from lstmfast.layouts.finder import FoundLSTM
from lstmfast.layouts.onnx_graph import Graph
from lstmfast.layouts.tensor_bundle import widened_bfloat16


@dataclass(frozen=True, eq=False)
class File:
    """What a file holds: `kind` in words, arrays by name, and what else it says.

    forget_bias: what its program adds at run time, where it tells. settings: of Keras layers, by layer name, with
    `class_name`, `source` (the layer it reads first) and `path` (what its variables' names begin with). lstms: where
    the file itself says which they are.
    """

    path: Path
    kind: str
    arrays: dict[str, Array]
    forget_bias: float | None = None
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lstms: tuple[FoundLSTM, ...] | None = None


def need(module: str, extra: str, what: str) -> ModuleType:
    """Import a library that is not always there. Raises ImportError naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module}, which is not installed: pip install 'lstmfast[{extra}]'") from error


# What the readers of NumPy, h5py and zipfile raise for files that are damaged or lie about themselves.
_DAMAGED = (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, MemoryError)
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error)


def _reason(error: BaseException) -> str:
    """What a library says is wrong, on one line."""
    words = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(words).split())[:160] or type(error).__name__


# --- which kind -------------------------------------------------------------------------------------------------------

_SUFFIXES = {
    ".pt": "torch", ".pth": "torch", ".safetensors": "safetensors", ".npz": "npz", ".h5": "hdf5", ".hdf5": "hdf5",
    ".keras": "keras", ".onnx": "onnx", ".index": "bundle",
}  # fmt: skip
_WORDS = {
    "torch": "a file of torch.save", "safetensors": "a safetensors file", "npz": "a NumPy .npz archive",
    "hdf5": "an HDF5 file", "keras": "a Keras archive", "onnx": "an ONNX model", "bundle": "the index of a checkpoint",
    "zip": "a zip archive of another kind", "pickle": "a pickle",
}  # fmt: skip


def kind_of(path: Path) -> str:
    """The kind of a file: a key of `_WORDS`. Raises ValueError in one sentence if it is none, or not as named."""
    claimed = _SUFFIXES.get(path.suffix.lower())
    found = _kind_by_contents(path)
    if found == "pickle" and claimed in ("torch", None):
        return "torch"  # what torch.save wrote before 1.6; the loader refuses any other pickle
    if found is None and claimed == "onnx":
        return "onnx"  # its messages have no beginning to know them by
    if claimed and found != claimed:
        what = f"it is {_WORDS[found]}" if found else "it does not begin like one"
        raise ValueError(f"{path} is not {_WORDS[claimed]}, as its name says: {what}")
    if found is None or found == "zip":
        raise ValueError(
            f"{path} is no file of weights that can be read: it is none of PyTorch, safetensors, .npz, Keras, "
            "TensorFlow checkpoint, ONNX and lstmfast run"
        )
    return found


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
        raise ValueError(f"{path} begins like a zip archive, but is cut short or damaged") from error
    if "model.weights.h5" in names:
        return "keras"
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"


# --- readers ----------------------------------------------------------------------------------------------------------


def read_torch(path: Path) -> File:
    """What torch.save wrote: a state_dict, or dicts that hold some. No code in it is executed: it is refused."""
    torch = need("torch", "torch", f"reading {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it cannot read it says more in its error
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(_torch_refusal(path, str(error))) from error
    tensors: dict[str, Any] = {}
    _collect(tensors, "", contents, torch.Tensor)
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name: it holds a {type(contents).__name__}")
    arrays, notes = {}, []
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
            notes.append(_WIDENED.format(name))
        try:
            arrays[name] = tensor.detach().resolve_conj().numpy()
        except (TypeError, RuntimeError):  # sparse, quantized, or of a type that NumPy has not
            notes.append(f"{name} is a {tensor.dtype} tensor of a kind that NumPy has not, and was left out.")
    return File(path, "PyTorch state_dict", arrays, notes=tuple(notes))


def _torch_refusal(path: Path, said: str) -> str:
    """One sentence of what PyTorch says in a page."""
    found = re.search(r"GLOBAL (\S+)|Unsupported (?:class|global):? ?(?:GLOBAL )?(\S+)", said)
    if found:
        return (
            f"{path} holds code ({(found[1] or found[2]).rstrip('.,')}), which is not executed: "
            "save model.state_dict() instead of the model"
        )
    if "weights only" in said.lower() or "weights_only" in said:
        return f"{path} holds more than weights, which is refused: save model.state_dict() instead of the model"
    return f"{path} is no file of torch.save that can be used: {' '.join(said.split())[:160]}"


def _collect(tensors: dict[str, Any], scope: str, value: Any, kind: type) -> None:
    """Every tensor that stands in dicts under names, by their path; lists and numbered entries name no weights."""
    if isinstance(value, kind):
        tensors[scope.removesuffix(".")] = value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if isinstance(name, str):
                _collect(tensors, f"{scope}{name}.", inner, kind)


def read_safetensors(path: Path) -> File:
    """A safetensors file of any program; of lstmfast's own, its run is asked what it adds at run time."""
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
                notes.append(f"{name} is of type {tensor['dtype']}, which is not read, and was left out.")
                continue
            values = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
            if tensor["dtype"] == "BF16":
                values = widened_bfloat16(values)
                notes.append(_WIDENED.format(name))
            arrays[name] = values.astype(values.dtype.newbyteorder("="), copy=False)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file that can be used: {_reason(error)}") from error
    return File(path, "safetensors", arrays, notes=tuple(notes))


_WIDENED = "{} is bfloat16 in the file and was widened to float32, which is exact."
_SAFETENSORS_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def _our_run(path: Path) -> File:
    """A checkpoint of ours: the model's variables, and the forget bias that its settings say."""
    from lstmfast.run_folder import stored_config
    from lstmfast.trainer import is_parameter

    saved = checkpoint.load(path)
    parameters = {name: values for name, values in saved.tensors.items() if is_parameter(name)}
    return File(path, "lstmfast checkpoint", parameters, forget_bias=stored_config(saved).model.forget_bias)


def read_npz(path: Path) -> File:
    """NumPy's archive. Arrays of objects are pickles and are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return File(path, "NumPy archive", {name: archive[name] for name in archive.files})
    except (*_DAMAGED, *_DAMAGED_ZIP) as error:
        why = "it holds pickled objects, which are not loaded" if "allow_pickle" in str(error) else _reason(error)
        raise ValueError(f"{path} is no .npz archive that can be used: {why}") from error


def read_bundle(path: Path) -> File:
    """A TensorFlow checkpoint by its index."""
    arrays, notes = tensor_bundle.read(path)
    return File(path, "TensorFlow checkpoint", arrays, notes=tuple(notes))


# --- Keras ------------------------------------------------------------------------------------------------------------

_CELL_VARIABLES = ("kernel", "recurrent_kernel", "bias")


def read_hdf5(path: Path) -> File:
    """Keras' .weights.h5, or its older .h5 of a whole model or of weights."""
    h5py = need("h5py", "keras", f"reading {path}")
    try:
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
            settings = _layer_settings(json.loads(config)) if config is not None else {}
            return File(path, "Keras HDF5 weights", _arrays_of_hdf5(file, h5py), settings=settings)
    except _DAMAGED as error:
        raise ValueError(f"{path} is no HDF5 file of Keras that can be used: {_reason(error)}") from error


def read_keras(path: Path) -> File:
    """Keras 3's archive: settings in config.json, numbers in model.weights.h5. No class that it names is made."""
    h5py = need("h5py", "keras", f"reading {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            settings = _layer_settings(json.loads(archive.read("config.json")))
            with archive.open("model.weights.h5") as inner, h5py.File(inner, "r") as file:
                _add_paths(settings, file)
                return File(path, "Keras model", _arrays_of_hdf5(file, h5py), settings=settings)
    except (*_DAMAGED, *_DAMAGED_ZIP) as error:
        raise ValueError(f"{path} is no Keras archive that can be used: {_reason(error)}") from error


def _arrays_of_hdf5(file: Any, h5py: ModuleType) -> dict[str, Array]:
    """Every array by its path, with Keras 3's numbers for a cell's variables replaced by their names.

    Keras 3 keeps a cell as `layers/lstm/cell/vars/0` and so on, and its layer's name in an attribute, where it numbers
    layers as the program did; the path counts them within the file and is what they are called here.
    """
    arrays: dict[str, Array] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        match = re.fullmatch(r"(?:layers/)?((?:[^/]+/)*)vars/([0-9]+)", name)
        if match is not None:
            number = int(match[2])
            of_cell = re.search(r"cell(?:_[0-9]+)?/$", match[1]) and _is_lstm_cell(item.parent)
            name = f"{match[1]}{_CELL_VARIABLES[number] if of_cell and number < len(_CELL_VARIABLES) else number}"
        arrays[name.removesuffix(":0").removeprefix("model_weights/")] = np.asarray(item)

    file.visititems(visit)
    return {name: values for name, values in arrays.items() if not name.startswith("optimizer")}


def _is_lstm_cell(variables: Any) -> bool:
    """Whether the numbered variables of a cell are those of an LSTM: four gates in the second one's columns."""
    second = variables.get("1")
    return second is not None and len(second.shape) == 2 and second.shape[1] == 4 * second.shape[0]


def _layer_settings(config: Any) -> dict[str, dict[str, Any]]:
    """The settings of every layer by its name, wherever in the configuration it stands."""
    found: dict[str, dict[str, Any]] = {}
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            inner = value.get("config")
            if isinstance(inner, dict) and isinstance(inner.get("name"), str):
                source = _FIRST_SOURCE.search(json.dumps(value.get("inbound_nodes")))
                found[inner["name"]] = {
                    **inner,
                    "class_name": str(value.get("class_name")),
                    "source": (source[1] or source[2]) if source else None,
                }
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return found


_FIRST_SOURCE = re.compile(r'"keras_history": \["([^"]+)"|\[\[\["([^"]+)"')  # of Keras 3, and before


def _add_paths(settings: Mapping[str, dict[str, Any]], file: Any) -> None:
    """Tell the settings of layers under which name the file of weights has them; it keeps theirs as an attribute."""
    for path, group in file.get("layers", {}).items():
        name = str(group["vars"].attrs.get("name")) if "vars" in group else ""
        if name in settings:
            settings[name]["path"] = path


# --- ONNX -------------------------------------------------------------------------------------------------------------


def read_onnx(path: Path) -> File:
    """The stored arrays of an ONNX model, and its LSTM nodes, whose weights the graph may also make of stored ones."""
    onnx = need("onnx", "onnx", f"reading {path}")
    model = onnx_nodes.read_model(path)
    try:
        arrays = {each.name: np.asarray(onnx.numpy_helper.to_array(each)) for each in model.graph.initializer}
        nodes = onnx_nodes.lstm_nodes(Graph(model))
    except _DAMAGED as error:
        raise ValueError(f"{path} is no ONNX model that can be used: {_reason(error)}") from error
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
        )  # fmt: skip
    return File(path, "ONNX model", arrays, lstms=tuple(lstms))


def _onnx_difference(node: onnx_nodes.LSTMNode) -> str:
    try:
        node.refuse_what_differs()
    except ValueError as error:
        return str(error)
    return ""


READERS: dict[str, Callable[[Path], File]] = {
    "torch": read_torch,
    "safetensors": read_safetensors,
    "npz": read_npz,
    "hdf5": read_hdf5,
    "keras": read_keras,
    "bundle": read_bundle,
    "onnx": read_onnx,
}
