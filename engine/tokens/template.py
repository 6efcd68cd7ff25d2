"""Chat templates: from messages to tokens, and which of the tokens are trained.

What is trained is found by rendering alone, without markers in the template: an assistant turn's tokens are those
between the rendered dialog before it (with the generation prompt) and the end token that closes it. This holds for
every prefix-preserving template, that is, one that renders the first turns of a dialog as it renders them alone.

Which of the trained tokens are formatting (header and termination of a turn) is found in the same way: a turn is
rendered once more with other words, and what stays the same around them is formatting.
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
NAMED = {"chatml": (CHATML, ["<|im_start|>", "<|im_end|>"])}  # name -> template, its special tokens

IGNORED = -100  # a label that no loss sees
PROBE = "zqprobe"  # words that no template writes itself


@dataclass(frozen=True)
class Encoded:
    """One dialog in tokens. `trained[i]` says whether the loss sees token i; all lists have the dialog's length.

    `content[i]` says whether a trained token is of the message itself, not of its header or termination; it is
    `trained` where the content was not asked for.
    """

    ids: list[int]
    trained: list[bool]
    content: list[bool]

    @property
    def labels(self) -> list[int]:
        return [token if trained else IGNORED for token, trained in zip(self.ids, self.trained, strict=True)]


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: list[dict[str, Any]] | None = None,
    generation_prompt: bool = False,
) -> str:
    """The dialog as the model reads it. Raises ConfigError where the template refuses the dialog."""
    try:
        text = tokenizer.apply_chat_template(
            for_template(messages),
            tools=tools,  # pyright: ignore[reportArgumentType]
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
    except Exception as error:  # a template is a program of somebody's
        roles = ", ".join(message.role for message in messages)
        raise ConfigError(f"the chat template refuses a dialog of {roles}: {' '.join(str(error).split())}") from error
    return str(text)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], *, tools: list[dict[str, Any]] | None = None
) -> list[int]:
    """The tokens an answer is generated from."""
    return _encode(tokenizer, render(tokenizer, prompt, tools=tools, generation_prompt=True))[0]


def encode_dialog(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: list[dict[str, Any]] | None = None,
    train_from: int = 0,
    find_content: bool = False,
) -> Encoded:
    """The whole dialog, up to the end token of its last turn, with every assistant turn from `train_from` on trained.

    Every trained turn ends in a labelled end token. Raises ConfigError where the template is not prefix-preserving,
    closes a turn without an end token, or (with `find_content`) does not tell content from formatting.
    """
    text = render(tokenizer, messages, tools=tools)
    turns: list[tuple[int, int, int]] = []  # number of a trained turn, where its text begins and ends
    for turn, message in enumerate(messages):
        if message.role != "assistant" or turn < train_from:
            continue
        before = render(tokenizer, messages[:turn], tools=tools, generation_prompt=True)
        upto = render(tokenizer, messages[: turn + 1], tools=tools)
        if not text.startswith(before) or not text.startswith(upto):
            raise ConfigError(
                f"the chat template renders turn {turn + 1} otherwise once more turns follow it (it is not "
                "prefix-preserving): keep only the last assistant turn of such dialogs, or give another chat_template"
            )
        turns.append((turn, len(before), len(upto)))
    ids, offsets = _encode_cut(tokenizer, text, [begin for _, begin, _ in turns])
    trained, content = [False] * len(ids), [False] * len(ids)
    last = 0
    for turn, begin, finish in turns:
        # A token of spaces alone may have no width: some tokenizers trim their offsets.
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
    tools: list[dict[str, Any]] | None,
) -> tuple[int, int]:
    """Where the message's own words begin and end in `text`, of which the turn has [begin, finish)."""
    probe = render(tokenizer, [*messages[:turn], Message(role="assistant", content=PROBE)], tools=tools)
    place = probe.find(PROBE, begin)
    header, termination = probe[begin:place], probe[place + len(PROBE) :]
    rendered = text[begin:finish]
    known = place >= 0 and len(header) + len(termination) <= len(rendered)
    if not known or not rendered.startswith(header) or not rendered.endswith(termination):
        raise ConfigError(
            f"the chat template does not tell formatting from content in turn {turn + 1}: it writes "
            f"{probe[begin:][:60]!r} around other words; set mask_formatting: false, or give another chat_template"
        )
    return begin + len(header), finish - len(termination)


def encode_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    answer: Sequence[Message],
    *,
    tools: list[dict[str, Any]] | None = None,
) -> tuple[list[int], list[int]]:
    """Tokens of the prompt (its generation prompt included) and of the answer, through its end token."""
    whole = encode_dialog(tokenizer, [*prompt, *answer], tools=tools, train_from=len(prompt))
    first = whole.trained.index(True)
    return whole.ids[:first], whole.ids[first:]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token by which the template closes an assistant turn, or None."""
    probe = "probe"
    text = render(tokenizer, [Message(role="user", content="question"), Message(role="assistant", content=probe)])
    if probe not in text:
        raise ConfigError(f"the chat template leaves out what an assistant turn says: it writes {text[:60]!r}")
    ids, _ = _encode(tokenizer, text[text.rindex(probe) + len(probe) :])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((str(tokenizer.convert_ids_to_tokens(token)) for token in ids if token in special), None)


def read_template(name: str | None) -> tuple[str, list[str]] | None:
    """A template by name, from a .jinja file or as it stands, with the special tokens it needs."""
    if name is None:
        return None
    if name in NAMED:
        return NAMED[name]
    if "{%" in name or "{{" in name:
        return name, []
    try:
        return Path(name).read_text(encoding="utf-8"), []
    except UnicodeDecodeError:
        raise ConfigError(f"chat_template={name!r} is not UTF-8 text") from None
    except OSError:
        raise ConfigError(f"chat_template={name!r} is neither a file nor one of {', '.join(NAMED)}") from None


def _encode_cut(
    tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens and offsets, no token across a cut: an answer's first white space must not join the prompt's last token,
    since an answer is generated from the prompt's tokens alone."""
    ids, offsets = _encode(tokenizer, text)
    crossed = [cut for cut in cuts if any(start < cut < end for start, end in offsets)]
    if not crossed:
        return ids, offsets
    ids, offsets = [], []
    for begin, finish in itertools.pairwise([0, *crossed, len(text)]):
        piece, places = _encode(tokenizer, text[begin:finish])
        ids += piece
        offsets += [(begin + start, begin + end) for start, end in places]
    return ids, offsets


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    if not tokenizer.is_fast:
        raise ConfigError("the tokenizer has no fast version (tokenizer.json), which the token masks need")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), list(encoded["offset_mapping"])
