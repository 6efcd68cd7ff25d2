"""What curation knows of the rows of one kind: an entry a row, and no text. Legend: N = rows.

`analyse` reads every row once, in parallel on all cores, and applies the rules that look at a single row. What compares
rows (duplicates, quality, phrases, the mix) works on the table, and reads back only the rows that it needs.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from data_schemas.errors import ConfigError, DataError
from engine.curation.contamination import EvaluationIndex, Seen
from engine.curation.content import Content, Finding, RawRow, content_of, row_id
from engine.curation.duplicates import SignatureIndex, content_key
from engine.curation.row_files import RowFiles
from engine.runtime import process, progress, world

ROWS_OF_A_CHUNK = 2_000
RowRule = Callable[[RawRow, Content], Finding | None]  # a rule that looks at one row


@dataclass
class Chunk:
    """What was found out about consecutive rows."""

    ids: list[str]
    keys: list[bytes]
    words: list[int]
    scores: list[float]
    difficulties: list[float]
    sources: list[str]
    tags: list[str]
    findings: dict[int, Finding]
    bands: np.ndarray | None  # of the rows' texts, see SignatureIndex
    seen: Seen | None  # of the evaluation sets


@dataclass
class Table:
    """The rows of a kind, and why those that are dropped so far are."""

    rows: RowFiles
    ids: list[str] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)  # equal for exact duplicates
    signatures: SignatureIndex | None = None  # where near duplicates are looked for
    words_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # in the text that rules see
    score_N: np.ndarray = field(default_factory=lambda: np.zeros(0))  # reward; nan where the row has none
    difficulty_N: np.ndarray = field(default_factory=lambda: np.zeros(0))  # spread of the rewards; nan likewise
    sources: list[str] = field(default_factory=list)  # the step or file that a row is from
    tags: list[str] = field(default_factory=list)
    findings: dict[int, Finding] = field(default_factory=dict)  # of the dropped rows
    copies: dict[int, int] = field(default_factory=dict)  # how often a kept row is written, where it is not once

    def __len__(self) -> int:
        return len(self.rows)

    def kept(self) -> Iterator[int]:
        """The rows that no rule has dropped so far, in order."""
        return (index for index in range(len(self)) if index not in self.findings)

    @property
    def quality(self) -> list[float]:
        return self.score_N.tolist()

    @property
    def has_answers(self) -> bool:
        """Whether a row has a prompt and answers to it."""
        return self.rows.kind in ("instructions", "preferences")

    def content(self, index: int) -> Content:
        return content_of(self.rows.kind, self.rows.row(index))


@dataclass(frozen=True)
class Analysis:
    """What is done with each row."""

    rules: Sequence[RowRule]
    evaluation: EvaluationIndex | None = None  # counts what its rules, which are among the others, see
    near_duplicates: float | None = None  # the similarity from which almost equal rows are looked for


def analyse(rows: RowFiles, analysis: Analysis) -> Table:
    """The table of the rows, after the rules that look at one row each; the first one that finds something counts.

    Raises DataError for a line that is no stored row, and for a rule that raises, with the row's place.
    """
    global _work
    _work = (rows, analysis)  # the worker processes inherit it
    ranges = [range(at, min(at + ROWS_OF_A_CHUNK, len(rows))) for at in range(0, len(rows), ROWS_OF_A_CHUNK)]
    table = Table(rows, signatures=_signatures(analysis))
    chunks: list[Chunk] = []
    for of_rows, chunk in zip(ranges, _chunks(ranges), strict=True):
        chunks.append(chunk)
        table.findings.update(chunk.findings)
        if table.signatures is not None and chunk.bands is not None:
            table.signatures.extend(chunk.bands)
            chunk.bands = None
        if analysis.evaluation is not None and chunk.seen is not None:
            analysis.evaluation.add(chunk.seen)
            chunk.seen = None
        progress.advance(len(of_rows))
    known: dict[str, str] = {}  # equal names are one object, whichever process they are from
    for chunk in chunks:
        table.ids += chunk.ids
        table.keys += chunk.keys
        table.sources += [known.setdefault(name, name) for name in chunk.sources]
        table.tags += [known.setdefault(name, name) for name in chunk.tags]
    table.words_N = np.concatenate([np.array(chunk.words, np.int32) for chunk in chunks] or [table.words_N])
    table.score_N = np.concatenate([np.array(chunk.scores) for chunk in chunks] or [table.score_N])
    table.difficulty_N = np.concatenate([np.array(chunk.difficulties) for chunk in chunks] or [table.difficulty_N])
    return table


_work: tuple[RowFiles, Analysis]


def _chunks(ranges: Sequence[range]) -> Iterator[Chunk]:
    """The chunks in order; on several processes where there is more than one chunk."""
    num_workers = min(len(world.available_cores()), len(ranges))
    if num_workers < 2:
        yield from map(_analyse_chunk, ranges)
        return
    forked = multiprocessing.get_context("fork")
    parent = {"initializer": process.end_with_the_parent, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(num_workers, mp_context=forked, **parent) as pool:
        yield from pool.map(_analyse_chunk, ranges)


def _analyse_chunk(indices: range) -> Chunk:
    rows, analysis = _work
    chunk = Chunk([], [], [], [], [], [], [], {}, None, None)
    signatures = _signatures(analysis)
    for index in indices:
        row = rows.row(index)
        try:
            content = content_of(rows.kind, row)
            finding = next(filter(None, (rule(row, content) for rule in analysis.rules)), None)
        except ConfigError as error:
            raise ConfigError(f"{error}, on {rows.place(index)}") from None
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"{rows.place(index)} is not a stored row of {rows.kind}") from None
        chunk.ids.append(row_id(row))
        chunk.keys.append(content_key(content.text))
        if signatures is not None:
            signatures.add(content.text)
        chunk.words.append(len(content.text.split()))
        chunk.scores.append(_number(row.get("score")))
        chunk.difficulties.append(_number(row.get("difficulty")))
        chunk.sources.append(str(row.get("source") or rows.paths[rows.file_of(index)].name))
        chunk.tags.append(content.tag)
        if finding is not None:
            chunk.findings[index] = finding
    chunk.bands = signatures.bands() if signatures is not None else None
    chunk.seen = analysis.evaluation.take() if analysis.evaluation is not None else None
    return chunk


def _signatures(analysis: Analysis) -> SignatureIndex | None:
    return SignatureIndex(analysis.near_duplicates) if analysis.near_duplicates else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
