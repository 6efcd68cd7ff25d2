"""A warm Python: a process that imports the libraries of the stages once, and forks for every one-process step.

The imports take five seconds, many times longer than the computation of a small step. A fork starts with the imported
modules, in the environment that a new process would have. Steps share nothing else, and a step's memory is freed at its
end. Used only on Linux and on the CPU: elsewhere a fork can't use the libraries that its parent has loaded.

    python -m pipeline.launch.warm FD MODULE ...     # FD: a socket to the runner
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import psutil

from data_schemas.stage_keys import stages

LOST = 70  # the exit code of a step whose own is not known, or that ended because its parent did
MESSAGE_BYTES = 1 << 20
WAITING_SECONDS = 0.2


# Messages are JSON, one in a packet: an order to the warm Python, a reply with the process id of the fork, and later a
# reply with its exit code.


class Order(TypedDict):
    """A script to run in a fork."""

    words: list[str]  # the script and its arguments
    output: str  # the file of its standard output and error
    environment: dict[str, str]  # added to that of the warm Python
    cores: list[int] | None


class Reply(TypedDict, total=False):
    pid: int
    code: int  # negative: the signal that ended the fork


def preloaded_modules() -> list[str]:
    """The stages that are imported before any of them is forked: those whose traits say so."""
    return [f"stages.{name}" for name, stage in stages().items() if stage.traits.preload]


class WarmPython:
    """The runner's side of a warm Python, with the exit codes of its forks. All its steps share its environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.socket, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.codes: dict[int, int] = {}
        with other_end:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.launch.warm", str(other_end.fileno()), *preloaded_modules()],
                pass_fds=[other_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
            )

    def start(
        self,
        words: Sequence[str],
        output: Path,
        environment: Mapping[str, str],
        cores: Sequence[int] | None,
        *,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> "Fork":
        """Runs a script (`words`: its path and arguments) in a fork, after the imports.

        They may take half a minute on a busy machine; `while_waiting` is called several times a second until they are
        done. `environment` is added to that of the warm Python. Raises OSError where the warm Python has ended, as
        when an import failed.
        """
        order: Order = {
            "words": list(words),
            "output": str(output),
            "environment": dict(environment),
            "cores": None if cores is None else list(cores),
        }
        self.socket.send(json.dumps(order).encode())
        while True:
            while not select.select([self.socket], [], [], WAITING_SECONDS)[0]:
                while_waiting()
            if (reply := self._receive()) is None:
                raise ConnectionError("the warm Python has ended")
            if "code" not in reply and "pid" in reply:
                return Fork(self, reply["pid"])

    def code_of(self, pid: int) -> int | None:
        """The exit code of a fork, negative for the signal that ended it. None while it runs."""
        exists = psutil.pid_exists(pid)  # before the codes are read: a code is sent before its process is reaped
        while select.select([self.socket], [], [], 0)[0] and self._receive() is not None:
            pass
        code = self.codes.pop(pid, None)
        return code if code is not None or exists else LOST

    def _receive(self) -> Reply | None:
        """The next reply; None where the warm Python has ended."""
        packet = self.socket.recv(MESSAGE_BYTES)
        if not packet:
            return None
        reply: Reply = json.loads(packet)
        if "code" in reply and "pid" in reply:
            self.codes[reply["pid"]] = reply["code"]
        return reply

    def close(self) -> None:
        """Ends the warm Python, and thereby every fork that still runs."""
        self.socket.close()
        try:
            self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:  # it is still importing
            self.process.kill()
            self.process.wait()


class Fork:
    """A step in a fork of a warm Python, with the methods of subprocess.Popen that the runner uses."""

    def __init__(self, python: WarmPython, pid: int) -> None:
        self.python, self.pid = python, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.python.code_of(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the exit code. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        started = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - started > timeout:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout)
            time.sleep(0.01)
        return code


class WarmPool:
    """The warm Pythons of one run, one for each environment. They are closed with the run."""

    def __init__(self) -> None:
        self.pythons: dict[str, WarmPython] = {}

    def python(self, environment: Mapping[str, str]) -> WarmPython | None:
        """The warm Python of this environment, started at the first call. None where it can't be started."""
        key = json.dumps(environment, sort_keys=True)
        if key not in self.pythons and sys.platform == "linux":
            with contextlib.suppress(OSError):
                self.pythons[key] = WarmPython(environment)
        return self.pythons.get(key)

    def __enter__(self) -> "WarmPool":
        return self

    def __exit__(self, *_: object) -> None:
        for python in self.pythons.values():
            python.close()


# -- in the warm Python -----------------------------------------------------------------------------------------------


def serve(runner: socket.socket) -> list[str] | None:
    """Forks for every order. Returns the script and arguments in a fork, and None when the runner has ended."""
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([runner], [], [], 0.02 if children else None)
        if ready:
            packet = runner.recv(MESSAGE_BYTES)
            if not packet:
                return None
            order: Order = json.loads(packet)
            pid = os.fork()
            if pid == 0:
                runner.close()
                _become(order)
                return list(order["words"])
            children.add(pid)
            _send(runner, {"pid": pid})
        for pid in list(children):
            # The code is sent while the process is a zombie: once it no longer exists, its code has been sent.
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is not None:
                code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                _send(runner, {"pid": pid, "code": code})
                os.waitpid(pid, 0)
                children.remove(pid)


def _send(runner: socket.socket, reply: Reply) -> None:
    with contextlib.suppress(ConnectionError):  # the runner has ended: the next packet received is empty
        runner.send(json.dumps(reply).encode(), getattr(socket, "MSG_NOSIGNAL", 0))


def _become(order: Order) -> None:
    """Gives a fork the session, output, environment, cores and arguments of a process started for the order."""
    os.setsid()
    output = os.open(order["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.update(order["environment"])
    if order["cores"] is not None:
        os.sched_setaffinity(0, order["cores"])
    sys.argv = list(order["words"])
    sys.path.insert(0, str(Path(sys.argv[0]).parent))


def main(descriptor: str, *modules: str) -> None:
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the memory pages of the modules stay shared with the forks
    with socket.socket(fileno=int(descriptor)) as runner:
        words = serve(runner)
    if words is not None:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
