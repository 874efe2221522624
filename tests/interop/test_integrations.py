"""The adapters beside the packages that they adapt: the same losses, states and gradients; undone; refused in words."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

from torch import nn  # noqa: E402

import lstmfast.torch as ours  # noqa: E402
from lstmfast import _core  # noqa: E402
from lstmfast.integrations import sb3, stanza, torchrl  # noqa: E402
from lstmfast.torch.regularised import drawn_seed  # noqa: E402

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
pytestmark = pytest.mark.filterwarnings("ignore")


def test_importing_the_adapters_loads_none_of_their_packages():
    names = "'sb3_contrib', 'stanza', 'torchrl'"
    code = f"import sys, lstmfast.integrations; print([name for name in ({names}) if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- sb3-contrib ------------------------------------------------------------------------------------------------------


def ppo(policy: str = "MlpLstmPolicy", **options: Any) -> Any:
    contrib = pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed: pip install sb3-contrib")
    return contrib.RecurrentPPO(
        policy, "CartPole-v1", seed=1, device="cpu", n_steps=64, batch_size=32, n_epochs=2,
        policy_kwargs={"lstm_hidden_size": 16, **options},
    )


def learn(model: Any, steps: int = 256) -> list[list[float]]:
    """The losses of every update and the mean return, from a run."""
    found, train = [], model.train

    def recorded() -> None:
        train()
        values = model.logger.name_to_value
        returns = [episode["r"] for episode in model.ep_info_buffer]
        found.append([*(values[f"train/{name}"] for name in ("loss", "value_loss", "policy_gradient_loss")), *returns])

    model.train = recorded
    model.learn(steps)
    return found


SB3_OPTIONS: list[dict[str, Any]] = [
    {},
    {"n_lstm_layers": 2},
    {"shared_lstm": True, "enable_critic_lstm": False},
    {"enable_critic_lstm": False},
]


@pytest.mark.parametrize("options", SB3_OPTIONS, ids=str)
def test_a_recurrent_policy_learns_with_the_same_losses_and_returns(options):
    stock = learn(ppo(**options))
    model = ppo(**options)  # which seeds the process
    assert sb3.accelerate(model) == 1 + options.get("enable_critic_lstm", True)
    for expected, found in zip(stock, learn(model), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def sequences(policy: Any, starts: list[float]) -> tuple[Any, ...]:
    torch.manual_seed(0)
    count, steps = 3, len(starts) // 3
    lstm = policy.lstm_actor
    states = tuple(torch.randn(lstm.num_layers, count, lstm.hidden_size) for _ in range(2))
    return torch.randn(count * steps, lstm.input_size), states, torch.tensor(starts), lstm


STARTS = {
    "none": [0.0] * 12, "some": [0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0], "first": [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
    "all": [1.0] * 12, "one step": [0.0, 1.0, 0.0], "one step, none": [0.0] * 3,
}


@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("layers", [1, 2])
def test_sequences_give_the_same_outputs_states_and_gradients(starts, layers):
    theirs = ppo(n_lstm_layers=layers).policy
    mine, found = copy.deepcopy(theirs), []
    sb3.accelerate(mine)
    for policy in (theirs, mine):
        output, states = policy._process_sequence(*sequences(policy, [float(s) for s in starts]))
        (output.square().sum() + states[1].sum()).backward()
        found.append([output, *states, *(weight.grad for weight in policy.lstm_actor.parameters())])
    torch.testing.assert_close(found[1], found[0], **CLOSE)


def test_whole_sequences_run_in_one_call_of_the_kernels():
    policy = ppo().policy
    sb3.accelerate(policy)
    with ours.patched(report=True):
        policy._process_sequence(*sequences(policy, [0.0, 1.0, 0.0] * 4))
    assert "1 by lstmfast's kernels" in ours.report(width=120)


def test_what_the_kernels_do_not_serve_runs_as_before():
    policy = ppo().policy
    sb3.accelerate(policy)
    starts = torch.tensor([0.0, 1.0, 0.0] * 4)
    ours.revert(policy.lstm_actor)  # as a device without kernels would
    features, states, _, lstm = sequences(policy, [0.0] * 12)
    expected = type(policy)._process_sequence(features, states, starts, lstm)
    torch.testing.assert_close(policy._process_sequence(features, states, starts, lstm), expected, rtol=0, atol=0)


def test_a_policy_is_saved_and_loaded_as_before(tmp_path):
    model = ppo()
    sb3.accelerate(model)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", device="cpu")
    assert "_process_sequence" not in loaded.policy.__dict__
    for a, b in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_restore_undoes_accelerate():
    model = ppo()
    before = model.policy._process_sequence
    sb3.accelerate(model)
    sb3.restore(model)
    assert model.policy._process_sequence is before
    assert "torch's own forward" in ours.explain(model.policy.lstm_actor, torch.zeros(2, 1, 4))


class Policy(nn.Module):
    """A policy of another version or package, with nothing of sb3-contrib's."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6)


class WithOtherArguments(Policy):
    @staticmethod
    def _process_sequence(features: Any, dones: Any) -> Any:
        return features, dones


class WithAMethod(Policy):
    def _process_sequence(self, features: Any, lstm_states: Any, episode_starts: Any, lstm: Any) -> Any:
        return features, lstm_states


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [(Policy, "has no method _process_sequence"), (WithOtherArguments, "takes features, dones, not features, lstm"),
     (WithAMethod, "no static method")],
)
def test_a_version_without_the_expected_method_is_refused_and_nothing_changed(policy, sentence):
    module = policy()
    before = dict(module.__dict__)
    with pytest.raises(RuntimeError, match=sentence):
        sb3.accelerate(types.SimpleNamespace(policy=module))
    assert module.__dict__ == before
    assert "torch's own forward" in ours.explain(module.lstm, torch.zeros(2, 1, 3))


def test_accelerating_twice_and_restoring_what_is_not_accelerated_are_errors():
    model = ppo()
    with pytest.raises(RuntimeError, match="not accelerated"):
        sb3.restore(model)
    sb3.accelerate(model)
    with pytest.raises(RuntimeError, match="accelerated already"):
        sb3.accelerate(model)


def test_what_has_no_policy_is_refused():
    with pytest.raises(TypeError, match="sb3-contrib"):
        sb3.accelerate(3)


# --- torchrl ----------------------------------------------------------------------------------------------------------

ROWS, STEPS, INPUT, UNITS = 5, 9, 3, 6


def lstm_module(**options: Any) -> Any:
    modules = pytest.importorskip("torchrl.modules", reason="torchrl is not installed: pip install torchrl")
    torch.manual_seed(0)
    options = {"input_size": INPUT, "hidden_size": UNITS, "default_recurrent_mode": True, **options}
    return modules.LSTMModule(in_key="observation", out_key="out", **options)


def batch(module: Any, begins: float, *, states: bool = True) -> Any:
    tensordict = pytest.importorskip("tensordict", reason="tensordict is not installed: pip install tensordict")
    torch.manual_seed(1)
    lstm = module.lstm
    count = lstm.num_layers * (2 if lstm.bidirectional else 1)
    found = {"observation": torch.randn(ROWS, STEPS, INPUT), "is_init": torch.rand(ROWS, STEPS, 1) < begins}
    if states:
        found["recurrent_state_h"] = torch.randn(ROWS, STEPS, count, lstm.proj_size or lstm.hidden_size)
        found["recurrent_state_c"] = torch.randn(ROWS, STEPS, count, lstm.hidden_size)
    return tensordict.TensorDict(found, batch_size=[ROWS, STEPS])


def results(module: Any, data: Any) -> list[Any]:
    """Output, states at the ends of trajectories, and gradients of all, of the weights and of the input."""
    data, x = data.clone(), data["observation"].clone().requires_grad_()
    data["observation"] = x
    module.zero_grad()
    found = module(data)
    tensors = [found["out"], found["next", "recurrent_state_h"], found["next", "recurrent_state_c"]]
    sum(tensor.square().sum() for tensor in tensors).backward()
    return [*tensors, x.grad, *(weight.grad.clone() for weight in module.parameters())]


TORCHRL_OPTIONS: list[dict[str, Any]] = [{}, {"num_layers": 2}, {"bias": False}, {"proj_size": 2}]


@pytest.mark.parametrize("options", TORCHRL_OPTIONS, ids=str)
@pytest.mark.parametrize("begins", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("states", [True, False], ids=["states", "no states"])
def test_trajectories_give_the_same_outputs_states_and_gradients(options, begins, states):
    theirs = lstm_module(**options)
    mine = copy.deepcopy(theirs)
    assert torchrl.accelerate(mine) == 1
    data = batch(theirs, begins, states=states)
    torch.testing.assert_close(results(mine, data), results(theirs, data), **CLOSE)


def test_a_batch_runs_in_one_call_of_the_kernels():
    module = lstm_module()
    torchrl.accelerate(module)
    with ours.patched(report=True):
        module(batch(module, 0.3))
    assert "1 by lstmfast's kernels" in ours.report(width=120)


def test_single_steps_of_a_collector_are_the_same():
    theirs = lstm_module(default_recurrent_mode=False)
    mine = copy.deepcopy(theirs)
    torchrl.accelerate(mine)
    for step in batch(theirs, 0.3).unbind(1)[:4]:
        torch.testing.assert_close(mine(step.clone())["out"], theirs(step.clone())["out"], **CLOSE)


def test_copies_of_an_accelerated_module_use_their_own_weights():
    module = lstm_module()
    torchrl.accelerate(module)
    other, file = copy.deepcopy(module), io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
    data = batch(module, 0.3)
    for copied in (other, torch.load(file, weights_only=False)):
        assert copied(data.clone())["out"].any()


def test_every_lstm_module_of_a_policy_is_accelerated_and_restored():
    policy = nn.Sequential(lstm_module(), nn.Sequential(lstm_module(recurrent_backend="auto")))
    assert torchrl.accelerate(policy) == 2
    torchrl.restore(policy)
    assert [policy[0].recurrent_backend, policy[1][0].recurrent_backend] == ["pad", "auto"]
    assert "_lstm" not in policy[0].__dict__
    assert "torch's own forward" in ours.explain(policy[0].lstm, torch.zeros(2, 1, INPUT))


def test_a_version_of_torchrl_without_the_expected_method_is_refused_and_nothing_changed(monkeypatch):
    module = lstm_module()
    monkeypatch.setattr(type(module), "_lstm", lambda self, input, hidden: None)
    before = dict(module.__dict__)
    with pytest.raises(RuntimeError, match="LSTMModule._lstm of torchrl .* takes input, hidden, not input, batch"):
        torchrl.accelerate(module)
    assert module.__dict__ == before


@pytest.mark.parametrize("wrong", ["twice", "not accelerated", "none there", "in Python"])
def test_wrong_uses_of_torchrls_adapter_are_errors(wrong):
    module = lstm_module(python_based=wrong == "in Python")
    if wrong == "twice":
        torchrl.accelerate(module)
    act, sentence = {
        "twice": (lambda: torchrl.accelerate(module), "accelerated already"),
        "not accelerated": (lambda: torchrl.restore(module), "not accelerated"),
        "none there": (lambda: torchrl.accelerate(nn.LSTM(INPUT, UNITS)), "no LSTMModule"),
        "in Python": (lambda: torchrl.accelerate(module), "make_cudnn_based"),
    }[wrong]
    with pytest.raises(RuntimeError, match=sentence):
        act()


# --- stanza -----------------------------------------------------------------------------------------------------------


class SteppingLSTM(nn.Module):
    """What stanza's LSTMwRecDropout computes, written for these tests: a loop over cells and rows' common steps."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, bias: bool = True, dropout: float = 0.0,
        bidirectional: bool = False, rec_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_layers, self.hidden_size, self.num_directions = num_layers, hidden_size, 1 + bidirectional
        self.dropout, self.drop, self.rec_drop = dropout, nn.Dropout(dropout), nn.Dropout(rec_dropout)
        sizes = [input_size if layer == 0 else self.num_directions * hidden_size for layer in range(num_layers)]
        self.cells = nn.ModuleList(
            nn.LSTMCell(size, hidden_size, bias=bias) for size in sizes for _ in range(self.num_directions)
        )

    def forward(self, input: Any, hx: Any = None) -> Any:
        x, batch = input.data, int(input.batch_sizes[0])
        bounds = torch.nn.functional.pad(input.batch_sizes.cumsum(0), (1, 0)).tolist()
        spans = list(zip(bounds[:-1], bounds[1:], strict=True))
        states: list[tuple[Any, Any]] = []
        outputs: list[Any] = []
        for k, cell in enumerate(self.cells):
            layer, reverse = divmod(k, self.num_directions)
            if not reverse:
                below = x if k == 0 else torch.cat(outputs, 1)
                below, outputs = self.drop(below) if layer and self.dropout else below, []
            h, c = (x.new_zeros(batch, self.hidden_size),) * 2 if hx is None else (hx[0][k], hx[1][k])
            mask, steps = self.rec_drop(torch.ones_like(h)), {}
            for first, last in reversed(spans) if reverse else spans:
                rows = last - first
                after = cell(below[first:last], (h[:rows] * mask[:rows], c[:rows]))
                h, c = (torch.cat([new, old[rows:]]) for new, old in zip(after, (h, c), strict=True))
                steps[first] = after[0]
            outputs.append(torch.cat([steps[first] for first, _ in spans]))
            states.append((h, c))
        packed = nn.utils.rnn.PackedSequence(torch.cat(outputs, 1), input.batch_sizes)
        return packed, tuple(map(torch.stack, zip(*states, strict=True)))


class GivenMasks(nn.Dropout):
    """Recurrent dropout whose masks are those that the kernels draw from a seed: one for each cell, in order."""

    def __init__(self, p: float, seed: int) -> None:
        super().__init__(p)
        self.seed, self.cells = seed, 0

    def forward(self, ones: Any) -> Any:
        mask = np.empty(ones.shape, np.float32)
        _core.testing.mask(mask, self.seed, self.cells, 0, 0, self.p)
        self.cells += 1
        return ones * torch.from_numpy(mask)


@pytest.fixture(params=["stand-in", "stanza"])
def stepping_lstm(request, monkeypatch):
    """The class that is served: stanza's own, or the one above in its place."""
    name = "stanza.models.common.packed_lstm"
    if request.param == "stanza":
        return pytest.importorskip(name, reason="stanza is not installed: pip install stanza").LSTMwRecDropout
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(LSTMwRecDropout=SteppingLSTM))
    return SteppingLSTM


STANZA_OPTIONS: list[dict[str, Any]] = [
    {"rec_dropout": 0.4}, {"rec_dropout": 0.4, "num_layers": 2, "bidirectional": True}, {"num_layers": 2},
    {"rec_dropout": 0.4, "bias": False, "bidirectional": True},
]


def packed_call(module: Any, *, states: bool) -> list[Any]:
    """Output, states and gradients of a call on packed rows, with a seed."""
    torch.manual_seed(1)
    rows = [torch.randn(length, INPUT, requires_grad=True) for length in (6, 4, 4, 1)]
    count = module.num_layers * module.num_directions
    hx = tuple(torch.randn(count, len(rows), UNITS, requires_grad=True) for _ in range(2)) if states else None
    torch.manual_seed(2)
    output, found = module(nn.utils.rnn.pack_sequence(rows), hx)
    module.zero_grad()
    (output.data.square().sum() + found[0].sum() + found[1].square().sum()).backward()
    return [
        output.data, *found, *(row.grad for row in rows), *(part.grad for part in hx or ()),
        *(weight.grad for weight in module.parameters()),
    ]


@pytest.mark.parametrize("options", STANZA_OPTIONS, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_stanzas_recurrent_dropout_gives_the_same_outputs_states_and_gradients(stepping_lstm, options, training):
    torch.manual_seed(0)
    theirs = stepping_lstm(INPUT, UNITS, **{"num_layers": 1, **options}).train(training)
    mine = copy.deepcopy(theirs)
    torch.manual_seed(2)
    theirs.rec_drop = GivenMasks(theirs.rec_drop.p, drawn_seed()).train(training) if training else theirs.rec_drop
    assert stanza.accelerate(mine) == 1
    torch.testing.assert_close(packed_call(mine, states=training), packed_call(theirs, states=training), **CLOSE)


def test_what_the_kernels_do_not_serve_runs_stanzas_own_loop(stepping_lstm):
    torch.manual_seed(0)
    module = stepping_lstm(INPUT, UNITS, 1).bfloat16()
    rows = nn.utils.rnn.pack_sequence([torch.randn(3, INPUT).bfloat16()])
    expected, _ = module(rows)
    stanza.accelerate(module)
    torch.testing.assert_close(module(rows)[0].data, expected.data, rtol=1e-2, atol=1e-2)


def test_restore_gives_stanzas_modules_back_and_names_do_not_change(stepping_lstm):
    model = nn.Sequential(stepping_lstm(INPUT, UNITS, 1, rec_dropout=0.5), nn.LSTM(2, 3))
    names = list(model.state_dict())
    assert stanza.accelerate(types.SimpleNamespace(model=model)) == 1
    with pytest.raises(RuntimeError, match="accelerated already"):
        stanza.accelerate(model)
    assert list(copy.deepcopy(model).state_dict()) == names
    stanza.restore(model)
    assert "forward" not in model[0].__dict__
    with pytest.raises(RuntimeError, match="not accelerated"):
        stanza.restore(model)


def test_a_model_without_stanzas_lstm_is_refused(stepping_lstm):
    with pytest.raises(RuntimeError, match="no LSTMwRecDropout"):
        stanza.accelerate(nn.LSTM(2, 3))


# --- Lightning --------------------------------------------------------------------------------------------------------


def test_a_lightning_run_needs_convert_only(tmp_path):
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed: pip install lightning")

    class Tagger(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head, self.losses = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 1), []

        def training_step(self, rows: Any, index: int) -> Any:
            (x,) = rows
            loss = (self.head(self.lstm(x)[0]) - x.cumsum(1)[..., :1]).square().mean()
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-2)

    losses = []
    for convert in (False, True):
        lightning.seed_everything(0)
        model = Tagger()
        rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 7, 3)), batch_size=16)
        if convert:
            assert ours.convert(model) == 1
        lightning.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        ).fit(model, rows)
        losses.append(model.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
