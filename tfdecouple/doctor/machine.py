"""What figures depend on: the processor, its cores, the versions, and how busy the machine is."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
from typing import Any


def machine() -> dict[str, Any]:
    """Returns what figures depend on: processor, cores, versions and how busy the machine is."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
    }


def instructions() -> list[str]:
    """Returns which of the instructions that matter the processor has, as Linux tells them."""
    flags = _cpuinfo("flags").split()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor()


def _cpuinfo(field: str) -> str:
    """Returns what Linux says first of a field of the processors; "" where it says nothing."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
