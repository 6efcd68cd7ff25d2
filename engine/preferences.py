"""What DPO adds to TRL's trainer: an NLL term that does not depend on the micro-batch, and exact evaluation means.

TRL's `sft` loss is a mean over the chosen tokens of each micro-batch, so 8x1 and 2x4 rows give other gradients. Here it
is normalised by each answer's length (Pang et al., arXiv 2404.19733, eq. 4), then averaged over pairs.
"""

from typing import Any

import torch
from trl import DPOTrainer

from engine.training import TrainingLoop

# Shapes: B = pairs in the batch, T = tokens; tensors of the batch hold the chosen rows, then the rejected, [2B, T].


class PreferenceTrainer(TrainingLoop, DPOTrainer):
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

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if "sft" not in self.loss_types:
            return super()._compute_loss(model, inputs, return_outputs)
        log_probs: list[torch.Tensor] = []

        def recording(**kwargs: Any) -> Any:
            outputs = model(**kwargs)
            log_probs.append(outputs.log_probs)
            return outputs

        types, weights = self.loss_types, self.loss_weights
        pairs = [(name, weight) for name, weight in zip(types, weights, strict=True) if name != "sft"]
        try:
            self.loss_types, self.loss_weights = [name for name, _ in pairs], [weight for _, weight in pairs]
            loss = super()._compute_loss(recording, inputs, False)
        finally:
            self.loss_types, self.loss_weights = types, weights
        mask_2BT = inputs["completion_mask"][:, 1:]
        nll = nll_per_answer(log_probs[0][:, -mask_2BT.size(1) :], mask_2BT)
        weight = sum(weight for name, weight in zip(types, weights, strict=True) if name == "sft")
        self._metrics["train" if model.training else "eval"]["nll"].append(nll.item())
        return loss + weight * nll


def nll_per_answer(log_probs_2BT: torch.Tensor, mask_2BT: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of -log p(chosen | prompt) / |chosen|, a scalar. The first half of the rows are the chosen."""
    log_probs_BT, mask_BT = log_probs_2BT.chunk(2)[0], mask_2BT.chunk(2)[0]
    return -((log_probs_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)).mean()
