"""Training rows that contain an evaluation prompt are found."""

import pytest

from data_schemas.rows import Conversation, Document, Message, Prompt
from engine.curation.contamination import asked_later, contained, distinctive_texts, most_frequent_causes


def user(text: str) -> Message:
    return Message(role="user", content=text)


def answer(text: str = "Yes.") -> Message:
    return Message(role="assistant", content=text)


EVALUATED = user("What is the capital?")
PROMPTS = [Prompt(prompt=[EVALUATED])]


def later_prompt(messages: list[Message], prompts: list[Prompt] = PROMPTS) -> str:
    return asked_later(messages, distinctive_texts(prompts))


def test_a_dialog_that_asks_an_evaluation_prompt_later_is_found():
    first, second = [user("Hello"), answer()], [user("what is the CAPITAL"), answer()]
    assert later_prompt([*first, *second]) == "what is the capital"
    assert later_prompt([user("Hello"), answer("What is the capital?")]) == ""  # it is an answer here
    assert later_prompt([*first, EVALUATED]) == "what is the capital"
    assert later_prompt([EVALUATED]) == ""  # the split keeps it out of training, not this


def test_a_document_that_contains_an_evaluation_prompt_is_found():
    documents = [Document(text=text) for text in ("A quiz: what is the capital? Rome.", "What is the capitalist?")]
    assert contained(documents, PROMPTS) == ["what is the capital", ""]


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
        later = [user("Tell me a story"), answer(), user(text.upper()), answer()]
        assert bool(later_prompt(later, prompts)) != is_kept
        document = Document(text=f"He said: {text} Then he left.") if text.isascii() else Document(text=text)
        assert bool(contained([document], prompts)[0]) != is_kept


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
        "most because of 'Which word is the past of go?' (3), 'What is the capital?' (2), "
        "'How many legs has a cat?' (2)"
    )
    dialogs = [later[1], later[0], later[1], later[2]]
    assert most_frequent_causes(prompts, dialogs=dialogs, documents=[]) == (
        "most because of 'Which word is the past of go?' (2)"
    )
    assert most_frequent_causes(prompts, dialogs=later, documents=[]) == "as 'What is the capital?'"
