"""The table of raters: numbers worked out by hand, and a run's judge and reward model."""

import math

import pytest

from pipeline.report.calibration import Pair, accuracy_and_error, length_slope, raters_of
from pipeline.state.summary import read
from tests.pipeline.report.page.run_folders import write_run

LOGIT_3_4 = math.log(3)  # a reward difference of which the sigmoid is 0.75


def test_accuracy_and_calibration_error_worked_out_by_hand():
    # Four pairs at a confidence of 0.75, three of them right: error 0. Two at 0.5, which count half: error 0.
    calibrated = [Pair(0, 1.0, LOGIT_3_4)] * 3 + [Pair(0, 1.0, -LOGIT_3_4)] + [Pair(0, 1.0, 0.0)] * 2
    numbers = accuracy_and_error(calibrated)
    assert numbers["accuracy"] == pytest.approx(4 / 6) and numbers["error"] == pytest.approx(0)
    # All right at 0.75: the error is 0.25. As many all wrong at about 1: in all (0.25 + 1) / 2.
    overconfident = [Pair(0, 1.0, LOGIT_3_4)] * 4 + [Pair(0, -1.0, 40.0)] * 4
    assert accuracy_and_error(overconfident)["error"] == pytest.approx(0.625)


def test_the_length_slope_is_the_log_odds_of_the_longer_answer():
    # Equal differences: tanh(1) = 0.762; the longer wins 3 of 4, so b is log(3) / 0.762, less a little by the prior.
    decisions = [(10, 1), (10, 1), (-10, -1), (10, -1)] * 250
    assert length_slope(decisions) == pytest.approx(math.log(3) / math.tanh(1), rel=0.01)
    assert length_slope([(10, 1), (10, -1)]) == pytest.approx(0)
    assert length_slope([(0, 1)]) is None and length_slope([]) is None


def test_a_run_shows_its_judge_and_its_reward_model(tmp_path):
    folder = write_run(tmp_path / "toy", answers=2)
    raters = raters_of(read(folder), folder)
    assert [(one.who, one.step) for one in raters] == [
        ("None", "round-0.evaluate_policy"),
        ("None", "round-1.evaluate_policy"),
        ("reward model", "round-1.evaluate_policy"),
    ]
    judge, reward_model = raters[1].numbers, raters[2].numbers
    assert (judge["pairs"], judge["longer"], judge["ties"]) == (3, 1.0, 0.0)
    assert (reward_model["accuracy"], reward_model["longer"]) == (0.0, 0.0)  # it likes the shorter, worse answer
    assert reward_model["error"] == pytest.approx(1 / (1 + math.exp(-1)))
