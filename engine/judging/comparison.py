"""Compares a policy's scores with those of earlier ones: intervals, win rates, diversity."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_schemas.artifact import Artifact, Choice
from data_schemas.errors import ConfigError
from data_schemas.reading import read_rows
from data_schemas.rows import Candidates, Prompt
from engine.judging.scoring import ScoringItem

NUM_RESAMPLES = 2_000


Metric = float | int | str | None


def paired_interval(differences_P: np.ndarray, *, seed: int) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over prompts of a paired difference (2,000 resamples)."""
    draws = np.random.default_rng(seed).integers(0, len(differences_P), (NUM_RESAMPLES, len(differences_P)))
    low, high = np.percentile(differences_P[draws].mean(axis=1), [2.5, 97.5])
    return float(differences_P.mean()), float(low), float(high)


def wins(scores_PK: np.ndarray, others_PK: np.ndarray) -> np.ndarray:
    """Share of answers of each prompt that score above the other policy's answer with the same k, [P]; ties half."""
    return ((scores_PK > others_PK) + 0.5 * (scores_PK == others_PK)).mean(axis=1)


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct word pairs over all word pairs (Li et al., arXiv 1510.03055)."""
    pairs = [pair for text in texts for words in [text.split()] for pair in itertools.pairwise(words)]
    return len(set(pairs)) / max(1, len(pairs))


@dataclass(frozen=True)
class EarlierEvaluation:
    """An earlier evaluation on the same prompts by the same judge."""

    policy: str  # the step that made it
    scores_PK: np.ndarray
    groups: Sequence[Candidates]
    choices: Sequence[Choice]

    @property
    def answered(self) -> list[ScoringItem]:
        """Its answers, prompt by prompt."""
        answered: list[ScoringItem] = []
        for group in self.groups:
            prompt = Prompt(prompt=group.prompt, tools=group.tools, group_id=group.group_id)
            answered += [ScoringItem(prompt, candidate.text, candidate.ended) for candidate in group.candidates]
        return answered

    @property
    def mean_answer_tokens(self) -> float:
        return float(np.mean([candidate.num_tokens for group in self.groups for candidate in group.candidates]))


def compare_policies(scores_PK: np.ndarray, others: Mapping[str, np.ndarray | None], *, seed: int) -> dict[str, Metric]:
    """Win rate and gain in the mean score against each other policy with their intervals; null where there is none."""
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


def read_earlier(
    folders: Sequence[str], judge: str, prompts: Sequence[Prompt], num_answers: int
) -> list[EarlierEvaluation]:
    """The earlier evaluations, oldest first. Refuses another judge or other prompts."""
    found: list[EarlierEvaluation] = []
    for folder in map(Path, folders):
        record = Artifact.read(folder)
        if record is None:
            raise ConfigError(f"{folder} holds no finished evaluation")
        if record.metrics.get("judge") != judge:
            raise ConfigError(
                f"{folder} was judged by {record.metrics.get('judge')}, this one by {judge}: not comparable"
            )
        groups = read_rows(folder / "answers.jsonl", Candidates)
        same = [group.prompt_id for group in groups] == [prompt.prompt_id for prompt in prompts]
        if not same or any(len(group.candidates) != num_answers for group in groups):
            raise ConfigError(f"{folder} was made on other prompts or another num_answers: not comparable")
        scores = [[candidate.score for candidate in group.candidates] for group in groups]
        policy = str(record.keys.get("policy_step") or record.inputs.get("model_name_or_path", folder))
        found.append(EarlierEvaluation(policy, np.array(scores, dtype=float), groups, record.choices))
    return found
