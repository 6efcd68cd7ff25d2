"""Length-controlled win rates: simulated verdicts of a judge with a known preference for length."""

import numpy as np
import pytest

from engine.judging.length_control import length_controlled

THETA, PHI, PSI = 0.4, 1.2, 0.8  # quality, preference for length, effect of the prompt's difficulty
MANY = np.random.default_rng(0).normal(size=10**6)
TRUTH = float(np.mean(1 / (1 + np.exp(-(THETA + PSI * MANY)))))  # the win rate at equal length, 0.587


def simulated(seed: int, num_prompts: int, num_answers: int) -> tuple[np.ndarray, ...]:
    """Points, lengths of both policies [P, K], and difficulties [P]: the policy writes longer answers."""
    random = np.random.default_rng(seed)
    easy_P = random.normal(size=num_prompts)
    other_PK = random.lognormal(6, 0.5, (num_prompts, num_answers))
    own_PK = other_PK * random.lognormal(0.3 + 0.1 * easy_P[:, None], 0.4, (num_prompts, num_answers))
    length_PK = np.tanh((own_PK - other_PK) / (own_PK - other_PK).std())
    chance_PK = 1 / (1 + np.exp(-(THETA + PHI * length_PK + PSI * easy_P[:, None])))
    return (random.random(own_PK.shape) < chance_PK).astype(float), own_PK, other_PK, easy_P


@pytest.mark.parametrize(("num_prompts", "num_answers"), [(200, 1), (100, 4)])
def test_the_interval_covers_the_truth_in_93_of_100_simulated_sets(num_prompts, num_answers):
    covered, raw = 0, []
    for seed in range(100):
        points_PK, own_PK, other_PK, easy_P = simulated(seed, num_prompts, num_answers)
        rate = length_controlled(points_PK, own_PK, other_PK, seed=seed, difficulty_P=easy_P)
        assert rate is not None and rate.low <= rate.mean <= rate.high
        covered += rate.low <= TRUTH <= rate.high
        raw.append(points_PK.mean())
    assert covered >= 93
    assert np.mean(raw) > TRUTH + 0.05  # which the raw rate overstates


def test_without_a_preference_for_length_the_controlled_rate_is_the_raw_one():
    random = np.random.default_rng(1)
    own_PK, other_PK = random.lognormal(6, 0.5, (500, 1)), random.lognormal(6, 0.5, (500, 1))
    points_PK = (random.random((500, 1)) < 0.7).astype(float)
    rate = length_controlled(points_PK, own_PK, other_PK, seed=0)
    assert rate is not None and rate.mean == pytest.approx(points_PK.mean(), abs=0.005)


def test_a_judge_of_length_alone_gives_half_to_either_policy():
    random = np.random.default_rng(2)
    other_PK = random.lognormal(6, 0.5, (300, 1))
    own_PK = other_PK * random.lognormal(0.3, 0.4, (300, 1))
    points_PK = (own_PK > other_PK).astype(float)
    rate = length_controlled(points_PK, own_PK, other_PK, seed=0)
    assert rate is not None and points_PK.mean() > 0.7 and rate.low < 0.5 < rate.high


@pytest.mark.parametrize(("points", "expected"), [(1.0, (0.9, 1.0)), (0.0, (0.0, 0.1)), (0.5, (0.499, 0.501))])
def test_a_policy_that_always_wins_loses_or_ties_has_a_finite_rate(points, expected):
    lengths_PK = np.arange(40.0).reshape(20, 2)
    rate = length_controlled(np.full((20, 2), points), lengths_PK, lengths_PK[::-1], seed=0)
    assert rate is not None
    assert all(expected[0] <= number <= expected[1] for number in (rate.low, rate.mean, rate.high))


def test_equal_lengths_and_missing_verdicts_are_no_obstacle():
    points_PK = np.array([[1.0], [1.0], [0.0], [np.nan]] * 10)
    rate = length_controlled(points_PK, np.full((40, 1), 7), np.full((40, 1), 7), seed=0)
    assert rate is not None and rate.mean == pytest.approx(2 / 3, abs=0.01)
    assert length_controlled(np.full((3, 1), np.nan), np.ones((3, 1)), np.ones((3, 1)), seed=0) is None
