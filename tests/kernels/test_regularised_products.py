"""Regularised cells whose products are less exact than float32: int8 and bfloat16 weights, and "medium" precision.

That a layer normalisation divides by a deviation below one is the one reason to lose more than a plain cell does; the
deviations here are about one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_array_equal

from lstmfast import _core
from support.regularised import cell_of, problem_of, run_core
from support.tolerances import BFLOAT16_LAYER, INT8_LAYER, MEDIUM_LAYER

EVERY_PRODUCT = True

SIZES = 12, 7, 37, 70
SIZES_FOR_BF16X = 2, 17, 20, 130  # the least at which an ISA that has bf16x products uses them, and a little more
CELLS: dict[str, dict[str, Any]] = {
    "dropout of h, zoneout": {"dropout": "h", "zoneout": "both", "lengths": True, "resets": True},
    "dropout of g, learnt states": {"dropout": "g, per step", "learnt_state": True, "resets": True},
    "dropped weights, hooks": {"weight_dropout": True, "peepholes": True, "cell_clip": True, "projection": True},
    "layer norm of products": {"layer_norm": "products", "zoneout": "both"},
    "layer norm of gates": {"layer_norm": "gates", "carry": True, "reverse": True},
}
WAYS = {
    "int8": ({"weights": "int8"}, INT8_LAYER),
    "bfloat16": ({"weights": "bfloat16"}, BFLOAT16_LAYER),
    "medium": ({"matmul_precision": "medium"}, MEDIUM_LAYER),
}
ways = pytest.mark.parametrize(("way", "bound"), WAYS.values(), ids=WAYS)
every_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def relative_error(values: npt.NDArray[Any], exact: npt.NDArray[Any]) -> float:
    """Of all values together."""
    return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))


@ways
@every_cell
def test_inference_is_close_to_float32(isa, cell, way, bound):
    p, _, options = problem_of(cell | {"training": False}, SIZES, np.float32)
    assert relative_error(run_core(p, None, **options, **way)["h"], run_core(p, None, **options)["h"]) <= bound


# Products are rounded on the way back too.
@every_cell
def test_training_at_medium_is_close_to_float32(isa, cell):
    p, upstream, options = problem_of(cell, SIZES_FOR_BF16X, np.float32)
    exact = run_core(p, upstream, **options)
    for name, value in run_core(p, upstream, **options, matmul_precision="medium").items():
        assert relative_error(value, exact[name]) <= 2 * BFLOAT16_LAYER, name


def test_training_at_medium_has_bf16x_products_where_the_isa_has_them(isa):
    p, upstream, options = problem_of({"dropout": "h", "layer_norm": "gates"}, SIZES_FOR_BF16X, np.float32)
    sequence = _core.Sequence(False, cell_of(p, options))
    run_core(p, upstream, **options, sequence=sequence, matmul_precision="medium")
    assert sequence.used_bf16x_products == (_core.testing.bf16x_most_parts() > 0)


@pytest.mark.parametrize("cell", [CELLS[name] for name in ("dropout of h, zoneout", "layer norm of gates")], ids=str)
def test_training_at_medium_gives_the_same_bits_on_one_and_two_threads(isa, threads, cell):
    p, upstream, options = problem_of(cell, SIZES_FOR_BF16X, np.float32)
    threads.set_num_threads(1)
    one = run_core(p, upstream, **options, matmul_precision="medium")
    threads.set_num_threads(2)
    for name, value in run_core(p, upstream, **options, matmul_precision="medium").items():
        assert_array_equal(value, one[name], err_msg=name)
