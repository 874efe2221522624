"""Sequences for the CUDA kernels, run by the emulator in a separate program, and compared with the reference.

A test helper: `Case` makes random arguments, `run` writes them to files for `cuda_driver.cc` and reads the results,
`differences` lists their errors. The driver is built once per sanitizer and contains every planted bug; an argument
selects the active one.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmfast import reference
from support import tolerances
from support.cuda_builds import build_program, run_program
from support.kernel_builds import CSRC
from support.oracles import random_lengths, random_resets

Array = npt.NDArray[Any]
SUPPORT = Path(__file__).resolve().parent

FLOAT32, BFLOAT16 = 0, 1
STEP, SEQUENCE, CLUSTER = 1, 2, 3
PATH_NAMES = {STEP: "step", SEQUENCE: "sequence", CLUSTER: "cluster"}


@dataclass(frozen=True)
class Gpu:
    """Properties of a device that plans depend on."""

    compute_major: int
    compute_minor: int
    sm_count: int
    shared_bytes: int


H100 = Gpu(9, 0, 132, 227 * 1024)
A100 = Gpu(8, 0, 108, 163 * 1024)
TEN_SMS = Gpu(8, 0, 10, 163 * 1024)  # of an A100: blocks must hold more units


@dataclass(frozen=True)
class Case:
    """One problem: a shape, options, and the device it is planned for."""

    batch: int
    hidden: int
    dtype: int = BFLOAT16
    path: int = SEQUENCE
    time_steps: int = 4
    ragged: bool = False  # with lengths and resets
    reverse: bool = False
    z_dtype: int = FLOAT32
    states: bool = True  # h0, c0 and the gradients of the last state are given
    gpu: Gpu = H100
    forward_only: bool = False
    spin_limit: int = 0
    reuse_weights: bool = False  # a second forward call gets none
    initial_nan: bool = False  # h0 holds the NaN that marks missing words of h

    def __str__(self) -> str:
        name = f"{PATH_NAMES[self.path]}-{['float32', 'bfloat16'][self.dtype]}-{self.batch}x{self.hidden}"
        name += "-ragged" * self.ragged + "-reverse" * self.reverse + "-forward" * self.forward_only
        return name + f"-{self.gpu.sm_count}sms" * (self.gpu != H100)

    def arguments(self) -> dict[str, Array | None]:
        """Random arguments that the kernels' dtypes hold exactly; a case always has the same."""
        steps, batch, hidden = self.time_steps, self.batch, self.hidden
        rng = np.random.default_rng([steps, batch, hidden, self.dtype, self.ragged, self.reverse])
        stored = to_bfloat16 if self.dtype == BFLOAT16 else np.float32
        values: dict[str, Array | None] = {
            "z": rng.standard_normal((steps, batch, 4 * hidden)),
            "recurrent_kernel": stored(rng.standard_normal((hidden, 4 * hidden)) / np.sqrt(hidden)),
            "h0": stored(rng.uniform(-1, 1, (batch, hidden))),
            "c0": rng.standard_normal((batch, hidden)).astype(np.float32),
            "lengths": random_lengths(rng, steps, batch).astype(np.int32),
            "resets": random_resets(rng, steps, batch),
            "d_h": stored(rng.standard_normal((steps, batch, hidden))),
            "d_h_n": stored(rng.standard_normal((batch, hidden))),
            "d_c_n": rng.standard_normal((batch, hidden)).astype(np.float32),
        }
        values["z"] = to_bfloat16(values["z"]) if self.z_dtype == BFLOAT16 else values["z"].astype(np.float32)
        absent = [] if self.ragged else ["lengths", "resets"]
        if not self.states:
            absent += ["h0", "c0", "d_h", "d_h_n", "d_c_n"]
        values |= dict.fromkeys(absent)
        if self.initial_nan:
            bits = np.uint16 if self.dtype == BFLOAT16 else np.uint32
            values["h0"].view(bits)[0, 0] = np.iinfo(bits).max
        return values


def to_bfloat16(values: Array) -> Array:
    """Values rounded to bfloat16 (nearest, ties to even), as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(values: Array | None) -> Array | None:
    """float64 of float32, or of bfloat16 as uint16."""
    if values is None:
        return None
    if values.dtype == np.uint16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


@dataclass(frozen=True)
class Result:
    """Results of a case: error codes and statuses, the variants that ran, and the arrays, widened to float64."""

    plan_code: int
    forward_code: int
    forward_status: int
    backward_code: int
    backward_status: int
    forward_variant: int
    backward_variant: int
    groups: int
    arrays: dict[str, Array]


def driver(sanitizer: str) -> Path:
    """The driver program, with all planted bugs inactive."""
    sources = [SUPPORT / "cuda_driver.cc", CSRC / "cuda" / "lstmfast_cuda.cu", CSRC / "cuda" / "plan.cc"]
    planted = SUPPORT / "cuda_planted.h"
    flags = ["-DLSTMFAST_PLANTED_BUGS", f"-I{SUPPORT}"]
    return build_program(sources, sanitizer=sanitizer, flags=flags, watched=[planted])


def run(
    cases: Sequence[Case], folder: Path, *, sanitizer: str = "plain", seed: int = 0, bug: str = "none"
) -> tuple[subprocess.CompletedProcess[str], list[Result]]:
    """Run cases in one process; no results if it failed."""
    files = [folder / f"{number}.case" for number in range(len(cases))]
    for case, file in zip(cases, files, strict=True):
        write(case, file)
    done = run_program(driver(sanitizer), str(seed), bug, *map(str, files))
    outputs = [file.with_suffix(".case.out") for file in files]
    if done.returncode != 0:
        return done, []
    return done, [read(case, file) for case, file in zip(cases, outputs, strict=True)]


def write(case: Case, file: Path) -> None:
    """The problem as the driver reads it."""
    arguments = case.arguments()
    given = sum(1 << bit for bit, array in enumerate(arguments.values()) if array is not None)
    gpu = case.gpu
    header = [
        case.time_steps, case.batch, case.hidden, case.dtype, case.z_dtype, case.path, case.reverse, case.spin_limit,
        gpu.compute_major, gpu.compute_minor, gpu.sm_count, gpu.shared_bytes, case.forward_only,
        case.reuse_weights, given,
    ]
    arrays = [array.tobytes() for array in arguments.values() if array is not None]
    file.write_bytes(np.array(header, np.int64).tobytes() + b"".join(arrays))


def read(case: Case, file: Path) -> Result:
    """Read the driver's results."""
    data = file.read_bytes()
    codes = np.frombuffer(data, np.int64, 8)
    state = (case.batch, case.hidden)
    exchanged = np.uint16 if case.dtype == BFLOAT16 else np.float32
    shapes = {
        "h": ((case.time_steps, *state), exchanged),
        "h_n": (state, exchanged),
        "c_n": (state, np.float32),
        "gates": ((case.time_steps, case.batch, 4, case.hidden), np.float32),
        "cells": ((case.time_steps, *state), np.float32),
        "d_z": ((case.time_steps, case.batch, 4 * case.hidden), exchanged),
        "d_h0": (state, exchanged),
        "d_c0": (state, np.float32),
    }
    arrays, offset = {}, codes.nbytes
    for name, (shape, dtype) in shapes.items():
        array = np.frombuffer(data, dtype, int(np.prod(shape)), offset).reshape(shape)
        arrays[name], offset = widened(array), offset + array.nbytes
    return Result(*(int(code) for code in codes), arrays)


def expected(case: Case, result: Result) -> dict[str, Array]:
    """The reference's results in float64. Where rows travel as bfloat16, every step begins with the rounded row that
    the kernel itself handed on, so that a step's results may differ by one rounding and no more."""
    arguments = {name: widened(array) for name, array in case.arguments().items() if name not in ("lengths", "resets")}
    lengths, resets = (case.arguments()[name] for name in ("lengths", "resets"))
    kernel = np.concatenate([np.eye(4 * case.hidden), arguments["recurrent_kernel"]])
    bias = np.zeros(4 * case.hidden)
    own = result.arrays if case.dtype == BFLOAT16 else None
    state = np.zeros((case.batch, case.hidden))
    h0, c0, d_h_n, d_c_n = (
        state if arguments[name] is None else arguments[name] for name in ("h0", "c0", "d_h_n", "d_c_n")
    )
    with np.errstate(invalid="ignore"):
        out = reference.lstm(arguments["z"], kernel, bias, h0, c0, lengths=lengths, resets=resets, reverse=case.reverse)
        if own is not None:
            out = _retraced(case, out, arguments["z"], kernel, bias, h0, c0, own["h"])
        results = {name: getattr(out, name) for name in ("h", "h_n", "c_n", "gates", "cells")}
        if case.forward_only:
            return results
        d_h = np.zeros_like(out.h) if arguments["d_h"] is None else arguments["d_h"]
        return results | _backward(case, out, d_h, d_h_n, d_c_n, None if own is None else own["d_z"])


def _retraced(
    case: Case, out: reference.Output, z: Array, kernel: Array, bias: Array, h0: Array, c0: Array, own_h: Array
) -> reference.Output:
    """The reference's output where every step takes h from `own_h` and c from its own step before."""
    tape, h, c = out.tape, h0.copy(), c0.copy()
    h_all, cells, gates_all, c_prev = (np.zeros_like(a) for a in (out.h, out.cells, out.gates, tape.c_prev))
    for t in tape.order:
        useful, anew = tape.useful[t], tape.starts_anew[t]
        c_prev[t] = np.where(useful & ~anew, c, 0)
        step = reference.lstm(z[t][None], kernel, bias, np.where(useful & ~anew, h, 0), c_prev[t])
        h_all[t], cells[t] = np.where(useful, step.h[0], 0), np.where(useful, step.cells[0], 0)
        gates_all[t] = np.where(useful[:, :, None], step.gates[0], 0)
        h, c = np.where(useful, own_h[t], h), np.where(useful, cells[t], c)
    return reference.Output(h_all, h, c, cells, gates_all, replace(tape, c_prev=c_prev, m=h_all))


def _backward(
    case: Case, out: reference.Output, d_h: Array, d_h_n: Array, d_c_n: Array, own_d_z: Array | None
) -> dict[str, Array]:
    """Gradients of z, h0 and c0; products take the gradients of z that the kernel itself handed on, if given."""
    if own_d_z is None:
        gradients = reference.lstm_backward(out, d_h, d_h_n, d_c_n)
        return {"d_z": gradients.x, "d_h0": gradients.h0, "d_c0": gradients.c0}
    tape, d_z = out.tape, np.zeros_like(own_d_z)
    recurrent_kernel = tape.kernel[4 * case.hidden :]
    for t in reversed(tape.order):
        useful, anew = tape.useful[t], tape.starts_anew[t]
        d_h_t = np.where(useful, d_h[t] + d_h_n, 0)
        d_z[t], d_c_prev, _ = reference._cell_backward(
            d_h_t, d_c_n, out.gates[t], tape.c_prev[t], out.cells[t], tape.variant, tape.factors[t]
        )
        d_h_n = np.where(useful, np.where(anew, 0, own_d_z[t] @ recurrent_kernel.T), d_h_n)
        d_c_n = np.where(useful, np.where(anew, 0, d_c_prev), d_c_n)
    return {"d_z": d_z, "d_h0": d_h_n, "d_c0": d_c_n}


def differences(case: Case, result: Result) -> list[str]:
    """Errors of a result, in words; empty if there are none."""
    codes = {
        name: getattr(result, name)
        for name in ("plan_code", "forward_code", "forward_status", "backward_code", "backward_status")
    }
    wrong = [f"{name} {code}" for name, code in codes.items() if code != 0]
    if wrong:
        return wrong
    for name, want in expected(case, result).items():
        rounded = case.dtype == BFLOAT16 and name in ("h", "h_n", "d_z", "d_h0")
        tolerance = tolerances.ONE_BFLOAT16_ROUNDING if rounded else tolerances.CUDA_FLOAT32
        got = result.arrays[name]
        if not np.allclose(got, want, **tolerance, equal_nan=True):
            worst = np.max(np.abs(got - want), where=~np.isnan(got - want), initial=0)
            wrong.append(f"{name} is off by {worst:.1e}, {np.isnan(got).sum()} are NaN")
    return wrong


@dataclass(frozen=True)
class Variant:
    """A row of the tables in csrc/cuda/plan.h: how the warps of a sequence kernel's block divide the product."""

    kernel: str
    is_forward: bool
    dtype: int
    path: str
    unit_warps: int
    depth_warps: int
    lane_depths: int  # bfloat16: chunks of 32, of a warp; float32: vectors of 4
    lane_units: int  # bfloat16: tiles of units; float32: values, 4 to a unit forward
    rows: int  # bfloat16: in tiles of 8

    @property
    def threads(self) -> int:
        return 32 * self.unit_warps * self.depth_warps

    @property
    def block_units(self) -> int:
        if self.dtype == BFLOAT16:
            return self.unit_warps * self.lane_units * (8 if self.is_forward else 16)
        return self.unit_warps * self.lane_units // (4 if self.is_forward else 1)

    @property
    def most_depth(self) -> int:
        return self.depth_warps * self.lane_depths * (32 if self.dtype == BFLOAT16 else 32 * 4)

    @property
    def row_step(self) -> int:
        return 8 if self.dtype == BFLOAT16 else 4

    @property
    def most_rows(self) -> int:
        return self.rows * (8 if self.dtype == BFLOAT16 else 1)


def variants(direction: str, dtype: int) -> list[Variant]:
    """The variants of a direction, "Forward" or "Backward", in the order of their numbers."""
    text = (CSRC / "cuda" / "plan.h").read_text()
    float32, suffix = ("Float32", "_float32") if dtype == FLOAT32 else ("", "")
    (table,) = re.findall(rf"k{direction}{float32}Variants\[\] = \{{\n(.*?)\n\}};", text, re.DOTALL)
    rows = re.findall(r"\{LSTMFAST_CUDA_(\w+), (\d+), (\d+), (\d+), (\d+), (\d+)\}", table)
    kernel = f"{direction.lower()}_sequence{suffix}"
    return [
        Variant(f"{kernel}<{number}>", direction == "Forward", dtype, path, *map(int, sizes))
        for number, (path, *sizes) in enumerate(rows)
    ]
