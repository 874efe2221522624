"""Adapters for packages that call LSTMs in their own way: each imports its package only when it is called.

Where a model calls nn.LSTM with whole sequences, `lstmfast.torch.convert` or `patch` is enough. See
docs/integrations.md.
"""

from lstmfast.integrations import sb3, stanza, torchrl

__all__ = ["sb3", "stanza", "torchrl"]
