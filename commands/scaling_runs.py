"""The table of small training runs that a scaling law is fitted to.

    parameters,tokens,loss
    44000000,2.3e10,3.08

A column `flops` is read too; without it a run costs 6 FLOPs for each parameter and token (arXiv 2001.08361).
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_schemas.errors import DataError
from data_schemas.text import nearest, shown

# Shapes: R = runs.

COLUMNS = ("parameters", "tokens", "loss")
FLOPS = "flops"
PER_PARAMETER_AND_TOKEN = 6.0  # FLOPs of training: 2 forward, 4 backward
SAME_BUDGET = 1.15  # runs whose FLOPs differ by less than this factor from the next are of one budget
LEAST_RUNS = 8  # the parametric form has five constants


@dataclass(frozen=True)
class Runs:
    parameters_R: np.ndarray
    tokens_R: np.ndarray
    loss_R: np.ndarray
    flops_R: np.ndarray

    def __len__(self) -> int:
        return len(self.loss_R)

    def take(self, chosen: np.ndarray) -> "Runs":
        return Runs(self.parameters_R[chosen], self.tokens_R[chosen], self.loss_R[chosen], self.flops_R[chosen])

    def with_losses(self, loss_R: np.ndarray) -> "Runs":
        return Runs(self.parameters_R, self.tokens_R, loss_R, self.flops_R)

    @property
    def flops_per_parameter_and_token(self) -> float:
        return float(np.exp(np.median(np.log(self.flops_R / self.parameters_R / self.tokens_R))))

    def budgets(self) -> list[np.ndarray]:
        """The places of the runs of each budget of FLOPs, the smallest first."""
        order = np.argsort(self.flops_R, kind="stable")
        steps = np.diff(np.log(self.flops_R[order]))
        return np.split(order, np.flatnonzero(steps > math.log(SAME_BUDGET)) + 1)


def read_table(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file by column. Raises DataError for a file that can't be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a CSV file in UTF-8"
        raise DataError(f"{path} can't be read ({reason}): expected a CSV file of runs") from error


def runs_of(path: Path, rows: Sequence[dict[str, str]]) -> Runs:
    """The runs of the lines of a table. Raises DataError for a column or number that can't be used, or too few runs."""
    found = list(rows[0]) if rows else []
    for name in COLUMNS:
        if name not in found:
            raise DataError(
                f"{path} has no column {name}{nearest(name, [str(column) for column in found])}: expected "
                f"{', '.join(COLUMNS)} and, where it is not 6 x parameters x tokens, {FLOPS}"
            )
    names = [*COLUMNS, *([FLOPS] if FLOPS in found else [])]
    values = {name: np.array([number(path, place, name, row) for place, row in enumerate(rows, 2)]) for name in names}
    runs = Runs(
        values["parameters"],
        values["tokens"],
        values["loss"],
        values.get(FLOPS, PER_PARAMETER_AND_TOKEN * values["parameters"] * values["tokens"]),
    )
    if len(runs) < LEAST_RUNS:
        raise DataError(f"{path} has {len(runs)} runs, expected at least {LEAST_RUNS}: the form has five constants")
    for name in COLUMNS[:2]:
        if len(set(values[name])) < 3:
            raise DataError(f"{path} has {len(set(values[name]))} different values of {name}, expected at least 3")
    return runs


def number(path: Path, line: int, name: str, row: dict[str, str], *, least: str = "above 0") -> float:
    """A cell of the table. `least` is `above 0` or `0 or more`. Raises DataError for any other value."""
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and least == "above 0"):
        raise DataError(f"{path} line {line}: {name}={shown(row[name])}, expected a number, {least}")
    return value
