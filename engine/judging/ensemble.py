"""Several reward models that score answers together (Coste et al., arXiv 2310.02743).

A reward is only known up to a constant, and models that were trained apart differ in scale, so the scores of each model
are standardised over all answers before they are combined. Each model reads the dialogs in its own chat template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.judging.scoring import RewardModelScorer
from engine.judging.shared_scoring import ScoringSettings
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer

Vote = Literal["mean", "worst"]


@dataclass(frozen=True)
class EnsembleScorer:
    """A `Scorer` of two reward models or more, which are loaded one after the other."""

    stage: Stage
    paths: Sequence[str]
    vote: Vote
    settings: ScoringSettings

    def __call__(self, name: str, answers: Sequence[Answer]) -> list[float]:
        """One score for each answer, in standard deviations of a model's scores. Raises StageError where a model gives
        all answers the same score."""
        scores_VN = [
            RewardModelScorer(self.stage, path, self.settings)(f"{name}-{number}", answers)
            for number, path in enumerate(self.paths)
        ]
        return combined(scores_VN, self.vote)


def combined(scores_VN: Sequence[Sequence[float]], vote: Vote) -> list[float]:
    """The mean over the models, or the worst of them (WCO in 2310.02743), of each model's standardised scores, [N].

    `scores_VN` are the scores of N answers by V models.
    """
    given = np.asarray(scores_VN, dtype=np.float64)
    deviation = given.std(axis=1, keepdims=True)
    standard = (given - given.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1.0)
    return (standard.mean(axis=0) if vote == "mean" else standard.min(axis=0)).tolist()
