"""NVIDIA's compiler and disassembler, for tests of the compiled kernels. Contains no tests.

Each is taken from PATH or from the wheels of PyPI in this environment (`cuda-toolkit[nvcc,cudart,cccl]==13.0.*`,
`nvidia-cuda-nvdisasm>=13.2`), whichever is there. No GPU is needed.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from support.kernel_builds import CSRC

SOURCE = CSRC / "cuda" / "lstmfast_cuda.cu"
ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]
STRICT = ["-Xptxas=-v,-warn-spills,-warn-lmem-usage", "-Werror=all-warnings"]


def tool(name: str) -> str | None:
    """The path of a CUDA tool, or None."""
    if found := shutil.which(name):
        return found
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        candidate = Path(folder, "cu13", "bin", name)
        if candidate.exists():
            candidate.chmod(candidate.stat().st_mode | 0o111)
            return str(candidate)
    return None


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="lstmfast-cuda-static-"))


def nvcc(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the compiler with the flags common to all builds of the kernels."""
    command = [str(tool("nvcc")), "-O3", "-std=c++17", "-I", str(CSRC), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@functools.cache
def cubin(architecture: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The kernels of one architecture, with spills and local memory as errors, and the compiler's output."""
    target = folder() / f"sm_{architecture}.cubin"
    return target, nvcc(f"-arch=sm_{architecture}", *STRICT, "-cubin", "-o", str(target), str(SOURCE))


@functools.cache
def ptx(architecture: str) -> Path:
    target = folder() / f"sm_{architecture}.ptx"
    done = nvcc(f"-arch=sm_{architecture}", "-ptx", "-o", str(target), str(SOURCE))
    assert done.returncode == 0, done.stderr
    return target


def kernel_name(mangled: str) -> str:
    """forward_sequence<4>, forward_step_bfloat16, ... from a mangled name; other names unchanged."""
    matched = re.search(r"\d((?:forward|backward)_(?:step|sequence)\w*?)(?:ILi(\d+)E|E)", mangled)
    if not matched:
        return mangled
    name, number = matched.groups()
    return f"{name}<{number}>" if number else name


@functools.cache
def resources(architecture: str) -> dict[str, tuple[int, int]]:
    """Kernel -> registers of a thread and bytes of static shared memory, as ptxas reports them."""
    report = cubin(architecture)[1].stderr
    found = re.findall(r"entry function '(\w+)'.*?Used (\d+) registers([^\n]*)", report, re.DOTALL)
    shared = {name: re.search(r"(\d+) bytes smem", rest) for name, _, rest in found}
    return {kernel_name(n): (int(regs), int(shared[n][1]) if shared[n] else 0) for n, regs, _ in found}


@functools.cache
def instructions(architecture: str) -> dict[str, Counter[str]]:
    """Kernel -> count of each machine instruction in it."""
    disassembler = [str(tool("nvdisasm")), "-c", str(cubin(architecture)[0])]
    text = subprocess.run(disassembler, capture_output=True, text=True, check=True).stdout
    found = {}
    for section in re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]:
        mangled, body = section.split(":", 1)
        operations = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", body, re.MULTILINE)
        found[kernel_name(mangled)] = Counter(operations)
    return found


def count(operations: Counter[str], pattern: str) -> int:
    return sum(number for name, number in operations.items() if re.match(pattern, name))
