"""Where a stage's time goes: seconds by part, reported in outcome.json by a stage that finished.

A part that is entered inside another stops the other's clock, so the parts add up to the total. It begins when the
runner launches the stage, and includes what earlier starts took that were interrupted: `timing.json`, which
engine/runtime/progress.py writes, has it until the record is written.

    @timing.part("load")
    def load_tokenizer(path): ...
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from data_schemas.progress import LAUNCHED, kept_seconds
from engine.runtime import process

Part = Literal["start", "load", "train", "evaluate", "save", "generate", "score", "other"]


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)
    entered: tuple[Part, ...] = ()  # the innermost part last
    since: float = 0.0

    def charge(self) -> None:
        """Adds the time since the last change to the innermost part."""
        now = time.monotonic()
        if self.entered:
            name = self.entered[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self.since
        self.since = now


_clock = _Clock()  # one for the process, which runs one stage


def start(folder: Path | None = None) -> None:
    """Starts the clock of a stage: at zero, or at what its earlier starts in `folder` took. What has passed since its
    launch is `start`, and time outside of every part is `other`."""
    earlier = kept_seconds(folder) if folder else {}
    _clock.seconds = {part: earlier[part] for part in get_args(Part) if part in earlier}
    _clock.entered, _clock.since = ("other",), time.monotonic()
    if (launched := _launched()) is not None:
        _clock.seconds["start"] = _clock.seconds.get("start", 0.0) + max(0.0, _clock.since - launched)


@contextlib.contextmanager
def part(name: Part) -> Iterator[None]:
    """Counts the time inside as this part's. Also a decorator."""
    before = _clock.entered
    _clock.charge()
    _clock.entered = (*before, name)
    try:
        yield
    finally:
        _clock.charge()
        _clock.entered = before


def by_part() -> dict[str, float]:
    """Seconds by part, until now. Another thread may call it."""
    seconds = dict(_clock.seconds)
    if _clock.entered:
        name = _clock.entered[-1]
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - _clock.since
    return {name: round(value, 3) for name, value in seconds.items()}


def _launched() -> float | None:
    """When the runner launched this stage, by the clock that the processes of one machine share; None without a runner
    on this machine."""
    value = os.environ.get(LAUNCHED)
    if value is None or not process.is_on_the_runners_machine():
        return None
    try:
        launched = float(value)
    except ValueError:
        return None
    return min(launched, time.monotonic()) if launched >= 0 else None
