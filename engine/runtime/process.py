"""Process-wide settings of a stage: its lifetime, threads, memory, and whether it may run code from a model's files."""

import ctypes
import os
import signal
import socket
import sys
import threading
import time

import psutil

from engine.runtime import world

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
TRUSTS_CODE = "ALIGNLOOP_TRUST_REMOTE_CODE"  # set only from the stage's key, for it and the processes it starts


def end_with_the_runner() -> None:
    """Ends this process as soon as its runner, or the launcher that started it, has died: no stage writes without one.

    Every rank watches by itself, since a signal to `accelerate launch` leaves its ranks behind. On another machine the
    runner's process number means nothing; there pipeline.launch.wrapper ends the launcher.
    """
    runner = os.environ.get("ALIGNLOOP_RUNNER_PID")
    if not runner:
        return
    parent, is_runners = os.getppid(), is_on_the_runners_machine()

    def watch() -> None:
        while True:
            if os.getppid() != parent or (is_runners and not psutil.pid_exists(int(runner))):
                os._exit(70)
            time.sleep(0.3)

    threading.Thread(target=watch, name="end-with-the-runner", daemon=True).start()


def is_on_the_runners_machine() -> bool:
    """Whether process numbers and the monotonic clock are those of the runner; true without a runner."""
    here = socket.gethostname()
    return os.environ.get("ALIGNLOOP_RUNNER_HOST", here) == here


def end_with_the_parent(parent: int) -> None:
    """Ends this worker process when the one that forked it, whose number is given, has ended, however that happened."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.3)
        os._exit(70)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=watch, name="end-with-the-parent", daemon=True).start()


def use_all_cores() -> None:
    """Gives torch cores / processes threads, however the stage was started: `accelerate launch` gives each process one.

    The number of threads changes the speed and, through the order of sums, the last bits of results.
    """
    if "torch" in sys.modules:
        threads = max(1, len(world.available_cores()) // world.num_local_processes())
        sys.modules["torch"].set_num_threads(threads)


def keep_memory() -> None:
    """Keeps freed memory in this process, where there is no GPU: the next step needs as much again.

    By default glibc returns gigabytes of activations after every step, and each of their pages costs 5 to 20 us when
    it is touched again, most of all on a virtual machine. Other C libraries are left as they are.
    """
    if "torch" in sys.modules and not sys.modules["torch"].cuda.device_count():
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, -1)


def leave_process_group() -> None:
    """Closes torch's process group: one that is open at exit prints a warning or hangs."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def trust_code(trusted: bool) -> None:
    """Sets whether code from a model's files may run, in this process and in those it starts."""
    os.environ[TRUSTS_CODE] = "1" if trusted else ""


def trusts_code() -> bool:
    """Whether code from a model's files may run."""
    return os.environ.get(TRUSTS_CODE) == "1"
