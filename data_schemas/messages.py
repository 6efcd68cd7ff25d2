"""Messages in a row: OpenAI's form (role, content) and ShareGPT's (from, value), and what their keys mean.

| key of a message | meaning |
|---|---|
| `content` as a list of parts | their texts, one after the other; a part that is not text, or not trained, is refused |
| `tool_calls`, `function_call` | calls (tool_calls.py); an empty list and null are no calls |
| `weight`, `train`, `loss_mask`, … | 0 or false: the turn is context and is not trained (`Message.trained`) |
| `mask`, `ignore`, … | true: the same |
| `refusal`, `images`, `videos`, `audio`, … | refused where they have a value |
| `name`, `reasoning_content`, `thinking`, … | are kept as they are, for the chat template |
| other keys | ShareGPT's are ignored; OpenAI's are kept where they have a value: a chat template may use them |
"""

from collections.abc import Iterator
from typing import Any

from data_schemas.errors import WrongValue
from data_schemas.formats import describe
from data_schemas.nesting import parsed
from data_schemas.tool_calls import calls_of, spoken_calls

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
MEDIA = ("images", "image", "videos", "video", "audio", "audios")
# 0 or false: the turn is not trained.
TRAINING_KEYS = (
    "weight",  # OpenAI and Mistral
    "loss",  # ms-swift
    "loss_weight",
    "train",  # axolotl
    "training",
    "trainable",
    "is_trainable",
    "do_train",
    "should_train",
    "train_on_turn",
    "train_turn",
    "loss_mask",
    "train_mask",
    "compute_loss",
    "calculate_loss",
)
WEIGHTS = ("weight", "loss", "loss_weight")  # of which 1 may be beside any turn, as it is the default
# true: the turn is not trained.
MASKING_KEYS = ("mask", "masked", "is_masked", "mask_loss", "ignore", "ignored", "ignore_loss", "no_loss", "no_train")
ROW_TRAINING_KEYS = ("weight", "train")  # of a complete row
PART_TRAINING_KEYS = ("train_detail", "training_detail")  # axolotl: parts of a turn
# No template sees them.
READ_KEYS = frozenset((*TRAINING_KEYS, *MASKING_KEYS, *PART_TRAINING_KEYS, *MEDIA, "refusal"))
TEXT_PARTS = ("text", "input_text", "output_text")
PART_KEYS = READ_KEYS.union(("type", "text", "trained"))
# Keys that a turn of ShareGPT may have besides `from` and `value`, and that are kept for the chat template.
KEPT_KEYS = ("name", "reasoning_content", "reasoning", "thinking", "tool_calls", "tool_call_id")
KNOWN_KEYS = READ_KEYS.union(("from", "value", *KEPT_KEYS))
# Keys of OpenAI's messages, our own, and those that chat templates of well-known models use.
OPENAI_KEYS = READ_KEYS.union(
    (
        "role",
        "content",
        "function_call",
        *KEPT_KEYS,
        "trained",
        "prefix",
        "tool_plan",
        "tool_name",
        "channel",
        "recipient",
    )
)


UNLESS_USED = " (unless the chat template uses it)"


def messages_of(value: object, column: str) -> list[Fields]:
    """The messages of a column: a list, its JSON text, or a single message. Raises WrongValue for anything else."""
    if isinstance(value, str):
        value = parsed(value, column)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise WrongValue(column, describe(value), "a list of messages")
    return [_message(turn, f"{column}.{position}") for position, turn in enumerate(value)]


def unpacked(value: object) -> object:
    """The messages that are stored as JSON text, as in a CSV file; any other value as it is.

    A text counts as messages where it is a list of mappings with role and content, or with from and value.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        listed = parsed(value, "")
    except WrongValue:
        return value
    is_messages = isinstance(listed, list) and all(
        isinstance(turn, dict) and ({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys())
        for turn in listed
    )
    return listed if is_messages else value


def unread_keys(value: object, column: str) -> Iterator[str]:
    """The keys of a column's messages that only some chat template may read, as in `messages.note`."""
    value = unpacked(value)
    if isinstance(value, list):
        for turn in value:
            yield from unread_keys(turn, column)
    elif isinstance(value, dict) and ("role" in value or "from" in value):
        known, note = (OPENAI_KEYS, UNLESS_USED) if "role" in value else (KNOWN_KEYS, "")
        for key in value:
            if key not in known and not _is_empty(value[key]):
                yield f"{column}.{key}{note}"
        parts = value.get("content")
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                names = (key for key in part if key not in PART_KEYS and not _is_empty(part[key]))
                yield from (f"{column}.content.{key}" for key in names)


def refuse_media(fields: Fields, place: str = "") -> None:
    """Raises WrongValue where a row or a message has an image, a video or a sound: only text is trained."""
    for name in MEDIA:
        if fields.get(name):
            where = f"{place}.{name}" if place else name
            raise WrongValue(where, describe(fields[name]), "none: rows are text only; remove the key, or the row")


def is_trained(fields: Fields, place: str, *, names: tuple[str, ...] = TRAINING_KEYS) -> bool:
    """Whether the keys say that the turn or row is trained; true where there are none.

    Raises WrongValue for anything but 0, 1, true and false.
    """
    said = {name: fields[name] for name in names if name in fields and fields[name] is not None}
    for name, value in said.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise WrongValue(
                f"{place}{name}", describe(value), "0 or 1, false or true (trained in full, or not at all)"
            )
    return all(said.values())


def _is_masked(fields: Fields, place: str) -> bool:
    """Whether a key says that the turn is not trained. Raises WrongValue for anything but true and false."""
    said = {name: fields[name] for name in MASKING_KEYS if fields.get(name) is not None}
    for name, value in said.items():
        if not isinstance(value, bool):  # in a mask of numbers, 1 may as well mean that the turn is trained
            expected = "true (not trained) or false; a mask in which 1 is trained is `loss_mask`"
            raise WrongValue(f"{place}{name}", describe(value), expected)
    return any(said.values())


def _is_empty(value: object) -> bool:
    return value is None or value in ("", [], {})


def _message(turn: object, place: str) -> Fields:
    if not isinstance(turn, dict):
        raise WrongValue(place, describe(turn), "a message: role and content, or from and value")
    read = READ_KEYS.intersection(turn)
    if read:
        _refuse_untrainable(turn, place)
    fields = _of_sharegpt(turn, place) if "from" in turn and "role" not in turn else _of_openai(turn, place)
    if calls := calls_of(fields.pop("tool_calls", None), f"{place}.tool_calls"):
        fields["tool_calls"] = calls
    return fields | _trained(turn, fields.get("role"), place) if read else fields


def _refuse_untrainable(fields: Fields, place: str) -> None:
    """Raises WrongValue where a message, or a part of its content, has media or a refusal."""
    refuse_media(fields, place)
    if not _is_empty(fields.get("refusal")):
        expected = "none: a refusal is trained as the content of its turn; move it there, or leave the row out"
        raise WrongValue(f"{place}.refusal", describe(fields["refusal"]), expected)


def _of_openai(turn: Fields, place: str) -> Fields:
    fields = {
        name: value
        for name, value in turn.items()
        if name not in READ_KEYS and (name in OPENAI_KEYS or not _is_empty(value))
    }
    content = fields.get("content")
    if isinstance(content, list):
        fields["content"] = "".join(
            _text_of(part, fields.get("role"), f"{place}.content.{at}") for at, part in enumerate(content)
        )
    elif content is None:
        fields.pop("content", None)  # OpenAI's form has `content: null` beside tool calls
    if not _is_empty(call := fields.pop("function_call", None)):  # before OpenAI had tools
        if not _is_empty(fields.get("tool_calls")):
            raise WrongValue(f"{place}.function_call", describe(call), "none beside tool_calls")
        fields["tool_calls"] = [{"type": "function", "function": call}]
    if fields.get("role") == "function":
        fields["role"] = "tool"
    return fields


def _of_sharegpt(turn: Fields, place: str) -> Fields:
    speaker, content = turn["from"], turn.get("value")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise WrongValue(f"{place}.from", describe(speaker), f"one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise WrongValue(f"{place}.value", describe(content), "text")
    kept = {name: turn[name] for name in KEPT_KEYS if turn.get(name) is not None}
    if speaker == "function_call":
        return {"role": "assistant", "content": ""} | kept | {"tool_calls": spoken_calls(content, f"{place}.value")}
    return {"role": ROLES[speaker], "content": content} | kept


def _text_of(part: object, role: object, place: str) -> str:
    """The text of one part of a message's content.

    Raises WrongValue for a part that is not text, and for one that is not to be trained while its turn is.
    """
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS and isinstance(part.get("text"), str):
        _refuse_untrainable(part, place)
        is_context = _trained(part, role, place) or (role == "assistant" and part.get("trained") is False)
        if is_context:
            expected = "none: a turn is trained in full, or not at all; give the turn the key, or make two turns"
            raise WrongValue(place, "a part that is not trained", expected)
        return part["text"]
    found = f"a part of type {describe(part['type'])}" if isinstance(part, dict) and "type" in part else describe(part)
    raise WrongValue(place, found, "a part of type 'text' with its text (rows are text only)")


def _trained(turn: Fields, role: object, place: str) -> Fields:
    """The field of a turn that is not trained; nothing for any other turn."""
    for name in PART_TRAINING_KEYS:
        if turn.get(name):
            raise WrongValue(f"{place}.{name}", describe(turn[name]), "none: a turn is trained in full, or not at all")
    trained = is_trained(turn, f"{place}.") and not _is_masked(turn, f"{place}.")
    if role == "assistant":
        return {} if trained else {"trained": False}
    for name in TRAINING_KEYS:
        if name not in WEIGHTS and turn.get(name):
            expected = "false: only turns of the assistant are trained"
            raise WrongValue(f"{place}.{name}", f"true in a turn of {describe(role)}", expected)
    return {}
