"""Reads every row once, in parallel on all cores, and applies the rules that look at a single row. Legend: N = rows.

Results of an earlier step are taken over for equal rows, see row_results.py.
"""

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from data_schemas.errors import ConfigError, DataError
from engine.curation.contamination import EvaluationIndex, Seen
from engine.curation.content import Content, Finding, RawRow, content_of, row_id
from engine.curation.duplicates import NUM_BANDS, SignatureIndex, content_key
from engine.curation.row_files import RowFiles
from engine.curation.row_results import ENTRY, EarlierResults, RowResults, line_key
from engine.curation.table import Change, Table
from engine.runtime import process, progress, world

ROWS_OF_A_CHUNK = 2_000
RowRule = Callable[[RawRow, Content], Finding | None]  # a rule that looks at one row


@dataclass
class Chunk:
    """What was found out about consecutive rows."""

    first: int  # row
    ids: list[str] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # empty where they are not counted
    scores: list[float] = field(default_factory=list)
    difficulties: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)  # those of the rows themselves
    tags: list[str] = field(default_factory=list)
    findings: dict[int, Finding] = field(default_factory=dict)
    masked: dict[int, Counter[str]] = field(default_factory=dict)  # of the changed rows
    seen: dict[int, Seen] = field(default_factory=dict)  # of the evaluation sets, by row where results are kept
    bands: np.ndarray | None = None  # of the rows' texts, see SignatureIndex
    lines: list[bytes] = field(default_factory=list)  # their keys, where results are kept
    num_reused: int = 0

    def results(self) -> RowResults:
        """The chunk in the form in which a later step reads it."""
        names = list(dict.fromkeys([*self.sources, *self.tags]))
        number_of = {name: number for number, name in enumerate(names)}
        entry_N = np.zeros(len(self.ids), ENTRY)
        entry_N["line"], entry_N["key"] = (np.array(part, "V16") for part in (self.lines, self.keys))
        entry_N["id"] = np.array([bytes.fromhex(row) for row in self.ids], "V8")
        entry_N["words"], entry_N["tokens"] = self.words, self.tokens or 0
        entry_N["score"], entry_N["difficulty"] = self.scores, self.difficulties
        entry_N["source"] = [number_of[name] for name in self.sources]
        entry_N["tag"] = [number_of[name] for name in self.tags]
        entry_N["changed"][[row - self.first for row in self.masked]] = True
        if self.bands is not None:
            entry_N["bands"] = self.bands.T
        findings = {row - self.first: finding for row, finding in self.findings.items()}
        seen = {row - self.first: of_row for row, of_row in self.seen.items()}
        masked = {row - self.first: dict(counts) for row, counts in self.masked.items()}
        return RowResults("", entry_N, names, findings, masked, seen)


@dataclass(frozen=True)
class Analysis:
    """What is done with each row."""

    rules: Sequence[RowRule]
    evaluation: EvaluationIndex | None = None  # counts what its rules, which are among the others, see
    near_duplicates: float | None = None  # the similarity from which almost equal rows are looked for
    change: Change | None = None  # what is done to the row before
    count_tokens: Callable[[RawRow], int] | None = None
    settings: str = ""  # with which results are kept for a later step; empty: none are
    earlier: EarlierResults | None = None  # whose results are taken over for equal rows

    def signatures(self) -> SignatureIndex | None:
        return SignatureIndex(self.near_duplicates) if self.near_duplicates else None


def analyse(rows: RowFiles, analysis: Analysis) -> Table:
    """The table of the rows, after the rules that look at one row each; the first one that finds something counts.

    Raises DataError for a line that is no stored row, and for a rule that raises, with the row's place.
    """
    global _work
    _work = (rows, analysis)  # the worker processes inherit it
    ranges = [range(at, min(at + ROWS_OF_A_CHUNK, len(rows))) for at in range(0, len(rows), ROWS_OF_A_CHUNK)]
    table = Table(rows, signatures=analysis.signatures(), change=analysis.change)
    chunks: list[Chunk] = []
    results: list[RowResults] = []
    for of_rows, chunk in zip(ranges, _chunks(ranges), strict=True):
        chunks.append(chunk)
        table.findings.update(chunk.findings)
        for counts in chunk.masked.values():
            table.masked.update(counts)
        table.changed.update(chunk.masked)
        table.num_reused += chunk.num_reused
        if analysis.settings:
            results.append(chunk.results())
        if table.signatures is not None and chunk.bands is not None:
            table.signatures.extend(chunk.bands)
            chunk.bands = None
        for seen in chunk.seen.values():
            assert analysis.evaluation is not None, "only its rules see anything"
            analysis.evaluation.add(seen)
        chunk.seen.clear()
        progress.advance(len(of_rows))
    if analysis.settings:
        table.results = RowResults.joined(analysis.settings, results)
    _join(table, chunks, counts_tokens=analysis.count_tokens is not None)
    return table


def _join(table: Table, chunks: Sequence[Chunk], *, counts_tokens: bool) -> None:
    """Adds what the chunks have of each row to the table."""
    known: dict[str, str] = {}  # equal names are one object, whichever process they are from
    for chunk in chunks:
        table.ids += chunk.ids
        table.keys += chunk.keys
        table.sources += [
            known.setdefault(name, name)
            for row, own in enumerate(chunk.sources, chunk.first)
            for name in [own or table.rows.paths[table.rows.file_of(row)].name]
        ]
        table.tags += [known.setdefault(name, name) for name in chunk.tags]
    table.words_N = np.concatenate([np.array(chunk.words, np.int32) for chunk in chunks] or [table.words_N])
    table.score_N = np.concatenate([np.array(chunk.scores) for chunk in chunks] or [table.score_N])
    table.difficulty_N = np.concatenate([np.array(chunk.difficulties) for chunk in chunks] or [table.difficulty_N])
    if counts_tokens:
        tokens = [np.array(chunk.tokens, np.int32) for chunk in chunks]
        table.tokens_N = np.concatenate([np.zeros(0, np.int32), *tokens])


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
    chunk = Chunk(indices.start)
    signatures = analysis.signatures()
    reused: dict[int, np.ndarray] = {}  # bands, by place in the chunk
    for place, index in enumerate(indices):
        line = rows.line(index) if analysis.settings or analysis.earlier else b""
        if analysis.settings:
            chunk.lines.append(line_key(line))
        equal = analysis.earlier.find(line) if analysis.earlier else None
        if equal is not None:
            reused[place] = _reuse(analysis, equal, chunk, index)
        else:
            text = _analyse_row(rows, analysis, chunk, index)
            if signatures is not None:
                signatures.add(text)
        if analysis.settings:
            _keep_seen(analysis, chunk, index)
    if signatures is not None:
        chunk.bands = _with_reused(signatures.bands(), reused)
    if not analysis.settings:
        _keep_seen(analysis, chunk, indices.start)
    return chunk


def _analyse_row(rows: RowFiles, analysis: Analysis, chunk: Chunk, index: int) -> str:
    """Adds what there is to know of a row, and returns its text."""
    row = rows.row(index)
    try:
        if analysis.change is not None:
            row, masked = analysis.change(row)
            chunk.masked |= {index: masked} if masked else {}
        content = content_of(rows.kind, row)
        finding = next(filter(None, (rule(row, content) for rule in analysis.rules)), None)
        if analysis.count_tokens is not None:
            chunk.tokens.append(analysis.count_tokens(row))
    except ConfigError as error:
        raise ConfigError(f"{error}, on {rows.users_place(index)}") from None
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{rows.place(index)} is not a stored row of {rows.kind}") from None
    chunk.ids.append(row_id(row))
    chunk.keys.append(content_key(content.text))
    chunk.words.append(len(content.text.split()))
    chunk.scores.append(_number(row.get("score")))
    chunk.difficulties.append(_number(row.get("difficulty")))
    chunk.sources.append(str(row.get("source") or ""))
    chunk.tags.append(content.tag)
    if finding is not None:
        chunk.findings[index] = finding
    return content.text


def _reuse(analysis: Analysis, place: int, chunk: Chunk, index: int) -> np.ndarray:
    """Adds what an earlier step found out about an equal row, and returns its bands."""
    assert analysis.earlier is not None
    entry, source, tag = analysis.earlier.entry(place)
    chunk.num_reused += 1
    chunk.ids.append(bytes(entry["id"]).hex())
    chunk.keys.append(bytes(entry["key"]))
    chunk.words.append(int(entry["words"]))
    if analysis.count_tokens is not None:
        chunk.tokens.append(int(entry["tokens"]))
    chunk.scores.append(float(entry["score"]))
    chunk.difficulties.append(float(entry["difficulty"]))
    chunk.sources.append(source)
    chunk.tags.append(tag)
    if entry["changed"]:
        chunk.masked[index] = analysis.earlier.masked(place)
    if finding := analysis.earlier.finding(place):
        chunk.findings[index] = finding
    if analysis.evaluation is not None and (seen := analysis.earlier.seen(place)):
        analysis.evaluation.add(seen)
    return entry["bands"]


def _keep_seen(analysis: Analysis, chunk: Chunk, index: int) -> None:
    """Takes what the evaluation index has seen since the last time, for a row or for the chunk."""
    if analysis.evaluation is not None and len((seen := analysis.evaluation.take())[0]):
        chunk.seen[index] = seen


def _with_reused(bands: np.ndarray, reused: dict[int, np.ndarray]) -> np.ndarray:
    """The bands of all rows of a chunk, B x N, from those that were computed, in order, and those by place."""
    if not reused:
        return bands
    everything = np.empty((NUM_BANDS, bands.shape[1] + len(reused)), np.uint64)
    is_new = np.ones(everything.shape[1], bool)
    is_new[list(reused)] = False
    everything[:, is_new] = bands
    everything[:, ~is_new] = np.array(list(reused.values())).T
    return everything


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
