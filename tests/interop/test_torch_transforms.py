"""The drop-in under torch.compile, torch.export, torch.func, vmap, higher and forward derivatives; its operators."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import lstmfast.torch as ours  # noqa: E402
from lstmfast.torch import operators  # noqa: E402

T, B, INPUT, H, P = 4, 3, 2, 5, 3
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
OPTIONS = [{}, {"bidirectional": True, "num_layers": 2, "bias": False}, {"proj_size": P}]
options = pytest.mark.parametrize("options", OPTIONS, ids=["plain", "both ways, stacked, no bias", "projection"])
pytestmark = pytest.mark.filterwarnings("ignore")


def double(*shape: int, **how: Any) -> Any:
    return torch.randn(*shape, dtype=torch.float64, **how)


def pair(**options: Any) -> tuple[nn.LSTM, ours.LSTM]:
    theirs = nn.LSTM(INPUT, H, dtype=torch.float64, **options)
    mine = ours.LSTM(INPUT, H, dtype=torch.float64, **options)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def arguments(*, bias: bool = True, projection: bool = False, lengths: bool = False, resets: bool = False) -> list[Any]:
    """Arguments of the operator, all of whose tensors may have gradients."""
    size = P if projection else H
    tensors = [
        double(T, B, INPUT), double(B, size), double(B, H), double(4 * H, INPUT), double(4 * H, size),
        double(4 * H) if bias else None, double(4 * H) if bias else None, double(size, H) if projection else None,
    ]
    return [
        *(None if t is None else t.requires_grad_() for t in tensors), torch.tensor([4, 0, 2]) if lengths else None,
        (torch.rand(T, B) < 0.3) if resets else None, resets, "highest",
    ]


VARIANTS: list[dict[str, bool]] = [
    {}, {"bias": False, "lengths": True}, {"projection": True, "resets": True}, {"lengths": True, "resets": True},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: " ".join(v) or "plain")


# --- operators --------------------------------------------------------------------------------------------------------


@variants
def test_opcheck_passes_for_the_layer(variant):
    torch.library.opcheck(operators.layer, tuple(arguments(**variant)))


@variants
def test_opcheck_passes_for_its_backward(variant):
    given = arguments(**variant)
    upstream = [double(T, B, given[1].shape[1]), None, double(B, H)]
    torch.library.opcheck(operators.layer_backward, (*given, *upstream))


@variants
def test_gradients_of_the_operator_are_slopes(variant):
    given = arguments(**variant)
    tensors = [t for t in given[:8] if t is not None]

    def call(*tensors: Any) -> Any:
        rest = iter(tensors)
        return operators.layer(*(None if t is None else next(rest) for t in given[:8]), *given[8:])

    assert torch.autograd.gradcheck(call, tensors)


def test_gradients_of_gradients_of_the_operator_are_slopes():
    given = arguments(projection=True, lengths=True)
    tensors = [t for t in given[:8] if t is not None]
    assert torch.autograd.gradgradcheck(lambda *t: operators.layer(*t, *given[8:]), tensors)


# --- derivatives of the module ----------------------------------------------------------------------------------------


@options
def test_gradients_and_their_gradients_are_slopes(options):
    _, mine = pair(**options)
    x, parameters = double(3, 2, INPUT, requires_grad=True), list(mine.parameters())

    def call(x: Any, *_: Any) -> Any:
        h, (h_n, c_n) = mine(x)
        return h, h_n, c_n

    assert torch.autograd.gradcheck(call, (x, *parameters))
    assert torch.autograd.gradgradcheck(lambda x: call(x)[0], (x,))


def test_penalty_on_gradients_is_that_of_torch():
    results = []
    x = double(T, B, INPUT, requires_grad=True)
    for module in reversed(pair(num_layers=2)):
        (d_x,) = torch.autograd.grad(module(x)[0].sin().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(d_x.square().sum(), list(module.parameters()), allow_unused=True))
    torch.testing.assert_close(*results, **CLOSE)


def test_differentiable_gradients_of_a_parameter_that_is_not_contiguous_are_contiguous_as_torchs():
    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return operation(*args, **(kwargs or {}))

    mine = ours.LSTM(INPUT, H, dtype=torch.float64)
    mine.weight_hh_l0 = nn.Parameter(mine.weight_hh_l0.detach().t().contiguous().t())
    with Watching():
        output, _ = mine(double(T, B, INPUT), lengths=torch.tensor([4, 1, 2]))
    (found,) = torch.autograd.grad(output.sum(), mine.weight_hh_l0, create_graph=True)
    assert found.is_contiguous()


def test_forward_mode_derivatives_are_slopes():
    _, mine = pair(num_layers=2)
    x, direction = double(T, B, INPUT), double(T, B, INPUT)
    with torch.autograd.forward_ad.dual_level():
        h = mine(torch.autograd.forward_ad.make_dual(x, direction))[0]
        tangent = torch.autograd.forward_ad.unpack_dual(h).tangent
    _, by_func = torch.func.jvp(lambda x: mine(x)[0], (x,), (direction,))
    slope = (mine(x + 1e-6 * direction)[0] - mine(x - 1e-6 * direction)[0]) / 2e-6
    torch.testing.assert_close(tangent, slope, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(by_func, tangent, **CLOSE)


# --- torch.func -------------------------------------------------------------------------------------------------------


@options
def test_vmap_over_inputs_is_a_loop_over_them(options):
    _, mine = pair(**options)
    xs = double(6, T, B, INPUT)
    for in_dim in (0, 2):
        mapped = torch.vmap(lambda x: mine(x)[0], in_dims=in_dim)(xs.movedim(0, in_dim))
        torch.testing.assert_close(mapped, torch.stack([mine(x)[0] for x in xs]), **CLOSE)


def test_vmap_over_stacked_weights_is_an_ensemble():
    models = [ours.LSTM(INPUT, H, dtype=torch.float64) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = double(T, B, INPUT)

    def call(parameters: Any) -> Any:
        return torch.func.functional_call(models[0], (parameters, buffers), (x,))[0]

    torch.testing.assert_close(torch.vmap(call)(parameters), torch.stack([m(x)[0] for m in models]), **CLOSE)


def test_per_sample_gradients_are_those_of_each_sample():
    _, mine = pair(num_layers=2)
    parameters, xs = {k: v.detach() for k, v in mine.named_parameters()}, double(6, T, INPUT)

    def loss(parameters: Any, x: Any) -> Any:
        return torch.func.functional_call(mine, parameters, (x,))[0].sin().sum()

    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, xs)
    for k, x in enumerate(xs):
        expected = torch.autograd.grad(mine(x)[0].sin().sum(), list(mine.parameters()))
        for name, d in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][k], d, **CLOSE)


def test_grad_of_functional_call_is_autograds():
    _, mine = pair(bidirectional=True)
    x, parameters = double(T, B, INPUT), {k: v.detach() for k, v in mine.named_parameters()}
    found = torch.func.grad(lambda p: torch.func.functional_call(mine, p, (x,))[0].sin().sum())(parameters)
    expected = torch.autograd.grad(mine(x)[0].sin().sum(), list(mine.parameters()))
    torch.testing.assert_close(tuple(found.values()), expected, **CLOSE)


@pytest.mark.parametrize("randomness", ["error", "same", "different"])
@pytest.mark.parametrize("depth", [1, 2])
def test_dropout_of_what_vmap_does_not_map_draws_torchs_masks(randomness, depth):
    theirs, mine = pair(num_layers=3, dropout=0.5)
    x, found = double(T, B, INPUT), []
    for module in (theirs, mine):

        def call(y: Any, module: Any = module) -> Any:
            return y + module(x)[0]

        mapped = call
        for _ in range(depth):
            mapped = torch.vmap(mapped, randomness=randomness)
        torch.manual_seed(0)
        found.append((mapped(torch.zeros(*[2] * depth, dtype=torch.float64)), torch.get_rng_state()))
    torch.testing.assert_close(*found, **CLOSE)


TRANSFORMS: dict[str, Any] = {
    "vjp": lambda function, x: torch.func.vjp(function, x),
    "grad": lambda function, x: torch.func.grad(lambda x: function(x).sum())(x),
    "jvp": lambda function, x: torch.func.jvp(function, (x,), (x,)),
    "jacrev": lambda function, x: torch.func.jacrev(function)(x),
    "hessian": lambda function, x: torch.func.hessian(lambda x: function(x).sum())(x),
    "vmap": lambda function, x: torch.vmap(function)(x.unsqueeze(0)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_parameters_may_be_swapped_while_outputs_of_a_transform_are_held(transform):
    cell, kept = ours.LSTMCell(INPUT, H, dtype=torch.float64), []

    def call(x: Any) -> Any:
        kept.append(cell(x)[0])  # as the traceback of an error would
        return kept[-1]

    kept.append(transform(call, double(B, INPUT)))
    # As torch's own cell, operations of torch that give x a gradient hold weight_ih.
    for name, parameter in [pair for pair in cell.named_parameters() if pair[0] != "weight_ih"]:
        torch.utils.swap_tensors(parameter, nn.Parameter(double(*parameter.shape)))
        assert parameter is getattr(cell, name)


@pytest.mark.parametrize("kind", [ours.LSTM, ours.LSTMCell])
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_weights_written_before_gradients_of_a_transform_are_taken_do_not_change_them(kind, name):
    module, x = kind(INPUT, H, dtype=torch.float64), double(B, INPUT)
    output, back = torch.func.vjp(lambda x: module(x)[0], x)
    upstream = double(*output.shape)
    expected = back(upstream)
    _, back = torch.func.vjp(lambda x: module(x)[0], x)
    with torch.no_grad():
        getattr(module, name + ("_l0" if kind is ours.LSTM else "")).mul_(2)  # which no transform counts
    torch.testing.assert_close(back(upstream), expected)


# --- tracing ----------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """What people compile: an LSTM between two other things."""

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm, self.head = lstm, nn.Linear(2 * H, 2, dtype=torch.float64)

    def forward(self, x: Any) -> Any:
        h, (h_n, c_n) = self.lstm(x * 2)
        return self.head(h).relu() + h_n.sum() + c_n.mean()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_whole_it_gives_the_same_forward_and_backward(backend):
    model = Model(ours.LSTM(INPUT, H, num_layers=2, bidirectional=True, batch_first=True, dtype=torch.float64))
    compiled, x = torch.compile(model, fullgraph=True, backend=backend), double(B, T, INPUT)
    results = []
    for module in (model, compiled):
        out = module(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
    torch.testing.assert_close(*results, **CLOSE)
    torch._dynamo.reset()


def test_compiled_with_lengths_and_resets_it_gives_the_same():
    _, mine = pair(num_layers=2)
    x, lengths, resets = double(T, B, INPUT), torch.tensor([4, 0, 2]), torch.rand(T, B) < 0.3
    call = lambda x: mine(x, lengths=lengths, resets=resets)[0]  # noqa: E731
    torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(x), call(x), **CLOSE)
    torch._dynamo.reset()


def test_compiled_cell_gives_the_same():
    cell, x = ours.LSTMCell(INPUT, H), torch.randn(B, INPUT)
    torch.testing.assert_close(torch.compile(cell, fullgraph=True, backend="aot_eager")(x), cell(x))
    torch._dynamo.reset()


def test_exported_program_holds_the_operator_and_gives_the_same():
    model = Model(ours.LSTM(INPUT, H, bidirectional=True, dtype=torch.float64))
    x, other = double(T, B, INPUT), double(T + 3, B, INPUT)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("time", min=2)},))
    assert any("lstmfast.layer" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(other), model(other), **CLOSE)
