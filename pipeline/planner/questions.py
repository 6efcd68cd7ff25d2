"""Asks commands/estimate.py, which has torch and the tokenizer, in a process that lives for as long as a plan needs."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_schemas.check_request import ModelSource, TokenizerSource
from data_schemas.cost_request import ANSWER, ModelAnswer, Probe, ProbeAnswer, Question, RowFiles, RowLengths
from data_schemas.errors import StageError
from pipeline.launch.command_line import ROOT, environment
from pipeline.launch.processes import program
from pipeline.steps import Step

PROGRAM = "commands.estimate"


class Estimator:
    """The running program. Every method raises StageError where it has ended."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process, self.errors = process, errors

    def row_lengths(self, tokenizer: TokenizerSource, rows: Mapping[str, RowFiles]) -> dict[str, RowLengths]:
        return self._ask({"tokenizer": tokenizer, "rows": dict(rows)}) if rows else {}  # pyright: ignore[reportReturnType]

    def model(self, source: ModelSource) -> ModelAnswer:
        return self._ask({"model": source})  # pyright: ignore[reportReturnType]

    def probe(self, probe: Probe) -> ProbeAnswer:
        return self._ask({"probe": probe})  # pyright: ignore[reportReturnType]

    def cpu_rate(self) -> float:
        return float(self._ask({"rate": True}))  # pyright: ignore[reportArgumentType]

    def _ask(self, question: Question) -> object:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        last = self.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        cause, code = " ".join(last) or "no message", self.process.wait()
        if code < 0:
            cause = f"killed by {signal.Signals(-code).name}, as by a system whose memory is full"
        raise StageError(f"commands/estimate.py ended without an answer: {cause}")


@contextlib.contextmanager
def estimator(step: Step, functions: Path) -> Iterator[Estimator]:
    """The program, in the environment of a step that has the whole machine, ended when the context is left."""
    with tempfile.TemporaryDirectory(prefix="alignloop-estimate-") as scratch:
        errors = Path(scratch) / "errors.txt"
        command = [sys.executable, "-P", "-m", PROGRAM]
        # It is ended by a signal: its own temporary files are deleted with this folder.
        env = environment(step, Path(scratch), functions) | {"TMPDIR": scratch}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
        with errors.open("wb") as file, program(command, env=env, cwd=ROOT, stderr=file, **pipes) as process:
            yield Estimator(process, errors)
