"""The same numbers, names and shapes as TensorFlow: its block kernels, and the cells of TensorFlow 1 in tf-keras.

`BlockLSTM` and its relatives are asked directly; they know no float64. `BasicLSTMCell`, `LSTMCell`, `MultiRNNCell` and
`DropoutWrapper` run in graphs and sessions with `dynamic_rnn` and its relatives, as their scripts did.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lstmfast.compat.tf1 as ours
from lstmfast.compat.tf1 import initializers
from lstmfast.layouts import reorder
from support import parity, tf1_cells, tolerances

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tensorflow = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: pip install tensorflow-cpu")
_rnn_cell = pytest.importorskip(
    "tf_keras.api._v1.keras.__internal__.legacy.rnn_cell",
    reason="tf-keras is not installed: pip install --no-deps tf-keras of TensorFlow's version",
)
v1, raw = tensorflow.compat.v1, tensorflow.raw_ops
v1.logging.set_verbosity(v1.logging.ERROR)
theirs = SimpleNamespace(
    nn=SimpleNamespace(
        rnn_cell=_rnn_cell, dynamic_rnn=v1.nn.dynamic_rnn, static_rnn=v1.nn.static_rnn,
        bidirectional_dynamic_rnn=v1.nn.bidirectional_dynamic_rnn,
        static_bidirectional_rnn=v1.nn.static_bidirectional_rnn,
    ),
    variable_scope=v1.variable_scope, get_variable_scope=v1.get_variable_scope, AUTO_REUSE=v1.AUTO_REUSE,
)
"""What `tf` was in TensorFlow 1, as far as `tf1_cells` asks for it: tf.nn.rnn_cell itself is gone from Keras 3."""

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*")
Array = npt.NDArray[Any]

STEPS = [10, 820]
FORGET_BIAS = 0.75


def assert_within_the_promise(
    actual: dict[str, Array], expected: dict[str, Array], dtype: str, time_steps: int
) -> None:
    """Every array lies within the promised share of its length, as vectors, from TensorFlow's.

    Held against the largest entry alone, the promise of 1e-6 would be a matter of luck: over 10 steps of 30 problems
    derivatives lay up to 1.0e-6 apart, and up to 0.97e-6 (ours) and 0.84e-6 (TensorFlow's) from those in float64.
    """
    assert actual.keys() == expected.keys()
    bound = tolerances.PARITY[dtype, time_steps]
    apart = {
        name: float(np.linalg.norm(actual[name] - wanted) / (np.linalg.norm(wanted) or 1.0))
        for name, wanted in expected.items()
    }
    assert {name: share for name, share in apart.items() if not share <= bound} == {}
    assert all(actual[name].dtype == wanted.dtype for name, wanted in expected.items())


def arrays(tensors: Any) -> list[Array]:
    return [np.asarray(tensor) for tensor in tensors]


def flat(structure: Any) -> list[Any]:
    return [a for part in structure for a in flat(part)] if isinstance(structure, (list, tuple)) else [structure]


# --- the block kernels ------------------------------------------------------------------------------------------------


def block_arguments(p: dict[str, Array], variant: dict[str, Any], order: str) -> dict[str, Any]:
    """Arguments of BlockLSTM for ours."""
    wci, wcf, wco = variant.get("peepholes", np.zeros((3, parity.HIDDEN_SIZE), np.float32))
    return {
        "x": p["x"], "cs_prev": p["c0"], "h_prev": p["h0"], "wci": wci, "wcf": wcf, "wco": wco,
        "w": reorder(p["kernel"], source="lstmfast", target=order),
        "b": reorder(p["bias"], source="lstmfast", target=order), "use_peephole": "peepholes" in variant,
    }


def variant_arguments(rng: np.random.Generator, variant: str) -> dict[str, Any]:
    """The extra arguments of `lf.lstm`.

    Peepholes are small because larger ones let cells run away: drawn as TensorFlow draws them, within 0.22, c comes to
    500 after 820 steps of some problems, and TensorFlow's own float32 derivatives are then off by 1e-5.
    """
    if variant == "peepholes":
        return {"peepholes": rng.uniform(-0.05, 0.05, (3, parity.HIDDEN_SIZE)).astype(np.float32)}
    return {"cell_clip": 0.5} if variant == "cell_clip" else {}


def ours_of(p: dict[str, Array], variant: dict[str, Any], **options: Any) -> dict[str, Array]:
    """Our outputs and derivatives."""
    more = {name: value for name, value in variant.items() if isinstance(value, np.ndarray)}
    return parity.ours(p | more, **options, **{name: variant[name] for name in variant.keys() - more.keys()})


def derivatives_by_block(
    p: dict[str, Array], block: dict[str, Any], results: Any, variant: dict[str, Any], op: Any, order: str
) -> dict[str, Array]:
    """What the gradient kernel makes of the derivatives by h, h_n and c_n, named as ours."""
    d_h, d_cs = p["d_h"].copy(), np.zeros_like(p["d_h"])
    d_h[-1] += p["d_h_n"]
    d_cs[-1] += p["d_c_n"]
    saved = {name: getattr(results, name) for name in ("i", "cs", "f", "o", "ci", "co", "h")}
    d = op(seq_len_max=len(d_h), **block, **saved, cs_grad=d_cs, h_grad=d_h)
    named = {
        "d_x": d.x_grad, "d_h0": d.h_prev_grad, "d_c0": d.cs_prev_grad,
        "d_kernel": reorder(d.w_grad.numpy(), source=order, target="lstmfast"),
        "d_bias": reorder(d.b_grad.numpy(), source=order, target="lstmfast"),
    }
    if "peepholes" in variant:
        named["d_peepholes"] = np.stack([d.wci_grad, d.wcf_grad, d.wco_grad])
    return {name: np.asarray(value) for name, value in named.items()}


def outputs_of_block(results: Any) -> dict[str, Array]:
    h, cs = arrays((results.h, results.cs))
    return {"h": h, "h_n": h[-1], "c_n": cs[-1]}


@pytest.mark.parametrize("variant", ["plain", "peepholes", "cell_clip"])
@pytest.mark.parametrize("time_steps", STEPS)
def test_sequences_are_those_of_block_lstm(isa: str, rng: np.random.Generator, time_steps: int, variant: str) -> None:
    p, extra = parity.problem(rng, "float32", time_steps), variant_arguments(rng, variant)
    block = block_arguments(p, extra, "tf1")
    clip = extra.get("cell_clip", -1.0)  # not positive: none
    results = raw.BlockLSTM(seq_len_max=time_steps, **block, forget_bias=FORGET_BIAS, cell_clip=clip)
    expected = outputs_of_block(results)
    if variant != "cell_clip":  # whose derivative BlockLSTMGrad leaves out
        expected |= derivatives_by_block(p, block, results, extra, raw.BlockLSTMGrad, "tf1")
    found = ours_of(p, extra, forget_bias=FORGET_BIAS)
    assert_within_the_promise({name: found[name] for name in expected}, expected, "float32", time_steps)


@pytest.mark.parametrize("variant", ["plain", "peepholes"])
@pytest.mark.parametrize("time_steps", STEPS)
def test_sequences_are_those_of_block_lstm_v2(rng: np.random.Generator, time_steps: int, variant: str) -> None:
    p, extra = parity.problem(rng, "float32", time_steps), variant_arguments(rng, variant)
    block = block_arguments(p, extra, "block-lstm-v2")
    results = raw.BlockLSTMV2(seq_len_max=time_steps, **block, cell_clip=0)
    expected = outputs_of_block(results)
    expected |= derivatives_by_block(p, block, results, extra, raw.BlockLSTMGradV2, "block-lstm-v2")
    assert_within_the_promise(ours_of(p, extra), expected, "float32", time_steps)


@pytest.mark.parametrize("variant", ["plain", "peepholes", "cell_clip"])
def test_steps_are_those_of_lstm_block_cell(rng: np.random.Generator, variant: str) -> None:
    p, extra = parity.problem(rng, "float32", 10), variant_arguments(rng, variant)
    block = block_arguments(p, extra, "tf1")
    h, c = [], block["cs_prev"]
    for x in p["x"]:
        results = raw.LSTMBlockCell(
            **block | {"x": x, "cs_prev": c, "h_prev": h[-1] if h else p["h0"]},
            forget_bias=FORGET_BIAS, cell_clip=extra.get("cell_clip", -1.0),
        )
        c = results.cs
        h.append(results.h)
    expected = {"h": np.stack(h), "h_n": np.asarray(h[-1]), "c_n": np.asarray(c)}
    found = ours_of(p, extra, forget_bias=FORGET_BIAS)
    assert_within_the_promise({name: found[name] for name in expected}, expected, "float32", 10)


@pytest.mark.parametrize("variant", ["plain", "peepholes", "cell_clip"])
@pytest.mark.parametrize("time_steps", STEPS)
def test_compat_cells_are_block_lstm_with_the_very_same_arrays(
    rng: np.random.Generator, time_steps: int, variant: str
) -> None:
    p, extra = parity.problem(rng, "float32", time_steps), variant_arguments(rng, variant)
    block = block_arguments(p, extra, "tf1")
    clip = extra.get("cell_clip")
    results = raw.BlockLSTM(seq_len_max=time_steps, **block, cell_clip=clip or -1.0)  # forget_bias 1, as ours
    cell = ours.LSTMCell(parity.HIDDEN_SIZE, block["use_peephole"], clip)
    with ours.Graph(rng).as_default(), ours.GradientTape() as tape:
        cell.build(parity.INPUT_SIZE)
        for variable, name in zip(cell.variables, ("w", "b", "wcf", "wci", "wco"), strict=False):
            variable.assign(block[name])
        state = ours.LSTMStateTuple(p["c0"], p["h0"])
        h, final = ours.dynamic_rnn(cell, p["x"], initial_state=state, time_major=True)
    d_x, d_c0, d_h0, d_kernel, d_bias, *d_diags = tape.gradients(
        [h, final], [p["x"], state, cell.variables], [p["d_h"], ours.LSTMStateTuple(p["d_c_n"], p["d_h_n"])]
    )
    found = {
        "h": h, "h_n": final.h, "c_n": final.c, "d_x": d_x, "d_h0": d_h0, "d_c0": d_c0,
        "d_kernel": reorder(d_kernel, source="tf1", target="lstmfast"),
        "d_bias": reorder(d_bias, source="tf1", target="lstmfast"),
    }
    if d_diags:
        d_f, d_i, d_o = d_diags
        found["d_peepholes"] = np.stack([d_i, d_f, d_o])
    expected = outputs_of_block(results)
    if variant != "cell_clip":
        expected |= derivatives_by_block(p, block, results, extra, raw.BlockLSTMGrad, "tf1")
    assert_within_the_promise({name: found[name] for name in expected}, expected, "float32", time_steps)


# --- TensorFlow 1's cells ---------------------------------------------------------------------------------------------


@pytest.fixture
def graph(rng: np.random.Generator) -> Iterator[Any]:
    """A graph of TensorFlow's and one of ours for what is built in this test."""
    with tensorflow.Graph().as_default() as graph, ours.Graph(rng).as_default():
        yield graph


def names(variables: list[Any]) -> list[str]:
    return [f"{v.name} {tuple(v.shape)}" for v in variables]


@dataclass(frozen=True)
class Result:
    """What came of a model in one library: outputs, states and derivatives, and names and shapes of its variables."""

    arrays: dict[str, Array]
    variables: list[str]


def run_both(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, build: tf1_cells.Build, x: Any
) -> tuple[Result, Result]:
    """Build a model in ours and theirs with the same random weights and derivatives of a loss; x: array or steps.

    Masks of dropout are made of the numbers that TensorFlow drew, see `masks_from`.
    """
    tensors = [tensorflow.constant(a) for a in x] if isinstance(x, list) else tensorflow.constant(x)
    outputs = flat(build(theirs, tensors))
    variables = v1.trainable_variables()
    dtype = flat(x)[0].dtype
    upstream = [rng.standard_normal(output.shape.as_list()).astype(dtype) for output in outputs]
    values = {v.op.name: _weights(rng, v.op.name, v.shape.as_list()).astype(dtype) for v in variables}
    derivatives = v1.gradients(outputs, [*variables, *flat(tensors)], [tensorflow.constant(a) for a in upstream])
    operations = v1.get_default_graph().get_operations()
    drawn = [operation.outputs[0] for operation in operations if operation.type == "RandomUniform"]  # dropout's alone
    with v1.Session() as session:
        for variable in variables:
            variable.load(values[variable.op.name], session)
        *results, drawn = session.run([outputs, derivatives, drawn])
        expected = _named(*results)

    monkeypatch.setattr(ours.DropoutWrapper, "_draw", masks_from(drawn))
    monkeypatch.setattr(initializers, "draw", lambda initializer, name, shape, rng: values[name])
    with ours.GradientTape() as tape:
        outputs = flat(build(ours, x))
    derivatives = tape.gradients(outputs, [*ours.trainable_variables(), *flat(x)], upstream)
    return Result(_named(outputs, derivatives), names(ours.trainable_variables())), Result(expected, names(variables))


def _weights(rng: np.random.Generator, name: str, shape: list[int]) -> Array:
    """Of a size that leaves the gates neither shut nor linear, and long sequences neither chaotic nor unbounded."""
    scale = 1 / np.sqrt(shape[0]) if len(shape) == 2 else 0.05 if name.endswith("_diag") else 0.5
    return rng.normal(scale=scale, size=shape)


def masks_from(drawn: list[Array]) -> Any:
    """What draws masks for a DropoutWrapper of ours, from the uniform numbers of one of TensorFlow's over static steps.

    TensorFlow draws them for input, state (only h is dropped) and output of each step; or, where they serve all steps,
    for input, c, h (whatever is dropped) and output. We draw those of all inputs, of the state at each step, and of all
    outputs.
    """
    if len(drawn) == 4:
        ordered = iter([drawn[0], drawn[2], drawn[3]])
    else:
        ordered = iter([np.stack(drawn[0::3]), *drawn[1::3], np.stack(drawn[2::3])] if drawn else [])

    def draw(self: Any, keep_prob: float, shape: tuple[int, ...], dtype: Any) -> Array:
        uniform = next(ordered)
        assert uniform.shape == shape
        return (uniform >= 1 - keep_prob).astype(dtype) / np.dtype(dtype).type(keep_prob)

    return draw


def _named(outputs: list[Array], derivatives: list[Array | None]) -> dict[str, Array]:
    both = {"output": outputs, "derivative": derivatives}
    return {
        f"{kind} {k}": np.asarray(a) for kind, values in both.items() for k, a in enumerate(values) if a is not None
    }


BUILDS = tf1_cells.MODELS | tf1_cells.STEPWISE | tf1_cells.VARIANTS


@pytest.mark.parametrize("model", BUILDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_models_are_those_of_tensorflow_1(
    graph: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, model: str, dtype: str
) -> None:
    x = rng.standard_normal((3, 7, tf1_cells.INPUT_SIZE)).astype(dtype)
    inputs = [x[:, t] for t in range(3)] if model in tf1_cells.STEPWISE else x
    found, expected = run_both(rng, monkeypatch, BUILDS[model], inputs)
    assert found.variables == expected.variables
    assert found.arrays.keys() == expected.arrays.keys()
    tolerance = tolerances.gradients(dtype, x.size)
    for name, wanted in expected.arrays.items():
        np.testing.assert_allclose(found.arrays[name], wanted, **tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("variational", "lengths"),
    [(False, None), (True, None), (True, [5, 1, 3])],  # TensorFlow hides what it draws at a step that some rows lack
    ids=["each step", "variational", "variational, lengths"],
)
def test_dropout_is_where_and_as_much_as_in_tensorflow(
    graph: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, variational: bool, lengths: Any
) -> None:
    def build(tf: Any, steps: list[Any]) -> Any:
        # Probabilities that float32 has exactly: to which TensorFlow rounds them, whatever is computed.
        cell = tf.nn.rnn_cell.DropoutWrapper(
            tf.nn.rnn_cell.BasicLSTMCell(6), 0.75, 0.5, 0.625, variational, tf1_cells.INPUT_SIZE, steps[0].dtype
        )
        return tf.nn.static_rnn(cell, steps, dtype=steps[0].dtype, sequence_length=lengths)

    steps = list(rng.standard_normal((5, 3, tf1_cells.INPUT_SIZE)))
    found, expected = run_both(rng, monkeypatch, build, steps)
    assert found.variables == expected.variables
    assert_within_the_promise(found.arrays, expected.arrays, "float64", 10)


@pytest.mark.parametrize("model", tf1_cells.NAMES)
def test_names_that_our_own_tests_expect_are_tensorflows(graph: Any, model: str) -> None:
    x = np.zeros((3, 7, tf1_cells.INPUT_SIZE), np.float32)
    BUILDS[model](theirs, [tensorflow.constant(x[:, t]) for t in range(3)] if model in tf1_cells.STEPWISE else x)
    assert names(v1.trainable_variables()) == tf1_cells.NAMES[model]


CELLS = [(*case, cells) for case in parity.CASES for cells in ("one", "stack", "both ways", "variants", "clipped")]
CELLS.remove(("float32", 820, "clipped"))
"""Of its 157,440 cells one may lie so near the clip that rounding decides whether it has a derivative."""


@pytest.mark.parametrize(("dtype", "time_steps", "cells"), CELLS)
def test_cells_agree_within_the_promise(
    graph: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dtype: str, time_steps: int, cells: str
) -> None:
    def build(tf: Any, x: Any) -> Any:
        basic, stack = tf.nn.rnn_cell.BasicLSTMCell, tf.nn.rnn_cell.MultiRNNCell
        size = parity.HIDDEN_SIZE
        if cells == "both ways":
            return tf.nn.bidirectional_dynamic_rnn(basic(size), basic(size), x, dtype=x.dtype)
        cell = {
            "one": lambda: basic(size),
            "stack": lambda: stack([basic(size), basic(32)]),
            "variants": lambda: tf.nn.rnn_cell.LSTMCell(size, use_peepholes=True, num_proj=32),
            "clipped": lambda: tf.nn.rnn_cell.LSTMCell(size, cell_clip=0.5),
        }[cells]()
        return tf.nn.dynamic_rnn(cell, x, dtype=x.dtype)

    x = rng.standard_normal((parity.BATCH, time_steps, parity.INPUT_SIZE)).astype(dtype)
    found, expected = run_both(rng, monkeypatch, build, x)
    assert_within_the_promise(found.arrays, expected.arrays, dtype, time_steps)


def test_first_values_are_distributed_as_tensorflows(graph: Any) -> None:
    x = np.zeros((2, 3, 200), np.float32)
    theirs.nn.dynamic_rnn(theirs.nn.rnn_cell.BasicLSTMCell(300), tensorflow.constant(x), dtype=x.dtype)
    ours.dynamic_rnn(ours.BasicLSTMCell(300), x)
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        kernel, bias = session.run(v1.trainable_variables())
    our_kernel, our_bias = ours.trainable_variables()
    # Of 600,000 uniform numbers: their standard deviation is known to 0.06 %, their bound to 0.001 %.
    np.testing.assert_allclose(np.std(our_kernel), np.std(kernel), rtol=0.005)
    np.testing.assert_allclose(np.abs(our_kernel).max(), np.abs(kernel).max(), rtol=1e-4)
    assert not bias.any() and not our_bias.any()
