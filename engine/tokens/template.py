"""Chat templates: turns messages into tokens, and finds which of the tokens are trained.

The trained tokens are found by rendering, without markers in the template: the tokens of an assistant turn are those
between the rendered dialog before it (with the generation prompt) and the end token that closes it. This works for
every prefix-preserving template, that is, one that renders the first turns of a dialog in the same way whether or not
more turns follow.

Which of the trained tokens are formatting (header and termination of a turn) is found in the same way: the turn is
rendered a second time with other content, and the text around the content is formatting.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from data_schemas.rows import Message, for_template

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"chatml": (CHATML, ["<|im_start|>", "<|im_end|>"])}  # name -> template, its special tokens

IGNORED = -100  # a label that no loss sees
PROBE = "zqprobe"  # a word that no template writes itself
Tools = list[dict[str, Any]]  # JSON schemas of functions, as chat templates take them


@dataclass(frozen=True)
class Encoded:
    """One dialog in tokens. All three lists have one entry for each token of the dialog."""

    ids: list[int]
    trained: list[bool]  # whether a loss sees the token
    content: list[bool]  # whether it is a trained token of the message itself; without find_content, equal to `trained`

    @property
    def labels(self) -> list[int]:
        return [token if trained else IGNORED for token, trained in zip(self.ids, self.trained, strict=True)]


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    generation_prompt: bool = False,
) -> str:
    """The text of the dialog as the model reads it. Raises ConfigError where the template refuses the dialog."""
    try:
        text = tokenizer.apply_chat_template(
            for_template(messages),
            tools=tools,  # pyright: ignore[reportArgumentType]
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
    except Exception as error:  # a template is a program, which may raise anything
        roles = ", ".join(message.role for message in messages)
        raise ConfigError(f"the chat template refuses a dialog of {roles}: {' '.join(str(error).split())}") from error
    return str(text)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], *, tools: Tools | None = None
) -> list[int]:
    """The tokens from which an answer is generated: the prompt and the generation prompt."""
    return _encode(tokenizer, render(tokenizer, prompt, tools=tools, generation_prompt=True))[0]


def encode_dialog(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    train_from: int = 0,
    find_content: bool = False,
) -> Encoded:
    """The dialog up to the end token of its last trained turn. Every assistant turn from `train_from` on is trained,
    unless the message says otherwise.

    Every trained turn ends in a labelled end token. Raises ConfigError where the template is not prefix-preserving,
    closes a turn without an end token, or (with `find_content`) changes the content so that it can't be told from the
    formatting.
    """
    text = render(tokenizer, messages, tools=tools)
    turns: list[tuple[int, int, int]] = []  # index of a trained turn, and the first and last character of its text
    for turn, message in enumerate(messages):
        if message.role != "assistant" or turn < train_from or not message.trained:
            continue
        before = render(tokenizer, messages[:turn], tools=tools, generation_prompt=True)
        upto = render(tokenizer, messages[: turn + 1], tools=tools)
        if not text.startswith(before) or not text.startswith(upto):
            raise ConfigError(
                f"the chat template renders turn {turn + 1} differently once more turns follow it (it is not "
                "prefix-preserving): keep only the last assistant turn of such dialogs, or set another chat_template"
            )
        turns.append((turn, len(before), len(upto)))
    ids, offsets = _encode_cut(tokenizer, text, [begin for _, begin, _ in turns])
    trained, content = [False] * len(ids), [False] * len(ids)
    last = 0
    for turn, begin, finish in turns:
        # A token that is only white space may have a width of 0, because some tokenizers trim their offsets.
        span = [i for i, (start, end) in enumerate(offsets) if begin <= start and begin < end <= finish]
        ends = [i for i in span if ids[i] == tokenizer.eos_token_id]
        if not ends:
            raise ConfigError(
                f"turn {turn + 1} does not end in the end token {tokenizer.eos_token!r}: the chat template closes it "
                f"with {text[max(0, finish - 20) : finish]!r}; run prepare_base with a chat_template that ends each "
                "turn by an end token"
            )
        start_of_content, end_of_content = begin, finish
        if find_content:
            start_of_content, end_of_content = _content_span(tokenizer, text, messages, turn, begin, finish, tools)
        for i in span[: span.index(ends[-1]) + 1]:
            trained[i] = True
            start, end = offsets[i]
            content[i] = start < end_of_content and (end > start_of_content or start == end >= start_of_content)
        if find_content and not any(content[i] for i in span):
            raise ConfigError(f"turn {turn + 1} has no content between its header and its termination")
        last = ends[-1] + 1
    if not last:
        raise ConfigError("the dialog has no assistant turn to train")
    return Encoded(ids[:last], trained[:last], content[:last] if find_content else trained[:last])


def _content_span(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    messages: Sequence[Message],
    turn: int,
    begin: int,
    finish: int,
    tools: Tools | None,
) -> tuple[int, int]:
    """The characters [start, end) of the message's content in `text`, in which the turn is [begin, finish)."""
    probe = render(tokenizer, [*messages[:turn], Message(role="assistant", content=PROBE)], tools=tools)
    position = probe.find(PROBE, begin)
    header, termination = probe[begin:position], probe[position + len(PROBE) :]
    rendered = text[begin:finish]
    is_found = position >= 0 and len(header) + len(termination) <= len(rendered)
    if not is_found or not rendered.startswith(header) or not rendered.endswith(termination):
        raise ConfigError(
            f"formatting and content of turn {turn + 1} can't be told apart: with other content the chat template "
            f"writes {probe[begin:][:60]!r}; set mask_formatting: false, or set another chat_template"
        )
    return begin + len(header), finish - len(termination)


def encode_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    answer: Sequence[Message],
    *,
    tools: Tools | None = None,
) -> tuple[list[int], list[int]]:
    """Tokens of the prompt (with the generation prompt), and of the answer up to and including its end token."""
    dialog = encode_dialog(tokenizer, [*prompt, *answer], tools=tools, train_from=len(prompt))
    first = dialog.trained.index(True)
    return dialog.ids[:first], dialog.ids[first:]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token with which the template closes an assistant turn, or None. Raises ConfigError for a template
    that does not write the turn's content."""
    probe = "probe"
    text = render(tokenizer, [Message(role="user", content="question"), Message(role="assistant", content=probe)])
    if probe not in text:
        raise ConfigError(f"the chat template leaves out the content of an assistant turn: it writes {text[:60]!r}")
    ids, _ = _encode(tokenizer, text[text.rindex(probe) + len(probe) :])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((str(tokenizer.convert_ids_to_tokens(token)) for token in ids if token in special), None)


def read_template(name: str | None) -> tuple[str, list[str]] | None:
    """The template that `name` gives (a known name, a .jinja file, or the template's text), and the special tokens that
    it needs. Raises ConfigError where it is none of these."""
    if name is None:
        return None
    if name in TEMPLATES:
        return TEMPLATES[name]
    if "{%" in name or "{{" in name:
        return name, []
    try:
        return Path(name).read_text(encoding="utf-8"), []
    except UnicodeDecodeError:
        raise ConfigError(f"chat_template={name!r} is not UTF-8 text") from None
    except OSError:
        raise ConfigError(f"chat_template={name!r} is neither a file nor one of {', '.join(TEMPLATES)}") from None


def _encode_cut(
    tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens and their character offsets, with no token across a cut.

    The first white space of an answer must not merge into the prompt's last token, since an answer is generated from
    the prompt's tokens only.
    """
    ids, offsets = _encode(tokenizer, text)
    crossed = [cut for cut in cuts if any(start < cut < end for start, end in offsets)]
    if not crossed:
        return ids, offsets
    ids, offsets = [], []
    for begin, finish in itertools.pairwise([0, *crossed, len(text)]):
        part_ids, part_offsets = _encode(tokenizer, text[begin:finish])
        ids += part_ids
        offsets += [(begin + start, begin + end) for start, end in part_offsets]
    return ids, offsets


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    if not tokenizer.is_fast:
        raise ConfigError("the tokenizer has no fast version (tokenizer.json), which the token masks need")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), list(encoded["offset_mapping"])
