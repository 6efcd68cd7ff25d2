"""Messages in a row: OpenAI's form (role, content) and ShareGPT's (from, value), and what their keys mean.

| key of a message | meaning |
|---|---|
| `content` as a list of parts | their texts, one after the other; a part that is not text is refused |
| `tool_calls`, `function_call` | calls; `arguments` as JSON text are parsed; an empty list and null are no calls |
| `weight`, `train`, `training`, `loss` | 0 or false: the turn is context and is not trained (`Message.trained`) |
| `images`, `videos`, `audio`, … | refused where they have a value |
| `name`, `reasoning_content`, `thinking`, … | are kept as they are, for the chat template |
"""

from typing import Any

from data_schemas.errors import WrongValue
from data_schemas.formats import describe, from_json

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
MAX_DEPTH = 100  # of lists and mappings inside one another: not every JSON parser reads deeper ones back
MEDIA = ("images", "image", "videos", "video", "audio", "audios")
TRAINING_KEYS = ("weight", "train", "training", "loss")  # OpenAI and Mistral; axolotl; ms-swift
ROW_TRAINING_KEYS = ("weight", "train")  # of a complete row
PART_TRAINING_KEYS = ("train_detail", "training_detail")  # axolotl: parts of a turn
READ_KEYS = frozenset((*TRAINING_KEYS, *PART_TRAINING_KEYS, *MEDIA))  # no template sees them
TEXT_PARTS = ("text", "input_text", "output_text")
# Keys that a turn of ShareGPT may have besides `from` and `value`, and that are kept for the chat template.
KEPT_KEYS = ("name", "reasoning_content", "reasoning", "thinking", "tool_calls", "tool_call_id")
KNOWN_KEYS = ("from", "value", *KEPT_KEYS, *TRAINING_KEYS, *PART_TRAINING_KEYS, *MEDIA)


def messages_of(value: object, column: str) -> list[Fields]:
    """The messages of a column: a list, its JSON text, or a single message. Raises WrongValue for anything else."""
    if isinstance(value, str):
        value = parsed(value, column)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise WrongValue(column, describe(value), "a list of messages")
    return [_message(turn, f"{column}.{position}") for position, turn in enumerate(value)]


def parsed(text: str, place: str) -> object:
    """The value of a JSON text in a row. Raises WrongValue where it is not JSON, or too deep."""
    value = from_json(text, place)
    check_depth(value, place)
    return value


def check_depth(value: object, place: str) -> None:
    """Raises WrongValue where there are more than MAX_DEPTH lists and mappings inside one another."""
    if is_too_deep(value):
        raise WrongValue(place, f"lists or mappings more than {MAX_DEPTH} deep", "fewer inside one another")


def is_too_deep(value: object) -> bool:
    """Whether there are more than MAX_DEPTH lists and mappings inside one another."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inside: list[dict | list] = []
        for outer in level:
            for inner in outer.values() if isinstance(outer, dict) else outer:
                if isinstance(inner, (dict, list)):
                    inside.append(inner)
        if not inside:
            return False
        level = inside
    return True


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


def _message(turn: object, place: str) -> Fields:
    if not isinstance(turn, dict):
        raise WrongValue(place, describe(turn), "a message: role and content, or from and value")
    read = READ_KEYS.intersection(turn)
    if read:
        refuse_media(turn, place)
    fields = _of_sharegpt(turn, place) if "from" in turn and "role" not in turn else _of_openai(turn, place)
    if calls := _calls(fields.pop("tool_calls", None), f"{place}.tool_calls"):
        fields["tool_calls"] = calls
    return fields | _trained(turn, fields.get("role"), place) if read else fields


def _of_openai(turn: Fields, place: str) -> Fields:
    fields = {name: value for name, value in turn.items() if name not in READ_KEYS}
    content = fields.get("content")
    if isinstance(content, list):
        fields["content"] = "".join(_text_of(part, f"{place}.content.{at}") for at, part in enumerate(content))
    elif content is None:
        fields.pop("content", None)  # OpenAI's form has `content: null` beside tool calls
    if (call := fields.pop("function_call", None)) is not None:  # before OpenAI had tools
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
        return {"role": "assistant", "content": ""} | kept | {"tool_calls": _called(content, f"{place}.value")}
    return {"role": ROLES[speaker], "content": content} | kept


def _text_of(part: object, place: str) -> str:
    """The text of one part of a message's content."""
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"]
    found = f"a part of type {describe(part['type'])}" if isinstance(part, dict) and "type" in part else describe(part)
    raise WrongValue(place, found, "a part of type 'text' with its text (rows are text only)")


def _trained(turn: Fields, role: object, place: str) -> Fields:
    """The field of a turn that is not trained; nothing for any other turn."""
    for name in PART_TRAINING_KEYS:
        if turn.get(name):
            raise WrongValue(f"{place}.{name}", describe(turn[name]), "none: a turn is trained in full, or not at all")
    trained = is_trained(turn, f"{place}.")
    if role == "assistant":
        return {} if trained else {"trained": False}
    for name in ("train", "training"):
        if turn.get(name):
            expected = "false: only turns of the assistant are trained"
            raise WrongValue(f"{place}.{name}", f"true in a turn of {describe(role)}", expected)
    return {}


def _called(text: str, place: str) -> list[Fields]:
    """The calls of a turn of ShareGPT from `function_call`."""
    value = parsed(text, place)
    calls: list[Any] = value if isinstance(value, list) else [value]
    for call in calls:
        if not isinstance(call, dict) or "name" not in call:
            raise WrongValue(place, describe(call), "a function call with name and arguments")
    return [{"type": "function", "function": call | _arguments(call, place)} for call in calls]


def _calls(value: object, place: str) -> object:
    """Tool calls with arguments as mappings; None for no calls. Other values are left to the row's own checks."""
    if isinstance(value, str):
        value = parsed(value, place) if value.strip() else None
    if not isinstance(value, list):
        return value
    return [_call(call, f"{place}.{position}") for position, call in enumerate(value)] or None


def _call(call: object, place: str) -> object:
    if not isinstance(call, dict):
        return call
    if isinstance(function := call.get("function"), dict):
        return call | {"function": function | _arguments(function, f"{place}.function.arguments")}
    return call | _arguments(call, f"{place}.arguments")


def _arguments(call: Fields, place: str) -> Fields:
    """The arguments of a call as a mapping, where they are JSON text: a template would write text as a JSON string."""
    if not isinstance(text := call.get("arguments"), str):
        return {}
    arguments = parsed(text, place) if text.strip() else {}
    if not isinstance(arguments, dict):
        raise WrongValue(place, describe(text), "the JSON text of a mapping")
    return {"arguments": arguments}
