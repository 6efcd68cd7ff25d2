"""Reads tables: .csv and .tsv with a header line, .parquet, and .arrow (a file or a stream of Arrow's IPC format)."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_schemas.errors import DataError, WrongValue
from data_schemas.formats import BOM, TABLE_FORMATS, Line, decoded, first_repeated, shorten
from data_schemas.line_files import FileLines
from data_schemas.plain_files import FileState, PlainFile, first_lines

ROWS_OF_BATCH = 1024  # of a binary table, as Python values at a time
MAX_CELL = 2**26  # characters of a cell: behind a quote that is not closed, the rest of the file is one cell
NUM_HEADER_LINES = 10  # in which the names of the columns are looked for without reading the rows
DELIMITERS = {".csv": ",", ".tsv": "\t"}
QUOTED = re.compile(r'"(?:[^"]|"")*"')  # a whole cell in quotes
ARROW_FILE = b"ARROW1"  # the first bytes of an IPC file; a stream has none


class SeparatedRows(FileLines):
    """The rows of a .csv or .tsv file. Raises DataError, with the line, where quotes are not closed or not doubled."""

    def __init__(self, file: PlainFile, *, delimiter: str, quoting: Any) -> None:
        super().__init__(file.state)
        self._file, self._delimiter, self._quoting = file, delimiter, quoting

    def _rows(self) -> Iterator[Line]:
        csv.field_size_limit(MAX_CELL)
        reader = csv.reader(self._file.text(), strict=True, delimiter=self._delimiter, quoting=self._quoting)
        start = 0
        try:
            header = _header(self._file.path, _first_row(reader))
            start = reader.line_num
            for cells in reader:
                number, start = start + 1, reader.line_num
                if not cells:
                    continue
                if len(cells) == len(header):
                    yield Line(number, dict(zip(header, cells, strict=True)))
                else:
                    expected = f"{len(header)}, as in the first line"
                    yield Line(number, cells, WrongValue("row", f"{len(cells)} cells", expected))
        except csv.Error as error:
            # The module's own words for it advise how to open a file in Python.
            is_return = str(error).startswith("new-line character seen in unquoted field")
            problem = "a carriage return in a cell without quotes" if is_return else error
            raise DataError(f"{self._file.path}:{start + 1} is not CSV ({problem})") from None


def _first_row(reader: Iterator[list[str]]) -> list[str]:
    """The first row with a cell that is not blank: programs write empty lines above a table."""
    return next((cells for cells in reader if any(map(str.strip, cells))), [])


def csv_rows(file: PlainFile) -> SeparatedRows:
    """The rows of a CSV. Raises DataError, with the line, where it is not CSV or not UTF-8.

    Spreadsheets write semicolons where the comma is the decimal mark: the first of comma, semicolon and tab that
    divides the header line separates the cells.
    """
    file.check_text()
    delimiters = (mark for mark in (DELIMITERS[".csv"], ";", "\t") if len(_first_cells(file.text(), mark)) > 1)
    return SeparatedRows(file, delimiter=next(delimiters, DELIMITERS[".csv"]), quoting=csv.QUOTE_MINIMAL)


def _first_cells(text: Iterable[str], delimiter: str) -> list[str]:
    try:
        return _first_row(csv.reader(text, delimiter=delimiter))
    except csv.Error:
        return []  # whoever reads the rows reports it


def tsv_rows(file: PlainFile) -> SeparatedRows:
    """The rows of a TSV. Spreadsheets quote cells of a TSV as those of a CSV; other programs write quotes as they are.

    So the file is read as quoted if that gives at least as many rows of the header's length. Raises DataError where
    that is not possible though a whole cell is quoted: either its quotes or that cell's would be read wrongly.
    """
    has_quotes = file.has(lambda piece: '"' in piece)
    plain = SeparatedRows(file, delimiter=DELIMITERS[".tsv"], quoting=csv.QUOTE_NONE)
    if not has_quotes:
        return plain
    quoted = SeparatedRows(file, delimiter=DELIMITERS[".tsv"], quoting=csv.QUOTE_MINIMAL)
    try:
        num_bad_quoted = _num_bad(quoted)
    except DataError as error:
        if any(QUOTED.fullmatch(cell) for line in plain for cell in _cells(line)):
            raise DataError(f"{error}; if quotes are part of its texts, double them in quoted cells") from None
        return plain
    try:
        return quoted if num_bad_quoted <= _num_bad(plain) else plain
    except DataError:  # a carriage return that only quotes make a part of a cell
        return quoted


def _num_bad(rows: SeparatedRows) -> int:
    return sum(line.error is not None for line in rows)


def _cells(line: Line) -> Iterable[str]:
    """The cells of a row, also of one that has too few or too many."""
    return line.raw.values() if isinstance(line.raw, dict) else line.raw  # pyright: ignore[reportReturnType]


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


class TableRows(FileLines):
    """The rows of a binary table, read batch by batch.

    Raises DataError where the file has two columns of one name, and, also while it is read, where it is damaged.
    """

    def __init__(self, path: Path, kind: str, open_batches: Callable[[], tuple[list[str], int, Iterator[Any]]]) -> None:
        """`open_batches` returns the columns, the number of rows, and the batches from the first on."""
        super().__init__(FileState.of(path, path))
        self._path, self._kind, self._open = path, kind, open_batches
        names, self._num_rows, _ = _guarded(path, kind, open_batches)
        _check_different(path, names)

    def _rows(self) -> Iterator[Line]:
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
        first = io.StringIO(decoded(path, first_lines(path, NUM_HEADER_LINES).removeprefix(BOM)), newline=None)
        return _header(path, _first_cells(first, DELIMITERS[ending]))
    if ending not in TABLE_FORMATS:
        return []
    if ending == ".parquet":
        return _guarded(path, "a Parquet file", lambda: pyarrow.parquet.read_schema(path)).names
    return _guarded(path, "an Arrow file", lambda: _open_arrow(path).schema).names


def _open_arrow(path: Path) -> Any:
    import pyarrow.ipc

    with path.open("rb") as file:
        is_file = file.read(len(ARROW_FILE)) == ARROW_FILE
    # Not mapped into memory: where another program cuts a mapped file off, the system ends this one by a signal.
    source = pyarrow.OSFile(str(path))
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
