"""Training rows that contain an evaluation prompt are dropped for a named reason; all others are kept in order."""

from data_schemas.rows import Conversation, Document, Message, PreferencePair, Prompt, group_of
from engine.curation.decontamination import (
    IN_DOCUMENT,
    IN_LATER_TURN,
    without_documents_that_contain,
    without_later_prompts,
)
from engine.curation.dropped_rows import count_reasons


def user(text: str) -> Message:
    return Message(role="user", content=text)


def answer(text: str = "Yes.") -> Message:
    return Message(role="assistant", content=text)


EVALUATED = user("What is the capital?")
GROUPS = {group_of([EVALUATED])}


def test_a_dialog_that_asks_an_evaluation_prompt_later_is_dropped():
    leaks = Conversation(messages=[user("Hello"), answer(), user("what is the CAPITAL"), answer()])
    clean = Conversation(messages=[user("Hello"), answer("What is the capital?")])  # it is an answer here
    kept, dropped = without_later_prompts([clean, leaks, clean], GROUPS)
    assert kept == [clean, clean] and dropped == [(IN_LATER_TURN, leaks)]
    assert count_reasons(dropped) == {"evaluation_prompt_in_later_turn": 1}


def test_pairs_and_prompts_are_compared_by_their_prompts():
    later = [user("Hello"), answer(), EVALUATED]
    pair = PreferencePair(prompt=later, chosen=[answer("A")], rejected=[answer("B")])
    assert without_later_prompts([pair], GROUPS) == ([], [(IN_LATER_TURN, pair)])
    first = Prompt(prompt=[EVALUATED])  # the split keeps it out of training, not this
    assert without_later_prompts([Prompt(prompt=later), first], GROUPS)[0] == [first]


def test_a_document_that_contains_an_evaluation_prompt_is_dropped():
    documents = [Document(text=text) for text in ("A quiz: what is the capital? Rome.", "What is the capitalist?")]
    kept, dropped = without_documents_that_contain(documents, [Prompt(prompt=[EVALUATED])])
    assert kept == [documents[1]] and dropped == [(IN_DOCUMENT, documents[0])]
