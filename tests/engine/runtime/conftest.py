"""Options of a valid command line."""

from typing import Any

import pytest

from tests.stages_by_hand import MAKERS
from tests.toy_rows import conversation, write_jsonl


@pytest.fixture
def words(tmp_path) -> list[Any]:
    """The options of a valid prepare_data into tmp_path/out."""
    data = write_jsonl(tmp_path / "conversations.jsonl", [conversation(number) for number in range(40)])
    (tmp_path / "makers.py").write_text(MAKERS)
    return ["--instructions", data, "--report_to", "none", "--output_dir", tmp_path / "out"]
