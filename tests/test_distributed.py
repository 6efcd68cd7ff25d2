"""Two CPU processes with ZeRO-2 and ZeRO-3 against one plain process: the same initial numbers, the same model.

A launch takes many seconds, so each pair of stage and profile is launched once and all checks read its output.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from data_schemas.artifact import Artifact
from data_schemas.files import read_json
from engine.models.verification import check_weights
from pipeline.launch import command_line, processes
from pipeline.plan import Step
from pipeline.recipe.sections import Launch
from tests.engine.sampling.fake_vllm import FakeVLLM
from tests.loop_recipes import wait_until
from tests.patience import PATIENCE
from tests.stage_runs import metrics_of, run_here, stage_keys, weights_of
from tests.toy_rows import write_jsonl

# 9 held-out rows on two processes in batches of 4: the padding row of the second process is in no sum.
KEYS: dict[str, Any] = {"max_steps": 2, "eval_steps": 1, "per_device_eval_batch_size": 4, "global_batch_size": 8}
RESULTS = {"sft": "eval_loss", "reward_model": "eval_accuracy", "dpo": "eval_rewards/accuracies"}


def keys_of(stage: str, tiny_model: Path, rows: Path) -> dict[str, Any]:
    kind = "conversations" if stage == "sft" else "pairs"
    data = {"train_data": [rows / f"{kind}.jsonl"], "eval_data": [rows / f"{kind}_eval.jsonl"]}
    return {"model_name_or_path": tiny_model, **KEYS, **data}


@pytest.fixture(scope="session")
def one_process(tiny_model, rows, tmp_path_factory) -> Any:
    made: dict[str, Path] = {}

    def folder_of(stage: str) -> Path:
        if stage not in made:
            made[stage] = tmp_path_factory.mktemp("one") / stage
            run_here(stage, made[stage], **keys_of(stage, tiny_model, rows))
        return made[stage]

    return folder_of


long = pytest.mark.long


@pytest.mark.parametrize(
    ("stage", "profile"),
    [
        ("sft", "zero2"),
        ("dpo", "zero3"),
        pytest.param("sft", "zero3", marks=long),
        pytest.param("reward_model", "zero2", marks=long),
        pytest.param("reward_model", "zero3", marks=long),
        pytest.param("dpo", "zero2", marks=long),
    ],
)
def test_two_processes_give_the_result_of_one(stage, profile, one_process, run_stage, tiny_model, rows, tmp_path):
    one, two = one_process(stage), tmp_path / "two"
    checkpointing = {"save_strategy": "steps", "save_steps": 2, "keep_checkpoints": True}
    record = run_stage(stage, two, profile=profile, processes=2, **checkpointing, **keys_of(stage, tiny_model, rows))
    assert record.metrics["steps"] == 2
    assert record.engine == f"DeepSpeed ZeRO-{profile[-1]}"
    line = (
        f"2 processes on cpu with ZeRO-{profile[-1]}; global_batch_size 8 = 2 processes x 4 rows x 1 accumulation step"
    )
    log = (two / "log.txt").read_text()
    assert line in log
    assert "packed rows" not in log  # each engine trains on packed rows, as the one process does
    # Files that DeepSpeed writes: accelerate drops DeepSpeed silently if its environment asks for the CPU.
    shards = {path.name for path in (two / "checkpoints" / "checkpoint-2" / "global_step2").glob("*optim_states.pt")}
    assert len(shards) == 2 and all("zero_pp_rank" in name for name in shards)
    assert (two / "checkpoints" / "checkpoint-2" / "whole.json").exists()

    wanted, found = metrics_of(one), metrics_of(two)
    assert {key for key in found if key[1].startswith("eval_")} == {key for key in wanted if key[1].startswith("eval_")}
    # Evaluation is exact: before the first step the weights are the same, and so are the numbers.
    start = {key: value for key, value in wanted.items() if key[0] == 0 and key[1].startswith("eval_")}
    assert {key: found[key] for key in start} == pytest.approx(start, abs=1e-6, rel=1e-6)
    # Afterwards only the order of the sums over rows differs: about 1e-6 in a loss of 6, and in logits of 2.
    for step in (1, 2):
        for key in ("eval_loss", "loss", RESULTS[stage]):
            assert found[step, key] == pytest.approx(wanted[step, key], abs=1e-5), (step, key)

    # The saved model is plain: it loads completely in this process, and gives the same outputs as the other.
    check_weights(two / "model")
    first, second = weights_of(one / "model"), weights_of(two / "model")
    assert {name: tensor.shape for name, tensor in first.items()} == {
        name: tensor.shape for name, tensor in second.items()
    }
    loader = AutoModelForSequenceClassification if stage == "reward_model" else AutoModelForCausalLM
    ids = torch.arange(10, 40)[None]
    outputs = []
    for folder in (one, two):
        model, loading = loader.from_pretrained(folder / "model", output_loading_info=True)  # pyright: ignore[reportGeneralTypeIssues]
        assert not any(loading.values()), loading
        with torch.no_grad():
            outputs.append(model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=0)


REWARDS = "def letters(prompt, answer, ended):\n    return answer.count('e') - 0.1 * len(answer)\n"


LORA: dict[str, Any] = {"use_peft": True, "lora_target_modules": ["all-linear"], "lora_dropout": 0.0, "at_end": "merge"}
BY_VLLM: dict[str, Any] = {"engine": "vllm"}


@pytest.mark.parametrize(
    ("profile", "reward", "more"),
    [
        ("ddp", "function", {}),
        pytest.param("zero2", "function", {}, marks=long),
        pytest.param("zero3", "function", {}, marks=long),
        pytest.param("zero3", "model", {}, marks=long),  # each process loads all of the reward model
        pytest.param("zero3", "model", LORA, marks=long),
        pytest.param("ddp", "function", BY_VLLM, marks=long),
        pytest.param("zero3", "function", LORA | BY_VLLM, marks=long),
    ],
)
def test_rl_on_two_processes_gives_the_numbers_of_one(
    profile, reward, more, run_stage, tiny_model, tiny_reward_model, rows, tmp_path, monkeypatch
):
    (tmp_path / "toy_rewards.py").write_text(REWARDS)
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    rewards = (
        {"reward_model": tiny_reward_model} if reward == "model" else {"reward_functions": ["toy_rewards:letters"]}
    )
    keys: dict[str, Any] = {
        "model_name_or_path": tiny_model,
        "train_data": [rows / "prompts.jsonl"],
        "eval_data": [write_jsonl(tmp_path / "held_out.jsonl", [{"prompt": f"Question {n}?"} for n in range(3)])],
        "num_generations": 4,
        "global_batch_size": 16,
        "num_iterations": 2,
        "max_completion_length": 6,
        "max_steps": 2,
        "eval_steps": 2,
        "beta": 0.1,
        **rewards,
        **more,
    }
    fake = FakeVLLM(tmp_path / "env", log_prob=-math.log(250)) if more.get("engine") == "vllm" else None
    keys["vllm"] = {"python": fake.python} if fake else None
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_here("rl", one, **keys).engine == "none"
    record = run_stage("rl", two, profile=profile, processes=2, env={"ALIGNLOOP_FUNCTION_PATH": str(tmp_path)}, **keys)
    assert record.engine == {"ddp": "DDP", "zero2": "DeepSpeed ZeRO-2", "zero3": "DeepSpeed ZeRO-3"}[profile]
    assert f"the engine that wraps the model: {record.engine}" in (two / "log.txt").read_text()
    wanted, found = metrics_of(one), metrics_of(two)
    if fake:  # one for each process, and each with the weights before and after the window
        assert (len(fake.notes("load")), len(fake.notes("weights"))) == (1 + 2, 1 + 2)
    assert found.keys() == wanted.keys()
    same = ("reward", "completions/mean_length", "num_tokens", "frac_reward_zero_std")
    assert {name: found[1, name] for name in same} == pytest.approx({name: wanted[1, name] for name in same})
    for step, name in [(0, "eval_reward"), (1, "loss"), (2, "loss"), (2, "eval_kl")]:
        assert found[step, name] == pytest.approx(wanted[step, name], abs=1e-4), (step, name)
    for step in (1, 2):  # TRL's is the mean of the micro-batches' means, and the processes have other micro-batches
        assert found[step, "kl"] == pytest.approx(wanted[step, "kl"], abs=1e-3)


@pytest.mark.parametrize("profile", ["ddp", pytest.param("zero2", marks=long)])
def test_sigterm_saves_a_checkpoint_on_all_ranks_and_the_numbers_stay(profile, run_stage, tiny_model, rows, tmp_path):
    """The signal goes to the ranks, as on a cluster. They agree on the step; a launcher would give them 30 s."""
    more = {"max_steps": 80, "eval_steps": 80, "logging_steps": 1, "save_strategy": "no"}
    keys = keys_of("sft", tiny_model, rows) | more
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_stage("sft", whole, profile=profile, processes=2, **keys)

    cut.mkdir()
    (cut / "config.yaml").write_text(yaml.safe_dump(stage_keys("sft", **keys) | {"output_dir": str(cut)}))
    launch = Launch(profile=profile, num_processes=2, device="cpu")
    step = Step("sft", "sft", None, "sft", {}, {}, launch)
    command, environment = command_line.launch_command(step, cut), command_line.environment(step, cut, cut)
    stage = processes.StageProcess(command, cut, environment, cores=None, grace_seconds=120)
    log = cut / "metrics.jsonl"
    wait_until(lambda: log.exists() and len(metrics_of(cut)) > 8, seconds=PATIENCE, what="a few steps")
    processes.stop([stage])
    _, printed = stage.finish()
    outcome = read_json(cut / "outcome.json")
    assert outcome is not None and outcome["kind"] == "preempted", f"{outcome}\n{printed[-3000:]}"
    (checkpoint,) = (cut / "checkpoints").glob("checkpoint-*")
    marker = read_json(checkpoint / "whole.json")
    assert marker is not None
    assert (marker["processes"], marker["step"]) == (2, int(checkpoint.name.rpartition("-")[2]))
    assert 0 < marker["step"] < 80
    assert outcome["hint"] == f"run the same command again: training resumes from step {marker['step']}"

    run_stage("sft", cut, profile=profile, processes=2, **keys)
    assert f"resuming from step {marker['step']}" in (cut / "log.txt").read_text()
    wanted, found = metrics_of(whole), metrics_of(cut)
    for key in (80, "eval_loss"), (80, "eval_mean_token_accuracy"), (79, "loss"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-6), key


@pytest.mark.parametrize("profile", ["ddp", pytest.param("zero2", marks=long)])
def test_a_resume_in_the_middle_of_a_later_epoch_goes_on_with_its_rows(profile, run_stage, tiny_model, rows, tmp_path):
    """24 rows are three steps an epoch. Several processes read the rest of it through one sampler more than before."""
    checkpoints = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 9, "keep_checkpoints": True}
    keys = keys_of("sft", tiny_model, rows) | checkpoints | {"max_steps": 6, "eval_steps": 6, "logging_steps": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_stage("sft", whole, profile=profile, processes=2, **keys)

    shutil.copytree(whole, cut)
    for ended in ("artifact.json", "outcome.json"):
        (cut / ended).unlink()
    for leftover in ("model", "checkpoints/checkpoint-5", "checkpoints/checkpoint-6"):
        shutil.rmtree(cut / leftover)
    run_stage("sft", cut, profile=profile, processes=2, **keys)
    assert "resuming from step 4\n" in (cut / "log.txt").read_text()
    assert metrics_of(cut) == metrics_of(whole)
    first, second = weights_of(whole / "model"), weights_of(cut / "model")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Starts a command as `srun` does on two machines: here they are this one, twice.
TWO_MACHINES = """#!/bin/sh
ALIGNLOOP_MACHINE_RANK=1 "$@" &
ALIGNLOOP_MACHINE_RANK=0 "$@"
code=$?
wait $! || code=1
exit $code
"""


@pytest.mark.parametrize("profile", ["ddp", pytest.param("zero2", marks=long)])
def test_two_machines_give_the_result_of_one(profile, run_stage, tiny_model, rows, tmp_path):
    keys = keys_of("sft", tiny_model, rows) | {"keep_checkpoints": True}
    one, two = tmp_path / "one", tmp_path / "two"
    run_stage("sft", one, profile=profile, processes=2, **keys)

    two.mkdir()
    (two / "config.yaml").write_text(yaml.safe_dump(stage_keys("sft", **keys) | {"output_dir": str(two)}))
    (tmp_path / "srun.sh").write_text(TWO_MACHINES)
    launch = Launch(
        profile=profile,
        num_processes=2,
        num_machines=2,
        device="cpu",
        main_process_ip="127.0.0.1",
        wrapper=f"sh {tmp_path / 'srun.sh'}",
    )
    step = Step("sft", "sft", None, "sft", {}, {}, launch)
    command, environment = command_line.launch_command(step, two), command_line.environment(step, two, two)
    stage = processes.StageProcess(command, two, environment, cores=None, grace_seconds=60)
    stage.wait(240)
    code, printed = stage.finish()
    assert code == 0 and Artifact.read(two) is not None, f"{read_json(two / 'outcome.json')}\n{printed[-4000:]}"
    assert (two / "checkpoints" / "rank-1-ended").exists()

    # Nothing at all differs: the same processes see the same rows.
    found, wanted = metrics_of(two), metrics_of(one)
    assert {key: found[key] for key in wanted if "loss" in key[1]} == {
        key: value for key, value in wanted.items() if "loss" in key[1]
    }
    first, second = weights_of(one / "model"), weights_of(two / "model")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
