"""Any file in any known dialect -> rows. Every complaint says file, line, field, what was found, what was expected.

The formats stand in formats.py, the dialects in dialects.py.
"""

import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from data_schemas.dialects import CONVERSATIONS, DOCUMENTS, PAIRS, PROMPTS, Dialect, carried_fields
from data_schemas.errors import ConfigError
from data_schemas.files import write_atomically
from data_schemas.formats import (
    Line,
    WrongValue,
    cannot_open,
    data_files,
    describe,
    format_of,
    json_lines,
    lines_of,
    shorten,
    sources,
)
from data_schemas.rows import Conversation, Document, PreferencePair, Prompt, Row

OnBadRow = Literal["error", "set_aside"]
Paths = str | Path | Sequence[str | Path]
T = TypeVar("T", bound=Row)

NUM_LINES_OF_A_LOOK = 50
MAX_BYTES_OF_A_LOOK = 4_000_000
ADVICE = "set on_bad_row: set_aside to skip and keep such rows in rejected_rows.jsonl"


@dataclass(frozen=True)
class BadRow:
    file: str
    line: int
    field: str
    found: str
    expected: str
    raw: Any

    @property
    def reason(self) -> str:
        return f"{self.field}: found {self.found}, expected {self.expected}"

    def to_json(self) -> str:
        """One line of rejected_rows.jsonl."""
        content = json.dumps(asdict(self) | {"reason": self.reason}, ensure_ascii=False, default=str)
        # Half a character, which may be why the row is here, goes back into its JSON escape.
        return content.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class ReadRows(Generic[T]):
    rows: list[T]
    bad: list[BadRow]


def read_documents(paths: Paths, *, on_bad_row: OnBadRow = "error") -> ReadRows[Document]:
    """Texts to pretrain on. Raises ConfigError, as all four readers do."""
    return _read(paths, Document, DOCUMENTS, on_bad_row)


def read_conversations(paths: Paths, *, on_bad_row: OnBadRow = "error") -> ReadRows[Conversation]:
    return _read(paths, Conversation, CONVERSATIONS, on_bad_row)


def read_prompts(paths: Paths, *, on_bad_row: OnBadRow = "error") -> ReadRows[Prompt]:
    return _read(paths, Prompt, PROMPTS, on_bad_row)


def read_pairs(paths: Paths, *, on_bad_row: OnBadRow = "error") -> ReadRows[PreferencePair]:
    return _read(paths, PreferencePair, PAIRS, on_bad_row)


def write_rows(path: Path, rows: Iterable[Row | BadRow]) -> int:
    """Writes one JSON object a line, whole or not at all; returns how many."""
    lines = [row.to_json() + "\n" for row in rows]
    write_atomically(path, "".join(lines))
    return len(lines)


def read_rows(path: Path, row_type: type[T]) -> list[T]:
    """The rows of a file that `write_rows` wrote: one type, no dialects, no bad rows. An empty file has none."""
    rows: list[T] = []
    try:
        with path.open("rb") as file:
            for line, content in enumerate(file, start=1):
                try:
                    rows.append(row_type.model_validate_json(content))
                except ValidationError as error:
                    bad = _first_error(error, row_type)
                    raise ConfigError(f"{path}:{line}: {bad} (not a stored {row_type.__name__})") from None
    except OSError as error:
        raise ConfigError(cannot_open(path, error)) from None
    return rows


def check_columns(path: Path, kind: str) -> None:
    """A look at the first rows of a local file or folder, not at all of it: ConfigError where it is not of `kind`.

    `kind` is one of documents, instructions, preferences, prompts, evaluation_prompts. Large files of a format that
    has to be read whole are left to the stage.
    """
    dialects = {"documents": DOCUMENTS, "instructions": CONVERSATIONS, "preferences": PAIRS}.get(kind, PROMPTS)
    for file in data_files(path):
        if format_of(file).startswith(".jsonl"):
            opened = gzip.open if file.name.endswith(".gz") else open
            try:
                with opened(file, "rb") as stream:
                    lines = json_lines(file, b"".join(itertools.islice(stream, NUM_LINES_OF_A_LOOK)))
            except (OSError, EOFError, zlib.error):
                lines = lines_of(file)  # says what is wrong with it
        elif format_of(file) != ".parquet" and file.stat().st_size < MAX_BYTES_OF_A_LOOK:
            lines = lines_of(file)
        else:
            continue
        if not lines:
            raise ConfigError(f"{file} is empty: it has no rows")
        _check_columns(str(file), lines, dialects)


# --- one file after the other ---


def _read(paths: Paths, row_type: type[T], dialects: tuple[Dialect, ...], on_bad_row: OnBadRow) -> ReadRows[T]:
    read: ReadRows[T] = ReadRows([], [])
    for name, lines in sources([paths] if isinstance(paths, str | Path) else paths):
        if not lines:
            raise ConfigError(f"{name} is empty: it has no rows")
        _check_columns(name, lines, dialects)
        for line in lines:
            try:
                read.rows.extend(_rows(line, row_type, dialects))
            except WrongValue as error:
                if on_bad_row == "error":
                    raise ConfigError(f"{name}:{line.number}: {error} ({ADVICE})") from None
                read.bad.append(BadRow(name, line.number, error.field, error.found, error.expected, line.raw))
    return read


def _check_columns(name: str, lines: Sequence[Line], dialects: tuple[Dialect, ...]) -> None:
    """Raises ConfigError where no row of a file has the columns: that is not a bad row but another kind of file."""
    mappings = [line.raw for line in lines if isinstance(line.raw, dict)]
    if mappings and not any(dialect.is_named(raw) for raw in mappings for dialect in dialects):
        found = ", ".join(dict.fromkeys(str(column) for raw in mappings for column in raw)) or "none"
        raise ConfigError(f"{name} has the columns {shorten(found, 200)}; expected {_accepted(dialects)}")


def _accepted(dialects: tuple[Dialect, ...]) -> str:
    return " | ".join(
        " + ".join(dialect.columns) + (f" (without {dialect.without})" if dialect.without else "")
        for dialect in dialects
    )


def _rows(line: Line, row_type: type[T], dialects: tuple[Dialect, ...]) -> list[T]:
    """The rows that a line gives: one, but for a dialog of several comparisons."""
    if line.error:
        raise line.error
    raw = line.raw
    if not isinstance(raw, dict):
        raise WrongValue("row", describe(raw), "a mapping of columns to values")
    dialect = next((dialect for dialect in dialects if dialect.matches(raw)), None)
    if dialect is None:
        named = next((dialect for dialect in dialects if dialect.is_named(raw)), None)
        if named is not None:
            raise WrongValue(next(name for name in named.columns if raw[name] is None), "nothing", "a value")
        raise WrongValue("columns", shorten(", ".join(map(str, raw))) or "none", _accepted(dialects))
    try:
        converted = dialect.convert(raw)
        all_fields = converted if isinstance(converted, list) else [converted]
        return [row_type.model_validate(carried_fields(raw, row_type) | fields) for fields in all_fields]
    except ValidationError as error:
        raise _first_error(error, row_type) from None


# --- saying what was found ---

EXPECTED = {
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "missing": "a value",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than_equal": "{ge:g} or more",
    "less_than_equal": "{le:g} or less",
    "extra_forbidden": "no such field",
    "json_invalid": "one JSON object",
}
# What rows.py says of a row as a whole: its words -> field, found, expected.
ROW_ERRORS = {
    "message is empty": ("", "an empty message", "text"),
    "text is empty": ("text", "empty text", "text"),
    "no messages": ("", "no messages", "at least one"),
    "no user message": ("", "no user message", "at least one"),
    "can only come first": ("", "a system message after the first message", "it only at the start"),
    "ranking are identical": ("ranking", "two identical answers", "different answers"),
    "are identical": ("chosen, rejected", "two identical answers", "two different answers"),
    "chosen does not end": ("chosen", "an answer without a last assistant message", "one that ends with it"),
    "rejected does not end": ("rejected", "an answer without a last assistant message", "one that ends with it"),
}


def _first_error(error: ValidationError, row_type: type[Row]) -> WrongValue:
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or next(iter(row_type.model_fields))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        for words, (named, found, expected) in ROW_ERRORS.items():
            if words in message:
                return WrongValue(named or field, found, expected)
        found, _, expected = message.partition(", expected ")
        return WrongValue(field, found, expected or "a valid row")
    found = "nothing" if first["type"] == "missing" else describe(first["input"])
    context = first.get("ctx", {})
    if first["type"] == "literal_error":
        return WrongValue(field, found, context.get("expected", message))
    if first["type"] == "json_invalid":
        field = "line"
    words = EXPECTED.get(first["type"])
    return WrongValue(field, found, words.format(**context) if words else message.removeprefix("Input should be "))
