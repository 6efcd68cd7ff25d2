"""Which segments of a packed row share one attention call, and what each of their tokens attends to.

A call computes several segments, padded to the longest of them. Fewer calls mean less overhead, more of them mean less
padding; `group_segments` finds the cheapest grouping. On a CPU a long segment with branches may also be computed in
parts, so that branches, which do not attend to one another, are not multiplied with one another at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

# Shapes: S = tokens of the row, N = segments of one call, L = tokens of the longest of them, H = heads of size D.

CALL_COST = 10_000  # of one more call, as the number of token pairs whose attention takes as long


@dataclass(frozen=True)
class AttentionCall:
    """Segments whose attention is computed together, padded at their ends to the longest of them."""

    lengths: Sequence[int]  # tokens of each segment
    part_lengths: Sequence[int]  # prefix and branches of a segment that is computed in parts, else empty
    places: torch.Tensor  # of the segments' tokens among the N x L of the call
    branches_NL: torch.Tensor
    positions_NL: torch.Tensor
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)  # by sliding window

    def pad(self, packed: torch.Tensor) -> torch.Tensor:
        """[tokens of all segments, H, D] -> [N, H, L, D]; padding is zero."""
        count = self.branches_NL.numel()
        rows = packed if len(packed) == count else _padded(packed, self.places, count)
        return rows.unflatten(0, (len(self.lengths), -1)).transpose(1, 2)

    def unpad(self, padded: torch.Tensor) -> torch.Tensor:
        """[N, H, L, D] -> [tokens of all segments, H, D]."""
        tokens = padded.transpose(1, 2).flatten(0, 1)
        return tokens if len(tokens) == len(self.places) else tokens.index_select(0, self.places)

    def visible(self, window: int | None) -> torch.Tensor | None:
        """Which key each query attends to, [N, 1, L, L]; None for plain causal attention.

        `window` is the size of a sliding window in tokens, or None.
        """
        if window is not None and max(self.lengths) <= window:
            window = None
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: int | None) -> torch.Tensor | None:
        if window is None and not self.branches_NL.any():
            return None
        order = torch.arange(self.branches_NL.size(1), device=self.branches_NL.device)
        branch_q, branch_k = self.branches_NL[:, :, None], self.branches_NL[:, None, :]
        visible = (order[:, None] >= order[None, :]) & ((branch_k == 0) | (branch_k == branch_q))
        if window is not None:
            visible = visible & (self.positions_NL[:, :, None] - self.positions_NL[:, None, :] < window)
        return visible[:, None]


class RowSegments:
    """The segments of a packed row, and the attention calls that compute them.

    `lengths` are in the order of the row; falling lengths need the least padding. branches_1S: 0 for the prefix of a
    segment; positions_1S: each token's position in its own sequence.
    """

    def __init__(self, lengths: Sequence[int], branches_1S: torch.Tensor, positions_1S: torch.Tensor) -> None:
        self.lengths, self.branches_1S, self.positions_1S = lengths, branches_1S, positions_1S
        self.block_masks: dict[int | None, BlockMask] = {}  # by sliding window
        self.calls: list[AttentionCall] = []
        start = 0
        parts = part_lengths(lengths, branches_1S) if branches_1S.device.type == "cpu" else [[] for _ in lengths]
        for first, end in group_segments(lengths, list(map(_cost_in_parts, parts))):
            own = list(lengths[first:end])
            is_token_NL = torch.arange(max(own)) < torch.tensor(own)[:, None]
            places = is_token_NL.flatten().nonzero()[:, 0].to(branches_1S.device)
            branches_NL, positions_NL = (
                _padded(of_row[0, start : start + sum(own)], places, is_token_NL.numel()).view_as(is_token_NL)
                for of_row in (branches_1S, positions_1S)
            )
            in_parts = end == first + 1 and _is_cheaper_in_parts(own[0], parts[first])
            self.calls.append(AttentionCall(own, parts[first] if in_parts else (), places, branches_NL, positions_NL))
            start += sum(own)

    def block_mask(self, window: int | None) -> BlockMask:
        """What each token of the row attends to, for FlexAttention, which skips the blocks that are hidden."""
        if window not in self.block_masks:
            branch, position = self.branches_1S[0], self.positions_1S[0]
            sizes = torch.tensor(self.lengths, device=branch.device)
            segment = torch.repeat_interleave(torch.arange(len(sizes), device=branch.device), sizes)

            def visible(batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
                seen = (q >= k) & (segment[q] == segment[k]) & ((branch[k] == 0) | (branch[k] == branch[q]))
                return seen if window is None else seen & (position[q] - position[k] < window)

            self.block_masks[window] = create_block_mask(visible, None, None, len(branch), len(branch), branch.device)
        return self.block_masks[window]

    def split(self, row: torch.Tensor) -> Sequence[torch.Tensor]:
        """[1, H, S, D] -> [N, H, L, D] for each call.

        One split, not a slice for each call, because the gradient of every slice would be as long as the row.
        """
        packed = row[0].transpose(0, 1).split([sum(call.lengths) for call in self.calls])
        return [call.pad(tokens) for call, tokens in zip(self.calls, packed, strict=True)]


def _padded(tokens: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
    """[len(places), …] -> [count, …] with the tokens at their places, and zeros elsewhere.

    One copy for all segments: the gradient of `pad_sequence` copies all of itself once for each segment.
    """
    return tokens.new_zeros(count, *tokens.shape[1:]).index_copy_(0, places, tokens)


def part_lengths(lengths: Sequence[int], branches_1S: torch.Tensor) -> list[list[int]]:
    """For each segment, the lengths of its prefix and of each branch; empty where it is too short for parts to pay."""
    parts: list[list[int]] = []
    for branches in branches_1S[0].split(list(lengths)):
        if len(branches) ** 2 <= 3 * CALL_COST:  # a prefix and two branches are four calls
            parts.append([])
            continue
        numbers, counts = torch.unique_consecutive(branches, return_counts=True)
        parts.append([0] * int(numbers[0] > 0) + counts.tolist())
    return parts


def group_segments(lengths: Sequence[int], costs_in_parts: Sequence[float] = ()) -> list[tuple[int, int]]:
    """Groups neighbouring segments, as (first, end), so that the total cost of their attention calls is least.

    A call costs CALL_COST plus N * L^2 token pairs. `costs_in_parts` is what each segment costs by itself in parts. The
    least total up to each segment is found by dynamic programming.
    """
    costs, begins = [0.0], [0]  # of the cheapest grouping of the segments before `end`; where its last group begins
    for end in range(1, len(lengths) + 1):
        best, longest = (float("inf"), 0), 0
        for first in range(end - 1, -1, -1):
            longest = max(longest, lengths[first])
            cost = (end - first) * longest**2 + CALL_COST
            if costs_in_parts and end == first + 1:
                cost = min(cost, costs_in_parts[first])
            best = min(best, (costs[first] + cost, first))
            if cost > best[0]:
                break  # a longer group only costs more
        costs.append(best[0])
        begins.append(best[1])
    groups, end = [], len(lengths)
    while end:
        groups.append((begins[end], end))
        end = begins[end]
    return groups[::-1]


def _cost_in_parts(parts: Sequence[int]) -> float:
    """In token pairs; a causal part computes half of its square. Infinite for a segment without branches, for which the
    causal kernel skips all hidden pairs anyway."""
    if len(parts) < 2:
        return float("inf")
    prefix, *branches = parts
    return sum(part**2 for part in parts) / 2 + prefix * sum(branches) + (len(parts) + 1) * CALL_COST


def _is_cheaper_in_parts(length: int, parts: Sequence[int]) -> bool:
    return _cost_in_parts(parts) < length**2 + CALL_COST
