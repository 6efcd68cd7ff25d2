"""Starts stages as processes, watches them, and stops them together with every process that they started.

A stage runs in its own session and writes its output directly into console.txt. A signal of the terminal therefore
reaches only the runner, which stops the stage in order, and no pipe breaks when the runner dies. Locks belong to the
kernel, which releases them when their process ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from data_schemas.locks import is_locked
from pipeline.launch.command_line import OF_ONE_STEP, STEP_FOLDER
from pipeline.launch.warm import Fork, WarmPool, WarmPython

LEFTOVER_SECONDS = 10.0  # for a process whose runner has ended to end by itself before it is killed
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP reached the runner."""

    def __init__(self, number: int) -> None:
        self.number = number


class StageProcess:
    """A started stage. Its output goes to console.txt. The caller must `finish` or `stop` it in every case."""

    def __init__(
        self,
        command: list[str],
        folder: Path,
        env: dict[str, str],
        *,
        cores: Sequence[int] | None,
        grace_seconds: float,
        warm: WarmPool | None = None,
        started: float | None = None,  # time.monotonic() of an earlier start that this one continues
        while_starting: Callable[[], None] = lambda: None,  # called several times a second while a warm Python imports
    ) -> None:
        self.command, self.folder = command, folder
        self.started = time.monotonic() if started is None else started
        self.grace_seconds = grace_seconds
        self.reader = (folder / "console.txt").open("a+b")
        self.reader.write(f"$ {' '.join(command)}\n".encode())
        self.reader.flush()
        self.start = self.reader.seek(0, os.SEEK_END)
        self.unfinished = ""  # the start of a line whose end was not printed yet
        fork = _fork(warm, command, folder, env, cores, while_starting) if warm is not None else None
        self.process = fork or _start(command, folder, env, cores)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float) -> None:
        """Waits for the end of the stage, at most for so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=seconds)

    def print_new_output(self, name: str) -> None:
        """Prints what the stage has printed since the last call. With a name, only complete lines, each after it."""
        text = self.unfinished + self.reader.read().decode(errors="replace")
        if name:
            complete, _, self.unfinished = text.rpartition("\n")
            if self.has_ended():
                complete, self.unfinished = text, ""
            text = "".join(f"{name} | {line}\n" for line in complete.splitlines())
        sys.stdout.write(text)
        sys.stdout.flush()

    def finish(self) -> tuple[int, str]:
        """Stops what is left of the stage. Returns its exit code (negative: killed by a signal) and its last output."""
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
        with contextlib.suppress(ProcessLookupError):  # the process has ended
            os.sched_setaffinity(process.pid, cores)
    return process


def get_warm_python(warm: WarmPool, env: Mapping[str, str]) -> WarmPython | None:
    """The warm Python for steps of this environment. It imports its libraries while other steps run."""
    return warm.python({name: value for name, value in env.items() if name not in OF_ONE_STEP})


def _fork(
    warm: WarmPool,
    command: Sequence[str],
    folder: Path,
    env: Mapping[str, str],
    cores: Sequence[int] | None,
    while_starting: Callable[[], None],
) -> Fork | None:
    """The command's script in a fork of a warm Python. None where there is none: the step then starts a new process."""
    python = get_warm_python(warm, env)
    if python is not None:
        with contextlib.suppress(OSError):
            own = {name: env[name] for name in OF_ONE_STEP if name in env}
            return python.start(command[1:], folder / "console.txt", own, cores, while_waiting=while_starting)
    return None


# -- stopping -------------------------------------------------------------------------------------------------------


def call(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Runs a program in the foreground, and returns its exit code."""
    with program(command, env=env) as process:
        return process.wait()


@contextlib.contextmanager
def program(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Starts a program with the options of `subprocess.Popen`. One that still runs when the block is left, also by a
    signal that arrives while it is being started, gets SIGTERM, and SIGKILL some seconds later."""
    process = None
    try:
        with signals_wait():
            process = subprocess.Popen(command, **options)
        yield process
    finally:
        if process is not None:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LEFTOVER_SECONDS)
                process.kill()
            process.communicate()  # closes its pipes


@contextlib.contextmanager
def signals_raise(numbers: Sequence[signal.Signals] = STOP_SIGNALS) -> Iterator[None]:
    """Raises Interrupted on these signals. Only in the main thread: Python gives signals to no other.

    A SIGHUP that is ignored, as under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_interrupted(number: int, frame: object) -> None:
        if _waiting is None:
            raise Interrupted(number)
        _waiting.append(number)

    caught = [number for number in numbers if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)]
    before = {number: signal.signal(number, raise_interrupted) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python


_waiting: list[int] | None = None  # the signals that arrived in the block of signals_wait


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Raises Interrupted after the block, not in it, where a signal of `signals_raise` arrives meanwhile."""
    global _waiting
    arrived = _waiting = []
    try:
        yield
    finally:
        _waiting = None
    if arrived:
        raise Interrupted(arrived[0])


def stop(stages: Sequence[StageProcess]) -> None:
    """Stops every process of the stages: SIGTERM, then SIGKILL after the grace period or at the next signal to us.

    A rank saves a checkpoint on SIGTERM. Its launcher would kill it after thirty seconds, so where there are ranks only
    they get the signal.
    """
    try:
        for stage in stages:
            _terminate(stage)
        started, has_printed = time.monotonic(), False
        while alive := [stage for stage in stages if not stage.has_ended() or _processes_of(stage.folder)]:
            seconds, grace = time.monotonic() - started, max(stage.grace_seconds for stage in alive)
            if seconds > grace:
                break
            names = ", ".join(stage.folder.name for stage in alive if not stage.has_ended())  # else a helper ends
            if seconds > 1 and names and not has_printed:
                has_printed = True
                with contextlib.suppress(OSError):  # the terminal is closed; saving goes on
                    print(
                        f"{names}: saving progress (up to {grace:g} s); Ctrl-C or another signal stops it now",
                        file=sys.stderr,
                    )
            time.sleep(0.05)
    finally:
        for stage in stages:
            _signal_groups(stage.folder, stage.process, signal.SIGKILL)
        for stage in stages:
            stage.process.wait()


def _terminate(stage: StageProcess) -> None:
    """SIGTERM to the ranks of a stage, or to all its processes where it has no ranks."""
    ranks = [process for process in _processes_of(stage.folder) if _has_rank(process)]
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(signal.SIGTERM)
    if not ranks:
        _signal_groups(stage.folder, stage.process, signal.SIGTERM)


def _signal_groups(folder: Path, process: subprocess.Popen[bytes] | Fork | None, number: signal.Signals) -> None:
    """Sends the signal to the process groups of a step, except our own."""
    groups = {process.pid} if process and process.poll() is None else set()
    for found in _processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(found.pid))
    for group in groups - {os.getpgrp()}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _processes_of(folder: Path) -> list[psutil.Process]:
    """The live processes of a step: those with its folder in their environment, or with its console.txt as output.

    A process group is not enough, since torch's launcher gives every rank its own session. Nor is the environment: a
    fork of a warm Python shows the environment which that Python was started with.
    """
    console = str((folder / "console.txt").resolve())
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, is a zombie, or belongs to another user
            if process.environ().get(STEP_FOLDER) == str(folder) or _prints_to(process, console):
                found.append(process)
    return found


def _prints_to(process: psutil.Process, file: str) -> bool:
    """Whether the standard output or error of a process is the file."""
    return any(opened.path == file and opened.fd in (1, 2) for opened in process.open_files())


def _has_rank(process: psutil.Process) -> bool:
    """Whether a launcher started the process as one of several ranks."""
    try:
        return "RANK" in process.environ()
    except psutil.Error:
        return False


def end_leftovers(folder: Path) -> None:
    """Waits for the stage of a dead runner, which ends by itself, and then kills it, so that no two stages write one
    folder. A stage that was started by hand or runs on another machine is not touched; it keeps its lock.
    """
    deadline = time.monotonic() + LEFTOVER_SECONDS
    while (is_locked(folder) or _processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    _signal_groups(folder, None, signal.SIGKILL)
    while _processes_of(folder):  # a killed process holds its lock until it has ended
        time.sleep(0.01)
