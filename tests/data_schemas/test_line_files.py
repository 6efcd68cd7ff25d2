"""Rows of files of text, read one after the other, with the lines' own numbers."""

import gzip
import json
import tracemalloc

import pytest

from data_schemas import plain_files
from data_schemas.errors import DataError
from data_schemas.sources import Source, lines_of

CONTENT = b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}\n  \n{"a": \n{"a": 4}'
ROWS = [(1, {"a": 1}), (3, {"a": 2}), (6, {"a": 4})]
# Of each format, three rows `{"text": "one"}`, … with their numbers.
TEXTS = ["one", "two\nlines", "threé"]
FILES = {
    "rows.jsonl": ("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), [1, 2, 3]),
    "rows.json": (json.dumps([{"text": text} for text in TEXTS], ensure_ascii=False), [1, 2, 3]),
    "rows.csv": ('text\none\n\n"two\nlines"\nthreé\n', [2, 4, 6]),
    "rows.tsv": ('text\none\n"two\nlines"\nthreé\n', [2, 3, 5]),
    "rows.txt": ("one\r\n\n \ntwo\nlines\n\nthreé  \n\n", [1, 4, 7]),
}
EVERY_FILE = [*FILES, *(f"{name}.gz" for name in FILES)]


def written(folder, name):
    content, numbers = FILES[name.removesuffix(".gz")]
    path = folder / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return path, list(zip(numbers, [{"text": text} for text in TEXTS], strict=True))


@pytest.mark.parametrize("name", EVERY_FILE)
def test_every_loop_over_a_file_has_its_rows_also_beside_another(tmp_path, name):
    path, expected = written(tmp_path, name)
    lines = lines_of(path)
    assert len(lines) == 3
    assert [(line.number, line.raw) for line in lines] == expected
    assert next(iter(lines)).raw == {"text": "one"}
    assert [(one.number, other.number) for one, other in zip(lines, lines, strict=True)] == [
        (number, number) for number, _ in expected
    ]


@pytest.mark.parametrize("name", EVERY_FILE)
def test_no_stream_holds_more_than_its_buffer(tmp_path, monkeypatch, name):
    """The rows are the same where a piece of the file is a few bytes, which divide rows and characters."""
    monkeypatch.setattr(plain_files, "CHUNK_BYTES", 3)
    monkeypatch.setattr(plain_files, "BUFFER_BYTES", 2)
    path, expected = written(tmp_path, name)
    assert [(line.number, line.raw) for line in lines_of(path)] == expected


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("added", [True, False])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, name, added):
    path, _ = written(tmp_path, name)
    lines = lines_of(path)
    content = path.read_bytes()
    path.write_bytes(content + content if added else content[:-9])  # longer, or cut inside of a row
    with pytest.raises(DataError, match=rf"{name} changed while it was read; run again once it is complete"):
        list(lines)


def test_a_file_that_is_replaced_by_another_is_read_to_its_own_end(tmp_path):
    path, expected = written(tmp_path, "rows.csv")
    lines = lines_of(path)
    (tmp_path / "new").write_text("text\nother\n")
    (tmp_path / "new").replace(path)
    assert [(line.number, line.raw) for line in lines] == expected


def test_lines_that_are_no_json_carry_their_error_and_blank_ones_are_skipped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(CONTENT)
    lines = lines_of(path)
    assert [(line.number, line.raw) for line in lines if line.error is None] == ROWS
    assert len(lines) == 4 and [line.number for line in lines if line.error] == [5]


def many(name, *, num_rows, text):
    """A file of rows with the same text."""
    head, row, between, end = {
        ".jsonl": ("", json.dumps({"text": text}), "\n", "\n"),
        ".json": ("[", json.dumps({"text": text}), ",", "]"),
        ".csv": ("text\n", f'"{text}"', "\n", "\n"),
        ".tsv": ("text\n", f'"{text}"', "\n", "\n"),
        ".txt": ("", text, "\n\n", "\n"),
    }[name[name.index(".") :].removesuffix(".gz")]
    content = (head + between.join([row] * num_rows) + end).encode()
    return gzip.compress(content, 1) if name.endswith(".gz") else content


@pytest.mark.parametrize("name", EVERY_FILE)
def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch, name):
    """The most that reading 2 MB holds at a time, beside an open file, is a few pieces of 32 KiB."""
    monkeypatch.setattr(plain_files, "CHUNK_BYTES", 1 << 15)
    path = tmp_path / name
    path.write_bytes(many(name, num_rows=2000, text="word " * 200))
    tracemalloc.start()
    try:
        lines = lines_of(path)
        assert len(lines) == 2000 == sum(1 for _ in lines)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", EVERY_FILE)
def test_rows_of_ten_megabytes(tmp_path, name):
    text = "word " * 2_000_000 + "end"
    path = tmp_path / name
    path.write_bytes(many(name, num_rows=2, text=text))
    assert [line.raw == {"text": text} for line in lines_of(path)] == [True, True]


def test_columns_are_renamed_when_a_line_is_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"Q": "a"}\n{"Q": "b", "prompt": "c"}\n')
    ((_, lines),) = Source.of({"path": str(tmp_path / "rows.jsonl"), "columns": {"prompt": "Q"}}).rows_by_file()
    assert [(line.number, line.raw) for line in lines] == [
        (1, {"prompt": "a"}),
        (2, {"prompt": "b", "prompt (columns takes it from Q)": "c"}),
    ]
    assert len(lines) == 2
