"""What a file of text may be like: ends of lines, lines above a table, values that Python cannot read."""

import gzip
import json
import lzma
from pathlib import Path

import pytest

from data_schemas.column_checks import check_columns
from data_schemas.errors import DataError
from data_schemas.formats import describe
from data_schemas.reading import read_conversations, read_documents, read_pairs
from data_schemas.sources import Source, lines_of
from data_schemas.text import listed
from tests.data_schemas.raw_rows import fails

TABLE = "prompt,answer\nq,a\n\nq2,a2\n"


def raws(path: Path) -> list[object]:
    return [line.raw for line in lines_of(path)]


@pytest.mark.parametrize("compression", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "one\ntwo\n\nthree"),
        ("a.csv", TABLE),
        ("a.tsv", TABLE.replace(",", "\t")),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"}\n'),
        ("a.json", '[{"text": "a"},\n{"text": "b"}]\n'),
    ],
)
def test_a_carriage_return_alone_ends_lines_as_a_newline_does(tmp_path, name, text, compression):
    pack = gzip.compress if compression else bytes
    written = {}
    for folder, end in (("unix", "\n"), ("mac", "\r"), ("windows", "\r\n")):
        path = tmp_path / folder / (name + compression)
        path.parent.mkdir()
        path.write_bytes(pack(text.replace("\n", end).encode()))
        written[folder] = [(line.number, line.raw) for line in lines_of(path)]
    assert written["mac"] == written["unix"] == written["windows"] and written["unix"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_carriage_return_in_a_cell_does_not_divide_its_row_in_silence(tmp_path, name):
    mark = "," if name == "a.csv" else "\t"
    (tmp_path / name).write_bytes(f"prompt{mark}answer\nq{mark}a\rb{mark}c\n".encode())
    problem = f"{name}:2 is not CSV (a carriage return in a cell without quotes)"
    assert problem in fails(read_conversations, tmp_path / name)
    (tmp_path / name).write_bytes(f'prompt{mark}answer\nq{mark}"a\rb"\n'.encode())
    assert raws(tmp_path / name) == [{"prompt": "q", "answer": "a\rb"}]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_blank_lines_above_a_table_are_skipped(tmp_path, name, monkeypatch):
    mark = "\t" if name == "a.tsv" else ","
    content = f"\n{mark} \r\n\nprompt{mark}answer\nq{mark}a\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [(line.number, line.raw) for line in lines_of(tmp_path / name)] == [(5, {"prompt": "q", "answer": "a"})]
    monkeypatch.setattr("data_schemas.column_checks.MAX_BYTES_CHECKED", 1)  # as of a large file, whose head is read
    check_columns(Source(str(tmp_path / name)), "instructions")
    with pytest.raises(DataError, match="has the columns prompt, answer; expected text"):
        check_columns(Source(str(tmp_path / name)), "documents")


@pytest.mark.parametrize(
    "bad",
    ["9" * 5000, '{"text": ' + "9" * 5000 + "}", '{"text": "]}", "x": ' + "[" * 2000 + "]" * 2000 + "}"],
    ids=["number", "number in a row", "deep"],
)
@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_a_value_that_python_cannot_read_is_a_bad_row_of_any_json(tmp_path, bad, chunk, monkeypatch):
    monkeypatch.setattr("data_schemas.plain_files.CHUNK_BYTES", chunk)
    rows = ['{"text": "a"}', bad, '{"text": "b"}']
    for name, text in (("a.json", f"[{', '.join(rows)}]"), ("a.jsonl", "\n".join(rows))):
        (tmp_path / name).write_text(text)
        read = read_documents(tmp_path / name, on_bad_row="set_aside")
        assert ([row.text for row in read.rows], [row.line for row in read.bad]) == (["a", "b"], [2])
        assert read.bad[0].raw == bad and ("digits" in read.bad[0].reason or "recursion" in read.bad[0].reason)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (gzip.compress(b"{}"), "is a gzip file"),
        (b"\x28\xb5\x2f\xfd0", "is a zstd file"),
        (lzma.compress(b"{}"), "is an xz file"),
        (b"PK\x03\x04abc", "is a zip file"),
        (b"PAR1\x15\x04", "is a Parquet file"),
        (b"ARROW1\x00\x00", "is an Arrow file"),
        ('{"text": "a"}'.encode("utf-16"), "is UTF-16 text"),
    ],
    ids=["gzip", "zstd", "xz", "zip", "parquet", "arrow", "utf-16"],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"])
def test_content_of_another_kind_is_named(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    assert f"{name} {found}" in fails(read_documents, tmp_path / name)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    assert f"{name}.gz decompressed {found}" in fails(read_documents, tmp_path / f"{name}.gz")
    assert ("save it as UTF-8" in fails(read_documents, tmp_path / f"{name}.gz")) == ("UTF-16" in found)
    with pytest.raises(DataError, match=found):
        check_columns(Source(str(tmp_path / name)), "documents")


def test_a_number_in_place_of_a_text_is_its_text_and_other_values_are_bad_rows(tmp_path):
    for asked, answer in (
        ("prompt", "answer"),
        ("prompt", "completion"),
        ("instruction", "output"),
        ("query", "answer"),
    ):
        path = tmp_path / f"{asked}-{answer}.jsonl"
        path.write_text(json.dumps({asked: 7, answer: 4.5}))
        (row,) = read_conversations(path).rows
        assert [message.content for message in row.messages] == ["7", "4.5"]
        for value in ("true", "false", "NaN", "Infinity", "1" + "0" * 400, "[]", '" "'):
            path.write_text(f'{{"{asked}": "q", "{answer}": {value}}}')
            assert len(read_conversations(path, on_bad_row="set_aside").bad) == 1, value
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen": 1, "rejected": 2}))
    (pair,) = read_pairs(path).rows
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("1", "2")


def test_a_score_that_no_float_can_hold_is_not_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "completion": "a", "score": 1' + "0" * 400 + "}")
    read = read_conversations(tmp_path / "a.jsonl")
    assert read.rows[0].score is None and read.ignored == {str(tmp_path / "a.jsonl"): ["score"]}


def test_binary_data_is_not_shown_as_text():
    assert describe(b"hello") == "binary data of 5 bytes"


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "to.jsonl").symlink_to("gone.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "folder").symlink_to("away")
    for name, says in (
        ("to.jsonl", "is a link to gone.jsonl, which does not exist"),
        ("loop.jsonl", "is a link to loop.jsonl, which does not exist, or leads back"),
        ("folder/a.jsonl", "which is a link to away"),
        ("none.jsonl", "none.jsonl does not exist"),
    ):
        assert says in fails(read_documents, tmp_path / name)


def test_names_with_spaces_or_commas_are_in_quotes():
    assert listed(["a", "a b", " a", "a,b", "", "\x1b"]) == r"a, a b, ' a', 'a,b', '', \x1b"
