"""Splits by the hash of a group: shares, disjoint splits, and documents that contain a prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_schemas.rows import Document, Message, Prompt, group_of
from data_schemas.splitting import Shares, assign, becomes_instruction, lowest_groups, split_documents
from engine.curation.contamination import contained

HALVES = Shares(evaluation=0.1, judge=0.1, validation=0.1)


@pytest.mark.parametrize(
    ("group", "place"),
    [
        # The first 8 digits of the group's SHA-256 as a number below 1, in the comment.
        ("d", "evaluation"),  # 0.0964
        ("n", "judge"),  # 0.1058; its second number is 0.9328
        ("c", "judge"),  # 0.1816; 0.4527
        ("b", "validation"),  # 0.2427
        ("a", "train"),  # sha256("a") = ca978112…: 0.7914
    ],
)
def test_a_groups_split_depends_on_its_hash(group, place):
    assert assign(group, HALVES) == place


def test_fifteen_percent_of_the_judges_groups_are_its_validation():
    only_judge = Shares(evaluation=0.0, judge=0.999999)
    places = [assign(f"group {number}", only_judge) for number in range(4000)]
    assert set(places) == {"judge", "judge_validation"}
    assert 0.13 < places.count("judge_validation") / 4000 < 0.17
    assert assign("q1", only_judge) == assign("q1", Shares(evaluation=0.0, judge=0.9))


def test_shares_are_met():
    shares = Shares(evaluation=0.1, judge=0.2, validation=0.05)
    places = [assign(f"{number:016x}", shares) for number in range(10_000)]
    for place, share in {"evaluation": 0.1, "judge": 0.17, "judge_validation": 0.03, "validation": 0.05}.items():
        assert abs(places.count(place) / 10_000 - share) < 0.01  # 3 standard deviations of 0.2 are 0.012


def test_explicit_evaluation_groups_are_evaluation_wherever_they_come_from():
    assert assign("a", HALVES) == "train"
    assert assign("a", HALVES, evaluation_groups={"a"}) == "evaluation"
    assert assign("b", HALVES, evaluation_groups={"a"}) == "validation"


@given(
    words=st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1, max_size=8),
    judge=st.floats(0, 0.4),
    validation=st.floats(0, 0.4),
    system=st.booleans(),
)
def test_every_writing_of_a_prompt_is_on_one_side_and_evaluation_keeps_its_groups(words, judge, validation, system):
    shares = Shares(evaluation=0.1, judge=judge, validation=validation)
    plain = [Message(role="user", content=" ".join(words))]
    loud = [Message(role="user", content="  " + ",\n".join(words).upper() + "?!")]
    if system:
        loud = [Message(role="system", content="Shout."), *loud]
    loud += [Message(role="assistant", content="An answer."), Message(role="user", content="And then?")]
    place = assign(group_of(plain), shares)
    assert assign(group_of(loud), shares) == place
    assert (place == "evaluation") == (assign(group_of(plain), Shares(evaluation=0.1)) == "evaluation")


@pytest.mark.parametrize(
    ("shares", "complaint"),
    [
        ({"evaluation": 1.0}, "evaluation_share=1.0 is not a share; expected 0 <= share < 1"),
        ({"evaluation": 0.1, "judge": -0.1}, "judge_share=-0.1 is not a share"),
        ({"evaluation": 0.5, "judge": 0.3, "validation": 0.2}, "leave nothing to train on"),
    ],
)
def test_impossible_shares_are_refused(shares, complaint):
    with pytest.raises(ValueError, match=complaint):
        Shares(**shares)


def test_instructions_are_chosen_by_a_separate_hash():
    # sha256("instruction:d") begins 0.8031, ("instruction:j") 0.0651
    assert [becomes_instruction(group, 0.5) for group in ("d", "j")] == [False, True]
    groups = [f"group {number}" for number in range(4000)]
    trained = [group for group in groups if assign(group, HALVES) == "train"]
    among_trained = sum(becomes_instruction(group, 0.3) for group in trained) / len(trained)
    assert abs(among_trained - 0.3) < 0.03
    assert not any(becomes_instruction(group, 0.0) for group in groups)
    assert all(becomes_instruction(group, 1.0) for group in groups)


def _is_contained(documents: list[Document], prompts: list[Prompt]) -> list[bool]:
    return [bool(text) for text in contained(documents, prompts)]


def prompt(text: str, *before: Message) -> Prompt:
    return Prompt(prompt=[*before, Message(role="user", content=text)])


def test_documents_that_contain_a_prompt_as_whole_words_are_found():
    prompts = [
        prompt("What is the capital of France?"),
        prompt("Name a black cat.", Message(role="system", content="purr")),
    ]
    documents = {
        "Q: what is the CAPITAL\nof France -- Paris": True,
        "What is the capital of Frances sister": False,
        "name a black cat": True,
        "name a black category": False,
        "rename a black cat": False,
        "purr": False,  # a system prompt does not count
        "What is the capital": False,
        "What is the what is the capital of France": True,
    }
    assert _is_contained([Document(text=text) for text in documents], prompts) == list(documents.values())
    assert _is_contained([Document(text="anything")], []) == [False]


def test_only_the_first_user_message_of_a_prompt_is_looked_for():
    first = [Message(role="user", content="Open the red door"), Message(role="assistant", content="It is open.")]
    documents = [Document(text="Please open the red door now"), Document(text="now close it again, please")]
    assert _is_contained(documents, [prompt("close it again, please", *first)]) == [True, False]


small_text = st.lists(st.sampled_from("ab"), min_size=1, max_size=10).map(" ".join)


@given(text=small_text, asked=st.lists(small_text, min_size=1, max_size=3))
def test_finding_by_first_words_agrees_with_looking_everywhere(text, asked):
    everywhere = any(f" {question} " in f" {text} " for question in asked if len(question.split()) >= 4)
    assert _is_contained([Document(text=text)], [prompt(question) for question in asked]) == [everywhere]


def test_documents_are_held_out_by_the_hash_of_their_text():
    # sha256("e") begins 0x3f79bb7b / 2**32 = 0.248, ("a") 0xca978112 / 2**32 = 0.791, ("d") 0x18ac3e73 / 2**32 = 0.096
    texts = ["a", "e", "d", "e"]
    train, validation = split_documents([Document(text=text) for text in texts], validation_share=0.2)
    assert [row.text for row in train] == ["a", "e", "e"]
    assert [row.text for row in validation] == ["d"]


@pytest.mark.parametrize(
    ("texts", "share", "lowest"),
    [
        (["a", "e", "d", "e"], 0.05, {"d"}),  # the hashes are above, in the last test
        (["a", "e", "d"], 0.5, {"d", "e"}),  # round(1.5)
        (["a", "d"], 0.99, {"d"}),  # not all
        (["a", "e", "d"], 0.0, set()),
        (["a", "a"], 0.5, set()),
    ],
)
def test_of_few_groups_those_with_the_lowest_hashes_are_held_out(texts, share, lowest):
    assert lowest_groups(texts, share) == lowest
