"""Contamination of evaluation sets: the two published rules, and what is reported of each set."""

import json
from pathlib import Path

import pytest

from engine.curation.contamination import LLAMA3, TULU3, EvaluationIndex, SetReport
from engine.curation.content import Content, Finding

LETTERS = "a b c d e f g h i j k l m n o p q r s t".split()
PROMPT = " ".join(LETTERS)  # 20 words


def found(index: EvaluationIndex, prompt: str, *answers: str) -> list[Finding]:
    """What the rules find in a row, in order."""
    return [finding for rule in index.rules().values() if (finding := rule(Content(prompt, answers)))]


def test_more_than_half_of_a_prompt_in_one_row_is_contamination_and_half_is_not():
    index = EvaluationIndex({"letters": [PROMPT]})
    assert found(index, f"x {' '.join(LETTERS[:10])} y") == []
    assert index.report() == {"letters": SetReport(1, 1, 0, 0, 0, 10)}
    assert found(index, f"x {' '.join(LETTERS[:11])} y") == [Finding(TULU3, 0.55, 0.5, f"letters: {PROMPT}")]
    assert index.report() == {"letters": SetReport(1, 1, 1, 0, 1, 11)}
    assert index.report()["letters"].contaminated_share == 1.0


def test_the_words_have_to_be_in_the_same_row():
    index = EvaluationIndex({"letters": [PROMPT]})
    assert found(index, " ".join(LETTERS[:9])) == found(index, " ".join(LETTERS[11:])) == []
    both = f"{' '.join(LETTERS[:9])} and {' '.join(LETTERS[11:])}"
    assert [finding.value for finding in found(index, both)] == [0.9]
    assert index.report()["letters"].longest_span == 9


def test_seven_words_in_a_row_are_nothing():
    index = EvaluationIndex({"letters": [PROMPT]})
    assert found(index, f"{' '.join(LETTERS[:7])} x {' '.join(LETTERS[7:14])} x {' '.join(LETTERS[14:])}") == []
    assert index.report()["letters"].num_sharing == 0


def test_an_equal_prompt_is_found_whatever_its_case_and_marks_and_also_where_it_is_short():
    index = EvaluationIndex({"one": ["Continue."], "two": ["What is 3 + 4?", "continue"]})
    assert found(index, "CONTINUE!", "Yes.") == [Finding(LLAMA3, 1.0, 1.0, "one: Continue.")]
    assert found(index, "Please continue") == found(index, "what is 3 - 4") == found(index, "", "Continue.") == []
    report = index.report()
    assert (report["one"].num_equal, report["two"].num_equal, report["two"].contaminated_share) == (1, 1, 0.5)


def test_answers_are_not_looked_at_but_documents_are():
    index = EvaluationIndex({"letters": [PROMPT]})
    assert found(index, "Say the letters.", PROMPT) == []
    assert [finding.rule for finding in found(index, "", f"A text. {PROMPT}")] == [TULU3]


def test_a_template_that_many_prompts_share_contaminates_nothing():
    template = "Read the following passage with great care and answer the question that comes after it :"
    prompts = [f"{template} {' '.join(f'{word}{number}' for word in LETTERS[:10])}" for number in range(50)]
    index = EvaluationIndex({"passages": prompts})
    assert found(index, f"{template} what is it about ?") == []
    assert index.report()["passages"].num_sharing == 0
    (finding,) = found(index, f"An exercise. {prompts[7]}")
    assert finding.value == 1.0 and index.report()["passages"].num_covered == 1


def test_sets_are_reported_apart_and_a_set_can_be_empty():
    index = EvaluationIndex(
        {"empty": [], "letters": [PROMPT], "again": [PROMPT, "something else that is long enough to count"]}
    )
    assert [finding.rule for finding in found(index, PROMPT)] == [LLAMA3, TULU3]
    assert index.report() == {
        "empty": SetReport(0, 0, 0, 0, 0, 0),
        "letters": SetReport(1, 1, 1, 1, 1, 20),
        "again": SetReport(2, 1, 1, 1, 1, 20),
    }
    assert index.report()["empty"].contaminated_share == 0.0
    assert EvaluationIndex({}).report() == {} and found(EvaluationIndex({}), PROMPT) == []


def test_gsm8k_has_the_known_overlap(test_data: Path):
    train, test = (
        [json.loads(line)["question"] for line in (test_data / "gsm8k" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    )
    index = EvaluationIndex({"gsm8k": test})
    for question in train:
        found(index, question)
    report = index.report()["gsm8k"]
    assert (report.num_prompts, report.num_sharing, report.num_covered, report.num_equal) == (1319, 175, 2, 0)
    assert report.contaminated_share == pytest.approx(2 / 1319)
