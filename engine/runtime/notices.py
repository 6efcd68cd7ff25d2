"""Warnings that a user should see after the step, not only in its log: fallbacks, rows that were left out.

    notices.warn(log, "%d rows were set aside in rejected_rows.jsonl", len(bad))

They are logged like any warning, and get into the step's record, `summary.json` and the output of `run`. A resumed
stage keeps those of its earlier attempts, in `checkpoints/warnings.json`.
"""

import contextlib
import json
import logging
from pathlib import Path

from data_schemas.files import read_json, write_atomically

FILE = "checkpoints/warnings.json"

_texts: dict[str, None] = {}  # of this process, which runs one stage; each once, in order
_folder: Path | None = None


def start(folder: Path | None) -> None:
    """Forgets those of another stage, and reads those of earlier attempts in `folder`. None: none are kept on disk."""
    global _folder
    _folder = folder
    _texts.clear()
    kept = (read_json(folder / FILE) or {}).get("warnings") if folder else None
    if isinstance(kept, list):
        _texts.update(dict.fromkeys(map(str, kept)))


def warn(log: logging.Logger, message: str, *values: object) -> None:
    """Logs a warning and keeps it for the record."""
    log.warning(message, *values, stacklevel=2)
    keep(message % values if values else message)


def keep(text: str) -> None:
    """Keeps a warning for the record that was logged already."""
    if text in _texts:
        return
    _texts[text] = None
    if _folder is not None:
        with contextlib.suppress(OSError):  # a full disk: it is in the record if the stage finishes
            (_folder / FILE).parent.mkdir(exist_ok=True)
            write_atomically(_folder / FILE, json.dumps({"warnings": list(_texts)}))


def kept() -> list[str]:
    """The warnings of this stage so far."""
    return list(_texts)
