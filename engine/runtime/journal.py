"""Memoises finished batches on disk, across restarts and processes."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from data_schemas.files import verified_text, with_digest, write_atomically
from engine.runtime import preemption, progress, world
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
    content: Iterable[object],
    doing: str = "",
    unit: str = "rows",
    num_units: Callable[[Item], int] = lambda item: 1,
) -> list[Result]:
    """`work` on batches of `size` items, divided among the processes; every process gets all results, in order.

    `work` gives one result, which JSON can hold, for each item. `content` is everything that determines the results:
    JSON values, such as the settings, the models' hashes, and each row. It is the key under which batches are kept.

    Each batch is a file in `checkpoints/<name>-<key>/`. It is computed once: an attempt that was killed, with any
    number of processes, or a step in another folder beside this one may have computed it before. So a step that runs
    again with other keys for its later part takes its batches from the earlier step. Results travel as files, not
    through a collective, because a process may take as long as it needs.

    `doing`, as in "generating answers", and the `unit` that is counted are shown while it goes on; an item has
    `num_units` of them. `work` may count them itself, one by one, with `progress.advance`.
    """
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    key = hashlib.sha256(str(size).encode())
    for piece in content:  # piece by piece: as one text, all rows would take gigabytes
        key.update(json.dumps(piece).encode())
    folder = stage.folder / "checkpoints" / f"{name}-{key.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    siblings = [path for path in stage.folder.parent.glob(f"*/checkpoints/{folder.name}") if path != folder]
    own, num_known = range(world.rank(), len(batches), world.num_processes()), 0
    units = [sum(map(num_units, batch)) for batch in batches]
    started = last = time.monotonic()
    with progress.activity(doing or name, total=sum(units), unit=unit) as counter:
        for number, index in enumerate(own, start=1):
            file, num_items, before = f"{index}.json", len(batches[index]), counter.done
            if _read_batch(folder / file, num_items) is not None:
                num_known += 1
                counter.skip(units[index])
                continue
            if (folder / file).exists():
                log.warning("%s is damaged: its batch is computed again", folder / file)
            with preemption.delayed():
                results = next(filter(None, (_read_batch(path / file, num_items) for path in siblings)), None)
                if results is None:
                    results = work(batches[index])
                    counter.advance_to(before + units[index])
                else:
                    num_known += 1
                    counter.skip(units[index])
                write_atomically(folder / file, with_digest(json.dumps(results)))
            if world.num_processes() > 1:
                counter.advance_to(_units_written(folder, units))
            if time.monotonic() - last > 10:
                last = time.monotonic()
                log.info("%s: %d of %d batches in %.0f s", name, number, len(own), last - started)
        if num_known:
            log.info("%s: %d of %d batches were computed before", name, num_known, len(own))
        done: list[Result] = []
        num_read = 0
        for index, batch in enumerate(batches):  # those of the other processes, as soon as they are written
            done += world.wait_for(lambda index=index, batch=batch: _read_batch(folder / f"{index}.json", len(batch)))
            num_read += units[index]
            counter.advance_to(num_read)
    return done


def _units_written(folder: Path, units: Sequence[int]) -> int:
    """The units of all batches whose file exists, those of other processes included."""
    written = {name.removesuffix(".json") for name in os.listdir(folder)}  # noqa: PTH208 - several times as fast
    return sum(count for index, count in enumerate(units) if str(index) in written)


def _read_batch(path: Path, num_items: int) -> list | None:
    """The results of a batch; None where its file is missing, damaged, or of another number of items."""
    try:
        text = verified_text(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    results: list = json.loads(text) if text is not None else []
    return results if text is not None and len(results) == num_items else None
