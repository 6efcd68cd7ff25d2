"""The whole way: a run writes a page, a browser labels it, and the run goes on with what was pressed."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from data_schemas.reading import read_pairs
from tests.chromium import browser, needs_chromium
from tests.loop_recipes import COMMAND, clean_environment
from tests.patience import PATIENCE

RECIPE = {
    "name": "people",
    "rounds": 1,
    "first_sft": False,
    "round_stages": ["annotate", "dpo"],
    "launch": {"device": "cpu"},
    "data": {"prompts": "prompts.jsonl", "validation_share": 0},
    "defaults": {"report_to": "none", "bf16": False, "max_new_tokens": 8, "keep_unfinished": True, "strengths": None},
    "annotate": {"people": ["ana"], "num_prompts": 4},
    "dpo": {"max_length": 200, "ranking_pairs": "all"},
}
RUN = ("run", "people.yaml", "--until", "round-1.annotate")


@pytest.fixture
def work(tiny_model, rows, tmp_path) -> Path:
    """A working directory with a recipe in which people are the only annotators."""
    shutil.copy(rows / "prompts.jsonl", tmp_path)
    (tmp_path / "people.yaml").write_text(yaml.safe_dump(RECIPE | {"base_model": str(tiny_model)}))
    return tmp_path


def call(work: Path, *words: str) -> tuple[int, str, str]:
    env = clean_environment() | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [COMMAND, *words], cwd=work, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.long
@needs_chromium
def test_a_run_waits_for_a_browser_and_goes_on_with_its_labels(work):
    code, out, err = call(work, *RUN)
    assert (code, err) == (3, "")
    assert "round-1.annotate waits for people: 0 of 4 comparisons are done" in out
    step = work / "runs" / "people" / "steps" / "round-1.annotate"
    with browser(work / "browser") as page:
        page.open(step / "people" / "ana.html")
        page.press("1e8")  # A is significantly better; B is better, and is improved
        page.insert(" improved")
        page.press_key("Enter", ctrl=True)
        page.press("5s")  # a tie, and a skipped row
        page.press("d")
        saved = page.saved("ana.labels.jsonl")
    text = saved.read_text()
    (step / "people" / "half.jsonl").write_text(text[: len(text) // 2])
    code, _, err = call(work, *RUN)
    assert code == 2 and "half.jsonl was cut off on its way; let 'ana' save and send it again" in err
    (step / "people" / "half.jsonl").unlink()
    shutil.copy(saved, step / "people")
    code, out, err = call(work, *RUN)
    assert code == 0, err
    significant, improved = sorted(read_pairs([step / "pairs.train.jsonl"]).rows, key=lambda pair: len(pair.ranking))
    assert (len(significant.ranking), significant.strength) == (2, "significantly_better")
    assert (len(improved.ranking), improved.strength, improved.chosen_from) == (3, "better", "people")
    assert improved.chosen[0].content.endswith(" improved") and improved.between
    record = json.loads((step / "artifact.json").read_text())
    counts = {name: record["metrics"][name] for name in ("pairs", "people_edited", "people_ties", "people_skipped")}
    assert counts == {"pairs": 2, "people_edited": 1, "people_ties": 1, "people_skipped": 1}
    assert record["metrics"]["dropped_equal_score"] == record["metrics"]["dropped_skipped"] == 1
    assert (step / record["outputs"]["labels"]).read_text().count("\n") == 4
