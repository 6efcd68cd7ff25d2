"""Rows that share hashes, without comparing every two. Needs no torch.

Shapes: N = rows, B = bands, S = different signatures (a signature is the hashes of all bands of a row).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]
LARGE = 32  # signatures above which a bucket is split by the hashes of more bands
ROOM_IN_LARGE = 8  # kept rows of a large bucket with which all its rows are compared


def groups_of_equals(keys: NDArray[np.uint64] | Indices) -> tuple[Indices, Indices]:
    """The indices of the values that occur more than once, ordered by value, and the sizes of these groups."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(keys)]
    sizes = np.diff(np.append(np.flatnonzero(is_first), len(keys)))
    return order[np.repeat(sizes > 1, sizes)], sizes[sizes > 1]


def split_groups(members: Indices, sizes: Indices) -> Iterator[Indices]:
    """Each group of `groups_of_equals`."""
    ends = np.cumsum(sizes)
    for start, end in zip(ends - sizes, ends, strict=True):
        yield members[start:end]


@dataclass(frozen=True)
class Buckets:
    """Signatures that share the hash of a band. A bucket of more than LARGE is split by the hashes of further bands,
    and only a few of its rows are compared with all others: a template that a million rows share costs no million^2.

    Each signature is a bucket too, for the rows that have it.
    """

    room: Indices  # with how many kept rows of it a row is compared, by bucket
    of_signature: Indices  # the numbers of the buckets, ordered by signature
    starts: Indices  # where those of each signature start; S + 1

    @classmethod
    def of(cls, bands: NDArray[np.uint64]) -> "Buckets":
        """The buckets of the signatures, B x S."""
        num_bands, num_signatures = bands.shape
        everything = np.arange(num_signatures)
        members, sizes, room = [everything], [np.ones_like(everything)], [np.full_like(everything, ROOM_IN_LARGE)]
        for band in range(num_bands):
            keys, rest, width = bands[band], everything, 1
            while len(rest):
                found, lengths = groups_of_equals(keys[rest])
                members.append(rest[found])
                sizes.append(lengths)
                is_large = lengths > LARGE
                room.append(np.where(is_large, ROOM_IN_LARGE, LARGE))
                rest = members[-1][np.repeat(is_large, lengths)] if width < num_bands else everything[:0]
                for other in range(width, min(2 * width, num_bands)):
                    keys = combined(keys, bands[(band + other) % num_bands])
                width *= 2
        numbers = np.repeat(np.arange(sum(map(len, sizes))), np.concatenate(sizes))
        signatures = np.concatenate(members)
        order = np.argsort(signatures, kind="stable")
        starts = np.searchsorted(signatures[order], np.arange(num_signatures + 1))
        return cls(np.concatenate(room), numbers[order], starts)

    def containing(self, signature: int) -> list[int]:
        """The buckets of a signature."""
        return self.of_signature[self.starts[signature] : self.starts[signature + 1]].tolist()

    def components(self) -> Indices:
        """For each signature the least one that shares a bucket with it, or with one that does, and so on."""
        by_bucket = np.argsort(self.of_signature, kind="stable")
        signatures = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        starts = np.searchsorted(self.of_signature[by_bucket], np.arange(len(self.room)))
        labels, before = np.arange(len(self.starts) - 1), np.empty(0)
        while not np.array_equal(labels, before):
            before = labels
            least = np.minimum.reduceat(labels[signatures[by_bucket]], starts)  # of each bucket
            labels = np.minimum.reduceat(least[self.of_signature], self.starts[:-1])
            labels = labels[labels]
        return labels


def combined(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of two hashes."""
    mixed = (one ^ one >> np.uint64(29)) * np.uint64(0x9E3779B97F4A7C15) + other
    return mixed ^ mixed >> np.uint64(32)
