"""Chooses the next token: the one at which the cumulative probability passes the row's uniform number.

No random number is drawn here and rows are independent, so an answer does not depend on what else is in the batch. The
vocabulary is summed in blocks; the nucleus is searched among the most probable tokens first, and all tokens are sorted
only where it is larger; a few rows are processed at a time, so that they fit into the CPU's caches.
"""

import torch

# Shapes: B = rows, V = vocabulary, M = blocks, K = candidate tokens.
BLOCK = 256  # tokens
ROWS = 32  # at a time; with a hundred, each of a dozen passes would allocate new memory
NUCLEUS = 512  # candidates, the most probable tokens; finding them costs a tenth of sorting all


def choose(
    logits_BV: torch.Tensor, noise_B: torch.Tensor, temperature_B: torch.Tensor, *, top_p: float
) -> torch.Tensor:
    """One token for each row, [B], from uniform numbers in [0, 1); at temperature 0 the most probable one.

    `top_p` is nucleus sampling (Holtzman et al., arXiv 1904.09751): 1 samples from all tokens.
    """
    parts = zip(logits_BV.split(ROWS), noise_B.split(ROWS), temperature_B.split(ROWS), strict=True)
    return torch.cat([_choose(*part, top_p) for part in parts])


def _choose(logits_BV: torch.Tensor, noise_B: torch.Tensor, temperature_B: torch.Tensor, top_p: float) -> torch.Tensor:
    greedy_B = temperature_B == 0
    if bool(greedy_B.all()):
        return logits_BV.argmax(dim=-1)
    scores_BV = logits_BV.float()
    if bool((temperature_B != 1).any()):
        scores_BV = scores_BV / temperature_B.masked_fill(greedy_B, 1.0).float()[:, None]
    probabilities_BV = torch.softmax(scores_BV, dim=-1)
    noise_B1 = noise_B.double()[:, None]
    if top_p < 1:
        chosen_B = _within_nucleus(probabilities_BV, noise_B1, top_p, NUCLEUS)
    else:
        chosen_B = _among_all(probabilities_BV, noise_B1)
    return torch.where(greedy_B, logits_BV.argmax(dim=-1), chosen_B) if bool(greedy_B.any()) else chosen_B


def _among_all(probabilities_BV: torch.Tensor, noise_B1: torch.Tensor) -> torch.Tensor:
    """Finds the block in which the cumulative probability passes the number, then the token in it; [B]."""
    size = probabilities_BV.size(1)
    in_full_blocks = size - size % BLOCK
    sums_BM = probabilities_BV[:, :in_full_blocks].unflatten(1, (-1, BLOCK)).sum(dim=-1)
    if in_full_blocks < size:
        sums_BM = torch.cat([sums_BM, probabilities_BV[:, in_full_blocks:].sum(dim=-1, keepdim=True)], dim=-1)
    ends_BM = sums_BM.double().cumsum(dim=-1)
    target_B1 = noise_B1 * ends_BM[:, -1:]
    block_B1 = _first_above(ends_BM, target_B1)
    before_B1 = torch.where(block_B1 > 0, ends_BM.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    token_BK = block_B1 * BLOCK + torch.arange(BLOCK, device=block_B1.device)
    inside_BK = probabilities_BV.gather(1, token_BK.clamp(max=size - 1)).masked_fill_(token_BK >= size, 0.0)
    return (block_B1 * BLOCK + _first_above(inside_BK.double().cumsum(dim=-1), target_B1 - before_B1))[:, 0]


def _within_nucleus(
    probabilities_BV: torch.Tensor, noise_B1: torch.Tensor, top_p: float, num_candidates: int
) -> torch.Tensor:
    """Chooses from the smallest set of tokens with at least `top_p` of the probability; of equally probable tokens the
    first belong to it. [B]."""
    num_candidates = min(num_candidates, probabilities_BV.size(1))
    top_BK, token_BK = probabilities_BV.topk(num_candidates, dim=-1)
    token_BK, order_BK = token_BK.sort(dim=-1)
    top_BK, order_BK = top_BK.gather(1, order_BK).sort(dim=-1, descending=True, stable=True)
    token_BK = token_BK.gather(1, order_BK)
    kept_BK = top_BK.double().cumsum(dim=-1) - top_BK < top_p
    token_BK, order_BK = token_BK.sort(dim=-1)
    cumulative_BK = top_BK.masked_fill(~kept_BK, 0).gather(1, order_BK).double().cumsum(dim=-1)
    place_B1 = _first_above(cumulative_BK, noise_B1 * cumulative_BK[:, -1:])
    chosen_B = token_BK.gather(1, place_B1)[:, 0]
    # Tokens beyond the candidates may be as probable as some of them and precede them in the vocabulary.
    least_B = top_BK.masked_fill(~kept_BK, torch.inf).amin(dim=-1)
    larger_B = kept_BK[:, -1] | (least_B == top_BK[:, -1])
    if num_candidates < probabilities_BV.size(1) and bool(larger_B.any()):
        all_tokens = probabilities_BV.size(1)
        chosen_B[larger_B] = _within_nucleus(probabilities_BV[larger_B], noise_B1[larger_B], top_p, all_tokens)
    return chosen_B


def _first_above(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative value is above the target; at most the last index with a probability. [B, 1]."""
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last).clamp(max=cumulative.size(1) - 1)
