"""Variables by name, in scopes: the part of TensorFlow 1's graph that names and shares variables.

A `Graph` holds variables, the open scope and the generator that draws first values; there is always a default one.
Refuses to hold operations: nothing is deferred. One graph serves one thread at a time.
"""

from __future__ import annotations

import enum
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmfast import _checks as check
from lstmfast.compat.tf1 import initializers
from lstmfast.compat.tf1.initializers import Initializer
from lstmfast.initializers import Shape


class _AutoReuse(enum.Enum):
    AUTO_REUSE = enum.auto()


AUTO_REUSE: Final = _AutoReuse.AUTO_REUSE
"""As `reuse`: take the variable if it is there, make it if it is not."""

Reuse = bool | _AutoReuse | None


@dataclass(frozen=True)
class Operation:
    """A variable's operation: only a name, `rnn/basic_lstm_cell/kernel`, as in checkpoints."""

    name: str


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Variable) else value


def _plain_all(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, tuple) else _plain(value)


class Variable(np.ndarray[Any, np.dtype[Any]]):
    """An array with a name, `rnn/basic_lstm_cell/kernel:0`.

    Change it like any array: `variable -= rate * gradient`, `variable[...] = values`, `variable.assign(values)`.
    Cells notice. Its views have no name; results of arithmetic are ordinary arrays.
    """

    name: str = ""

    @classmethod
    def named(cls, name: str, values: npt.NDArray[Any]) -> Variable:
        """Return `values` as a variable; the name is given without ":0"."""
        variable = values.view(cls)
        variable.name = f"{name}:0"
        return variable

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        given = options.get("out", ())
        options = {name: _plain_all(value) for name, value in options.items()}
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        if not given:
            return result
        results = result if isinstance(result, tuple) else (result,)
        kept = tuple(r if o is None else o for o, r in zip(given, results, strict=True))
        return kept if isinstance(result, tuple) else kept[0]

    @property
    def op(self) -> Operation:
        """As in TensorFlow, for `variable.op.name`: the name without ":0", as in checkpoints."""
        return Operation(self.name.removesuffix(":0"))

    def assign(self, values: npt.ArrayLike) -> Variable:
        """Overwrite the whole variable. Raises ValueError for another shape."""
        check.unmasked(f"value of {self.name or 'the variable'}", values)
        values = np.asarray(values)
        check.has_shape(f"value of {self.name or 'the variable'}", values, self.shape)
        self[...] = values
        return self

    def load(self, values: npt.ArrayLike, session: object = None) -> None:
        """As `assign`; there is no session to pass."""
        self.assign(values)


@dataclass
class VariableScope:
    """A scope of variables: names made in it begin with `name` and a slash."""

    name: str = ""
    reuse: Reuse = None
    initializer: Initializer | None = field(default=None, repr=False, compare=False)

    def reuse_variables(self) -> None:
        """Require variables to exist until the scope is left, as if it had been opened with reuse=True."""
        self.reuse = True


class Graph:
    """Variables by name, and the open scope.

    rng draws first values, and dropout masks of wrappers without a seed; None: seeded by the operating system.
    """

    def __init__(self, rng: np.random.Generator | None = None) -> None:
        self.rng = np.random.default_rng() if rng is None else check.generator("rng", rng)
        self.scope = VariableScope()
        self.variables: dict[str, Variable] = {}
        self._opened: dict[str, int] = {}  # times each scope was opened since its parent was

    @contextmanager
    def as_default(self) -> Iterator[Graph]:
        """Make this the default graph within the `with` block, in this thread."""
        _defaults.stack.append(self)
        try:
            yield self
        finally:
            _defaults.stack.remove(self)

    @contextmanager
    def open(self, scope: VariableScope, *, again: bool = False) -> Iterator[VariableScope]:
        """Open this scope within the `with` block. `again` keeps the counts of the scopes inside."""
        before, opened = self.scope, dict(self._opened) if again else None
        self.scope = scope
        self._opened[scope.name] = self._opened.get(scope.name, 0) + 1
        try:
            yield scope
        finally:
            self.scope = before
            for name in self._opened:
                if name.startswith(f"{scope.name}/"):
                    self._opened[name] = 0
            if opened is not None:
                self._opened = opened

    def unique(self, name: str) -> str:
        """Return `name`, or name_1, name_2, ...: the first that was not yet opened in the open scope."""
        number, candidate = 0, name
        while self._opened.get(self.full_name(candidate), 0):
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def full_name(self, name: str) -> str:
        """Return `name` prefixed by the open scope."""
        return f"{self.scope.name}/{name}" if self.scope.name else name


class _Defaults(threading.local):
    """The default graphs of this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Graph] = []


_defaults = _Defaults()
_outermost = Graph()


def get_default_graph() -> Graph:
    """Return the graph in which variables are created now."""
    return _defaults.stack[-1] if _defaults.stack else _outermost


def reset_default_graph() -> None:
    """Forget all variables and scopes of the default graph, and reseed it; existing cells keep their variables."""
    graph = get_default_graph()
    if graph.scope.name:
        raise RuntimeError(
            f"reset_default_graph must not be called within a variable_scope, got one in {graph.scope.name}"
        )
    graph.__init__()  # type: ignore[misc]  # the object stays, because others may hold it


def set_random_seed(seed: int | np.random.Generator) -> None:
    """Seed the default graph's further draws: first values, and dropout of wrappers without a seed."""
    get_default_graph().rng = np.random.default_rng(seed)


@contextmanager
def variable_scope(
    name_or_scope: str | VariableScope | None = None,
    default_name: str | None = None,
    *,
    initializer: Initializer | None = None,
    reuse: Reuse = None,
) -> Iterator[VariableScope]:
    """Open a scope within the `with` block: names of variables begin with its name.

    name_or_scope: a name within the open scope, or an earlier scope, which is reopened under its own full name; None
    takes default_name and numbers it if it was taken. reuse True: variables must exist; False or None: as the
    surrounding scope; AUTO_REUSE: either. initializer: for variables that give none.
    Raises ValueError if there is no name.
    """
    graph = get_default_graph()
    around = graph.scope
    if isinstance(name_or_scope, VariableScope):
        scope = VariableScope(
            name_or_scope.name,
            reuse or name_or_scope.reuse,
            name_or_scope.initializer if initializer is None else initializer,
        )
        opened = graph.open(scope, again=True)
    else:
        if not name_or_scope:
            if not default_name:
                raise ValueError("variable_scope needs a name, a scope or a default_name")
            name_or_scope = graph.unique(default_name)
        opened = graph.open(
            VariableScope(
                graph.full_name(name_or_scope),
                reuse or around.reuse,
                around.initializer if initializer is None else initializer,
            )
        )
    with opened as scope:
        yield scope


def get_variable_scope() -> VariableScope:
    """Return the open scope."""
    return get_default_graph().scope


def get_variable(
    name: str,
    shape: int | tuple[int, ...] | list[int] | None = None,
    dtype: npt.DTypeLike = np.float32,
    initializer: Initializer | None = None,
) -> Variable:
    """Return the variable of this name in the open scope: a new one, or with `reuse` the existing one.

    initializer: `initializer(shape, rng)` or a value; None: the scope's, or Glorot's uniform distribution.
    Raises ValueError for a variable that exists without reuse, is missing with reuse, or has another shape; TypeError
    for another dtype.
    """
    graph = get_default_graph()
    full_name, reuse = graph.full_name(name), graph.scope.reuse
    wanted: Shape | None = None
    if shape is not None:
        sizes = (shape,) if isinstance(shape, int) else shape
        wanted = tuple(check.whole_number(f"shape of {full_name}", size, 0) for size in sizes)
    found = graph.variables.get(full_name)
    if found is not None:
        if not reuse:
            raise ValueError(
                f"Variable {full_name} already exists: pass the same cell object to share its weights, open the scope "
                "with reuse=True or reuse=AUTO_REUSE, give this one a scope of its own, or begin with "
                "reset_default_graph()"
            )
        if wanted is not None and wanted != found.shape:
            raise ValueError(f"Variable {full_name} must have shape {wanted} to be shared, got {found.shape}")
        if check.float_dtype(dtype) != found.dtype:
            raise TypeError(f"Variable {full_name} must be {np.dtype(dtype)} to be shared, got {found.dtype}")
        return found
    if reuse is True:
        raise ValueError(
            f"Variable {full_name} does not exist, and reuse=True creates none: use reuse=AUTO_REUSE or create it first"
        )
    if initializer is None:
        initializer = graph.scope.initializer
    if wanted is None:
        if initializer is None or callable(initializer):
            raise ValueError(f"Variable {full_name} needs a shape, or an array as initializer")
        wanted = np.shape(initializer)
    values = np.empty(wanted, check.float_dtype(dtype))
    values[...] = initializers.draw(initializer, full_name, wanted, graph.rng)
    variable = graph.variables[full_name] = Variable.named(full_name, values)
    return variable


def trainable_variables(scope: str | None = None) -> list[Variable]:
    """Return the default graph's variables in order of creation.

    scope: a regular expression; only names that begin with a match of it.
    """
    found = get_default_graph().variables
    return [v for name, v in found.items() if scope is None or re.match(scope, name)]
