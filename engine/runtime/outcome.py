"""How a stage reports: its log, an error in one line with a remedy, and `outcome.json`."""

import contextlib
import copy
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from data_schemas.artifact import HALVED
from data_schemas.errors import RunAgain, StageError, UserError, WaitingForPeople
from data_schemas.files import DISK_FULL, FILE_TOO_LARGE, read_json, space_hint, write_atomically
from data_schemas.people import EXIT_CODE, WAITING
from data_schemas.text import printable
from engine.runtime import preemption, world
from engine.runtime.folder import clear_leftovers

log = logging.getLogger("alignloop")

OUT_OF_MEMORY = ("outofmemoryerror", "out of memory", "can't allocate memory", "cublas_status_alloc_failed")
DISK_READ_ONLY = "the disk has become read-only: find out why it is mounted so, and run the same command again"
DISK_HINTS = (DISK_FULL, FILE_TOO_LARGE, DISK_READ_ONLY)
RUN_AGAIN = "run the same command again"
OF_VLLM = (
    f"finished work is kept, {RUN_AGAIN}; if memory ran out, lower vllm.gpu_memory_utilization or vllm.max_model_len, "
    "or raise vllm.tensor_parallel_size"
)
HINTS = {  # a part of an error's text, in lower case -> a remedy
    "vllm's process": OF_VLLM,
    "vllm does not take": OF_VLLM,
    "out of memory": "out of device memory: lower per_device_train_batch_size (the result stays the same), max_length, "
    "or set activation_checkpointing: true",
    "outofmemoryerror": "out of device memory: lower per_device_train_batch_size or set activation_checkpointing: true",
    "can't allocate memory": "out of memory: lower per_device_train_batch_size or generation_batch_size",
    "read-only file system": DISK_READ_ONLY,
    "is nan": "a number is not finite: lower learning_rate, set max_grad_norm, or use bf16 instead of fp16",
}


class _Printable(logging.Formatter):
    """Messages quote rows: characters that could move a terminal's cursor are escaped."""

    def __init__(self, text: str, *, tracebacks: bool = True) -> None:
        super().__init__(text)
        self.tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        if not self.tracebacks and record.exc_info:
            record = copy.copy(record)
            record.exc_info = record.exc_text = None
        return printable(super().format(record))


def log_file(folder: Path, rank: int) -> Path:
    """The log of a process. Those of processes other than the first exist only where they failed."""
    return folder / (f"log-{rank}.txt" if rank else "log.txt")


def start_logging(folder: Path, level: str, *, is_main: bool) -> None:
    """Logs to the console at `level`, and to log.txt from INFO on; ranks other than the first log only errors.

    A stage that is run by hand shows tracebacks on its console only at the level debug; its log always has them. The
    runner keeps the console of its stages in a file, with tracebacks.
    """
    names = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
    names |= {"passive": logging.INFO, "detail": logging.INFO}
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(names.get(level, logging.INFO) if is_main else logging.ERROR)
    console.setFormatter(_Printable("%(message)s", tracebacks=level == "debug" or not is_by_hand()))
    file = logging.FileHandler(log_file(folder, world.rank()), encoding="utf-8", delay=not is_main)
    file.setLevel(logging.NOTSET if is_main else logging.ERROR)
    file.setFormatter(_Printable("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    file.handleError = lambda record: None  # a line that does not fit on a full disk is lost, the stage continues
    handlers: list[logging.Handler] = [console, file]
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(logging.DEBUG if level == "debug" else logging.INFO)
    if not sys.stderr.isatty():  # progress bars are for a terminal
        if "transformers" in sys.modules:
            sys.modules["transformers"].utils.logging.disable_progress_bar()
        if "datasets" in sys.modules:
            sys.modules["datasets"].disable_progress_bars()
    for noisy in ("httpx", "httpx2", "urllib3", "filelock", "fsspec", "torch", "deepspeed", "DeepSpeed", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def is_by_hand() -> bool:
    """Whether the stage was started by hand, not by the runner."""
    return "ALIGNLOOP_RUNNER_PID" not in os.environ


def failed(folder: Path, error: BaseException, *, is_main: bool) -> int:
    """Logs an error, writes it to outcome.json, and returns the exit code: 2 for a user's mistake, 3 for a stage that
    waits for people, 130 for Ctrl-C, 143 for SIGTERM, 1 for anything else."""
    if isinstance(error, WaitingForPeople):
        return _waiting(folder, error, is_main=is_main)
    if isinstance(error, preemption.Preempted):
        return _preempted(folder, error, is_main=is_main)
    interrupted = isinstance(error, KeyboardInterrupt)
    is_users, is_ours = isinstance(error, UserError), isinstance(error, UserError | StageError)
    text = " ".join(str(error).split()) or type(error).__name__
    cause = text if is_ours else "interrupted" if interrupted else f"{type(error).__name__}: {text}"
    if isinstance(error, RunAgain):
        return _halved(folder, error)
    hint = hint_for(error)
    if is_main and is_users and not any(folder.glob("checkpoints/checkpoint-*")):
        (folder / "identity.json").unlink(missing_ok=True)  # nothing is written yet: other keys may use the folder
    if hint in DISK_HINTS and not is_users:
        if str(folder) not in cause:  # an error of writing, unlike one of opening, names no file
            cause += f" in {folder}"
        log.error("error: %s; %s", cause, hint)
    else:
        place = "" if is_ours or interrupted or not is_by_hand() else f"; see {log_file(folder, world.rank())}"
        log.error("error: %s%s", cause, place, exc_info=None if is_ours or interrupted else error)
    state, kind = "interrupted" if interrupted else "failed", "config" if is_users else "error"
    _report(folder, {"state": state, "cause": cause[:2000], "hint": hint, "kind": kind})
    return 130 if interrupted else 2 if is_users else 1


def hint_for(error: BaseException | None) -> str:
    """A remedy for an error, or for one that caused it; the empty string where none is known."""
    if hint := space_hint(error):
        return hint
    while error is not None:
        text = f"{type(error).__name__} {error}".lower()
        if hint := next((hint for part, hint in HINTS.items() if part in text), ""):
            return hint
        error = error.__cause__ or error.__context__
    return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or this machine ran out of memory; does not need torch."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(part in text for part in OUT_OF_MEMORY)


def _halved(folder: Path, error: RunAgain) -> int:
    log.error("error: %s; %s", error, RUN_AGAIN)  # by any rank: the others wait for this one, and are ended
    _report(folder, {"state": "interrupted", "cause": str(error), "hint": RUN_AGAIN, "kind": HALVED})
    return 1


def _waiting(folder: Path, error: WaitingForPeople, *, is_main: bool) -> int:
    if is_main:
        log.info("%s", error)
        _report(folder, {"state": WAITING, "cause": str(error), "hint": "", "kind": WAITING})
    return EXIT_CODE


def _preempted(folder: Path, error: preemption.Preempted, *, is_main: bool) -> int:
    cause, hint = "stopped by SIGTERM", f"{RUN_AGAIN}: {error.saved or 'finished work is kept'}"
    if is_main:
        log.error("%s; %s", cause, hint)
        _report(folder, {"state": "interrupted", "cause": cause, "hint": hint, "kind": "preempted"})
    return preemption.EXIT_CODE


def _report(folder: Path, outcome: Mapping[str, str]) -> None:
    if (read_json(folder / "outcome.json") or {}).get("kind") == HALVED:
        return  # written by another process; the error of this one is a consequence of that process's exit
    for _ in range(2):
        with contextlib.suppress(OSError):
            write_atomically(folder / "outcome.json", json.dumps(outcome))
            return
        with contextlib.suppress(OSError):  # make room on a full disk; else only the exit code reports the error
            clear_leftovers(folder)
            (folder / "outcome.json").unlink(missing_ok=True)
