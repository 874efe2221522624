"""Layers of regularised cells: names, seeds, learnt initial states, what inference leaves out, errors.

The numbers of every option are checked against the reference in kernels/.
"""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lstmfast as lf
from support.oracles import random_lengths, random_resets, slopes
from support.tolerances import DIFFERENCE, states

T, B, I, H, P = 5, 3, 4, 6, 2  # noqa: E741  (the papers' letters)
SEED = 2**63 + 5
DROPOUTS = lf.Cell(recurrent_dropout=0.4, weight_dropout=0.3)
ALL = lf.Cell(
    0.5, P, True, 0.9, recurrent_dropout=0.3, recurrent_dropout_per_step=True, zoneout=(0.2, 0.4), weight_dropout=0.3,
    layer_norm="products", layer_norm_epsilon=0.1, learn_initial_state=True,
)
# epsilon: normalisations of numbers near 0 are so bent with a smaller one that difference quotients are inexact.
CELLS = {
    "recurrent dropout": lf.Cell(recurrent_dropout=0.4),
    "of the candidate": lf.Cell(recurrent_dropout=0.4, recurrent_dropout_of="g", recurrent_dropout_per_step=True),
    "zoneout": lf.Cell(zoneout=(0.3, 0.2)),
    "weight dropout": lf.Cell(weight_dropout=0.4),
    "layer norm": lf.Cell(layer_norm="products", layer_norm_epsilon=0.1),
    "norm of gates, carried": lf.Cell(layer_norm="gates", layer_norm_epsilon=0.1, layer_norm_carry=True),
    "learnt states": lf.Cell(learn_initial_state=True),
    "all": ALL,
}
cells = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def layer_of(cell, **options):
    """Two layers, with every variable away from its initial value."""
    layer = lf.LSTM(I, H, num_layers=2, cell=cell, dtype="float64", rng=np.random.default_rng(1), **options)
    layer.parameter_buffer += np.random.default_rng(2).standard_normal(layer.parameter_buffer.size) / 8
    return layer


@pytest.fixture
def x(rng):
    return rng.standard_normal((T, B, I))


# --- variables --------------------------------------------------------------------------------------------------------


def test_variables_are_named_and_shaped(rng):
    layer = lf.LSTM(I, H, num_layers=2, bidirectional=True, cell=ALL, rng=rng)
    shapes = {name: value.shape for name, value in layer.parameters.items() if name.startswith("layer1_reverse")}
    assert shapes == {
        "layer1_reverse.kernel": (2 * P + P, 4 * H),
        "layer1_reverse.bias": (4 * H,),
        "layer1_reverse.peepholes": (3, H),
        "layer1_reverse.projection": (H, P),
        "layer1_reverse.norm_gain": (2, 4 * H),
        "layer1_reverse.cell_gain": (H,),
        "layer1_reverse.cell_shift": (H,),
        "layer1_reverse.initial_h": (P,),
        "layer1_reverse.initial_c": (H,),
    }


@pytest.mark.parametrize(("name", "value"), [("gain", 1), ("shift", 0), ("initial_h", 0), ("initial_c", 0)])
def test_variables_begin_where_they_change_nothing(rng, name, value):
    layer = lf.LSTM(I, H, layer_norm="gates", learn_initial_state=True, rng=rng)
    assert all((values == value).all() for key, values in layer.parameters.items() if key.endswith(name))


def test_options_are_those_of_a_cell(rng):
    options = {name: getattr(ALL, name) for name in vars(ALL)}
    assert lf.LSTM(I, H, rng=rng, **options).cell == lf.LSTMCell(I, H, rng=rng, **options).cell == ALL


# --- training ---------------------------------------------------------------------------------------------------------


@cells
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_gradients_of_a_layer_are_the_slopes_of_its_loss(rng, x, cell, bidirectional):
    layer = layer_of(cell, bidirectional=bidirectional)
    values = {"x": x, "buffer": np.array(layer.parameter_buffer)}
    d = {name: rng.standard_normal(value.shape) / 8 for name, value in values.items()}  # short: norms are bent
    lengths, resets = random_lengths(rng, T, B), random_resets(rng, T, B)
    d_out = rng.standard_normal((T, B, layer.output_size * layer.num_directions))

    def loss(v):
        layer.parameter_buffer[:] = v["buffer"]
        h, (_, c_n) = layer(v["x"], lengths=lengths, resets=resets, training=True, seed=SEED)
        return float(np.sum(d_out * h) + np.sum(c_n))

    loss(values)
    d_x, _ = layer.backward(d_out, (np.zeros_like(layer.zero_state(B)[0]), np.ones_like(layer.zero_state(B)[1])))
    found = {"x": d_x, "buffer": layer.gradient_buffer}
    assert_allclose([np.sum(found[name] * d[name]) for name in values], slopes(loss, values, d), **DIFFERENCE)


def test_each_layer_and_direction_has_masks_of_its_own_number(rng, x):
    layer = layer_of(DROPOUTS, bidirectional=True)
    h, _ = layer(x, training=True, seed=SEED, first_step=3)
    below = x
    for k in (0, 2):
        below = np.concatenate(
            [
                lf.lstm(
                    below, layer.cells[k + reverse].kernel, layer.cells[k + reverse].bias, reverse=bool(reverse),
                    forget_bias=1.0, recurrent_dropout=0.4, weight_dropout=0.3, seed=SEED, layer=k + reverse,
                    first_step=3,
                ).h
                for reverse in (0, 1)
            ],
            axis=-1,
        )
    assert_allclose(h, below, **states("float64", I + H))


def test_a_seed_repeats_the_masks_that_were_drawn(x):
    layer = layer_of(ALL)
    drawn, _ = layer(x, training=True)
    seed = layer.last_seed
    assert not np.array_equal(layer(x, training=True)[0], drawn)
    assert_array_equal(layer(x, training=True, seed=seed)[0], drawn)
    assert_array_equal(layer(x, seed=seed)[0], drawn)


def test_a_seed_follows_from_the_generator_of_the_layer(x):
    first, second = layer_of(DROPOUTS), layer_of(DROPOUTS)
    assert_array_equal(first(x, training=True)[0], second(x, training=True)[0])
    assert first.last_seed == second.last_seed


def test_a_call_without_masks_draws_nothing(x):
    rng = np.random.default_rng(0)
    layer = lf.LSTM(I, H, layer_norm=True, learn_initial_state=True, rng=rng, dtype="float64")
    before = rng.bit_generator.state
    layer(x, training=True)
    assert (layer.last_seed, rng.bit_generator.state) == (None, before)


def test_a_sequence_in_pieces_has_the_masks_of_the_whole(x):
    layer = layer_of(ALL)
    whole, _ = layer(x, seed=SEED)
    first, state = layer(x[:2], seed=SEED)
    second, _ = layer(x[2:], state, seed=SEED, first_step=2)
    assert_allclose(np.concatenate([first, second]), whole, **states("float64", I + H))


# --- inference --------------------------------------------------------------------------------------------------------


def test_inference_has_no_dropout(x):
    layer, plain = layer_of(DROPOUTS), layer_of(lf.Cell())
    assert_array_equal(layer(x)[0], plain(x)[0])
    assert layer.last_seed is None


@cells
def test_cell_advances_as_its_layer_does(x, cell):
    layer = layer_of(cell)
    state = layer.cells[0].initial_state(B)
    for t in range(T):
        state = layer.cells[0](x[t], state)
    _, (h_n, c_n) = layer(x)
    assert_allclose(state[0], h_n[0], **states("float64", I + H))
    assert_allclose(state[1], c_n[0], **states("float64", I + H))


@cells
def test_frozen_copy_answers_as_the_layer_did(x, cell):
    layer = layer_of(cell)
    frozen = layer.inference()
    expected, _ = layer(x)
    layer.parameter_buffer[...] = 0
    assert_allclose(frozen(x)[0], expected, **states("float64", I + H))


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_frozen_copy_rounds_the_kernels_alone(x, weights):
    cell = lf.Cell(zoneout=0.1, layer_norm="products", learn_initial_state=True)
    layer = lf.LSTM(I, H, cell=cell, rng=np.random.default_rng(1))
    frozen = layer.inference(weights=weights)
    assert_allclose(frozen(x.astype("f4"))[0], layer(x.astype("f4"))[0], atol=0.05)
    assert_array_equal(frozen.parameters["layer0.norm_gain"], layer.parameters["layer0.norm_gain"])


def test_streams_take_cells_whose_inference_is_the_standard_one(x):
    layer = layer_of(DROPOUTS)
    stream, (h, _) = layer.stream(B), layer(x)
    for t in range(T):
        assert_allclose(stream.step(x[t]), h[t], **states("float64", I + H))


@pytest.mark.parametrize("option", ["zoneout", "layer_norm", "learn_initial_state"])
def test_streams_refuse_other_cells(option):
    cell = lf.Cell(**{option: 0.1 if option == "zoneout" else True})
    with pytest.raises(ValueError, match=f"{option} is not supported by stream; call the layer on one step"):
        lf.LSTM(I, H, cell=cell).stream()


# --- learnt initial states --------------------------------------------------------------------------------------------


def test_a_call_begins_with_the_learnt_states(x):
    layer = layer_of(lf.Cell(learn_initial_state=True), bidirectional=True)
    h, c = layer.initial_state(B)
    assert_array_equal(h[1, 2], layer.parameters["layer0_reverse.initial_h"])
    assert_array_equal(c[2, 0], layer.parameters["layer1.initial_c"])
    assert_array_equal(layer(x)[0], layer(x, (h, c))[0])


def test_a_reset_begins_with_the_learnt_states_again(x):
    layer = layer_of(lf.Cell(learn_initial_state=True))
    resets = np.zeros((T, B), bool)
    resets[2] = True
    assert_allclose(layer(x, resets=resets)[0][2:], layer(x[2:])[0], **states("float64", I + H))


def test_other_layers_begin_with_zeros():
    assert not any(state.any() for state in layer_of(lf.Cell()).initial_state(B))


# --- copies and errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_draws_the_same_masks(x, copied):
    layer = layer_of(ALL)
    assert_array_equal(copied(layer)(x, training=True)[0], layer(x, training=True)[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recurrent_dropout": 1.0}, ValueError, "recurrent_dropout must lie in [0, 1), got 1"),
        ({"weight_dropout": -0.1}, ValueError, "weight_dropout must lie in [0, 1), got -0.1"),
        ({"recurrent_dropout_of": "c"}, ValueError, "recurrent_dropout_of must be 'h' or 'g', got 'c'"),
        ({"zoneout": (0.1, 0.2, 0.3)}, ValueError, "zoneout must be a number or a pair (h, c), got 3 values"),
        ({"zoneout": (0.1, 1.0)}, ValueError, "zoneout must lie in [0, 1), got 1"),
        ({"zoneout": "0.1"}, TypeError, "zoneout must be a number, got '0.1'"),
        ({"layer_norm": "all"}, ValueError, "layer_norm must be 'products' or 'gates', got 'all'"),
        ({"layer_norm_epsilon": 0}, ValueError, "layer_norm_epsilon must be above 0, got 0"),
        ({"layer_norm": True, "coupled_gates": True}, ValueError, "layer_norm cannot be combined with coupled_gates"),
        ({"zoneout": 0.1, "cell": lf.Cell()}, ValueError, "zoneout must be set in cell if a cell is given, got both"),
    ],
)
def test_error_names_the_option(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        lf.LSTM(I, H, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 2**64}, ValueError, "seed must be below 2**64, got 18446744073709551616"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number, got 0.5"),
        ({"first_step": -1}, ValueError, "first_step must be at least 0, got -1"),
    ],
)
def test_error_names_the_argument_of_a_call(x, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        layer_of(DROPOUTS)(x, training=True, **arguments)


def test_explain_names_what_a_call_computes():
    inference, training = (lf.explain(4, 5, I, H, cell=ALL, training=training) for training in (False, True))
    shared = "a projection, a clip, layer normalisation and zoneout"
    assert f"The cell has peepholes, {shared}, computed" in inference
    assert f"The cell has peepholes, {shared.replace(' and', ',')}, recurrent dropout and weight dropout" in training


def test_explain_says_that_a_product_is_normalised_in_memory():
    told = lf.explain(3, 10, 27, 16, cell=lf.Cell(layer_norm=True))
    assert "product of h (3 x 16) and the kernel (16 x 64); it is normalised in memory before the gates" in told
