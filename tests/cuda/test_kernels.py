"""The CUDA kernels, run on the CPU by the emulator of `cuda_emu/`: right, free of races, within their bounds.

Each group of cases runs in a program of its own, plain and under sanitizers, under several schedules. That the runs
would notice is shown by mistakes planted in the kernels, one for each synchronisation and each bound: each must be
caught. What emulation cannot show is told in csrc/cuda/README.md.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.cuda_builds import SANITIZER_STATUS, build_program, run_program
from support.cuda_cases import (
    A100,
    BFLOAT16,
    CLUSTER,
    FLOAT32,
    SEQUENCE,
    STEP,
    SUPPORT,
    TEN_SMS,
    Case,
    differences,
    run,
    variants,
)
from support.kernel_builds import CSRC, compiler

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]

SHAPES = [(1, 1), (1, 16), (3, 37), (5, 64), (4, 33), (9, 100), (2, 129), (17, 7)]
KERNELS = {
    "step-float32": {"dtype": FLOAT32, "path": STEP},
    "step-bfloat16": {"dtype": BFLOAT16, "path": STEP},
    "sequence": {"path": SEQUENCE},
    "sequence-wide-blocks": {"path": SEQUENCE, "gpu": TEN_SMS},
    "cluster": {"path": CLUSTER},
    "one-block": {"path": CLUSTER, "gpu": A100},
    "sequence-float32": {"dtype": FLOAT32, "path": SEQUENCE, "gpu": TEN_SMS},
    "cluster-float32": {"dtype": FLOAT32, "path": CLUSTER},
}
KINDS = {
    "plain": {},
    "ragged": {"ragged": True},
    "ragged-reverse": {"ragged": True, "reverse": True},
    "bare": {"states": False, "z_dtype": BFLOAT16, "reverse": True},
}


def cases_of(kernel: str, kind: str, shapes: list[tuple[int, int]] = SHAPES) -> list[Case]:
    """Every shape that this kernel can take."""
    made = [Case(batch, hidden, **KERNELS[kernel], **KINDS[kind]) for batch, hidden in shapes]
    largest = {"one-block": 128, "sequence-wide-blocks": 128}
    return [case for case in made if case.hidden <= largest.get(kernel, 129)]


def assert_right(cases: list[Case], folder: Path, **options: object) -> None:
    done, results = run(cases, folder, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    wrong = {str(case): differences(case, result) for case, result in zip(cases, results, strict=True)}
    assert {case: words for case, words in wrong.items() if words} == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_agree_with_the_reference_under_several_schedules(kernel: str, kind: str, tmp_path: Path) -> None:
    for seed in (0, 1, 7) if kind == "ragged" else (2,):
        assert_right(cases_of(kernel, kind), tmp_path, seed=seed)


# TSan keeps a shadow of every fiber's history: launches of a few hundred threads, not of thousands.
SANITIZED = {"address": [(3, 37), (9, 100), (17, 7)], "thread": [(1, 16), (3, 37), (17, 7)]}
WITH_MANY_THREADS = {  # clusters of several blocks; several slices
    "cluster": [(3, 37), (9, 65)],
    "sequence-float32": [(3, 37), (6, 20)],
    "cluster-float32": [(3, 37), (6, 20)],
}


@pytest.mark.sweep
@pytest.mark.parametrize("sanitizer", SANITIZED)
@pytest.mark.parametrize("kernel", KERNELS)
def test_sanitizers_find_nothing(kernel: str, sanitizer: str, tmp_path: Path) -> None:
    shapes = SANITIZED[sanitizer]
    if sanitizer == "thread":
        shapes = WITH_MANY_THREADS.get(kernel, shapes)
    cases = [replace(case, time_steps=3) for case in cases_of(kernel, "ragged", shapes)]
    assert_right(cases, tmp_path, sanitizer=sanitizer, seed=3)


def test_results_do_not_depend_on_the_schedule(tmp_path: Path) -> None:
    cases = [Case(9, 100, **kernel, ragged=True) for kernel in KERNELS.values()]
    bits = [
        [[array.tobytes() for array in result.arrays.values()] for result in run(cases, tmp_path, seed=seed)[1]]
        for seed in (0, 5)
    ]
    assert bits[0] == bits[1]


def test_every_variant_of_the_sequence_kernels_is_run(tmp_path: Path) -> None:
    cases = [case for kernel in KERNELS if not kernel.startswith("step") for case in cases_of(kernel, "plain")]
    large = [  # units and depth split over more warps
        Case(1, 528, path=SEQUENCE, time_steps=2),
        Case(1, 272, FLOAT32, SEQUENCE, time_steps=2),
        Case(1, 528, FLOAT32, SEQUENCE, time_steps=2),
    ]
    results = run(cases + large, tmp_path)[1]
    assert [differences(case, result) for case, result in zip(large, results[-len(large) :], strict=True)] == [[]] * 3
    for dtype in (FLOAT32, BFLOAT16):
        ran = [result for case, result in zip(cases + large, results, strict=True) if case.dtype == dtype]
        assert {result.forward_variant for result in ran} == set(range(len(variants("Forward", dtype))))
        assert {result.backward_variant for result in ran} == set(range(len(variants("Backward", dtype))))


def test_a_batch_of_several_slices_and_launches_is_right(tmp_path: Path) -> None:
    few_sms = replace(TEN_SMS, sm_count=4)
    cases = [Case(67, 48, path=SEQUENCE, gpu=few_sms, ragged=True), Case(37, 20, path=CLUSTER, ragged=True)]
    assert_right(cases + [replace(case, dtype=FLOAT32) for case in cases], tmp_path)


def test_a_second_call_can_do_with_the_weights_that_the_first_packed(tmp_path: Path) -> None:
    cases = [Case(3, 37, **kernel, reuse_weights=True, forward_only=True) for kernel in KERNELS.values()]
    assert_right(cases, tmp_path)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_an_initial_nan_stays_in_its_row_and_is_never_taken_for_a_word_that_is_missing(
    dtype: int, tmp_path: Path
) -> None:
    case = Case(2, 37, dtype, initial_nan=True, forward_only=True)
    _, (result,) = run([case], tmp_path)
    assert (result.forward_code, result.forward_status) == (0, 0)
    assert np.isnan(result.arrays["h"][:, 0]).all()
    assert not np.isnan(result.arrays["h"][:, 1]).any()


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_a_word_that_never_comes_ends_the_launch_with_a_status_and_nan_but_no_hang(dtype: int, tmp_path: Path) -> None:
    case = Case(3, 37, dtype, spin_limit=50, forward_only=True)
    _, (result,) = run([case], tmp_path, bug="kUnpublished")
    assert (result.forward_code, result.forward_status) == (0, 1)
    assert np.isnan(result.arrays["h"][2:, 0]).all()


def test_each_one_instruction_function_does_what_its_comment_says() -> None:
    done = run_program(build_program([SUPPORT / "cuda_wrappers.cc"]))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- planted mistakes -------------------------------------------------------------------------------------------------

STEPS = [Case(3, 37, FLOAT32, STEP), Case(9, 37, FLOAT32, STEP), Case(3, 37, path=STEP)]
SEQUENCES = [Case(3, 37, ragged=True, spin_limit=300)]
CLUSTERS = [Case(3, 70, path=CLUSTER)]
WRONG_NUMBERS, REPORTED = "wrong numbers", "an error code or a status"
# The mistake -> the run that must catch it, the cases it runs, and how it is caught.
PLANTED = {
    "kStepBarrier": ("thread", STEPS, "ThreadSanitizer: data race"),
    "kStepDepthBound": ("plain", STEPS[:1], WRONG_NUMBERS),
    "kSequenceBarrier": ("thread", SEQUENCES, "ThreadSanitizer: data race"),
    "kOneBuffer": ("thread", SEQUENCES, "ThreadSanitizer: data race"),
    "kChunkBound": ("address", SEQUENCES, "heap-buffer-overflow"),
    "kRowBound": ("address", SEQUENCES, "heap-buffer-overflow"),
    "kUnitBound": ("address", SEQUENCES, "heap-buffer-overflow"),
    "kLengthBound": ("plain", SEQUENCES, WRONG_NUMBERS),
    "kRawInitialState": ("plain", [Case(2, 37, initial_nan=True, forward_only=True, spin_limit=50)], REPORTED),
    "kUnfilledSlots": ("plain", SEQUENCES, WRONG_NUMBERS),
    "kHalfChecked": ("plain", [Case(3, 37), Case(9, 100), Case(17, 64)], WRONG_NUMBERS),
    "kNotAwaited": ("plain", SEQUENCES, WRONG_NUMBERS),
    "kUnpublished": ("plain", SEQUENCES, REPORTED),
    "kClusterBegin": ("thread", CLUSTERS, "ThreadSanitizer: data race"),
    "kClusterEndStep": ("thread", CLUSTERS, "ThreadSanitizer: data race"),
    "kLastRank": ("plain", [Case(3, 120, path=CLUSTER)], WRONG_NUMBERS),
    "kSharedBytes": ("address", CLUSTERS + SEQUENCES, "heap-buffer-overflow"),
    "kNotCooperative": ("plain", SEQUENCES, REPORTED),
}


def test_every_planted_mistake_has_its_test_and_its_place_in_the_kernels() -> None:
    declared = set(re.findall(r"X\((k\w+)\)", (SUPPORT / "cuda_planted.h").read_text()))
    sources = [*(CSRC / "cuda").glob("*.cu*")]
    used = {name for source in sources for name in re.findall(r"LSTMFAST_PLANTED\((k\w+)\)", source.read_text())}
    assert declared == used == set(PLANTED)


# Those that have another place in the kernels of float32, or mean something else there.
PLANTED_IN_FLOAT32 = [
    "kSequenceBarrier", "kOneBuffer", "kChunkBound", "kRowBound", "kUnitBound", "kRawInitialState", "kUnfilledSlots",
    "kHalfChecked", "kNotAwaited", "kUnpublished", "kClusterBegin", "kClusterEndStep", "kLastRank", "kSharedBytes",
]


@pytest.mark.sweep
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_mistake_is_caught_by_the_run_that_is_meant_to_catch_it(bug: str, tmp_path: Path) -> None:
    assert_caught(bug, PLANTED[bug][1], tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize("bug", PLANTED_IN_FLOAT32)
def test_a_planted_mistake_is_caught_in_float32_sequences_too(bug: str, tmp_path: Path) -> None:
    kernels = {SEQUENCE: KERNELS["sequence-float32"], CLUSTER: KERNELS["cluster-float32"]}
    assert_caught(bug, [replace(case, **kernels[case.path]) for case in PLANTED[bug][1]], tmp_path)


def assert_caught(bug: str, cases: list[Case], folder: Path) -> None:
    """The run that must catch a mistake does, under one of three schedules."""
    sanitizer, _, finding = PLANTED[bug]
    found: list[str] = []
    for seed in (1, 2, 3):
        if found:
            break
        done, results = run(cases, folder, sanitizer=sanitizer, seed=seed, bug=bug)
        if finding in (WRONG_NUMBERS, REPORTED):
            assert done.returncode == 0, done.stderr
            words = [word for case, result in zip(cases, results, strict=True) for word in differences(case, result)]
            pattern = r"(plan|forward|backward)_(code|status) " if finding == REPORTED else r"\w+ is off by|are NaN"
            found += [word for word in words if re.match(pattern, word)]
        elif done.returncode == SANITIZER_STATUS and finding in done.stderr:
            found.append(finding)
    assert found, f"{bug} is no longer caught"
