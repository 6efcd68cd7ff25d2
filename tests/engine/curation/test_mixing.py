"""Mixing: shares, epochs and budgets by hand, and a choice of rows that does not depend on their order."""

import math
import random

import numpy as np
import pytest

from engine.curation.mixing import copies_of, divide, mix_rows

# 80 rows of 10 tokens and 20 of 10: 800 and 200 tokens
SOURCES = ["chat"] * 80 + ["code"] * 20
IDS = [f"{number:03d}" for number in range(100)]
TOKENS = [10] * 100


def size_after(**options) -> dict[str, int]:
    return {line.source: line.size_after for line in mix_rows(SOURCES, TOKENS, ids=IDS, **options).table}


def test_without_options_every_row_is_there_once():
    mix = mix_rows(SOURCES, TOKENS, ids=IDS)
    assert mix.copies.tolist() == [1] * 100
    (chat, code) = mix.table
    assert (chat.rows_before, chat.size_before, chat.share_before, chat.epochs) == (80, 800, 0.8, 1.0)
    assert (code.rows_after, code.size_after, code.share_after) == (20, 200, 0.2)


def test_a_temperature_moves_the_shares_towards_equal_ones():
    # sqrt(800) : sqrt(200) = 2 : 1
    assert size_after(temperature=2, token_budget=300) == {"chat": 200, "code": 100}
    assert size_after(temperature=math.inf, token_budget=300) == {"chat": 150, "code": 150}


def test_weights_multiply_and_are_the_shares_at_infinite_temperature():
    assert size_after(weights={"code": 4}, token_budget=200) == {"chat": 100, "code": 100}
    shares = {"chat": 0.25, "code": 0.75}
    assert size_after(weights=shares, temperature=math.inf, token_budget=200) == {"chat": 50, "code": 150}
    assert size_after(weights={"code": 0}) == {"chat": 800, "code": 0}


def test_without_a_budget_the_mix_is_the_largest_with_these_shares():
    # 1/10 : 1 of 800 and 200 tokens: all code, and 80 tokens of chat
    assert size_after(weights={"chat": 0.1}) == {"chat": 80, "code": 200}
    assert size_after(temperature=math.inf) == {"chat": 200, "code": 200}
    # 800 : 400 tokens, as many as there are at most
    assert size_after(weights={"code": 2}, max_epochs=2) == {"chat": 670, "code": 330}
    assert size_after(weights={"code": 2}) == {"chat": 400, "code": 200}


@pytest.mark.parametrize("temperature", [0.01, 1e-30])
def test_the_lowest_temperatures_leave_the_largest_source(temperature):
    assert size_after(temperature=temperature, token_budget=300) == {"chat": 300, "code": 0}


def test_what_a_source_lacks_at_its_most_epochs_the_others_give():
    assert size_after(temperature=math.inf, token_budget=600) == {"chat": 400, "code": 200}
    assert size_after(temperature=math.inf, token_budget=600, max_epochs=2) == {"chat": 300, "code": 300}
    assert size_after(temperature=math.inf, token_budget=600, max_epochs={"code": 0.5}) == {"chat": 500, "code": 100}
    assert size_after(token_budget=5000) == {"chat": 800, "code": 200}  # no more than there is


def test_more_than_one_epoch_repeats_every_row_before_any_a_third_time():
    copies = mix_rows(SOURCES, TOKENS, ids=IDS, weights={"chat": 0}, token_budget=450, max_epochs=3).copies
    assert sorted(copies[80:].tolist()) == [2] * 15 + [3] * 5 and not copies[:80].any()


def test_the_choice_depends_on_id_and_seed_and_not_on_the_order():
    order = random.Random(0).sample(range(100), 100)
    options = {"token_budget": 300}
    first = mix_rows(SOURCES, TOKENS, ids=IDS, **options).copies
    shuffled = mix_rows([SOURCES[row] for row in order], TOKENS, ids=[IDS[row] for row in order], **options).copies
    assert [first[row] for row in order] == shuffled.tolist() and first.sum() == 30
    assert mix_rows(SOURCES, TOKENS, ids=IDS, seed=1, **options).copies.tolist() != first.tolist()
    assert first[:30].sum() < 30  # by hash, and not the first ones


def test_rows_are_taken_as_near_to_the_target_as_their_lengths_allow():
    assert copies_of(np.array([4, 4, 4]), 5).tolist() == [1, 0, 0]
    assert copies_of(np.array([4, 4, 4]), 6).tolist() == [1, 1, 0]
    assert copies_of(np.array([4, 4, 4]), 29).tolist() == [3, 2, 2]
    assert copies_of(np.array([0, 0]), 0).tolist() == [0, 0]


def test_a_budget_is_divided_by_shares_up_to_the_most_of_each():
    assert divide(12.0, np.array([1.0, 1.0, 2.0]), np.array([9.0, 1.0, 9.0])) == pytest.approx([11 / 3, 1, 22 / 3])
    assert divide(12.0, np.array([1.0, 0.0]), np.array([5.0, 5.0])).tolist() == [5.0, 0.0]


def test_no_rows_make_an_empty_mix():
    assert mix_rows([], [], ids=[]).table == []
