"""Rows of a .jsonl file, read one after the other, with the lines' own numbers."""

import gzip

import pytest

from data_schemas.errors import DataError
from data_schemas.line_files import JSONLines
from data_schemas.sources import Source

CONTENT = b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}\n  \n{"a": \n{"a": 4}'
ROWS = [(1, {"a": 1}), (3, {"a": 2}), (6, {"a": 4})]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_lines_have_their_numbers_in_any_order_and_in_two_loops_at_once(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(CONTENT) if name.endswith(".gz") else CONTENT)
    lines = JSONLines(path)
    assert [(line.number, line.raw) for line in lines if line.error is None] == ROWS
    assert len(lines) == 4 and lines[-1].raw == {"a": 4} and lines[0].raw == {"a": 1}
    assert [line.number for line in lines[1:3]] == [3, 5] and lines[2].error is not None
    assert [(one.number, other.number) for one, other in zip(lines, lines, strict=True)] == [
        (n, n) for n in (1, 3, 5, 6)
    ]
    lines.check_unchanged()


def test_columns_are_renamed_when_a_line_is_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"Q": "a"}\n{"Q": "b", "prompt": "c"}\n')
    ((_, lines),) = Source.of({"path": str(tmp_path / "rows.jsonl"), "columns": {"prompt": "Q"}}).rows_by_file()
    assert [line.raw for line in lines] == [{"prompt": "a"}, {"prompt": "b", "prompt (columns takes it from Q)": "c"}]
    assert lines[1].number == 2 and [line.number for line in lines[:1]] == [1]


def test_a_file_that_grows_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(CONTENT)
    lines = JSONLines(path)
    path.write_bytes(CONTENT + b"\n{}")
    with pytest.raises(DataError, match=r"rows\.jsonl changed while it was read; run again once it is complete"):
        lines.check_unchanged()
