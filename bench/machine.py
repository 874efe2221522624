"""The machine a bench runs on, in words: enough to judge a figure and to repeat it. Measures nothing itself."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

_MIB = 1 << 20
_CPU_NUMBERS = {
    "cpu family": "family", "model": "model", "stepping": "stepping", "CPU implementer": "implementer",
    "CPU part": "part",
}


def describe() -> dict[str, str]:
    """CPU, caches, cores this process may use, system, Python and the machine's load."""
    return {
        "cpu": _cpu_name(),
        "caches": ", ".join(f"{level} {size / 1024:,.0f} KiB" for level, size in cache_sizes().items()) or "unknown",
        "cores": f"{len(usable_cores()) or os.cpu_count()} usable",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def file_name(cpu: str) -> str:
    """The name of the file for the results of a kind of CPU: amd-epyc-26-2-1.json."""
    telling = re.sub(rf"\((?:r|tm)\)|\b(?:{'|'.join(_CPU_NUMBERS.values())})\b", " ", cpu.lower())
    return "-".join(re.findall(r"[a-z0-9]+", telling)) + ".json"


def usable_cores() -> list[int]:
    """The cores this process may be pinned to; empty if the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def cache_sizes() -> dict[str, int]:
    """Bytes of the data caches: L1, L2, L3. Empty if the system does not say."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction" and (found := re.fullmatch(r"(\d+)([KM]?)", size)):
            sizes[f"L{level}"] = int(found[1]) * {"": 1, "K": 1024, "M": _MIB}[found[2]]
    return sizes


def read_sizes() -> dict[str, int]:
    """Bytes to read repeatedly to measure each cache's and the memory's speed: {"L1": ..., "memory": ...}.

    Half of a cache, for L3 at most 8 times L2, because other cores use it too; for memory more than all caches hold.
    """
    caches = cache_sizes()
    sizes = {level: size // 2 for level, size in caches.items()}
    if "L3" in sizes and "L2" in sizes:
        sizes["L3"] = min(sizes["L3"], 8 * caches["L2"])
    return sizes | {"memory": min(max(2 * sum(caches.values()), 64 * _MIB), _quarter_of_memory())}


def _quarter_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def _cpu_name() -> str:
    """The model's name and, since that may be the same for several kinds ("AMD EPYC"), its numbers."""
    fields: dict[str, str] = {}
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.exists() else []:
        field, _, value = line.partition(":")
        fields.setdefault(field.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or "unknown"
    numbers = ", ".join(f"{word} {fields[field]}" for field, word in _CPU_NUMBERS.items() if field in fields)
    return f"{name} ({numbers})" if numbers else name
