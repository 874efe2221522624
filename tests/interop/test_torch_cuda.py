"""lstmfast.torch.LSTM on CUDA tensors, here host tensors on a device that the emulator plays, against torch.nn.LSTM.

What the binding makes of a sequence is test_cuda_binding.py's affair; here it is which calls go there, that the module
around it is whole, and that nothing looks at values on the device.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lstmfast import cuda
from support.kernel_builds import compiler
from support.tolerances import gradients, states

torch = pytest.importorskip("torch", reason="needs PyTorch, whose tensors play device arrays")

from torch.nn.utils.rnn import pack_sequence  # noqa: E402

import lstmfast.torch  # noqa: E402
from lstmfast.torch import on_cuda, serving  # noqa: E402
from support.cuda_host import emulated_device  # noqa: E402

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]

# h is rounded to bfloat16, 2**-9 of its size, once a step, and gradients are sums of such.
BFLOAT16, BFLOAT16_GRADIENTS = {"rtol": 0.0, "atol": 2.0**-5}, {"rtol": 2.0**-4, "atol": 2.0**-3}
T, B, INPUT, H = 4, 3, 5, 6


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[None]:
    """All tensors lie on the emulated device."""
    if compiler() is None or sys.platform != "linux":
        yield
        return
    with pytest.MonkeyPatch.context() as patch, emulated_device(), warnings.catch_warnings():
        warnings.simplefilter("error", cuda.KernelMismatchWarning)
        patch.setattr(on_cuda, "lies_on_device", lambda tensor: True)
        patch.setattr(serving, "_is_plain", lambda *_: False)  # that is, on the CPU
        yield


def pair(**options: Any) -> tuple[Any, Any]:
    """torch's module and ours with the same weights."""
    theirs = torch.nn.LSTM(INPUT, H, **options)
    ours = lstmfast.torch.LSTM(INPUT, H, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def flat(out: Any) -> list[Any]:
    """h, h_n, c_n of a module's output."""
    h, (h_n, c_n) = out
    return [h.data if isinstance(h, torch.nn.utils.rnn.PackedSequence) else h, h_n, c_n]


def assert_same(theirs: Any, ours: Any, x: Any, hx: Any = None) -> None:
    """Outputs and all gradients."""
    given = [*(x if isinstance(x, list) else [x]), *(hx or ())]
    for tensor in given:
        tensor.requires_grad_()
    results = []
    for module in (theirs, ours):
        out = flat(module(pack_sequence(x, enforce_sorted=False) if isinstance(x, list) else x, hx))
        loss = sum((part * torch.arange(1.0, part.numel() + 1).view_as(part).sin()).sum() for part in out)
        results.append((out, torch.autograd.grad(loss, [*given, *module.parameters()])))
    (wanted, wanted_d), (found, found_d) = results
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert_allclose(a.detach(), b.detach(), **states("float32", 2 * H))
    for a, b in zip(found_d, wanted_d, strict=True):
        assert_allclose(a, b, **gradients("float32", 4 * T * B))


OPTIONS: list[dict[str, Any]] = [
    {}, {"bias": False}, {"batch_first": True}, {"num_layers": 2}, {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("with_states", [False, True])
def test_options_of_the_module_give_what_torch_gives(options: dict[str, Any], with_states: bool) -> None:
    theirs, ours = pair(**options)
    count = ours.num_layers * (2 if ours.bidirectional else 1)
    hx = (torch.randn(count, B, H), torch.randn(count, B, H)) if with_states else None
    x = torch.randn(B, T, INPUT) if ours.batch_first else torch.randn(T, B, INPUT)
    assert lstmfast.torch.explain(ours, x, hx).startswith("lstmfast's CUDA kernels: ")
    assert_same(theirs, ours, x, hx)


def test_one_sequence_without_a_batch_is_taken() -> None:
    theirs, ours = pair(num_layers=2)
    assert_same(theirs, ours, torch.randn(T, INPUT), (torch.randn(2, H), torch.randn(2, H)))


def test_packed_sequences_in_any_order_are_taken() -> None:
    theirs, ours = pair(bidirectional=True)
    assert_same(theirs, ours, [torch.randn(length, INPUT) for length in (2, T, 1)])


def test_no_rows_are_a_batch_too() -> None:
    theirs, ours = pair()
    assert_same(theirs, ours, torch.randn(T, 0, INPUT))


def test_dropout_between_layers_is_torchs_own_for_the_same_seed() -> None:
    theirs, ours = pair(num_layers=3, dropout=0.5)
    x = torch.randn(T, B, INPUT)
    results = []
    for module in (theirs, ours):
        torch.manual_seed(3)
        results.append(flat(module(x))[0].detach())
    assert_allclose(results[1], results[0], **states("float32", 2 * H))


def test_without_gradients_only_what_is_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair()
    asked = []
    forward = on_cuda.forward

    def spy(*given: Any, **options: Any) -> Any:
        asked.append(options)
        return forward(*given, **options)

    monkeypatch.setattr(on_cuda, "forward", spy)
    with torch.no_grad():
        h, _, cells = ours(torch.randn(T, B, INPUT), return_cells=True)
    assert asked == [{"keep_cells": True}]
    assert cells.shape == h.shape
    ours(torch.randn(T, B, INPUT))
    assert asked[1] == {"keep_cells": True, "keep_gates": True}


def test_lengths_and_resets_are_those_of_the_cpu() -> None:
    _, ours = pair()
    x, lengths = torch.randn(T, B, INPUT), torch.tensor([2, T, 0])
    resets = torch.rand(T, B) < 0.4
    with torch.no_grad():
        found = flat(ours(x, lengths=lengths, resets=resets))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(on_cuda, "lies_on_device", lambda tensor: False)
            wanted = flat(ours(x, lengths=lengths, resets=resets))
    for a, b in zip(found, wanted, strict=True):
        assert_allclose(a, b, **states("float32", 2 * H))
    with pytest.raises(ValueError, match="lengths must be between 0 and 4 = time_steps, got 5"):
        ours(x, lengths=[1, 5, 0])


def test_bfloat16_modules_keep_their_dtype() -> None:
    theirs, ours = pair(num_layers=2)
    x = torch.randn(T, B, INPUT)
    rounded = ours.bfloat16()(x.bfloat16())
    assert {part.dtype for part in flat(rounded)} == {torch.bfloat16}
    for a, b in zip(flat(rounded), flat(theirs(x)), strict=True):
        assert_allclose(a.float().detach(), b.detach(), **BFLOAT16)
    flat(rounded)[0].float().sum().backward()
    flat(theirs(x))[0].sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad.dtype == torch.bfloat16
        assert_allclose(a.grad.float(), b.grad, **BFLOAT16_GRADIENTS)


def test_autocast_to_bfloat16_runs_the_bfloat16_kernels() -> None:
    theirs, ours = pair()
    x, kind = torch.randn(T, B, INPUT), torch.randn(1).device.type
    with torch.autocast(kind, torch.bfloat16):
        assert lstmfast.torch.explain(ours, x).startswith("lstmfast's CUDA kernels: ")
        h, (h_n, c_n) = ours(x)
    assert {h.dtype, h_n.dtype, c_n.dtype} == {torch.bfloat16}
    assert_allclose(h.float().detach(), flat(theirs(x))[0].detach(), **BFLOAT16)
    h.float().sum().backward()
    assert {p.grad.dtype for p in ours.parameters()} == {torch.float32}


def test_gradients_of_gradients_go_by_torch_operations() -> None:
    _, ours = pair()
    x = torch.randn(T, B, INPUT, requires_grad=True)
    (d_x,) = torch.autograd.grad(ours(x)[0].sin().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(d_x.square().sum(), x)
    theirs = torch.nn.LSTM(INPUT, H)
    theirs.load_state_dict(ours.state_dict())
    (wanted,) = torch.autograd.grad(theirs(x)[0].sin().sum(), x, create_graph=True)
    assert_allclose(d_x.detach(), wanted.detach(), **gradients("float32", 4 * T * B))
    (wanted_second,) = torch.autograd.grad(wanted.square().sum(), x)
    assert_allclose(second, wanted_second, **gradients("float32", 40 * T * B))


def test_the_operators_come_here_too() -> None:
    x, h0, c0 = (torch.randn(*shape, requires_grad=True) for shape in ((T, B, INPUT), (B, H), (B, H)))
    weights = [torch.randn(4 * H, INPUT), torch.randn(4 * H, H), torch.randn(4 * H), torch.randn(4 * H), None]
    given = (x, h0, c0, *weights, torch.tensor([2, T, 0]), None, True, "highest")
    torch.library.opcheck(torch.ops.lstmfast.layer, given)


def test_func_transforms_give_what_they_give_on_the_cpu() -> None:
    _, ours = pair()
    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    x = torch.randn(2, T, B, INPUT)

    def loss(parameters: dict[str, Any], x: Any) -> Any:
        return torch.func.functional_call(ours, parameters, (x,))[0].sin().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))
    found = per_sample(parameters, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_cuda, "lies_on_device", lambda tensor: False)
        wanted = per_sample(parameters, x)
    for name, d in found.items():
        assert_allclose(d, wanted[name], **gradients("float32", 4 * T * B))


def test_func_transforms_of_bfloat16_stay_in_it() -> None:
    ours = pair()[1].bfloat16()
    x = torch.randn(T, B, INPUT).bfloat16()
    d_x = torch.func.grad(lambda x: ours(x)[0].float().sum())(x)
    x.requires_grad_()
    ours(x)[0].float().sum().backward()
    assert d_x.dtype == torch.bfloat16
    assert_allclose(d_x.detach().float(), x.grad.float(), **BFLOAT16_GRADIENTS)


def test_nothing_looks_at_a_value_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair(num_layers=2, bidirectional=True)
    x = torch.randn(T, B, INPUT)
    ours(x)[0].sum().backward()  # the first use of the kernels, which is a test of them
    lengths, resets = torch.tensor([2, T, 0]), torch.zeros(T, B, dtype=torch.bool)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something waits for the device")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)  # lengths are checked where they lie on the host
    h = ours(x, lengths=lengths, resets=resets)[0]
    torch.autograd.backward(h, torch.ones(h.shape))


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        ({}, lambda m, x: (m.double(), x.double()), "the CUDA kernels compute in float32 and bfloat16, not in float64"),
        ({}, lambda m, x: (m.half(), x.half()), "the CUDA kernels compute in float32 and bfloat16, not in float16"),
        ({"proj_size": 2}, lambda m, x: (m, x), "the CUDA kernels have no projection"),
        ({}, lambda m, x: (m, x.to("meta")), "its tensors lie on cpu, meta"),
    ],
    ids=["float64", "float16", "proj_size", "elsewhere"],
)
def test_what_the_kernels_do_not_have_goes_torchs_own_way(options: Any, change: Any, words: str) -> None:
    module, x = change(lstmfast.torch.LSTM(INPUT, H, **options), torch.randn(T, B, INPUT))
    assert lstmfast.torch.explain(module, x) == f"torch's own forward: {words}"
    module.strict = True
    with pytest.raises(RuntimeError, match=words):
        module(x)


def test_cells_and_installations_without_kernels_go_torchs_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, x = lstmfast.torch.LSTMCell(INPUT, H), torch.randn(B, INPUT)
    assert "fused cell" in lstmfast.torch.explain(cell, x)
    assert cell(x)[0].shape == (B, H)
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    words = lstmfast.torch.explain(lstmfast.torch.LSTM(INPUT, H), x)
    assert (
        words == "torch's own forward: it lies on cpu, and lstmfast has no CUDA kernels here (lstmfast info says why)"
    )


def test_more_units_than_the_kernels_have_go_torchs_own_way() -> None:
    module = lstmfast.torch.LSTM(1, 2049)
    assert "at most 2048 units, not 2049" in lstmfast.torch.explain(module, torch.randn(1, 1, 1))


def test_weights_of_another_call_are_never_used() -> None:
    _, ours = pair()
    x = torch.randn(T, B, INPUT)
    with torch.no_grad():
        before = ours(x)[0]
        ours.weight_hh_l0.data.mul_(2)  # which no counter of torch's sees
        assert not np.allclose(before, ours(x)[0])
