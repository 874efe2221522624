"""A drop-in for torch.nn.LSTM and torch.nn.LSTMCell: the same modules, computed by this library's kernels.

    lstmfast.torch.convert(model)                 # every nn.LSTM and nn.LSTMCell of a model, in place; revert(model)
    lstmfast.torch.patch()                        # or those of the whole process; unpatch(), `with patched():`
    python -m lstmfast.torch SCRIPT.py [ARGS]     # or of a program, without a change to it
    from lstmfast.torch import LSTM, LSTMCell     # or their classes, which take a few more arguments

`convert` marks modules, `modules` has the classes, `serving` the calls of both. `paths` chooses the implementation,
`arguments` and `weights` read the call. `kernels` runs one layer, `operators` does so under tracing and transforms,
`composite` in torch operations, `on_cuda` on a GPU. `regularised` serves LSTMs with options that torch's has not,
`patching` the whole process, `__main__` a program; `recording` counts and times calls for `report`. See docs/torch.md.
"""

from lstmfast.torch import absent  # noqa: F401  (first: the others import torch)
from lstmfast.torch.convert import convert, explain, freeze, revert, teach_torch, unfreeze, weights_changed
from lstmfast.torch.modules import LSTM, LSTMCell
from lstmfast.torch.patching import patch, patched, unpatch
from lstmfast.torch.report import report
from lstmfast.torch.tracing import allow_rnn

allow_rnn()
teach_torch()

__all__ = [
    "LSTM", "LSTMCell", "convert", "explain", "freeze", "patch", "patched", "report", "revert", "unfreeze", "unpatch",
    "weights_changed",
]
