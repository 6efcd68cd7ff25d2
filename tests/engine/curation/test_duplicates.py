"""Duplicates: what is found, which row stays, and that neither depends on the order of the rows."""

import math
import random
from collections.abc import Sequence

import pytest

from engine.curation import duplicates
from engine.curation.duplicates import (
    SignatureIndex,
    content_key,
    find_exact_duplicates,
    find_near_duplicates,
    hashes_per_band,
)
from engine.curation.words import word_hashes

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["".join(random.Random(n).choices(LETTERS, k=6)) for n in range(5000)]


def near(texts: Sequence[str], threshold: float = 0.8, **options) -> dict[int, tuple[int, float]]:
    index = SignatureIndex(threshold)
    for text in texts:
        index.add(text)
    ids = options.pop("ids", [f"{content_key(text).hex()}" for text in texts])
    return find_near_duplicates(index, lambda row: texts[row], ids=ids, **options)


def jaccard(one: str, other: str) -> float:
    """By strings, for texts of five or more plain words."""

    def shingles(text: str) -> set[str]:
        words = text.split()
        return {" ".join(words[place : place + 5]) for place in range(len(words) - 4)}

    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def planted(similarity: float, rng: random.Random, num_words: int = 150) -> tuple[str, str]:
    """Two texts with at least this similarity, and little more: the last words of the second are others."""
    words = rng.choices(VOCABULARY, k=num_words)
    num_shared = math.ceil((num_words - 4) * 2 * similarity / (1 + similarity)) + 4
    return " ".join(words), " ".join(words[:num_shared] + rng.choices(VOCABULARY, k=num_words - num_shared))


def test_exact_duplicates_keep_the_best_by_quality_and_then_by_id():
    keys = [content_key(text) for text in ("A b.", "other", "a B", "a  b", "a + b")]
    assert find_exact_duplicates(keys, ids=["3", "4", "1", "2", "0"]) == {0: 2, 3: 2}
    assert find_exact_duplicates(keys, ids=["3", "4", "1", "2", "0"], quality=[1, 0, 0.5, 1, 9]) == {0: 3, 2: 3}
    assert find_exact_duplicates(keys, ids=["3", "4", "1", "2", "0"], excluded={2, 1}) == {0: 3}
    assert find_exact_duplicates([], ids=[]) == {}


def test_texts_without_words_are_equal_only_where_their_signs_are():
    keys = [content_key(text) for text in ("😀", "😢", " 😀\n", "!!!", "")]
    assert find_exact_duplicates(keys, ids=list("abcde")) == {2: 0}


def test_a_pair_at_the_threshold_is_dropped_and_one_below_it_stays():
    words = VOCABULARY[:24]  # 20 shingles
    # 16 of 20 shingles in 20: 0.8. Of 20 in 26, 10 of a half: 20 shared / 26 = 0.769
    assert near([" ".join(words), " ".join(words[:20])], ids=["a", "b"]) == {1: (0, 0.8)}
    assert near([" ".join(words), " ".join(words[:19])], ids=["a", "b"]) == {}


def test_every_reported_similarity_is_exact_and_none_is_below_the_threshold():
    rng = random.Random(1)
    pairs = [planted(0.6 + 0.35 * n / 300, rng) for n in range(300)]
    texts = [text for pair in pairs for text in pair]
    dropped = near(texts)
    assert dropped
    for row, (kept, similarity) in dropped.items():
        assert kept == row ^ 1 and similarity == pytest.approx(jaccard(texts[row], texts[kept])) and similarity >= 0.8
    expected = {n for n, pair in enumerate(pairs) if jaccard(*pair) >= 0.8}
    assert {row // 2 for row in dropped} <= expected
    assert len(dropped) >= 0.98 * len(expected)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
def test_pairs_at_the_threshold_are_found(threshold):
    assert 1 - (1 - threshold ** hashes_per_band(threshold)) ** 20 >= 0.995
    rng = random.Random(2)
    pairs = [planted(threshold, rng) for _ in range(400)]
    pairs = [pair for pair in pairs if jaccard(*pair) >= threshold]
    assert len(pairs) > 100
    found = near([text for pair in pairs for text in pair], threshold)
    assert len(found) >= 0.99 * len(pairs) - 1


def test_the_result_does_not_depend_on_the_order_of_the_rows():
    rng = random.Random(3)
    families = [[planted(0.9, rng)[0]] for _ in range(30)]
    for family in families:
        for _ in range(6):  # each differs from the first by a word or two, and from the others by more
            words = family[0].split()
            for _ in range(rng.randint(1, 2)):
                words[rng.randrange(len(words))] = rng.choice(VOCABULARY)
            family.append(" ".join(words))
    texts = [text for family in families for text in family]
    quality = [rng.randint(0, 3) for _ in texts]
    outcomes = []
    for _ in range(3):
        order = rng.sample(range(len(texts)), len(texts))
        dropped = near([texts[row] for row in order], quality=[quality[row] for row in order])
        outcomes.append({texts[order[row]]: (texts[order[kept]], value) for row, (kept, value) in dropped.items()})
    assert outcomes[0] == outcomes[1] == outcomes[2] and len(outcomes[0]) > 60


def test_in_a_chain_a_row_goes_only_for_a_kept_row_that_it_resembles():
    words = VOCABULARY[:60]
    first, middle, last = (" ".join(words[start : start + 44]) for start in (0, 4, 8))  # 36/44 and 32/48 in common
    assert near([first, middle, last], ids=["a", "b", "c"]) == {1: (0, pytest.approx(36 / 44))}
    by_middle = near([first, middle, last], ids=["b", "a", "c"])
    assert by_middle == {0: (1, pytest.approx(36 / 44)), 2: (1, pytest.approx(36 / 44))}
    assert near([first, middle, last], ids=["a", "b", "c"], excluded={1}) == {}


def test_rows_whose_answers_differ_are_no_duplicates_of_a_long_prompt():
    prompt = " ".join(VOCABULARY[:100])
    answers = ["yes", "no", "Yes!"]
    texts = [f"{prompt}\n{answer}" for answer in answers]
    assert len(near(texts)) == 2
    assert near(texts, ids=["a", "b", "c"], answers=lambda row: answers[row]) == {2: (0, 1.0)}


def test_short_texts_and_texts_without_words():
    texts = ["yes", "no", "Yes.", "what is 3+4", "what is 3-4", "😀", "😢", "", "  "]
    assert near(texts, ids=list("abcdefghi")) == {2: (0, 1.0), 8: (7, 1.0)}


def test_texts_of_scripts_without_spaces_are_compared_by_characters():
    korean = "저는 어제 친구와 함께 시장에 가서 맛있는 떡볶이를 먹고 집으로 돌아와 영화를 보았습니다 그리고 일찍 잤어요"
    chinese = "我昨天和朋友一起去市场吃了很好吃的东西然后回家看了一部很有意思的电影最后很早就睡觉了因为今天要上班"
    for text in (korean, chinese):
        assert near([text, text[:-1], "".join(reversed(text))], ids=["a", "b", "c"]).keys() == {1}


def test_many_rows_of_one_template_are_not_compared_pairwise(monkeypatch):
    rng = random.Random(4)
    template = rng.choices(VOCABULARY, k=100)  # 96 of 136 shingles in common, 0.55 between two rows
    texts = [" ".join(template + rng.choices(VOCABULARY, k=40)) for _ in range(1500)]
    texts += [f"{text} {rng.choice(VOCABULARY)}" for text in texts[:200]]  # near duplicates of rows among them
    texts += [" ".join(template)] * 300
    compared: list[float] = []
    original = duplicates._jaccard

    def jaccard_counted(one: set[int], other: set[int], threshold: float) -> float:
        compared.append(original(one, other, threshold))
        return compared[-1]

    monkeypatch.setattr(duplicates, "_jaccard", jaccard_counted)
    dropped = near(texts)
    assert len(dropped) >= 198 + 299
    assert 0 < len(compared) < 400_000  # of 2 million pairs


def test_no_rows_and_rows_that_are_all_excluded():
    assert near([]) == {}
    assert near(["a b c"] * 3, excluded={0, 1, 2}) == {}


def test_hashes_do_not_depend_on_what_was_hashed_before():
    index, again = SignatureIndex(0.8), SignatureIndex(0.8)
    texts = [" ".join(VOCABULARY[n : n + 30]) for n in range(600)]
    for text in texts:
        index.add(text)
    word_hashes.cache_clear()
    again.add(texts[-1])
    assert len(index) == 600 and index.bands()[:, -1].tolist() == again.bands()[:, 0].tolist()
