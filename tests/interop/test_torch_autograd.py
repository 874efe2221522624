"""What autograd promises holds for the drop-in: checks, hooks, checkpoints and batches find all that backward reads."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import lstmfast.torch as ours  # noqa: E402

T, B, INPUT, H = 5, 4, 3, 6
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 2e-6}, torch.float64: {"rtol": 1e-10, "atol": 1e-12}}
pytestmark = pytest.mark.filterwarnings("ignore")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
OPTIONS = [{}, {"bidirectional": True}, {"num_layers": 2, "batch_first": True}, {"proj_size": 2}, {"bias": False}]


def pair(dtype: Any = torch.float32, cell: bool = False, **options: Any) -> tuple[Any, Any]:
    """torch's module, and a copy that lstmfast serves."""
    torch.manual_seed(0)
    theirs = (nn.LSTMCell if cell else nn.LSTM)(INPUT, H, dtype=dtype, **options)
    mine = copy.deepcopy(theirs)
    ours.convert(mine)
    return theirs, mine


def gradients(module: Any, loss: Any, *inputs: Any) -> list[Any]:
    """Of all parameters and inputs."""
    return list(torch.autograd.grad(loss, [*module.parameters(), *inputs]))


# --- writes between forward and backward ------------------------------------------------------------------------------

WRITES = {
    "output": lambda x, hx, out, h_n, c_n: out.mul_(0.5),
    "output by relu": lambda x, hx, out, h_n, c_n: out.relu_(),
    "row of the output": lambda x, hx, out, h_n, c_n: out[0].add_(1.0),
    "h_n": lambda x, hx, out, h_n, c_n: h_n.mul_(0.5),
    "c_n": lambda x, hx, out, h_n, c_n: c_n.mul_(0.5),
    "input": lambda x, hx, out, h_n, c_n: x.data.add_(0) if x.is_leaf and x.requires_grad else x.mul_(0.5),
    "h_0": lambda x, hx, out, h_n, c_n: hx[0].mul_(0.5),
    "c_0": lambda x, hx, out, h_n, c_n: hx[1].mul_(0.5),
}


def after_write(module: Any, write: str, is_cell: bool) -> Any:
    """Gradients after a write, or the error."""
    torch.manual_seed(1)
    dtype, rows = module.weight_hh.dtype if is_cell else module.weight_hh_l0.dtype, (B,) if is_cell else (T, B)
    x = torch.randn(*rows, INPUT, dtype=dtype)
    layers = 1 if is_cell else module.num_layers * (2 if module.bidirectional else 1)
    lead, size = () if is_cell else (layers,), H if is_cell else module.proj_size or H
    rows = (B,) if is_cell or not module.batch_first else (T,)
    hx = torch.randn(*lead, *rows, size, dtype=dtype), torch.randn(*lead, *rows, H, dtype=dtype)
    if is_cell:
        h_n, c_n = module(x, hx)
        out = h_n
    else:
        out, (h_n, c_n) = module(x, hx)
    try:
        WRITES[write](x, hx, out, h_n, c_n)
        return gradients(module, out.square().sum() + (h_n * c_n.sum()).sum())
    except RuntimeError as error:
        return str(error)[:60]


@dtypes
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("write", WRITES)
def test_a_write_before_backward_is_allowed_or_an_error_as_in_torch(write, options, dtype):
    theirs, mine = (after_write(module, write, False) for module in pair(dtype, **options))
    if isinstance(theirs, str):
        assert isinstance(mine, str) or write not in ("output", "row of the output", "output by relu")
        if isinstance(mine, str):
            assert mine == theirs
    else:
        torch.testing.assert_close(mine, theirs, **CLOSE[dtype])


@dtypes
@pytest.mark.parametrize("write", [name for name in WRITES if name != "row of the output"])
def test_a_write_around_a_cell_is_allowed_or_an_error_as_in_torch(write, dtype):
    theirs, mine = (after_write(module, write, True) for module in pair(dtype, cell=True))
    if isinstance(theirs, str):
        assert mine == theirs
    else:
        torch.testing.assert_close(mine, theirs, **CLOSE[dtype])


def test_output_of_a_packed_sequence_may_be_written():
    results = []
    for module in pair():
        packed, _ = module(pack_sequence([torch.ones(n, INPUT) for n in (3, 5, 2)], enforce_sorted=False))
        packed.data.mul_(0.5)
        results.append(gradients(module, packed.data.square().sum()))
    torch.testing.assert_close(*results, **CLOSE[torch.float32])


# --- what is saved ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_backward_uses_what_hooks_give_back(options):
    results = []
    for module in pair(torch.float64, **options):
        x = torch.linspace(-1, 1, T * B * INPUT, dtype=torch.float64).view(T, B, INPUT).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone().numpy(force=True), torch.from_numpy):
            output, (h_n, c_n) = module(x)
        results.append(gradients(module, output.sin().sum() + h_n.sum() + c_n.cos().sum(), x))
    torch.testing.assert_close(*results, **CLOSE[torch.float64])


def test_saved_values_can_be_kept_on_the_cpu_by_torchs_own_hook():
    results = []
    for module in pair(num_layers=2):
        with torch.autograd.graph.save_on_cpu():
            output, _ = module(torch.ones(T, B, INPUT))
        results.append(gradients(module, output.sin().sum()))
    torch.testing.assert_close(*results, **CLOSE[torch.float32])


def test_nothing_that_backward_needs_is_kept_beside_what_autograd_saves():
    _, mine = pair()
    saved: list[Any] = []

    def replaced(tensor: Any) -> Any:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(replaced, torch.zeros_like):
        output, _ = mine(torch.ones(T, B, INPUT))
    found = gradients(mine, output.sum())
    assert len(saved) == 7  # x, two weights, two biases, the output; gates and cells
    assert not any(d.any() for d in found)  # with zeros in the place of all of them


@dtypes
def test_checkpointed_blocks_that_write_have_the_gradients_of_the_others(dtype):
    def block(module: Any, x: Any) -> Any:
        output, _ = module(x)
        output.mul_(0.5)
        return output

    _, mine = pair(dtype, bidirectional=True)
    x = torch.linspace(-1, 1, T * B * INPUT, dtype=dtype).view(T, B, INPUT)
    wanted = gradients(mine, (mine(x)[0] * 0.5).square().sum())
    found = gradients(mine, checkpoint(block, mine, x, use_reentrant=False).square().sum())
    torch.testing.assert_close(found, wanted, **CLOSE[dtype])


def test_checkpoints_keep_the_input_and_nothing_else():
    _, mine = pair()
    kept = []

    def pack(tensor: Any) -> Any:
        kept.append(tensor.numel())
        return tensor

    x = torch.randn(T, B, INPUT, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        checkpoint(lambda x: mine(x)[0], x, use_reentrant=False)
    assert sum(kept) <= x.numel()


def test_backward_a_second_time_is_torchs_error():
    _, mine = pair()
    loss = mine(torch.ones(T, B, INPUT))[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


@pytest.mark.parametrize("cell", [False, True], ids=["LSTM", "LSTMCell"])
@pytest.mark.parametrize("moved", ["parameters", "arguments"])
def test_gradients_are_right_where_tensors_were_moved_to_shared_memory_before(moved, cell):
    module = (ours.LSTMCell if cell else ours.LSTM)(INPUT, H)
    shape = (B,) if cell else (1, B)
    arguments = [torch.randn(*([] if cell else [T]), B, INPUT, requires_grad=True)]
    arguments += [torch.randn(*shape, H, requires_grad=True) for _ in range(2)]
    leaves = [*arguments, *module.parameters()]

    def call() -> Any:
        return module(arguments[0], tuple(arguments[1:]))[0].square().sum()

    expected = torch.autograd.grad(call(), leaves)
    loss = call()
    for tensor in module.parameters() if moved == "parameters" else arguments:
        tensor.share_memory_()
    # As others would with memory that is free again.
    others = [torch.full(leaf.shape, 7.0) for leaf in leaves for _ in range(8)]
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), expected, **CLOSE[torch.float32])
    assert others


@pytest.mark.parametrize("cell", [False, True], ids=["LSTM", "LSTMCell"])
def test_gradients_of_states_are_right_where_the_module_changes_its_dtype_before(cell):
    module = (ours.LSTMCell if cell else ours.LSTM)(INPUT, H).requires_grad_(False)
    x = torch.ones(*([] if cell else [T]), B, INPUT)
    state = torch.ones(*([] if cell else [1]), B, H, requires_grad=True)
    expected = torch.autograd.grad(module(x, (state, state))[0].sum(), state)
    loss = module(x, (state, state))[0].sum()
    module.double()
    torch.testing.assert_close(torch.autograd.grad(loss, state), expected)


@pytest.mark.parametrize("around", ["checkpoint", "hooks"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_batched_gradients_after_a_write_are_of_the_weights_that_hooks_give_back(around, options):
    def batched(module: Any, write: Any) -> Any:
        torch.manual_seed(0)
        x = torch.randn(T, B, INPUT, requires_grad=True)
        if around == "checkpoint":  # runs again, with the weights of now
            output = checkpoint(lambda x: module(x)[0], x, use_reentrant=False)
        else:
            with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t):
                output = module(x)[0]
        upstream = torch.randn(2, *output.shape)
        write(module)
        leaves = [x, *module.parameters()]
        return torch.autograd.grad(output, leaves, upstream, is_grads_batched=True)

    def double(module: Any) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(2)

    _, mine = pair(**options)
    other = copy.deepcopy(mine)
    if around == "checkpoint":
        double(other)
    expected = batched(other, lambda module: None)
    torch.testing.assert_close(batched(mine, double), expected, **CLOSE[torch.float32])


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [False, True], ids=["LSTM", "LSTMCell"])
def test_no_two_gradients_share_memory(cell):
    _, mine = pair(cell=cell)
    x = torch.randn(B, INPUT, requires_grad=True) if cell else torch.randn(T, B, INPUT, requires_grad=True)
    found = gradients(mine, mine(x)[0].sum(), x)
    assert len({d.untyped_storage().data_ptr() for d in found}) == len(found)


def test_gradients_clipped_in_place_have_torchs_norm():
    for module in pair():
        module(torch.ones(T, B, INPUT))[0].sum().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        norm = torch.stack([p.grad.norm() for p in module.parameters()]).norm()
        torch.testing.assert_close(norm, torch.tensor(1.0))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_batched_gradients_are_those_of_each(options):
    results = []
    for module in pair(torch.float64, **options):
        x = torch.linspace(-1, 1, T * B * INPUT, dtype=torch.float64).view(T, B, INPUT).requires_grad_()
        output, (h_n, c_n) = module(x)
        outputs = output, h_n, c_n
        torch.manual_seed(2)
        upstream = [torch.randn(3, *o.shape, dtype=o.dtype) for o in outputs]
        wrt = [x, *module.parameters()]
        results.append(torch.autograd.grad(outputs, wrt, upstream, is_grads_batched=True, retain_graph=True))
        one = torch.autograd.grad(outputs, wrt, [u[1] for u in upstream])
        torch.testing.assert_close([d[1] for d in results[-1]], list(one), **CLOSE[torch.float64])
    torch.testing.assert_close(*results, **CLOSE[torch.float64])


def test_jacobians_are_torchs_and_pass_in_batches():
    x = torch.linspace(-1, 1, 2 * B * INPUT, dtype=torch.float64).view(2, B, INPUT)
    found = [torch.autograd.functional.jacobian(lambda x, m=m: m(x)[0], x, vectorize=True) for m in pair(x.dtype)]
    torch.testing.assert_close(*found, **CLOSE[x.dtype])


@pytest.mark.parametrize("cell", [False, True], ids=["LSTM", "LSTMCell"])
def test_gradcheck_passes_in_its_batched_mode(cell):
    _, mine = pair(torch.float64, cell=cell)
    x = torch.randn(*((2,) if cell else (3, 2)), INPUT, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mine(x)[0], x, check_batched_grad=True)


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_dropout_between_layers_draws_torchs_masks(packed, bidirectional):
    x = [torch.randn(n, INPUT) for n in ((3, 5, 2, 4) if packed else (5, 5, 5, 5))]
    outputs = []
    for module in pair(num_layers=3, dropout=0.5, bidirectional=bidirectional):
        torch.manual_seed(3)
        output, _ = module(pack_sequence(x, enforce_sorted=False) if packed else torch.stack(x, 1))
        outputs.append((output.data if packed else output, torch.get_rng_state()))
    torch.testing.assert_close(*outputs, **CLOSE[torch.float32])


@pytest.mark.parametrize("steps", [1, 2])
def test_the_last_c_has_a_gradient_where_torchs_has(steps: int) -> None:
    theirs, mine = pair(proj_size=2)
    for module in (theirs, mine):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name == "weight_hr_l0")
    x = torch.randn(steps, B, INPUT)
    given = [[part.requires_grad for part in module(x)[1]] for module in (theirs, mine)]
    assert given[1] == given[0]
