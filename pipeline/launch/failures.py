"""A stage that ended without its record: what is reported of it, and the remedy."""

import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_schemas.errors import WaitingForPeople
from data_schemas.files import DISK_FULL, read_json
from data_schemas.people import WAITING
from data_schemas.text import printable
from pipeline.plan import Step

NUM_TAIL_LINES = 20
FULL_BYTES = 2**20  # a disk with less free space counts as full
LAUNCHERS_REPORT = "torch/distributed/elastic/multiprocessing/api.py"
HINTS = (  # part of a stage's output -> remedy; used where the stage did not report one itself
    ("OutOfMemory", "out of device memory: lower per_device_train_batch_size or generation_batch_size"),
    ("can't allocate memory", "out of memory: lower per_device_train_batch_size or generation_batch_size"),
    ("No space left", DISK_FULL),
    ("SIGKILL", "killed, most likely for its memory: lower per_device_train_batch_size or generation_batch_size"),
    ("is nan", "a number is not finite: lower learning_rate, or use bf16 instead of fp16"),
)


@dataclass
class StageFailed(Exception):
    """A stage ended without its record. Ends the command with exit code 1, or 2 for a user's mistake."""

    step: Step
    command: Sequence[str]
    log: Path
    tail: Sequence[str]  # the last lines that the stage printed
    cause: str
    hint: str
    is_reported: bool  # the stage itself reported the cause
    is_users: bool  # a mistake in the configuration that only the stage could notice

    def __str__(self) -> str:
        hint = f"; hint: {self.hint}" if self.hint else ""
        return printable(f"{self.step.name} failed: {self.cause}; log: {self.log}{hint}")


class StepWaits(WaitingForPeople):
    """A stage ended because it needs labels from people. Ends the command with exit code 3."""

    def __init__(self, step: Step, cause: str) -> None:
        super().__init__(f"{step.name}: {cause}")
        self.step = step


def ending_of(
    step: Step, folder: Path, command: Sequence[str], *, exit_code: int, output: str
) -> "StageFailed | StepWaits":
    """Why a stage ended without its record: it waits for people, or it failed."""
    outcome = read_json(folder / "outcome.json") or {}
    if outcome.get("kind") == WAITING:
        return StepWaits(step, str(outcome.get("cause")))
    return failure_of(step, folder, command, exit_code=exit_code, output=output)


def failure_of(step: Step, folder: Path, command: Sequence[str], *, exit_code: int, output: str) -> StageFailed:
    """Why a stage failed: its own report in outcome.json, else its exit code and the end of its output."""
    outcome = read_json(folder / "outcome.json") or {}
    ending = f"ended with exit code {exit_code}" if exit_code else "ended without its record"
    if exit_code < 0:
        ending = f"killed by {signal.Signals(-exit_code).name}"
    hint = outcome.get("hint") or next((remedy for part, remedy in HINTS if part in f"{output}\n{ending}"), "")
    if not hint and shutil.disk_usage(folder).free < FULL_BYTES:  # too full for the stage to write its report
        hint = DISK_FULL
    return StageFailed(
        step,
        command,
        folder / "console.txt",
        _tail(output),
        cause=outcome.get("cause") or ending,
        hint=hint,
        is_reported=bool(outcome.get("cause")),
        is_users=outcome.get("kind") == "config",
    )


def _tail(output: str) -> list[str]:
    """The last lines before the long report of torch's launcher, which only says that a process failed."""
    lines = output.splitlines()
    end = next((place for place, line in enumerate(lines) if LAUNCHERS_REPORT in line), len(lines))
    return lines[:end][-NUM_TAIL_LINES:]
