"""Dialects: the columns of common data sets of documents, dialogs, prompts and pairs, and their conversion to ours.

A row's dialect is recognised by its columns. Other columns are ignored, except the fields of the row type itself
(`tools`, `group_id`, `strength`, …), so that a stored row is read back unchanged:
    documents      text
    conversations  messages | conversations (ShareGPT) | instruction, input, output (Alpaca) | prompt, answer
    prompts        prompt | messages or conversations, less a last assistant turn | instruction, input
    pairs          prompt, chosen, rejected | conversations, chosen, rejected | instruction, chosen, rejected |
                   chosen, rejected: two dialogs, as messages or in one text (HH), that differ only in the last answer
      rankings     an `edited` column beside chosen and rejected (edited > chosen > rejected) | prompt, ranked: a list
                   of answers, the best first | prompt, responses, scores: answers with numbers, higher is better
      dialogs      turns: a list of {prompt, chosen, rejected, edited}, one a user turn; each turn's prompt is the
                   dialog so far with the best answers, so a row gives as many pairs as it has turns
"""

import itertools
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from data_schemas.errors import WrongValue
from data_schemas.formats import describe, from_json
from data_schemas.rows import PreferencePair, Row

Fields = dict[str, Any]  # a raw row, or a row's fields before they are validated
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


class Dialect(NamedTuple):
    """The columns by which a row is recognised, and how it is converted."""

    columns: tuple[str, ...]  # all of them are needed
    convert: Callable[[Fields], Fields | list[Fields]]  # raw row -> the fields of one row, or of several
    without: str = ""  # a column with which the row is in another dialect

    def is_named(self, raw: Fields) -> bool:
        """Whether the raw row has the columns, with or without a value."""
        return all(name in raw for name in self.columns) and raw.get(self.without) is None

    def matches(self, raw: Fields) -> bool:
        """Whether the raw row has a value in each of the columns."""
        return self.is_named(raw) and all(raw[name] is not None for name in self.columns)


def _text(raw: Fields, column: str) -> str:
    value = raw.get(column)
    if not isinstance(value, str):
        raise WrongValue(column, describe(value), "text")
    if not value.strip():
        raise WrongValue(column, "empty text", "text")
    return value


def _messages(value: object, column: str) -> list[Fields]:
    """Messages in OpenAI's form (role, content) or ShareGPT's (from, value): a list, its JSON text, or a single one."""
    if isinstance(value, str):
        value = from_json(value, column)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise WrongValue(column, describe(value), "a list of messages")
    return [_message(turn, f"{column}.{position}") for position, turn in enumerate(value)]


def _message(turn: object, place: str) -> Fields:
    if not isinstance(turn, dict):
        raise WrongValue(place, describe(turn), "a message: role and content, or from and value")
    if "from" not in turn or "role" in turn:
        # OpenAI's form has `content: null` beside tool calls.
        return {name: value for name, value in turn.items() if name != "content" or value is not None}
    speaker, content = turn["from"], turn.get("value")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise WrongValue(f"{place}.from", describe(speaker), f"one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise WrongValue(f"{place}.value", describe(content), "text")
    if speaker == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _tool_calls(content, f"{place}.value")}
    return {"role": ROLES[speaker], "content": content}


def _tool_calls(text: str, place: str) -> list[Fields]:
    calls = from_json(text, place)
    calls = calls if isinstance(calls, list) else [calls]
    for call in calls:
        if not isinstance(call, dict) or "name" not in call:
            raise WrongValue(place, describe(call), "a function call with name and arguments")
        if isinstance(call.get("arguments"), str):
            call["arguments"] = from_json(call["arguments"], place)
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
    history = raw.get("history") or []
    if not isinstance(history, list):
        raise WrongValue("history", describe(history), "a list of turns, each a question and its answer")
    for position, turn in enumerate(history):
        if not isinstance(turn, list) or len(turn) != 2:
            raise WrongValue(f"history.{position}", describe(turn), "a list of question and answer")
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
    return [
        {"role": ROLES.get(speaker.lower(), speaker.lower()), "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


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
        raise WrongValue(
            column,
            f"a dialog that begins with {describe(messages[0].get('role'))}",
            "the prompt's own messages, or an assistant message, first",
        )
    return messages


def _pair(raw: Fields, prompt: list[Fields]) -> Fields:
    """The fields of a pair; of a ranking where the row has an edited answer, or answers between the two."""
    answers = [_answer(raw, name, prompt) for name in ("edited", "chosen") if name == "chosen" or raw.get(name)]
    listed = raw.get("between") or []
    if not isinstance(listed, list):
        raise WrongValue("between", describe(listed), "a list of answers")
    between = [_answer({"between": answer}, "between", prompt) for answer in listed]
    if answers[0] == answers[-1]:  # the edit changed nothing
        answers = answers[:1]
    return _ranking(prompt, [*answers, *between, _answer(raw, "rejected", prompt)])


def _ranking(prompt: list[Fields], answers: list[list[Fields]]) -> Fields:
    """The fields of a ranking, the best answer first, that compares one turn.

    Messages that all answers share up to a user turn belong to the prompt. Messages after the turn in which the answers
    differ are dropped, since they no longer answer the same prompt.
    """
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
        raise WrongValue("ranked", describe(ranked), "a list of at least two answers, the best first")
    prompt = _question(raw)
    return _ranking(prompt, [_answer({"ranked": answer}, "ranked", prompt) for answer in ranked])


def _scored(raw: Fields) -> Fields:
    """Answers with a number each. Of answers with the same number the first is kept: a ranking has no ties."""
    responses, scores = raw["responses"], raw["scores"]
    if not isinstance(responses, list) or not isinstance(scores, list) or len(responses) != len(scores):
        raise WrongValue("scores", describe(scores), f"a number for each response of {describe(responses)}")
    for score in scores:
        # An integer may be too large for a float, where isfinite() raises.
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= sys.float_info.max:
            raise WrongValue("scores", describe(score), "finite numbers")
    best = {score: response for response, score in zip(reversed(responses), reversed(scores), strict=True)}
    if len(best) < 2:
        raise WrongValue("scores", f"{len(best)} different scores", "at least two, or nothing is better than anything")
    order = sorted(best, reverse=True)
    ranking = _ranked(raw | {"ranked": [best[score] for score in order]})
    return ranking | {"chosen_score": float(order[0]), "rejected_score": float(order[-1])}


def _turns(raw: Fields) -> list[Fields]:
    """A dialog with a comparison at every turn; each turn continues from the best answer of the one before."""
    if not isinstance(raw["turns"], list) or not raw["turns"]:
        raise WrongValue("turns", describe(raw["turns"]), "a list of turns with prompt, chosen and rejected")
    dialog = [{"role": "system", "content": _text(raw, "system")}] if raw.get("system") else []
    rows: list[Fields] = []
    for place, turn in enumerate(raw["turns"]):
        if not isinstance(turn, dict) or any(not turn.get(name) for name in ("prompt", "chosen", "rejected")):
            raise WrongValue(f"turns.{place}", describe(turn), "a turn with prompt, chosen and rejected")
        fields = _pair(turn, dialog + _question(turn))
        dialog = fields["prompt"] + fields["chosen"]
        rows.append(carried_fields(turn, PreferencePair) | fields)
    return rows


def _two_dialogs(raw: Fields) -> Fields:
    chosen, rejected = _whole_dialog(raw, "chosen"), _whole_dialog(raw, "rejected")
    if chosen[:-1] != rejected[:-1]:
        same = 0
        while chosen[same : same + 1] == rejected[same : same + 1]:
            same += 1
        raise WrongValue(
            "chosen, rejected",
            f"two different prompts (they differ from message {same + 1} on)",
            "dialogs that differ only in their last answer",
        )
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _whole_dialog(raw: Fields, column: str) -> list[Fields]:
    if not isinstance(raw[column], str):
        return _messages(raw[column], column)
    messages = _spoken(_text(raw, column))
    if messages is None:
        expected = "a dialog of '\\n\\nHuman: …\\n\\nAssistant: …' (or a prompt column beside it)"
        raise WrongValue(column, describe(raw[column]), expected)
    return messages


def _asked(messages: list[Fields]) -> Fields:
    return {"prompt": messages[:-1] if messages and messages[-1].get("role") == "assistant" else messages}


def _alpaca(raw: Fields) -> Fields:
    return {"messages": [*_instruction(raw), {"role": "assistant", "content": _text(raw, "output")}]}


def _prompt_and_answer(raw: Fields) -> Fields:
    prompt = _question(raw)
    return {"messages": [*prompt, *_answer(raw, "answer", prompt)]}


def carried_fields(raw: Fields, row_type: type[Row]) -> Fields:
    """The columns that are fields of the row itself.

    In files from elsewhere a `source` or `prompt_id` may hold anything: text is carried, other values are recomputed.
    """
    carried: Fields = {}
    for name, field in row_type.model_fields.items():
        if name == "between":
            continue  # part of the answers
        if name == "tools" and name in raw:
            carried |= _tools(raw["tools"])
        elif name in raw and not field.is_required() and (field.default is None or isinstance(raw[name], str)):
            carried[name] = raw[name]
    return carried


def _tools(value: object) -> Fields:
    if not isinstance(value, str):
        return {"tools": value}
    parsed = from_json(value, "tools") if value.strip() else []
    # An empty list in text means no tools; some templates test whether there is a list, not whether it is empty.
    return {"tools": parsed} if parsed else {}


DOCUMENTS = (Dialect(("text",), lambda raw: {"text": raw["text"]}),)
CONVERSATIONS = (
    Dialect(("messages",), lambda raw: {"messages": _dialog(raw, "messages")}),
    Dialect(("conversations",), lambda raw: {"messages": _dialog(raw, "conversations")}, without="chosen"),
    Dialect(("instruction", "output"), _alpaca),
    Dialect(("prompt", "answer"), _prompt_and_answer),
)
PROMPTS = (
    Dialect(("prompt",), lambda raw: {"prompt": _question(raw)}),
    Dialect(("messages",), lambda raw: _asked(_dialog(raw, "messages"))),
    Dialect(("conversations",), lambda raw: _asked(_dialog(raw, "conversations"))),
    Dialect(("instruction",), lambda raw: {"prompt": _instruction(raw)}),
)
PAIRS = (
    Dialect(("prompt", "chosen", "rejected"), lambda raw: _pair(raw, _question(raw))),
    Dialect(("conversations", "chosen", "rejected"), lambda raw: _pair(raw, _dialog(raw, "conversations"))),
    Dialect(("instruction", "chosen", "rejected"), lambda raw: _pair(raw, _instruction(raw))),
    Dialect(("chosen", "rejected"), _two_dialogs),
    Dialect(("prompt", "ranked"), _ranked),
    Dialect(("prompt", "responses", "scores"), _scored),
    Dialect(("turns",), _turns),
)
