"""What DPO adds to TRL's trainer: two token masks, an NLL term that does not depend on the micro-batch, exact means.

Llama 3 (arXiv 2407.21783, 4.1.4) masks header and termination tokens in the preference term, else tails repeat or
answers end abruptly; its NLL term is there for formatting and keeps them. TRL has one mask for both. Its `sft` loss is
a mean over the chosen tokens of each micro-batch, so 8x1 and 2x4 rows give other gradients; here it is normalised by
each answer's length (Pang et al., arXiv 2404.19733, eq. 4), or by the tokens of the whole global batch.

The reference's log-probs come with the rows (engine/reference.py); only a reference that changes while the policy is
trained (`sync_ref_model`) is asked in every step.

Any TRL `loss_type` sees the preference mask alone: its log-probs, its lengths (`ipo`, `sigmoid_norm`), its metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from trl import DPOTrainer
from trl.trainer import dpo_trainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from engine.packing.shared_rows import SharedRows, SharedRowsMixin
from engine.tokens.template import IGNORED
from engine.tokens.token_rows import TokenPair
from engine.training.evaluation import ROUNDING
from engine.training.reference import PrecomputedReference

# Shapes: B = pairs in the batch, T = tokens; tensors of the batch hold the chosen rows, then the rejected, [2B, T].


@dataclass
class PreferenceCollator(DataCollatorForPreference):
    """TRL's batch with `completion_mask` = what the preference term sees, and `nll_mask` = what the NLL term sees; and
    with the long row that the models are called on, where `share_prompts`.

    Rows hold, beside TRL's `prompt_ids`, `chosen_ids` and `rejected_ids`, both masks of each answer as lists:
    `chosen_content`, `chosen_trained`, `rejected_content`, `rejected_trained`.
    """

    share_prompts: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if self.share_prompts:
            sequences = [row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected") for row in examples]
            batch |= SharedRows.of(sequences, [*range(len(examples))] * 2).as_inputs()
        for name, kind in (("completion_mask", "content"), ("nll_mask", "trained")):
            mask_2BT = torch.zeros_like(batch["input_ids"])
            for half, side in enumerate(("chosen", "rejected")):
                for row, example in enumerate(examples):
                    start, flags = len(example["prompt_ids"]), example[f"{side}_{kind}"]
                    mask_2BT[half * len(examples) + row, start : start + len(flags)] = torch.tensor(flags).long()
            batch[name] = mask_2BT
        return batch


class DPOLoopTrainer(PrecomputedReference, SharedRowsMixin, DPOTrainer):
    """`nll_per` is "answer" or "batch"; it and `reference` are set before `train`."""

    token_row_type = TokenPair
    nll_per: Literal["answer", "batch"] = "answer"
    _mean_nll_tokens = 0.0  # trained tokens of a chosen answer, mean over the global batch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        hash_module = dpo_trainer.hash_module
        dpo_trainer.hash_module = lambda module: ""  # of all weights, for a cache of TRL's that is not used here
        try:
            super().__init__(*args, **kwargs)
        finally:
            dpo_trainer.hash_module = hash_module

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's own way, which hangs on the rows' order and on every key; ours comes before training."""
        return dataset

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Rows come in tokens (prompt_ids, chosen_ids, rejected_ids), which only this TRL trainer does not expect."""
        return dataset

    def batch_weights(self, inputs: dict[str, Any]) -> dict[str, float]:
        chosen_mask, rejected_mask = inputs["completion_mask"][:, 1:].chunk(2)
        chosen, rejected = float(chosen_mask.sum()), float(rejected_mask.sum())
        return {
            "": len(chosen_mask),
            "entropy": chosen + rejected,
            "logits/chosen": chosen,
            "logits/rejected": rejected,
            "mean_token_accuracy": chosen,
        }

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        samples, num_items = super().get_batch_samples(*args, **kwargs)
        if self.nll_per == "batch":
            lengths = [length for batch in samples for length in nll_lengths(batch["nll_mask"])]
            tokens, rows = self._sum_over_processes([float(sum(lengths)), float(len(lengths))])
            self._mean_nll_tokens = tokens / max(1.0, rows)
        return samples, num_items

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        before = self._mean_nll_tokens
        if self.nll_per == "batch":  # the batch of an evaluation is all of its rows
            lengths = [sum(flags) for flags in args[0].dataset["chosen_trained"]]
            self._mean_nll_tokens = sum(lengths) / len(lengths)
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self._mean_nll_tokens = before

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        inputs = {name: value for name, value in inputs.items() if name != "nll_mask"}
        with self.accelerator.autocast():  # here too a model is tried in the precision of training
            return super().compute_ref_log_probs(self.on_shared_rows(model, inputs), inputs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        inputs = dict(inputs)
        has_reference = "ref_chosen_logps" in inputs or self.ref_model is not None
        if "ref_chosen_logps" not in inputs:
            assert self.reference is None, "attach_reference_log_probs() comes first"
            nothing_B = torch.zeros(len(inputs["input_ids"]) // 2, device=inputs["input_ids"].device)
            reference = self.compute_ref_log_probs(self.ref_model, inputs) if has_reference else (nothing_B, nothing_B)
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = reference
        nll_mask_2BT, preference_mask_2BT = inputs.pop("nll_mask"), inputs["completion_mask"]
        model = self.on_shared_rows(model, inputs)
        log_probs: list[torch.Tensor] = []
        mode = "train" if self.model.training else "eval"  # pyright: ignore[reportOptionalMemberAccess]
        logged = self._metrics[mode]

        def policy(*, labels: torch.Tensor, **kwargs: Any) -> Any:
            """The policy's log-probs at every trained token, of which TRL is shown those of its own mask."""
            seen_2BT = (nll_mask_2BT | preference_mask_2BT).bool()
            outputs = model(**kwargs, labels=kwargs["input_ids"].masked_fill(~seen_2BT, IGNORED))
            log_probs.append(outputs.log_probs)
            shown = torch.zeros_like(outputs.log_probs)
            width = labels.size(1) - 1  # adapters that prepend virtual tokens have more columns
            shown[:, -width:] = outputs.log_probs[:, -width:] * preference_mask_2BT[:, 1:]
            outputs.log_probs = shown
            sums.append(shown.detach().sum(1))
            return outputs

        sums: list[torch.Tensor] = []
        types, weights = self.loss_types, self.loss_weights
        own = [(name, weight) for name, weight in zip(types, weights, strict=True) if name != "sft"]
        precomputed = self.precompute_ref_logps
        try:
            self.precompute_ref_logps = True
            self.loss_types, self.loss_weights = [name for name, _ in own], [weight for _, weight in own]
            loss = super()._compute_loss(policy, inputs, False)
        finally:
            self.loss_types, self.loss_weights = types, weights
            self.precompute_ref_logps = precomputed
        if not has_reference:
            for name in [name for name in logged if name.startswith("rewards/")]:
                del logged[name]
        elif self.ld_alpha is None:  # else TRL's sums are of weighted tokens
            both = torch.stack([sums[0], torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])])
            right_B, ties_B = judge_margins(both)
            gather: Any = self.accelerator.gather_for_metrics
            logged["rewards/accuracies"][-1] = float(gather(right_B).mean())
            logged["rewards/ties"].append(float(gather(ties_B).mean()))
        if "sft" in types:
            mask_BT = nll_mask_2BT[:, 1:].chunk(2)[0]
            lengths_B = mask_BT.sum(1).clamp(min=1)
            if self.nll_per == "batch":
                lengths_B = torch.full_like(lengths_B, self._mean_nll_tokens, dtype=torch.float32)
            nll = chosen_nll(log_probs[0][:, -mask_BT.size(1) :], mask_BT, lengths_B)
            weight = sum(weight for name, weight in zip(types, weights, strict=True) if name == "sft")
            logged["nll"].append(nll.item())
            loss = loss + weight * nll
        return loss


def judge_margins(sums_P2B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each pair 1, 0 or, in a tie, one half for "the chosen answer has the larger reward", and 1 for a tie, [B].

    From the log-prob sums of [policy, reference] x [chosen rows, then rejected], [2, 2B]. A margin that rounding could
    turn is a tie, else the share of right ones would change with the batch size.
    """
    chosen_2B, rejected_2B = sums_P2B.float().chunk(2, dim=1)
    margin_B = (chosen_2B[0] - chosen_2B[1]) - (rejected_2B[0] - rejected_2B[1])
    size_B = (chosen_2B.abs() + rejected_2B.abs()).mean(0) / 2
    ties_B = margin_B.abs() <= ROUNDING * size_B
    return torch.where(ties_B, 0.5, (margin_B > 0).double()), ties_B.double()


def nll_lengths(mask_2BT: torch.Tensor) -> Sequence[int]:
    """Tokens that the NLL term sees of each chosen answer of a batch, [B]."""
    return mask_2BT[:, 1:].chunk(2)[0].sum(1).tolist()


def chosen_nll(log_probs_2BT: torch.Tensor, mask_BT: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of -log p(chosen | prompt) / length, a scalar. The first half of the rows are the chosen."""
    log_probs_BT = log_probs_2BT.chunk(2)[0]
    return -((log_probs_BT * mask_BT).sum(1) / lengths_B).mean()
