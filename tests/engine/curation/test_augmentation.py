"""Easy data augmentation: what each operation changes, by how much, and that a seed decides it."""

from collections import Counter
from pathlib import Path

import pytest

from data_schemas.errors import DataError
from data_schemas.synonyms import read_synonyms
from engine.curation.augmentation import OPERATIONS, Variant, variants

SYNONYMS = {"big": ["large", "huge"], "car": ["vehicle"]}
PROMPT = (
    "How BIG is a car, and why is it so?\n\nTell me in a few words, and be exact and kind to me please now"  # 25 words
)


def of(operation: str, prompt: str = PROMPT, **options) -> list[str]:
    """Several variants by one operation."""
    found = variants(prompt, "id", 40, synonyms=options.pop("synonyms", SYNONYMS), **options)
    return [variant.text for variant in found if variant.operation == operation]


def test_replacement_takes_synonyms_with_the_case_and_marks_of_the_word():
    expected = {
        PROMPT.replace("BIG", big).replace("car,", car)
        for big in ("BIG", "LARGE", "HUGE")
        for car in ("car,", "vehicle,")
    }
    found = of("synonym_replacement")
    assert found and set(found) <= expected - {PROMPT}
    assert set(of("synonym_replacement", "Big?")) == {"Large?", "Huge?"}


def test_insertion_adds_a_synonym_for_a_tenth_of_the_words():
    for text in of("random_insertion"):
        added = Counter(text.split()) - Counter(PROMPT.split())
        assert sum(added.values()) == 2 and added.keys() <= {"large", "huge", "vehicle"}
        assert not Counter(PROMPT.split()) - Counter(text.split())


def test_swaps_keep_the_words_and_the_space_between_them():
    found = of("random_swap")
    assert len(found) > 5
    for text in found:
        assert Counter(text.split()) == Counter(PROMPT.split()) and text != PROMPT and text.count("\n\n") == 1
        assert sum(one != other for one, other in zip(text.split(), PROMPT.split(), strict=True)) <= 4


def test_deletion_removes_a_tenth_of_the_words_and_never_the_last_one():
    found = of("random_deletion")
    assert len(found) > 5 and {len(text.split()) for text in found} == {23}
    assert of("random_deletion", "word") == []
    assert set(of("random_deletion", "two words")) == {"two", "words"}


def test_without_synonyms_the_other_two_operations_are_left():
    assert {variant.operation for variant in variants(PROMPT, "id", 8, synonyms={})} == {
        "random_swap",
        "random_deletion",
    }


def test_variants_are_linked_different_and_decided_by_id_and_seed():
    found = list(variants(PROMPT, "id", 12, synonyms=SYNONYMS))
    assert found == list(variants(PROMPT, "id", 12, synonyms=SYNONYMS))
    assert {variant.original for variant in found} == {"id"} and len({variant.text for variant in found}) == len(found)
    assert [variant.operation for variant in found[:4]] == [name for name, _ in OPERATIONS]
    assert found != list(variants(PROMPT, "id", 12, synonyms=SYNONYMS, seed=1))
    assert list(variants("", "id", 4, synonyms=SYNONYMS)) == [] and isinstance(found[0], Variant)


def test_synonyms_are_read_from_lines_of_words(tmp_path: Path):
    path = tmp_path / "synonyms.txt"
    path.write_text("Big, large ,huge\n\nlarge, vast\ntake part, join\n")
    assert read_synonyms(path) == {
        "big": ["large", "huge"],
        "large": ["Big", "huge", "vast"],
        "huge": ["Big", "large"],
        "vast": ["large"],
        "take part": ["join"],
        "join": ["take part"],
    }
    path.write_text("big, large\nsmall\n")
    with pytest.raises(DataError, match=r"synonyms.txt:2: only 'small', expected words of one meaning"):
        read_synonyms(path)
