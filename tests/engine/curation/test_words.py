"""Hashed words: what counts as equal, and n-grams."""

import numpy as np
import pytest

from engine.curation.words import Marks, ngram_hashes, word_hashes


def same(one: str, other: str, marks: Marks = "none") -> bool:
    return np.array_equal(word_hashes(one, marks), word_hashes(other, marks))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello, World!", "hello world"),
        ("a_b\n\tc", "a b c"),
        ("ＡＢＣ １２", "abc 12"),  # wide forms
        ("naïve “Straße”", "nai\u0308ve STRASSE"),
        ("well-known", "well known"),
        ("한국어를 배워요", "한국어 를배워요"),  # the spaces of Korean are often left out
    ],
)
def test_case_width_punctuation_and_spaces_are_ignored(one, other):
    assert same(one, other)


def test_other_letters_other_order_and_other_cuts_are_different():
    for other in ("hello word", "world hello", "helloworld", "hello", "hello world world"):
        assert not same("hello world", other)


def test_signs_of_arithmetic_count_only_where_asked_for():
    assert same("3 + 4", "3 - 4") and not same("3 + 4", "3 - 4", "signs")
    assert same("x=3", "x = 3!", "signs")


def test_every_mark_counts_where_asked_for():
    counts = {"": 0, "Well... it's 3 + 4!": 11, "a_b": 2, "\tcafé\n": 1, "हिन्दी": 1, "😀": 1}
    assert {text: len(word_hashes(text, "all")) for text in counts} == counts
    assert not same("Really?", "Really!", "all")


def test_a_word_has_one_hash_wherever_it_is():
    assert word_hashes("the cat sees the é cat")[0] == word_hashes("THE")[0] == word_hashes("é the")[1]
    words = [f"{start}{number}" for start in ("a", "b", "ab", "ba") for number in range(2000)]
    assert len(set(word_hashes(" ".join(words)).tolist())) == len(words)


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), (" \n", 0), ("!?", 0), ("a", 1), ("你好吗", 3), ("제 이름 Bob", 4)]
)
def test_characters_of_scripts_without_spaces_are_words(text, count):
    assert len(word_hashes(text)) == count


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 8, 13])
def test_an_ngram_has_one_hash_wherever_it_is(n):
    hashes = word_hashes("a b c d e f g h i j k l m n o p")
    found = ngram_hashes(hashes, n)
    assert len(found) == 16 - n + 1 == len(set(found.tolist()))
    assert found[2] == ngram_hashes(hashes[2 : 2 + n], n)[0]
    assert len(ngram_hashes(hashes[: n - 1], n)) == 0


@pytest.mark.parametrize("text", ["it is", "It is é"])
def test_the_hash_is_the_polynomial_of_the_codes(text):
    value = (ord("i") + ord("s") * 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 32) * 0xD6E8FEB86659FD93 % 2**64
    assert word_hashes(text)[1] == value ^ value >> 32
