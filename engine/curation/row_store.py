"""Rows of one type on the disk, with an index in memory: 53 bytes a row, whatever its text. Needs no torch.

A row is written once, as the line that a stored file has, and validated again where it is read. Views share the file:
they choose rows and say how often each counts, in 12 bytes a row. Legend: N = rows.
"""

import hashlib
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_schemas.rows import Conversation, Document, Prompt, Row
from engine.curation.origins import NOWHERE

T = TypeVar("T", bound=Row)
KEY_BYTES = 16


class RowStore(Generic[T]):
    """The rows that were added, in an unnamed file in a folder."""

    def __init__(self, folder: Path, row_type: type[T], rows: Iterable[T] = ()) -> None:
        self.row_type = row_type
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the store
        self._starts, self._copies, self._keys = array("q", [0]), array("i"), bytearray()
        self._groups, self._has_later, self._origins = bytearray(), array("b"), array("q")
        self._long_groups: dict[int, str] = {}  # those that a file gives in more than KEY_BYTES bytes
        for row in rows:
            self.add(row)

    def add(self, row: T, copies: int = 1, origin: int = NOWHERE) -> None:
        """Appends a row that counts so often, and is from there (origins.py). One that doesn't count is left out."""
        if not copies:
            return
        line = row.to_json().encode() + b"\n"
        self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))
        self._copies.append(copies)
        self._origins.append(origin)
        self._keys += _key_of(row)
        group = str(getattr(row, "group_id", "")).encode()
        if len(group) > KEY_BYTES:
            self._long_groups[len(self._has_later)] = group.decode()
        self._groups += group[:KEY_BYTES].ljust(KEY_BYTES, b"\0")
        self._has_later.append(_num_user_turns(row) > 1)

    def view(self) -> "RowView[T]":
        """All rows that were added so far."""
        self._file.flush()
        keys_N = np.frombuffer(bytes(self._keys), f"S{KEY_BYTES}")
        places_N, copies_N = np.arange(len(self._copies)), np.array(self._copies, np.int32)
        return RowView(self, keys_N, places_N, copies_N)

    def group(self, place: int) -> str:
        """The group of a row."""
        start = place * KEY_BYTES
        short = self._groups[start : start + KEY_BYTES].rstrip(b"\0")
        return self._long_groups.get(place) or short.decode()

    def origin(self, place: int) -> int:
        """Where a row is from."""
        return self._origins[place]

    def has_later_turns(self, place: int) -> bool:
        """Whether a user speaks more than once in the row."""
        return bool(self._has_later[place])

    def line(self, place: int) -> bytes:
        """The line of a row."""
        start, end = self._starts[place], self._starts[place + 1]
        return os.pread(self._file.fileno(), end - start, start)


class RowView(Generic[T]):
    """Some rows of a store, in an order of their own."""

    def __init__(
        self,
        store: RowStore[T],
        keys_N: NDArray[np.bytes_],
        places_N: NDArray[np.intp],
        copies_N: NDArray[np.int32],
    ) -> None:
        self._store, self._keys_N, self._places_N, self.copies_N = store, keys_N, places_N, copies_N

    def __len__(self) -> int:
        """The rows, with copies."""
        return int(self.copies_N.sum())

    def __iter__(self) -> Iterator[T]:
        """Each row as often as it counts."""
        for row, copies, _ in self.counts():
            for _ in range(copies):
                yield row

    def counts(self) -> Iterator[tuple[T, int, int]]:
        """Each row with how often it counts, and its origin."""
        origins = map(self._store.origin, self._places_N.tolist())
        return zip(self.once(), self.copies_N.tolist(), origins, strict=True)

    def origins(self) -> Iterator[int]:
        """The origin of each row as often as it counts: those of `lines`."""
        for place, copies in zip(self._places_N.tolist(), self.copies_N.tolist(), strict=True):
            for _ in range(copies):
                yield self._store.origin(place)

    def once(self) -> Iterator[T]:
        """Each row once."""
        return map(self._store.row_type.model_validate_json, self._lines())

    def lines(self) -> Iterator[bytes]:
        """The line of each row as often as it counts."""
        for line, copies in zip(self._lines(), self.copies_N.tolist(), strict=True):
            for _ in range(copies):
                yield line

    @property
    def keys_N(self) -> NDArray[np.bytes_]:
        """By which rows are compared: a prompt's id, and a hash of a document's text or of another row's group."""
        return self._keys_N[self._places_N]

    def groups(self) -> Iterator[str]:
        """The group of each row, without reading the rows."""
        return map(self._store.group, self._places_N.tolist())

    def has_later_turns_N(self) -> NDArray[np.bool_]:
        """Whether a user speaks more than once, by row, without reading the rows."""
        return np.fromiter(map(self._store.has_later_turns, self._places_N.tolist()), bool, len(self._places_N))

    def mask(self, is_chosen: Callable[[T], bool]) -> NDArray[np.bool_]:
        """Whether the function returns true, by row."""
        return np.fromiter(map(is_chosen, self.once()), dtype=bool, count=len(self._places_N))

    def at(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> "RowView[T]":
        """The rows of a mask, or at these positions, in this order."""
        return RowView(self._store, self._keys_N, self._places_N[chosen], self.copies_N[chosen])

    def counted(self, copies_N: NDArray[np.int32]) -> "RowView[T]":
        """The same rows, each as often as this says."""
        return RowView(self._store, self._keys_N, self._places_N, copies_N)

    def single(self) -> "RowView[T]":
        """Each row once."""
        return self.counted(np.ones_like(self.copies_N))

    def first(self, number: int | None) -> "RowView[T]":
        """The first rows, copies counted; all for None."""
        if number is None or len(self) <= number:
            return self
        before_N = np.cumsum(self.copies_N) - self.copies_N
        left_N = np.minimum(self.copies_N, number - before_N)
        is_in = left_N > 0
        return self.at(is_in).counted(left_N[is_in].astype(np.int32))

    def _lines(self) -> Iterator[bytes]:
        return map(self._store.line, self._places_N.tolist())


def _num_user_turns(row: Row) -> int:
    messages = row.messages if isinstance(row, Conversation) else getattr(row, "prompt", [])
    return sum(message.role == "user" for message in messages)


def _key_of(row: Row) -> bytes:
    """KEY_BYTES bytes; an id of that length is itself the key, so that prompts are sorted by their ids."""
    if isinstance(row, Prompt) and len(row.prompt_id) <= KEY_BYTES and row.prompt_id.isascii():
        return row.prompt_id.encode().ljust(KEY_BYTES, b"\0")
    if isinstance(row, Prompt):
        return hashlib.sha256(row.prompt_id.encode()).hexdigest()[:KEY_BYTES].encode()
    text = row.text if isinstance(row, Document) else str(getattr(row, "group_id", ""))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()
