"""What `alignloop data` finds out about a source: kind, guessed columns, problems, duplicates, scripts."""

import pytest

from data_schemas.sources import Source
from data_schemas.survey import guess_columns, scripts, survey
from tests.data_schemas.raw_rows import lines


@pytest.mark.parametrize(
    ("columns", "guess"),
    [
        (["Q", "A", "id"], ("instructions", {"prompt": "Q", "answer": "A"})),
        (["user_query", "gold answer"], ("instructions", {"prompt": "user_query", "answer": "gold answer"})),
        (["userQuestion", "botReply"], ("instructions", {"prompt": "userQuestion", "answer": "botReply"})),
        (
            ["question", "good", "bad"],
            ("preferences", {"prompt": "question", "chosen": "good", "rejected": "bad"}),
        ),
        (["title", "body"], ("documents", {"text": "body"})),
        (["dialogue"], ("instructions", {"messages": "dialogue"})),
        (["question"], ("prompts", {"prompt": "question"})),
        (["a1", "quantity", "x"], None),  # one letter only as a complete name
    ],
)
def test_columns_are_guessed_by_their_names(columns, guess):
    assert guess_columns(columns) == guess


def test_a_survey_counts_rows_problems_duplicates_and_ignored_columns(tmp_path):
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "note": 1},
        {"prompt": "q", "chosen": "a", "rejected": "b", "note": 2},
        {"prompt": "q", "chosen": "c", "rejected": "b"},
        {"prompt": "r", "chosen": "a", "rejected": "a"},
        {"prompt": "r", "chosen": "a", "rejected": ""},
        {"prompt": "r", "chosen": "x", "rejected": "x"},
        "not JSON\n",
    ]
    path = lines(tmp_path / "a.jsonl", *rows)
    found = survey(Source(str(path)))
    assert (found.kind, found.other_kinds, found.is_guessed) == ("preferences", ["prompts"], False)
    assert (found.num_lines, len(found.rows), found.num_duplicates, found.num_first_messages) == (7, 3, 1, 1)
    assert found.dialects == {"prompt + chosen + rejected": 6} and found.ignored == ["note"]
    twice, *others = found.problems
    assert (twice.place_in_row, twice.places) == ("chosen, rejected", [f"{path}:4", f"{path}:6"])
    assert sorted((problem.place_in_row, problem.places) for problem in others) == [
        ("line", [f"{path}:7"]),
        ("rejected", [f"{path}:5"]),
    ]


def test_guessed_columns_are_used_and_no_column_is_ignored_twice(tmp_path):
    found = survey(Source(str(lines(tmp_path / "a.tsv", "Q\tA\tlevel\nHi\tYo\t1\n"))))
    assert found.source.columns == {"prompt": "Q", "answer": "A"} and found.is_guessed
    assert found.columns == ["Q", "A", "level"] and found.ignored == ["level"]
    assert [message.content for message in found.rows[0].row.messages] == ["Hi", "Yo"]


GOOD = {"prompt": "q", "completion": "a"}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("rows", "kind", "others"),
    [
        ([GOOD, GOOD, {"prompt": "q", "chosen": "a", "rejected": "a"}], "instructions", ["preferences", "prompts"]),
        ([PAIR, PAIR, GOOD], "preferences", ["instructions", "prompts"]),
        ([GOOD | {"label": True}] * 2, "instructions", ["preferences", "prompts"]),
        ([PAIR, *[{"prompt": "q", "chosen": "a", "rejected": "a"}] * 3], "preferences", ["prompts"]),
        ([{"prompt": "q", "chosen": "", "rejected": ""}], "prompts", ["preferences"]),
    ],
)
def test_a_source_is_read_as_the_kind_with_the_most_valid_rows(tmp_path, rows, kind, others):
    found = survey(Source(str(lines(tmp_path / "a.jsonl", *rows))))
    assert (found.kind, found.other_kinds) == (kind, others)


def test_labelled_answers_are_preferences_where_most_of_them_make_pairs(tmp_path):
    """Two good answers and three bad ones make three pairs; two prompts have good answers only."""
    five = [{"prompt": "q", "completion": text, "label": text in "ab"} for text in "abcde"]
    alone = [{"prompt": prompt, "completion": "a", "label": True} for prompt in ("r", "s")]
    found = survey(Source(str(lines(tmp_path / "a.jsonl", *five, *alone))))
    assert (found.kind, found.dialects) == ("preferences", {"prompt + completion + label": 7})
    assert (len(found.rows), [(problem.count, problem.is_set_aside) for problem in found.problems]) == (3, [(2, True)])


def test_columns_of_text_are_told_from_numbers(tmp_path):
    rows = [{"no": 1, "id": "17", "ask": "Who?", "talk": [{"x": 1}], "empty": None}]
    assert survey(Source(str(lines(tmp_path / "a.jsonl", *rows)))).text_columns == ["ask", "talk"]


def test_a_text_file_is_read_as_documents_and_may_be_prompts(tmp_path):
    (tmp_path / "a.txt").write_text("What is 2+2?\nWho?\n")
    found = survey(Source(str(tmp_path / "a.txt")))
    assert (found.kind, found.other_kinds, len(found.rows)) == ("documents", ["prompts"], 2)


def test_a_file_of_no_kind_has_no_rows(tmp_path):
    found = survey(Source(str(lines(tmp_path / "a.jsonl", {"x1": 1}))))
    assert (found.kind, list(found.rows), found.problems, found.columns) == ("", [], [], ["x1"])


def test_scripts_are_shares_of_the_letters():
    shares = scripts(["abcd é 123!", "한국", "日本 かな", "да"])
    assert shares == pytest.approx(
        {"Latin": 5 / 13, "Hangul": 2 / 13, "Han": 2 / 13, "Kana": 2 / 13, "Cyrillic": 2 / 13}
    )
    assert scripts(["123"]) == {}
