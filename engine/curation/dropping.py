"""The rules that compare rows: each drops rows of a table. Needs no torch.

Which row of several is kept never depends on their order: see engine/curation/duplicates.py. A row's quality is its
reward, where it has one.
"""

import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from engine.curation.arguments import CurateArguments
from engine.curation.content import Finding
from engine.curation.duplicates import find_exact_duplicates, find_near_duplicates
from engine.curation.semantic import Nearest, Vectors, find_semantic_duplicates
from engine.curation.table import Table

Marks = Callable[[int], float]  # a judge's mark of a row; nan where it gives none


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


def drop_semantic_duplicates(table: Table, rows: Sequence[int], vectors_ND: Vectors, threshold: float) -> Nearest:
    """Drops those of the rows, whose embeddings are given, that repeat a better one in other words. Returns the pairs
    nearest to the threshold, by row."""
    dropped, nearest = find_semantic_duplicates(
        vectors_ND,
        threshold,
        ids=[table.ids[row] for row in rows],
        quality=table.score_N[rows].tolist(),
        difficulty=table.difficulty_N[rows].tolist(),
    )
    for place, (kept, cosine) in dropped.items():
        table.findings[rows[place]] = Finding("semantic_duplicate", cosine, threshold, table.ids[rows[kept]])
    return Nearest(*([(cosine, rows[one], rows[other]) for cosine, one, other in side] for side in nearest.sides))


def lines_of_pairs(table: Table, nearest: Nearest) -> Iterator[str]:
    """A line of JSON for each pair near the threshold, with both texts: whether it is right is for people to see."""
    for is_dropped, pairs in zip((True, False), nearest.sides, strict=True):
        for cosine, row, kept in pairs:
            texts = {"text": table.content(row).text, "kept_text": table.content(kept).text}
            fields = {"dropped": is_dropped, "cosine": round(cosine, 4), "row_id": table.ids[row], **texts}
            yield json.dumps(fields | {"partner": table.ids[kept]}, ensure_ascii=False) + "\n"


def drop_low_scores(
    table: Table, *, min_score: float | None, top_share: float | None, mark_of: Marks | None, top_mark: float | None
) -> None:
    """Drops the rows with a reward below `min_score`, and those below the best `top_share` of the rows that have one.

    Llama 3's high quality is the union of the top quartile of the rewards and the top mark of a judge, as the two
    disagree often (arXiv 2407.21783, 4.2.3): with `mark_of`, a row of the top mark stays whatever its rank, one of the
    top share whatever its mark. Rows that have neither stay. Only kept rows are marked.
    """
    scored = _rows_with(table, table.score_N)
    limit = float(np.quantile(table.score_N[scored], 1 - top_share)) if top_share is not None and scored else None
    _drop_below(table, scored, table.score_N, {"min_score": min_score})
    if mark_of is not None and top_mark is not None:
        mark_N = np.full(len(table), np.nan)
        for index in table.kept():
            mark_N[index] = mark_of(index)
        # Where the reward decides too, it is what drops a row that has one.
        by_mark = [row for row in _rows_with(table, mark_N) if limit is None or np.isnan(table.score_N[row])]
        _drop_below(table, by_mark, mark_N, {"top_mark": top_mark})
        scored = [row for row in scored if not mark_N[row] >= top_mark]
    _drop_below(table, scored, table.score_N, {"top_share": limit})


def _rows_with(table: Table, value_N: np.ndarray) -> list[int]:
    """The kept rows that have a value."""
    return [index for index in table.kept() if not np.isnan(value_N[index])]


def drop_easy(table: Table, *, min_difficulty: float | None) -> None:
    """Drops the rows whose difficulty, the spread of the rewards of their prompt's answers, is below a limit. Rows
    without one stay."""
    _drop_below(table, _rows_with(table, table.difficulty_N), table.difficulty_N, {"min_difficulty": min_difficulty})


def keys_without_rewards(tables: Sequence[Table], arguments: CurateArguments) -> list[str]:
    """A sentence for each key about rewards that found none, in any row of these tables."""
    has_score = any(not np.isnan(table.score_N).all() for table in tables)
    has_difficulty = any(not np.isnan(table.difficulty_N).all() for table in tables)
    columns = {"min_score": "score", "top_share": "score", "min_difficulty": "difficulty"}
    found = {"score": has_score, "difficulty": has_difficulty}
    return [
        f"{key} dropped no row: none has a {column}, as the winners of rejection sampling do"
        for key, column in columns.items()
        if getattr(arguments, key) is not None and not found[column]
    ]


def _drop_below(table: Table, rows: Sequence[int], value_N: np.ndarray, limits: dict[str, float | None]) -> None:
    """Drops those of the rows whose value is below a limit; the rule is named after the first."""
    for name, limit in limits.items():
        for index in rows if limit is not None else ():
            if value_N[index] < limit and index not in table.findings:
                table.findings[index] = Finding(name, float(value_N[index]), limit)
