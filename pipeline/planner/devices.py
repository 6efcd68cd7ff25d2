"""The devices that a recipe may run on: their memory, their peak of arithmetic and their bandwidth.

Peaks are those of dense matrix products in bfloat16 by the vendors' data sheets; memory is what a process finds free.
"""

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from data_schemas.errors import ConfigError
from data_schemas.hardware import cpu_name
from data_schemas.text import nearest
from pipeline.recipe.sections import Launch

GIB = 2**30
QUERY_SECONDS = 20.0  # that nvidia-smi may take


@dataclass(frozen=True)
class Device:
    """One GPU, or the CPU of a machine."""

    name: str
    memory: int  # bytes
    peak: float | None  # floating point operations a second in bfloat16; None: not known, to be measured
    bandwidth: float  # bytes a second
    is_cpu: bool = False
    key: str = ""  # its name in the table; that of the CPU for a CPU

    @property
    def usable(self) -> int:
        """Bytes that a step may fill: the context of CUDA and NCCL, and fragmentation, take the rest."""
        return int(self.memory * 0.97) if self.is_cpu else int(self.memory * 0.95) - GIB


# name -> GiB, TFLOP/s, TB/s
TABLE: dict[str, tuple[float, float, float]] = {
    "b200": (179, 2250, 8.0),
    "h200": (140, 989, 4.8),
    "h100": (79.6, 989, 3.35),
    "a100-80gb": (79.6, 312, 2.0),
    "a100-40gb": (39.6, 312, 1.55),
    "l40s": (44.7, 362, 0.86),
    "l4": (22.5, 121, 0.3),
    "a10g": (22.5, 70, 0.6),
    "rtx-a6000": (47.5, 155, 0.77),
    "rtx-4090": (23.6, 165, 1.0),
    "rtx-3090": (23.6, 71, 0.94),
    "v100-32gb": (31.7, 125, 0.9),
    "t4": (14.7, 65, 0.3),
}


def gpu_named(name: str, *, where: str) -> Device:
    """A GPU of the table. Raises ConfigError for a name that is not in it."""
    key = name.lower().replace(" ", "-").replace("_", "-")
    found = [known for known in TABLE if known.endswith(key)]  # 4090 is rtx-4090
    key = found[0] if key not in TABLE and len(found) == 1 else key
    if key not in TABLE:
        hint = nearest(key, sorted(TABLE))
        raise ConfigError(f"{where}={name!r} is no GPU of the planner's table: {', '.join(TABLE)}{hint}")
    memory, peak, bandwidth = TABLE[key]
    return Device(key, int(memory * GIB), peak * 1e12, bandwidth * 1e12, key=key)


def device_of(launch: Launch, *, gpu: str | None, where: str) -> Device | None:
    """The device of a step: the given GPU, else that of `launch.gpu`, else the one of this machine.

    None where it is a GPU that nothing names. Raises ConfigError for an unknown name.
    """
    if launch.device == "cpu":
        return this_cpu()
    if gpu is not None:
        return gpu_named(gpu, where="--gpu")
    return gpu_named(launch.gpu, where=f"{where}.gpu") if launch.gpu else this_gpu()


def this_cpu() -> Device:
    """The CPU of this machine. Its peak depends on the precision and is measured (commands/estimate.py)."""
    name = cpu_name()
    return Device(name, memory_of_machine(), None, 20e9, is_cpu=True, key=name)


def memory_of_machine() -> int:
    """Bytes of this machine's memory, or of the part that its container may use."""
    total = psutil.virtual_memory().total
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return total


@functools.cache
def this_gpu() -> Device | None:
    """The first GPU that nvidia-smi lists; None without one. A GPU outside of the table has its memory only."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not (program := shutil.which("nvidia-smi")):
        return None
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True)
        name, mebibytes = done.stdout.splitlines()[0].rsplit(",", 1)
        memory = int(mebibytes) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return _of_driver(name.strip(), memory)


def _of_driver(name: str, memory: int) -> Device:
    """The device by the driver's name of it, as in `NVIDIA A100-SXM4-80GB`, with the memory that the driver reports."""
    key = key_of(name, memory)
    peak, bandwidth = TABLE[key][1:] if key in TABLE else (100, 0.5)
    return Device(name, memory, peak * 1e12, bandwidth * 1e12, key=key)


def key_of(name: str, memory: int | None = None) -> str:
    """The name in the table of a GPU by its driver's name; the name itself for a GPU outside of it, and for a CPU.

    Of several with one name it is the one whose memory is nearest to `memory` bytes, or that the name tells.
    """
    words = name.lower().replace(" ", "-").replace("geforce-", "")
    found = [key for key in TABLE if re.sub(r"-\d+gb$", "", key) in words]
    if not found:
        return name
    told = [key for key in found if key.rsplit("-", 1)[-1] in words]
    if memory is None:
        return (told or found)[0]
    return min(found, key=lambda key: abs(TABLE[key][0] * GIB - memory))
