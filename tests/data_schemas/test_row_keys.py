"""Columns with a meaning beside the texts of a row: labels, ratings, weights; and those that nothing reads."""

import json
import logging
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_schemas.errors import DataError
from data_schemas.reading import read_conversations, read_documents, read_pairs, read_prompts, write_rows
from data_schemas.rows import for_template
from tests.data_schemas.raw_rows import TWO_TURNS, assistant, fails, lines, messages_of, user

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def kto(completion, label, prompt="q", **columns):
    return {"prompt": prompt, "completion": completion, "label": label, **columns}


def answers_of(read):
    return [(row.prompt[0].content, row.chosen[0].content, row.rejected[0].content) for row in read.rows]


# -- labels (KTO) -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [False, 0, "false", "False"])
def test_a_bad_answer_is_never_an_example(tmp_path, bad, caplog):
    read = read_conversations(lines(tmp_path / "a.jsonl", kto("good", True), kto("bad", bad), kto("fine", "True")))
    assert messages_of(read) == [[user("q"), assistant("good")], [user("q"), assistant("fine")]]
    assert [(row.line, row.reason) for row in read.bad] == [
        (2, "label: found a bad answer, expected a good one: bad answers are not examples to train on")
    ]
    assert "a.jsonl: 1 set aside of 3 rows: label: a bad answer (1)" in caplog.text


def test_labels_beside_other_columns(tmp_path):
    rows = [{"messages": TWO_TURNS, "label": False}, {"messages": TWO_TURNS, "label": "greeting"}]
    read = read_conversations(lines(tmp_path / "a.jsonl", *rows, {"messages": TWO_TURNS, "kto_tag": False}))
    assert (len(read.rows), [row.line for row in read.bad]) == (1, [1, 3])
    doubtful = lines(tmp_path / "b.jsonl", {"messages": TWO_TURNS, "label": 0})
    assert "label: found 0, expected true or false (KTO); rename the column if" in fails(read_conversations, doubtful)
    assert "label: found 'toxic', expected true for a good answer" in fails(
        read_conversations, lines(tmp_path / "c.jsonl", kto("a", "toxic"))
    )


def test_pairs_are_made_of_good_and_bad_answers_to_one_prompt(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        kto("good 1", True),
        kto("other", False, prompt="alone"),
        kto("bad 1", False),
        kto("bad 2", False, tools=[]),  # other tools: another prompt
        kto("bad 3", False),
        kto("more", True, prompt="alone"),
        kto("only", True, prompt="third"),
    )
    read = read_pairs(path)
    assert answers_of(read) == [("q", "good 1", "bad 1"), ("q", "good 1", "bad 3"), ("alone", "more", "other")]
    assert [(row.line, row.reason) for row in read.bad] == [
        (4, "label: found only bad answers to this prompt, expected a good and a bad one, which make a pair"),
        (7, "label: found only good answers to this prompt, expected a good and a bad one, which make a pair"),
    ]


def test_labelled_dialogs_make_pairs_too(tmp_path):
    rows = [{"messages": [user("q"), assistant(text)], "label": label} for text, label in (("a", True), ("b", False))]
    assert answers_of(read_pairs(lines(tmp_path / "a.jsonl", *rows))) == [("q", "a", "b")]


def test_an_answer_with_both_labels_is_a_bad_row(tmp_path):
    path = lines(tmp_path / "a.jsonl", kto("a", True), kto("b", False), kto("a", False))
    assert "a.jsonl:1: label: found an answer with true and with false, expected one label" in fails(read_pairs, path)


def test_labelled_answers_of_a_table_that_json_cannot_write_are_bad_rows(tmp_path):
    binary = pa.array([b"yes", b"no"], pa.binary())
    answers = {"prompt": ["p", "p"], "label": [True, False]}
    pq.write_table(pa.table(answers | {"completion": binary}), tmp_path / "a.parquet")
    assert "a.parquet:1: chosen" in fails(read_pairs, tmp_path / "a.parquet")
    days = pa.array([1, 1], pa.date32())
    pq.write_table(pa.table(answers | {"completion": ["yes", "no"], "system": days}), tmp_path / "b.parquet")
    assert "b.parquet:1: system" in fails(read_pairs, tmp_path / "b.parquet")


def test_a_labelled_answer_that_is_added_while_the_file_is_read_is_no_crash(tmp_path):
    path = lines(tmp_path / "a.jsonl", *(kto(text, text == "a", prompt=f"p{n}") for n in range(3000) for text in "ab"))

    def append(*_):
        with path.open("a") as file:
            file.write(json.dumps(kto("x", True, prompt="new")) + "\n")

    with pytest.raises(DataError, match="changed while it was read; run again once it is complete"):
        read_pairs(path, keep=append)


def test_labelled_answers_and_rows_that_are_set_aside_are_not_held(tmp_path):
    """2,000 answers of 2 kB, which half of the file lies between; then as many bad rows."""
    texts = [f"{number} " + "word " * 400 for number in range(2000)]
    rows = [kto(text, place < 1000, prompt=f"p{place % 1000}") for place, text in enumerate(texts)]
    path, kept = lines(tmp_path / "a.jsonl", *rows), []
    del texts, rows
    tracemalloc.start()
    try:
        read_pairs(path, keep=lambda row, copies, file, line: kept.append(row.prompt[0].content))
        assert (len(kept), kept[-1]) == (1000, "p999")
        read = read_conversations(path, on_bad_row="set_aside", keep=lambda row, copies, file, line: None)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()
    assert (len(read.bad), read.bad[-1].line) == (1000, 2000)
    assert write_rows(tmp_path / "rejected_rows.jsonl", read.bad) == 1000


# -- ratings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"chosen_score": 4, "rejected_score": 2},
        {"score_chosen": 4, "score_rejected": 2.0},
        {"chosen_rating": "4", "rejected_rating": "2"},
        {"chosen-rating": 4, "rejected-rating": 2},
        {"rating": [4, 2]},
    ],
)
def test_ratings_beside_a_pair_become_its_scores_and_must_agree_with_its_order(tmp_path, columns):
    (row,) = read_pairs(lines(tmp_path / "a.jsonl", PAIR | columns)).rows
    assert (row.chosen_score, row.rejected_score, row.strength) == (4.0, 2.0, None)
    turned = {name: value[::-1] if isinstance(value, list) else value for name, value in columns.items()}
    if len(columns) == 2:
        turned = dict(zip(columns, reversed(list(columns.values())), strict=True))
    error = fails(read_pairs, lines(tmp_path / "b.jsonl", PAIR | turned))
    assert f"{', '.join(columns)}: found 2 for chosen and 4 for rejected, expected chosen to be rated at least" in error
    (row,) = read_pairs(lines(tmp_path / "c.jsonl", PAIR | turned | {"strength": "better"})).rows
    assert (row.strength, row.chosen_score) == ("better", 2.0)  # the row's own strength decides


def test_equal_ratings_are_the_weakest_strength(tmp_path):
    dialogs = {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}
    rows = read_pairs(lines(tmp_path / "a.jsonl", PAIR | {"rating": [3, 3]}, dialogs | {"rating": [3, 3]})).rows
    assert [row.strength for row in rows] == ["marginally_better"] * 2


def test_an_edited_answer_has_no_rating_of_its_own(tmp_path):
    edited = PAIR | {"edited": "better", "chosen_rating": 3, "rejected_rating": 2}
    (row,) = read_pairs(lines(tmp_path / "a.jsonl", edited)).rows
    assert (row.chosen[0].content, row.chosen_score, row.rejected_score) == ("better", None, None)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"chosen_rating": "high"}, "chosen_rating: found 'high', expected a number"),
        ({"chosen_rating": {"a": 1}}, "chosen_rating: found a mapping with a, expected a finite number"),
        ({"rating": [1, 2, 3]}, "rating: found a list of 3, expected two numbers, of chosen and of rejected"),
    ],
)
def test_ratings_that_are_no_numbers_are_refused(tmp_path, columns, reason):
    assert f":1: {reason}" in fails(read_pairs, lines(tmp_path / "a.jsonl", PAIR | columns))


# -- rows that are not trained, and columns that nothing reads --------------------------------------------------------


@pytest.mark.parametrize("key", [{"weight": 0}, {"train": False}])
@pytest.mark.parametrize(
    ("reader", "row"), [(read_conversations, {"messages": TWO_TURNS}), (read_pairs, PAIR), (read_prompts, PAIR)]
)
def test_a_row_with_weight_0_is_set_aside(tmp_path, reader, row, key):
    (name,) = key
    read = reader(lines(tmp_path / "a.jsonl", row | key, row | {"weight": 1, "train": True}))
    assert (len(read.rows), [(bad.line, bad.field) for bad in read.bad]) == (1, [(1, name)])
    assert "1: weight: found 0.5, expected 0 or 1" in fails(reader, lines(tmp_path / "b.jsonl", row | {"weight": 0.5}))


def test_ignored_columns_are_listed_once_for_each_file(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    turns = [{"from": "human", "value": "q", "lang": "en"}, {"from": "gpt", "value": "a", "weight": 1}]
    row = {"conversations": turns, "system": "s", "id": 3, "source": "web", "score": 5, "empty": None}
    first = lines(tmp_path / "a.jsonl", row, {"messages": TWO_TURNS, "id": 4, "topic": "x"})
    read = read_conversations([first, lines(tmp_path / "b.jsonl", {"messages": TWO_TURNS, "system": "s"})])
    assert read.ignored == {str(first): ["id", "conversations.lang", "topic"]}
    assert read.notes == [f"{first}: ignored columns: id, conversations.lang, topic"]
    assert caplog.messages == read.notes
    assert read_pairs(lines(tmp_path / "c.jsonl", PAIR | {"margin": 1, "rating": [2, 1], "score": 3})).ignored == {
        str(tmp_path / "c.jsonl"): ["margin", "score"]
    }
    assert read_documents(lines(tmp_path / "d.jsonl", {"text": "a", "images": "b"})).ignored == {
        str(tmp_path / "d.jsonl"): ["images"]
    }


# -- prompts and references -------------------------------------------------------------------------------------------


def test_turns_are_asked_one_after_the_other_where_references_answer_them(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        {"turns": ["a", "b"], "reference": ["ra", "rb"], "question_id": 81},
        {"turns": ["c", "d"]},
        {"prompt": ["e"], "reference": ["re"]},
        {"prompt": "f", "reference": 42},
    )
    read = read_prompts(path)
    assert [(for_template(row.prompt), row.reference) for row in read.rows] == [
        ([user("a")], "ra"),
        ([user("a"), assistant("ra"), user("b")], "rb"),
        ([user("c")], None),
        ([user("e")], "re"),
        ([user("f")], "42"),
    ]
    assert [(bad.line, bad.field) for bad in read.bad] == [(2, "turns.1")]
    again = read_prompts(lines(tmp_path / "b.jsonl", *(row.to_json() + "\n" for row in read.rows)))
    assert again.rows == read.rows


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"turns": []}, "turns: found a list of 0, expected a list of texts, one for each turn of the user"),
        ({"turns": ["a", 3]}, "turns: found a list of 2, expected a list of texts"),
        ({"turns": ["a"], "reference": ["b", "c"]}, "reference: found a list of 2, expected one answer for each of 1"),
        ({"prompt": "a", "reference": ["b", "c"]}, "reference: found a list of 2, expected text"),
    ],
)
def test_turns_and_references_that_do_not_fit_are_refused(tmp_path, row, reason):
    assert f":1: {reason}" in fails(read_prompts, lines(tmp_path / "a.jsonl", row))


# -- system messages and contexts that are given twice ----------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be brief."}
HH_PROMPT = "\n\nHuman: q\n\nAssistant:"


@pytest.mark.parametrize(
    ("reader", "row"),
    [
        (read_conversations, {"messages": [SYSTEM, *TWO_TURNS]}),
        (read_conversations, {"conversations": [{"from": "system", "value": "Be brief."}, *TWO_TURNS]}),
        (read_conversations, {"prompt": [SYSTEM, user("q")], "completion": "a"}),
        (read_conversations, {"question": [SYSTEM, user("q")], "answer": "a"}),
        (read_prompts, {"prompt": [SYSTEM, user("q")]}),
        (read_prompts, {"messages": [SYSTEM, *TWO_TURNS]}),
        (read_pairs, {"prompt": [SYSTEM, user("q")], "chosen": "a", "rejected": "b"}),
        (read_pairs, {"prompt": [SYSTEM, user("q")], "ranked": ["a", "b"]}),
        (
            read_pairs,
            {"chosen": [SYSTEM, user("q"), assistant("a")], "rejected": [SYSTEM, user("q"), assistant("b")]},
        ),
    ],
)
def test_a_system_column_may_only_repeat_the_dialogs_own_system_message(tmp_path, reader, row):
    alone, same = (
        reader(lines(tmp_path / f"{n}.jsonl", row | more)).rows
        for n, more in enumerate(({}, {"system": "Be brief.\n"}))
    )
    assert alone == same
    error = fails(reader, lines(tmp_path / "c.jsonl", row | {"system": "Be long."}))
    assert ":1: system: found 'Be long.', expected the dialog's own system message, 'Be brief.', or no such" in error


@pytest.mark.parametrize(
    ("reader", "row"),
    [
        (read_pairs, {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}),
        (read_pairs, {"prompt": HH_PROMPT, "chosen": "a", "rejected": "b"}),
        (read_pairs, {"chosen": HH_PROMPT + " a", "rejected": HH_PROMPT + " b"}),
        (read_prompts, {"prompt": HH_PROMPT}),
        (read_prompts, {"question": [user("q")]}),
    ],
)
def test_a_system_column_is_read_beside_every_form_of_a_prompt(tmp_path, reader, row):
    (made,) = reader(lines(tmp_path / "a.jsonl", row | {"system": "Be brief."})).rows
    assert for_template(made.prompt) == [SYSTEM, user("q")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"question": "q", "answer": "a", "system": "s", "system_prompt": "t"},
            "system, system_prompt: found two different system messages, expected one",
        ),
        (
            {"question": [user("q")], "answer": "a", "context": "c"},
            "context: found 'c', expected none beside a dialog in question: write it into a message",
        ),
        (
            {"instruction": "q", "output": "a", "input": "b", "context": "c"},
            "input, context: found two different texts, expected one",
        ),
    ],
)
def test_of_two_columns_for_one_thing_none_is_dropped(tmp_path, row, reason):
    assert f":1: {reason}" in fails(read_conversations, lines(tmp_path / "a.jsonl", row))
    same = {
        name: "s" if name in ("system_prompt", "context") and "input" not in row else value
        for name, value in row.items()
    }
    same |= {"context": "b"} if "input" in row else {}
    if not isinstance(same.get("question"), list):
        assert len(read_conversations(lines(tmp_path / "b.jsonl", same)).rows) == 1


# -- nesting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("extra", "is_bad"), [(97, False), (98, True), (900, True)])
def test_rows_nested_deeper_than_a_hundred_are_bad_rows(tmp_path, extra, is_bad):
    inner = "[" * extra + "]" * extra
    answer = '{"role": "assistant", "content": "a"}'
    text = f'{{"messages": [{{"role": "user", "content": "q", "meta": {inner}}}, {answer}]}}\n'
    read = read_conversations(lines(tmp_path / "a.jsonl", {"messages": TWO_TURNS}, text), on_bad_row="set_aside")
    assert len(read.rows) == 1 + (not is_bad)
    if is_bad:
        assert (
            read.bad[0].reason == "row: found lists or mappings more than 100 deep, expected fewer inside one another"
        )
        assert read.bad[0].to_json()


def test_arguments_of_a_call_count_as_well(tmp_path):
    arguments = '{"a": ' + "[" * 100 + "]" * 100 + "}"
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    path = lines(tmp_path / "a.jsonl", {"messages": [user("q"), call]})
    error = fails(read_conversations, path)
    assert "messages.1.tool_calls.0.function.arguments: found lists or mappings more than 100 deep" in error
