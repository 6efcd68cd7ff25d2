"""What curation knows of the rows of one kind: an entry a row, and no text. Legend: N = rows.

analysis.py fills it, reading every row once. What compares rows (duplicates, quality, phrases, the mix) works on the
table, and reads back only the rows that it needs.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from engine.curation.content import Content, Finding, RawRow, content_of, is_of_a_round
from engine.curation.duplicates import SignatureIndex
from engine.curation.mixing import SourceShare, Unit
from engine.curation.row_files import RowFiles
from engine.curation.row_results import RowResults

Change = Callable[[RawRow], tuple[RawRow, Counter[str]]]  # a changed row, and what was changed in it, counted by kind


@dataclass
class Table:
    """The rows of a kind, and why those that are dropped so far are."""

    rows: RowFiles
    ids: list[str] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)  # equal for exact duplicates
    signatures: SignatureIndex | None = None  # where near duplicates are looked for
    words_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # in the text that rules see
    tokens_N: np.ndarray | None = None  # after the chat template, where a tokenizer is given
    score_N: np.ndarray = field(default_factory=lambda: np.zeros(0))  # reward; nan where the row has none
    difficulty_N: np.ndarray = field(default_factory=lambda: np.zeros(0))  # spread of the rewards; nan likewise
    sources: list[str] = field(default_factory=list)  # the step or file that a row is from
    tags: list[str] = field(default_factory=list)
    findings: dict[int, Finding] = field(default_factory=dict)  # of the dropped rows
    copies: dict[int, int] = field(default_factory=dict)  # how often a kept row is written, where it is not once
    mix: list[SourceShare] = field(default_factory=list)
    change: Change | None = None  # what is done to every row before the rules see it
    changed: set[int] = field(default_factory=set)  # the rows that differ from their file's line
    masked: Counter[str] = field(default_factory=Counter)  # pieces of personal data, by kind
    results: RowResults | None = None  # of the rules that look at one row, where they are kept for a later step
    num_reused: int = 0  # rows whose results are those of an earlier step

    def __len__(self) -> int:
        return len(self.rows)

    def kept(self) -> Iterator[int]:
        """The rows that no rule has dropped so far, in order."""
        return (index for index in range(len(self)) if index not in self.findings)

    def kept_lines(self) -> Iterator[bytes]:
        """The lines of the kept rows, in order, each as often as the mix has it."""
        for index in self.kept():
            copies = self.copies.get(index, 1)
            if copies:
                is_changed = index in self.changed
                line = _line_of(self.row(index)) if is_changed else self.rows.line(index)
                yield from [line + b"\n"] * copies

    def kept_origins(self) -> Iterator[tuple[str, int]]:
        """The file and the line that each of the kept lines is from."""
        for index in self.kept():
            yield from [self.rows.origin(index)] * self.copies.get(index, 1)

    @property
    def num_kept(self) -> int:
        """The rows that are written, with copies."""
        return len(self) - len(self.findings) + sum(copies - 1 for copies in self.copies.values())

    @property
    def unit(self) -> Unit:
        """What the size of a row is counted in."""
        return "words" if self.tokens_N is None else "tokens"

    @property
    def size_N(self) -> np.ndarray:
        """The size of each row, in `unit`."""
        return self.words_N if self.tokens_N is None else self.tokens_N

    def dropped_by_rule(self) -> list[tuple[str, list[int]]]:
        """Each rule with the rows that it dropped, the one that dropped most rows first."""
        rows: dict[str, list[int]] = defaultdict(list)
        for index, finding in self.findings.items():
            rows[finding.rule].append(index)
        return sorted(rows.items(), key=lambda item: -len(item[1]))

    def is_of_a_policy(self, index: int) -> bool:
        """Whether a policy wrote the row's answer: its source is a step of a round."""
        return is_of_a_round(self.sources[index])

    @property
    def quality(self) -> list[float]:
        return self.score_N.tolist()

    @property
    def has_answers(self) -> bool:
        """Whether a row has a prompt and answers to it."""
        return self.rows.kind in ("instructions", "preferences")

    def row(self, index: int) -> RawRow:
        """A row as the rules see it."""
        row = self.rows.row(index)
        return self.change(row)[0] if self.change and index in self.changed else row

    def content(self, index: int) -> Content:
        return content_of(self.rows.kind, self.row(index))


def _line_of(row: RawRow) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
