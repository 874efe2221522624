"""TensorFlow 1's cells written out in NumPy, and models built alike in TensorFlow and in `compat.tf1`.

Test helpers. The equations are the papers', with TensorFlow's order of columns, i j f o.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


@dataclass
class Equations:
    """One LSTM by its variables, under TensorFlow's names within the cell."""

    variables: dict[str, Array]
    forget_bias: float = 1.0
    cell_clip: float | None = None
    proj_clip: float | None = None

    def step(self, x: Array, c: Array, h: Array) -> tuple[Array, Array]:
        """The next c and h."""
        v = self.variables
        i, j, f, o = np.split(np.concatenate([x, h], axis=1) @ v["kernel"] + v["bias"], 4, axis=1)
        peephole = {gate: v.get(f"w_{gate}_diag", np.zeros(1)) for gate in "ifo"}
        c = sigmoid(f + self.forget_bias + peephole["f"] * c) * c + sigmoid(i + peephole["i"] * c) * np.tanh(j)
        if self.cell_clip:
            c = np.clip(c, -self.cell_clip, self.cell_clip)
        h = sigmoid(o + peephole["o"] * c) * np.tanh(c)
        if "projection/kernel" in v:
            h = h @ v["projection/kernel"]
            if self.proj_clip:
                h = np.clip(h, -self.proj_clip, self.proj_clip)
        return c, h

    def unroll(self, x: Array, c: Array, h: Array, lengths: npt.ArrayLike | None = None) -> tuple[Array, Array, Array]:
        """Outputs [time, batch, size], c and h; rows that have ended output zeros and keep their state."""
        outputs = []
        for t, x_t in enumerate(x):
            goes_on = np.ones((len(c), 1), bool) if lengths is None else t < np.asarray(lengths)[:, None]
            c_next, h_next = self.step(x_t, c, h)
            outputs.append(np.where(goes_on, h_next, 0))
            c, h = np.where(goes_on, c_next, c), np.where(goes_on, h_next, h)
        return np.stack(outputs), c, h


def backwards(x: Array, lengths: npt.ArrayLike | None = None) -> Array:
    """The first lengths[b] steps of each row b in reverse order, the others unchanged. Time first."""
    turned = x.copy()
    for b in range(x.shape[1]):
        end = len(x) if lengths is None else np.asarray(lengths)[b]
        turned[:end, b] = x[:end, b][::-1]
    return turned


# --- models that are built alike in both ------------------------------------------------------------------------------

INPUT_SIZE = 4
Build = Callable[[Any, Any], Any]
"""build(tf, x): `tf` has TensorFlow's names, x is [batch, time, INPUT_SIZE]; returns (outputs, states)."""


def _by_hand(tf: Any, steps: list[Any]) -> Any:
    cell = tf.nn.rnn_cell.MultiRNNCell([tf.nn.rnn_cell.BasicLSTMCell(n) for n in (3, 2)])
    state, outputs = cell.zero_state(steps[0].shape[0], steps[0].dtype), []
    for step in steps:
        output, state = cell(step, state)
        outputs.append(output)
    return outputs, state


def _two_scopes(tf: Any, x: Any) -> Any:
    with tf.variable_scope("encoder"):
        _, state = tf.nn.dynamic_rnn(tf.nn.rnn_cell.BasicLSTMCell(3), x, dtype=x.dtype)
    with tf.variable_scope("decoder"):
        return tf.nn.dynamic_rnn(tf.nn.rnn_cell.BasicLSTMCell(3, name="speaker"), x, initial_state=state)


def _shared(tf: Any, x: Any) -> Any:
    for _ in range(2):
        with tf.variable_scope("siamese", reuse=tf.AUTO_REUSE):
            result = tf.nn.dynamic_rnn(tf.nn.rnn_cell.BasicLSTMCell(3), x, dtype=x.dtype)
    return result


def _same_cell_twice(tf: Any, x: Any) -> Any:
    cell = tf.nn.rnn_cell.BasicLSTMCell(3)
    _, state = tf.nn.dynamic_rnn(cell, x, dtype=x.dtype)
    return tf.nn.dynamic_rnn(cell, x, initial_state=state)


def _reusing(tf: Any, x: Any) -> Any:
    state = None
    with tf.variable_scope("model"):
        for _ in range(2):
            if state is not None:
                tf.get_variable_scope().reuse_variables()
            outputs, state = tf.nn.dynamic_rnn(tf.nn.rnn_cell.LSTMCell(3), x, initial_state=state, dtype=x.dtype)
    return outputs, state


def _numbered(tf: Any, steps: list[Any]) -> Any:
    results = []
    for step in steps:
        cell = tf.nn.rnn_cell.LSTMCell(2)
        results.append(cell(step, cell.zero_state(step.shape[0], step.dtype)))
    return [output for output, _ in results], [state for _, state in results]


def _bidirectional(tf: Any, x: Any, **options: Any) -> Any:
    cell = tf.nn.rnn_cell.BasicLSTMCell
    return tf.nn.bidirectional_dynamic_rnn(cell(3), cell(2), x, dtype=x.dtype, **options)


def _static_bidirectional(tf: Any, steps: list[Any], **options: Any) -> Any:
    def stack() -> Any:
        return tf.nn.rnn_cell.MultiRNNCell([tf.nn.rnn_cell.BasicLSTMCell(n) for n in (3, 2)])

    outputs, *states = tf.nn.static_bidirectional_rnn(stack(), stack(), steps, dtype=steps[0].dtype, **options)
    return outputs, states


def _wrapped(tf: Any, x: Any) -> Any:
    cell, wrapper = tf.nn.rnn_cell.BasicLSTMCell, tf.nn.rnn_cell.DropoutWrapper
    stack = tf.nn.rnn_cell.MultiRNNCell([wrapper(cell(n), output_keep_prob=1.0) for n in (3, 2)])
    return tf.nn.dynamic_rnn(wrapper(stack, 1.0, 1.0, 1.0), x, dtype=x.dtype)


def _concatenated(tf: Any, x: Any) -> Any:
    cells = [tf.nn.rnn_cell.BasicLSTMCell(3, 0.5, False), tf.nn.rnn_cell.LSTMCell(2, state_is_tuple=False)]
    return tf.nn.dynamic_rnn(tf.nn.rnn_cell.MultiRNNCell(cells, state_is_tuple=False), x, dtype=x.dtype)


MODELS: dict[str, Build] = {
    "basic": lambda tf, x: tf.nn.dynamic_rnn(tf.nn.rnn_cell.BasicLSTMCell(5), x, dtype=x.dtype),
    "basic without forget bias": lambda tf, x: tf.nn.dynamic_rnn(
        tf.nn.rnn_cell.BasicLSTMCell(5, forget_bias=0.0), x, dtype=x.dtype, scope="mine"
    ),
    "lengths": lambda tf, x: tf.nn.dynamic_rnn(
        tf.nn.rnn_cell.BasicLSTMCell(5), x, sequence_length=[x.shape[1], 0, 3], dtype=x.dtype
    ),
    "time major": lambda tf, x: tf.nn.dynamic_rnn(
        tf.nn.rnn_cell.BasicLSTMCell(5), x, sequence_length=[1, 0, 3, 2, 3, 3, 1], dtype=x.dtype, time_major=True
    ),
    "stack": lambda tf, x: tf.nn.dynamic_rnn(
        tf.nn.rnn_cell.MultiRNNCell([tf.nn.rnn_cell.BasicLSTMCell(3), tf.nn.rnn_cell.LSTMCell(2)]), x, dtype=x.dtype
    ),
    "scopes": _two_scopes,
    "shared": _shared,
    "reusing": _reusing,
    "same cell twice": _same_cell_twice,
    "bidirectional": _bidirectional,
    "bidirectional, lengths": lambda tf, x: _bidirectional(tf, x, sequence_length=[x.shape[1], 0, 3], scope="both"),
    "wrapped": _wrapped,
    "concatenated states": _concatenated,
}
VARIANTS: dict[str, Build] = {
    "peepholes": lambda tf, x: tf.nn.dynamic_rnn(tf.nn.rnn_cell.LSTMCell(5, use_peepholes=True), x, dtype=x.dtype),
    "projection": lambda tf, x: tf.nn.dynamic_rnn(tf.nn.rnn_cell.LSTMCell(5, num_proj=3), x, dtype=x.dtype),
    "cell clip": lambda tf, x: tf.nn.dynamic_rnn(tf.nn.rnn_cell.LSTMCell(5, cell_clip=0.3), x, dtype=x.dtype),
    "projection clip": lambda tf, x: tf.nn.dynamic_rnn(
        tf.nn.rnn_cell.LSTMCell(5, num_proj=3, proj_clip=0.1), x, sequence_length=[x.shape[1], 0, 3], dtype=x.dtype
    ),
    "all variants, both ways": lambda tf, x: tf.nn.bidirectional_dynamic_rnn(
        tf.nn.rnn_cell.LSTMCell(5, True, 0.4, None, 3, 0.2),
        tf.nn.rnn_cell.MultiRNNCell([tf.nn.rnn_cell.LSTMCell(3, True, num_proj=2), tf.nn.rnn_cell.LSTMCell(2, True)]),
        x, sequence_length=[x.shape[1], 0, 3], dtype=x.dtype,
    ),
}

STEPWISE: dict[str, Build] = {
    "static": lambda tf, steps: tf.nn.static_rnn(tf.nn.rnn_cell.LSTMCell(5), steps, dtype=steps[0].dtype),
    "by hand": _by_hand,
    "numbered": _numbered,
    "static bidirectional stacks": _static_bidirectional,
    "static bidirectional stacks, lengths": lambda tf, steps: _static_bidirectional(
        tf, steps, sequence_length=[len(steps), 0, 1]
    ),
}
"""The same, but x is a list of steps [batch, INPUT_SIZE]."""

NAMES = {
    "basic": ["rnn/basic_lstm_cell/kernel:0 (9, 20)", "rnn/basic_lstm_cell/bias:0 (20,)"],
    "stack": [
        "rnn/multi_rnn_cell/cell_0/basic_lstm_cell/kernel:0 (7, 12)",
        "rnn/multi_rnn_cell/cell_0/basic_lstm_cell/bias:0 (12,)",
        "rnn/multi_rnn_cell/cell_1/lstm_cell/kernel:0 (5, 8)",
        "rnn/multi_rnn_cell/cell_1/lstm_cell/bias:0 (8,)",
    ],
    "by hand": [
        "multi_rnn_cell/cell_0/basic_lstm_cell/kernel:0 (7, 12)",
        "multi_rnn_cell/cell_0/basic_lstm_cell/bias:0 (12,)",
        "multi_rnn_cell/cell_1/basic_lstm_cell/kernel:0 (5, 8)",
        "multi_rnn_cell/cell_1/basic_lstm_cell/bias:0 (8,)",
    ],
    "scopes": [
        "encoder/rnn/basic_lstm_cell/kernel:0 (7, 12)",
        "encoder/rnn/basic_lstm_cell/bias:0 (12,)",
        "decoder/rnn/speaker/kernel:0 (7, 12)",
        "decoder/rnn/speaker/bias:0 (12,)",
    ],
    "shared": ["siamese/rnn/basic_lstm_cell/kernel:0 (7, 12)", "siamese/rnn/basic_lstm_cell/bias:0 (12,)"],
    "reusing": ["model/rnn/lstm_cell/kernel:0 (7, 12)", "model/rnn/lstm_cell/bias:0 (12,)"],
    "numbered": [
        "lstm_cell/kernel:0 (6, 8)",
        "lstm_cell/bias:0 (8,)",
        "lstm_cell_1/kernel:0 (6, 8)",
        "lstm_cell_1/bias:0 (8,)",
        "lstm_cell_2/kernel:0 (6, 8)",
        "lstm_cell_2/bias:0 (8,)",
    ],
    "bidirectional": [
        "bidirectional_rnn/fw/basic_lstm_cell/kernel:0 (7, 12)",
        "bidirectional_rnn/fw/basic_lstm_cell/bias:0 (12,)",
        "bidirectional_rnn/bw/basic_lstm_cell/kernel:0 (6, 8)",
        "bidirectional_rnn/bw/basic_lstm_cell/bias:0 (8,)",
    ],
    "wrapped": [
        "rnn/multi_rnn_cell/cell_0/basic_lstm_cell/kernel:0 (7, 12)",
        "rnn/multi_rnn_cell/cell_0/basic_lstm_cell/bias:0 (12,)",
        "rnn/multi_rnn_cell/cell_1/basic_lstm_cell/kernel:0 (5, 8)",
        "rnn/multi_rnn_cell/cell_1/basic_lstm_cell/bias:0 (8,)",
    ],
    "projection": [
        "rnn/lstm_cell/kernel:0 (7, 20)",
        "rnn/lstm_cell/bias:0 (20,)",
        "rnn/lstm_cell/projection/kernel:0 (5, 3)",
    ],
    "peepholes": [
        "rnn/lstm_cell/kernel:0 (9, 20)",
        "rnn/lstm_cell/bias:0 (20,)",
        "rnn/lstm_cell/w_f_diag:0 (5,)",
        "rnn/lstm_cell/w_i_diag:0 (5,)",
        "rnn/lstm_cell/w_o_diag:0 (5,)",
    ],
}
"""What `trainable_variables` says of some of the models."""
