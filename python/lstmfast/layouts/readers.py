"""LSTMs from weight files: `read` lists everything in a file, `load` returns the weights of one LSTM in it.

This file resolves paths. `files` and `tensor_bundle` parse the formats, `finder` decides which arrays form an LSTM.
Refuses to write files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lstmfast._checks import Array
from lstmfast.layouts import files, finder
from lstmfast.layouts.finder import FoundLSTM
from lstmfast.layouts.weights import SETTINGS, LSTMWeights


@dataclass(frozen=True, eq=False)
class Contents:
    """Contents of a file: its kind in words, its LSTMs, and all arrays by name, including those of the LSTMs."""

    path: Path
    kind: str
    lstms: tuple[FoundLSTM, ...]
    arrays: Mapping[str, Array]
    notes: tuple[str, ...] = ()


def read(path: str | os.PathLike[str], *, layout: str | None = None) -> Contents:
    """Every array and every LSTM of a file of weights.

    Reads PyTorch's .pt and .pth (dicts of tensors; code is refused), safetensors, .npz, Keras' .h5, .weights.h5 and
    .keras, TensorFlow checkpoints (the prefix, the .index or the folder) and SavedModel folders, ONNX, and lstmfast's
    run folders. layout: one of `LAYOUTS`, if names alone do not identify it (haste weights in an .npz, for example).
    Raises OSError if the file cannot be read, ImportError naming the extra to install for a missing library, and
    ValueError naming the file for anything else.
    """
    found = _resolved(Path(path))
    file = files.FORMATS[files.kind_of(found)].read(found)
    lstms = file.lstms
    if lstms is None or layout is not None:
        lstms = tuple(
            finder.find(
                file.arrays, layout_name=layout, forget_bias=file.forget_bias, settings=file.settings,
                unsaid=file.unsaid,
            )
        )
    if (cell := file.cell) is not None:
        options = {name: getattr(cell, name) for name in SETTINGS}
        lstms = tuple(
            replace(each, cell_clip=cell.cell_clip, coupled_gates=cell.coupled_gates, options=options)
            for each in lstms
        )
    return Contents(Path(path), file.kind, lstms, file.arrays, file.notes)


def load(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    layout: str | None = None,
    forget_bias: float | None = None,
) -> LSTMWeights:
    """The weights of the LSTM in a file; `name` selects one of several. Other arguments as in `read` and `convert`.

    Raises ValueError listing the names if there are several, or if none has this name.
    """
    contents = read(path, layout=layout)
    found = [each for each in contents.lstms if name is None or each.name == name]
    if len(found) != 1:
        if not contents.lstms:
            raise ValueError(
                f"{path} holds no LSTM: its arrays are {', '.join(contents.arrays) or 'none'} (pass layout if the "
                "names do not identify the library)"
            )
        names = ", ".join(repr(each.name) for each in contents.lstms)
        if name is None:
            raise ValueError(f"name must choose one of the LSTMs in {path}: {names}")
        raise ValueError(f"name must be one of the LSTMs in {path}: {names}, got {name!r}")
    try:
        return found[0].weights(forget_bias=forget_bias)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def _resolved(path: Path) -> Path:
    """The file to read: in a folder, a run's checkpoint, TensorFlow's latest or a SavedModel's variables; for a prefix,
    its index."""
    if path.name == "saved_model.pb" and path.is_file():
        path = path.parent
    if path.is_dir():
        for inner in ("checkpoint.safetensors", "variables/variables.index", "variables.index"):
            if (path / inner).exists():
                return path / inner
        if (path / "checkpoint").exists():
            return _latest(path)
        raise FileNotFoundError(
            f"{path} contains neither an lstmfast or TensorFlow checkpoint nor the variables of a SavedModel"
        )
    index = path.with_name(f"{path.name}.index")
    if not path.exists() and index.exists():
        return index
    of_checkpoint = re.fullmatch(r"(.+)\.(?:data-\d{5}-of-\d{5}|meta)", path.name)
    if of_checkpoint and (index := path.with_name(f"{of_checkpoint[1]}.index")).exists():
        return index
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return path


def _latest(folder: Path) -> Path:
    """The index that TensorFlow's file `checkpoint` names, looked up in this folder wherever it was written."""
    words = (folder / "checkpoint").read_text(encoding="utf-8", errors="replace")
    match = re.search(r'^model_checkpoint_path: "([^"]+)"', words, re.MULTILINE)
    if match is None:
        raise ValueError(f"{folder / 'checkpoint'} does not name a TensorFlow checkpoint")
    return folder / f"{Path(match[1]).name}.index"
