"""The rules that compare rows: each drops rows of a table. Needs no torch.

Which row of several is kept never depends on their order: it is the one of the highest quality (its reward), and among
equals the one with the lowest id, which is the hash of its content.
"""

import math
from collections import defaultdict

import numpy as np

from data_schemas.text import normalise
from engine.curation.content import Finding
from engine.curation.table import Table


def rank(table: Table, index: int) -> tuple[float, str, int]:
    """Sorts rows, those that are kept first. The index is for rows that are equal in every field."""
    score = table.score_N[index]
    return (math.inf if np.isnan(score) else -score, table.ids[index], index)


def drop_exact_duplicates(table: Table) -> None:
    """Drops every row whose normalised text equals that of a better one."""
    kept = np.fromiter(table.kept(), dtype=np.int64)
    _, inverse, counts = np.unique(table.hash_N[kept], return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = defaultdict(list)
    for index, group in zip(kept[counts[inverse] > 1], inverse[counts[inverse] > 1], strict=True):
        groups[int(group)].append(int(index))
    for indices in groups.values():
        by_text: dict[str, int] = {}  # the hash has 64 bits: the texts decide
        for index in sorted(indices, key=lambda index: rank(table, index)):
            best = by_text.setdefault(normalise(table.content(index).text), index)
            if best != index:
                table.findings[index] = Finding("exact_duplicate", 1.0, 1.0, table.ids[best])
