"""The prompt of a row and the answers to it, where they are in separate columns.

| function | columns |
|---|---|
| `dialog` | messages or conversations, with an optional `system` column (LLaMA-Factory) |
| `instruction` | Alpaca's: instruction, input (or Dolly's context), system, history |
| `question` | a prompt as text, as an HH dialog that ends with an open `Assistant:`, or as messages |
| `answers` | the answers in other columns, without the prompt where they repeat it |

Messages may be stored as JSON text everywhere.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from data_schemas.errors import WrongValue
from data_schemas.formats import describe, is_number
from data_schemas.messages import ROLES, Fields, messages_of, unpacked
from data_schemas.text import is_distinctive

SYSTEM_COLUMNS = ("system", "system_prompt")  # the second only beside `question` and `query` (OpenOrca)


class Question(NamedTuple):
    """A prompt, and the form that it came in."""

    messages: list[Fields]
    text: str = ""  # of a prompt in plain text
    is_spoken: bool = False  # an HH dialog in one text


def number_as_text(value: object) -> object:
    """A finite number as its text, as of an answer to a sum; any other value as it is."""
    return str(value) if is_number(value) else value


def text_of(raw: Fields, column: str) -> str:
    """The column's text. Raises WrongValue for an empty text, and for any other value."""
    value = raw.get(column)
    if not isinstance(value, str):
        raise WrongValue(column, describe(value), "text")
    if not value.strip():
        raise WrongValue(column, "empty text", "text")
    return value


def text_or_number_of(raw: Fields, column: str) -> str:
    """The column's text, or its number as text. Raises WrongValue as `text_of` does."""
    return text_of({column: number_as_text(raw.get(column))}, column)


def user(text: str) -> Fields:
    return {"role": "user", "content": text}


def assistant(text: str) -> Fields:
    return {"role": "assistant", "content": text}


def system_of(raw: Fields, columns: Sequence[str] = SYSTEM_COLUMNS[:1]) -> list[Fields]:
    """The system message of the row's own column, or none. Raises WrongValue where two columns differ."""
    texts = {column: text_of(raw, column) for column in columns if raw.get(column)}
    if len({text.strip() for text in texts.values()}) > 1:
        raise WrongValue(", ".join(texts), "two different system messages", "one, or the same in both columns")
    return [{"role": "system", "content": text} for text in texts.values()][:1]


def after_system(raw: Fields, messages: list[Fields], columns: Sequence[str] = SYSTEM_COLUMNS[:1]) -> list[Fields]:
    """The messages, after the row's system column where there is one.

    Raises WrongValue where they have another system message themselves.
    """
    system = system_of(raw, columns)
    if not system or not messages or messages[0].get("role") != "system":
        return [*system, *messages]
    own = messages[0].get("content")
    if not isinstance(own, str) or own.strip() != system[0]["content"].strip():
        column = next(column for column in columns if raw.get(column))
        expected = f"the dialog's own system message, {describe(own)}, or no such column"
        raise WrongValue(column, describe(raw[column]), expected)
    return messages


def dialog(raw: Fields, column: str) -> list[Fields]:
    """The column's messages, after the row's `system` column where there is one (LLaMA-Factory)."""
    return after_system(raw, messages_of(raw[column], column))


def instruction(raw: Fields) -> list[Fields]:
    """Alpaca's columns up to the answer; `history` is earlier turns as [question, answer]."""
    messages = system_of(raw)
    history = raw.get("history") or []
    if not isinstance(history, list):
        raise WrongValue("history", describe(history), "a list of turns, each a question and its answer")
    for position, turn in enumerate(history):
        if not isinstance(turn, list) or len(turn) != 2:
            raise WrongValue(f"history.{position}", describe(turn), "a list of question and answer")
        messages += [user(turn[0]), assistant(turn[1])]
    text = text_or_number_of(raw, "instruction")
    more = [text_of(raw, name) for name in ("input", "context") if raw.get(name)]
    if len(set(more)) > 1:
        raise WrongValue("input, context", "two different texts", "one, or the same in both columns")
    text = "\n".join([text, *more[:1]])
    return [*messages, user(text)]


def question(raw: Fields, column: str = "prompt") -> Question:
    """The prompt of a column. Raises WrongValue for what is neither text nor messages."""
    is_prompt = column == "prompt"
    systems = SYSTEM_COLUMNS[:1] if is_prompt else SYSTEM_COLUMNS
    context = None if is_prompt else raw.get("context")  # a passage that the question is about
    value = number_as_text(unpacked(raw[column]))
    spoken = spoken_dialog(text_of({column: value}, column)) if isinstance(value, str) else None
    is_spoken = spoken is not None and len(spoken) > 1 and spoken[-1] == assistant("")
    if isinstance(value, str) and not is_spoken:
        text = f"{text_of(raw, 'context')}\n\n{value}" if context else value
        return Question([*system_of(raw, systems), user(text)], text)
    if context:
        raise WrongValue("context", describe(context), f"none beside a dialog in {column}: write it into a message")
    messages = spoken[:-1] if spoken is not None else messages_of(value, column)
    return Question(after_system(raw, messages, systems), is_spoken=is_spoken)


def spoken_dialog(text: str) -> list[Fields] | None:
    """The messages of an HH dialog, or None where the text is not one."""
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text.rstrip())
    if len(parts) < 3 or parts[0].strip():
        return None
    return [
        {"role": ROLES.get(speaker.lower(), speaker.lower()), "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def answers(asked: Question, given: Sequence[tuple[str, object]]) -> list[list[Fields]]:
    """The messages of each answer, without the prompt where the answers repeat it; `given` are columns and values.

    Where every answer begins with the words of a prompt in plain text, it is the columns that repeat it, and it is
    taken off. A short prompt ("Hi") is not: its answers may begin with the same word.
    """
    read = [_answer(asked, column, value) for column, value in given]
    prompt = asked.text.strip()
    texts = [
        _only_text(answer) if isinstance(value, str) else "" for answer, (_, value) in zip(read, given, strict=True)
    ]
    rests = [text[len(prompt) :] if _begins_with(prompt, text) else "" for text in texts]
    if is_distinctive(prompt) and all(rest.strip() for rest in rests):
        return [[assistant(rest.strip())] for rest in rests]
    return read


def _only_text(answer: list[Fields]) -> str:
    return answer[0]["content"] if len(answer) == 1 else ""


def _begins_with(prompt: str, text: str) -> bool:
    """Whether the text begins with the prompt, and the prompt does not end inside a word of it."""
    after = text[len(prompt) : len(prompt) + 1]
    return text.startswith(prompt) and not (prompt[-1:].isalnum() and after.isalnum())


def _answer(asked: Question, column: str, value: object) -> list[Fields]:
    value = number_as_text(unpacked(value))
    if not isinstance(value, str):
        messages = _rest(messages_of(value, column), asked.messages)
    else:
        text = text_of({column: value}, column).strip()
        spoken = _spoken_answer(asked, text)
        messages = [assistant(text)] if spoken is None else spoken
    if messages and messages[0].get("role") != "assistant":
        raise WrongValue(
            column,
            f"a dialog that begins with {describe(messages[0].get('role'))}",
            "the prompt's own messages, or an assistant message, first",
        )
    return messages


def _spoken_answer(asked: Question, text: str) -> list[Fields] | None:
    """The messages of an answer in HH's form; None for a text that only looks like it, since the prompt does not."""
    spoken = spoken_dialog(text)
    if asked.is_spoken:
        return _rest(spoken or spoken_dialog(f"\n\nAssistant: {text}") or [], asked.messages)
    rest = _rest(spoken, asked.messages) if spoken else spoken
    return rest if rest != spoken else None


def _rest(messages: list[Fields], prompt: list[Fields]) -> list[Fields]:
    """The messages after the prompt's own, where they begin with these, with or without the system message."""
    for repeated in (prompt, prompt[1:] if prompt and prompt[0].get("role") == "system" else prompt):
        if repeated and len(messages) >= len(repeated) and all(map(_is_same, messages, repeated)):
            return messages[len(repeated) :]
    return messages


def _is_same(turn: Fields, other: Fields) -> bool:
    """Whether two turns say the same; spaces around the content, and whether they are trained, do not count."""
    return _said(turn) == _said(other)


def _said(turn: Fields) -> Fields:
    said = {name: value for name, value in turn.items() if name != "trained"}
    return said | ({"content": said["content"].strip()} if isinstance(said.get("content"), str) else {})
