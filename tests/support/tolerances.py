"""Every tolerance of the suite, in one place, with its derivation.

Numbers are compared as `abs(actual - expected) <= absolute + relative * abs(expected)` (numpy.testing.assert_allclose).
Nothing here was tuned until a test passed; a test that needs more than this has found something.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

# sigmoid, tanh: the design promises 2e-7 absolute in float32, about 3 units in the last place below 1 (2**-24 = 6e-8).
# float64 gets the same plus room for the rounding of the libm we compare with: 9 units of 2**-53.
ACTIVATION = {"float32": 2e-7, "float64": 1e-15}

# exp: relative, because it has no bound of its own. 4 units in the last place: a range reduction and a polynomial.
EXPONENTIAL = {"float32": 4 * 2.0**-23, "float64": 4 * 2.0**-52}

# The rounding of a sum of K terms of size about one grows like sqrt(K) if errors are independent, in any order of
# additions. Eight units per sqrt(K) leave room for the largest of some thousand results.
_SUM_UNITS = 8

# Central differences in float64 with step s: the rounding of f, about 2**-52 * |f| / s, against the cut-off, s**2 / 6
# of the third derivative. s = 6e-6 (the cube root of 2**-52) makes both 1e-10 at most; f may reach 100.
DIFFERENCE_STEP = 6e-6
DIFFERENCE = {"rtol": 1e-8, "atol": 1e-8}

# Two computations of the same float64 numbers within the reference: only the order of additions differs.
SAME = {"rtol": 1e-12, "atol": 1e-12}

# CUDA kernels in float32, against the reference in float64: what the design promises, at H up to 129 and 4 steps.
CUDA_FLOAT32 = {"rtol": 1e-6, "atol": 1e-6}

# A value rounded to bfloat16 once: 8 bits of significand, so at most half of 2**-7 of its power of two.
ONE_BFLOAT16_ROUNDING = {"rtol": 2.0**-8, "atol": CUDA_FLOAT32["atol"]}


def sums(dtype: npt.DTypeLike, terms: int, size: float = 1.0) -> dict[str, float]:
    """Tolerance for results that are sums of `terms` products of about `size`: a matrix product, a norm, a loss."""
    unit = float(np.finfo(dtype).eps)
    return {"rtol": _SUM_UNITS * unit, "atol": _SUM_UNITS * unit * math.sqrt(max(terms, 1)) * size}


def states(dtype: npt.DTypeLike, terms: int) -> dict[str, float]:
    """Tolerance for h, c and gates after some steps, `terms` = I + H: about 1e-6 * sqrt(I + H) in float32.

    A sum's error passes a sigmoid's slope of at most 1/4 or tanh's of at most 1, and the state carries it on with a
    factor below 1: a step's contribution stays of the size of its sum's error.
    """
    return sums(dtype, terms)


def gradients(dtype: npt.DTypeLike, terms: int) -> dict[str, float]:
    """Tolerance for gradients of a sequence, `terms` = the steps and rows that add up: 1e-5 relative in float32.

    Every step back multiplies by derivatives that were themselves rounded: ten times a sum's error.
    float64: 1e-12 where the gradients are of size one.
    """
    return {name: 10 * bound for name, bound in sums(dtype, terms).items()}


def rounded(unit: float, terms: int) -> float:
    """Absolute tolerance for outputs and gradients of size one in programs of a fuzzer, `unit` the machine epsilon.

    That of `gradients` in float32 and float64. Lower precisions are compared with float64 that was rounded where the
    dtype rounds: once a call, a hook and a sum of gradients, eight times in all, and not in every term.
    """
    if unit > 2.0**-16:
        return _SUM_UNITS * unit
    return 10 * _SUM_UNITS * unit * math.sqrt(max(terms, 1))


# A fuzzer's programs, with large weights and many steps, can amplify rounding without bound. The effect of a unit in
# the last place of all numbers on their results is measured, worst of three draws; an engine's results may differ by
# this many times that: activations are up to four units off in float64 (ACTIVATION), sums less.
GROWTH = 4

# A factor rounded to n bits is off by up to half a unit of its row's or column's largest, 1 / (2 * (2**(n-1) - 1)); for
# normal or uniform numbers that is a standard error of 2**-n to 2**-(n-1) of each factor. The errors of a product's
# terms are independent, so a sum has the relative error of a term. Gates and states lessen it; h carries it from step
# to step, 2 to 3 times. As the norm of all outputs: 8 + 8 bits 8e-3, 12 + 13 bits 5e-4, with room for twice as much.
# bfloat16 rounds each number by itself, to 2**-9 at most: 2e-3 with both factors.
INT8_LAYER = 2e-2
BFLOAT16_LAYER = 5e-3
MEDIUM_LAYER = 1e-3

# A layer of float32 with dequantized weights, beside a framework that multiplies these weights in int8. The weights are
# the same on both sides; the framework rounds x and h, with one scale from the smallest to the largest number of an
# array, in 8 bits or in 7 (torch.ao, where products of 8 bits could saturate). For normal x, up to 4 standard
# deviations either way, a step of 8 / 127 is a standard error of 8 / 127 / sqrt(12) = 1.8e-2. Gates and states lessen
# it, h carries it on, as above. Twice INT8_LAYER, where x has a scale for each row.
QUANTIZED_LAYER = 2 * INT8_LAYER

# Against another framework, which rounds too: the largest difference as a share of the array's largest value, forward
# and backward, over this many steps. The project promises these.
PARITY = {("float32", 10): 1e-6, ("float32", 820): 1e-5, ("float64", 10): 1e-10, ("float64", 820): 1e-10}


def of(table: dict[str, float], dtype: Any) -> float:
    """The entry of one of the tables above for a dtype."""
    return table[np.dtype(dtype).name]
