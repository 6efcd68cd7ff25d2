"""Reads raw rows with their line numbers from a file, a folder or a hub name; dialects.py interprets their columns.

Formats: .jsonl, .jsonl.gz, .json (a list, an object with one list, or lines), .parquet, .csv, .txt, a folder of these
(searched recursively), or a hub name (`owner/name`, its train split) where no such path exists. A .txt holds
documents: one a paragraph (with blank lines between), or one a line in a file without blank lines.

Line numbers are the file's own for .jsonl, .csv and .txt; for .json, .parquet and the hub the row's, from 1.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_schemas.errors import ConfigError, DataError, WrongValue

FORMATS = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv", ".txt")


@dataclass(frozen=True)
class Line:
    """One raw row of a file."""

    number: int
    raw: object
    error: WrongValue | None = None  # where the line itself cannot be read


def describe(value: object) -> str:
    """A value in a few words, for an error."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a mapping with {shorten(', '.join(map(str, value)))}" if value else "an empty mapping"
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return shorten(repr(value))


def shorten(text: str, limit: int = 80) -> str:
    """The text, cut to `limit` characters with an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def from_json(text: str, column: str) -> object:
    """The value of a JSON text. Raises WrongValue, naming the column, where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        place = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        raise WrongValue(column, f"{describe(text)} ({place})", "JSON") from None


def sources(paths: Iterable[str | Path]) -> Iterator[tuple[str, list[Line]]]:
    """Every file's name and lines; of a folder, all data files in it. Raises ConfigError for a path that is missing."""
    for given in paths:
        path = Path(given)
        if path.exists():
            for file in data_files(path):
                yield str(file), lines_of(file)
        elif re.fullmatch(r"[\w-]+/[\w.-]+", str(given)) and not format_of(path) and not path.parent.is_dir():
            yield str(given), _hub_lines(str(given))
        else:
            raise ConfigError(f"{given} does not exist (nor is it a hub name, owner/name)")


def data_files(path: Path) -> list[Path]:
    """The file itself, or the data files of a folder. Raises DataError for a folder without any."""
    if not path.is_dir():
        return [path]
    inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    files = sorted(file for file in inside if format_of(file) and not any(part[0] == "." for part in file.parts))
    if not files:
        raise DataError(f"{path} is a folder without data; expected {', '.join(FORMATS)} files in it")
    return [path / file for file in files]


def format_of(path: Path) -> str:
    """The ending of a known format, as in `.jsonl.gz`; the empty string for any other."""
    return next((ending for ending in FORMATS if path.name.lower().endswith(ending)), "")


def cannot_open(path: Path, error: OSError) -> str:
    """The message of an error for a file that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist"
    return f"{path} cannot be read ({error.strerror or error})"


def lines_of(path: Path) -> list[Line]:
    """All rows of a file. Raises DataError where it cannot be read in the format that its name says."""
    readers = {
        ".jsonl": json_lines,
        ".jsonl.gz": lambda path, content: json_lines(path, gzip.decompress(content)),
        ".json": _json_list,
        ".csv": _csv_lines,
        ".txt": _paragraphs,
    }
    ending = format_of(path)
    if not ending:
        raise DataError(f"{path} has no known format; expected one of {', '.join(FORMATS)}")
    try:
        if ending == ".parquet":
            return _parquet_lines(path)
        return readers[ending](path, path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a complete gzip file ({error})") from None
    except OSError as error:
        raise DataError(cannot_open(path, error)) from None


def json_lines(path: Path, content: bytes) -> list[Line]:
    """One row for each line that is not blank; a line that is not JSON carries its error."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    # Only \n ends a line: str.splitlines would also split at U+2028 inside a text.
    numbered = enumerate(content.split(b"\n"), start=1)
    return [_json_line(number, line) for number, line in numbered if line.strip()]


def _json_line(number: int, line: bytes) -> Line:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raw = line.decode("utf-8", errors="replace")
        return Line(number, raw, WrongValue("line", f"byte 0x{line[error.start]:02x} at {error.start + 1}", "UTF-8"))
    try:
        value = from_json(text, "line")
    except WrongValue as error:
        return Line(number, text, error)
    return Line(number, value, _not_unicode(value) if _may_hold_surrogates(text) else None)


def _may_hold_surrogates(text: str) -> bool:
    return "\\ud" in text or "\\uD" in text


def _not_unicode(value: object) -> WrongValue | None:
    """JSON can escape half a character, which neither a file nor a tokenizer accepts."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        return WrongValue("line", f"half a character (\\u{ord(error.object[error.start]):04x})", "whole characters")
    return None


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: found byte 0x{content[error.start]:02x}, expected UTF-8 text") from None


def _json_list(path: Path, content: bytes) -> list[Line]:
    text = _decoded(path, content)
    if not text.strip():
        return []
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = json_lines(path, content)
        if len(lines) > 1 and isinstance(lines[0].raw, dict):
            return lines  # JSON lines in a file named .json
        raise DataError(f"{path} is not JSON ({error})") from None
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise DataError(f"{path} holds {describe(value)}, expected a list of rows, or an object with one such list")
    doubtful = _may_hold_surrogates(text)
    return [Line(number, row, _not_unicode(row) if doubtful else None) for number, row in enumerate(value, start=1)]


def _csv_lines(path: Path, content: bytes) -> list[Line]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses a cell of more than 128 KiB
    reader = csv.reader(io.StringIO(_decoded(path, content), newline=""), strict=True)
    lines: list[Line] = []
    start = 0
    try:
        header = next(reader, [])
        start = reader.line_num
        for cells in reader:
            number, start = start + 1, reader.line_num
            if not cells:
                continue
            error = None
            if len(cells) != len(header):
                error = WrongValue("row", f"{len(cells)} cells", f"{len(header)}, as in the first line")
            raw = dict(zip(header, cells, strict=False)) if error is None else cells
            lines.append(Line(number, raw, error))
    except csv.Error as error:
        raise DataError(f"{path}:{start + 1} is not CSV ({error})") from None
    return lines


def _paragraphs(path: Path, content: bytes) -> list[Line]:
    lines = _decoded(path, content).rstrip().split("\n")
    by_line = all(line.strip() for line in lines)
    paragraphs: list[Line] = []
    gathered: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            gathered.append(line.rstrip("\r"))
        if gathered and (by_line or not line.strip()):
            first = number if by_line else number - len(gathered)
            paragraphs.append(Line(first, {"text": "\n".join(gathered)}))
            gathered = []
    return paragraphs


def _parquet_lines(path: Path) -> list[Line]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{path} is not a Parquet file ({shorten(' '.join(str(error).split()))})") from None
    return [Line(number, _unfilled(row)) for number, row in enumerate(table.to_pylist(), start=1)]


def _hub_lines(name: str) -> list[Line]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split="train")
    except Exception as error:  # the hub's client raises a dozen types
        cause = shorten(" ".join(str(error).split()), 200)
        raise ConfigError(f"{name}: no such path, and not available from the hub ({cause})") from None
    return [Line(number, _unfilled(row)) for number, row in enumerate(rows, start=1)]


def _unfilled(value: object) -> object:
    """The value without the None that Arrow adds to every nested mapping for keys that only other rows have."""
    if isinstance(value, dict):
        return {name: _unfilled(inner) for name, inner in value.items() if inner is not None}
    return [_unfilled(inner) for inner in value] if isinstance(value, list) else value
