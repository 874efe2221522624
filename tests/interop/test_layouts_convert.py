"""Weights through every layout: there and back is the same bits, and what was assumed is said.

Whether the numbers mean the same to the other library is a matter of the parity tests; here only names, shapes, orders
and biases are looked at. The gate orders are said here once more, from the libraries' own documentation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import lstmfast as lf
from lstmfast import layouts
from lstmfast.layouts import LAYOUTS, CellWeights, LSTMWeights, convert, from_arrays, reorder, to_arrays
from support import tolerances

INPUT, H = 3, 2

ORDERS = {
    "lstmfast": "ifgo", "tf1": "igfo", "tf1-legacy": "igfo", "udacity": "ifgo", "keras": "ifgo", "pytorch": "ifgo",
    "keras-cudnn": "ifgo", "keras-1": "igfo", "onnx": "iofg", "cudnn": "ifgo", "haste": "igfo", "char-rnn": "ifog",
    "torch-rnn": "ifog", "block-lstm-v2": "ifgo",
}
PEEPHOLES = {"lstmfast", "tf1", "tf1-legacy", "onnx", "block-lstm-v2"}
PROJECTION = {"lstmfast", "tf1", "tf1-legacy", "pytorch", "cudnn"}
TWO_BIASES = {"pytorch", "onnx", "cudnn", "char-rnn", "keras-cudnn"}
AT_RUN_TIME = {"lstmfast", "tf1", "tf1-legacy"}


def stack(
    rng: np.random.Generator,
    *,
    sizes: tuple[int, int] = (INPUT, H),
    num_layers: int = 1,
    bidirectional: bool = False,
    peepholes: bool = False,
    projection: int = 0,
    forget_bias: float = 0.0,
    two_biases: bool = False,
    dtype: Any = np.float32,
    special_share: float = 0.0,
) -> LSTMWeights:
    """Random weights, biases included, of all magnitudes; some are minus zero, infinite or not a number."""
    (input_size, hidden_size), directions = sizes, 2 if bidirectional else 1
    output_size = projection or hidden_size

    def values(*shape: int) -> np.ndarray[Any, Any]:
        found = (rng.standard_normal(shape) * 10.0 ** rng.integers(-9, 3, shape)).astype(dtype)
        special = rng.random(shape) < special_share
        found[special] = rng.choice(np.array([-0.0, np.inf, -np.inf, np.nan], dtype), np.count_nonzero(special))
        return found

    def cell(rows: int) -> CellWeights:
        return CellWeights(
            values(rows + output_size, 4 * hidden_size),
            values(4 * hidden_size),
            forget_bias=forget_bias,
            peepholes=values(3, hidden_size) if peepholes else None,
            projection=values(hidden_size, projection) if projection else None,
            recurrent_bias=values(4 * hidden_size) if two_biases else None,
        )

    return LSTMWeights(
        tuple(
            tuple(cell(directions * output_size if k else input_size) for _ in range(directions))
            for k in range(num_layers)
        )
    )


def bits(arrays: Any) -> dict[str, tuple[Any, Any, bytes]]:
    return {name: (values.dtype, values.shape, values.tobytes()) for name, values in arrays.items()}


# --- there and back ---------------------------------------------------------------------------------------------------


def drawn(draw: Any, source: str, target: str) -> tuple[LSTMWeights, float | None]:
    """Weights that both layouts have a place for, and the forget bias of the source."""
    both = {source, target}
    forget_bias = draw(st.sampled_from([0.0, 1.0, 0.1, -3.7])) if source in AT_RUN_TIME else None
    weights = stack(
        np.random.default_rng(draw(st.integers(0, 2**32 - 1))),
        sizes=(draw(st.integers(1, 6)), draw(st.integers(1, 5))),
        num_layers=draw(st.integers(1, 3)),
        bidirectional=draw(st.booleans()),
        peepholes=both <= PEEPHOLES and draw(st.booleans()),
        projection=draw(st.integers(0, 4)) if both <= PROJECTION else 0,
        forget_bias=forget_bias or 0.0,
        two_biases=source in TWO_BIASES,
        dtype=draw(st.sampled_from([np.float32, np.float64])),
        special_share=draw(st.sampled_from([0.0, 0.2])),
    )
    return weights, forget_bias


@pytest.mark.parametrize("target", sorted(LAYOUTS))
@pytest.mark.parametrize("source", sorted(LAYOUTS))
@pytest.mark.filterwarnings("ignore:invalid value")  # infinity less infinity, where two biases become one
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_there_and_back_is_the_same_bits_between_all_pairs(source: str, target: str, data: st.DataObject) -> None:
    weights, forget_bias = drawn(data.draw, source, target)
    arrays = to_arrays(weights, source, forget_bias=forget_bias)
    there = convert(arrays, source=source, target=target)
    back = convert(there, source=target, target=source, forget_bias=forget_bias)
    assert bits(back) == bits(arrays)


@pytest.mark.parametrize("target", sorted(LAYOUTS))
@pytest.mark.parametrize("source", sorted(LAYOUTS))
def test_plain_dicts_come_back_too_where_no_bias_must_be_added(
    source: str, target: str, rng: np.random.Generator
) -> None:
    """Nothing but the arrays goes there and back: what a file holds."""
    two = {source, target} <= TWO_BIASES
    moves = source in AT_RUN_TIME and target in AT_RUN_TIME | TWO_BIASES
    weights = stack(rng, num_layers=2, bidirectional=True, two_biases=two, forget_bias=1.0 if moves else 0.0)
    forget_bias = 1.0 if moves else 0.0 if source in AT_RUN_TIME else None
    arrays = to_arrays(weights, source, forget_bias=forget_bias)
    there = convert(dict(arrays), source=source, target=target, forget_bias=_if_known(forget_bias, source, target))
    known = forget_bias if source in AT_RUN_TIME else 0.0 if target in AT_RUN_TIME else None
    back = convert(dict(there), source=target, target=source, forget_bias=_if_known(known, source, target))
    assert bits(back) == bits(arrays)


def _if_known(forget_bias: float | None, *sides: str) -> float | None:
    return forget_bias if AT_RUN_TIME & set(sides) else None


def test_through_all_layouts_in_a_row_is_the_same_bits(rng: np.random.Generator) -> None:
    arrays = first = to_arrays(stack(rng, num_layers=2, bidirectional=True), "keras")
    for source, target in zip(["keras", *LAYOUTS], [*LAYOUTS, "keras"], strict=True):
        arrays = convert(arrays, source=source, target=target, forget_bias=_if_known(0.0, source, target))
    assert bits(arrays) == bits(first)


# --- what lies where --------------------------------------------------------------------------------------------------


def marked(letter: str) -> LSTMWeights:
    """A cell of which one gate is ones and the rest zeros."""
    layer = lf.LSTM(INPUT, H, forget_bias=0.0)
    layer.parameter_buffer[...] = 0.0
    gate = layer.cells[0].gates[lf.gates.NAMES[lf.gates.LETTERS.index(letter)]]
    gate.input_kernel = gate.recurrent_kernel = gate.bias = 1.0
    return LSTMWeights.from_layer(layer)


@pytest.mark.parametrize("letter", "ifgo")
@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_gates_lie_in_the_order_of_their_library(name: str, order: str, letter: str) -> None:
    for variable, values in to_arrays(marked(letter), name).items():
        apart = [axis for axis, size in enumerate(values.shape) if size == 4 * H]
        if not apart:  # one gate each, or ONNX's two biases in one
            continue
        blocks = np.split(np.moveaxis(values, apart[-1], 0), 4)
        lit = "".join(each for each, block in zip(order, blocks, strict=True) if block.any())
        assert lit == ("" if variable.endswith(("bias_hh_l0", "h2h_1.bias")) else letter), variable


NAMES = {
    "lstmfast": ["layer0.kernel", "layer0.bias"],
    "tf1": ["rnn/basic_lstm_cell/kernel", "rnn/basic_lstm_cell/bias"],
    "tf1-legacy": ["rnn/basic_lstm_cell/weights", "rnn/basic_lstm_cell/biases"],
    "udacity": ["ix", "im", "ib", "fx", "fm", "fb", "cx", "cm", "cb", "ox", "om", "ob"],
    "keras": ["lstm/lstm_cell/kernel", "lstm/lstm_cell/recurrent_kernel", "lstm/lstm_cell/bias"],
    "keras-cudnn": ["cu_dnnlstm/kernel", "cu_dnnlstm/recurrent_kernel", "cu_dnnlstm/bias"],
    "keras-1": [f"lstm_1/lstm_1_{part}_{gate}" for gate in "icfo" for part in "WUb"],
    "pytorch": ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"],
    "onnx": ["W", "R", "B"],
    "cudnn": [f"layer0.{part}_{gate}" for part in ("W", "R", "bW", "bR") for gate in "ifgo"],
    "haste": ["kernel", "recurrent_kernel", "bias"],
    "char-rnn": ["i2h_1.weight", "h2h_1.weight", "i2h_1.bias", "h2h_1.bias"],
    "torch-rnn": ["weight", "bias"],
    "block-lstm-v2": ["w", "b"],
}


@pytest.mark.parametrize(("name", "variables"), NAMES.items())
def test_variables_of_one_cell_have_the_names_of_their_library(name: str, variables: list[str]) -> None:
    assert list(to_arrays(marked("i"), name)) == variables


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("tf1", "stack_bidirectional_rnn/cell_1/bidirectional_rnn/bw/basic_lstm_cell/kernel"),
        ("keras", "bidirectional_1/backward_lstm_1/lstm_cell/kernel"),
        ("keras-cudnn", "bidirectional_1/backward_cu_dnnlstm_1/kernel"),
        ("keras-1", "bidirectional_2/backward_lstm_2_W_i"),
        ("pytorch", "weight_ih_l1_reverse"),
        ("onnx", "layer1.W"),
        ("char-rnn", "i2h_2_reverse.weight"),
        ("haste", "layer1_reverse.kernel"),
    ],
)
def test_layers_and_directions_are_in_the_names(name: str, variables: str, rng: np.random.Generator) -> None:
    assert variables in to_arrays(stack(rng, num_layers=2, bidirectional=True), name)


# --- the meaning of biases --------------------------------------------------------------------------------------------


def forget_part(bias: Any, layout: str) -> Any:
    return np.split(bias, 4)[ORDERS[layout].index("f")]


def test_forget_bias_of_tensorflow_1_is_added_into_the_one_bias_of_keras_and_that_is_said(rng: Any) -> None:
    arrays = dict(to_arrays(stack(rng), "tf1", forget_bias=0.0))
    there = convert(arrays, source="tf1", target="keras", forget_bias=1.0)
    before = forget_part(arrays["rnn/basic_lstm_cell/bias"], "tf1")
    assert_array_equal(forget_part(there["lstm/lstm_cell/bias"], "keras"), before + np.float32(1))
    assert "Forget bias 1 was added into the bias, because keras adds none at run time." in there.assumptions


def test_forget_bias_has_the_second_bias_of_pytorch_to_itself(rng: Any) -> None:
    arrays = dict(to_arrays(stack(rng), "tf1", forget_bias=0.0))
    there = convert(arrays, source="tf1", target="pytorch", forget_bias=1.0)
    assert_array_equal(np.split(there["bias_hh_l0"], 4), [[0] * H, [1] * H, [0] * H, [0] * H])


def test_the_default_of_tensorflow_1_is_taken_and_said() -> None:
    arrays = dict(to_arrays(marked("i"), "tf1"))
    there = convert(arrays, source="tf1", target="pytorch")
    assert there.assumptions[0].startswith(
        "tf1 adds a forget bias at run time that its arrays do not contain: assuming its default, 1"
    )
    assert_array_equal(forget_part(there["bias_hh_l0"], "pytorch"), [1] * H)


def test_arrays_without_a_forget_bias_say_that_the_cell_must_be_built_without_one() -> None:
    there = convert(dict(to_arrays(marked("i"), "keras")), source="keras", target="tf1")
    words = "The LSTM must be built with forget_bias=0; the default of tf1 is 1."
    assert (there.forget_bias, there.assumptions) == (0.0, (words,))


def test_two_biases_are_added_where_there_is_one_and_that_is_said(rng: Any) -> None:
    arrays = dict(to_arrays(stack(rng, two_biases=True), "pytorch"))
    there = convert(arrays, source="pytorch", target="keras")
    assert_array_equal(there["lstm/lstm_cell/bias"], arrays["bias_ih_l0"] + arrays["bias_hh_l0"])
    assert there.assumptions[0] == "The two biases of every cell were added, because keras has one."


def test_a_sum_that_was_changed_is_taken_as_it_is(rng: Any) -> None:
    there = convert(to_arrays(stack(rng, two_biases=True), "pytorch"), source="pytorch", target="keras")
    there["lstm/lstm_cell/bias"] += 1
    back = convert(there, source="keras", target="pytorch")
    assert_array_equal(back["bias_ih_l0"], there["lstm/lstm_cell/bias"])


def test_pytorch_without_biases_has_zeros_and_that_is_said(rng: Any) -> None:
    arrays = {name: values for name, values in to_arrays(stack(rng), "pytorch").items() if "weight" in name}
    there = convert(arrays, source="pytorch", target="keras")
    assert not there["lstm/lstm_cell/bias"].any()
    assert "The arrays of pytorch contain no bias: assuming zeros." in there.assumptions


# --- layers -----------------------------------------------------------------------------------------------------------


def test_a_layer_comes_back_with_its_bits_and_its_forget_bias(rng: np.random.Generator) -> None:
    layer = lf.LSTM(3, 4, num_layers=2, bidirectional=True, forget_bias=0.7, rng=rng)
    again = LSTMWeights.from_layer(layer).to_layer(batch_first=True)
    assert (bits(again.parameters), again.forget_bias) == (bits(layer.parameters), 0.7)


@pytest.mark.parametrize(
    "variant", [{"peepholes": True}, {"projection_size": 2}, {"cell_clip": 1.5}, {"coupled_gates": True}]
)
def test_a_layer_comes_back_as_the_variant_it_was(variant: dict[str, Any], rng: np.random.Generator) -> None:
    layer = lf.LSTM(3, 4, num_layers=2, bidirectional=True, rng=rng, **variant)
    layer.parameter_buffer[...] = rng.standard_normal(layer.parameter_buffer.size)
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    assert_array_equal(LSTMWeights.from_layer(layer).to_layer()(x)[0], layer(x)[0])


def test_a_layer_made_of_pytorch_weights_gives_the_same_numbers(rng: np.random.Generator, dtype: Any) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = torch.nn.LSTM(5, 7, 2, bidirectional=True).to(getattr(torch, dtype.name))
    x = rng.standard_normal((6, 3, 5)).astype(dtype)
    arrays = {name: values.detach().numpy() for name, values in theirs.named_parameters()}
    layer = from_arrays(arrays, "pytorch").to_layer()
    assert_allclose(layer(x)[0], theirs(torch.from_numpy(x))[0].detach().numpy(), **tolerances.states(dtype, 21))


# --- mistakes ---------------------------------------------------------------------------------------------------------


def changed(layout: str, **changes: Any) -> dict[str, Any]:
    """Arrays of one cell with some replaced, or left out for None."""
    arrays = {**to_arrays(marked("i"), layout), **{name.replace("__", "/"): value for name, value in changes.items()}}
    return {name: values for name, values in arrays.items() if values is not None}


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        ("pytorch", {"weight_hh_l0": None}, "weights lack variables of pytorch: weight_hh_l0"),
        ("pytorch", {"bias_hh_l0": None}, "weights lack variables of pytorch: bias_hh_l0"),
        ("tf1", {"rnn__basic_lstm_cell__kernel": None}, "weights lack variables of tf1: rnn/basic_lstm_cell/kernel"),
        ("char-rnn", {"h2h_1.weight": None}, "weights lack variables of char-rnn: h2h_1.weight"),
        ("udacity", {"ox": None, "cb": None}, "weights lack variables of udacity: cb, ox"),
        (
            "keras",
            {"dense__kernel": zeros(2)},
            "weights contain arrays that are not variables of keras: dense/kernel; its cells have",
        ),
        ("pytorch", {"weight_ih_l2": zeros(8, 3)}, "weights lack variables of pytorch: weight_hh_l2"),
        (
            "keras",
            {"lstm__lstm_cell__recurrent_kernel": zeros(2, 9)},
            r"must have 4\*hidden_size columns, got 9, which 4",
        ),
        (
            "pytorch",
            {"weight_hh_l0": zeros(9, 2)},
            r"weight_hh_l0 must have 4\*hidden_size rows, got 9, which 4 does not",
        ),
        (
            "pytorch",
            {"weight_ih_l0": zeros(12, 3)},
            r"weight_ih_l0 must have shape \(8, 3\) = \(4\*hidden_size, input_size",
        ),
        (
            "tf1",
            {"rnn__basic_lstm_cell__bias": zeros(4)},
            r"bias must have shape \(8,\) = \(4\*hidden_size,\), got \(4,\)",
        ),
        (
            "tf1",
            {"rnn__basic_lstm_cell__kernel": zeros(2, 8)},
            "must have at least one input row in addition to 2 for h",
        ),
        ("onnx", {"B": zeros(1, 8)}, r"B must have shape \(16,\) = \(8\*hidden_size,\): both biases, got \(8,\)"),
        ("onnx", {"W": zeros(3, 8, 3)}, "must have 1 or 2 directions along its first axis"),
        ("onnx", {"P": zeros(1, 7)}, r"P must have shape \(6,\) = \(3\*hidden_size,\), got \(7,\)"),
    ],
)
def test_what_is_missing_extra_or_misshapen_is_named(layout: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_arrays(changed(layout, **changes), layout)


def test_one_direction_of_two_is_missed(rng: Any) -> None:
    arrays = to_arrays(stack(rng, num_layers=2, bidirectional=True), "pytorch")
    with pytest.raises(ValueError, match="layer 1 of pytorch has no reverse direction"):
        from_arrays({name: v for name, v in arrays.items() if not name.endswith("l1_reverse")}, "pytorch")


def test_layers_with_a_gap_are_refused(rng: Any) -> None:
    arrays = to_arrays(stack(rng, num_layers=3), "pytorch")
    with pytest.raises(ValueError, match=r"numbered from 0 without gaps, got \[0, 2\]"):
        from_arrays({name: v for name, v in arrays.items() if not name.endswith("l1")}, "pytorch")


def test_layers_that_do_not_stack_are_refused(rng: Any) -> None:
    arrays = {**to_arrays(stack(rng), "keras"), "lstm_1/kernel": zeros(7, 8), "lstm_1/recurrent_kernel": zeros(2, 8)}
    with pytest.raises(ValueError, match="layer 1 must have input_size 2 to fit this stack, got 7"):
        from_arrays({**arrays, "lstm_1/bias": zeros(8)}, "keras")


def test_mixed_dtypes_are_named() -> None:
    with pytest.raises(
        TypeError, match="all float32 or all float64, got weight_ih_l0 of float32 and bias_ih_l0 of float64"
    ):
        from_arrays(changed("pytorch", bias_ih_l0=np.zeros(8)), "pytorch")


def test_half_precision_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"bias_ih_l0 must be a float32 or float64 array, got float16; use \.astype"):
        from_arrays(changed("pytorch", bias_ih_l0=np.zeros(8, np.float16)), "pytorch")


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - PEEPHOLES))
def test_peepholes_are_refused_where_there_is_no_place_for_them(name: str, rng: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot store peepholes"):
        to_arrays(stack(rng, peepholes=True), name)


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - PROJECTION))
def test_a_projection_is_refused_where_there_is_no_place_for_it(name: str, rng: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot store projection"):
        to_arrays(stack(rng, projection=1), name)


def test_an_unknown_layout_error_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"layout must be one of lstmfast, tf1, .*block-lstm-v2, got 'torch'"):
        convert({}, source="torch", target="keras")


@pytest.mark.parametrize("order", ["ifg", "iffo", "ifgox", ""])
def test_an_unknown_gate_order_error_lists_the_letters_and_the_layouts(order: str) -> None:
    with pytest.raises(ValueError, match=rf"gate order must be the letters i, f, g, o, each once.*, got '{order}'"):
        reorder(zeros(8), source=order, target="keras")


def test_reorder_needs_four_equal_blocks() -> None:
    with pytest.raises(ValueError, match=r"4\*hidden_size along axis -1, got 6, which 4 does not divide"):
        reorder(zeros(3, 6), source="igfo", target="ifgo")


def test_reorder_moves_the_blocks() -> None:
    assert_array_equal(reorder(np.arange(8), source="tf1", target="onnx"), [0, 1, 6, 7, 4, 5, 2, 3])


def test_a_forget_bias_between_layouts_that_add_none_is_refused() -> None:
    with pytest.raises(ValueError, match="forget_bias must be None from keras to pytorch, since neither adds one"):
        convert(changed("keras"), source="keras", target="pytorch", forget_bias=1.0)


def test_the_old_name_of_layout_arrays_warns_and_is_the_same_class():
    with pytest.warns(DeprecationWarning, match=r"layouts\.LayoutArray"):
        assert layouts.Variable is layouts.LayoutArray
