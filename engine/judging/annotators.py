"""Annotators decide which answer is better: they take answers grouped by prompt and return one judgement per prompt.

A judgement has a number for each answer: a score, a share of votes, or a rank; and strengths where the annotator gives
them. An annotator does not know how answers were sampled or how pairs are formed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from data_schemas.rows import Strength
from engine.judging.scoring import FunctionScorer, RewardModelScorer, score_by_prompt
from engine.judging.shared_scoring import ScoringSettings
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer

# Shapes: N = answers of one prompt, V = voters.


@dataclass(frozen=True)
class Judgement:
    scores_N: Sequence[float]  # higher is better; answers with equal scores are not ordered
    # (better, worse) -> strength, where the annotator gives it; else it follows from the difference of the scores
    strengths: Mapping[tuple[int, int], Strength] | None = None
    dropped: str = ""  # why the answers cannot be ordered: the reason by which their prompt is dropped
    votes_VN: Sequence[Sequence[float]] | None = None  # the scores by each of several voters
    ranked: Sequence[int] | None = None  # the answers that were compared; None: all
    edited: Mapping[int, str] = field(default_factory=dict)  # answer -> a better version of it, written by a person

    def disagreement(self, chosen: int, rejected: int) -> float | None:
        """Share of the voters that prefer `rejected`, plus half of those with equal scores; None without voters."""
        if self.votes_VN is None:
            return None
        against = [
            1.0 if vote_N[rejected] > vote_N[chosen] else 0.5 if vote_N[rejected] == vote_N[chosen] else 0.0
            for vote_N in self.votes_VN
        ]
        return sum(against) / len(against)


class Annotator(Protocol):
    def __call__(self, answers: Sequence[Sequence[Answer]]) -> list[Judgement]:
        """One judgement for each prompt's answers, in order. Raises UserError for a mistake of the user's."""
        ...


@dataclass(frozen=True)
class FunctionAnnotator:
    """A user's function `module:function(prompt, answer, ended) -> score`, which scores each answer by itself."""

    stage: Stage
    reference: str
    timeout: float  # seconds for each call

    def __call__(self, answers: Sequence[Sequence[Answer]]) -> list[Judgement]:
        scorer = FunctionScorer(self.stage, self.reference, self.timeout)
        return [Judgement(scores_N) for scores_N in score_by_prompt(scorer, "scores", answers)]


@dataclass(frozen=True)
class RewardModelAnnotator:
    """One reward model; or several, which vote by their mean score or by majority (Coste et al., arXiv 2310.02743)."""

    stage: Stage
    paths: Sequence[str]
    vote: Literal["mean", "majority"]
    settings: ScoringSettings

    def __call__(self, answers: Sequence[Sequence[Answer]]) -> list[Judgement]:
        voters = [
            score_by_prompt(RewardModelScorer(self.stage, path, self.settings), f"scores-{number}", answers)
            for number, path in enumerate(self.paths)
        ]
        if len(voters) == 1:
            return [Judgement(scores_N) for scores_N in voters[0]]
        combine = mean if self.vote == "mean" else majority
        return [Judgement(combine(votes_VN), votes_VN=votes_VN) for votes_VN in zip(*voters, strict=True)]


def mean(votes_VN: Sequence[Sequence[float]]) -> list[float]:
    """The mean score of each answer, [N]: in the difference of two answers each voter's offset cancels."""
    return [sum(column) / len(votes_VN) for column in zip(*votes_VN, strict=True)]


def majority(votes_VN: Sequence[Sequence[float]]) -> list[float]:
    """The share of pairs (voter, other answer) in which each answer wins, a tie counting half; in [0, 1], [N]."""
    number = len(votes_VN[0])
    return [
        sum(
            (vote_N[i] > vote_N[j]) + 0.5 * (vote_N[i] == vote_N[j])
            for vote_N in votes_VN
            for j in range(number)
            if j != i
        )
        / (len(votes_VN) * (number - 1))
        for i in range(number)
    ]
