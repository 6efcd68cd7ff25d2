"""docs/adding-a-stage.md, done: its code is applied to a copy of the project, and its recipe is run there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_schemas.artifact import Artifact
from tests.patience import PATIENCE
from tests.stage_runs import ROOT
from tests.toy_rows import pair, read_jsonl, write_jsonl

PACKAGES = ("commands", "configs", "data_schemas", "docs", "engine", "pipeline", "stages", "toy_world")
PLACE_IN_PLAN = '    if "rejection_sampling" in stages_of_round:\n'


def code_of(page: str, file: str) -> str:
    """The code block of the page whose first line is a comment that begins with the file's name; without that line."""
    (code,) = re.findall(rf"^```\w+\n# {re.escape(file)}[^\n]*\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return code


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the project with the new stage, its lines in the plan, and its config."""
    copy = tmp_path / "project"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    page = (ROOT / "docs" / "adding-a-stage.md").read_text(encoding="utf-8")
    for file in ("stages/filter_pairs.py", "configs/filtered.yaml"):
        (copy / file).write_text(code_of(page, file), encoding="utf-8")
    plan = (copy / "pipeline" / "plan.py").read_text(encoding="utf-8")
    assert plan.count(PLACE_IN_PLAN) == 1
    lines = code_of(page, "pipeline/plan.py")
    (copy / "pipeline" / "plan.py").write_text(plan.replace(PLACE_IN_PLAN, lines + PLACE_IN_PLAN), encoding="utf-8")
    return copy


def call(project: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(project)}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_stage_is_added_by_one_file_its_lines_in_the_plan_and_a_config(project, tiny_base):
    before = json.loads((project / "data_schemas" / "stage_keys.json").read_text())
    call(project, "-m", "commands.describe_keys")
    call(project, "-m", "pipeline.recipe.reference")
    call(project, "-m", "pipeline.recipe.stage_reference")
    after = json.loads((project / "data_schemas" / "stage_keys.json").read_text())
    assert {name: stage for name, stage in after.items() if name != "filter_pairs"} == before
    assert "| `max_answer_characters` | int | `400` |" in (project / "docs" / "recipe.md").read_text()
    assert "## `filter_pairs`" in (project / "docs" / "stage-keys.md").read_text()
    assert "--max_answer_characters <int>" in call(project, "stages/filter_pairs.py", "--help")

    write_jsonl(project / "pairs.jsonl", [pair(number) for number in range(60)])
    (project / "scores.py").write_text("def score(prompt, answer, ended):\n    return float(len(answer))\n")
    settings = [f"base_model={tiny_base}", "defaults.report_to=none", 'evaluate_policy.judge_function="scores:score"']
    options = [word for setting in settings for word in ("--set", setting)]
    call(project, "-m", "pipeline.cli", "run", "configs/filtered.yaml", *options)

    steps = project / "runs" / "filtered" / "steps"
    record = Artifact.read((steps / "round-1.filter_pairs").resolve())
    assert record is not None and record.keys["max_answer_characters"] == 24
    kept = read_jsonl(steps / "round-1.filter_pairs" / "pairs.train.jsonl")
    assert 0 < len(kept) == record.metrics["pairs"] and record.metrics["dropped_too_long"]
    assert all(len(row[side][0]["content"]) <= 24 for row in kept for side in ("chosen", "rejected"))
    trained = Artifact.read((steps / "round-1.dpo").resolve())
    assert trained is not None and "filter_pairs" in trained.inputs["train_data"]
    planned = call(project, "-m", "pipeline.cli", "plan", "configs/filtered.yaml", *options).splitlines()[0]
    assert "6 steps, 6 reuse" in planned
