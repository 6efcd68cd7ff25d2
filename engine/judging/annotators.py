"""Who says which answer is better. One seam: prompts with their answers in, a judgement of each prompt's answers out.

A judgement holds a number for each answer, be it a score, a share of votes, or a rank that somebody gave; and the
strength, where the annotator says it itself. An annotator knows nothing of how answers were made or pairs are picked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from data_schemas.errors import ConfigError
from data_schemas.rows import Prompt, Strength
from engine.judging.scoring import ScoringItem, score_by_function, score_by_reward_model
from engine.models.loading import load_tokenizer
from engine.runtime.stage import Stage

# Shapes: N = answers of one prompt, V = voters.


@dataclass(frozen=True)
class Group:
    """One prompt and its answers."""

    prompt: Prompt
    answers: Sequence[ScoringItem]


@dataclass(frozen=True)
class Judgement:
    scores_N: Sequence[float]  # higher is better; equal ones are not told apart
    strength: Strength | None = None  # of the best over the worst, where the annotator says it; else by the margin
    votes_VN: Sequence[Sequence[float]] | None = None  # the scores of each of several voters

    def disagreement(self, chosen: int, rejected: int) -> float | None:
        """Share of the voters that prefer `rejected`, half of those that prefer neither; None without voters."""
        if self.votes_VN is None:
            return None
        against = [
            1.0 if vote_N[rejected] > vote_N[chosen] else 0.5 if vote_N[rejected] == vote_N[chosen] else 0.0
            for vote_N in self.votes_VN
        ]
        return sum(against) / len(against)


class Annotator(Protocol):
    def __call__(self, groups: Sequence[Group]) -> list[Judgement]:
        """One judgement a group, in order. Raises ConfigError for a mistake of the user's."""
        ...


@dataclass(frozen=True)
class Program:
    """A Python function `module:function(prompt, answer, ended)` that scores one answer."""

    stage: Stage
    reference: str
    timeout: float  # seconds a call

    def __call__(self, groups: Sequence[Group]) -> list[Judgement]:
        flat = [answer for group in groups for answer in group.answers]
        scores = score_by_function(self.stage, "scores", self.reference, flat, timeout=self.timeout)
        return [Judgement(scores_N) for scores_N in _by_group(scores, groups)]


@dataclass(frozen=True)
class RewardModels:
    """One reward model; or several, which vote by their mean score or by majority (Coste et al., arXiv 2310.02743)."""

    stage: Stage
    paths: Sequence[str]
    vote: Literal["mean", "majority"]
    device: torch.device
    dtype: str
    batch_size: int

    def __post_init__(self) -> None:
        first = load_tokenizer(self.paths[0])
        for path in self.paths[1:]:
            other = load_tokenizer(path)
            if other.chat_template != first.chat_template:
                raise ConfigError(
                    f"the reward models {self.paths[0]} and {path} have different chat templates: "
                    "they would score different texts"
                )

    def __call__(self, groups: Sequence[Group]) -> list[Judgement]:
        flat = [answer for group in groups for answer in group.answers]
        voters = [
            _by_group(
                score_by_reward_model(
                    self.stage,
                    f"scores-{number}",
                    path,
                    flat,
                    device=self.device,
                    dtype=self.dtype,
                    batch_size=self.batch_size,
                ),
                groups,
            )
            for number, path in enumerate(self.paths)
        ]
        judgements = []
        for votes_VN in zip(*voters, strict=True):
            if len(votes_VN) == 1:
                judgements.append(Judgement(votes_VN[0]))
            else:
                combine = mean if self.vote == "mean" else majority
                judgements.append(Judgement(combine(votes_VN), votes_VN=votes_VN))
        return judgements


def mean(votes_VN: Sequence[Sequence[float]]) -> list[float]:
    """The mean score of each answer: in a difference of two answers each voter's own zero cancels."""
    return [sum(column) / len(votes_VN) for column in zip(*votes_VN, strict=True)]


def majority(votes_VN: Sequence[Sequence[float]]) -> list[float]:
    """The share of (voter, other answer) over which each answer wins, a tie counting half; in [0, 1]."""
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


def _by_group(scores: Sequence[float], groups: Sequence[Group]) -> list[list[float]]:
    found, start = [], 0
    for group in groups:
        found.append(list(scores[start : start + len(group.answers)]))
        start += len(group.answers)
    return found
