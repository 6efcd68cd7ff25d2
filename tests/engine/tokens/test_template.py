"""Which tokens are trained, under any template."""

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from data_schemas.errors import ConfigError
from data_schemas.reading import read_conversations, read_rows, write_rows
from data_schemas.rows import Conversation, Message
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.tokens import template
from engine.tokens.tables import tokenize
from engine.tokens.template import encode_answer, encode_dialog, encode_prompt, end_of_turn, render
from engine.tokens.token_rows import TokenDialog
from tests.engine.tokens.golden_templates import GOLDEN, TURNS
from tests.toy_models import byte_tokenizer

HARD_ANSWERS = ["\n\nTwo\n\nparagraphs\n", "  indented", "    ", "été 日本 🙂", "<|im_end|", "\n", "def f():\n    1"]


def with_template(template: str, special_tokens: list[str], end: str, **options: Any) -> Any:
    tokenizer = byte_tokenizer(special_tokens=special_tokens, **options)
    tokenizer.eos_token, tokenizer.chat_template = end, template
    starts = [token for token in special_tokens if token in ("<s>", "<bos>", "<|begin_of_text|>")]
    tokenizer.bos_token = starts[0] if starts else None
    return tokenizer


@pytest.fixture(params=sorted(GOLDEN))
def golden(request) -> tuple[Any, str]:
    template, special_tokens, end, marked = GOLDEN[request.param]
    return with_template(template, special_tokens, end), marked


def expected(tokenizer: Any, marked: str) -> tuple[list[int], list[bool], list[bool]]:
    """Tokens and both masks of a marked text, with each piece tokenized separately."""
    ids: list[int] = []
    masks: dict[str, list[bool]] = {"⟦": [], "⟪": []}
    inside = {"⟦": False, "⟪": False}
    for piece in re.split("([⟦⟧⟪⟫])", marked):
        if piece in ("⟦", "⟧", "⟪", "⟫"):
            inside["⟦" if piece in "⟦⟧" else "⟪"] = piece in "⟦⟪"
            continue
        tokens = tokenizer(piece, add_special_tokens=False)["input_ids"]
        ids += tokens
        for kind, mask in masks.items():
            mask += [inside[kind]] * len(tokens)
    return ids, masks["⟦"], masks["⟪"]


def test_golden_token_masks_of_five_templates(golden):
    tokenizer, marked = golden
    dialog = encode_dialog(tokenizer, TURNS, find_content=True)
    ids, trained, content = expected(tokenizer, marked)
    assert tokenizer.decode(dialog.ids) == re.sub("[⟦⟧⟪⟫]", "", marked)
    found = zip(dialog.ids, dialog.trained, dialog.content, strict=True)
    wanted = zip(ids, trained, content, strict=True)
    assert [(tokenizer.decode([i]), *masks) for i, *masks in found] == [
        (tokenizer.decode([i]), *masks) for i, *masks in wanted
    ]
    assert dialog.ids == ids
    assert dialog.labels == [i if t else -100 for i, t in zip(ids, trained, strict=True)]
    assert encode_dialog(tokenizer, TURNS).content == trained  # if the content mask is not requested


@pytest.mark.parametrize("answer", ["  indented", "été 日本 🙂", "ends in space \n", "zqprobe", "<|im_start|>user\n"])
def test_content_is_what_is_between_header_and_termination(golden, answer):
    tokenizer, _ = golden
    turns = [*TURNS[:3], Message(role="assistant", content=answer)]
    dialog = encode_dialog(tokenizer, turns, train_from=3, find_content=True)
    wanted = answer.strip() if "| trim" in tokenizer.chat_template else answer
    assert tokenizer.decode([i for i, c in zip(dialog.ids, dialog.content, strict=True) if c]) == wanted
    assert dialog.content[-1] is False and dialog.trained[-1] is True  # the end token is formatting, and is trained


def test_a_header_in_the_answers_own_tokens_is_formatting():
    """A template that ignores add_generation_prompt leaves the header to the answer."""
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    tokenizer = with_template(template, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")
    dialog = encode_dialog(tokenizer, TURNS[:2], find_content=True)
    marked = "<|im_start|>user\nCapital of France?<|im_end|>\n⟦<|im_start|>assistant\n⟪Paris.⟫<|im_end|>⟧"
    assert (dialog.ids, dialog.trained, dialog.content) == expected(tokenizer, marked)


@pytest.mark.parametrize(
    "said",
    [
        "{{ m['content'] | length }}: {{ m['content'] }}",  # the header depends on the content
        "{{ m['content'] }}{% if 'Paris' in m['content'] %}!!{% endif %}<|im_end|>extra{{ m['content'] | length }}",
    ],
)
def test_a_template_that_does_not_tell_formatting_from_content_is_one_clear_error(said):
    template = "{% for m in messages %}<|im_start|>" + said + "<|im_end|>{% endfor %}"
    tokenizer = with_template(template, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")
    with pytest.raises(
        ValueError, match=r"formatting and content of turn 2 can't be told apart: .* mask_formatting: false"
    ):
        encode_dialog(tokenizer, TURNS[:2], find_content=True)
    encode_dialog(tokenizer, TURNS[:2])


def test_every_trained_turn_ends_in_a_labelled_end_token(golden):
    tokenizer, _ = golden
    labels = encode_dialog(tokenizer, TURNS).labels
    last_of_turns = [
        label for label, after in zip(labels, [*labels[1:], -100], strict=True) if label != -100 and after == -100
    ]
    assert last_of_turns == [tokenizer.eos_token_id] * 2


def test_only_turns_from_train_from_on_are_trained(golden):
    tokenizer, marked = golden
    first, second = (match.end() for match in re.finditer("⟧", marked))
    dialog = encode_dialog(tokenizer, TURNS, train_from=2)
    ids, trained, _ = expected(tokenizer, re.sub("[⟦⟧⟪⟫]", "", marked[:first]) + marked[first:second])
    assert (dialog.ids, dialog.trained) == (ids, trained)


@pytest.mark.parametrize("answer", HARD_ANSWERS)
def test_the_prompt_that_is_generated_from_is_a_prefix_of_the_dialog(golden, answer):
    """Also if the answer begins with white space, which a tokenizer joins with the text before it."""
    tokenizer, _ = golden
    # "\n\n" and "  " become one token each wherever they stand, as in Llama 3's vocabulary.
    tokenizer.add_tokens(["\n\n", "  "])
    turns = [*TURNS[:3], Message.model_construct(role="assistant", content=answer)]
    prompt = encode_prompt(tokenizer, turns[:3])
    if not answer.strip() and "| trim" in tokenizer.chat_template:
        with pytest.raises(ConfigError, match=r"^turn 4 would train its end token only: the chat template writes noth"):
            encode_answer(tokenizer, turns[:3], turns[3:])
        return
    prompt_ids, answer_ids = encode_answer(tokenizer, turns[:3], turns[3:])
    assert prompt_ids == prompt
    assert answer_ids[-1] == tokenizer.eos_token_id
    wanted = answer.strip() if "| trim" in tokenizer.chat_template else answer
    mistral = tokenizer.chat_template == GOLDEN["mistral"][0]
    assert tokenizer.decode(answer_ids[:-1]) == (" " if mistral else "") + wanted


def test_spaces_are_trained_where_the_tokenizer_trims_its_offsets(tokenizer):
    """As RoBERTa does: the offsets of a token exclude its spaces, so a token of only spaces has no width."""
    trimming = copy.deepcopy(tokenizer)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    answer = [Message(role="assistant", content="  if x:\n      y")]
    _, plain = encode_answer(tokenizer, TURNS[:1], answer)
    prompt_ids, trimmed = encode_answer(trimming, TURNS[:1], answer)
    assert trimmed == plain and tokenizer.decode(plain) == "  if x:\n      y<|im_end|>"
    dialog = encode_dialog(trimming, [*TURNS[:1], *answer])
    assert dialog.trained == [False] * len(prompt_ids) + [True] * len(plain)


# -- refusals -------------------------------------------------------------------------------------------------------


def test_a_template_that_changes_the_words_is_one_clear_error():
    template = "{% for m in messages %}<|im_start|>{{ m['content'] | upper }}<|im_end|>{% endfor %}"
    tokenizer = with_template(template, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")
    with pytest.raises(ConfigError, match=r"^the chat template leaves out the content of turn 1: set on_bad_row"):
        encode_dialog(tokenizer, TURNS[:2])


def test_a_template_that_drops_earlier_thoughts_gives_no_single_sequence():
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'user' or loop.last "
        "%}{{ message['content'] }}{% else %}{{ message['content'].split('</think>')[-1] }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = with_template(template, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")
    thinking = [TURNS[0], Message(role="assistant", content="<think>hm</think>Paris."), *TURNS[2:]]
    said = "^the chat template renders earlier turns differently once more turns follow them, so a dialog with 4 turns"
    with pytest.raises(ConfigError, match=said + " has no single sequence: .* set another chat_template$"):
        encode_dialog(tokenizer, thinking)
    assert encode_dialog(tokenizer, thinking[:2]).trained[-1]


def test_a_template_without_an_end_token_is_one_clear_error():
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tokenizer = with_template(template, [], "<|endoftext|>")
    said = r"^turn 2 does not end in the end token '<\|endoftext\|>': the chat template closes it with "
    with pytest.raises(ValueError, match=said + r"'\?\\nassistant: Paris.\\n'; run prepare_base"):
        encode_dialog(tokenizer, TURNS[:2])
    assert end_of_turn(tokenizer) is None


def test_a_dialog_without_an_answer_and_a_refused_role_are_errors(tokenizer):
    with pytest.raises(ValueError, match="no assistant turn to train"):
        encode_dialog(tokenizer, TURNS[:1])
    refusing = with_template("{{ raise_exception('no system prompt') }}", [], "<|endoftext|>")
    with pytest.raises(ValueError, match=r"^the chat template refuses a dialog of system, user: no system prompt$"):
        encode_prompt(refusing, [Message(role="system", content="Be brief."), TURNS[0]])


# -- tools ----------------------------------------------------------------------------------------------------------


# Renders nested keys, and which of them exist, so that a filled-in None is visible.
TOOL_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}{% for call in message['tool_calls'] or [] %}{{ call | tojson }}"
    "{% for key, value in call['function']['arguments'].items() %} {{ key }}={{ value }}{% endfor %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def call(name: str, **arguments: Any) -> dict[str, str]:
    return {"from": "function_call", "value": json.dumps({"name": name, "arguments": arguments})}


GLAIVE = [
    {
        "conversations": [
            {"from": "human", "value": "Rice?"},
            call("search", ingredients=["rice"], limits={"minutes": 20}),
            {"from": "observation", "value": '{"recipes": [{"name": "Rice"}]}'},
            {"from": "gpt", "value": "Rice it is."},
        ],
        "tools": json.dumps([{"name": "search", "parameters": {"type": "object", "required": ["ingredients"]}}]),
    },
    {  # other keys in the same places
        "conversations": [
            {"from": "human", "value": "Mail?"},
            call("send", to="Ann", limits={"size": None, "parts": [{"a": 1}, {"b": 2}]}),
            {"from": "observation", "value": "sent"},
            {"from": "gpt", "value": "Sent."},
        ],
        "tools": "[]",
    },
]


def assert_same_after_storing(source: Path, folder: Path, *, at_least: int) -> list[str]:
    """Renders and tokenizes every row before and after write_rows / read_rows, and the table that training reads."""
    tokenizer = with_template(TOOL_TEMPLATE, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")
    came = read_conversations([source]).rows
    write_rows(folder / "stored.jsonl", came)
    stored = read_rows(folder / "stored.jsonl", Conversation)
    texts = [render(tokenizer, row.messages, tools=row.tools) for row in came]
    assert texts == [render(tokenizer, row.messages, tools=row.tools) for row in stored]
    assert stored == came and len(came) >= at_least

    def encode(row: Conversation) -> list[TokenDialog]:
        dialog = encode_dialog(tokenizer, row.messages, tools=row.tools)
        return [TokenDialog(input_ids=dialog.ids, labels=dialog.labels)]

    (folder / "checkpoints").mkdir()
    stage = Stage("sft", folder, {}, Tracker(folder, active=False), is_main=True)
    table = tokenize(stage, "train", stored, encode, tokenizer, version="test", max_length=None).rows
    wanted = [encode(row)[0] for row in came]
    assert list(table["input_ids"]) == [row.input_ids for row in wanted]
    assert list(table["labels"]) == [row.labels for row in wanted]
    return texts


def test_rows_with_nested_keys_render_the_same_after_they_are_stored(tmp_path):
    source = tmp_path / "glaive.json"
    source.write_text(json.dumps(GLAIVE))
    texts = assert_same_after_storing(source, tmp_path, at_least=2)
    assert texts[1] == (
        "<|im_start|>user\nMail?<|im_end|>\n<|im_start|>assistant\n"
        '{"type": "function", "function": {"name": "send", "arguments": {"to": "Ann", "limits": {"size": null, '
        '"parts": [{"a": 1}, {"b": 2}]}}}}'
        " to=Ann limits={'size': None, 'parts': [{'a': 1}, {'b': 2}]}<|im_end|>\n"
        "<|im_start|>tool\nsent<|im_end|>\n<|im_start|>assistant\nSent.<|im_end|>\n"
    )
    assert texts[0].startswith('[{"name": "search", "parameters": {"type": "object", "required": ["ingredients"]}}]\n')


def test_real_tool_calls_render_the_same_after_they_are_stored(test_data, tmp_path):
    source = test_data / "llamafactory" / "glaive_toolcall_en_demo.json"
    texts = assert_same_after_storing(source, tmp_path, at_least=300)
    assert sum('"arguments": ' in text for text in texts) > 100


def test_a_turn_that_is_not_trained_is_context(golden):
    tokenizer, _ = golden
    turns = [
        Message(role="user", content="q"),
        Message(role="assistant", content="WRONG", trained=False),
        Message(role="user", content="again"),
        Message(role="assistant", content="right"),
    ]
    plain = encode_dialog(tokenizer, [turn.model_copy(update={"trained": True}) for turn in turns])
    dialog = encode_dialog(tokenizer, turns)
    assert dialog.ids == plain.ids
    trained = [token for token, is_trained in zip(dialog.ids, dialog.trained, strict=True) if is_trained]
    assert "right" in tokenizer.decode(trained) and "WRONG" not in tokenizer.decode(trained)
    assert "WRONG" in tokenizer.decode(
        [i for i, is_trained in zip(plain.ids, plain.trained, strict=True) if is_trained]
    )


def test_the_tokens_of_a_turn_are_found_as_by_looking_at_each():
    draw = random.Random(0)
    for number in range(300):
        points = [draw.randint(0, 30) for _ in range(24)]
        if number % 3:
            points.sort()  # as a tokenizer gives them; some are of width 0, or overlap
        offsets = [(start, start + draw.choice([0, 1, 3])) for start in points]
        places = template._Offsets.of(offsets)
        for begin in range(0, 32, 3):
            assert places.is_crossed(begin) == any(start < begin < end for start, end in offsets)
            for finish in range(begin, 34, 4):
                expected = [i for i, (s, e) in enumerate(offsets) if begin <= s and begin < e <= finish]
                assert list(places.within(begin, finish)) == expected
    assert template._Offsets.of([(0, 2), (2, 2), (2, 5)]).are_sorted
    assert not template._Offsets.of([(2, 5), (0, 2)]).are_sorted
