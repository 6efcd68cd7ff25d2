"""Reinforcement learning of a tiny policy: rewards, guards, windows, and what a run leaves."""

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from data_schemas.files import read_json
from engine.reinforcement.schedule import Schedule
from engine.reinforcement.trainer import PolicyGradientTrainer
from engine.training import run
from tests.engine.training.training_runs import assert_equal_weights, steps_with
from tests.stage_runs import COMMON, call_stage, metrics_of, run_here
from tests.toy_rows import conversation, write_jsonl

FUNCTIONS = """
import math

def letters(prompt, answer, ended):
    return float(answer.count("e"))

def finished(prompt, answer, ended):
    return float(ended)

def constant(prompt, answer, ended):
    return 0.5

def length_for_some(prompt, answer, ended):
    with open(__file__ + ".prompts") as file:
        return float(len(answer)) if str(prompt) in file.read().splitlines() else 0.5

def fails_later(prompt, answer, ended):
    with open(__file__ + ".calls", "a+") as file:  # the module is imported again for each window
        file.write("x")
        file.seek(0)
        calls = len(file.read())
    if calls > 20:
        raise ValueError("no answer\\nis good enough")
    return float(len(answer))

def nan(prompt, answer, ended):
    return math.nan

def nothing(prompt, answer, ended):
    pass

def several(prompt, answer, ended):
    return [1.0, 2.0]
"""
RL: dict[str, Any] = {
    "num_generations": 4,
    "max_completion_length": 8,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "beta": 0.0,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with 12 training prompts, 4 held-out prompts and the functions."""
    folder = tmp_path_factory.mktemp("rl")
    (folder / "toy_rewards.py").write_text(FUNCTIONS)
    for name, numbers in (("prompts", range(200, 212)), ("held_out", range(300, 304))):
        rows = [{"prompt": conversation(number)["messages"][:-1]} for number in numbers]
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture(autouse=True)
def functions_beside(files, monkeypatch) -> None:
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(files))


def keys(tiny_model: Path, files: Path, **others: Any) -> dict[str, Any]:
    data = {"train_data": [files / "prompts.jsonl"], "eval_data": [files / "held_out.jsonl"]}
    reward = (
        {} if {"reward_functions", "reward_model"} & others.keys() else {"reward_functions": ["toy_rewards:letters"]}
    )
    return {"model_name_or_path": tiny_model, **data, **RL, **reward, **others}


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def error_of(folder: Path) -> str:
    return read_json(folder / "outcome.json")["cause"]


def test_the_reward_rises_and_the_best_model_by_held_out_reward_is_saved(tiny_model, files, tmp_path):
    folder = tmp_path / "rl"
    record = run_here("rl", folder, **keys(tiny_model, files, learning_rate=3e-2, max_steps=10, num_eval_answers=4))
    values = metrics_of(folder)
    at = {step: values[step, "eval_reward"] for step in steps_with(folder, "eval_reward")}
    assert sorted(at) == [0, 2, 4, 6, 8, 10]
    assert values[0, "eval_kl"] == 0.0  # the policy is its reference
    best = max(at, key=lambda step: (at[step], -step))
    assert at[best] > at[0] + 0.5
    assert record.metrics["best_step"] == best
    assert record.metrics["eval_reward"] == at[best] == -record.metrics["eval_loss"]
    assert record.outputs == {"model": "model"} and record.contract
    logged = {name for step, name in values if step == 3}
    assert logged >= {
        "reward",
        "reward_std",
        "rewards/letters/mean",
        "frac_reward_zero_std",
        "groups_without_variance",
        "completions/mean_length",
        "completions/clipped_ratio",
        "completions/reward_per_100_tokens",
        "clip_ratio/region_mean",
        "entropy",
        "num_tokens",
    }
    assert "step_time" not in logged


WINDOWS = {"num_iterations": 2, "global_batch_size": 16, "max_steps": 8, "beta": 0.1, "save_strategy": "steps"}
SAVING = {"save_steps": 1, "save_total_limit": 10, "eval_steps": 4}


@pytest.fixture(scope="module")
def uninterrupted(tiny_model, files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "rl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNLOOP_FUNCTION_PATH", str(files))
        run_here("rl", folder, **keys(tiny_model, files, **WINDOWS, **SAVING))
    return folder


@pytest.mark.parametrize("stopped_at", [5, 6])  # inside a window, and between two
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    stopped_at, uninterrupted, tiny_model, files, tmp_path, monkeypatch
):
    folder = tmp_path / "rl"
    logs = run.TrackingCallback.on_log

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs(self, args, state, control, **kwargs)
        if state.global_step == stopped_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.TrackingCallback, "on_log", stop)
        assert call_stage("rl", folder, **keys(tiny_model, files, **WINDOWS, **SAVING)) == 130
    saved = {path.name for path in folder.glob("checkpoints/checkpoint-*")}
    assert saved == {"checkpoint-2", "checkpoint-4"}  # where windows end, though save_steps is 1
    run_here("rl", folder, **keys(tiny_model, files, **WINDOWS, **SAVING))
    assert "resuming from step 4\n" in log_of(folder)
    assert_equal_weights(folder / "model", uninterrupted / "model")
    assert metrics_of(folder) == metrics_of(uninterrupted)


def test_sigterm_inside_a_window_is_answered_at_its_end(uninterrupted, tiny_model, files, tmp_path, monkeypatch):
    folder = tmp_path / "rl"
    ends = run.TrackingCallback.on_step_end

    def terminate(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        ends(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(run.TrackingCallback, "on_step_end", terminate)
        assert call_stage("rl", folder, **keys(tiny_model, files, **WINDOWS, **SAVING)) == 143
    run_here("rl", folder, **keys(tiny_model, files, **WINDOWS, **SAVING))
    assert "resuming from step 4\n" in log_of(folder)
    assert_equal_weights(folder / "model", uninterrupted / "model")
    assert metrics_of(folder) == metrics_of(uninterrupted)


def test_rewards_of_a_model_and_of_functions_are_added_by_weight(tiny_model, tiny_reward_model, files, tmp_path):
    folder = tmp_path / "rl"
    sources = {"reward_model": tiny_reward_model, "reward_functions": ["toy_rewards:letters", "toy_rewards:finished"]}
    given = keys(tiny_model, files, **sources, reward_weights=[0.5, 1.0, -2.0], algorithm="rloo", beta=0.1, max_steps=2)
    run_here("rl", folder, **given)
    values = metrics_of(folder)
    for step, prefix in ((1, ""), (0, "eval_")):
        model, letters, finished = (
            values[step, f"{prefix}rewards/{name}/mean"] for name in ("reward_model", "letters", "finished")
        )
        assert values[step, f"{prefix}reward"] == pytest.approx(0.5 * model + letters - 2 * finished, abs=1e-5)


def test_shaped_rewards_are_compared_with_the_references_and_unfinished_answers_are_penalised(
    tiny_model, files, tmp_path
):
    folder = tmp_path / "rl"
    guards = {"reward_shaping": "sigmoid_of_reference", "num_reference_answers": 2, "unfinished_penalty": 3.0}
    run_here("rl", folder, **keys(tiny_model, files, **guards, max_steps=2, max_completion_length=2))
    values = metrics_of(folder)
    unfinished = values[1, "completions/clipped_ratio"]
    assert -3 * unfinished < values[1, "reward_with_guards"] < 1 - 3 * unfinished
    assert values[1, "reward_with_guards"] == pytest.approx(0.5 - 3 * unfinished, abs=0.3)
    assert values[0, "eval_loss"] == -values[0, "eval_reward_with_guards"]


HACKABLE = {"learning_rate": 5e-2, "max_steps": 12, "eval_steps": 1, "num_eval_answers": 2}


def test_a_hackable_reward_is_stopped_by_the_budget(tiny_model, files, tmp_path):
    """It pays for a letter. Without a guard the policy writes nothing else."""
    free = run_here("rl", tmp_path / "free", **keys(tiny_model, files, **HACKABLE)).metrics
    guarded = run_here("rl", tmp_path / "guarded", **keys(tiny_model, files, **HACKABLE, kl_budget=2.0)).metrics
    assert free["eval_kl"] > 4 and free["steps"] == 12
    assert guarded["eval_kl"] <= 2.0 and guarded["steps"] < 12
    assert guarded["eval_reward"] < free["eval_reward"]
    reached = metrics_of(tmp_path / "guarded")
    over = [step for step in steps_with(tmp_path / "guarded", "eval_kl") if reached[step, "eval_kl"] > 2.0]
    assert all(math.isnan(reached[step, "eval_loss"]) for step in over)
    assert over or "above kl_budget=2" in log_of(tmp_path / "guarded")


def test_training_that_the_budget_ended_is_not_resumed(tiny_model, files, tmp_path, monkeypatch):
    """It is killed after the evaluation beyond the budget, before its record is written."""
    saving = {"save_strategy": "steps", "save_steps": 1}
    given = keys(tiny_model, files, **HACKABLE | saving | {"learning_rate": 2e-2, "kl_budget": 0.5})
    uninterrupted = run_here("rl", tmp_path / "uninterrupted", **given)
    reached = metrics_of(tmp_path / "uninterrupted")
    assert reached[uninterrupted.metrics["steps"], "eval_kl"] > 0.5
    with monkeypatch.context() as patch:
        patch.setattr(run, "_publish", Mock(side_effect=KeyboardInterrupt))
        assert call_stage("rl", tmp_path / "rl", **given) == 130
    resumed = run_here("rl", tmp_path / "rl", **given)
    assert resumed.metrics == uninterrupted.metrics and metrics_of(tmp_path / "rl") == reached
    ended = f"training ended after step {uninterrupted.metrics['steps']} of 12: the KL to the reference is "
    assert resumed.warnings == uninterrupted.warnings and resumed.warnings[0].startswith(ended)


def test_a_budget_that_is_spent_at_the_start_is_an_error(tiny_model, tied_model, files, tmp_path):
    given = keys(tiny_model, files, reference_model=tied_model, kl_budget=0.5)
    assert call_stage("rl", tmp_path / "rl", **given) == 2
    assert error_of(tmp_path / "rl").startswith("kl_budget=0.5 is spent before the first step: the policy is already ")


def test_a_policy_in_mixed_precision_is_sampled_by_the_fast_sampler(tiny_model, files, tmp_path):
    """Its weights are float32, and it computes in bfloat16 wherever it is called."""
    record = run_here("rl", tmp_path / "rl", **keys(tiny_model, files, bf16=True, max_steps=1))
    assert not [warning for warning in record.warnings if "generate()" in warning]
    assert "generate()" not in log_of(tmp_path / "rl")


def test_windows_without_variance_end_training(tiny_model, files, tmp_path):
    folder = tmp_path / "rl"
    assert call_stage("rl", folder, **keys(tiny_model, files, reward_functions=["toy_rewards:constant"])) == 1
    assert error_of(folder).startswith("in 3 windows in a row all 4 answers to each prompt have the same reward")
    assert "a checkpoint of step 2 is kept" in error_of(folder)
    assert (folder / "checkpoints" / "checkpoint-2").is_dir()


FLAT_LATER = {"reward_functions": ["toy_rewards:length_for_some"], "global_batch_size": 4, "max_steps": 8}
FLAT_LATER |= SAVING | {"save_strategy": "steps"}


@pytest.fixture
def flat_from_window_2(files) -> None:
    """Only the prompts of the first two windows have answers with different rewards."""
    schedule = Schedule(
        num_prompts=12,
        num_generations=4,
        global_batch_size=4,
        steps_per_window=1,
        num_iterations=1,
        seed=COMMON["seed"],
        round=1,
    )
    rows, held_out = (
        [json.loads(line) for line in (files / f"{name}.jsonl").read_text().splitlines()]
        for name in ("prompts", "held_out")
    )
    texts = [str(row["prompt"]) for row in held_out]
    texts += [str(rows[number]["prompt"]) for window in range(2) for number in schedule.prompts_of(window)]
    (files / "toy_rewards.py.prompts").write_text("\n".join(texts))


def stop_in_flat_window(patch: pytest.MonkeyPatch, signal_number: int) -> None:
    """The signal comes while the answers of the fourth window, the second flat one, are sampled."""
    begin = PolicyGradientTrainer._make_batches

    def stop(self: Any, *args: Any) -> None:
        begin(self, *args)
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal_number)

    patch.setattr(PolicyGradientTrainer, "_make_batches", stop)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which it does not install in a job that a shell has started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("flat_from_window_2", "interruptible")
@pytest.mark.parametrize(("signal_number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_flat_windows_are_counted_across_a_resume(signal_number, status, tiny_model, files, tmp_path, monkeypatch):
    """Windows 0 and 1 have variance and the next three have none: training ends before the fifth step is taken."""
    given = keys(tiny_model, files, **FLAT_LATER)
    uninterrupted = run_here("rl", tmp_path / "uninterrupted", **given)
    assert uninterrupted.metrics["steps"] == 4
    ended = "training ended after step 4 of 8: in 3 windows in a row all 4 answers to each prompt have the same reward"
    assert uninterrupted.warnings[0] == ended
    folder = tmp_path / "rl"
    with monkeypatch.context() as patch:
        stop_in_flat_window(patch, signal_number)
        assert call_stage("rl", folder, **given) == status
    resumed = run_here("rl", folder, **given)
    assert "resuming from step 3\n" in log_of(folder)
    assert resumed.metrics == uninterrupted.metrics and resumed.warnings == uninterrupted.warnings
    assert_equal_weights(folder / "model", tmp_path / "uninterrupted" / "model")
    assert metrics_of(folder) == metrics_of(tmp_path / "uninterrupted")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nan", "gave nan, expected a finite number"),
        ("nothing", "gave None, expected a finite number"),
        ("several", "gave [1.0, 2.0], expected a finite number"),
    ],
)
def test_a_reward_that_is_no_number_names_the_answer(function, said, tiny_model, files, tmp_path):
    given = keys(tiny_model, files, reward_functions=[f"toy_rewards:{function}"])
    assert call_stage("rl", tmp_path / "rl", **given) == 2
    assert said in error_of(tmp_path / "rl") and "\n" not in error_of(tmp_path / "rl")


def test_what_was_trained_before_a_reward_fails_is_kept(tiny_model, files, tmp_path):
    folder = tmp_path / "rl"
    given = keys(tiny_model, files, reward_functions=["toy_rewards:fails_later"], eval_steps=4)
    assert call_stage("rl", folder, **given) == 2
    assert "raised ValueError: no answer is good enough; a checkpoint of step " in error_of(folder)
    assert list(folder.glob("checkpoints/checkpoint-*"))


def test_adapters_are_trained_and_merged(tiny_model, files, tmp_path):
    folder = tmp_path / "rl"
    record = run_here("rl", folder, **keys(tiny_model, files, use_peft=True, lora_r=4, learning_rate=5e-2, beta=0.1))
    values = metrics_of(folder)
    assert values[0, "eval_kl"] == 0.0 and values[4, "eval_kl"] != 0.0
    assert Artifact.read(folder) == record and (folder / "model" / "model.safetensors").exists()


def test_divided_weights_are_refused_in_one_line(monkeypatch):
    from stages import rl

    rl.check_launch()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="rl samples answers from the weights in memory, which FSDP divides; use"):
        rl.check_launch()
