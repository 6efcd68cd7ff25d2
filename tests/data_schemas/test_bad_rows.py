"""A bad row or an unreadable file is an error of one line: file, line, field, what was found and what was expected."""

import gzip
import json
from pathlib import Path

import pytest

from data_schemas.reading import read_conversations, read_documents, read_pairs, read_prompts, write_rows
from tests.data_schemas.raw_rows import ADVICE, HH, TWO_TURNS, assistant, fails, lines, user

GOOD = {"messages": TWO_TURNS}


@pytest.mark.parametrize(
    ("reader", "good", "row", "reason"),
    [
        (read_documents, {"text": "a"}, {"text": 3}, "text: found 3, expected text"),
        (read_documents, {"text": "a"}, {"text": " "}, "text: found empty text, expected text"),
        (read_documents, {"text": "a"}, [1, 2], "row: found a list of 2, expected a mapping of columns to values"),
        (read_documents, {"text": "a"}, {"txt": "b"}, "columns: found txt, expected text"),
        (
            read_documents,
            {"text": "a"},
            '{"text": "b\n',
            """line: found '{"text": "b' (Unterminated string starting at character 10), expected JSON""",
        ),
        (
            read_documents,
            {"text": "a"},
            '{"text": "\\ud83d"}\n',
            "line: found half a character (\\ud83d), expected whole characters",
        ),
        (
            read_conversations,
            GOOD,
            {"messages": "Hi"},
            "messages: found 'Hi' (Expecting value at character 1), expected JSON",
        ),
        (
            read_conversations,
            GOOD,
            {"messages": [3]},
            "messages.0: found 3, expected a message: role and content, or from and value",
        ),
        (
            read_conversations,
            GOOD,
            {"messages": [{"content": "a"}]},
            "messages.0.role: found nothing, expected a value",
        ),
        (
            read_conversations,
            GOOD,
            {"messages": [{"role": "bot", "content": "a"}]},
            "messages.0.role: found 'bot', expected 'system', 'user', 'assistant' or 'tool'",
        ),
        (
            read_conversations,
            GOOD,
            {"messages": [user([1])]},
            "messages.0.content.0: found 1, expected a part of type 'text' with its text (rows are text only)",
        ),
        (read_conversations, GOOD, {"messages": [user("")]}, "messages.0: found an empty message, expected text"),
        (read_conversations, GOOD, {"messages": []}, "messages: found no messages, expected at least one"),
        (
            read_conversations,
            GOOD,
            {"messages": [user("a")]},
            "messages: found a last message from 'user', expected one from 'assistant'",
        ),
        (
            read_conversations,
            GOOD,
            {"messages": [*TWO_TURNS, {"role": "system", "content": "s"}, assistant("a")]},
            "messages: found a system message after the first message, expected one only at the start",
        ),
        (
            read_conversations,
            GOOD,
            GOOD | {"tools": "{"},
            "tools: found '{' (Expecting property name enclosed in double quotes at character 2), expected JSON",
        ),
        (
            read_conversations,
            GOOD,
            GOOD | {"tools": {"name": "f"}},
            "tools: found a mapping with name, expected a list",
        ),
        (
            read_conversations,
            GOOD,
            {"conversations": [{"from": "human", "value": "a"}, {"from": "critic", "value": "b"}]},
            "conversations.1.from: found 'critic', expected one of human, user, gpt, assistant, system, function_call,"
            " observation, tool",
        ),
        (
            read_conversations,
            GOOD,
            {"conversations": [{"from": "function_call", "value": "[1]"}]},
            "conversations.0.value: found 1, expected a function call with name and arguments",
        ),
        (read_conversations, GOOD, {"instruction": "a", "output": True}, "output: found True, expected text"),
        (
            read_pairs,
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            "chosen, rejected: found two identical answers, expected two different answers",
        ),
        (
            read_pairs,
            {"prompt": "a", "ranked": ["b", "c"]},
            {"prompt": "a", "ranked": ["b"]},
            "ranked: found a list of 1, expected a list of at least two answers, the best first",
        ),
        (
            read_pairs,
            {"prompt": "a", "ranked": ["b", "c"]},
            {"prompt": "a", "ranked": ["b", "c", "b"]},
            "chosen, rejected: found two identical answers, expected two different answers",
        ),
        (
            read_pairs,
            {"prompt": "a", "ranked": ["b", "c"]},
            {"prompt": "a", "ranked": ["b", "c", "c", "d"]},
            "ranking: found two identical answers, expected different answers",
        ),
        (
            read_pairs,
            {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2]},
            {"prompt": "a", "responses": ["b", "c"], "scores": [1]},
            "scores: found a list of 1, expected a number for each response of a list of 2",
        ),
        (
            read_pairs,
            {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2]},
            {"prompt": "a", "responses": ["b", "c"], "scores": [2, 2]},
            "scores: found 1 different scores, expected at least two, or nothing is better than anything",
        ),
        (
            read_pairs,
            {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2]},
            {"prompt": "a", "responses": ["b", "c"], "scores": [1, "best"]},
            "scores: found 'best', expected finite numbers",
        ),
        (
            read_pairs,
            {"turns": [{"prompt": "a", "chosen": "b", "rejected": "c"}]},
            {"turns": [{"prompt": "a", "chosen": "b"}]},
            "turns.0: found a mapping with prompt, chosen, expected a turn with prompt, chosen and rejected",
        ),
        (
            read_pairs,
            {"turns": [{"prompt": "a", "chosen": "b", "rejected": "c"}]},
            {"turns": []},
            "turns: found a list of 0, expected a list of turns with prompt, chosen and rejected",
        ),
        (
            read_pairs,
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": "a", "chosen": [user("x"), assistant("b")], "rejected": "c"},
            "chosen: found a dialog that begins with 'user', expected the prompt's own messages, or an assistant"
            " message, first",
        ),
        (
            read_pairs,
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": "a", "chosen": "b", "rejected": "c", "strength": "huge"},
            "strength: found 'huge', expected 'significantly_better', 'better', 'slightly_better' or"
            " 'marginally_better'",
        ),
        (
            read_pairs,
            {"chosen": HH.format("x"), "rejected": HH.format("y")},
            {"chosen": HH.format("x"), "rejected": HH.replace("c", "other").format("y")},
            "chosen, rejected: found two different prompts (they differ from message 3 on), expected dialogs that "
            "differ only"
            " in their last answer",
        ),
        (
            read_pairs,
            {"chosen": HH.format("x"), "rejected": HH.format("y")},
            {"chosen": "x" * 200, "rejected": "y"},
            "chosen: found '" + "x" * 78 + "…, expected a dialog of '\\n\\nHuman: …\\n\\nAssistant: …' (or a prompt"
            " column beside it)",
        ),
    ],
)
def test_a_bad_row_is_one_line_with_file_line_field_found_and_expected(tmp_path, reader, good, row, reason):
    path = lines(tmp_path / "a.jsonl", good, "\n", row, good)
    assert fails(reader, path) == f"{path}:3: {reason}{ADVICE}"
    read = reader(path, on_bad_row="set_aside")
    assert len(read.rows) == 2
    (bad,) = read.bad
    assert (bad.file, bad.line, bad.reason) == (str(path), 3, reason)
    raw = json.loads(row) if isinstance(row, str) and row.endswith("}\n") else row
    assert bad.raw == (raw.rstrip("\n") if isinstance(raw, str) else raw)
    write_rows(tmp_path / "rejected_rows.jsonl", read.bad)
    stored = json.loads((tmp_path / "rejected_rows.jsonl").read_text(encoding="utf-8"))
    assert stored["reason"] == reason
    assert stored["raw"] == bad.raw


def test_bytes_that_are_not_utf8_are_a_bad_row_in_jsonl_and_an_error_in_other_files(tmp_path):
    content = b'{"text": "a"}\n{"text": "caf\xe9"}\n'
    (tmp_path / "a.jsonl").write_bytes(content)
    assert fails(read_documents, tmp_path / "a.jsonl").startswith(
        f"{tmp_path}/a.jsonl:2: line: found byte 0xe9 at 14, expected UTF-8 (set"
    )
    assert len(read_documents(tmp_path / "a.jsonl", on_bad_row="set_aside").rows) == 1
    (tmp_path / "a.csv").write_bytes(b"text\na\ncaf\xe9\n")
    assert fails(read_documents, tmp_path / "a.csv", on_bad_row="set_aside") == (
        f'{tmp_path}/a.csv:3: found byte 0xe9, expected UTF-8 text; save it as "CSV UTF-8", or convert it: '
        "iconv -f cp1252 -t utf-8"
    )


@pytest.mark.parametrize("on_bad_row", ["error", "set_aside"])
def test_a_file_without_the_columns_is_an_error_that_names_those_found_and_accepted(tmp_path, on_bad_row):
    pairs = lines(tmp_path / "a.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    assert fails(read_conversations, pairs, on_bad_row=on_bad_row) == (
        f"{pairs} has the columns prompt, chosen, rejected; "
        "expected messages | conversations (without chosen) | instruction + output | "
        "instruction/prompt/question/query + response | prompt + completion | prompt/question/query + answer | "
        "question/query + answers"
    )
    sharegpt = lines(tmp_path / "b.jsonl", {"conversations": [], "chosen": {}, "rejected": {}})
    assert "has the columns conversations, chosen, rejected;" in fails(read_conversations, sharegpt)
    assert (
        "expected prompt/conversations/instruction/question/query + chosen + rejected | chosen + rejected |"
        in fails(read_pairs, lines(tmp_path / "c.jsonl", {"text": "a"}))
    )
    assert "has the columns chosen, rejected; expected prompt |" in fails(
        read_prompts, lines(tmp_path / "d.jsonl", {"chosen": "", "rejected": ""})
    )


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b"", "a.jsonl has no rows"),
        ("a.csv", b"text\n", "a.csv has no rows"),
        ("a.json", b"[]", "a.json has no rows"),
        ("a.txt", b"\n \n", "a.txt has no rows"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}', mtime=0)[:-9], "a.jsonl.gz is not a complete gzip file"),
        ("a.json", b"[1,", "a.json is not JSON (Expecting value: line 1 column 4 (char 3))"),
        ("a.json", b'{"a": [], "b": []}', "a.json holds a mapping with a, b, expected a list of rows"),
        ("a.csv", b'text\n"a"b\n', "a.csv:2 is not CSV"),
        ("a.parquet", b"PAR1", "a.parquet is not a Parquet file"),
        (
            "a.xlsx",
            b"",
            "a.xlsx has no known format; expected one of .jsonl, .json, .csv, .tsv, .txt, .parquet, .arrow",
        ),
        ("folder/README.md", b"", "folder is a folder without data; expected .jsonl,"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, content, complaint):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    given = tmp_path / Path(name).parts[0]
    assert fails(read_documents, given, on_bad_row="set_aside").startswith(f"{tmp_path}/{complaint}")
