"""Which values of a user's judge or annotator are a score."""

from decimal import Decimal

import numpy as np
import pytest
import torch

from engine.judging.scoring import finite_number


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (0.5, 0.5),
        (3, 3.0),
        (np.float32(0.5), 0.5),
        (np.int64(2), 2.0),
        (np.array([0.25]), 0.25),
        (torch.tensor(1.5), 1.5),
        (torch.tensor([1.5], dtype=torch.bfloat16), 1.5),
        (Decimal("0.5"), 0.5),
    ],
)
def test_whatever_has_one_value_as_a_float_is_a_score(value, score):
    found = finite_number(value)
    assert found == score and type(found) is float


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.bool_(True),
        torch.tensor(True),
        "0.5",
        b"1",
        np.str_("1"),
        np.array("1"),
        None,
        float("nan"),
        np.float32("inf"),
        10**400,
        torch.tensor([1.0, 2.0]),
        np.array([]),
        np.complex64(1),
        [1.0],
    ],
)
def test_booleans_text_and_what_is_not_finite_are_no_score(value):
    assert finite_number(value) is None
