"""Files of labels: what a page saves is read as it was meant, and levels are on one scale."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_schemas.people import FORMAT, Batch, Label, Shown, read_labels, work_of

ROWS = ("row-1", "row-2", "row-3")
BATCH = Batch(
    run="demo",
    step="round-1.annotate",
    batch="0123",
    people={"ana": [Shown(row=row, first="one") for row in ROWS], "ben": [Shown(row="row-1", first="other")]},
)


def lines_of(labels: Sequence[dict], **head: object) -> list[str]:
    """A file of labels as a page saves it."""
    first = {"format": FORMAT, "run": "demo", "step": "round-1.annotate", "batch": "0123", "person": "ana"} | head
    return [
        json.dumps(line, ensure_ascii=False) + "\n" for line in [first, *labels, {"end": True, "labels": len(labels)}]
    ]


def label(row: str = "row-1", verdict: str = "one", **fields: object) -> dict:
    strength = {"strength": "better"} if verdict in ("one", "other") else {}
    return {"row": row, "first": "one", "verdict": verdict, "seconds": 1.5} | strength | fields


def write(folder: Path, lines: Sequence[str], name: str = "ana.labels.jsonl") -> Path:
    (folder / name).write_text("".join(lines), encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("verdict", "strength", "level"),
    [
        ("one", "significantly_better", 4),
        ("one", "marginally_better", 1),
        ("tie", None, 0),
        ("other", "slightly_better", -2),
        ("skipped", None, None),
    ],
)
def test_a_verdict_has_a_level(verdict, strength, level):
    assert Label(row="r", first="one", verdict=verdict, strength=strength, seconds=0).level == level


def test_the_labels_of_a_file_are_read_under_any_name_and_the_work_of_all_is_counted(tmp_path):
    write(
        tmp_path, lines_of([label("row-2", "tie"), label("row-1", "other", edited="Ünd\u2028")]), "from ana (2).jsonl"
    )
    labels = read_labels(tmp_path, BATCH)
    assert [(one.row, one.level, one.edited) for one in labels["ana"]] == [
        ("row-2", 0, None),
        ("row-1", -3, "Ünd\u2028"),
    ]
    assert labels["ben"] == []
    assert [(one.name, one.num_done, one.num_rows, one.is_done) for one in work_of(tmp_path, BATCH, labels)] == [
        ("ana", 2, 3, False),
        ("ben", 0, 1, False),
    ]


def test_a_batch_is_read_as_it_was_written_and_a_damaged_one_is_none(tmp_path):
    assert Batch.read(tmp_path) is None
    BATCH.write(tmp_path)
    assert Batch.read(tmp_path) == BATCH
    (tmp_path / "batch.json").write_text('{"run": "demo"')
    assert Batch.read(tmp_path) is None
