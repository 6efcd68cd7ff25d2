"""`progress.json`: what a running stage is doing, beside its other files until its record is written.

engine/runtime/progress.py writes it about once a second; `alignloop run` and `alignloop status` read it. It is no part
of the record, and nothing is resumed from it. Commands that load a model describe their own activities in the same way.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from data_schemas.errors import UserError
from data_schemas.files import read_json
from data_schemas.text import printable

PROGRESS = "progress.json"
LAUNCHED = "ALIGNLOOP_LAUNCHED"  # a variable of a stage: when its runner launched it, by the machine's monotonic clock
TIMING = "timing.json"  # seconds by part of all starts of a stage, until its record is written
MAX_SECONDS = 1e9  # of a part of a stage: a file with more is damaged
STARTING = "starting"  # before the stage has reported anything: it imports its libraries
WORKING = "working"  # between two activities, as while its parts are put together


@dataclass(frozen=True)
class Activity:
    """A part of a stage's work, as in `training` or `loading the model`."""

    name: str
    done: int = 0
    total: int | None = None  # None: the activity is not counted
    unit: str = ""  # plural: steps, rows, answers
    per_second: float | None = None  # units a second; None while too few are done
    loss: float | None = None  # of the last training step

    @property
    def seconds_left(self) -> float | None:
        """The time that the rest of this activity takes at its present rate; None while that is not known."""
        if self.total is None or not self.per_second:
            return None
        return max(0, self.total - self.done) / self.per_second


@dataclass(frozen=True)
class StageProgress:
    """The activities of a running stage, the outermost first, and when it was started."""

    activities: tuple[Activity, ...] = ()
    started: float | None = None  # seconds since the epoch; earlier by what interrupted starts took

    @classmethod
    def read(cls, folder: Path) -> "StageProgress":
        """The progress of the stage that writes `folder`; without activities where the file is missing or damaged."""
        try:
            content = read_json(folder / PROGRESS) or {}
            activities = tuple(Activity(**values) for values in content["activities"])
            return cls(activities, float(content["started"])) if all(map(_is_valid, activities)) else cls()
        except (OSError, KeyError, TypeError, ValueError, OverflowError):
            return cls()


def kept_seconds(folder: Path) -> dict[str, float]:
    """Seconds by part of the starts of an unfinished stage; nothing where `timing.json` is missing or damaged, which
    costs no result."""
    try:
        content = read_json(folder / TIMING) or {}
        found = {str(part): float(seconds) for part, seconds in content.items()}
    except (OSError, UserError, TypeError, ValueError, OverflowError):
        return {}
    return {part: seconds for part, seconds in found.items() if 0 <= seconds < MAX_SECONDS}


def _is_valid(activity: Activity) -> bool:
    """Whether the values that were read from a file have the types of an activity."""
    speed = activity.per_second
    return (
        isinstance(activity.name, str)
        and isinstance(activity.unit, str)
        and isinstance(activity.done, int)
        and isinstance(activity.total, int | None)
        and (speed is None or (isinstance(speed, int | float) and math.isfinite(speed)))
        and isinstance(activity.loss, int | float | None)
    )


def describe_progress(progress: StageProgress) -> str:
    """One line: the outermost counted activity and the innermost one, as in
    `training 40/200 steps, loss 0.512, 1.2 steps/s, 2 min left; evaluating 64/300 rows, 81 rows/s, 3 s left`."""
    shown = progress.activities[-1:]
    counted = next((activity for activity in progress.activities if activity.total), None)
    if counted is not None and counted not in shown:
        shown = (counted, *shown)
    return "; ".join(map(_describe, shown)) or (STARTING if progress.started is None else WORKING)


def _describe(activity: Activity) -> str:
    if not activity.total:
        return printable(activity.name)
    parts = [f"{printable(activity.name)} {activity.done:,}/{activity.total:,} {activity.unit}"]
    if activity.loss is not None:
        parts.append(f"loss {activity.loss:.4g}")
    if activity.per_second:
        parts.append(speed(activity.per_second, activity.unit))
    if activity.seconds_left is not None and activity.done < activity.total:
        parts.append(f"{duration(activity.seconds_left)} left")
    return ", ".join(parts)


def speed(per_second: float, unit: str) -> str:
    """`12 rows/s`, `1.4 rows/s`, or `3.5 s per row` where less than one is done in a second."""
    if per_second >= 1:
        return f"{per_second:,.{0 if per_second >= 10 else 1}f} {unit}/s"
    return f"{duration(1 / per_second)} per {unit.removesuffix('s')}"


def duration(seconds: float) -> str:
    """`3.5 s`, `42 s`, `7 min`, `3 h 20 min`, `2 days 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"
