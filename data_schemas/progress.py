"""`progress.json`: what a running stage is doing, beside its other files until its record is written.

engine/runtime/progress.py writes it about once a second; `alignloop run` and `alignloop status` read it. It is no part
of the record, and nothing is resumed from it.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from data_schemas.files import read_json

PROGRESS = "progress.json"


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
    """The activities of a running stage, the outermost first, and when the stage was started."""

    activities: tuple[Activity, ...] = ()
    started: float | None = None  # seconds since the epoch

    @classmethod
    def read(cls, folder: Path) -> "StageProgress":
        """The progress of the stage that writes `folder`; without activities where the file is missing or damaged."""
        try:
            content = read_json(folder / PROGRESS) or {}
            activities = tuple(Activity(**values) for values in content["activities"])
            return cls(activities, float(content["started"])) if all(map(_is_valid, activities)) else cls()
        except (OSError, KeyError, TypeError, ValueError, OverflowError):
            return cls()


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
