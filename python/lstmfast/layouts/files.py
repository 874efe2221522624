"""Files of weights as dicts of named arrays: PyTorch, safetensors, NumPy, Keras, TensorFlow 1 checkpoints, our runs.

A file is known by how it begins and held against its name. What a file says is never executed: pickles are read by
PyTorch's weights-only loader or not at all. Libraries are imported where they are needed, and an error names the extra
that brings them. Refuses to say which arrays belong to an LSTM (see `finder`); ONNX, which says it itself, has a reader
of its own (see `onnx_files`).
"""

from __future__ import annotations

import importlib
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lstmfast._checks import Array
from lstmfast.layouts import tensor_bundle


@dataclass(frozen=True, eq=False)
class File:
    """What a file holds: `kind` in words, arrays by name, and what else it says.

    forget_bias: what its program adds at run time, where it tells. settings: of Keras layers, by layer name.
    """

    path: Path
    kind: str
    arrays: dict[str, Array]
    forget_bias: float | None = None
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def need(module: str, extra: str, what: str) -> ModuleType:
    """Import a library that is not always there. Raises ImportError naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module}, which is not installed: pip install 'lstmfast[{extra}]'") from error


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
    """What kind of file this is: a key of `_WORDS`. Raises ValueError in one sentence if it is none, or not as named."""
    claimed = _SUFFIXES.get(path.suffix.lower())
    found = _kind_by_contents(path)
    if claimed and found in (None, claimed) and not (found is None and claimed != "onnx"):
        return claimed
    if found == "pickle" and claimed in ("torch", None):
        return "torch"  # what torch.save wrote before 1.6; the loader refuses any other pickle
    if claimed:
        what = f"it is {_WORDS[found]}" if found else "it does not begin like one"
        raise ValueError(f"{path} is not {_WORDS[claimed]}, as its name says: {what}")
    if found is None:
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
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    return "bundle" if tensor_bundle.is_index(path) else None


def _kind_of_zip(path: Path) -> str | None:
    try:
        names = zipfile.ZipFile(path).namelist()
    except zipfile.BadZipFile as error:
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
            notes.append(f"{name} is bfloat16 in the file and was widened to float32, which is exact.")
        if tensor.layout == torch.strided and not tensor.is_quantized:
            arrays[name] = tensor.detach().resolve_conj().numpy()
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
    """Every tensor that stands in dicts under names, by their path; lists and numbered entries are no weights' names."""
    if isinstance(value, kind):
        tensors[scope.removesuffix(".")] = value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if isinstance(name, str):
                _collect(tensors, f"{scope}{name}.", inner, kind)


def read_safetensors(path: Path) -> File:
    """A safetensors file of any program; of lstmfast's own, its run is asked what it adds at run time."""
    from safetensors import SafetensorError, safe_open

    arrays = {}
    try:
        with safe_open(path, framework="np") as file:
            words = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118: no dict
                arrays[name] = file.get_tensor(name)
    except (SafetensorError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no safetensors file that can be used: {error}") from error
    if words.get("format") == "lstmfast":
        return _our_run(path, arrays, words)
    return File(path, "safetensors", arrays)


def _our_run(path: Path, arrays: dict[str, Array], words: Mapping[str, str]) -> File:
    from lstmfast.trainer import is_parameter

    parameters = {name: values for name, values in arrays.items() if is_parameter(name)}
    try:
        forget_bias = float(json.loads(words["config"])["model"]["forget_bias"])
    except (KeyError, TypeError, ValueError):
        forget_bias = None
    return File(path, "lstmfast checkpoint", parameters, forget_bias=forget_bias)


def read_npz(path: Path) -> File:
    """NumPy's archive. Arrays of objects are pickles and are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return File(path, "NumPy archive", {name: archive[name] for name in archive.files})
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        why = "it holds pickled objects, which are not loaded" if "allow_pickle" in str(error) else str(error)
        raise ValueError(f"{path} is no .npz archive that can be used: {why}") from error


def read_bundle(path: Path) -> File:
    """A TensorFlow checkpoint by its index."""
    arrays, left_out = tensor_bundle.read(path.with_name(path.name.removesuffix(".index")))
    notes = [f"{name} is partitioned and was left out." for name in left_out]
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
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no HDF5 file of Keras that can be used: {error}") from error


def read_keras(path: Path) -> File:
    """Keras 3's archive: settings in config.json, numbers in model.weights.h5. No class that it names is made."""
    h5py = need("h5py", "keras", f"reading {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            settings = _layer_settings(json.loads(archive.read("config.json")))
            with archive.open("model.weights.h5") as inner, h5py.File(inner, "r") as file:
                return File(path, "Keras model", _arrays_of_hdf5(file, h5py), settings=settings)
    except (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no Keras archive that can be used: {error}") from error


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
            known = _is_lstm_cell(item.parent) and match[1].endswith("cell/") and number < len(_CELL_VARIABLES)
            name = f"{match[1]}{_CELL_VARIABLES[number] if known else match[2]}"
        arrays[name.removesuffix(":0").removeprefix("model_weights/")] = np.asarray(item)

    file.visititems(visit)
    return {name: values for name, values in arrays.items() if not name.startswith("optimizer")}


def _is_lstm_cell(variables: Any) -> bool:
    """Whether the numbered variables of a cell are those of an LSTM: four gates in the second one's columns."""
    second = variables.get("1")
    return second is not None and len(second.shape) == 2 and second.shape[1] == 4 * second.shape[0]


def _layer_settings(config: Any) -> dict[str, Mapping[str, Any]]:
    """The settings of every layer by its name, wherever in the configuration it stands."""
    found: dict[str, Mapping[str, Any]] = {}
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            inner = value.get("config")
            if isinstance(inner, dict) and isinstance(inner.get("name"), str):
                found[inner["name"]] = inner
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return found


READERS: dict[str, Callable[[Path], File]] = {
    "torch": read_torch,
    "safetensors": read_safetensors,
    "npz": read_npz,
    "hdf5": read_hdf5,
    "keras": read_keras,
    "bundle": read_bundle,
}
