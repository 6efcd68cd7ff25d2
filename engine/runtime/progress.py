"""What a stage is doing now, and how far it is: activities with a count, published in `progress.json`.

    with progress.activity("generating answers", total=400, unit="answers"):
        ...
        progress.advance()

An activity may be entered inside another, as an evaluation is inside training. The stage only adds to numbers in
memory; a thread of the first process writes the file once a second if something changed, so that a long call, as that
which loads a model, is visible too. A count costs less than a microsecond, a write 0.1 ms. The same thread writes
`timing.json`, from which a later start knows how long this one took.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from data_schemas.artifact import RECORD
from data_schemas.progress import PROGRESS, TIMING, Activity, StageProgress, kept_seconds
from engine.runtime import timing

SECONDS_BETWEEN_WRITES = 1.0
Item = TypeVar("Item")


@dataclass(eq=False)
class Counter:
    """An activity while it goes on."""

    name: str
    total: int | None = None
    unit: str = ""
    done: int = 0
    loss: float | None = None
    first: tuple[float, int] | None = None  # time of the first count, and `done` after it: the first may be slow
    last: float = 0.0  # time of the last count
    started: float = field(default_factory=lambda: time.monotonic())
    at_start: int = 0  # `done` without what this process did

    def advance(self, count: int = 1) -> None:
        """Counts units that were done now."""
        self.done += count
        self.last = time.monotonic()
        if self.first is None:
            self.first = (self.last, self.done)

    def advance_to(self, done: int) -> None:
        """Counts the units up to `done`; those that are counted already are not counted again."""
        if done > self.done:
            self.advance(done - self.done)

    def skip(self, count: int) -> None:
        """Counts units that were done before, which say nothing about the speed."""
        self.done += count
        self.at_start += count
        if self.first is not None:
            self.first = (self.first[0], self.first[1] + count)

    @property
    def per_second(self) -> float | None:
        """Units a second, without the first count once there is a second one; None before the first.

        The first count may have waited for what is not counted, as an evaluation before training. So where it was all
        there is to count, there is no speed.
        """
        if self.first is None or self.done == self.first[1] == self.total:
            return None
        since, before = self.first if self.done > self.first[1] else (self.started, self.at_start)
        seconds, count = self.last - since, self.done - before
        return count / seconds if seconds > 0 and count > 0 else None

    def report(self) -> Activity:
        """The present state, for the file."""
        return Activity(self.name, self.done, self.total, self.unit, self.per_second, self.loss)


_activities: list[Counter] = []  # of this process, which runs one stage; the innermost last


@contextlib.contextmanager
def activity(name: str, *, total: int | None = None, unit: str = "") -> Iterator[Counter]:
    """What happens inside is shown under this name, as in `loading the model`. Also a decorator.

    With a `total` it is counted in units, whose name is a plural.
    """
    with shown(Counter(name, total, unit)) as counter:
        yield counter


@contextlib.contextmanager
def shown(counter: Counter) -> Iterator[Counter]:
    """What happens inside is the activity of this counter."""
    _activities.append(counter)
    try:
        yield counter
    finally:
        _activities.remove(counter)


def advance(count: int = 1) -> None:
    """Counts units of the innermost activity that is counted; does nothing where none is."""
    for counter in reversed(_activities):
        if counter.total is not None:
            counter.advance(count)
            return


def current() -> StageProgress:
    """The present activities of this process."""
    return StageProgress(tuple(counter.report() for counter in list(_activities)))


def each(items: Iterable[Item], name: str, *, total: int, unit: str) -> Iterator[Item]:
    """The items, each of which is counted when the next one is asked for."""
    with activity(name, total=total, unit=unit) as counter:
        for item in items:
            yield item
            counter.advance()


@contextlib.contextmanager
def published(folder: Path, *, is_main: bool) -> Iterator[None]:
    """Writes the activities of the first process (`is_main`) to `progress.json` in `folder`, and deletes the file at
    the end; and its seconds to `timing.json`, which remains where the stage has no record. A file that can't be
    written, as on a full disk, is no error."""
    _activities.clear()
    if not is_main:
        yield
        return
    writer = _Writer(folder)
    writer.start()
    try:
        yield
    finally:
        writer.end()


class _Writer(threading.Thread):
    def __init__(self, folder: Path) -> None:
        super().__init__(name="progress", daemon=True)
        self.folder = folder
        self.started_at = time.time() - sum(kept_seconds(folder).values())
        self.has_ended = threading.Event()
        self.written: dict[str, str] = {}

    def run(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                self.write()
            if self.has_ended.wait(SECONDS_BETWEEN_WRITES):
                return

    def write(self) -> None:
        activities = [asdict(activity) for activity in current().activities]
        self._replace(PROGRESS, {"started": round(self.started_at, 1), "activities": activities})
        self._replace(TIMING, timing.by_part())

    def end(self) -> None:
        self.has_ended.set()
        self.join()
        with contextlib.suppress(OSError):
            self._replace(TIMING, timing.by_part())
        names = [PROGRESS, TIMING] if (self.folder / RECORD).exists() else [PROGRESS]
        for path in [*(self.folder / name for name in names), *map(self._partial, (PROGRESS, TIMING))]:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _replace(self, name: str, content: object) -> None:
        text = json.dumps(content)
        if text != self.written.get(name):
            partial = self._partial(name)
            partial.write_text(text, encoding="utf-8")  # not synced to the disk: after a crash it decides nothing
            partial.replace(self.folder / name)
            self.written[name] = text

    def _partial(self, name: str) -> Path:
        return self.folder / f".{name}.partial-{os.getpid()}"
