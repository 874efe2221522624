"""A Keras 3 layer on lstmfast's kernels: `lstmfast.keras.LSTM` replaces `keras.layers.LSTM`.

It is Keras' own layer except for the loop over time, so arguments, weights and their order, masks, states, dropout,
saving and `Bidirectional` are Keras'. The loop runs on the CPU, forward and backward, under the TensorFlow, JAX and
PyTorch backends. `convert` puts it into existing models, `explain` lists where it is used. Refuses what the kernels do
not compute (see `LSTM`) instead of falling back to Keras' loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import keras
import numpy as np
from keras import ops

from lstmfast import _checks as check
from lstmfast import functional, runtime
from lstmfast._checks import Array
from lstmfast._engine import cpu
from lstmfast.cells import Cell

Arrays = tuple[Array, ...]


@keras.saving.register_keras_serializable(package="lstmfast")
class LSTM(keras.layers.LSTM):  # type: ignore[misc]
    """`keras.layers.LSTM` on lstmfast's kernels. Weights: kernel, recurrent_kernel, bias, with Keras' gate order.

    Arguments, defaults and call are those of `keras.layers.LSTM`, and so are weights, masks (of any form), `stateful`,
    `go_backwards` and saved files; `unroll` and `use_cudnn` change nothing. matmul_precision: as in `lstmfast.lstm`.
    recurrent_dropout: one mask per row for all gates and steps, where Keras draws one for each gate; `dropout` beside
    it has one mask for all gates too. The other arguments, keyword only, are options of `lstmfast.Cell`: in training
    their masks depend on Keras' `seed` and on how often it was used. layer_norm adds the weights norm_gain, cell_gain
    and cell_shift after Keras' own, learn_initial_state adds initial_h and initial_c.
    Raises ValueError for what the kernels do not compute: an activation other than tanh, a recurrent_activation other
    than sigmoid, one dropout mask per gate (implementation=1), use_cudnn=True, learn_initial_state of a stateful layer,
    and a compute dtype other than float32 and float64; RuntimeError under a backend other than TensorFlow, JAX and
    PyTorch.
    """

    cell: Any

    def __init__(
        self,
        units: int,
        *args: Any,
        matmul_precision: str | None = None,
        recurrent_dropout_of: str = "h",
        recurrent_dropout_per_step: bool = False,
        zoneout: float | Sequence[float] | None = None,
        weight_dropout: float = 0.0,
        layer_norm: str | bool | None = None,
        layer_norm_epsilon: float = 1e-5,
        layer_norm_carry: bool = False,
        learn_initial_state: bool = False,
        **kwargs: Any,
    ) -> None:
        if keras.backend.backend() not in _BACKENDS:
            raise RuntimeError(
                f"lstmfast.keras needs one of the Keras backends {', '.join(_BACKENDS)}, got {keras.backend.backend()}"
            )
        super().__init__(units, *args, **kwargs)
        self.matmul_precision = None if matmul_precision is None else check.matmul_precision(matmul_precision)
        _refuse_what_the_kernels_lack(self, kwargs.get("implementation", 2))
        options: dict[str, Any] = {
            "recurrent_dropout": self.cell.recurrent_dropout, "recurrent_dropout_of": recurrent_dropout_of,
            "recurrent_dropout_per_step": recurrent_dropout_per_step,
            "zoneout": tuple(zoneout) if isinstance(zoneout, Sequence) else zoneout, "weight_dropout": weight_dropout,
            "layer_norm": layer_norm, "layer_norm_epsilon": layer_norm_epsilon, "layer_norm_carry": layer_norm_carry,
            "learn_initial_state": learn_initial_state,
        }
        self._options = Cell(forget_bias=0.0, **options)
        if self._options.features:
            if self.stateful and learn_initial_state:
                raise ValueError("learn_initial_state must be False for a stateful layer, whose first states are zero")
            self._take_over_options()
        self.use_cudnn = False  # also keeps `Bidirectional` from running both layers through cuDNN
        if keras.backend.backend() == "tensorflow":
            self.supports_jit = False  # XLA cannot compile calls into Python

    def _take_over_options(self) -> None:
        """Exchange Keras' cell for one with our weights, without the masks of recurrent dropout, which Keras draws."""
        cell = self.cell
        self._tracker.untrack(cell)  # which deleting the attribute would not do
        self.cell = _Cell(self._options, **{**cell.get_config(), "recurrent_dropout": 0.0})

    @property
    def recurrent_dropout(self) -> float:
        """The rate at which h is dropped before the recurrent product."""
        return float(self._options.recurrent_dropout)

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        """Run the loop over time, as Keras calls it: (last output [B, H], outputs [B, T, H], [h, c])."""
        if isinstance(mask, (list, tuple)):
            mask = mask[0]
        if training and 0.0 < self.dropout < 1.0:
            sequences = sequences * ops.expand_dims(self.cell.get_dropout_mask(sequences[:, 0, :]), axis=1)
        tensors = [sequences, *initial_state, self.cell.kernel, self.cell.recurrent_kernel]
        tensors = [ops.convert_to_tensor(tensor, dtype=self.compute_dtype) for tensor in tensors]
        if self.cell.bias is None:
            tensors.append(ops.zeros((4 * self.units,), dtype=self.compute_dtype))
        else:
            tensors.append(ops.convert_to_tensor(self.cell.bias, dtype=self.compute_dtype))
        if self._options.layer_norm is not None:
            norms = self.cell.norm_gain, self.cell.cell_gain, self.cell.cell_shift
            tensors += [ops.convert_to_tensor(values, dtype=self.compute_dtype) for values in norms]
        others = [] if mask is None else [ops.cast(mask, "bool")]
        is_random = bool(training and self._options.is_random)
        if is_random:
            others.append(self.cell.seed_generator.next())
        backend = keras.backend.backend()
        loop = _Loop(
            go_backwards=self.go_backwards,
            every_step=self.return_sequences,
            zero_where_masked=self.zero_output_for_mask,
            state_before_first=backend == "jax",
            matmul_precision=self.matmul_precision,
            cell=replace(self._options, learn_initial_state=False),  # Keras hands over every state
            has_mask=mask is not None,
            is_random=is_random,
        )
        outputs, h, c = _BACKENDS[backend](loop, tensors, others)
        return outputs[:, -1], outputs, [h, c]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that recreate this layer."""
        given = {name: getattr(self._options, name) for name in _OPTIONS}
        # Without the default ones, so that Keras' own layer takes these settings where it can.
        options = {name: value for name, value in given.items() if value != getattr(Cell, name)}
        return {**super().get_config(), "matmul_precision": self.matmul_precision, **options}


_OPTIONS = (
    "recurrent_dropout_of", "recurrent_dropout_per_step", "zoneout", "weight_dropout", "layer_norm",
    "layer_norm_epsilon", "layer_norm_carry", "learn_initial_state",
)


class _Cell(keras.layers.LSTMCell):  # type: ignore[misc]
    """Keras' cell with the weights that options of `Cell` add, after its own. It is never called."""

    def __init__(self, options: Cell, **config: Any) -> None:
        super().__init__(**config)
        self._options = options

    def build(self, input_shape: Any) -> None:
        """Create the weights."""
        super().build(input_shape)
        own = self._options.shapes(1, self.units)
        for name in ("norm_gain", "cell_gain", "cell_shift", "initial_h", "initial_c"):
            if name in own:
                initializer = "ones" if name.endswith("gain") else "zeros"
                setattr(self, name, self.add_weight(shape=own[name], name=name, initializer=initializer))

    def get_initial_state(self, batch_size: Any = None) -> list[Any]:
        """The states of rows that are given none."""
        if not self._options.learn_initial_state:
            return list(super().get_initial_state(batch_size))
        shape = batch_size, self.units
        learnt = (ops.cast(values, self.compute_dtype) for values in (self.initial_h, self.initial_c))
        return [ops.broadcast_to(values, shape) for values in learnt]


def _refuse_what_the_kernels_lack(layer: LSTM, implementation: int) -> None:
    """implementation: as it was given; Keras makes it 1 where there is recurrent dropout."""
    if lacking := _lacking(layer.cell, layer.compute_dtype, implementation):
        raise ValueError(lacking)
    if layer.use_cudnn is True:
        raise ValueError("use_cudnn must be 'auto' or False, got True: this layer computes on the CPU")


def _lacking(cell: Any, compute_dtype: str, implementation: int | None = None) -> str:
    """Options of a `keras.layers.LSTMCell` that the kernels do not compute, in words; "" if there are none.

    implementation: None for that of the cell, which says nothing where there is recurrent dropout.
    """
    for name, given, known in (
        ("activation", cell.activation, (keras.activations.tanh, ops.tanh)),
        ("recurrent_activation", cell.recurrent_activation, (keras.activations.sigmoid, ops.sigmoid)),
    ):
        if given not in known:
            word = getattr(given, "__name__", given)
            return f"{name} must be {known[0].__name__}, got {word}; keras.layers.LSTM supports others"
    if implementation is None:
        implementation = 2 if cell.recurrent_dropout else cell.implementation
    if cell.dropout and implementation != 2:
        return f"implementation must be 2 where there is dropout, got {implementation}: 1 draws a mask for each gate"
    if compute_dtype not in ("float32", "float64"):
        return f"dtype must compute in float32 or float64, got {compute_dtype}"
    return ""


# --- models -----------------------------------------------------------------------------------------------------------


def convert(model: Any, *, partly: bool = False) -> Any:
    """Return a copy of a Sequential or functional model with this `LSTM` in place of `keras.layers.LSTM`.

    Layers are found in nested models and in wrappers such as `Bidirectional` and `TimeDistributed`, in general in any
    layer with an LSTM in its settings; `RNN(LSTMCell(...))` becomes an `LSTM` too. Weights, `trainable` and the states
    of stateful layers are copied. Other layers are recreated from their settings, except `Lambda`, which both models
    share. The copy of a compiled model is compiled with a fresh optimizer. partly: convert what can be converted and
    warn about the rest. Warns about recurrent dropout, whose masks are drawn in another way. Raises ValueError naming
    every LSTM that would stay Keras' and why, or if there is none to convert, or if the model cannot be copied;
    TypeError for anything but a model.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"model must be a keras.Model, got {type(model).__name__}")
    found = list(_lstms(model))
    if all(each.ours for each in found):
        none = f"{model.name}, which already uses lstmfast" if found else f"{model.name} without one"
        raise ValueError(f"model must have a keras.layers.LSTM to replace, got {none}")
    if not (isinstance(model, keras.Sequential) or _is_functional(model)):
        names = ", ".join(each.name for each in found)
        raise ValueError(
            f"model must be Sequential or functional to be copied, got {model.name} of the class "
            f"{type(model).__name__}; in its code, make its LSTMs ({names}) lstmfast.keras.LSTM layers"
        )
    left = [each for each in found if each.why_not]
    chosen = {id(each.layer) for each in found if not each.ours and not each.why_not}
    if left and not (partly and chosen):
        raise ValueError(_left_over(model, found, left))
    result, made = _copy_of(model, chosen)
    pairs = [pair for old, new in made for pair in _pairs(old, new)]
    still_theirs = {id(old) for old, new in pairs if id(old) in chosen and not isinstance(new, LSTM)}
    why_not = "the layer around it creates it: make that layer create a lstmfast.keras.LSTM"
    left += [replace(each, why_not=why_not) for each in found if id(each.layer) in still_theirs]
    if left and not (partly and chosen - still_theirs):
        raise ValueError(_left_over(model, found, left))
    _copy_values(model, result, pairs)
    _compile_alike(model, result)
    if left:
        warnings.warn(_left_over(model, found, left), stacklevel=2)
    if tied := [new.name for _, new in pairs if isinstance(new, LSTM) and new.recurrent_dropout]:
        warnings.warn(
            f"recurrent_dropout of {', '.join(tied)}: one mask is drawn for all gates, where Keras draws one for each",
            stacklevel=2,
        )
    return result


def explain(model: Any) -> str:
    """Describe each LSTM of a model or layer on a line, whether it runs Keras' loop or lstmfast's, and count them.

    Raises TypeError for anything but a model or layer.
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"model must be a keras.Model or a layer, got {type(model).__name__}")
    found = list(_lstms(model))
    ours = sum(each.ours for each in found)
    lines = [f"{ours} of {len(found)} LSTMs of {model.name} run lstmfast's loop"]
    for each in found:
        words = "lstmfast's" if each.ours else f"Keras', {each.why_not or 'convert replaces it'}"
        lines.append(f"{each.name}: {words}")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Found:
    """An LSTM in a model: its path, and the obstacle to converting it, "" if there is none."""

    name: str
    layer: Any
    ours: bool
    why_not: str = ""


def _lstms(model: Any) -> Iterator[_Found]:
    """Every LSTM of a model or layer, a shared one once. Its name is its path: encoder/bidirectional/forward."""
    seen: set[int] = set()

    def within(layer: Any, name: str) -> Iterator[_Found]:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        if isinstance(layer, LSTM):
            yield _Found(name, layer, True)
        elif isinstance(layer, keras.layers.LSTM):
            own = "" if type(layer) is keras.layers.LSTM else _class_of_its_own(layer)
            yield _Found(name, layer, False, own or _lacking(layer.cell, layer.compute_dtype))
        elif isinstance(layer, keras.layers.RNN) and any(_is_lstm_cell(part) for part in _parts(layer, True)):
            yield _Found(name, layer, False, _why_no_lstm(layer))
        elif _is_lstm_cell(layer):
            yield _Found(name, layer, False, "a cell that is called step by step; lstmfast.keras has only whole loops")
        else:
            for part in _parts(layer):
                yield from within(part, f"{name}/{part.name}" if name else part.name)

    return within(model, "" if isinstance(model, keras.Model) else model.name)


def _parts(layer: Any, all_below: bool = False) -> list[Any]:
    """The layers that a layer holds, in its own order."""
    return list(layer._flatten_layers(include_self=False, recursive=all_below))


def _is_lstm_cell(layer: Any) -> bool:
    return isinstance(layer, keras.layers.LSTMCell)


def _why_no_lstm(layer: Any) -> str:
    """The obstacle to replacing an RNN by the `LSTM` of its cell, "" if there is none."""
    cell = layer.cell
    if type(layer) is not keras.layers.RNN:
        return _class_of_its_own(layer)
    if not _is_lstm_cell(cell):
        return f"its cell is a {type(cell).__name__}; give each LSTMCell an LSTM of its own, one after the other"
    if type(cell) is not keras.layers.LSTMCell:
        return _class_of_its_own(cell)
    if cell.dtype_policy.name != layer.dtype_policy.name:
        return f"dtype of its cell must be {layer.dtype_policy.name}, got {cell.dtype_policy.name}"
    return _lacking(cell, layer.compute_dtype)


def _class_of_its_own(layer: Any) -> str:
    return f"{type(layer).__name__} is a custom class whose differences are unknown"


def _is_functional(model: Any) -> bool:
    """Whether a model is defined by its inputs and outputs. Keras has no public name for the class."""
    return any(cls.__name__ == "Functional" and _is_of_keras(cls) for cls in type(model).__mro__)


def _is_of_keras(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "keras"


def _own_methods(model: Any) -> list[str]:
    """Methods of `keras.Model` that a user's class overrides, except those that recreate it."""
    made = {"get_config", "from_config"}
    own = [cls for cls in type(model).__mro__ if not _is_of_keras(cls) and issubclass(cls, keras.Model)]
    names = [name for cls in own for name in vars(cls) if not name.startswith("__") and name not in made]
    return [name for name in names if hasattr(keras.Model, name)]


def _left_over(model: Any, found: list[_Found], left: list[_Found]) -> str:
    """A sentence that counts and names the LSTMs that stay Keras'."""
    count = sum(not each.ours for each in found)
    words = "; ".join(f"{each.name}: {each.why_not}" for each in left)
    rest = " (partly=True converts the others)" if len(left) < count else ""
    return f"{len(left)} of {count} LSTMs of {model.name} cannot be converted{rest}: {words}"


def _copy_of(model: Any, chosen: set[int]) -> tuple[Any, list[tuple[Any, Any]]]:
    """A copy of the model, without values and not compiled, with our layers in place of the chosen ones.

    Also returns the recreated layers, each with its copy.
    """
    made: list[tuple[Any, Any]] = []

    def remembered(layer: Any) -> Any:
        try:
            copy = made_again(layer)
        except Exception as error:  # a user's layer may raise anything
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{layer.name} of the class {type(layer).__name__} cannot be rebuilt from its settings: {reason}"
            ) from error
        if isinstance(layer, keras.layers.Layer) and copy is not layer:  # else an operation, or shared
            made.append((layer, copy))
        return copy

    def made_again(layer: Any) -> Any:
        if id(layer) in chosen:
            return LSTM.from_config(_our_config(layer.get_config()))
        if isinstance(layer, keras.layers.Lambda):
            return layer  # its function is not in its settings
        config, names = layer.get_config(), set()
        if isinstance(layer, keras.layers.Layer):
            names = {part.name for part in _parts(layer, True) if id(part) in chosen}
        return type(layer).from_config(_rewritten(config, names) if names else config)

    models = [each for each in (model, *_parts(model, True)) if isinstance(each, keras.Model)]
    compiled = [each for each in models if each.compiled]
    try:
        for each in compiled:
            each.compiled = False  # a loss that cannot be recreated would fail the copy
        return keras.models.clone_model(model, clone_function=remembered, recursive=True), made
    finally:
        for each in compiled:
            each.compiled = True


def _rewritten(config: Any, names: set[str]) -> Any:
    """A copy of a layer's settings with our layers in place of those with these names."""
    if isinstance(config, (list, tuple)):
        return type(config)(_rewritten(each, names) for each in config)
    if not isinstance(config, dict):
        return config
    of_keras = config.get("module") == "keras.layers" and config.get("class_name") in ("LSTM", "RNN")
    if of_keras and config["config"]["name"] in names:
        ours = {"module": __name__, "class_name": "LSTM", "registered_name": _REGISTERED_NAME}
        return {**config, **ours, "config": _our_config(config["config"])}
    return {key: _rewritten(value, names) for key, value in config.items()}


_REGISTERED_NAME = keras.saving.get_registered_name(LSTM)


def _our_config(config: dict[str, Any]) -> dict[str, Any]:
    """Settings for `LSTM` from those of `keras.layers.LSTM`, or of an RNN with an LSTMCell in it."""
    if "cell" not in config:
        return config
    cell = {name: value for name, value in config["cell"]["config"].items() if name not in ("name", "trainable")}
    return {**cell, **{name: value for name, value in config.items() if name != "cell"}}


def _copy_values(model: Any, copy: Any, pairs: list[tuple[Any, Any]]) -> None:
    """Copy the weights, states and `trainable` of every layer."""
    models = list(_models(model, copy))
    for old, new in models:
        if type(new) is not type(old) and (lost := _own_methods(old)):
            raise ValueError(
                f"{old.name} of the class {type(old).__name__} cannot be copied: its {', '.join(lost)} would be lost, "
                "because Keras copies it as a plain model"
            )
    for old, new in [*models, *pairs]:  # outermost first, because inner layers inherit it
        if new.trainable != old.trainable:
            new.trainable = old.trainable
    for old, new in pairs:
        if old.built and not new.built:
            new.build_from_config(old.get_build_config())
        new.set_weights(old.get_weights())
        if getattr(old, "stateful", False) and getattr(old, "states", None):
            for state, value in zip(new.states, old.states, strict=True):
                state.assign(value)
    if len(copy.weights) != len(model.weights):
        raise ValueError(
            f"{model.name} cannot be copied: it has {len(model.weights)} weights and its copy {len(copy.weights)}; a "
            "layer that is shared across a wrapper, or a weight of the model itself, is in no layer's settings"
        )


def _models(old: Any, new: Any) -> Iterator[tuple[Any, Any]]:
    """A model and its nested models, outermost first, each with its copy, which has the same name."""
    yield old, new
    copies = {part.name: part for part in _parts(new)}
    for part in _parts(old):
        if isinstance(part, keras.Sequential) or _is_functional(part):
            yield from _models(part, copies[part.name])


def _pairs(old: Any, new: Any) -> Iterator[tuple[Any, Any]]:
    """A layer and its nested layers, outermost first, each with its copy."""
    yield old, new
    parts, copies = _parts(old), _parts(new)
    if len(parts) != len(copies):
        raise ValueError(
            f"{old.name} of the class {type(old).__name__} cannot be copied: it contains {len(parts)} layers, but "
            f"rebuilt from its settings it contains {len(copies)}"
        )
    for part, copy in zip(parts, copies, strict=True):
        yield from _pairs(part, copy)


def _compile_alike(model: Any, copy: Any) -> None:
    if not model.compiled:
        return
    try:
        copy.compile_from_config(model.get_compile_config())
    except Exception as error:  # a user's loss or metric may raise anything
        warnings.warn(f"the copy of {model.name} is not compiled, call compile: {error}", stacklevel=3)


# --- the loop, in NumPy -----------------------------------------------------------------------------------------------


class _Rows:
    """Rows of a mask [B, T] without their masked steps.

    lengths [B]: unmasked steps; order [B, T]: unmasked steps, then masked ones; shown [B, T]: for each step, the index
    among the unmasked ones of the last at or before it, -1 before the first.
    """

    def __init__(self, mask: Array) -> None:
        self.mask = mask
        self.lengths = mask.sum(axis=1)
        self.order = np.argsort(~mask, axis=1, kind="stable")
        self.shown = np.cumsum(mask, axis=1) - 1

    def close_up(self, x: Array) -> Array:
        """The unmasked steps of x [B, T, I] in order, followed by the masked ones, which are not read."""
        return np.take_along_axis(x, self.order[:, :, None], axis=1)

    def spread(self, d_x: Array) -> Array:
        """The derivative by x, given the derivative by the result of `close_up`."""
        spread = np.empty_like(d_x)
        np.put_along_axis(spread, self.order[:, :, None], d_x, axis=1)
        return spread


@dataclass(frozen=True, eq=False)
class _Tape:
    """What `_Loop.run` keeps for `_Loop.backward_of`."""

    out: functional.Output
    rows: _Rows | None
    input_size: int
    has_norms: bool


@dataclass(frozen=True)
class _Loop:
    """The settings that Keras passes to its loop over time, and that loop for NumPy arrays, batch-major as in Keras.

    every_step: return the outputs of all steps, else of the last. At a masked step the state is kept and the output
    repeats the step before, or is zero (zero_where_masked). Before a row's first unmasked step the output is zero, or
    the initial h under Keras' JAX backend (state_before_first). cell: its options. has_mask, is_random: the arrays end
    with a mask, and with a seed for the masks of the cell.
    """

    go_backwards: bool
    every_step: bool
    zero_where_masked: bool
    state_before_first: bool
    matmul_precision: str | None
    cell: Cell = Cell(forget_bias=0.0)
    has_mask: bool = False
    is_random: bool = False

    def run(self, *arrays: Array, keep_for_backward: bool = False) -> tuple[Arrays, _Tape]:
        """Return (outputs [B, T or 1, H], h_n, c_n [B, H]), and the tape for `backward_of`.

        Shapes: x [B, T, I]; h0, c0 [B, H]; kernel [I, 4H]; recurrent_kernel [H, 4H]; bias [4H]; with layer
        normalisation norm_gain [1 or 2, 4H], cell_gain, cell_shift [H]; mask [B, T], bool; seed [2], whole numbers.
        """
        x, h0, c0, kernel, recurrent_kernel, bias, *rest = arrays
        seed = _seed_of(rest.pop()) if self.is_random else None
        mask = rest.pop() if self.has_mask else None
        x = self._in_order(x)
        rows = None if mask is None else _Rows(self._in_order(mask))
        x = x if rows is None else rows.close_up(x)
        out = cpu.lstm(
            # The states are copied: a stateful layer overwrites them before the backward pass reads them.
            x.swapaxes(0, 1), np.concatenate([kernel, recurrent_kernel]), bias, h0.copy(), c0.copy(), cell=self.cell,
            norms=(rest[0], rest[1], rest[2]) if rest else None, noise=None if seed is None else (seed, 0, 0),
            lengths=None if rows is None else rows.lengths, keep_for_backward=keep_for_backward,
            matmul_precision=runtime.resolve_matmul_precision(self.matmul_precision),
        )
        outputs = np.ascontiguousarray(self._outputs(out, rows, h0))
        return (outputs, out.h_n, out.c_n), _Tape(out, rows, len(kernel), bool(rest))

    def backward_of(self, tape: _Tape, d_outputs: Array, d_h_n: Array, d_c_n: Array) -> Arrays:
        """Return the derivatives by the float arrays of the `run` that kept this tape."""
        d_h, d_h_n, d_h0 = self._outputs_backward(tape, d_outputs, d_h_n)
        d = functional.lstm_backward(tape.out, d_h, d_h_n, np.ascontiguousarray(d_c_n))
        assert d.x is not None
        d_x = d.x.swapaxes(0, 1)
        d_x = self._in_order(d_x if tape.rows is None else tape.rows.spread(d_x))
        d_kernel, d_recurrent_kernel = np.split(d.kernel, [tape.input_size])
        norms: Any = (d.norm_gain, d.cell_gain, d.cell_shift) if tape.has_norms else ()
        return np.ascontiguousarray(d_x), d.h0 + d_h0, d.c0, d_kernel, d_recurrent_kernel, d.bias, *norms

    def forward(self, *arrays: Array) -> Arrays:
        """The results of `run`, without a tape."""
        return self.run(*arrays)[0]

    def backward(self, d_outputs: Array, d_h_n: Array, d_c_n: Array, *arrays: Array) -> Arrays:
        """As `backward_of`, but repeats the forward pass, for backends that keep no tape between passes."""
        return self.backward_of(self.run(*arrays, keep_for_backward=True)[1], d_outputs, d_h_n, d_c_n)

    def _in_order(self, steps: Array) -> Array:
        """Steps [B, T, ...] in the order of processing; applied again, the original order."""
        return steps[:, ::-1] if self.go_backwards else steps

    def _outputs(self, out: functional.Output, rows: _Rows | None, h0: Array) -> Array:
        if rows is None:
            # Copied: the backward pass reads out.h, and the caller may write to the outputs.
            return out.h.swapaxes(0, 1).copy() if self.every_step else out.h_n[:, None]
        shown, mask = self._wanted(rows.shown), self._wanted(rows.mask)
        outputs = out.h[np.maximum(shown, 0), np.arange(len(h0))[:, None]]
        before = np.broadcast_to(h0[:, None], outputs.shape) if self.state_before_first else np.zeros_like(outputs)
        outputs[shown < 0] = before[shown < 0]
        if self.zero_where_masked:
            outputs[~mask] = 0
        return outputs

    def _outputs_backward(self, tape: _Tape, d_outputs: Array, d_h_n: Array) -> tuple[Array | None, Array, Array]:
        """The derivatives by h [T, B, H], h_n and h0, given those by the outputs and h_n."""
        rows, d_h0 = tape.rows, np.zeros_like(d_h_n)
        if rows is None:
            if self.every_step:
                return d_outputs.swapaxes(0, 1), np.ascontiguousarray(d_h_n), d_h0
            return None, d_h_n + d_outputs[:, 0], d_h0
        d_h = np.zeros_like(tape.out.h)
        shown = self._wanted(rows.shown)
        counts = self._wanted(rows.mask) if self.zero_where_masked else np.ones_like(shown, np.bool_)
        for step, (source, counted) in enumerate(zip(shown.T, counts.T, strict=True)):
            row = np.flatnonzero(counted & (source >= 0))
            d_h[source[row], row] += d_outputs[row, step]
            if self.state_before_first:
                row = np.flatnonzero(counted & (source < 0))
                d_h0[row] += d_outputs[row, step]
        return d_h, np.ascontiguousarray(d_h_n), d_h0

    def _wanted(self, steps: Array) -> Array:
        """The steps of [B, T] whose outputs are returned."""
        return steps if self.every_step else steps[:, -1:]


def _seed_of(numbers: Array) -> int:
    """A seed of 64 bits from the two numbers of Keras' seed generator."""
    first, second = (int(number) % 2**32 for number in numbers)
    return second * 2**32 + first


# --- the backends -----------------------------------------------------------------------------------------------------
# Each takes the loop, the float tensors of `_Loop.run` and the others (mask, seed), and returns outputs, h_n and c_n,
# differentiable by the former. A backend is imported at its first call, when Keras has already imported it.


_FIRST_ALONE = "lstmfast.keras.LSTM has only first derivatives; keras.layers.LSTM supports second ones"


def _in_tensorflow(loop: _Loop, tensors: list[Any], others: list[Any]) -> tuple[Any, ...]:
    import tensorflow as tf

    tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]  # variables to their values
    dtype = tensors[0].dtype
    units, steps = tensors[1].shape[1], tensors[0].shape[1] if loop.every_step else 1
    shapes = [(tensors[0].shape[0], steps, units), *[(tensors[0].shape[0], units)] * 2]

    def call(function: Any, arguments: list[Any], shapes: list[Any]) -> list[Any]:
        """A NumPy function in a graph, which does not know its result's shapes."""
        results = tf.numpy_function(function, arguments, [dtype] * len(shapes))
        for result, shape in zip(results, shapes, strict=True):
            result.set_shape(shape)
        return list(results)

    def once(results: list[Any], arguments: list[Any]) -> Any:
        """Results that refuse to be differentiated again; without this TensorFlow would return zero."""

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def final(*_: Any) -> Any:
            return tuple(results), refuse

        return final(*arguments)

    def refuse(*_: Any) -> Any:
        raise NotImplementedError(_FIRST_ALONE)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(*tensors: Any) -> Any:
        if tf.executing_eagerly():
            arrays = [tensor.numpy() for tensor in (*tensors, *others)]
            results, tape = loop.run(*arrays, keep_for_backward=True)

            def backward_eagerly(*d: Any) -> Any:
                gradients = loop.backward_of(tape, *(each.numpy() for each in d))
                return once([tf.convert_to_tensor(array) for array in gradients], [*d, *tensors])

            return tuple(map(tf.convert_to_tensor, results)), backward_eagerly

        def backward(*d: Any) -> Any:
            gradients = call(loop.backward, [*d, *tensors, *others], [tensor.shape for tensor in tensors])
            return once(gradients, [*d, *tensors])

        return tuple(call(loop.forward, [*tensors, *others], shapes)), backward

    return tuple(run(*tensors))


def _in_jax(loop: _Loop, tensors: list[Any], others: list[Any]) -> tuple[Any, ...]:
    return tuple(_jax_loop()(loop, others, *tensors))


@lru_cache(maxsize=1)
def _jax_loop() -> Any:
    """The loop as a function of JAX: (loop, others, *tensors) -> (outputs, h_n, c_n), differentiable by the tensors."""
    import jax

    def call(function: Any, arguments: list[Any], shapes: list[Any], dtype: Any) -> list[Any]:
        def on_host(*arguments: Any) -> Arrays:
            return tuple(function(*map(np.asarray, arguments)))

        results = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
        return list(jax.pure_callback(on_host, results, *arguments, vmap_method="sequential"))

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def run(loop: _Loop, others: list[Any], *tensors: Any) -> tuple[Any, ...]:
        (batch, time_steps, _), state = tensors[0].shape, tensors[1].shape
        shapes = [(batch, time_steps if loop.every_step else 1, state[1]), state, state]
        return tuple(call(loop.forward, [*tensors, *others], shapes, tensors[0].dtype))

    def forward(loop: _Loop, others: list[Any], *tensors: Any) -> Any:
        return run(loop, others, *tensors), (others, tensors)

    def backward(loop: _Loop, kept: Any, d: Any) -> tuple[Any, ...]:
        others, tensors = kept
        shapes = [tensor.shape for tensor in tensors]
        gradients = call(loop.backward, [*d, *tensors, *others], shapes, tensors[0].dtype)
        return [np.zeros(each.shape, jax.dtypes.float0) for each in others], *gradients

    run.defvjp(forward, backward)
    return run


def _in_torch(loop: _Loop, tensors: list[Any], others: list[Any]) -> tuple[Any, ...]:
    return tuple(_torch_loop().apply(loop, others, *tensors))


@lru_cache(maxsize=1)
def _torch_loop() -> Any:
    """The loop as an autograd function: (loop, others, *tensors) -> (outputs, h_n, c_n)."""
    import torch

    def to_numpy(tensors: tuple[Any, ...]) -> list[Array]:
        return [tensor.detach().cpu().numpy() for tensor in tensors]

    def to_torch(arrays: Arrays, like: Any) -> tuple[Any, ...]:
        return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(like.device) for array in arrays)

    class Loop(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, loop: _Loop, others: list[Any], *tensors: Any) -> tuple[Any, ...]:
            results, tape = loop.run(*to_numpy((*tensors, *others)), keep_for_backward=any(ctx.needs_input_grad))
            ctx.loop, ctx.tape = loop, tape
            ctx.save_for_backward(tensors[0])  # the tape reads its memory; PyTorch notices if it was overwritten
            return to_torch(results, tensors[0])

        @staticmethod
        def backward(ctx: Any, *d: Any) -> tuple[Any, ...]:
            if torch.is_grad_enabled():  # create_graph; once_differentiable would pass missing ones as zero
                raise NotImplementedError(_FIRST_ALONE)
            [_] = ctx.saved_tensors  # reading them checks for overwriting
            return None, None, *to_torch(ctx.loop.backward_of(ctx.tape, *to_numpy(d)), d[0])

    return Loop


_BACKENDS = {"tensorflow": _in_tensorflow, "jax": _in_jax, "torch": _in_torch}
