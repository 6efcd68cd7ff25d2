"""Win rates that people correct: a value worked out by hand, and simulated judges whose bias is known."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from engine.judging.people.correction import corrected_rate, draw_labelled

TAGS = {
    "chat": (0.5, 0.7),
    "math": (0.3, 0.3),
    "code": (0.2, 0.55),
}  # share of the prompts, rate at which people prefer
TRUTH = sum(share * rate for share, rate in TAGS.values())  # 0.55
Judge = Callable[[np.random.Generator, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def prefers_first(random, human_P, longer_P, is_first_P):
    """Takes the answer that is shown first with probability 0.7, else the better one; it sees one order."""
    return np.where(random.random(len(human_P)) < 0.7, is_first_P, human_P).astype(float)


def prefers_longer(random, human_P, longer_P, is_first_P):
    return np.where(random.random(len(human_P)) < 0.6, longer_P, human_P).astype(float)


def coin(random, human_P, longer_P, is_first_P):
    return (random.random(len(human_P)) < 0.5).astype(float)


def without_verdicts(random, human_P, longer_P, is_first_P):
    """Right in its verdicts, which it does not give where the policy loses."""
    return np.where((human_P == 0) & (random.random(len(human_P)) < 0.5), np.nan, human_P)


def simulated(seed: int, judge: Judge, num_prompts: int, num_labels: int):
    """The judge's points of all prompts, the labelled ones, their labels by people, and all tags."""
    random = np.random.default_rng(seed)
    tags_P = random.choice(list(TAGS), num_prompts, p=[share for share, _ in TAGS.values()])
    human_P = (random.random(num_prompts) < np.array([TAGS[tag][1] for tag in tags_P])).astype(float)
    longer_P, is_first_P = random.random(num_prompts) < 0.8, random.random(num_prompts) < 0.9
    judge_P = judge(random, human_P, longer_P, is_first_P)
    labelled = draw_labelled(list(tags_P), num_labels, seed=seed)
    return judge_P, labelled, human_P[labelled], list(tags_P)


@pytest.mark.parametrize("judge", [prefers_first, prefers_longer, coin, without_verdicts])
def test_the_interval_covers_the_truth_in_93_of_100_simulated_sets(judge):
    covered, raw_covered, widths, of_people = 0, 0, [], []
    for seed in range(100):
        judge_P, labelled, human_L, tags = simulated(seed, judge, 800, 200)
        rate = corrected_rate(judge_P, labelled, human_L, tags)
        assert rate is not None and rate.low <= rate.mean <= rate.high
        covered += rate.low <= TRUTH <= rate.high
        raw = np.nanmean(judge_P)
        raw_covered += abs(raw - TRUTH) <= 1.96 * np.sqrt(raw * (1 - raw) / 800)
        widths.append(rate.high - rate.low)
        of_people.append(2 * 1.96 * human_L.std(ddof=1) / np.sqrt(len(human_L)))
    print(f"{judge.__name__}: corrected {covered}, raw {raw_covered}, width {np.mean(widths) / np.mean(of_people):.2f}")
    assert covered >= 93
    assert raw_covered < 50  # the judge's own rate is far off
    assert np.mean(widths) < 1.02 * np.mean(of_people)  # never worse than people alone


def test_an_estimate_worked_out_by_hand():
    # The judge gives 10 of 20 points, and people 6 of 10 where it gave 5: each h - f is 0 or, once, 1.
    judge_P = np.array([1.0, 0.0] * 10)
    human_L = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    rate = corrected_rate(judge_P, list(range(10)), human_L, [""] * 20)
    # lambda = cov / var = (5 - 10 * 0.5 * 0.6) / (5 - 10 * 0.25) = 0.8; 0.8 * 0.5 + (0.6 - 0.8 * 0.5) = 0.6
    assert rate is not None and rate.mean == pytest.approx(0.6)
    rest_L = human_L - 0.8 * judge_P[:10]
    variance = (1 / 10 - 1 / 20) * rest_L.var(ddof=1) + human_L.var(ddof=1) / 20
    assert rate.high - rate.mean == pytest.approx(
        np.sqrt(variance) * (1.959964 + (1.959964**3 + 1.959964) / 36), rel=1e-6
    )


def test_where_all_prompts_are_labelled_the_judge_does_not_count():
    random = np.random.default_rng(1)
    human_P = (random.random(100) < 0.6).astype(float)
    rates = [corrected_rate(judge_P, list(range(100)), human_P, ["a", "b"] * 50) for judge_P in (human_P, np.ones(100))]
    assert rates[0] is not None and rates[1] is not None
    assert rates[0].mean == pytest.approx(rates[1].mean) == pytest.approx(human_P.mean())
    assert rates[0].high == pytest.approx(rates[1].high)


def test_strata_make_the_interval_narrower_where_the_bias_differs_between_them():
    random = np.random.default_rng(2)
    tags = ["chat", "math"] * 300
    human_P = (random.random(600) < 0.5).astype(float)
    judge_P = np.where(np.array(tags) == "chat", human_P, 1.0)  # right on chat, always 1 on math
    labelled = draw_labelled(tags, 200, seed=1)
    by_tag = corrected_rate(judge_P, labelled, human_P[labelled], tags)
    together = corrected_rate(judge_P, labelled, human_P[labelled], [""] * 600)
    assert by_tag is not None and together is not None
    assert by_tag.high - by_tag.low < together.high - together.low


def test_each_stratum_is_labelled_in_proportion_and_rare_ones_are_taken_together():
    tags = ["chat"] * 60 + ["math"] * 30 + ["rare"] * 6 + ["rarer"] * 4
    labelled = draw_labelled(tags, 40, seed=3)
    counts = Counter(tags[place] for place in labelled)
    assert (
        len(labelled) == 40 and (counts["chat"], counts["math"]) == (24, 12) and counts["rare"] + counts["rarer"] == 4
    )
    assert draw_labelled(tags, 40, seed=3) == labelled != draw_labelled(tags, 40, seed=4)
    assert draw_labelled(tags, 1000, seed=3) == list(range(100))
    human_L = np.array([place % 2 for place in range(40)], dtype=float)
    assert corrected_rate(np.zeros(100), labelled, human_L, tags) is not None


def test_one_label_says_nothing():
    assert corrected_rate(np.zeros(5), [2], np.array([1.0]), [""] * 5) is None
