"""What scores answers: the reward model and the user's functions, with their weights.

Unlike in TRL, the reward model scores all answers to a prompt in one row (engine/judging/shared_scoring.py), and a
function scores one answer at a time: a score that is no finite number is an error that names the answer.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from data_schemas.errors import ConfigError
from engine.judging.scoring import FunctionScorer, RewardModelScorer, Scorer
from engine.judging.shared_scoring import ScoringSettings
from engine.models.loading import load_tokenizer, outside_zero3
from engine.reinforcement.arguments import RLArguments
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer
from engine.tokens.contract import contract_differences, contract_of

# Shapes: N = answers, R = sources of rewards.

MOST = 1e15  # of a reward; deviations of larger ones are not finite in 32 bits
JOURNAL = "rewards"  # begins the names of the folders in which scores are kept until the window is over


@dataclass(frozen=True)
class Rewards:
    """The sources of rewards by name, which is that of their metrics, and the weight of each."""

    sources: Mapping[str, Scorer]
    weights: Sequence[float]

    def score(self, answers: Sequence[Answer], *, purpose: str) -> dict[str, torch.Tensor]:
        """Source -> its rewards, [N], before weights.

        Raises ConfigError where a function fails or a weighted reward exceeds MOST, StageError where the reward model
        gives all answers one score.
        """
        found: dict[str, torch.Tensor] = {}
        for place, ((name, scorer), weight) in enumerate(zip(self.sources.items(), self.weights, strict=True)):
            scores = scorer(f"{JOURNAL}-{purpose}-{place}", answers)
            for answer, score in zip(answers, scores, strict=True):
                if abs(score) > MOST or abs(score * weight) > MOST:
                    raise ConfigError(
                        f"the reward {name} of {answer.text[:80]!r} is {score:g} x the weight {weight:g}, expected at "
                        f"most {MOST:g}: make it smaller"
                    )
            found[name] = torch.tensor(scores, dtype=torch.float32)
        return found

    def total(self, by_source: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of the rewards, [N]."""
        rewards_NR = torch.stack([by_source[name] for name in self.sources], dim=1)
        return (rewards_NR * torch.tensor(self.weights)).sum(1)


def make_rewards(
    stage: Stage,
    arguments: RLArguments,
    tokenizer: PreTrainedTokenizerBase,
    settings: ScoringSettings,
) -> Rewards:
    """The rewards that the keys name; `tokenizer` is the policy's.

    Under ZeRO-3, which would divide the weights of the reward model, each process loads all of them. Raises
    ConfigError where the reward model has another template than the policy.
    """
    sources: dict[str, Scorer] = {}
    if arguments.reward_model:
        if not arguments.other_contract:
            check_template(arguments.reward_model, tokenizer)
        scorer = sources["reward_model"] = RewardModelScorer(stage, arguments.reward_model, settings, keeps_model=True)
        if is_deepspeed_zero3_enabled():
            with outside_zero3():
                _ = scorer.kept
    for reference in arguments.reward_functions or []:
        name = reference.rpartition(":")[2]
        name = name if name not in sources else reference
        sources[name] = FunctionScorer(stage, reference, arguments.function_timeout)
    return Rewards(sources, arguments.reward_weights or [1.0] * len(sources))


def check_template(reward_model: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ConfigError where the reward model reads a dialog as other tokens than the policy writes."""
    theirs, ours = contract_of(load_tokenizer(reward_model)), contract_of(tokenizer)
    if differences := list(contract_differences(theirs, ours)):
        raise ConfigError(
            f"reward_model {reward_model} has another contract than the policy: {'; '.join(differences)}. Give one "
            "that was trained with the policy's chat template, or set other_contract: true to use this one all the same"
        )


def forget_scores(folder: Path, *, keep: str) -> None:
    """Deletes the scores that are kept in the checkpoints' folder, except those of the purpose `keep`."""
    for path in folder.glob(f"{JOURNAL}-*"):
        if not path.name.startswith(f"{JOURNAL}-{keep}-"):
            shutil.rmtree(path, ignore_errors=True)
