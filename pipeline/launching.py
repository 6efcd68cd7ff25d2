"""Starts one stage as a process, waits for its end, and stops it with everything it started.

A stage runs in a session of its own and writes its output straight into console.txt: it can outlive neither Ctrl-C nor
its runner, and no pipe breaks under it. Locks are the kernel's: they are gone when their process is.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import yaml

from data_schemas.stage_keys import ConfigError
from pipeline.plan import Step

ROOT = Path(__file__).absolute().parent.parent  # the stages and profiles lie beside this package, wherever we are run
GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL
STEP_FOLDER = "ALIGNLOOP_STEP_FOLDER"  # in the environment of everything that a step started: how it is found again


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP reached the runner."""

    def __init__(self, number: int) -> None:
        self.number = number


def launch_command(step: Step, folder: Path) -> list[str]:
    """Plain Python for one process; accelerate with the step's own copy of the profile for several, and for ZeRO."""
    script = [str(ROOT / "stages" / f"{step.stage}.py"), "--config", str(folder / "config.yaml")]
    if step.launch.num_processes == 1 and step.launch.profile in ("single", "ddp"):
        return [sys.executable, *script]
    profile = yaml.safe_load((ROOT / "configs" / "accelerate" / f"{step.launch.profile}.yaml").read_text())
    profile |= {
        "num_processes": step.launch.num_processes,
        "main_process_port": step.launch.main_process_port or _free_port(),
        "use_cpu": step.launch.device == "cpu",
    }
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.yaml")]
    return [*launcher, *script]


def _free_port() -> int:
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return connection.getsockname()[1]


def environment(step: Step, folder: Path, function_folder: Path) -> dict[str, str]:
    """The stage's environment: our packages first, threads divided among processes, the device said."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    path = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    inherited = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    values = inherited | {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(max(1, cores // step.launch.num_processes)),
        "TOKENIZERS_PARALLELISM": "false",
        "ALIGNLOOP_RUNNER_PID": str(os.getpid()),
        "ALIGNLOOP_FUNCTION_PATH": str(function_folder),
        STEP_FOLDER: str(folder),
    }
    # Not with ZeRO: accelerate would then drop DeepSpeed without a word. There `use_cpu` in the stage's config does it.
    if step.launch.device == "cpu" and not step.launch.profile.startswith("zero"):
        values["ACCELERATE_USE_CPU"] = "true"
    if step.launch.profile.startswith("zero") and "TORCH_EXTENSIONS_DIR" not in values:
        # DeepSpeed compiles into a folder with a lock that a killed process leaves behind, and then every later launch
        # waits for ever. A folder of the run's own has one runner at a time: a lock in it is nobody's.
        compiled = folder.parent / ".torch_extensions"
        for lock in compiled.rglob("lock"):
            lock.unlink(missing_ok=True)
        values["TORCH_EXTENSIONS_DIR"] = str(compiled)
    return values


def run_to_end(
    command: list[str], folder: Path, env: dict[str, str], *, verbose: bool, tick: Callable[[], None]
) -> tuple[int, str]:
    """Runs a stage; returns its exit code (negative: killed by that signal) and the end of what it printed.

    Its output goes to console.txt, and with `verbose` to the terminal as well. `tick` is called now and then.
    """
    with (folder / "console.txt").open("ab") as output, (folder / "console.txt").open("rb") as reader:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        start = reader.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
                _pass_on(reader, verbose=verbose)
                tick()
        finally:
            _stop(folder, process)
            _pass_on(reader, verbose=verbose)
        reader.seek(max(start, reader.seek(0, os.SEEK_END) - 16_000))
        return process.returncode, reader.read().decode(errors="replace")


def _pass_on(reader: BinaryIO, *, verbose: bool) -> None:
    if verbose and (text := reader.read()):
        sys.stdout.write(text.decode(errors="replace"))
        sys.stdout.flush()


# -- stopping -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """One runner a run folder. Raises ConfigError, naming the other's process, where it is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip() or "?"
            raise ConfigError(f"{folder} is in use by another run (pid {pid}); wait for it or stop it") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a run's or a step's folder."""
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


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


def _stop(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Ends everything the step started: SIGTERM, then SIGKILL after the grace or at the next signal to us."""
    try:
        _signal_groups(folder, process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while (process.poll() is None or _processes_of(folder)) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        _signal_groups(folder, process, signal.SIGKILL)
        process.wait()


def _signal_groups(folder: Path, process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
    groups = {process.pid} if process and process.poll() is None else set()
    for pid in _processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(pid))
    for group in groups - {os.getpgrp()}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _processes_of(folder: Path) -> list[int]:
    """The live processes that a step started, known by its folder in their environment.

    A process group is not enough: torch's launcher gives every rank a session of its own.
    """
    mark = f"{STEP_FOLDER}={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone, or another user's; a zombie's is empty
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def end_leftovers(folder: Path) -> None:
    """Waits for the stage of a dead runner, which ends by itself, then kills it: no two stages write one folder."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (is_locked(folder) or _processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    _signal_groups(folder, None, signal.SIGKILL)
    if is_locked(folder):  # where there is no /proc: the process that the lock names
        with contextlib.suppress(ValueError, IndexError, ProcessLookupError, PermissionError):
            os.killpg(os.getpgid(int((folder / ".lock").read_text().split()[0])), signal.SIGKILL)
            time.sleep(1)
