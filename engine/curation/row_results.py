"""What the rules that look at one row found out, kept in a file: a later step takes it over for equal rows.

The rows of round after round are mostly the same human rows. Their results are taken over where the line in the file
and everything that the results depend on (`settings`, a digest) are equal, so a step that reuses results writes the
same as one that computes all of them. The file has a line of JSON and then an array with an entry of 233 bytes a row.

Legend: N = rows, B = bands of a signature.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data_schemas.errors import DataError
from data_schemas.formats import cannot_open
from engine.curation.contamination import Seen
from engine.curation.content import Finding
from engine.curation.duplicates import NUM_BANDS

ENTRY = np.dtype(
    [
        ("line", "V16"),
        ("id", "V8"),
        ("key", "V16"),
        ("words", "i4"),
        ("tokens", "i4"),
        ("score", "f8"),
        ("difficulty", "f8"),
        ("source", "u4"),
        ("tag", "u4"),
        ("changed", "?"),
        ("bands", "u8", (NUM_BANDS,)),
    ]
)


@dataclass
class RowResults:
    """The results of N rows, in order."""

    settings: str = ""  # a digest of all that they depend on besides the rows
    entry_N: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, ENTRY))
    names: list[str] = field(default_factory=list)  # of sources and tags, which the entries refer to
    findings: dict[int, Finding] = field(default_factory=dict)
    masked: dict[int, dict[str, int]] = field(default_factory=dict)  # pieces of personal data in a row, by kind
    seen: dict[int, Seen] = field(default_factory=dict)  # of the evaluation sets, by row

    def __len__(self) -> int:
        return len(self.entry_N)

    @classmethod
    def joined(cls, settings: str, parts: Iterable["RowResults"]) -> "RowResults":
        """The results of consecutive ranges of rows."""
        whole, start = cls(settings), 0
        numbers: dict[str, int] = {}
        entries: list[NDArray[np.void]] = []
        for part in parts:
            of_part = np.array([numbers.setdefault(name, len(numbers)) for name in part.names], np.uint32)
            entry_N = part.entry_N.copy()
            for column in ("source", "tag"):
                entry_N[column] = of_part[entry_N[column]]
            entries.append(entry_N)
            whole.findings |= {start + row: finding for row, finding in part.findings.items()}
            whole.masked |= {start + row: counts for row, counts in part.masked.items()}
            whole.seen |= {start + row: seen for row, seen in part.seen.items()}
            start += len(part)
        whole.names = list(numbers)
        whole.entry_N = np.concatenate([np.zeros(0, ENTRY), *entries])
        return whole

    def write(self, file: IO[bytes]) -> None:
        """Writes them for a later step with equal settings."""
        seen = {row: [np.asarray(part).tolist() for part in parts] for row, parts in self.seen.items()}
        findings = {row: asdict(finding) for row, finding in self.findings.items()}
        parts = {"names": self.names, "findings": findings, "masked": self.masked, "seen": seen}
        content = {"settings": self.settings, **parts}
        file.write(json.dumps(content).encode() + b"\n")
        file.write(self.entry_N.tobytes())


def line_key(line: bytes) -> bytes:
    """By which an equal line is found."""
    return hashlib.blake2b(line, digest_size=16).digest()


class EarlierResults:
    """The results that an earlier step has written, looked up by line. None of other settings.

    Raises DataError for a file that a step has not written.
    """

    def __init__(self, path: Path, settings: str) -> None:
        content, self._entry_N = _read(path)
        self._names: list[str] = content["names"]
        self._findings = {int(row): Finding(**fields) for row, fields in content["findings"].items()}
        self._masked = {int(row): counts for row, counts in content["masked"].items()}
        self._seen = {int(row): _seen(parts) for row, parts in content["seen"].items()}
        is_equal = content["settings"] == settings
        lines = self._entry_N["line"].tolist() if is_equal else []
        self._place_of = {line: place for place, line in enumerate(lines)}

    def __len__(self) -> int:
        return len(self._place_of)

    def find(self, line: bytes) -> int | None:
        """The place of an equal line."""
        return self._place_of.get(line_key(line))

    def entry(self, place: int) -> tuple[np.void, str, str]:
        """The entry of a row with its source and tag."""
        entry = self._entry_N[place]
        return entry, self._names[entry["source"]], self._names[entry["tag"]]

    def finding(self, place: int) -> Finding | None:
        return self._findings.get(place)

    def masked(self, place: int) -> Counter[str]:
        return Counter(self._masked.get(place, {}))

    def seen(self, place: int) -> Seen | None:
        return self._seen.get(place)


def _read(path: Path) -> tuple[Mapping[str, Any], NDArray[np.void]]:
    try:
        with path.open("rb") as file:
            content = json.loads(file.readline())
            entry_N = np.frombuffer(file.read(), ENTRY)
        if content.keys() == {"settings", "names", "findings", "masked", "seen"}:
            return content, entry_N
    except OSError as error:
        raise DataError(cannot_open(path, error)) from None
    except (ValueError, AttributeError):
        pass
    raise DataError(f"{path} is no file of results by row; expected the output `results` of a step of curation")


def _seen(parts: list[list[Any]]) -> Seen:
    numbers, shares, spans, is_equal, is_near = parts
    sizes = np.array(numbers, np.intp), np.array(shares, float), np.array(spans, np.int64)
    return *sizes, np.array(is_equal, bool), np.array(is_near, bool)
