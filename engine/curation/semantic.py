"""Semantic duplicates: rows whose embeddings point in almost the same direction (Llama 3, arXiv 2407.21783, 4.2.3).

Dialogs are clustered by their embeddings, sorted within a cluster by quality x difficulty, and kept greedily while the
highest cosine to the kept ones of the cluster is below a threshold. Different from there, a row without a reward or a
difficulty counts as one of the lowest, and equal rows are sorted by their ids, so the order of the files does not
matter. No threshold separates paraphrases from different short instructions: see `Nearest`. Needs no torch.

Legend: N = rows, D = dimensions, C = clusters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ROWS_OF_KMEANS = 100_000  # that the clusters are computed from
STEPS_OF_KMEANS = 10
ROWS_AT_ONCE = 4096  # whose cosines to the centres are in memory
NUM_NEAREST = 10  # pairs on each side of the threshold that are reported
Vectors = NDArray[np.float16] | NDArray[np.float32]


@dataclass
class Nearest:
    """The pairs of a row and its nearest kept row whose cosine is nearest to the threshold, on both sides of it."""

    dropped: list[tuple[float, int, int]] = field(default_factory=list)  # cosine, row, kept row
    kept: list[tuple[float, int, int]] = field(default_factory=list)

    def add(self, cosine: float, row: int, other: int, *, is_dropped: bool) -> None:
        pairs = self.dropped if is_dropped else self.kept
        pairs.append((cosine, row, other))
        if len(pairs) > 50 * NUM_NEAREST:
            self._cut()

    def _cut(self) -> None:
        self.dropped = sorted(self.dropped)[:NUM_NEAREST]
        self.kept = sorted(self.kept, reverse=True)[:NUM_NEAREST]

    @property
    def sides(self) -> tuple[list[tuple[float, int, int]], list[tuple[float, int, int]]]:
        """The pairs that are reported, dropped and kept, the nearest to the threshold first."""
        self._cut()
        return self.dropped, self.kept


def find_semantic_duplicates(
    vectors_ND: Vectors,
    threshold: float,
    *,
    ids: Sequence[str],
    quality: Sequence[float],
    difficulty: Sequence[float],
) -> tuple[dict[int, tuple[int, float]], Nearest]:
    """The dropped rows, each with the kept row that it repeats and their cosine; and the pairs near the threshold.

    `vectors_ND` are embeddings of any length.
    """
    dropped: dict[int, tuple[int, float]] = {}
    nearest = Nearest()
    if len(ids) < 2:
        return dropped, nearest
    unit_ND = _unit(vectors_ND)
    rank = _ranks(ids, quality, difficulty)
    cluster_N = clusters(unit_ND, ids)
    for cluster in np.unique(cluster_N):
        kept: list[int] = []
        for row in sorted(map(int, np.flatnonzero(cluster_N == cluster)), key=rank.__getitem__):
            if kept:
                cosines = unit_ND[kept] @ unit_ND[row]
                most = int(cosines.argmax())
                cosine, other = float(cosines[most]), kept[most]
                nearest.add(cosine, row, other, is_dropped=cosine >= threshold)
                if cosine >= threshold:
                    dropped[row] = (other, round(cosine, 4))
                    continue
            kept.append(row)
    return dropped, nearest


def clusters(unit_ND: Vectors, ids: Sequence[str]) -> NDArray[np.int64]:
    """The cluster of each row, [N]: spherical k-means with C = sqrt(N) centres, from rows that are chosen by their ids,
    so that the order of the rows does not matter."""
    by_id = np.array(sorted(range(len(ids)), key=lambda place: ids[place]), dtype=np.int64)
    sample = unit_ND[by_id[:ROWS_OF_KMEANS]]
    centres_CD = sample[np.linspace(0, len(sample) - 1, max(1, math.isqrt(len(ids)))).astype(int)].copy()
    for _ in range(STEPS_OF_KMEANS):
        nearest = _nearest_centre(sample, centres_CD)
        sums = np.zeros_like(centres_CD)
        np.add.at(sums, nearest, sample)
        has_rows = np.bincount(nearest, minlength=len(centres_CD)) > 0
        centres_CD[has_rows] = _unit(sums[has_rows])
    return _nearest_centre(unit_ND, centres_CD)


def _nearest_centre(unit_ND: Vectors, centres_CD: Vectors) -> NDArray[np.int64]:
    parts = [
        (unit_ND[start : start + ROWS_AT_ONCE] @ centres_CD.T).argmax(axis=1)
        for start in range(0, len(unit_ND), ROWS_AT_ONCE)
    ]
    return np.concatenate(parts)


def _unit(vectors: Vectors) -> Vectors:
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _ranks(ids: Sequence[str], quality: Sequence[float], difficulty: Sequence[float]) -> list[tuple[float, str, int]]:
    """Sorts rows, those with the highest quality x difficulty first, then by id. The quality is the share of the rows
    with a reward that have no higher one, since rewards have no zero; a row without a difficulty has 1."""
    rewards = np.sort([value for value in quality if not math.isnan(value)])
    ranks: list[tuple[float, str, int]] = []
    for row, row_id in enumerate(ids):
        product = 0.0
        if not math.isnan(quality[row]):
            share = float(np.searchsorted(rewards, quality[row], side="right")) / len(rewards)
            product = share * (1.0 if math.isnan(difficulty[row]) else difficulty[row])
        ranks.append((-product, row_id, row))
    return ranks
