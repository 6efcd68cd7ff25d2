"""This process among the processes of its stage: rank, counts, device, cores, and waiting for another's file.

The numbers are those that torchrun and `accelerate launch` set; a stage that was started without them is one process.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")


def rank() -> int:
    """This process's number among all processes of the stage, from 0."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """All processes of the stage, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number among those on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_local_processes() -> int:
    """The stage's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_fsdp_asked_for() -> bool:
    """Whether accelerate's config asks for FSDP, which it gives to GPUs only."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def is_first() -> bool:
    """Whether this process writes what is written once: logs, tables, the record."""
    return rank() == 0


def available_cores() -> list[int]:
    """The numbers of the CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def device_of(use_cpu: bool) -> "torch.device":
    """This process's device; a stage that generates holds complete models, outside of ZeRO."""
    import torch  # not at the top: stages that only read rows do without it

    if use_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


def wait_for(read: Callable[[], Value | None], *, seconds: float = 0.1) -> Value:
    """What `read` returns as soon as it is not None: how a process waits for a file that another one writes.

    It looks again every so many seconds. A collective would time out while the other is at work. Where the other
    process fails, the launcher ends this one.
    """
    while (value := read()) is None:
        time.sleep(seconds)
    return value


def wait_until_exists(path: Path, *, seconds: float = 0.1) -> None:
    """Returns when another process has written `path`."""
    wait_for(lambda: True if path.exists() else None, seconds=seconds)
