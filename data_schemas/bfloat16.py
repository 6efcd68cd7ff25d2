"""Whether this machine computes in bfloat16. Needs no torch: the plan asks too, since precision is part of identity.

Where `bf16` is left open, a step trains in bf16 on a device that has it and in fp32 elsewhere. The keys of a step say
`bf16: true` for the first; for the second the key stays open, which is the identity of fp32.
"""

import functools
import shutil
import subprocess
from pathlib import Path

from data_schemas.stage_keys import Keys, Values, stages

CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86; the last one of ARM
FIRST_CAPABILITY = 8.0  # of NVIDIA GPUs with bfloat16: Ampere


def is_open(stage: str, values: Values) -> bool:
    """Whether the stage trains, and no value says in which precision."""
    return "bf16" in stages()[stage].keys and values.get("bf16") is None and not values.get("fp16")


def with_precision(stage: str, values: Values, *, has_bfloat16: bool) -> Keys:
    """The values, with `bf16: true` where it is left open and the device has bfloat16."""
    return {**values, "bf16": True} if has_bfloat16 and is_open(stage, values) else dict(values)


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; others emulate it, several times as slowly as float32.

    torch's own test counts every CPU with AVX-512, which may lack them. False where the system does not tell.
    """
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool(CPU_FLAGS & set(flags.partition(":")[2].split()))


@functools.cache
def gpus_have_bfloat16() -> bool:
    """Whether every GPU of this machine has bfloat16. True where nvidia-smi does not tell: on AMD's, and where a step
    runs on another machine."""
    if not shutil.which("nvidia-smi"):
        return True
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return all(float(line) >= FIRST_CAPABILITY for line in done.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return True
