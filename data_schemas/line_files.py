"""The rows of a .jsonl file one after the other, without holding them: 16 bytes a row in memory."""

import array
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

from data_schemas.errors import DataError
from data_schemas.formats import Line, json_line, open_plain

BOM = b"\xef\xbb\xbf"


class Lines(Sequence[Line]):
    """Lines of which a slice is the list of its elements; a subclass has the length and `_at`, one line."""

    @abstractmethod
    def _at(self, index: int) -> Line: ...

    @overload
    def __getitem__(self, index: int) -> Line: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Line]: ...
    def __getitem__(self, index: int | slice) -> Line | Sequence[Line]:
        return [self._at(place) for place in range(len(self))[index]] if isinstance(index, slice) else self._at(index)


class JSONLines(Lines):
    """The lines of a file that are not blank, each parsed when it is asked for.

    A compressed file is decompressed into an unnamed temporary file. Raises as `open_plain` does.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, open_plain(path)
        self._starts, self._numbers = array.array("q"), array.array("q")
        start = 0
        for number, line in enumerate(self._file, start=1):  # only \n ends a line
            if (line.removeprefix(BOM) if number == 1 else line).strip():
                self._starts.append(start)
                self._numbers.append(number)
            start += len(line)
        self._size = start

    def __len__(self) -> int:
        return len(self._starts)

    def _at(self, index: int) -> Line:
        self._file.seek(self._starts[index])
        return self._line(self._numbers[index], self._file.readline())

    def __iter__(self) -> Iterator[Line]:
        for start, number in zip(self._starts, self._numbers, strict=True):
            if self._file.tell() != start:  # another loop over the same file, or blank lines before
                self._file.seek(start)
            yield self._line(number, self._file.readline())

    def check_unchanged(self) -> None:
        """Raises DataError where the file is not the one of which the lines were counted."""
        if os.fstat(self._file.fileno()).st_size != self._size:
            raise DataError(f"{self.path} changed while it was read; run again once it is complete")

    def _line(self, number: int, line: bytes) -> Line:
        line = line.removesuffix(b"\n")
        return json_line(number, line.removeprefix(BOM) if number == 1 else line)


class Renamed(Lines):
    """Lines with other names of columns."""

    def __init__(self, lines: Sequence[Line], rename: Callable[[object], object]) -> None:
        self._lines, self._rename = lines, rename

    def __len__(self) -> int:
        return len(self._lines)

    def _at(self, index: int) -> Line:
        return self._of(self._lines[index])

    def __iter__(self) -> Iterator[Line]:
        return map(self._of, self._lines)

    def _of(self, line: Line) -> Line:
        return Line(line.number, self._rename(line.raw), line.error)
