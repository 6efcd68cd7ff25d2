"""What a curation step reports: the rows, words and tokens that were read, dropped by each rule, left out by the mix,
and kept.

`funnel.json` has the counts, `dropped.jsonl` a line for every dropped row with its finding, `contamination.json` what
the rows contain of each evaluation set, and `mix.json` the rows, tokens or words, and shares of each source before and
after.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from data_schemas.files import write_atomically
from engine.curation.contamination import EvaluationIndex
from engine.curation.table import Table


class Stratum(TypedDict):
    """A line of the funnel. `rule` is `read`, a rule's name, `left_out_by_mix`, `copied_by_mix`, or `kept`; words are
    counted by white space, tokens where a tokenizer is given."""

    kind: str
    rule: str
    rows: int
    words: int
    tokens: NotRequired[int]


def funnel_of(table: Table) -> list[Stratum]:
    """The funnel of the rows of a kind, the rules by the number of rows that they dropped."""
    times_N = np.ones(len(table), np.int64)
    times_N[list(table.findings)] = 0
    times_N[list(table.copies)] = list(table.copies.values())
    left_out = [row for row, copies in table.copies.items() if not copies]
    copied = [row for row, copies in table.copies.items() for _ in range(copies - 1)]
    dropped = [_stratum(table, rule, rows) for rule, rows in table.dropped_by_rule()]
    strata = [
        _stratum(table, "read", range(len(table))),
        *dropped,
        _stratum(table, "left_out_by_mix", left_out),
        _stratum(table, "copied_by_mix", copied),
    ]
    kept = _stratum(table, "kept", np.repeat(np.arange(len(table)), times_N))
    return [*(stratum for stratum in strata if stratum["rows"]), kept]


def _stratum(table: Table, rule: str, rows: Sequence[int] | np.ndarray) -> Stratum:
    """The line of these rows, in which one may be several times."""
    places = np.asarray(rows, np.int64)
    stratum = Stratum(kind=table.rows.kind, rule=rule, rows=len(places), words=int(table.words_N[places].sum()))
    if table.tokens_N is not None:
        stratum["tokens"] = int(table.tokens_N[places].sum())
    return stratum


def lines_of_dropped(table: Table) -> Iterator[bytes]:
    """A line of JSON for every dropped row, in their order: id, place, rule, value, threshold, partner and the row."""
    for index in sorted(table.findings):
        finding = table.findings[index]
        fields = {
            "row_id": table.ids[index],
            "kind": table.rows.kind,
            "place": table.rows.users_place(index),
            "rule": finding.rule,
            "value": finding.value,
            "threshold": finding.threshold,
            "partner": finding.partner,
            "row": table.row(index),
        }
        yield json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def write_report(folder: Path, tables: Sequence[Table], evaluation: EvaluationIndex | None) -> None:
    """Writes funnel.json, and contamination.json and mix.json where there is something to write."""
    reports: dict[str, object] = {"funnel": [stratum for table in tables for stratum in funnel_of(table)]}
    if evaluation:
        reports["contamination"] = {name: asdict(of_set) for name, of_set in evaluation.report().items()}
    if mixes := {table.rows.kind: [asdict(line) for line in table.mix] for table in tables if table.mix}:
        reports["mix"] = mixes
    for name, content in reports.items():
        write_atomically(folder / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False))


def metrics_of(tables: Sequence[Table]) -> dict[str, float | int | str | None]:
    """The rows read, kept and dropped by rule, over all kinds; those kept by kind; and the masks by what they hide."""
    counts: dict[str, float | int | str | None] = {
        "rows": sum(map(len, tables)),
        "kept": sum(table.num_kept for table in tables),
    }
    for table in tables:
        counts[f"{table.rows.kind}.train"] = table.num_kept
        for rule, rows in table.dropped_by_rule():
            counts[f"dropped_{rule}"] = int(counts.get(f"dropped_{rule}") or 0) + len(rows)
        for name, number in table.masked.items():
            counts[f"masked_{name}"] = int(counts.get(f"masked_{name}") or 0) + number
    return counts
