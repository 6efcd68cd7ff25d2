import gzip
import json
import os
import socket
from pathlib import Path

import pytest

from data_schemas.errors import ConfigError
from data_schemas.reading import (
    BadRow,
    read_conversations,
    read_documents,
    read_pairs,
    read_prompts,
    read_rows,
    write_rows,
)
from data_schemas.rows import (
    Candidate,
    Candidates,
    Conversation,
    Document,
    Message,
    PreferencePair,
    Prompt,
    for_template,
)

ADVICE = " (set on_bad_row: set_aside to skip and keep such rows in rejected_rows.jsonl)"
TEST_DATA = os.environ.get("ALIGNLOOP_TEST_DATA", "")
needs_test_data = pytest.mark.skipif(
    not Path(TEST_DATA, "hh_rlhf").is_dir(), reason="ALIGNLOOP_TEST_DATA names no folder with the public test data"
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def lines(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def messages_of(read):
    return [for_template(row.messages) for row in read.rows]


def fails(function, *arguments, **options):
    with pytest.raises(ConfigError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- dialects ---

TWO_TURNS = [user("Hi"), assistant("Hello.")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": TWO_TURNS, "id": 7, "source": 3}, TWO_TURNS),
        ({"messages": json.dumps(TWO_TURNS)}, TWO_TURNS),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}, TWO_TURNS),
        (
            {"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Yo"}], "system": "Be."},
            [{"role": "system", "content": "Be."}, user("Hi"), assistant("Yo")],
        ),
        ({"instruction": "Hi", "input": "", "output": "Hello."}, TWO_TURNS),
        ({"instruction": "Add", "input": "1, 2", "output": "3"}, [user("Add\n1, 2"), assistant("3")]),
        (
            {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"},
            [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d")],
        ),
    ],
)
def test_conversations_of_every_dialect(tmp_path, row, expected):
    assert messages_of(read_conversations(lines(tmp_path / "a.jsonl", row))) == [expected]


def test_sharegpt_function_calls_become_tool_calls(tmp_path):
    call = {"name": "search", "arguments": {"q": "x", "limit": None}}
    tools = [{"name": "search", "parameters": {"type": "object"}}]
    row = {
        "conversations": [
            {"from": "human", "value": "Find x"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": '{"found": 1}'},
            {"from": "gpt", "value": "One."},
        ],
        "tools": json.dumps(tools),
    }
    read = read_conversations(lines(tmp_path / "a.jsonl", row, row | {"tools": "[]"}))
    assert messages_of(read)[0] == [
        user("Find x"),
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": '{"found": 1}'},
        assistant("One."),
    ]
    assert [read.rows[0].tools, read.rows[1].tools] == [tools, None]


def test_openai_messages_with_null_content_beside_tool_calls(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    row = {"messages": [user("a"), call, {"role": "tool", "content": "1", "name": "f"}, assistant("b")]}
    read = read_conversations(lines(tmp_path / "a.jsonl", row))
    assert messages_of(read)[0][1] == {name: call[name] for name in ("role", "tool_calls")}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi", "kwargs": [{}]}, [user("Hi")]),
        ({"prompt": [user("Hi")]}, [user("Hi")]),
        ({"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"}, [user("a"), assistant("b"), user("c")]),
        ({"instruction": "Add", "input": "1, 2"}, [user("Add\n1, 2")]),
        ({"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}, [user("a"), assistant("b"), user("c")]),
        ({"messages": [user("a")]}, [user("a")]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, [user("a")]),
    ],
)
def test_prompts_of_every_dialect(tmp_path, row, prompt):
    read = read_prompts(lines(tmp_path / "a.jsonl", row))
    assert [for_template(row.prompt) for row in read.rows] == [prompt]


HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: {}"
THREE = [user("a"), assistant("b"), user("c")]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi", "chosen": "good", "rejected": "bad"}, [user("Hi")]),
        ({"prompt": "Hi", "chosen": [assistant("good")], "rejected": [assistant("bad")]}, [user("Hi")]),
        ({"prompt": THREE, "chosen": [assistant("good")], "rejected": "bad"}, THREE),
        ({"prompt": THREE, "chosen": [*THREE, assistant("good")], "rejected": [assistant("bad")]}, THREE),
        ({"prompt": "Hi", "chosen": [user("Hi"), assistant("good")], "rejected": assistant("bad")}, [user("Hi")]),
        ({"chosen": HH.format("good"), "rejected": HH.format("bad")}, THREE),
        ({"chosen": [*THREE, assistant("good")], "rejected": [*THREE, assistant("bad")]}, THREE),
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            [user("Hi")],
        ),
        ({"instruction": "Hi", "chosen": "good", "rejected": "bad"}, [user("Hi")]),
    ],
)
def test_pairs_of_every_dialect(tmp_path, row, prompt):
    (pair,) = read_pairs(lines(tmp_path / "a.jsonl", row)).rows
    assert for_template(pair.prompt) == prompt
    assert for_template(pair.chosen) == [assistant("good")]
    assert for_template(pair.rejected) == [assistant("bad")]


# --- formats ---


@pytest.mark.parametrize(
    ("row", "ranking"),
    [
        ({"prompt": "q", "edited": "a", "chosen": "b", "rejected": "c"}, "abc"),
        ({"prompt": "q", "edited": None, "chosen": "b", "rejected": "c"}, "bc"),
        ({"prompt": "q", "edited": "b", "chosen": "b", "rejected": "c"}, "bc"),  # the edit changed nothing
        ({"prompt": [user("q")], "ranked": ["a", [assistant("b")], "c", "d"]}, "abcd"),
        ({"prompt": "q", "responses": ["a", "b", "c"], "scores": [0, 2.5, 1]}, "bca"),
        ({"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 1, 2]}, "ca"),  # of a tie the first
    ],
)
def test_rankings_of_every_dialect(tmp_path, row, ranking):
    (made,) = read_pairs(lines(tmp_path / "a.jsonl", row)).rows
    assert "".join(answer[0].content for answer in made.ranking) == ranking
    assert for_template(made.prompt) == [user("q")]
    if "scores" in row:
        assert (made.chosen_score, made.rejected_score) == (max(row["scores"]), min(row["scores"]))


def test_a_dialog_compared_at_every_turn_is_split_into_its_turns(tmp_path):
    """Each turn's prompt is the dialog so far, gone on with from the best answers (Llama 3, table 6)."""
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


def test_answers_of_several_turns_are_compared_at_the_turn_in_which_they_part(tmp_path):
    """What both say alike goes into the prompt; what follows the first different turn answers different prompts."""
    shared = [assistant("a1"), user("q2")]
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "content": "7"}
    chosen = [*shared, call, result, assistant("a2"), user("q3"), assistant("a3")]
    rejected = [*shared, assistant("b2"), user("q4"), assistant("b3")]
    (row,) = read_pairs(lines(tmp_path / "a.jsonl", {"prompt": "q1", "chosen": chosen, "rejected": rejected})).rows
    assert for_template(row.prompt) == [user("q1"), *shared]
    assert for_template(row.chosen) == [call, result, assistant("a2")]
    assert for_template(row.rejected) == [assistant("b2")]


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


def test_a_hub_name_is_read_through_datasets_only_where_no_path_can_be_meant(tmp_path, monkeypatch):
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
    assert fails(read_pairs, "owner/name") == ("owner/name: no such path, and not to be had from the hub (no network)")


# --- bad rows and bad files ---

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
            """line: found '{"text": "b' (Unterminated string starting at at character 10), expected JSON""",
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
        (read_conversations, GOOD, {"messages": [user([1])]}, "messages.0.content: found a list of 1, expected text"),
        (read_conversations, GOOD, {"messages": [user("")]}, "messages.0: found an empty message, expected text"),
        (read_conversations, GOOD, {"messages": []}, "messages: found no messages, expected at least one"),
        (
            read_conversations,
            GOOD,
            {"messages": [user("a")]},
            "messages: found the last message is from 'user', expected 'assistant'",
        ),
        (
            read_conversations,
            GOOD,
            {"messages": [*TWO_TURNS, {"role": "system", "content": "s"}, assistant("a")]},
            "messages: found a system message after the first message, expected it only at the start",
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
        (read_conversations, GOOD, {"instruction": "a", "output": 1}, "output: found 1, expected text"),
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
            "chosen, rejected: found two different prompts (they part at message 3), expected dialogs that differ only"
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


def test_bytes_that_are_not_utf8_are_a_bad_row_of_a_jsonl_and_the_end_of_other_files(tmp_path):
    content = b'{"text": "a"}\n{"text": "caf\xe9"}\n'
    (tmp_path / "a.jsonl").write_bytes(content)
    assert fails(read_documents, tmp_path / "a.jsonl").startswith(
        f"{tmp_path}/a.jsonl:2: line: found byte 0xe9 at 14, expected UTF-8 (set"
    )
    assert len(read_documents(tmp_path / "a.jsonl", on_bad_row="set_aside").rows) == 1
    (tmp_path / "a.csv").write_bytes(b"text\na\ncaf\xe9\n")
    assert fails(read_documents, tmp_path / "a.csv", on_bad_row="set_aside") == (
        f"{tmp_path}/a.csv:3: found byte 0xe9, expected UTF-8 text"
    )


@pytest.mark.parametrize("on_bad_row", ["error", "set_aside"])
def test_a_file_without_the_columns_is_an_error_that_names_those_found_and_accepted(tmp_path, on_bad_row):
    pairs = lines(tmp_path / "a.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    assert fails(read_conversations, pairs, on_bad_row=on_bad_row) == (
        f"{pairs} has the columns prompt, chosen, rejected; "
        "expected messages | conversations (without chosen) | instruction + output"
    )
    sharegpt = lines(tmp_path / "b.jsonl", {"conversations": [], "chosen": {}, "rejected": {}})
    assert "has the columns conversations, chosen, rejected;" in fails(read_conversations, sharegpt)
    assert "expected prompt + chosen + rejected | conversations + chosen + rejected |" in fails(
        read_pairs, lines(tmp_path / "c.jsonl", {"text": "a"})
    )
    assert "has the columns chosen, rejected; expected prompt |" in fails(
        read_prompts, lines(tmp_path / "d.jsonl", {"chosen": "", "rejected": ""})
    )


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b"", "a.jsonl is empty: it has no rows"),
        ("a.csv", b"text\n", "a.csv is empty: it has no rows"),
        ("a.json", b"[]", "a.json is empty: it has no rows"),
        ("a.txt", b"\n \n", "a.txt is empty: it has no rows"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}', mtime=0)[:-9], "a.jsonl.gz is not a whole gzip file"),
        ("a.json", b"[1,", "a.json is not JSON (Expecting value: line 1 column 4 (char 3))"),
        ("a.json", b'{"a": [], "b": []}', "a.json holds a mapping with a, b, expected a list of rows"),
        ("a.csv", b'text\n"a"b\n', "a.csv:2 is not CSV"),
        ("a.parquet", b"PAR1", "a.parquet is not a Parquet file"),
        ("a.xlsx", b"", "a.xlsx is of no known format; expected one of .jsonl, .jsonl.gz, .json, .parquet, .csv, .txt"),
        ("folder/README.md", b"", "folder is a folder without data; expected .jsonl,"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, content, complaint):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    given = tmp_path / Path(name).parts[0]
    assert fails(read_documents, given, on_bad_row="set_aside").startswith(f"{tmp_path}/{complaint}")


# --- our own files ---

TOOL_CALL = {"type": "function", "function": {"name": "f", "arguments": {"b": None, "a": [1.0, {"c": ""}]}}}
OWN_PROMPT = [Message(role="system", content="s"), Message(role="user", content="q")]
OWN_ROWS = [
    (read_documents, Document(text="a\u2028b 한국어")),
    (
        read_conversations,
        Conversation(
            messages=[
                Message(role="user", content="q"),
                Message(role="assistant", tool_calls=[TOOL_CALL]),
                Message(role="tool", content="1"),
                Message.model_validate(assistant("a") | {"name": None}),
            ],
            tools=[{"name": "f", "strict": None}],
            source="round-1.rejection_sampling",
            group_id="g",
        ),
    ),
    (read_prompts, Prompt(prompt=OWN_PROMPT, tools=None)),
    (
        read_pairs,
        PreferencePair(
            prompt=OWN_PROMPT,
            chosen=[Message(role="assistant", content=" a ")],
            rejected=[Message(role="assistant", content="b")],
            strength="better",
            chosen_from="p1",
            rejected_from="p0",
            chosen_score=0.5,
            rejected_score=None,
            group_id="g",
        ),
    ),
    (
        read_pairs,
        PreferencePair(
            prompt=OWN_PROMPT,
            chosen=[Message(role="assistant", content="a")],
            between=[[Message(role="assistant", content=text)] for text in "bc"],
            disagreement=0.25,
            rejected=[Message(role="assistant", content="d")],
        ),
    ),
]


@pytest.mark.parametrize(("reader", "row"), OWN_ROWS)
def test_stored_rows_read_back_equal_by_both_ways(tmp_path, reader, row):
    path = tmp_path / "rows.jsonl"
    assert write_rows(path, [row, row]) == 2
    for again in (read_rows(path, type(row)), reader(path).rows):
        assert again == [row, row]
        assert [each.to_json() for each in again] == [row.to_json()] * 2
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_candidates_are_stored_too(tmp_path):
    candidate = Candidate(text="a", k=0, num_tokens=2, ended=True, score=0.25)
    row = Candidates(prompt=OWN_PROMPT, prompt_id="p", group_id="g", candidates=[candidate], kept=[0])
    write_rows(tmp_path / "candidates.jsonl", [row])
    assert read_rows(tmp_path / "candidates.jsonl", Candidates) == [row]


def test_stored_files_are_read_strictly(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b", "label": 1})
    assert (
        fails(read_rows, path, Document) == f"{path}:2: label: found 1, expected no such field (not a stored Document)"
    )
    assert fails(read_rows, tmp_path / "none.jsonl", Document) == f"{tmp_path}/none.jsonl does not exist"
    assert "a.jsonl:1: line: found" in fails(read_rows, lines(tmp_path / "a.jsonl", '{"text": "a\n'), Document)
    write_rows(tmp_path / "empty.jsonl", [])
    assert read_rows(tmp_path / "empty.jsonl", Document) == []


def test_a_row_set_aside_for_half_a_character_is_stored_as_it_came():
    bad = BadRow("a.jsonl", 1, "line", "half a character", "whole characters", {"text": "한 \ud83d"})
    assert json.loads(bad.to_json().encode("utf-8"))["raw"] == {"text": "한 \ud83d"}


# --- real data ---


@needs_test_data
def test_harmless_rows_with_two_prompts_or_an_empty_answer_are_bad():
    path = f"{TEST_DATA}/hh_rlhf/harmless.jsonl.gz"
    read = read_pairs(path, on_bad_row="set_aside")
    assert [bad.line for bad in read.bad if "two different prompts" in bad.found] == [362, 993, 1242, 1356]
    # Four more have an empty chosen answer, which a policy must not learn to prefer.
    assert [bad.line for bad in read.bad if bad.reason == "chosen.0: found an empty message, expected text"] == [
        164,
        763,
        807,
        1525,
    ]
    assert (len(read.rows), len(read.bad)) == (1692, 8)
    first = read.rows[0]
    assert [message.role for message in first.prompt] == ["user", "assistant", "user"]
    assert first.prompt[2].content == "I'm looking for something more mean and hurtful"
    assert first.rejected[0].content.startswith("How about “Officer, maybe you should try growing up")
    assert fails(read_pairs, path) == f"{path}:164: {read.bad[0].reason}{ADVICE}"


@needs_test_data
@pytest.mark.parametrize("row", [361, 992, 1241, 1355])
def test_each_harmless_row_with_two_prompts_is_an_error(tmp_path, row):
    with gzip.open(f"{TEST_DATA}/hh_rlhf/harmless.jsonl.gz", "rt", encoding="utf-8") as file:
        content = file.readlines()
    path = lines(tmp_path / "a.jsonl", content[0], content[row])
    assert fails(read_pairs, path).startswith(f"{path}:2: chosen, rejected: found two different prompts (they part at")


@needs_test_data
def test_glaive_rows_keep_exactly_their_keys_when_stored(tmp_path):
    path = Path(TEST_DATA, "llamafactory", "glaive_toolcall_en_demo.json")
    source = json.loads(path.read_text(encoding="utf-8"))
    rows = read_conversations(path).rows
    write_rows(tmp_path / "rows.jsonl", rows)
    stored = read_rows(tmp_path / "rows.jsonl", Conversation)
    assert len(rows) == 300
    assert sum(message.tool_calls is not None for row in rows for message in row.messages) == 211
    for before, after, original in zip(rows, stored, source, strict=True):
        assert json.dumps(for_template(before.messages)) == json.dumps(for_template(after.messages))
        assert (after.tools or []) == json.loads(original["tools"])
        calls = [turn["value"] for turn in original["conversations"] if turn["from"] == "function_call"]
        kept = [message.tool_calls[0]["function"] for message in after.messages if message.tool_calls]
        assert [json.dumps(call) for call in kept] == [json.dumps(json.loads(call)) for call in calls]


@needs_test_data
@pytest.mark.parametrize(
    ("reader", "name", "num_rows"),
    [
        (read_pairs, "llamafactory/dpo_en_demo.json", 300),
        (read_documents, "llamafactory/c4_demo.jsonl", 300),
        (read_documents, "llamafactory/wiki_demo.txt", 30),
        (read_prompts, "ifeval/input_data.jsonl", 541),
        (read_prompts, "self_instruct", 175 + 252),
    ],
)
def test_public_files_are_read_whole(reader, name, num_rows):
    assert len(reader(Path(TEST_DATA, name)).rows) == num_rows
