"""The rows of files of text one after the other, without holding them: .jsonl and .txt, and rows under other names.

A reader reads its file again in each loop over it. The first complete loop counts the rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from data_schemas.errors import DataError
from data_schemas.formats import Line, Lines, decoded, format_of, json_line
from data_schemas.plain_files import FileState, PlainFile


class CountedLines(ABC):
    """Rows that each loop reads again. Whether there is one is seen without reading all of them."""

    _num_rows: int | None = None  # known after the first complete loop

    @abstractmethod
    def _rows(self) -> Iterator[Line]: ...

    def __iter__(self) -> Iterator[Line]:
        num_rows = 0
        for row in self._rows():
            yield row
            num_rows += 1
        self._num_rows = num_rows

    def __len__(self) -> int:
        if self._num_rows is None:
            self._num_rows = sum(1 for _ in self)
        return self._num_rows

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None


class FileLines(CountedLines):
    """The rows of a file.

    A loop that reaches the end, or something that cannot be read, raises DataError where the file has changed.
    """

    def __init__(self, state: FileState) -> None:
        self._state = state

    def __iter__(self) -> Iterator[Line]:
        try:
            yield from super().__iter__()
        except (DataError, UnicodeDecodeError):
            self._state.check()
            raise
        self._state.check()


class JSONLines(FileLines):
    """The lines of a .jsonl file that are not blank; one that is not JSON carries its error."""

    def __init__(self, file: PlainFile) -> None:
        super().__init__(file.state)
        self._file = file

    def _rows(self) -> Iterator[Line]:
        for number, line in enumerate(self._file.bytes(), start=1):
            if line.strip():
                yield json_line(number, line.removesuffix(b"\n"))


class Paragraphs(FileLines):
    """The documents of a .txt file: its paragraphs, or its lines where no line between others is blank.

    Raises DataError, with the line, where the file is not UTF-8.
    """

    def __init__(self, file: PlainFile) -> None:
        super().__init__(file.state)
        self._file = file
        num_lines = num_paragraphs = 0
        self._last = 0  # the number of the last line that is not blank, behind which white space does not count
        for number, line in self._numbered():
            if line.strip():
                num_lines += 1
                num_paragraphs += self._last == 0 or self._last < number - 1
                self._last = number
        self._is_by_line = num_lines == self._last
        self._num_rows = num_lines if self._is_by_line else num_paragraphs

    def _rows(self) -> Iterator[Line]:
        paragraph: list[str] = []
        for number, line in self._numbered():
            if line.strip():
                paragraph.append(line.rstrip() if number == self._last else line.rstrip("\r"))
            if paragraph and (self._is_by_line or number >= self._last or not line.strip()):
                first = number - len(paragraph) + bool(line.strip())
                yield Line(first, {"text": "\n".join(paragraph)})
                paragraph = []

    def _numbered(self) -> Iterator[tuple[int, str]]:
        for number, line in enumerate(self._file.bytes(), start=1):
            yield number, decoded(self._file.path, line.removesuffix(b"\n"), number)


class Renamed(CountedLines):
    """Lines with other names of columns."""

    def __init__(self, lines: Lines, rename: Callable[[object], object]) -> None:
        self._lines, self._rename = lines, rename

    def _rows(self) -> Iterator[Line]:
        return (Line(line.number, self._rename(line.raw), line.error) for line in self._lines)


class LinesOfDocuments(CountedLines):
    """Each line of documents as a prompt."""

    def __init__(self, documents: Lines) -> None:
        self._documents = documents

    def _rows(self) -> Iterator[Line]:
        for line in self._documents:
            assert isinstance(line.raw, dict)
            for n, prompt in enumerate(line.raw["text"].split("\n")):
                yield Line(line.number + n, {"prompt": prompt})


def as_prompts(name: str, lines: Lines) -> Lines:
    """The documents of a text file as prompts, one a line; the rows of any other file as they are."""
    first = next(iter(lines), None)
    if format_of(Path(name)) != ".txt" or first is None or not isinstance(first.raw, dict) or "text" not in first.raw:
        return lines  # also where `columns` calls a document a prompt
    return LinesOfDocuments(lines)
