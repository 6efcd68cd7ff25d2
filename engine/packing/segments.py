"""The layout of one segment of a packed row: sequences that share a prefix, or a single sequence.

See the package's docstring for an example.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """The tokens of one segment in their order in the row. The first three lists have one entry for each token."""

    ids: list[int]
    positions: list[int]  # of the token within its own sequence
    branches: list[int]  # 0 for the shared prefix, then 1, 2, … by sequence
    token_indices: list[list[int]]  # for each sequence, the index in the segment of each of its tokens

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Segment":
        """The segment of these sequences. The tokens with which all of them begin become the prefix, without the last
        of these tokens, which begins each branch. The prefix may be empty. Each sequence has at least two tokens,
        unless it is the only one."""
        first = sequences[0]
        if len(sequences) == 1:  # without a branch attention is plainly causal, which is faster
            order = list(range(len(first)))
            return cls(list(first), order, [0] * len(first), [order])
        num_shared = num_shared_tokens(sequences)
        num_prefix = num_shared - 1  # the last shared token is the first of each branch
        ids, branches, positions = list(first[:num_prefix]), [0] * num_prefix, list(range(num_prefix))
        token_indices: list[list[int]] = []
        for number, sequence in enumerate(sequences, 1):
            start, branch = len(ids), list(sequence[num_prefix:])
            ids += branch
            branches += [number] * len(branch)
            positions += range(num_prefix, len(sequence))
            # In the package's example (a b c x y and a b c z): [0, 1, 2, 3, 4] and [0, 1, 2, 6]. The shared token c has
            # index 2, the first branch's copy, in both. A predictor is one index before its target: that of z is 5, c's
            # copy in its own branch.
            token_indices.append([*range(num_shared), *range(start + 1, start + len(branch))])
        return cls(ids, positions, branches, token_indices)


def num_shared_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with, counted as 1 where there is none.

    At least one token of every sequence is not counted, so that each has a branch.
    """
    limit = min(map(len, sequences)) - 1
    first = sequences[0]
    shared = next((i for i in range(limit) if any(other[i] != first[i] for other in sequences[1:])), limit)
    return max(1, shared)
