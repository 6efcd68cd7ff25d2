"""The parts of the DPO loss that are this project's own: the policy under two masks, tied margins, the NLL term.

Shapes: B = pairs in the batch, T = tokens; tensors of the batch hold the chosen rows, then the rejected, [2B, T].
"""

from collections.abc import Callable
from typing import Protocol

import torch

from engine.tokens.template import IGNORED
from engine.training.evaluation import ROUNDING


class FusedHeadOutput(Protocol):
    """What TRL's fused LM head returns; only the log-probs are named here."""

    log_probs: torch.Tensor  # [2B, T - 1], 0 where there is no label


class MaskedPolicy:
    """Stands in for the policy in TRL's loss, which then sees only the tokens of the preference mask.

    One forward pass computes the log-probs of every token in `preference_mask_2BT` or `nll_mask_2BT`. TRL receives them
    with zeros outside the preference mask; the NLL term reads them from `log_probs_2BT` after the call.
    """

    def __init__(
        self, model: Callable[..., FusedHeadOutput], *, preference_mask_2BT: torch.Tensor, nll_mask_2BT: torch.Tensor
    ) -> None:
        self.model, self.preference_mask_2BT, self.nll_mask_2BT = model, preference_mask_2BT, nll_mask_2BT
        self.log_probs_2BT = torch.empty(0)  # of the tokens under either mask, [2B, T - 1]
        self.sums_2B = torch.empty(0)  # sum over the preference mask of each answer, without gradients

    def __call__(self, *, input_ids: torch.Tensor, labels: torch.Tensor, **kwargs: object) -> FusedHeadOutput:
        """`labels` are TRL's, of the preference mask only; only their width is used."""
        either_mask_2BT = (self.nll_mask_2BT | self.preference_mask_2BT).bool()
        outputs = self.model(input_ids=input_ids, labels=input_ids.masked_fill(~either_mask_2BT, IGNORED), **kwargs)
        self.log_probs_2BT = outputs.log_probs
        shown_2BT = torch.zeros_like(outputs.log_probs)
        width = labels.size(1) - 1  # adapters that prepend virtual tokens have more columns
        shown_2BT[:, -width:] = outputs.log_probs[:, -width:] * self.preference_mask_2BT[:, 1:]
        outputs.log_probs = shown_2BT
        self.sums_2B = shown_2BT.detach().sum(1)
        return outputs


def judge_margins(sums_P2B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each pair 1, 0 or, in a tie, one half for "the chosen answer has the larger reward", and 1 for a tie, [B].

    From the log-prob sums of [policy, reference] x [chosen rows, then rejected], [2, 2B]. A margin whose sign depends
    on rounding is a tie; otherwise the accuracy would change with the batch size.
    """
    chosen_2B, rejected_2B = sums_P2B.float().chunk(2, dim=1)
    margin_B = (chosen_2B[0] - chosen_2B[1]) - (rejected_2B[0] - rejected_2B[1])
    size_B = (chosen_2B.abs() + rejected_2B.abs()).mean(0) / 2
    ties_B = margin_B.abs() <= ROUNDING * size_B
    return torch.where(ties_B, 0.5, (margin_B > 0).double()), ties_B.double()


def nll_lengths(mask_2BT: torch.Tensor) -> list[int]:
    """The number of tokens that the NLL term is taken over in each chosen answer of a batch, [B]."""
    return mask_2BT[:, 1:].chunk(2)[0].sum(1).tolist()


def chosen_nll(log_probs_2BT: torch.Tensor, mask_BT: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of -log p(chosen | prompt) / length, a scalar. The first half of the rows are the chosen."""
    log_probs_BT = log_probs_2BT.chunk(2)[0]
    return -((log_probs_BT * mask_BT).sum(1) / lengths_B).mean()
