"""docs/data-at-scale.md, done: its job runs in an environment with datatrove, and drops what the stage curate drops."""

import json
import os
import subprocess

import pytest

from tests.patience import PATIENCE
from tests.stage_runs import ROOT, run_here
from tests.test_adding_a_stage import code_of
from tests.toy_rows import read_jsonl, write_jsonl

PYTHON = os.environ.get("DATATROVE_PYTHON", "")
QUESTION = "How many apples does Anna have after she has given three of her seven apples to her brother Tom"


def dialog(question: str, answer: str):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.long
@pytest.mark.skipif(not PYTHON, reason="DATATROVE_PYTHON does not name the Python of an environment with datatrove")
def test_the_job_of_the_page_drops_what_the_stage_drops(tmp_path):
    rows = [dialog(f"What is {n}?", f"It is {n}.") for n in range(20)]
    bad = [
        dialog(f"{QUESTION} today?", "Four."),
        dialog("And then?", "```python\nprint(1)"),
        dialog("Why?", "..."),
        dialog("Who?", "no no " * 20),
    ]
    given = [rows[:10] + bad[:2], bad[2:] + rows[10:]]
    (tmp_path / "rows").mkdir()
    files = [write_jsonl(tmp_path / "rows" / f"{number}.jsonl", part) for number, part in enumerate(given)]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": [{"role": "user", "content": f"{QUESTION}?"}]}])
    page = (ROOT / "docs" / "data-at-scale.md").read_text(encoding="utf-8")
    (tmp_path / "curation_job.py").write_text(code_of(page, "curation_job.py"), encoding="utf-8")
    words = [PYTHON, "curation_job.py", "rows", "prompts.jsonl", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    keys = {"instructions": files, "evaluation_prompts": [prompts], "exact_duplicates": False, "near_duplicates": None}
    run_here("curate", tmp_path / "curated", **keys)

    def of_job(name: str):
        return [row for file in sorted((tmp_path / "out" / name).iterdir()) for row in read_jsonl(file)]

    assert of_job("kept") == read_jsonl(tmp_path / "curated" / "instructions.train.jsonl") == rows
    dropped = read_jsonl(tmp_path / "curated" / "dropped.jsonl")
    wanted = [(row["rule"], row["value"], json.dumps(row["row"])) for row in dropped]
    assert [(row["rule"], row["value"], json.dumps(row["row"])) for row in of_job("dropped")] == wanted
    assert len(wanted) == 4
