"""Reward model training: the Bradley-Terry trainer, its collator and its metrics."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import RewardConfig, RewardTrainer

from engine.packing.shared_rows import SharedRows
from engine.packing.trainer_mixin import SharedRowsMixin
from engine.tokens.token_rows import TokenRanking
from engine.training.evaluation import ROUNDING
from engine.training.guards import BadStep
from engine.training.host import Batch
from engine.training.loop import TrainingLoop

# Shapes: B = rankings in the batch, A = answers of all rankings, P = pairs of all rankings, T = tokens of the longest
# answer with its prompt, N = all held-out rankings.

Rows = TypeVar("Rows")


@dataclass
class RankingCollator:
    """A batch of rankings: all answers padded to one width, and their pairs as indices into them.

    Rows hold `answers`, the token ids of each answer with its prompt, the best first, and may hold `margin`, that of
    the best over the worst. The batch holds `input_ids` and `attention_mask` [A, T]; `better` and `worse` [P], the
    answers of each pair as indices into A; `num_pairs` [P], how many pairs the ranking of that pair has; `best` and
    `worst` [B], indices into A; and, where rows have a margin, `margins` [P], which grow evenly with the ranks between
    the two answers.
    With `share_prompts` also the shared row that the model is run on (packing/shared_rows.py).
    """

    pad_token_id: int
    share_prompts: bool = False

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        sizes_B = [len(example["answers"]) for example in examples]
        ends_B = list(itertools.accumulate(sizes_B))
        better_P, worse_P, num_pairs_P, margins_P = [], [], [], []
        for example, size, end in zip(examples, sizes_B, ends_B, strict=True):
            pairs = list(itertools.combinations(range(end - size, end), 2))
            better_P += [better for better, _ in pairs]
            worse_P += [worse for _, worse in pairs]
            num_pairs_P += [len(pairs)] * len(pairs)
            for margin in example.get("margin", ()):
                margins_P += [margin * (worse - better) / (size - 1) for better, worse in pairs]
        sequences_A = [ids for example in examples for ids in example["answers"]]
        packed: Batch = {}
        if self.share_prompts:
            prompt_of_A = [number for number, size in enumerate(sizes_B) for _ in range(size)]
            packed = SharedRows.of(sequences_A, prompt_of_A).as_inputs()
        answers_A = [torch.tensor(ids) for ids in sequences_A]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            **packed,
            "input_ids": pad(answers_A, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad([torch.ones_like(answer) for answer in answers_A], batch_first=True),
            "better": torch.tensor(better_P),
            "worse": torch.tensor(worse_P),
            "num_pairs": torch.tensor(num_pairs_P),
            "best": torch.tensor([0, *ends_B[:-1]]),
            "worst": torch.tensor(ends_B) - 1,
            **({"margins": torch.tensor(margins_P)} if margins_P else {}),
        }


class BradleyTerryTrainer(TrainingLoop, SharedRowsMixin, RewardTrainer):
    """Reward modelling on rankings, with precision and recall of "the best answer is better than the worst"."""

    args: RewardConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    is_reward_model_trainer = True
    token_row_type = TokenRanking
    accuracy_metric = "eval_accuracy"

    def _prepare_dataset(self, dataset: Rows, *args: object, **kwargs: object) -> Rows:
        """Rows are tokenized already: `answers`, the best first."""
        return dataset

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        """Keeps the margins in float32: under DeepSpeed the Trainer casts every float to the weights' dtype."""
        kept = {"margins": inputs["margins"].to(self.args.device)} if "margins" in inputs else {}
        return super()._prepare_inputs(inputs) | kept

    def batch_weights(self, inputs: Batch) -> dict[str, float]:
        return {"": len(inputs["best"]), "mean_reward": len(inputs["input_ids"])}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Mean over rankings of the mean over their pairs of -log sigmoid(r_better - r_worse - margin), a scalar.

        InstructGPT, arXiv 2203.02155, eq. 1; the margin as in Llama 2, arXiv 2307.09288, eq. 2. It is 0 in evaluations,
        so that their losses are comparable. With `return_outputs` also the margins of best over worst, [B].
        """
        rewards_A = self._rewards(model, dict(inputs)).float()
        better_P, worse_P = rewards_A[inputs["better"]], rewards_A[inputs["worse"]]
        # In float64, so that a mean of batches is the mean of rows. The batch holds counts and not these weights, since
        # DeepSpeed casts float64 inputs to float32.
        exact_P = 1 / (inputs["num_pairs"].double() * len(inputs["best"]))
        weight_P = exact_P.float()
        differences_P = better_P - worse_P
        if self.model.training and "margins" in inputs:
            differences_P = differences_P - inputs["margins"]
        loss = (weight_P * -torch.nn.functional.logsigmoid(differences_P)).sum()
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * (weight_P * (better_P + worse_P) ** 2).sum()

        logged = self._metrics["train" if self.model.training else "eval"]
        if self.model.training:
            self._total_train_tokens += int(self.gather(inputs["attention_mask"].sum()).sum())
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
            logged[name].append(float(self.gather(value).mean()))
        logged["min_reward"].append(float(self.gather(rewards_A.min().detach()).min()))
        logged["max_reward"].append(float(self.gather(rewards_A.max().detach()).max()))
        return (loss, margins_B) if return_outputs else loss

    def _rewards(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        """The score at the last token of each answer, [A]; on the shared row if the model supports it."""
        shared = self.shared_rows_of(model, inputs)
        if shared is not None:
            return shared.last_scores(model, use_cache=False)
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        return outputs.logits[:, 0]

    def check_evaluation(self, metrics: Mapping[str, float]) -> None:
        if metrics["eval_ties"] == 1.0:
            raise BadStep(
                f"step {self.state.global_step}: the rewards have collapsed to a constant: in every held-out row all "
                f"answers have the reward {metrics['eval_mean_reward']:.4g}. Lower learning_rate or weight_decay, or "
                "set bf16: false"
            )

    def row_values(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs

    def metrics_of_rows(self, values_N: Sequence[float]) -> dict[str, float]:
        return precision_recall(values_N, seed=0)


def margins_of(better: torch.Tensor, worse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reward differences and which of them are ties, [P] each; a tie's sign depends on rounding, so its margin is 0."""
    margins = better - worse
    ties = margins.abs() <= ROUNDING * (better.abs() + worse.abs()) / 2
    return margins.masked_fill(ties, 0.0), ties


def precision_recall(margins_N: Sequence[float], *, seed: int) -> dict[str, float]:
    """Precision, recall and F1 of "the first answer is better", half of the pairs shown with the chosen answer first.

    If the chosen answer always came first, a model that always prefers the first would score 1. `seed` draws the half.
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
    """Draws the score head with standard deviation 1/sqrt(d + 1), d = the hidden size (Tülu 3, arXiv 2411.15124).

    The same seed gives the same head on every process.
    """
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
