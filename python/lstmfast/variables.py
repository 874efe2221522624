"""Variables that notice when they are written: NumPy arrays whose views share a count of writes.

A layer packs its weights for the kernels once and packs them anew only after a write; this is how it knows. Indexing,
in-place operators, `out=` and the functions and methods of NumPy that write are all seen, through any view.
Refuses to watch what goes around NumPy or strips this type off: `np.asarray(variable)`, `memoryview`, another library
that shares the memory. After such a write call `wrote`, or the layer's `weights_changed`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class Writes:
    """How often the variables of one buffer have been written, or may have been."""

    def __init__(self) -> None:
        self.count = 0


class Variable(np.ndarray[Any, np.dtype[Any]]):
    """An array that counts its writes. Results of arithmetic are ordinary arrays; views are variables too."""

    writes: Writes | None = None

    @classmethod
    def watch(cls, array: npt.NDArray[Any]) -> Variable:
        """Return a view of an array that counts writes from 0."""
        variable = array.view(cls)
        variable.writes = Writes()
        return variable

    def __array_finalize__(self, source: Any) -> None:
        self.writes = getattr(source, "writes", None)

    def __setitem__(self, key: Any, value: Any) -> None:
        wrote(self)
        super().__setitem__(key, value)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        written = inputs[:1] if method == "at" else options.get("out", ())
        for array in written:
            wrote(array)
        result = getattr(ufunc, method)(*map(_plain, inputs), **{k: _plain_all(v) for k, v in options.items()})
        if not options.get("out"):
            return result
        results = result if isinstance(result, tuple) else (result,)
        given = tuple(r if o is None else o for o, r in zip(options["out"], results, strict=True))
        return given if isinstance(result, tuple) else given[0]

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        # copyto, put, place, putmask, fill_diagonal, ...: which of them write is NumPy's business, so all count.
        for argument in (*args, *options.values()):
            wrote(argument)
        return super().__array_function__(function, types, args, options)

    @property
    def flat(self) -> Any:
        """As of any array. Counts as a write, because one may follow."""
        wrote(self)
        return super().flat

    @flat.setter
    def flat(self, values: Any) -> None:
        wrote(self)
        np.ndarray.flat.__set__(self, values)  # type: ignore[attr-defined]


def _counting(name: str) -> Any:
    method = getattr(np.ndarray, name)

    def counted(self: Variable, *args: Any, **options: Any) -> Any:
        wrote(self)
        return method(self, *args, **options)

    counted.__doc__, counted.__name__ = method.__doc__, name
    return counted


for _name in ("fill", "put", "sort", "partition", "setfield", "byteswap", "resize", "__setstate__"):
    setattr(Variable, _name, _counting(_name))


def wrote(array: object) -> None:
    """Count a write to an array, if it is a variable."""
    if isinstance(array, Variable) and array.writes is not None:
        array.writes.count += 1


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Variable) else value


def _plain_all(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, tuple) else _plain(value)
