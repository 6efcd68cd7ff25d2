"""Reads answers to be scored: those that `generate` wrote, rows with a prompt and its answer, or preference pairs."""

from pathlib import Path

from data_schemas.dialects import PAIRS
from data_schemas.reading import ONE_FILE_ADVICE, read_conversations, read_pairs, read_rows, warn_of_ignored
from data_schemas.rows import Candidates, Conversation, PreferencePair
from data_schemas.sources import Source, sources

Answers = list[Candidates] | list[PreferencePair] | list[Conversation]


def read_answers(name: str) -> Answers:
    """The rows of a file, folder or hub name, of the one kind that its columns have. Warns of columns that none reads.

    `name` may be a mapping as a recipe has it. Raises ConfigError for a path that does not exist, DataError for a bad
    row and for other columns.
    """
    source = Source.of_argument(name).value()
    raws = [line.raw for _, _, lines in sources([source]) for line in lines if isinstance(line.raw, dict)]
    if isinstance(source, str) and Path(source).suffix == ".jsonl" and any("candidates" in raw for raw in raws):
        others: dict[str, None] = {}
        rows = read_rows(Path(source), Candidates, ignored=others)
        warn_of_ignored({source: list(others)} if others else {})
        return rows
    are_pairs = any(dialect.is_named(raw) for raw in raws for dialect in PAIRS)
    read = (read_pairs if are_pairs else read_conversations)(source, advice=ONE_FILE_ADVICE)
    warn_of_ignored(read.ignored)
    return read.rows
