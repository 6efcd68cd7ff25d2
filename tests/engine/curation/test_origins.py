"""Origins: the file and the line of each stored row, beside the rows."""

import json

from data_schemas.rows import Prompt
from engine.curation.origins import MAX_LINES, FileNumbers, Origins, write_origins
from engine.curation.row_files import RowFiles
from engine.curation.row_store import RowStore


def stored(tmp_path, *texts: str):
    file = tmp_path / "prompts.train.jsonl"
    rows = [Prompt.model_validate({"prompt": [{"role": "user", "content": text}]}) for text in texts]
    file.write_text("".join(row.to_json() + "\n" for row in rows))
    return file, rows


def test_each_row_has_the_file_and_the_line_that_were_written_for_it(tmp_path):
    file, _ = stored(tmp_path, "a", "b", "c")
    numbers = FileNumbers()
    origins = [numbers.origin("one.csv", 7), numbers.origin("two.jsonl", 10**9), -1]
    assert origins == [7, MAX_LINES + 10**9, -1]
    assert write_origins(file, numbers.names, origins) == "prompts.train.origins"
    found = Origins.beside(file, 3)
    assert found and [found.of(index) for index in range(3)] == [("one.csv", 7), ("two.jsonl", 10**9), None]
    rows = RowFiles("prompts", [file])
    assert [rows.origin(index) for index in range(3)] == [("one.csv", 7), ("two.jsonl", 10**9), (str(file), 3)]


def test_origins_of_another_content_are_not_used(tmp_path):
    file, _ = stored(tmp_path, "a", "b")
    write_origins(file, ["one.csv"], [2, 3])
    content, origins = file.read_bytes(), (tmp_path / "prompts.train.origins").read_bytes()
    header = json.loads(origins.partition(b"\n")[0])
    assert header == {"files": ["one.csv"], "rows": 2, "bytes": len(content)}
    for of_rows, of_origins in (
        (content + b" ", origins),  # a row was edited by hand
        (content, origins[:-1]),
        (content, b"[]\n" + origins.partition(b"\n")[2]),
        (content, b"\xff"),
        (content, None),
    ):
        file.write_bytes(of_rows)
        (tmp_path / "prompts.train.origins").unlink(missing_ok=True)
        if of_origins is not None:
            (tmp_path / "prompts.train.origins").write_bytes(of_origins)
        assert Origins.beside(file, 2) is None
        assert RowFiles("prompts", [file]).origin(1) == (str(file), 2)


def test_a_view_gives_the_origins_of_the_lines_that_it_gives(tmp_path):
    _, rows = stored(tmp_path, "a", "b", "c")
    store = RowStore(tmp_path, Prompt)
    for number, row in enumerate(rows):
        store.add(row, copies=number, origin=10 + number)
    view = store.view()
    assert list(view.origins()) == [11, 12, 12] and len(list(view.lines())) == 3
    assert [(copies, origin) for _, copies, origin in view.counts()] == [(1, 11), (2, 12)]
