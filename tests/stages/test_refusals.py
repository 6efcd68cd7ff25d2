"""Mistakes that only a stage with a model can detect: an error of one line with the reason."""

from typing import Any

import pytest

from data_schemas.files import read_json
from tests.stage_runs import call_stage


@pytest.mark.parametrize(
    ("stage", "changed", "message"),
    [
        (
            "sft",
            {"model_name_or_path": "base"},
            "has no chat template; give it as base_model of a recipe",
        ),
        ("sft", {"model_name_or_path": "empty"}, "has no tokenizer that can be read"),
        ("sft", {"train_data": ["pairs.jsonl"]}, "has the columns prompt, chosen, rejected; expected messages"),
        ("sft", {"train_data": ["none.jsonl"]}, "none.jsonl has no rows"),
        ("sft", {"eval_data": ["conversations.jsonl"]}, "24 dialogs are both in train_data and in eval_data"),
        (
            "sft",
            {"max_length": 4},
            "train: nothing is left of 24 rows (dropped_too_long 24); raise max_length, or give rows that fit",
        ),
        ("sft", {"train_data_shares": [0.5, 0.5]}, "sft: 2 shares for 1 files of data; give one share for each file"),
        ("sft", {"eval_data": None, "validation_share": 0.0}, "sft: no row is left for eval_data"),
        (
            "pretrain",
            {"model_name_or_path": None, "train_data": ["documents.jsonl"], "eval_data": None},
            "pretrain needs architecture (random weights) or model_name_or_path (to continue from)",
        ),
    ],
)
def test_a_stage_that_cannot_run_reports_why_in_one_line(
    stage, changed, message, tiny_model, tiny_base, rows, tmp_path
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.jsonl").touch()
    keys: dict[str, Any] = {
        "model_name_or_path": tiny_model,
        "train_data": ["conversations.jsonl"],
        "eval_data": ["conversations_eval.jsonl"],
        **changed,
    }
    models = {"base": tiny_base, "empty": tmp_path / "empty"}
    keys["model_name_or_path"] = models.get(keys["model_name_or_path"], keys["model_name_or_path"])
    for name in ("train_data", "eval_data"):
        if keys[name]:
            keys[name] = [tmp_path / file if file == "none.jsonl" else rows / file for file in keys[name]]
    assert call_stage(stage, tmp_path / "out", **keys) == 2
    outcome = read_json(tmp_path / "out" / "outcome.json")
    assert outcome["kind"] == "config" and message in outcome["cause"] and "\n" not in outcome["cause"]
