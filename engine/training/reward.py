"""Reward model training: the Bradley-Terry trainer and its collator."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import RewardTrainer

from engine.packing.shared_rows import SharedRows, SharedRowsMixin
from engine.tokens.token_rows import TokenRanking
from engine.training.evaluation import ROUNDING
from engine.training.guards import BadStep
from engine.training.loop import TrainingLoop


@dataclass
class RankingCollator:
    """A batch of rankings: all answers padded to one width, and their pairs as indices into them."""

    pad_token_id: int
    share_prompts: bool = False

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        answers = [torch.tensor(answer) for example in examples for answer in example["answers"]]
        better, worse, num_pairs = [], [], []
        first = 0
        for example in examples:
            pairs = list(itertools.combinations(range(first, first + len(example["answers"])), 2))
            better += [pair[0] for pair in pairs]
            worse += [pair[1] for pair in pairs]
            num_pairs += [len(pairs)] * len(pairs)
            first += len(example["answers"])
        ends = list(itertools.accumulate(len(example["answers"]) for example in examples))
        pad = torch.nn.utils.rnn.pad_sequence
        packed = {}
        if self.share_prompts:
            groups = [number for number, example in enumerate(examples) for _ in example["answers"]]
            packed = SharedRows.of([ids for example in examples for ids in example["answers"]], groups).as_inputs()
        return {
            **packed,
            "input_ids": pad(answers, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad([torch.ones_like(answer) for answer in answers], batch_first=True),
            "better": torch.tensor(better),
            "worse": torch.tensor(worse),
            "num_pairs": torch.tensor(num_pairs),  # of the ranking that a pair is of
            "best": torch.tensor([0, *ends[:-1]]),
            "worst": torch.tensor(ends) - 1,
        }


class BradleyTerryTrainer(TrainingLoop, SharedRowsMixin, RewardTrainer):
    """Reward modelling on rankings, with precision and recall of "the best answer is better than the worst"."""

    token_row_type = TokenRanking
    is_reward_model_trainer = True

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Rows come in tokens: `answers`, the best first."""
        return dataset

    def batch_weights(self, inputs: dict[str, Any]) -> dict[str, float]:
        return {"": len(inputs["best"]), "mean_reward": len(inputs["input_ids"])}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over rankings of the mean over their pairs of -log sigmoid(r_better - r_worse)."""
        config: Any = self.args
        gather: Any = self.accelerator.gather
        rewards_A = self._rewards(model, dict(inputs)).float()
        better_P, worse_P = rewards_A[inputs["better"]], rewards_A[inputs["worse"]]
        # Exact, so that a mean of batches is the mean of rows. Counts: DeepSpeed makes inputs in float64 float32.
        exact_P = 1 / (inputs["num_pairs"].double() * len(inputs["best"]))
        share_P = exact_P.float()
        loss = (share_P * -torch.nn.functional.logsigmoid(better_P - worse_P)).sum()
        if config.center_rewards_coefficient is not None:
            loss = loss + config.center_rewards_coefficient * (share_P * (better_P + worse_P) ** 2).sum()

        logged = self._metrics["train" if self.model.training else "eval"]  # pyright: ignore[reportOptionalMemberAccess]
        if self.model.training:  # pyright: ignore[reportOptionalMemberAccess]
            self._total_train_tokens += int(gather(inputs["attention_mask"].sum()).sum())
        logged["num_tokens"] = [self._total_train_tokens]
        margins_P, ties_P = margins_of(better_P.detach(), worse_P.detach())
        margins_B, _ = margins_of(rewards_A[inputs["best"]].detach(), rewards_A[inputs["worst"]].detach())
        means = {
            "accuracy": (exact_P * torch.where(ties_P, 0.5, (margins_P > 0).double())).sum(),
            "ties": (exact_P * ties_P).sum(),
            "margin": (exact_P * (better_P - worse_P).detach()).sum(),
            "mean_reward": rewards_A.detach().double().mean(),
        }
        for name, value in means.items():
            logged[name].append(float(gather(value).mean()))
        logged["min_reward"].append(float(gather(rewards_A.min().detach()).min()))
        logged["max_reward"].append(float(gather(rewards_A.max().detach()).max()))
        return (loss, margins_B) if return_outputs else loss

    def _rewards(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """The score at the end of each answer, [A]: on the long row where there is one and the model takes it."""
        shared = self.shared_rows_of(model, inputs)
        if shared is not None:
            return shared.last_scores(model, use_cache=False)
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        return outputs.logits[:, 0]

    def check_evaluation(self, metrics: Mapping[str, float]) -> None:
        if metrics["eval_ties"] == 1.0:
            raise BadStep(
                f"step {self.state.global_step}: the rewards have collapsed to a constant, "
                f"{metrics['eval_mean_reward']:.4g}: in every held-out row all answers have the same one. Lower "
                "learning_rate or weight_decay, or set bf16: false"
            )

    def row_values(self, outputs: Any) -> torch.Tensor:
        return outputs

    def metrics_of_rows(self, values_N: Sequence[float]) -> dict[str, float]:
        return precision_recall(values_N, seed=0)


def margins_of(better: torch.Tensor, worse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reward differences, and which of them are ties: rounding could turn them, so they are zero."""
    margins = better - worse
    ties = margins.abs() <= ROUNDING * (better.abs() + worse.abs()) / 2
    return margins.masked_fill(ties, 0.0), ties


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
