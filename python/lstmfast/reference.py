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


def normalize(values: FloatArray, epsilon: float) -> FloatArray:
    """(values - mean) / sqrt(variance + epsilon), with mean and variance over the last axis."""
    return _centred(values) / _deviation(values, epsilon)


def normalize_backward(d_out: FloatArray, values: FloatArray, epsilon: float) -> FloatArray:
    """Gradient of the values of `normalize`, from d_out."""
    normal = normalize(values, epsilon)
    along_normal: FloatArray = normal * (d_out * normal).mean(axis=-1, keepdims=True)
    return (_centred(d_out) - along_normal) / _deviation(values, epsilon)


def _centred(values: FloatArray) -> FloatArray:
    centred: FloatArray = values - values.mean(axis=-1, keepdims=True)
    return centred


def _deviation(values: FloatArray, epsilon: float) -> FloatArray:
    """sqrt(variance + epsilon) over the last axis, which is kept with size 1."""
    deviation: FloatArray = np.sqrt(np.mean(_centred(values) ** 2, axis=-1, keepdims=True) + epsilon)
    return deviation


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
    zoneout: float | tuple[float, float] | None = None,
    norm_gain: FloatArray | None = None,
    cell_gain: FloatArray | None = None,
    cell_shift: FloatArray | None = None,
    layer_norm_epsilon: float = 1e-5,
    layer_norm_carry: bool = False,
) -> tuple[FloatArray, FloatArray]:
    """Advance an LSTM by one time step, in inference.

    Shapes: x [batch, input_size]; h, c [batch, hidden_size]; kernel [input_size + hidden_size, 4*hidden_size];
    bias [4*hidden_size]. Returns (h_next, c_next), both [batch, hidden_size].
    Variants, off by default, which can be combined:
    peepholes [3, hidden_size], rows i, f, o: the gates i and f also read c, and o reads c_next.
    projection [hidden_size, P]: h_next is (o * tanh(c)) @ projection; h is [batch, P], kernel has input_size + P rows.
    cell_clip > 0: c_next is clipped to [-cell_clip, cell_clip] before anything else reads it.
    coupled_gates: f = 1 - i; the forget gate's columns, bias and peepholes, and forget_bias, are ignored.
    zoneout: the shares of h and c (a number for both) that stay; the rest is h_next and c_next. h_next reads the c
    before that.
    norm_gain: layer normalisation, with cell_gain, cell_shift [hidden_size]. norm_gain [2, 4*hidden_size] normalises
    the products of x and of h with the kernel, norm_gain [1, 4*hidden_size] every gate of their sum; the bias is added
    after. The tanh of c_next reads cell_gain * normalize(c_next) + cell_shift, which, with layer_norm_carry, is also
    the c_next that is returned.
    Source: Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000; peepholes: Gers & Schmidhuber
    2000; projection: Sak, Senior & Beaufays 2014; coupled gates: Greff et al. 2017 (CIFG); zoneout: Krueger et al.
    2017; layer normalisation: Ba, Kiros & Hinton 2016.
    """
    variant = Variant(
        forget_bias, peepholes, projection, cell_clip, coupled_gates, zoneout=_pair(zoneout), norm_gain=norm_gain,
        cell_gain=cell_gain, cell_shift=cell_shift, layer_norm_epsilon=layer_norm_epsilon,
        layer_norm_carry=layer_norm_carry,
    )
    z = _pre_activation(x @ kernel[: x.shape[1]], h @ kernel[x.shape[1] :], bias, variant)
    factors = Factors.in_inference(variant)
    m, c_fresh, _ = _cell(z, c, variant, factors)
    return _next_state(h, c, m, c_fresh, variant, factors)


@dataclass(frozen=True)
class Variant:
    """How a cell differs from the standard one: the arguments of `lstm` with these names."""

    forget_bias: float = 0.0
    peepholes: FloatArray | None = None
    projection: FloatArray | None = None
    cell_clip: float | None = None
    coupled_gates: bool = False
    recurrent_dropout: float = 0.0
    recurrent_dropout_of: str = "h"
    recurrent_dropout_per_step: bool = False
    zoneout: tuple[float, float] = (0.0, 0.0)
    weight_dropout: float = 0.0
    norm_gain: FloatArray | None = None
    cell_gain: FloatArray | None = None
    cell_shift: FloatArray | None = None
    layer_norm_epsilon: float = 1e-5
    layer_norm_carry: bool = False

    def normalized_cell(self, c: FloatArray) -> FloatArray:
        """What the tanh reads in place of c: c itself without layer normalisation."""
        if self.cell_gain is None or self.cell_shift is None:
            return c
        shifted: FloatArray = self.cell_gain * normalize(c, self.layer_norm_epsilon) + self.cell_shift
        return shifted


def _pre_activation(from_x: FloatArray, from_h: FloatArray, bias: FloatArray, variant: Variant) -> FloatArray:
    """The pre-activations z [..., 4*hidden_size] from the products of x and of h with their rows of the kernel."""
    if variant.norm_gain is None:
        return from_x + from_h + bias
    z = bias
    for gain, normal in zip(variant.norm_gain, _normalized_products(from_x, from_h, variant), strict=True):
        z = z + gain * normal
    return z


def _normalized_products(from_x: FloatArray, from_h: FloatArray, variant: Variant) -> list[FloatArray]:
    """What the rows of norm_gain multiply, [..., 4*hidden_size]: both products, or the gates of their sum."""
    epsilon = variant.layer_norm_epsilon
    if _normalizes_products(variant):
        return [normalize(from_x, epsilon), normalize(from_h, epsilon)]
    return [_join_gates(normalize(_by_gate(from_x + from_h), epsilon))]


def _normalizes_products(variant: Variant) -> bool:
    return variant.norm_gain is not None and len(variant.norm_gain) == 2


def _pre_activation_backward(
    d_z: FloatArray, from_x: FloatArray, from_h: FloatArray, variant: Variant
) -> tuple[FloatArray, FloatArray]:
    """Gradients of the products from_x and from_h of `_pre_activation`."""
    gain, epsilon = variant.norm_gain, variant.layer_norm_epsilon
    if gain is None:
        return d_z, d_z
    if _normalizes_products(variant):
        d_from_x = normalize_backward(gain[0] * d_z, from_x, epsilon)
        return d_from_x, normalize_backward(gain[1] * d_z, from_h, epsilon)
    d_sum = _join_gates(normalize_backward(_by_gate(gain[0] * d_z), _by_gate(from_x + from_h), epsilon))
    return d_sum, d_sum


def _cell(
    z: FloatArray, c: FloatArray, variant: Variant, factors: Factors
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return, from the pre-activations z [batch, 4*hidden_size], m = o * tanh(c_fresh), which is h_next without a
    projection and zoneout, c_fresh, which is c_next without them, and the gates [batch, 4, hidden_size]."""
    z_i, z_f, z_g, z_o = gates.split(z)
    peepholes = variant.peepholes
    if peepholes is not None:
        z_i, z_f = z_i + peepholes[0] * c, z_f + peepholes[1] * c
    i = sigmoid(z_i)  # input gate: how much of the candidate enters the cell
    f = 1 - i if variant.coupled_gates else sigmoid(z_f + variant.forget_bias)  # forget gate: how much of c stays
    g = np.tanh(z_g)  # candidate
    c_fresh = f * c + i * (g * factors.g)
    if variant.cell_clip is not None:
        c_fresh = np.clip(c_fresh, -variant.cell_clip, variant.cell_clip)
    if peepholes is not None:
        z_o = z_o + peepholes[2] * c_fresh
    o = sigmoid(z_o)  # output gate: how much of the cell enters h
    return o * np.tanh(variant.normalized_cell(c_fresh)), c_fresh, np.stack([i, f, g, o], axis=1)


def _cell_backward(
    d_m: FloatArray,
    d_c: FloatArray,
    activated: FloatArray,
    c_prev: FloatArray,
    c_fresh: FloatArray,
    variant: Variant,
    factors: Factors,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the gradients (d_z [batch, 4*hidden_size], d_c_prev, d_normal) of one cell.

    d_m, d_c: those of m and of the new c before zoneout. activated: the gates. d_normal is the gradient of
    `Variant.normalized_cell`. The derivative of the clip is 0 where it changed c, and 1 within the bounds and on them.
    """
    i, f, g, o = (activated[:, gate] for gate in range(gates.COUNT))
    entering = g * factors.g
    peepholes = variant.peepholes
    tanh_c = np.tanh(variant.normalized_cell(c_fresh))
    d_z_o = d_m * tanh_c * o * (1 - o)
    d_normal = d_m * o * (1 - tanh_c**2)
    if variant.layer_norm_carry:
        d_normal, d_c = d_normal + d_c, np.zeros_like(d_c)
    if variant.cell_gain is None:
        d_c = d_c + d_normal
    else:
        d_c = d_c + normalize_backward(variant.cell_gain * d_normal, c_fresh, variant.layer_norm_epsilon)
    if peepholes is not None:
        d_c = d_c + d_z_o * peepholes[2]
    if variant.cell_clip is not None:
        d_c = np.where(np.abs(f * c_prev + i * entering) > variant.cell_clip, 0, d_c)
    if variant.coupled_gates:
        d_z_i, d_z_f = d_c * (entering - c_prev) * i * (1 - i), np.zeros_like(d_c)
    else:
        d_z_i, d_z_f = d_c * entering * i * (1 - i), d_c * c_prev * f * (1 - f)
    d_c_prev = d_c * f
    if peepholes is not None:
        d_c_prev = d_c_prev + d_z_i * peepholes[0] + d_z_f * peepholes[1]
    d_z_g = d_c * i * factors.g * (1 - g**2)
    return np.concatenate([d_z_i, d_z_f, d_z_g, d_z_o], axis=-1), d_c_prev, d_normal


def _next_state(
    h: FloatArray, c: FloatArray, m: FloatArray, c_fresh: FloatArray, variant: Variant, factors: Factors
) -> tuple[FloatArray, FloatArray]:
    """The state (h_next, c_next) after projection and zoneout, from the last one and the results of `_cell`."""
    h_new = m if variant.projection is None else m @ variant.projection
    c_new = variant.normalized_cell(c_fresh) if variant.layer_norm_carry else c_fresh
    return _zoned(h, h_new, factors.zoned_h), _zoned(c, c_new, factors.zoned_c)


def _zoned(old: FloatArray, new: FloatArray, share: FloatArray | float) -> FloatArray:
    """The share that stays, and the rest that is new."""
    return np.asarray(share * old + (1 - share) * new) if np.any(share) else new


# --- the random masks -------------------------------------------------------------------------------------------------
# A mask is a function of the seed and of where it is used: no order of computation and no number of threads changes it.

RECURRENT_DROPOUT, ZONEOUT_H, ZONEOUT_C, WEIGHT_DROPOUT = range(4)  # the purposes of masks


@dataclass(frozen=True)
class Noise:
    """What the masks of a call are drawn from: an unsigned 64-bit seed, the index of the layer and direction, and the
    number of the call's first time step."""

    seed: int
    layer: int = 0
    first_step: int = 0


@dataclass(frozen=True)
class Factors:
    """The random factors of one time step, each [batch, size of h or of c]; numbers where there is nothing random."""

    h: FloatArray | float = 1.0  # of h before the recurrent product: dropout
    g: FloatArray | float = 1.0  # of the candidate: dropout
    zoned_h: FloatArray | float = 0.0  # the share of h that stays: 0 or 1 in training
    zoned_c: FloatArray | float = 0.0

    @staticmethod
    def in_inference(variant: Variant) -> Factors:
        """The expectations: no dropout, and zoneout keeps a share that is its rate."""
        return Factors(zoned_h=variant.zoneout[0], zoned_c=variant.zoneout[1])

    @staticmethod
    def in_training(variant: Variant, noise: Noise, t: int, h: FloatArray, c: FloatArray) -> Factors:
        """The draws for time step t of the call; h and c give the shapes and the dtype."""
        step = noise.first_step + t
        dropped = h if variant.recurrent_dropout_of == "h" else c
        step_of_dropout = step if variant.recurrent_dropout_per_step else 0
        kept = dropout_factors(noise, RECURRENT_DROPOUT, step_of_dropout, variant.recurrent_dropout, dropped)
        return Factors(
            h=kept if variant.recurrent_dropout_of == "h" else 1.0,
            g=kept if variant.recurrent_dropout_of == "g" else 1.0,
            zoned_h=masks(noise, ZONEOUT_H, step, variant.zoneout[0], h.shape).astype(h.dtype),
            zoned_c=masks(noise, ZONEOUT_C, step, variant.zoneout[1], c.shape).astype(c.dtype),
        )


def dropout_factors(noise: Noise, purpose: int, step: int, rate: float, like: FloatArray) -> FloatArray:
    """Factors with the shape and dtype of `like`: 0 where a value is dropped, 1 / (1 - rate) where it is kept."""
    return np.where(masks(noise, purpose, step, rate, like.shape), 0, 1 / (1 - rate)).astype(like.dtype)


def masks(noise: Noise, purpose: int, step: int, rate: float, shape: tuple[int, ...]) -> BoolArray:
    """Whether each value of a [rows, units] array is dropped (or zoned out), which has the probability rate.

    Rows are those of the batch, or for WEIGHT_DROPOUT of the recurrent kernel. step: the number of the time step, taken
    modulo 2**32; 0 for a mask that serves a whole sequence. A block of 32 units has 8 counters of 4 words: counter k
    serves the units 2k and 2k + 1 of the first half of the block, then those of the second half, which suits vectors.
    """
    rows, units = shape
    blocks = -(-units // 32)
    counter = np.zeros((rows, 8 * blocks, 4), np.uint32)
    counter[..., 0] = np.arange(8 * blocks)
    counter[..., 1] = np.arange(rows)[:, None]
    counter[..., 2] = step % 2**32
    counter[..., 3] = 4 * noise.layer + purpose
    words = philox(counter, (noise.seed % 2**32, noise.seed // 2**32)).reshape(rows, blocks, 8, 2, 2)
    word_of_unit = words.swapaxes(2, 3).reshape(rows, 32 * blocks)[:, :units]
    return np.asarray(word_of_unit < int(rate * 2**32), np.bool_)


def philox(counter: npt.NDArray[np.uint32], key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Philox4x32-10: four random 32-bit words for every counter, both [N, ..., 4], under a key of two words.

    Source: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (Random123).
    """
    low = 2**32 - 1
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    k0, k1 = key
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64-bit products
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & low, (left >> 32) ^ c3 ^ k1, left & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


# --- the sequence -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tape:
    """What `lstm` keeps for `lstm_backward`: its arguments, and the state before every step, after resets.

    Values of steps that are not useful are zero.
    """

    x: FloatArray | IntArray
    kernel: FloatArray
    variant: Variant
    order: list[int]  # the time steps in the order of processing
    useful: BoolArray  # [T, B, 1]: the step is within the row's length
    starts_anew: BoolArray  # [T, B, 1]: the state was reset before the step
    begins_learnt: tuple[bool, bool]  # whether h and c began as the learnt initial states, not as h0 and c0
    has_learnt_state: bool
    kept_weights: FloatArray | float  # [H, 4H]: factors of the recurrent kernel
    factors: list[Factors]  # of every time step
    from_x: FloatArray  # [T, B, 4H]: x·kernel and h·kernel
    from_h: FloatArray
    h_read: FloatArray  # [T, B, H]: h before the step, after resets and dropout
    c_prev: FloatArray  # [T, B, H]: c before the step, after resets
    c_fresh: FloatArray  # [T, B, H]: c before zoneout, not normalised
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
    """Gradients by the arguments of `lstm`, each of its argument's shape; x is None for token ids, and those from
    peepholes on are None without their arguments."""

    x: FloatArray | None
    kernel: FloatArray
    bias: FloatArray
    h0: FloatArray
    c0: FloatArray
    peepholes: FloatArray | None
    projection: FloatArray | None
    norm_gain: FloatArray | None
    cell_gain: FloatArray | None
    cell_shift: FloatArray | None
    initial_h: FloatArray | None
    initial_c: FloatArray | None


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
    recurrent_dropout: float = 0.0,
    recurrent_dropout_of: str = "h",
    recurrent_dropout_per_step: bool = False,
    zoneout: float | tuple[float, float] | None = None,
    weight_dropout: float = 0.0,
    norm_gain: FloatArray | None = None,
    cell_gain: FloatArray | None = None,
    cell_shift: FloatArray | None = None,
    layer_norm_epsilon: float = 1e-5,
    layer_norm_carry: bool = False,
    initial_h: FloatArray | None = None,
    initial_c: FloatArray | None = None,
    seed: int | None = None,
    layer: int = 0,
    first_step: int = 0,
) -> Output:
    """Run an LSTM over whole sequences: with a seed in training, without one in inference.

    Shapes: x [T, B, I], or token ids [T, B], which stand for one-hot rows; kernel [I + H, 4H]; bias [4H];
    h0, c0 [B, H], zero if absent. lengths [B], each in 0..T and in any order: steps past a row's length are skipped,
    their outputs are zero, and the row's final state is that after its last step. resets [T, B]: the state is zeroed
    before that step is processed, in either direction. reverse: every row runs from its own last step to step 0.
    initial_h, initial_c [H]: learnt states that take the place of the zeros, at the start and at resets.
    peepholes, projection, cell_clip, coupled_gates, norm_gain and those after it: as in `lstm_step`. With a
    projection, arrays shaped like h have P numbers in the last axis, and kernel is [I + P, 4H].
    In training, by masks that are functions of seed, layer and of first_step + the index in x:
    recurrent_dropout_of "h" drops numbers of h before the recurrent product, "g" those of the candidate before they
    enter c; with one mask for the whole sequence, or, with recurrent_dropout_per_step, one for every step.
    zoneout: numbers of h and c that stay as they were; in inference as in `lstm_step`.
    weight_dropout: weights of the recurrent kernel that are zero in the whole call.
    Source: recurrent_dropout_of "h": Gal & Ghahramani 2016; "g": Semeniuta, Severyn & Barth 2016; weight_dropout:
    Merity, Keskar & Socher 2018.
    """
    (time_steps, batch), hidden_size = x.shape[:2], bias.shape[0] // gates.COUNT
    output_size = hidden_size if projection is None else projection.shape[1]
    if coupled_gates:
        kernel, bias = _without_forget_gate(kernel), _without_forget_gate(bias)
        peepholes = None if peepholes is None else peepholes * np.array([[1], [0], [1]], peepholes.dtype)
    variant = Variant(
        forget_bias, peepholes, projection, cell_clip, coupled_gates, recurrent_dropout, recurrent_dropout_of,
        recurrent_dropout_per_step, _pair(zoneout), weight_dropout, norm_gain, cell_gain, cell_shift,
        layer_norm_epsilon, layer_norm_carry,
    )
    useful = _steps_within(lengths, time_steps, batch)
    starts_anew = np.zeros_like(useful) if resets is None else resets[:, :, None]
    order = list(reversed(range(time_steps))) if reverse else list(range(time_steps))

    h_start = np.zeros(output_size, kernel.dtype) if initial_h is None else initial_h
    c_start = np.zeros(hidden_size, kernel.dtype) if initial_c is None else initial_c
    h = np.tile(h_start, (batch, 1)) if h0 is None else h0
    c = np.tile(c_start, (batch, 1)) if c0 is None else c0
    h_read, h_all = np.zeros((2, time_steps, batch, output_size), kernel.dtype)
    c_prev, c_all, c_fresh_all, m_all = np.zeros((4, time_steps, batch, hidden_size), kernel.dtype)
    gates_all = np.zeros((time_steps, batch, gates.COUNT, hidden_size), kernel.dtype)
    input_kernel, recurrent_kernel = np.split(kernel, [kernel.shape[0] - output_size])
    from_x = np.where(useful, _input_product(x, input_kernel), 0)
    from_h = np.zeros_like(from_x)

    factors = [Factors.in_inference(variant)] * time_steps
    kept_weights: FloatArray | float = 1.0
    if seed is not None:
        noise = Noise(seed, layer, first_step)
        factors = [Factors.in_training(variant, noise, t, h, c) for t in range(time_steps)]
        kept_weights = dropout_factors(noise, WEIGHT_DROPOUT, 0, weight_dropout, recurrent_kernel)
    kept_kernel = recurrent_kernel * kept_weights

    for t in order:
        h_prev = np.where(useful[t], np.where(starts_anew[t], h_start, h), 0)
        c_prev[t] = np.where(useful[t], np.where(starts_anew[t], c_start, c), 0)
        h_read[t] = h_prev * factors[t].h
        from_h[t] = h_read[t] @ kept_kernel
        z = _pre_activation(from_x[t], from_h[t], bias, variant)
        m, c_fresh, activated = _cell(z, c_prev[t], variant, factors[t])
        h_next, c_next = _next_state(h_prev, c_prev[t], m, c_fresh, variant, factors[t])
        m_all[t] = np.where(useful[t], m, 0)
        h_all[t] = np.where(useful[t], h_next, 0)
        c_all[t] = np.where(useful[t], c_next, 0)
        c_fresh_all[t] = np.where(useful[t], c_fresh, 0)
        gates_all[t] = np.where(useful[t, :, :, None], activated, 0)
        h = np.where(useful[t], h_next, h)
        c = np.where(useful[t], c_next, c)

    tape = Tape(
        x, kernel, variant, order, useful, starts_anew, (h0 is None, c0 is None), initial_h is not None, kept_weights,
        factors, from_x, from_h, h_read, c_prev, c_fresh_all, m_all,
    )
    return Output(h_all, h.copy(), c.copy(), c_all, gates_all, tape)


def lstm_backward(
    out: Output,
    d_h: FloatArray | None = None,
    d_h_n: FloatArray | None = None,
    d_c_n: FloatArray | None = None,
) -> Gradients:
    """Backpropagation through time: gradients by every argument of `lstm`, from those by its outputs.

    out: the result of `lstm`. d_h [T, B, H], ignored past a row's length; d_h_n, d_c_n [B, H]; zero if None. Those by
    h0 and c0 are given also where the state began at zero or as learnt.
    Source: Werbos 1990; the derivatives of the cell are in `_cell_backward`.
    """
    tape, variant = out.tape, out.tape.variant
    projection = variant.projection
    input_kernel, recurrent_kernel = np.split(tape.kernel, [tape.kernel.shape[0] - out.h.shape[-1]])
    kept_kernel = recurrent_kernel * tape.kept_weights
    d_h_all = np.zeros_like(out.h) if d_h is None else d_h
    d_h_carried = np.zeros_like(out.h_n) if d_h_n is None else d_h_n
    d_c_carried = np.zeros_like(out.c_n) if d_c_n is None else d_c_n
    d_z, d_from_x, d_from_h = np.zeros((3, *tape.from_x.shape), out.h.dtype)
    d_h_new = np.zeros_like(out.h)  # of h before zoneout
    d_normal = np.zeros_like(out.cells)
    d_initial_h, d_initial_c = np.zeros_like(out.h_n), np.zeros_like(out.c_n)  # of each row's resets

    for t in reversed(tape.order):
        useful, starts_anew, factors = tape.useful[t], tape.starts_anew[t], tape.factors[t]
        d_h_next = np.where(useful, d_h_all[t] + d_h_carried, 0)
        d_c_next = np.where(useful, d_c_carried, 0)
        d_h_new[t] = d_h_next * (1 - factors.zoned_h)
        d_m = d_h_new[t] if projection is None else d_h_new[t] @ projection.T
        d_c_new = d_c_next * (1 - factors.zoned_c)
        d_z[t], d_c_prev, d_normal[t] = _cell_backward(
            d_m, d_c_new, out.gates[t], tape.c_prev[t], tape.c_fresh[t], variant, factors
        )
        d_from_x[t], d_from_h[t] = _pre_activation_backward(d_z[t], tape.from_x[t], tape.from_h[t], variant)
        d_h_prev = d_from_h[t] @ kept_kernel.T * factors.h + d_h_next * factors.zoned_h
        d_c_prev = d_c_prev + d_c_next * factors.zoned_c
        d_initial_h += np.where(useful & starts_anew, d_h_prev, 0)
        d_initial_c += np.where(useful & starts_anew, d_c_prev, 0)
        d_h_carried = np.where(useful, np.where(starts_anew, 0, d_h_prev), d_h_carried)
        d_c_carried = np.where(useful, np.where(starts_anew, 0, d_c_prev), d_c_carried)

    d_input_kernel = _input_kernel_gradient(tape.x, tape.useful, d_from_x, input_kernel.shape[0])
    d_recurrent_kernel = _rows(tape.h_read).T @ _rows(d_from_h) * tape.kept_weights
    normal = normalize(tape.c_fresh, variant.layer_norm_epsilon)
    if tape.begins_learnt[0]:
        d_initial_h += d_h_carried
    if tape.begins_learnt[1]:
        d_initial_c += d_c_carried
    return Gradients(
        x=None if _is_ids(tape.x) else d_from_x @ input_kernel.T,
        kernel=np.concatenate([d_input_kernel, d_recurrent_kernel]),
        bias=_rows(d_z).sum(axis=0),
        h0=d_h_carried.copy(),
        c0=d_c_carried.copy(),
        peepholes=None if variant.peepholes is None else _peephole_gradient(d_z, tape.c_prev, tape.c_fresh),
        projection=None if projection is None else _rows(tape.m).T @ _rows(d_h_new),
        norm_gain=None if variant.norm_gain is None else _norm_gain_gradient(d_z, tape),
        cell_gain=None if variant.cell_gain is None else _rows(d_normal * normal).sum(axis=0),
        cell_shift=None if variant.cell_shift is None else _rows(d_normal).sum(axis=0),
        initial_h=d_initial_h.sum(axis=0) if tape.has_learnt_state else None,
        initial_c=d_initial_c.sum(axis=0) if tape.has_learnt_state else None,
    )


def _norm_gain_gradient(d_z: FloatArray, tape: Tape) -> FloatArray:
    """Gradient [2, 4H] or [1, 4H] of norm_gain: d_z times the normalised numbers of every row."""
    normalized = _normalized_products(tape.from_x, tape.from_h, tape.variant)
    return np.stack([_rows(d_z * normal).sum(axis=0) for normal in normalized])


def _by_gate(z: FloatArray) -> FloatArray:
    """[..., 4H] -> [..., 4, H]."""
    return np.stack(gates.split(z), axis=-2)


def _join_gates(z: FloatArray) -> FloatArray:
    """[..., 4, H] -> [..., 4H]."""
    return z.reshape(*z.shape[:-2], z.shape[-2] * z.shape[-1])


def _pair(zoneout: float | tuple[float, float] | None) -> tuple[float, float]:
    """The rates of h and of c; a number is for both, None is 0."""
    return zoneout if isinstance(zoneout, tuple) else (zoneout or 0.0, zoneout or 0.0)


def _without_forget_gate(weights: FloatArray) -> FloatArray:
    """Return weights [..., 4H] with those of the forget gate set to zero: ignored values may be nan."""
    copy: FloatArray = weights.copy()
    gates.split(copy)[1][...] = 0
    return copy


def _peephole_gradient(d_z: FloatArray, c_prev: FloatArray, c_fresh: FloatArray) -> FloatArray:
    """Gradient [3, H] of the peepholes: d_z of each gate times the c that it read."""
    d_i, d_f, _, d_o = gates.split(d_z)
    sums: FloatArray = np.stack([d_i * c_prev, d_f * c_prev, d_o * c_fresh]).sum(axis=(1, 2))
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


def _input_kernel_gradient(x: FloatArray | IntArray, useful: BoolArray, d_from_x: FloatArray, size: int) -> FloatArray:
    """xᵀ @ d_from_x over all steps, [size, 4H]; inputs of skipped steps are replaced by 0, because they may be nan."""
    if _is_ids(x):
        return embedding_scatter(_rows(d_from_x), x.ravel(), size)
    d_input_kernel: FloatArray = _rows(np.where(useful, x, 0)).T @ _rows(d_from_x)
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
