"""What TensorFlow 1 called `tf.contrib.rnn`, from which most of its scripts took their cells. Nothing of its own."""

from lstmfast.compat.tf1 import absent as _absent
from lstmfast.compat.tf1.rnn import static_bidirectional_rnn, static_rnn
from lstmfast.compat.tf1.rnn_cell import (
    BasicLSTMCell,
    DropoutWrapper,
    LSTMCell,
    LSTMStateTuple,
    MultiRNNCell,
    RNNCell,
)

__all__ = [
    "BasicLSTMCell",
    "DropoutWrapper",
    "LSTMCell",
    "LSTMStateTuple",
    "MultiRNNCell",
    "RNNCell",
    "static_bidirectional_rnn",
    "static_rnn",
]
_absent.answer_in(__name__, "contrib.rnn")
