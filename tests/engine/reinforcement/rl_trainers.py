"""Trainers of the stage rl and of TRL on the same answers and rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.rl_update import our_trainer, trls_trainer
from data_schemas.rows import Prompt
from engine.reinforcement.rollouts import flat
from engine.reinforcement.trainer import PolicyGradientTrainer
from engine.sampling.answers import Answer
from tests.toy_prompts import question

PROMPTS = [question("Capital of A? Please. Please."), question("B?")]
K = 4
# Tokens of each answer, and whether it ended; their lengths differ, and so do the prompts'.
TOKENS = [[40, 41, 42], [50] * 7, [60, 61], [43, 44, 45, 46, 47], [70, 71, 72, 73], [80] * 6, [90, 91, 92], [33]]
ENDED = [True, False, True, True, True, False, True, True]
LOG_PROB = -5.8  # that vLLM reports of every token, near that of a policy with random weights
REWARDS = [1.0, 0.5, -2.0, 0.25, 3.0, 1.0, 1.5, -1.0]


def answers() -> list[list[Answer]]:
    return [
        [
            Answer(
                prompt=prompt,
                k=k,
                text=f"answer {place * K + k}",
                ids=TOKENS[place * K + k],
                ended=ENDED[place * K + k],
                log_probs=[LOG_PROB] * len(TOKENS[place * K + k]),
            )
            for k in range(K)
        ]
        for place, prompt in enumerate(PROMPTS)
    ]


def ours(
    model: Path,
    folder: Path,
    arguments: dict[str, Any],
    *,
    rewards: Sequence[float] = REWARDS,
    micro_batch: int = K,
    **training: Any,
) -> PolicyGradientTrainer:
    """A trainer of the stage whose window has these answers and rewards in one step."""
    planted = by_text(rewards)
    return our_trainer(
        str(model), folder, answers(), planted, limit=9, micro_batch=micro_batch, arguments=arguments, **training
    )


def trls(
    model: Path,
    folder: Path,
    order: Sequence[Prompt],
    *,
    is_rloo: bool = False,
    rewards: Sequence[float] = REWARDS,
    **training: Any,
) -> tuple[Any, dict[str, torch.Tensor]]:
    """TRL's own trainer, and what it computes from the same answers in one batch, whose prompts are in this order."""
    given = {group[0].prompt.prompt_id: group for group in answers()}
    in_order = [answer for prompt in order for answer in given[prompt.prompt_id]]
    return trls_trainer(str(model), folder, in_order, by_text(rewards), group=K, is_rloo=is_rloo, **training)


def by_text(rewards: Sequence[float]) -> dict[str, float]:
    return {answer.text: reward for answer, reward in zip(flat(answers()), rewards, strict=True)}


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def move(model: torch.nn.Module) -> None:
    """Changes the weights as an optimizer step would, always in the same way."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
