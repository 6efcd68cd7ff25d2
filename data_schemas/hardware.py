"""The name of the CPU that a process may use: a stage records it, and the planner compares it with its own."""

import os
from pathlib import Path


def cpu_name() -> str:
    """As in `Xeon Platinum 8488C, 2 cores`."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return f"{_model()}, {cores} core{'' if cores == 1 else 's'}"


def _model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
