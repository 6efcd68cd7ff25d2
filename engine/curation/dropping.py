"""The rules that compare rows: each drops rows of a table. Needs no torch.

Which row of several is kept never depends on their order: see engine/curation/duplicates.py. A row's quality is its
reward, where it has one.
"""

from engine.curation.content import Finding
from engine.curation.duplicates import find_exact_duplicates, find_near_duplicates
from engine.curation.table import Table


def drop_exact_duplicates(table: Table) -> None:
    """Drops every row whose text equals that of a better one."""
    dropped = find_exact_duplicates(table.keys, ids=table.ids, quality=table.quality, excluded=table.findings)
    for row, kept in dropped.items():
        table.findings[row] = Finding("exact_duplicate", 1.0, 1.0, table.ids[kept])


def drop_near_duplicates(table: Table) -> None:
    """Drops every row that is almost equal to a better one, in all of its text and in its answers."""
    if table.signatures is None:
        return
    dropped = find_near_duplicates(
        table.signatures,
        lambda index: table.content(index).text,
        ids=table.ids,
        quality=table.quality,
        answers=(lambda index: "\n".join(table.content(index).answers)) if table.has_answers else None,
        excluded=table.findings,
    )
    for row, (kept, similarity) in dropped.items():
        table.findings[row] = Finding("near_duplicate", similarity, table.signatures.threshold, table.ids[kept])
