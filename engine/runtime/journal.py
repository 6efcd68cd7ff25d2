"""The journal of finished work: batches that a killed stage, another try or another process did are not done again."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data_schemas.files import write_atomically
from engine.runtime import preemption
from engine.runtime.stage import Stage

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(
    stage: Stage,
    name: str,
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], list[Result]],
    *,
    size: int,
    content: Iterable[Any],
) -> list[Result]:
    """`work` on batches of `items`, divided among the processes; every process gets all results, in order.

    Results travel as files, not through a collective: a process may take as long as it needs. Each batch is a file of
    its own, and is done once: by an attempt that was killed, of any number of processes, or by one in another folder
    beside this one. `content` is all that makes the results what they are, so a step that failed later on and runs
    again with other keys takes them over.
    """
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    digest = hashlib.sha256(str(size).encode())
    for piece in content:  # row by row: all of them in one text would be gigabytes
        digest.update(json.dumps(piece).encode())
    folder = stage.folder / "checkpoints" / f"{name}-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    elsewhere = [path for path in stage.folder.parent.glob(f"*/checkpoints/{folder.name}") if path != folder]
    mine, taken = range(rank, len(batches), processes), 0
    started = last = time.monotonic()
    for number, index in enumerate(mine, start=1):
        file, known = f"{index}.json", len(batches[index])
        if _finished(folder / file, known) is not None:
            taken += 1
            continue
        if (folder / file).exists():
            log.warning("%s is not as it was written: its batch is done again", folder / file)
        with preemption.delayed():
            results = next(filter(None, (_finished(path / file, known) for path in elsewhere)), None)
            taken += results is not None
            results = work(batches[index]) if results is None else results
            text = json.dumps(results)
            write_atomically(folder / file, f"{_digest(text)} {text}")
        if time.monotonic() - last > 10:
            last = time.monotonic()
            log.info("%s: %d of %d batches in %.0f s", name, number, len(mine), last - started)
    if taken:
        log.info("%s: %d of %d batches were done already", name, taken, len(mine))
    done: list[Result] = []
    for index, batch in enumerate(batches):
        while (found := _finished(folder / f"{index}.json", len(batch))) is None:  # another process is at it
            time.sleep(0.1)
        done += found
    return done


def _finished(path: Path, number: int) -> list[Any] | None:
    """The results of a batch of so many items; None where the file is not there, or not as it was written."""
    try:
        digest, _, text = path.read_text(encoding="utf-8").partition(" ")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    if digest != _digest(text):
        return None
    results: list[Any] = json.loads(text)
    return results if len(results) == number else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
