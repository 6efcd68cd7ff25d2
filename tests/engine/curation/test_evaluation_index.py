"""Contamination of evaluation sets: the two published rules, and what is reported of each set."""

import json
from pathlib import Path

import pytest

from engine.curation.contamination import LLAMA3, NEAR_PROMPT, TULU3, EvaluationIndex, SetReport
from engine.curation.content import Content, Finding

LETTERS = "a b c d e f g h i j k l m n o p q r s t".split()
PROMPT = " ".join(LETTERS)  # 20 words


def found(index: EvaluationIndex, prompt: str, *answers: str) -> list[Finding]:
    """What the published rules find in a row, in order."""
    rules = [index.rules()[name] for name in (LLAMA3, TULU3)]
    return [finding for rule in rules if (finding := rule(Content(prompt, answers)))]


def near(index: EvaluationIndex, prompt: str) -> Finding | None:
    return index.rules()[NEAR_PROMPT](Content(prompt, ()))


def test_more_than_half_of_a_prompt_in_one_row_is_contamination_and_half_is_not():
    index = EvaluationIndex({"letters": [PROMPT]})
    assert found(index, f"x {' '.join(LETTERS[:10])} y") == []
    assert index.report() == {"letters": SetReport(1, 1, 0, 0, 0, 10)}
    assert found(index, f"x {' '.join(LETTERS[:11])} y") == [Finding(TULU3, 0.55, 0.5, f"letters: {PROMPT}")]
    assert index.report() == {"letters": SetReport(1, 1, 1, 0, 1, 11)}
    assert index.report()["letters"].contaminated_share == 1.0


def test_a_prompt_that_nearly_equals_one_is_found_by_their_five_grams_but_for_those_of_a_template():
    """Of 9 and 10 words with 5 and 6 five-grams, 5 are shared: 5/6."""
    index = EvaluationIndex({"short": ["a b c d e f g h i j"], "other": ["k l m n o p"]})
    assert near(index, "A b c d e f g h i!") == Finding(NEAR_PROMPT, 0.8333, 0.8, "short: a b c d e f g h i j")
    assert near(index, "k l m n o") is None  # 1 of 2
    assert near(index, "a b c d x f g h i j") is None  # a word in the middle changes five of six
    assert index.report()["short"].num_near == 1 and index.report()["other"].num_near == 0
    template = "Read the following passage with great care and answer the question that comes after it :"
    templated = EvaluationIndex({"passages": [f"{template} {n} is {n}" for n in range(50)]})
    assert near(templated, f"{template} 99 is 99") is None
    found = near(templated, f"{template} 7 is 7")
    assert found is not None and found.value == 1.0 and found.partner.startswith("passages: Read the")


def test_what_another_process_saw_is_added():
    index, other = (EvaluationIndex({"letters": [PROMPT, "k l m n o p"]}) for _ in range(2))
    found(other, "k l m n o p")
    found(other, PROMPT)
    near(other, PROMPT)
    index.add(other.take())
    assert index.report()["letters"] == SetReport(2, 1, 1, 2, 2, 20, 1)
    assert len(other.take()[0]) == 0 and len(index.take()[0]) == 2


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
