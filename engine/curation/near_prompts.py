"""Evaluation prompts that a training row's prompt nearly equals: by the exact Jaccard similarity of word 5-grams.

It holds where the published rules (contamination.py) are left out or loosened. 5-grams that many prompts of a set
share, as in a template, don't count, as there. Needs no torch.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from engine.curation.duplicates import shingles_of

NEAR = 0.8  # similarity from which a prompt nearly equals another
IsTemplate = Callable[[NDArray[np.int64], int], NDArray[np.bool_]]  # by how many of a set's prompts have an n-gram


class NearPrompts:
    """The prompts of evaluation sets, looked up by their word 5-grams: 12 bytes a word."""

    def __init__(self, sets: Mapping[str, Iterable[str]], is_template: IsTemplate) -> None:
        nothing = np.empty(0, dtype=np.uint64)
        templates, kept = [nothing], [nothing]
        sizes: list[int] = []
        for prompts in sets.values():
            of_set = [shingles_of(prompt) for prompt in prompts]
            values, counts = np.unique(np.concatenate([nothing, *of_set]), return_counts=True)
            templates.append(values[is_template(counts, len(of_set))])
            kept += [shingles[~np.isin(shingles, templates[-1])] for shingles in of_set]
            sizes += map(len, kept[len(kept) - len(of_set) :])
        self._templates, self._sizes = np.unique(np.concatenate(templates)), np.array(sizes, dtype=np.int64)
        hashes = np.concatenate(kept)
        numbers = np.repeat(np.arange(len(sizes), dtype=np.int32), self._sizes)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._numbers = hashes[order], numbers[order]

    def similar(self, prompt: str) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The numbers of the prompts that this one nearly equals, and their similarities."""
        shingles = shingles_of(prompt)
        starts, ends = (np.searchsorted(self._hashes, shingles, side) for side in ("left", "right"))
        is_there = ends > starts
        if not is_there.any():
            return np.empty(0, dtype=np.intp), np.empty(0)
        if len(self._templates):
            shingles = shingles[~np.isin(shingles, self._templates)]
            starts, ends = (np.searchsorted(self._hashes, shingles, side) for side in ("left", "right"))
            is_there = ends > starts
        spans = zip(starts[is_there], ends[is_there], strict=True)
        found, num_shared = np.unique(
            np.concatenate([self._numbers[start:end] for start, end in spans]), return_counts=True
        )
        similarity = num_shared / (self._sizes[found] + len(shingles) - num_shared)
        is_near = similarity >= NEAR
        return found[is_near].astype(np.intp), similarity[is_near]
