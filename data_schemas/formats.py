"""File formats of rows: which there are, and the readers of those that are JSON or text.

Formats: .jsonl, .json (a list, an object with one list, or lines), .csv, .tsv, .txt, each also compressed as .gz or
.zst; .parquet and .arrow. A .txt holds documents: one a paragraph (with blank lines between), or one a line in a file
without blank lines; read as prompts, it holds one a line. tables.py reads tables, folders.py chooses the files of a
folder, hub.py reads data sets of the hub, sources.py puts them together, dialects.py interprets the columns of rows.

Line numbers are the file's own for .jsonl, .csv, .tsv and .txt; for .json, .parquet, .arrow and the hub the row's,
from 1.
"""

import gzip
import io
import itertools
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from data_schemas.errors import DataError, WrongValue
from data_schemas.files import check_regular
from data_schemas.zstd import has_complete_frames, open_zstd

COMPRESSIONS = (".gz", ".zst")
TEXT_FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
TABLE_FORMATS = (".parquet", ".arrow")  # binary, compressed in themselves
FORMATS = (*TEXT_FORMATS, *TABLE_FORMATS)
EXPECTED_FORMATS = f"{', '.join(FORMATS)} (the first {len(TEXT_FORMATS)} also with {' or '.join(COMPRESSIONS)})"


class RepeatedKey(ValueError):
    """A key that is in one JSON mapping twice: Python's own parser would keep the last value only."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {shorten(repr(key))} twice in one mapping")


def _mapping(items: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(items)
    if len(mapping) != len(items):
        raise RepeatedKey(first_repeated(name for name, _ in items))
    return mapping


def first_repeated(names: Iterable[str]) -> str:
    """The first name that was there before; the empty string where all are different."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), "")


_JSON = json.JSONDecoder(object_pairs_hook=_mapping)


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
    """The value of a JSON text. Raises WrongValue, naming the column, where it is not JSON, or repeats a key."""
    try:
        return _JSON.decode(text)
    except RepeatedKey as error:
        raise WrongValue(column, str(error), "each key once") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        place = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        raise WrongValue(column, f"{describe(text)} ({place})", "JSON") from None


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
        return f"{path} does not exist"
    return f"{path} cannot be read ({error.strerror or error})"


def read_file(path: Path) -> bytes:
    """The content of a file after decompression. Raises as `open_plain` does."""
    with open_plain(path) as file:
        try:
            return file.read()
        except OSError as error:  # as of a folder
            raise DataError(cannot_open(path, error)) from None


def open_plain(path: Path) -> IO[bytes]:
    """The file, or its decompressed content in an unnamed temporary file.

    Raises DataError for a file that is not a regular one, cannot be opened, or is no complete file of its compression.
    """
    check_regular(path)
    compression = compression_of(path)
    if compression == ".zst" and not has_complete_frames(path):
        raise DataError(f"{path} is not a complete zstd file; compress or copy it again")
    try:
        if not compression:
            return path.open("rb")
        with _opened(path) as stream:
            plain = tempfile.TemporaryFile()  # noqa: SIM115 - as long as its reader
            shutil.copyfileobj(stream, plain, 1 << 20)
        plain.seek(0)
        return plain
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a complete gzip file ({error})") from None
    except OSError as error:
        if compression == ".zst" and error.errno is None:
            raise DataError(f"{path} is not a zstd file ({shorten(' '.join(str(error).split()))})") from None
        raise DataError(cannot_open(path, error)) from None


def first_lines(path: Path, number: int) -> bytes:
    """The first lines of a file after decompression. Raises OSError, EOFError or zlib.error where it is damaged."""
    check_regular(path)
    with _opened(path) as file:
        return b"".join(itertools.islice(file, number))


def _opened(path: Path) -> BinaryIO:
    if compression_of(path) == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if compression_of(path) == ".zst":
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, open_zstd(path))))
    return path.open("rb")


def json_lines(path: Path, content: bytes) -> list[Line]:
    """One row for each line that is not blank; a line that is not JSON carries its error."""
    content = content.removeprefix(b"\xef\xbb\xbf")
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


def decoded(path: Path, content: bytes) -> str:
    """The text of UTF-8 bytes. Raises DataError, with the line, for any other."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: found byte 0x{content[error.start]:02x}, expected UTF-8 text") from None


def json_rows(path: Path, content: bytes) -> list[Line]:
    """The rows of a JSON list, of an object with one list, or of JSON lines. Raises DataError for any other content.

    A row in which a key is repeated carries its error, as one with half a character does.
    """
    text = decoded(path, content)
    if not text.strip():
        return []
    has_repeated = False
    try:
        try:
            value = _JSON.decode(text)
        except RepeatedKey:
            has_repeated = True
            value = _MARKING_JSON.decode(text)
    except (ValueError, RecursionError) as error:
        lines = json_lines(path, content)
        if len(lines) > 1 and (has_repeated or isinstance(lines[0].raw, dict)):
            return lines  # JSON lines in a file named .json
        raise DataError(f"{path} is not JSON ({error})") from None
    if isinstance(value, _Repeated):
        raise DataError(f"{path} holds {value.error}, expected each key once; rename one of them")
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise DataError(f"{path} holds {describe(value)}, expected a list of rows, or an object with one such list")
    doubtful = _may_hold_surrogates(text)
    return [
        Line(number, row, (_repeated_in(row) if has_repeated else None) or (_not_unicode(row) if doubtful else None))
        for number, row in enumerate(value, start=1)
    ]


class _Repeated(dict[str, Any]):
    """A mapping whose JSON text has a key twice."""

    error: RepeatedKey


def _marked(items: list[tuple[str, Any]]) -> dict[str, Any]:
    try:
        return _mapping(items)
    except RepeatedKey as error:
        mapping = _Repeated(items)
        mapping.error = error
        return mapping


_MARKING_JSON = json.JSONDecoder(object_pairs_hook=_marked)


def _repeated_in(value: object) -> WrongValue | None:
    """The error of a row in which a mapping has a key twice."""
    level = [value]
    while level:
        inside: list[object] = []
        for outer in level:
            if isinstance(outer, _Repeated):
                return WrongValue("row", str(outer.error), "each key once")
            if isinstance(outer, dict | list):
                inside.extend(outer.values() if isinstance(outer, dict) else outer)
        level = inside
    return None


def paragraphs(path: Path, content: bytes) -> list[Line]:
    """The documents of a text."""
    lines = decoded(path, content).rstrip().split("\n")
    by_line = all(line.strip() for line in lines)
    found: list[Line] = []
    gathered: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            gathered.append(line.rstrip("\r"))
        if gathered and (by_line or not line.strip()):
            first = number if by_line else number - len(gathered)
            found.append(Line(first, {"text": "\n".join(gathered)}))
            gathered = []
    return found


def as_prompts(name: str, lines: Sequence[Line]) -> Sequence[Line]:
    """The documents of a text file as prompts, one a line; the rows of any other file as they are."""
    if format_of(Path(name)) != ".txt" or not all(isinstance(line.raw, dict) and "text" in line.raw for line in lines):
        return lines  # also where `columns` calls a document a prompt
    return [
        Line(line.number + n, {"prompt": prompt})
        for line in lines
        for n, prompt in enumerate(cast(dict[str, str], line.raw)["text"].split("\n"))
    ]
