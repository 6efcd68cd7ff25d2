"""Reads answers to be scored: those that `generate` wrote, rows with a prompt and its answer, or preference pairs."""

from pathlib import Path

from data_schemas.dialects import PAIRS
from data_schemas.reading import ONE_FILE_ADVICE, read_conversations, read_pairs, read_rows
from data_schemas.rows import Candidates, Conversation, PreferencePair
from data_schemas.sources import sources

Answers = list[Candidates] | list[PreferencePair] | list[Conversation]


def read_answers(name: str) -> Answers:
    """The rows of a file, folder or hub name, of the one kind that its columns have.

    Raises ConfigError for a path that does not exist, DataError for a bad row and for other columns.
    """
    raws = [line.raw for _, _, lines in sources([name]) for line in lines if isinstance(line.raw, dict)]
    if Path(name).suffix == ".jsonl" and any("candidates" in raw for raw in raws):
        return read_rows(Path(name), Candidates)
    if any(dialect.is_named(raw) for raw in raws for dialect in PAIRS):
        return read_pairs(name, advice=ONE_FILE_ADVICE).rows
    return read_conversations(name, advice=ONE_FILE_ADVICE).rows
