"""The machine a bench ran on, in words: enough to judge a figure and to repeat it. Measures nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe() -> dict[str, str]:
    """CPU, cores this process may use, system, Python and how busy the machine was before the bench."""
    return {
        "cpu": _cpu_name(),
        "cores": f"{len(usable_cores()) or os.cpu_count()} usable",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def usable_cores() -> list[int]:
    """The cores this process may be pinned to; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
