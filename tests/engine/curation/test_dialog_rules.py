"""Rules for dialogs: for each a row that is dropped, and similar ones that stay."""

import pytest

from engine.curation.content import Content, Finding
from engine.curation.dialog_rules import ANSWER_CHECKS, PROMPT_CHECKS, dialog_rules

RULES = dialog_rules()
WORDS = [f"word{number}" for number in range(100)]
PROSE = "The first sentence is here. The second one follows it. A third one closes the part."

# rule: (an answer that is dropped, the value), and answers that stay
CASES: dict[str, tuple[tuple[str, float | str], list[str]]] = {
    "empty_answer": (("...", "..."), ["4", "😀", "はい", "=", "No."]),
    "refusal": (
        ("I'm sorry, but I can't help with that.", "I'm sorry, but I can't"),
        [
            "I can't help but smile.",
            "I promise you I won't share the number.",
            "As an AI, I can suggest several ways.",
            "I'm sorry, I'm not sure that I understand the question.",
            "x" * 119 + ". I cannot help.",
        ],
    ),
    "looping_answer": (
        ("He said " + "I love you so very much " * 5, 5.0),
        ["I love you so very much " * 4, "very " * 20, "ha" * 40, " ".join(WORDS) * 3],
    ),
    "repetitive_answer": (
        (" ".join([*WORDS[:10], *WORDS[:20], *WORDS[:10], *WORDS[:20]]), 0.6667),
        [" ".join([*WORDS[:20], *WORDS[:30]]), " ".join([*WORDS[:24], *WORDS[:24]])],
    ),
    "truncated_answer": (
        (f"{PROSE} And here is what comes of the", " the part. And here is what comes of the"),
        [
            f"{PROSE} And here is what comes.",
            f"{PROSE}\n\n- apples\n- pears from here",
            f"{PROSE} See https://example.org/the",
            f"{PROSE} {PROSE}\n\nLooking forward to it,",
            "What it is for the",
            f"{PROSE} In code:\n```\nfor x in the\n```",
        ],
    ),
    "broken_code_fence": (
        ("Run this:\n```python\nprint(1)\n", 1),
        [
            "```\na\n```",
            "~~~\n```\n~~~",
            "````\n```python\n````",
            "Use ``` here.",
            "1. First:\n   ```sh\n   ls\n   ```",
        ],
    ),
    "broken_json": (
        ('{"a": [1, 2}', 1),
        [
            '{"a": [1, 2]}',
            '{"a": 1}\n{"b": 2}',
            '```json\n{"a": ...}\n```',
            '```json\n{"a": 1}\n```',
            "{a, b}",
            "[1] says so",
        ],
    ),
    "broken_html": (
        ("<!DOCTYPE html><html><body><div><p>Text<br></body></html>", 1),
        ["<html><body><p>One<p>Two<img src='x'></body></html>", "Close a <div> always.", "```html\n<html></html>\n```"],
    ),
    "short_answer": ((" ", 0), ["a", "?"]),
    "long_answer": (("a " * 8193, 8193), ["a " * 8192]),
}


def test_there_is_a_case_for_every_rule():
    assert CASES.keys() == ANSWER_CHECKS.keys() and RULES.keys() == ANSWER_CHECKS.keys() | PROMPT_CHECKS.keys()


@pytest.mark.parametrize("name", [name for name in CASES if name != "short_answer"])
def test_an_answer_is_dropped_for_its_rule_and_others_stay(name):
    (answer, value), others = CASES[name]
    assert RULES[name](Content("prompt", (answer,))) == Finding(name, value, ANSWER_CHECKS[name][0])
    for other in others:
        assert RULES[name](Content("prompt", (other,))) is None, other


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I cannot browse the web.",
        "I apologize, but I cannot provide information on persons.",
        "Sorry, I can’t do that.",
        "I am unable to assist with booking flights.",
        "Hello! However, I am not programmed to answer such questions.",
        "I'm sorry, but as an AI, I don't have the capability to order a pizza.",
    ],
)
def test_refusals_in_their_usual_words_are_found(answer):
    assert RULES["refusal"](Content("prompt", (answer,)))


def test_lengths_are_in_words_and_in_characters_of_scripts_without_spaces():
    rules = dialog_rules({"short_answer": 3, "long_answer": 5, "short_prompt": 2, "long_prompt": 4})
    assert rules["short_answer"](Content("a", ("one, two",))) == Finding("short_answer", 2, 3)
    assert rules["short_answer"](Content("a", ("one two three",))) is None
    assert rules["long_answer"](Content("a", ("我昨天和朋友",))) == Finding("long_answer", 6, 5)
    assert rules["long_answer"](Content("a", ("我昨天和朋",))) is None
    assert rules["short_prompt"](Content("one", ())) == Finding("short_prompt", 1, 2)
    assert rules["long_prompt"](Content("one two three four five", ())) == Finding("long_prompt", 5, 4)
    assert rules["long_prompt"](Content("one two three four", ())) is None


def test_every_answer_of_a_dialog_is_judged_and_only_the_best_of_a_preference_row():
    row = Content("prompt", ("A good answer.", "..."))
    assert RULES["empty_answer"](row)
    assert dialog_rules(kind="preferences")["empty_answer"](row) is None
    assert dialog_rules(kind="preferences")["empty_answer"](Content("prompt", row.answers[::-1]))
    assert dialog_rules(kind="prompts").keys() == PROMPT_CHECKS.keys()


def test_an_answer_that_only_calls_a_tool_breaks_no_rule():
    row = Content("prompt", ("", "It is done."))
    assert [name for name, rule in RULES.items() if rule(row)] == []


def test_a_rule_without_threshold_is_left_out():
    assert "refusal" not in dialog_rules({"refusal": None})
