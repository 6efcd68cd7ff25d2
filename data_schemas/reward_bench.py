"""Reads preference files in the form of RewardBench 1 or 2: right and wrong answers to a prompt, by subset.

| benchmark | columns |
|---|---|
| RewardBench 1 (arXiv 2403.13787) and its prior sets | prompt, subset; chosen and rejected, a text each |
| RewardBench 2 (arXiv 2506.01937) | prompt, subset; chosen and rejected, lists of texts; `id` in the subset Ties |

A prompt is a text or a list of messages. In RewardBench 2 one answer is chosen, except in the subset Ties, where a row
`tied:7` has several right answers, and `ref:7`, its reference, one. Other columns are not read.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from data_schemas.errors import DataError, WrongValue
from data_schemas.formats import Line, describe
from data_schemas.questions import question
from data_schemas.row_errors import first_error
from data_schemas.rows import Message, Row
from data_schemas.sources import Source, sources

COLUMNS = ("prompt", "chosen", "rejected", "subset")
EXPECTED = "the columns of RewardBench, prompt, chosen, rejected and subset; `score` takes pairs without subsets"
TIES = "Ties"
TIES_ID = re.compile(r"(?P<kind>ref|tied):(?P<number>\d+)")


class BenchmarkRow(Row):
    """A prompt with right and wrong answers, and their scores once a reward model has scored them."""

    subset: str
    id: str = ""
    prompt: list[Message]
    chosen: list[str]
    rejected: list[str]
    chosen_scores: list[float] | None = None
    rejected_scores: list[float] | None = None

    @property
    def is_of_ties(self) -> bool:
        return self.subset.casefold() == TIES.casefold()


def read_benchmark(name: str) -> tuple[int, list[BenchmarkRow]]:
    """The version of RewardBench, 1 or 2, in whose form a file, folder or hub name is, and its rows.

    `name` may be a mapping as a recipe has it. Raises ConfigError for a path that does not exist, DataError for a row
    in neither form, or in another one than the rows before it.
    """
    version, rows = 0, list[BenchmarkRow]()
    for _, file, lines in sources([Source.of_argument(name).value()]):
        for line in lines:
            try:
                raw = _raw(line)
                found = 2 if isinstance(raw["chosen"], list) else 1
                if version not in (0, found):
                    before = "lists of texts" if version == 2 else "texts"
                    raise WrongValue("chosen", describe(raw["chosen"]), f"the form of the rows before it, {before}")
                version = found
                rows.append(_row(raw, version))
            except WrongValue as error:
                raise DataError(f"{file}:{line.number}: {error}") from None
    if not rows:
        raise DataError(f"{name} has no rows; expected {EXPECTED}")
    if version == 2:
        _check_ties(name, rows)
    return version, rows


def _raw(line: Line) -> dict[str, Any]:
    if line.error:
        raise line.error
    if not isinstance(line.raw, dict):
        raise WrongValue("row", describe(line.raw), EXPECTED)
    if missing := [column for column in COLUMNS if line.raw.get(column) is None]:
        raise WrongValue(", ".join(missing), "nothing", EXPECTED)
    return line.raw


def _row(raw: dict[str, Any], version: int) -> BenchmarkRow:
    answers = {column: _texts(raw, column, version) for column in ("chosen", "rejected")}
    fields = {"subset": raw["subset"], "id": str(raw.get("id", "")), "prompt": question(raw).messages, **answers}
    try:
        row = BenchmarkRow.model_validate(fields)
    except ValidationError as error:
        raise first_error(error, BenchmarkRow) from None
    if version == 2:
        _check_number(row)
    return row


def _texts(raw: dict[str, Any], column: str, version: int) -> list[str]:
    value = raw[column]
    texts = value if isinstance(value, list) else [value]
    if isinstance(value, list) != (version == 2) or not texts or not all(isinstance(text, str) for text in texts):
        raise WrongValue(column, describe(value), "a list of texts" if version == 2 else "text")
    return texts


def _check_number(row: BenchmarkRow) -> None:
    """Raises WrongValue where a row has another number of right answers than its subset needs."""
    count = len(row.chosen)
    if not row.is_of_ties:
        if count != 1:
            raise WrongValue("chosen", f"{count} answers", f"one: only the subset {TIES} has several right answers")
        return
    kind = TIES_ID.fullmatch(row.id)
    if kind is None:
        raise WrongValue("id", describe(row.id), f"ref:NUMBER or tied:NUMBER in the subset {TIES}")
    if (count > 1) != (kind["kind"] == "tied"):
        expected = "several in a row `tied`, one in a row `ref`"
        raise WrongValue("chosen", f"{count} {'answers' if count > 1 else 'answer'} in {row.id}", expected)


def _check_ties(name: str, rows: Sequence[BenchmarkRow]) -> None:
    ids = [row.id for row in rows if row.is_of_ties]
    if repeated := next((one for one in ids if ids.count(one) > 1), None):
        raise DataError(f"{name}: two rows of the subset {TIES} have the id {repeated}; expected one of each")
    has_pair = any(one.replace("ref:", "tied:") in ids for one in ids if one.startswith("ref:"))
    if ids and not has_pair:
        raise DataError(
            f"{name}: the subset {TIES} has no row tied:N with its reference row ref:N; expected at least one"
        )
