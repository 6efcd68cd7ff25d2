"""A source of rows as text or as a mapping: its split, its columns, its share."""

import json

import pytest

from data_schemas.column_checks import check_columns
from data_schemas.errors import ConfigError
from data_schemas.known_columns import KNOWN_COLUMNS, check_names, misspelt
from data_schemas.reading import read_conversations, read_documents, read_pairs, read_prompts
from data_schemas.row_kinds import KINDS
from data_schemas.sources import Source
from data_schemas.splitting import num_copies
from data_schemas.survey import survey
from tests.data_schemas.raw_rows import assistant, fails, lines, messages_of, user


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ("pairs.jsonl", Source("pairs.jsonl")),
        ("folder:test", Source("folder", "test")),
        ("owner/name", Source("owner/name")),
        ("owner/name:train_sft", Source("owner/name", "train_sft")),
        ("owner/name@v1.2:train[:10%]", Source("owner/name", "train[:10%]", revision="v1.2")),
        ("data@home/x.jsonl", Source("data@home/x.jsonl")),  # a revision is only part of a hub name
        ({"path": "owner/name@abc", "name": "en"}, Source("owner/name", name="en", revision="abc")),
        ({"path": "x.csv", "split": None, "share": 2}, Source("x.csv", share=2.0)),
    ],
)
def test_a_source_is_text_or_a_mapping(given, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Source.of(given) == source
    assert Source.of(source.value()) == source  # what a stage's config gets means the same


def test_a_path_that_exists_is_not_taken_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "a:test", "x")
    assert Source.of("a:test") == Source("a:test")
    assert Source.of("b:test") == Source("b", "test")


def test_a_plain_path_has_no_options():
    assert Source.of("x.csv").options() == {} and Source.of({"path": "x.csv", "share": 1}).value() == "x.csv"


def test_columns_are_renamed_before_the_format_of_a_row_is_recognised(tmp_path):
    path = lines(tmp_path / "qa.csv", 'Q,A,prompt\nHi,Yo,other\n"Why?",So.,x\n')
    given = {"path": str(path), "columns": {"prompt": "Q", "answer": "A"}}
    assert messages_of(read_conversations(given)) == [
        [user("Hi"), assistant("Yo")],
        [user("Why?"), assistant("So.")],
    ]
    pairs = lines(tmp_path / "p.jsonl", {"ask": "q", "good": "a", "bad": "b"}, {"ask": "r", "good": "c", "bad": "d"})
    (first, _) = read_pairs(
        {"path": str(pairs), "columns": {"prompt": "ask", "chosen": "good", "rejected": "bad"}}
    ).rows
    assert (first.prompt[0].content, first.chosen[0].content, first.rejected[0].content) == ("q", "a", "b")


def test_a_column_whose_name_another_one_takes_is_listed(tmp_path):
    path = lines(tmp_path / "p.jsonl", {"prompt": "template 7", "Q": "Why?", "A": "So."})
    read = read_conversations({"path": str(path), "columns": {"prompt": "Q", "answer": "A"}})
    assert [message.content for message in read.rows[0].messages] == ["Why?", "So."]
    assert read.notes == [f"{path}: ignored columns: prompt (columns takes it from Q)"]


def test_two_columns_can_be_swapped(tmp_path):
    path = lines(tmp_path / "p.jsonl", {"prompt": "q", "chosen": "worse", "rejected": "better"})
    given = {"path": str(path), "columns": {"chosen": "rejected", "rejected": "chosen"}}
    read = read_pairs(given)
    assert (read.rows[0].chosen[0].content, read.rows[0].rejected[0].content) == ("better", "worse")
    assert not read.notes


def test_a_column_that_the_file_lacks_is_named_before_anything_runs(tmp_path):
    path = lines(tmp_path / "qa.csv", "Question,A\nHi,Yo\n")
    given = {"path": str(path), "columns": {"prompt": "Questoin", "answer": "A"}}
    expected = (
        f"{path} has no column 'Questoin', which `columns` gives as prompt; it has Question, A; "
        "did you mean 'Question'?"
    )
    assert fails(read_conversations, given) == expected
    assert fails(check_columns, Source.of(given), "instructions") == expected


def test_a_name_that_no_format_of_rows_has_is_refused(tmp_path):
    path = lines(tmp_path / "qa.csv", "Frage,Antwort\nHi,Yo\n")
    given = {"path": str(path), "columns": {"promt": "Frage", "answer": "Antwort"}}
    expected = f"{path}: columns={{promt: Frage}}: no format of rows has a column 'promt'; did you mean 'prompt'?"
    assert fails(read_conversations, given) == expected
    assert fails(check_columns, Source.of(given), "instructions") == expected
    assert fails(survey, Source.of(given)) == expected


def test_exchanged_sides_of_columns_are_named(tmp_path):
    path = lines(tmp_path / "qa.csv", "Frage,Antwort,Quelle\nHi,Yo,web\n")
    given = {"path": str(path), "columns": {"Frage": "prompt", "answer": "Antwort", "Quelle": "zzz"}}
    expected = (
        f"{path} has no column 'prompt', which `columns` gives as Frage; it has Frage, Antwort, Quelle; "
        "the sides are exchanged? expected {prompt: Frage}"
    )
    assert fails(read_conversations, given) == expected
    assert fails(survey, Source.of(given)) == expected


def test_every_column_that_a_format_or_a_row_has_can_be_named():
    columns = {name for _, dialects in KINDS.values() for dialect in dialects for name in dialect.columns}
    others = "tag reference tools group_id source strength difficulty score system context history edited between label"
    named = {*columns, *others.split(), "weight", "images", "kto_tag"}
    assert named <= KNOWN_COLUMNS
    check_names(dict.fromkeys(named, "x"), where="x")
    assert "no format of rows has a column 'promt'" in fails(check_names, {"promt": "x"}, where="x")


def test_a_misspelt_column_is_named_with_the_one_that_is_meant(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "q", "choosen": "a", "Rejected": "b", "note": "c"}))
    message = fails(read_pairs, path)
    assert message.endswith("messages + label; did you mean 'chosen' by 'choosen', 'rejected' by 'Rejected'?")
    assert misspelt(["question_id", "answer", "Q", "customer_question", "liked", ""]) == ""


def test_large_tables_are_checked_by_their_header(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"q": [f"{n} {'x' * 20}" for n in range(250_000)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="none")
    (tmp_path / "a.tsv").write_text("q\tb\n" + "x\ty\n" * 1_100_000)
    for name, columns in (("a.parquet", "q"), ("a.tsv", "q, b")):
        assert (tmp_path / name).stat().st_size > 4_000_000
        message = fails(check_columns, Source.of(str(tmp_path / name)), "prompts")
        assert message.startswith(f"{tmp_path / name} has the columns {columns}; expected prompt"), message
        check_columns(Source.of({"path": str(tmp_path / name), "columns": {"prompt": "q"}}), "prompts")


# -- shares -------------------------------------------------------------------------------------------------------


def test_a_share_keeps_the_same_dialogs_whatever_else_the_file_holds(tmp_path):
    rows = [{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(1000)]
    first = lines(tmp_path / "a.jsonl", *rows)
    second = lines(tmp_path / "b.jsonl", *[{**row, "rejected": "c"} for row in reversed(rows)], *rows)
    kept = [row.prompt[0].content for row in read_pairs({"path": str(first), "share": 0.3}).rows]
    assert 240 < len(kept) < 360
    both = [row.prompt[0].content for row in read_pairs({"path": str(second), "share": 0.3}).rows]
    assert sorted(both) == sorted(kept * 2)  # all pairs of a prompt stay together


def test_a_share_above_one_repeats_rows(tmp_path):
    path = lines(tmp_path / "a.jsonl", *({"text": f"document {n}"} for n in range(400)))
    texts = [row.text for row in read_documents({"path": str(path), "share": 2.25}).rows]
    copies = [texts.count(f"document {n}") for n in range(400)]
    assert set(copies) == {2, 3} and 60 < copies.count(3) < 140
    assert [num_copies("x", share) for share in (1, 2, 3.0)] == [1, 2, 3]


def test_pairs_and_prompts_are_not_repeated(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"})
    given = {"path": str(path), "share": 2}
    for read in (read_pairs, read_prompts):
        assert "share=2 repeats rows, which only documents and instructions allow" in fails(read, given)
    assert "expected a share of at most 1" in fails(check_columns, Source.of(given), "preferences")


# -- the hub ------------------------------------------------------------------------------------------------------


def test_split_configuration_and_revision_are_asked_from_the_hub(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(path, **options):
        asked.append((path, options))
        return [{"text": json.dumps(options)}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    read_documents(["owner/name", "owner/name@r1:test", {"path": "owner/name", "name": "en", "split": "dev"}])
    assert asked == [
        ("owner/name", {"split": "train"}),
        ("owner/name", {"split": "test", "revision": "r1"}),
        ("owner/name", {"split": "dev", "name": "en"}),
    ]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"path": "x", "colums": {}}, "here: unknown key 'colums' of a file; did you mean 'columns'?"),
        ({"split": "a"}, "here: path is missing; expected a mapping as in {path: pairs.csv, share: 0.5}"),
        ({"path": 3}, "here: path=3: expected text"),
        ({"path": "x", "columns": "Q"}, "here: columns='Q': expected a mapping, as in {prompt: Q, answer: A}"),
        ({"path": "x", "columns": {"prompt": 3}}, "here: columns={'prompt': 3}: expected a mapping"),
        *(
            ({"path": "x", "share": share}, f"here: share={share!r}: expected a number above 0")
            for share in (0, -1, float("nan"), float("inf"), True, "half")
        ),
    ],
)
def test_a_wrong_mapping_is_one_line(given, complaint):
    with pytest.raises(ConfigError) as caught:
        Source.of(given, where="here")
    assert str(caught.value).startswith(complaint)


def test_a_source_gives_its_rows_a_tag_and_a_row_keeps_its_own(tmp_path):
    rows = [{"prompt": "1 + 1?", "response": "2"}, {"prompt": "print?", "response": "print()", "tag": "code"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_conversations([{"path": str(tmp_path / "a.jsonl"), "tag": "math"}])
    assert [row.tag for row in read.rows] == ["math", "code"]
    assert "tag" not in read_conversations([tmp_path / "a.jsonl"]).rows[0].to_json()
