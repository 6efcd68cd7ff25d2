"""Any file in any known dialect -> rows. Every complaint says file, line, field, what was found, what was expected.

Formats: .jsonl, .jsonl.gz, .json (a list, an object with one list, or lines), .parquet, .csv, .txt, a folder of these
(searched recursively), or a hub name (`owner/name`, its train split) where no such path exists. A .txt is documents:
one a paragraph (blank lines between); in a file without a blank line, one a line.

A dialect is known by its columns, row by row; columns it does not need are ignored, except the fields of the row type
itself (`tools`, `group_id`, `strength`, …), so stored rows read back equal:
    documents      text
    conversations  messages | conversations (ShareGPT) | instruction, input, output (Alpaca)
    prompts        prompt | messages or conversations, less a last assistant turn | instruction, input
    pairs          prompt, chosen, rejected | conversations, chosen, rejected | instruction, chosen, rejected |
                   chosen, rejected: two whole dialogs, as messages or in one text (HH), that differ in the last answer
      rankings     an `edited` column beside chosen and rejected (edited > chosen > rejected) | prompt, ranked: a list
                   of answers, the best first | prompt, responses, scores: answers with numbers, higher is better
      dialogs      turns: a list of {prompt, chosen, rejected, edited}, one a user turn; each turn's prompt is the
                   dialog so far with the best answers, so a row gives as many pairs as it has turns
Line numbers are the file's own for .jsonl, .csv and .txt; for .json, .parquet and the hub the row's, from 1.
"""

import csv
import gzip
import io
import itertools
import json
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import ValidationError

from data_schemas.artifact import write_atomically
from data_schemas.rows import Conversation, Document, PreferencePair, Prompt, Row
from data_schemas.stage_keys import ConfigError

OnBadRow = Literal["error", "set_aside"]
Paths = str | Path | Sequence[str | Path]
Fields = dict[str, Any]
T = TypeVar("T", bound=Row)

FORMATS = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv", ".txt")
NUM_LINES_OF_A_LOOK = 50
MAX_BYTES_OF_A_LOOK = 4_000_000
ADVICE = "set on_bad_row: set_aside to skip and keep such rows in rejected_rows.jsonl"
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


@dataclass(frozen=True)
class BadRow:
    file: str
    line: int
    field: str
    found: str
    expected: str
    raw: Any

    @property
    def reason(self) -> str:
        return f"{self.field}: found {self.found}, expected {self.expected}"

    def to_json(self) -> str:
        """One line of rejected_rows.jsonl."""
        content = json.dumps(asdict(self) | {"reason": self.reason}, ensure_ascii=False, default=str)
        # Half a character, which may be why the row is here, goes back into its JSON escape.
        return content.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Read(Generic[T]):
    rows: list[T]
    bad: list[BadRow]


def read_documents(paths: Paths, *, on_bad_row: OnBadRow = "error") -> Read[Document]:
    """Texts to pretrain on. Raises ConfigError, as all four readers do."""
    return _read(paths, Document, DOCUMENTS, on_bad_row)


def read_conversations(paths: Paths, *, on_bad_row: OnBadRow = "error") -> Read[Conversation]:
    return _read(paths, Conversation, CONVERSATIONS, on_bad_row)


def read_prompts(paths: Paths, *, on_bad_row: OnBadRow = "error") -> Read[Prompt]:
    return _read(paths, Prompt, PROMPTS, on_bad_row)


def read_pairs(paths: Paths, *, on_bad_row: OnBadRow = "error") -> Read[PreferencePair]:
    return _read(paths, PreferencePair, PAIRS, on_bad_row)


def write_rows(path: Path, rows: Iterable[Row | BadRow]) -> int:
    """Writes one JSON object a line, whole or not at all; returns how many."""
    lines = [row.to_json() + "\n" for row in rows]
    write_atomically(path, "".join(lines))
    return len(lines)


def read_rows(path: Path, row_type: type[T]) -> list[T]:
    """The rows of a file that `write_rows` wrote: one type, no dialects, no bad rows. An empty file has none."""
    rows: list[T] = []
    try:
        with path.open("rb") as file:
            for line, content in enumerate(file, start=1):
                try:
                    rows.append(row_type.model_validate_json(content))
                except ValidationError as error:
                    bad = _first_error(error, row_type)
                    raise ConfigError(f"{path}:{line}: {bad} (not a stored {row_type.__name__})") from None
    except OSError as error:
        raise ConfigError(_cannot_open(path, error)) from None
    return rows


def check_columns(path: Path, kind: str) -> None:
    """A look at the first rows of a local file or folder, not at all of it: ConfigError where it is not of `kind`.

    `kind` is one of documents, instructions, preferences, prompts, evaluation_prompts. Large files of a format that
    has to be read whole are left to the stage.
    """
    dialects = {"documents": DOCUMENTS, "instructions": CONVERSATIONS, "preferences": PAIRS}.get(kind, PROMPTS)
    for file in _files(path):
        if _format(file).startswith(".jsonl"):
            opened = gzip.open if file.name.endswith(".gz") else open
            try:
                with opened(file, "rb") as stream:
                    lines = _json_lines(file, b"".join(itertools.islice(stream, NUM_LINES_OF_A_LOOK)))
            except (OSError, EOFError, zlib.error):
                lines = _lines(file)  # says what is wrong with it
        elif _format(file) != ".parquet" and file.stat().st_size < MAX_BYTES_OF_A_LOOK:
            lines = _lines(file)
        else:
            continue
        if not lines:
            raise ConfigError(f"{file} is empty: it has no rows")
        _check_columns(str(file), lines, dialects)


# --- one file after the other ---


class _Bad(ValueError):
    """Why a row is not one; `_read` adds the file and the line."""

    def __init__(self, field: str, found: str, expected: str) -> None:
        super().__init__(f"{field}: found {found}, expected {expected}")
        self.field, self.found, self.expected = field, found, expected


@dataclass(frozen=True)
class _Line:
    number: int
    raw: Any
    error: _Bad | None = None  # the line itself cannot be read


class _Dialect(NamedTuple):
    columns: tuple[str, ...]  # all of them are needed
    convert: Callable[[Fields], Fields | list[Fields]]  # the columns -> the fields of the row, or of several
    without: str = ""  # a column that makes it another dialect

    def matches(self, raw: Fields) -> bool:
        return all(raw.get(name) is not None for name in self.columns) and raw.get(self.without) is None


def _read(paths: Paths, row_type: type[T], dialects: tuple[_Dialect, ...], on_bad_row: OnBadRow) -> Read[T]:
    read: Read[T] = Read([], [])
    for name, lines in _sources([paths] if isinstance(paths, str | Path) else paths):
        if not lines:
            raise ConfigError(f"{name} is empty: it has no rows")
        _check_columns(name, lines, dialects)
        for line in lines:
            try:
                read.rows.extend(_rows(line, row_type, dialects))
            except _Bad as error:
                if on_bad_row == "error":
                    raise ConfigError(f"{name}:{line.number}: {error} ({ADVICE})") from None
                read.bad.append(BadRow(name, line.number, error.field, error.found, error.expected, line.raw))
    return read


def _check_columns(name: str, lines: Sequence[_Line], dialects: tuple[_Dialect, ...]) -> None:
    """Raises ConfigError where no row of a file has the columns: that is not a bad row but another kind of file."""
    mappings = [line.raw for line in lines if isinstance(line.raw, dict)]
    if mappings and not any(dialect.matches(raw) for raw in mappings for dialect in dialects):
        found = ", ".join(dict.fromkeys(str(column) for raw in mappings for column in raw)) or "none"
        raise ConfigError(f"{name} has the columns {_shorten(found, 200)}; expected {_accepted(dialects)}")


def _accepted(dialects: tuple[_Dialect, ...]) -> str:
    return " | ".join(
        " + ".join(dialect.columns) + (f" (without {dialect.without})" if dialect.without else "")
        for dialect in dialects
    )


def _rows(line: _Line, row_type: type[T], dialects: tuple[_Dialect, ...]) -> list[T]:
    """The rows that a line gives: one, but for a dialog of several comparisons."""
    if line.error:
        raise line.error
    raw = line.raw
    if not isinstance(raw, dict):
        raise _Bad("row", _describe(raw), "a mapping of columns to values")
    dialect = next((dialect for dialect in dialects if dialect.matches(raw)), None)
    if dialect is None:
        raise _Bad("columns", _shorten(", ".join(map(str, raw))) or "none", _accepted(dialects))
    try:
        converted = dialect.convert(raw)
        all_fields = converted if isinstance(converted, list) else [converted]
        return [row_type.model_validate(_carried(raw, row_type) | fields) for fields in all_fields]
    except ValidationError as error:
        raise _first_error(error, row_type) from None


def _carried(raw: Fields, row_type: type[Row]) -> Fields:
    """The columns that are fields of the row itself. In other people's files a `source` or `prompt_id` may be
    anything: text is carried, the rest is derived anew."""
    carried: Fields = {}
    for name, field in row_type.model_fields.items():
        if name == "between":
            continue  # part of what the answers are
        if name == "tools" and name in raw:
            carried |= _tools(raw["tools"])
        elif name in raw and not field.is_required() and (field.default is None or isinstance(raw[name], str)):
            carried[name] = raw[name]
    return carried


def _tools(value: Any) -> Fields:
    if not isinstance(value, str):
        return {"tools": value}
    parsed = _from_json(value, "tools") if value.strip() else []
    # An empty list in text means no tools; some templates ask whether there is a list, not whether it holds any.
    return {"tools": parsed} if parsed else {}


# --- the dialects ---


def _text(raw: Fields, column: str) -> str:
    value = raw.get(column)
    if not isinstance(value, str):
        raise _Bad(column, _describe(value), "text")
    if not value.strip():
        raise _Bad(column, "empty text", "text")
    return value


def _from_json(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        place = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        raise _Bad(column, f"{_describe(text)} ({place})", "JSON") from None


def _messages(value: Any, column: str) -> list[Fields]:
    """A list of messages in OpenAI's form (role, content) or ShareGPT's (from, value); one alone is a list of one."""
    if isinstance(value, str):
        value = _from_json(value, column)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise _Bad(column, _describe(value), "a list of messages")
    return [_message(turn, f"{column}.{position}") for position, turn in enumerate(value)]


def _message(turn: Any, place: str) -> Fields:
    if not isinstance(turn, dict):
        raise _Bad(place, _describe(turn), "a message: role and content, or from and value")
    if "from" not in turn or "role" in turn:
        # OpenAI's form has `content: null` beside tool calls.
        return {name: value for name, value in turn.items() if name != "content" or value is not None}
    speaker, said = turn["from"], turn.get("value")
    if speaker not in ROLES:
        raise _Bad(f"{place}.from", _describe(speaker), f"one of {', '.join(ROLES)}")
    if not isinstance(said, str):
        raise _Bad(f"{place}.value", _describe(said), "text")
    if speaker == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _tool_calls(said, f"{place}.value")}
    return {"role": ROLES[speaker], "content": said}


def _tool_calls(text: str, place: str) -> list[Fields]:
    calls = _from_json(text, place)
    calls = calls if isinstance(calls, list) else [calls]
    for call in calls:
        if not isinstance(call, dict) or "name" not in call:
            raise _Bad(place, _describe(call), "a function call with name and arguments")
        if isinstance(call.get("arguments"), str):
            call["arguments"] = _from_json(call["arguments"], place)
    return [{"type": "function", "function": call} for call in calls]


def _dialog(raw: Fields, column: str) -> list[Fields]:
    """The column's messages, after the row's `system` column where there is one (LLaMA-Factory)."""
    messages = _messages(raw[column], column)
    if raw.get("system") and (not messages or messages[0].get("role") != "system"):
        return [{"role": "system", "content": _text(raw, "system")}, *messages]
    return messages


def _instruction(raw: Fields) -> list[Fields]:
    """Alpaca's columns up to the answer; `history` is earlier turns as [question, answer]."""
    messages = [{"role": "system", "content": _text(raw, "system")}] if raw.get("system") else []
    for position, turn in enumerate(raw.get("history") or []):
        if not isinstance(turn, list) or len(turn) != 2:
            raise _Bad(f"history.{position}", _describe(turn), "a list of question and answer")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    question = _text(raw, "instruction")
    if raw.get("input"):
        question += "\n" + _text(raw, "input")
    return [*messages, {"role": "user", "content": question}]


def _spoken(text: str) -> list[Fields] | None:
    """The messages of an HH dialog, or None where the text is not one."""
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text.rstrip())
    if len(parts) < 3 or parts[0].strip():
        return None
    return [{"role": ROLES.get(who.lower(), who.lower()), "content": said.strip()}
            for who, said in zip(parts[1::2], parts[2::2], strict=True)]  # fmt: skip


def _question(raw: Fields) -> list[Fields]:
    """The `prompt` column: messages, plain text, or an HH dialog that ends with an open `Assistant:`."""
    if not isinstance(raw["prompt"], str):
        return _dialog(raw, "prompt")
    text = _text(raw, "prompt")
    spoken = _spoken(text)
    if spoken and len(spoken) > 1 and spoken[-1] == {"role": "assistant", "content": ""}:
        return spoken[:-1]
    system = [{"role": "system", "content": _text(raw, "system")}] if raw.get("system") else []
    return [*system, {"role": "user", "content": text}]


def _answer(raw: Fields, column: str, prompt: list[Fields]) -> list[Fields]:
    """The answer's messages, without the prompt where they repeat it."""
    if isinstance(raw[column], str):
        return [{"role": "assistant", "content": _text(raw, column).strip()}]
    messages = _messages(raw[column], column)
    if messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if messages and messages[0].get("role") != "assistant":
        raise _Bad(column, f"a dialog that begins with {_describe(messages[0].get('role'))}",
                   "the prompt's own messages, or an assistant message, first")  # fmt: skip
    return messages


def _pair(raw: Fields, prompt: list[Fields]) -> Fields:
    """Chosen and rejected, with an edited answer above them and answers between them where the row has such."""
    answers = [_answer(raw, name, prompt) for name in ("edited", "chosen") if raw.get(name)]
    between = [_answer({"between": answer}, "between", prompt) for answer in raw.get("between") or []]
    if answers[0] == answers[-1]:  # the edit changed nothing
        answers = answers[:1]
    return _ranking(prompt, [*answers, *between, _answer(raw, "rejected", prompt)])


def _ranking(prompt: list[Fields], answers: list[list[Fields]]) -> Fields:
    """The fields of a ranking, the best answer first, at the level of one turn: what all answers say alike up to a user
    turn belongs to the prompt, and what follows the turn in which they part is no answer to the same prompt."""
    same = 0
    while all(len(answer) > same and answer[same] == answers[0][same] for answer in answers):
        same += 1
    shared = [place for place, turn in enumerate(answers[0][:same]) if turn.get("role") == "user"]
    start = shared[-1] + 1 if shared else 0
    turns = [list(itertools.takewhile(lambda turn: turn.get("role") != "user", answer[start:])) for answer in answers]
    fields = {"prompt": prompt + answers[0][:start], "chosen": turns[0], "rejected": turns[-1]}
    return fields | ({"between": turns[1:-1]} if turns[1:-1] else {})


def _ranked(raw: Fields) -> Fields:
    """A list of answers, the best first."""
    ranked = raw["ranked"]
    if not isinstance(ranked, list) or len(ranked) < 2:
        raise _Bad("ranked", _describe(ranked), "a list of at least two answers, the best first")
    prompt = _question(raw)
    return _ranking(prompt, [_answer({"ranked": answer}, "ranked", prompt) for answer in ranked])


def _scored(raw: Fields) -> Fields:
    """Answers with a number each. Of answers with the same number the first is kept: a ranking has no ties."""
    responses, scores = raw["responses"], raw["scores"]
    if not isinstance(responses, list) or not isinstance(scores, list) or len(responses) != len(scores):
        raise _Bad("scores", _describe(scores), f"a number for each response of {_describe(responses)}")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise _Bad("scores", _describe(score), "finite numbers")
    best = {score: response for response, score in zip(reversed(responses), reversed(scores), strict=True)}
    if len(best) < 2:
        raise _Bad("scores", f"{len(best)} different scores", "at least two, or nothing is better than anything")
    order = sorted(best, reverse=True)
    ranking = _ranked(raw | {"ranked": [best[score] for score in order]})
    return ranking | {"chosen_score": float(order[0]), "rejected_score": float(order[-1])}


def _turns(raw: Fields) -> list[Fields]:
    """A dialog with a comparison at every turn; it goes on from the best answer of each."""
    if not isinstance(raw["turns"], list) or not raw["turns"]:
        raise _Bad("turns", _describe(raw["turns"]), "a list of turns with prompt, chosen and rejected")
    dialog = [{"role": "system", "content": _text(raw, "system")}] if raw.get("system") else []
    rows: list[Fields] = []
    for place, turn in enumerate(raw["turns"]):
        if not isinstance(turn, dict) or any(not turn.get(name) for name in ("prompt", "chosen", "rejected")):
            raise _Bad(f"turns.{place}", _describe(turn), "a turn with prompt, chosen and rejected")
        fields = _pair(turn, dialog + _question(turn))
        dialog = fields["prompt"] + fields["chosen"]
        rows.append(_carried(turn, PreferencePair) | fields)
    return rows


def _two_dialogs(raw: Fields) -> Fields:
    chosen, rejected = _whole_dialog(raw, "chosen"), _whole_dialog(raw, "rejected")
    if chosen[:-1] != rejected[:-1]:
        same = 0
        while chosen[same : same + 1] == rejected[same : same + 1]:
            same += 1
        raise _Bad("chosen, rejected", f"two different prompts (they part at message {same + 1})",
                   "dialogs that differ only in their last answer")  # fmt: skip
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _whole_dialog(raw: Fields, column: str) -> list[Fields]:
    if not isinstance(raw[column], str):
        return _messages(raw[column], column)
    messages = _spoken(_text(raw, column))
    if messages is None:
        expected = "a dialog of '\\n\\nHuman: …\\n\\nAssistant: …' (or a prompt column beside it)"
        raise _Bad(column, _describe(raw[column]), expected)
    return messages


def _asked(messages: list[Fields]) -> Fields:
    return {"prompt": messages[:-1] if messages and messages[-1].get("role") == "assistant" else messages}


def _alpaca(raw: Fields) -> Fields:
    return {"messages": [*_instruction(raw), {"role": "assistant", "content": _text(raw, "output")}]}


DOCUMENTS = (_Dialect(("text",), lambda raw: {"text": raw["text"]}),)
CONVERSATIONS = (
    _Dialect(("messages",), lambda raw: {"messages": _dialog(raw, "messages")}),
    _Dialect(("conversations",), lambda raw: {"messages": _dialog(raw, "conversations")}, without="chosen"),
    _Dialect(("instruction", "output"), _alpaca),
)
PROMPTS = (
    _Dialect(("prompt",), lambda raw: {"prompt": _question(raw)}),
    _Dialect(("messages",), lambda raw: _asked(_dialog(raw, "messages"))),
    _Dialect(("conversations",), lambda raw: _asked(_dialog(raw, "conversations"))),
    _Dialect(("instruction",), lambda raw: {"prompt": _instruction(raw)}),
)
PAIRS = (
    _Dialect(("prompt", "chosen", "rejected"), lambda raw: _pair(raw, _question(raw))),
    _Dialect(("conversations", "chosen", "rejected"), lambda raw: _pair(raw, _dialog(raw, "conversations"))),
    _Dialect(("instruction", "chosen", "rejected"), lambda raw: _pair(raw, _instruction(raw))),
    _Dialect(("chosen", "rejected"), _two_dialogs),
    _Dialect(("prompt", "ranked"), _ranked),
    _Dialect(("prompt", "responses", "scores"), _scored),
    _Dialect(("turns",), _turns),
)


# --- the formats ---


def _sources(paths: Iterable[str | Path]) -> Iterator[tuple[str, list[_Line]]]:
    """Every file's name and lines, folders opened up."""
    for given in paths:
        path = Path(given)
        if path.exists():
            for file in _files(path):
                yield str(file), _lines(file)
        elif re.fullmatch(r"[\w-]+/[\w.-]+", str(given)) and not _format(path) and not path.parent.is_dir():
            yield str(given), _hub_lines(str(given))
        else:
            raise ConfigError(f"{given} does not exist (nor is it a hub name, owner/name)")


def _files(path: Path) -> list[Path]:
    """The file itself, or the data files of a folder."""
    if not path.is_dir():
        return [path]
    inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    files = sorted(file for file in inside if _format(file) and not any(part[0] == "." for part in file.parts))
    if not files:
        raise ConfigError(f"{path} is a folder without data; expected {', '.join(FORMATS)} files in it")
    return [path / file for file in files]


def _format(path: Path) -> str:
    return next((ending for ending in FORMATS if path.name.lower().endswith(ending)), "")


def _cannot_open(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist"
    return f"{path} cannot be read ({error.strerror or error})"


def _lines(path: Path) -> list[_Line]:
    readers = {
        ".jsonl": _json_lines,
        ".jsonl.gz": lambda path, content: _json_lines(path, gzip.decompress(content)),
        ".json": _json_list,
        ".csv": _csv_lines,
        ".txt": _paragraphs,
    }
    ending = _format(path)
    if not ending:
        raise ConfigError(f"{path} is of no known format; expected one of {', '.join(FORMATS)}")
    try:
        if ending == ".parquet":
            return _parquet_lines(path)
        return readers[ending](path, path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} is not a whole gzip file ({error})") from None
    except OSError as error:
        raise ConfigError(_cannot_open(path, error)) from None


def _json_lines(path: Path, content: bytes) -> list[_Line]:
    content = content.removeprefix(b"\xef\xbb\xbf")
    # Only \n ends a line: str.splitlines would also split at U+2028 inside a text.
    numbered = enumerate(content.split(b"\n"), start=1)
    return [_json_line(number, line) for number, line in numbered if line.strip()]


def _json_line(number: int, line: bytes) -> _Line:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raw = line.decode("utf-8", errors="replace")
        return _Line(number, raw, _Bad("line", f"byte 0x{line[error.start]:02x} at {error.start + 1}", "UTF-8"))
    try:
        value = _from_json(text, "line")
    except _Bad as error:
        return _Line(number, text, error)
    return _Line(number, value, _not_unicode(value) if _may_hold_surrogates(text) else None)


def _may_hold_surrogates(text: str) -> bool:
    return "\\ud" in text or "\\uD" in text


def _not_unicode(value: Any) -> _Bad | None:
    """JSON can escape half a character, which neither a file nor a tokenizer takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        return _Bad("line", f"half a character (\\u{ord(error.object[error.start]):04x})", "whole characters")
    return None


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: found byte 0x{content[error.start]:02x}, expected UTF-8 text") from None


def _json_list(path: Path, content: bytes) -> list[_Line]:
    text = _decoded(path, content)
    if not text.strip():
        return []
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = _json_lines(path, content)
        if len(lines) > 1 and isinstance(lines[0].raw, dict):
            return lines  # JSON lines under the name .json
        raise ConfigError(f"{path} is not JSON ({error})") from None
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise ConfigError(f"{path} holds {_describe(value)}, expected a list of rows, or an object with one such list")
    doubtful = _may_hold_surrogates(text)
    return [_Line(number, row, _not_unicode(row) if doubtful else None) for number, row in enumerate(value, start=1)]


def _csv_lines(path: Path, content: bytes) -> list[_Line]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses a cell of 128 KiB
    reader = csv.reader(io.StringIO(_decoded(path, content), newline=""), strict=True)
    lines: list[_Line] = []
    start = 0
    try:
        header = next(reader, [])
        start = reader.line_num
        for cells in reader:
            number, start = start + 1, reader.line_num
            if not cells:
                continue
            error = None
            if len(cells) != len(header):
                error = _Bad("row", f"{len(cells)} cells", f"{len(header)}, as in the first line")
            raw = dict(zip(header, cells, strict=False)) if error is None else cells
            lines.append(_Line(number, raw, error))
    except csv.Error as error:
        raise ConfigError(f"{path}:{start + 1} is not CSV ({error})") from None
    return lines


def _paragraphs(path: Path, content: bytes) -> list[_Line]:
    lines = _decoded(path, content).rstrip().split("\n")
    by_line = all(line.strip() for line in lines)
    paragraphs: list[_Line] = []
    gathered: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            gathered.append(line.rstrip("\r"))
        if gathered and (by_line or not line.strip()):
            first = number if by_line else number - len(gathered)
            paragraphs.append(_Line(first, {"text": "\n".join(gathered)}))
            gathered = []
    return paragraphs


def _parquet_lines(path: Path) -> list[_Line]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, ValueError) as error:
        raise ConfigError(f"{path} is not a Parquet file ({_shorten(' '.join(str(error).split()))})") from None
    return [_Line(number, _unfilled(row)) for number, row in enumerate(table.to_pylist(), start=1)]


def _hub_lines(name: str) -> list[_Line]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split="train")
    except Exception as error:  # the hub's client raises a dozen kinds; all of them end here, in one line
        cause = _shorten(" ".join(str(error).split()), 200)
        raise ConfigError(f"{name}: no such path, and not to be had from the hub ({cause})") from None
    return [_Line(number, _unfilled(row)) for number, row in enumerate(rows, start=1)]


def _unfilled(value: Any) -> Any:
    """Without the None that Arrow puts in every nested mapping for keys that only other rows have."""
    if isinstance(value, dict):
        return {name: _unfilled(inner) for name, inner in value.items() if inner is not None}
    return [_unfilled(inner) for inner in value] if isinstance(value, list) else value


# --- saying what was found ---

EXPECTED = {
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "missing": "a value",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "extra_forbidden": "no such field",
    "json_invalid": "one JSON object",
}
# What rows.py says of a row as a whole: its words -> field, found, expected.
SAID = {
    "message is empty": ("", "an empty message", "text"),
    "text is empty": ("text", "empty text", "text"),
    "no messages": ("", "no messages", "at least one"),
    "no user message": ("", "no user message", "at least one"),
    "can only come first": ("", "a system message after the first message", "it only at the start"),
    "ranking are identical": ("ranking", "two identical answers", "different answers"),
    "are identical": ("chosen, rejected", "two identical answers", "two different answers"),
    "chosen does not end": ("chosen", "an answer without a last assistant message", "one that ends with it"),
    "rejected does not end": ("rejected", "an answer without a last assistant message", "one that ends with it"),
}


def _first_error(error: ValidationError, row_type: type[Row]) -> _Bad:
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or next(iter(row_type.model_fields))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        for words, (named, found, expected) in SAID.items():
            if words in message:
                return _Bad(named or field, found, expected)
        found, _, expected = message.partition(", expected ")
        return _Bad(field, found, expected or "a valid row")
    found = "nothing" if first["type"] == "missing" else _describe(first["input"])
    if first["type"] == "literal_error":
        return _Bad(field, found, first.get("ctx", {}).get("expected", message))
    if first["type"] == "json_invalid":
        field = "line"
    return _Bad(field, found, EXPECTED.get(first["type"], message))


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a mapping with {_shorten(', '.join(map(str, value)))}" if value else "an empty mapping"
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return _shorten(repr(value))


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
