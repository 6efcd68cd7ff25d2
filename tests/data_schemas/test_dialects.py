"""Every dialect of conversations, prompts, pairs and rankings becomes the same rows."""

import json

import pytest

from data_schemas.reading import read_conversations, read_pairs, read_prompts
from data_schemas.rows import for_template
from tests.data_schemas.raw_rows import HH, THREE, TWO_TURNS, assistant, fails, lines, messages_of, user


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": TWO_TURNS, "id": 7, "source": 3}, TWO_TURNS),
        ({"messages": json.dumps(TWO_TURNS)}, TWO_TURNS),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}, TWO_TURNS),
        (
            {"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Yo"}], "system": "Be."},
            [{"role": "system", "content": "Be."}, user("Hi"), assistant("Yo")],
        ),
        ({"instruction": "Hi", "input": "", "output": "Hello."}, TWO_TURNS),
        ({"instruction": "Add", "input": "1, 2", "output": "3"}, [user("Add\n1, 2"), assistant("3")]),
        (
            {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"},
            [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d")],
        ),
        ({"prompt": "Hi", "completion": " Hello."}, TWO_TURNS),
        ({"prompt": THREE, "completion": [assistant("d")]}, [*THREE, assistant("d")]),
        ({"prompt": "Hi", "response": "Hello."}, TWO_TURNS),
        ({"instruction": "Hi", "context": "", "response": "Hello."}, TWO_TURNS),
        ({"instruction": "Add", "context": "1, 2", "response": "3"}, [user("Add\n1, 2"), assistant("3")]),
        ({"question": "Hi", "answer": "Hello."}, TWO_TURNS),
        ({"query": "Hi", "response": "Hello."}, TWO_TURNS),
        (
            {"question": "How many?", "context": "Two birds.", "answer": 2},
            [user("Two birds.\n\nHow many?"), assistant("2")],
        ),
        (
            {"system_prompt": "Be.", "question": "Hi", "response": "Hello."},
            [{"role": "system", "content": "Be."}, *TWO_TURNS],
        ),
    ],
)
def test_conversations_of_every_dialect(tmp_path, row, expected):
    assert messages_of(read_conversations(lines(tmp_path / "a.jsonl", row))) == [expected]


def test_sharegpt_function_calls_become_tool_calls(tmp_path):
    call = {"name": "search", "arguments": {"q": "x", "limit": None}}
    tools = [{"name": "search", "parameters": {"type": "object"}}]
    row = {
        "conversations": [
            {"from": "human", "value": "Find x"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": '{"found": 1}'},
            {"from": "gpt", "value": "One."},
        ],
        "tools": json.dumps(tools),
    }
    read = read_conversations(lines(tmp_path / "a.jsonl", row, row | {"tools": "[]"}))
    assert messages_of(read)[0] == [
        user("Find x"),
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": '{"found": 1}'},
        assistant("One."),
    ]
    assert [read.rows[0].tools, read.rows[1].tools] == [tools, None]


def test_openai_messages_with_null_content_beside_tool_calls(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    row = {"messages": [user("a"), call, {"role": "tool", "content": "1", "name": "f"}, assistant("b")]}
    read = read_conversations(lines(tmp_path / "a.jsonl", row))
    assert messages_of(read)[0][1] == {name: call[name] for name in ("role", "tool_calls")}


@pytest.mark.parametrize("answers", [["a", "b", "a"], {"text": ["a", "b"], "answer_start": [1, 7]}])
def test_each_different_answer_to_a_question_is_a_row(tmp_path, answers):
    read = read_conversations(lines(tmp_path / "a.jsonl", {"question": "q", "answers": answers}))
    assert messages_of(read) == [[user("q"), assistant("a")], [user("q"), assistant("b")]]


def test_of_prompt_and_completion_only_the_completion_is_trained(tmp_path):
    (row,) = read_conversations(lines(tmp_path / "a.jsonl", {"prompt": THREE, "completion": [assistant("d")]})).rows
    assert [message.trained for message in row.messages] == [True, False, True, True]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": "Hi", "answer": "x"}, [user("Hi")]),
        ({"query": "Hi"}, [user("Hi")]),
        ({"prompt": "Hi", "kwargs": [{}]}, [user("Hi")]),
        ({"prompt": [user("Hi")]}, [user("Hi")]),
        ({"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"}, [user("a"), assistant("b"), user("c")]),
        ({"instruction": "Add", "input": "1, 2"}, [user("Add\n1, 2")]),
        ({"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}, [user("a"), assistant("b"), user("c")]),
        ({"messages": [user("a")]}, [user("a")]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, [user("a")]),
    ],
)
def test_prompts_of_every_dialect(tmp_path, row, prompt):
    read = read_prompts(lines(tmp_path / "a.jsonl", row))
    assert [for_template(row.prompt) for row in read.rows] == [prompt]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi", "chosen": "good", "rejected": "bad"}, [user("Hi")]),
        ({"prompt": "Hi", "chosen": [assistant("good")], "rejected": [assistant("bad")]}, [user("Hi")]),
        ({"prompt": THREE, "chosen": [assistant("good")], "rejected": "bad"}, THREE),
        ({"prompt": THREE, "chosen": [*THREE, assistant("good")], "rejected": [assistant("bad")]}, THREE),
        ({"prompt": "Hi", "chosen": [user("Hi"), assistant("good")], "rejected": assistant("bad")}, [user("Hi")]),
        ({"chosen": HH.format("good"), "rejected": HH.format("bad")}, THREE),
        ({"chosen": [*THREE, assistant("good")], "rejected": [*THREE, assistant("bad")]}, THREE),
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            [user("Hi")],
        ),
        ({"instruction": "Hi", "chosen": "good", "rejected": "bad"}, [user("Hi")]),
        ({"question": "Hi", "chosen": "good", "rejected": "bad"}, [user("Hi")]),
        ({"instruction": "Hi", "input": "", "output": ["good", "bad"]}, [user("Hi")]),
        ({"prompt": "Hi", "output": ["good", "bad"]}, [user("Hi")]),
        ({"prompt": "Hi", "responses": ["bad", "good"], "ranks": [2, 1]}, [user("Hi")]),
    ],
)
def test_pairs_of_every_dialect(tmp_path, row, prompt):
    (pair,) = read_pairs(lines(tmp_path / "a.jsonl", row)).rows
    assert for_template(pair.prompt) == prompt
    assert for_template(pair.chosen) == [assistant("good")]
    assert for_template(pair.rejected) == [assistant("bad")]


LONG = "What is the capital of that country?"


@pytest.mark.parametrize(
    ("prompt", "repeated"),
    [
        ("\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: {}"),
        ("\n\nHuman: a\n\nAssistant: ", "\n\nAssistant: {}"),
        ("a", "\n\nHuman: a\n\nAssistant: {}"),
        (LONG, LONG + " {}"),
        (LONG, LONG + "\n{}"),
    ],
)
def test_a_prompt_that_text_answers_repeat_is_taken_off(tmp_path, prompt, repeated):
    row = {"prompt": prompt, "chosen": repeated.format("good"), "rejected": repeated.format("bad")}
    (pair,) = read_pairs(lines(tmp_path / "a.jsonl", row)).rows
    assert for_template(pair.prompt) == [user(LONG if prompt == LONG else "a")]
    assert [for_template(answer) for answer in pair.ranking] == [[assistant("good")], [assistant("bad")]]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Hi", "Hi there", "Hi you"),  # a short prompt may be what the answers say
        (LONG, LONG + " Bern", "No idea."),  # only one of them
        (LONG, LONG, LONG + " Bern"),  # nothing would be left
        ("Tell me about cats and dog", "Tell me about cats and dogs", "Tell me about cats and doggos"),
        ("Write a dialog", "Human: a\n\nAssistant: b", "Human: c\n\nAssistant: d"),
    ],
)
def test_answers_that_only_look_like_the_prompt_stay(tmp_path, prompt, chosen, rejected):
    (pair,) = read_pairs(lines(tmp_path / "a.jsonl", {"prompt": prompt, "chosen": chosen, "rejected": rejected})).rows
    assert [answer[0].content for answer in pair.ranking] == [chosen, rejected]


def test_an_answer_that_repeats_another_prompt_is_a_bad_row(tmp_path):
    other = "\n\nHuman: b\n\nAssistant: {}"
    row = {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": other.format("x"), "rejected": other.format("y")}
    error = fails(read_pairs, lines(tmp_path / "a.jsonl", row))
    assert "a.jsonl:1: chosen: found a dialog that begins with 'user', expected the prompt's own messages" in error
