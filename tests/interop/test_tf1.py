"""TensorFlow 1's cells over our kernels: names, scopes, states, derivatives, mistakes. No TensorFlow is asked here.

What cells compute is compared with their equations in NumPy (`tf1_cells`), derivatives with central differences.
"""

from __future__ import annotations

import operator
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmfast as lf
import lstmfast.compat.tf1 as tf
from lstmfast import functional, layouts
from support import documents
from support.oracles import slopes
from support.tf1_cells import INPUT_SIZE, MODELS, NAMES, STEPWISE, VARIANTS, Equations, backwards
from support.tolerances import DIFFERENCE, SAME, states

T, B, H = 7, 3, 5
FILES = Path(__file__).resolve().parent / "files"
CHECKPOINT = FILES / "tf1-2"  # written by TensorFlow
LENGTHS = [T, 0, 3]
BasicLSTMCell, LSTMCell, MultiRNNCell = tf.BasicLSTMCell, tf.LSTMCell, tf.MultiRNNCell


@pytest.fixture(autouse=True)
def graph(rng: np.random.Generator) -> Iterator[tf.Graph]:
    """A graph of the test's own."""
    with tf.Graph(rng).as_default() as graph:
        yield graph


def inputs(rng, dtype="float64"):
    return rng.standard_normal((B, T, INPUT_SIZE)).astype(dtype)


def some_state(rng, cell, dtype="float64"):
    c, h = cell.state_size
    return tf.LSTMStateTuple(rng.standard_normal((B, c)).astype(dtype), rng.uniform(-1, 1, (B, h)).astype(dtype))


def scramble(rng, *cells):
    """Give every variable, biases too, a random value."""
    for cell in cells:
        for variable in cell.trainable_variables:
            variable.assign(rng.normal(scale=0.5, size=variable.shape))


def equations(cell) -> Equations:
    """The equations with a cell's variables, in float64."""
    scope = cell.kernel.op.name.removesuffix("kernel")
    named = {v.op.name.removeprefix(scope): np.array(v, np.float64) for v in cell.trainable_variables}
    return Equations(named, cell.forget_bias, cell.cell_clip, cell.proj_clip)


def flat(structure: Any) -> list[np.ndarray]:
    return [a for part in structure for a in flat(part)] if isinstance(structure, (list, tuple)) else [structure]


def names() -> list[str]:
    return [f"{v.name} {v.shape}" for v in tf.trainable_variables()]


# --- names and scopes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", NAMES)
def test_variables_are_named_as_in_tensorflow(rng, model):
    x = inputs(rng, "float32")
    if model in STEPWISE:
        STEPWISE[model](tf, list(x.swapaxes(0, 1)[:3]))
    else:
        (MODELS | VARIANTS)[model](tf, x)
    assert names() == NAMES[model]


def test_names_in_checkpoints_have_no_output_number(rng):
    tf.dynamic_rnn(BasicLSTMCell(H), inputs(rng))
    assert [v.op.name for v in tf.trainable_variables()] == ["rnn/basic_lstm_cell/kernel", "rnn/basic_lstm_cell/bias"]


def test_trainable_variables_can_be_asked_for_one_scope(rng):
    MODELS["scopes"](tf, inputs(rng))
    assert [v.name for v in tf.trainable_variables("decoder")] == [
        "decoder/rnn/speaker/kernel:0", "decoder/rnn/speaker/bias:0",
    ]


def test_a_second_cell_in_the_same_scope_is_an_error_that_tells_the_ways_out(rng):
    tf.dynamic_rnn(BasicLSTMCell(H), inputs(rng))
    with pytest.raises(ValueError, match="rnn/basic_lstm_cell/kernel already exists: pass the same cell.*AUTO"):
        tf.dynamic_rnn(BasicLSTMCell(H), inputs(rng))


def test_a_cell_with_reuse_takes_the_variables_that_are_there(rng):
    first, second = BasicLSTMCell(H), BasicLSTMCell(H, reuse=True)
    for cell in (first, second):
        tf.dynamic_rnn(cell, inputs(rng))
    assert second.kernel is first.kernel


def test_a_scope_reuses_from_the_moment_it_is_told_to_and_until_it_is_left():
    with tf.variable_scope("s"):
        first = tf.get_variable("v", [2])
        tf.get_variable_scope().reuse_variables()
        assert tf.get_variable("v", [2]) is first
        with tf.variable_scope("within"), pytest.raises(ValueError, match="s/within/v does not exist"):
            tf.get_variable("v", [2])
    with tf.variable_scope("s"), pytest.raises(ValueError, match="s/v already exists"):
        tf.get_variable("v", [2])


def test_reuse_of_what_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="basic_lstm_cell/kernel does not exist"):
        BasicLSTMCell(H, reuse=True).build(INPUT_SIZE)


def test_sharing_a_variable_of_another_shape_is_an_error(rng):
    tf.get_variable("w", [2, 3])
    with tf.variable_scope("", default_name="s") as scope:
        assert scope.name == "s"
    with (
        tf.variable_scope(tf.VariableScope("", reuse=True)),
        pytest.raises(ValueError, match=r"Variable w must have shape \(3, 3\) to be shared, got \(2, 3\)"),
    ):
        tf.get_variable("w", [3, 3])


def test_a_new_graph_begins_without_variables(rng):
    tf.dynamic_rnn(BasicLSTMCell(H), inputs(rng))
    tf.reset_default_graph()
    tf.dynamic_rnn(BasicLSTMCell(H), inputs(rng))
    assert len(tf.trainable_variables()) == 2


def test_build_makes_the_variables_that_the_first_call_would(rng):
    cell = MultiRNNCell([BasicLSTMCell(3), LSTMCell(2)])
    with tf.variable_scope("rnn"):
        cell.build(INPUT_SIZE, "float64")
    before = tf.trainable_variables()
    tf.dynamic_rnn(cell, inputs(rng))
    assert names() == NAMES["stack"]
    assert all(a is b for a, b in zip(before, cell.variables, strict=True))


# --- first values -----------------------------------------------------------------------------------------------------


def test_kernels_begin_glorot_uniform_and_biases_zero():
    cell = BasicLSTMCell(100)
    cell.build(60)
    bound = np.sqrt(6 / (160 + 400))
    assert 0.99 * bound < np.abs(cell.kernel).max() <= bound
    np.testing.assert_allclose(np.std(cell.kernel), bound / np.sqrt(3), rtol=0.02)
    assert not cell.bias.any()


def test_the_scopes_initializer_is_for_those_that_name_none():
    with tf.variable_scope("s", initializer=tf.constant_initializer(0.5)):
        cell, own = BasicLSTMCell(2), LSTMCell(2, initializer=tf.ones_initializer())
        cell.build(3)
        own.build(3)
    assert (np.unique(cell.kernel), np.unique(cell.bias), np.unique(own.kernel)) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("initializer", "low", "high"),
    [
        (tf.random_uniform_initializer(-0.1, 0.1), -0.1, 0.1),
        (tf.truncated_normal_initializer(1.0, 0.5), 0.0, 2.0),
        (tf.glorot_uniform_initializer(), -np.sqrt(6 / 100), np.sqrt(6 / 100)),
        (tf.orthogonal_initializer(2.0), -2.0, 2.0),
        (tf.random_normal_initializer(100.0, 1.0), 90.0, 110.0),
        (lambda shape, rng: rng.random(shape), 0.0, 1.0),
        (np.full((60, 40), 0.25), 0.25, 0.25),
        (tf.zeros_initializer(), 0.0, 0.0),
    ],
)
def test_initializers_keep_to_their_range(initializer, low, high):
    values = tf.get_variable("v", [60, 40], initializer=initializer)
    # Within one unit of float32, to which the values are rounded.
    assert low - 1e-7 <= values.min() and values.max() <= high + 1e-6
    assert low == high or np.ptp(values) > (high - low) / 5


def test_one_seed_gives_the_same_weights_again():
    kernels = []
    for _ in range(2):
        with tf.Graph().as_default():
            tf.set_random_seed(7)
            cell = BasicLSTMCell(3)
            cell.build(2)
            kernels.append(cell.kernel)
    np.testing.assert_array_equal(*kernels)


# --- what cells compute -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("make", [BasicLSTMCell, LSTMCell])
def test_dynamic_rnn_follows_the_equations(rng, dtype, make, lengths):
    cell, x = make(H, forget_bias=0.75), inputs(rng, dtype)
    state = some_state(rng, cell, dtype)
    cell.build(INPUT_SIZE, dtype)
    scramble(rng, cell)
    outputs, final = tf.dynamic_rnn(cell, x, lengths, state)
    wanted = equations(cell).unroll(x.swapaxes(0, 1).astype(float), state.c, state.h, lengths)
    tolerance = states(dtype, INPUT_SIZE + H)
    np.testing.assert_allclose(outputs.swapaxes(0, 1), wanted[0], **tolerance)
    np.testing.assert_allclose(final.c, wanted[1], **tolerance)
    np.testing.assert_allclose(final.h, wanted[2], **tolerance)


VARIANT_SETTINGS = {
    "peepholes": {"use_peepholes": True},
    "projection": {"num_proj": 3},
    "clip": {"cell_clip": 0.4},
    "projection clip": {"num_proj": 3, "proj_clip": 0.2},
    "all": {"use_peepholes": True, "num_proj": 3, "proj_clip": 0.2, "cell_clip": 0.4},
}
variants = pytest.mark.parametrize("settings", VARIANT_SETTINGS.values(), ids=VARIANT_SETTINGS)


@variants
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_variants_of_the_cell_follow_the_equations(rng, dtype, settings, lengths):
    cell, x = LSTMCell(H, **settings), inputs(rng, dtype)
    state = some_state(rng, cell, dtype)
    cell.build(INPUT_SIZE, dtype)
    scramble(rng, cell)
    (outputs, backward), (final, _) = _both_ways(cell, x, lengths, state)
    # The projection adds another sum of H terms.
    tolerance = states(dtype, INPUT_SIZE + 2 * H)
    x_wide = x.swapaxes(0, 1).astype(float)
    wanted = equations(cell).unroll(x_wide, state.c, state.h, lengths)
    for actual, expected in zip((outputs.swapaxes(0, 1), *final), wanted, strict=True):
        np.testing.assert_allclose(actual, expected, **tolerance)
    turned = equations(cell).unroll(backwards(x_wide, lengths), state.c, state.h, lengths)[0]
    np.testing.assert_allclose(backward.swapaxes(0, 1), backwards(turned, lengths), **tolerance)


def _both_ways(cell, x, lengths, state):
    """The cell forward, and a cell with the same variables in reverse."""
    twin = LSTMCell(H, cell.use_peepholes, cell.cell_clip, None, cell.num_proj, cell.proj_clip)
    twin.build(INPUT_SIZE, x.dtype)
    for variable, value in zip(twin.variables, cell.variables, strict=True):
        variable.assign(value)
    return tf.bidirectional_dynamic_rnn(cell, twin, x, lengths, state, state)


def test_a_sequence_is_its_steps(rng, dtype):
    x = list(inputs(rng, dtype).swapaxes(0, 1))
    cell = MultiRNNCell([BasicLSTMCell(3), LSTMCell(2)])
    outputs, final = tf.static_rnn(cell, x)
    state = cell.zero_state(B, dtype)
    for t, step in enumerate(x):
        output, state = cell(step, state)
        np.testing.assert_allclose(output, outputs[t], **states(dtype, INPUT_SIZE + 3))
    for a, b in zip(flat(state), flat(final), strict=True):
        np.testing.assert_allclose(a, b, **states(dtype, INPUT_SIZE + 3))


def test_static_dynamic_and_time_major_give_the_same_bits(rng):
    x, cell = inputs(rng), BasicLSTMCell(H)
    state = some_state(rng, cell)
    batch_major, final = tf.dynamic_rnn(cell, x, LENGTHS, state)
    time_major, final_2 = tf.dynamic_rnn(cell, x.swapaxes(0, 1), LENGTHS, state, time_major=True)
    static, final_3 = tf.static_rnn(cell, list(x.swapaxes(0, 1)), state, sequence_length=LENGTHS)
    np.testing.assert_array_equal(batch_major.swapaxes(0, 1), time_major)
    np.testing.assert_array_equal(time_major, static)
    for other in (final_2, final_3):
        np.testing.assert_array_equal(final, other)


def test_the_second_direction_reads_each_row_from_its_own_end(rng):
    x, fw, bw = inputs(rng), BasicLSTMCell(3), MultiRNNCell([BasicLSTMCell(4), BasicLSTMCell(2)])
    (outputs_fw, outputs_bw), (state_fw, state_bw) = tf.bidirectional_dynamic_rnn(fw, bw, x, LENGTHS)
    alone, final = tf.dynamic_rnn(bw, backwards(x.swapaxes(0, 1), LENGTHS), LENGTHS, time_major=True)
    np.testing.assert_allclose(outputs_bw.swapaxes(0, 1), backwards(alone, LENGTHS), **SAME)
    for a, b in zip(flat(state_bw), flat(final), strict=True):
        np.testing.assert_allclose(a, b, **SAME)
    static, *final_states = tf.static_bidirectional_rnn(fw, bw, list(x.swapaxes(0, 1)), sequence_length=LENGTHS)
    np.testing.assert_array_equal(static, np.concatenate([outputs_fw, outputs_bw], axis=2).swapaxes(0, 1))
    for a, b in zip(flat(final_states), flat([state_fw, state_bw]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_states_in_one_array_are_those_in_tuples_side_by_side(rng):
    x = inputs(rng)
    results = []
    for as_tuple in (True, False):
        with tf.Graph(np.random.default_rng(0)).as_default():
            cells = [BasicLSTMCell(n, state_is_tuple=as_tuple) for n in (3, 2)]
            outputs, state = tf.dynamic_rnn(MultiRNNCell(cells, state_is_tuple=as_tuple), x)
            again, _ = tf.dynamic_rnn(MultiRNNCell(cells, state_is_tuple=as_tuple), x, initial_state=state)
            results.append([outputs, again, np.concatenate(flat(state), axis=1)])
    for in_tuples, in_one in zip(*results, strict=True):
        np.testing.assert_array_equal(in_tuples, in_one)


def test_a_whole_sequence_is_one_call_of_the_kernels_for_each_layer(rng, monkeypatch):
    calls = []
    real = functional.lstm
    monkeypatch.setattr(functional, "lstm", lambda x, **how: calls.append(x.shape[0]) or real(x, **how))
    stack = MultiRNNCell([tf.DropoutWrapper(BasicLSTMCell(n), 0.5, 0.5, seed=0) for n in (3, 2)])
    tf.dynamic_rnn(stack, inputs(rng))
    tf.static_rnn(stack, list(inputs(rng).swapaxes(0, 1)))
    assert calls == [T] * 4


@pytest.mark.parametrize(("time_steps", "batch"), [(0, 2), (3, 0)])
@pytest.mark.parametrize("state_keep_prob", [1.0, 0.5], ids=["whole", "by steps"])
def test_no_steps_and_no_rows_leave_the_state_and_give_no_output(rng, time_steps, batch, state_keep_prob):
    cell = tf.DropoutWrapper(BasicLSTMCell(H), state_keep_prob=state_keep_prob)
    x, state = np.ones((batch, time_steps, 4)), tf.LSTMStateTuple(*rng.normal(size=(2, batch, H)))
    with tf.GradientTape() as tape:
        outputs, final = tf.dynamic_rnn(cell, x, initial_state=state)
    assert outputs.shape == (batch, time_steps, H)
    if not time_steps:
        np.testing.assert_array_equal(final, state)
    d_x, d_kernel, *_ = tape.gradients([outputs, final], [x, *cell.variables])
    assert d_x.shape == x.shape and not d_kernel.any()


def test_cells_see_every_write_to_their_variables(rng):
    cell, x = BasicLSTMCell(H), inputs(rng)
    tf.dynamic_rnn(cell, x)
    zeros = tf.LSTMStateTuple(np.zeros((B, H)), np.zeros((B, H)))
    for write in (
        lambda v: v.assign(rng.normal(size=v.shape)),
        lambda v: v.load(rng.normal(size=v.shape)),
        lambda v: v.__isub__(0.25),
        lambda v: np.multiply(v, 2.0, out=v),
        lambda v: v[..., 3:].fill(0.5),
        lambda v: np.random.default_rng(1).standard_normal(out=np.asarray(v)),
        lambda v: memoryview(v).cast("B").__setitem__(6, 0),
    ):
        write(cell.kernel)
        write(cell.bias)
        outputs, _ = tf.dynamic_rnn(cell, x)
        np.testing.assert_allclose(outputs.swapaxes(0, 1), equations(cell).unroll(x.swapaxes(0, 1), *zeros)[0], **SAME)


def test_variables_of_a_checkpoint_fit_the_cells_that_wrote_it(rng):
    saved, x = layouts.read(CHECKPOINT).arrays, inputs(rng, "float32")[..., :3]
    with tf.variable_scope("wide"):
        cell = LSTMCell(4, use_peepholes=True, num_proj=2, forget_bias=0.5)
        tf.dynamic_rnn(cell, x)
    assert {v.op.name for v in tf.trainable_variables()} == {name for name in saved if name.startswith("wide/")}
    for variable in tf.trainable_variables():
        variable.assign(saved[variable.op.name])
    outputs, _ = tf.dynamic_rnn(cell, x)
    wanted = equations(cell).unroll(x.swapaxes(0, 1).astype(float), np.zeros((B, 4)), np.zeros((B, 2)))[0]
    np.testing.assert_allclose(outputs.swapaxes(0, 1), wanted, **states("float32", INPUT_SIZE + H))


# --- derivatives ------------------------------------------------------------------------------------------------------


def check_derivatives(rng, call, arguments):
    """Compare the derivatives of call(arguments) -> arrays, a random sum of them, with central differences.

    Entries of `arguments` named after a variable become its value.
    """

    def run(values, upstream=None):
        with tf.Graph(np.random.default_rng(5)).as_default():
            call(values)  # makes the variables
            for variable in tf.trainable_variables():
                variable.assign(values[variable.op.name])
            with tf.GradientTape() as tape:
                results = call(values)
            xs = [*(v for k, v in values.items() if "/" not in k), *tf.trainable_variables()]
        return results, tape.gradients(results, xs, upstream)

    with tf.Graph(np.random.default_rng(5)).as_default():
        call(arguments)
        made = {v.op.name: rng.normal(scale=0.5, size=v.shape) for v in tf.trainable_variables()}
    values = arguments | made
    upstream = [rng.standard_normal(a.shape) for a in flat(run(values)[0])]

    def loss(values):
        return sum(float(np.vdot(d, a)) for d, a in zip(upstream, flat(run(values)[0]), strict=True))

    _, derivatives = run(values, _like(run(values)[0], iter(upstream)))
    directions = {name: rng.standard_normal(value.shape) for name, value in values.items()}
    wanted = slopes(loss, values, directions)
    actual = [float(np.vdot(d, directions[name])) for name, d in zip(values, derivatives, strict=True)]
    np.testing.assert_allclose(actual, wanted, **DIFFERENCE)


def _like(structure, values):
    if isinstance(structure, (list, tuple)):
        return [_like(part, values) for part in structure]
    return next(values)


def _arguments(rng, *shapes):
    return {"x": inputs(rng)} | {f"s{k}": rng.uniform(-1, 1, (B, n)) for k, n in enumerate(shapes)}


def test_derivatives_of_a_stack_with_lengths_and_state(rng):
    def call(v):
        cells = MultiRNNCell([BasicLSTMCell(3), LSTMCell(2, forget_bias=0.5)])
        state = (tf.LSTMStateTuple(v["s0"], v["s1"]), tf.LSTMStateTuple(v["s2"], v["s3"]))
        with tf.variable_scope("m", reuse=tf.AUTO_REUSE):
            return tf.dynamic_rnn(cells, v["x"], LENGTHS, state)

    check_derivatives(rng, call, _arguments(rng, 3, 3, 2, 2))


def test_derivatives_of_two_directions_over_steps(rng):
    def call(v):
        with tf.variable_scope("m", reuse=tf.AUTO_REUSE):
            steps = [v["s0"], v["s1"], v["s0"]]  # one array twice: both parts count
            return tf.static_bidirectional_rnn(
                MultiRNNCell([BasicLSTMCell(3), BasicLSTMCell(2)]), BasicLSTMCell(4), steps, sequence_length=[3, 1, 2]
            )

    check_derivatives(rng, call, {k: v for k, v in _arguments(rng, 4, 4).items() if k != "x"})


def test_derivatives_flow_from_call_to_call_through_states_and_outputs(rng):
    def call(v):
        with tf.variable_scope("encoder", reuse=tf.AUTO_REUSE):
            encoded, state = tf.dynamic_rnn(BasicLSTMCell(3), v["x"])
        with tf.variable_scope("decoder", reuse=tf.AUTO_REUSE):
            decoded, _ = tf.dynamic_rnn(BasicLSTMCell(3), encoded, initial_state=state)
        with tf.variable_scope("by_hand", reuse=tf.AUTO_REUSE):
            cell, step = BasicLSTMCell(3), v["s0"]
            for _ in range(3):
                step, state = cell(step, state)
        return decoded, step, state

    check_derivatives(rng, call, _arguments(rng, 3))


@pytest.mark.parametrize("variational", [False, True], ids=["each step", "variational"])
@pytest.mark.parametrize("state_keep_prob", [1.0, 0.6])
def test_derivatives_of_dropout(rng, variational, state_keep_prob):
    def call(v):
        cell = tf.DropoutWrapper(
            MultiRNNCell([BasicLSTMCell(3), tf.DropoutWrapper(BasicLSTMCell(2), 0.7, seed=3)]),
            0.8, 0.5, state_keep_prob, variational, seed=1,
        )
        with tf.variable_scope("m", reuse=tf.AUTO_REUSE):
            return tf.bidirectional_dynamic_rnn(cell, tf.DropoutWrapper(LSTMCell(2), 0.5, seed=2), v["x"], LENGTHS)

    check_derivatives(rng, call, _arguments(rng))


def test_derivatives_of_states_in_one_array(rng):
    def call(v):
        cells = [BasicLSTMCell(3, state_is_tuple=False), BasicLSTMCell(2, state_is_tuple=False)]
        with tf.variable_scope("m", reuse=tf.AUTO_REUSE):
            return tf.dynamic_rnn(MultiRNNCell(cells, state_is_tuple=False), v["x"], initial_state=v["s0"])

    check_derivatives(rng, call, _arguments(rng, 10))


@variants
def test_derivatives_of_variants(rng, settings):
    def call(v):
        cell = LSTMCell(H, **settings)
        with tf.variable_scope("m", reuse=tf.AUTO_REUSE):
            return tf.dynamic_rnn(cell, v["x"], LENGTHS, tf.LSTMStateTuple(v["s0"], v["s1"]))

    check_derivatives(rng, call, _arguments(rng, H, settings.get("num_proj", H)))


def test_writing_a_variable_leaves_the_derivatives_of_earlier_calls(rng):
    cell, x = BasicLSTMCell(H), inputs(rng)
    with tf.GradientTape() as tape:
        outputs, _ = tf.dynamic_rnn(cell, x)
    before = tape.gradients(outputs, [x, cell.kernel])
    cell.kernel[...] = 0.0
    tf.dynamic_rnn(cell, x)
    for a, b in zip(before, tape.gradients(outputs, [x, cell.kernel]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_derivative_that_nothing_leads_to_is_none(rng):
    w, cell = tf.get_variable("w", [2]), BasicLSTMCell(H)
    with tf.GradientTape() as tape:
        outputs, _ = tf.dynamic_rnn(cell, inputs(rng))
    unconnected, d_kernel = tape.gradients(outputs, [w, cell.kernel])
    assert unconnected is None and d_kernel is not None


def test_outputs_without_a_derivative_count_as_zeros(rng):
    cell, x = BasicLSTMCell(H), list(inputs(rng).swapaxes(0, 1))
    with tf.GradientTape() as tape:
        outputs, state = tf.static_rnn(cell, x)
    last, zeros = np.ones((B, H)), np.zeros((B, H))
    some = tape.gradients([outputs, state], x, [[None] * (T - 1) + [last], None])
    every = tape.gradients([outputs, state], x, [[zeros] * (T - 1) + [last], tf.LSTMStateTuple(zeros, zeros)])
    np.testing.assert_array_equal(some, every)


def test_without_a_tape_nothing_is_kept(rng, monkeypatch):
    kept = []
    real = functional.lstm
    monkeypatch.setattr(functional, "lstm", lambda x, **how: kept.append(how["keep_for_backward"]) or real(x, **how))
    tf.dynamic_rnn(BasicLSTMCell(H), inputs(rng))
    assert kept == [False]


def test_gradient_descent_on_the_users_own_loss_fits(rng):
    cell, x, target = BasicLSTMCell(8), inputs(rng), rng.uniform(-0.5, 0.5, (B, T, 8))
    losses = []
    for _ in range(150):
        with tf.GradientTape() as tape:
            outputs, _ = tf.dynamic_rnn(cell, x)
        losses.append(0.5 * np.sum((outputs - target) ** 2))
        derivatives = tape.gradients(outputs, cell.variables, outputs - target)
        derivatives, _ = tf.clip_by_global_norm(derivatives, 5.0)
        for variable, derivative in zip(cell.variables, derivatives, strict=True):
            variable -= 0.3 * derivative
    assert losses[-1] < losses[0] / 4


def test_clip_by_global_norm_keeps_small_gradients_and_scales_large_ones():
    (a, nothing), norm = tf.clip_by_global_norm([np.array([3.0, 4.0]), None], 10.0)
    assert (a.tolist(), nothing, norm) == ([3.0, 4.0], None, 5.0)
    (a, b), norm = tf.clip_by_global_norm([np.array([3.0]), np.array([4.0], np.float32)], 1.0)
    np.testing.assert_allclose([a[0], b[0], norm], [0.6, 0.8, 5.0], rtol=1e-6)
    assert b.dtype == np.float32


# --- dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_keeps_its_share_and_the_mean():
    cell = tf.DropoutWrapper(BasicLSTMCell(40), output_keep_prob=0.8, seed=0)
    x = np.ones((30, 50, 2))
    dropped, _ = tf.dynamic_rnn(cell, x)
    kept, _ = tf.dynamic_rnn(cell.wrapped_cell, x)
    ratio = dropped / kept
    values, counts = np.unique(np.round(ratio, 6), return_counts=True)
    np.testing.assert_allclose(values, [0.0, 1.25])
    assert abs(counts[1] / ratio.size - 0.8) < 4 * np.sqrt(0.8 * 0.2 / ratio.size)


def test_variational_dropout_is_one_mask_for_all_rows_and_steps_of_a_call():
    cell = tf.DropoutWrapper(BasicLSTMCell(40), output_keep_prob=0.5, variational_recurrent=True, seed=0)
    patterns = []
    for _ in range(2):
        outputs, _ = tf.dynamic_rnn(cell, np.ones((3, 4, 2)))
        zero = outputs == 0
        assert (zero == zero[:1, :1]).all()
        patterns.append(zero[0, 0])
    assert 0 < patterns[0].sum() < 40 and (patterns[0] != patterns[1]).any()


def test_dropout_of_the_state_drops_h_and_never_c():
    cell = tf.DropoutWrapper(BasicLSTMCell(40), state_keep_prob=0.5, seed=0)
    outputs, state = tf.dynamic_rnn(cell, np.ones((3, 4, 2)), [4, 0, 2])
    assert (state.c[[0, 2]] != 0).all()
    assert 0.2 < (state.h[[0, 2]] == 0).mean() < 0.8
    last = np.stack([outputs[0, 3], outputs[2, 1]])  # the output is the one before the dropout
    np.testing.assert_allclose(state.h[[0, 2]], np.where(state.h[[0, 2]] == 0, 0, 2 * last))


def test_rows_that_ended_keep_the_state_that_dropout_left_them(rng):
    wrapped = [tf.DropoutWrapper(BasicLSTMCell(H, reuse=tf.AUTO_REUSE), state_keep_prob=0.5, seed=0) for _ in range(2)]
    x = inputs(rng)
    _, short = tf.dynamic_rnn(wrapped[0], x[:, :2])
    _, padded = tf.dynamic_rnn(wrapped[1], x, [2] * B)
    for a, b in zip(short, padded, strict=True):
        np.testing.assert_array_equal(a, b)


def test_keep_probabilities_can_be_set_for_evaluation(rng):
    cell, x = tf.DropoutWrapper(BasicLSTMCell(H), 0.5, 0.5, 0.5, seed=0), inputs(rng)
    tf.dynamic_rnn(cell, x)
    cell.input_keep_prob = cell.output_keep_prob = cell.state_keep_prob = 1.0
    np.testing.assert_array_equal(tf.dynamic_rnn(cell, x)[0], tf.dynamic_rnn(cell.wrapped_cell, x)[0])


def test_one_seed_gives_the_same_dropout_again(rng):
    x = inputs(rng)
    cell = BasicLSTMCell(H)
    seeds = [7, 7, np.random.default_rng(7)]
    first, *others = [tf.dynamic_rnn(tf.DropoutWrapper(cell, 0.5, 0.5, 0.5, seed=seed), x)[0] for seed in seeds]
    for other in others:
        np.testing.assert_array_equal(first, other)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda cell: cell, tf.DropoutWrapper], ids=["plain", "wrapped"])
def test_one_cell_three_times_is_an_error_with_the_cure(wrap):
    cell = BasicLSTMCell(H)
    with pytest.raises(ValueError, match=r"cells must be different.*Attempt to reuse RNNCell") as error:
        MultiRNNCell([wrap(cell) for _ in range(3)])
    assert "write MultiRNNCell([BasicLSTMCell(num_units) for _ in range(3)])" in str(error.value)


def test_one_cell_in_both_directions_is_an_error(rng):
    cell = BasicLSTMCell(H)
    with pytest.raises(ValueError, match="cell_fw and cell_bw must be different objects"):
        tf.bidirectional_dynamic_rnn(cell, tf.DropoutWrapper(cell), inputs(rng))


X = np.zeros((B, T, INPUT_SIZE))
MISTAKES = {
    "activation": (lambda: BasicLSTMCell(3, activation="relu"), ValueError, "activation must be tanh.*got relu"),
    "units": (lambda: BasicLSTMCell(0), ValueError, "num_units must be at least 1, got 0"),
    "units that are a cell": (lambda: BasicLSTMCell(BasicLSTMCell(3)), TypeError, "num_units must be a whole number"),
    "clip": (lambda: LSTMCell(3, cell_clip=-1.0), ValueError, "cell_clip must be positive or None, got -1"),
    "shards": (lambda: LSTMCell(3, num_unit_shards=2), ValueError, "num_unit_shards and num_proj_shards must be None"),
    "dtype": (lambda: BasicLSTMCell(3, dtype="float16"), TypeError, "dtype must be float32 or float64"),
    "keep probability": (lambda: tf.DropoutWrapper(BasicLSTMCell(3), 0.0), ValueError, r"input_keep_prob must be in"),
    "no cells": (lambda: MultiRNNCell([]), ValueError, "at least one cell"),
    "not a list": (lambda: MultiRNNCell(BasicLSTMCell(3)), TypeError, "cells must be a list or tuple of cells"),
    "not cells": (lambda: MultiRNNCell([3]), TypeError, r"cells\[0\] must be a cell of lstmfast.compat.tf1.*got 3"),
    "mixed states": (
        lambda: MultiRNNCell([BasicLSTMCell(3)], state_is_tuple=False), ValueError, "must have state_is_tuple=False",
    ),
    "not a cell": (lambda: tf.dynamic_rnn(lf.LSTMCell(4, 3), X), TypeError, "cell must be a cell of lstmfast.compat"),
    "a step for a sequence": (
        lambda: tf.dynamic_rnn(BasicLSTMCell(3), X[0]), ValueError,
        r"inputs must have shape \(batch, time, input_size\).*got \(7, 4\)",
    ),
    "ids": (lambda: tf.dynamic_rnn(BasicLSTMCell(3), np.zeros((2, 3), int)), TypeError, "inputs must be a float32 or"),
    "one array for a list": (
        lambda: tf.static_rnn(BasicLSTMCell(3), X), TypeError, "inputs must be a list of arrays.*dynamic_rnn takes one",
    ),
    "an empty list": (lambda: tf.static_rnn(BasicLSTMCell(3), []), ValueError, "at least one step"),
    "unequal steps": (
        lambda: tf.static_rnn(BasicLSTMCell(3), [X[0], X[0, 1:]]), ValueError, r"inputs\[1\] must have shape \(7, 4\)",
    ),
    "other dtype": (lambda: tf.dynamic_rnn(BasicLSTMCell(3), X, dtype=tf.float32), TypeError, "dtype must be float64"),
    "lengths": (
        lambda: tf.dynamic_rnn(BasicLSTMCell(3), X, [8, 1, 1]), ValueError, "sequence_length must lie between 0 and 7",
    ),
    "an array for a tuple": (
        lambda: tf.dynamic_rnn(BasicLSTMCell(3), X, initial_state=np.zeros((B, 6))), TypeError,
        r"initial_state must be an LSTMStateTuple\(c, h\), got ndarray",
    ),
    "a state for a stack": (
        lambda: tf.dynamic_rnn(MultiRNNCell([BasicLSTMCell(3)]), X, initial_state=np.zeros((B, 6))), TypeError,
        "initial_state must be a tuple of 1 states, one for each cell, got ndarray",
    ),
    "state of another size": (
        lambda: tf.dynamic_rnn(BasicLSTMCell(3), X, initial_state=BasicLSTMCell(4).zero_state(B, "float64")),
        ValueError, r"initial_state.c must have shape \(3, 3\)",
    ),
    "state of another dtype": (
        lambda: tf.dynamic_rnn(BasicLSTMCell(3), X, initial_state=BasicLSTMCell(3).zero_state(B)), TypeError,
        "initial_state.c must be float64 like inputs, got float32",
    ),
    "kernel too early": (lambda: BasicLSTMCell(3).kernel, RuntimeError, "no kernel before its first input"),
    "variable without shape": (lambda: tf.get_variable("v"), ValueError, "Variable v needs a shape"),
    "scope without name": (lambda: tf.variable_scope().__enter__(), ValueError, "variable_scope needs a name"),
    "assign": (
        lambda: tf.get_variable("v", [2]).assign(np.zeros(3)), ValueError, r"value of v:0 must have shape \(2,\)",
    ),
    "initializer": (
        lambda: tf.get_variable("v", [2], initializer=np.zeros(3)), ValueError, "initializer's value for v must have",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_with_one_clear_sentence(mistake):
    act, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        act()


def test_a_cell_is_made_for_one_input_size_and_dtype(rng):
    cell = BasicLSTMCell(H)
    tf.dynamic_rnn(cell, inputs(rng))
    with pytest.raises(ValueError, match=r"inputs must have input_size 4, for which rnn/basic_lstm_cell/.*got 3"):
        tf.dynamic_rnn(cell, inputs(rng)[:, :, :3])
    with pytest.raises(TypeError, match="inputs must be float64 like rnn/basic_lstm_cell/kernel:0, got float32"):
        tf.dynamic_rnn(cell, inputs(rng, "float32"))
    with pytest.raises(TypeError, match="inputs must be float32 like basic_lstm_cell, got float64"):
        tf.dynamic_rnn(BasicLSTMCell(H, dtype=tf.float32), inputs(rng))


def test_what_a_tape_does_not_know_is_named(rng):
    cell, x = BasicLSTMCell(H), inputs(rng)
    with tf.GradientTape() as tape:
        outputs, state = tf.dynamic_rnn(cell, x)
    ones = np.ones_like(outputs)
    for ys, xs, grad_ys, error, message in [
        (outputs[:, -1], x, None, ValueError, "ys is not an array that a call within this tape returned; a slice"),
        ([outputs, state.c.copy()], x, None, ValueError, r"ys\[1\] is not an array"),
        (outputs, x[:, 1:], None, ValueError, "xs is neither a variable nor an array"),
        (outputs, [x, "kernel"], None, TypeError, r"xs\[1\] must be an array, or a list"),
        (outputs, x, ones[1:], ValueError, r"grad_ys must have shape \(3, 7, 5\)"),
        (outputs, x, ones.astype(np.float32), TypeError, "grad_ys must be float64 like its y"),
        ([outputs, state], x, [ones], ValueError, "grad_ys must have the structure of ys, 2 parts here, got 1"),
    ]:
        with pytest.raises(error, match=message):
            tape.gradients(ys, xs, grad_ys)


# --- the package ------------------------------------------------------------------------------------------------------


def test_every_path_of_tensorflow_1_leads_to_the_same_objects():
    for module in (tf.nn, tf.nn.rnn_cell, tf.contrib.rnn):
        for name in set(module.__all__) - {"rnn_cell"}:
            assert getattr(module, name) is getattr(tf, name)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("placeholder", "no tf.placeholder: placeholders become arguments"),
        ("Session", "no tf.Session: there is no session and calls compute immediately"),
        ("train.AdamOptimizer", "no tf.train: optimizers are lstmfast.optimizers.SGD"),
        ("train.Saver", "checkpoints are read by lstmfast.layouts"),
        ("global_variables_initializer", "variables are initialized when they are created"),
        ("gradients", r"derivatives come from a GradientTape: tape.gradients\(ys, xs, grad_ys\)"),
        ("matmul", "no tf.matmul: between them, use NumPy: numpy.matmul"),
        ("reduce_mean", "numpy.mean"),
        ("int32", "types are NumPy's"),
        ("compat.v1", "take names from it"),
        ("__version__", "no tf.__version__: this is not TensorFlow"),
        ("nn.softmax", "no tf.nn.softmax: .* divided by its sum"),
        ("nn.sparse_softmax_cross_entropy_with_logits", "lstmfast.losses.softmax_cross_entropy"),
        ("nn.embedding_lookup", r"table\[ids\]"),
        ("nn.LSTMCell", "no tf.nn.LSTMCell: it is tf.LSTMCell"),
        ("nn.rnn_cell.GRUCell", "no tf.nn.rnn_cell.GRUCell: only LSTM cells are available"),
        ("nn.rnn_cell.dynamic_rnn", "it is tf.dynamic_rnn"),
        ("contrib.seq2seq.BasicDecoder", "no tf.contrib.seq2seq: call the cell step by step"),
        ("contrib.rnn.LSTMBlockCell", "no tf.contrib.rnn.LSTMBlockCell: LSTMCell has its equations"),
        ("contrib.rnn.GRUCell", "only LSTM cells are available"),
        ("contrib.layers.fully_connected", "no tf.contrib.layers: layers are"),
        ("something_new", "no tf.something_new: between them, use NumPy"),
        ("nn.something_new", "no tf.nn.something_new: between"),
    ],
)
def test_a_name_of_tensorflow_that_is_not_here_says_what_stands_in_its_place(path, words):
    with pytest.raises(AttributeError, match=words) as raised:
        operator.attrgetter(path)(tf)
    assert str(raised.value).startswith(
        "lstmfast.compat.tf1 has LSTM cells, functions that unroll and differentiate them, and"
    )


def test_a_name_of_a_tool_or_of_python_is_an_ordinary_attribute_error():
    assert not any(hasattr(module, "__wrapped__") for module in (tf, tf.nn, tf.contrib, tf.nn.rnn_cell))
    with pytest.raises(AttributeError, match="^module 'lstmfast.compat.tf1' has no attribute '__wrapped__'"):
        tf.__wrapped__  # noqa: B018


def masked(array):
    return np.ma.masked_greater(array, array.mean())


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("inputs", lambda x: tf.dynamic_rnn(BasicLSTMCell(H), masked(x))),
        ("sequence_length", lambda x: tf.dynamic_rnn(BasicLSTMCell(H), x, sequence_length=masked(np.arange(B)))),
        (r"initial_state\.c", lambda x: tf.dynamic_rnn(BasicLSTMCell(H), x, initial_state=(masked(x[:, 0]),) * 2)),
        (r"inputs\[1\]", lambda x: tf.static_rnn(BasicLSTMCell(H), [x[:, 0], masked(x[:, 1])])),
        ("value of v:0", lambda x: tf.get_variable("v", [B, T]).assign(masked(x[..., 0]))),
        ("initializer's value for v", lambda x: tf.get_variable("v", initializer=masked(x))),
        ("value", lambda x: tf.constant_initializer(masked(x))),
        (r"t_list\[0\]", lambda x: tf.clip_by_global_norm([masked(x)], 1.0)),
    ],
)
def test_masked_arrays_are_refused_by_name(rng, name, call):
    with pytest.raises(TypeError, match=f"^{name} must be an array without a mask, got a masked array with .* fill it"):
        call(rng.standard_normal((B, T, H)))


def test_it_imports_no_framework():
    code = "import sys, lstmfast.compat.tf1; print([m for m in ('tensorflow', 'keras', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_the_code_in_its_document_runs(tmp_path, monkeypatch):
    for part in (".index", ".data-00000-of-00001"):
        shutil.copy(CHECKPOINT.with_suffix(part), tmp_path / f"model.ckpt{part}")
    monkeypatch.chdir(tmp_path)
    document = documents.DOCS / "tf1.md"
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    ours = [block for block in blocks if "import lstmfast.compat.tf1 as tf" in block]
    assert ours
    for block in ours:
        with tf.Graph(np.random.default_rng(0)).as_default():
            exec(compile(block, str(document), "exec"), {})
