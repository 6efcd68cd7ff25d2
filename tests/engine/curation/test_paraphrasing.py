"""Paraphrases: what a model is asked, which of its texts become prompts, and what stays of the original."""

from data_schemas.rows import Prompt
from engine.curation.contamination import EvaluationIndex
from engine.curation.paraphrasing import (
    Draft,
    choose,
    last_user_text,
    paraphrase_question,
    with_user_text,
    without_fence,
)


def prompt(*texts: str, **fields: object) -> Prompt:
    """A dialog in which the user and the assistant take turns."""
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return Prompt.model_validate({"prompt": messages, **fields})


HELD_OUT = "Name the three longest rivers of South America and say where each of them ends"
ORIGINAL = prompt("Which word is the past of go?", tag="grammar", reference="Went.")
OTHER = prompt("What is the past tense of go?")


def rules(*drafts: Draft) -> list[str]:
    """The rule that each draft is dropped by; of those that are kept, their texts, first."""
    kept, dropped = choose(drafts, [ORIGINAL, OTHER], EvaluationIndex({"rivers": [HELD_OUT]}))
    return [*(last_user_text(new.prompt) for new in kept), *(finding.rule for _, finding in dropped)]


def draft(text: str, problem: str = "") -> Draft:
    return Draft(ORIGINAL, "paraphrase", text, problem)


def test_a_text_that_is_no_new_prompt_is_dropped_by_a_named_rule():
    assert rules(draft("Tell me the past form of go.")) == ["Tell me the past form of go."]
    assert rules(draft("")) == ["empty"]
    assert rules(draft("Tell me the", "unfinished")) == ["unfinished"]
    assert rules(draft("which word is the PAST of go")) == ["unchanged"]
    assert rules(draft("What is the past tense of go")) == ["duplicate"]  # another training prompt
    assert rules(draft("Go, in the past?"), draft("go in the past")) == ["Go, in the past?", "duplicate"]


def test_a_text_that_repeats_an_evaluation_prompt_is_dropped_even_with_another_end():
    assert rules(draft(HELD_OUT.lower() + "?")) == ["llama3_exact_prompt"]
    assert rules(draft(HELD_OUT + " exactly")) == ["near_evaluation_prompt"]


def test_a_dropped_text_names_what_it_repeats():
    _, dropped = choose([draft("What is the past tense of go?")], [ORIGINAL, OTHER], None)
    assert [finding.partner for _, finding in dropped] == [OTHER.prompt_id]


def test_only_the_last_user_message_changes_and_the_row_stays_in_its_group():
    original = prompt("Hello", "Hello!", "Which word is the past of go?", tag="grammar", reference="Went.")
    changed = with_user_text(original, "Past of go?")
    assert [message.content for message in changed.prompt] == ["Hello", "Hello!", "Past of go?"]
    assert (changed.group_id, changed.tag, changed.reference) == (original.group_id, "grammar", "Went.")
    assert changed.prompt_id not in ("", original.prompt_id)
    assert last_user_text(original) == "Which word is the past of go?"
    assert with_user_text(ORIGINAL, "Past of go?").group_id == ORIGINAL.group_id  # by default a hash of the text


def test_an_answer_loses_the_lines_around_the_question_and_no_others():
    question = paraphrase_question("1\n===\n2")
    assert question.endswith("\n===\n1\n===\n2\n===")
    assert without_fence("\n===\n1\n===\n2\n===\n") == "1\n===\n2"
    assert without_fence(" === ") == ""
