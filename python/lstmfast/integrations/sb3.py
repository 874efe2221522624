"""The recurrent policies of sb3-contrib: whole rollouts in one call, with resets where episodes start.

sb3-contrib calls the LSTM once per step wherever an episode starts within a sequence. Everything but that loop stays
sb3-contrib's.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch

from lstmfast.integrations.expected import check_method
from lstmfast.torch import convert, revert, serving

_PARAMETERS = ("features", "lstm_states", "episode_starts", "lstm")


def accelerate(model: Any) -> int:
    """Serve the LSTMs of a RecurrentPPO, or of a policy, with whole sequences; return how many LSTMs there are.

    model: what has a `policy` with a method `_process_sequence`, or that policy. Losses, returns and checkpoints stay
    as they are; masks of dropout between layers are drawn in another order. Undone by `restore`.
    Raises RuntimeError, and changes nothing, if that method is not there or takes other arguments, and if it has been
    replaced already.
    """
    policy = _policy_of(model)
    if policy.__dict__.get("_process_sequence") is process_sequence:
        raise RuntimeError("sb3.accelerate: this model is accelerated already")
    if "_process_sequence" in policy.__dict__:
        raise RuntimeError("sb3.accelerate: somebody has set a _process_sequence of their own on this policy")
    check_method("sb3.accelerate", type(policy), "_process_sequence", _PARAMETERS, "sb3_contrib")
    if not isinstance(inspect.getattr_static(type(policy), "_process_sequence"), staticmethod):
        raise RuntimeError("sb3.accelerate: _process_sequence of this policy is no static method, as sb3-contrib's is")
    convert(policy)
    policy._process_sequence = process_sequence
    return sum(isinstance(module, torch.nn.LSTM) for module in policy.modules())


def restore(model: Any) -> None:
    """Undo `accelerate`: torch serves the LSTMs again. Raises RuntimeError if the model is not accelerated."""
    policy = _policy_of(model)
    if policy.__dict__.get("_process_sequence") is not process_sequence:
        raise RuntimeError("sb3.restore: this model is not accelerated")
    del policy._process_sequence
    revert(policy)


def _policy_of(model: Any) -> Any:
    policy = getattr(model, "policy", model)
    if not isinstance(policy, torch.nn.Module):
        raise TypeError(f"model must be an algorithm of sb3-contrib or its policy, got {type(model).__name__}")
    return policy


def process_sequence(
    features: torch.Tensor,
    lstm_states: tuple[torch.Tensor, torch.Tensor],
    episode_starts: torch.Tensor,
    lstm: torch.nn.LSTM,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """In place of `RecurrentActorCriticPolicy._process_sequence`, with its arguments and results.

    Shapes: features [sequences * time_steps, input_size]; states [layers, sequences, hidden_size]; episode_starts
    [sequences * time_steps], 1 where the state is zeroed before the step. Output [sequences * time_steps, hidden_size].
    """
    sequences = lstm_states[0].shape[1]
    x = features.reshape((sequences, -1, lstm.input_size)).swapaxes(0, 1)
    starts = episode_starts.reshape((sequences, -1)).swapaxes(0, 1)
    if not starts.any():
        output, states = lstm(x, lstm_states)
    elif len(x) == 1:
        keep = (1.0 - starts).view(1, sequences, 1)
        output, states = lstm(x, (keep * lstm_states[0], keep * lstm_states[1]))
    elif serving.takes_resets(lstm, x, lstm_states):
        output, states = lstm(x, lstm_states, resets=starts != 0.0)
    else:
        theirs = importlib.import_module("sb3_contrib.common.recurrent.policies").RecurrentActorCriticPolicy
        return theirs._process_sequence(features, lstm_states, episode_starts, lstm)  # type: ignore[no-any-return]
    return torch.flatten(output.transpose(0, 1), start_dim=0, end_dim=1), states
