"""Reads what wandb wrote offline: its file is a log of blocks as in LevelDB, and each entry is a protobuf Record."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 2**15  # bytes; no part of an entry crosses the end of a block
HEADER, PART = 7, 7  # bytes of the file's header, and of each part's: checksum (4), length (2), kind (1)
FULL, LAST = 1, 4  # kinds of a part that ends an entry


def entries(file: Path) -> Iterator[bytes]:
    """The entries of a .wandb file."""
    content, at, entry = file.read_bytes(), HEADER, b""
    assert content.startswith(b":W&B")
    while at + PART <= len(content):
        if BLOCK - at % BLOCK < PART:  # padding
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        entry += content[at + PART : at + PART + length]
        at += PART + length
        if kind in (FULL, LAST):
            yield entry
            entry = b""


def records(folder: Path, kind: str) -> Iterator[Any]:
    """The records of a kind in the offline runs of a folder, in order."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for entry in entries(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(entry)
            if record.WhichOneof("record_type") == kind:
                yield getattr(record, kind)


def logged_offline(folder: Path) -> list[dict[str, Any]]:
    """Each call of `log`, without the keys that wandb adds."""
    found: list[dict[str, Any]] = []
    for history in records(folder, "history"):
        row: dict[str, Any] = {}
        for item in history.item:  # of a table or page, one for each of its fields
            name, *inner = item.nested_key or [item.key]
            value = json.loads(item.value_json)
            row[name] = row.get(name, {}) | {inner[0]: value} if inner else value
        found.append({name: value for name, value in row.items() if not name.startswith("_")})
    return found


def steps_of(folder: Path) -> list[int]:
    """wandb's own step of each call of `log`."""
    return [history.step.num for history in records(folder, "history")]


def group_of(folder: Path) -> set[str]:
    """The groups of the runs."""
    return {run.run_group for run in records(folder, "run")}
