"""Chat templates: turns messages into tokens, and finds which of the tokens are trained.

The trained tokens are found by rendering, without markers in the template: the tokens of an assistant turn are those
between the rendered dialog before it (with the generation prompt, as it is sampled from) and the end token that closes
it. A template that renders the first turns of a dialog in the same way whether or not more turns follow (it is
prefix-preserving) gives one sequence for the dialog. Another one, as Qwen 3's, DeepSeek-R1's or gpt-oss's, gives a
sequence for each trained turn that it renders differently: each is trained in the rendering in which it is generated.

Which of the trained tokens are formatting (header and termination of a turn) is found in the same way: the turn is
rendered a second time with other content, and the text around the content is formatting.
"""

import bisect
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from data_schemas.files import check_regular
from data_schemas.rows import Message
from engine.tokens.completeness import check_complete
from engine.tokens.rendering import PROBE, Tools, render
from engine.tokens.turns import RenderedTurn, rendered_turn

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"chatml": (CHATML, ["<|im_start|>", "<|im_end|>"])}  # name -> template, its special tokens

IGNORED = -100  # a label that no loss sees


@dataclass(frozen=True)
class Encoded:
    """One dialog in tokens. All three lists have one entry for each token of the dialog."""

    ids: list[int]
    trained: list[bool]  # whether a loss sees the token
    content: list[bool]  # whether it is a trained token of the message itself; without find_content, equal to `trained`

    @property
    def labels(self) -> list[int]:
        return [token if trained else IGNORED for token, trained in zip(self.ids, self.trained, strict=True)]


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
    """The dialog as one sequence. Raises ConfigError as `encode_turns` does, and for a dialog that the template renders
    as several."""
    encoded = encode_turns(tokenizer, messages, tools=tools, train_from=train_from, find_content=find_content)
    if len(encoded) > 1:
        raise ConfigError(
            f"the chat template renders earlier turns differently once more turns follow them, so a dialog with "
            f"{len(messages)} turns has no single sequence: keep only its last assistant turn, or set another "
            "chat_template"
        )
    return encoded[0]


def encode_turns(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Tools | None = None,
    train_from: int = 0,
    find_content: bool = False,
) -> list[Encoded]:
    """The dialog as sequences in which every assistant turn from `train_from` on is trained once, each up to the end
    token of its last trained turn. One sequence where the template is prefix-preserving.

    Every trained turn ends in a labelled end token and starts where it is generated. Raises ConfigError where the
    template leaves out something that the messages say, closes a turn without an end token, or (with `find_content`)
    changes the content so that it can't be told from the formatting.
    """
    text = render(tokenizer, messages, tools=tools)
    turns: list[RenderedTurn] = []
    for turn, message in enumerate(messages):
        if message.role != "assistant" or turn < train_from or not message.trained:
            continue
        turns.append(rendered_turn(tokenizer, messages, turn, text=text, tools=tools))
    if not turns:
        raise ConfigError("the dialog has no assistant turn to train")
    if all(turn.is_in(text) for turn in turns):
        return [_encode_turns(tokenizer, text, messages, turns, tools, find_content=find_content)]
    encoded: list[Encoded] = []
    while turns:
        last = turns[-1]
        together = [turn for turn in turns if turn is last or turn.is_in(last.text)]
        upto = messages[: last.turn + 1]
        encoded.insert(0, _encode_turns(tokenizer, last.text, upto, together, tools, find_content=find_content))
        turns = [turn for turn in turns if turn not in together]
    return encoded


def _encode_turns(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    messages: Sequence[Message],
    turns: Sequence[RenderedTurn],
    tools: Tools | None,
    *,
    find_content: bool,
) -> Encoded:
    """One sequence: the rendered messages, with these turns trained."""
    spans = {turn.turn: (turn.begin - len(turn.opening), turn.finish) for turn in turns}
    check_complete(tokenizer, text, messages, spans, tools)
    ids, offsets = _encode_cut(tokenizer, text, [turn.begin for turn in turns])
    trained, content = [False] * len(ids), [False] * len(ids)
    last, end_id = 0, tokenizer.eos_token_id  # an attribute that the tokenizer looks up slowly
    places = _Offsets.of(offsets)
    for turn in turns:
        # A token that is only white space may have a width of 0, because some tokenizers trim their offsets.
        begin, finish, name = turn.begin, turn.finish, f"turn {turn.turn + 1}"
        span = places.within(begin, finish)
        ends = [i for i in span if ids[i] == end_id]
        if not ends:
            raise ConfigError(
                f"{name} does not end in the end token {tokenizer.eos_token!r}: the chat template closes it "
                f"with {text[max(0, finish - 20) : finish]!r}; run prepare_base with a chat_template that ends each "
                "turn by an end token"
            )
        start_of_content, end_of_content = begin, finish
        if find_content:
            start_of_content, end_of_content = turn.content or _content_span(tokenizer, text, messages, turn, tools)
        for i in span[: span.index(ends[-1]) + 1]:
            trained[i] = True
            start, end = offsets[i]
            content[i] = start < end_of_content and (end > start_of_content or start == end >= start_of_content)
        if find_content and not any(content[i] for i in span):
            raise ConfigError(f"{name} has no content between its header and its termination")
        if span[0] == ends[-1]:
            raise ConfigError(
                f"{name} would train its end token only: the chat template writes nothing of it; set on_bad_row: "
                "set_aside to leave such rows out"
            )
        last = ends[-1] + 1
    return Encoded(ids[:last], trained[:last], content[:last] if find_content else trained[:last])


def _content_span(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    messages: Sequence[Message],
    turn: RenderedTurn,
    tools: Tools | None,
) -> tuple[int, int]:
    """The characters [start, end) of the message's content in `text`."""
    begin, finish = turn.begin, turn.finish
    probe = render(tokenizer, [*messages[: turn.turn], Message(role="assistant", content=PROBE)], tools=tools)
    position = probe.find(PROBE, begin)
    header, termination = probe[begin:position], probe[position + len(PROBE) :]
    rendered = turn.text[begin:]
    is_found = position >= 0 and rendered.endswith(termination)
    end = len(turn.text) - len(termination)
    if is_found and len(header) + len(termination) <= len(rendered) and rendered.startswith(header):
        return begin + len(header), min(end, finish)
    if is_found and "</think>" in header and "</think>" in rendered:
        return begin, min(end, finish)  # the answer has its own thoughts in place of the empty ones of the header
    raise ConfigError(
        f"formatting and content of turn {turn.turn + 1} can't be told apart: with other content the chat template "
        f"writes {probe[begin:][:60]!r}; set mask_formatting: false, or set another chat_template"
    )


def encode_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    answer: Sequence[Message],
    *,
    tools: Tools | None = None,
) -> tuple[list[int], list[int]]:
    """Tokens of the prompt (with the generation prompt), and of the answer up to and including its end token.

    Where the template renders the earlier turns of an answer of several turns differently, they are part of the prompt.
    """
    dialog = encode_turns(tokenizer, [*prompt, *answer], tools=tools, train_from=len(prompt))[-1]
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
    check_regular(Path(name))
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
    places = _Offsets.of(offsets)
    crossed = [cut for cut in cuts if places.is_crossed(cut)]
    if not crossed:
        return ids, offsets
    ids, offsets = [], []
    for begin, finish in itertools.pairwise([0, *crossed, len(text)]):
        part_ids, part_offsets = _encode(tokenizer, text[begin:finish])
        ids += part_ids
        offsets += [(begin + start, begin + end) for start, end in part_offsets]
    return ids, offsets


@dataclass(frozen=True)
class _Offsets:
    """The characters [start, end) of each token. Both are sorted, as a rule, and then found without looking at all."""

    starts: Sequence[int]
    ends: Sequence[int]
    are_sorted: bool

    @classmethod
    def of(cls, offsets: Sequence[tuple[int, int]]) -> "_Offsets":
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
        return cls(starts, ends, all(map(operator.le, starts, starts[1:])) and all(map(operator.le, ends, ends[1:])))

    def is_crossed(self, cut: int) -> bool:
        """Whether a token begins before the character and ends after it."""
        if self.are_sorted:
            before = bisect.bisect_left(self.starts, cut)
            return before > 0 and self.ends[before - 1] > cut
        return any(start < cut < end for start, end in zip(self.starts, self.ends, strict=True))

    def within(self, begin: int, finish: int) -> Sequence[int]:
        """The tokens of the characters [begin, finish); one of width 0 at `begin` is not among them."""
        if self.are_sorted:
            first = max(bisect.bisect_left(self.starts, begin), bisect.bisect_right(self.ends, begin))
            return range(first, bisect.bisect_right(self.ends, finish))
        both = enumerate(zip(self.starts, self.ends, strict=True))
        return [i for i, (start, end) in both if begin <= start and begin < end <= finish]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    if not tokenizer.is_fast:
        raise ConfigError("the tokenizer has no fast version (tokenizer.json), which the token masks need")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), list(encoded["offset_mapping"])
