"""Dialects: the columns of common data sets of documents, dialogs, prompts and pairs, and their conversion to ours.

A row's dialect is recognised by its columns. Other columns are ignored, and listed (`ignored_columns`), except the
fields of the row type itself (`tools`, `group_id`, `strength`, …), so that a stored row is read back unchanged:
    documents      text
    conversations  messages | conversations (ShareGPT) | instruction, input, output (Alpaca) | prompt, completion (TRL)
                   response or answer | question or query, answer, answers or response
    prompts        prompt | messages or conversations, less a last assistant turn | instruction, input | question |
                   query | turns: a list of texts (MT-Bench)
    pairs          prompt, question, query, conversations or instruction, with chosen, rejected |
                   chosen, rejected: two dialogs, as messages or in one text (HH), that differ only in the last answer
      rankings     an `edited` column beside chosen and rejected (edited > chosen > rejected) | prompt, ranked: a list
                   of answers, the best first; or `output` as such a list | prompt, responses, scores: answers with
                   numbers, higher is better; or `ranks`, 1 for the best
      dialogs      turns: a list of {prompt, chosen, rejected, edited}, one a user turn; each turn's prompt is the
                   dialog so far with the best answers, so a row gives as many pairs as it has turns
      labels       prompt, completion, label (KTO) | messages, label: pairs of the good and bad answers to a prompt

messages.py has what the keys of a message mean, pair_dialects.py the ratings beside pairs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from data_schemas.errors import SetAside, WrongValue
from data_schemas.formats import describe, is_number
from data_schemas.labels import LABELS, as_label, label_of, read_label, unpaired
from data_schemas.messages import MEDIA, ROW_TRAINING_KEYS, Fields, is_trained, refuse_media, unread_keys
from data_schemas.nesting import parsed
from data_schemas.pair_dialects import (
    BOTH_RATINGS,
    PAIR_COLUMNS,
    compared_turns,
    pair,
    ranked,
    scored,
    two_dialogs,
)
from data_schemas.questions import (
    SYSTEM_COLUMNS,
    Question,
    answers,
    assistant,
    dialog,
    instruction,
    number_as_text,
    question,
    system_of,
    text_or_number_of,
    user,
)
from data_schemas.rows import Conversation, Document, PreferencePair, Row

# Columns that may hold messages.
MESSAGES = tuple(
    "messages conversations prompt completion response answer chosen rejected edited between ranked output "
    "responses".split()
)
ALPACA = ("input", "context", "system", "history")


class Dialect(NamedTuple):
    """The columns by which a row is recognised, and how it is converted."""

    columns: tuple[str, ...]  # all of them are needed
    convert: Callable[[Fields], Fields | Sequence[Fields | SetAside]]  # raw row -> fields of one row, or of several
    without: str = ""  # a column with which the row is in another dialect
    listed: str = ""  # a column that must hold a list
    optional: tuple[str, ...] = ("system",)  # columns that the conversion reads where they are there

    def is_named(self, raw: Fields) -> bool:
        """Whether the raw row has the columns, with or without a value."""
        has_list = not self.listed or isinstance(raw.get(self.listed), list | None)
        is_excluded = bool(self.without) and raw.get(self.without) is not None
        return all(name in raw for name in self.columns) and has_list and not is_excluded

    def matches(self, raw: Fields) -> bool:
        """Whether the raw row has a value in each of the columns."""
        return self.is_named(raw) and all(raw[name] is not None for name in self.columns)


def accepted(dialects: Sequence[Dialect]) -> str:
    """The columns of all dialects, for an error: `a/b + c` is `a + c` or `b + c`."""
    alternatives: dict[tuple[str, str], list[str]] = {}
    for dialect in dialects:
        first, *others = [f"{name} (a list)" if name == dialect.listed else name for name in dialect.columns]
        excluded = f" (without {dialect.without})" if dialect.without else ""
        others = "".join(f" + {name}" for name in others)
        alternatives.setdefault((others, excluded if others else first), []).append(
            first + ("" if others else excluded)
        )
    return " | ".join(
        "/".join(firsts) + others + (of if others else "") for (others, of), firsts in alternatives.items()
    )


def _asked(messages: list[Fields]) -> Fields:
    return {"prompt": messages[:-1] if messages and messages[-1].get("role") == "assistant" else messages}


def _alpaca(raw: Fields, column: str = "output") -> Fields:
    return {"messages": [*instruction(raw), assistant(text_or_number_of(raw, column))]}


def _completed(raw: Fields, column: str) -> Fields:
    """TRL's prompt and completion: as there, only the completion is trained, not the answers in the prompt."""
    asked = question(raw)
    (completion,) = answers(asked, [(column, raw[column])])
    context = [turn | ({"trained": False} if turn.get("role") == "assistant" else {}) for turn in asked.messages]
    return {"messages": [*context, *completion]}


def _answered(raw: Fields, asked: str, column: str) -> list[Fields]:
    """A question and its answer. Of several answers, each different one is a row (SQuAD: those of `answers.text`)."""
    value = raw[column]
    given = value.get("text") if isinstance(value, dict) else value
    listed = given if isinstance(given, list) else [given]
    if not listed:
        raise WrongValue(column, "no answer", "at least one")
    prompt = question(raw, asked)
    rows = [
        answers(prompt, [(column, text)])[0]
        for text in dict.fromkeys(text_or_number_of({column: answer}, column) for answer in listed)
    ]
    return [{"messages": [*prompt.messages, *answer]} for answer in rows]


def _prompt(raw: Fields) -> Fields | list[Fields | SetAside]:
    listed = raw["prompt"]
    is_of_texts = isinstance(listed, list) and bool(listed) and all(isinstance(turn, str) for turn in listed)
    return _asked_in_turn(raw, "prompt") if is_of_texts else {"prompt": question(raw).messages}


def _asked_in_turn(raw: Fields, column: str = "turns") -> list[Fields | SetAside]:
    """MT-Bench: the user's turns as texts, and `reference` with a good answer to each.

    A later turn follows the reference answers to those before it; without them it has nothing to follow.
    """
    turns, listed = raw[column], raw.get("reference") or []
    references = listed if isinstance(listed, list) else [listed]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise WrongValue(column, describe(turns), "a list of texts, one for each turn of the user")
    if len(references) > len(turns):
        raise WrongValue("reference", describe(references), f"one answer for each of {len(turns)} turns")
    rows: list[Fields | SetAside] = []
    before: list[Fields] | None = system_of(raw)
    for place, turn in enumerate(turns):
        if before is None:
            found = "a later turn without an answer to the turn before it"
            rows.append(SetAside(f"{column}.{place}", found, "a reference answer to each earlier turn"))
            continue
        reference = references[place] if place < len(references) else None
        rows.append({"prompt": [*before, user(turn)], "reference": reference or None})
        before = [*before, user(turn), assistant(reference)] if isinstance(reference, str) and reference else None
    return rows


def carried_fields(raw: Fields, row_type: type[Row]) -> Fields:
    """The columns that are fields of the row itself.

    In files from elsewhere a `source` or `prompt_id` may hold anything: text is carried, other values are recomputed.
    So may a `score`: a number is carried. A document's `source` is its file.
    """
    carried: Fields = {}
    for name, field in row_type.model_fields.items():
        if name == "between" or (name == "source" and row_type is Document):
            continue  # the first is part of the answers
        if name == "tools" and name in raw:
            carried |= _tools(raw["tools"])
        elif name == "reference" and raw.get(name):
            carried[name] = _reference(raw[name])
        elif name == "score" and not is_number(raw.get(name)):
            continue
        elif name in raw and not field.is_required() and (field.default is None or isinstance(raw[name], str)):
            carried[name] = raw[name]
    return carried


def _tools(value: object) -> Fields:
    if not isinstance(value, str):
        return {"tools": value}
    listed = parsed(value, "tools") if value.strip() else []
    # An empty list in text means no tools; some templates test whether there is a list, not whether it is empty.
    return {"tools": listed} if listed else {}


def _reference(value: object) -> object:
    """The reference answer as text, from a list of one, or from a number."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return number_as_text(value)


def check_row(raw: Fields, row_type: type[Row]) -> None:
    """Refuses what a row says beside its texts and cannot be trained, and sets aside what is not to be trained.

    Raises WrongValue for images, videos and sounds, and for a weight that is neither 0 nor 1; SetAside for a row with
    `weight: 0` or `train: false`, and for a conversation that is labelled as a bad answer.
    """
    if row_type is Document:
        return
    refuse_media(raw)
    if not is_trained(raw, "", names=ROW_TRAINING_KEYS):
        column = next(name for name in ROW_TRAINING_KEYS if raw.get(name) is not None and not raw[name])
        raise SetAside(column, describe(raw[column]), "a row that is to be trained")
    column, value = label_of(raw)
    if row_type is not Conversation or not column:
        return
    label = as_label(value) if raw.get("completion") is None else read_label(raw)
    if label is False and raw.get("completion") is None and str(value) in ("0", "0.0"):
        raise WrongValue(column, describe(value), "true or false (KTO); rename the column if it is the name of a class")
    if label is False:
        raise SetAside(column, "a bad answer", "a good one: bad answers are not examples to train on")


def ignored_columns(raw: Fields, dialect: Dialect, row_type: type[Row]) -> list[str]:
    """The columns with a value that nothing reads, in order; also keys of messages, as `conversations.lang`."""
    known = {*dialect.columns, *dialect.optional, *row_type.model_fields}
    if row_type is not Document:
        known |= {*MEDIA, *ROW_TRAINING_KEYS}
    known |= {column for column in LABELS if row_type is Conversation and as_label(raw.get(column)) is not None}
    known -= {column for column in BOTH_RATINGS if not isinstance(raw.get(column), list)}
    known -= {"source"} if row_type is Document else set()
    known |= {"score"} if "score" in row_type.model_fields and is_number(raw.get("score")) else set()
    ignored = [column or "unnamed column" for column, value in raw.items() if column not in known and value is not None]
    if "tag" in row_type.model_fields and not isinstance(raw.get("tag") or "", str):
        ignored.append("tag (expected text)")
    for column in MESSAGES if row_type is not Document else ():
        if column in known and isinstance(value := raw.get(column), list | dict | str):
            ignored += unread_keys(value, column)
    return list(dict.fromkeys(ignored))


def _in_column(column: str) -> Callable[[Fields], Question]:
    """How the prompt of that column is read."""
    if column == "instruction":
        return lambda raw: Question(messages := instruction(raw), messages[-1]["content"])
    if column == "conversations":
        return lambda raw: Question(dialog(raw, column))
    return lambda raw: question(raw, column)


def _columns_beside(column: str) -> tuple[str, ...]:
    """The optional columns of a prompt in that column."""
    if column == "instruction":
        return ALPACA
    return (*SYSTEM_COLUMNS, "context") if column in ("question", "query") else ("system",)


def _pairs(column: str) -> Dialect:
    asked = _in_column(column)
    optional = (*PAIR_COLUMNS, *_columns_beside(column))
    return Dialect((column, "chosen", "rejected"), lambda raw: pair(raw, asked(raw)), optional=optional)


def _lists(asked_in: str, column: str) -> Dialect:
    asked = _in_column(asked_in)
    listed = "" if column == "ranked" else column
    return Dialect(
        (asked_in, column),
        lambda raw: ranked(raw, column, asked(raw)),
        listed=listed,
        optional=_columns_beside(asked_in),
    )


def _answers_in(asked: str, column: str) -> Dialect:
    return Dialect((asked, column), partial(_answered, asked=asked, column=column), optional=_columns_beside(asked))


DOCUMENTS = (Dialect(("text",), lambda raw: {"text": raw["text"]}, optional=()),)
CONVERSATIONS = (
    Dialect(("messages",), lambda raw: {"messages": dialog(raw, "messages")}),
    Dialect(("conversations",), lambda raw: {"messages": dialog(raw, "conversations")}, without="chosen"),
    Dialect(("instruction", "output"), _alpaca, optional=ALPACA),
    Dialect(("instruction", "response"), partial(_alpaca, column="response"), optional=ALPACA),
    Dialect(("prompt", "completion"), partial(_completed, column="completion")),
    Dialect(("prompt", "response"), partial(_completed, column="response")),
    Dialect(("prompt", "answer"), partial(_completed, column="answer")),
    *(_answers_in(asked, column) for asked in ("question", "query") for column in ("answer", "answers", "response")),
)
PROMPTS = (
    Dialect(("prompt",), _prompt),
    Dialect(("messages",), lambda raw: _asked(dialog(raw, "messages"))),
    Dialect(("conversations",), lambda raw: _asked(dialog(raw, "conversations"))),
    Dialect(("instruction",), lambda raw: {"prompt": instruction(raw)}, optional=ALPACA),
    *(
        Dialect((column,), lambda raw, column=column: {"prompt": question(raw, column).messages})
        for column in ("question", "query")
    ),
    Dialect(("turns",), _asked_in_turn),
)
PAIRS = (
    _pairs("prompt"),
    _pairs("conversations"),
    _pairs("instruction"),
    _pairs("question"),
    _pairs("query"),
    Dialect(("chosen", "rejected"), two_dialogs, optional=PAIR_COLUMNS),
    _lists("prompt", "ranked"),
    Dialect(("prompt", "responses", "scores"), scored),
    Dialect(("prompt", "responses", "ranks"), partial(scored, column="ranks", lowest_is_best=True)),
    Dialect(("turns",), partial(compared_turns, carried=partial(carried_fields, row_type=PreferencePair))),
    *(_lists(column, "output") for column in ("instruction", "prompt", "question", "query")),
    Dialect(("prompt", "completion", "label"), unpaired),
    Dialect(("messages", "label"), unpaired),
)
