"""The LSTM in plain NumPy: a specification to read, and the reference for the tests.

Start at `lstm_step`; `lstm` runs it over time, and `lstm_backward` computes the gradients. Then follows the rest of a
character model: projection, loss, embedding, clipping, optimizers, the choice of the next token.
Any float dtype, float32 to longdouble; results keep it. Not fast, does not check arguments, does not import `_core`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from . import gates

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

# --- the cell ---------------------------------------------------------------------------------------------------------


def sigmoid(z: FloatArray) -> FloatArray:
    """1 / (1 + exp(-z)), element by element, without overflow: only exp(-|z|) is computed."""
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + e), e / (1 + e)).astype(e.dtype)


def lstm_step(
    x: FloatArray,
    h: FloatArray,
    c: FloatArray,
    kernel: FloatArray,
    bias: FloatArray,
    *,
    forget_bias: float = 0.0,
    peepholes: FloatArray | None = None,
    projection: FloatArray | None = None,
    cell_clip: float | None = None,
    coupled_gates: bool = False,
) -> tuple[FloatArray, FloatArray]:
    """Advance an LSTM by one time step.

    Shapes: x [batch, input_size]; h, c [batch, hidden_size]; kernel [input_size + hidden_size, 4*hidden_size];
    bias [4*hidden_size]. Returns (h_next, c_next), both [batch, hidden_size].
    Variants, off by default, which can be combined:
    peepholes [3, hidden_size], rows i, f, o: the gates i and f also read c, and o reads c_next.
    projection [hidden_size, P]: h_next is (o * tanh(c)) @ projection; h is [batch, P], kernel has input_size + P rows.
    cell_clip > 0: c_next is clipped to [-cell_clip, cell_clip] before anything else reads it.
    coupled_gates: f = 1 - i; the forget gate's columns, bias and peepholes, and forget_bias, are ignored.
    Source: Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000; peepholes: Gers & Schmidhuber
    2000; projection: Sak, Senior & Beaufays 2014; coupled gates: Greff et al. 2017 (CIFG).
    """
    z = np.concatenate([x, h], axis=-1) @ kernel + bias
    m, c_next, _ = _cell(z, c, forget_bias, Variant(peepholes, projection, cell_clip, coupled_gates))
    return m if projection is None else m @ projection, c_next


@dataclass(frozen=True)
class Variant:
    """How a cell differs from the standard one: the arguments of `lstm_step` with these names."""

    peepholes: FloatArray | None = None
    projection: FloatArray | None = None
    cell_clip: float | None = None
    coupled_gates: bool = False


def _cell(
    z: FloatArray, c: FloatArray, forget_bias: float, variant: Variant
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return, from the pre-activations z [batch, 4*hidden_size], o * tanh(c_next), which is h_next without a
    projection, c_next, and the gates [batch, 4, hidden_size]."""
    z_i, z_f, z_g, z_o = gates.split(z)
    peepholes = variant.peepholes
    if peepholes is not None:
        z_i, z_f = z_i + peepholes[0] * c, z_f + peepholes[1] * c
    i = sigmoid(z_i)  # input gate: how much of the candidate enters the cell
    f = 1 - i if variant.coupled_gates else sigmoid(z_f + forget_bias)  # forget gate: how much of the old cell stays
    g = np.tanh(z_g)  # candidate
    c_next = f * c + i * g
    if variant.cell_clip is not None:
        c_next = np.clip(c_next, -variant.cell_clip, variant.cell_clip)
    if peepholes is not None:
        z_o = z_o + peepholes[2] * c_next
    o = sigmoid(z_o)  # output gate: how much of the cell enters h
    return o * np.tanh(c_next), c_next, np.stack([i, f, g, o], axis=1)


def _cell_backward(
    d_m: FloatArray, d_c: FloatArray, activated: FloatArray, c_prev: FloatArray, c: FloatArray, variant: Variant
) -> tuple[FloatArray, FloatArray]:
    """Return the gradients (d_z [batch, 4*hidden_size], d_c_prev) of one cell from those of m = o * tanh(c) and of c.

    activated: the gates. The derivative of the clip is 0 where it changed c, and 1 within the bounds and on them.
    """
    i, f, g, o = (activated[:, gate] for gate in range(gates.COUNT))
    peepholes = variant.peepholes
    tanh_c = np.tanh(c)
    d_z_o = d_m * tanh_c * o * (1 - o)
    d_c = d_c + d_m * o * (1 - tanh_c**2)
    if peepholes is not None:
        d_c = d_c + d_z_o * peepholes[2]
    if variant.cell_clip is not None:
        d_c = np.where(np.abs(f * c_prev + i * g) > variant.cell_clip, 0, d_c)
    if variant.coupled_gates:
        d_z_i, d_z_f = d_c * (g - c_prev) * i * (1 - i), np.zeros_like(d_c)
    else:
        d_z_i, d_z_f = d_c * g * i * (1 - i), d_c * c_prev * f * (1 - f)
    d_c_prev = d_c * f
    if peepholes is not None:
        d_c_prev = d_c_prev + d_z_i * peepholes[0] + d_z_f * peepholes[1]
    return np.concatenate([d_z_i, d_z_f, d_c * i * (1 - g**2), d_z_o], axis=-1), d_c_prev


# --- the sequence -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tape:
    """What `lstm` keeps for `lstm_backward`: its arguments, and the state before every step, after resets."""

    x: FloatArray | IntArray
    kernel: FloatArray
    variant: Variant
    order: list[int]  # the time steps in the order of processing
    useful: BoolArray  # [T, B, 1]: the step is within the row's length
    starts_anew: BoolArray  # [T, B, 1]: the state was zeroed before the step
    h_prev: FloatArray  # [T, B, H], after resets; zero where the step is not useful
    c_prev: FloatArray
    m: FloatArray  # [T, B, H], o * tanh(c): h before its projection


@dataclass(frozen=True)
class Output:
    """A sequence's outputs: h, cells [T, B, H]; h_n, c_n [B, H]; gates [T, B, 4, H], activated, in order i, f, g, o."""

    h: FloatArray
    h_n: FloatArray
    c_n: FloatArray
    cells: FloatArray
    gates: FloatArray
    tape: Tape


@dataclass(frozen=True)
class Gradients:
    """Gradients by the arguments of `lstm`, each of its argument's shape; x is None for token ids, peepholes and
    projection are None without them."""

    x: FloatArray | None
    kernel: FloatArray
    bias: FloatArray
    h0: FloatArray
    c0: FloatArray
    peepholes: FloatArray | None
    projection: FloatArray | None


def lstm(
    x: FloatArray | IntArray,
    kernel: FloatArray,
    bias: FloatArray,
    h0: FloatArray | None = None,
    c0: FloatArray | None = None,
    *,
    lengths: IntArray | None = None,
    resets: BoolArray | None = None,
    reverse: bool = False,
    forget_bias: float = 0.0,
    peepholes: FloatArray | None = None,
    projection: FloatArray | None = None,
    cell_clip: float | None = None,
    coupled_gates: bool = False,
) -> Output:
    """Run an LSTM over whole sequences.

    Shapes: x [T, B, I], or token ids [T, B], which stand for one-hot rows; kernel [I + H, 4H]; bias [4H];
    h0, c0 [B, H], zero if absent. lengths [B], each in 0..T and in any order: steps past a row's length are skipped,
    their outputs are zero, and the row's final state is that after its last step. resets [T, B]: the state is zeroed
    before that step is processed, in either direction. reverse: every row runs from its own last step to step 0.
    peepholes, projection, cell_clip, coupled_gates: as in `lstm_step`. With a projection, arrays shaped like h have P
    numbers in the last axis, and kernel is [I + P, 4H].
    """
    (time_steps, batch), hidden_size = x.shape[:2], bias.shape[0] // gates.COUNT
    output_size = hidden_size if projection is None else projection.shape[1]
    if coupled_gates:
        kernel, bias = _without_forget_gate(kernel), _without_forget_gate(bias)
        peepholes = None if peepholes is None else peepholes * np.array([[1], [0], [1]], peepholes.dtype)
    variant = Variant(peepholes, projection, cell_clip, coupled_gates)
    useful = _steps_within(lengths, time_steps, batch)
    starts_anew = np.zeros_like(useful) if resets is None else resets[:, :, None]
    order = list(reversed(range(time_steps))) if reverse else list(range(time_steps))

    h = np.zeros((batch, output_size), kernel.dtype) if h0 is None else h0
    c = np.zeros((batch, hidden_size), kernel.dtype) if c0 is None else c0
    h_prev, h_all = np.zeros((2, time_steps, batch, output_size), kernel.dtype)
    c_prev, c_all, m_all = np.zeros((3, time_steps, batch, hidden_size), kernel.dtype)
    gates_all = np.zeros((time_steps, batch, gates.COUNT, hidden_size), kernel.dtype)
    recurrent_kernel = kernel[kernel.shape[0] - output_size :]
    z_from_x = _input_product(x, kernel[: kernel.shape[0] - output_size])

    for t in order:
        h_prev[t] = np.where(useful[t] & ~starts_anew[t], h, 0)
        c_prev[t] = np.where(useful[t] & ~starts_anew[t], c, 0)
        z = z_from_x[t] + h_prev[t] @ recurrent_kernel + bias
        m, c_next, activated = _cell(z, c_prev[t], forget_bias, variant)
        h_next = m if projection is None else m @ projection
        m_all[t] = np.where(useful[t], m, 0)
        h_all[t] = np.where(useful[t], h_next, 0)
        c_all[t] = np.where(useful[t], c_next, 0)
        gates_all[t] = np.where(useful[t, :, :, None], activated, 0)
        h = np.where(useful[t], h_next, h)
        c = np.where(useful[t], c_next, c)

    tape = Tape(x, kernel, variant, order, useful, starts_anew, h_prev, c_prev, m_all)
    return Output(h_all, h.copy(), c.copy(), c_all, gates_all, tape)


def lstm_backward(
    out: Output,
    d_h: FloatArray | None = None,
    d_h_n: FloatArray | None = None,
    d_c_n: FloatArray | None = None,
) -> Gradients:
    """Backpropagation through time: gradients by every argument of `lstm`, from those by its outputs.

    out: the result of `lstm`. d_h [T, B, H], ignored past a row's length; d_h_n, d_c_n [B, H]; zero if None.
    Source: Werbos 1990; the derivatives of the cell are in `_cell_backward`.
    """
    tape = out.tape
    peepholes, projection = tape.variant.peepholes, tape.variant.projection
    input_size = tape.kernel.shape[0] - out.h.shape[-1]
    input_kernel, recurrent_kernel = tape.kernel[:input_size], tape.kernel[input_size:]
    d_h_all = np.zeros_like(out.h) if d_h is None else d_h
    d_h_carried = np.zeros_like(out.h_n) if d_h_n is None else d_h_n
    d_c_carried = np.zeros_like(out.c_n) if d_c_n is None else d_c_n
    d_z = np.zeros((*out.h.shape[:2], tape.kernel.shape[1]), out.h.dtype)
    d_h_total = np.zeros_like(out.h)

    for t in reversed(tape.order):
        useful, starts_anew = tape.useful[t], tape.starts_anew[t]
        d_h_total[t] = np.where(useful, d_h_all[t] + d_h_carried, 0)
        d_m = d_h_total[t] if projection is None else d_h_total[t] @ projection.T
        d_z[t], d_c_prev = _cell_backward(d_m, d_c_carried, out.gates[t], tape.c_prev[t], out.cells[t], tape.variant)
        d_h_prev = d_z[t] @ recurrent_kernel.T
        d_h_carried = np.where(useful, np.where(starts_anew, 0, d_h_prev), d_h_carried)
        d_c_carried = np.where(useful, np.where(starts_anew, 0, d_c_prev), d_c_carried)

    d_input_kernel = _input_kernel_gradient(tape.x, tape.useful, d_z, input_size)
    d_recurrent_kernel = _rows(tape.h_prev).T @ _rows(d_z)
    return Gradients(
        x=None if _is_ids(tape.x) else d_z @ input_kernel.T,
        kernel=np.concatenate([d_input_kernel, d_recurrent_kernel]),
        bias=_rows(d_z).sum(axis=0),
        h0=d_h_carried.copy(),
        c0=d_c_carried.copy(),
        peepholes=None if peepholes is None else _peephole_gradient(d_z, tape.c_prev, out.cells),
        projection=None if projection is None else _rows(tape.m).T @ _rows(d_h_total),
    )


def _without_forget_gate(weights: FloatArray) -> FloatArray:
    """Return weights [..., 4H] with those of the forget gate set to zero: ignored values may be nan."""
    copy: FloatArray = weights.copy()
    gates.split(copy)[1][...] = 0
    return copy


def _peephole_gradient(d_z: FloatArray, c_prev: FloatArray, c: FloatArray) -> FloatArray:
    """Gradient [3, H] of the peepholes: d_z of each gate times the c that it read."""
    d_i, d_f, _, d_o = gates.split(d_z)
    sums: FloatArray = np.stack([d_i * c_prev, d_f * c_prev, d_o * c]).sum(axis=(1, 2))
    return sums


def _steps_within(lengths: IntArray | None, time_steps: int, batch: int) -> BoolArray:
    """Mask [T, B, 1]: whether the time step is within the row's length."""
    if lengths is None:
        return np.ones((time_steps, batch, 1), np.bool_)
    return (np.arange(time_steps)[:, None] < lengths)[:, :, None]


def _is_ids(x: FloatArray | IntArray) -> TypeGuard[IntArray]:
    return bool(np.issubdtype(x.dtype, np.integer))


def _rows(values: FloatArray) -> FloatArray:
    """Join time and batch: [T, B, N] -> [T*B, N]."""
    return values.reshape(values.shape[0] * values.shape[1], values.shape[2])


def _input_product(x: FloatArray | IntArray, input_kernel: FloatArray) -> FloatArray:
    """x @ input_kernel for every step; for token ids, which stand for one-hot rows, the rows of input_kernel."""
    return input_kernel[x] if _is_ids(x) else x @ input_kernel


def _input_kernel_gradient(x: FloatArray | IntArray, useful: BoolArray, d_z: FloatArray, input_size: int) -> FloatArray:
    """xᵀ @ d_z over all steps; inputs of skipped steps are replaced by 0, because they may be nan."""
    if _is_ids(x):
        return embedding_scatter(_rows(d_z), x.ravel(), input_size)
    d_input_kernel: FloatArray = _rows(np.where(useful, x, 0)).T @ _rows(d_z)
    return d_input_kernel


# --- projection, loss, embedding --------------------------------------------------------------------------------------


def linear(x: FloatArray, kernel: FloatArray, bias: FloatArray | None = None) -> FloatArray:
    """x @ kernel + bias. Shapes: x [N, K]; kernel [K, M]; bias [M]; returns [N, M]."""
    return x @ kernel if bias is None else x @ kernel + bias


def linear_backward(x: FloatArray, kernel: FloatArray, d_out: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Gradients (d_x [N, K], d_kernel [K, M], d_bias [M]) of `linear` from d_out [N, M]."""
    return d_out @ kernel.T, x.T @ d_out, d_out.sum(axis=0)


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities over the last axis; its largest logit is subtracted first, so that nothing overflows."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: FloatArray = e / e.sum(axis=-1, keepdims=True)
    return probabilities


def softmax_cross_entropy(
    logits: FloatArray, targets: IntArray, *, scale: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Cross entropy in nats of each target id, and the gradient of scale * (their sum).

    Shapes: logits [N, V]; targets [N]. Returns (losses [N], not scaled; d_logits [N, V] = scale * (softmax - one-hot)).
    """
    row = np.arange(logits.shape[0])
    shifted = logits - logits.max(axis=-1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=-1)) - shifted[row, targets]
    d_logits = softmax(logits)
    d_logits[row, targets] -= 1
    return losses, scale * d_logits


def embedding_gather(table: FloatArray, ids: IntArray) -> FloatArray:
    """Rows of table [V, E] at ids [...]: [..., E]."""
    return table[ids]


def embedding_scatter(d_out: FloatArray, ids: IntArray, vocab_size: int) -> FloatArray:
    """Gradient [V, E] of the table of `embedding_gather` from d_out [N, E]: rows with the same id add up."""
    d_table = np.zeros((vocab_size, d_out.shape[-1]), d_out.dtype)
    np.add.at(d_table, ids, d_out)
    return d_table


# --- clipping and updates ---------------------------------------------------------------------------------------------
# Every update uses g = gradient_scale * gradients, so that clipping needs no extra pass, and returns new arrays.


def global_norm(values: FloatArray) -> float:
    """Euclidean norm of all values together, summed in float64 or better."""
    wide = values.astype(np.result_type(values.dtype, np.float64))
    return float(np.sqrt(np.sum(wide * wide)))


def clip_scale(norm: float, max_norm: float | None) -> float:
    """The factor that clips a gradient of this norm to max_norm; None or 0 turns clipping off.

    Raises ValueError if norm is not finite. Source: Pascanu, Mikolov & Bengio 2013.
    """
    if not np.isfinite(norm):
        raise ValueError(f"norm must be finite, got {norm}: the gradient overflowed; lower the learning rate")
    return 1.0 if not max_norm or norm <= max_norm else max_norm / norm


def sgd(
    parameters: FloatArray, gradients: FloatArray, *, learning_rate: float, gradient_scale: float = 1.0
) -> FloatArray:
    """Parameters after one step of gradient descent."""
    return parameters - learning_rate * gradient_scale * gradients


def momentum(
    parameters: FloatArray,
    gradients: FloatArray,
    velocity: FloatArray,
    *,
    learning_rate: float,
    momentum: float,
    nesterov: bool = False,
    gradient_scale: float = 1.0,
) -> tuple[FloatArray, FloatArray]:
    """(parameters, velocity) after one step with momentum. Source: Polyak 1964; nesterov: Sutskever et al. 2013."""
    g = gradient_scale * gradients
    v = momentum * velocity + g
    return parameters - learning_rate * (g + momentum * v if nesterov else v), v


def rmsprop(
    parameters: FloatArray,
    gradients: FloatArray,
    mean_square: FloatArray,
    *,
    learning_rate: float,
    decay: float,
    epsilon: float,
    gradient_scale: float = 1.0,
) -> tuple[FloatArray, FloatArray]:
    """(parameters, mean_square) after one step of RMSprop; epsilon outside the root. Source: Tieleman & Hinton 2012."""
    g = gradient_scale * gradients
    s = decay * mean_square + (1 - decay) * g * g
    return parameters - learning_rate * g / (np.sqrt(s) + epsilon), s


def adam(
    parameters: FloatArray,
    gradients: FloatArray,
    first_moment: FloatArray,
    second_moment: FloatArray,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float = 0.0,
    gradient_scale: float = 1.0,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(parameters, first_moment, second_moment) after step number `step`, counted from 1.

    Source: Kingma & Ba 2015; weight_decay is decoupled from the gradient: Loshchilov & Hutter 2019.
    """
    g = gradient_scale * gradients
    m = beta1 * first_moment + (1 - beta1) * g
    v = beta2 * second_moment + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return parameters - learning_rate * (m_hat / (np.sqrt(v_hat) + epsilon) + weight_decay * parameters), m, v


# --- the next token ---------------------------------------------------------------------------------------------------


def next_token_distribution(
    logits: FloatArray, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> npt.NDArray[np.float64]:
    """Probabilities of the next token, in float64, from logits; both [B, V].

    temperature 0 is greedy: probability 1 for the first largest logit, regardless of top_k and top_p. Otherwise, in
    this order: divide logits by temperature; keep the top_k largest (0: all); softmax; keep the smallest set of most
    probable tokens that together reach top_p (1.0: all); renormalize. Of equal logits the lower id comes first.
    Source of top_p: Holtzman et al. 2020.
    """
    if temperature == 0:
        return np.asarray(np.eye(logits.shape[-1])[logits.argmax(axis=-1)])
    wide = logits.astype(np.float64)
    scaled = (wide - wide.max(axis=-1, keepdims=True)) / temperature  # subtracting first avoids overflow
    by_rank = np.argsort(-scaled, axis=-1, kind="stable")  # ids, the most probable first
    rank = np.argsort(by_rank, axis=-1)  # rank of every id
    if top_k > 0:
        scaled = np.where(rank < top_k, scaled, -np.inf)
    p = softmax(scaled)
    if top_p < 1:
        descending = np.take_along_axis(p, by_rank, axis=-1)
        reached_before = np.cumsum(np.insert(descending[..., :-1], 0, 0, axis=-1), axis=-1)
        p = np.where(np.take_along_axis(reached_before, rank, axis=-1) < top_p, p, 0)
    return np.asarray(p / p.sum(axis=-1, keepdims=True), np.float64)


def choose_token(distribution: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """The first id, in id order, whose cumulative probability exceeds the row's uniform number in [0, 1).

    Shapes: distribution [B, V]; uniform [B]; returns ids [B]. If rounding leaves the whole sum at or below the uniform
    number, the last id with a probability above 0.
    """
    last_possible = distribution.shape[-1] - 1 - np.argmax(distribution[:, ::-1] > 0, axis=-1)
    not_exceeding = np.sum(np.cumsum(distribution, axis=-1) <= uniform[:, None], axis=-1)
    return np.asarray(np.minimum(not_exceeding, last_possible), np.int32)
