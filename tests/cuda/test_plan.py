"""Which CUDA kernel runs what: a pure function of the device's properties and the shape, so a table can say it.

`plan.cc` is compiled on its own: it needs no CUDA, no emulator and no GPU. Properties are those of data sheets.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import pytest

from lstmfast.cuda._library import BFLOAT16, FLOAT32, PATHS, Device, DirectionPlan, Plan
from support.cuda_cases import variants
from support.kernel_builds import CSRC, compiler

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]

KIB, MIB = 1 << 10, 1 << 20
# compute capability, SMs, shared memory of a block, registers and threads of an SM, MHz, cooperative launch, L2
DEVICES = {
    "V100": Device(7, 0, 80, 96 * KIB, 65536, 2048, 1530, 1, 6 * MIB),
    "T4": Device(7, 5, 40, 64 * KIB, 65536, 1024, 1590, 1, 4 * MIB),
    "A100": Device(8, 0, 108, 163 * KIB, 65536, 2048, 1410, 1, 40 * MIB),
    "L4": Device(8, 9, 58, 99 * KIB, 65536, 1536, 2040, 1, 48 * MIB),
    "RTX 4090": Device(8, 9, 128, 99 * KIB, 65536, 1536, 2520, 1, 72 * MIB),
    "H100": Device(9, 0, 132, 227 * KIB, 65536, 2048, 1755, 1, 50 * MIB),
    "B200": Device(10, 0, 148, 227 * KIB, 65536, 2048, 1965, 1, 126 * MIB),
}
INVALID_SHAPE, INVALID_DTYPE, MISSING_POINTER, INVALID_PLAN, UNSUPPORTED_DEVICE = -1, -2, -3, -6, -7
STEP, SEQUENCE, CLUSTER = 1, 2, 3
SIZES = [1, 31, 64, 65, 128, 200, 256, 512, 768, 1000, 1024, 1025, 2048]
BATCHES = [1, 8, 16, 33, 64, 256, 1000]


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    target = tmp_path_factory.mktemp("plan") / "plan.so"
    command = [str(compiler()), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-I", str(CSRC), str(CSRC / "cuda" / "plan.cc"), "-o", str(target)], check=True)
    loaded = ctypes.CDLL(str(target))
    loaded.lstmfast_cuda_workspace_bytes.restype = ctypes.c_int64
    return loaded


def plan_of(
    functions: Any,
    device: Device,
    hidden: int,
    batch: int,
    *,
    dtype: int = BFLOAT16,
    training: bool = True,
    path: int = 0,
) -> tuple[int, Plan]:
    plan = Plan()
    sizes = ctypes.c_int64(hidden), ctypes.c_int64(batch)
    code = functions.lstmfast_cuda_plan_path(
        ctypes.byref(device), *sizes, dtype, int(training), path, ctypes.byref(plan)
    )
    return code, plan


def told(direction: DirectionPlan) -> str:
    """A plan in a few words: path, variant, groups x blocks."""
    return f"{PATHS[direction.path]} {direction.variant}, {direction.groups}x{direction.blocks_per_group}"


# Batch 16, bfloat16, training. Clusters where there are any, else data flow, else steps.
TABLE = {
    ("A100", 64): ("cluster 0, 2x1", "cluster 0, 2x1"),
    ("A100", 128): ("cluster 1, 2x1", "cluster 1, 2x1"),
    ("A100", 512): ("sequence 5, 2x32", "sequence 3, 2x32"),
    ("A100", 1024): ("sequence 5, 1x64", "sequence 3, 1x64"),
    ("A100", 2048): ("step 0, 1x256", "step 0, 1x128"),
    ("L4", 64): ("cluster 0, 2x1", "cluster 0, 2x1"),
    ("L4", 256): ("sequence 5, 2x16", "sequence 3, 2x16"),
    ("L4", 768): ("sequence 5, 1x48", "sequence 3, 1x48"),
    ("L4", 1024): ("step 0, 1x128", "step 0, 1x64"),
    ("RTX 4090", 128): ("cluster 1, 2x1", "sequence 3, 2x8"),
    ("RTX 4090", 512): ("sequence 3, 2x64", "sequence 3, 2x32"),
    ("RTX 4090", 1024): ("sequence 5, 2x64", "sequence 3, 2x64"),
    ("H100", 64): ("cluster 0, 2x1", "cluster 0, 2x1"),
    ("H100", 256): ("cluster 2, 2x8", "cluster 2, 2x8"),
    ("H100", 512): ("cluster 2, 2x16", "cluster 2, 2x16"),
    ("H100", 1024): ("sequence 5, 2x64", "sequence 3, 2x64"),
    ("H100", 2048): ("step 0, 1x256", "step 0, 1x128"),
    ("B200", 512): ("cluster 2, 2x16", "cluster 2, 2x16"),
    ("B200", 1024): ("sequence 5, 2x64", "sequence 3, 2x64"),
}


@pytest.mark.parametrize(("name", "hidden"), TABLE, ids=lambda value: str(value))
def test_the_plan_of_a_shape_on_a_device(functions: Any, name: str, hidden: int) -> None:
    code, plan = plan_of(functions, DEVICES[name], hidden, 16)
    assert code == 0
    assert (told(plan.forward), told(plan.backward)) == TABLE[name, hidden]


# The same in float32: true multiply-adds, so steps win again where a block has many rows to multiply.
FLOAT32_TABLE = {
    ("T4", 256): ("sequence 1, 2x16", "sequence 1, 2x16"),
    ("T4", 512): ("step 1, 1x64", "step 1, 1x64"),
    ("A100", 64): ("sequence 2, 4x8", "sequence 2, 4x8"),
    ("A100", 256): ("sequence 1, 4x16", "sequence 1, 4x16"),
    ("A100", 512): ("step 1, 1x64", "step 1, 1x64"),
    ("A100", 1024): ("step 1, 1x128", "step 1, 1x128"),
    ("L4", 256): ("sequence 1, 2x16", "sequence 1, 2x16"),
    ("L4", 512): ("step 1, 1x64", "step 1, 1x64"),
    ("RTX 4090", 512): ("sequence 2, 2x64", "sequence 2, 2x64"),
    ("RTX 4090", 1024): ("sequence 3, 1x128", "sequence 2, 1x128"),
    ("H100", 64): ("cluster 0, 4x4", "cluster 0, 4x4"),
    ("H100", 256): ("cluster 0, 4x16", "cluster 0, 4x16"),
    ("H100", 512): ("sequence 2, 2x64", "sequence 2, 2x64"),
    ("H100", 1024): ("sequence 3, 1x128", "step 1, 1x128"),
    ("H100", 2048): ("step 1, 1x256", "step 1, 1x256"),
    ("B200", 256): ("cluster 0, 4x16", "cluster 0, 4x16"),
    ("B200", 1024): ("sequence 3, 1x128", "step 1, 1x128"),
}


@pytest.mark.parametrize(("name", "hidden"), FLOAT32_TABLE, ids=lambda value: str(value))
def test_the_plan_of_a_float32_shape_on_a_device(functions: Any, name: str, hidden: int) -> None:
    code, plan = plan_of(functions, DEVICES[name], hidden, 16, dtype=FLOAT32)
    assert code == 0
    assert (told(plan.forward), told(plan.backward)) == FLOAT32_TABLE[name, hidden]


def test_the_expected_time_of_a_float32_sequence_is_the_sum_that_the_readme_tells(functions: Any) -> None:
    _, plan = plan_of(functions, DEVICES["H100"], 512, 16, dtype=FLOAT32, path=SEQUENCE)
    units, unit_warps, rows, depth = 8, 2, 8, 512  # of one block
    assert (told(plan.forward), plan.forward.slice_rows) == ("sequence 2, 2x64", rows)
    cycles = 1400 + 400 + rows * depth * 4 * unit_warps / 64 + 4 * units * depth * rows / (128 / 1.4)
    assert plan.forward.microseconds_per_step == pytest.approx(cycles / 1755, rel=1e-5)


def test_volta_is_refused_because_its_architecture_is_not_built(functions: Any) -> None:
    for dtype in (FLOAT32, BFLOAT16):
        assert plan_of(functions, DEVICES["V100"], 64, 16, dtype=dtype)[0] == UNSUPPORTED_DEVICE


def test_bfloat16_needs_compute_capability_8(functions: Any) -> None:
    assert plan_of(functions, DEVICES["T4"], 64, 16)[0] == UNSUPPORTED_DEVICE


def test_a_plan_without_training_has_no_backward_direction(functions: Any) -> None:
    _, plan = plan_of(functions, DEVICES["H100"], 64, 16, training=False)
    assert (plan.training, plan.backward.path) == (0, 0)
    assert functions.lstmfast_cuda_workspace_bytes(ctypes.byref(plan), ctypes.c_int64(5), 1) == 0


def directions(functions: Any, path: int, dtype: int = BFLOAT16) -> list[tuple[Device, int, int, bool, DirectionPlan]]:
    """Every plan that this path has for the devices, sizes and batches above."""
    found = []
    for device in DEVICES.values():
        for hidden in SIZES:
            for batch in BATCHES:
                code, plan = plan_of(functions, device, hidden, batch, dtype=dtype, path=path)
                if code == 0:
                    found.append((device, hidden, batch, True, plan.forward))
                    found.append((device, hidden, batch, False, plan.backward))
    assert len(found) > 100
    return found


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_a_launch_never_has_more_blocks_that_wait_for_one_another_than_the_device_has_sms(
    functions: Any, dtype: int
) -> None:
    for device, _, _, _, plan in directions(functions, SEQUENCE, dtype):
        assert plan.groups * plan.blocks_per_group <= device.sm_count
        assert plan.cluster_size == 1
        assert device.cooperative_launch


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_clusters_are_of_a_size_that_the_hardware_has(functions: Any, dtype: int) -> None:
    for device, _, _, _, plan in directions(functions, CLUSTER, dtype):
        assert plan.cluster_size == plan.blocks_per_group
        assert plan.cluster_size in ((1, 2, 4, 8, 16) if device.compute_major in (9, 10) else (1,))
        assert plan.launches == 1


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("path", [SEQUENCE, CLUSTER])
def test_blocks_fit_an_sm_and_cover_units_depth_and_batch(functions: Any, path: int, dtype: int) -> None:
    tables = {True: variants("Forward", dtype), False: variants("Backward", dtype)}
    for device, hidden, batch, is_forward, plan in directions(functions, path, dtype):
        variant = tables[is_forward][plan.variant]
        padded = -(-hidden // 32) * 32
        depth = padded if is_forward else 4 * padded
        assert plan.threads == variant.threads <= 1024
        assert plan.shared_bytes <= device.shared_bytes_per_block
        assert plan.blocks_per_group * variant.block_units >= padded
        assert variant.most_depth >= depth
        assert plan.slice_rows % variant.row_step == 0
        assert plan.slice_rows <= variant.most_rows
        assert plan.slice_rows * plan.groups * plan.launches >= batch
        assert plan.slice_rows * plan.groups * (plan.launches - 1) < batch


def test_every_cell_of_a_float32_block_has_a_thread_of_its_own() -> None:
    for variant in [*variants("Forward", FLOAT32), *variants("Backward", FLOAT32)]:
        assert variant.block_units * variant.most_rows <= variant.threads


def test_a_device_without_cooperative_launches_gets_no_data_flow(functions: Any) -> None:
    device = Device(9, 0, 132, 227 * KIB, 65536, 2048, 1755, 0, 50 * MIB)
    assert plan_of(functions, device, 1024, 16)[1].forward.path == STEP
    assert plan_of(functions, device, 1024, 16, path=SEQUENCE)[0] == INVALID_PLAN


def test_little_shared_memory_makes_slices_smaller_and_never_plans_that_do_not_fit(functions: Any) -> None:
    device = Device(9, 0, 132, 48 * KIB, 65536, 2048, 1755, 1, 50 * MIB)
    code, plan = plan_of(functions, device, 512, 1000, path=SEQUENCE)
    assert code == 0
    assert plan.forward.shared_bytes <= 48 * KIB
    assert plan.forward.slice_rows < 32
    assert plan_of(functions, Device(9, 0, 132, KIB, 65536, 2048, 1755, 1, 50 * MIB), 512, 8)[1].forward.path == STEP


@pytest.mark.parametrize("hidden", [0, -1, 2049])
def test_hidden_sizes_out_of_range_are_refused(functions: Any, hidden: int) -> None:
    assert plan_of(functions, DEVICES["H100"], hidden, 1)[0] == INVALID_SHAPE


def test_other_arguments_out_of_range_are_refused(functions: Any) -> None:
    assert plan_of(functions, DEVICES["H100"], 64, 0)[0] == INVALID_SHAPE
    assert plan_of(functions, DEVICES["H100"], 64, 1 << 40)[0] == INVALID_SHAPE
    assert plan_of(functions, DEVICES["H100"], 64, 1, dtype=2)[0] == INVALID_DTYPE
    assert functions.lstmfast_cuda_plan(None, ctypes.c_int64(1), ctypes.c_int64(1), 0, 0, None) == MISSING_POINTER
    assert plan_of(functions, DEVICES["A100"], 64, 1, dtype=FLOAT32, path=CLUSTER)[0] == INVALID_PLAN


def test_the_workspace_grows_with_the_steps_only_where_every_step_has_a_slot_of_its_own(functions: Any) -> None:
    sizes = {}
    for path in (STEP, SEQUENCE, CLUSTER):
        _, plan = plan_of(functions, DEVICES["H100"], 256, 16, path=path)
        sizes[path] = [
            functions.lstmfast_cuda_workspace_bytes(ctypes.byref(plan), ctypes.c_int64(steps), 0) for steps in (1, 11)
        ]
    assert sizes[STEP][0] == sizes[STEP][1]
    assert sizes[CLUSTER][0] == sizes[CLUSTER][1]
    assert sizes[SEQUENCE][1] - sizes[SEQUENCE][0] == 10 * 16 * 256 * 2


@pytest.mark.parametrize("steps", [0, -1, 1 << 40])
def test_a_workspace_for_a_number_of_steps_that_cannot_be_has_no_bytes(functions: Any, steps: int) -> None:
    _, plan = plan_of(functions, DEVICES["H100"], 64, 16)
    assert functions.lstmfast_cuda_workspace_bytes(ctypes.byref(plan), ctypes.c_int64(steps), 0) == 0
