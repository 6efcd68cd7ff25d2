"""The tasks' own rows, and what answers to them are worth."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from data_schemas.errors import DataError
from data_schemas.rows import Prompt
from engine.sampling.answers import Answer
from engine.tasks.call_text import Call, calls_in
from engine.tasks.function_calls import read_function_calls
from engine.tasks.gsm8k import final_number, read_gsm8k
from engine.tasks.ifeval import read_ifeval, variants
from engine.tasks.multiple_choice import grade, question_of, read_choices
from engine.tasks.questions import Question


def write(folder: Path, *rows: object) -> list[str]:
    file = folder / f"{len(list(folder.iterdir()))}.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return [str(file)]


def points(question: Question, text: str) -> list[tuple[float, float]]:
    answer = Answer(prompt=question.prompt, k=0, text=text, ids=[], ended=True)
    return [(won, of) for won, of in question.grade(answer).values()]


def test_an_answer_follows_instructions_strictly_or_loosely(tmp_path):
    row = {
        "prompt": "Speak without commas in capitals.",
        "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
        "kwargs": [{}, {"end_phrase": "Bye."}],
    }
    (question,) = read_ifeval(write(tmp_path, row))
    assert points(question, "Hi. Bye.") == [(1, 1), (1, 1), (2, 2), (2, 2)]
    assert points(question, "Sure, here it is:\nHi. Bye.") == [(0, 1), (1, 1), (1, 2), (2, 2)]  # without its first line
    assert points(question, "Hi. *Bye.*") == [(0, 1), (1, 1), (1, 2), (2, 2)]  # without asterisks
    assert points(question, "Hi, you. Bye") == [(0, 1), (0, 1), (0, 2), (0, 2)]
    assert points(question, " ") == [(0, 1), (0, 1), (0, 2), (0, 2)]


def test_an_answer_has_eight_loose_forms():
    assert variants("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So 3 + 4 = 7.\n#### 7", "7"),
        ("#### $1,234.50 in all", "1234.50"),
        ("He has 5 apples, then 12.", "12"),
        ("It is -3", "-3"),
        ("#### 5\nThat is for 2 days.", "5"),
        ("no number", None),
        ("10 ####", None),
    ],
)
def test_the_final_number_of_an_answer(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_a_problem_comes_after_solved_ones(tmp_path):
    files = write(
        tmp_path, {"question": "1 + 1?", "answer": "It is 2.\n#### 2"}, {"question": "2?", "answer": "#### 2"}
    )
    question, _ = read_gsm8k(files, examples=files, num_examples=1)
    assert [message.role for message in question.prompt.prompt] == ["user", "assistant", "user"]
    assert question.prompt.prompt[1].content == "It is 2.\n#### 2"
    assert points(question, "So 2.0") == [(1, 1)] and points(question, "So 3") == [(0, 1)]


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"question": "?", "choices": ["a", "b"], "answer": 1}, 1),
        ({"question": "?", "choices": ["a", "b"], "answer": "B"}, 1),
        ({"question": "?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "1"}, 0),
        ({"ctx": "He", "endings": ["runs", "sits"], "label": "1"}, 1),
        ({"question": "?", "choices": ["yes", "no"], "answer": "no"}, 1),
    ],
)
def test_three_forms_of_multiple_choice_are_read(row, right):
    assert question_of(row).right == right


def test_the_most_probable_choice_counts(tmp_path):
    row = {"question": "?", "choices": ["long answer", "no"], "answer": 0}
    (question,) = read_choices(write(tmp_path, row))
    # By the sum the short one is more probable; by character -4/11 is more than -3/2.
    assert grade(question, [-4.0, -3.0]).points == {"multiple_choice": (0, 1), "multiple_choice_normalised": (1, 1)}
    (lettered,) = read_choices(write(tmp_path, row), by_letter=True)
    assert lettered.choices == ["A", "B"] and "A. long answer\nB. no" in lettered.prompt.prompt[0].content


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2]}}\n</tool_call>',
        '{"name": "add", "parameters": {"a": 1, "b": [2]}}',
        '```json\n[{"function": {"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": [2]}"}}]\n```',
        "[add(a=1, b=[2])]",
        "add(1, b=[2])",
        '<|python_tag|>{"type": "function", "function": "add", "parameters": {"a": 1, "b": [2]}}',
    ],
)
def test_a_call_is_read_in_every_form(text):
    assert calls_in(text, {"add": ["a", "b"]}) == [Call("add", {"a": 1, "b": [2]})]


@pytest.mark.parametrize(
    "text", ["I would call add.", "add(a=open('x'))", "add(**x)", "((((", '{"name": 3}', "", "[1, 2]", "(" * 10_000]
)
def test_what_is_no_call_is_none(text):
    assert calls_in(text, {"add": ["a"]}) == []


FUNCTION = {
    "name": "weather",
    "description": "The weather.",
    "parameters": {"type": "dict", "properties": {"city": {"type": "string"}, "days": {"type": "float"}}},
}


def test_calls_are_compared_as_the_leaderboard_does(tmp_path):
    row = {
        "id": "simple_0",
        "question": [[{"role": "user", "content": "Rome?"}]],
        "function": [FUNCTION],
        "ground_truth": [{"weather": {"city": ["Rome", "Rome, Italy"], "days": [1, ""]}}],
    }
    (question,) = read_function_calls(write(tmp_path, row))
    assert question.prompt.tools is not None
    assert question.prompt.tools[0]["function"]["parameters"]["properties"]["days"] == {"type": "number"}
    right = ["weather(city='rome')", "weather('Rome Italy', 1.0)", '{"name": "weather", "arguments": {"city": "Rome"}}']
    wrong = [
        "weather(city='Paris')",
        "weather(days=1)",
        "weather(city='Rome', days=2)",
        "weather(city='Rome', days=True)",
        "weather(city='Rome', unit='C')",
        "[weather(city='Rome'), weather(city='Rome')]",
        "It is sunny.",
    ]
    assert [points(question, text) for text in right] == [[(1, 1)]] * 3
    assert [points(question, text) for text in wrong] == [[(0, 1)]] * len(wrong)


def test_right_answers_may_be_in_another_file_and_calls_in_any_order(tmp_path):
    rows = write(tmp_path, {"id": "a", "question": "Rome and Oslo?", "function": [FUNCTION]})
    right = [{"weather": {"city": ["Rome"]}}, {"weather": {"city": ["Oslo"]}}]
    (question,) = read_function_calls([*rows, *write(tmp_path, {"id": "a", "ground_truth": right})])
    assert points(question, "[weather(city='Oslo'), weather(city='Rome')]") == [(1, 1)]
    assert points(question, "[weather(city='Oslo'), weather(city='Oslo')]") == [(0, 1)]


def test_a_dialog_with_tools_is_a_question(tmp_path):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": [1, {"x": 2}]}}}
    dialog = {
        "messages": [
            {"role": "user", "content": "Rome?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "Sun."},
            {"role": "assistant", "content": "Sun."},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
    }
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi."}]}
    (question,) = read_function_calls(write(tmp_path, dialog, chat))
    assert isinstance(question.prompt, Prompt) and len(question.prompt.prompt) == 1
    assert points(question, json.dumps(call["function"])) == [(1, 1)]
    assert points(question, "weather(city='Rome', days=[1, {'x': 3}])") == [(0, 1)]


def test_no_call_is_right_where_none_is_wanted(tmp_path):
    row = {"id": "irrelevance_0", "question": "Hi?", "function": [FUNCTION], "ground_truth": []}
    (question,) = read_function_calls(write(tmp_path, row))
    assert points(question, "Hello!") == [(1, 1)] and points(question, "weather(city='Rome')") == [(0, 1)]


def test_a_question_asked_twice_has_two_ids(tmp_path):
    files = write(tmp_path, *[{"question": "1?", "answer": "#### 1"}] * 2)
    first, second = read_gsm8k(files)
    assert second.question_id == f"{first.question_id}.2"
    with pytest.raises(DataError, match="no question is left"):
        read_gsm8k(write(tmp_path, *[]))
