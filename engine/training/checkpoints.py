"""Checkpoints of a stage: complete or absent, verified before a run resumes from them, pruned to the newest few.

The Trainer writes checkpoints in place, so an interrupted one looks like a finished one. Here a checkpoint is written
into `.saving`, synced to disk and renamed into its place; its marker, `whole.json`, lists every file with size and
hash. A run resumes from the newest valid checkpoint; a warning is logged for each one that is not.
"""

import logging
import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_schemas.errors import ConfigError
from engine.runtime.complete_folder import MARKER, find_damage, move_into_place, read_marker, write_marker

SAVING = ".saving"  # where the Trainer writes
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far training had come when a checkpoint was saved."""

    step: int
    best_step: int  # of the best model so far, which is beside the checkpoints as best-<step>
    num_tokens: int  # trained on; TRL counts them and does not save them
    processes: int  # each has its own optimizer shard and random state
    evaluation_is_due: bool = False  # SIGTERM came before the evaluation of this step
    skipped_steps: int = 0
    recent_losses: list[float] = field(default_factory=list)
    unlogged: dict[str, object] | None = None  # what the next line of the log adds up (unlogged.py)
    counters: dict[str, int] = field(default_factory=dict)  # those of one kind of trainer, by name


def publish(folder: Path, progress: Progress) -> Path:
    """Completes the checkpoint in `.saving` with its marker and moves it into place; returns its folder."""
    partial, target = (place / f"checkpoint-{progress.step}" for place in (folder / SAVING, folder))
    write_marker(partial, asdict(progress))
    move_into_place(partial, target)
    return target


def newest_complete(folder: Path, *, processes: int) -> tuple[Path, Progress] | None:
    """The newest valid checkpoint and its progress; invalid ones are kept and skipped with a warning.

    Raises ConfigError if it was written by another number of processes.
    """
    shutil.rmtree(folder / SAVING, ignore_errors=True)
    for _, checkpoint in sorted(((_step_of(path), path) for path in folder.glob("checkpoint-*")), reverse=True):
        reason = find_damage(checkpoint)
        if reason:
            log.warning("%s is not resumed from: %s", checkpoint.name, reason)
            continue
        progress = _progress(checkpoint)
        if progress is None:
            log.warning("%s is not resumed from: its marker is not that of a checkpoint", checkpoint.name)
            continue
        if progress.processes != processes:
            raise ConfigError(
                f"{checkpoint} was written by {progress.processes} processes and this run has {processes}: "
                f"run with {progress.processes}, or remove the folder to start the step again"
            )
        best = best_folder(folder, progress.best_step)
        wrong = find_damage(best) if (best / MARKER).exists() else ""  # older versions wrote none
        if wrong or not best.is_dir():
            log.warning(
                "%s is not resumed from: its best model, of step %d, is %s",
                checkpoint.name,
                progress.best_step,
                f"damaged: {wrong}" if wrong else "missing",
            )
            continue
        return checkpoint, progress
    return None


def is_there(folder: Path, step: int) -> bool:
    """Whether a complete checkpoint of the step exists."""
    return read_marker(folder / f"checkpoint-{step}") is not None


def prune(folder: Path, *, keep: int | None, best_step: int) -> None:
    """Removes all but the `keep` newest checkpoints (None keeps all), and best models that none of them refers to."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_step_of)
    for checkpoint in checkpoints[: -keep or None] if keep else ():
        shutil.rmtree(checkpoint, ignore_errors=True)
    kept = filter(None, (_progress(path) for path in folder.glob("checkpoint-*")))
    _remove_best_models(folder, {best_step, *(progress.best_step for progress in kept)})


def link(source: Path, target: Path, *, leave_out: str) -> None:
    """Writes `target` with hard links to the files of `source`, except its marker and `leave_out`.

    `source` is kept: if the process is killed before the record is written, nothing is lost.
    """

    def link_or_copy(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:  # a file system without hard links
            shutil.copy2(one, other)

    shutil.copytree(source, target, copy_function=link_or_copy, ignore=shutil.ignore_patterns(leave_out, MARKER))


def best_folder(folder: Path, step: int) -> Path:
    """Where the model of a step is kept while it is the best by eval_loss."""
    return folder / f"best-{step}"


def _remove_best_models(folder: Path, keep_steps: Collection[int]) -> None:
    for path in folder.glob("best-*"):
        if path not in [best_folder(folder, step) for step in keep_steps]:
            shutil.rmtree(path, ignore_errors=True)


def _progress(checkpoint: Path) -> Progress | None:
    marker = read_marker(checkpoint) or {}
    try:
        return Progress(**{name: value for name, value in marker.items() if name in Progress.__dataclass_fields__})
    except TypeError:  # the marker of another kind of folder
        return None


def _step_of(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
