"""TensorFlow 1's recurrent cells without TensorFlow 1: same names, same defaults, same variables, NumPy in and out.

    import lstmfast.compat.tf1 as tf

    cell = tf.nn.rnn_cell.MultiRNNCell([tf.nn.rnn_cell.BasicLSTMCell(64) for _ in range(2)])
    with tf.GradientTape() as tape:
        outputs, state = tf.nn.dynamic_rnn(cell, x, dtype=tf.float32)           # x [batch, time, input_size]
    gradients = tape.gradients(outputs, tf.trainable_variables(), d_outputs)    # d_outputs: your own loss's derivative

Calls compute immediately: there is no graph to build and no session to run. A whole sequence is one call of
`lstmfast.lstm` per layer, not a loop over steps. Refuses to be TensorFlow: it has cells, functions that unroll and
differentiate them, and variables in scopes; everything else is NumPy. docs/tf1.md explains how to port a script.
"""

import numpy as _np

from lstmfast.compat.tf1 import absent as _absent
from lstmfast.compat.tf1 import contrib, nn
from lstmfast.compat.tf1.base import LSTMStateTuple, RNNCell
from lstmfast.compat.tf1.cells import BasicLSTMCell, LSTMCell, MultiRNNCell
from lstmfast.compat.tf1.dropout import DropoutWrapper
from lstmfast.compat.tf1.graph import (
    AUTO_REUSE,
    Graph,
    Variable,
    VariableScope,
    get_default_graph,
    get_variable,
    get_variable_scope,
    reset_default_graph,
    set_random_seed,
    trainable_variables,
    variable_scope,
)
from lstmfast.compat.tf1.initializers import (
    constant_initializer,
    glorot_uniform_initializer,
    ones_initializer,
    orthogonal_initializer,
    random_normal_initializer,
    random_uniform_initializer,
    truncated_normal_initializer,
    zeros_initializer,
)
from lstmfast.compat.tf1.rnn import (
    bidirectional_dynamic_rnn,
    dynamic_rnn,
    static_bidirectional_rnn,
    static_rnn,
)
from lstmfast.compat.tf1.tape import GradientTape, clip_by_global_norm

float32, float64 = _np.float32, _np.float64
_absent.answer_in(__name__, "")

__all__ = [
    "AUTO_REUSE",
    "BasicLSTMCell",
    "DropoutWrapper",
    "GradientTape",
    "Graph",
    "LSTMCell",
    "LSTMStateTuple",
    "MultiRNNCell",
    "RNNCell",
    "Variable",
    "VariableScope",
    "bidirectional_dynamic_rnn",
    "clip_by_global_norm",
    "constant_initializer",
    "contrib",
    "dynamic_rnn",
    "float32",
    "float64",
    "get_default_graph",
    "get_variable",
    "get_variable_scope",
    "glorot_uniform_initializer",
    "nn",
    "ones_initializer",
    "orthogonal_initializer",
    "random_normal_initializer",
    "random_uniform_initializer",
    "reset_default_graph",
    "set_random_seed",
    "static_bidirectional_rnn",
    "static_rnn",
    "trainable_variables",
    "truncated_normal_initializer",
    "variable_scope",
    "zeros_initializer",
]
