"""The kinds of rows: what a raw row of a file becomes, by the dialects that the kind may be in."""

from typing import TypeVar

from pydantic import ValidationError

from data_schemas.dialects import (
    CONVERSATIONS,
    DOCUMENTS,
    PAIRS,
    PROMPTS,
    Dialect,
    accepted,
    carried_fields,
    check_row,
    ignored_columns,
)
from data_schemas.errors import ConfigError, SetAside, UnknownColumns, WrongValue
from data_schemas.formats import Line, Lines, describe, shorten
from data_schemas.known_columns import misspelt
from data_schemas.messages import Fields
from data_schemas.nesting import check_depth
from data_schemas.row_errors import first_error
from data_schemas.rows import Conversation, Document, PreferencePair, Prompt, Row
from data_schemas.sources import Source
from data_schemas.text import listed

T = TypeVar("T", bound=Row)

# What the rows of a kind become, and the dialects that they may be in.
KINDS: dict[str, tuple[type[Row], tuple[Dialect, ...]]] = {
    "documents": (Document, DOCUMENTS),
    "instructions": (Conversation, CONVERSATIONS),
    "preferences": (PreferencePair, PAIRS),
    "prompts": (Prompt, PROMPTS),
    "evaluation_prompts": (Prompt, PROMPTS),
}


def check_share(source: Source, row_type: type[Row]) -> None:
    """Raises ConfigError where the share of a source repeats rows of a type that may not be repeated."""
    if source.share > 1 and row_type not in (Document, Conversation):
        raise ConfigError(
            f"{source.path}: share={source.share:g} repeats rows, which only documents and instructions allow; "
            "expected a share of at most 1"
        )


def check_dialects(name: str, lines: Lines, dialects: tuple[Dialect, ...]) -> None:
    """Raises DataError where no row of a file has the columns: then it is not a bad row but another kind of file."""
    columns: dict[str, None] | None = None
    for line in lines:
        if isinstance(line.raw, dict):
            if any(dialect.is_named(line.raw) for dialect in dialects):
                return
            columns = (columns or {}) | dict.fromkeys(map(str, line.raw))
    if columns is not None:
        found = listed(columns) or "none"
        raise UnknownColumns(
            f"{name} has the columns {shorten(found, 200)}; expected {accepted(dialects)}{misspelt(columns)}"
        )


def rows_of(
    line: Line, row_type: type[T], dialects: tuple[Dialect, ...], ignored: dict[str, None]
) -> tuple[list[T], list[SetAside]]:
    """The rows of a line: several for a dialog with several comparisons, else one; and why parts are set aside.

    Adds the names of the columns that nothing reads to `ignored`. Raises WrongValue for a bad row.
    """
    if line.error:
        raise line.error
    raw = line.raw
    if not isinstance(raw, dict):
        raise WrongValue("row", describe(raw), "a mapping of columns to values")
    check_depth(raw, "row")
    dialect = next((dialect for dialect in dialects if dialect.matches(raw)), None)
    if dialect is None:
        named = next((dialect for dialect in dialects if dialect.is_named(raw)), None)
        if named is not None:
            raise WrongValue(next(name for name in named.columns if raw[name] is None), "nothing", "a value")
        raise WrongValue("columns", shorten(listed(map(str, raw))) or "none", accepted(dialects))
    ignored.update(dict.fromkeys(ignored_columns(raw, dialect, row_type)))
    check_row(raw, row_type)
    try:
        converted = dialect.convert(raw)
        parts = [converted] if isinstance(converted, dict) else converted
        rows = [_row(raw, part, row_type) for part in parts if not isinstance(part, SetAside)]
        return rows, [part for part in parts if isinstance(part, SetAside)]
    except ValidationError as error:
        raise first_error(error, row_type) from None


def _row(raw: Fields, converted: Fields, row_type: type[T]) -> T:
    fields = carried_fields(raw, row_type) | converted
    if fields.get("reference", "") is None:
        del fields["reference"]
    return row_type.model_validate(fields)
