"""Checkpoints inside a stage: whole or not there, verified before they are resumed from, pruned after that.

The Trainer writes checkpoints in place, so a killed one looks like a finished one. Here a checkpoint is written into
`.saving`, synced to disk, and renamed into its place; its marker, `whole.json`, names every file with size and hash.
Resuming takes the newest checkpoint that verifies, and says which it refused.
"""

import json
import logging
import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_schemas.artifact import hash_files, read_mapping, write_atomically
from data_schemas.stage_keys import ConfigError

MARKER = "whole.json"
SAVING = ".saving"  # where the Trainer writes
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far training was when a checkpoint was saved."""

    step: int
    best_step: int  # of the best model so far, which lies beside the checkpoints
    num_tokens: int  # trained on; TRL counts them and does not save them
    processes: int  # optimizer shards and random states are by process
    evaluation_is_due: bool = False  # SIGTERM came before the evaluation of this step
    skipped_steps: int = 0
    recent_losses: list[float] = field(default_factory=list)


def publish(folder: Path, progress: Progress) -> Path:
    """Puts the checkpoint that lies in `.saving` into its place, whole."""
    partial, target = (place / f"checkpoint-{progress.step}" for place in (folder / SAVING, folder))
    everything = list(partial.rglob("*"))
    for path in everything:
        _sync(path)
    files = [path for path in everything if path.is_file()]
    named = {str(path.relative_to(partial)): [path.stat().st_size, digest]
             for path, digest in zip(files, hash_files(files), strict=True)}  # fmt: skip
    write_atomically(partial / MARKER, json.dumps(asdict(progress) | {"files": named}))
    _sync(partial)
    shutil.rmtree(target, ignore_errors=True)  # one that did not verify
    partial.rename(target)
    _sync(folder)
    return target


def newest_whole(folder: Path, *, processes: int) -> tuple[Path, Progress] | None:
    """The newest checkpoint that verifies, and its progress; those that do not are left alone and said.

    Raises ConfigError where it was written by another number of processes.
    """
    shutil.rmtree(folder / SAVING, ignore_errors=True)
    for _, checkpoint in sorted(((_step_of(path), path) for path in folder.glob("checkpoint-*")), reverse=True):
        reason = damage(checkpoint)
        if reason:
            log.warning("%s is not resumed from: %s", checkpoint.name, reason)
            continue
        progress = _progress(checkpoint)
        if progress.processes != processes:
            raise ConfigError(
                f"{checkpoint} was written by {progress.processes} processes, this is {processes}: run with as many, "
                "or remove the folder to start the step again"
            )
        if not best_folder(folder, progress.best_step).is_dir():
            log.warning(
                "%s is not resumed from: its best model, of step %d, is gone", checkpoint.name, progress.best_step
            )
            continue
        return checkpoint, progress
    return None


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, in a few words; the empty string for a whole one."""
    marker = _marker(checkpoint)
    if not marker:
        return "it has no marker"
    for name, (size, _) in marker["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    names = list(marker["files"])
    digests = hash_files(checkpoint / name for name in names)
    changed = [name for name, digest in zip(names, digests, strict=True) if digest != marker["files"][name][1]]
    return f"{changed[0]} is not what was written" if changed else ""


def prune(folder: Path, *, keep: int | None, best_step: int) -> None:
    """Removes all but the `keep` newest checkpoints (None: none), and the best models that none of them names."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_step_of)
    for checkpoint in checkpoints[: -keep or None] if keep else ():
        shutil.rmtree(checkpoint, ignore_errors=True)
    kept = [path for path in folder.glob("checkpoint-*") if _marker(path)]
    _forget_bests(folder, {best_step, *(_progress(path).best_step for path in kept)})


def link(source: Path, target: Path, *, leave_out: str) -> None:
    """`target` with the files of `source` but one. They stay: a kill before the record is written must lose nothing."""

    def same(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:  # a file system without hard links
            shutil.copy2(one, other)

    shutil.copytree(source, target, copy_function=same, ignore=shutil.ignore_patterns(leave_out))


def best_folder(folder: Path, step: int) -> Path:
    return folder / f"best-{step}"


def _forget_bests(folder: Path, steps: Collection[int]) -> None:
    for path in folder.glob("best-*"):
        if path not in [best_folder(folder, step) for step in steps]:
            shutil.rmtree(path, ignore_errors=True)


def _marker(checkpoint: Path) -> dict[str, Any]:
    """What the marker says; nothing where it is missing or not one."""
    marker = read_mapping(checkpoint / MARKER)
    files = marker.get("files")
    named = isinstance(files, dict) and all(isinstance(said, list) and len(said) == 2 for said in files.values())
    counted = all(isinstance(marker.get(name), int) for name in ("step", "best_step", "num_tokens", "processes"))
    return marker if named and counted else {}


def _progress(checkpoint: Path) -> Progress:
    marker = _marker(checkpoint)
    return Progress(**{name: value for name, value in marker.items() if name in Progress.__dataclass_fields__})


def _step_of(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _sync(path: Path) -> None:
    """Until it is on the disk, a file's content or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
