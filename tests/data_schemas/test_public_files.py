"""Public data sets are read completely. Needs ALIGNLOOP_TEST_DATA."""

import gzip
import json
import os
from pathlib import Path

import pytest

from data_schemas.reading import read_conversations, read_documents, read_pairs, read_prompts, read_rows, write_rows
from data_schemas.rows import Conversation, for_template
from tests.data_schemas.raw_rows import ADVICE, fails, lines

TEST_DATA = os.environ.get("ALIGNLOOP_TEST_DATA", "")
needs_test_data = pytest.mark.skipif(
    not Path(TEST_DATA, "hh_rlhf").is_dir(), reason="ALIGNLOOP_TEST_DATA names no folder with the public test data"
)


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
    assert fails(read_pairs, path).startswith(f"{path}:2: chosen, rejected: found two different prompts (they differ")


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
def test_public_files_are_read_completely(reader, name, num_rows):
    assert len(reader(Path(TEST_DATA, name)).rows) == num_rows
