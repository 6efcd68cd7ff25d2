"""Whether a rendered dialog holds everything that its messages say.

A template is free to leave out what it does not know: tool calls, reasoning, the list of tools. What is trained would
then not be what the row says (a turn that calls a tool becomes an empty turn), so such a row is refused by name.

Compared are each turn's content, the names and argument values of tool calls, the reasoning, and the names of the
tools, in the order of the turns. White space around them (and around the thoughts within a content) and JSON escapes
may differ, but not white space within them: code without its line breaks is other code. Thoughts of a turn that is only
context may be missing: Qwen 3 and DeepSeek-R1 leave out earlier thoughts by design.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from data_schemas.rows import Message
from engine.tokens.rendering import PROBE, Tools, render

REASONING = ("reasoning_content", "reasoning", "thinking")  # keys of a message that hold its thoughts
_TAG_OF_THOUGHTS = re.compile(r"(</?\w*think\w*>)")
_END_OF_THOUGHTS = re.compile(r"^.*</\w*think\w*>", re.DOTALL)
_REMEDY = "set on_bad_row: set_aside to leave such rows out, or run prepare_base with a chat_template that renders it"
_WRITES_TOOLS: dict[str, bool] = {}  # by the text of the template


def reasoning_of(message: Message) -> str:
    """The thoughts that a message carries beside its content; the empty string without any."""
    extra = message.model_extra or {}
    return next((text for key in REASONING if isinstance(text := extra.get(key), str) and text.strip()), "")


def without_thoughts(content: str) -> str:
    """The content after its last block of thoughts."""
    return _END_OF_THOUGHTS.sub("", content)


def find(text: str, said: str, begin: int = 0, finish: int | None = None) -> tuple[int, int] | None:
    """The first place [start, end) in text[begin:finish] of what a message says; None where it is nowhere.

    White space around it, and around the tags of thoughts in it, is ignored. It may be written as in JSON.
    """
    finish = len(text) if finish is None else finish
    core = said.strip()
    at = text.find(core, begin, finish)
    if at >= 0:
        return at, at + len(core)
    for is_ascii in (False, True):
        escaped = json.dumps(core, ensure_ascii=is_ascii)[1:-1]
        at = text.find(escaped, begin, finish)
        if at >= 0:
            return at, at + len(escaped)
    parts = [part.strip() for part in _TAG_OF_THOUGHTS.split(core)]
    if len(parts) == 1:
        return None
    match = re.compile(r"\s*".join(map(re.escape, filter(None, parts)))).search(text, begin, finish)
    return match.span() if match else None


def check_complete(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    messages: Sequence[Message],
    spans: Mapping[int, tuple[int, int]],
    tools: Tools | None,
) -> None:
    """Raises ConfigError naming what the rendered text of the messages leaves out, and in which turn (counted from 1).

    `spans` has the characters [begin, finish) of each trained turn; the others lie between them.
    """
    position = 0
    for turn, message in enumerate(messages):
        if turn in spans:
            begin, position = spans[turn]
            missing = _missing_in_trained(text[begin:position], message)
        else:
            finish = next((begin for later, (begin, _) in sorted(spans.items()) if later > turn), len(text))
            missing, position = _missing_in_context(text, message, position, finish)
        if missing:
            raise ConfigError(f"the chat template {missing} of turn {turn + 1}: {_REMEDY}")
    names = [str(_function(tool).get("name", "")) for tool in tools or []]
    if names and not _writes_tools(tokenizer):
        raise ConfigError(f"the chat template leaves out the tools ({', '.join(names)[:60]}): {_REMEDY}")
    if absent := next((name for name in names if name not in text), None):
        raise ConfigError(f"the chat template leaves out the tool {absent!r}: {_REMEDY}")


def _missing_in_trained(region: str, message: Message) -> str:
    """What the text of a trained turn leaves out or changes, in words.

    Each part is looked for outside of the parts before it.
    """
    for name, said in (("reasoning", reasoning_of(message)), ("content", message.content)):
        if said.strip():
            place = find(region, said)
            if place is None:
                return _difference(region, said, name)
            region = f"{region[: place[0]]}\n{region[place[1] :]}"
    return "" if all(_is_in(region, said) for said in _calls(message)) else "leaves out the tool calls"


def _difference(region: str, said: str, name: str) -> str:
    """The clause of an error that says how the rendered text differs: in white space only, or in other characters."""
    is_same = "".join(said.split()) in "".join(region.split())
    return f"changes the white space within the {name}" if is_same else f"leaves out the {name}"


def _missing_in_context(text: str, message: Message, position: int, finish: int) -> tuple[str, int]:
    """What text[position:finish] leaves out or changes, in words, and the position after the message."""
    content = without_thoughts(message.content) if message.role == "assistant" else message.content
    region = text[position:finish]
    if content.strip():
        # Some templates write the system message into the first or the last user turn.
        begin = 0 if message.role == "system" else position
        place = find(text, content, begin, finish)
        if place is None:
            return _difference(text[begin:finish], content, "content"), position
        if message.role != "system":
            position = place[1]
    return ("" if all(_is_in(region, said) for said in _calls(message)) else "leaves out the tool calls"), position


def _calls(message: Message) -> Iterator[object]:
    """The names and the argument values of a message's tool calls."""
    for call in message.tool_calls or []:
        function = _function(call)
        yield function.get("name", "")
        yield from _leaves(function.get("arguments"))


def _function(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The function of an entry of `tools` or `tool_calls`, which some rows give without the level around it."""
    function = entry.get("function")
    return function if isinstance(function, Mapping) else entry


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    elif value is not None:
        yield value


def _is_in(region: str, value: object) -> bool:
    if isinstance(value, str):
        return find(region, value) is not None
    return str(value) in region or json.dumps(value) in region


def _writes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template writes the list of tools at all."""
    template = str(tokenizer.chat_template)
    if template not in _WRITES_TOOLS:
        function = {"name": PROBE, "description": "", "parameters": {"type": "object", "properties": {}}}
        question = [Message(role="user", content="question")]
        try:
            text = render(
                tokenizer, question, tools=[{"type": "function", "function": function}], generation_prompt=True
            )
        except ConfigError:
            text = PROBE  # a template with its own demands on tools
        _WRITES_TOOLS[template] = PROBE in text
    return _WRITES_TOOLS[template]
