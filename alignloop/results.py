"""Read the folder of a run: its summary, its steps, its rounds, and the logged numbers of a step."""

from os import PathLike
from pathlib import Path

from alignloop.table import Table
from data_schemas.errors import ConfigError
from data_schemas.metrics import METRICS, read_metrics
from data_schemas.text import nearest
from pipeline.state.summary import Summary, read

RunFolder = str | PathLike[str]


def summary(run: RunFolder) -> Summary:
    """The content of the run's summary.json. Raises ConfigError where there is none, DataError where it is damaged."""
    return read(Path(run))


def steps(run: RunFolder) -> Table:
    """The steps of the run: step, stage, round, state, seconds, folder, and the numbers of its record as `metrics`."""
    return Table(
        {
            "step": entry["name"],
            "stage": entry["stage"],
            "round": entry["round"],
            "state": entry["state"],
            "seconds": entry["seconds"],
            "folder": str(Path(run) / entry["folder"]) if entry["folder"] else None,
            "metrics": dict(entry["metrics"]),
        }
        for entry in summary(run)["steps"]
    )


def rounds(run: RunFolder) -> Table:
    """The numbers of each round, with the columns of summary.json. A null has its reason there, under `reasons`."""
    return Table({name: value for name, value in row.items() if name != "reasons"} for row in summary(run)["rounds"])


def metrics(run: RunFolder, step: str) -> Table:
    """Every number that a step has logged, as in metrics.jsonl: a row for each optimizer step, whose number is `step`.

    A step that has no optimizer has one row with the numbers of its record, under step 0. Raises ConfigError for a step
    that the run does not have, or that has logged nothing.
    """
    folders = {entry["name"]: entry["folder"] for entry in summary(run)["steps"]}
    if step not in folders:
        raise ConfigError(f"{run} has no step {step!r}{nearest(step, list(folders))}; its steps: {', '.join(folders)}")
    folder = folders[step]
    values = read_metrics(Path(run) / folder / METRICS) if folder else {}
    if not values:
        raise ConfigError(f"{step} of {run} has logged no numbers yet; expected a step that has begun, run the recipe")
    rows: dict[int, dict[str, object]] = {number: {"step": number} for number in sorted({at for at, _ in values})}
    for (at, name), value in values.items():
        rows[at][name] = value
    return Table(rows.values())
