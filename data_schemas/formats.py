"""File formats of rows: which there are, what a raw row is, and JSON in UTF-8.

Formats: .jsonl, .json (a list, an object with one list, or lines), .csv, .tsv, .txt, each also compressed as .gz or
.zst; .parquet and .arrow. A .txt holds documents: one a paragraph (with blank lines between), or one a line in a file
without blank lines; read as prompts, it holds one a line. line_files.py reads .jsonl and .txt, json_files.py .json,
tables.py tables, hub.py data sets of the hub; folders.py chooses the files of a folder, sources.py puts them together,
dialects.py interprets the columns of rows.

Line numbers are the file's own for .jsonl, .csv, .tsv and .txt; for .json, .parquet, .arrow and the hub the row's,
from 1.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_schemas.errors import DataError, WrongValue
from data_schemas.files import absent
from data_schemas.text import listed

BOM = b"\xef\xbb\xbf"  # that some programs write before a text
COMPRESSIONS = (".gz", ".zst")
TEXT_FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
TABLE_FORMATS = (".parquet", ".arrow")  # binary, compressed in themselves
FORMATS = (*TEXT_FORMATS, *TABLE_FORMATS)
EXPECTED_FORMATS = f"{', '.join(FORMATS)} (the first {len(TEXT_FORMATS)} also with {' or '.join(COMPRESSIONS)})"


class RepeatedKey(ValueError):
    """A key that is in one JSON mapping twice: Python's own parser would keep the last value only."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {shorten(repr(key))} twice in one mapping")


def mapping_of(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of a JSON text's keys and values. Raises RepeatedKey."""
    mapping = dict(items)
    if len(mapping) != len(items):
        raise RepeatedKey(first_repeated(name for name, _ in items))
    return mapping


def first_repeated(names: Iterable[str]) -> str:
    """The first name that was there before; the empty string where all are different."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), "")


JSON = json.JSONDecoder(object_pairs_hook=mapping_of)


@dataclass(frozen=True)
class Line:
    """One raw row of a file."""

    number: int
    raw: object
    error: WrongValue | None = None  # where the line itself cannot be read


class Lines(Protocol):
    """The rows of a file, in memory or read again in each loop."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Line]: ...


def describe(value: object) -> str:
    """A value in a few words, for an error."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a mapping with {shorten(listed(map(str, value)))}" if value else "an empty mapping"
    if isinstance(value, bytes):
        return f"binary data of {len(value)} bytes"
    return shorten(repr(value))


def shorten(text: str, limit: int = 80) -> str:
    """The text, cut to `limit` characters with an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def is_number(value: object) -> bool:
    """Whether the value is a finite number that a float can hold; true and false are none."""
    # An integer may be too large for a float, where isfinite() raises.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def from_json(text: str, column: str) -> object:
    """The value of a JSON text. Raises WrongValue, naming the column, where it is not JSON, or repeats a key."""
    try:
        return JSON.decode(text)
    except RepeatedKey as error:
        raise WrongValue(column, str(error), "each key once") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        problem = error
        if isinstance(error, json.JSONDecodeError):
            problem = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
        raise WrongValue(column, f"{describe(text)} ({problem})", "JSON") from None


def format_of(path: Path) -> str:
    """The ending of a known format without its compression, as in `.jsonl`; the empty string for any other name."""
    name = path.name.lower()
    plain = name.removesuffix(compression_of(path))
    endings = TEXT_FORMATS if plain != name else FORMATS
    return next((ending for ending in endings if plain.endswith(ending)), "")


def compression_of(path: Path) -> str:
    """`.gz`, `.zst`, or the empty string."""
    return path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""


def cannot_open(path: Path, error: OSError) -> str:
    """The message of an error for a file that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return f"{path} {absent(path)}"
    return f"{path} cannot be read ({error.strerror or error})"


def json_lines(content: bytes) -> list[Line]:
    """One row for each line that is not blank; a line that is not JSON carries its error."""
    content = content.removeprefix(BOM)
    # Only \n ends a line: str.splitlines would also split at U+2028 inside a text.
    numbered = enumerate(content.split(b"\n"), start=1)
    return [json_line(number, line) for number, line in numbered if line.strip()]


def json_line(number: int, line: bytes) -> Line:
    """A row of JSON lines; one that is not JSON carries its error."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raw = line.decode("utf-8", errors="replace")
        return Line(number, raw, WrongValue("line", f"byte 0x{line[error.start]:02x} at {error.start + 1}", "UTF-8"))
    try:
        value = from_json(text, "line")
    except WrongValue as error:
        return Line(number, text, error)
    return Line(number, value, not_unicode(value) if may_hold_surrogates(text) else None)


def may_hold_surrogates(text: str, start: int = 0, end: int | None = None) -> bool:
    """Whether a part of a JSON text has an escape that may be half a character."""
    return text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0


def not_unicode(value: object) -> WrongValue | None:
    """JSON can escape half a character, which neither a file nor a tokenizer accepts."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        return WrongValue("line", f"half a character (\\u{ord(error.object[error.start]):04x})", "whole characters")
    return None


def decoded(path: Path, content: bytes, line: int = 1) -> str:
    """The text of UTF-8 bytes, which begin in this line. Raises DataError, with the line, for any other."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise DataError(f"{path}:{line}: {not_utf8(content[error.start])}") from None


def not_utf8(byte: int) -> str:
    """The message for a byte of a file that is not UTF-8. Spreadsheets on Windows write cp1252 in western Europe."""
    remedy = 'save it as "CSV UTF-8", or convert it: iconv -f cp1252 -t utf-8'
    return f"found byte 0x{byte:02x}, expected UTF-8 text; {remedy}"
