"""What the keys of a message mean: calls of tools, parts, weights, images."""

import json

import pytest
from pydantic import ValidationError

from data_schemas.reading import read_conversations, read_pairs
from data_schemas.rows import Conversation, Message, PreferencePair, Prompt, for_template
from tests.data_schemas.raw_rows import TWO_TURNS, assistant, fails, lines, messages_of, user


def read_one(path, messages, **columns):
    (row,) = read_conversations(lines(path / "a.jsonl", {"messages": messages, **columns})).rows
    return row


def refused(path, messages, **columns):
    return fails(read_conversations, lines(path / "a.jsonl", {"messages": messages, **columns}))


def calling(arguments, **message):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call], **message}


# -- tool calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [[], None, "[]", ""])
def test_no_tool_calls_in_any_writing_are_as_without_the_key(tmp_path, nothing):
    row = read_one(tmp_path, [user("Hi") | {"tool_calls": nothing}, assistant("Hello.") | {"tool_calls": nothing}])
    assert for_template(row.messages) == TWO_TURNS
    assert row.to_json() == read_one(tmp_path, TWO_TURNS).to_json()


@pytest.mark.parametrize(
    ("arguments", "parsed"),
    [
        ('{"city": "Bern", "days": [1, null]}', {"city": "Bern", "days": [1, None]}),
        ("{}", {}),
        ("", {}),
        ({"city": "Bern"}, {"city": "Bern"}),
    ],
)
def test_arguments_as_json_text_are_mappings_in_every_dialect(tmp_path, arguments, parsed):
    answers = [{"role": "tool", "content": "rain"}, assistant("It rains.")]
    row = read_one(tmp_path, [user("q"), calling(arguments), *answers])
    assert row.messages[1].tool_calls == [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": parsed}}
    ]
    flat = {"role": "assistant", "tool_calls": json.dumps([{"name": "weather", "arguments": arguments}])}
    assert read_one(tmp_path, [user("q"), flat, *answers]).messages[1].tool_calls == [
        {"name": "weather", "arguments": parsed}
    ]
    old = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": arguments}}
    row = read_one(tmp_path, [user("q"), old, {"role": "function", "name": "weather", "content": "rain"}, answers[1]])
    function = {"name": "weather", "arguments": parsed}
    assert row.messages[1].tool_calls == [{"type": "function", "function": function}]
    assert for_template(row.messages)[2] == {"role": "tool", "content": "rain", "name": "weather"}
    spoken = [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(function)}]
    spoken += [{"from": "observation", "value": "rain"}, {"from": "gpt", "value": "It rains."}]
    (row,) = read_conversations(lines(tmp_path / "b.jsonl", {"conversations": spoken})).rows
    assert row.messages[1].tool_calls == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("{city: Bern}", "found '{city: Bern}' (Expecting property name enclosed in double quotes at character 2),"),
        ('"Bern"', "found '\"Bern\"', expected the JSON text of a mapping"),
    ],
)
def test_arguments_that_are_no_mapping_are_refused_with_their_place(tmp_path, arguments, reason):
    error = refused(tmp_path, [user("q"), calling(arguments), assistant("a")])
    assert f"a.jsonl:1: messages.1.tool_calls.0.function.arguments: {reason}" in error


# -- parts and media ------------------------------------------------------------------------------------------------


def test_parts_of_a_content_become_one_text(tmp_path):
    parts = [{"type": "text", "text": "Describe "}, {"type": "text", "text": "Bern."}]
    row = read_one(tmp_path, [user(parts), assistant([{"type": "text", "text": "A city."}])])
    assert for_template(row.messages) == [user("Describe Bern."), assistant("A city.")]


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "a part of type 'image_url'"),
        ({"type": "input_audio", "text": "said"}, "a part of type 'input_audio'"),
        (3, "3"),
    ],
)
def test_a_part_that_is_not_text_is_refused(tmp_path, part, found):
    error = refused(tmp_path, [user([{"type": "text", "text": "Look: "}, part]), assistant("a")])
    assert f"messages.0.content.1: found {found}, expected a part of type 'text'" in error


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ({"weight": 0}, ": found a part that is not trained, expected none: a turn is trained in full"),
        ({"train": False}, ": found a part that is not trained, expected none"),
        ({"trained": False}, ": found a part that is not trained, expected none"),
        ({"mask": True}, ": found a part that is not trained, expected none"),
        ({"weight": 0.5}, ".weight: found 0.5, expected 0 or 1"),
        ({"train_detail": [{"begin_offset": 0}]}, ".train_detail: found a list of 1, expected none"),
        ({"images": ["a.png"]}, ".images: found a list of 1, expected none"),
        ({"refusal": "No."}, ".refusal: found 'No.', expected none"),
    ],
)
def test_keys_of_a_part_that_say_what_is_trained_are_refused(tmp_path, key, problem):
    parts = [{"type": "text", "text": "A "}, {"type": "text", "text": "city."} | key]
    assert f"a.jsonl:1: messages.1.content.1{problem}" in refused(tmp_path, [user("Hi"), assistant(parts)])


def test_keys_of_a_part_that_change_nothing_are_accepted_and_others_are_listed(tmp_path):
    asked = [{"type": "text", "text": "Hi", "weight": 0}]  # only turns of the assistant are trained
    answer = [{"type": "text", "text": "Hello.", "weight": 1, "annotations": [], "cache_control": {"type": "x"}}]
    read = read_conversations(lines(tmp_path / "a.jsonl", {"messages": [user(asked), assistant(answer)]}))
    assert for_template(read.rows[0].messages) == TWO_TURNS
    assert list(read.ignored.values()) == [["messages.content.cache_control"]]


# -- messages as JSON text ------------------------------------------------------------------------------------------

CONTEXT = [user("Hi"), assistant("Hey.") | {"weight": 0}, user("Hi"), assistant("Hello.") | {"note": "x"}]


def test_keys_of_messages_in_json_text_mean_what_they_mean_elsewhere(tmp_path):
    read = read_conversations(lines(tmp_path / "a.jsonl", {"messages": json.dumps(CONTEXT)}))
    assert [turn.trained for turn in read.rows[0].messages] == [True, False, True, True]
    assert list(read.ignored.values()) == [["messages.note (unless the chat template uses it)"]]
    image = json.dumps([user("q") | {"images": ["a.png"]}, assistant("a")])
    assert "messages.0.images: found a list of 1, expected none" in refused(tmp_path, image)


def test_prompts_and_answers_in_json_text_are_messages_and_no_text_to_train(tmp_path):
    prompt, good, bad = json.dumps([user("Hi")]), json.dumps([assistant("Hello.")]), json.dumps([assistant("No.")])
    (row,) = read_conversations(lines(tmp_path / "a.jsonl", {"prompt": prompt, "completion": good})).rows
    assert for_template(row.messages) == TWO_TURNS
    (pair,) = read_pairs(lines(tmp_path / "b.jsonl", {"prompt": prompt, "chosen": good, "rejected": bad})).rows
    assert [for_template(side) for side in (pair.prompt, pair.chosen, pair.rejected)] == [
        [user("Hi")],
        [assistant("Hello.")],
        [assistant("No.")],
    ]
    dialogs = {
        "chosen": json.dumps([user("Hi"), assistant("Hello.")]),
        "rejected": json.dumps([user("Hi"), assistant("No.")]),
    }
    assert read_pairs(lines(tmp_path / "c.jsonl", dialogs)).rows[0].to_json() == pair.to_json()
    labelled = [
        {"messages": json.dumps([user("Hi"), assistant(text)]), "label": text == "Hello."} for text in ("Hello.", "No.")
    ]
    assert read_pairs(lines(tmp_path / "d.jsonl", *labelled)).rows[0].to_json() == pair.to_json()


@pytest.mark.parametrize(
    "text", ['[{"role": "user"', '[{"a": 1}]', "[1] is a list", '[{"role": "user", "content": "a"}] is a message']
)
def test_a_text_that_only_begins_like_messages_stays_text(tmp_path, text):
    (row,) = read_conversations(lines(tmp_path / "a.jsonl", {"prompt": text, "completion": "b"})).rows
    assert for_template(row.messages) == [user(text), assistant("b")]


@pytest.mark.parametrize("name", ["images", "videos", "audio"])
def test_images_and_sounds_are_refused_and_empty_ones_are_ignored(tmp_path, name):
    assert f"messages.0.{name}: found a list of 1, expected none" in refused(
        tmp_path, [user("q") | {name: ["a.png"]}, assistant("a")]
    )
    assert f"1: {name}: found 'a.png', expected none" in refused(tmp_path, TWO_TURNS, **{name: "a.png"})
    row = read_one(tmp_path, [user("Hi") | {name: []}, assistant("Hello.") | {name: None}], **{name: []})
    assert for_template(row.messages) == TWO_TURNS


def test_keys_that_templates_know_are_kept_in_both_forms(tmp_path):
    thought = {"name": "bot", "reasoning_content": "r", "thinking": "t"}
    row = read_one(tmp_path, [user("q"), assistant("a") | thought])
    assert for_template(row.messages)[1] == assistant("a") | thought
    spoken = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", **thought}]
    read = read_conversations(lines(tmp_path / "b.jsonl", {"conversations": spoken}))
    assert messages_of(read) == [[user("q"), assistant("a") | thought]]


NOTHING = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "note": "", "tool_calls": None}


def test_empty_keys_as_openai_writes_them_are_harmless(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"messages": [user("Hi"), assistant("Hello.") | NOTHING]})
    read = read_conversations(path)
    assert messages_of(read) == [TWO_TURNS] and not read.ignored
    pair = {"prompt": "q", "chosen": [assistant("a") | NOTHING], "rejected": "b"}
    (row,) = read_pairs(lines(tmp_path / "b.jsonl", pair)).rows
    assert for_template(row.chosen) == [assistant("a")]


@pytest.mark.parametrize("content", ["", "No."])
def test_a_refusal_and_a_second_kind_of_call_are_refused_by_name(tmp_path, content):
    reason = "messages.1.refusal: found 'I can not.', expected none: a refusal is trained as the content of its turn"
    assert reason in refused(tmp_path, [user("q"), assistant(content) | {"refusal": "I can not."}])
    call = {"name": "f", "arguments": "{}"}
    turn = assistant(content) | {"function_call": call, "tool_calls": [call]}
    reason = "messages.1.function_call: found a mapping with name, arguments, expected none beside tool_calls"
    assert reason in refused(tmp_path, [user("q"), turn, assistant("a")])


def test_other_keys_are_kept_and_listed_once(tmp_path):
    turns = [user("q") | {"name": "Ann"}, assistant("a") | {"note": "n", "annotations": [1]}]
    path = lines(tmp_path / "a.jsonl", {"messages": turns}, {"messages": turns, "id": 1})
    read = read_conversations(path)
    used = " (unless the chat template uses it)"
    assert read.ignored == {str(path): [f"messages.note{used}", f"messages.annotations{used}", "id"]}
    assert messages_of(read) == [turns, turns]
    ranked = [[assistant("a") | {"mark": 1}], {"from": "gpt", "value": "b", "lang": "en"}]
    path = lines(tmp_path / "b.jsonl", {"prompt": [user("q") | {"extra": 0}], "ranked": ranked})
    assert read_pairs(path).ignored == {str(path): [f"prompt.extra{used}", f"ranked.mark{used}", "ranked.lang"]}
    path = lines(tmp_path / "c.jsonl", {"question": "q", "answer": {"text": ["a"]}})
    assert not read_conversations(path).ignored  # SQuAD's answers are no messages


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"function": "ff"}, "0.function: found 'ff', expected a function call with name and arguments"),
        ({"type": "function"}, "0.name: found nothing, expected the name of a function"),
        ({"name": " ", "arguments": {}}, "0.name: found ' ', expected the name of a function"),
        ({"function": {"name": "", "arguments": {}}}, "0.function.name: found '', expected the name of a function"),
        ({"name": "f", "arguments": 5}, "0.arguments: found 5, expected a mapping of arguments to values, or its JSON"),
        ({"function": {"name": "f", "arguments": [1]}}, "0.function.arguments: found a list of 1, expected a mapping"),
        ({"name": "f", "arguments": {}, "parameters": {"a": 1}}, "0.parameters: found a mapping with a, expected none"),
        ({"name": "f", "parameters": "3"}, "0.parameters: found '3', expected the JSON text of a mapping"),
    ],
)
def test_calls_that_say_nothing_a_template_could_write_are_refused(tmp_path, call, reason):
    turn = {"role": "assistant", "tool_calls": [call]}
    assert f"messages.1.tool_calls.{reason}" in refused(tmp_path, [user("q"), turn, assistant("a")])


def test_parameters_of_a_call_are_its_arguments(tmp_path):
    """As Llama 3 writes a call."""
    calls = [{"name": "f", "parameters": {"a": 1}}, {"function": {"name": "g", "parameters": '{"b": 2}'}}]
    row = read_one(tmp_path, [user("q"), {"role": "assistant", "tool_calls": calls}, assistant("a")])
    assert row.messages[1].tool_calls == [
        {"name": "f", "arguments": {"a": 1}},
        {"function": {"name": "g", "arguments": {"b": 2}}},
    ]
    spoken = [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(calls[0])}]
    read = read_conversations(lines(tmp_path / "b.jsonl", {"conversations": spoken}))
    assert read.rows[0].messages[1].tool_calls == [
        {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    ]


# -- turns that are not trained -------------------------------------------------------------------------------------

UNTRAINED = [
    {"weight": 0},
    {"weight": 0.0},
    {"train": False},
    {"training": False},
    {"loss": False},
    {"weight": 1, "train": False},
    {"loss_mask": 0},
    {"mask": True},
    {"ignore": True},
    {"trainable": False},
    {"train_on_turn": False},
    {"do_train": False},
    {"compute_loss": False, "mask": False},
]


@pytest.mark.parametrize("key", UNTRAINED)
def test_a_turn_that_is_not_trained_is_context_and_no_template_sees_the_key(tmp_path, key):
    messages = [user("q"), assistant("WRONG") | key, user("again"), assistant("right") | {"weight": 1, "train": True}]
    row = read_one(tmp_path, messages)
    assert [message.trained for message in row.messages] == [True, False, True, True]
    assert for_template(row.messages) == [user("q"), assistant("WRONG"), user("again"), assistant("right")]
    names = {"user": "human", "assistant": "gpt"}
    spoken = [
        {"from": names[turn["role"]], "value": turn["content"]}
        | {name: value for name, value in turn.items() if name not in ("role", "content")}
        for turn in messages
    ]
    (same,) = read_conversations(lines(tmp_path / "b.jsonl", {"conversations": spoken})).rows
    assert same.to_json() == row.to_json()
    (again,) = read_conversations(lines(tmp_path / "c.jsonl", row.to_json() + "\n")).rows
    assert again.to_json() == row.to_json()


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (assistant("a") | {"weight": 0.5}, "messages.1.weight: found 0.5, expected 0 or 1, false or true"),
        (assistant("a") | {"train": "no"}, "messages.1.train: found 'no', expected 0 or 1, false or true"),
        (
            assistant("a") | {"mask": 1},
            "messages.1.mask: found 1, expected true (not trained) or false; a mask in which",
        ),
        (assistant("a") | {"loss_mask": [0, 1]}, "messages.1.loss_mask: found a list of 2, expected 0 or 1"),
        (assistant("a") | {"ignore": True}, "messages: found a dialog in which no turn is trained, expected an"),
        (assistant("a") | {"weight": 0}, "messages: found a dialog in which no turn is trained, expected an assistant"),
        (assistant("a") | {"train_detail": [{"begin_offset": 0}]}, "messages.1.train_detail: found a list of 1, expec"),
    ],
)
def test_other_weights_and_dialogs_without_a_trained_turn_are_refused(tmp_path, turn, reason):
    assert f"a.jsonl:1: {reason}" in refused(tmp_path, [user("q"), turn])


@pytest.mark.parametrize("key", ["train", "trainable", "do_train", "loss_mask"])
def test_a_user_turn_that_is_to_be_trained_is_refused(tmp_path, key):
    masked = user("q") | {"mask": True, "ignore": False, "weight": 1, key: False}
    assert read_one(tmp_path, [masked, assistant("a")]).messages[0] == Message(**user("q"))
    error = refused(tmp_path, [user("q") | {key: True}, assistant("a")])
    assert f"messages.0.{key}: found true in a turn of 'user', expected false: only turns of the assistant" in error
    row = read_one(tmp_path, [user("q") | {"train": False, "weight": 1}, assistant("a")])
    assert for_template(row.messages) == [user("q"), assistant("a")]


def test_answers_of_a_pair_are_trained_in_full_and_its_prompt_may_have_weights(tmp_path):
    prompt = [user("a"), assistant("b") | {"weight": 0}, user("c")]
    row = {"prompt": prompt, "chosen": [*prompt, assistant("x")], "rejected": [assistant("y")]}
    (pair,) = read_pairs(lines(tmp_path / "a.jsonl", row)).rows
    assert for_template(pair.chosen) == [assistant("x")]
    row = {"prompt": "q", "chosen": [assistant("x") | {"weight": 0}], "rejected": "y"}
    assert "chosen: found an answer with a turn that is not trained, expected" in fails(
        read_pairs, lines(tmp_path / "b.jsonl", row)
    )


def test_whether_a_turn_is_trained_is_no_part_of_a_prompts_identity():
    turns = [Message(role="user", content="a"), Message(role="assistant", content="b", trained=False)]
    last = Message(role="user", content="c")
    plain = Prompt(prompt=[turns[0], Message(role="assistant", content="b"), last])
    assert Prompt(prompt=[*turns, last]).prompt_id == plain.prompt_id


# -- the first turn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greeting", [assistant("Hello!"), {"role": "tool", "content": "ready"}])
def test_a_dialog_that_begins_with_another_turn_than_the_users_is_a_bad_row(tmp_path, greeting):
    path = lines(tmp_path / "a.jsonl", {"messages": TWO_TURNS}, {"messages": [greeting, user("q"), assistant("a")]})
    error = fails(read_conversations, path)
    assert f"a.jsonl:2: messages: found a first message from {greeting['role']!r}, expected one from 'user'" in error
    assert [bad.line for bad in read_conversations(path, on_bad_row="set_aside").bad] == [2]


def test_a_greeting_after_a_system_message_stays():
    turns = [("system", "s"), ("assistant", "Hello!"), ("user", "q"), ("assistant", "a")]
    Conversation(messages=[Message.model_validate({"role": role, "content": text}) for role, text in turns])
    with pytest.raises(ValidationError, match="a first message from 'assistant'"):
        Conversation(messages=[Message.model_validate({"role": role, "content": text}) for role, text in turns[1:]])
    PreferencePair.model_validate(
        {"prompt": [assistant("Hi!"), user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    )


@pytest.mark.parametrize("tag", [5, ["a"], {"a": 1}, True])
def test_a_tag_that_is_no_text_is_listed_as_ignored(tmp_path, tag):
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": "Is it?", "completion": "Yes.", "tag": value} for value in ("math", None, tag)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_conversations(path)
    assert read.ignored == {str(path): ["tag (expected text)"]}
    assert [row.tag for row in read.rows] == ["math", "", ""]
