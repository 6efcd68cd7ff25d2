"""Sends a finished round to wandb, as one run `rounds` in the group of the loop's run: its numbers by round, the table
of all rounds so far, sample answers of the newest policy, and the run's page.

    python commands/track_round.py request.json      # written by pipeline/launch/round_tracking.py
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_schemas.text import printable
from data_schemas.tracked_round import TrackedRound
from engine.runtime.trackers import TrackedRun, start_wandb


def send(request: TrackedRound) -> None:
    """Raises what wandb raises."""
    import wandb

    run = start_wandb(TrackedRun(Path(request["folder"]), "rounds", group=request["name"]))
    run.define_metric("*", step_metric="round")
    number = request["round"] or 0
    newest = next((row for row in request["rounds"] if row.get("round") == request["round"]), {})
    content: dict[str, object] = {
        name: value for name, value in newest.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if request["rounds"]:
        content["rounds"] = _table(request["rounds"])
    if request["samples"]:
        content["samples"] = _table(request["samples"])
    if request["page"]:
        content["report"] = wandb.Html(request["page"], inject=False)
    # The step is the round's number, so that a later start of the same run, which is another file offline, goes on.
    run.log({**content, "round": number}, step=number)
    run.finish()


def _table(rows: Sequence[Mapping[str, object]]) -> object:
    """A table of wandb with the columns of all rows."""
    import wandb

    columns: list[Any] = list(dict.fromkeys(name for row in rows for name in row))
    cells: list[Any] = [[row.get(name) for name in columns] for row in rows]
    return wandb.Table(columns=columns, data=cells, allow_mixed_types=True)


def main() -> None:
    try:
        send(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except Exception as error:  # whatever wandb raises, it is one line
        print(printable(" ".join(f"{error or type(error).__name__}".split())), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
