"""Masks personal data in the texts of a row. Needs no torch."""

from collections import Counter
from typing import Any

from engine.curation.content import RawRow
from engine.curation.personal_data import mask_personal_data

TEXT_FIELDS = ("text", "content", "reasoning_content", "reference")  # fields of rows and messages with text of people
ROW_LISTS = ("messages", "prompt", "chosen", "rejected", "between")


def mask_row(row: RawRow) -> tuple[RawRow, Counter[str]]:
    """The row with masks in place of personal data, and how many there are of each kind. The row itself where there is
    none. Tools and their arguments stay, as they have to be called as they are."""
    counts: Counter[str] = Counter()

    def masked(value: Any) -> Any:
        if isinstance(value, list):
            return [masked(item) for item in value]
        if not isinstance(value, dict):
            return value
        found = dict(value)
        for name in TEXT_FIELDS:
            if isinstance(found.get(name), str):
                found[name], of_text = mask_personal_data(found[name])
                counts.update(of_text)
        return found

    changed = masked(dict(row))
    changed |= {name: masked(row[name]) for name in ROW_LISTS if name in row}
    return (changed, counts) if counts else (row, counts)
