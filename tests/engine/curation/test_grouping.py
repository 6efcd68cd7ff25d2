"""Groups: dialogs with the same first user message, and what tells them apart where all have the same."""

from data_schemas.rows import Conversation, Message, PreferencePair
from engine.curation.grouping import describe_large_group, systems_tell_apart, with_system_group


def dialog(question: str, system: str = "") -> Conversation:
    turns = [Message(role="user", content=question), Message(role="assistant", content="Yes.")]
    return Conversation(messages=[*([Message(role="system", content=system)] if system else []), *turns])


def described(*dialogs: Conversation) -> str:
    return describe_large_group((row.group_id for row in dialogs), lambda: dialogs)


SAME = [dialog("Summarise the text.", f"Text: {name}") for name in ("a", "b", "A!")]


def test_the_system_message_counts_where_all_first_user_messages_are_the_same():
    assert systems_tell_apart(SAME)
    groups = [row.group_id for row in map(with_system_group, SAME)]
    assert groups[0] == groups[2] != groups[1] and SAME[0].group_id not in groups  # "A!" is "a" when normalised
    pair = PreferencePair(
        prompt=SAME[1].messages[:2],
        chosen=[Message(role="assistant", content="A")],
        rejected=[Message(role="assistant", content="B")],
    )
    assert systems_tell_apart([SAME[0], pair])
    assert with_system_group(pair).group_id == groups[1]


def test_other_rows_keep_their_groups():
    assert not systems_tell_apart([*SAME, dialog("Another question")])
    assert not systems_tell_apart([dialog("q"), dialog("q")])
    assert not systems_tell_apart([dialog("q", "s"), dialog("q", "S.")])
    assert not systems_tell_apart([])


def test_a_group_with_most_of_the_dialogs_is_described():
    assert described(dialog("q"), dialog("q"), dialog("r")) == (
        "2 of 3 dialogs have the same first user message ('q'), so they are on one side of the split"
    )
    assert described(dialog("q"), dialog("q")).startswith("all 2 dialogs have the same first user message")
    assert described(dialog("q"), dialog("r")) == described(dialog("q")) == ""
