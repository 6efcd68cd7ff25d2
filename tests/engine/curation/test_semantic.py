"""Semantic duplicates: greedy by quality within clusters, in any order of the rows."""

import numpy as np
import pytest

from engine.curation.semantic import clusters, find_semantic_duplicates

NAN = float("nan")


def at(degrees: float) -> list[float]:
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


def found(vectors, threshold, *, quality=None, difficulty=None, ids=None):
    names = ids or [f"{place:02}" for place in range(len(vectors))]
    unrated = [NAN] * len(vectors)
    return find_semantic_duplicates(
        np.array(vectors, dtype=np.float32),
        threshold,
        ids=names,
        quality=quality or unrated,
        difficulty=difficulty or unrated,
    )


def test_of_a_chain_the_best_row_stays_and_those_within_the_threshold_go():
    """0, 20 and 40 degrees: neighbours have cosine 0.94, the outer two 0.77. One cluster, since sqrt(3) is below 2."""
    chain = [at(0), at(20), at(40)]
    dropped, nearest = found(chain, 0.9, quality=[0.1, 0.9, 0.5])
    assert dropped == {0: (1, pytest.approx(0.9397, abs=1e-4)), 2: (1, pytest.approx(0.9397, abs=1e-4))}
    assert nearest.sides[1] == []
    dropped, nearest = found(chain, 0.9, quality=[0.9, 0.1, 0.5])
    assert set(dropped) == {1}  # 40 degrees is far from the kept row
    ((cosine, row, kept),) = nearest.sides[1]
    assert (round(cosine, 3), row, kept) == (0.766, 2, 0)


def test_difficulty_weighs_quality_and_a_row_without_reward_comes_last():
    same = [at(0), at(1), at(2)]
    dropped, _ = found(same, 0.9, quality=[-1.0, -2.0, NAN], difficulty=[0.1, 0.9, 0.9])
    assert set(dropped) == {0, 2}  # quality ranks 1 and 1/2: 1 x 0.1 < 1/2 x 0.9


def test_the_order_of_the_rows_does_not_matter():
    source = np.random.default_rng(3)
    vectors = np.repeat(source.normal(size=(40, 16)), 3, axis=0) + 0.2 * source.normal(size=(120, 16))
    ids = [f"{place:03}" for place in range(120)]
    shuffled = source.permutation(120)
    one = {ids[row] for row in found(vectors, 0.9, ids=ids)[0]}
    names = [ids[place] for place in shuffled]
    other = {names[row] for row in found(vectors[shuffled], 0.9, ids=names)[0]}
    assert one == other
    assert 20 < len(one) < 80


def test_rows_of_different_directions_are_in_different_clusters():
    vectors = np.array([at(degrees) for degrees in (0, 2, 90, 92)], dtype=np.float32)
    of_rows = clusters(vectors, ["a", "b", "c", "d"])
    assert of_rows[0] == of_rows[1] != of_rows[2] == of_rows[3]
    assert found([at(0)], 0.5)[0] == {}
