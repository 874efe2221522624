"""`lstmfast.torch.LSTM` with recurrent dropout, zoneout, weight dropout, layer normalisation, learnt initial states.

The oracle of what the kernels compute is the same cell in torch's operations, with the same masks; that one is compared
with `lstmfast.reference`.
"""

from __future__ import annotations

import copy
import io
import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

from torch.nn.utils.rnn import pack_sequence  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import lstmfast.torch as ours  # noqa: E402
from lstmfast import reference  # noqa: E402
from lstmfast.torch import paths, regularised  # noqa: E402

TIME_STEPS, BATCH, INPUT, UNITS = 6, 5, 3, 4
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.jit, which is deprecated
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
RANDOM: dict[str, Any] = {
    "recurrent_dropout": 0.4, "zoneout": (0.3, 0.2), "weight_dropout": 0.3, "layer_norm": "products",
    "learn_initial_state": True,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "dropout of h": {"recurrent_dropout": 0.4},
    "dropout of g, every step": {
        "recurrent_dropout": 0.4, "recurrent_dropout_of": "g", "recurrent_dropout_per_step": True
    },
    "zoneout": {"zoneout": (0.3, 0.2)},
    "zoneout of h": {"zoneout": (0.3, 0.0)},
    "weight dropout": {"weight_dropout": 0.5},
    "norm of products": {"layer_norm": True},
    "norm of gates, carried": {"layer_norm": "gates", "layer_norm_carry": True, "layer_norm_epsilon": 1e-3},
    "learnt states": {"learn_initial_state": True},
    "all": RANDOM,
}


def lstm(layers: int = 1, **options: Any) -> Any:
    """A module in float64, whose gains, shifts and initial states are not those of a new one."""
    torch.manual_seed(0)
    module = ours.LSTM(INPUT, UNITS, layers, **options).double()
    with torch.no_grad():
        for name, values in module.named_parameters():
            if "weight" not in name and "bias" not in name:
                values += torch.randn_like(values) / 3
    return module


def x_of(*shape: int) -> Any:
    torch.manual_seed(1)
    return torch.randn(shape or (TIME_STEPS, BATCH, INPUT), dtype=torch.float64)


def results(module: Any, x: Any, hx: Any = None, **arguments: Any) -> list[Any]:
    """Output, states, and the gradients of x, of the states and of every parameter."""
    x = x.clone().requires_grad_()
    hx = None if hx is None else tuple(part.clone().requires_grad_() for part in hx)
    output, states = module(x, hx, **arguments)
    slopes = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    loss = (output * slopes).sum() + states[0].square().sum() + (states[1] * 0.3).sum()
    found = torch.autograd.grad(loss, [x, *(hx or ()), *module.parameters()], allow_unused=True, materialize_grads=True)
    return [output, *states, *found]


@pytest.fixture
def in_torchs_operations(monkeypatch):
    """Turns the kernels off for modules with options."""
    return lambda: monkeypatch.setattr(regularised, "_path", lambda *_: paths.Path("composite", "a test"))


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "one layer": ({}, {}, False),
    "two layers, both directions, states": ({"layers": 2, "bidirectional": True}, {}, True),
    "projection, without bias, lengths": (
        {"proj_size": 2, "bias": False}, {"lengths": torch.tensor([6, 3, 0, 1, 5])}, False
    ),
    "resets, first step": ({}, {"resets": torch.arange(30).view(6, 5) % 4 == 0, "first_step": 7}, False),
}


@pytest.mark.parametrize(("options", "shape"), [
    *((name, "one layer") for name in OPTIONS), *(("all", shape) for shape in list(SHAPES)[1:])
])
def test_training_by_the_kernels_is_that_in_torchs_operations(options, shape, in_torchs_operations):
    arguments, call, has_states = SHAPES[shape]
    module = lstm(**arguments, **OPTIONS[options])
    count = module.num_layers * (1 + module.bidirectional)
    hx = (x_of(count, BATCH, module.proj_size or UNITS), x_of(count, BATCH, UNITS)) if has_states else None
    found = results(module, x_of(), hx, seed=3, **call)
    in_torchs_operations()
    torch.testing.assert_close(found, results(module, x_of(), hx, seed=3, **call), **CLOSE)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("by_kernels", [True, False], ids=["kernels", "torch's operations"])
def test_outputs_are_those_of_the_reference_with_the_same_seed(options, training, by_kernels, in_torchs_operations):
    module = lstm(**options).train(training)
    names = {name.removesuffix("_l0"): values.detach().numpy() for name, values in module.named_parameters()}
    its = {name: names[name] for name in regularised.Extras._fields if name in names}
    known = ("recurrent_dropout", "recurrent_dropout_of", "recurrent_dropout_per_step", "zoneout", "weight_dropout")
    settings = {name: getattr(module._cell, name) for name in (*known, "layer_norm_epsilon", "layer_norm_carry")}
    expected = reference.lstm(
        x_of().numpy(), np.concatenate([names["weight_ih"].T, names["weight_hh"].T]),
        names["bias_ih"] + names["bias_hh"], **its, **settings, seed=3 if training else None, first_step=2,
    )
    if not by_kernels:
        in_torchs_operations()
    with torch.no_grad():
        output, (h_n, c_n), cells = module(x_of(), seed=3, first_step=2, return_cells=True)
    for mine, theirs in ((output, expected.h), (h_n[0], expected.h_n), (c_n[0], expected.c_n), (cells, expected.cells)):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-9, atol=1e-11)


def test_torchs_seed_makes_a_call_repeat_and_calls_differ():
    module, x = lstm(**RANDOM), x_of()
    torch.manual_seed(5)
    first, second = module(x)[0], module(x)[0]
    torch.manual_seed(5)
    assert torch.equal(module(x)[0], first)
    assert not torch.equal(first, second)


def test_inference_draws_nothing_from_torchs_generator():
    module, x = lstm(**RANDOM).eval(), x_of()
    before = torch.get_rng_state()
    assert torch.equal(module(x)[0], module(x)[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_of_inference_are_those_of_the_expected_zoneout(in_torchs_operations):
    module = lstm(**RANDOM).eval()
    found = results(module, x_of())
    in_torchs_operations()
    torch.testing.assert_close(found, results(module, x_of()), **CLOSE)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_recomputes_with_the_same_masks(reentrant):
    module, x = lstm(**RANDOM), x_of().requires_grad_()
    gradients = []
    for run in (lambda x: module(x)[0], lambda x: checkpoint(lambda x: module(x)[0], x, use_reentrant=reentrant)):
        torch.manual_seed(5)
        module.zero_grad()
        run(x).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in module.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_parts_of_a_sequence_with_their_first_steps_are_the_whole():
    module, x = lstm(recurrent_dropout=0.4, recurrent_dropout_per_step=True, zoneout=0.2), x_of()
    whole, _ = module(x, seed=9)
    head, state = module(x[:2], seed=9)
    tail, _ = module(x[2:], state, seed=9, first_step=2)
    torch.testing.assert_close(torch.cat([head, tail]), whole, **CLOSE)


def test_packed_rows_have_the_masks_of_their_order_from_the_longest():
    module, rows = lstm(**RANDOM, bidirectional=True), list(x_of(2, TIME_STEPS, INPUT))
    packed = pack_sequence([rows[0][:4], rows[1]], enforce_sorted=False)
    _, (h_n, _) = module(packed, seed=2)
    by_length = torch.stack([rows[1], rows[0]], 1)
    _, (expected, _) = module(by_length, lengths=torch.tensor([TIME_STEPS, 4]), seed=2)
    torch.testing.assert_close(h_n, expected.flip(1), **CLOSE)


def test_reduced_precision_and_autocast_compute_in_float32():
    module, x = lstm(**RANDOM).float(), x_of().float()
    expected = module(x, seed=2)[0]
    with torch.autocast("cpu"):
        assert module(x, seed=2)[0].dtype is torch.bfloat16
    found = module.bfloat16()(x.bfloat16(), seed=2)[0]
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


# --- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_are_named_as_torchs_and_counted_by_layer_and_direction():
    added = ["norm_gain", "cell_gain", "cell_shift", "initial_h", "initial_c"]
    ends = [f"_l{layer}{end}" for layer, end in itertools.product(range(2), ("", "_reverse"))]
    stock = list(torch.nn.LSTM(INPUT, UNITS, 2, bidirectional=True).state_dict())
    names = list(lstm(2, **RANDOM, bidirectional=True).state_dict())
    assert names == stock + [f"{name}{end}" for end in ends for name in added]


def test_without_options_it_is_torchs_module_with_torchs_parameters():
    torch.manual_seed(0)
    mine = ours.LSTM(INPUT, UNITS, recurrent_dropout=0.0, layer_norm=None)
    torch.manual_seed(0)
    assert repr(mine) == repr(torch.nn.LSTM(INPUT, UNITS))
    assert ours.revert(mine) == 1


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
def test_copies_compute_the_same(way):
    module, file = lstm(**RANDOM), io.BytesIO()
    if way == "deepcopy":
        other = copy.deepcopy(module)
    elif way == "pickle":
        torch.save(module, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = ours.LSTM(INPUT, UNITS, **RANDOM).double()
        other.load_state_dict(module.state_dict())
    assert torch.equal(other(x_of(), seed=1)[0], module(x_of(), seed=1)[0])


def test_new_parameters_and_reset_ones_normalise_and_begin_with_zeros():
    module = lstm(**RANDOM)
    module.reset_parameters()
    values = [module.norm_gain_l0, module.cell_gain_l0, module.cell_shift_l0, module.initial_h_l0, module.initial_c_l0]
    assert [float(each.detach().mean()) for each in values] == [1, 1, 0, 0, 0]


# --- what the kernels leave to torch's operations ---------------------------------------------------------------------


def test_second_derivatives_are_right():
    module, x = lstm(**RANDOM), x_of(2, 2, INPUT).requires_grad_()
    gain = module.norm_gain_l0
    assert torch.autograd.gradgradcheck(lambda x, gain: (module(x, seed=3)[0] * gain.sum()).sum(), (x, gain))


@pytest.mark.parametrize("randomness", ["same", "different", "error"])
def test_vmap_shares_the_masks_or_refuses(randomness):
    module, x = lstm(**RANDOM), x_of(3, TIME_STEPS, BATCH, INPUT)
    torch.manual_seed(5)
    call = torch.func.vmap(lambda x: module(x)[0], randomness=randomness)
    if randomness != "same":
        with pytest.raises(RuntimeError, match="randomness='same'"):
            call(x)
        return
    found = call(x)
    torch.manual_seed(5)
    torch.testing.assert_close(found[1], module(x[1])[0], **CLOSE)


def test_forward_mode_derivatives_are_right():
    module, x = lstm(**RANDOM), x_of()
    _, slope = torch.func.jvp(lambda x: module(x, seed=4)[0].sum(), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope, results_of_sum(module, x).sum(), **CLOSE)


def results_of_sum(module: Any, x: Any) -> Any:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(module(x, seed=4)[0].sum(), x)[0]


def test_gradients_come_back_through_the_cells():
    module, x = lstm(**RANDOM), x_of(2, 2, INPUT).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, seed=3, return_cells=True)[2], x)


def test_torch_compile_leaves_the_call_out_of_its_graph():
    module, x = lstm(**RANDOM), x_of()
    compiled = torch.compile(lambda x: module(2 * x, seed=3)[0] + 1, backend="eager")
    try:
        torch.testing.assert_close(compiled(x), module(2 * x, seed=3)[0] + 1, rtol=0, atol=0)
    finally:
        torch.compiler.reset()  # or `patch` would refuse in later tests


def test_an_export_of_inference_is_right():
    module, x = lstm(**RANDOM).eval(), x_of()
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x + 1)[0], module(x + 1)[0], **CLOSE)


def test_a_trace_of_training_is_refused_and_one_of_inference_is_right():
    module, x = lstm(**RANDOM), x_of()
    with pytest.raises(RuntimeError, match="same masks in every call"):
        torch.jit.trace(module, (x,))
    traced = torch.jit.trace(module.eval(), (x,), check_trace=False)
    torch.testing.assert_close(traced(x + 1)[0], module(x + 1)[0], **CLOSE)


# --- words ------------------------------------------------------------------------------------------------------------


def test_explain_says_what_serves_a_call():
    module, x = lstm(**RANDOM), x_of()
    assert ours.explain(module, x).startswith("lstmfast's kernels")
    assert ours.explain(module, x, return_cells=True).startswith("torch operations, step by step: gradients may come")


def test_revert_refuses_what_torch_has_not_and_changes_nothing():
    model = torch.nn.Sequential(ours.LSTM(2, 3), lstm(zoneout=0.1))
    with pytest.raises(RuntimeError, match="revert: 1 has zoneout, which torch.nn.LSTM has not"):
        ours.revert(model)
    assert type(model[0]) is ours.LSTM


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda: ours.LSTM(3, 4, recurrent_dropout=1.0), ValueError, "recurrent_dropout"),
        (lambda: ours.LSTM(3, 4, layer_norm="rows"), ValueError, "layer_norm"),
        (lambda: ours.LSTMCell(3, 4, zoneout=0.1), TypeError, "zoneout"),
        (lambda: lstm(**RANDOM)(x_of(), seed=-1), ValueError, "seed must be from 0"),
        (lambda: lstm(**RANDOM)(x_of(), seed=1, first_step=-1), ValueError, "first_step must be 0 or more"),
        (lambda: lstm(**RANDOM)(x_of()[..., :2]), RuntimeError, "Expected 3, got 2"),
        (lambda: lstm(**RANDOM)(x_of().float()), ValueError, "dtype"),
        (lambda: lstm(**RANDOM)(None), TypeError, "input must be a tensor"),
    ],
)
def test_wrong_arguments_are_refused(act, error, words):
    with pytest.raises(error, match=words):
        act()


def test_a_module_with_options_is_neither_frozen_nor_rounded():
    module = lstm(**RANDOM).float()
    assert (ours.freeze(module), ours.convert(module, weights="int8")) == (0, 0)
