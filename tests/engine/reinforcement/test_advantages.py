"""Advantages and guards, by values worked out by hand."""

import math

import pytest
import torch

from engine.reinforcement.advantages import (
    grpo_advantages,
    length_slope,
    rloo_advantages,
    shaped,
    without_variance,
)

REWARDS = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]])


def test_rloo_subtracts_the_mean_of_the_other_rewards():
    # 1 - (3 + 5) / 2, 3 - (1 + 5) / 2, 5 - (1 + 3) / 2
    assert rloo_advantages(REWARDS, normalize=False).tolist() == [[-3.0, 0.0, 3.0], [0.0, 0.0, 0.0]]


def test_rloo_normalised_has_mean_0_and_deviation_1():
    # The six advantages have mean 0 and variance (9 + 9) / 5 = 3.6.
    deviation = math.sqrt(3.6) + 1e-4
    assert rloo_advantages(REWARDS, normalize=True)[0].tolist() == pytest.approx([-3 / deviation, 0.0, 3 / deviation])


@pytest.mark.parametrize(
    ("scale", "deviation"),
    [
        ("none", 1.0),
        ("group", 2.0 + 1e-4),  # of 1, 3, 5: variance (4 + 4) / 2
        ("batch", math.sqrt(9.5 / 5) + 1e-4),  # of all six, mean 2.5: (2.25 + 0.25 + 6.25 + 3 * 0.25) / 5
    ],
)
def test_grpo_divides_by_the_deviation_of_the_group_or_batch(scale, deviation):
    found = grpo_advantages(REWARDS, scale_rewards=scale)
    assert found[0].tolist() == pytest.approx([-2 / deviation, 0.0, 2 / deviation])
    assert found[1].tolist() == [0.0, 0.0, 0.0]


def test_a_group_with_equal_rewards_has_no_variance():
    assert without_variance(torch.tensor([[0.1, 0.1 + 1e-9], [0.1, 0.2]])).tolist() == [True, False]


def test_a_shaped_reward_is_bounded_and_one_half_where_the_answer_equals_the_references():
    found = shaped(torch.tensor([[2.0, 50.0]]), torch.tensor([[2.0]]))
    assert found.tolist() == [[0.5, 1.0]]


def test_the_length_slope_is_within_groups():
    # Within each group 10 more tokens bring 0.5; that the second group is longer and worse does not count.
    rewards, lengths = torch.tensor([[1.0, 1.5], [-4.0, -3.5]]), torch.tensor([[10, 20], [100, 110]])
    assert length_slope(rewards, lengths) == pytest.approx(5.0)  # 100 tokens
    assert length_slope(rewards, torch.full((2, 2), 7)) == 0.0
