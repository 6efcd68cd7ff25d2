"""What holds for a stage's whole process: it ends with its runner, has its share of the cores, trusts no stranger."""

import ctypes
import os
import socket
import sys
import threading
import time

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
TRUSTS_CODE = "ALIGNLOOP_TRUST_REMOTE_CODE"  # set by the stage's key alone, for it and for the processes it starts


def end_with_the_runner() -> None:
    """Ends this process as soon as its runner, or the launcher above it, has died: no stage writes without one.

    Every rank watches for itself, since a signal to `accelerate launch` leaves its ranks behind. On another machine
    than the runner's its process number says nothing: there pipeline.wrapper ends the launcher.
    """
    runner = os.environ.get("ALIGNLOOP_RUNNER_PID")
    if not runner:
        return
    parent, here = os.getppid(), socket.gethostname()
    is_runners = os.environ.get("ALIGNLOOP_RUNNER_HOST", here) == here

    def watch() -> None:
        while True:
            if os.getppid() != parent or (is_runners and not _is_alive(int(runner))):
                os._exit(70)
            time.sleep(0.3)

    threading.Thread(target=watch, name="end-with-the-runner", daemon=True).start()


def use_all_cores() -> None:
    """Threads = cores / processes, however the stage was started: `accelerate launch` alone gives each process one.

    The number of threads changes speed, and by its order of sums the last bits.
    """
    if "torch" in sys.modules:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        sys.modules["torch"].set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def keep_memory() -> None:
    """What is freed stays with this process, where it has no GPU: the next step takes as much again.

    Else glibc gives gigabytes of activations back after every step, and each page of them costs 5 to 20 us when it is
    touched anew, most of all on a virtual machine. Other C libraries do as they always do.
    """
    if "torch" in sys.modules and not sys.modules["torch"].cuda.device_count():
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, -1)


def leave_process_group() -> None:
    """Ranks leave together; an open group at exit prints a warning or hangs."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def trust_code(trusted: bool) -> None:
    """Whether code that comes with a model's files may run, in this process and in those it starts."""
    os.environ[TRUSTS_CODE] = "1" if trusted else ""


def trusts_code() -> bool:
    return os.environ.get(TRUSTS_CODE) == "1"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
