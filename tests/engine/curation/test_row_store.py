"""Rows on the disk: order, copies, and which are the same."""

from data_schemas.rows import Conversation, Message, Prompt
from engine.curation.row_store import RowStore
from engine.curation.sides import unique


def prompt(text: str, **fields: str) -> Prompt:
    return Prompt(prompt=[Message(role="user", content=text)], **fields)


def test_rows_come_back_as_they_were_in_order_and_as_often_as_they_count(tmp_path):
    rows = [prompt(text, tag="t") for text in ("zwei \u2028 Zeilen", "b", "c")]
    store = RowStore(tmp_path, Prompt)
    for row, copies in zip(rows, (1, 3, 0), strict=True):
        store.add(row, copies)
    view = store.view()
    assert list(view) == [rows[0], rows[1], rows[1], rows[1]] and list(view.once()) == rows[:2] and len(view) == 4
    assert list(view.lines()) == [f"{row.to_json()}\n".encode() for row in view]
    assert list(view.first(2)) == rows[:2] and view.first(None) is view and len(view.first(9)) == 4
    chosen = view.mask(lambda row: row == rows[1])
    assert list(view.at(chosen).single()) == [rows[1]] and list(view.at(~chosen)) == [rows[0]]
    store.add(rows[2])  # after it was read
    assert list(store.view().once()) == rows and not list(tmp_path.iterdir())


def test_of_equal_prompts_the_last_stays_in_the_order_of_the_ids(tmp_path):
    rows = [prompt(str(n)) for n in range(20)]
    again = [prompt(str(n), reference="r") for n in (3, 4)]
    view = RowStore(tmp_path, Prompt, [*rows, *again]).view()
    expected = sorted([*rows[:3], *again, *rows[5:]], key=lambda row: row.prompt_id)
    assert list(unique(view)) == expected
    named = [prompt("a", prompt_id="x" * 40), prompt("b", prompt_id="x" * 39)]
    assert len(unique(RowStore(tmp_path, Prompt, named).view())) == 2


def test_rows_of_a_group_have_one_key(tmp_path):
    dialogs = [[Message(role="user", content=q), Message(role="assistant", content=a)] for q, a in ("qa", "qb", "ra")]
    keys = RowStore(tmp_path, Conversation, [Conversation(messages=dialog) for dialog in dialogs]).view().keys_N
    assert keys[0] == keys[1] != keys[2]


def test_groups_and_later_turns_are_known_without_reading_the_rows(tmp_path):
    turns = [Message(role=role, content="x") for role in ("user", "assistant", "user")]
    rows = [prompt("a"), Prompt(prompt=turns, group_id="g" * 40), prompt("b", group_id="short")]
    view = RowStore(tmp_path, Prompt, rows).view()
    assert list(view.groups()) == [row.group_id for row in rows]
    assert view.has_later_turns_N().tolist() == [False, True, False]
    assert list(view.at(view.has_later_turns_N()).groups()) == ["g" * 40]
