"""Rows: what is valid, normalised texts, groups and prompt ids."""

import json

import pytest
from pydantic import ValidationError

from data_schemas.rows import Candidate, Conversation, Document, Message, PreferencePair, Prompt, for_template, group_of
from data_schemas.text import normalise

USER = {"role": "user", "content": "Hello, World!"}
ANSWER = {"role": "assistant", "content": "Hi."}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": None}}}],
}


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("  Hello,\n World! ", "hello world"),
        ("HELLO_world", "hello world"),
        ("Ｈｅｌｌｏ １", "hello 1"),  # full-width forms
        ("STRASSE Straße", "strasse strasse"),
        ("12시 땡!", "12시 땡"),
        ("?!", "?!"),  # only signs: kept, otherwise all such prompts would be equal
    ],
)
def test_texts_that_differ_in_case_width_and_signs_normalise_alike(text, normalised):
    assert normalise(text) == normalised


def test_group_is_the_hash_of_only_the_normalised_first_user_message():
    # sha256("hello world")[:16]
    expected = "b94d27b9934d3e08"
    assert group_of([Message(role="user", content="Hello, World!")]) == expected
    conversation = Conversation.model_validate({"messages": [SYSTEM, USER, ANSWER, {**USER, "content": "?"}, ANSWER]})
    pair = PreferencePair.model_validate(
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "X"}]}
    )
    assert conversation.group_id == pair.group_id == Prompt.model_validate({"prompt": [USER]}).group_id == expected


def test_a_group_id_that_is_given_is_kept():
    row = Prompt.model_validate({"prompt": [USER], "group_id": "of-the-source"})
    assert row.group_id == "of-the-source"


def test_prompt_id_depends_on_every_message_and_on_the_tools():
    prompts = [
        {"prompt": [USER]},
        {"prompt": [SYSTEM, USER]},
        {"prompt": [USER, ANSWER, USER]},
        {"prompt": [USER], "tools": [{"name": "f"}]},
    ]
    rows = [Prompt.model_validate(prompt) for prompt in prompts]
    assert len({row.prompt_id for row in rows}) == 4
    assert rows[0].prompt_id == Prompt.model_validate({"prompt": [USER]}).prompt_id
    assert all(len(row.prompt_id) == 16 for row in rows)


@pytest.mark.parametrize(
    ("row_type", "fields", "complaint"),
    [
        (Document, {"text": " \n"}, "found empty text"),
        (Conversation, {"messages": []}, "no messages"),
        (Conversation, {"messages": [USER]}, "a last message from 'user', expected one from 'assistant'"),
        (Conversation, {"messages": [USER, SYSTEM, ANSWER]}, "a system message after the first message"),
        (Conversation, {"messages": [SYSTEM, ANSWER]}, "no user message"),
        (Conversation, {"messages": [{**USER, "content": " "}, ANSWER]}, "an empty message"),
        (Conversation, {"messages": [USER, {**ANSWER, "role": "gpt"}]}, "'system', 'user', 'assistant' or 'tool'"),
        (Conversation, {"messages": [USER, ANSWER], "label": 1}, "Extra inputs are not permitted"),
        (Prompt, {"prompt": [USER, ANSWER]}, "a last message from 'assistant', expected one from 'user' or 'tool'"),
        (PreferencePair, {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, "two identical answers"),
        (
            PreferencePair,
            {"prompt": [USER], "chosen": [], "rejected": [ANSWER]},
            "chosen: found an answer without a last assistant message",
        ),
        (
            PreferencePair,
            {"prompt": [USER], "chosen": [ANSWER], "rejected": [USER]},
            "rejected: found an answer without",
        ),
        (Candidate, {"text": "", "k": 0, "num_tokens": 1, "ended": True, "score": float("nan")}, "finite number"),
    ],
)
def test_what_is_not_a_row_is_refused(row_type, fields, complaint):
    with pytest.raises(ValidationError, match=complaint):
        row_type.model_validate(fields)


def test_an_assistant_message_may_hold_tool_calls_instead_of_text():
    assert Message.model_validate(CALL).content == ""
    with pytest.raises(ValidationError, match="an empty message"):
        Message.model_validate({"role": "assistant", "tool_calls": []})


def test_messages_reach_the_template_with_exactly_the_keys_they_came_with():
    said = [USER, CALL, {"role": "tool", "content": "", "name": "f"}, {**ANSWER, "reasoning_content": None}]
    row = Conversation.model_validate({"messages": said, "tools": [{"name": "f", "parameters": {"b": 1, "a": None}}]})
    assert for_template(row.messages) == said
    stored = row.to_json()
    assert json.loads(stored) == {
        "messages": said,
        "tools": [{"name": "f", "parameters": {"b": 1, "a": None}}],
        "group_id": "b94d27b9934d3e08",
    }
    again = Conversation.model_validate_json(stored)
    assert again == row
    assert again.to_json() == stored
    assert for_template(again.messages) == said


def test_a_row_cannot_be_changed():
    row = Document(text="a")
    with pytest.raises(ValidationError, match="frozen"):
        row.text = "b"  # pyright: ignore[reportAttributeAccessIssue]
