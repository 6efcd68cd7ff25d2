"""Reads .zst files by pyarrow's decompressor, since Python has none before 3.14.

pyarrow returns what it has where a file ends inside a frame that yielded nothing yet: rows would be lost without an
error. So the frames are walked first (RFC 8878, section 3.1), which reads only their headers.
"""

from pathlib import Path
from typing import BinaryIO

MAGIC = 0xFD2FB528
SKIPPABLE = 0x184D2A5  # the magic of a skippable frame, without its last hex digit
RLE = 1  # a block of one repeated byte
RESERVED = 3


def open_zstd(path: Path) -> BinaryIO:
    """The decompressed content as a stream, which raises OSError without an errno for damaged data."""
    import pyarrow

    return pyarrow.input_stream(path, compression="zstd")  # pyright: ignore[reportReturnType]


def has_complete_frames(path: Path) -> bool:
    """Whether the file is a sequence of complete zstd frames. An empty file is not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            while file.tell() < size:
                _skip_frame(file)
        except ValueError:
            return False
        return 0 < size == file.tell()


def _skip_frame(file: BinaryIO) -> None:
    """Moves behind one frame. Raises ValueError where the bytes are none, or end in a header."""
    magic = _number(file, 4)
    if magic >> 4 == SKIPPABLE:
        file.seek(_number(file, 4), 1)
        return
    if magic != MAGIC:
        raise ValueError
    descriptor = _number(file, 1)
    is_single_segment = bool(descriptor >> 5 & 1)
    window = 0 if is_single_segment else 1
    dictionary_id = (0, 1, 2, 4)[descriptor & 3]
    content_size = (int(is_single_segment), 2, 4, 8)[descriptor >> 6]
    file.seek(window + dictionary_id + content_size, 1)
    is_last = False
    while not is_last:
        block = _number(file, 3)
        is_last, kind, num_bytes = bool(block & 1), block >> 1 & 3, block >> 3
        if kind == RESERVED:
            raise ValueError
        file.seek(1 if kind == RLE else num_bytes, 1)
    file.seek(4 if descriptor >> 2 & 1 else 0, 1)  # the checksum


def _number(file: BinaryIO, num_bytes: int) -> int:
    read = file.read(num_bytes)
    if len(read) < num_bytes:
        raise ValueError
    return int.from_bytes(read, "little")
