"""Runs a Python program with every nn.LSTM and nn.LSTMCell served by lstmfast.

The program runs as `python SCRIPT.py` or `python -m MODULE` would run it: the same sys.argv, sys.path, __main__, exit
status and traceback. Processes that `multiprocessing` starts are served too, whatever the start method; other Python
processes are not.
"""

from __future__ import annotations

import atexit
import importlib.abc
import importlib.machinery
import importlib.util
import io
import multiprocessing.spawn
import os
import sys
import types
from typing import Any, NoReturn

from lstmfast.torch.patching import patch
from lstmfast.torch.report import report
from lstmfast.torch.serving import EVERYWHERE

USAGE = "usage: python -m lstmfast.torch [--report] (SCRIPT.py | -m MODULE) [ARGS]"


def main(arguments: list[str]) -> None:
    """Run what the command line names. Exits with status 2, after one sentence, where there is no such program."""
    with_report, rest = False, list(arguments)
    while rest and rest[0] in ("--report", "-h", "--help"):
        if rest.pop(0) != "--report":
            print(f"{USAGE}\n\n{__doc__}\n--report: at the end, print to stderr who served each LSTM, and for how long")
            return
        with_report = True
    if not rest or (rest[0] == "-m" and len(rest) == 1):
        _refuse(USAGE)
    if rest[0].startswith("-") and rest[0] != "-m":
        _refuse(f"unknown option {rest[0]}; {USAGE}")
    is_module = rest[0] == "-m"
    name, *rest = rest[1:] if is_module else rest
    code, attributes = _module(name) if is_module else _script(name)
    sys.argv[:] = [attributes["__file__"] if is_module else name, *rest]
    if not is_module and not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(name))
    _serve(with_report)
    _run(code, attributes)


def _refuse(sentence: str) -> NoReturn:
    print(f"lstmfast.torch: {sentence}", file=sys.stderr)
    raise SystemExit(2)


# --- the program ------------------------------------------------------------------------------------------------------


def _script(path: str) -> tuple[Any, dict[str, Any]]:
    """The code of a script, and what its __main__ has besides."""
    if os.path.isdir(path):
        _refuse(f"{path} is a directory; name a script, or a package with -m")
    try:
        with io.open_code(os.path.abspath(path)) as file:
            source = file.read()
    except OSError as error:
        _refuse(f"cannot read {path}: {error.strerror}")
    if source.startswith(b"PK\x03\x04"):
        _refuse(f"{path} is an archive; name a script, or a module with -m")
    file_name = os.path.abspath(path)
    loader = importlib.machinery.SourceFileLoader("__main__", file_name)
    attributes = {"__file__": file_name, "__loader__": loader, "__package__": None, "__spec__": None}
    return _Source(source, file_name), attributes


def _module(name: str) -> tuple[Any, dict[str, Any]]:
    """The code of a module, or of a package's __main__, and what its __main__ has besides."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            package, spec = name, importlib.util.find_spec(f"{name}.__main__")
            if spec is None:
                _refuse(f"{package} is a package without __main__")
    except (ImportError, ValueError) as error:
        _refuse(f"cannot find the module {name}: {error}")
    if spec is None:
        _refuse(f"there is no module {name}")
    code = spec.loader.get_code(spec.name) if isinstance(spec.loader, importlib.abc.InspectLoader) else None
    if code is None:
        _refuse(f"the module {name} has no Python code")
    return code, {
        "__file__": spec.origin, "__loader__": spec.loader, "__package__": spec.parent, "__spec__": spec,
        "__cached__": spec.cached,
    }


class _Source:
    """A script that is compiled where its errors are reported as the program's."""

    def __init__(self, source: bytes, name: str) -> None:
        self.source, self.name = source, name


def _run(code: Any, attributes: dict[str, Any]) -> None:
    """Execute it as __main__. What it raises is reported as if nobody had called it."""
    program = types.ModuleType("__main__")
    program.__dict__.update(attributes, __builtins__=sys.modules["builtins"])
    usual = vars(sys.modules["__main__"])  # versions of Python differ
    for name, value in _SOMETIMES.items():
        if name in usual:
            program.__dict__.setdefault(name, value)
    _kept.append(sys.modules["__main__"])
    sys.modules["__main__"] = program
    try:
        if isinstance(code, _Source):
            code = compile(code.source, code.name, "exec", dont_inherit=True)
        exec(code, program.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
            traceback = traceback.tb_next
        error.__traceback__ = traceback
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, traceback
        sys.excepthook(type(error), error, traceback)
        # The shell's status of a program that SIGINT has ended.
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None


_SOMETIMES: dict[str, Any] = {"__annotations__": {}, "__cached__": None}
_kept: list[types.ModuleType] = []  # a module that is dropped has its names cleared


# --- served -----------------------------------------------------------------------------------------------------------


def _serve(with_report: bool) -> None:
    patch(report=with_report)
    if with_report:
        atexit.register(_print_report, os.getpid())
    prepare = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name: str) -> _Preparation:
        return _Preparation(prepare(name))

    multiprocessing.spawn.get_preparation_data = get_preparation_data


def _print_report(process: int) -> None:
    if os.getpid() == process:  # no forked child that ends as its parent does
        print(f"\n{report()}", file=sys.stderr)


class _Preparation(dict[str, Any]):
    """What multiprocessing tells a new process first; unpickling it patches that process."""

    def __reduce__(self) -> Any:
        return _in_new_process, (dict(self),)


def _in_new_process(data: dict[str, Any]) -> dict[str, Any]:
    if not EVERYWHERE:
        patch()
    return data
