"""How the cost table writes what it shows."""

import pytest

from pipeline.report.cost_table import time_of


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.2, 0.4, "0.2-0.4 s"),
        (6.7, 8.9, "6.7-8.9 s"),
        (50, 119, "50-119 s"),
        (100, 130, "1.7-2.2 min"),
        (1000, 7000, "17-117 min"),
        (7000, 9000, "1.9-2.5 h"),
        (900_000, 1_440_000, "250-400 h"),
        (90, 90, "90 s"),
    ],
)
def test_a_time_is_in_the_unit_in_which_it_is_read_at_a_glance(low, high, text):
    assert time_of(low, high) == text
