"""What a source of rows contains: for `alignloop data`, which shows it before there is a recipe.

Of the kinds whose columns a source has, it is read as that of which most rows are valid. Where it has the columns of
none, columns with common other names are guessed, as Q and A for prompt and answer.

Memory does not grow with the texts: files are read again for each kind, and the rows are on the disk.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from data_schemas.dialects import PROMPTS, Dialect
from data_schemas.disk_list import DiskList
from data_schemas.errors import SetAside, WrongValue
from data_schemas.files import short_digest
from data_schemas.formats import Line, Lines, describe, format_of, shorten
from data_schemas.known_columns import check_names
from data_schemas.labels import pairs_of_labels
from data_schemas.row_kinds import KINDS, rows_of
from data_schemas.rows import Conversation, Document, Message, PreferencePair, Prompt, Row
from data_schemas.sources import Source

ORDER = ("preferences", "instructions", "documents", "prompts")  # of the kinds: a pair has the columns of a prompt too
PROMPT_COLUMNS = frozenset(name for dialect in PROMPTS for name in dialect.columns)
MAX_CHARACTERS = 2_000_000  # of which the scripts are counted
MAX_PLACES = 3  # of the rows with a problem that are named
# Our column -> words by which other people call it. A set of columns is guessed where each of them is found.
WORDS = {
    "prompt": "prompt question q query instruction problem user human request ask",
    "answer": "answer a response completion output reply solution assistant bot",
    "chosen": "chosen better preferred good winner win positive accepted best",
    "rejected": "rejected worse dispreferred bad loser lose negative worst",
    "text": "text content document body article passage story",
    "messages": "messages dialog dialogue chat conversation conversations thread",
}
GUESSES = (
    ("preferences", ("prompt", "chosen", "rejected")),
    ("preferences", ("chosen", "rejected")),
    ("instructions", ("messages",)),
    ("instructions", ("prompt", "answer")),
    ("documents", ("text",)),
    ("prompts", ("prompt",)),
)


LinesByFile = Mapping[str, Lines]


@dataclass
class Problem:
    """Bad rows with the same place in the row and the same expectation."""

    place_in_row: str  # `messages.content`, for messages of any number
    expected: str
    found: str  # in the first of them
    is_set_aside: bool  # for what the row says: it stops no run
    count: int = 0
    places: list[str] = field(default_factory=list)  # file:line of the first of them


@dataclass(frozen=True)
class PlacedRow:
    place: str  # file:line
    row: Row


@dataclass(frozen=True)
class Survey:
    """What a source contains. `kind` is empty where its columns are of no kind."""

    source: Source  # with guessed columns where there are any
    is_guessed: bool
    files: list[str]
    num_lines: int
    columns: list[str]
    text_columns: list[str]  # those in which a value may be a message
    kind: str
    other_kinds: list[str]  # that the rows could be read as, too
    dialects: dict[str, int]  # columns of a dialect -> rows in it
    rows: Sequence[PlacedRow]
    problems: list[Problem]
    ignored: list[str]  # columns that are not read
    num_duplicates: int  # rows whose texts are equal to those of an earlier row
    num_first_messages: int | None  # different first user messages, by which rows are split; None for documents


def survey(source: Source) -> Survey:
    """Reads all rows of a source. Raises UserError, as the readers do, where a file cannot be read."""
    by_file = dict(source.rows_by_file())
    check_names(source.columns, where=source.path)
    columns, of_text, found, has_columns = dict[str, None](), set[str](), set[str](), False
    for raw in _raws(by_file):
        has_columns = True
        columns.update(dict.fromkeys(map(str, raw)))
        of_text.update(name for name, value in raw.items() if name not in of_text and _is_text(value))
        found.update(kind for kind in ORDER if kind not in found and _dialect_of(raw, kind))
    kinds = [kind for kind in ORDER if kind in found]
    guess = None if kinds or source.columns or not has_columns else guess_columns(list(columns))
    if guess:
        kinds = [guess[0]]
        source = replace(source, columns=guess[1])
        by_file = {name: source.rename(name, lines) for name, lines in by_file.items()}
    kind, read = _best_of(by_file, kinds)
    if not has_columns:  # no row has columns: what is wrong with them is known
        read = _unreadable(by_file)
    if kind == "documents" and all(format_of(Path(file)) == ".txt" for file in by_file):
        kinds = [*kinds, "prompts"]  # one a line
    texts, first_messages = set[bytes](), set[bytes]()
    for item in read.rows:
        texts.add(_key(parts_of(item.row).items()))
        first_messages.add(_key(getattr(item.row, "group_id", None)))
    return Survey(
        source,
        is_guessed=guess is not None,
        files=list(by_file),
        num_lines=sum(map(len, by_file.values())),
        columns=list(columns),
        text_columns=[name for name in columns if name in of_text],
        kind=kind,
        other_kinds=[other for other in kinds if other != kind],
        dialects=dict(read.dialects.most_common()),
        rows=read.rows,
        problems=sorted(read.problems.values(), key=lambda problem: -problem.count),
        ignored=list(read.ignored),
        num_duplicates=len(read.rows) - len(texts),
        num_first_messages=None if kind == "documents" else len(first_messages),
    )


def _raws(by_file: LinesByFile) -> Iterator[dict[str, object]]:
    """The rows that have columns."""
    return (line.raw for lines in by_file.values() for line in lines if isinstance(line.raw, dict))


def _is_text(value: object) -> bool:
    """Whether the value may be a message or a dialog: a text with a letter, or a list."""
    return isinstance(value, list) or (isinstance(value, str) and any(map(str.isalpha, value)))


def _key(value: object) -> bytes:
    return short_digest(repr(value))


@dataclass
class _Read:
    """The rows of a source as one kind."""

    rows: DiskList[PlacedRow] = field(default_factory=DiskList)
    num_unused: int = 0  # lines of the files that are in no valid row
    dialects: Counter[str] = field(default_factory=Counter)
    problems: dict[tuple[str, str], Problem] = field(default_factory=dict)
    ignored: dict[str, None] = field(default_factory=dict)  # columns that nothing reads

    def add_problem(self, error: WrongValue, place: str) -> None:
        # Messages and list items are numbered: `messages.3.content` is one kind of problem for every number.
        field_name = re.sub(r"\.\d+", "", error.field)
        kind = (field_name, error.expected)
        is_set_aside = isinstance(error, SetAside)
        problem = self.problems.setdefault(kind, Problem(field_name, error.expected, error.found, is_set_aside))
        problem.count += 1
        if len(problem.places) < MAX_PLACES:
            problem.places.append(place)


def _placed(by_file: LinesByFile) -> Iterator[tuple[str, Line]]:
    return ((name, line) for name, lines in by_file.items() for line in lines)


def _read(by_file: LinesByFile, kind: str) -> _Read:
    row_type, dialects = KINDS[kind]
    read = _Read()
    for raw in _raws(by_file):
        if dialect := _dialect_of(raw, kind):
            read.dialects[" + ".join(dialect.columns)] += 1
    if row_type is PreferencePair:
        by_file = {name: pairs_of_labels(lines) for name, lines in by_file.items()}
    for name, line in _placed(by_file):
        place = f"{name}:{line.number}"
        try:
            rows, set_aside = rows_of(line, row_type, dialects, read.ignored)
        except WrongValue as error:
            rows, set_aside = [], [error]
        read.rows.extend(PlacedRow(place, row) for row in rows)
        read.num_unused += not rows
        for reason in set_aside:
            read.add_problem(reason, place)
    return read


def _unreadable(by_file: LinesByFile) -> _Read:
    """The problems of lines that are no mappings."""
    read = _Read()
    for name, line in _placed(by_file):
        error = line.error or WrongValue("row", describe(line.raw), "a mapping of columns to values")
        read.add_problem(error, f"{name}:{line.number}")
    return read


def _best_of(by_file: LinesByFile, kinds: Sequence[str]) -> tuple[str, _Read]:
    """The kind in whose valid rows most lines are, the first of several, and the rows.

    Every pair and every example has the columns of a prompt too, also where it is a bad one. So they are prompts only
    where they are valid as no other kind, and most of them have no columns besides those of a prompt that make one.
    """
    best, read, num_best, num_lines = "", _Read(), -1, sum(map(len, by_file.values()))
    for kind in kinds:
        if kind == "prompts" and (num_best > 0 or _are_more_than_prompts(by_file, kinds)):
            continue
        as_kind = _read(by_file, kind)
        num_valid = num_lines - as_kind.num_unused
        if num_valid > num_best:
            best, read, num_best = kind, as_kind, num_valid
        if not as_kind.problems:
            break
    return best, read


def _dialect_of(raw: Mapping[str, object], kind: str) -> Dialect | None:
    return next((dialect for dialect in KINDS[kind][1] if dialect.is_named(dict(raw))), None)


def _are_more_than_prompts(by_file: LinesByFile, kinds: Sequence[str]) -> bool:
    """Whether most rows with columns have those of another kind."""
    votes = Counter(any(_is_more_than_prompt(raw, kind) for kind in kinds) for raw in _raws(by_file))
    return votes[True] > votes[False]


def _is_more_than_prompt(raw: Mapping[str, object], kind: str) -> bool:
    """Whether a row has values in the columns of the kind, of which one belongs to no prompt."""
    dialect = _dialect_of(raw, kind)
    if dialect is None or PROMPT_COLUMNS.issuperset(dialect.columns):
        return False
    return all(raw[name] not in (None, "") for name in dialect.columns)


def guess_columns(columns: Sequence[str]) -> tuple[str, dict[str, str]] | None:
    """The kind, and our column -> column of the file, where the names say what the columns are; else None."""
    found = {ours: column for ours, words in WORDS.items() if (column := _named_by(words.split(), columns))}
    for kind, needed in GUESSES:
        if all(name in found for name in needed) and len({found[name] for name in needed}) == len(needed):
            return kind, {name: found[name] for name in needed if found[name] != name}
    return None


def _named_by(words: Sequence[str], columns: Sequence[str]) -> str | None:
    """The column whose name is one of the words, else the first that has one among its words."""
    split = {column: re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", column).lower()) for column in columns}
    exact = [column for word in words for column, parts in split.items() if parts == [word]]
    partly = [column for word in words for column, parts in split.items() if word in parts and len(word) > 1]
    return next(iter(exact + partly), None)


def parts_of(row: Row) -> dict[str, str]:
    """The texts of a row by what they are: its prompt, its answers."""
    match row:
        case Document():
            return {"text": row.text}
        case Conversation():
            return {"dialog": _text_of(row.messages), "last answer": _text_of(row.messages[-1:])}
        case PreferencePair():
            answers = {"chosen": _text_of(row.chosen), "rejected": _text_of(row.rejected)}
            return {"prompt": _text_of(row.prompt)} | answers
        case Prompt():
            return {"prompt": _text_of(row.prompt)}
    raise AssertionError(type(row))


def _text_of(messages: Sequence[Message]) -> str:
    return "\n".join(message.content for message in messages)


def scripts(texts: Iterable[str]) -> dict[str, float]:
    """The shares of the scripts among the letters of the texts, the most frequent first."""
    counts: Counter[str] = Counter()
    num_characters = 0
    for text in texts:
        counts.update(filter(None, map(_script_of, text)))
        num_characters += len(text)
        if num_characters > MAX_CHARACTERS:
            break
    return {script: count / counts.total() for script, count in counts.most_common()}


@cache
def _script_of(character: str) -> str:
    """The script of a letter, by the first word of its Unicode name; empty for other characters."""
    if not character.isalpha():
        return ""
    words = unicodedata.name(character, "").split()
    if "LATIN" in words:
        return "Latin"
    names = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "HALFWIDTH": "Kana"}
    return names.get(words[0], words[0].capitalize()) if words else "other"


def excerpt(text: str, limit: int) -> str:
    """The text, cut off with its length where it is longer than the limit."""
    return text if len(text) <= limit else f"{shorten(text, limit)} ({len(text):,} characters)"
