"""Best-of-K of a loop's own reward model: what the judge thinks of the answer that it chooses among K by one policy.

This is what rejection sampling does with a reward model, and what scores of RewardBench 2 correlate with (Malik et al.,
arXiv 2506.01937, section 5).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_schemas.artifact import Artifact
from data_schemas.errors import DataError
from data_schemas.intervals import paired_interval
from data_schemas.reading import read_rows
from data_schemas.rows import Candidates

# Shapes: P = prompts, K = answers to each prompt.


@dataclass(frozen=True)
class BestOfK:
    """The judge's mean score of a policy's answers, and of each prompt's best one, in the judge's units."""

    policy: str
    num_prompts: int
    num_answers: int
    mean: float  # of all answers
    by_judge: float  # of the answers that the judge finds best: no choice has a higher mean
    by_reward_model: float  # of the answers that the reward model finds best
    gain: tuple[float, float, float]  # by_reward_model - mean, with its 95 % interval by a bootstrap over prompts

    def sentence(self) -> str:
        """What a user reads."""
        room = self.by_judge - self.mean
        share = f", {self.gain[0] / room:.0%} of what is there" if room > 0 else ""
        mean, low, high = self.gain
        return (
            f"best of {self.num_answers} answers of {self.policy} to {self.num_prompts} prompts, by the judge's mean: "
            f"{self.by_reward_model:.3f} where this reward model chooses, {self.mean:.3f} by chance, "
            f"{self.by_judge:.3f} at most: a gain of {mean:+.3f} [{low:+.3f}, {high:+.3f}]{share}"
        )


def best_of_k(judge_PK: np.ndarray, reward_PK: np.ndarray, *, policy: str, seed: int) -> BestOfK:
    """Best-of-K on scores [P, K] of the judge and of the reward model. Of equal rewards the first answer is chosen."""
    chosen_P = judge_PK[np.arange(len(judge_PK)), reward_PK.argmax(axis=1)]
    return BestOfK(
        policy=policy,
        num_prompts=judge_PK.shape[0],
        num_answers=judge_PK.shape[1],
        mean=float(judge_PK.mean()),
        by_judge=float(judge_PK.max(axis=1).mean()),
        by_reward_model=float(chosen_P.mean()),
        gain=paired_interval(chosen_P - judge_PK.mean(axis=1), seed=seed),
    )


def read_best_of_k(folder: Path) -> BestOfK:
    """Best-of-K from the folder of an evaluation whose answers a judge and a reward model have scored.

    Raises DataError where its files are not as the stage wrote them.
    """
    record = Artifact.read(folder)
    try:
        if record is None:
            raise ValueError("it has no record")
        groups = read_rows(folder / record.outputs["answers"], Candidates)
        rewards = json.loads((folder / record.outputs["proxy_scores"]).read_text(encoding="utf-8"))
        judge_PK = np.array([[one.score for one in group.candidates] for group in groups], dtype=float)
        return best_of_k(
            judge_PK,
            np.reshape(np.array(rewards, dtype=float), judge_PK.shape),
            policy=str(record.keys.get("policy_step") or folder.name),
            seed=int(record.keys.get("seed") or 0),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{folder} is not an evaluation as its step wrote it ({error}); see verify") from None
