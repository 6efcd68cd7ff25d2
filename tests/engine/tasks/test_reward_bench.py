"""RewardBench's scores, worked out by hand."""

import math
from collections.abc import Sequence

import pytest

from data_schemas.reward_bench import BenchmarkRow
from data_schemas.rows import Message
from engine.tasks.reward_bench import SECTIONS, Part, credit_of, score_benchmark, ties

PROMPT = [Message(role="user", content="Hi?")]


def row(subset: str, chosen: list[float], rejected: list[float], row_id: str = "") -> BenchmarkRow:
    return BenchmarkRow(
        subset=subset,
        id=row_id,
        prompt=PROMPT,
        chosen=["good"] * len(chosen),
        rejected=["bad"] * len(rejected),
        chosen_scores=chosen,
        rejected_scores=rejected,
    )


def won(subset: str, won: int, lost: int) -> list[BenchmarkRow]:
    return [row(subset, [1.0], [0.0])] * won + [row(subset, [0.0], [1.0])] * lost


def scores(parts: Sequence[Part]) -> dict[str, float]:
    return {part.name: part.score.mean for part in parts}


def test_a_row_is_won_by_the_highest_score_and_equal_ones_share_it_in_the_second_benchmark():
    shared = row("Math", [2.0], [2.0, 1.0, 2.0])
    assert credit_of(shared, shares_ties=True) == pytest.approx(1 / 3)
    assert credit_of(shared, shares_ties=False) == 0
    assert [credit_of(row("Math", [2.0], [0.0, other]), shares_ties=True) for other in (1.0, 3.0)] == [1, 0]


def test_a_section_weighs_its_subsets_by_rows_and_mathematics_as_much_as_code():
    result = score_benchmark(1, [*won("alpacaeval-easy", 3, 1), *won("mt-bench-med", 0, 2)], seed=0)
    assert scores(result.sections) == {"Chat": pytest.approx(3 / 6)}
    result = score_benchmark(1, [*won("math-prm", 1, 1), *won("hep-cpp", 1, 0)], seed=0)
    weight = 2 * 984 / 447
    assert scores(result.sections) == {"Reasoning": pytest.approx((0.5 * weight + 1) / (weight + 1))}
    # With the published numbers of rows, each language has 164 and mathematics counts 984, as much as the six of them.
    code = [one for language in SECTIONS["Reasoning"][1:] for one in won(language, 164, 0)]
    result = score_benchmark(1, [*won("math-prm", 0, 447), *code], seed=0)
    assert scores(result.sections) == {"Reasoning": pytest.approx(0.5)}


def test_the_prior_sets_are_a_mean_of_subsets_that_counts_half():
    rows = [*won("alpacaeval-easy", 1, 0), *won("shp", 1, 0), *won("summarize", 0, 9), *won("anthropic_harmless", 0, 5)]
    result = score_benchmark(1, rows, seed=0)
    assert scores(result.sections) == {"Chat": 1.0, "Prior Sets": 0.5}
    assert result.final.score.mean == pytest.approx((1 + 0.5 * 0.5) / 1.5)
    assert "anthropic_harmless" in scores(result.subsets)  # listed, and in no section


def test_subsets_of_other_names_count_only_among_themselves():
    assert score_benchmark(1, [*won("mine", 1, 0), *won("yours", 1, 1)], seed=0).final.score.mean == 0.75
    assert score_benchmark(2, [*won("mine", 0, 1), *won("Math", 1, 0)], seed=0).final.score.mean == 1.0


def test_the_intervals_of_parts_are_combined_and_never_shrink_to_a_point():
    result = score_benchmark(2, [*won("Math", 1, 0), *won("Focus", 1, 0)], seed=0)
    low = 1 / (1 + 1.959964**2)  # Wilson's of one row of one
    assert [part.score.low for part in result.subsets] == [pytest.approx(low)] * 2
    assert result.final.score.low == pytest.approx(1 - (1 - low) / math.sqrt(2)) and result.final.score.high == 1
    # A section has the interval of all of its rows; where a subset is up-weighted, they are fewer effectively.
    even = score_benchmark(1, [*won("hep-cpp", 3, 1), *won("hep-go", 3, 1)], seed=0).sections[0].score
    assert (even.low, even.high) == (pytest.approx(0.4093, abs=1e-4), pytest.approx(0.9285, abs=1e-4))  # 6 of 8
    uneven = score_benchmark(1, [*won("math-prm", 3, 1), *won("hep-go", 3, 1)], seed=0).sections[0].score
    assert uneven.mean == even.mean and uneven.low < even.low


TIES = [
    row("Ties", [3.0, 2.0], [0.0, 1.0], "tied:1"),  # margin 1, spread 1
    row("Ties", [5.0], [4.0], "ref:1"),  # margin 1
    row("Ties", [4.0, 3.5], [1.0], "tied:2"),  # margin 2.5, spread 0.5
    row("Ties", [0.0], [1.0], "ref:2"),  # margin -1
]


def test_the_score_of_ties_is_the_sum_of_its_five_terms():
    # Both tied rows are right, one of two references, one margin of tied rows is above its spread, no smaller one is.
    expected = 0.3 * 1 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * (math.tanh(0) + math.tanh(-1 / 0.5 - 1)) / 2
    score = ties(TIES, seed=0)
    assert score.mean == pytest.approx(expected)
    assert score.low < score.mean < score.high
    result = score_benchmark(2, [*TIES, *won("Math", 1, 0)], seed=0)
    assert scores(result.subsets) == {"Ties": pytest.approx(expected), "Math": 1.0}
    assert result.final.score.mean == pytest.approx((expected + 1) / 2)


def test_equal_right_answers_have_the_limit_of_the_last_term():
    equal = [row("ties", [2.0, 2.0], [1.0], "tied:1"), row("ties", [2.0], [0.0], "ref:1")]
    assert ties(equal, seed=0).mean == pytest.approx(1.01)
    assert score_benchmark(2, equal, seed=0).subsets[0].name == "Ties"


def test_the_table_has_the_final_score_sections_and_subsets():
    lines = score_benchmark(1, won("donotanswer", 3, 1), seed=0).table()
    assert lines[2:] == [
        "| RewardBench 1 | 4 | 0.750 | 0.301 to 0.954 |",
        "| section Safety | 4 | 0.750 | 0.301 to 0.954 |",
        "| donotanswer | 4 | 0.750 | 0.301 to 0.954 |",
    ]
