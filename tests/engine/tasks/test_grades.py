"""Scores of tasks and their changes: intervals by hand, by their definition, and by simulation."""

import numpy as np
import pytest

from engine.tasks.grades import Points, change_of, score_of, tango, wilson


def shares(*values: float) -> list[Points]:
    return [Points(value) for value in values]


def test_a_share_has_wilsons_interval():
    # Of 10 of 20: centre 0.5, half width z/2 * sqrt((1/4)/20 + z^2/1600) / (1/2 + z^2/40), worked out by hand.
    assert wilson(10, 20) == pytest.approx((0.5, 0.2993, 0.7007), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.0, 0.1611), abs=1e-4)  # z^2 / (n + z^2)
    assert score_of(shares(*[1] * 10, *[0] * 10), seed=0) == wilson(10, 20)


def test_a_change_without_a_difference_still_has_a_width():
    mean, low, high = change_of(shares(*[1] * 30, *[0] * 20), shares(*[1] * 30, *[0] * 20), seed=0)
    assert (mean, low, high) == pytest.approx((0.0, -0.07134, 0.07134), abs=1e-4)  # z^2 / (n + z^2)


def test_a_paired_change_has_tangos_interval():
    """Both ends solve his equation, and a loss mirrors a gain."""
    mean, low, high = tango(9, 1, 50)
    assert mean == pytest.approx(0.16)
    for difference, level in ((low, 1.959964), (high, -1.959964)):
        a, b = 100, -10 + (100 - 8) * difference
        share = (np.sqrt(b * b + 4 * a * difference * (1 - difference)) - b) / (2 * a)
        statistic = (8 - 50 * difference) / np.sqrt(50 * (2 * share + difference * (1 - difference)))
        assert statistic == pytest.approx(level, abs=1e-4)
    gained, lost = tango(1, 9, 50), tango(9, 1, 50)
    assert gained.low == pytest.approx(-lost.high) and gained.high == pytest.approx(-lost.low)


@pytest.mark.parametrize("fall", [0.0, 0.04])
def test_the_interval_of_a_change_covers_the_true_one(fall):
    """Of 400 simulated pairs of policies at least 93 %: 95 % less twice the standard deviation of that share."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        before_Q = random.random(150) < 0.4
        lost_Q = before_Q & (random.random(150) < 0.1 + fall / 0.4)
        gained_Q = ~before_Q & (random.random(150) < 0.04 / 0.6)
        now_Q = (before_Q & ~lost_Q) | gained_Q
        _, low, high = change_of(shares(*now_Q.astype(float)), shares(*before_Q.astype(float)), seed=0)
        covered += low <= -fall <= high
    assert covered >= 372


def test_instructions_of_one_prompt_count_together():
    """Two prompts with 1 of 1 and 0 of 3 instructions followed: 1 of 4, and the bootstrap draws prompts."""
    mean, low, high = score_of([Points(1, 1), Points(0, 3)], seed=0)
    assert (mean, low, high) == (0.25, 0.0, 1.0)
    change = change_of([Points(1, 1), Points(0, 3)], [Points(1, 1), Points(3, 3)], seed=0)
    assert change == (-0.75, -1.0, 0.0)
