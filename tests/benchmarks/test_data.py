"""The benchmark of curation: its planted rows are what they are said to be, and what is found of them is counted."""

import json

from benchmarks.data.report import Measured, page, targets
from benchmarks.data.run import _compare
from benchmarks.data.synthetic import SHARES, Planted, write_rows
from engine.curation.contamination import EvaluationIndex
from engine.curation.content import Content, content_of
from engine.curation.duplicates import SignatureIndex, content_key, find_near_duplicates


def test_planted_rows_are_what_they_are_said_to_be(tmp_path):
    path, evaluation, planted = write_rows(tmp_path, 1000)
    rows = [content_of("instructions", json.loads(line)) for line in path.read_text().splitlines()]
    assert len(rows) == len(planted) == 1000
    for kind, share in SHARES.items():
        assert sum(row.kind == kind for row in planted) == share * 1000
    index = EvaluationIndex(
        {"set": [json.loads(line)["prompt"][0]["content"] for line in evaluation.read_text().splitlines()]}
    )
    for row in planted:
        content = rows[row.line - 1]
        if row.kind == "exact":
            assert (
                content_key(content.text) == content_key(rows[row.partner - 1].text)
                and content != rows[row.partner - 1]
            )
        if row.kind == "near":
            assert 0.5 < row.similarity < 0.98 and similarity(content, rows[row.partner - 1]) == row.similarity
        assert bool(index.rules()["tulu3_8gram"](content)) == (row.kind == "contaminated")


def similarity(one: Content, other: Content) -> float:
    """The lower one of those of the texts and of the answers, by the code that curation uses."""
    values = []
    for texts in ([one.text, other.text], [one.answers[0], other.answers[0]]):
        index = SignatureIndex(0.1)  # as good as every pair is a candidate
        for text in texts:
            index.add(text)
        values += [value for _, value in find_near_duplicates(index, texts.__getitem__, ids=["a", "b"]).values()]
    return min(values)


def test_what_is_found_is_counted_by_pair():
    planted = [
        Planted(1, "base"),
        Planted(2, "exact", partner=1, similarity=1.0),
        Planted(3, "base"),
        Planted(4, "near", partner=3, similarity=0.9),
        Planted(5, "near", partner=6, similarity=0.7),
        Planted(6, "base"),
        Planted(7, "german"),
        Planted(8, "contaminated"),
        Planted(9, "base"),
    ]
    dropped = {1: "exact_duplicate", 5: "near_duplicate", 7: "prompt_language", 8: "tulu3_8gram", 9: "refusal"}
    measured = _compare(9, 1.0, 2.0, 0.5, dropped, planted)
    assert measured.found == {"exact": (1, 1), "near": (0, 1), "contaminated": (1, 1), "german": (1, 1)}
    assert (measured.num_duplicates, measured.num_wrong, measured.num_other) == (2, 1, 1)
    assert measured.line == "| 9 | 1.0 | 2.0 | 0.50 | 1.0000 | 0.0000 | 1.0000 | 1.0000 | 0.5000 | 1 |"


def test_the_page_says_which_targets_are_reached():
    found = {"exact": (1, 1), "near": (98, 100), "contaminated": (1, 1), "german": (1, 1)}
    small = Measured(100_000, 1.0, 1.2, 0.4, found, 10, 0, 0)
    large = Measured(1_000_000, 11.9, 14.3, 3.1, found, 10, 1, 0)
    rows = targets([small, large]).splitlines()[2:]
    assert [line.endswith("not reached |") for line in rows] == [False, True, False, True, True]
    assert "1.19×" in targets([small, large]) and large.line in page([small, large], "2 cores")
    assert "1.21×, not reached" in targets([small, Measured(1_000_000, 11.9, 14.5, 1, found, 10, 0, 0)])
