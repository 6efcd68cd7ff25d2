"""Corrects the loss for answers that another program has sampled: vLLM's probabilities differ from the trainer's.

Each answer's loss is weighted by p(answer) under the trainer's policy over p under the sampler, and an answer whose
ratio exceeds CLIP_MAX is left out. These are TRL's defaults (`vllm_importance_sampling_mode: sequence_mask`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object

CLIP_MAX = 3.0


@dataclass(frozen=True)
class Mismatch:
    """Of some answers: N answers of up to C tokens."""

    ratios_N1: torch.Tensor  # 0: the answer is left out
    differences: torch.Tensor  # |log p - log p of the sampler| of every token that is trained on


def mismatch(policy_NC: torch.Tensor, sampled: Sequence[Sequence[float]], mask_NC: torch.Tensor) -> Mismatch:
    """The trainer's log-probs `policy_NC` beside those of the sampler, answer by answer.

    A log-prob of the sampler that is no finite number counts as the trainer's.
    """
    width, kept_NC = policy_NC.size(1), mask_NC.bool()
    padded = [[*own, *[0.0] * (width - len(own))] for own in sampled]
    difference_NC = policy_NC - torch.tensor(padded, dtype=policy_NC.dtype, device=policy_NC.device)
    is_known_NC = difference_NC.isfinite() & kept_NC
    difference_NC = difference_NC.masked_fill(~is_known_NC, 0.0)
    ratios_N1 = difference_NC.sum(1, keepdim=True).exp()
    return Mismatch(ratios_N1.masked_fill(ratios_N1 > CLIP_MAX, 0.0), difference_NC[is_known_NC].abs())


def metrics_of(found: Sequence[Mismatch]) -> dict[str, float]:
    """Metrics of all processes' answers, under TRL's names; of no tokens they are 0. All processes call this."""
    own = [(one.differences.tolist(), one.ratios_N1.flatten().tolist()) for one in found]
    every = gather_object(own)
    differences = [value for part, _ in every for value in part]
    ratios = [value for _, part in every for value in part]
    return {
        "sampling/sampling_logp_difference/mean": sum(differences) / max(1, len(differences)),
        "sampling/sampling_logp_difference/max": max(differences, default=0.0),
        "sampling/importance_sampling_ratio/min": min(ratios, default=0.0),
        "sampling/importance_sampling_ratio/mean": sum(ratios) / max(1, len(ratios)),
        "sampling/importance_sampling_ratio/max": max(ratios, default=0.0),
    }
