"""The table of finished runs that `alignloop scale` fits (commands/scaling_runs.py, commands/mixture.py)."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_schemas.errors import DataError
from data_schemas.files import read_json, write_atomically
from pipeline.planner.shapes import Shape
from pipeline.scaling.grid import GridRun
from pipeline.scaling.mixes import MixRun
from pipeline.scaling.sizes import flops_per_token, matrix_parameters
from pipeline.state.summary import StepEntry, Summary


def write_grid(summary: Summary, folder: Path, runs: Sequence[GridRun], *, block_size: int) -> Path:
    """Writes runs.csv in the run's folder: the sizes are those of the trained models, whose tokenizers may have fewer
    tokens than asked for. Returns its path."""
    steps = {entry["name"]: entry for entry in summary["steps"]}
    rows: list[dict[str, object]] = []
    for run in runs:
        entry = steps[run.step]
        model = folder / str(entry["folder"]) / "model"
        shape = Shape.of(read_json(model / "config.json") or {})
        if shape is None:
            raise DataError(f"{model} has no config.json with the sizes of a decoder; see verify")
        rows.append(
            {
                "parameters": matrix_parameters(shape),
                "tokens": run.num_tokens,
                "loss": loss_of(entry),
                "flops": run.num_tokens * flops_per_token(shape, block_size),
                "learning_rate": run.learning_rate,
            }
        )
    return write_rows(folder / "runs.csv", rows)


def write_mixes(summary: Summary, folder: Path, runs: Sequence[MixRun]) -> Path:
    """Writes mixes.csv in the run's folder, the natural mix first. Returns its path."""
    steps = {entry["name"]: entry for entry in summary["steps"]}
    rows = [
        {f"share.{name}": share for name, share in run.shares.items()} | {"loss": loss_of(steps[run.step])}
        for run in runs
    ]
    return write_rows(folder / "mixes.csv", rows)


def loss_of(entry: StepEntry) -> float:
    loss = entry["metrics"].get("eval_loss")
    if not isinstance(loss, int | float):
        raise DataError(f"{entry['name']} has no eval_loss in its record; see verify")
    return float(loss)


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
    return path
