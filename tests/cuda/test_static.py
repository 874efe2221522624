"""What the CUDA kernels become on every architecture, without a GPU: no spills, tensor cores, whole vectors, no races.

nvcc compiles for real; NVIDIA's disassembler shows the machine's instructions; sentryward reasons about the PTX of the
step kernels. Each test is skipped, with the reason, where its tool is missing.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import lstmfast
from lstmfast import _core
from lstmfast.cuda import _library
from support.cuda_cases import BFLOAT16, FLOAT32, Variant, variants
from support.cuda_tools import (
    ARCHITECTURES,
    SOURCE,
    count,
    cubin,
    folder,
    instructions,
    kernel_name,
    nvcc,
    ptx,
    resources,
    tool,
)
from support.kernel_builds import CSRC

needs_nvcc = pytest.mark.skipif(tool("nvcc") is None, reason="needs nvcc: pip install 'cuda-toolkit[nvcc,cudart,cccl]'")
needs_nvdisasm = pytest.mark.skipif(
    tool("nvcc") is None or tool("nvdisasm") is None,
    reason="needs nvcc, and nvdisasm: pip install nvidia-cuda-nvdisasm",
)
needs_sentryward = pytest.mark.skipif(
    tool("nvcc") is None or importlib.util.find_spec("sentryward") is None,
    reason="needs nvcc, and sentryward: pip install sentryward",
)

TENSOR_CORES = ["80", "90", "100"]
TENSOR_CORE_SEQUENCES = [*variants("Forward", BFLOAT16), *variants("Backward", BFLOAT16)]
FLOAT32_SEQUENCES = [*variants("Forward", FLOAT32), *variants("Backward", FLOAT32)]
SEQUENCES = TENSOR_CORE_SEQUENCES + FLOAT32_SEQUENCES
STEPS = [
    "forward_step_float32<1>", "forward_step_float32<4>", "forward_step_bfloat16",
    "backward_step_float32<1>", "backward_step_float32<4>", "backward_step_bfloat16",
]


@needs_nvcc
@pytest.mark.sweep
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_without_spills_local_memory_or_warnings(architecture: str) -> None:
    _, done = cubin(architecture)
    assert done.returncode == 0, done.stderr
    assert {*STEPS, *(variant.kernel for variant in SEQUENCES)} <= set(resources(architecture))


@needs_nvcc
@pytest.mark.sweep
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_block_of_every_kernel_finds_its_registers_and_shared_memory_on_an_sm(architecture: str) -> None:
    used = resources(architecture)
    for variant in SEQUENCES:
        registers, static_bytes = used[variant.kernel]
        allocated = -(-registers // 8) * 8  # a warp's registers come in units of 8 a thread
        assert allocated * variant.threads <= 65536, variant
        assert static_bytes == 0, variant  # the plan counts dynamic shared memory alone
    for step in STEPS:
        registers, static_bytes = used[step]
        assert registers * 256 * 2 <= 65536, step  # two blocks an SM: one waits for memory, one computes
        assert static_bytes <= 48 * 1024, step


@needs_nvdisasm
@pytest.mark.parametrize("architecture", TENSOR_CORES)
@pytest.mark.parametrize("variant", TENSOR_CORE_SEQUENCES, ids=lambda variant: variant.kernel)
def test_a_sequence_kernel_keeps_its_weights_in_registers_and_multiplies_on_tensor_cores(
    variant: Variant, architecture: str
) -> None:
    found = instructions(architecture)[variant.kernel]
    # Two products of depth 16 to a chunk, forward for two pairs of gates; each stands once, in the loop over time.
    products = 2 * variant.lane_depths * (2 * variant.lane_units if variant.is_forward else 1)
    assert count(found, "HMMA") == products
    assert_stays_on_chip(variant, found, asked_for=variant.lane_depths, weight_vectors=products)


@needs_nvdisasm
@pytest.mark.parametrize("architecture", TENSOR_CORES)
@pytest.mark.parametrize("variant", FLOAT32_SEQUENCES, ids=lambda variant: variant.kernel)
def test_a_float32_sequence_kernel_keeps_its_weights_in_registers_and_multiplies_in_float32(
    variant: Variant, architecture: str
) -> None:
    found = instructions(architecture)[variant.kernel]
    rows_at_once = 2 if variant.lane_depths >= 4 else 4
    weights = 4 * variant.lane_depths * variant.lane_units  # of a lane
    assert count(found, "FFMA") >= weights * rows_at_once
    assert count(found, "HMMA") == 0
    assert_stays_on_chip(variant, found, asked_for=rows_at_once * variant.lane_depths, weight_vectors=weights // 4)


def assert_stays_on_chip(variant: Variant, found: Counter[str], *, asked_for: int, weight_vectors: int) -> None:
    """Weights come once, in vectors; exchanged rows in vectors too, past L1; nothing is spilled, nothing is atomic."""
    assert count(found, "LDL|STL") == 0
    assert count(found, r"ATOM|RED\b") == 0
    if variant.path == "SEQUENCE":  # every vector is asked for once before the wait and once in it
        assert count(found, r"LDG?\.E\.128\.STRONG\.GPU") == 2 * asked_for
        assert count(found, "BAR") == 1
    else:
        assert count(found, r"LD.*STRONG") == 0
    assert count(found, r"LDG\.E\.128(\.CONSTANT)?$") >= weight_vectors


@needs_nvdisasm
@pytest.mark.parametrize("architecture", TENSOR_CORES)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_kernel_reads_whole_vectors_and_has_no_atomics(step: str, architecture: str) -> None:
    found = instructions(architecture)[step]
    assert count(found, r"LDG\.E\.128") >= 8
    assert count(found, "HMMA" if step.endswith("bfloat16") else "FFMA") >= 16
    assert count(found, r"LDL|STL|ATOM|RED\b") == 0
    assert count(found, "BAR") == 1


@needs_nvdisasm
def test_clusters_synchronise_in_hardware_from_sm_90_on() -> None:
    for variant in SEQUENCES:
        if variant.path == "CLUSTER":
            assert count(instructions("90")[variant.kernel], "UCGABAR") > 0
            assert count(instructions("80")[variant.kernel], "UCGABAR") == 0


def test_all_inline_ptx_stands_in_one_file_one_instruction_to_a_function() -> None:
    sources = [*(CSRC / "cuda").glob("*.cu*"), *(CSRC / "cuda").glob("*.h"), *(CSRC / "cuda").glob("*.cc")]
    with_asm = {source.name for source in sources if re.search(r"\basm\b", source.read_text())}
    assert with_asm == {"portable.cuh"}
    text = (CSRC / "cuda" / "portable.cuh").read_text()
    bodies = re.findall(r"asm volatile\((.*?)\);\n", text, re.DOTALL)
    instructions_of = [re.findall(r"([a-z]+\.[\w.:]+) ", body) for body in bodies]
    assert instructions_of == [
        ["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"],
        ["ld.relaxed.gpu.global.v4.u32"],
        ["ld.relaxed.gpu.global.u32"],
        ["st.relaxed.gpu.global.u32"],
        ["st.relaxed.gpu.global.v2.u32"],
    ]


# --- the library ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library() -> Path:
    """The library as nvcc makes it, for one architecture."""
    target = folder() / "liblstmfast_cuda.so"
    flags = [
        "-shared",
        "-cudart",
        "static",
        "-Xcompiler",
        "-fPIC,-fvisibility=hidden",
        "-Xlinker",
        "--exclude-libs,ALL",
    ]
    done = nvcc("-arch=sm_90", *flags, "-o", str(target), str(SOURCE), str(CSRC / "cuda" / "plan.cc"))
    assert done.returncode == 0, done.stderr
    return target


@needs_nvcc
def test_the_library_loads_without_a_driver_and_reports_no_devices_and_why(library: Path) -> None:
    loaded = _library.Library(library)
    devices, reason = loaded.device_count()
    if devices:
        pytest.skip("there is a GPU here")
    assert not loaded.is_emulated
    assert "driver" in reason or "device" in reason


@needs_nvcc
def test_a_launch_without_a_driver_returns_an_error_code(library: Path) -> None:
    if _library.Library(library).device_count()[0]:
        pytest.skip("there is a GPU here")
    functions: Any = ctypes.CDLL(str(library))
    device = _library.Device(9, 0, 132, 232448, 65536, 2048, 1755, 1, 50 << 20)
    plan = _library.Plan()
    sizes = (ctypes.c_int64(64), ctypes.c_int64(4), 1, 0)
    assert functions.lstmfast_cuda_plan(ctypes.byref(device), *sizes, ctypes.byref(plan)) == 0
    functions.lstmfast_cuda_workspace_bytes.restype = ctypes.c_int64
    size = functions.lstmfast_cuda_workspace_bytes(ctypes.byref(plan), ctypes.c_int64(2), 0)
    somewhere = 256  # never followed: there is no device
    arguments = _library.Forward(
        time_steps=2, z=somewhere, recurrent_kernel=somewhere, recurrent_kernel_stride=256, h=somewhere, h_n=somewhere,
        c_n=somewhere, workspace=somewhere, workspace_bytes=size,
    )
    assert functions.lstmfast_cuda_forward(ctypes.byref(plan), ctypes.byref(arguments), None) > 0


@needs_nvcc
def test_the_library_offers_the_abi_and_nothing_else(library: Path) -> None:
    listed = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    offered = {line.split()[-1] for line in listed.splitlines()}
    declared = set(re.findall(r"\b(lstmfast_cuda_\w+)\(", (CSRC / "cuda" / "lstmfast_cuda.h").read_text()))
    assert offered == declared


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_the_cpu_extension_and_the_package_depend_on_nothing_of_cuda() -> None:
    needed = subprocess.run(["readelf", "-d", _core.__file__], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"NEEDED.*(cuda|nvidia|cublas)", needed, re.IGNORECASE)
    required = importlib.metadata.requires("lstmfast") or []
    assert not [name for name in required if re.search(r"cuda|nvidia|cupy", name) and "extra" not in name]
    assert Path(str(lstmfast.__file__)).parent.joinpath("cuda").is_dir()


# --- races ------------------------------------------------------------------------------------------------------------

# Offsets of the structs in step.cuh: time_steps, batch, hidden, reverse come first; then what a launch is told.
_FORWARD_STEP = {0: 3, 12: 0, 40: 0, 96: 1, 100: 0, 104: 0}
_BACKWARD_STEP = {0: 3, 12: 0, 104: 1, 108: 0, 112: 2}
_LENGTHS, _RESETS = 16, 24
RACES = {  # kernel -> blocks, rows, scalars by offset
    "forward_step_float32<1>": (4, 4, {**_FORWARD_STEP, 4: 4, 8: 32, 108: 4}),
    "forward_step_float32<4>": (4, 16, {**_FORWARD_STEP, 4: 16, 8: 32, 108: 16}),
    "forward_step_bfloat16": (4, 16, {**_FORWARD_STEP, 4: 16, 8: 32, 108: 16}),
    "backward_step_float32<1>": (4, 4, {**_BACKWARD_STEP, 4: 4, 8: 32, 116: 4}),
    "backward_step_float32<4>": (4, 16, {**_BACKWARD_STEP, 4: 16, 8: 32, 116: 16}),
    "backward_step_bfloat16": (2, 8, {**_BACKWARD_STEP, 4: 8, 8: 32, 116: 8}),
}
# sentryward 0.1.1 proves these; of the others it says that it does not know, which is no answer.
PROVEN = ["forward_step_float32<1>", "forward_step_bfloat16", "backward_step_float32<1>"]


def verdict(kernel: str, source: Path, tmp_path: Path) -> str:
    """What sentryward says of a step kernel without lengths and resets."""
    blocks, _, scalars = RACES[kernel]
    entries = re.findall(r"\.entry (\w+)\(", source.read_text())
    (entry,) = [name for name in entries if kernel_name(name) == kernel]
    values = [{"parameter": 0, "offset": offset, "type": "s32", "value": value} for offset, value in scalars.items()]
    nulls = [{"parameter": 0, "offset": offset, "type": "u64", "value": 0} for offset in (_LENGTHS, _RESETS)]
    launch = {"grid_dim": [blocks, 1, 1], "block_dim": [256, 1, 1], "cluster_dim": [1, 1, 1], "dynamic_shared_bytes": 0}
    problem = {"schema": "spverify.kernel-input/v1", "entry": entry, "launch": launch, "arguments": values + nulls}
    (tmp_path / "input.json").write_text(json.dumps(problem))
    command = [
        sys.executable,
        "-m",
        "sentryward",
        str(source),
        "--input",
        str(tmp_path / "input.json"),
        "--timeout",
        "60",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return str(json.loads(done.stdout)["result"])


@needs_sentryward
@pytest.mark.parametrize("kernel", RACES)
def test_sentryward_finds_no_race_in_a_step_kernel(kernel: str, tmp_path: Path) -> None:
    found = verdict(kernel, ptx("100"), tmp_path)
    assert found == "race_free" if kernel in PROVEN else found in ("race_free", "unsupported", "timeout")


@needs_sentryward
@pytest.mark.parametrize("kernel", PROVEN)
def test_sentryward_finds_the_race_where_the_barrier_is_taken_out(kernel: str, tmp_path: Path) -> None:
    without = tmp_path / "without_barrier.ptx"
    without.write_text(ptx("100").read_text().replace("bar.sync", "// bar.sync"))
    assert verdict(kernel, without, tmp_path) == "potential_race"
