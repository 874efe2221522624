"""Regularised cells through the extension alone: gradients in inference, all ways of all options, strided arrays.

The rest, through the functions of the package, is in test_regularised.py.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
from numpy.testing import assert_array_equal

from support.regularised import CALLS, HOOKS, REGULARISERS, is_possible, name_of, pairwise, problem_of, run_core
from support.sequences import assert_agree, run_reference, strided

SIZES = (3, 3, 4, 17)
INFERENCE = pairwise(REGULARISERS | HOOKS | CALLS | {"training": (False,)})
# Every way of every regulariser with every way of the others; zoneout of h alone or of c alone is in the pairs.
COMBINATIONS = [
    dict(zip(REGULARISERS, ways, strict=True)) | {"resets": True, "given": ()}
    for ways in itertools.product(*(REGULARISERS | {"zoneout": (None, "both")}).values())
]
STRIDED = ("x", "h0", "c0", "projection")  # inputs that may have gaps between their rows


@functools.cache
def expected_of(index: int, dtype: Any) -> dict[str, Any]:
    """What the reference makes of INFERENCE[index], the same for every ISA."""
    p, upstream, options = problem_of(INFERENCE[index], SIZES, dtype)
    return run_reference(p, upstream, **options)


@pytest.mark.parametrize("case", INFERENCE, ids=name_of)
def test_inference_has_the_references_gradients(isa, dtype, case):
    p, upstream, options = problem_of(case, SIZES, dtype)
    assert_agree(run_core(p, upstream, **options), expected_of(INFERENCE.index(case), dtype), p)


@functools.cache
def expected_combination(index: int) -> dict[str, Any]:
    """What the reference makes of COMBINATIONS[index]."""
    p, upstream, options = problem_of(COMBINATIONS[index], (3, 2, 2, 3))
    return run_reference(p, upstream, **options)


@pytest.mark.parametrize("carry_and_norm", [(False, None), *itertools.product((False, True), ("products", "gates"))])
def test_all_ways_of_all_options_are_the_references(isa, carry_and_norm):
    for index, case in enumerate(COMBINATIONS):
        if (case["carry"], case["layer_norm"]) == carry_and_norm and is_possible(case):
            p, upstream, options = problem_of(case, (3, 2, 2, 3))
            assert_agree(run_core(p, upstream, **options), expected_combination(index), p)


@pytest.mark.parametrize("case", [case for case in INFERENCE if not case["ids"]][::3], ids=name_of)
def test_strided_inputs_give_the_same_bits(isa, dtype, case):
    p, upstream, options = problem_of(case | {"training": True}, SIZES, dtype)
    expected = run_core(p, upstream, **options)
    spread = {name: strided(value) if name in STRIDED else value for name, value in p.items()}
    for name, value in run_core(spread, {k: strided(v) for k, v in upstream.items()}, **options).items():
        assert_array_equal(value, expected[name], err_msg=name)
