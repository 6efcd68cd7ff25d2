"""What a round could still gain, and how much of it the reward model finds: worked out by hand."""

import numpy as np
import pytest

from engine.judging.headroom import HEADROOM_METRICS, diagnosis, headroom

JUDGE = np.array([[0.0, 1.0, 0.5], [0.2, 0.2, 0.2]])  # 3 pairs differ, and 3 do not


def test_headroom_by_hand():
    # By the reward model the best answers are the third (0.5) and the first (0.2). Of the pairs that the judge tells
    # apart it orders (0, 1) and (0, 2) as the judge does, and (1, 2) the other way round.
    metrics = headroom(JUDGE, np.array([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]), seed=0)
    assert metrics["best_by_judge"] == pytest.approx((1.0 + 0.2) / 2)
    assert metrics["best_by_proxy"] == pytest.approx((0.5 + 0.2) / 2)
    assert (metrics["differing_pairs"], metrics["compared_pairs"]) == (0.5, 3)
    assert metrics["proxy_accuracy"] == pytest.approx(2 / 3)


def test_a_tie_of_the_reward_model_counts_half():
    assert headroom(np.array([[0.0, 1.0]]), np.array([[0.3, 0.3]]), seed=0)["proxy_accuracy"] == 0.5


def test_the_interval_is_over_prompts():
    # 100 prompts of one pair each, 75 of them ordered rightly: a standard deviation of sqrt(0.75 * 0.25 / 100) = 0.043.
    judge, proxy = np.tile([0.0, 1.0], (100, 1)), np.tile([0.0, 1.0], (100, 1))
    proxy[:25] = [1.0, 0.0]
    metrics = headroom(judge, proxy, seed=0)
    assert metrics["proxy_accuracy_low"] == pytest.approx(0.75 - 1.96 * 0.0433, abs=0.02)
    assert metrics["proxy_accuracy_high"] == pytest.approx(0.75 + 1.96 * 0.0433, abs=0.02)


def test_without_a_reward_model_or_a_choice_the_metrics_are_null():
    alone = headroom(JUDGE, None, seed=0)
    assert alone["best_by_judge"] == pytest.approx(0.6) and alone["proxy_accuracy"] is alone["best_by_proxy"] is None
    assert headroom(JUDGE[:, :1], None, seed=0) == dict.fromkeys(HEADROOM_METRICS)
    equal = headroom(JUDGE[1:], JUDGE[1:], seed=0)
    assert equal["compared_pairs"] == 0 and equal["proxy_accuracy"] is None


@pytest.mark.parametrize(
    ("judge", "proxy", "said"),
    [
        (
            [[0.0, 1.0]] * 50,
            [[1.0, 0.0], [0.0, 1.0]] * 25,
            "no better than chance on this policy's answers: it orders 50%",
        ),
        ([[0.0, 1.0]] * 50, [[0.0, 1.0]] * 50, "finds 100% of what is there: choosing the best of its answers would"),
        ([[0.0, 1.0]] * 50, [[0.0, 1.0]] * 40 + [[1.0, 0.0]] * 10, "finds 60% of what is there"),
        (
            [[0.0, 1.0]] * 10 + [[1.0, 1.0]] * 90,
            [[0.0, 1.0]] * 100,
            "hardly differ: the judge tells 10% of their pairs",
        ),
        # Right on small differences and wrong on the one that counts: accurate, and yet of no use.
        (
            [[0.0, 0.1, 0.2, 0.3, 9.0]] * 50,
            [[0.1, 0.2, 0.3, 0.4, 0.0]] * 50,
            "choice among this policy's answers is no better than any of them, so its winners teach nothing: choosing",
        ),
        # Five of six pairs: not beyond chance, and no evidence of chance either.
        ([[0.0, 1.0]] * 6, [[0.0, 1.0]] * 4 + [[1.0, 0.0]] * 2, "too few answers to say what the reward model knows"),
        # Right on most pairs, and its favourite is the worst of all.
        (
            [[0.1, 0.2, 0.3, 0.4, 0.0]] * 50,
            [[0.1, 0.2, 0.3, 0.4, 0.5]] * 50,
            "choice among this policy's answers is no better than",
        ),
        ([[0.0, 1.0]] * 50, None, "choosing the best of its answers would raise the judge's mean from 0.500 to 1.000"),
    ],
)
def test_the_diagnosis_names_what_limits(judge: list[list[float]], proxy: list[list[float]] | None, said: str):
    judge_PK = np.array(judge)
    metrics = headroom(judge_PK, np.array(proxy) if proxy else None, seed=0)
    sentence = diagnosis(metrics | {"judge_mean": float(judge_PK.mean())})
    assert sentence is not None and said in sentence


def test_one_answer_to_a_prompt_shows_nothing():
    assert diagnosis(headroom(JUDGE[:, :1], None, seed=0) | {"judge_mean": 0.1}) is None
