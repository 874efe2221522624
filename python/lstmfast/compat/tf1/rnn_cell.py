"""TensorFlow 1's `tf.nn.rnn_cell`. Defines nothing."""

from lstmfast.compat.tf1 import absent as _absent
from lstmfast.compat.tf1.base import LSTMStateTuple, RNNCell
from lstmfast.compat.tf1.cells import BasicLSTMCell, LSTMCell, MultiRNNCell
from lstmfast.compat.tf1.dropout import DropoutWrapper

__all__ = ["BasicLSTMCell", "DropoutWrapper", "LSTMCell", "LSTMStateTuple", "MultiRNNCell", "RNNCell"]
_absent.answer_in(__name__, "nn.rnn_cell")
