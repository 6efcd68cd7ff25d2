"""Checkpoints inside a stage: which are whole, which is the newest, and the best model kept beside them.

The Trainer writes checkpoints in place, so a killed one looks like a finished one; `whole.json` is written into it when
every process has saved its part, and only such a checkpoint is resumed from.
"""

import json
import os
import shutil
from pathlib import Path

from data_schemas.artifact import read_json, write_atomically

MARKER = "whole.json"


def mark_whole(checkpoint: Path, *, step: int, processes: int, num_tokens: int = 0) -> None:
    """`num_tokens`: trained on up to this step."""
    write_atomically(checkpoint / MARKER, json.dumps({"step": step, "processes": processes, "num_tokens": num_tokens}))


def tokens_trained_on(checkpoint: Path) -> int:
    return int((read_json(checkpoint / MARKER) or {}).get("num_tokens", 0))


def newest_whole(folder: Path, *, processes: int) -> tuple[Path, int] | None:
    """The checkpoint to resume from and its step; half-written ones are removed.

    Raises ValueError where it was written by another number of processes, since optimizer shards are by process.
    """
    whole: list[tuple[int, Path]] = []
    for checkpoint in folder.glob("checkpoint-*"):
        marker = read_json(checkpoint / MARKER)
        if marker is not None:
            whole.append((int(marker["step"]), checkpoint))
            if marker["processes"] != processes:
                raise ValueError(
                    f"{checkpoint} was written by {marker['processes']} processes, this is {processes}: run with as "
                    "many, or remove the folder to start the step again"
                )
        elif int(os.environ.get("RANK", "0")) == 0:
            shutil.rmtree(checkpoint, ignore_errors=True)
    if not whole:
        return None
    step, newest = max(whole)
    return newest, step


def best_folder(folder: Path, step: int) -> Path:
    return folder / f"best-{step}"


def forget_other_bests(folder: Path, step: int) -> None:
    """Removes best models other than that of `step`."""
    for path in folder.glob("best-*"):
        if path != best_folder(folder, step):
            shutil.rmtree(path, ignore_errors=True)
