"""A list of values that are on the disk, for as many as memory may not hold."""

import contextlib
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TypeVar, overload

from data_schemas.errors import DataError

T = TypeVar("T")


class DiskList(Sequence[T]):
    """Values in an unnamed temporary file, which is made with the first of them; 8 bytes each are in memory.

    Raises DataError where the temporary folder can't be written.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._starts = array("q")
        self._end = 0

    def append(self, value: T) -> None:
        with _disk_errors():
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the list
            if self._file.tell() != self._end:  # a value was read
                self._file.seek(self._end)
            pickle.dump(value, self._file)
            self._starts.append(self._end)
            self._end = self._file.tell()

    def extend(self, values: Iterable[T]) -> None:
        for value in values:
            self.append(value)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> list[T]: ...

    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        start = self._starts[place]
        assert self._file is not None, "a list with values has a file"
        with _disk_errors():  # it first writes what is in its buffer
            self._file.seek(start)
            value: T = pickle.load(self._file)
        return value

    def __iter__(self) -> Iterator[T]:
        return (self[place] for place in range(len(self)))


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{tempfile.gettempdir()}: rows can't be written into this folder: {error}") from error
