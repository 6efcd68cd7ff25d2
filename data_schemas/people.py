"""What people compare, and the files that they send back: read by the stages, and by `alignloop status`.

A step that waits for people has a folder `people/` with a page for each person and `batch.json`. A page saves a file of
JSON lines, which goes into the same folder under any name that ends in `.jsonl`:

    {"format": "alignloop-labels-1", "run": "demo", "step": "round-1.annotate", "batch": "…", "person": "ana"}
    {"row": "…", "first": "one", "verdict": "other", "strength": "better", "edited": "…", "seconds": 12.4}
    {"end": true, "labels": 1}

A file without its last line was cut off. A file is only of use with the batch of rows that its page was written for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_schemas.errors import DataError
from data_schemas.field_errors import place_and_problem
from data_schemas.files import check_regular, write_atomically
from data_schemas.rows import STRENGTHS, Strength
from data_schemas.text import shown

FOLDER = "people"
BATCH = "batch.json"
FORMAT = "alignloop-labels-1"
WAITING = "waiting"  # state and kind of an outcome, and state of a step and of a run
EXIT_CODE = 3  # of a stage and of a run that wait for people
Place = Literal["one", "other"]
Verdict = Literal["one", "other", "tie", "skipped"]


class Label(BaseModel):
    """What a person said of the two answers of a row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: str
    first: Place  # the answer that the page showed as A, on the left
    verdict: Verdict
    strength: Strength | None = None  # of a verdict with a winner
    edited: str | None = None  # a better version of the winner, in the person's words
    seconds: float = Field(ge=0, allow_inf_nan=False)  # from the row's display to the verdict

    @property
    def level(self) -> int | None:
        """From 4, `one` is significantly better, over 0, a tie, to -4; None for a skipped row."""
        if self.verdict == "skipped":
            return None
        if self.strength is None:
            return 0
        size = len(STRENGTHS) - STRENGTHS.index(self.strength)
        return size if self.verdict == "one" else -size


class Shown(BaseModel):
    """A row of a person's page."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: str
    first: Place


class Batch(BaseModel):
    """The rows that people compare in a step: for each person in the order of the page."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    step: str
    batch: str  # hash of the rows and of who gets which; a file of another batch is refused
    people: dict[str, list[Shown]]

    def write(self, folder: Path) -> None:
        """Writes `batch.json` into the folder of a step's pages."""
        write_atomically(folder / BATCH, self.model_dump_json(indent=1))

    @classmethod
    def read(cls, folder: Path) -> "Batch | None":
        """The batch in the folder of a step's pages; None where there is none, or it is damaged."""
        try:
            return cls.model_validate_json((folder / BATCH).read_bytes())
        except (OSError, ValidationError):
            return None


def read_labels(folder: Path, batch: Batch) -> dict[str, list[Label]]:
    """The labels of each person in the files of the folder; those without a file have none.

    Raises DataError for a file that is foreign, cut off, outdated or doubled, or that contradicts its page.
    """
    found: dict[str, list[Label]] = {}
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.jsonl")):
        person, labels = _read_file(path, batch)
        if person in files:
            raise DataError(f"{path} and {files[person].name} are both by {person}; keep the newer one of them")
        files[person], found[person] = path, labels
    return {name: found.get(name, []) for name in batch.people}


def _read_file(path: Path, batch: Batch) -> tuple[str, list[Label]]:
    """Who labelled, and the labels in order. Raises DataError."""
    check_regular(path)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a file of labels; expected one that a page in this folder has saved") from None
    except (ValueError, RecursionError):
        lines = None
    head = lines[0] if lines else _first_line(path)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise DataError(f"{path} is not a file of labels; expected one that a page in this folder has saved")
    end = lines[-1] if lines else None
    if lines is None or not isinstance(end, dict) or end.get("end") is not True or end.get("labels") != len(lines) - 2:
        raise DataError(f"{path} was cut off on its way; let {shown(head.get('person'))} save and send it again")
    if (head.get("run"), head.get("step")) != (batch.run, batch.step):
        raise DataError(
            f"{path} has labels for {shown(head.get('step'))} of the run {shown(head.get('run'))}, expected "
            f"{batch.step} of {batch.run}; move it to that step's folder"
        )
    if head.get("batch") != batch.batch:
        raise DataError(
            f"{path} is outdated: the rows of {batch.step} have changed since its page was written; move the file "
            "away, and give people the new page"
        )
    person = head.get("person")
    if person not in batch.people:
        raise DataError(f"{path} is by {shown(person)}, expected one of {', '.join(batch.people)}; move it away")
    return str(person), _labels(path, lines[1:-1], batch.people[str(person)])


def _first_line(path: Path) -> object:
    """The first line of a damaged file; None where that is damaged too."""
    try:
        return json.loads(path.read_text(encoding="utf-8").partition("\n")[0])
    except (ValueError, RecursionError):
        return None


def _labels(path: Path, lines: Sequence[object], expected: Sequence[Shown]) -> list[Label]:
    rows = {one.row: one.first for one in expected}
    labels: dict[str, Label] = {}
    for number, line in enumerate(lines, 2):
        try:
            label = Label.model_validate(line)
        except ValidationError as error:
            problem = place_and_problem(error.errors()[0], "the line")
            raise DataError(f"{path}, line {number} is not a label ({problem}); use the file as it was saved") from None
        problem = ""
        if (label.verdict in ("one", "other")) != (label.strength is not None):
            problem = f"{label.verdict} with strength {label.strength}"
        elif rows.get(label.row) != label.first:
            problem = f"the page did not show row {shown(label.row)} so"
        elif label.row in labels:
            problem = f"row {label.row} has two labels"
        if problem:
            raise DataError(f"{path}, line {number}: {problem}; use the file as it was saved")
        labels[label.row] = label
    return list(labels.values())


@dataclass(frozen=True)
class PersonsWork:
    """How far a person is, as the files in the folder say."""

    name: str
    page: Path
    num_done: int
    num_rows: int

    @property
    def is_done(self) -> bool:
        return self.num_done == self.num_rows


def work_of(folder: Path, batch: Batch, labels: Mapping[str, Sequence[Label]]) -> list[PersonsWork]:
    """The work of each person on the pages in the folder."""
    return [
        PersonsWork(name, page_file(folder, name), len(labels[name]), len(rows)) for name, rows in batch.people.items()
    ]


def page_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.html"
