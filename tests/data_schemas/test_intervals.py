"""The interval of paired differences."""

import numpy as np
import pytest

from data_schemas.intervals import paired_interval


def test_paired_interval_holds_the_mean_and_narrows_with_agreement():
    assert paired_interval(np.full(20, 0.25), seed=0) == (0.25, 0.25, 0.25)
    differences = np.array([1.0, -1.0] * 50) + 0.1
    mean, low, high = paired_interval(differences, seed=0)
    # The mean of 100 draws of ±1 has standard deviation 0.1: 95 % within ±0.196 of 0.1.
    assert mean == pytest.approx(0.1)
    assert low == pytest.approx(0.1 - 0.196, abs=0.03) and high == pytest.approx(0.1 + 0.196, abs=0.03)
    assert paired_interval(differences, seed=0) == (mean, low, high)
