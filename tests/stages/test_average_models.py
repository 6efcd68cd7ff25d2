"""average_models measures the average and its parts as their own stage does."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from data_schemas.files import read_json
from tests.stage_runs import call_stage, run_here, weights_of
from tests.toy_models import tiny_llama


@pytest.fixture(scope="session")
def parts(tiny_model, rows, tmp_path_factory) -> Any:
    """`parts("dpo")` gives the folders of two runs of one stage with different learning rates."""
    made: dict[str, list[Path]] = {}

    def folders_of(stage: str) -> list[Path]:
        if stage not in made:
            root = tmp_path_factory.mktemp(stage)
            kind = "conversations" if stage == "sft" else "pairs"
            made[stage] = [root / str(n) for n in range(2)]
            for folder, rate in zip(made[stage], (1e-3, 4e-3), strict=True):
                run_here(
                    stage,
                    folder,
                    model_name_or_path=tiny_model,
                    train_data=[rows / f"{kind}.jsonl"],
                    eval_data=[rows / f"{kind}_eval.jsonl"],
                    learning_rate=rate,
                )
        return made[stage]

    return folders_of


def keys_of(stage: str, folders: list[Path], tiny_model: Path, rows: Path) -> dict[str, Any]:
    reference = {"reference_model": tiny_model} if stage == "dpo" else {}
    held_out = rows / ("conversations_eval.jsonl" if stage == "sft" else "pairs_eval.jsonl")
    return {
        "models": [folder / "model" for folder in folders],
        "averaged_stage": stage,
        "eval_data": [held_out],
        "stage_keys": {"bf16": False},
        **reference,
    }


@pytest.mark.parametrize("stage", ["sft", "reward_model", "dpo"])
def test_the_average_and_its_parts_are_measured_as_their_stage_measures(stage, parts, tiny_model, rows, tmp_path):
    folders = parts(stage)
    keys = keys_of(stage, folders, tiny_model, rows)
    made = run_here("average_models", tmp_path / "out", part_names=["one", "two"], **keys)
    trained = [read_json(folder / "artifact.json")["metrics"] for folder in folders]
    # The parts' numbers are those that their own training recorded of the model it saved.
    assert made.metrics["eval_loss_of_one"] == pytest.approx(trained[0]["eval_loss"], abs=1e-6)
    assert made.metrics["eval_loss_of_two"] == pytest.approx(trained[1]["eval_loss"], abs=1e-6)
    assert trained[0]["eval_loss"] != trained[1]["eval_loss"]
    assert (made.metrics["weight_of_one"], made.metrics["weight_of_two"]) == (0.5, 0.5)
    # The average's numbers are computed from its folder, and have the stage's names.
    of_stage = {name for name in trained[0] if name.startswith("eval_")} - {"eval_loss_at_step_0"}
    own = {name for name in made.metrics if name.startswith("eval_")} - {"eval_loss_of_one", "eval_loss_of_two"}
    assert own == of_stage
    again = run_here("average_models", tmp_path / "again", **keys | {"models": [tmp_path / "out" / "model"] * 2})
    assert {name: again.metrics[name] for name in own} == {name: made.metrics[name] for name in own}
    assert again.metrics["eval_loss_of_1"] == again.metrics["eval_loss_of_2"] == again.metrics["eval_loss"]
    by_hand = {
        name: (tensor.double() + weights_of(folders[1] / "model")[name].double()).div(2).float()
        for name, tensor in weights_of(folders[0] / "model").items()
    }
    found = weights_of(tmp_path / "out" / "model")
    assert all(torch.equal(found[name], tensor) for name, tensor in by_hand.items())
    # The training stage itself, which evaluates its initial model, gives the same numbers.
    kind = "conversations" if stage == "sft" else "pairs"
    start = run_here(
        stage,
        tmp_path / "trained",
        model_name_or_path=tmp_path / "out" / "model",
        max_steps=1,
        train_data=[rows / f"{kind}.jsonl"],
        eval_data=[rows / f"{kind}_eval.jsonl"],
        **({"reference_model": tiny_model} if stage == "dpo" else {}),
    )
    assert start.metrics["eval_loss_at_step_0"] == pytest.approx(made.metrics["eval_loss"], abs=1e-6)


def test_greedy_leaves_out_a_part_that_makes_it_worse(parts, tiny_model, rows, tmp_path):
    folders = parts("sft")
    broken = tmp_path / "broken" / "model"
    shutil.copytree(folders[0] / "model", broken)
    save_file(
        {name: -tensor for name, tensor in weights_of(broken).items()},
        broken / "model.safetensors",
        metadata={"format": "pt"},
    )
    keys = keys_of("sft", [broken.parent, *folders], tiny_model, rows)
    made = run_here("average_models", tmp_path / "out", weights="greedy", **keys).metrics
    assert made["weight_of_1"] == 0
    best = min(made["eval_loss_of_2"], made["eval_loss_of_3"])
    assert made["eval_loss"] <= best < made["eval_loss_of_1"]
    assert (made["weight_of_2"], made["weight_of_3"]) in [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)]


def test_without_eval_data_a_share_of_the_training_groups_is_held_out(parts, tiny_model, rows, tmp_path):
    keys = keys_of("sft", parts("sft"), tiny_model, rows) | {"eval_data": None, "max_length": None}
    keys = {name: value for name, value in keys.items() if value is not None}
    keys |= {"train_data": [rows / "conversations.jsonl"], "stage_keys": {"bf16": False, "validation_share": 0.25}}
    made = run_here("average_models", tmp_path / "out", **keys)
    assert made.inputs["train_data"] == str(rows / "conversations.jsonl")
    assert "training rows" in (tmp_path / "out" / "log.txt").read_text()
    assert made.metrics["eval_loss"] > 0


@pytest.mark.long
def test_two_processes_under_zero3_measure_what_one_does(tiny_model, tokenizer, rows, run_stage, tmp_path):
    other = tiny_llama(tokenizer, tmp_path / "parts" / "model", seed=1)
    keys = keys_of("dpo", [tiny_model.parent, other.parent], tiny_model, rows) | {"per_device_eval_batch_size": 4}
    one = run_here("average_models", tmp_path / "one", **keys)
    two = run_stage("average_models", tmp_path / "two", profile="zero3", processes=2, **keys)
    # Only the order of the sums over rows differs.
    assert two.metrics == pytest.approx(one.metrics, rel=1e-5, abs=1e-6)
    made = weights_of(tmp_path / "two" / "model")
    assert all(torch.equal(made[name], tensor) for name, tensor in weights_of(tmp_path / "one" / "model").items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"stage_keys": {"bta": 1}}, "average_models: stage_keys: unknown key 'bta' of stage sft")],
)
def test_a_users_mistake_is_one_line_and_nothing_is_written(changed, message, tiny_model, rows, tmp_path):
    keys = {"models": [tiny_model, tiny_model], "averaged_stage": "sft", "eval_data": [rows / "pairs_eval.jsonl"]}
    assert call_stage("average_models", tmp_path / "out", **keys | changed) == 2
    outcome = read_json(tmp_path / "out" / "outcome.json")
    assert message in outcome["cause"]
    assert not (tmp_path / "out" / "model").exists() and not list((tmp_path / "out").glob("checkpoints/average-*"))


def test_without_a_stage_the_average_is_written_and_not_measured(parts, tmp_path):
    folders = parts("dpo")
    models = [folder / "model" for folder in folders]
    made = run_here("average_models", tmp_path / "out", models=models, weights=[0.25, 0.75])
    assert made.metrics == {"weight_of_1": 0.25, "weight_of_2": 0.75}
    one, two = (weights_of(model) for model in models)
    for name, average in weights_of(tmp_path / "out" / "model").items():
        assert torch.allclose(average, 0.25 * one[name] + 0.75 * two[name], atol=1e-7)
