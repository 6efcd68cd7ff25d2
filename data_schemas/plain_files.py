"""Files after decompression, which several loops read side by side, each from the start, without holding them.

A compressed file is decompressed into an unnamed temporary file.
"""

import codecs
import gzip
import io
import itertools
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from data_schemas.errors import DataError
from data_schemas.files import check_regular
from data_schemas.formats import BOM, cannot_open, compression_of, not_utf8, shorten
from data_schemas.zstd import has_complete_frames, open_zstd

BUFFER_BYTES = 1 << 18
CHUNK_BYTES = 1 << 20  # that are decompressed, or decoded as text, at a time
# The first bytes of content that is no text in UTF-8, whatever the file's name says, and what to do about it.
OTHER_CONTENT = {
    b"\x1f\x8b": ("a gzip file", "decompress it, or give it the ending .gz"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "decompress it, or give it the ending .zst"),
    b"BZh91AY&SY": ("a bzip2 file", "decompress it"),
    b"\xfd7zXZ\x00": ("an xz file", "decompress it"),
    b"PK\x03\x04": ("a zip file, as those of a spreadsheet are", "extract it, or export it as CSV in UTF-8"),
    b"PAR1\x15": ("a Parquet file", "give it the ending .parquet"),
    b"ARROW1\x00\x00": ("an Arrow file", "give it the ending .arrow"),
    codecs.BOM_UTF16_LE: ("UTF-16 text", "save it as UTF-8"),
    codecs.BOM_UTF16_BE: ("UTF-16 text", "save it as UTF-8"),
}


@dataclass(frozen=True)
class FileState:
    """What shows whether a file is still the one that was opened."""

    path: Path
    place: Path | int  # the path, or the descriptor of the open file
    inode_size_time: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path, place: Path | int) -> "FileState":
        """The state of a file now. Raises DataError where it cannot be read."""
        try:
            status = place.stat() if isinstance(place, Path) else os.fstat(place)
        except OSError as error:
            raise DataError(cannot_open(path, error)) from None
        return cls(path, place, (status.st_ino, status.st_size, status.st_mtime_ns))

    def check(self) -> None:
        """Raises DataError where the file has changed since."""
        if FileState.of(self.path, self.place) != self:
            raise DataError(f"{self.path} changed while it was read; run again once it is complete")


class PlainFile:
    """The content of a file of text after decompression and a byte order mark, from the start for each stream.

    Where a carriage return alone ends the lines, as on early Macs, each of them is read as \\n.

    Raises DataError for a file that is not a regular one, cannot be opened, is no complete file of its compression, or
    begins as a file of another kind does; its streams raise it where the disk fails.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, _open_plain(path)
        self.state = FileState.of(path, self._file.fileno())
        self._start, self._has_carriage_returns = 0, False
        first = self.bytes().peek()
        _check_start(path, first)
        self._start = len(BOM) if first.startswith(BOM) else 0
        self._has_carriage_returns = self._ends_lines_by_carriage_returns()

    def _ends_lines_by_carriage_returns(self) -> bool:
        """Whether the content has carriage returns and no \\n; reads as far as the first \\n."""
        stream, is_found = self.bytes(), False
        while content := stream.read(BUFFER_BYTES):
            if b"\n" in content:
                return False
            is_found = is_found or b"\r" in content
        return is_found

    def bytes(self) -> io.BufferedReader:
        """The content as bytes; a loop over it has the lines, which only \\n ends."""
        stream = _Stream(self.path, self._file, self._start, has_carriage_returns=self._has_carriage_returns)
        return io.BufferedReader(stream, BUFFER_BYTES)

    def text(self) -> io.TextIOWrapper:
        """The content as text in lines that only \\n ends. Raises UnicodeDecodeError where it is not UTF-8."""
        return io.TextIOWrapper(self.bytes(), encoding="utf-8", newline="\n")

    def chunks(self) -> Iterator[str]:
        """The content as pieces of text. Raises DataError, with the line, where it is not UTF-8."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        stream, num_lines = self.bytes(), 0
        while True:
            content = stream.read(CHUNK_BYTES)
            try:
                yield decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:  # its object has what was left of the chunk before, which has no \n
                line = num_lines + error.object.count(b"\n", 0, error.start) + 1
                raise DataError(f"{self.path}:{line}: {not_utf8(error.object[error.start])}") from None
            if not content:
                return
            num_lines += content.count(b"\n")

    def check_text(self) -> None:
        """Raises DataError, with the line, where the content is not UTF-8."""
        self.has(bool)

    def has(self, is_found: Callable[[str], object]) -> bool:
        """Whether the function holds for a piece of the text, all of which is read. Raises as `chunks` does."""
        return sum(bool(is_found(piece)) for piece in self.chunks()) > 0


class _Stream(io.RawIOBase):
    """A stream over an open file with its own position."""

    def __init__(self, path: Path, file: IO[bytes], start: int, *, has_carriage_returns: bool) -> None:
        self._path, self._file, self._position = path, file, start
        self._has_carriage_returns = has_carriage_returns  # in place of \\n

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            self._file.seek(self._position)
            content = self._file.read(len(buffer))
        except OSError as error:  # as of a folder
            raise DataError(cannot_open(self._path, error)) from None
        buffer[: len(content)] = content.replace(b"\r", b"\n") if self._has_carriage_returns else content
        self._position += len(content)
        return len(content)


def _check_start(path: Path, content: bytes) -> None:
    """Raises DataError where content, after decompression, begins as a file of another kind does."""
    for start, (kind, remedy) in OTHER_CONTENT.items():
        if content.startswith(start):
            is_inside = bool(compression_of(path))
            if is_inside and remedy.startswith("decompress"):
                remedy = "decompress it twice"
            raise DataError(f"{path}{' decompressed' * is_inside} is {kind}, expected text in UTF-8; {remedy}")


def _open_plain(path: Path) -> IO[bytes]:
    check_regular(path)
    compression = compression_of(path)
    if compression == ".zst" and not has_complete_frames(path):
        raise DataError(f"{path} is not a complete zstd file; compress or copy it again")
    try:
        if not compression:
            return path.open("rb")
        with _opened(path) as stream:
            plain = tempfile.TemporaryFile()  # noqa: SIM115 - as long as its reader
            shutil.copyfileobj(stream, plain, CHUNK_BYTES)
        plain.flush()
        return plain
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a complete gzip file ({error})") from None
    except OSError as error:
        if compression == ".zst" and error.errno is None:
            raise DataError(f"{path} is not a zstd file ({shorten(' '.join(str(error).split()))})") from None
        raise DataError(cannot_open(path, error)) from None


def first_lines(path: Path, number: int) -> bytes:
    """The first lines of a file after decompression.

    Raises OSError, EOFError or zlib.error where it is damaged, DataError where it begins as a file of another kind.
    """
    check_regular(path)
    with _opened(path) as file:
        _check_start(path, file.peek())
        return b"".join(itertools.islice(file, number))


def _opened(path: Path) -> io.BufferedReader:
    if compression_of(path) == ".gz":
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(path)))
    if compression_of(path) == ".zst":
        return io.BufferedReader(cast(io.RawIOBase, open_zstd(path)))
    return path.open("rb")
