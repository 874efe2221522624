"""The emulator that CUDA kernels are tested with: what it runs, what it finds itself, what it lets sanitizers find.

Every case is a kernel in `cuda_emu/selftest.cc`, run as a program of its own.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from support.cuda_builds import EMULATOR, SANITIZER_STATUS, build_program, run_program
from support.kernel_builds import compiler

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]

SEEDS = ["0", "1", "5"]
CORRECT = [
    "barriers", "bfloat16", "clusters", "data_flow", "data_flow_without_pauses", "good_after_bad", "grid_barriers",
    "indices", "matrix_product", "shuffles_and_votes", "unwritten_shared_memory_is_nan", "warp_exchange",
]
INVALID_VALUE, INVALID_CONFIGURATION, LAUNCH_FAILURE, TOO_LARGE = 1, 9, 719, 720
MISTAKES = {
    "returned_before_barrier": "barrier reached after 3 of the block's 64 threads have returned, at __syncthreads",
    "returned_during_barrier": "deadlock: 63 threads at __syncthreads .*; 1 thread has returned",
    "different_barriers": "wait at different places; others came to __syncthreads .*, at __syncthreads",
    "warps_apart": "deadlock: 32 threads at __syncthreads .*; 32 threads at __syncwarp ",
    "returned_lane": "warp operation reached after 1 of its lanes have returned, at __shfl_sync",
    "partial_mask": "partial warp mask 0000ffff",
    "grid_barrier_in_ordinary_launch": r"the launch is not cooperative, at grid\.sync",
    "misaligned_vector": "misaligned access: 0x[0-9a-f]+ is no multiple of 16, at __ldg",
    "misaligned_relaxed": "misaligned access: 0x[0-9a-f]+ is no multiple of 8, at relaxed load",
    "static_too_large": "49156 bytes of static shared memory, at most 49152",
    "dynamic_too_large": "253952 bytes of shared memory in a block, the device has 232448",
    "over_aligned": "alignment to 32 bytes: dynamic shared memory promises 16",
    "returned_before_grid_barrier": r"grid barrier reached after 64 threads of a block have returned, at grid\.sync",
    "returned_before_cluster_barrier": "cluster barrier reached after 64 threads of a block have returned",
    "product_of_few_lanes": r"a matrix product needs a warp of 32 lanes, this one has 24, at mma\.m16n8k16",
    "trap": "the kernel gave up, at __trap",
    "endless_spin": r"endless spin: .* threads at __nanosleep .*first block \(1, 0, 0\)",
    "endless_spin_without_pauses": "endless spin: 8 threads at relaxed load",
    "rank_too_large": "rank 4 of a cluster of 4, at map_shared_rank",
    "foreign_address": "0x[0-9a-f]+ is not in this block's shared memory",
    "missing_cluster_barrier_before": "the block of rank . may not have begun",
    "missing_cluster_barrier_after": "the block of rank 0 has returned, and its shared memory with it",
    "cooperative_too_much_static_memory": "launch of 11 blocks .* the device holds 2 x 5, at shared array fixed",
}
REFUSED = {
    "no_blocks": (INVALID_CONFIGURATION, r"a grid must have .*: grid \(0, 1, 1\)"),
    "no_threads": (INVALID_CONFIGURATION, r"a block must have 1 to 1024 threads.*block \(0, 1, 1\)"),
    "too_many_threads": (INVALID_CONFIGURATION, r"a block must have 1 to 1024 threads.*block \(1025, 1, 1\)"),
    "grid_not_of_clusters": (INVALID_CONFIGURATION, r"divide grid\.x: grid \(6, 1, 1\).*cluster 4"),
    "cluster_of_three": (INVALID_CONFIGURATION, "a cluster must be 1, 2, 4, 8 or 16 blocks"),
    "cluster_before_sm_90": (INVALID_CONFIGURATION, r"clusters need compute capability 9\.0"),
    "too_much_dynamic_memory": (INVALID_VALUE, "233472 bytes of dynamic shared memory, the device has 232448"),
    "cooperative_too_many_blocks": (TOO_LARGE, "9 blocks of 1024 threads .* the device holds 4 x 2"),
    "cooperative_too_much_memory": (TOO_LARGE, "5 blocks .* and 122880 bytes of shared memory: the device holds 4 x 1"),
}


def result_of(case: str, seed: str, sanitizer: str = "plain") -> tuple[int, int, str]:
    """What the launch returned, how many results were wrong, and the error's words."""
    done = run_program(selftest(sanitizer), case, seed)
    assert done.returncode == 0, done.stderr
    code, wrong, words = re.search(r"code=(\d+) wrong=(\d+) error=(.*)", done.stdout).groups()  # type: ignore[union-attr]
    return int(code), int(wrong), words


def selftest(sanitizer: str) -> Path:
    return build_program([EMULATOR / "selftest.cc"], sanitizer=sanitizer)


@pytest.mark.parametrize("sanitizer", ["plain", "address", "thread"])
@pytest.mark.parametrize("case", CORRECT)
def test_a_correct_kernel_is_right_under_every_schedule_and_no_sanitizer_objects(case: str, sanitizer: str) -> None:
    for seed in SEEDS:
        assert result_of(case, seed, sanitizer)[:2] == (0, 0)


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_the_launch_with_words_that_name_the_place(case: str) -> None:
    for seed in SEEDS:
        code, _, words = result_of(case, seed)
        assert code == LAUNCH_FAILURE
        assert re.search(MISTAKES[case], words), words
        assert "selftest.cc:" in words


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_a_failed_launch_is_no_find_of_a_sanitizer(sanitizer: str) -> None:
    for case in ("different_barriers", "endless_spin", "cooperative_too_much_static_memory"):
        assert result_of(case, "1", sanitizer)[0] == LAUNCH_FAILURE


@pytest.mark.parametrize("case", REFUSED)
def test_a_launch_that_no_device_takes_is_refused_with_cudas_error_code(case: str) -> None:
    code, _, words = result_of(case, "0")
    assert code == REFUSED[case][0]
    assert re.search(REFUSED[case][1], words), words


def test_more_threads_than_thread_sanitizer_takes_are_refused_with_words() -> None:
    code, _, words = result_of("cooperative_that_fits", "0", "thread")
    assert (code, words) == (INVALID_VALUE, "8192 threads at once; ThreadSanitizer takes 4000")


def test_a_cooperative_launch_that_just_fits_runs() -> None:
    assert result_of("cooperative_that_fits", "1") == (0, 0, "")


@pytest.mark.parametrize(
    "case",
    [
        "missing_barrier",
        "missing_warp_barrier",
        "missing_grid_barrier",
        "missing_cluster_barrier_between",
        "plain_words",
    ],
)
def test_thread_sanitizer_reports_a_missing_barrier_on_every_schedule(case: str) -> None:
    for seed in SEEDS:
        done = run_program(selftest("thread"), case, seed)
        assert done.returncode == SANITIZER_STATUS
        assert "data race" in done.stderr
        assert "selftest.cc:" in done.stderr


@pytest.mark.parametrize("case", ["past_static", "past_dynamic", "past_global"])
def test_address_sanitizer_sees_the_first_element_past_the_end(case: str) -> None:
    done = run_program(selftest("address"), case, "0")
    assert done.returncode == SANITIZER_STATUS
    assert re.search("heap-buffer-overflow.*selftest.cc:[0-9]+ in read_past_the_end", done.stderr)


def test_a_kernel_that_looks_at_one_word_of_a_vector_sees_it_torn_under_some_schedule() -> None:
    assert result_of("torn_vector", "0") == (0, 0, "")
    assert any(result_of("torn_vector", str(seed))[1] for seed in range(1, 6))


def order_of(seed: str) -> list[int]:
    done = run_program(selftest("plain"), "order", seed)
    return [int(number) for number in done.stdout.splitlines()[0].split()]


def test_seed_zero_runs_threads_and_blocks_in_the_order_of_their_numbers() -> None:
    assert order_of("0") == list(range(32))


def test_a_seed_is_one_schedule_and_another_seed_another() -> None:
    assert order_of("1") == order_of("1")
    assert sorted(order_of("1")) == sorted(order_of("2")) == list(range(32))
    assert order_of("1") != order_of("2")
    assert [number // 8 for number in order_of("1")] != sorted(number // 8 for number in order_of("1"))
