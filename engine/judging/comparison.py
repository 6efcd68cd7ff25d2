"""Compares a policy's scores with those of earlier policies: win rates, intervals, diversity, ranking."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_schemas.artifact import Artifact, Choice
from data_schemas.errors import ConfigError, DataError
from data_schemas.intervals import paired_interval
from data_schemas.reading import read_rows
from data_schemas.rows import Candidates, Prompt
from engine.sampling.answers import Answer

# Shapes: P = prompts, K = answers to each prompt.
Metric = float | int | str | None
AnswersPK = Sequence[Sequence[Answer]]


def wins(scores_PK: np.ndarray, others_PK: np.ndarray) -> np.ndarray:
    """Share of a prompt's answers that score above the other policy's answer with the same k, [P]; ties count half."""
    return ((scores_PK > others_PK) + 0.5 * (scores_PK == others_PK)).mean(axis=1)


def distinct_2(texts: Sequence[str]) -> float:
    """Number of distinct word pairs divided by the number of word pairs (Li et al., arXiv 1510.03055)."""
    pairs = [pair for text in texts for words in [text.split()] for pair in itertools.pairwise(words)]
    return len(set(pairs)) / max(1, len(pairs))


@dataclass(frozen=True)
class EarlierEvaluation:
    """An earlier evaluation on the same prompts by the same judge."""

    policy: str  # the step that trained it
    scores_PK: np.ndarray
    groups: Sequence[Candidates]
    choices: Sequence[Choice]  # the policies up to then, the best first

    @cached_property
    def answers(self) -> list[list[Answer]]:
        """Its answers by prompt, without their tokens."""
        return [
            [
                Answer(
                    prompt=Prompt(prompt=group.prompt, tools=group.tools, group_id=group.group_id),
                    k=candidate.k,
                    text=candidate.text,
                    ids=[],
                    ended=candidate.ended,
                    policy=candidate.policy,
                )
                for candidate in group.candidates
            ]
            for group in self.groups
        ]

    @property
    def mean_answer_tokens(self) -> float:
        return float(np.mean([candidate.num_tokens for group in self.groups for candidate in group.candidates]))


def compare_policies(scores_PK: np.ndarray, others: Mapping[str, np.ndarray | None], *, seed: int) -> dict[str, Metric]:
    """Win rate and gain in the mean score over each other policy, with their intervals; None where it has no scores."""
    metrics: dict[str, Metric] = {}
    for name, other_PK in others.items():
        if other_PK is None:
            metrics |= {f"win_rate_vs_{name}": None, f"score_gain_vs_{name}": None}
            continue
        for metric, differences_P in (
            (f"win_rate_vs_{name}", wins(scores_PK, other_PK)),
            (f"score_gain_vs_{name}", (scores_PK - other_PK).mean(axis=1)),
        ):
            mean, low, high = paired_interval(differences_P, seed=seed)
            metrics |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
    return metrics


@dataclass(frozen=True)
class EarlierPolicies:
    """The evaluations of the run so far, oldest first."""

    evaluations: Sequence[EarlierEvaluation]

    @property
    def choices(self) -> list[Choice]:
        """All policies so far, the best first."""
        return list(self.evaluations[-1].choices) if self.evaluations else []

    @property
    def best(self) -> EarlierEvaluation | None:
        """The evaluation of the best policy so far; None where it is not among the evaluations."""
        choices = self.choices
        return next((one for one in self.evaluations if choices and one.policy == choices[0].step), None)

    @property
    def compared(self) -> dict[str, EarlierEvaluation | None]:
        """The evaluations with which a new one is compared; None for the first policy of a run."""
        first, previous = (self.evaluations[0], self.evaluations[-1]) if self.evaluations else (None, None)
        return {"first": first, "previous": previous, "best": self.best}

    @property
    def scores(self) -> dict[str, np.ndarray | None]:
        """Their scores, each [P, K]."""
        return {name: one.scores_PK if one else None for name, one in self.compared.items()}

    def ranked(self, policy: Choice, *, is_best: bool) -> list[Choice]:
        """All policies with the new one, the best first and the others by score. An annotation uses the second one."""
        choices = self.choices
        first, others = ([policy], choices) if is_best else (choices[:1], [*choices[1:], policy])
        return [*first, *sorted(others, key=lambda choice: -choice.score)]


def read_earlier(folders: Sequence[str], judge: str, prompts: Sequence[Prompt], num_answers: int) -> EarlierPolicies:
    """The evaluations in these folders, oldest first.

    Raises DataError where a folder has no complete evaluation, ConfigError where another judge scored it or its prompts
    or number of answers are different.
    """
    found: list[EarlierEvaluation] = []
    for folder in map(Path, folders):
        record = Artifact.read(folder)
        if record is None:
            raise DataError(f"{folder} holds no finished evaluation; run evaluate_policy on that policy first")
        if record.metrics.get("judge") != judge:
            raise ConfigError(
                f"{folder} was judged by {record.metrics.get('judge')}, this one by {judge}: not comparable; "
                "evaluate all policies with the same judge"
            )
        groups = read_rows(folder / "answers.jsonl", Candidates)
        is_same = [group.prompt_id for group in groups] == [prompt.prompt_id for prompt in prompts]
        if not is_same or any(len(group.candidates) != num_answers for group in groups):
            raise ConfigError(
                f"{folder} has other prompts or another num_answers: not comparable; "
                "evaluate all policies on the same prompts"
            )
        scores = [[candidate.score for candidate in group.candidates] for group in groups]
        policy = str(record.keys.get("policy_step") or record.inputs.get("model_name_or_path", folder))
        found.append(EarlierEvaluation(policy, np.array(scores, dtype=float), groups, record.choices))
    return EarlierPolicies(found)
