"""TensorFlow's paths to the same names: `tf.nn.dynamic_rnn`, `tf.nn.rnn_cell.BasicLSTMCell`. Defines nothing."""

from lstmfast.compat.tf1 import absent as _absent
from lstmfast.compat.tf1 import rnn_cell
from lstmfast.compat.tf1.rnn import (
    bidirectional_dynamic_rnn,
    dynamic_rnn,
    static_bidirectional_rnn,
    static_rnn,
)

__all__ = ["bidirectional_dynamic_rnn", "dynamic_rnn", "rnn_cell", "static_bidirectional_rnn", "static_rnn"]
_absent.answer_in(__name__, "nn")
