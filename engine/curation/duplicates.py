"""Exact and near duplicates among a million rows, in bounded memory. Needs no torch.

Two texts are exact duplicates where their words and signs of arithmetic are equal, and near duplicates where the
Jaccard similarity of their sets of word 5-grams reaches a threshold. Candidates are found by MinHash in bands (Broder
1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4): 20 bands of r hashes propose a pair of
similarity s with probability 1 - (1 - s^r)^20, and r is the greatest for which that is 0.995 at the threshold. Unlike
most implementations, every candidate is verified by its exact similarity, so no row is dropped for an estimate.

Of several duplicates the best row stays: that of the highest quality, then of the lowest id (a hash of the content), so
neither the order of the rows nor their files matter. Rows are taken from the best to the worst, and one is dropped
where a row that was *kept* is within the threshold. In a chain A ~ B ~ C in which A and C differ, B goes if A or C is
the best; if B is the best, A and C go; all three are never reduced to a row that one of them does not resemble.

The signatures are computed by numpy, by which they take less time than to copy those of rensa 0.5 out of its matrix.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache, partial, reduce

import numpy as np
from numpy.typing import NDArray

from engine.curation.buckets import Buckets, Indices, combined, groups_of_equals, split_groups
from engine.curation.words import Hashes, ngram_hashes, word_hashes

# Shapes: N = rows, B = bands, R = hashes of a band.
SHINGLE = 5  # words
NUM_BANDS = 20
MAX_HASHES = 8  # of a band: more would only save verifications
MIN_RECALL = 0.995  # of pairs whose similarity equals the threshold
ROWS_AT_ONCE = 256  # whose shingles stay in the processor's cache
MAX_SETS = 4096  # of shingles that are kept in memory, about 60 MB
Text = Callable[[int], str]  # the text of a row by its index, read again from its file


def content_key(text: str) -> bytes:
    """16 bytes that are equal for exact duplicates: the hash of the words and signs, or of a text without any."""
    hashes = word_hashes(text, "signs")
    content = hashes.tobytes() or " ".join(text.split()).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()


def find_exact_duplicates(
    keys: Sequence[bytes], *, ids: Sequence[str], quality: Sequence[float] | None = None, excluded: Collection[int] = ()
) -> dict[int, int]:
    """The dropped rows, each with the row of the same `content_key` that is kept: the best by quality, then by id."""
    alive = _alive(len(keys), excluded)
    best = ranking(ids, quality)
    halves = np.frombuffer(b"".join(keys), dtype=np.uint64).reshape(-1, 2)[alive]
    dropped: dict[int, int] = {}
    for group in split_groups(*groups_of_equals(combined(halves[:, 0], halves[:, 1]))):
        kept, *others = sorted(map(int, alive[group]), key=best)
        dropped |= {row: kept for row in others if keys[row] == keys[kept]}
    return dropped


def hashes_per_band(threshold: float) -> int:
    """The most hashes in a band by which pairs at the threshold are still found with a probability of MIN_RECALL."""
    lowest = 1 - (1 - MIN_RECALL) ** (1 / NUM_BANDS)
    return max(1, min(MAX_HASHES, int(np.log(lowest) / np.log(threshold)))) if threshold < 1 else MAX_HASHES


class SignatureIndex:
    """The band hashes of texts, in the order in which they are added: 160 bytes a text."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold  # lowest similarity of duplicates, in (0, 1]
        self._num_hashes = hashes_per_band(threshold)
        # Fixed, so that the same texts are candidates in every run.
        source = np.random.Generator(np.random.PCG64(1711))
        shape = (NUM_BANDS, self._num_hashes)
        self._factors = source.integers(0, 1 << 32, size=shape, dtype=np.uint32) | np.uint32(1)
        self._masks = source.integers(0, 1 << 32, size=shape, dtype=np.uint32)
        self._waiting: list[Hashes] = []
        self._parts: list[NDArray[np.uint64]] = []  # of B x N

    def __len__(self) -> int:
        return sum(part.shape[1] for part in self._parts) + len(self._waiting)

    def add(self, text: str) -> None:
        self._waiting.append(_padded(word_hashes(text, "signs")))
        if len(self._waiting) >= ROWS_AT_ONCE:
            self._sign()

    def extend(self, bands: NDArray[np.uint64]) -> None:
        """Adds texts by their band hashes, B x N, which another index of the same threshold has computed."""
        if self._waiting:
            self._sign()
        self._parts.append(bands)

    def bands(self) -> NDArray[np.uint64]:
        """The hash of each band of each text: B x N."""
        if self._waiting:
            self._sign()
        if len(self._parts) != 1:
            self._parts = [np.concatenate([np.empty((NUM_BANDS, 0), dtype=np.uint64), *self._parts], axis=1)]
        return self._parts[0]

    def _sign(self) -> None:
        """MinHash: for each of B x R permutations of the shingles' hashes, the least of a text."""
        shingles, starts = _shingles_of_all(self._waiting)
        low = (shingles >> np.uint64(32)).astype(np.uint32)
        permuted = np.empty_like(low)
        bands = np.zeros((NUM_BANDS, len(starts)), dtype=np.uint64)
        for band in range(NUM_BANDS):
            for mask, factor in zip(self._masks[band], self._factors[band], strict=True):
                np.multiply(np.bitwise_xor(low, mask, out=permuted), factor, out=permuted)
                bands[band] = (bands[band] ^ np.minimum.reduceat(permuted, starts)) * np.uint64(0x9E3779B97F4A7C15)
                bands[band] ^= bands[band] >> np.uint64(32)
        self._parts.append(bands)
        self._waiting.clear()


def find_near_duplicates(
    signatures: SignatureIndex,
    texts: Text,
    *,
    ids: Sequence[str],
    quality: Sequence[float] | None = None,
    answers: Text | None = None,
    excluded: Collection[int] = (),
) -> dict[int, tuple[int, float]]:
    """The dropped rows, each with the best kept row that it repeats and their exact similarity.

    `texts` are those that were added to the index. Where `answers` are given, they have to reach the threshold too:
    two short answers to one long prompt differ. Rows in `excluded` are neither dropped nor repeated.
    """
    alive = _alive(len(ids), excluded)
    best = ranking(ids, quality)
    bands = signatures.bands()[:, alive]
    _, first, of_signature = np.unique(reduce(combined, bands), return_index=True, return_inverse=True)
    buckets = Buckets.of(bands[:, first])
    similar = _Similarity(signatures.threshold, [texts] if answers is None else [texts, answers])
    dropped: dict[int, tuple[int, float]] = {}
    for component in split_groups(*groups_of_equals(buckets.components()[of_signature])):
        kept_in: dict[int, list[int]] = defaultdict(list)
        signature_of = {int(alive[place]): int(of_signature[place]) for place in component}
        for row in sorted(signature_of, key=best):
            own = buckets.containing(signature_of[row])
            candidates = {kept for bucket in own for kept in kept_in[bucket]}
            found = similar.first(row, sorted(candidates, key=best))
            if found is not None:
                dropped[row] = found
                continue
            for bucket in own:
                if len(kept_in[bucket]) < buckets.room[bucket]:
                    kept_in[bucket].append(row)
    return dropped


class _Similarity:
    """The exact Jaccard similarity of rows, by one or more texts of each."""

    def __init__(self, threshold: float, texts: Sequence[Text]) -> None:
        self._threshold = threshold
        self._sets = [lru_cache(MAX_SETS)(partial(_shingle_set, text)) for text in texts]

    def first(self, row: int, others: Iterable[int]) -> tuple[int, float] | None:
        """The first of the other rows that is similar by every text, with the similarity by the first text."""
        for other in others:
            values = [_jaccard(shingles(row), shingles(other), self._threshold) for shingles in self._sets]
            if min(values) >= self._threshold:
                return other, values[0]
        return None


def _jaccard(one: set[int], other: set[int], threshold: float) -> float:
    """The size of the intersection divided by that of the union; 0 where the sizes say that it is less than this."""
    if min(len(one), len(other)) < threshold * max(len(one), len(other)):
        return 0.0
    num_shared = len(one & other)
    return num_shared / (len(one) + len(other) - num_shared) if one or other else 1.0


def _shingle_set(text: Text, row: int) -> set[int]:
    content = text(row)
    hashes = word_hashes(content, "signs")
    if not len(hashes):  # emoji, or nothing
        return {hash(" ".join(content.split()))} if content.strip() else set()
    return set(ngram_hashes(_padded(hashes), SHINGLE).tolist())


def shingles_of(text: str) -> Hashes:
    """The different word 5-grams of a text, hashed; a text without words has none."""
    hashes = word_hashes(text, "signs")
    return np.unique(ngram_hashes(_padded(hashes), SHINGLE)) if len(hashes) else hashes


def _padded(hashes: Hashes) -> Hashes:
    """A text of fewer words than a shingle is one shingle."""
    return hashes if len(hashes) >= SHINGLE else np.append(hashes, np.zeros(SHINGLE - len(hashes), dtype=np.uint64))


def _shingles_of_all(texts: Sequence[Hashes]) -> tuple[Hashes, Indices]:
    """The shingles of several texts, each after the other, and where those of each text start."""
    ends = np.cumsum([len(hashes) for hashes in texts])
    is_within = np.ones(ends[-1], dtype=bool)
    is_within[(ends[:, None] - np.arange(1, SHINGLE)).ravel()] = False  # the last words of a text start no shingle
    shingles = ngram_hashes(np.concatenate(texts), SHINGLE)
    return shingles[is_within[: len(shingles)]], np.append(0, ends[:-1] - (SHINGLE - 1) * np.arange(1, len(texts)))


def _alive(num_rows: int, excluded: Collection[int]) -> Indices:
    is_alive = np.ones(num_rows, dtype=bool)
    is_alive[list(excluded)] = False
    return np.flatnonzero(is_alive)


def ranking(ids: Sequence[str], quality: Sequence[float] | None) -> Callable[[int], tuple[float, str, int]]:
    """A key that sorts rows from the best to the worst. A quality of nan is the lowest. Equal ids are equal rows."""

    def key(row: int) -> tuple[float, str, int]:
        value = 0.0 if quality is None else float(quality[row])
        return (float("inf") if value != value else -value, ids[row], row)

    return key
