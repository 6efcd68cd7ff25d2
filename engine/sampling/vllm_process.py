"""A vLLM in a process and an environment of its own: how it is started, asked, ended, and what is said when it fails.

It ends with us in any case, since it ends where its stdin does. The other side is engine/vllm_worker.py.
"""

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_schemas.errors import ConfigError, StageError
from engine.models.loading import without_launcher
from engine.runtime import preemption

WORKER = Path(__file__).with_name("vllm_worker.py")
OUR_VARIABLES = (
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "ROLE_NAME",
    "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
)
SECONDS_FOR_VERSION = 120  # a cold disk or a network's
SECONDS_TO_END = 15
log = logging.getLogger(__name__)


def environment(python: str) -> dict[str, str]:
    """Ours without what is for our interpreter, our launcher and our threads: vLLM sets its own threads."""
    threads = ("OMP_", "GOMP_", "KMP_", "MKL_")
    kept = {name: value for name, value in without_launcher().items() if name not in OUR_VARIABLES}
    kept = {name: value for name, value in kept.items() if not name.startswith(threads)}
    ours = str(Path(sys.prefix) / "bin")
    path = [part for part in kept.get("PATH", os.defpath).split(os.pathsep) if part != ours]
    return kept | {
        "PATH": os.pathsep.join([str(Path(python).parent), *path]),
        "VLLM_NO_USAGE_STATS": "1",
        # Else an engine in another process begins with those requests that have reached it: other batches each time.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }


def version_of(python: str) -> str:
    """vLLM's version in an interpreter's environment. Raises ConfigError where there is none, without starting it."""
    where = f"vllm.python={python!r}"
    try:
        done = subprocess.run(
            [python, "-I", str(WORKER), "version"],
            env=environment(python),
            capture_output=True,
            text=True,
            timeout=SECONDS_FOR_VERSION,
            stdin=subprocess.DEVNULL,
            check=True,
        )
        found: dict[str, str] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        raise ConfigError(f"{where} is no Python that runs ({said[-1] if said else error})") from error
    if "error" in found:
        raise ConfigError(
            f"{where} has no vLLM ({found['error']}): install it there, as in {python} -m pip install vllm"
        )
    return found["version"]


class VLLM:
    """One vLLM. It is started at the first request; `close` it, whatever happens."""

    def __init__(self, python: str, settings: Mapping[str, Any], env: Mapping[str, str], log_file: Path) -> None:
        self.python, self.settings, self.env, self.log_file = python, settings, env, log_file
        self.process: subprocess.Popen[str] | None = None
        self.is_ready = False

    def start(self) -> None:
        """Begins to load the model; returns at once."""
        if self.process is None:
            with self.log_file.open("a", encoding="utf-8") as output:
                # A session of its own: Ctrl-C and SIGTERM to our group are ours to answer.
                self.process = subprocess.Popen(
                    [self.python, "-I", str(WORKER), "serve"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    env=dict(self.env),
                    encoding="utf-8",
                    start_new_session=True,
                )
            self._send(self.settings)

    def ask(self, request: Mapping[str, Any]) -> None:
        self.start()
        if not self.is_ready:
            self._receive()
            self.is_ready = True
        self._send(request)

    def answer(self) -> list[list[int]]:
        """Of the last request."""
        ids: list[list[int]] = self._receive()["ids"]
        return ids

    def close(self) -> None:
        if self.process is None:
            return
        with contextlib.suppress(OSError):
            _pipe(self.process.stdin).close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(SECONDS_TO_END)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        _pipe(self.process.stdout).close()

    def _send(self, message: Mapping[str, Any]) -> None:
        process = self._running()
        try:
            _pipe(process.stdin).write(json.dumps(message) + "\n")
            _pipe(process.stdin).flush()
        except BrokenPipeError:
            pass  # why it ended is said where its answer is read

    def _receive(self) -> dict[str, Any]:
        output = _pipe(self._running().stdout)
        while not select.select([output], [], [], 0.2)[0]:
            # To load a model may take longer than there is time, and nothing is lost by it; a group is finished.
            if not self.is_ready and preemption.is_requested():
                raise preemption.Preempted
        line = output.readline()
        if not line:
            raise self._death()
        message: dict[str, Any] = json.loads(line)
        if "error" not in message:
            return message
        if message["at"] == "import":
            raise ConfigError(
                f"vLLM of {self.python} cannot be imported ({message['error']}); its log: {self.log_file}"
            )
        if message["at"] == "load":
            raise ConfigError(
                f"vLLM does not take {self.settings['model']} ({message['error']}); its log: {self.log_file}"
            )
        raise StageError(f"vLLM's process failed ({message['error']}); its log: {self.log_file}")

    def _death(self) -> Exception | preemption.Preempted:
        """What is to be raised now that it has ended by itself."""
        process = self._running()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        if preemption.is_requested():  # a signal to all processes of a job has ended it, too
            return preemption.Preempted()
        code = process.poll()
        how = f"killed by signal {-code}" if code and code < 0 else f"exit code {code}"
        lines = [line.strip() for line in self.log_file.read_text(errors="replace").splitlines() if line.strip()]
        last = " | ".join(lines[-3:])[-600:] or "none"
        return StageError(f"vLLM's process ended ({how}); its last lines: {last}; its log: {self.log_file}")

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None:
            raise RuntimeError("it was not started")
        return self.process


def _pipe(pipe: Any) -> Any:
    return pipe  # Popen's type says that it may be None
