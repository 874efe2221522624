"""TensorFlow's own path to `tf.contrib.rnn`. Nothing of its own."""

from lstmfast.compat.tf1 import absent as _absent
from lstmfast.compat.tf1.contrib import rnn

__all__ = ["rnn"]
_absent.answer_in(__name__, "contrib")
