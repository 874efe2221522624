"""Weights of cells that compute something else than an LSTM here: refused by name, or read as what they stand for.

Norms, peepholes that no layout has, weight drop, reparametrizations of PyTorch, dense layers that are called lstm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lstmfast as lf
from lstmfast.layouts import LSTMWeights, load, read, to_arrays
from support import tolerances

Array = npt.NDArray[Any]

IN, H = 3, 4
KERAS_CELL = {"kernel": (IN, 4 * H), "recurrent_kernel": (H, 4 * H), "bias": (4 * H,)}
TORCH_CELL = {"weight_ih": (4 * H, IN), "weight_hh": (4 * H, H), "bias_ih": (4 * H,), "bias_hh": (4 * H,)}
TORCH_LAYER = {f"{name}_l0": shape for name, shape in TORCH_CELL.items()}
TF1_CELL = {"kernel": (IN + H, 4 * H), "bias": (4 * H,)}


def save(path: Path, rng: np.random.Generator, **scopes: dict[str, tuple[int, ...]]) -> Path:
    """An .npz of random arrays: scope -> name within it -> shape. In a scope's name "__" stands for "/"."""
    np.savez(path, **{
        f"{scope.replace('__', '/')}{name}": rng.standard_normal(shape).astype(np.float32)
        for scope, names in scopes.items()
        for name, shape in names.items()
    })
    return path


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")


# --- variables that no cell of the layout has -------------------------------------------------------------------------

GATES = ("input", "transform", "forget", "output", "state")


@pytest.mark.parametrize(
    ("scope", "cell", "others"),
    [
        ("rnn__layer_norm_basic_lstm_cell__", {"kernel": (IN + H, 4 * H)}, {f"{g}/gamma": (H,) for g in GATES}),
        ("rnn__layer_norm_basic_lstm_cell__", {"kernel": (IN + H, 4 * H)}, {f"{g}/beta": (H,) for g in GATES}),
        ("rnn__multi_rnn_cell__cell_0__basic_lstm_cell__", TF1_CELL, {"LayerNorm/gamma": (4 * H,)}),
        ("rnn__lstm_cell__", TF1_CELL, {"zoneout_mask": (H,)}),
        ("rnn__basic_lstm_cell__", {"weights": (IN + H, 4 * H), "biases": (4 * H,)}, {"gamma": (4 * H,)}),
        ("x__layer_norm_lstm_cell__", KERAS_CELL, {"kernel_norm/gamma": (16,), "state_norm/beta": (4,)}),
        ("rnn__cell__", KERAS_CELL, {"norm/0": (16,)}),
        ("lstm__lstm_cell__", KERAS_CELL, {"input_gate_peephole_weights": (H,)}),
        ("lstm__", KERAS_CELL, {"attention": (H, H)}),
        ("my_lstm_1__", {f"lstm_cell/{name}": shape for name, shape in KERAS_CELL.items()}, {"norm/gamma": (H,)}),
        ("b__forward_layer__", {f"cell/{name}": shape for name, shape in KERAS_CELL.items()}, {"gamma": (H,)}),
        ("", KERAS_CELL, {"gamma": (2, 4 * H)}),
        ("", TORCH_CELL, {"ln_ih.weight": (4 * H,), "ln_ih.bias": (4 * H,)}),
        ("encoder.cell.", TORCH_CELL, {"layernorm_c.weight": (H,)}),
        ("rnn.", TORCH_LAYER, {"layer_norms.0.weight": (4 * H,)}),
        ("rnn.", TORCH_LAYER, {"weight_ch_l0": (3, H)}),
        ("lstm.layer0.", {"kernel": (IN + H, 4 * H), "bias": (4 * H,)}, {"gamma": (4 * H,)}),
        ("", {"i2h_1.weight": (16, 3), "h2h_1.weight": (16, 4), "i2h_1.bias": (16,), "h2h_1.bias": (16,)},
         {"h2h_1.gain": (16,)}),
    ],
)
def test_a_cell_with_variables_of_other_equations_is_refused_by_their_names(
    scope: str, cell: dict[str, Any], others: dict[str, Any], tmp_path: Path, rng: Any
) -> None:
    save(tmp_path / "w.npz", rng, **{scope: {**cell, **others}})
    words = rf"has variables that no cell of \w.* has: {scope.replace('__', '/')}{next(iter(others))}"
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "w.npz")


@pytest.mark.parametrize("scope", ["", "model__"])
@pytest.mark.parametrize(
    ("layout", "others"),
    [("udacity", {"ic": (1, H)}), ("udacity", {"gamma": (4 * H,)}), ("onnx", {"gamma": (1, 4 * H)})],
)
def test_beside_arrays_that_have_no_scope_of_their_own_those_with_its_units_are_refused(
    scope: str, layout: str, others: dict[str, Any], tmp_path: Path, rng: Any
) -> None:
    arrays = to_arrays(LSTMWeights.from_layer(lf.LSTM(IN, H, forget_bias=0.0, rng=rng)), layout)
    shapes = {name: values.shape for name, values in arrays.items()}
    path = save(tmp_path / "w.npz", rng, **{scope: {**shapes, **others, "w": (H, 27), "b": (27,), "table": (27, 5)}})
    with pytest.raises(ValueError, match=rf"has: {scope.replace('__', '/')}{next(iter(others))};"):
        load(path)


def test_a_norm_between_the_layers_of_a_stack_is_refused(tmp_path: Path, rng: Any) -> None:
    scopes = {f"rnn__multi_rnn_cell__cell_{k}__lstm_cell__": {**TF1_CELL, "kernel": (8, 16)} for k in range(2)}
    save(tmp_path / "w.npz", rng, **scopes, rnn__multi_rnn_cell__cell_0__highway_wrapper__={"carry_w": (4, 4)})
    with pytest.raises(ValueError, match="cell_0/highway_wrapper/carry_w"):
        load(tmp_path / "w.npz")


def test_what_makes_an_lstm_another_is_shown_by_inspect(tmp_path: Path, rng: Any) -> None:
    path = save(tmp_path / "w.npz", rng, **{"rnn.": {**TORCH_CELL, "norm.weight": (16,)}})
    [note] = [note for note in lf.inspect(path).notes if "rnn.norm.weight" in note]
    assert note.startswith("rnn has variables that no cell of pytorch has")


@pytest.mark.parametrize(
    "scopes",
    [
        {"encoder.lstm.": TORCH_LAYER, "encoder.norm.": {"weight": (H,)}, "head.": {"weight": (2, H)}},
        {"lstm__lstm_cell__": KERAS_CELL, "layer_normalization__": {"gamma": (H,)}, "dense__": {"kernel": (H, 2)}},
        {"model__cell__": KERAS_CELL, "model__": {"state": (H,)}},
        {"rnn__lstm_cell__": TF1_CELL, "rnn__LayerNorm__": {"gamma": (H,)}, "softmax_w": {"": (H, 2)}},
    ],
)
def test_variables_outside_of_a_cell_are_no_matter(scopes: dict[str, Any], tmp_path: Path, rng: Any) -> None:
    weights = load(save(tmp_path / "w.npz", rng, **scopes))
    assert (weights.input_size, weights.hidden_size) == (IN, H)


@pytest.mark.parametrize(
    ("scope", "cell", "others"),
    [
        ("rnn__lstm_cell__", TF1_CELL, {"kernel/Adam": (7, 16), "kernel/Adam_1": (7, 16), "bias/Momentum": (16,)}),
        ("rnn__lstm_cell__", TF1_CELL, {"kernel/ExponentialMovingAverage": (7, 16)}),
        ("rnn__lstm_cell__", TF1_CELL, {"kernel/adam_m": (7, 16), "kernel/vr": (7,), "kernel/vc": (16,)}),
        ("lstm__cell__", KERAS_CELL, {"seed_generator/0": (2,)}),
        ("lstm__cell__", KERAS_CELL, {"kernel/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE": (3, 16)}),
    ],
)
def test_slots_of_optimizers_and_states_of_generators_are_left_out_and_that_is_said(
    scope: str, cell: dict[str, Any], others: dict[str, Any], tmp_path: Path, rng: Any
) -> None:
    weights = load(save(tmp_path / "w.npz", rng, **{scope: {**cell, **others}}))
    names = ", ".join(scope.replace("__", "/") + name for name in others)
    assert f"Not read, because these are not weights: {names}." in weights.assumptions


def test_a_counter_beside_the_weights_is_left_out_and_that_is_said(tmp_path: Path, rng: Any) -> None:
    arrays = to_arrays(LSTMWeights.from_layer(lf.LSTM(IN, H, forget_bias=0.0, rng=rng)), "pytorch")
    np.savez(tmp_path / "w.npz", **arrays, num_batches_tracked=np.array(7))
    assert load(tmp_path / "w.npz").assumptions == ("Not read, because these are not weights: num_batches_tracked.",)


def test_a_layout_that_is_named_takes_its_names_alone_and_says_what_it_left(tmp_path: Path, rng: Any) -> None:
    path = save(tmp_path / "w.npz", rng, **{"": {**TORCH_LAYER, "fc.weight": (2, H)}})
    weights = load(path, layout="pytorch")
    assert weights.assumptions == ("Not read, because only names of pytorch were requested: fc.weight.",)


def test_a_layout_that_is_named_does_not_take_a_norm_in_a_cell_for_nothing(tmp_path: Path, rng: Any) -> None:
    path = save(tmp_path / "w.npz", rng, lstm__lstm_cell__={**KERAS_CELL, "norm/gamma": (16,)})
    with pytest.raises(ValueError, match="lstm/lstm_cell/norm/gamma"):
        load(path, layout="keras")


@pytest.mark.parametrize(
    "cell",
    ["coupled_input_forget_gate_lstm_cell", "phased_lstm_cell", "layer_norm_lstm_cell", "grid_lstm_cell_1",
     "weight_norm_lstm_cell", "time_freq_lstm_cell", "PhasedLSTMCell", "layer_norm_basic_lstm_cell"],
)
def test_cells_of_tensorflow_that_are_known_to_be_others_are_refused_by_name(
    cell: str, tmp_path: Path, rng: Any
) -> None:
    path = save(tmp_path / "w.npz", rng, **{f"rnn__{cell}__": {"kernel": (IN + H, 4 * H)}})
    with pytest.raises(ValueError, match=f"rnn/{cell} is by its name a cell whose equations differ"):
        load(path)


@pytest.mark.parametrize(
    ("scope", "cell", "change", "words"),
    [
        ("a__cu_1__", KERAS_CELL, {"bias": (31,)}, r"a/cu_1/bias must have shape \(16,\)"),
        ("a__b__cell__", KERAS_CELL, {"kernel": (3, 15)}, "a/b/cell/kernel must have 4"),
        ("a__b__cell__", KERAS_CELL, {"kernel": None}, "lack variables of keras: a/b/cell/kernel$"),
        ("a.b.", TORCH_LAYER, {"weight_ih_l0": None}, r"lack variables of pytorch: a\.b\.weight_ih_l0$"),
        ("a.b.", TORCH_LAYER, {"bias_ih_l0": (3,)}, r"a\.b\.bias_ih_l0 must have shape"),
        ("a__rnn__lstm_cell__", TF1_CELL, {"bias": (3,)}, r"a/rnn/lstm_cell/bias must have shape"),
        ("m__", {"kernel:0": (3, 16), "recurrent_kernel:0": (4, 16)}, {"kernel:0": (2, 2, 2)}, "m/kernel:0 must have"),
    ],
)
def test_what_is_wrong_with_an_array_is_said_by_its_name_in_the_file(
    scope: str, cell: dict[str, Any], change: dict[str, Any], words: str, tmp_path: Path, rng: Any
) -> None:
    shapes = {name: shape for name, shape in {**cell, **change}.items() if shape is not None}
    with pytest.raises(ValueError, match=words):
        load(save(tmp_path / "w.npz", rng, **{scope: shapes}))


# --- what is called lstm and is none ----------------------------------------------------------------------------------

DENSE = {"kernel": (40, 32), "bias": (32,)}  # which as a cell's would be 32 inputs and 8 units


@pytest.mark.parametrize(
    "scope", ["lstm_dense", "lstm_output", "dense_lstm", "lstm_fc_1", "proj_lstm", "lstm_logits", "after_lstm",
              "lstm/dense", "my_lstm/my_lstm", "lstm_1/lstm_1", "my_lstm/sequential/my_lstm", "lstm_head"],
)
@pytest.mark.parametrize("names", [("kernel", "bias"), ("weights", "biases"), ("kernel:0", "bias:0")])
def test_a_dense_layer_that_is_called_lstm_is_none(
    scope: str, names: tuple[str, str], tmp_path: Path, rng: Any
) -> None:
    dense = dict(zip(names, DENSE.values(), strict=True))
    path = save(tmp_path / "w.npz", rng, **{"rnn__lstm_cell__": TF1_CELL, f"{scope.replace('/', '__')}__": dense})
    assert [each.name for each in read(path).lstms] == ["rnn"]


@pytest.mark.parametrize(
    "shapes",
    [
        {"kernel": (IN, 4 * H), "bias": (4 * H,)},
        {"kernel": (3, 3, 2, 16), "recurrent_kernel": (3, 3, 4, 16), "bias": (16,)},
        {"kernel": (1, 5, 2, 16), "recurrent_kernel": (1, 5, 4, 16), "bias": (16,)},
        {"kernel": (IN, 3 * H), "recurrent_kernel": (H, 3 * H), "bias": (2, 3 * H)},
        {"kernel": (IN, 8 * H), "recurrent_kernel": (H, 8 * H), "bias": (8 * H,)},
    ],
)
def test_what_has_no_recurrent_kernel_of_four_gates_is_no_lstm_of_keras(
    shapes: dict[str, Any], tmp_path: Path, rng: Any
) -> None:
    assert read(save(tmp_path / "w.npz", rng, my_lstm_layer__={**shapes})).lstms == ()


@pytest.mark.parametrize(
    "scope", ["decoder/my_lstm", "encoder_lstm", "lstm", "lstm_1", "bidirectional_rnn/fw/lstm_fw", "rnn/lstm_layer",
              "lstm/rnn/lstm", "route_lstm", "a/fancy_lstm_cell_2"],
)
def test_a_cell_that_its_program_named_is_taken_and_that_is_said(scope: str, tmp_path: Path, rng: Any) -> None:
    weights = load(save(tmp_path / "w.npz", rng, **{f"{scope.replace('/', '__')}__": TF1_CELL}))
    assert f"{scope} is assumed to be a TensorFlow 1 cell from its name and shapes." in weights.assumptions


@pytest.mark.parametrize(
    "shapes", [{"kernel": (7, 15)}, {"kernel": (4, 16)}, {"kernel": (7, 16, 1)}, {"kernel": (16,)}]
)
def test_a_scope_that_a_program_named_is_no_cell_where_shapes_are_not_those_of_one(
    shapes: dict[str, Any], tmp_path: Path, rng: Any
) -> None:
    assert read(save(tmp_path / "w.npz", rng, my_lstm__=shapes)).lstms == ()


def test_names_that_keras_and_haste_share_are_said_to_be_taken_as_those_of_keras(tmp_path: Path, rng: Any) -> None:
    weights = load(save(tmp_path / "w.npz", rng, **{"": KERAS_CELL}))
    assert weights.assumptions == ("Keras and haste share these names: assuming Keras' gate order.",)


# --- weight drop and reparametrizations of PyTorch --------------------------------------------------------------------


def outputs(module: Any, torch: Any, x: Array) -> Array:
    with torch.no_grad():
        found: Array = module(torch.from_numpy(x))[0].numpy()
    return found


@pytest.mark.parametrize("scope", ["", "module.", "rnns.1.module."])
@pytest.mark.parametrize("plain", [True, False])
def test_of_a_weight_dropped_lstm_the_weight_itself_is_read_and_not_the_dropped_copy(
    scope: str, plain: bool, torch: Any, tmp_path: Path
) -> None:
    """fastai keeps the raw weight beside the module that has the copy."""
    module = torch.nn.LSTM(IN, H)
    arrays = {f"{scope}module.{name}": values.clone() for name, values in module.state_dict().items()}
    arrays[f"{scope}weight_hh_l0_raw"] = module.weight_hh_l0.detach().clone()
    arrays[f"{scope}module.weight_hh_l0"][:, ::2] = 0.0
    if not plain:
        del arrays[f"{scope}module.weight_hh_l0"]
    torch.save({"model": arrays}, tmp_path / "w.pth")
    weights = load(tmp_path / "w.pth")
    assert_array_equal(weights.cells[0].kernel[IN:].T, module.weight_hh_l0.detach().numpy())
    assert f"from model.{scope}weight_hh_l0_raw, the weight before weight drop" in weights.assumptions[0]


@pytest.mark.parametrize("layers", [1, 2])
def test_raw_weights_within_the_module_are_read(layers: int, torch: Any, tmp_path: Path) -> None:
    """The form of awd-lstm-lm: the weight is an attribute and no longer a parameter."""
    module = torch.nn.LSTM(IN, H, layers, bidirectional=True)
    arrays = {
        f"rnns.0.module.{name}{'_raw' if name.startswith('weight_hh') else ''}": values
        for name, values in module.state_dict().items()
    }
    torch.save(arrays, tmp_path / "w.pth")
    x = np.ones((5, 2, IN), np.float32)
    got = load(tmp_path / "w.pth").to_layer()(x)[0]
    assert_allclose(got, outputs(module, torch, x), **tolerances.states(np.float32, 2 * H))


def parametrized(kind: str, torch: Any) -> Any:
    """A module whose weights are made of others, by the ways that PyTorch has."""
    torch.manual_seed(5)
    module = torch.nn.LSTM(IN, H, 1)
    utils, name = torch.nn.utils, "weight_hh_l0"
    if kind == "weight_norm":
        utils.parametrizations.weight_norm(module, name)
        utils.parametrizations.weight_norm(module, "weight_ih_l0")
        module.parametrizations.weight_hh_l0.original0.data.mul_(1.5)
    elif kind == "weight_norm over columns":
        utils.parametrizations.weight_norm(module, name, dim=1)
        module.parametrizations.weight_hh_l0.original0.data.mul_(1.5)
    elif kind == "old weight_norm":
        utils.weight_norm(module, name)
        module.weight_hh_l0_g.data.mul_(1.5)
    elif kind == "old weight_norm of all":
        utils.weight_norm(module, name, dim=None)
        module.weight_hh_l0_g.data.mul_(1.5)
    elif kind == "spectral_norm":
        utils.parametrizations.spectral_norm(module, name)
    elif kind == "old spectral_norm":
        utils.spectral_norm(module, name)
    elif kind == "pruning":
        import torch.nn.utils.prune as prune

        prune.random_unstructured(module, name, 0.5)
    for _ in range(20):  # training finds the singular vectors
        module(torch.zeros(1, 1, IN))
    return module


KINDS = ["weight_norm", "weight_norm over columns", "old weight_norm", "old weight_norm of all", "spectral_norm",
         "old spectral_norm", "pruning"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("scope", ["", "encoder.rnn."])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_pytorch_makes_of_others_is_made_of_them(
    kind: str, scope: str, torch: Any, tmp_path: Path
) -> None:
    module = parametrized(kind, torch).eval()
    x = np.random.default_rng(3).standard_normal((6, 2, IN)).astype(np.float32)
    expected = outputs(module, torch, x)
    torch.save({f"{scope}{name}": values for name, values in module.state_dict().items()}, tmp_path / "w.pth")
    weights = load(tmp_path / "w.pth")
    assert_allclose(weights.to_layer()(x)[0], expected, **tolerances.states(np.float32, 2 * H))
    assert any("weight_hh_l0 was taken as" in words for words in weights.assumptions)


def test_a_layout_that_is_named_does_not_read_a_dropped_copy(tmp_path: Path, rng: Any) -> None:
    path = save(tmp_path / "w.npz", rng, **{"": {**TORCH_LAYER, "weight_hh_l0_raw": (16, 4), "fc.weight": (2, 4)}})
    weights = load(path, layout="pytorch")
    assert_array_equal(weights.cells[0].kernel[IN:].T, read(path).arrays["weight_hh_l0_raw"])


def test_a_layout_that_is_named_does_not_read_an_unknown_parametrization(tmp_path: Path, rng: Any) -> None:
    cell = {**TORCH_LAYER, "parametrizations.weight_hh_l0.original": (16, 4)}
    with pytest.raises(ValueError, match="computes weight_hh_l0 from"):
        load(save(tmp_path / "w.npz", rng, **{"": cell}), layout="pytorch")


@pytest.mark.parametrize("layer", ["GRU", "RNN"])
def test_a_gru_or_rnn_with_weights_in_parts_is_no_lstm(layer: str, torch: Any, tmp_path: Path) -> None:
    module = getattr(torch.nn, layer)(IN, H)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    torch.save(module.state_dict(), tmp_path / "w.pth")
    assert read(tmp_path / "w.pth").lstms == ()


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_weight_of_parts_has_the_precision_of_the_file(dtype: str, tmp_path: Path, rng: Any) -> None:
    """Half precision is widened before it is computed with."""
    g, v = rng.standard_normal((16, 1)).astype(dtype), rng.standard_normal((16, 4)).astype(dtype)
    others = {name: np.zeros(shape, dtype) for name, shape in TORCH_LAYER.items() if name != "weight_hh_l0"}
    np.savez(tmp_path / "w.npz", **others, weight_hh_l0_g=g, weight_hh_l0_v=v)
    wide = "float32" if dtype == "float16" else dtype
    expected = g.astype("d") * v / np.sqrt(np.square(v.astype("d")).sum(1, keepdims=True))
    assert_array_equal(load(tmp_path / "w.npz").cells[0].kernel[IN:].T, expected.astype(wide))


@pytest.mark.parametrize("kind", ["orthogonal", "own", "own of two", "norm of a norm"])
def test_a_parametrization_that_the_file_does_not_tell_is_refused_by_name(
    kind: str, torch: Any, tmp_path: Path
) -> None:
    class Own(torch.nn.Module):
        def forward(self, *originals: Any) -> Any:
            return sum(originals) * 2

        def right_inverse(self, weight: Any) -> Any:
            return weight / 2 if kind == "own" else (weight / 4, weight / 4)

    module, utils = torch.nn.LSTM(IN, H), torch.nn.utils
    if kind == "orthogonal":
        utils.parametrizations.orthogonal(module, "weight_hh_l0")
    elif kind == "norm of a norm":
        utils.parametrizations.weight_norm(module, "weight_hh_l0")
        utils.parametrizations.spectral_norm(module, "weight_hh_l0")
    else:
        utils.parametrize.register_parametrization(module, "weight_hh_l0", Own())
    torch.save({f"rnn.{name}": values for name, values in module.state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"rnn computes weight_hh_l0 from rnn\.parametrizations\.weight_hh_l0\.\w"):
        load(tmp_path / "w.pth")


def test_a_mask_of_another_shape_is_refused(tmp_path: Path, rng: Any) -> None:
    cell = {**TORCH_LAYER, "weight_hh_l0_orig": (16, 4), "weight_hh_l0_mask": (16, 1)}
    del cell["weight_hh_l0"]
    with pytest.raises(ValueError, match="computes weight_hh_l0 from weight_hh_l0_mask, weight_hh_l0_orig"):
        load(save(tmp_path / "w.npz", rng, **{"": cell}))


def test_raw_weights_above_two_modules_are_refused(tmp_path: Path, rng: Any) -> None:
    scopes = {"a.x.": TORCH_LAYER, "a.y.": TORCH_LAYER, "a.": {"weight_hh_l0_raw": (16, 4)}}
    with pytest.raises(ValueError, match=r"a\.weight_hh_l0_raw"):
        load(save(tmp_path / "w.npz", rng, **scopes), name="a.x")
