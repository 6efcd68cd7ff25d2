"""Trainers of the stage rl and of TRL on the same answers and rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, ModelConfig, RLOOConfig, RLOOTrainer

from data_schemas.rows import Prompt
from engine.models.loading import load_causal
from engine.reinforcement.arguments import PolicyGradientConfig, RLArguments
from engine.reinforcement.rewards import Rewards
from engine.reinforcement.rollouts import flat
from engine.reinforcement.trainer import PolicyGradientTrainer
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Answer
from engine.tokens.template import encode_prompt
from stages import rl
from tests.toy_prompts import question

PROMPTS = [question("Capital of A? Please. Please."), question("B?")]
K = 4
# Tokens of each answer, and whether it ended; their lengths differ, and so do the prompts'.
TOKENS = [[40, 41, 42], [50] * 7, [60, 61], [43, 44, 45, 46, 47], [70, 71, 72, 73], [80] * 6, [90, 91, 92], [33]]
ENDED = [True, False, True, True, True, False, True, True]
REWARDS = [1.0, 0.5, -2.0, 0.25, 3.0, 1.0, 1.5, -1.0]
COMMON: dict[str, Any] = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": []}


def answers() -> list[list[Answer]]:
    return [
        [
            Answer(
                prompt=prompt,
                k=k,
                text=f"answer {place * K + k}",
                ids=TOKENS[place * K + k],
                ended=ENDED[place * K + k],
            )
            for k in range(K)
        ]
        for place, prompt in enumerate(PROMPTS)
    ]


def ours(
    model: Path,
    tokenizer: Any,
    folder: Path,
    arguments: dict[str, Any],
    *,
    rewards: Sequence[float] = REWARDS,
    micro_batch: int = K,
    **training: Any,
) -> PolicyGradientTrainer:
    """A trainer of the stage whose window has these answers and rewards in one step."""
    num_batches = len(PROMPTS) * K // micro_batch
    stage = Stage("rl", folder, {}, Tracker(folder, active=False), is_main=True)
    values = RLArguments(
        train_data=[],
        reward_functions=["none:none"],
        global_batch_size=len(PROMPTS) * K,
        num_generations=K,
        max_completion_length=9,
        **arguments,
    )
    config = PolicyGradientConfig(
        output_dir=str(folder / "checkpoints"),
        num_generations=K,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=num_batches,
        temperature=values.temperature,
        loss_type="dapo" if values.loss_type == "bnpo" else values.loss_type,
        scale_rewards=values.scale_rewards,
        importance_sampling_level=values.importance_sampling_level,
        **COMMON | training,
    )
    made = rl.make_trainer(
        stage, values, config, ModelConfig(model_name_or_path=str(model)), tokenizer, list(PROMPTS), list(PROMPTS)
    )
    by_text = {answer.text: reward for answer, reward in zip(flat(answers()), rewards, strict=True)}
    made.rewards = Rewards({"planted": lambda name, given: [by_text[answer.text] for answer in given]}, [1.0])
    in_order = {answer[0].prompt.prompt_id: answer for answer in answers()}

    def sample(prompts: Sequence[Prompt], *, num_answers: int, purpose: str) -> list[list[Answer]]:
        return [in_order[prompt.prompt_id] for prompt in prompts]

    made.policy_sampler.sample = sample  # pyright: ignore[reportAttributeAccessIssue]
    made.current_gradient_accumulation_steps = num_batches
    made.model.train()
    return made


def trls(
    model: Path,
    tokenizer: Any,
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
    by_text = {answer.text: reward for answer, reward in zip(flat(answers()), rewards, strict=True)}
    kind, config_kind = (RLOOTrainer, RLOOConfig) if is_rloo else (GRPOTrainer, GRPOConfig)
    config = config_kind(
        output_dir=str(folder / "trl"),
        num_generations=K,
        per_device_train_batch_size=len(in_order),
        **COMMON | training,
    )
    made: Any = kind(
        load_causal(str(model), dtype="float32"),
        reward_funcs=lambda completions, **_: [by_text[text] for text in completions],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * len(in_order)}),
        processing_class=tokenizer,
    )
    prompt_ids = [encode_prompt(tokenizer, answer.prompt.prompt) for answer in in_order]
    completions, ids = [answer.text for answer in in_order], [answer.ids for answer in in_order]
    of_rloo = (prompt_ids, ids, completions)
    made._generate = lambda prompts: of_rloo if is_rloo else (prompt_ids, ids, None, completions, None, {}, None, None)
    made.eos_token_ids = [answer.ids[-1] for answer in in_order if answer.ended]
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made, made._generate_and_score_completions([{"prompt": text} for text in completions])


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def move(model: torch.nn.Module) -> None:
    """Changes the weights as an optimizer step would, always in the same way."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
