"""What a task gives each question, and what follows for the policy: scores with 95 % intervals, and paired changes.

| measure | interval of a score | interval of the change between two policies |
|---|---|---|
| 0 or 1 for each question | Wilson's (1927) | Tango's score interval for paired shares (1998) |
| anything else | bootstrap over questions | bootstrap over questions, paired |

Both intervals for shares are honest where few questions differ: of 50 questions of which none changed, a bootstrap
would conclude that nothing can have changed, and Tango's interval still covers a change of 7 points.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_schemas.errors import DataError
from data_schemas.files import write_atomically
from data_schemas.intervals import NUM_RESAMPLES, Z

# Shapes: Q = questions, B = resamples.
GRADES = "grades.jsonl"


class Points(NamedTuple):
    """The points that a question has by a measure, of so many that it can have: 2 of 3 instructions followed."""

    won: float
    of: float = 1.0


@dataclass(frozen=True)
class Grade:
    """What a policy's answer to one question of a task is worth, by each of the task's measures."""

    task: str
    question_id: str
    points: Mapping[str, Points]  # measure -> points; the first one is the task's own score, which the gate reads
    answer: str = ""

    def to_json(self) -> str:
        points = {name: list(value) for name, value in self.points.items()}
        content = {"task": self.task, "question_id": self.question_id, "points": points, "answer": self.answer}
        return json.dumps(content, ensure_ascii=False)


class Interval(NamedTuple):
    """A number with its 95 % interval."""

    mean: float
    low: float
    high: float


def score_of(points_Q: Sequence[Points], *, seed: int) -> Interval:
    """The points of all questions over those that they can have, with the interval."""
    won_Q, of_Q = (np.array(values, dtype=float) for values in zip(*points_Q, strict=True))
    if _are_shares(won_Q, of_Q):
        return wilson(int(won_Q.sum()), len(won_Q))
    draws_BQ = np.random.default_rng(seed).integers(0, len(won_Q), (NUM_RESAMPLES, len(won_Q)))
    rates_B = won_Q[draws_BQ].sum(axis=1) / of_Q[draws_BQ].sum(axis=1)
    low, high = np.percentile(rates_B, [2.5, 97.5])
    return Interval(float(won_Q.sum() / of_Q.sum()), float(low), float(high))


def change_of(points_Q: Sequence[Points], before_Q: Sequence[Points], *, seed: int) -> Interval:
    """The change of the score from `before_Q`, the same questions answered by another policy, with the interval."""
    won_Q, of_Q = (np.array(values, dtype=float) for values in zip(*points_Q, strict=True))
    earlier_Q, earlier_of_Q = (np.array(values, dtype=float) for values in zip(*before_Q, strict=True))
    if _are_shares(won_Q, of_Q) and _are_shares(earlier_Q, earlier_of_Q):
        gained, lost = int(((won_Q == 1) & (earlier_Q == 0)).sum()), int(((won_Q == 0) & (earlier_Q == 1)).sum())
        return tango(gained, lost, len(won_Q))
    draws_BQ = np.random.default_rng(seed).integers(0, len(won_Q), (NUM_RESAMPLES, len(won_Q)))
    now_B = won_Q[draws_BQ].sum(axis=1) / of_Q[draws_BQ].sum(axis=1)
    before_B = earlier_Q[draws_BQ].sum(axis=1) / earlier_of_Q[draws_BQ].sum(axis=1)
    low, high = np.percentile(now_B - before_B, [2.5, 97.5])
    return Interval(float(won_Q.sum() / of_Q.sum() - earlier_Q.sum() / earlier_of_Q.sum()), float(low), float(high))


def _are_shares(won_Q: np.ndarray, of_Q: np.ndarray) -> bool:
    return bool(np.isin(won_Q, (0, 1)).all() and (of_Q == 1).all())


def wilson(successes: float, count: float) -> Interval:
    """A share of `count` with Wilson's score interval (Wilson 1927); of weighted rows, both are effective numbers."""
    share, z2 = successes / count, Z**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def tango(gained: int, lost: int, count: int) -> Interval:
    """The difference of two paired shares with its score interval (Tango, Statistics in Medicine 17, 1998, eq. 12-14).

    `gained` questions of `count` are right only now, `lost` ones were right only before.
    """

    def statistic(difference: float) -> float:
        """Standardised distance of what was seen from this difference."""
        numerator = gained - lost - count * difference
        a = 2 * count
        b = -gained - lost + (2 * count - gained + lost) * difference
        c = -lost * difference * (1 - difference)
        share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # of lost questions, where it is the true one
        variance = count * (2 * share + difference * (1 - difference))
        return numerator / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, numerator)

    mean = (gained - lost) / count
    return Interval(mean, _crossing(statistic, -1.0, mean, Z), _crossing(statistic, mean, 1.0, -Z))


def _crossing(statistic: Callable[[float], float], low: float, high: float, level: float) -> float:
    """Where the falling statistic has a value, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if statistic(middle) > level else (low, middle)
    return (low + high) / 2


def write_grades(folder: Path, grades: Sequence[Grade]) -> None:
    write_atomically(folder / GRADES, "".join(f"{grade.to_json()}\n" for grade in grades))


def read_grades(folder: Path) -> list[Grade]:
    """The grades of a finished evaluation. Raises DataError where the file is missing or damaged."""
    path = folder / GRADES
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            Grade(
                line["task"],
                line["question_id"],
                {name: Points(*value) for name, value in line["points"].items()},
                line["answer"],
            )
            for line in lines
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} has no grades of a policy ({error}); run evaluate_tasks on it again") from None


def measures_of(grades: Sequence[Grade]) -> dict[str, list[str]]:
    """The measures of each task, its own score first, in the order of the tasks."""
    return {grade.task: list(grade.points) for grade in grades}


def points_by_measure(grades: Sequence[Grade]) -> dict[str, dict[str, Points]]:
    """Measure -> question -> points."""
    found: dict[str, dict[str, Points]] = {}
    for grade in grades:
        for measure, points in grade.points.items():
            found.setdefault(measure, {})[grade.question_id] = points
    return found
