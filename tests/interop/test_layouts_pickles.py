"""Checkpoints of PyTorch with more than weights in them: harmless values are no hindrance, code stays refused.

That code is not executed is seen by a trap: what a loader that executes it would leave behind.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import os
import pathlib
import pickle
import sys
import threading
import types
import typing
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lstmfast.layouts import load, pickles, read

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")
if not hasattr(torch.serialization, "safe_globals"):
    pytest.skip("PyTorch before 2.5 has no safe_globals", allow_module_level=True)


@pytest.fixture
def module() -> Any:
    return torch.nn.LSTM(3, 4)


HARMLESS = {
    "NumPy scalars": {"loss": np.float64(0.5), "step": np.int64(3), "best": np.bool_(True), "half": np.float16(1)},
    "NumPy arrays": {"history": np.arange(6.0).reshape(2, 3), "ids": np.array([1, 2]), "words": np.array(["a", "bc"])},
    "a NumPy array of objects": np.array([1, "a", None], dtype=object),
    "a NumPy dtype": np.dtype("float32"),
    "a Namespace": argparse.Namespace(lr=0.1, hidden=[4, 4], path=pathlib.Path("a/b"), inner=argparse.Namespace()),
    "a SimpleNamespace": types.SimpleNamespace(lr=0.1),
    "an OrderedDict": collections.OrderedDict(a=1, b=collections.OrderedDict()),
    "a defaultdict": collections.defaultdict(list, {"train": [1.0, 2.0]}),
    "a defaultdict of floats": collections.defaultdict(float, {"train": 1.0}),
    "a deque": collections.deque([1, 2], maxlen=3),
    "a Counter": collections.Counter("abca"),
    "paths": [pathlib.Path("a"), pathlib.PurePosixPath("/b"), pathlib.PureWindowsPath("c:\\d")],
    "a Size": torch.Size([3, 4]),
    "a dtype and a device": (torch.float32, torch.device("cpu")),
    "dates": [datetime.datetime(2020, 1, 2), datetime.date(2020, 1, 2), datetime.timedelta(3), datetime.time(4)],
    "a date with a zone": datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
    "sets": [{1, 2}, frozenset({3})],
    "numbers": [1 + 2j, decimal.Decimal("1.5"), fractions.Fraction(1, 3), range(3), slice(1, 2)],
    "bytes": [b"abc", bytearray(b"d")],
    "types": [int, float, str, list, dict],
    "a UUID": uuid.UUID(int=7),
    "the version of PyTorch": torch.__version__,
    "a dict with keys of all kinds": {1: "a", (1, 2): "b", pathlib.Path("p"): "c", np.int64(4): "d"},
    "an annotation": typing.Any,
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", HARMLESS)
def test_harmless_values_beside_the_weights_are_no_hindrance(
    what: str, zipped: bool, module: Any, tmp_path: Path
) -> None:
    contents = {"state_dict": module.state_dict(), "epoch": 3, "more": HARMLESS[what]}
    torch.save(contents, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    weights = load(tmp_path / "w.pt")
    assert_array_equal(weights.cells[0].kernel[:3].T, module.weight_ih_l0.detach().numpy())


def test_all_of_them_together_are_no_hindrance(module: Any, tmp_path: Path) -> None:
    torch.save({"hyper_parameters": HARMLESS, "state_dict": module.state_dict()}, tmp_path / "w.ckpt")
    assert load(tmp_path / "w.ckpt").hidden_size == 4


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_weights_that_are_numpy_arrays_are_read(dtype: str, order: Any, module: Any, tmp_path: Path) -> None:
    arrays = {name: np.asarray(values.numpy(), dtype, order=order) for name, values in module.state_dict().items()}
    torch.save({"model": arrays}, tmp_path / "w.pt")
    found = read(tmp_path / "w.pt").arrays
    for name, values in arrays.items():
        assert_array_equal(found[f"model.{name}"], values)
        assert found[f"model.{name}"].dtype == np.dtype(dtype).newbyteorder("=")


def test_a_numpy_array_that_is_not_what_it_says_is_left_out(module: Any, tmp_path: Path) -> None:
    class Short:
        def __reduce__(self) -> tuple[Any, ...]:
            function, arguments, state = np.arange(4.0).__reduce__()
            return function, arguments, (state[0], (99,), *state[2:])

    torch.save({"model": module.state_dict(), "more": Short()}, tmp_path / "w.pt")
    assert "more" not in read(tmp_path / "w.pt").arrays


class Trap:
    """Unpickled by a loader that executes what it reads, it calls something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def touched(path: Path) -> list[Trap]:
    """Ways to leave a file or a folder behind."""
    return [
        Trap(os.mkdir, str(path)),
        Trap(eval, f"open({str(path)!r}, 'w')"),
        Trap(exec, f"open({str(path)!r}, 'w')"),
        Trap(os.system, f"touch {path}"),
        Trap(pathlib.Path.touch, path),
        Trap(np.save, str(path), 1),
        Trap(getattr, pathlib.Path(path), "touch"),
    ]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("around", [None, "Namespace", "array", "defaultdict", "dict"])
def test_code_beside_or_within_harmless_values_is_refused_and_never_executed(
    number: int, around: str | None, module: Any, tmp_path: Path
) -> None:
    trap = touched(tmp_path / "sprung")[number]
    within: dict[Any, Any] = {
        None: trap,
        "Namespace": argparse.Namespace(a=np.float64(1), b=trap),
        "array": np.array([trap], dtype=object),
        "defaultdict": collections.defaultdict(list, {"a": trap}),
        "dict": {"a": np.float32(1), "b": trap},
    }
    torch.save({"state_dict": module.state_dict(), "more": within[around]}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="which is not executed: save model.state_dict"):
        read(tmp_path / "w.pt")
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "sprung.npy").exists()


def test_a_class_of_a_program_is_still_refused_by_name(module: Any, tmp_path: Path, monkeypatch: Any) -> None:
    made = types.ModuleType("their_program")
    made.Settings = type("Settings", (), {"__module__": "their_program"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_program", made)
    contents = {"state_dict": module.state_dict(), "loss": np.float64(1), "settings": made.Settings()}
    torch.save(contents, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt holds code \(their_program\.Settings\), which is not executed"):
        read(tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore")
def test_an_archive_of_torchscript_is_told_what_it_is(module: Any, tmp_path: Path) -> None:
    torch.jit.script(module).save(tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt is a TorchScript archive, whose code is not executed: save the"):
        read(tmp_path / "w.pt")


def test_a_dict_that_holds_itself_is_read(module: Any, tmp_path: Path) -> None:
    contents = {"model": module.state_dict()}
    contents["itself"] = contents
    torch.save(contents, tmp_path / "w.pt")
    assert [each.name for each in read(tmp_path / "w.pt").lstms] == ["model"]


def test_a_program_that_allows_its_own_classes_has_them_allowed(module: Any, tmp_path: Path) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):
        torch.save({"args": argparse.Namespace(a=1), "model": module.state_dict()}, tmp_path / "w.pt")
        assert load(tmp_path / "w.pt").hidden_size == 4
        assert argparse.Namespace in torch.serialization.get_safe_globals()


def test_nothing_is_allowed_for_longer_than_a_reading(module: Any, tmp_path: Path) -> None:
    torch.save({"model": module.state_dict(), "args": argparse.Namespace()}, tmp_path / "w.pt")
    before = set(map(repr, torch.serialization.get_safe_globals()))
    load(tmp_path / "w.pt")
    assert set(map(repr, torch.serialization.get_safe_globals())) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "w.pt", weights_only=True)


def test_several_threads_read_at_once(module: Any, tmp_path: Path) -> None:
    torch.save({"model": module.state_dict(), "args": argparse.Namespace(), "x": np.float64(1)}, tmp_path / "w.pt")
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.extend(load(tmp_path / "w.pt").hidden_size for _ in range(5)))
        for _ in range(4)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [4] * 20


@pytest.mark.parametrize("kind", [pickles.Opaque, pickles.DType, pickles.PickledArray])
@pytest.mark.parametrize("state", [None, (), (1, 2, 3, 4, 5), {"a": 1}, (1, ("x",), None, False, b""), "abc"])
def test_stand_ins_take_any_state(kind: Any, state: Any) -> None:
    made = kind("f8", 1, 2)
    made.__setstate__(state)
    assert getattr(made, "values", None) is None
