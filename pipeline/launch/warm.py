"""A Python that has imported the stages' libraries once, and is forked for every step of one process on the CPU.

The imports take five seconds, many times what a small step computes. A fork starts from what they left, in the
environment that the step would have had anyway; nothing of one step reaches the next, and its memory goes with it. On
Linux and for the CPU alone: elsewhere a fork can't use what its parent has loaded.

    python -m pipeline.launch.warm FD MODULE …     # FD: a socket to the runner
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_schemas.stage_keys import stages

LOST = 70  # the exit code of a step whose own is not known, and of one that ended because its parent has
MESSAGE_BYTES = 1 << 20

# One message a packet, JSON. To the Python: {words, output, environment, cores}. Back: {pid}, later {pid, code}.


def preloaded_modules() -> list[str]:
    """The stages that are imported before any of them is forked: those whose traits say so."""
    return [f"stages.{name}" for name, stage in stages().items() if stage.traits.preload]


class WarmPython:
    """The Python, and the codes of its forks. Its environment is that of every step it starts."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.codes: dict[int, int] = {}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.launch.warm", str(theirs.fileno()), *preloaded_modules()],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
            )

    def start(
        self, words: Sequence[str], output: Path, environment: Mapping[str, str], cores: Sequence[int] | None
    ) -> "Fork":
        """Runs a script with its words; `environment` is added to the Python's own. Waits for the imports.

        Raises OSError where the Python has died, or could not import something.
        """
        order = {"words": list(words), "output": str(output), "environment": dict(environment), "cores": cores}
        self.socket.send(json.dumps(order).encode())
        while True:
            if (message := self._receive()) is None:
                raise ConnectionError("the warm Python has ended")
            if "code" not in message:
                return Fork(self, message["pid"])

    def code_of(self, pid: int) -> int | None:
        """Exit code of a fork, negative where a signal ended it; None while it runs."""
        runs = _runs(pid)  # asked first: the code is sent before a process is let go
        while select.select([self.socket], [], [], 0)[0] and self._receive() is not None:
            pass
        code = self.codes.pop(pid, None)
        return code if code is not None or runs else LOST

    def _receive(self) -> dict[str, Any] | None:
        packet = self.socket.recv(MESSAGE_BYTES)
        if not packet:
            return None
        message: dict[str, Any] = json.loads(packet)
        if "code" in message:
            self.codes[message["pid"]] = message["code"]
        return message

    def close(self) -> None:
        """Ends the Python, and by that every fork that still runs."""
        self.socket.close()
        try:
            self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:  # it still imports
            self.process.kill()
            self.process.wait()


class Fork:
    """A step that a warm Python runs: what subprocess.Popen says of a process."""

    def __init__(self, python: WarmPython, pid: int) -> None:
        self.python, self.pid = python, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.python.code_of(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired after so many seconds."""
        started = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - started > timeout:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout)
            time.sleep(0.01)
        return code


class WarmPool:
    """The warm Pythons of one run, one for each environment; closed with the run."""

    def __init__(self) -> None:
        self.pythons: dict[str, WarmPython] = {}

    def python(self, environment: Mapping[str, str]) -> WarmPython | None:
        """The one of this environment, started where there is none yet; None where there can't be one."""
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


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# -- in the warm Python -----------------------------------------------------------------------------------------------


def serve(runner: socket.socket) -> list[str] | None:
    """Forks for every order until the runner is gone. None then; in a fork, the words it shall run."""
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([runner], [], [], 0.02 if children else None)
        if ready:
            packet = runner.recv(MESSAGE_BYTES)
            if not packet:
                return None
            order = json.loads(packet)
            pid = os.fork()
            if pid == 0:
                runner.close()
                _become(order)
                return list(order["words"])
            children.add(pid)
            _send(runner, {"pid": pid})
        for pid in list(children):
            # The code is sent while the process is still there as a zombie: gone means sent.
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is not None:
                code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                _send(runner, {"pid": pid, "code": code})
                os.waitpid(pid, 0)
                children.remove(pid)


def _send(runner: socket.socket, message: Mapping[str, int]) -> None:
    with contextlib.suppress(ConnectionError):  # it is gone: the next packet is the empty one
        runner.send(json.dumps(message).encode(), getattr(socket, "MSG_NOSIGNAL", 0))


def _become(order: Mapping[str, Any]) -> None:
    """Makes a fork what a process started for the order would be: session, output, environment, cores, words."""
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
    gc.freeze()  # the pages of the modules stay shared with the forks
    with socket.socket(fileno=int(descriptor)) as runner:
        words = serve(runner)
    if words is not None:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
