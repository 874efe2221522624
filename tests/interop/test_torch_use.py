"""The drop-in in the life of a project: conversion, copies, parametrizations, processes, a language model, a policy."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import threading
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

import lstmfast.torch as ours  # noqa: E402
from support.torch_models import Tagger  # noqa: E402

T, B, INPUT, H = 5, 4, 3, 6
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
pytestmark = pytest.mark.filterwarnings("ignore")


# --- conversion -------------------------------------------------------------------------------------------------------


def test_convert_counts_what_it_converts_and_changes_nothing_else():
    model, x = Tagger(), torch.randn(T, B, INPUT)
    expected, names = model(x), list(model.state_dict())
    lstm = model.body[1]
    assert ours.convert(model) == 2
    assert model.body[1] is lstm
    assert (type(model.body[1]), type(model.cell)) == (nn.LSTM, nn.LSTMCell)
    assert "lstmfast's kernels" in ours.explain(lstm, torch.randn(T, B, INPUT))
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), expected, **CLOSE)


def test_revert_undoes_convert():
    model, x = Tagger(), torch.randn(T, B, INPUT)
    ours.convert(model, strict=True)
    assert ours.revert(model) == 2
    assert (type(model.body[1]), type(model.cell)) == (nn.LSTM, nn.LSTMCell)
    assert not hasattr(model.cell, "strict")
    assert ours.convert(model) == 2
    assert ours.convert(model) == 0
    model(x)


def test_a_module_alone_is_converted_too():
    assert ours.convert(lstm := nn.LSTM(INPUT, H)) == 1
    assert "lstmfast's kernels" in ours.explain(lstm, torch.randn(T, B, INPUT))


def test_revert_makes_torchs_of_modules_that_were_made_here():
    assert ours.revert(lstm := ours.LSTM(INPUT, H)) == 1
    assert type(lstm) is nn.LSTM
    assert "torch's own forward" in ours.explain(lstm, torch.randn(T, B, INPUT))


def test_strict_conversion_makes_torchs_way_an_error():
    model = Tagger().to("meta")
    ours.convert(model, strict=True)
    with pytest.raises(RuntimeError, match="strict LSTM"):
        model(torch.randn(T, B, INPUT, device="meta"))


@pytest.mark.parametrize("bad", [None, "model", nn.LSTM], ids=str)
def test_what_is_no_module_is_refused(bad):
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
        ours.convert(bad)


def test_hooks_run_as_before():
    model, seen = nn.LSTM(INPUT, H), []
    model.register_forward_hook(lambda module, args, output: seen.append(output[0].shape))
    model.register_full_backward_hook(lambda module, d_in, d_out: seen.append(d_in[0].shape))
    ours.convert(model)
    model(torch.randn(T, B, INPUT, requires_grad=True))[0].sum().backward()
    assert seen == [(T, B, H), (T, B, INPUT)]


# --- copies and checkpoints -------------------------------------------------------------------------------------------


def test_state_dict_goes_both_ways():
    theirs, mine, x = nn.LSTM(INPUT, H, proj_size=2), ours.LSTM(INPUT, H, proj_size=2), torch.randn(T, B, INPUT)
    mine.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(mine(x), theirs(x), **CLOSE)
    mine.weight_hr_l0.data += 1
    theirs.load_state_dict(mine.state_dict())
    torch.testing.assert_close(mine(x), theirs(x), **CLOSE)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "copy of a used one"])
def test_copies_compute_the_same_and_are_independent(how):
    mine, x = ours.LSTM(INPUT, H, num_layers=2), torch.randn(T, B, INPUT)
    with torch.no_grad():
        expected = mine(x)[0]
        if how == "pickle":
            file = io.BytesIO()
            torch.save(mine, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        else:
            other = copy.deepcopy(mine)
        mine.weight_hh_l0.zero_()
        assert type(other) is ours.LSTM
        torch.testing.assert_close(other(x)[0], expected, rtol=0, atol=0)
        assert not torch.equal(mine(x)[0], expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reentrant):
    mine, x = ours.LSTM(INPUT, H, num_layers=2, dropout=0.5), torch.randn(T, B, INPUT, requires_grad=True)
    results = []
    for wrap in (False, True):
        torch.manual_seed(3)
        call = lambda x: mine(x)[0]  # noqa: E731
        out = torch.utils.checkpoint.checkpoint(call, x, use_reentrant=reentrant) if wrap else call(x)
        mine.zero_grad()
        out.sin().sum().backward()
        results.append([out, *(p.grad.clone() for p in mine.parameters())])
    torch.testing.assert_close(*results, rtol=0, atol=0)


# --- parametrizations -------------------------------------------------------------------------------------------------


def _normed(lstm: Any) -> Any:
    return parametrizations.weight_norm(lstm, "weight_hh_l0")


def _pruned(lstm: Any) -> Any:
    torch.manual_seed(5)
    return prune.random_unstructured(lstm, "weight_hh_l0", 0.5)


def _dropped(lstm: Any) -> Any:
    class Half(nn.Module):
        def forward(self, weight: Any) -> Any:
            return weight * (torch.arange(weight.shape[1]) % 2)

    parametrize.register_parametrization(lstm, "weight_hh_l0", Half())
    return lstm


@pytest.mark.parametrize("change", [_normed, _pruned, _dropped])
@pytest.mark.parametrize("converted", ["before", "after"])
def test_computed_weights_are_seen_anew_in_every_call(change, converted):
    plain, x = nn.LSTM(INPUT, H), torch.randn(T, B, INPUT)
    mine = copy.deepcopy(plain)
    if converted == "before":
        ours.convert(mine)
    mine = change(mine)
    if converted == "after":
        assert ours.convert(mine) == 1
    with torch.no_grad():
        for _ in range(3):
            h = mine(x)[0]
            plain.load_state_dict({name: getattr(mine, name) for name in plain.state_dict()})
            torch.testing.assert_close(h, plain(x)[0], **CLOSE)
            for parameter in mine.parameters():
                parameter.mul_(1.5)
    mine(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in mine.parameters())


# --- threads and processes --------------------------------------------------------------------------------------------


def test_threads_may_share_a_module():
    mine, x = ours.LSTM(INPUT, H), torch.randn(T, B, INPUT)
    expected, failures = mine(x)[0].detach(), []

    def work() -> None:
        for k in range(50):
            with torch.set_grad_enabled(k % 2 == 0):
                if not torch.equal(mine(x)[0], expected):
                    failures.append(k)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


class Encoded(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A data set that runs an LSTM where its items are made: in worker processes."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __len__(self) -> int:
        return 6

    def __getitem__(self, k: int) -> Any:
        with torch.no_grad():
            return self.module(torch.full((T, INPUT), float(k)))[0]


def test_forked_data_loader_workers_compute_the_same():
    mine = ours.LSTM(INPUT, H)
    data = Encoded(mine)
    expected = torch.stack([data[k] for k in range(6)])  # used before the fork, with a pool of threads
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context="fork")
    torch.testing.assert_close(torch.cat(list(loader)), expected)


DISTRIBUTED = """
import torch, torch.distributed as dist
import lstmfast.torch as ours
dist.init_process_group("gloo")
rank, torch.manual_seed(0) and None
model = ours.LSTM(3, 6, num_layers=2)
parallel = torch.nn.parallel.DistributedDataParallel(model)
x = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(1))
parallel(x[dist.get_rank()])[0].sin().sum().backward()
single = ours.LSTM(3, 6, num_layers=2)
single.load_state_dict(model.state_dict())
(sum(single(part)[0].sin().sum() for part in x) / 2).backward()
for a, b in zip(model.parameters(), single.parameters()):
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)
print("agrees", flush=True)
dist.destroy_process_group()
"""


def test_two_processes_under_torchrun_average_their_gradients(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED.replace("rank, torch.manual_seed(0) and None\n", "torch.manual_seed(0)\n"))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        capture_output=True, text=True, timeout=120, check=False,
    )
    assert done.stdout.count("agrees") == 2, done.stderr


# --- a language model, a policy ---------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """Words in, words out, as people write it: embedding, dropout, two layers, tied weights."""

    def __init__(self, vocabulary: int, size: int = 24) -> None:
        super().__init__()
        self.embedding, self.drop = nn.Embedding(vocabulary, size), nn.Dropout(0.2)
        self.lstm, self.out = nn.LSTM(size, size, num_layers=2, dropout=0.2), nn.Linear(size, vocabulary)
        self.out.weight = self.embedding.weight

    def forward(self, ids: Any, state: Any) -> Any:
        h, state = self.lstm(self.drop(self.embedding(ids)), state)
        return self.out(self.drop(h)), state


def _loss_curve(convert: bool, steps: int) -> Any:
    torch.manual_seed(0)
    text = torch.tensor(list((LanguageModel.__doc__ or "").encode() * 40)) - 32
    data, model = text[: 8 * (len(text) // 8)].view(8, -1).t(), LanguageModel(96)
    if convert:
        assert ours.convert(model) == 1
    optimizer, losses, state = torch.optim.SGD(model.parameters(), lr=2.0), [], None
    for step in range(steps):
        at = step * 10 % (len(data) - 11)
        torch.manual_seed(step)
        logits, state = model(data[at : at + 10], state)
        state = tuple(part.detach() for part in state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), data[at + 1 : at + 11].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def test_language_model_has_the_same_loss_curve_over_300_steps():
    theirs, mine = _loss_curve(False, 300), _loss_curve(True, 300)
    assert theirs[-1] < 0.7 * theirs[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_policy_learns_from_the_whole_rollout_what_it_did_step_by_step():
    torch.manual_seed(0)
    policy = ours.LSTM(INPUT, H)
    observations, done = torch.randn(12, B, INPUT), torch.rand(12, B) < 0.2
    state, steps = (torch.zeros(1, B, H), torch.zeros(1, B, H)), []
    with torch.no_grad():
        for observation, ended in zip(observations, done, strict=True):
            state = tuple(part.masked_fill(ended[:, None], 0.0) for part in state)
            h, state = policy(observation[None], state)
            steps.append(h[0])
    whole, _ = policy(observations, resets=done)
    torch.testing.assert_close(whole, torch.stack(steps), **CLOSE)
    whole.square().mean().backward()
    assert policy.weight_hh_l0.grad.abs().sum() > 0
