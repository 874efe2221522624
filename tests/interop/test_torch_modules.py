"""The drop-in beside torch's own modules: results, gradients, states, errors over the whole space of options.

torch is the oracle; what is ours alone (lengths, resets, cells) has the NumPy reference. Tracing and transforms:
`test_torch_transforms`; training, saving, processes: `test_torch_use`.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import lstmfast as lf  # noqa: E402
import lstmfast.torch as ours  # noqa: E402
from lstmfast import reference  # noqa: E402

T, B, INPUT, H = 5, 4, 3, 6
# What the issue of rounding allows two float32 libraries that both sum over some hundred terms, and float64 ones.
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 2e-6}, torch.float64: {"rtol": 1e-10, "atol": 1e-12}}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:dropout option adds dropout")


def pair(*sizes: int, dtype: Any = torch.float32, seed: int = 0, **options: Any) -> tuple[nn.LSTM, ours.LSTM]:
    """torch's LSTM and ours with the same weights."""
    torch.manual_seed(seed)
    theirs = nn.LSTM(*sizes, dtype=dtype, **options)
    mine = ours.LSTM(*sizes, dtype=dtype, **options)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def assert_close(mine: Any, theirs: Any, dtype: Any = torch.float32) -> None:
    torch.testing.assert_close(mine, theirs, **CLOSE[dtype], check_stride=False)


def run(module: Any, x: Any, hx: Any, upstream: Any, **options: Any) -> list[Any]:
    """Outputs, and gradients of everything that asks for one."""
    leaves = [t for t in (x.data if isinstance(x, PackedSequence) else x, *(hx or ())) if t.requires_grad]
    for leaf in (*leaves, *module.parameters()):
        leaf.grad = None
    output, (h_n, c_n) = module(x, hx, **options)
    values = [output.data if isinstance(output, PackedSequence) else output, h_n, c_n]
    loss = sum((value * d).sum() for value, d in zip(values, upstream, strict=True) if d is not None)
    if loss.requires_grad:
        loss.backward()
    gradients = [leaf.grad for leaf in (*leaves, *module.parameters())]
    # Where a gradient is zero whatever the numbers, torch leaves it out or not, as its engine happened to find out.
    zeros = [torch.zeros_like(leaf) for leaf in (*leaves, *module.parameters())]
    return [*values, *(zero if d is None else d for d, zero in zip(gradients, zeros, strict=True))]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(0, 5), st.integers(1, 5), st.integers(1, 9)),
    layers=st.integers(1, 3),
    flags=st.fixed_dictionaries({name: st.booleans() for name in ("bias", "batch_first", "bidirectional")}),
    projection=st.integers(0, 4),
    double=st.booleans(),
    batched=st.booleans(),
    with_state=st.booleans(),
    strided=st.booleans(),
    trains=st.booleans(),
    wanted=st.sets(st.sampled_from(["x", "h0", "c0", "weights"])),
    upstream=st.sets(st.sampled_from([0, 1, 2]), min_size=1),
    seed=st.integers(0, 2**16),
)
def test_any_options_give_what_torch_gives(
    sizes, layers, flags, projection, double, batched, with_state, strided, trains, wanted, upstream, seed
):
    (time_steps, batch, input_size, hidden), dtype = sizes, torch.float64 if double else torch.float32
    projection = projection if projection < hidden else 0
    theirs, mine = pair(input_size, hidden, layers, proj_size=projection, dtype=dtype, seed=seed, **flags)
    cells, output_size = layers * (1 + flags["bidirectional"]), projection or hidden
    axes = ((batch, time_steps) if flags["batch_first"] else (time_steps, batch)) if batched else (time_steps,)
    x = torch.randn(*axes, 2 * input_size if strided else input_size, dtype=dtype)[..., :: 2 if strided else 1]
    x = x.detach().requires_grad_("x" in wanted)
    rows = (cells, batch) if batched else (cells,)
    hx = None
    if with_state:
        hx = (
            torch.randn(*rows, output_size, dtype=dtype).requires_grad_("h0" in wanted),
            torch.randn(*rows, hidden, dtype=dtype).requires_grad_("c0" in wanted),
        )
    for module in (theirs, mine):
        module.train(trains)
        module.requires_grad_("weights" in wanted)
    shapes = [(*axes, output_size * (1 + flags["bidirectional"])), (*rows, output_size), (*rows, hidden)]
    d = [torch.randn(shape, dtype=dtype) if k in upstream else None for k, shape in enumerate(shapes)]
    assert_close(run(mine, x, hx, d), run(theirs, x, hx, d), dtype)


@pytest.mark.parametrize("sorted_rows", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 2}], ids=str)
@pytest.mark.parametrize("with_state", [False, True], ids=["no state", "state"])
def test_packed_sequences_give_what_torch_gives(sorted_rows, options, with_state):
    theirs, mine = pair(INPUT, H, **options)
    lengths = [5, 3, 3, 1] if sorted_rows else [3, 1, 5, 3]
    rows = [torch.randn(n, INPUT) for n in lengths]
    cells = theirs.num_layers * (2 if theirs.bidirectional else 1)
    sizes = (theirs.proj_size or H, H)
    hx = tuple(torch.randn(cells, 4, size, requires_grad=True) for size in sizes) if with_state else None
    d = [torch.randn(12, sizes[0] * (2 if theirs.bidirectional else 1)), *(torch.randn(cells, 4, s) for s in sizes)]
    results = []
    for module in (mine, theirs):
        packed = pack_sequence(rows, enforce_sorted=sorted_rows)
        data = packed.data.detach().requires_grad_()
        packed = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        results.append([*run(module, packed, hx, d), data.grad])
    assert_close(*results)


def test_output_of_a_packed_sequence_is_packed_as_it_was():
    _, mine = pair(INPUT, H)
    packed = pack_sequence([torch.randn(n, INPUT) for n in (1, 4, 2)], enforce_sorted=False)
    output, _ = mine(packed)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        torch.testing.assert_close(getattr(output, name), getattr(packed, name))


def test_dropout_between_layers_draws_from_torchs_generator():
    _, mine = pair(INPUT, H, num_layers=3, dropout=0.5)
    x = torch.randn(T, B, INPUT)
    outputs = []
    for _ in range(2):
        torch.manual_seed(7)
        outputs.append(mine(x)[0])
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    assert not torch.equal(mine(x)[0], outputs[0])
    assert torch.equal(mine.eval()(x)[0], mine(x)[0])


def test_dropout_of_one_drops_all_that_goes_up():
    theirs, mine = pair(INPUT, H, num_layers=2, dropout=1.0)
    x = torch.randn(T, B, INPUT)
    assert_close(mine(x), theirs(x))


# --- ours alone -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "both ways"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_lengths_and_resets_are_the_references(rng, reverse, batch_first):
    _, mine = pair(INPUT, H, bidirectional=reverse, batch_first=batch_first, dtype=torch.float64)
    x, lengths, resets = rng.standard_normal((T, B, INPUT)), np.array([3, 0, 5, 1]), rng.random((T, B)) < 0.3
    order = (1, 0, 2) if batch_first else (0, 1, 2)
    h, (h_n, c_n), cells = mine(
        torch.from_numpy(x.transpose(order)), lengths=torch.from_numpy(lengths), return_cells=True,
        resets=torch.from_numpy(resets.T if batch_first else resets),
    )
    for direction in range(1 + reverse):
        suffix = "_reverse" * direction
        w_ih, w_hh, b_ih, b_hh = (
            getattr(mine, f"{name}_l0{suffix}").detach().numpy()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        expected = reference.lstm(
            x, np.concatenate([w_ih.T, w_hh.T]), b_ih + b_hh, lengths=lengths, resets=resets, reverse=direction == 1
        )
        own = slice(direction * H, direction * H + H)
        found = [h.detach().numpy().transpose(order)[..., own], cells.detach().numpy().transpose(order)[..., own]]
        np.testing.assert_allclose(found, [expected.h, expected.cells], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(h_n[direction].detach().numpy(), expected.h_n, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(c_n[direction].detach().numpy(), expected.c_n, rtol=1e-10, atol=1e-12)


def test_lengths_give_what_packing_gives():
    theirs, mine = pair(INPUT, H, num_layers=2, bidirectional=True)
    x, lengths = torch.randn(T, B, INPUT), torch.tensor([3, 1, 5, 2])
    packed, (h_n, c_n) = theirs(pack_padded_sequence(x, lengths, enforce_sorted=False))
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(packed)
    assert_close(mine(x, lengths=lengths), (padded, (h_n, c_n)))


def test_gradients_come_back_through_the_cells():
    _, mine = pair(INPUT, H, dtype=torch.float64)
    x = torch.randn(T, 2, INPUT, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mine(x, return_cells=True)[2], x)


def test_cells_without_gradients_are_those_with():
    _, mine = pair(INPUT, H, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, INPUT)
    with_gradients = mine(x, return_cells=True)[2]
    with torch.no_grad():
        assert_close(mine(x, return_cells=True)[2], with_gradients.detach())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lengths": torch.tensor([1, 2, 3])}, ValueError, r"lengths must have shape \(4,\) = \(batch,\), got \(3,\)"),
        ({"lengths": torch.tensor([1, 2, 3, 6])}, ValueError, "lengths must be between 0 and 5 = time_steps, got 6"),
        ({"lengths": torch.ones(4)}, TypeError, "lengths must be integers, got torch.float32"),
        ({"resets": torch.zeros(T, B)}, TypeError, "resets must be bool, got torch.float32"),
        ({"resets": torch.zeros(B, T, dtype=torch.bool)}, ValueError, r"resets must have shape \(5, 4\)"),
        ({"matmul_precision": "low"}, ValueError, "matmul_precision must be one of"),
    ],
)
def test_wrong_arguments_of_ours_are_named(options, error, message):
    _, mine = pair(INPUT, H)
    with pytest.raises(error, match=message):
        mine(torch.randn(T, B, INPUT), **options)


def test_lengths_beside_a_packed_sequence_are_refused():
    _, mine = pair(INPUT, H)
    with pytest.raises(ValueError, match="must not be given with a PackedSequence"):
        mine(pack_sequence([torch.randn(2, INPUT)]), lengths=torch.tensor([1]))


# --- the cell ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "one row"])
@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no state"])
def test_cell_gives_what_torchs_cell_gives(dtype, bias, batched, with_state):
    theirs = nn.LSTMCell(INPUT, H, bias=bias, dtype=dtype)
    mine = ours.LSTMCell(INPUT, H, bias=bias, dtype=dtype)
    mine.load_state_dict(theirs.state_dict())
    rows = (B,) if batched else ()
    x = torch.randn(*rows, INPUT, dtype=dtype, requires_grad=True)
    hx = tuple(torch.randn(*rows, H, dtype=dtype, requires_grad=True) for _ in range(2)) if with_state else None
    results = []
    for module in (mine, theirs):
        leaves = [x, *(hx or ()), *module.parameters()]
        h, c = module(x, hx)
        results.append([h, c, *torch.autograd.grad(h.sin().sum() + c.cos().sum(), leaves)])
        with torch.no_grad():
            results[-1] += [*module(x, hx), *module(x, hx)]  # the second time weights are packed already
    assert_close(*results, dtype)


# --- weights that stay packed -----------------------------------------------------------------------------------------

WRITES = {
    "in place": lambda m: m.weight_hh_l0.mul_(2.0),
    "through a row": lambda m: m.weight_ih_l0[1].add_(1.0),
    "bias": lambda m: m.bias_hh_l0.add_(1.0),
    "load_state_dict": lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
    "a new parameter": lambda m: setattr(m, "weight_hh_l0", nn.Parameter(torch.randn_like(m.weight_hh_l0))),
    "new data": lambda m: setattr(m.weight_hh_l0, "data", torch.randn_like(m.weight_hh_l0)),
    "an optimizer": lambda m: _step(m),
    "double and back": lambda m: m.double().float().weight_hh_l0.add_(0),
    "data in place": lambda m: m.weight_hh_l0.data.mul_(2.0),
    "NumPy": lambda m: m.weight_hh_l0.detach().numpy().__setitem__(2, 0.5),
    "an initializer": lambda m: nn.init.orthogonal_(m.weight_hh_l0.data),
    "all at once": lambda m: torch._foreach_mul_([p.data for p in m.parameters()], 1.5),
    "memory that is shared": lambda m: m.share_memory().weight_hh_l0.data.untyped_storage().fill_(0),
    "another storage": lambda m: m.weight_hh_l0.data.set_(torch.randn(4 * H, H)),
    "turned around": lambda m: setattr(m.weight_hh_l0, "data", m.weight_hh_l0.data[:H].t().repeat(4, 1)),
}


def _step(module: Any) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("write", WRITES)
def test_written_weights_are_the_ones_computed_with(write):
    theirs, mine = pair(INPUT, H)
    x = torch.randn(T, B, INPUT)
    with torch.no_grad():
        for _ in range(3):
            mine(x)
        WRITES[write](mine)
        theirs.load_state_dict(mine.state_dict())
        for _ in range(2):
            assert_close(mine(x), theirs(x))


def test_old_word_for_written_weights_does_nothing_and_says_so():
    with pytest.warns(DeprecationWarning, match="not needed any more"):
        ours.weights_changed(ours.LSTM(INPUT, H))


def test_training_in_between_is_noticed_though_it_writes_through_data():
    theirs, mine = pair(INPUT, H)
    x = torch.randn(T, B, INPUT)
    for _ in range(3):
        with torch.no_grad():
            theirs.load_state_dict(mine.state_dict())
            assert_close(mine(x), theirs(x))
        mine(x)[0].sum().backward()
        for parameter in mine.parameters():
            parameter.data -= 0.1 * parameter.grad


def test_inference_mode_gives_the_same():
    theirs, mine = pair(INPUT, H)
    x = torch.randn(T, B, INPUT)
    with torch.inference_mode():
        for _ in range(3):
            assert_close(mine(x), theirs(x))
        born_there = ours.LSTM(INPUT, H)
        born_there(x)
        born_there.weight_hh_l0.mul_(2.0)
        theirs.load_state_dict(born_there.state_dict())
        assert_close(born_there(x), theirs(x))


def test_output_written_before_backward_is_an_error_as_in_torch():
    _, mine = pair(INPUT, H)
    output, _ = mine(torch.randn(T, B, INPUT))
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_calls_may_be_differentiated_in_any_order_and_twice():
    theirs, mine = pair(INPUT, H)
    xs = [torch.randn(T, B, INPUT) for _ in range(3)]
    results = []
    for module in (mine, theirs):
        losses = [module(x)[0].sin().sum() for x in xs]
        grads = [torch.autograd.grad(losses[k], module.weight_hh_l0, retain_graph=True)[0] for k in (1, 0, 2, 1)]
        results.append(grads)
    assert_close(*results)


# --- lower precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_modules_compute_in_float32_and_return_what_torch_returns(dtype):
    theirs, mine = pair(INPUT, H, num_layers=2)
    wide = copy.deepcopy(mine).to(dtype).float()
    theirs, mine = theirs.to(dtype), mine.to(dtype)
    x = torch.randn(T, B, INPUT).to(dtype)
    h, (h_n, c_n) = mine(x)
    assert [t.dtype for t in (h, h_n, c_n)] == [t.dtype for t in (theirs(x)[0], *theirs(x)[1])]
    torch.testing.assert_close(h, wide(x.float())[0].to(dtype), rtol=0, atol=0)
    h.sum().backward()
    assert mine.weight_hh_l0.grad.dtype is dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_never_an_error_and_returns_its_dtype(dtype):
    _, mine = pair(INPUT, H)
    x = torch.randn(T, B, INPUT)
    expected = mine(x)[0]
    with torch.autocast("cpu", dtype):
        h, (h_n, c_n) = mine(x)
    assert {t.dtype for t in (h, h_n, c_n)} == {dtype}
    torch.testing.assert_close(h.float(), expected, rtol=2**-7, atol=2**-8)
    h.float().sum().backward()
    assert mine.weight_hh_l0.grad.dtype is torch.float32


def _packed(x: Any) -> PackedSequence:
    with torch.autocast("cpu", enabled=False):  # under it torch packs no third dtype
        return pack_padded_sequence(x, [5, 4, 3, 2])


AUTOCAST_CALLS = {
    "packed": ({}, lambda m, x, hx: m(_packed(x), hx)),
    "projection": ({"proj_size": 2}, lambda m, x, hx: m(x, hx)),
    "two directions": ({"bidirectional": True}, lambda m, x, hx: m(x, hx)),
    "cell": ({}, lambda m, x, hx: m(x[0], None if hx is None else (hx[0][0], hx[1][0]))),
}


def _dtypes(result: Any) -> list[Any]:
    flat, _ = torch.utils._pytree.tree_flatten(result)
    return [(t.data if isinstance(t, PackedSequence) else t).dtype for t in flat if t is not None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("state", [None, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("call", AUTOCAST_CALLS)
def test_autocast_returns_the_dtypes_that_torch_returns(call, given, state, dtype):
    options, run = AUTOCAST_CALLS[call]
    theirs, mine = (nn.LSTMCell(INPUT, H), ours.LSTMCell(INPUT, H)) if call == "cell" else pair(INPUT, H, **options)
    mine.load_state_dict(theirs.state_dict())
    x, sizes = torch.randn(T, B, INPUT).to(given), (options.get("proj_size", H), H)
    hx = None if state is None else tuple(torch.randn(1 + (call == "two directions"), B, n).to(state) for n in sizes)
    with torch.autocast("cpu", dtype):
        found = run(mine, x, hx)
        try:
            wanted = run(theirs, x, hx)
        except RuntimeError as error:  # oneDNN has no float16 on most CPUs, and no bfloat16 on those without AVX-512
            assert dtype is torch.float16 or "avx512" not in lf.available_isas(), error
            return
    assert _dtypes(found) == _dtypes(wanted)
    torch.testing.assert_close(found[1], wanted[1], rtol=2**-6, atol=2**-7)


def test_state_of_a_cell_is_carried_out_of_autocast():
    cell, x = ours.LSTMCell(INPUT, H), torch.randn(B, INPUT)
    with torch.autocast("cpu", torch.bfloat16):
        state = cell(x)
    assert cell(x, state)[0].dtype is torch.float32


# --- errors are torch's -----------------------------------------------------------------------------------------------

WRONG_CALLS = {
    "four axes": lambda m: m(torch.randn(2, T, B, INPUT)),
    "input size": lambda m: m(torch.randn(T, B, INPUT + 1)),
    "no steps": lambda m: m(torch.randn(0, B, INPUT)),
    "dtype": lambda m: m(torch.randn(T, B, INPUT, dtype=torch.float64)),
    "integers": lambda m: m(torch.ones(T, B, INPUT, dtype=torch.int64)),
    "state of another batch": lambda m: m(torch.randn(T, B, INPUT), (torch.zeros(1, 2, H), torch.zeros(1, 2, H))),
    "state of another size": lambda m: m(torch.randn(T, B, INPUT), (torch.zeros(1, B, 2), torch.zeros(1, B, H))),
    "cell of another size": lambda m: m(torch.randn(T, B, INPUT), (torch.zeros(1, B, H), torch.zeros(1, B, 2))),
    "state of two axes": lambda m: m(torch.randn(T, B, INPUT), (torch.zeros(B, H), torch.zeros(B, H))),
    "state of three axes": lambda m: m(torch.randn(T, INPUT), (torch.zeros(1, 1, H), torch.zeros(1, 1, H))),
    "state of another dtype": lambda m: m(
        torch.randn(T, B, INPUT), (torch.zeros(1, B, H).double(), torch.zeros(1, B, H).double())
    ),
    "state elsewhere": lambda m: m(torch.randn(T, B, INPUT), (torch.zeros(1, B, H, device="meta"),) * 2),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
def test_wrong_call_raises_what_torch_raises(call, gradients):
    theirs, mine = pair(INPUT, H)
    with torch.set_grad_enabled(gradients):
        mine(torch.randn(T, B, INPUT))
        with pytest.raises(Exception) as wanted:  # noqa: PT011  (whatever torch raises)
            WRONG_CALLS[call](theirs)
        with pytest.raises(type(wanted.value)) as found:
            WRONG_CALLS[call](mine)
    assert str(found.value) == str(wanted.value)


def test_packed_input_of_another_size_is_an_error_which_torch_lacks():
    _, mine = pair(INPUT, H)
    with pytest.raises(RuntimeError, match="Expected 3, got 4"):
        mine(pack_sequence([torch.randn(2, INPUT + 1)]))


class Tagged(torch.Tensor):
    """A subclass, which torch's own forward serves."""


@pytest.mark.parametrize("subclass", [False, True])
@pytest.mark.parametrize("shape", [(2, 2, H), (1, 3, H), (1, 2, H + 1), (1, 2)], ids=str)
def test_states_of_a_packed_sequence_must_fit_because_torch_reads_beyond_them(shape, subclass):
    _, mine = pair(INPUT, H)
    rows = [torch.randn(n, INPUT) for n in (3, 2)]
    packed = pack_sequence([row.as_subclass(Tagged) for row in rows] if subclass else rows)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 2, 6\), got"):
        mine(packed, (torch.zeros(shape), torch.zeros(1, 2, H)))


WRONG_STEPS = {
    "three axes": lambda m: m(torch.randn(1, B, INPUT)),
    "input size": lambda m: m(torch.randn(B, INPUT + 1)),
    "dtype": lambda m: m(torch.randn(B, INPUT, dtype=torch.float64)),
    "state of another size": lambda m: m(torch.randn(B, INPUT), (torch.zeros(B, 2), torch.zeros(B, 2))),
}


@pytest.mark.parametrize("call", WRONG_STEPS)
def test_wrong_step_raises_what_torch_raises(call):
    theirs, mine = nn.LSTMCell(INPUT, H), ours.LSTMCell(INPUT, H)
    with pytest.raises(Exception) as wanted:  # noqa: PT011
        WRONG_STEPS[call](theirs)
    with pytest.raises(type(wanted.value)) as found:
        WRONG_STEPS[call](mine)
    assert str(found.value) == str(wanted.value)


STATES = {
    "no pair": lambda: torch.zeros(2, B, H),
    "one tensor": lambda: (torch.zeros(B, H),),
    "three tensors": lambda: (torch.zeros(B, H),) * 3,
    "None beside a tensor": lambda: (None, torch.zeros(B, H)),
    "numbers": lambda: ([0.0], [0.0]),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("module", [ours.LSTM(INPUT, H), ours.LSTMCell(INPUT, H)], ids=["LSTM", "LSTMCell"])
def test_what_is_no_pair_of_states_is_refused_in_a_sentence(module, state):
    x = torch.randn(T, B, INPUT) if isinstance(module, nn.LSTM) else torch.randn(B, INPUT)
    with pytest.raises(TypeError, match=r"hx must be a pair of tensors \(h_0, c_0\), got "):
        module(x, STATES[state]())


@pytest.mark.parametrize("wrong", ["h_0", "c_0"])
@pytest.mark.parametrize(
    ("rows", "state_rows"), [((), (3,)), ((3,), ()), ((2,), (3,)), ((1,), (3,)), ((3,), (1,)), ((), (1,))], ids=str
)
def test_states_of_a_cell_must_have_the_rows_of_the_input_because_torchs_cell_dies_of_others(rows, state_rows, wrong):
    right, other = torch.randn(*rows, H), torch.randn(*state_rows, H)
    hx = (other, right) if wrong == "h_0" else (right, other)
    with pytest.raises(RuntimeError, match=f"{wrong} must have shape"):
        ours.LSTMCell(INPUT, H)(torch.randn(*rows, INPUT), hx)


# --- which way --------------------------------------------------------------------------------------------------------


def test_explain_says_which_way_and_why():
    theirs, mine = pair(INPUT, H)
    x = torch.randn(T, B, INPUT)
    assert "lstmfast's kernels" in ours.explain(mine, x)
    assert "in float32, rounded" in ours.explain(mine.bfloat16(), x.bfloat16())
    assert "there is a tensor on meta" in ours.explain(mine, x.to("meta"))
    assert "convert" in ours.explain(theirs, x)
    assert "what is wrong" in ours.explain(mine.float(), torch.randn(T, B, INPUT + 1))
    assert "step by step" in ours.explain(mine, x, return_cells=True)


def test_other_devices_go_torchs_way_and_strict_makes_that_an_error():
    _, mine = pair(INPUT, H)
    mine, x = mine.to("meta"), torch.randn(T, B, INPUT, device="meta")
    assert mine(x)[0].shape == (T, B, H)
    with pytest.raises(ValueError, match="lengths, resets and return_cells need lstmfast's kernels"):
        mine(x, return_cells=True)
    mine.strict = True
    with pytest.raises(RuntimeError, match="strict LSTM: .* meta"):
        mine(x)


def test_explain_of_another_module_is_refused():
    with pytest.raises(TypeError, match="module must be an LSTM or LSTMCell, got Linear"):
        ours.explain(nn.Linear(1, 1), torch.zeros(1))


# --- torch's own samples ----------------------------------------------------------------------------------------------


def test_torchs_own_sample_inputs_pass_forward_and_backward():
    pytest.importorskip("expecttest", reason="torch's test internals need expecttest: pip install expecttest")
    common_modules = pytest.importorskip("torch.testing._internal.common_modules")
    count = 0
    for info in common_modules.module_db:
        if info.module_cls not in (nn.LSTM, nn.LSTMCell):
            continue
        mine_cls = ours.LSTM if info.module_cls is nn.LSTM else ours.LSTMCell
        for training in (True, False):
            for sample in info.module_inputs_func(info, "cpu", torch.float32, True, training):
                theirs = info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
                mine = mine_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
                mine.load_state_dict(theirs.state_dict())
                results = []
                for module in (mine.train(training), theirs.train(training)):
                    out = module(*sample.forward_input.args, **sample.forward_input.kwargs)
                    flat, _ = torch.utils._pytree.tree_flatten(out)
                    flat = [t.data if isinstance(t, PackedSequence) else t for t in flat]
                    loss = sum(t.sin().sum() for t in flat if isinstance(t, torch.Tensor) and t.is_floating_point())
                    results.append([*flat, *torch.autograd.grad(loss, list(module.parameters()))])
                assert_close(*results)
                count += 1
    assert count > 10


# --- stacked layers, by the short way ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("with_states", [False, True])
def test_a_stack_of_plain_layers_takes_the_short_way(monkeypatch, bias, batch_first, with_states):
    theirs, mine = pair(INPUT, H, num_layers=3, bias=bias, batch_first=batch_first)
    x = torch.randn(*((B, T) if batch_first else (T, B)), INPUT, requires_grad=True)
    hx = tuple(torch.randn(3, B, H, requires_grad=True) for _ in range(2)) if with_states else None
    upstream = [torch.randn(*x.shape[:2], H), torch.randn(3, B, H), torch.randn(3, B, H)]
    monkeypatch.setattr(ours.serving, "_run_stack", None)
    for _ in range(2):  # the second call finds the weights packed
        assert_close(run(mine, x, hx, upstream), run(theirs, x, hx, upstream))
        with torch.no_grad():
            assert_close(mine(x, hx), theirs(x, hx))


def test_a_stack_sees_weights_that_were_written_or_replaced_in_any_layer():
    theirs, mine = pair(INPUT, H, num_layers=2)
    x = torch.randn(1, B, INPUT)
    with torch.no_grad():
        mine(x)
        for module in (theirs, mine):
            module.weight_hh_l1.mul_(2)
            module.weight_ih_l0 = nn.Parameter(torch.ones(4 * H, INPUT))
        assert_close(mine(x, (torch.ones(2, B, H),) * 2), theirs(x, (torch.ones(2, B, H),) * 2))


def test_a_frozen_stack_keeps_the_weights_of_every_layer():
    _, mine = pair(INPUT, H, num_layers=2)
    x = torch.randn(1, B, INPUT)
    with torch.no_grad():
        before = mine(x)
        ours.freeze(mine)
        mine.weight_hh_l1.mul_(2)
        mine.weight_ih_l0.mul_(2)
        assert_close(mine(x), before)
        ours.unfreeze(mine)
        assert not torch.allclose(mine(x)[0], before[0])


def test_computed_weights_of_a_stack_are_computed_once_a_call():
    _, mine = pair(INPUT, H, num_layers=2)
    torch.nn.utils.parametrizations.weight_norm(mine, "weight_hh_l1")
    x = torch.randn(T, B, INPUT, requires_grad=True)
    checkpoint(lambda x: mine(x)[0], x, use_reentrant=False).sum().backward()
    assert x.grad is not None
