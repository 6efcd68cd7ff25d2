"""From a file, a folder or a hub name to raw rows with their line numbers. What they mean is the dialects' part.

Formats: .jsonl, .jsonl.gz, .json (a list, an object with one list, or lines), .parquet, .csv, .txt, a folder of these
(searched recursively), or a hub name (`owner/name`, its train split) where no such path exists. A .txt is documents:
one a paragraph (blank lines between); in a file without a blank line, one a line.

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
from typing import Any

from data_schemas.errors import ConfigError

FORMATS = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv", ".txt")


class WrongValue(ValueError):
    """Why a row is not one; who reads the file adds its name and the line."""

    def __init__(self, field: str, found: str, expected: str) -> None:
        super().__init__(f"{field}: found {found}, expected {expected}")
        self.field, self.found, self.expected = field, found, expected


@dataclass(frozen=True)
class Line:
    number: int
    raw: Any
    error: WrongValue | None = None  # the line itself cannot be read


def describe(value: Any) -> str:
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
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def from_json(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        place = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        raise WrongValue(column, f"{describe(text)} ({place})", "JSON") from None


def sources(paths: Iterable[str | Path]) -> Iterator[tuple[str, list[Line]]]:
    """Every file's name and lines, folders opened up."""
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
    """The file itself, or the data files of a folder."""
    if not path.is_dir():
        return [path]
    inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    files = sorted(file for file in inside if format_of(file) and not any(part[0] == "." for part in file.parts))
    if not files:
        raise ConfigError(f"{path} is a folder without data; expected {', '.join(FORMATS)} files in it")
    return [path / file for file in files]


def format_of(path: Path) -> str:
    return next((ending for ending in FORMATS if path.name.lower().endswith(ending)), "")


def cannot_open(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist"
    return f"{path} cannot be read ({error.strerror or error})"


def lines_of(path: Path) -> list[Line]:
    readers = {
        ".jsonl": json_lines,
        ".jsonl.gz": lambda path, content: json_lines(path, gzip.decompress(content)),
        ".json": _json_list,
        ".csv": _csv_lines,
        ".txt": _paragraphs,
    }
    ending = format_of(path)
    if not ending:
        raise ConfigError(f"{path} is of no known format; expected one of {', '.join(FORMATS)}")
    try:
        if ending == ".parquet":
            return _parquet_lines(path)
        return readers[ending](path, path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} is not a whole gzip file ({error})") from None
    except OSError as error:
        raise ConfigError(cannot_open(path, error)) from None


def json_lines(path: Path, content: bytes) -> list[Line]:
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


def _not_unicode(value: Any) -> WrongValue | None:
    """JSON can escape half a character, which neither a file nor a tokenizer takes."""
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
        raise ConfigError(f"{path}:{line}: found byte 0x{content[error.start]:02x}, expected UTF-8 text") from None


def _json_list(path: Path, content: bytes) -> list[Line]:
    text = _decoded(path, content)
    if not text.strip():
        return []
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = json_lines(path, content)
        if len(lines) > 1 and isinstance(lines[0].raw, dict):
            return lines  # JSON lines under the name .json
        raise ConfigError(f"{path} is not JSON ({error})") from None
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise ConfigError(f"{path} holds {describe(value)}, expected a list of rows, or an object with one such list")
    doubtful = _may_hold_surrogates(text)
    return [Line(number, row, _not_unicode(row) if doubtful else None) for number, row in enumerate(value, start=1)]


def _csv_lines(path: Path, content: bytes) -> list[Line]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses a cell of 128 KiB
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
        raise ConfigError(f"{path}:{start + 1} is not CSV ({error})") from None
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
        raise ConfigError(f"{path} is not a Parquet file ({shorten(' '.join(str(error).split()))})") from None
    return [Line(number, _unfilled(row)) for number, row in enumerate(table.to_pylist(), start=1)]


def _hub_lines(name: str) -> list[Line]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split="train")
    except Exception as error:  # the hub's client raises a dozen kinds; all of them end here, in one line
        cause = shorten(" ".join(str(error).split()), 200)
        raise ConfigError(f"{name}: no such path, and not to be had from the hub ({cause})") from None
    return [Line(number, _unfilled(row)) for number, row in enumerate(rows, start=1)]


def _unfilled(value: Any) -> Any:
    """Without the None that Arrow puts in every nested mapping for keys that only other rows have."""
    if isinstance(value, dict):
        return {name: _unfilled(inner) for name, inner in value.items() if inner is not None}
    return [_unfilled(inner) for inner in value] if isinstance(value, list) else value
