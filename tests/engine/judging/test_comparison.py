"""Comparing policies: wins, intervals and distinct bigrams, worked out by hand."""

import numpy as np

from engine.judging.comparison import compare_policies, distinct_2, wins


def test_wins_count_answers_with_the_same_k_and_ties_half():
    ours, theirs = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.2]])
    assert wins(ours, theirs).tolist() == [0.5, 0.75]


def test_distinct_2_by_hand():
    # a b, b a, a b | a b: 2 distinct of 4 pairs. Texts of one word have none.
    assert distinct_2(["a b a b", "a b", "c"]) == 0.5
    assert distinct_2(["c"]) == 0.0


def test_compare_with_the_first_and_the_previous_policy():
    first, previous, ours = np.array([[0.0], [0.0]]), np.array([[1.0], [0.0]]), np.array([[0.5], [0.5]])
    metrics = compare_policies(ours, {"first": first, "previous": previous}, seed=0)
    assert metrics["win_rate_vs_first"] == 1.0 and metrics["score_gain_vs_first"] == 0.5
    assert (metrics["score_gain_vs_first_low"], metrics["score_gain_vs_first_high"]) == (0.5, 0.5)
    assert metrics["win_rate_vs_previous"] == 0.5 and metrics["score_gain_vs_previous"] == 0.0
    assert compare_policies(ours, {"first": None}, seed=0) == {"win_rate_vs_first": None, "score_gain_vs_first": None}
