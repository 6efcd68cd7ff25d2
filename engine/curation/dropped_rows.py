"""Splits rows into those that are kept and those that are dropped, each for a named reason."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from data_schemas.rows import Dropped, Row

RowType = TypeVar("RowType", bound=Row)


def keep_or_drop(
    rows: Iterable[RowType], decide: Callable[[RowType], RowType | Dropped]
) -> tuple[list[RowType], list[tuple[Dropped, RowType]]]:
    """The rows that `decide` keeps, as it returns them, and those that it drops with their reasons; both in order."""
    kept: list[RowType] = []
    dropped: list[tuple[Dropped, RowType]] = []
    for row in rows:
        decision = decide(row)
        if isinstance(decision, Dropped):
            dropped.append((decision, row))
        else:
            kept.append(decision)
    return kept, dropped


def count_reasons(dropped: Sequence[tuple[Dropped, Row]]) -> Counter[str]:
    """How many rows were dropped for each reason."""
    return Counter(decision.reason for decision, _ in dropped)
