"""Whether a process is still alive, and waiting until it is not."""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def within(seconds: float, holds: Callable[[], Any]) -> bool:
    """Waits until `holds()` is true, for at most so many seconds. Returns whether it is."""
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(holds())


def alive(pid: int) -> bool:
    """Whether the process runs. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def has_ended(pid: int) -> bool:
    """Whether the process has ended, or ends soon, since a signal takes effect later."""
    return within(60, lambda: not alive(pid))


def cpu_seconds_of(call: Callable[[], tuple[int, str, str]]) -> float:
    """CPU time of the processes that a call starts and waits for, which other work on the machine does not change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert call()[0] == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
