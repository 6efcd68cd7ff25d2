"""Templates are programs of others: their clock, their time and their memory; and what a template leaves out."""

import copy
import datetime
import logging
import resource
import time
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig
from transformers.utils import chat_template_utils

from data_schemas.errors import ConfigError, DataError
from data_schemas.rows import Conversation, Message, PreferencePair
from engine.tokens import rendering
from engine.tokens.inspection import encode_all
from engine.tokens.positions import max_positions
from engine.tokens.rendering import TemplateLimit, render, with_fixed_date, writes_date
from engine.tokens.template import CHATML, encode_turns
from engine.tokens.token_rows import TokenRanking
from stages import dpo, reward_model, sft
from stages.prepare_base import prepare_tokenizer

DIALOG = [Message(role="user", content="Capital of France?"), Message(role="assistant", content="Paris.")]
DATED = "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML
CALL = {
    "id": "c0",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Bern", "days": [2, True]}},
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
WITH_CALLS = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMED = CHATML.replace("message['content']", "message['content'] | trim")


def of_template(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def encode_of(module: Any, tokenizer: Any, **keys: Any) -> Any:
    return module.encoder(tokenizer, module.ARGUMENTS[0](train_data=[], **keys))[0]


def answers(*texts: str) -> PreferencePair:
    turns = [[Message(role="assistant", content=text)] for text in texts]
    between = {"between": turns[1:-1]} if len(turns) > 2 else {}
    return PreferencePair(prompt=DIALOG[:1], chosen=turns[0], rejected=turns[-1], **between)


# -- the clock ------------------------------------------------------------------------------------------------------


def at_day(patch: pytest.MonkeyPatch, day: int) -> None:
    now = datetime.datetime(2031, 5, day)
    patch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: now))


def test_a_template_that_writes_the_date_is_reported_once(tokenizer, monkeypatch, caplog):
    dated = of_template(tokenizer, DATED)
    with caplog.at_level(logging.WARNING):
        at_day(monkeypatch, 1)
        first = render(dated, DIALOG)
        at_day(monkeypatch, 2)
        assert "01 May 2031" in first and "02 May 2031" in render(dated, DIALOG)
    (record,) = [record for record in caplog.records if record.name == rendering.__name__]
    assert "the chat template writes today's date" in record.message and "template_date" in record.message


@pytest.mark.parametrize(("date", "written"), [(None, "26 Jul 2024"), ("2025-01-02", "02 Jan 2025")])
def test_prepare_base_writes_one_date_into_the_template(tokenizer, monkeypatch, date, written):
    dated = of_template(tokenizer, DATED)
    notes = prepare_tokenizer(dated, None, date=date)
    assert notes == [
        f"the chat template writes the current date; in all steps it writes {date or '2024-07-26'} "
        "(prepare_base.template_date)"
    ]
    at_day(monkeypatch, 3)
    assert render(dated, DIALOG).startswith(f"<|im_start|>system\nToday: {written}<|im_end|>\n")
    assert prepare_tokenizer(dated, None, date="1999-01-01") == []  # it is in the template itself


def test_a_date_behind_a_test_and_in_other_quotes_is_fixed():
    """As Llama 3.2 and gpt-oss write it."""
    template = (
        '{% if strftime_now is defined %}{{ strftime_now("%Y-%m-%d") }}{% else %}26 Jul 2024{% endif %}'
        "{% set date = strftime_now( '%d %b %Y' ) %}"
    )
    fixed = with_fixed_date(template, "2025-01-02")
    first = "{% if strftime_now is defined %}{{ '2025-01-02' }}{% else %}26 Jul 2024{% endif %}"
    assert fixed == first + "{% set date = '02 Jan 2025' %}"
    assert writes_date(template) and not writes_date(fixed) and not writes_date(CHATML)
    with pytest.raises(ConfigError, match=r"reads the clock .* in a way that can't be replaced by a fixed date"):
        with_fixed_date("{% set f = '%d' %}{{ strftime_now(f) }}", "2025-01-02")


# -- time and memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than 0.5 seconds",
        ),
        ("{% set x = 'a' * 3000000000 %}{{ x | length }}", "takes more than 2 GiB of memory"),
        (
            "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "takes more",
        ),
        ("{{ 9 ** 9 ** 9 }}", "computes a power"),
    ],
)
def test_a_template_that_loops_or_explodes_is_one_line(tokenizer, monkeypatch, code, said):
    if "0.5 seconds" in said:
        monkeypatch.setattr(rendering, "MAX_SECONDS", 0.5)
    before, start = resource.getrlimit(resource.RLIMIT_AS), time.process_time()
    with pytest.raises(TemplateLimit, match=f"^the chat template {said}.*; set another chat_template$"):
        prepare_tokenizer(of_template(tokenizer, code + CHATML), None)
    assert time.process_time() - start < 10
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert "Paris." in render(of_template(tokenizer, CHATML), DIALOG)  # the limits are lifted again


def test_a_template_that_loops_is_not_set_aside_row_by_row(tokenizer, monkeypatch):
    monkeypatch.setattr(rendering, "MAX_SECONDS", 0.2)
    loops = of_template(tokenizer, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(TemplateLimit):
        encode_all(
            "train",
            [Conversation(messages=DIALOG)] * 5,
            encode_of(sft, loops),
            loops,
            max_length=9,
            on_bad_row="set_aside",
        )


# -- what is left out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "tools", "left_out"),
    [
        ({"tool_calls": [CALL]}, None, "the tool calls of turn 2"),
        (
            {"content": "I call weather for Bern for 2 days, true.", "tool_calls": [CALL]},
            None,
            "the tool calls of turn 2",
        ),
        ({"content": "Rain.", "reasoning_content": "It is autumn."}, None, "the reasoning of turn 2"),
        ({"content": "Rain."}, TOOLS, r"the tools \(weather\)"),
    ],
)
def test_what_chatml_leaves_out_is_refused_by_name(tokenizer, turn, tools, left_out):
    messages = [Message(role="user", content="Weather?"), Message(role="assistant", **turn)]
    row = Conversation(messages=messages, **({"tools": tools} if tools else {}))
    encode = encode_of(sft, tokenizer)
    with pytest.raises(
        DataError, match=rf"^train row 1: the chat template leaves out {left_out}: set on_bad_row: set_"
    ):
        encode_all("train", [row], encode, tokenizer, max_length=None)
    kept, report = encode_all(
        "train",
        [row, Conversation(messages=DIALOG)],
        encode,
        tokenizer,
        max_length=None,
        on_bad_row="set_aside",
    )
    assert len(kept) == 1 and report.counts("eval") == {"eval_set_aside_by_template": 1}
    (refused,) = report.refused
    assert (refused.file, refused.line) == ("train", 1) and refused.found.startswith("the chat template leaves out")
    assert next(report.warnings()).startswith("1 rows set aside, which can't be trained on under the chat template; ")


def test_what_a_template_writes_in_json_is_found(tokenizer):
    knows = of_template(tokenizer, WITH_CALLS)
    call = copy.deepcopy(CALL)
    call["function"]["arguments"]["city"] = 'Zü"rich"\n'
    turns = [DIALOG[0], Message(role="assistant", tool_calls=[call]), Message(role="tool", content="wet"), DIALOG[1]]
    assert len(encode_turns(knows, turns, tools=TOOLS)) == 1
    forgets_an_argument = WITH_CALLS.replace("c.function | tojson", "c.function.name")
    with pytest.raises(ConfigError, match="leaves out the tool calls of turn 2"):
        encode_turns(of_template(tokenizer, forgets_an_argument), turns, tools=TOOLS)
    with pytest.raises(ConfigError, match="leaves out the tool calls of turn 2"):  # also where it is only context
        encode_turns(of_template(tokenizer, forgets_an_argument), turns, tools=TOOLS, train_from=3)
    first_only = WITH_CALLS.replace("for t in tools or []", "for t in (tools or [])[:1]")
    two = [*TOOLS, {"type": "function", "function": {"name": "stars"}}]
    with pytest.raises(ConfigError, match="leaves out the tool 'stars'"):
        encode_turns(of_template(tokenizer, first_only), turns, tools=two)


def test_a_context_turn_that_is_left_out_is_refused_by_name(tokenizer):
    forgets = CHATML.replace("{% for", "{% for", 1).replace("messages %}", "messages if message.role != 'tool' %}")
    turns = [DIALOG[0], Message(role="assistant", content="Hm."), Message(role="tool", content="rain"), DIALOG[1]]
    with pytest.raises(ConfigError, match="leaves out the content of turn 3"):
        encode_turns(of_template(tokenizer, forgets), turns)


CODE = "def f():\n    return 1"


@pytest.mark.parametrize("code", ["split() | join(' ')", "replace('\\n', ' ')", "replace('\\n    ', '\\n\\t')"])
@pytest.mark.parametrize("turn", [0, 1])
def test_white_space_within_a_content_must_stay(tokenizer, code, turn):
    changes = of_template(tokenizer, CHATML.replace("message['content'] }}", f"message['content'].{code} }}}}"))
    turns = [*DIALOG]
    turns[turn] = Message(role=turns[turn].role, content=CODE)
    with pytest.raises(
        ConfigError, match=f"the chat template changes the white space within the content of turn {turn + 1}"
    ):
        encode_turns(changes, turns)
    turns[turn] = Message(role=turns[turn].role, content=f"\n {CODE}\n\n")
    assert encode_turns(of_template(tokenizer, TRIMMED), turns)


def test_white_space_within_thoughts_and_arguments_must_stay(tokenizer):
    thinks = CHATML.replace(
        "{{ message['content'] }}", "{{ (message.thinking or '').split() | join(' ') }}\n{{ message['content'] }}"
    )
    turn = Message.model_validate({"role": "assistant", "content": "So.", "thinking": "One.\nTwo."})
    with pytest.raises(ConfigError, match="the chat template changes the white space within the reasoning of turn 2"):
        encode_turns(of_template(tokenizer, thinks), [DIALOG[0], turn])
    call = copy.deepcopy(CALL)
    call["function"]["arguments"]["city"] = CODE
    turns = [DIALOG[0], Message(role="assistant", tool_calls=[call]), Message(role="tool", content="wet"), DIALOG[1]]
    assert encode_turns(of_template(tokenizer, WITH_CALLS), turns)
    joined = WITH_CALLS.replace(
        "c.function | tojson", "c.function.name ~ c.function.arguments.city.split() | join(' ')"
    )
    with pytest.raises(ConfigError, match="leaves out the tool calls of turn 2"):
        encode_turns(of_template(tokenizer, joined), turns)


# -- a template that is random --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("{{ range(100) | random }}", "is random: it renders the same dialog differently"),
        ("{{ [[1, 2]] | map('random') | join }}", "is random: it renders the same dialog differently"),
        ("{{ lipsum(1) }}", "is random: it renders the same dialog differently"),
        ("{{ messages[0].items }}", "renders the same dialog differently each time"),  # an address in memory
    ],
)
def test_a_template_that_renders_a_dialog_differently_is_one_line(tokenizer, code, said):
    with pytest.raises(TemplateLimit, match=f"^the chat template {said}; set another chat_template$"):
        render(of_template(tokenizer, CHATML + code), DIALOG)


def test_keys_that_the_template_does_not_name_are_reported_once(tokenizer):
    turns = [Message.model_validate({"role": "user", "content": "q", "name": "Ann", "note": 1}), DIALOG[1]]
    rows = [Conversation(messages=turns), Conversation(messages=turns), Conversation(messages=DIALOG)]
    named = of_template(tokenizer, CHATML.replace("{{ message['role'] }}", "{{ message.name or message['role'] }}"))
    said = []
    for each in (tokenizer, named):
        _, report = encode_all("train", rows, encode_of(sft, each), each, max_length=None)
        said += [line for line in report.warnings() if line.startswith("ignored keys")]
    start = "ignored keys of messages, which the chat template does not name:"
    assert [sorted(line.removeprefix(start).strip().split(", ")) for line in said] == [
        ["name (2)", "note (2)"],
        ["note (2)"],
    ]


# -- equal in tokens ------------------------------------------------------------------------------------------------


def test_pairs_that_are_the_same_tokens_are_dropped_and_counted(tokenizer):
    trimmed = of_template(tokenizer, TRIMMED)
    rows = [answers("Paris.", "Rome."), answers("Paris.\n", "Paris."), answers("Paris.", " Paris.")]
    for module in (dpo, reward_model):
        kept, report = encode_all("train", rows, encode_of(module, trimmed), trimmed, max_length=None)
        assert len(kept) == 1 and report.counts("train") == {"dropped_equal_in_tokens": 2}
        assert report.counts("eval") == {"eval_dropped_equal_in_tokens": 2}
        assert next(report.warnings()) == (
            "2 rows dropped (equal_in_tokens): their answers are the same tokens under the chat template"
        )
        assert len(encode_all("train", rows, encode_of(module, tokenizer), tokenizer, max_length=None)[0]) == 3


def test_a_ranking_loses_the_answers_that_are_the_same_tokens_as_a_better_one(tokenizer):
    trimmed = of_template(tokenizer, TRIMMED)
    encode = encode_of(reward_model, trimmed)
    ((row,), report) = encode_all(
        "train", [answers("Paris.", "Paris. ", "Rome.", "Rome.\n")], encode, trimmed, max_length=None
    )
    assert row == TokenRanking(encode(answers("Paris.", "Rome."))[0].answers)
    assert report.num_answers_dropped == 2 and not report.dropped


# -- positions ------------------------------------------------------------------------------------------------------


def test_the_positions_of_a_model_count_its_scaling():
    rope = {"rope_theta": 10_000.0}
    assert max_positions(GPT2Config(n_positions=64)) == 64
    assert max_positions(LlamaConfig(max_position_embeddings=512)) == 512
    for kind, positions, original, expected in (
        ("linear", 512, None, 2048),
        ("dynamic", 512, None, 2048),
        ("yarn", 512, 512, 2048),  # as Qwen 2.5, whose limit is that before scaling
        ("llama3", 2048, 512, 2048),  # as Llama 3.1, whose limit is that after scaling
    ):
        scaling = rope | {"rope_type": kind, "factor": 4.0}
        if original:
            scaling |= {"original_max_position_embeddings": original}
        if kind == "llama3":
            scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        assert max_positions(LlamaConfig(max_position_embeddings=positions, rope_parameters=scaling)) == expected, kind


def test_rows_beyond_the_positions_are_refused_before_training(tokenizer):
    rows = [
        Conversation(messages=DIALOG),
        Conversation(messages=[DIALOG[0], Message(role="assistant", content="o" * 99)]),
    ]
    encode = encode_of(sft, tokenizer)
    long = len(encode(rows[1])[0].input_ids)
    with pytest.raises(
        ConfigError,
        match=rf"^eval: 1 of 2 rows are longer than the model's 64 positions, the longest has {long} tokens; "
        "set max_length: 64 or less$",
    ):
        encode_all("eval", rows, encode, tokenizer, max_length=None, max_positions=64)
    assert len(encode_all("eval", rows, encode, tokenizer, max_length=64, max_positions=64)[0]) == 1
    assert len(encode_all("eval", rows[:1], encode, tokenizer, max_length=400, max_positions=64)[0]) == 1
