"""Which model the folder of a run means."""

import json

import pytest

from data_schemas.errors import ConfigError
from pipeline.state.models import evaluation_with, model_of, reward_model_of


def entry(name, stage, *, metrics=True):
    return {
        "name": name,
        "stage": stage,
        "round": 1,
        "folder": f"{name}-0123",
        "fingerprint": None,
        "state": "ran" if metrics else "running",
        "seconds": 1.0,
        "metrics": {"eval_loss": 1.0} if metrics else {},
    }


def run_of(folder, *steps):
    content = {"name": "a", "state": "done", "steps": steps, "rounds": [], "best_policy": None}
    (folder / "summary.json").write_text(json.dumps(content))
    return str(folder)


def test_of_a_run_the_newest_reward_model_is_meant(tmp_path):
    judge, first = entry("judge", "reward_model"), entry("round-1.reward_model", "reward_model")
    part, average = entry("round-2.reward_model.1", "reward_model"), entry("round-2.reward_model", "average_models")
    unfinished = entry("round-3.reward_model", "reward_model", metrics=False)
    policy = entry("round-2.dpo", "dpo")
    run = run_of(tmp_path, judge, first, part, average, policy, unfinished)
    assert reward_model_of(run) == f"{tmp_path}/round-2.reward_model-0123/model"
    assert model_of(run) == f"{tmp_path}/round-2.dpo-0123/model"
    assert reward_model_of(run_of(tmp_path, judge, policy)) == f"{tmp_path}/judge-0123/model"
    with pytest.raises(ConfigError, match="has no finished reward model; run the recipe further, or give"):
        reward_model_of(run_of(tmp_path, policy, unfinished))


def test_of_a_run_the_evaluation_of_the_newest_reward_models_round_is_meant(tmp_path):
    earlier, reward_model = (
        entry("round-1.evaluate_policy", "evaluate_policy"),
        entry("round-2.reward_model", "reward_model"),
    )
    later = entry("round-2.evaluate_policy", "evaluate_policy")
    earlier["metrics"] = later["metrics"] = {"best_by_proxy": 0.5}
    run = run_of(tmp_path, earlier, reward_model, later)
    assert evaluation_with(run) == f"{tmp_path}/round-2.evaluate_policy-0123"
    assert evaluation_with(run_of(tmp_path, earlier, reward_model)) is None
    later["metrics"] = {"best_by_proxy": None}
    assert evaluation_with(run_of(tmp_path, reward_model, later)) is None
    assert evaluation_with(str(tmp_path / "round-2.reward_model-0123")) is None


def test_of_a_run_without_a_judge_the_policy_is_the_average_and_not_its_last_part(tmp_path):
    one, two = entry("sft.1", "sft"), entry("sft.2", "sft")
    average = entry("sft", "average_models") | {"inputs": ["sft.1", "sft.2", "prepare_data"]}
    assert model_of(run_of(tmp_path, one, two, average)) == f"{tmp_path}/sft-0123/model"
    unfinished = entry("sft", "average_models", metrics=False) | {"inputs": ["sft.1", "sft.2"]}
    assert model_of(run_of(tmp_path, one, two, unfinished)) == f"{tmp_path}/sft.2-0123/model"
    of_rewards = entry("reward_model", "average_models") | {"inputs": ["reward_model.1"]}
    run = run_of(tmp_path, one, entry("reward_model.1", "reward_model"), of_rewards)
    assert model_of(run) == f"{tmp_path}/sft.1-0123/model"
