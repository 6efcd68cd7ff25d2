"""Reads tables: .csv and .tsv with a header line, .parquet, and .arrow (a file or a stream of Arrow's IPC format)."""

import csv
import io
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_schemas.errors import DataError, WrongValue
from data_schemas.formats import TABLE_FORMATS, Line, decoded, first_lines, first_repeated, shorten
from data_schemas.line_files import Lines

ROWS_OF_BATCH = 1024  # of a binary table, as Python values at a time
DELIMITERS = {".csv": ",", ".tsv": "\t"}
ARROW_FILE = b"ARROW1"  # the first bytes of an IPC file; a stream has none


def csv_rows(path: Path, content: bytes) -> list[Line]:
    """The rows of a CSV. Raises DataError, with the line, where quotes are not closed or not doubled.

    Spreadsheets write semicolons where the comma is the decimal mark: the first of comma, semicolon and tab that
    divides the header line separates the cells.
    """
    text = _stream(path, content)
    delimiters = (mark for mark in (DELIMITERS[".csv"], ";", "\t") if len(_first_cells(text, mark)) > 1)
    return _separated(path, text, delimiter=next(delimiters, DELIMITERS[".csv"]), quoting=csv.QUOTE_MINIMAL)


def _stream(path: Path, content: bytes) -> io.StringIO:
    return io.StringIO(decoded(path, content), newline="")


def _first_cells(text: io.StringIO, delimiter: str) -> list[str]:
    text.seek(0)
    try:
        return next(csv.reader(text, delimiter=delimiter), [])
    except csv.Error:
        return []  # whoever reads the rows reports it


def tsv_rows(path: Path, content: bytes) -> list[Line]:
    """The rows of a TSV. Spreadsheets quote cells of a TSV as those of a CSV; other programs write quotes as they are.

    So the file is read as quoted if that gives at least as many rows of the header's length.
    """
    text = _stream(path, content)
    plain = _separated(path, text, delimiter=DELIMITERS[".tsv"], quoting=csv.QUOTE_NONE)
    if b'"' not in content:
        return plain
    try:
        quoted = _separated(path, text, delimiter=DELIMITERS[".tsv"], quoting=csv.QUOTE_MINIMAL)
    except DataError:
        return plain
    return quoted if _num_bad(quoted) <= _num_bad(plain) else plain


def _num_bad(lines: list[Line]) -> int:
    return sum(line.error is not None for line in lines)


def _separated(path: Path, text: io.StringIO, *, delimiter: str, quoting: Any) -> list[Line]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses a cell of more than 128 KiB
    text.seek(0)
    reader = csv.reader(text, strict=True, delimiter=delimiter, quoting=quoting)
    lines: list[Line] = []
    start = 0
    try:
        header = _header(path, next(reader, []))
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


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    """The names of the columns. One without a name, as pandas writes its index, is named by its place.

    Raises DataError for a name that is there twice, since a row can have only one value by it.
    """
    names = [cell if cell.strip() else f"unnamed column {place}" for place, cell in enumerate(cells, start=1)]
    _check_different(path, names)
    return names


def _check_different(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        name = shorten(repr(first_repeated(names)))
        raise DataError(f"{path} has two columns {name}, expected different names; rename one of them")


class TableRows(Lines):
    """The rows of a binary table, read batch by batch when they are asked for.

    Raises DataError where the file has two columns of one name, and, also while it is read, where it is damaged.
    """

    def __init__(self, path: Path, kind: str, open_batches: Callable[[], tuple[list[str], int, Iterator[Any]]]) -> None:
        """`open_batches` returns the columns, the number of rows, and the batches from the first on."""
        self._path, self._kind, self._open = path, kind, open_batches
        names, self._num_rows, _ = _guarded(path, kind, open_batches)
        _check_different(path, names)

    def __len__(self) -> int:
        return self._num_rows

    def _at(self, index: int) -> Line:
        return next(itertools.islice(self, index, None))

    def __iter__(self) -> Iterator[Line]:
        _, _, batches = _guarded(self._path, self._kind, self._open)
        number = 1
        while (batch := _guarded(self._path, self._kind, lambda: next(batches, None))) is not None:
            for row in _guarded(self._path, self._kind, batch.to_pylist):
                yield Line(number, unfilled(row))
                number += 1


def parquet_rows(path: Path) -> TableRows:
    """The rows of a Parquet file. Raises DataError for any other content."""
    import pyarrow.parquet

    def open_batches() -> tuple[list[str], int, Iterator[Any]]:
        file = pyarrow.parquet.ParquetFile(path)
        return file.schema_arrow.names, file.metadata.num_rows, file.iter_batches(ROWS_OF_BATCH)

    return TableRows(path, "a Parquet file", open_batches)


def arrow_rows(path: Path) -> TableRows:
    """The rows of an Arrow file, as `datasets` stores them. Raises DataError for any other content."""

    def open_batches() -> tuple[list[str], int, Iterator[Any]]:
        return _open_arrow(path).schema.names, sum(batch.num_rows for batch in batches()), parts()

    def batches() -> Iterator[Any]:
        reader = _open_arrow(path)
        if hasattr(reader, "get_batch"):
            return map(reader.get_batch, range(reader.num_record_batches))
        return iter(reader)

    def parts() -> Iterator[Any]:
        """A batch has as many rows as its writer chose."""
        for batch in batches():
            yield from (batch.slice(start, ROWS_OF_BATCH) for start in range(0, batch.num_rows, ROWS_OF_BATCH))

    return TableRows(path, "an Arrow file", open_batches)


def column_names(path: Path, ending: str) -> list[str]:
    """The columns of a table, without reading its rows; empty for another format.

    Raises DataError where the file does not have the format.
    """
    import pyarrow.parquet

    if ending in DELIMITERS:
        header = decoded(path, first_lines(path, 1)).splitlines()
        return _header(path, next(csv.reader(header, delimiter=DELIMITERS[ending]), []))
    if ending not in TABLE_FORMATS:
        return []
    if ending == ".parquet":
        return _guarded(path, "a Parquet file", lambda: pyarrow.parquet.read_schema(path)).names
    return _guarded(path, "an Arrow file", lambda: _open_arrow(path).schema).names


def _open_arrow(path: Path) -> Any:
    import pyarrow.ipc

    with path.open("rb") as file:
        is_file = file.read(len(ARROW_FILE)) == ARROW_FILE
    source = pyarrow.memory_map(str(path))
    return pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)


def _guarded(path: Path, kind: str, read: Callable[[], Any]) -> Any:
    import pyarrow

    try:
        return read()
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{path} is not {kind} ({shorten(' '.join(str(error).split()))})") from None


def unfilled(value: object) -> object:
    """The value without the None that Arrow adds to every nested mapping for keys that only other rows have."""
    if isinstance(value, dict):
        return {name: unfilled(inner) for name, inner in value.items() if inner is not None}
    return [unfilled(inner) for inner in value] if isinstance(value, list) else value
