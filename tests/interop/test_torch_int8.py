"""`convert(model, weights=)`: which calls use the rounded weights, how close they are, and which writes they see.

Also the precisions of torch.set_float32_matmul_precision. The oracle is torch's own module in float64.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import lstmfast as lf  # noqa: E402
import lstmfast.torch as ours  # noqa: E402
from support.tolerances import BFLOAT16_LAYER, INT8_LAYER, MEDIUM_LAYER  # noqa: E402

T, B, INPUT, H = 12, 7, 37, 70
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "stack of both directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True},
    "projection": {"proj_size": 20},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
both_kinds = pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell])


def converted(module: nn.Module) -> nn.Module:
    ours.convert(module, weights="int8")
    return module


def exact(module: nn.Module, x: Any, *args: Any) -> Any:
    """The output of torch's own module in float64."""
    module = copy.deepcopy(module)
    ours.revert(module)
    with torch.no_grad():
        return module.double()(x.double(), *args)[0]


def relative_error(values: Any, expected: Any) -> float:
    """Of all values together."""
    return float((values.double() - expected).norm() / expected.norm())


def is_rounded(values: Any, expected: Any) -> bool:
    """Whether the error is that of int8: far above float32's, and within the bound."""
    return 1e-4 < relative_error(values, expected) < INT8_LAYER


@pytest.fixture
def x() -> Any:
    torch.manual_seed(1)
    return torch.randn(T, B, INPUT)


@pytest.fixture
def medium() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


# --- results ----------------------------------------------------------------------------------------------------------


@every_option
def test_inference_is_close_to_float64(x, options):
    module = converted(nn.LSTM(INPUT, H, **options))
    with torch.no_grad():
        assert is_rounded(module(x)[0], exact(module, x))


@every_option
def test_modules_of_our_classes_take_it_too(x, options):
    module = converted(ours.LSTM(INPUT, H, **options))
    with torch.no_grad():
        assert is_rounded(module(x)[0], exact(module, x))


def test_a_given_state_is_used(x):
    module, hx = converted(nn.LSTM(INPUT, H)), (torch.randn(1, B, H), torch.randn(1, B, H))
    with torch.no_grad():
        assert is_rounded(module(x, hx)[0], exact(module, x, tuple(s.double() for s in hx)))


def test_packed_sequences(x):
    module = converted(nn.LSTM(INPUT, H, bidirectional=True))
    packed = pack_padded_sequence(x, torch.tensor([3, 12, 1, 7, 7, 2, 5]), enforce_sorted=False)
    with torch.no_grad():
        assert is_rounded(module(packed)[0].data, exact(module, packed).data)


def test_cells(x):
    module = converted(nn.LSTMCell(INPUT, H))
    with torch.no_grad():
        assert is_rounded(module(x[0])[0], exact(module, x[0]))


def test_inference_mode(x):
    module = converted(nn.LSTM(INPUT, H))
    with torch.inference_mode():
        found = module(x)[0].clone()
    assert is_rounded(found, exact(module, x))


@both_kinds
def test_calls_where_nothing_requires_grad(x, kind):
    module = converted(kind(INPUT, H)).requires_grad_(False)
    assert is_rounded(module(x[0])[0], exact(module, x[0]))


# --- calls that run in float32 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["plain", "stack"])
def test_calls_with_gradients_are_those_of_float32_to_the_bit(x, options):
    module = nn.LSTM(INPUT, H, **options)
    other = converted(copy.deepcopy(module)).train()
    ours.convert(module)
    for each in (module, other):
        each(x)[0].sum().backward()
    found, expected = ([p.grad for p in each.parameters()] for each in (other, module))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_an_input_that_requires_grad_is_a_call_with_gradients(x):
    module = converted(nn.LSTM(INPUT, H)).requires_grad_(False)
    assert relative_error(module(x.requires_grad_())[0].detach(), exact(module, x)) < 1e-6


def test_autocast_rounds_as_without_int8(x):
    module = nn.LSTM(INPUT, H)
    other = converted(copy.deepcopy(module))
    ours.convert(module)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(other(x)[0], module(x)[0])
        assert "weights='int8' is for float32" in ours.explain(other, x)


def test_functional_call_uses_the_weights_given(x):
    module, given = converted(nn.LSTM(INPUT, H)), nn.LSTM(INPUT, H)
    with torch.no_grad():
        module(x)
        found = torch.func.functional_call(module, dict(given.state_dict()), (x,))[0]
        assert is_rounded(found, exact(given, x))
        assert is_rounded(module(x)[0], exact(module, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_modules_of_other_dtypes_are_served_as_without_it_and_said_to_be(x, dtype):
    module = nn.LSTM(INPUT, H, dtype=dtype)
    other = converted(copy.deepcopy(module))
    ours.convert(module)
    x = x.to(dtype)
    with torch.no_grad():
        assert torch.equal(other(x)[0], module(x)[0])
        assert "weights='int8' is for float32" in ours.explain(other, x)


def test_compiled_calls_run_in_float32(x):
    module = converted(nn.LSTM(INPUT, H))
    with torch.no_grad():
        found = torch.compile(module, backend="eager")(x)[0]
    assert relative_error(found, exact(module, x)) < 1e-6


# --- which writes are seen --------------------------------------------------------------------------------------------


def optimize(module: nn.Module, **options: Any) -> None:
    """Make every weight its negative."""
    for parameter in module.parameters():
        parameter.grad = 2 * parameter.detach()
    torch.optim.SGD(module.parameters(), lr=1, **options).step()


WRITES: dict[str, Any] = {
    "an optimizer": optimize,
    "a fused optimizer": lambda module: optimize(module, fused=True),
    "an optimizer of many": lambda module: optimize(module, foreach=True),
    "load_state_dict": lambda module: module.load_state_dict({k: -v for k, v in module.state_dict().items()}),
    "operations in place": lambda module: [p.requires_grad_(False).mul_(-1) for p in module.parameters()],
    "another parameter": lambda module: [
        setattr(module, name, nn.Parameter(-p.detach())) for name, p in list(module.named_parameters())
    ],
    "past torch": lambda module: [p.data.mul_(-1) for p in module.parameters()],
    "NumPy": lambda module: [np.negative(p.detach().numpy(), out=p.detach().numpy()) for p in module.parameters()],
    "another .data": lambda module: [setattr(p, "data", -p.data) for p in module.parameters()],
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, None], ids=["plain", "stack", "cell"])
def test_writes_are_seen_by_the_next_call(x, write, options):
    module = converted(nn.LSTMCell(INPUT, H) if options is None else nn.LSTM(INPUT, H, **options))
    with torch.no_grad():
        module(x[0])
        write(module)
        assert is_rounded(module(x[0])[0], exact(module, x[0]))


def test_writes_to_a_module_made_in_inference_mode_are_seen(x):
    with torch.inference_mode():
        module = converted(nn.LSTM(INPUT, H))
        module(x)
        for parameter in module.parameters():
            parameter.mul_(-1)
        assert is_rounded(module(x)[0], exact(module, x))


def test_frozen_weights_are_rounded_too(x):
    module = converted(nn.LSTM(INPUT, H))
    ours.freeze(module)
    with torch.no_grad():
        before = module(x)[0]
        optimize(module)
        assert torch.equal(module(x)[0], before)
        ours.unfreeze(module)
        assert is_rounded(module(x)[0], exact(module, x))


def test_computed_weights_are_taken_in_every_call(x):
    module = parametrizations.weight_norm(converted(nn.LSTM(INPUT, H)), "weight_hh_l0")
    with torch.no_grad():
        module(x)
        module.parametrizations.weight_hh_l0.original0.data.mul_(-1)
        assert is_rounded(module(x)[0], exact(module, x))


# --- the module -------------------------------------------------------------------------------------------------------


def pickled(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@both_kinds
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_are_of_int8_too(x, kind, copied):
    module = converted(kind(INPUT, H))
    with torch.no_grad():
        expected = module(x[0])[0]
        assert torch.equal(copied(module)(x[0])[0], expected)


def test_the_state_dict_stays_float32(x):
    module = nn.LSTM(INPUT, H)
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        converted(module)(x)
    assert list(module.state_dict()) == list(before)
    torch.testing.assert_close(dict(module.state_dict()), dict(before), rtol=0, atol=0)


@both_kinds
def test_revert_undoes_it(x, kind):
    module = kind(INPUT, H)
    attributes = set(module.__dict__)
    assert ours.convert(module, weights="int8") == 1
    assert ours.revert(module) == 1
    assert set(module.__dict__) == attributes
    ours.convert(module)
    with torch.no_grad():
        assert relative_error(module(x[0])[0], exact(module, x[0])) < 1e-6


def test_the_last_convert_says_which_weights(x):
    module = converted(nn.LSTM(INPUT, H))
    with torch.no_grad():
        module(x)
        assert ours.convert(module) == 1
        assert relative_error(module(x)[0], exact(module, x)) < 1e-6


@pytest.mark.parametrize("word", ["int4", "bfloat16", None])
def test_other_words_are_errors_that_list_those_there_are(word):
    with pytest.raises(ValueError, match=f"weights must be one of float32, int8, got {word!r}"):
        ours.convert(nn.LSTM(3, 4), weights=word)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e15])
def test_a_weight_that_cannot_be_rounded_is_an_error_that_names_it(value):
    model = nn.Sequential(nn.LSTM(3, 4), nn.LSTM(4, 4, num_layers=2, bidirectional=True))
    model[1].weight_hh_l1_reverse.data[0, 0] = value
    with pytest.raises(ValueError, match=r"1\.weight_hh_l1_reverse must be finite, and at most 2\.8e\+14"):
        ours.convert(model, weights="int8")
    assert ours.convert(model) == 2


@both_kinds
def test_with_a_weight_that_became_infinite_calls_run_in_float32(x, kind):
    module, plain = converted(kind(INPUT, H)), kind(INPUT, H)
    name = "weight_ih" if kind is nn.LSTMCell else "weight_ih_l0"
    plain.load_state_dict(module.state_dict())
    ours.convert(plain)
    with torch.no_grad():
        for each in (module, plain):
            getattr(each, name)[0, 0] = float("inf")
        assert torch.equal(module(x[0])[0], plain(x[0])[0])


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_says_that_weights_are_int8(x):
    module = converted(nn.LSTM(INPUT, H))
    with torch.no_grad():
        assert "x, h and weights are rounded to 8 bits" in ours.explain(module, x)


def test_explain_knows_the_products_of_packed_sequences_and_cells(x):
    lstm, cell = converted(nn.LSTM(INPUT, H)), converted(nn.LSTMCell(INPUT, H))
    packed = pack_padded_sequence(x, torch.full((B,), T))
    with torch.no_grad():
        said = [
            ours.explain(lstm, packed),
            ours.explain(lstm, x[0]),
            ours.explain(cell, x[0]),
            ours.explain(cell, x[0, 0]),
        ]
    assert all("rounded to 8 bits" in each for each in said)


def test_explain_says_why_a_call_with_gradients_runs_in_float32(x):
    said = ours.explain(converted(nn.LSTM(INPUT, H)), x)
    assert "weights='int8' serves inference only; this call may need gradients and runs in float32" in said


# --- torch.set_float32_matmul_precision -------------------------------------------------------------------------------


# CPUs that multiply short integers no faster run it in float32, and `explain` says so.


def test_medium_is_honoured_in_inference(x, medium):
    module = nn.LSTM(INPUT, H)
    ours.convert(module)
    with torch.no_grad():
        error, is_float32 = relative_error(module(x)[0], exact(module, x)), "in float32" in ours.explain(module, x)
    assert error < (1e-6 if is_float32 else MEDIUM_LAYER)
    assert (error < 1e-6) is is_float32


def test_medium_is_honoured_in_training(x, medium):
    module, upstream = nn.LSTM(INPUT, H), torch.randn(T, B, H)
    ours.convert(module)
    theirs = copy.deepcopy(module).double()
    ours.revert(theirs)
    (module(x)[0] * upstream).sum().backward()
    (theirs(x.double())[0] * upstream).sum().backward()
    errors = [relative_error(p.grad, q.grad) for p, q in zip(module.parameters(), theirs.parameters(), strict=True)]
    is_float32 = "in float32" in ours.explain(module, x)
    assert all(error < BFLOAT16_LAYER for error in errors)
    assert (min(errors) < 2e-6) is is_float32


@pytest.mark.parametrize("training", [False, True])
def test_explain_names_the_products_of_medium(x, medium, training):
    module = nn.LSTM(INPUT, H)
    ours.convert(module)
    with torch.set_grad_enabled(training):
        said = ours.explain(module, x)
    whole = lf.explain(B, T, INPUT, H, matmul_precision="medium", training=training)
    products = [sentence for sentence in whole.split(". ") if "medium" in sentence or "backward" in sentence]
    assert all(sentence.rstrip(".") in said for sentence in products)
    assert ("The backward pass's products" in said) is (training and "backward" in whole)


@pytest.mark.parametrize("training", [False, True])
def test_explain_says_nothing_of_products_at_highest(x, training):
    module = nn.LSTM(INPUT, H)
    ours.convert(module)
    with torch.set_grad_enabled(training):
        assert ours.explain(module, x).endswith("CPU tensors of a dtype that the kernels have")
