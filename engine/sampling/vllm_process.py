"""Runs vLLM in a separate process and environment: starts it, sends it requests, ends it, and reports its failures.

The process always ends with ours, since it ends when its stdin is closed. `vllm_worker.py` is the program it runs.
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
from typing import IO, TypedDict, cast

from data_schemas.errors import ConfigError, StageError
from data_schemas.stage_keys import Keys, Values
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
SECONDS_FOR_VERSION = 120  # with files on a cold or a network disk
SECONDS_TO_END = 15
log = logging.getLogger(__name__)


def environment(python: str) -> dict[str, str]:
    """Our environment variables without those for our interpreter, launcher and threads; vLLM sets its own threads."""
    threads = ("OMP_", "GOMP_", "KMP_", "MKL_")
    kept = {name: value for name, value in without_launcher().items() if name not in OUR_VARIABLES}
    kept = {name: value for name, value in kept.items() if not name.startswith(threads)}
    ours = str(Path(sys.prefix) / "bin")
    path = [part for part in kept.get("PATH", os.defpath).split(os.pathsep) if part != ours]
    return kept | {
        "PATH": os.pathsep.join([str(Path(python).parent), *path]),
        "VLLM_NO_USAGE_STATS": "1",
        # Otherwise vLLM's engine is in one more process, which starts with the requests that have reached it so far, so
        # that its batches, and by rounding its answers, differ from run to run.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }


def version_of(python: str) -> str:
    """The version of vLLM in an interpreter's environment, without importing it. Raises ConfigError without vLLM."""
    where = f"vllm.python={python!r}"
    try:
        process = subprocess.run(
            [python, "-I", str(WORKER), "version"],
            env=environment(python),
            capture_output=True,
            text=True,
            timeout=SECONDS_FOR_VERSION,
            stdin=subprocess.DEVNULL,
            check=True,
        )
        found: dict[str, str] = json.loads(process.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        ending = f"exit code {error.returncode}" if isinstance(error, subprocess.CalledProcessError) else error
        lines = str(getattr(error, "stderr", None) or ending).strip().splitlines()
        raise ConfigError(
            f"{where} is not a working Python interpreter ({lines[-1] if lines else error}); give the one of the "
            "environment in which vLLM is installed"
        ) from error
    if "error" in found:
        raise ConfigError(
            f"{where} has no vLLM ({found['error']}): install it there, as in {python} -m pip install vllm"
        )
    return found["version"]


class _Message(TypedDict, total=False):
    """A line from the worker: ready, the tokens of each answer, or an error and where it was raised."""

    ready: bool
    ids: list[list[int]]
    log_probs: list[list[float]] | None
    error: str
    at: str  # import, load, generate or weights


class VLLM:
    """One vLLM process. It is started by `start` or the first request; the caller must `close` it in any case."""

    def __init__(
        self, python: str, settings: Values, env: Mapping[str, str], log_file: Path, *, may_leave: bool = True
    ) -> None:
        """`settings` are the arguments of vLLM's LLM; `may_leave`: SIGTERM is answered while the model loads."""
        self.python, self.settings, self.env, self.log_file = python, settings, env, log_file
        self.may_leave = may_leave
        self.process: subprocess.Popen[str] | None = None
        self.is_ready = False

    def start(self) -> None:
        """Starts to load the model, unless it is started already; returns at once."""
        if self.process is None:
            with self.log_file.open("a", encoding="utf-8") as output:
                # In a separate session: Ctrl-C and SIGTERM to our process group are handled by this process.
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

    def submit(self, request: Keys) -> None:
        """Sends a request, after the model is loaded; `vllm_worker.py` defines its form."""
        self._become_ready()
        self._send(request)

    def results(self) -> list[tuple[list[int], list[float] | None]]:
        """The tokens of each answer to the last request, in order, and their log-probs where the request asks for
        them. Raises StageError where the process fails."""
        message = self._receive()
        answers = message.get("ids", [])
        return list(zip(answers, message.get("log_probs") or [None] * len(answers), strict=True))

    def load_weights(self, folder: str) -> None:
        """Loads the weights of another model of the same architecture. Raises StageError where that fails."""
        self._become_ready()
        self._send({"weights": folder})
        self._receive()

    def _become_ready(self) -> None:
        self.start()
        if not self.is_ready:
            self._receive()
            self.is_ready = True

    def close(self) -> None:
        """Ends the process and those that it has started."""
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

    def _send(self, message: Values) -> None:
        process = self._running()
        try:
            _pipe(process.stdin).write(json.dumps(message) + "\n")
            _pipe(process.stdin).flush()
        except BrokenPipeError:
            pass  # _receive reports why it ended

    def _receive(self) -> _Message:
        output = _pipe(self._running().stdout)
        while not select.select([output], [], [], 0.2)[0]:
            # Loading may take longer than the time until SIGKILL, and leaving it loses nothing; a group is finished.
            if not self.is_ready and self.may_leave and preemption.is_requested():
                raise preemption.Preempted
        line = output.readline()
        if not line:
            raise self._death()
        message: _Message = json.loads(line)
        error = message.get("error")
        if error is None:
            return message
        if message.get("at") == "import":
            raise ConfigError(f"vLLM of {self.python} cannot be imported ({error}); its log: {self.log_file}")
        if message.get("at") == "load":
            raise ConfigError(f"vLLM does not take {self.settings['model']} ({error}); its log: {self.log_file}")
        raise StageError(f"vLLM's process failed ({error}); its log: {self.log_file}")

    def _death(self) -> Exception | preemption.Preempted:
        """The error to raise after the process has ended by itself."""
        process = self._running()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        if preemption.is_requested():  # a signal to all processes of a job has ended this one, too
            return preemption.Preempted()
        code = process.poll()
        end = f"killed by signal {-code}" if code and code < 0 else f"exit code {code}"
        lines = [line.strip() for line in self.log_file.read_text(errors="replace").splitlines() if line.strip()]
        last = " | ".join(lines[-3:])[-600:] or "none"
        return StageError(f"vLLM's process ended ({end}); its last lines: {last}; its log: {self.log_file}")

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None:
            raise RuntimeError("vLLM was not started")
        return self.process


def _pipe(pipe: IO[str] | None) -> IO[str]:
    return cast("IO[str]", pipe)  # Popen is started with pipes
