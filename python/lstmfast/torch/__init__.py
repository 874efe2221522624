"""A drop-in for torch.nn.LSTM and torch.nn.LSTMCell: the same modules with this library's kernels in them.

    from lstmfast.torch import LSTM, LSTMCell     # constructor, parameters and calls as torch.nn's
    lstmfast.torch.convert(model)                 # every nn.LSTM and nn.LSTMCell of a model, in place; revert(model)

`modules` has the classes, `kernels` one layer on tensors, `operators` the same for those who trace and transform,
`composite` the same in differentiable torch operations, `convert` exchanges classes. See docs/torch.md.
"""

from lstmfast.torch.convert import convert, revert
from lstmfast.torch.modules import LSTM, LSTMCell, explain, weights_changed
from lstmfast.torch.tracing import allow_rnn

allow_rnn()

__all__ = ["LSTM", "LSTMCell", "convert", "explain", "revert", "weights_changed"]
