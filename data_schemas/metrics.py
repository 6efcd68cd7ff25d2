"""metrics.jsonl, in the folder of a step: every logged number, one line for each time that numbers were logged."""

import contextlib
import json
from pathlib import Path

METRICS = "metrics.jsonl"


def read_metrics(path: Path) -> dict[tuple[int, str], float]:
    """(step, key) -> value, of all numbers in the file; empty where there is none.

    A line that is damaged, as the last one by a crash, is ignored.
    """
    values: dict[tuple[int, str], float] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and type(row.get("step")) in (int, float):
                    step = row.pop("step")
                    values.update({(step, key): value for key, value in row.items()})
    return values
