"""Starts stages as processes, says when they end, and stops them with everything they started.

A stage runs in a session of its own and writes its output straight into console.txt: it can outlive neither Ctrl-C nor
its runner, and no pipe breaks under it. Locks are the kernel's: they are gone when their process is.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_schemas.locks import is_locked
from pipeline.launch.command_line import STEP_FOLDER
from pipeline.launch.warm import Fork, WarmPool, WarmPython

LEFTOVER_SECONDS = 10.0  # that the stage of a dead runner has to end by itself


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP reached the runner."""

    def __init__(self, number: int) -> None:
        self.number = number


class StageProcess:
    """A stage that was started. Its output goes to console.txt; `finish` or `stop` it, whatever happens."""

    def __init__(
        self,
        command: list[str],
        folder: Path,
        env: dict[str, str],
        *,
        cores: Sequence[int] | None,
        grace_seconds: float,
        warm: WarmPool | None = None,
    ) -> None:
        self.command, self.folder, self.started = command, folder, time.monotonic()
        self.grace_seconds = grace_seconds
        self.reader = (folder / "console.txt").open("a+b")
        self.reader.write(f"$ {' '.join(command)}\n".encode())
        self.reader.flush()
        self.start = self.reader.seek(0, os.SEEK_END)
        self.unfinished = ""  # a line that was not passed on yet
        fork = _fork(warm, command, folder, env, cores) if warm is not None else None
        self.process = fork or _start(command, folder, env, cores)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float) -> None:
        """Until its end, and no longer than so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=seconds)

    def pass_on(self, name: str) -> None:
        """To the terminal what it has printed since the last time; with a name, whole lines behind it."""
        text = self.unfinished + self.reader.read().decode(errors="replace")
        if name:
            whole, _, self.unfinished = text.rpartition("\n")
            if self.has_ended():
                whole, self.unfinished = text, ""
            text = "".join(f"{name} | {line}\n" for line in whole.splitlines())
        sys.stdout.write(text)
        sys.stdout.flush()

    def finish(self) -> tuple[int, str]:
        """Its exit code (negative: killed by that signal) and the end of what it printed, nothing of it still alive."""
        stop([self])
        with self.reader:
            self.reader.seek(max(self.start, self.reader.seek(0, os.SEEK_END) - 16_000))
            return self.process.wait(), self.reader.read().decode(errors="replace")


def _start(
    command: Sequence[str], folder: Path, env: Mapping[str, str], cores: Sequence[int] | None
) -> subprocess.Popen[bytes]:
    with (folder / "console.txt").open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )
    if cores is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(process.pid, cores)
    return process


def get_warm_python(warm: WarmPool, env: Mapping[str, str]) -> WarmPython | None:
    """The warm Python for steps of this environment; it imports while others work."""
    return warm.python({name: value for name, value in env.items() if name != STEP_FOLDER})


def _fork(
    warm: WarmPool, command: Sequence[str], folder: Path, env: Mapping[str, str], cores: Sequence[int] | None
) -> Fork | None:
    """The command's script in a warm Python; None where that is not to be had, and the step starts from nothing."""
    python = get_warm_python(warm, env)
    if python is not None:
        with contextlib.suppress(OSError):
            return python.start(command[1:], folder / "console.txt", {STEP_FOLDER: env[STEP_FOLDER]}, cores)
    return None


# -- stopping -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Turns SIGINT, SIGTERM and SIGHUP into Interrupted."""

    def raise_interrupted(number: int, frame: object) -> None:
        raise Interrupted(number)

    before = {
        number: signal.signal(number, raise_interrupted) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(stages: Sequence[StageProcess]) -> None:
    """Ends everything the stages started: SIGTERM, then SIGKILL after the grace or at the next signal to us.

    A rank answers SIGTERM by a checkpoint. Its launcher would leave it thirty seconds for that, so it is not told.
    """
    try:
        for stage in stages:
            ranks = [pid for pid in _processes_of(stage.folder) if _has_rank(pid)]
            for pid in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if not ranks:
                _signal_groups(stage.folder, stage.process, signal.SIGTERM)
        started, said = time.monotonic(), False
        while alive := [stage for stage in stages if not stage.has_ended() or _processes_of(stage.folder)]:
            seconds, grace = time.monotonic() - started, max(stage.grace_seconds for stage in alive)
            if seconds > grace:
                break
            if seconds > 1 and not said:
                said = True
                names = ", ".join(stage.folder.name for stage in alive)
                with contextlib.suppress(OSError):  # nobody reads us any more: it saves all the same
                    print(f"{names} saves what is done, in {grace:g} s at most; once more ends it now", file=sys.stderr)
            time.sleep(0.05)
    finally:
        for stage in stages:
            _signal_groups(stage.folder, stage.process, signal.SIGKILL)
        for stage in stages:
            stage.process.wait()


def _signal_groups(folder: Path, process: subprocess.Popen[bytes] | Fork | None, number: signal.Signals) -> None:
    groups = {process.pid} if process and process.poll() is None else set()
    for pid in _processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(pid))
    for group in groups - {os.getpgrp()}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _processes_of(folder: Path) -> list[int]:
    """The live processes that a step started, known by its folder in their environment, or by where they print.

    A process group is not enough: torch's launcher gives every rank a session of its own. A fork of a warm Python has
    that one's environment there, whatever it has set since.
    """
    mark, console = f"{STEP_FOLDER}={folder}".encode(), (folder / "console.txt").resolve()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone, a zombie, or another user's
            marked = mark in (process / "environ").read_bytes().split(b"\0")
            if marked or console in ((process / "fd" / "1").readlink(), (process / "fd" / "2").readlink()):
                found.append(int(process.name))
    return found


def _has_rank(pid: int) -> bool:
    """Whether a launcher gave the process a place among others."""
    try:
        names = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(name.startswith(b"RANK=") for name in names)


def end_leftovers(folder: Path) -> None:
    """Waits for the stage of a dead runner, which ends by itself, then kills it: no two stages write one folder.

    One that was started by hand, or runs on another machine, is left alone: it keeps its lock.
    """
    deadline = time.monotonic() + LEFTOVER_SECONDS
    while (is_locked(folder) or _processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    _signal_groups(folder, None, signal.SIGKILL)
    while _processes_of(folder):  # a killed process holds its lock until it is gone
        time.sleep(0.01)
    if is_locked(folder) and not Path("/proc/self").exists():  # nothing tells whose it is: the process the lock names
        with contextlib.suppress(ValueError, ProcessLookupError, PermissionError):
            pid, host = (folder / ".lock").read_text().split()
            if host == socket.gethostname():  # on another machine the number is another process
                os.killpg(os.getpgid(int(pid)), signal.SIGKILL)
                time.sleep(1)
