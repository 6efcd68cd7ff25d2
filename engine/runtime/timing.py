"""Where a stage's time goes: seconds by part, reported in outcome.json by a stage that finished.

A part that is entered inside another stops the other's clock, so the parts add up to the total. The times describe how
a step ran, not its result, so they are not in the record.

    @timing.part("load")
    def load_tokenizer(path): ...
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Part = Literal["load", "train", "evaluate", "save", "generate", "score", "other"]


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


def start() -> None:
    """Sets the clock of a new stage to zero; time outside of every part is `other`."""
    _clock.seconds, _clock.entered, _clock.since = {}, ("other",), time.monotonic()


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
    """Seconds since `start`, by part."""
    _clock.charge()
    return {name: round(seconds, 3) for name, seconds in _clock.seconds.items()}
