"""The reward model: Bradley-Terry on preference pairs, -log sigmoid(r_chosen - r_rejected), from the pretrained base.

As in Llama 3 (arXiv 2407.21783, 4.1.2), without a margin term; one score head on the base, read at the end token. The
head starts with standard deviation 1/sqrt(d + 1) (Tülu 3, arXiv 2411.15124).

    accelerate launch stages/reward_model.py --config configs/stages/reward_model.yaml
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import ModelConfig, RewardConfig, RewardTrainer

from data_schemas.reading import read_pairs
from data_schemas.rows import PreferencePair
from engine.arguments import TrainingStageArguments
from engine.models import load_reward, load_tokenizer, lora_config, path_of, training_options
from engine.stage import Made, Stage, run_stage
from engine.template import encode_answer
from engine.tokenized import split_rows, tokenize_sides
from engine.training import DEFAULTS, TrainingLoop, prepare_config, train_and_save

RECIPE_VERSION = 1
EXAMPLE = "accelerate launch stages/reward_model.py --config configs/stages/reward_model.yaml --learning_rate 1e-5"


@dataclass(kw_only=True)
class RewardModelArguments(TrainingStageArguments):
    pass


ARGUMENTS = (RewardModelArguments, RewardConfig, ModelConfig)


class BradleyTerryTrainer(TrainingLoop, RewardTrainer):
    """Reward modelling whose evaluation means are over pairs, with precision and recall of "chosen is better"."""

    def batch_weights(self, inputs: dict[str, Any]) -> dict[str, float]:
        return {"": len(inputs["input_ids"]) / 2}

    def row_values(self, outputs: Any) -> torch.Tensor:
        chosen_B, rejected_B = torch.chunk(outputs.logits.squeeze(-1).float(), 2)
        return chosen_B - rejected_B

    def metrics_of_rows(self, values_N: Sequence[float]) -> dict[str, float]:
        return precision_recall(values_N, seed=0)


def precision_recall(margins_N: Sequence[float], *, seed: int) -> dict[str, float]:
    """Precision, recall and F1 of "the first answer is better", half of the pairs shown with the chosen answer first.

    Shown always first, a model that says "first" every time would score 1. Which half is drawn by `seed`.
    """
    chosen_first = set(random.Random(seed).sample(range(len(margins_N)), len(margins_N) // 2))
    true_positive = sum(margins_N[pair] > 0 for pair in chosen_first)
    false_positive = sum(margin < 0 for pair, margin in enumerate(margins_N) if pair not in chosen_first)
    precision = true_positive / max(1, true_positive + false_positive)
    recall = true_positive / max(1, len(chosen_first))
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(1e-12, precision + recall),
    }


def initialise_head(model: PreTrainedModel, *, seed: int) -> None:
    """Standard deviation 1/sqrt(d + 1), d = the hidden size; the same for the same seed on every process."""
    head = model.score
    assert isinstance(head, torch.nn.Linear)
    weight = torch.empty(head.out_features, head.in_features)
    weight.normal_(0.0, (head.in_features + 1) ** -0.5, generator=torch.Generator().manual_seed(seed))
    if is_deepspeed_zero3_enabled():
        import deepspeed

        context = deepspeed.zero.GatheredParameters([head.weight], modifier_rank=0)
    else:
        context = torch.no_grad()
    with context, torch.no_grad():
        if head.weight.numel():
            head.weight.copy_(weight.to(head.weight))


def main(stage: Stage, arguments: RewardModelArguments, training: RewardConfig, model: ModelConfig) -> Made:
    path = path_of(model)
    tokenizer = load_tokenizer(path)
    train, held_out = split_rows(stage, arguments, read_pairs)

    def encode(row: PreferencePair) -> dict[str, Any] | None:
        both = {}
        for name, answer in (("chosen_ids", row.chosen), ("rejected_ids", row.rejected)):
            prompt_ids, answer_ids = encode_answer(tokenizer, row.prompt, answer, tools=row.tools)
            both[name] = prompt_ids + answer_ids
        too_long = training.max_length is not None and max(map(len, both.values())) > training.max_length
        return None if too_long else both

    tables = tokenize_sides(
        stage, train, held_out, encode, tokenizer, version=f"reward_model-1 max_length={training.max_length}"
    )
    prepare_config(training)
    reward_model = load_reward(path, **training_options(model))
    reward_model.config.pad_token_id = tokenizer.pad_token_id
    initialise_head(reward_model, seed=training.seed)
    trainer = BradleyTerryTrainer(
        reward_model,
        args=training,
        train_dataset=tables[0],
        eval_dataset=tables[1],
        processing_class=tokenizer,
        peft_config=lora_config(model, is_reward_model=True),
    )
    return train_and_save(stage, trainer, arguments, model, is_reward_model=True)


if __name__ == "__main__":
    run_stage("reward_model", ARGUMENTS, main, defaults=DEFAULTS)
