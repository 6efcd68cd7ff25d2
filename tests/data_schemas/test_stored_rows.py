"""Rows that this project writes are read back equal."""

import json

import pytest

from data_schemas.reading import (
    BadRow,
    read_conversations,
    read_documents,
    read_pairs,
    read_prompts,
    read_rows,
    write_rows,
)
from data_schemas.rows import Candidate, Candidates, Conversation, Document, Message, PreferencePair, Prompt
from tests.data_schemas.raw_rows import assistant, fails, lines

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
def test_stored_rows_are_read_back_equal_by_both_readers(tmp_path, reader, row):
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


def test_a_row_set_aside_for_a_lone_surrogate_is_stored_unchanged():
    bad = BadRow("a.jsonl", 1, "line", "half a character", "whole characters", {"text": "한 \ud83d"})
    assert json.loads(bad.to_json().encode("utf-8"))["raw"] == {"text": "한 \ud83d"}
