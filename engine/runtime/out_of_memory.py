"""A device that runs out of memory: the micro-batch is halved once, and the halved size is remembered.

The stage ends and is started again, by the runner or by hand, since a device frees all of a process's memory only when
the process ends. `checkpoints/memory.json` holds the micro-batch to use from then on. The rows of an optimizer step
stay the same, so the result is the same up to rounding; an evaluation is exact for any batch. Where half the rows are
too many as well, something else fills the memory: the error names a remedy and the batch is not halved again.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from data_schemas.errors import RunAgain, StageError
from data_schemas.files import read_json, write_atomically
from engine.runtime.outcome import is_out_of_memory

TRAINING, EVALUATION = "per_device_train_batch_size", "per_device_eval_batch_size"
IDENTITY = ", which is part of the step's identity, or max_new_tokens"  # hint for generation_batch_size
REMEDIES = {
    TRAINING: "lower max_length, set activation_checkpointing: true or use_peft: true, or launch: {profile: "
    "zero3_offload}",
    EVALUATION: "lower max_length, or divide the model with launch: {profile: zero3}",
}


def remembered(folder: Path) -> dict[str, int]:
    """The halved batch sizes by key, in rows a device; `folder` holds the stage's checkpoints."""
    sizes = read_json(folder / "memory.json") or {}
    return {key: sizes[key] for key in (TRAINING, EVALUATION) if isinstance(sizes.get(key), int) and sizes[key] >= 1}


def half_of(rows: int, of: int | None = None) -> int:
    """Half of `rows`, or the next smaller number that divides `of`."""
    return max(size for size in range(1, max(1, rows // 2) + 1) if of is None or of % size == 0)


@contextlib.contextmanager
def halve_on_out_of_memory(folder: Path, key: str, rows: int, *, of: int | None = None) -> Iterator[None]:
    """Around work on a batch of `rows` rows; `of` is the number of rows a process has in an optimizer step.

    Raises RunAgain where the device runs out of memory, StageError where the batch was halved before.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        before = remembered(folder)
        if rows == 1 or rows <= before.get(key, 0):
            why = "and one row can't be halved" if rows == 1 else "which was halved before"
            raise StageError(f"out of memory with {key}={rows}, {why}: {REMEDIES[key]}") from error
        half = half_of(rows, of)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "memory.json", json.dumps(before | {key: half}))
        raise RunAgain(
            f"out of memory with {key}={rows}: it is {half} from now on, the result stays the same"
        ) from error


@contextlib.contextmanager
def explain_out_of_memory(key: str, rows: int, *, hint: str = "") -> Iterator[None]:
    """Around work whose batch size is part of the step's identity. Raises StageError where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise StageError(f"out of memory with {key}={rows}: lower {key}{hint}") from error
