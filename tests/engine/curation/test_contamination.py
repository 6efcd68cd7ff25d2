"""Training rows that contain an evaluation prompt are dropped for a named reason; all others are kept in order."""

import pytest

from data_schemas.rows import Conversation, Document, Message, PreferencePair, Prompt
from engine.curation.contamination import (
    IN_DOCUMENT,
    IN_LATER_TURN,
    most_frequent_causes,
    without_documents_that_contain,
    without_later_prompts,
)
from engine.curation.dropped_rows import count_reasons


def user(text: str) -> Message:
    return Message(role="user", content=text)


def answer(text: str = "Yes.") -> Message:
    return Message(role="assistant", content=text)


EVALUATED = user("What is the capital?")
PROMPTS = [Prompt(prompt=[EVALUATED])]


def test_a_dialog_that_asks_an_evaluation_prompt_later_is_dropped():
    leaks = Conversation(messages=[user("Hello"), answer(), user("what is the CAPITAL"), answer()])
    clean = Conversation(messages=[user("Hello"), answer("What is the capital?")])  # it is an answer here
    kept, dropped = without_later_prompts([clean, leaks, clean], PROMPTS)
    assert kept == [clean, clean] and dropped == [(IN_LATER_TURN, leaks)]
    assert count_reasons(dropped) == {"evaluation_prompt_in_later_turn": 1}


def test_pairs_and_prompts_are_compared_by_their_prompts():
    later = [user("Hello"), answer(), EVALUATED]
    pair = PreferencePair(prompt=later, chosen=[answer("A")], rejected=[answer("B")])
    assert without_later_prompts([pair], PROMPTS) == ([], [(IN_LATER_TURN, pair)])
    first = Prompt(prompt=[EVALUATED])  # the split keeps it out of training, not this
    assert without_later_prompts([Prompt(prompt=later), first], PROMPTS)[0] == [first]


def test_a_document_that_contains_an_evaluation_prompt_is_dropped():
    documents = [Document(text=text) for text in ("A quiz: what is the capital? Rome.", "What is the capitalist?")]
    kept, dropped = without_documents_that_contain(documents, PROMPTS)
    assert kept == [documents[1]] and dropped == [(IN_DOCUMENT, documents[0])]


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("Continue.", "Can you continue that?"),
        ("Go on, please", "Go on, please, at length"),
        ("继续写", "请用中文写一首关于秋天的诗"),  # 13 characters, 26 columns
    ],
)
def test_a_short_evaluation_prompt_leaves_nothing_out(short, long):
    for text, is_kept in ((short, True), (long, False)):
        prompts = [Prompt(prompt=[user(text)])]
        later = Conversation(messages=[user("Tell me a story"), answer(), user(text.upper()), answer()])
        assert without_later_prompts([later], prompts)[0] == [later] * is_kept
        document = Document(text=f"He said: {text} Then he left.") if text.isascii() else Document(text=text)
        assert without_documents_that_contain([document], prompts)[0] == [document] * is_kept


def test_the_prompts_that_cause_most_drops_are_named_with_their_numbers():
    texts = [
        "What is the capital?",
        "Which word is the past of go?",
        "How many legs has a cat?",
        "Why is the sky blue?",
    ]
    later = [Conversation(messages=[user("Hi"), answer(), user(text), answer()]) for text in texts]
    dialogs = [later[1], later[0], later[1], later[2], later[3], later[2], later[1]]
    documents = [Document(text="A quiz: what is the capital?")]
    prompts = [Prompt(prompt=[user(text)]) for text in texts]
    assert most_frequent_causes(prompts, dialogs=dialogs, documents=documents) == (
        "'Which word is the past of go?' (3), 'What is the capital?' (2), 'How many legs has a cat?' (2)"
    )
