"""The funnel of a curation step: how many rows and words were read, dropped by each rule, and kept.

It is written as `funnel.json`, and every dropped row with its finding as a line of `dropped.jsonl`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import TypedDict

from engine.curation.table import Table


class Stratum(TypedDict):
    """A line of the funnel. `rule` is `read`, a rule's name, or `kept`; words are counted by white space."""

    kind: str
    rule: str
    rows: int
    words: int


def funnel_of(table: Table) -> list[Stratum]:
    """The funnel of the rows of a kind, the rules by the number of rows that they dropped."""
    kind = table.rows.kind
    by_rule: Counter[str] = Counter(finding.rule for finding in table.findings.values())
    words = Counter[str]()
    for index, finding in table.findings.items():
        words[finding.rule] += int(table.words_N[index])
    total, dropped = int(table.words_N.sum()), words.total()
    return [
        Stratum(kind=kind, rule="read", rows=len(table), words=total),
        *(Stratum(kind=kind, rule=rule, rows=rows, words=words[rule]) for rule, rows in by_rule.most_common()),
        Stratum(kind=kind, rule="kept", rows=len(table) - len(table.findings), words=total - dropped),
    ]


def lines_of_dropped(table: Table) -> Iterator[bytes]:
    """A line of JSON for every dropped row, in their order: its id, place, rule, value, threshold, partner and text."""
    for index in sorted(table.findings):
        finding = table.findings[index]
        fields = {
            "row_id": table.ids[index],
            "kind": table.rows.kind,
            "place": table.rows.place(index),
            "rule": finding.rule,
            "value": finding.value,
            "threshold": finding.threshold,
            "partner": finding.partner,
            "row": table.rows.row(index),
        }
        yield json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
