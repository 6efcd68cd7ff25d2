"""The gate's decision from an evaluation's numbers."""

import pytest

from engine.judging.gate import GateArguments, decide

NUMBERS = {
    "score_gain_vs_best": 0.1,
    "win_rate_vs_best": 0.55,
    "length_growth": 1.2,
    "unfinished_share": 0.05,
    "kl_to_first": 3.0,
    "proxy_gain_vs_best": 0.4,
}


@pytest.mark.parametrize(
    ("keys", "numbers", "decision"),
    [
        ({}, {}, ("accept", "gain 0.100 > 0")),
        ({}, {"score_gain_vs_best": 0.0}, ("keep", "gain 0.000 <= 0")),  # an equal policy does not replace the best
        ({}, {"score_gain_vs_best": -0.2}, ("keep", "gain -0.200 <= 0")),
        ({}, {"score_gain_vs_best": None}, ("accept", "the first policy")),
        ({"gate_min_gain": 0.2}, {}, ("keep", "gain 0.100 <= 0.2")),
        ({"gate_min_gain": None}, {"score_gain_vs_best": -9.0}, ("accept", "no rule is set")),
        ({"gate_min_gain": None, "gate_min_win_rate": 0.55}, {}, ("accept", "win rate 0.550 >= 0.55")),
        ({"gate_min_win_rate": 0.6}, {}, ("keep", "win rate 0.550 < 0.6")),
        ({"gate_max_length_growth": 1.2}, {}, ("accept", "gain 0.100 > 0")),
        ({"gate_max_length_growth": 1.1}, {}, ("keep", "length x1.200 > 1.1")),
        ({"gate_max_unfinished": 0.01}, {}, ("keep", "unfinished 0.050 > 0.01")),
        ({"gate_max_kl": 2.5, "gate_stop": ["max_kl"]}, {}, ("stop", "KL 3.000 > 2.5")),
        (
            {"gate_max_kl": 2.5, "gate_max_unfinished": 0.01, "gate_stop": ["max_kl"]},
            {},
            ("stop", "unfinished 0.050 > 0.01; KL 3.000 > 2.5"),
        ),
        (
            {"gate_max_kl": 9.0, "gate_max_unfinished": 0.01, "gate_stop": ["max_kl"]},
            {},
            ("keep", "unfinished 0.050 > 0.01"),
        ),
        (
            {"gate_max_tag_fall": 0.1},
            {"tag/math/score_gain_vs_best": 0.0, "tag/math/score_gain_vs_best_low": -0.1},
            ("accept", "gain 0.100 > 0"),
        ),
        (  # a tag that may have lost more than is allowed, and one that has not
            {"gate_max_tag_fall": 0.1, "gate_stop": ["max_tag_fall"]},
            {
                "tag/math/score_gain_vs_best": 0.05,
                "tag/math/score_gain_vs_best_low": -0.11,
                "tag/code/score_gain_vs_best": 0.05,
                "tag/code/score_gain_vs_best_low": 0.01,
            },
            ("stop", "gain on math 0.050, at least -0.110 < -0.1"),
        ),
        (
            {"gate_min_gain": None, "gate_overoptimised": True},
            {"score_gain_vs_best": -0.1},
            ("keep", "reward +0.400, gain -0.100"),
        ),
        (
            {"gate_min_gain": None, "gate_overoptimised": True},
            {"score_gain_vs_best": -0.1, "proxy_gain_vs_best": -0.4},
            ("accept", "reward -0.400, gain -0.100"),
        ),
    ],
)
def test_the_gate_decides_by_its_rules(keys, numbers, decision):
    decided = decide(NUMBERS | numbers, GateArguments(**keys))
    assert (decided.action, decided.reason) == decision
