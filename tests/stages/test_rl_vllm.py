"""Reinforcement learning with answers from vLLM: a fake one that keeps the weights it gets, and the real one."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_schemas.files import read_json
from engine.models.loading import load_causal
from engine.training import run
from tests.engine.sampling.fake_vllm import FakeVLLM
from tests.engine.sampling.real_vllm import KEYS, needs_vllm
from tests.engine.training.training_runs import assert_equal_weights
from tests.stage_runs import call_stage, metrics_of, run_here, weights_of
from tests.toy_models import tiny_llama
from tests.toy_rows import conversation, write_jsonl

FUNCTIONS = """
def length(prompt, answer, ended):
    return float(len(answer))


def length_and_calls(prompt, answer, ended):  # a little more at each call, so that the last policy is the best
    with open(__file__ + ".calls", "a+") as file:
        file.write("x")
        return len(answer) + file.tell() / 100
"""


@pytest.fixture
def keys(tmp_path, monkeypatch) -> dict[str, Any]:
    """Keys of the stage, without a model and without vLLM."""
    (tmp_path / "toy_rewards.py").write_text(FUNCTIONS)
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    files = {}
    for name, numbers in (("train_data", range(200, 212)), ("eval_data", range(300, 304))):
        rows = [{"prompt": conversation(number)["messages"][:-1]} for number in numbers]
        files[name] = [write_jsonl(tmp_path / f"{name}.jsonl", rows)]
    return {
        **files,
        "reward_functions": ["toy_rewards:length_and_calls"],
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "beta": 0.0,
    }


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeVLLM:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "weights").mkdir()
    log_prob = -math.log(250)  # near that of a policy with random weights, so that answers are not left out
    return FakeVLLM(tmp_path / "env", keep_weights_in=str(tmp_path / "weights"), log_prob=log_prob)


def by_vllm(fake: FakeVLLM) -> dict[str, Any]:
    return {"engine": "vllm", "vllm": {"python": fake.python}}


def kept_weights(fake: FakeVLLM, tmp_path: Path) -> list[dict[str, torch.Tensor]]:
    """What vLLM was given, in order: the weights of complete models."""
    events = len(fake.notes("load")) + len(fake.notes("weights"))
    return [dict(load_causal(str(tmp_path / "weights" / str(number))).state_dict()) for number in range(events)]


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.allclose(weight, second[name], atol=1e-6) for name, weight in first.items())


@pytest.mark.parametrize("adapters", [{}, {"use_peft": True, "lora_r": 4, "learning_rate": 5e-2}])
def test_vllm_gets_the_weights_whenever_they_have_changed(adapters, fake, keys, tiny_model, tmp_path):
    folder = tmp_path / "rl"
    record = run_here("rl", folder, **keys | {"model_name_or_path": tiny_model, **adapters, **by_vllm(fake)})
    # Before the first step, and after each of four; the evaluation of a step has the weights of the window after it.
    assert (len(fake.notes("load")), len(fake.notes("weights"))) == (1, 4)
    given = kept_weights(fake, tmp_path)
    assert are_equal(given[0], dict(load_causal(str(tiny_model)).state_dict()))
    assert record.metrics["best_step"] == 4
    assert are_equal(given[4], dict(load_causal(str(folder / "model")).state_dict()))
    assert not any(are_equal(given[step], given[step + 1]) for step in range(4))
    assert len({note["pid"] for note in fake.notes("generate")}) == 1
    (load,) = fake.notes("load")
    assert (load["dtype"], load["logprobs_mode"]) == ("float32", "processed_logprobs")
    assert not (folder / "checkpoints" / "vllm-weights").exists()


@pytest.mark.parametrize("precision", [{"bf16": True}, {"bf16": False, "dtype": "bfloat16"}])
@pytest.mark.parametrize("model", ["tiny_model", "tied_model"])
def test_vllm_gets_the_weights_in_the_precision_of_training(model, precision, fake, keys, tmp_path, request):
    folder, start = tmp_path / "rl", request.getfixturevalue(model)
    given = keys | {"model_name_or_path": start, "max_steps": 1, "save_strategy": "no"}
    run_here("rl", folder, **given | precision | by_vllm(fake))
    (load,) = fake.notes("load")
    assert load["dtype"] == "bfloat16"
    given, trained = load_file(tmp_path / "weights" / "1" / "model.safetensors"), weights_of(folder / "model")
    assert {name: tensor.dtype for name, tensor in given.items()} == dict.fromkeys(trained, torch.bfloat16)
    assert all(torch.equal(tensor, trained[name].bfloat16()) for name, tensor in given.items())


def test_the_answers_are_those_of_vllm_and_their_probabilities_are_compared(fake, keys, tiny_model, tmp_path):
    folder = tmp_path / "rl"
    fake.behave(log_prob=-1.0)
    run_here("rl", folder, **keys | {"model_name_or_path": tiny_model, **by_vllm(fake)})
    asked = [own for note in fake.notes("generate") for _, own in note["asked"]]
    assert {own["logprobs"] for own in asked} == {0}
    seeds = [[own["seed"] for _, own in note["asked"]] for note in fake.notes("generate")]
    assert [len(set(own)) for own in seeds] == [4, 8, 8, 4, 8, 8, 4]  # evaluations at steps 0, 2 and 4, and windows
    assert seeds[0] == seeds[3] == seeds[6] and not set(seeds[1]) & set(seeds[2])
    values = metrics_of(folder)
    # The fake says -1 of every token, the policy of random weights about -log(vocabulary).
    assert values[1, "sampling/sampling_logp_difference/mean"] > 3
    assert values[1, "sampling/importance_sampling_ratio/max"] <= 3.0


def test_the_reference_that_shapes_rewards_answers_by_vllm_too(fake, keys, tiny_model, tmp_path):
    shaping = {"reward_shaping": "sigmoid_of_reference", "max_steps": 2}
    run_here("rl", tmp_path / "rl", **keys | {"model_name_or_path": tiny_model, **shaping, **by_vllm(fake)})
    given = kept_weights(fake, tmp_path)
    start = dict(load_causal(str(tiny_model)).state_dict())
    assert [are_equal(one, start) for one in given] == [True, True, False, False]  # reference, policy, 2 steps


def test_weights_that_vllm_does_not_take_end_training_with_its_words(fake, keys, tiny_model, tmp_path):
    fake.behave(weights_refusal="no parameter\nis called so")
    folder = tmp_path / "rl"
    assert call_stage("rl", folder, **keys | {"model_name_or_path": tiny_model, **by_vllm(fake)}) == 1
    outcome = read_json(folder / "outcome.json")
    assert outcome and "vLLM's process failed (ValueError: no parameter is called so); its log: " in outcome["cause"]


@needs_vllm
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_real_vllm_samples_from_the_policy_and_a_resumed_run_is_the_same(
    algorithm, keys, tokenizer, tmp_path, monkeypatch
):
    """Heads of size 32: vLLM's attention does not support 16 on a CPU without AVX-512."""
    model = tiny_llama(tokenizer, tmp_path / "model", hidden_size=64)
    given = keys | KEYS | {"model_name_or_path": model, "algorithm": algorithm, "save_strategy": "steps"}
    given |= {"reward_functions": ["toy_rewards:length"], "save_steps": 1, "save_total_limit": 10, "max_steps": 3}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_here("rl", whole, **given)
    values = metrics_of(whole)
    for step in (1, 2, 3):  # the weights that vLLM has are those of the step: otherwise probabilities would differ
        assert values[step, "sampling/sampling_logp_difference/max"] < 1e-3
        assert values[step, "sampling/importance_sampling_ratio/min"] == pytest.approx(1, abs=1e-2)
    assert values[0, "eval_kl"] < 1e-6 < values[3, "eval_kl"]
    logs = run.TrackingCallback.on_log

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs(self, args, state, control, **kwargs)
        if state.global_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.TrackingCallback, "on_log", stop)
        assert call_stage("rl", cut, **given) == 130
    run_here("rl", cut, **given)
    assert_equal_weights(cut / "model", whole / "model")
    assert metrics_of(cut) == values
