"""Win rates of a policy by an LLM judge, which compares its answers with those of other policies, one by one.

The judge gives no answer a number, so a policy's score is its share of points (1 for a win, 0.5 for a tie) against the
first policy of the run; the first policy has 0.5. Each other policy that matters for the round, the previous one, the
best so far and the baseline, is compared directly. Verdicts that cannot be read are left out, and counted.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from data_schemas.intervals import paired_interval
from engine.judging.comparison import AnswersPK, Metric
from engine.judging.length_control import WARN_DIFFERENCE, length_controlled
from engine.judging.llm_judge import LLMJudge
from engine.judging.verdicts import Pairing
from engine.runtime import notices

# Shapes: P = prompts, K = answers to each prompt.
log = logging.getLogger(__name__)


def points_against(judge: LLMJudge, answers: AnswersPK, others: Mapping[str, AnswersPK]) -> dict[str, np.ndarray]:
    """The points of the answers against each other policy's answers with the same k, [P, K]; nan without a verdict.

    A policy that has several names is compared once. Raises ConfigError as `LLMJudge.compare` does.
    """
    distinct: dict[int, AnswersPK] = {id(other): other for other in others.values()}
    pairings = [
        Pairing(own.prompt, own.text, theirs.text)
        for other in distinct.values()
        for group, other_group in zip(answers, other, strict=True)
        for own, theirs in zip(group, other_group, strict=True)
    ]
    points = [np.nan if one.points is None else one.points for one in judge.compare(pairings)]
    shape = (len(distinct), len(answers), len(answers[0]))
    by_policy = dict(zip(distinct, np.reshape(np.array(points, dtype=float), shape), strict=True))
    return {name: by_policy[id(other)] for name, other in others.items()}


def paired_metrics(
    names: Sequence[str],
    points: Mapping[str, np.ndarray],
    answers: AnswersPK,
    others: Mapping[str, AnswersPK],
    difficulties: Mapping[str, np.ndarray],
    *,
    judge: str,
    seed: int,
) -> dict[str, Metric]:
    """Raw and length-controlled win rates side by side, with their intervals, against each of `names`; None for one
    that is not there. The gain is the raw rate over 0.5. `difficulties` are numbers by prompt, [P]."""
    metrics: dict[str, Metric] = {}
    for name in names:
        raw, controlled, gain = (f"{kind}_vs_{name}" for kind in ("win_rate", "lc_win_rate", "score_gain"))
        points_PK = points.get(name)
        metrics |= {raw: None, controlled: None, gain: None}
        if points_PK is None or np.isnan(points_PK).all():
            continue
        judged_P = ~np.isnan(points_PK).all(axis=1)
        mean, low, high = paired_interval(np.nanmean(points_PK[judged_P], axis=1), seed=seed)
        metrics |= {raw: mean, f"{raw}_low": low, f"{raw}_high": high}
        metrics |= {gain: mean - 0.5, f"{gain}_low": low - 0.5, f"{gain}_high": high - 0.5}
        rate = length_controlled(
            points_PK, lengths(answers), lengths(others[name]), seed=seed, difficulty_P=difficulties.get(name)
        )
        if rate is None:
            continue
        metrics |= {controlled: rate.mean, f"{controlled}_low": rate.low, f"{controlled}_high": rate.high}
        if abs(rate.mean - mean) > WARN_DIFFERENCE:
            rates = f"{mean:.0%} as judged and {rate.mean:.0%} at equal length"
            notices.warn(log, "by %s, the policy wins %s against the %s policy", judge, rates, name)
    return metrics


def lengths(answers: AnswersPK) -> np.ndarray:
    """Characters of each answer, [P, K]."""
    return np.array([[len(answer.text) for answer in group] for group in answers])
