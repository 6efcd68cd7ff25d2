"""One assistant turn as it is rendered, and where it lies in the text: from where it is generated to its end.

A turn is generated after the prompt with the generation prompt. Most templates render the finished dialog so that it
begins with exactly this text. Where they do not, the turn is written after the generation prompt here, as a policy
would have generated it:
- The generation prompt opens thoughts (`<think>`) that no finished turn has (DeepSeek-R1): what follows is the
  message's thoughts, or none, the end of thoughts, and the content.
- The template drops thoughts that are part of a content: what follows is the content as it is written.
- The template writes other white space, or moves a part of the prompt: what follows is the content.

The turn's termination (its end token and what follows it) is always the template's own.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from data_schemas.rows import Message
from engine.tokens.completeness import find, reasoning_of
from engine.tokens.rendering import PROBE, Tools, render

_OPENED = re.compile(r"<(\w*think\w*)>\s*$")
_NUM_ALIGNED = 8  # characters by which the end of a prompt is found again in a finished dialog


@dataclass(frozen=True)
class RenderedTurn:
    """A trained turn. Its characters are text[begin:finish]."""

    turn: int  # index of the message
    text: str  # of the dialog up to and including the turn
    begin: int  # characters of the prompt with the generation prompt
    finish: int
    content: tuple[int, int] | None = None  # characters [start, end) of the content, where they are known
    opening: str = ""  # the end of the prompt that only the generation prompt writes, and no finished turn

    def is_in(self, text: str) -> bool:
        """Whether a rendered dialog begins with the prompt and the turn, so that the turn can be trained in it."""
        return text.startswith(self.text[: self.finish])


def rendered_turn(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], turn: int, *, text: str, tools: Tools | None
) -> RenderedTurn:
    """The turn as it would be generated; `text` is the rendering of all messages.

    Raises ConfigError where the turn that the template writes can't be continued from its generation prompt.
    """
    message = messages[turn]
    before = render(tokenizer, messages[:turn], tools=tools, generation_prompt=True)
    upto = text if turn + 1 == len(messages) else render(tokenizer, messages[: turn + 1], tools=tools)
    if upto.startswith(before) and not _drops_thoughts(upto[len(before) :], message):
        finish = _end_of_turn(upto, len(before), str(tokenizer.eos_token or ""), is_last=not text.startswith(upto))
        return RenderedTurn(turn, upto, len(before), finish)
    return _continued(tokenizer, messages, turn, before, upto, tools)


def _end_of_turn(upto: str, begin: int, end_token: str, *, is_last: bool) -> int:
    """The character after which the turn is over.

    Some templates close a dialog by more end tokens (Phi 3), which are no part of its last turn. `is_last` says that
    something after the end token is written in the last turn only.
    """
    end = upto.rfind(end_token, begin) if end_token else -1
    before = upto.rfind(end_token, begin, end) if end >= 0 else -1
    is_repeated = False
    while before >= 0 and not upto[before + len(end_token) : end].strip():
        is_repeated, end = True, before
        before = upto.rfind(end_token, begin, end)
    return end + len(end_token) if end >= 0 and (is_repeated or is_last) else len(upto)


def _drops_thoughts(rendered: str, message: Message) -> bool:
    """Whether thoughts that are written in the content are not in the rendered turn."""
    return "</think>" in message.content and find(rendered, message.content) is None


def _continued(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    turn: int,
    before: str,
    upto: str,
    tools: Tools | None,
) -> RenderedTurn:
    """The turn as a policy generates it after `before`, where the template renders the finished turn differently."""
    message = messages[turn]
    probe = render(tokenizer, [*messages[:turn], Message(role="assistant", content=PROBE)], tools=tools)
    header, _, termination = probe.rpartition(PROBE)
    shared = sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(before, header, strict=False)))
    opening = before[shared:]  # what only the generation prompt has
    thoughts, opened = reasoning_of(message), _OPENED.search(opening)
    is_rendered = not header[shared:].strip() and upto.startswith(header[:shared])
    if not is_rendered and upto.startswith(before.rstrip()):
        finished = before + upto[len(before.rstrip()) :].lstrip()  # only white space differs
        return RenderedTurn(turn, finished, len(before), len(finished), opening=opening)
    if not is_rendered and (message.tool_calls or not _is_aligned(before, header)):
        raise ConfigError(
            f"the chat template renders turn {turn + 1} in another way than it asks for it: the generation prompt ends "
            f"with {before[-40:]!r}, the finished turn is {upto[shared:][:40]!r}; set another chat_template"
        )
    body = upto[shared:].removeprefix(header[shared:]) if is_rendered else message.content.strip() + termination
    lead = "" if is_rendered or before[-1:].isspace() else header[len(header.rstrip()) :]
    if "</think>" in message.content and not message.tool_calls:
        body = _without_opening(message.content, opening) + termination
    elif opened and thoughts:
        body = f"{thoughts.strip()}\n</{opened[1]}>\n\n{body}"
    elif opened:
        lead = f"\n</{opened[1]}>\n\n"
    text = f"{before}{lead}{body}"
    content = len(before) + len(lead), max(0, len(text) - len(termination))
    return RenderedTurn(turn, text, len(before), len(text), content, opening if opened else "")


def _is_aligned(before: str, header: str) -> bool:
    """Whether prompt and finished turn end alike before the content, up to white space."""
    end = before.rstrip()[-_NUM_ALIGNED:]
    return len(end) == _NUM_ALIGNED and header.rstrip().endswith(end)


def _without_opening(content: str, opening: str) -> str:
    """The content without the beginning of thoughts that the generation prompt has already written."""
    opened = opening.strip()
    stripped = content.lstrip()
    if opened and stripped.startswith(opened):
        rest = stripped[len(opened) :]
        return rest.lstrip("\n") if opening.endswith("\n") else rest
    return content
