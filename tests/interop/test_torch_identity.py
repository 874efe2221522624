"""A converted module is what it was to everybody who looks at it: classes, tracers, exporters, pickles, wrappers."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402

import lstmfast.torch as ours  # noqa: E402
from support.torch_models import Around  # noqa: E402

T, B, INPUT, H = 5, 4, 3, 6
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
pytestmark = pytest.mark.filterwarnings("ignore")


class Model(nn.Module):
    """An LSTM between a cell and a dense layer."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.cell, self.lstm, self.head = nn.LSTMCell(INPUT, H), nn.LSTM(H, H, **options), nn.Linear(H, 2)

    def forward(self, x: Any) -> Any:
        h, c = self.cell(x[0])
        return self.head(self.lstm(torch.stack([h, c]))[0])


def converted(model: Any) -> Any:
    """A copy that lstmfast serves."""
    other = copy.deepcopy(model)
    assert ours.convert(other) > 0
    return other


def is_served(module: Any) -> bool:
    return "lstmfast's kernels" in ours.explain(module, torch.zeros(T, B, module.input_size))


# --- looks ------------------------------------------------------------------------------------------------------------


def test_classes_names_and_attributes_are_torchs():
    theirs, mine = Model(), converted(Model())
    for a, b in zip(theirs.modules(), mine.modules(), strict=True):
        assert (type(a), repr(a), list(a.state_dict())) == (type(b), repr(b), list(b.state_dict()))
    assert mine.lstm.__module__ == "torch.nn.modules.rnn"
    assert inspect.signature(mine.lstm.forward) == inspect.signature(nn.LSTM(1, 1).forward)


def test_torchs_forward_has_its_name_and_source():
    assert "_VF.lstm" in inspect.getsource(nn.LSTM.forward)
    assert (nn.LSTM.forward.__qualname__, nn.LSTMCell.forward.__qualname__) == ("LSTM.forward", "LSTMCell.forward")


def test_modules_that_nobody_converted_run_torchs_code():
    module, x = nn.LSTM(INPUT, H), torch.randn(T, B, INPUT)
    assert "torch's own forward" in ours.explain(module, x)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lengths'"):
        module(x, lengths=torch.ones(B))


def test_converted_modules_take_the_arguments_of_ours():
    module, x, lengths = converted(nn.LSTM(INPUT, H)), torch.randn(T, B, INPUT), torch.tensor([5, 0, 2, 3])
    assert not module(x, lengths=lengths)[0][:, 1].any()


# --- those who trace, export and replace ------------------------------------------------------------------------------


def test_fx_traces_it_as_a_leaf():
    graph = torch.fx.symbolic_trace(converted(Model()))
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["cell", "lstm", "head"]


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "batch_first": True}], ids=str)
def test_onnx_export_writes_the_same_file(dynamo, options):
    onnx = pytest.importorskip("onnx", reason="needs ONNX: pip install '.[onnx]'")
    pytest.importorskip("onnxscript", reason="torch exports to ONNX with onnxscript: pip install onnxscript")
    theirs, files = nn.LSTM(INPUT, H, **options).eval(), []
    for module in (theirs, converted(theirs)):
        file = io.BytesIO()
        if dynamo:
            torch.onnx.export(module, (torch.randn(T, B, INPUT),), dynamo=True, verbose=False).save(file)
        else:
            torch.onnx.export(module, (torch.randn(T, B, INPUT),), file, dynamo=False)
        files.append(onnx.load_from_string(file.getvalue()))
    theirs_nodes, nodes = ([(n.op_type, len(n.input)) for n in model.graph.node] for model in files)
    assert nodes == theirs_nodes
    initializers = [{i.name: i.raw_data for i in model.graph.initializer} for model in files]
    assert sorted(initializers[0].values()) == sorted(initializers[1].values())


def test_exported_programs_hold_torchs_operations_only():
    program = torch.export.export(converted(Model()), (torch.randn(T, B, INPUT),))
    assert not any("lstmfast" in str(node.target) for node in program.graph.nodes)


def test_dynamic_quantization_quantizes_it():
    quantized = torch.ao.quantization.quantize_dynamic(converted(Model()), {nn.LSTM}, dtype=torch.qint8)
    assert type(quantized.lstm).__module__ == "torch.ao.nn.quantized.dynamic.modules.rnn"


@pytest.mark.parametrize("convert", [False, True], ids=["torch's", "converted"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_script_compiles_torchs_operations(convert, options):
    module, x = nn.LSTM(INPUT, H, **options), torch.randn(T, B, INPUT)
    scripted = torch.jit.script(Around(converted(module) if convert else module))
    torch.testing.assert_close(scripted(x), module(x)[0])


@pytest.mark.parametrize("convert", [False, True], ids=["torch's", "converted"])
def test_script_compiles_torchs_cell(convert):
    module, x = nn.LSTMCell(INPUT, H), torch.randn(B, INPUT)
    scripted = torch.jit.script(Around(converted(module) if convert else module))
    torch.testing.assert_close(scripted(x), module(x)[0])


def test_trace_records_torchs_operations():
    module, x = nn.LSTM(INPUT, H), torch.randn(T, B, INPUT)
    traced = torch.jit.trace(converted(module), (x,))
    other = torch.randn(T + 2, B, INPUT)
    torch.testing.assert_close(traced(other), module(other))


def test_make_fx_sees_every_operation():
    from torch.fx.experimental.proxy_tensor import make_fx

    module, x = converted(nn.LSTM(INPUT, H)), torch.randn(T, B, INPUT)
    graph = make_fx(lambda x: module(x)[0])(x)
    other = torch.randn(T, B, INPUT)
    torch.testing.assert_close(graph(other), module(other)[0], **CLOSE)


def test_counters_of_operations_count_it():
    from torch.utils.flop_counter import FlopCounterMode

    module, x = nn.LSTMCell(INPUT, H), torch.randn(B, INPUT)
    counts = []
    for one in (module, converted(module)):
        with FlopCounterMode(display=False) as counter:
            one(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_a_default_device_changes_nothing():
    module = converted(nn.LSTM(INPUT, H))
    with torch.device("cpu"):
        assert is_served(module)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_compile_takes_it(fullgraph):
    model, x = Model(), torch.randn(T, B, INPUT)
    compiled = torch.compile(converted(model), backend="aot_eager", fullgraph=fullgraph)
    torch.testing.assert_close(compiled(x), model(x), **CLOSE)
    torch._dynamo.reset()


# --- pickles and copies -----------------------------------------------------------------------------------------------

WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path, target=None):
        if name.startswith("lstmfast"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import torch
model = torch.load(sys.argv[1], weights_only=False)
x = torch.ones(5, 4, 3)
torch.save(model(x), sys.argv[2])
"""


def test_a_pickled_model_runs_torchs_code_where_lstmfast_is_not_installed(tmp_path):
    model = converted(nn.Sequential(nn.LSTM(INPUT, H)))
    torch.save(model, tmp_path / "model.pt")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path / "model.pt"), str(tmp_path / "out.pt")],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), model(torch.ones(T, B, INPUT)), **CLOSE)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_served_too(how):
    module = converted(nn.LSTM(INPUT, H))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert is_served(copy.deepcopy(module) if how == "deepcopy" else torch.load(file, weights_only=False))


# --- subclasses and wrappers ------------------------------------------------------------------------------------------


class Renamed(nn.LSTM):
    """Overrides nothing."""


class Doubled(nn.LSTM):
    """Adds something to what torch computes."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return 2 * output, state


class Mixed(Doubled, Renamed):
    """A hook of one class before those of others."""


class Named(nn.LSTM):
    """Calls torch's forward by its name."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        return nn.LSTM.forward(self, input, hx)


class Stepwise(nn.LSTM):
    """Computes by itself."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        return input, hx


@pytest.mark.parametrize("cls", [Renamed, Doubled, Mixed, Named])
def test_subclasses_whose_forward_is_torchs_or_calls_it_are_converted(cls):
    theirs, x = cls(INPUT, H), torch.randn(T, B, INPUT)
    mine = converted(theirs)
    assert type(mine) is cls
    assert is_served(mine)
    torch.testing.assert_close(mine(x), theirs(x), **CLOSE)


def test_subclasses_that_compute_by_themselves_are_left_alone_and_said_to_be():
    model = nn.Sequential(Stepwise(INPUT, H))
    assert ours.convert(model) == 0
    assert "Stepwise.forward, which does not call" in ours.explain(model[0], torch.zeros(T, B, INPUT))


def _partial(module: Any) -> Any:
    return functools.partial(lambda old, *args: old(*args), module.forward)


def _closure(module: Any) -> Any:
    old = module.forward

    @functools.wraps(old)
    def forward(*args: Any) -> Any:
        return old(*args)

    return forward


def _kept_on_the_module(module: Any) -> Any:
    module._old_forward = module.forward
    return functools.partial(lambda module, *args: module._old_forward(*args), module)


class Counting:
    """A callable object around another."""

    def __init__(self, old: Any) -> None:
        self.old, self.calls = old, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.old(*args)


@pytest.mark.parametrize("wrap", [_partial, _closure, _kept_on_the_module, lambda m: Counting(m.forward)])
@pytest.mark.parametrize("first", ["wrapped", "converted"])
def test_a_forward_that_was_wrapped_on_the_module_stays_and_is_served(wrap, first, monkeypatch):
    module, x, served = nn.LSTM(INPUT, H), torch.randn(T, B, INPUT), []
    if first == "converted":
        assert ours.convert(module) == 1
    wrapper = module.forward = wrap(module)
    if first == "wrapped":
        assert ours.convert(module) == 1
    assert module.forward is wrapper
    assert "which was set on it, which calls lstmfast's kernels" in ours.explain(module, x)
    real = ours.serving._fast_layer
    monkeypatch.setattr(ours.serving, "_fast_layer", lambda *a, **k: (served.append(1), real(*a, **k))[1])
    module(x)
    assert served == [1]


def test_a_forward_that_replaces_torchs_is_said_to():
    module = nn.LSTM(INPUT, H)
    module.forward = lambda x: (x, None)
    assert ours.convert(module) == 0
    assert "does not call LSTM.forward" in ours.explain(module, torch.zeros(T, B, INPUT))


def test_what_somebody_put_for_torchs_forward_is_called_and_served(monkeypatch):
    calls, before = [], nn.LSTM.forward
    module, x = nn.LSTM(INPUT, H), torch.randn(T, B, INPUT)
    ours.convert(module)
    monkeypatch.setattr(nn.LSTM, "forward", lambda self, *args: (calls.append(1), before(self, *args))[1])
    assert "somebody put for LSTM.forward" in ours.explain(module, x)
    module(x)
    assert calls == [1]


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_that_were_set_as_torchs_flat_list_are_used():
    theirs = nn.LSTM(INPUT, H, num_layers=2, bidirectional=True)
    mine, x = converted(theirs), torch.randn(T, B, INPUT)
    for module in (theirs, mine):
        for k in range(4):
            module._flat_weights[4 + k] = module._flat_weights[k]
    torch.testing.assert_close(mine(x), theirs(x), **CLOSE)
    zeros = [torch.zeros_like(weight) for weight in mine._flat_weights]
    with torch.no_grad():
        for flat in (zeros, [weight + 1 for weight in zeros]):
            theirs._flat_weights, mine._flat_weights = flat, flat
            torch.testing.assert_close(mine(x), theirs(x), **CLOSE)


def test_flat_weights_that_do_not_fit_are_torchs_error():
    mine = converted(nn.LSTM(INPUT, H))
    mine._flat_weights = mine._flat_weights[:3]
    with pytest.raises(RuntimeError):
        mine(torch.randn(T, B, INPUT))


def test_frozen_weights_are_those_of_the_moment_until_unfrozen():
    model, x = converted(Model(num_layers=2)), torch.randn(T, B, INPUT)
    with torch.no_grad():
        before = model(x)
        assert ours.freeze(model) == 2
        assert "frozen weights" in ours.explain(model.lstm, torch.zeros(T, B, H))
        for _ in range(2):
            for parameter in (*model.lstm.parameters(), *model.cell.parameters()):
                parameter.data.mul_(1.5)
            torch.testing.assert_close(model(x), before, rtol=0, atol=0)
        other = copy.deepcopy(model)
        assert ours.unfreeze(model) == 2
        assert ours.unfreeze(model) == 0
        torch.testing.assert_close(model(x), other(x), rtol=0, atol=0)
        assert not torch.equal(model(x), before)


COMPUTED: dict[str, Any] = {
    "old weight_norm": lambda module, name: nn.utils.weight_norm(module, name),
    "old spectral_norm": lambda module, name: nn.utils.spectral_norm(module, name),
    "pruned": lambda module, name: prune.l1_unstructured(module, name, 0.3),
    "weight_norm parametrization": lambda module, name: parametrizations.weight_norm(module, name),
    "orthogonal parametrization": lambda module, name: parametrizations.orthogonal(module, name),
}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell])
@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
def test_freezing_computed_weights_holds_none_of_what_they_are_computed_from(compute, kind):
    module, name = kind(INPUT, H), "weight_hh_l0" if kind is nn.LSTM else "weight_hh"
    ours.convert(module)
    compute(module, name)
    module(torch.randn(B, INPUT))[0].sum().backward()
    counts = {name: parameter._use_count() for name, parameter in module.named_parameters()}
    ours.freeze(module)
    assert {name: parameter._use_count() for name, parameter in module.named_parameters()} == counts


def test_freezing_takes_the_weights_of_the_next_call_and_leaves_the_module_those_of_the_last():
    module, x = nn.utils.weight_norm(converted(nn.LSTM(INPUT, H)), "weight_hh_l0"), torch.randn(T, B, INPUT)
    last, flat = module.weight_hh_l0, list(module._flat_weights)
    module.weight_hh_l0_g.data.mul_(2)
    ours.freeze(module)
    assert module.weight_hh_l0 is last
    assert all(one is other for one, other in zip(module._flat_weights, flat, strict=True))
    with torch.no_grad():
        frozen = module(x)[0]
        ours.unfreeze(module)
        torch.testing.assert_close(frozen, module(x)[0])


def test_training_sees_weights_that_are_frozen_for_inference():
    module, x = converted(nn.LSTM(INPUT, H)), torch.randn(T, B, INPUT)
    ours.freeze(module)
    with torch.no_grad():
        module.weight_hh_l0.zero_()
        frozen = module(x)[0]
    assert not torch.equal(module(x)[0], frozen)
