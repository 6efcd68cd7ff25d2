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
    parts = [(_summary(one.differences), _summary(one.ratios_N1)) for one in found]
    every: list[tuple[list[float], list[float]]] = gather_object(parts)
    differences, ratios = (_joined([pair[place] for pair in every]) for place in (0, 1))
    return {
        "sampling/sampling_logp_difference/mean": differences["mean"],
        "sampling/sampling_logp_difference/max": differences["max"],
        "sampling/importance_sampling_ratio/min": ratios["min"],
        "sampling/importance_sampling_ratio/mean": ratios["mean"],
        "sampling/importance_sampling_ratio/max": ratios["max"],
    }


def _summary(values: torch.Tensor) -> list[float]:
    """Count, sum, lowest and highest; nothing of no values."""
    return [values.numel(), *map(float, (values.sum(), values.min(), values.max()))] if values.numel() else []


def _joined(summaries: Sequence[Sequence[float]]) -> dict[str, float]:
    known = [summary for summary in summaries if summary]
    if not known:
        return {"mean": 0.0, "min": 0.0, "max": 0.0}
    counts, sums, lowest, highest = zip(*known, strict=True)
    return {"mean": sum(sums) / sum(counts), "min": min(lowest), "max": max(highest)}
