"""Locks on folders: one process writes to a folder at a time.

A run's folder is locked by the runner, a step's folder by its stage; both use the file `.lock` in the folder. The
kernel frees a lock when its process ends, however it ends. The file stays, and names the last holder: `<pid> <host>`.
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout, UnixFileLock

from data_schemas.errors import BusyError

LOCK_FILE = ".lock"
WAIT_SECONDS = 0.5  # `is_locked` of another process holds a lock for an instant


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Creates a folder and holds its lock. Raises BusyError, which names the holder, where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    lock = UnixFileLock(path, timeout=WAIT_SECONDS, fallback_to_soft=False, on_acquired=_write_holder)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(f"{folder} is in use by another process ({_holder(path)}); wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a run's or a step's folder.

    Asks for a shared lock on the file opened for reading: it does not disturb others that ask, and works on NFS and
    in a folder that may only be read.
    """
    try:
        with (folder / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _write_holder(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # on a full disk the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)


def _holder(path: Path) -> str:
    """`pid 4711 on node-3`; without the host where an earlier version wrote none."""
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        words = []
    return f"pid {' on '.join(words) or '?'}"
