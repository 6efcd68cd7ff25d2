"""The rows of a .json file one after the other: of a list, of an object with one list, or of JSON lines; or the one row
that is the file.

The text is in memory by a piece that slides over it, and that grows where a row is longer.
"""

import itertools
import json
import re
from collections.abc import Iterator
from json.decoder import WHITESPACE  # pyright: ignore[reportAttributeAccessIssue]
from pathlib import Path
from typing import Any

from data_schemas.dialects import CONVERSATIONS, DOCUMENTS, PAIRS, PROMPTS
from data_schemas.errors import DataError, WrongValue
from data_schemas.formats import JSON, Line, Lines, RepeatedKey, describe, mapping_of, may_hold_surrogates, not_unicode
from data_schemas.line_files import FileLines, JSONLines
from data_schemas.messages import Fields
from data_schemas.plain_files import PlainFile

# The characters before the end of the piece in which a value, or an error in it, may be due to where the piece ends:
# as long as the longest of `-Infinity`, an escape of a character, and the end of a number.
NUM_DOUBTFUL = 16


class NotJSON(DataError):
    """A text that is not one JSON value."""


def json_rows(file: PlainFile) -> Lines:
    """The rows of a JSON file. Raises DataError for any other content.

    A row in which a key is repeated carries its error, as one with half a character does.
    """
    mark = _Text(file.path, file.chunks()).next()
    if mark != "{":
        return JSONRows(file) if mark else []
    try:
        is_row = _is_row(_outline(_Text(file.path, file.chunks())))
    except NotJSON:
        if _is_json_lines(file):
            return JSONLines(file)
        raise
    return [Line(1, *_Text(file.path, file.chunks()).value())] if is_row else JSONRows(file)


def _is_row(outline: Fields) -> bool:
    """Whether an object is itself a row: it has the columns of one, and no list of dialogs that are rows."""
    dialogs = any(_is_dialog(value[0]) for value in outline.values() if isinstance(value, list) and value)
    return not dialogs and any(dialect.is_named(outline) for dialect in (*DOCUMENTS, *CONVERSATIONS, *PROMPTS, *PAIRS))


def _is_dialog(value: object) -> bool:
    return isinstance(value, dict) and any(dialect.is_named(value) for dialect in CONVERSATIONS)


def _is_json_lines(file: PlainFile) -> bool:
    """Whether the file has several lines, of which the first is an object."""
    lines = JSONLines(file)
    first = next(iter(lines), None)
    if len(lines) < 2 or first is None:
        return False
    has_repeated = first.error is not None and isinstance(first.raw, str) and _is_repeating(first.raw)
    return isinstance(first.raw, dict) or has_repeated


class JSONRows(FileLines):
    """The rows of a list, or of an object with one list. Raises DataError for any other content."""

    def __init__(self, file: PlainFile) -> None:
        super().__init__(file.state)
        self._file = file

    def _rows(self) -> Iterator[Line]:
        text = _Text(self._file.path, self._file.chunks())
        for number, (value, error) in enumerate(_items_of_text(text), start=1):
            yield Line(number, value, error)


_Item = tuple[object, WrongValue | None]  # a value, and what is wrong with it


def _items_of_text(text: "_Text") -> Iterator[_Item]:
    """The items of the list. Raises DataError at the end of a text that is no list and has not exactly one."""
    start, num_lists, found = text.next(), 0, ""
    repeated: RepeatedKey | None = None
    if start == "[":
        num_lists = 1
        yield from _items(text)
    elif start == "{":
        names: dict[str, None] = {}
        for name in _names(text):
            repeated = repeated or (RepeatedKey(name) if name in names else None)
            names[name] = None
            if text.next() == "[":
                num_lists += 1
                yield from _items(text)
            else:
                text.value()
        found = describe(names)
    else:
        found = describe(text.value()[0])
    if text.next():
        raise text.error("Extra data")
    if repeated:
        raise DataError(f"{text.path} holds {repeated}, expected each key once; rename one of them")
    if num_lists != 1:
        raise DataError(f"{text.path} holds {found}, expected a list of rows, or an object with one such list")


def _outline(text: "_Text") -> Fields:
    """The keys of the object that the text is, with their values; of a list only the first item. Raises NotJSON."""
    outline: Fields = {}
    text.next()
    for name in _names(text):
        if text.next() == "[":
            items = _items(text)
            outline[name] = [value for value, _ in itertools.islice(items, 1)]
            for _ in items:
                pass
        else:
            outline[name] = text.value()[0]
    if text.next():
        raise text.error("Extra data")
    return outline


def _items(text: "_Text") -> Iterator[_Item]:
    """The values of the list that begins here."""
    text.skip()
    if text.next() == "]":
        text.skip()
        return
    while True:
        text.next()
        yield text.value()
        if _ends(text, "]"):
            return


def _names(text: "_Text") -> Iterator[str]:
    """The keys of the object that begins here; whoever asks for the next one has read the value."""
    text.skip()
    if text.next() == "}":
        text.skip()
        return
    while True:
        if text.next() != '"':
            raise text.error("Expecting property name enclosed in double quotes")
        name = text.value()[0]
        if text.next() != ":":
            raise text.error("Expecting ':' delimiter")
        text.skip()
        yield str(name)
        if _ends(text, "}"):
            return


def _ends(text: "_Text", end: str) -> bool:
    """Skips the mark behind a value. Returns whether it is the end; raises NotJSON where it is no comma either."""
    mark = text.next()
    if mark not in (end, ","):
        raise text.error("Expecting ',' delimiter")
    text.skip()
    return mark == end


class _Text:
    """A JSON text in a piece that slides over it, and a place in it."""

    def __init__(self, path: Path, chunks: Iterator[str]) -> None:
        self.path, self._chunks = path, chunks
        self._piece, self._at = "", 0
        self._is_end = False  # whether the piece is the text's last
        self._before, self._lines_before, self._column = 0, 0, 0  # characters, ends of lines, characters in the line

    def next(self) -> str:
        """The next character that is no white space, at which the place then is; the empty string at the end."""
        while True:
            self._at = WHITESPACE.match(self._piece, self._at).end()
            if self._at < len(self._piece):
                return self._piece[self._at]
            if self._is_end:
                return ""
            self._slide()

    def skip(self) -> None:
        """Moves behind a character."""
        self._at += 1

    def value(self) -> _Item:
        """The value that begins here, or its text where Python cannot read it. Raises NotJSON where there is none."""
        while True:
            try:
                value, end, has_repeated = _decode(self._piece, self._at)
                if self._is_end or end + NUM_DOUBTFUL < len(self._piece):
                    break
            except json.JSONDecodeError as error:
                is_cut = error.pos + NUM_DOUBTFUL >= len(self._piece) or error.msg.startswith("Unterminated string")
                if self._is_end or not is_cut:
                    raise self.error(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list in 1000 others
                if end := _end_of(self._piece, self._at, is_end=self._is_end):
                    raw, self._at = self._piece[self._at : end], end
                    return raw, WrongValue("row", f"{describe(raw)} ({error})", "JSON that can be read")
                if self._is_end:
                    raise NotJSON(f"{self.path} is not JSON ({error})") from None
            self._slide()
        start, self._at = self._at, end
        problem = _repeated_in(value) if has_repeated else None
        is_doubtful = may_hold_surrogates(self._piece, start, end)
        return value, problem or (not_unicode(value) if is_doubtful else None)

    def error(self, problem: str, at: int | None = None) -> NotJSON:
        """The error for a place in the piece, by default this one, in the words of Python's parser."""
        at = self._at if at is None else at
        line = self._lines_before + self._piece.count("\n", 0, at) + 1
        start = self._piece.rfind("\n", 0, at) + 1
        column = at - start + 1 + (0 if start else self._column)
        place = f"line {line} column {column} (char {self._before + at})"
        return NotJSON(f"{self.path} is not JSON ({problem}: {place})")

    def _slide(self) -> None:
        """Drops what is before the place, and reads more than is left, so that a long row takes linear time."""
        dropped, left = self._piece[: self._at], self._piece[self._at :]
        self._before += len(dropped)
        self._lines_before += dropped.count("\n")
        last = dropped.rfind("\n")
        self._column = len(dropped) - last - 1 if last >= 0 else self._column + len(dropped)
        parts, num_read = [left], 0
        while not self._is_end and num_read <= len(left):
            chunk = next(self._chunks, None)
            self._is_end = chunk is None
            parts.append(chunk or "")
            num_read += len(parts[-1])
        self._piece, self._at = "".join(parts), 0


def _decode(text: str, start: int) -> tuple[Any, int, bool]:
    """The value at a place, where it ends, and whether a mapping in it has a key twice."""
    try:
        return *JSON.raw_decode(text, start), False
    except RepeatedKey:
        return *_MARKING_JSON.raw_decode(text, start), True


def _end_of(text: str, start: int, *, is_end: bool) -> int | None:
    """Where the value ends that begins here, by its brackets, however deep they are; None where the text is cut off in
    it. `is_end`: nothing comes behind the text."""
    depth = 0
    for match in _PART.finditer(text, start):
        mark = match[0][0]
        depth += (mark in "[{") - (mark in "]}")
        if match[0] == '"' or (match.end() == len(text) and not is_end and mark not in "]}"):
            return None
        if not depth:
            return match.end()
    return None


# A string, the beginning of one without its end, a bracket, or a number or word.
_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}"]|[^\s,:\[\]{}"]+', re.DOTALL)


class _Repeated(dict[str, Any]):
    """A mapping whose JSON text has a key twice."""

    error: RepeatedKey


def _marked(items: list[tuple[str, Any]]) -> dict[str, Any]:
    try:
        return mapping_of(items)
    except RepeatedKey as error:
        mapping = _Repeated(items)
        mapping.error = error
        return mapping


_MARKING_JSON = json.JSONDecoder(object_pairs_hook=_marked)


def _is_repeating(text: str) -> bool:
    """Whether the text is an object in which a mapping has a key twice."""
    try:
        value = _MARKING_JSON.decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and _repeated_in(value) is not None


def _repeated_in(value: object) -> WrongValue | None:
    """The error of a row in which a mapping has a key twice."""
    level = [value]
    while level:
        inside: list[object] = []
        for outer in level:
            if isinstance(outer, _Repeated):
                return WrongValue("row", str(outer.error), "each key once")
            if isinstance(outer, dict | list):
                inside.extend(outer.values() if isinstance(outer, dict) else outer)
        level = inside
    return None
