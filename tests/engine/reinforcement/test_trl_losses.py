"""Advantages, loss and gradients are those of TRL's own trainers on the same answers."""

from typing import Any

import pytest
import torch

from engine.reinforcement.mismatch import mismatch
from engine.reinforcement.trainer import PolicyGradientTrainer
from tests.engine.reinforcement.rl_trainers import LOG_PROB, PROMPTS, K, gradients_of, move, ours, trls
from tests.engine.sampling.fake_vllm import FakeVLLM


def loss_of(trainer: PolicyGradientTrainer) -> torch.Tensor:
    """The loss of the window's one step, as the Trainer sums it over micro-batches; leaves the gradients."""
    trainer.model.zero_grad()
    total = torch.zeros(())
    for batch in trainer._batches.values():
        loss = trainer._compute_loss(trainer.model, batch)
        loss = loss / len(trainer._batches) if trainer.is_rloo else loss  # GRPO's is divided already
        loss.backward()
        total += loss.detach()
    return total


def assert_equal_to_trl(mine: PolicyGradientTrainer, theirs: Any, inputs: dict[str, torch.Tensor]) -> None:
    theirs.model.zero_grad()
    expected = theirs._compute_loss(theirs.model, inputs)
    expected.backward()
    assert float(loss_of(mine)) == pytest.approx(expected.item(), abs=1e-5)
    gradients, others = gradients_of(mine.model), gradients_of(theirs.model)
    assert gradients.keys() == others.keys()
    largest = max(float(gradient.abs().max()) for gradient in others.values())
    assert largest > 1e-3  # there is something to compare
    for name, gradient in others.items():
        assert torch.allclose(gradients[name], gradient, atol=1e-5 * max(1.0, largest)), name


def advantages_of(mine: PolicyGradientTrainer) -> torch.Tensor:
    return torch.cat([batch["advantages"] for batch in mine._batches.values()])


GRPO = [
    ({}, {}),
    ({"loss_type": "grpo", "beta": 0.0}, {}),
    ({"loss_type": "dr_grpo", "scale_rewards": "none"}, {}),
    ({"loss_type": "bnpo", "scale_rewards": "batch"}, {}),
    ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, {"epsilon": 0.01, "epsilon_high": 0.02}),
    ({"temperature": 0.7}, {"mask_truncated_completions": True, "delta": 1.01}),
]


@pytest.mark.parametrize("micro_batch", [K, 2 * K])
@pytest.mark.parametrize(("arguments", "training"), GRPO)
def test_grpo_is_that_of_trl(arguments, training, micro_batch, tiny_model, tmp_path):
    arguments = {"beta": 0.3, **arguments}
    training = {"num_iterations": 2, "max_completion_length": 9, **training}
    mine = ours(tiny_model, tmp_path, arguments, micro_batch=micro_batch, **training)
    order = [PROMPTS[number] for number in mine.schedule.prompts_of(0)]
    theirs, inputs = trls(tiny_model, tmp_path, order, **arguments, **training)
    mine._begin(0)
    assert torch.allclose(advantages_of(mine), inputs["advantages"], atol=1e-5)
    assert_equal_to_trl(mine, theirs, inputs)
    move(mine.model)
    move(theirs.model)  # now the ratios differ from 1, and some are clipped
    assert_equal_to_trl(mine, theirs, inputs)
    logged, expected = mine._metrics["train"], theirs._metrics["train"]
    assert expected["clip_ratio/region_mean"][-1] > 0
    assert logged["reward"] == pytest.approx(expected["reward"])
    assert logged["reward_std"] == pytest.approx(expected["reward_std"])


def test_the_loss_on_answers_of_vllm_is_that_of_trl(tiny_model, tmp_path):
    training = {"num_iterations": 2, "max_completion_length": 9}
    mine = ours(
        tiny_model,
        tmp_path,
        {"beta": 0.3, "engine": "vllm", "vllm": {"python": FakeVLLM(tmp_path / "env").python}},
        **training,
    )
    order = [PROMPTS[number] for number in mine.schedule.prompts_of(0)]
    theirs, inputs = trls(tiny_model, tmp_path, order, beta=0.3, **training)
    mine._begin(0)
    ratios_N1 = torch.cat([batch["importance_sampling_ratio"] for batch in mine._batches.values()])
    # TRL's formula (`_generate_and_score_completions`, sequence_mask with its default clip_max of 3).
    difference_NC = (inputs["old_per_token_logps"] - LOG_PROB) * inputs["completion_mask"]
    expected_N1 = difference_NC.sum(dim=-1, keepdim=True).exp()
    expected_N1 = expected_N1.masked_fill(expected_N1 > 3.0, 0.0)
    assert torch.allclose(ratios_N1, expected_N1, atol=1e-5)
    assert 0.0 in expected_N1 and len(expected_N1.unique()) > 3
    theirs.use_vllm, inputs["importance_sampling_ratio"] = True, expected_N1
    assert_equal_to_trl(mine, theirs, inputs)
    without = {name: tensor for name, tensor in inputs.items() if name != "importance_sampling_ratio"}
    theirs.use_vllm = False
    assert float(theirs._compute_loss(theirs.model, without)) != pytest.approx(float(loss_of(mine)), abs=1e-3)
    metrics = mine._metrics["train"]
    tokens = difference_NC[inputs["completion_mask"].bool()].abs()
    assert metrics["sampling/sampling_logp_difference/mean"] == [pytest.approx(float(tokens.mean()), abs=1e-5)]
    assert metrics["sampling/importance_sampling_ratio/mean"] == [pytest.approx(float(expected_N1.mean()), abs=1e-5)]


def test_log_probs_that_the_sampler_does_not_know_change_nothing():
    policy_NC = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, 0.0, 0.0]])
    mask_NC = torch.tensor([[1, 1, 1], [1, 0, 0]])
    found = mismatch(policy_NC, [[-1.5, float("nan"), float("-inf")], [-1.0]], mask_NC)
    assert torch.allclose(found.ratios_N1, torch.tensor([[0.5], [0.0]]).exp())
    assert found.differences.tolist() == [0.5, 0.0]


@pytest.mark.parametrize("normalize", [False, True])
def test_rloo_is_that_of_trl(normalize, tiny_model, tmp_path):
    training = {"num_iterations": 2, "max_completion_length": 9}
    mine = ours(
        tiny_model,
        tmp_path,
        {"algorithm": "rloo", "beta": 0.3, "normalize_advantages": normalize},
        **training,
    )
    order = [PROMPTS[number] for number in mine.schedule.prompts_of(0)]
    theirs, inputs = trls(
        tiny_model, tmp_path, order, is_rloo=True, beta=0.3, normalize_advantages=normalize, **training
    )
    mine._begin(0)
    assert torch.allclose(advantages_of(mine), inputs["advantages"], atol=1e-5)
    assert_equal_to_trl(mine, theirs, inputs)
    move(mine.model)
    move(theirs.model)
    assert_equal_to_trl(mine, theirs, inputs)


@pytest.mark.parametrize(("micro_batch", "computed"), [(K, [1, K]), (2 * K, [K])])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo"])
def test_a_group_without_variance_is_not_computed_and_changes_nothing(
    loss_type, micro_batch, computed, tiny_model, tmp_path
):
    rewards = [1.0, 0.5, -2.0, 0.25, 2.0, 2.0, 2.0, 2.0]
    arguments = {"beta": 0.0, "loss_type": loss_type}
    mine = ours(
        tiny_model,
        tmp_path,
        arguments,
        rewards=rewards,
        micro_batch=micro_batch,
        max_completion_length=9,
    )
    order = [PROMPTS[number] for number in mine.schedule.prompts_of(0)]
    theirs, inputs = trls(tiny_model, tmp_path, order, rewards=rewards, max_completion_length=9, **arguments)
    mine._begin(0)
    assert sorted(len(batch["advantages"]) for batch in mine._batches.values()) == computed
    assert mine._metrics["train"]["frac_reward_zero_std"] == [0.5]
    assert mine._metrics["train"]["groups_without_variance"] == [1.0]
    assert_equal_to_trl(mine, theirs, inputs)


def test_prompts_are_computed_once_for_their_answers(tiny_model, tmp_path):
    mine = ours(tiny_model, tmp_path, {}, max_completion_length=9)
    mine._begin(0)
    for batch in mine._batches.values():
        prompt, answers = int(batch["prompt_mask"][0].sum()), int(batch["completion_mask"].sum())
        assert batch["shared_ids_1S"].size(1) == prompt - 1 + answers + K  # the last prompt token is in every branch
    assert mine._supported_types == {type(mine.model): True}
