"""Scores of several reward models together, worked out by hand."""

import pytest

from engine.judging.ensemble import combined


def test_each_models_scores_are_standardised_before_the_mean_or_the_worst_is_taken():
    # The second model has another scale and offset and prefers the last answer.
    scores = [[1.0, 2.0, 3.0], [130.0, 110.0, 120.0]]
    root = (2 / 3) ** 0.5  # standard deviation of 1, 2, 3; that of the other is ten times as large
    first, second = [-1 / root, 0.0, 1 / root], [1 / root, -1 / root, 0.0]
    mean = [(one + other) / 2 for one, other in zip(first, second, strict=True)]
    assert combined(scores, "mean") == pytest.approx(mean)
    assert combined(scores, "worst") == pytest.approx([-1 / root, -1 / root, 0.0])


def test_models_that_agree_order_as_each_of_them():
    for vote in ("mean", "worst"):
        scores = combined([[0.1, 0.3, 0.2], [5.0, 9.0, 7.0]], vote)
        assert sorted(range(3), key=lambda place: scores[place]) == [0, 2, 1]


def test_a_model_that_scores_all_alike_has_no_vote():
    assert combined([[2.0, 2.0], [0.0, 1.0]], "mean") == pytest.approx([-0.5, 0.5])
