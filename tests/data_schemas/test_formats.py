"""Every file format: JSON lines, JSON, text, CSV, Parquet, folders and names of the hub."""

import gzip
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_schemas import tables
from data_schemas.column_checks import check_columns
from data_schemas.errors import DataError
from data_schemas.files import check_regular
from data_schemas.reading import read_conversations, read_documents, read_pairs
from data_schemas.rows import Document, for_template
from data_schemas.sources import Source, lines_of
from tests.data_schemas.raw_rows import TWO_TURNS, assistant, fails, lines, messages_of, user


@pytest.mark.parametrize(
    ("row", "ranking"),
    [
        ({"prompt": "q", "edited": "a", "chosen": "b", "rejected": "c"}, "abc"),
        ({"prompt": "q", "edited": None, "chosen": "b", "rejected": "c"}, "bc"),
        ({"prompt": "q", "edited": "b", "chosen": "b", "rejected": "c"}, "bc"),  # the edit changed nothing
        ({"prompt": [user("q")], "ranked": ["a", [assistant("b")], "c", "d"]}, "abcd"),
        ({"prompt": "q", "responses": ["a", "b", "c"], "scores": [0, 2.5, 1]}, "bca"),
        ({"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 1, 2]}, "ca"),  # the first of two equal answers
    ],
)
def test_rankings_of_every_dialect(tmp_path, row, ranking):
    (made,) = read_pairs(lines(tmp_path / "a.jsonl", row)).rows
    assert "".join(answer[0].content for answer in made.ranking) == ranking
    assert for_template(made.prompt) == [user("q")]
    if "scores" in row:
        assert (made.chosen_score, made.rejected_score) == (max(row["scores"]), min(row["scores"]))


def test_a_dialog_compared_at_every_turn_is_split_into_its_turns(tmp_path):
    """Each turn's prompt is the dialog so far, continued with the best answers (Llama 3, table 6)."""
    turns = [
        {"prompt": "q1", "chosen": "a1", "rejected": "b1", "strength": "better"},
        {"prompt": "q2", "edited": "a2!", "chosen": "a2", "rejected": "b2"},
        {"prompt": "q3", "chosen": "a3", "rejected": "b3"},
    ]
    first, second, third = read_pairs(lines(tmp_path / "a.jsonl", {"system": "s", "turns": turns})).rows
    system = {"role": "system", "content": "s"}
    assert for_template(first.prompt) == [system, user("q1")]
    assert for_template(second.prompt) == [system, user("q1"), assistant("a1"), user("q2")]
    assert for_template(third.prompt) == [*for_template(second.prompt), assistant("a2!"), user("q3")]
    assert [[answer[0].content for answer in row.ranking] for row in (first, second, third)] == [
        ["a1", "b1"],
        ["a2!", "a2", "b2"],
        ["a3", "b3"],
    ]
    assert [row.strength for row in (first, second, third)] == ["better", None, None]
    assert len({row.group_id for row in (first, second, third)}) == 1


def test_turns_that_answers_share_go_into_the_prompt(tmp_path):
    shared = [assistant("a1"), user("q2")]
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "content": "7"}
    chosen = [*shared, call, result, assistant("a2")]
    rejected = [*shared, assistant("b2")]
    (row,) = read_pairs(lines(tmp_path / "a.jsonl", {"prompt": "q1", "chosen": chosen, "rejected": rejected})).rows
    assert for_template(row.prompt) == [user("q1"), *shared]
    assert for_template(row.chosen) == [call, result, assistant("a2")]
    assert for_template(row.rejected) == [assistant("b2")]


def spoken(*texts):
    return [{"from": "human" if place % 2 else "gpt", "value": text} for place, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("row", "columns", "differ"),
    [
        (
            {
                "prompt": [user("q")],
                "chosen": [assistant("c1"), user("n"), assistant("c2")],
                "rejected": [assistant("r1"), user("n"), assistant("r2")],
            },
            "chosen, rejected",
            1,
        ),
        ({"prompt": "q", "ranked": [[assistant("a"), user("n"), assistant("b")], "c", "d"]}, "ranked", 1),
        (
            {"prompt": "q", "responses": ["a", [assistant("b"), user("n"), assistant("c")]], "scores": [1, 2]},
            "responses",
            1,
        ),
        (
            {"conversations": spoken("", "q")[1:], "chosen": spoken("a", "n", "b"), "rejected": spoken("a", "m", "c")},
            "chosen, rejected",
            2,
        ),
        ({"prompt": "q", "chosen": [assistant("a"), user("n")], "rejected": "b"}, "chosen, rejected", 1),
        (
            {
                "prompt": "\n\nHuman: q\n\nAssistant:",
                "chosen": " a\n\nHuman: n",
                "rejected": " b\n\nHuman: n",
            },
            "chosen, rejected",
            1,
        ),
        (
            {"turns": [{"prompt": "q", "chosen": [assistant("a"), user("n"), assistant("b")], "rejected": "c"}]},
            "chosen, rejected",
            1,
        ),
    ],
)
def test_no_turn_of_an_answer_is_cut_off(tmp_path, row, columns, differ):
    error = fails(read_pairs, lines(tmp_path / "a.jsonl", row))
    assert f":1: {columns}: found answers of several turns, which differ from message {differ} on, expected" in error


# -- names that are there twice, and columns without a name -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("a.csv", ",prompt,completion\n0,q,a\n1,r,b\n", [1]),  # as pandas writes its index
        ("a.csv", "prompt,completion,\nq,a,x\nr,b,y\n", [3]),
        ("a.tsv", " \tprompt\tcompletion\t\n0\tq\ta\t\n1\tr\tb\t\n", [1, 4]),
    ],
)
def test_a_column_without_a_name_is_ignored_by_its_place(tmp_path, name, text, places):
    path = lines(tmp_path / name, text)
    read = read_conversations(path)
    assert messages_of(read) == [[user("q"), assistant("a")], [user("r"), assistant("b")]]
    assert read.ignored == {str(path): [f"unnamed column {place}" for place in places]}
    check_columns(Source.of(str(path)), "instructions")


def test_a_json_row_with_a_key_without_a_name_is_read(tmp_path):
    read = read_conversations(lines(tmp_path / "a.jsonl", {"": 0, "prompt": "q", "completion": "a"}))
    assert read.ignored == {str(tmp_path / "a.jsonl"): ["unnamed column"]}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_two_columns_of_one_name_are_a_bad_file(tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        import pyarrow.parquet

        columns = [pyarrow.array([text]) for text in "qab"]
        table = pyarrow.Table.from_arrays(columns, names=["prompt", "completion", "completion"])
        pyarrow.parquet.write_table(table, path)
    else:
        lines(path, "prompt,completion,completion\nq,a,b\n".replace(",", "," if name == "a.csv" else "\t"))
    expected = f"{path} has two columns 'completion', expected different names; rename one of them"
    assert fails(read_conversations, path, on_bad_row="set_aside") == expected
    if name != "a.parquet":
        assert fails(check_columns, Source.of(str(path)), "instructions") == expected


CALLING = '{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{\\"a\\": 1, \\"a\\": 2}"}]}'


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"prompt": "q", "completion": "a", "completion": "b"}', "line: found the key 'completion' twice in one"),
        (
            '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "content": "b"}]}',
            "line: found the key 'content' twice in one mapping, expected each key once",
        ),
        (
            f'{{"messages": [{{"role": "user", "content": "q"}}, {CALLING}, {{"role": "assistant", "content": "b"}}]}}',
            "messages.1.tool_calls.0.arguments: found the key 'a' twice in one mapping, expected each key once",
        ),
    ],
)
def test_a_key_that_is_in_one_mapping_twice_is_a_bad_row(tmp_path, row, reason):
    good = {"prompt": "q", "completion": "a"}
    path = lines(tmp_path / "a.jsonl", good, row + "\n", good)
    assert f"{path}:2: {reason}" in fails(read_conversations, path)
    read = read_conversations(path, on_bad_row="set_aside")
    assert len(read.rows) == 2 and [bad.line for bad in read.bad] == [2]
    listed = lines(tmp_path / "a.json", f"[{json.dumps(good)}, {row}]")
    assert f"{listed}:2: {reason.replace('line:', 'row:')}" in fails(read_conversations, listed)
    assert len(read_conversations(listed, on_bad_row="set_aside").rows) == 1
    in_json = lines(tmp_path / "b.json", row + "\n", good)  # JSON lines in a file named .json
    assert len(read_conversations(in_json, on_bad_row="set_aside").rows) == 1


def test_two_lists_of_one_name_are_a_bad_file(tmp_path):
    path = lines(tmp_path / "a.json", '{"data": [{"text": "a"}], "data": [{"text": "b"}]}')
    assert fails(read_documents, path) == (
        f"{path} holds the key 'data' twice in one mapping, expected each key once; rename one of them"
    )


def test_jsonl_with_bom_blank_lines_and_a_line_separator_inside_a_text(tmp_path):
    text = json.dumps({"text": "one\u2028line"}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n" + b'{"text": "two"}')
    assert [row.text for row in read_documents(tmp_path / "a.jsonl").rows] == ["one\u2028line", "two"]


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}, {"text": "b"}]',
        '{"version": 1, "data": [{"text": "a"}, {"text": "b"}]}',
        '{"text": "a"}\n{"text": "b"}\n',
    ],
)
def test_json_as_a_list_an_object_with_a_list_or_lines(tmp_path, content):
    path = lines(tmp_path / "a.json", content)
    assert [row.text for row in read_documents(path).rows] == ["a", "b"]


def test_text_is_a_document_a_paragraph_or_a_line_where_there_are_no_blank_lines(tmp_path):
    paragraphs = lines(tmp_path / "a.txt", "one\ntwo\n\n \nthree\n")
    assert [row.text for row in read_documents(paragraphs).rows] == ["one\ntwo", "three"]
    by_line = lines(tmp_path / "b.txt", "one\ntwo\nthree\n")
    assert [row.text for row in read_documents(by_line).rows] == ["one", "two", "three"]


def test_csv_cells_may_span_lines_and_bad_rows_have_the_line_they_begin_on(tmp_path):
    path = lines(tmp_path / "a.csv", '\ufeffinstruction,input,output\n"a\nb",,c\nd,e\nf,,""\ng,h,"i ""j"""\n')
    read = read_conversations(path, on_bad_row="set_aside")
    assert messages_of(read) == [[user("a\nb"), assistant("c")], [user("g\nh"), assistant('i "j"')]]
    assert [(bad.line, bad.reason) for bad in read.bad] == [
        (4, "row: found 2 cells, expected 3, as in the first line"),
        (5, "output: found empty text, expected text"),
    ]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("q;a\nHi, you;Yo\n", ["Hi, you>Yo"]),  # as spreadsheets write it where the comma is the decimal mark
        ('"q";"a"\nHi;"Yo; yo"\n', ["Hi>Yo; yo"]),
        ("q\ta\nHi, you\tYo\n", ["Hi, you>Yo"]),
        ('q,a,"x;y"\nHi; you,Yo,z\n', ["Hi; you>Yo"]),  # a comma divides the header, so it divides the rows
    ],
)
def test_the_header_of_a_csv_says_what_separates_its_cells(tmp_path, content, rows):
    path = lines(tmp_path / "a.csv", content)
    read = read_conversations({"path": str(path), "columns": {"prompt": "q", "answer": "a"}})
    assert [">".join(turn["content"] for turn in dialog) for dialog in messages_of(read)] == rows


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('q\ta\nHi\tYo\n"a\tb"\tc\n', ["Hi>Yo", "a\tb>c"]),  # quoted, as spreadsheets write it
        ('q\ta\nHi\tYo\n"Why?" he asked\tSo "it" is\n', ["Hi>Yo", '"Why?" he asked>So "it" is']),  # not quoted
        ('q\ta\n"open\tYo\nHi\tc"\n', ['"open>Yo', 'Hi>c"']),  # as CSV the quotes would swallow a row
    ],
)
def test_tsv_with_quoted_cells_and_with_plain_quotes(tmp_path, content, rows):
    path = lines(tmp_path / "a.tsv", content)
    read = read_conversations({"path": str(path), "columns": {"prompt": "q", "answer": "a"}})
    assert [">".join(turn["content"] for turn in dialog) for dialog in messages_of(read)] == rows


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".txt"])
@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_text_formats_may_be_compressed(tmp_path, ending, compression):
    import pyarrow

    texts = [f"text {number} {'x' * 50}" for number in range(3000)]
    content = "".join(f"{text}\n" for text in ["text", *texts])
    if ending.startswith(".json"):
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    raw = content.removeprefix("text\n" if ending == ".txt" else "").encode()
    packed = gzip.compress(raw) if compression == "gz" else pyarrow.compress(raw, codec="zstd", asbytes=True)
    path = tmp_path / f"a{ending}.{compression}"
    path.write_bytes(packed)
    assert [row.text for row in read_documents(path).rows] == texts
    check_columns(Source(str(path)), "documents")


def test_no_row_of_a_cut_zstd_file_is_lost_in_silence(tmp_path):
    """pyarrow's decompressor returns the first of these two frames without an error."""
    import pyarrow

    first = pyarrow.compress(b'{"text": "a"}\n', codec="zstd", asbytes=True)
    noise = random.Random(0).randbytes(200_000).hex()
    second = pyarrow.compress(json.dumps({"text": noise}).encode(), codec="zstd", asbytes=True)
    skippable = (0x184D2A53).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(first + skippable + second)
    assert [row.text for row in read_documents(path).rows] == ["a", noise]
    for cut in (1, 3, 1000, len(second) - 1, len(second) - 7):
        path.write_bytes(first + skippable + second[:-cut])
        assert fails(read_documents, path) == f"{path} is not a complete zstd file; compress or copy it again"


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_files_and_streams(tmp_path, kind):
    import pyarrow

    dialogs = [[user("a"), assistant("b")], TWO_TURNS]
    table = pyarrow.Table.from_pylist([{"messages": dialog} for dialog in dialogs])
    path = tmp_path / "a.arrow"
    open_writer = {"file": pyarrow.ipc.new_file, "stream": pyarrow.ipc.new_stream}[kind]
    with open_writer(path, table.schema) as writer:
        writer.write_table(table)
    assert messages_of(read_conversations(path)) == dialogs


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_an_arrow_file_that_is_cut_off_while_it_is_read_is_an_error(tmp_path, kind):
    """Beyond the end of a mapped file a read would end this process by a signal."""
    import pyarrow

    table = pyarrow.Table.from_pylist([{"text": "x" * 1000}] * 2000)
    path = tmp_path / "a.arrow"
    with {"file": pyarrow.ipc.new_file, "stream": pyarrow.ipc.new_stream}[kind](path, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    rows = iter(lines_of(path))
    assert next(rows).raw == {"text": "x" * 1000}
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"a\.arrow changed while it was read"):
        list(rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet", "folder"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        os.mkfifo(path / "b.jsonl.zst")
    else:
        os.mkfifo(path)
    for function in (read_documents, lambda given: check_columns(Source(str(given)), "documents")):
        assert "is a named pipe, expected a regular file; write its content into a file first" in fails(function, path)


def test_devices_and_sockets_are_refused_too(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        assert fails(check_regular, tmp_path / "s").startswith(f"{tmp_path}/s is a socket, expected a regular file")
    assert fails(check_regular, Path("/dev/zero")).startswith("/dev/zero is a device, expected a regular file")
    for name in ("s", "gone"):
        (tmp_path / name).unlink(missing_ok=True)
        check_regular(tmp_path / name)


def test_parquet_rows_lose_the_keys_that_arrow_filled_in(tmp_path):
    import pyarrow
    import pyarrow.parquet

    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    dialogs = [[user("a"), call, assistant("b")], TWO_TURNS]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": dialog} for dialog in dialogs]), path)
    assert messages_of(read_conversations(path)) == dialogs


def test_a_folder_is_all_its_data_files_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    lines(tmp_path / "b.jsonl", {"text": "2"})
    lines(tmp_path / "a.txt", "1")
    (tmp_path / "sub" / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "3"}\n', mtime=0))
    lines(tmp_path / ".cache" / "hidden.jsonl", {"text": "4"})
    lines(tmp_path / "README.md", "5")
    assert [row.text for row in read_documents([tmp_path]).rows] == ["1", "2", "3"]
    assert [row.text for row in read_documents([tmp_path / "b.jsonl", str(tmp_path / "a.txt")]).rows] == ["2", "1"]


def test_a_hub_name_is_read_through_datasets_only_if_it_cannot_be_a_path(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, *, split):
        asked.append((name, split))
        return [{"text": "from the hub", "label": None}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    assert read_documents("owner/name").rows == [Document(text="from the hub")]
    assert asked == [("owner/name", "train")]
    (tmp_path / "data").mkdir()
    for missing in ("data/pairs", "owner/name.jsonl", "name", str(tmp_path / "x" / "y")):
        assert fails(read_documents, missing) == f"{missing} does not exist (nor is it a hub name, owner/name)"
    assert len(asked) == 1


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    import datasets

    def load_dataset(name, *, split):
        raise socket.gaierror("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert fails(read_pairs, "owner/name") == ("owner/name: no such path, and not available from the hub (no network)")


@pytest.mark.parametrize("ending", ["parquet", "arrow", "stream.arrow"])
def test_a_binary_table_is_read_batch_by_batch(tmp_path, monkeypatch, ending):
    """Three rows at a time, of batches that its writer made of seven: no more are Python values at once."""
    texts = [f"text {number}" for number in range(20)]
    import pyarrow.parquet

    path = tmp_path / f"rows.{ending}"
    table = pyarrow.table({"text": texts})
    if ending == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=7)
    else:
        new = pyarrow.ipc.new_stream if ending == "stream.arrow" else pyarrow.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    monkeypatch.setattr(tables, "ROWS_OF_BATCH", 3)
    held: list[int] = []
    guarded = tables._guarded

    def counted(path: Path, kind: str, read: Callable[[], Any]) -> Any:
        value = guarded(path, kind, read)
        held.extend([len(value)] if isinstance(value, list) else [])
        return value

    monkeypatch.setattr(tables, "_guarded", counted)
    lines = tables.parquet_rows(path) if ending == "parquet" else tables.arrow_rows(path)
    for _ in range(2):  # the rows are asked for more than once
        assert [(line.number, line.raw) for line in lines] == [(n + 1, {"text": text}) for n, text in enumerate(texts)]
    assert len(lines) == 20 and max(held) == 3
