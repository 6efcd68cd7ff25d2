"""How a stage says what it does and how it ended: its log, an error in one line with the way out, `outcome.json`."""

import contextlib
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from data_schemas.artifact import HALVED
from data_schemas.errors import RunAgain, StageError, UserError
from data_schemas.files import DISK_FULL, read_json, write_atomically
from data_schemas.text import printable
from engine.runtime import preemption
from engine.runtime.folder import clear_leftovers

log = logging.getLogger("alignloop")

OUT_OF_MEMORY = ("outofmemoryerror", "out of memory", "can't allocate memory", "cublas_status_alloc_failed")
DISK_READ_ONLY = "the disk takes no writes any more: see why it is mounted read-only, and run the same command again"
OF_VLLM = (
    "what is finished is kept, run the same command again; where memory was too little, lower "
    "vllm.gpu_memory_utilization or vllm.max_model_len, or raise vllm.tensor_parallel_size"
)
HINTS = {  # a part of an error's text -> the way out
    "vllm's process": OF_VLLM,
    "vllm does not take": OF_VLLM,
    "out of memory": "out of device memory: lower per_device_train_batch_size (the result stays the same), max_length, "
    "or set activation_checkpointing: true",
    "outofmemoryerror": "out of device memory: lower per_device_train_batch_size or set activation_checkpointing: true",
    "can't allocate memory": "out of memory: lower per_device_train_batch_size or generation_batch_size",
    "no space left": DISK_FULL,
    "quota exceeded": DISK_FULL,
    "pytorchstreamwriter": DISK_FULL,  # torch.save, which does not say why a file was not written to its end
    "unexpected pos": DISK_FULL,
    "read-only file system": DISK_READ_ONLY,
    "is nan": "a number is not finite: lower learning_rate, set max_grad_norm, or use bf16 instead of fp16",
}


class _Printable(logging.Formatter):
    """Texts of rows stand in messages: what could move a terminal's cursor is shown, not sent."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def start_logging(folder: Path, level: str, *, is_main: bool) -> None:
    """Console by level, log.txt with everything from INFO on; ranks other than the first only warn."""
    names = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
    names |= {"passive": logging.INFO, "detail": logging.INFO}
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(names.get(level, logging.INFO) if is_main else logging.ERROR)
    console.setFormatter(_Printable("%(message)s"))
    handlers: list[logging.Handler] = [console]
    if is_main:
        file = logging.FileHandler(folder / "log.txt", encoding="utf-8")
        file.setFormatter(_Printable("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        file.handleError = lambda record: None  # a line that a full disk does not take is lost, and no more
        handlers.append(file)
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(logging.DEBUG if level == "debug" else logging.INFO)
    if not sys.stderr.isatty():  # loading bars are for a terminal
        if "transformers" in sys.modules:
            sys.modules["transformers"].utils.logging.disable_progress_bar()
        if "datasets" in sys.modules:
            sys.modules["datasets"].disable_progress_bars()
    for noisy in ("httpx", "urllib3", "filelock", "fsspec", "torch", "deepspeed", "DeepSpeed", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def failed(folder: Path, error: BaseException, *, is_main: bool) -> int:
    if isinstance(error, preemption.Preempted):
        return _preempted(folder, error, is_main=is_main)
    interrupted = isinstance(error, KeyboardInterrupt)
    is_users, says_all = isinstance(error, UserError), isinstance(error, UserError | StageError)
    text = " ".join(str(error).split()) or type(error).__name__
    cause = text if says_all else "interrupted" if interrupted else f"{type(error).__name__}: {text}"
    if isinstance(error, RunAgain):
        return _halved(folder, error)
    hint = hint_for(error)
    if is_main and is_users and not any(folder.glob("checkpoints/checkpoint-*")):
        (folder / "identity.json").unlink(missing_ok=True)  # nothing is made yet: the mended keys may use the folder
    if hint in (DISK_FULL, DISK_READ_ONLY) and not is_users:
        log.error("error: %s; %s", cause, hint)
    else:
        log.error("error: %s", cause, exc_info=None if says_all or interrupted else error)
    state, kind = "interrupted" if interrupted else "failed", "config" if is_users else "error"
    _report(folder, {"state": state, "cause": cause[:2000], "hint": hint, "kind": kind})
    return 130 if interrupted else 2 if is_users else 1


def hint_for(error: BaseException | None) -> str:
    """The way out of an error, or of one that it came from; the empty string where none is known."""
    while error is not None:
        text = f"{type(error).__name__} {error}".lower()
        if hint := next((hint for part, hint in HINTS.items() if part in text), ""):
            return hint
        error = error.__cause__ or error.__context__
    return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU or of this machine was full; known without torch."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(part in text for part in OUT_OF_MEMORY)


def _halved(folder: Path, error: RunAgain) -> int:
    log.error("error: %s; run me again", error)  # by any process: the others wait for it, and are ended
    _report(folder, {"state": "interrupted", "cause": str(error), "hint": "run me again", "kind": HALVED})
    return 1


def _preempted(folder: Path, error: preemption.Preempted, *, is_main: bool) -> int:
    cause, hint = "stopped by SIGTERM", f"run me again: {error.saved or 'what is finished is kept'}"
    if is_main:
        log.error("%s; %s", cause, hint)
        _report(folder, {"state": "interrupted", "cause": cause, "hint": hint, "kind": "preempted"})
    return preemption.EXIT_CODE


def _report(folder: Path, outcome: Mapping[str, str]) -> None:
    if (read_json(folder / "outcome.json") or {}).get("kind") == HALVED:
        return  # by another process: what this one met came of its end
    for _ in range(2):
        with contextlib.suppress(OSError):
            write_atomically(folder / "outcome.json", json.dumps(outcome))
            return
        with contextlib.suppress(OSError):  # on a full disk these make room; else the exit code has to do
            clear_leftovers(folder)
            (folder / "outcome.json").unlink(missing_ok=True)
