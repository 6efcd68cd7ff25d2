"""Reads rows from any file in any known dialect. An error names file, line, field, what was found and expected.

The file formats are in formats.py, the dialects in dialects.py, and what the rows of a kind may be in row_kinds.py.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import ValidationError

from data_schemas.dialects import CONVERSATIONS, DOCUMENTS, PAIRS, PROMPTS, Dialect
from data_schemas.disk_list import DiskList
from data_schemas.errors import DataError, SetAside, WrongValue
from data_schemas.files import writing_atomically
from data_schemas.formats import Line, cannot_open, describe
from data_schemas.known_columns import check_names
from data_schemas.labels import pairs_of_labels
from data_schemas.line_files import as_prompts
from data_schemas.nesting import is_too_deep
from data_schemas.row_errors import first_error
from data_schemas.row_kinds import check_dialects, check_share, rows_of
from data_schemas.rows import Conversation, Document, PreferencePair, Prompt, Row
from data_schemas.sources import Source, SourceValue, short_name, sources
from data_schemas.splitting import num_copies
from data_schemas.text import listed, printable

OnBadRow = Literal["error", "set_aside"]
Paths = SourceValue | Sequence[SourceValue]
T = TypeVar("T", bound=Row)
Keep = Callable[[T, int, str, int], None]  # takes a row, how often it counts, its file, and its line there
log = logging.getLogger(__name__)

NUM_REASONS = 3  # why rows are set aside, most frequent first, in a warning
ADVICE = (
    "set data.on_bad_row: set_aside in a recipe, or --on_bad_row set_aside of a stage, to skip such rows and keep them "
    "in rejected_rows.jsonl"
)
ONE_FILE_ADVICE = "correct or remove the row"  # of a command that reads a file without a recipe


@dataclass(frozen=True)
class BadRow:
    """A row that was set aside, with the reason."""

    file: str
    line: int
    field: str
    found: str
    expected: str
    raw: object

    @property
    def reason(self) -> str:
        """One sentence: the field, what was found and what was expected."""
        return f"{self.field}: found {self.found}, expected {self.expected}"

    def to_json(self) -> str:
        """One line of rejected_rows.jsonl."""
        content = json.dumps(asdict(self) | {"reason": self.reason}, ensure_ascii=False, default=str)
        # Half a character, which may be the reason why the row is here, is written as its JSON escape.
        return content.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class ReadRows(Generic[T]):
    """The rows of all files in order, those that were set aside, and what else a user should know of the files."""

    rows: list[T]
    bad: DiskList[BadRow]
    ignored: dict[str, list[str]] = field(default_factory=dict)  # file -> its columns that nothing reads
    notes: list[str] = field(default_factory=list)  # one line for each file with such columns
    warnings: list[str] = field(default_factory=list)  # one line for each file with rows that are set aside


def read_documents(
    paths: Paths, *, on_bad_row: OnBadRow = "error", keep: Keep[Document] | None = None, with_sources: bool = False
) -> ReadRows[Document]:
    """Texts to pretrain on. With `keep`, this takes the rows one after the other, and the result has none. With
    `with_sources`, a row has the short name of its source, unless it has another `source` itself.

    Like the other three readers, raises ConfigError for a path that does not exist, or a name of `columns` that no
    format of rows has, and DataError for a file that cannot be read, has other columns, or has a bad row and
    on_bad_row is "error". `advice` ends the last message.
    """
    return _read(paths, Document, DOCUMENTS, on_bad_row, keep=keep, with_sources=with_sources)


def read_conversations(
    paths: Paths,
    *,
    on_bad_row: OnBadRow = "error",
    advice: str = ADVICE,
    keep: Keep[Conversation] | None = None,
    with_sources: bool = False,
) -> ReadRows[Conversation]:
    """Dialogs to train on, for SFT."""
    return _read(paths, Conversation, CONVERSATIONS, on_bad_row, advice, keep, with_sources=with_sources)


def read_prompts(
    paths: Paths, *, on_bad_row: OnBadRow = "error", advice: str = ADVICE, keep: Keep[Prompt] | None = None
) -> ReadRows[Prompt]:
    """Prompts to sample answers for."""
    return _read(paths, Prompt, PROMPTS, on_bad_row, advice, keep)


def read_pairs(
    paths: Paths, *, on_bad_row: OnBadRow = "error", advice: str = ADVICE, keep: Keep[PreferencePair] | None = None
) -> ReadRows[PreferencePair]:
    """Preference pairs and rankings."""
    return _read(paths, PreferencePair, PAIRS, on_bad_row, advice, keep)


def warn_of_ignored(ignored: Mapping[str, Sequence[str]]) -> None:
    """Logs a warning for each file with columns that are not read, and so are not in what is written."""
    for name, columns in ignored.items():
        log.warning("%s: the columns %s are not read, and are not written", name, listed(columns))


def write_rows(path: Path, rows: Iterable[Row | BadRow]) -> int:
    """Writes one JSON object a line, all or none of them; returns their number."""
    number = 0
    with writing_atomically(path) as file:
        for row in rows:
            file.write(f"{row.to_json()}\n".encode())
            number += 1
    return number


def read_rows(path: Path, row_type: type[T], *, ignored: dict[str, None] | None = None) -> list[T]:
    """The rows of a file that `write_rows` wrote: of one type, in no other dialect. An empty file has none.

    Columns that others have added are refused or, where `ignored` is given, left out and added to it.

    Raises DataError for a file that cannot be read, and for the first line that is not such a row.
    """
    rows: list[T] = []
    try:
        with path.open("rb") as file:
            for line, content in enumerate(file, start=1):
                try:
                    rows.append(row_type.model_validate_json(_without_others(content, row_type, ignored)))
                except ValidationError as error:
                    bad = first_error(error, row_type)
                    raise DataError(f"{path}:{line}: {bad} (not a stored {row_type.__name__})") from None
    except OSError as error:
        raise DataError(cannot_open(path, error)) from None
    return rows


def _without_others(content: bytes, row_type: type[Row], ignored: dict[str, None] | None) -> bytes | str:
    """A line without the columns that the type has not, which are added to `ignored`; unchanged without it."""
    if ignored is None:
        return content
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError):
        return content  # whoever validates it reports why
    if not isinstance(raw, dict) or not (others := [name for name in raw if name not in row_type.model_fields]):
        return content
    ignored.update(dict.fromkeys(others))
    return json.dumps({name: value for name, value in raw.items() if name not in others})


def _read(
    paths: Paths,
    row_type: type[T],
    dialects: tuple[Dialect, ...],
    on_bad_row: OnBadRow,
    advice: str = ADVICE,
    keep: Keep[T] | None = None,
    *,
    with_sources: bool = False,
) -> ReadRows[T]:
    read: ReadRows[T] = ReadRows([], DiskList())
    keep = keep or (lambda row, copies, file, line: read.rows.extend([row] * copies))
    given = [paths] if isinstance(paths, str | Path | Mapping) else paths
    all_sources = list(map(Source.of, given)) if with_sources else []
    for source, name, lines in sources(given):
        source_name = short_name(source, all_sources) if with_sources else None
        check_share(source, row_type)
        check_names(source.columns, where=source.path)
        if not lines:
            raise DataError(f"{name} has no rows")
        lines = as_prompts(name, lines) if dialects is PROMPTS else lines
        check_dialects(name, lines, dialects)
        ignored, reasons = dict[str, None](), Counter[str]()
        for line in pairs_of_labels(lines) if dialects is PAIRS else lines:
            try:
                rows, set_aside = rows_of(line, row_type, dialects, ignored)
            except WrongValue as error:
                if on_bad_row == "error" and not isinstance(error, SetAside):
                    raise DataError(f"{name}:{line.number}: {error} ({advice})") from None
                rows, set_aside = [], [error]
            for row in rows:
                row = _with(_with(row, "tag", source.tag), "source", source_name)
                keep(row, num_copies(_unit_of(row), source.share), name, line.number)
            for reason in set_aside:
                read.bad.append(_bad_row(name, line, reason))
                reasons[f"{reason.field}: {reason.found}"] += 1
        if ignored:
            read.ignored[name] = list(ignored)
            read.notes.append(f"{name}: ignored columns: {listed(ignored)}")
            log.info("%s", read.notes[-1])
        if reasons:
            read.warnings.append(_report(name, reasons, len(lines)))
            log.warning("%s", read.warnings[-1])
    return read


def _with(row: T, name: str, value: str | None) -> T:
    """The row with what its source says in a field, unless it says that itself, or has no such field."""
    return row.model_copy(update={name: value}) if value and not getattr(row, name, value) else row


def _unit_of(row: Row) -> str:
    """What a share keeps or leaves out as one: all rows of a dialog, equal documents."""
    return row.text if isinstance(row, Document) else str(getattr(row, "group_id", ""))


def _bad_row(name: str, line: Line, error: WrongValue) -> BadRow:
    raw = line.raw if not is_too_deep(line.raw) else describe(line.raw)  # JSON could not write it either
    return BadRow(name, line.number, error.field, error.found, error.expected, raw)


def _report(name: str, reasons: Counter[str], num_rows: int) -> str:
    """How many rows of a file are set aside, and the most frequent reasons."""
    frequent = reasons.most_common(NUM_REASONS)
    counted = "; ".join(f"{reason} ({count})" for reason, count in frequent)
    more = "; …" if len(reasons) > len(frequent) else ""
    return printable(f"{name}: {reasons.total()} set aside of {num_rows} rows: {counted}{more}")
