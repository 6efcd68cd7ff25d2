"""Where stored rows come from: the user's file, and the line in it, of each row of a stored file. Needs no torch.

Stored rows do not have it themselves: a row trains and is compared by its content. Beside `x.train.jsonl` there is
`x.train.origins`: a line of JSON (the files, the number of rows, and the bytes of the rows' file), then 8 bytes a row
(file * MAX_LINES + line). It is mapped and not read, so that a million rows cost no memory. Legend: N = rows.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_schemas.files import writing_atomically

MAX_LINES = 2**40  # lines of a file
NOWHERE = -1  # the origin of a row that is from no file
ENDING = ".origins"


class FileNumbers:
    """The files that rows come from, by the order in which they were met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def origin(self, file: str, line: int) -> int:
        """The origin of a row in one number."""
        return self._numbers.setdefault(file, len(self._numbers)) * MAX_LINES + line

    @property
    def names(self) -> list[str]:
        return list(self._numbers)


class Origins:
    """The origins of the rows of a stored file."""

    def __init__(self, names: Sequence[str], origins_N: NDArray[np.int64]) -> None:
        self.names, self._origins_N = names, origins_N

    @classmethod
    def beside(cls, rows: Path, num_rows: int) -> "Origins | None":
        """Those that were written beside a file of rows; None where there are none, or the file is another by now."""
        path = rows.with_suffix(ENDING)
        try:
            with path.open("rb") as file:
                header = json.loads(file.readline())
                start = file.tell()
            names, is_same = list(map(str, header["files"])), header["bytes"] == rows.stat().st_size
            if not is_same or header["rows"] != num_rows or path.stat().st_size != start + 8 * num_rows:
                return None
            origins_N = np.memmap(path, np.int64, "r", start, (num_rows,)) if num_rows else np.zeros(0, np.int64)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return cls(names, origins_N)

    def of(self, index: int) -> tuple[str, int] | None:
        """The file and the line of a row; None where it is from no file."""
        number, line = divmod(int(self._origins_N[index]), MAX_LINES)
        return (self.names[number], line) if 0 <= number < len(self.names) else None


def write_origins(rows: Path, files: Sequence[str], origins: Iterable[int]) -> str:
    """Writes the origins of the rows of a stored file, which exists already; returns the name of the new file."""
    path = rows.with_suffix(ENDING)
    origins_N = np.fromiter(origins, np.int64)
    header = {"files": list(files), "rows": len(origins_N), "bytes": rows.stat().st_size}
    with writing_atomically(path) as file:
        file.write(json.dumps(header).encode() + b"\n")
        file.write(origins_N.tobytes())
    return path.name
