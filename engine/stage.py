"""A stage is a program: one config in, one folder out, its record last. This is what surrounds every stage's `main`.

It checks the keys, holds a lock on the folder, ends the process when its runner or launcher has died, sends the log to
console and file, reports the end in `outcome.json` (`accelerate launch` turns every exit code into 1), and writes the
record.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_schemas import key_rules, stage_keys
from data_schemas.artifact import DISK_FULL, RECORD, Artifact, Choice, files_below, read_json, write_atomically
from data_schemas.rows import printable
from data_schemas.stage_keys import ConfigError
from engine import arguments, preemption, process
from engine.tracking import Tracker

log = logging.getLogger("alignloop")

DISK_READ_ONLY = "the disk takes no writes any more: see why it is mounted read-only, and run the same command again"
HINTS = {  # a part of an error's text -> the way out
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


@dataclass
class Stage:
    """One run of a stage: its folder, its values, its tracker."""

    name: str
    folder: Path
    values: dict[str, Any]  # every key that was given, typed
    tracker: Tracker
    is_main: bool


@dataclass
class Made:
    """What `main` returns: everything the record says besides the keys."""

    outputs: dict[str, str]
    metrics: dict[str, float | int | str | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    contract: dict[str, str] = field(default_factory=dict)


class StageError(ValueError):
    """What a stage finds wrong with what it makes, a loss or a saved model: its one line says all; exit code 1."""


def run_stage(
    name: str,
    classes: Sequence[type],
    main: Callable[..., Made],
    *,
    defaults: Mapping[str, Any] | None = None,
    words: Sequence[str] | None = None,
) -> None:
    """Runs a stage from its command line and ends the process: 0 done, 2 a user's mistake, 1 anything else."""
    words = list(sys.argv[1:] if words is None else words)
    if {"-h", "--help", "--help-all"} & set(words):
        print(stage_keys.help_text(name, everything="--help-all" in words))
        sys.exit(0)
    try:
        values = stage_keys.parse_command_line(name, words)
        stage_keys.check_required(name, values, where=name)
        key_rules.check_values(name, values, where=name)
        folder = Path(values.get("output_dir") or _missing("output_dir")).absolute()
        code = _run(name, classes, main, values | {"output_dir": str(folder)}, dict(defaults or {}))
    except ConfigError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        code = 2
    except OSError as error:  # an output_dir that is a file, or can't be written
        hint = _hint(error)
        print(f"error: {printable(str(error))}" + (f"; {hint}" if hint else ""), file=sys.stderr)
        code = 1
    except preemption.Preempted:  # nothing was begun, or all is written
        code = preemption.EXIT_CODE
    with contextlib.suppress(OSError):  # they may go to a file on a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    if code == 0:  # where one rank failed, the others may wait in a collective forever
        process.leave_process_group()
    sys.exit(code)


def _missing(key: str) -> Any:
    raise ConfigError(f"{key} is missing: the folder this stage writes")


def _run(
    name: str, classes: Sequence[type], main: Callable[..., Made], values: dict[str, Any], defaults: dict[str, Any]
) -> int:
    rank = int(os.environ.get("RANK", "0"))
    folder = Path(values["output_dir"])
    process.end_with_the_runner()
    process.use_all_cores()
    process.trust_code(bool(values.get("trust_remote_code")))
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder, is_main=rank == 0), preemption.listening():
        _claim(name, folder, values, is_main=rank == 0)
        if rank == 0:
            _clear_leftovers(folder)
        _start_logging(folder, str(values.get("log_level", "info")), is_main=rank == 0)
        tracker = Tracker(folder, active=rank == 0)
        started = time.monotonic()
        _ended(folder, rank).unlink(missing_ok=True)
        try:
            try:
                filled = dict(values)
                if "global_batch_size" in stage_keys.stages()[name].keys:
                    filled = arguments.resolve_batch(values, default_global=_default(name, "global_batch_size"))
                    filled["output_dir"] = str(folder / "checkpoints")
                    filled["disable_tqdm"] = values.get("disable_tqdm", not sys.stderr.isatty())
                instances = arguments.fill(classes, filled, defaults)
                if values.get("trust_remote_code"):
                    log.warning("trust_remote_code: code that comes with the model's files runs here")
                if "wandb" in str(values.get("report_to", _default(name, "report_to"))):
                    identity = _identity(name, values)
                    tracker.start_wandb(
                        folder, name=values.get("step", name), group=values.get("run_group", ""), config=identity
                    )
                made = main(Stage(name, folder, values, tracker, rank == 0), *instances)
            finally:
                if seconds := preemption.longest_wait():
                    log.info("SIGTERM would have been answered within %.1f s", seconds)
                tracker.finish()
            if rank == 0:
                _wait_for_other_ranks(folder)
                _finish(name, folder, values, made, seconds=time.monotonic() - started)
            else:
                _ended(folder, rank).parent.mkdir(exist_ok=True)
                _ended(folder, rank).touch()
        except (Exception, KeyboardInterrupt, preemption.Preempted) as error:
            if (folder / RECORD).exists():  # all is written
                raise
            return _failed(folder, error, is_main=rank == 0)
    return 0


def _clear_leftovers(folder: Path) -> None:
    """Removes what was being written when an earlier attempt ended: nothing goes on from it, and it takes up space."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"  # else another process of ours may be at a batch already
    batches = folder.glob("checkpoints/*/.*.partial-*") if alone else ()
    for path in [*folder.glob(".*.partial-*"), *folder.glob("checkpoints/.*"), *batches]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _ended(folder: Path, rank: int) -> Path:
    return folder / "checkpoints" / f"rank-{rank}-ended"


def _wait_for_other_ranks(folder: Path) -> None:
    """They may still read what lies in `checkpoints`, which goes with the record. Where one failed, so do all."""
    others = [_ended(folder, rank) for rank in range(1, int(os.environ.get("WORLD_SIZE", "1")))]
    while not all(path.exists() for path in others):
        time.sleep(0.05)


def _default(stage: str, key: str) -> Any:
    return stage_keys.stages()[stage].keys[key].default


def _identity(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    keys = stage_keys.stages()[stage].keys
    typed = stage_keys.with_defaults(stage, values)
    return {name: value for name, value in typed.items() if keys[name].role == "identity"}


def _inputs(stage: str, values: Mapping[str, Any]) -> dict[str, str]:
    keys = stage_keys.stages()[stage].keys
    inputs = {}
    for name, value in values.items():
        if keys[name].role in stage_keys.INPUT_ROLES and value is not None:
            inputs[name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return inputs


def _paths(stage: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every file and folder that a stage is given to read, with its key."""
    keys = stage_keys.stages()[stage].keys
    for name, value in values.items():
        if keys[name].role in ("rows", "model") and value is not None:
            yield from ((name, path) for path in (value if isinstance(value, list) else [value]))


@contextlib.contextmanager
def _lock(folder: Path, *, is_main: bool) -> Iterator[None]:
    """One stage at a time writes a folder. The kernel lets go of the lock when the process dies."""
    if not is_main:
        yield
        return
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip().replace(" ", " on ") or "?"
            raise ConfigError(f"{folder} is being written by another process (pid {holder})") from None
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()
        yield


def _claim(name: str, folder: Path, values: Mapping[str, Any], *, is_main: bool) -> None:
    """Refuses a folder that is finished, or that holds an unfinished stage with other keys: nothing is overwritten."""
    if (folder / RECORD).exists():
        raise ConfigError(f"{folder} holds a finished stage ({RECORD}); choose another output_dir, or move it away")
    for key, given in _paths(name, values):
        if Path(given).absolute().is_relative_to(folder):
            raise ConfigError(f"{key}={given} lies in {folder}, which this stage writes; choose another output_dir")
    mine = {"stage": name, "keys": _identity(name, values), "inputs": _inputs(name, values)}
    path = folder / "identity.json"
    before = read_json(path)
    if is_main and path.exists() and not (isinstance(before, dict) and before.keys() == mine.keys()):
        raise ConfigError(f"{path} is not a stage's; choose another output_dir, or move it away")
    if is_main and before is None and (folder / "model").exists():
        raise ConfigError(f"{folder / 'model'} is not this stage's; choose another output_dir, or move it away")
    if before is not None and before != json.loads(json.dumps(mine)) and is_main:
        both = {**before["keys"], **before["inputs"]}, {**mine["keys"], **mine["inputs"]}
        changed = [key for key in both[0] | both[1] if both[0].get(key) != both[1].get(key)] or ["stage"]
        raise ConfigError(
            f"{folder} holds an unfinished {before['stage']} with other keys ({', '.join(changed)}); "
            "choose another output_dir, or move it away"
        )
    if is_main and before is None:
        write_atomically(path, json.dumps(mine, indent=2))


class _Printable(logging.Formatter):
    """Texts of rows stand in messages: what could move a terminal's cursor is shown, not sent."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _start_logging(folder: Path, level: str, *, is_main: bool) -> None:
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


def _failed(folder: Path, error: BaseException, *, is_main: bool) -> int:
    if isinstance(error, preemption.Preempted):
        return _preempted(folder, error, is_main=is_main)
    interrupted = isinstance(error, KeyboardInterrupt)
    is_users, says_all = isinstance(error, ConfigError), isinstance(error, ConfigError | StageError)
    text = " ".join(str(error).split()) or type(error).__name__
    cause = text if says_all else "interrupted" if interrupted else f"{type(error).__name__}: {text}"
    hint = _hint(error)
    if is_main and is_users and not any(folder.glob("checkpoints/checkpoint-*")):
        (folder / "identity.json").unlink(missing_ok=True)  # nothing is made yet: the mended keys may use the folder
    if hint in (DISK_FULL, DISK_READ_ONLY) and not is_users:
        log.error("error: %s; %s", cause, hint)
    else:
        log.error("error: %s", cause, exc_info=None if says_all or interrupted else error)
    state, kind = "interrupted" if interrupted else "failed", "config" if is_users else "error"
    _report(folder, {"state": state, "cause": cause[:2000], "hint": hint, "kind": kind})
    return 130 if interrupted else 2 if is_users else 1


def _hint(error: BaseException | None) -> str:
    """The way out of an error, or of one that it came from; the empty string where none is known."""
    while error is not None:
        text = f"{type(error).__name__} {error}".lower()
        if hint := next((hint for part, hint in HINTS.items() if part in text), ""):
            return hint
        error = error.__cause__ or error.__context__
    return ""


def _preempted(folder: Path, error: preemption.Preempted, *, is_main: bool) -> int:
    cause, hint = "stopped by SIGTERM", f"run me again: {error.saved or 'what is finished is kept'}"
    if is_main:
        log.error("%s; %s", cause, hint)
        _report(folder, {"state": "interrupted", "cause": cause, "hint": hint, "kind": "preempted"})
    return preemption.EXIT_CODE


def _report(folder: Path, outcome: Mapping[str, str]) -> None:
    for _ in range(2):
        with contextlib.suppress(OSError):
            write_atomically(folder / "outcome.json", json.dumps(outcome))
            return
        with contextlib.suppress(OSError):  # on a full disk these make room; else the exit code has to do
            _clear_leftovers(folder)
            (folder / "outcome.json").unlink(missing_ok=True)


def _finish(name: str, folder: Path, values: dict[str, Any], made: Made, *, seconds: float) -> None:
    versions = {}
    for library in ("torch", "transformers", "trl", "accelerate", "deepspeed", "peft"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    write_atomically(folder / "outcome.json", json.dumps({"state": "done", "cause": "", "hint": "", "kind": ""}))
    Artifact(
        stage=name,
        step=str(values.get("step", "")),
        recipe_version=stage_keys.stages()[name].recipe_version,
        fingerprint=str(values.get("fingerprint", "")),
        keys=_identity(name, values),
        inputs=_inputs(name, values),
        outputs=made.outputs,
        files=files_below(folder, made.outputs),
        metrics=made.metrics,
        reasons=made.reasons,
        choices=made.choices,
        contract=made.contract,
        versions=versions,
        seconds=round(seconds, 3),
    ).write(folder)
    if not values.get("keep_checkpoints"):  # now that they are not needed: a kill before would have lost everything
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    log.info("whole: %s", folder)


def listed(counts: Mapping[Any, int]) -> str:
    """Counts by reason, as a message says them: `strength 9, too_similar 1`."""
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())


def find_function(reference: str) -> Callable[..., Any]:
    """`module:function`, looked up beside the recipe (ALIGNLOOP_FUNCTION_PATH) first, then as an installed module.

    Raises ConfigError where it can't be found.
    """
    import importlib
    import importlib.util

    module_name, _, function_name = reference.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        raise ConfigError(f"{reference!r} is not of the form module:function")
    beside = Path(os.environ.get("ALIGNLOOP_FUNCTION_PATH", ".")) / (module_name.replace(".", "/") + ".py")
    try:
        if beside.is_file():
            spec = importlib.util.spec_from_file_location(f"beside_recipe_{module_name.replace('.', '_')}", beside)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{reference}: {error} (looked beside the recipe, then among installed modules)") from None
    except SyntaxError as error:
        raise ConfigError(f"{reference}: {error.filename}:{error.lineno} is not Python: {error.msg}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{reference}: {module_name} has no function {function_name!r}")
    return function
