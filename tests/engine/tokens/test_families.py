"""What is trained under the chat templates of well-known model families is what the rows say, as it is generated."""

import copy
from typing import Any

import pytest

from data_schemas.errors import ConfigError
from data_schemas.rows import Message
from engine.tokens.rendering import refuses_system
from engine.tokens.template import Encoded, encode_answer, encode_dialog, encode_prompt, encode_turns
from stages.prepare_base import prepare_tokenizer
from tests.engine.tokens.families import EMPTY, FAMILIES, Family
from tests.toy_models import byte_tokenizer

SYSTEM = Message(role="system", content="Be brief.")
DIALOG = [
    Message(role="user", content="Capital of France?"),
    Message(role="assistant", content="Paris."),
    Message(role="user", content="And of Japan?"),
    Message(role="assistant", content="Tokyo, 東京."),
    Message(role="user", content="Sure?"),
    Message(role="assistant", content="Quite\n\nsure."),
]
THOUGHTS = "<think>\nThe user asks for a city.\n</think>\n\n"


def prepared(family: Family) -> Any:
    tokenizer = copy.deepcopy(byte_tokenizer(special_tokens=[*family.special_tokens, family.end]))
    tokenizer.chat_template = family.template
    tokenizer.bos_token = "<s>" if "<s>" in family.special_tokens else None
    tokenizer.eos_token = family.end
    prepare_tokenizer(tokenizer, None)
    assert tokenizer.eos_token == family.end
    return tokenizer


@pytest.fixture(params=sorted(FAMILIES))
def named(request) -> tuple[Family, Any]:
    return FAMILIES[request.param], prepared(FAMILIES[request.param])


def trained_texts(tokenizer: Any, encoded: Encoded) -> list[str]:
    """The text of each run of trained tokens."""
    runs: list[list[int]] = []
    for place, (token, trained) in enumerate(zip(encoded.ids, encoded.trained, strict=True)):
        if trained:
            if place == 0 or not encoded.trained[place - 1]:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


def sampled_from(tokenizer: Any, encoded: Encoded, prompt: list[Message]) -> list[int]:
    """The trained tokens that follow the prompt which an answer is sampled from: up to the end token."""
    start = encode_prompt(tokenizer, prompt)
    assert encoded.ids[: len(start)] == start and not encoded.trained[len(start) - 1]
    flags = encoded.trained[len(start) :]
    length = flags.index(False) if False in flags else len(flags)
    return encoded.ids[len(start) : len(start) + length]


def test_one_turn_trains_its_content_and_end_after_the_prompt_it_is_sampled_from(named):
    family, tokenizer = named
    (row,) = encode_turns(tokenizer, DIALOG[:2])
    wanted = f"{family.header}Paris.{family.end}"
    assert trained_texts(tokenizer, row) == [wanted]
    assert tokenizer.decode(sampled_from(tokenizer, row, DIALOG[:1])) == wanted
    assert encode_answer(tokenizer, DIALOG[:1], DIALOG[1:2]) == (
        encode_prompt(tokenizer, DIALOG[:1]),
        tokenizer(wanted, add_special_tokens=False)["input_ids"],
    )


def test_each_turn_of_three_trains_once_as_it_is_generated(named):
    family, tokenizer = named
    rows = encode_turns(tokenizer, DIALOG)
    assert len(rows) == family.num_rows
    trained = [text for row in rows for text in trained_texts(tokenizer, row)]
    assert trained == [f"{family.header}{DIALOG[turn].content}{family.end}" for turn in (1, 3, 5)]
    for place, turn in enumerate((1, 3, 5)):
        answer = sampled_from(tokenizer, rows[min(place, len(rows) - 1)], DIALOG[:turn])
        assert tokenizer.decode(answer) == f"{family.header}{DIALOG[turn].content}{family.end}"


def test_the_content_alone_is_in_the_content_mask(named):
    _, tokenizer = named
    dialog = encode_turns(tokenizer, DIALOG, train_from=5, find_content=True)[-1]
    content = [token for token, flag in zip(dialog.ids, dialog.content, strict=True) if flag]
    assert tokenizer.decode(content) == "Quite\n\nsure."


def test_thoughts_in_a_content_are_trained_as_they_are_sampled(named):
    """Also by templates that drop them from every finished turn."""
    family, tokenizer = named
    row = encode_turns(tokenizer, [DIALOG[0], Message(role="assistant", content=f"{THOUGHTS}Paris.")])[-1]
    answer = tokenizer.decode(sampled_from(tokenizer, row, DIALOG[:1]))
    header = "" if family.header in (EMPTY, "\n</think>\n\n") else family.header
    opened = "<think>\n" if tokenizer.decode(encode_prompt(tokenizer, DIALOG[:1])).endswith("<think>\n") else ""
    assert answer == f"{header}{THOUGHTS.removeprefix(opened)}Paris.{family.end}"


def test_a_system_message_is_read_or_the_row_is_refused_by_name(named):
    family, tokenizer = named
    if not family.has_system_role:
        assert "accepts the dialog without its system message" in str(refuses_system(tokenizer))
        with pytest.raises(ConfigError, match="it has no system role: leave system messages out, or run prepare_base"):
            encode_turns(tokenizer, [SYSTEM, *DIALOG[:2]])
        return
    assert refuses_system(tokenizer) is None
    (row,) = encode_turns(tokenizer, [SYSTEM, *DIALOG[:2]])
    assert "Be brief." in tokenizer.decode(row.ids)
    wanted = f"{family.header}Paris.{family.end}"
    assert tokenizer.decode(sampled_from(tokenizer, row, [SYSTEM, DIALOG[0]])) == wanted


def test_reasoning_is_trained_where_the_template_or_its_generation_prompt_has_thoughts():
    reasoned = [DIALOG[0], Message.model_validate(DIALOG[1].model_dump() | {"reasoning_content": "A city."})]
    for name, wanted in {
        "qwen 3": "<think>\nA city.\n</think>\n\nParis.<|im_end|>",
        "deepseek r1": "A city.\n</think>\n\nParis.<|end|>",
    }.items():
        tokenizer = prepared(FAMILIES[name])
        (row,) = encode_turns(tokenizer, reasoned)
        assert trained_texts(tokenizer, row) == [wanted]
        # In a later row it is context, in which both leave the thoughts out.
        later = encode_turns(tokenizer, [*reasoned, *DIALOG[2:4]])
        assert len(later) == 2 and "A city." not in tokenizer.decode(later[1].ids)
        assert trained_texts(tokenizer, later[0]) == [wanted]
    with pytest.raises(ConfigError, match="the chat template leaves out the reasoning of turn 2: set on_bad_row"):
        encode_turns(prepared(FAMILIES["llama 3"]), reasoned)
    thinking = Message.model_validate(DIALOG[1].model_dump() | {"thinking": "A city."})
    for answer in (reasoned[1], thinking):  # transformers gives a template both names of the key
        (row,) = encode_turns(prepared(FAMILIES["gpt-oss"]), [DIALOG[0], answer])
        (text,) = trained_texts(prepared(FAMILIES["gpt-oss"]), row)
        analysis, final = text.split("<|start|>assistant")
        assert analysis == "<|channel|>analysis<|message|>A city.<|close|>"
        assert final == "<|channel|>final<|message|>Paris.<|return|>"


def test_turns_after_the_last_question_share_a_row():
    """As in a dialog with tools under Qwen 3: only what is rendered differently is split off."""
    tokenizer = prepared(FAMILIES["qwen 3"])
    thoughts = [{"reasoning_content": f"Thought {number}."} for number in range(3)]
    turns = [
        DIALOG[0],
        Message(role="assistant", content="First.", **thoughts[0]),
        DIALOG[2],
        Message(role="assistant", content="Look.", **thoughts[1]),
        Message(role="tool", content="42"),
        Message(role="assistant", content="It is 42.", **thoughts[2]),
    ]
    rows = encode_turns(tokenizer, turns)
    assert [trained_texts(tokenizer, row) for row in rows] == [
        ["<think>\nThought 0.\n</think>\n\nFirst.<|im_end|>"],
        [
            "<think>\nThought 1.\n</think>\n\nLook.<|im_end|>",
            "<think>\nThought 2.\n</think>\n\nIt is 42.<|im_end|>",
        ],
    ]


def test_a_dialog_without_a_single_sequence_is_refused_where_one_is_needed():
    """As DPO needs for an answer of several turns."""
    with pytest.raises(ConfigError, match="so a dialog with 4 turns has no single sequence: keep only its last"):
        encode_dialog(prepared(FAMILIES["qwen 3"]), DIALOG[:4])


def test_tool_calls_and_tools_are_trained_by_a_template_that_knows_them():
    tokenizer = prepared(FAMILIES["qwen 2.5"])
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 3}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    turns = [DIALOG[0], Message(role="assistant", tool_calls=[call]), Message(role="tool", content='"rain"\n')]
    (row,) = encode_turns(tokenizer, [*turns, DIALOG[1]], tools=tools)
    assert trained_texts(tokenizer, row)[0].endswith(
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": 3}}\n</tool_call><|im_end|>'
    )
