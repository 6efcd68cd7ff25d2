"""People in an evaluation: they compare a random part of the answers, and their labels correct the judge's win rate."""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_schemas.intervals import paired_interval
from data_schemas.people import Label
from engine.judging.comparison import AnswersPK, Metric
from engine.judging.people.agreement import people_metrics, share
from engine.judging.people.asking import Labels, PeopleArguments, PeopleRow, ask_people
from engine.judging.people.correction import corrected_rate, draw_labelled
from engine.judging.verdicts import Pairing
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage

# Shapes: P = prompts, K = answers to each prompt, L = labelled prompts.
COLUMNS = tuple(f"{name}{end}" for name in ("judged_win_rate", "corrected_win_rate") for end in ("", "_low", "_high"))
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class CorrectionArguments(PeopleArguments):
    """Keys of an evaluation that people correct."""

    people_against: Literal["best", "first", "previous", "baseline"] = key_field(
        "best", "the policy whose answers people compare with the new one's", omitted_at_default=True
    )


@dataclass(frozen=True)
class Correction:
    """What people said of a part of the answers, and what follows for the judge's win rate."""

    metrics: dict[str, Metric]
    labels: Labels


def correct(
    stage: Stage, arguments: CorrectionArguments, answers: AnswersPK, others: AnswersPK, points_PK: np.ndarray
) -> Correction:
    """The judge's win rate against the others, and the one that people correct, each with its 95 % interval.

    `points_PK` are the judge's. People compare one answer, drawn by lot, of `people_budget` prompts, which are a random
    part of each tag's. Equal answers and empty ones are not shown to them, as not to a judge. Raises WaitingForPeople
    until all labels are there, and DataError for a file that is of no use.
    """
    tags_P = [group[0].prompt.tag for group in answers]
    drawn = draw_labelled(tags_P, arguments.people_budget or len(answers), seed=arguments.seed)
    chosen = {place: random.Random(f"{arguments.seed}/{place}/k").randrange(len(answers[place])) for place in drawn}
    pairings = {
        place: Pairing(answers[place][k].prompt, answers[place][k].text, others[place][k].text)
        for place, k in chosen.items()
    }
    rows = {place: PeopleRow(one.prompt, one.one, one.other) for place, one in pairings.items() if not one.is_obvious}
    rubric = str(stage.values.get("rubric") or "")
    labels = ask_people(
        stage,
        list(rows.values()),
        arguments.people or [],
        overlap=arguments.people_overlap,
        seed=arguments.seed,
        rubric=rubric,
    )
    points = {place: points_of(labels[row.id]) for place, row in rows.items()}
    points |= {place: pairings[place].obvious_points for place in drawn if place not in rows}
    labelled = {place: chosen[place] for place in drawn if points[place] is not None}  # the others were skipped
    human_L = np.array([points[place] for place in labelled], dtype=float)
    metrics = _rates(points_PK, labelled, human_L, tags_P, seed=arguments.seed)
    judged_L = [points_PK[place, k] for place, k in labelled.items()]
    agreements = [
        bool(judged > 0.5) == bool(own > 0.5)
        for place, judged, own in zip(labelled, judged_L, human_L, strict=True)
        if place in rows and own != 0.5 and judged in (0, 1)
    ]
    metrics |= people_metrics(labels) | {"people_agree_with_model": share(agreements)}
    return Correction(metrics, labels)


def _by_prompt(points_PK: np.ndarray) -> np.ndarray:
    """The mean of each prompt's points, [P]; nan where none of its answers has a verdict."""
    has_verdict_P = ~np.isnan(points_PK).all(axis=1)
    means_P = np.full(len(points_PK), np.nan)
    means_P[has_verdict_P] = np.nanmean(points_PK[has_verdict_P], axis=1)
    return means_P


def _rates(
    points_PK: np.ndarray, labelled: Mapping[int, int], human_L: np.ndarray, tags_P: Sequence[str], *, seed: int
) -> dict[str, Metric]:
    """Both rates with their intervals. `labelled` has the number k of the answer that people compared, by prompt."""
    metrics: dict[str, Metric] = dict.fromkeys(COLUMNS)
    judge_P = _by_prompt(points_PK)
    if not np.isnan(judge_P).all():
        metrics |= dict(zip(COLUMNS[:3], paired_interval(judge_P[~np.isnan(judge_P)], seed=seed), strict=True))
    for place, k in labelled.items():  # k was drawn by lot, so that the mean stays right
        judge_P[place] = points_PK[place, k]
    corrected = corrected_rate(judge_P, list(labelled), human_L, tags_P)
    if corrected is not None:
        metrics |= dict(zip(COLUMNS[3:], (corrected.mean, corrected.low, corrected.high), strict=True))
        log.info("win rate %s by the judge, %.3f corrected by people", metrics[COLUMNS[0]], corrected.mean)
    return metrics


def points_of(labels: Mapping[str, Label]) -> float | None:
    """The mean of people's points for the first answer of a row: 1, 0.5 for a tie, 0; None where all skipped it."""
    levels = [level for label in labels.values() if (level := label.level) is not None]
    points = [1.0 if level > 0 else 0.5 if level == 0 else 0.0 for level in levels]
    return sum(points) / len(points) if points else None
