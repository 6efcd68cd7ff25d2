"""Agreement: values that were worked out by hand, or are in the literature."""

import pytest

from data_schemas.people import Label
from engine.judging.people.agreement import agreement_metrics, cohen_kappa, ordinal_alpha

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), example D: four observers, 12 units; . is no value.
OBSERVERS = ("12332141 2...", "123322412 5.3", ".33323422 51.", "123324412 51.")


def test_kappa_of_a_table_worked_out_by_hand():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = 35/50, p_e = (25 * 30 + 25 * 20) / 50^2 = 0.5, so 0.2 / 0.5.
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohen_kappa(pairs) == pytest.approx(0.4)


def test_kappa_is_none_where_chance_alone_agrees_always():
    assert cohen_kappa([(1, 1), (1, 1)]) is None and cohen_kappa([]) is None


def test_ordinal_alpha_of_the_published_example():
    columns = zip(*(row.replace(" ", "") for row in OBSERVERS), strict=True)
    units = [[int(value) for value in column if value != "."] for column in columns]
    assert len(units) == 12
    assert ordinal_alpha(units) == pytest.approx(0.815, abs=0.0005)


def test_ordinal_alpha_is_1_for_equal_values_and_none_where_no_value_differs():
    assert ordinal_alpha([[4, 4], [-2, -2], [1]]) == 1
    assert ordinal_alpha([[4, 4], [4, 4]]) is None and ordinal_alpha([[1], [2]]) is None


def labelled(verdict, strength=None):
    return Label(row="r", first="one", verdict=verdict, strength=strength, seconds=1)


def test_kappa_compares_winners_alpha_levels_and_skipped_rows_have_neither():
    strong, weak = labelled("one", "significantly_better"), labelled("one", "marginally_better")
    other, skipped = labelled("other", "better"), labelled("skipped")
    rows = [{"ana": strong, "ben": weak}, {"ana": other, "ben": other}, {"ana": strong, "ben": skipped}]
    metrics = agreement_metrics(rows)
    assert metrics["people_kappa"] == 1
    # Values 4, 1, -3, -3 with counts 1, 1, 2: the middles are 1, 2.5, 3.5; D_o = 2 / 4, D_e as below.
    distances = 2 * (1 * 1 * 1**2 + 1 * 2 * 2.5**2 + 1 * 2 * 1.5**2)
    expected = distances / (4 * 3)
    assert metrics["people_alpha"] == pytest.approx(1 - (2 * 1**2 / 4) / expected)
