"""Overused phrases: how they are found, and which rows leave until their share is at the cap."""

import math

import numpy as np
import pytest

from engine.curation.content import Finding
from engine.curation.phrases import DEFAULT_PHRASES, RULE, PhraseFinder, balance_phrases, overused_phrases, z_scores

IDS = [f"{number:02d}" for number in range(100)]


def test_phrases_are_found_as_complete_words_in_any_case():
    finder = PhraseFinder([*DEFAULT_PHRASES, "as an AI"])
    assert finder.phrases_in("Oh, i’m  sorry. As an AI, I help.") == ["I'm sorry", "as an AI"]
    assert finder.phrases_in("Kim's sorry, I'm sorryish, has an air, I apologized") == []


def test_the_worst_carriers_leave_until_the_share_of_what_is_left_is_at_the_cap():
    quality = [float(number % 10) for number in range(100)]
    dropped = balance_phrases({"I'm sorry": range(20)}, max_share=0.1, ids=IDS, quality=quality)
    # (20 - 10) / 0.9 = 11.1: 12 leave, and 8 of 88 are left; the ones of quality 0 to 5, each with id 0x and 1x
    assert dropped.keys() == {row for row in range(20) if row % 10 < 6}
    assert dropped[0] == Finding(RULE, 0.2, 0.1, "I'm sorry")


def test_without_quality_the_highest_ids_leave_whatever_the_order_of_the_rows():
    assert balance_phrases({"a b": [7, 3, 5]}, max_share=0.02, ids=IDS).keys() == {5, 7}
    assert balance_phrases({"a b": [7, 3, 5]}, max_share=0.02, ids=IDS[::-1]).keys() == {3, 5}


def test_a_phrase_at_the_cap_stays_and_one_beyond_it_does_not():
    assert balance_phrases({"a b": range(10)}, max_share=0.1, ids=IDS) == {}
    assert len(balance_phrases({"a b": range(11)}, max_share=0.1, ids=IDS)) == 2  # 9 of 98; 10 of 99 are too many
    assert len(balance_phrases({"a b": range(11)}, max_share=0, ids=IDS)) == 11
    assert balance_phrases({"a b": range(100)}, max_share=1, ids=IDS) == {}


def test_several_phrases_are_all_at_the_cap_in_the_end():
    carriers = {"a b": range(40), "c d": range(20, 60), "e f": [99]}
    dropped = balance_phrases(carriers, max_share=0.15, ids=IDS)
    num_left = 100 - len(dropped)
    for rows in carriers.values():
        assert len(set(rows) - dropped.keys()) <= 0.15 * num_left
    assert 99 not in dropped


def test_excluded_rows_are_not_counted():
    assert balance_phrases({"a b": range(11)}, max_share=0.1, ids=IDS, excluded={0, 50}).keys() == {10}


def test_z_scores_are_those_of_the_paper():
    (z,) = z_scores(np.array([30]), np.array([10]), 1000, 1000)
    odds = math.log(34 / (1200 - 34)) - math.log(14 / (1200 - 14))  # prior 0.1 * 40 = 4, of all 0.1 * 2000 = 200
    assert z == pytest.approx(odds / math.sqrt(1 / 34 + 1 / 14))


def test_a_phrase_of_the_policy_is_found_and_not_its_parts_nor_what_people_say_too():
    topics = [f"topic{number} is about thing{number} and place{number}" for number in range(60)]
    policy = [f"It is worth noting that this holds. On the other hand, {topic}" for topic in topics]
    human = [f"On the other hand, {topic}" for topic in topics]
    found = overused_phrases(policy, human)
    assert [phrase.phrase for phrase in found] == ["it is worth noting that this holds"]
    assert found[0].policy_share == 1.0 and found[0].human_share == 0.0 and found[0].z > 3
    assert (
        overused_phrases(human, human) == [] and overused_phrases([], []) == [] and overused_phrases(policy, []) == []
    )
