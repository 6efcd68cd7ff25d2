"""Where a stage's time goes: seconds by part, said in outcome.json by a stage that is done.

A part that is entered inside another stops the other's clock, so the parts add up to the whole. They say how a step
ran, not what it made: the record does not hold them.

    @timing.part("load")
    def load_tokenizer(path): ...
"""

import contextlib
import time
from collections.abc import Iterator
from typing import ClassVar, Literal

Part = Literal["load", "train", "evaluate", "save", "generate", "score", "other"]


class _Clock:
    seconds: ClassVar[dict[str, float]] = {}
    entered: tuple[str, ...] = ()  # the innermost part last
    since = 0.0


def start() -> None:
    """The clock of a new stage, at zero; all that is in no part is `other`."""
    _Clock.seconds, _Clock.entered, _Clock.since = {}, ("other",), time.monotonic()


@contextlib.contextmanager
def part(name: Part) -> Iterator[None]:
    """What runs inside is of this part. Also a decorator."""
    before = _Clock.entered
    _charge()
    _Clock.entered = (*before, name)
    try:
        yield
    finally:
        _charge()
        _Clock.entered = before


def by_part() -> dict[str, float]:
    """Seconds since `start`, by part."""
    _charge()
    return {name: round(seconds, 3) for name, seconds in _Clock.seconds.items()}


def _charge() -> None:
    now = time.monotonic()
    if _Clock.entered:
        name = _Clock.entered[-1]
        _Clock.seconds[name] = _Clock.seconds.get(name, 0.0) + now - _Clock.since
    _Clock.since = now
