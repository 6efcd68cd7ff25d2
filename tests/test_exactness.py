"""Evaluation numbers depend only on weights and rows: {1, 2} processes x {1, 4, 8, 9} rows a batch, and ZeRO-3.

The same table for TRL 1.16 varies by up to a half: an accuracy of .333 is reported as .250 to .625.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.models.loading import load_causal, load_reward
from engine.training.dpo_loss import judge_margins
from engine.training.evaluation import ROUNDING
from engine.training.reward import margins_of
from pipeline.launch import command_line
from pipeline.plan import Step
from pipeline.recipe.sections import Launch
from tests.evaluation_table import table
from tests.patience import PATIENCE

BETA = 0.1
SIZES = [1, 4, 8, 9]  # of 9 rows: the last batch is full, or has one row, or padding rows on two processes
STAGES = ("sft", "reward_model", "dpo")


@pytest.fixture(scope="module")
def config(tiny_model, tokenizer, rows, tmp_path_factory) -> dict[str, Any]:
    folder, models = tmp_path_factory.mktemp("models"), {}
    for name in STAGES:
        model = (load_reward if name == "reward_model" else load_causal)(str(tiny_model), dtype="float32")
        model.config.pad_token_id = tokenizer.pad_token_id
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        models[name] = str(folder / name)
    files = {name: str(rows / f"{'conversations' if name == 'sft' else 'pairs'}_eval.jsonl") for name in STAGES}
    return {"models": models, "rows": files, "reference": str(tiny_model), "batch_sizes": SIZES}


@pytest.fixture(scope="module")
def by_one(config, tmp_path_factory) -> dict[str, dict[str, float]]:
    return table(config | {"output_dir": str(tmp_path_factory.mktemp("one"))})


def assert_same(found: dict[str, float], wanted: dict[str, float], *, where: str) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        near = {"rel": 1e-6}
        if "accurac" in name or "ties" in name or name.endswith(("precision", "recall", "f1")):
            near = {"rel": 1e-12} if name != "eval_mean_token_accuracy" else near
        elif "rewards/" in name:
            sums = (wanted["eval_logps/chosen"] + wanted["eval_logps/rejected"]) / 2
            near = {"abs": ROUNDING * BETA * abs(sums)}
        elif name in ("eval_margin", "eval_mean_reward"):
            near = {"abs": ROUNDING * abs(wanted["eval_mean_reward"])}
        assert found[name] == pytest.approx(value, **near), f"{where}: {name}"


@pytest.mark.parametrize("stage", STAGES)
def test_the_batch_size_changes_no_number(stage, by_one):
    wanted = by_one[f"{stage} 1"]
    for size in SIZES[1:]:
        assert_same(by_one[f"{stage} {size}"], wanted, where=f"{stage}, {size} rows a batch")
    if stage == "dpo":
        assert abs(wanted["eval_rewards/margins"]) > 1e-3, "policy and reference are the same: this shows nothing"
        assert 0 < wanted["eval_rewards/accuracies"] < 1
        assert wanted["eval_rewards/ties"] == 0


@pytest.mark.parametrize("profile", ["ddp", pytest.param("zero3", marks=pytest.mark.long)])
def test_two_processes_and_zero_3_change_no_number(profile, config, by_one, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config | {"output_dir": str(tmp_path)}))
    launch = Launch(profile=profile, num_processes=2, device="cpu")
    step = Step(name="sft", stage="sft", round=None, section="", keys={}, inputs={}, launch=launch)
    launcher = command_line.launch_command(step, tmp_path)[:-3]
    command = [*launcher, str(Path(__file__).with_name("evaluation_table.py")), str(tmp_path / "config.json")]
    environment = command_line.environment(step, tmp_path, tmp_path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "table.json").read_text())
    assert found.keys() == by_one.keys()
    for row, wanted in by_one.items():
        assert_same(found[row], wanted, where=f"{profile}, {row}")


@pytest.mark.parametrize("bf16", [False, True])
def test_a_policy_that_is_its_reference_has_only_ties(bf16, config, tmp_path):
    same = config | {"models": {"dpo": config["reference"]}, "batch_sizes": [4], "output_dir": str(tmp_path)}
    same |= {"bf16": bf16}
    numbers = table(same)["dpo 4"]
    assert (numbers["eval_rewards/accuracies"], numbers["eval_rewards/ties"]) == (0.5, 1.0)


def test_a_margin_that_rounding_could_turn_is_a_tie():
    policy = torch.tensor([-10.0, -10.0, -10.0, -12.0, -9.9, -10.00005])
    reference = torch.tensor([-11.0, -10.0, -10.0, -11.0, -10.0, -10.0])
    right_B, ties_B = judge_margins(torch.stack([policy, reference]))
    assert right_B.tolist() == [1.0, 0.0, 0.5]
    assert ties_B.tolist() == [0.0, 0.0, 1.0]

    margins, ties = margins_of(torch.tensor([2.0, 2.0, 2.0]), torch.tensor([1.0, 2.1, 1.99999]))
    assert margins.tolist() == pytest.approx([1.0, -0.1, 0.0])
    assert ties.tolist() == [False, False, True]
