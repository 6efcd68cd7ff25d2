"""The lines of stored row files by number, without holding them in memory: an index of offsets into mapped files.

The index costs 12 bytes a row. Needs no torch.
"""

import json
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_schemas.errors import DataError
from data_schemas.formats import cannot_open
from engine.curation.content import Kind, RawRow
from engine.curation.origins import Origins

# A field that every stored row of a kind has.
FIELD_OF: dict[Kind, str] = {
    "documents": "text",
    "instructions": "messages",
    "preferences": "chosen",
    "prompts": "prompt",
}


class RowFiles:
    """The rows of several files in order; row i is a line. Legend: N = rows.

    Raises DataError for a file that cannot be read.
    """

    def __init__(self, kind: Kind, paths: Sequence[Path]) -> None:
        self.kind: Kind = kind
        self.paths = list(paths)
        self._maps = [_mapped(path) for path in self.paths]
        starts = [_line_starts(content) for content in self._maps]
        self._file_N = np.repeat(np.arange(len(starts), dtype=np.int32), [len(of_file) for of_file in starts])
        self._start_N = np.concatenate(starts) if starts else np.zeros(0, np.int64)
        self._first = np.cumsum([0, *(len(of_file) for of_file in starts)])
        self._origins = [Origins.beside(path, len(of_file)) for path, of_file in zip(self.paths, starts, strict=True)]

    def __len__(self) -> int:
        return len(self._start_N)

    def line(self, index: int) -> bytes:
        """Row `index` as its file has it, without the line's end."""
        content, start = self._maps[self._file_N[index]], int(self._start_N[index])
        end = content.find(b"\n", start)
        return content[start : end if end >= 0 else len(content)]

    def row(self, index: int) -> RawRow:
        """Row `index`. Raises DataError where the line is no stored row of the kind."""
        try:
            row = json.loads(self.line(index))
        except ValueError:
            row = None
        if not isinstance(row, dict) or FIELD_OF[self.kind] not in row:
            raise DataError(
                f"{self.place(index)} is not a stored row of {self.kind}; expected what prepare_data wrote: "
                "run it on the file first"
            )
        return row

    def place(self, index: int) -> str:
        """`file:line` of a row in the stored files."""
        file = int(self._file_N[index])
        return f"{self.paths[file]}:{self._number_in_file(index) + 1}"

    def origin(self, index: int) -> tuple[str, int]:
        """The file and the line that a row was read from at first: the user's own, where that is known."""
        file, number = int(self._file_N[index]), self._number_in_file(index)
        origins = self._origins[file]
        return (origins.of(number) if origins else None) or (str(self.paths[file]), number + 1)

    def users_place(self, index: int) -> str:
        """`file:line` of a row as its user knows it."""
        file, line = self.origin(index)
        return f"{file}:{line}"

    def _number_in_file(self, index: int) -> int:
        return index - int(self._first[int(self._file_N[index])])

    def file_of(self, index: int) -> int:
        """The position of the file that a row is in."""
        return int(self._file_N[index])


def _mapped(path: Path) -> mmap.mmap | bytes:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
    except OSError as error:
        raise DataError(cannot_open(path, error)) from None


def _line_starts(content: mmap.mmap | bytes) -> np.ndarray:
    """Where each line begins, [N] int64. A line's end at the end of the file begins no other line."""
    return np.fromiter(_starts(content), dtype=np.int64)


def _starts(content: mmap.mmap | bytes) -> Iterator[int]:
    start = 0
    while 0 <= start < len(content):
        yield start
        start = content.find(b"\n", start) + 1 or -1
