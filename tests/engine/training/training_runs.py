"""Data for a training stage, and comparisons of the files of two runs."""

from pathlib import Path
from typing import Any

import torch

from tests.stage_runs import metrics_of, weights_of

STAGES = ("sft", "reward_model", "dpo")


def data(rows: Path, stage: str) -> dict[str, Any]:
    kind = "conversations" if stage == "sft" else "pairs"
    return {"train_data": [rows / f"{kind}.jsonl"], "eval_data": [rows / f"{kind}_eval.jsonl"]}


def steps_with(folder: Path, key: str) -> list[int]:
    return sorted(step for step, name in metrics_of(folder) if name == key)


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
