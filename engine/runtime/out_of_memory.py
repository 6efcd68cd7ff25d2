"""A device that runs out of memory: half as many rows at a time, once, and remembered.

The stage ends and is started again, by the runner or by hand: a device gives back all of a process's memory only with
the process. `checkpoints/memory.json` says how many rows may be worked on at a time from then on. The rows of a step
stay as they are, so the result is the same, to rounding; an evaluation is exact for any batch. Where half is too much
as well, rows are not what fills the memory: the way out is said, and nothing is halved again.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from data_schemas.errors import RunAgain, StageError
from data_schemas.files import read_json, write_atomically
from engine.runtime.outcome import is_out_of_memory

TRAINING, EVALUATION = "per_device_train_batch_size", "per_device_eval_batch_size"
IDENTITY = ", which is part of what the step is, or max_new_tokens"  # of a batch that answers are written in
REMEDIES = {
    TRAINING: "lower max_length, set activation_checkpointing: true or use_peft: true, or launch: {profile: "
    "zero3_offload}",
    EVALUATION: "lower max_length, or divide the model with launch: {profile: zero3}",
}


def remembered(folder: Path) -> dict[str, int]:
    """Rows at a time by key, of those that were halved; `folder` holds the stage's checkpoints."""
    said = read_json(folder / "memory.json") or {}
    return {key: said[key] for key in (TRAINING, EVALUATION) if isinstance(said.get(key), int) and said[key] >= 1}


def half_of(rows: int, of: int | None = None) -> int:
    """Half as many rows, or the next number below that divides `of`."""
    return max(size for size in range(1, max(1, rows // 2) + 1) if of is None or of % size == 0)


@contextlib.contextmanager
def halve_on_out_of_memory(folder: Path, key: str, rows: int, *, of: int | None = None) -> Iterator[None]:
    """Around work on `rows` rows at a time, of the `of` rows that a process has in a step.

    Raises RunAgain where the device's memory was full of them, StageError where they were halved before.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        before = remembered(folder)
        if rows == 1 or rows <= before.get(key, 0):
            too_much = "and one row can't be halved" if rows == 1 else "which was halved before"
            raise StageError(f"out of memory with {key}={rows}, {too_much}: {REMEDIES[key]}") from error
        half = half_of(rows, of)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "memory.json", json.dumps(before | {key: half}))
        raise RunAgain(f"out of memory with {key}={rows}: {half} from now on, the result stays the same") from error


@contextlib.contextmanager
def explain_out_of_memory(key: str, rows: int, *, hint: str = "") -> Iterator[None]:
    """Around work on batches that are part of what a step is. Raises StageError where the device's memory is full."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise StageError(f"out of memory with {key}={rows}: lower {key}{hint}") from error
