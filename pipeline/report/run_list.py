"""`alignloop list`: the runs in a folder, the one that changed last first."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.box import MARKDOWN
from rich.table import Table
from rich.text import Text

from data_schemas.errors import UserError
from pipeline.report.live import short_path
from pipeline.report.run_status import num_finished, state_of
from pipeline.report.terminal import COLOURS, number
from pipeline.state.pruning import measure
from pipeline.state.summary import SUMMARY, Summary, read

DAMAGED = "damaged"


@dataclass(frozen=True)
class ListedRun:
    folder: Path
    summary: Summary | None  # None where it cannot be read
    problem: str  # why it cannot be read
    bytes: int
    changed: float  # when its newest file was written, in seconds since the epoch


def list_runs(folder: Path) -> list[ListedRun]:
    """The runs in a folder, or the folder itself where it is a run. The one that changed last comes first."""
    folders = [folder] if (folder / SUMMARY).exists() else [path.parent for path in folder.glob(f"*/{SUMMARY}")]
    return sorted(map(_look_at, folders), key=lambda run: (-run.changed, run.folder))


def _look_at(folder: Path) -> ListedRun:
    summary, problem = None, ""
    try:
        summary = read(folder)
    except (UserError, OSError) as error:
        problem = str(error)
    return ListedRun(folder, summary, problem, *measure(folder))


def runs_table(runs: Sequence[ListedRun]) -> Table:
    """One row for each run."""
    table = Table("run", "state", "recipe", "finished", "best policy", "score", "last change", "MB", box=MARKDOWN)
    for run in runs:
        summary = run.summary
        state = state_of(summary, run.folder) if summary else DAMAGED
        best = summary["best_policy"] if summary else None
        table.add_row(
            Text(short_path(run.folder)),
            Text(state, style=COLOURS.get(state, "default")),
            Text(summary["name"] if summary else "-"),
            f"{num_finished(summary)} of {len(summary['steps'])}" if summary else "-",
            Text(best["step"] if best else "-"),
            number(best["score"] if best else None),
            datetime.fromtimestamp(run.changed).strftime("%Y-%m-%d %H:%M"),
            f"{run.bytes / 1e6:.1f}",
        )
    return table
