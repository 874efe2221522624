"""A drop-in for torch.nn.LSTM and torch.nn.LSTMCell: the same modules, computed by this library's kernels.

    lstmfast.torch.convert(model)                 # every nn.LSTM and nn.LSTMCell of a model, in place; revert(model)
    from lstmfast.torch import LSTM, LSTMCell     # or their classes, which take a few more arguments

`convert` marks modules, `modules` has the classes, `serving` the calls of both. `paths` chooses the implementation,
`arguments` and `weights` read the call. `kernels` runs one layer, `operators` does so under tracing and transforms,
`composite` in torch operations, `on_cuda` on a GPU. See docs/torch.md.
"""

from lstmfast.torch.convert import convert, explain, freeze, revert, teach_torch, unfreeze, weights_changed
from lstmfast.torch.modules import LSTM, LSTMCell
from lstmfast.torch.tracing import allow_rnn

allow_rnn()
teach_torch()

__all__ = ["LSTM", "LSTMCell", "convert", "explain", "freeze", "revert", "unfreeze", "weights_changed"]
