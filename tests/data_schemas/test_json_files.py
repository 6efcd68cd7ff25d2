"""JSON that is read by a piece that slides over it, beside Python's parser, which holds all of it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_schemas import plain_files
from data_schemas.errors import DataError
from data_schemas.json_files import json_rows
from data_schemas.plain_files import PlainFile

TEXTS = st.text('ab"\\{}[],:é漢😀\n\u2028', max_size=12)
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(LEAVES, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(TEXTS, inside, max_size=3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("json")


def read(path: Path, content: str, chunk: int) -> list[object]:
    """The rows of a file with this content, by pieces of so many bytes."""
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_files, "CHUNK_BYTES", chunk)
        lines = json_rows(PlainFile(path))
        rows = [line.raw for line in lines]
        assert len(lines) == len(rows)
        return rows


@given(
    rows=st.lists(VALUES, min_size=1, max_size=5),
    other=LEAVES,
    indent=st.none() | st.just(1),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 40),
)
@settings(max_examples=150, deadline=None)
def test_rows_are_those_of_pythons_parser_wherever_the_text_is_divided(folder, rows, other, indent, ascii_only, chunk):
    for value in (rows, {"version": other, "data": rows, "more": other}):
        content = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        assert read(folder / "rows.json", content, chunk) == rows


@given(rows=st.lists(VALUES, min_size=1, max_size=3), chunk=st.integers(1, 40), data=st.data())
@settings(max_examples=150, deadline=None)
def test_an_error_has_the_words_and_the_place_of_pythons_parser(folder, rows, chunk, data):
    content = json.dumps(rows, indent=1)
    cut = data.draw(st.integers(1, len(content)))
    content = content[:cut] + data.draw(st.sampled_from(["", "]", '"', "}", ",", " x", "\n:"]))
    try:
        expected = json.loads(content)
    except json.JSONDecodeError as error:
        with pytest.raises(DataError) as raised:
            read(folder / "rows.json", content, chunk)
        if not error.msg.startswith("Illegal trailing comma"):  # of Python 3.13, at the comma
            assert str(raised.value) == f"{folder / 'rows.json'} is not JSON ({error})"
        return
    assert read(folder / "rows.json", content, chunk) == expected


def test_lines_of_json_in_a_file_named_json_are_read_one_after_the_other(tmp_path):
    content = '{"messages": [1]}\n\n{"messages": [2]}\n'
    assert read(tmp_path / "a.json", content, 4) == [{"messages": [1]}, {"messages": [2]}]


DIALOG = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
TURNS = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "r", "chosen": "c", "rejected": "d"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": DIALOG},
        {"turns": TURNS, "id": 1},
        {"text": "whole", "parts": [{"text": "x"}]},
        {"question": "q", "answers": ["a", "b"]},
        {"prompt": "p", "answer": "a"},
        {"prompt": DIALOG[:1], "chosen": DIALOG[1:], "rejected": DIALOG[1:]},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_with_the_columns_of_a_row_is_one_row_as_in_json_lines(row, indent, folder):
    assert read(folder / "one.json", json.dumps(row, indent=indent), 7) == [row]


@pytest.mark.parametrize("name", ["data", "messages", "conversations"])
def test_a_list_of_dialogs_in_an_object_is_rows_under_any_name(name, folder):
    rows = [{"messages": DIALOG}, {"conversations": DIALOG}]
    assert read(folder / "some.json", json.dumps({"id": 3, name: rows}), 7) == rows


def test_a_repeated_key_of_the_only_row_is_its_error(folder):
    path = folder / "twice.json"
    path.write_text('{"text": "a", "text": "b"}')
    (line,) = json_rows(PlainFile(path))
    assert line.error is not None and "the key 'text' twice" in str(line.error)
